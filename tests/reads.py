"""A recipe that remembers which of its settings are read, and other values for a setting."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from manifests.ontology import CoarseClass, Ontology
from manifests.recipe import Recipe

Read = tuple[str, str]
"""Where a setting stands, such as `teacher.clip_dense`, and its name."""

UNTOLD = ("name", "written", "typed", "overrides", "run")
"""What a recipe holds that is no part of any identity: how it was asked for, and how things are computed."""


def watched_recipe(recipe: Recipe) -> tuple[Recipe, set[Read]]:
    """Return a recipe that is like another one to all who use it, and the set of the settings that they have read."""
    reads: set[Read] = set()
    sections = {
        item.name: watched(getattr(recipe, item.name), item.name, reads)
        for item in dataclasses.fields(recipe)
        if item.name not in UNTOLD
    }
    return dataclasses.replace(recipe, **sections), reads


def watched(config: Any, where: str, reads: set[Read]) -> Any:
    """Return a frozen dataclass of the same fields, of a class below its class; reading a field adds it to `reads`.

    Dataclasses within it are watched likewise, and reading one is only on the way to its fields. So are those in
    tuples, whose number and order are told by reading the tuple.
    """
    kind: Any = type(config)
    inside: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            inside[item.name] = watched(value, f"{where}.{item.name}", reads)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            inside[item.name] = tuple(watched(one, f"{where}.{item.name}", reads) for one in value)
    one_inside = {name for name, value in inside.items() if not isinstance(value, tuple)}
    told = {item.name for item in dataclasses.fields(config)} - one_inside

    def read(self: Any, name: str) -> Any:
        if name in told:
            reads.add((where, name))
        return kind.__getattribute__(self, name)

    one: Any = object.__new__(type(kind.__name__, (kind,), {"__getattribute__": read}))
    for item in dataclasses.fields(config):
        object.__setattr__(one, item.name, inside.get(item.name, getattr(config, item.name)))
    return one


def with_value(recipe: Recipe, read: Read, value: Any) -> Recipe:
    """Return a recipe with another value of a setting; raises ValueError where its section does not take it.

    Of tables in a list it is the first.
    """
    where, name = read

    def put(config: Any, path: list[str]) -> Any:
        if isinstance(config, tuple):
            return (put(config[0], path), *config[1:])
        if not path:
            return dataclasses.replace(config, **{name: value})
        return dataclasses.replace(config, **{path[0]: put(getattr(config, path[0]), path[1:])})

    changed: Recipe = put(recipe, where.split("."))
    return changed


def section_of(recipe: Recipe, read: Read) -> Any:
    """Return what a setting stands in; of tables in a list the first."""
    section: Any = recipe
    for part in read[0].split("."):
        section = getattr(section, part)
        section = section[0] if isinstance(section, tuple) else section
    return section


def value_of(recipe: Recipe, read: Read) -> Any:
    """Return the value of a setting."""
    return getattr(section_of(recipe, read), read[1])


def other_recipes(recipe: Recipe, read: Read) -> Iterator[Recipe]:
    """Yield recipes that differ in one setting from a recipe; values that its section does not take are left out."""
    value, section = value_of(recipe, read), section_of(recipe, read)
    waiting = list(other_values(value, typing.get_type_hints(type(section))[read[1]]))
    tried: list[Any] = []
    while waiting:
        one = waiting.pop(0)
        if one == value or one in tried:
            continue
        tried.append(one)
        try:
            yield with_value(recipe, read, one)
        except ValueError as error:
            # sections say what they take, as in: choose "class" or "components"
            waiting += re.findall(r"[\w.-]+", str(error)) if isinstance(one, str) else []


def other_values(value: Any, kind: Any) -> Iterator[Any]:
    """Yield values of the type of a setting, most of which are not the one that it has."""
    options = typing.get_args(kind)
    may_lack = options if type(None) in options else ()
    if typing.get_origin(kind) is typing.Literal:
        yield from options
    elif isinstance(value, bool) or bool in may_lack:
        yield from (True, False)
    elif isinstance(value, int) or int in may_lack:
        yield from ((value or 0) + 1, (value or 0) * 2, (value or 2) // 2, 8, 64)
    elif isinstance(value, float):
        yield from (value + 0.25, value * 1.5, value / 2, 0.25, 0.75)
    elif isinstance(value, str):
        yield from ("single", "nothing of that name", "random:7", "0" * 64)
    elif isinstance(value, tuple) and value:
        first = value[0]
        yield from (value[1:], value[:1] + value, tuple(reversed(value)))
        if isinstance(first, float):
            yield (first + 0.25, *value[1:])
        elif isinstance(first, int):
            yield (first + 1, *value[1:])
    elif isinstance(value, tuple):
        yield from (("front",), ("y", "x", "z", "intensity"))  # of cameras, or columns


def other_dictionaries(one: Ontology) -> dict[str, Ontology]:
    """Return class dictionaries that differ from one in a single respect, by what that is."""

    def coarse(item: CoarseClass) -> str:
        return item.name if item.name == one.classes[0].name else f"other {item.name}"

    classes, fine, groups = one.classes, one.fine, one.groups
    last = groups[-1]
    renamed = tuple(replace(item, name=coarse(item)) for item in classes)
    of_renamed = {before.name: after.name for before, after in zip(classes, renamed, strict=True)}
    found = {
        "named otherwise": replace(one, name="other"),
        "of another version": replace(one, version=one.version + 1),
        "classes renamed": replace(
            one, classes=renamed, fine=tuple(replace(item, coarse=of_renamed[item.coarse]) for item in fine)
        ),
        "classes reordered": replace(one, classes=(classes[0], *reversed(classes[1:]))),
        "a class more": replace(one, classes=(*classes, replace(classes[-1], name="one more"))),
        "colours": replace(one, classes=tuple(replace(item, rgb=(1, 2, 3)) for item in classes)),
        "ground": replace(one, classes=tuple(replace(item, ground=not item.ground) for item in classes)),
        "fine classes renamed": replace(
            one,
            fine=tuple(replace(item, name=f"other {item.name}") for item in fine),
            groups=tuple(replace(item, fine=f"other {item.fine}") for item in groups),
        ),
        "fine classes reordered": replace(one, fine=tuple(reversed(fine))),
        "fine classes of other classes": replace(
            one, fine=tuple(replace(a, coarse=b.coarse) for a, b in zip(fine, fine[1:] + fine[:1], strict=True))
        ),
        "raw labels": replace(
            one, fine=tuple(replace(a, raw=b.raw) for a, b in zip(fine, fine[1:] + fine[:1], strict=True))
        ),
        "raw mask": replace(one, raw_mask=0xFFFF if one.raw_mask is None else None),
        "groups renamed": replace(one, groups=tuple(replace(item, name=f"other {item.name}") for item in groups)),
        "groups reordered": replace(one, groups=tuple(reversed(groups))),
        "groups of other fine classes": replace(
            one, groups=tuple(replace(a, fine=b.fine) for a, b in zip(groups, groups[1:] + groups[:1], strict=True))
        ),
        "groups of another fine class": replace(one, groups=tuple(replace(item, fine=fine[0].name) for item in groups)),
        "groups split": replace(
            one,
            groups=tuple(
                replace(item, name=f"{item.name} {number}", prompts=(prompt,))
                for item in groups
                for number, prompt in enumerate(item.prompts)
            ),
        ),
        "things": replace(one, groups=tuple(replace(item, thing=not item.thing) for item in groups)),
        "concepts": replace(one, groups=tuple(replace(item, concepts=("van", *item.concepts)) for item in groups)),
        "prompts renamed": replace(
            one, groups=tuple(replace(item, prompts=tuple(f"old {p}" for p in item.prompts)) for item in groups)
        ),
        "prompts reordered": replace(
            one, groups=tuple(replace(item, prompts=tuple(reversed(item.prompts))) for item in groups)
        ),
        "a prompt more": replace(one, groups=(*groups[:-1], replace(last, prompts=(*last.prompts, "tram")))),
    }
    return found


def touched(name: str) -> set[Read]:
    """Return which fields of the dictionary differ where it differs in that respect."""
    classes, fine, groups = "ontology.classes", "ontology.fine", "ontology.groups"
    return {
        "named otherwise": {("ontology", "name")},
        "of another version": {("ontology", "version")},
        "classes renamed": {(classes, "name"), (fine, "coarse")},
        "colours": {(classes, "rgb")},
        "ground": {(classes, "ground")},
        "fine classes renamed": {(fine, "name"), (groups, "fine")},
        "fine classes of other classes": {(fine, "coarse")},
        "raw labels": {(fine, "raw")},
        "raw mask": {("ontology", "raw_mask")},
        "groups renamed": {(groups, "name")},
        "things": {(groups, "thing")},
        "concepts": {(groups, "concepts")},
        "prompts renamed": {(groups, "prompts")},
        "classes reordered": {("ontology", "classes")},
        "a class more": {("ontology", "classes")},
        "fine classes reordered": {("ontology", "fine")},
        "groups of other fine classes": {(groups, "fine")},
        "groups of another fine class": {(groups, "fine")},
        "groups reordered": {("ontology", "groups")},
        "groups split": {("ontology", "groups")},
        "prompts reordered": {(groups, "prompts")},
        "a prompt more": {(groups, "prompts")},
    }[name]
