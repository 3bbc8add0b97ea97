"""Recipes: TOML files read into frozen dataclasses, one per section, with `--set section.key=value` overrides.

A recipe says *what* is computed; its `[run]` section says *how*. Every field outside `[run]` may change a result and
therefore takes part in the identity of the stage that reads it; nothing in `[run]` may.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from manifests.fingerprint import Json, Settings
from manifests.shown import shown_uri

T = TypeVar("T")

RECIPES = Path(__file__).parent / "recipes"

URIS = ("run.store", "data.root", "run.ray_address")
"""The settings that may be addresses; a path that is one would become a folder of that name, here and nowhere else."""

BASE = "base"
"""The one key that stands outside the sections: the recipe that this one builds on."""


class ConfigError(ValueError):
    """A recipe that cannot be understood; programs print it without a trace and end with exit status 2."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as it was written: its name and its sections as plain values, overrides applied, not yet typed."""

    name: str
    sections: Mapping[str, Settings] = field(default_factory=dict)

    def section(self, name: str, kind: type[T]) -> T:
        """Return section `name` as a frozen dataclass of type `kind`; a section left out gets its defaults.

        Raises ConfigError for an unknown key, a value of the wrong type, or a value out of range.
        """
        return parse_section(name, self.sections.get(name, {}), kind)


@dataclass(frozen=True)
class Layer:
    """Settings from one place: `origin` is a file, or what was typed behind `--set`."""

    origin: str
    sections: Mapping[str, Settings]


def read_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> RecipeFile:
    """Return the recipe at a path, or the built-in one of that name, with its local file and overrides applied.

    A recipe's name is its file name without `.toml`. One that starts with `base = "NAME"` says only in which settings
    it differs from another recipe, a built-in one or a file in the same folder; one that names another teacher begins
    section [teacher] anew. Raises ConfigError for a missing or
    malformed file, or an override that is not `section.key=value`.
    """
    sections: dict[str, Settings] = {}
    for layer in read_layers(recipe, overrides):
        for name, values in layer.sections.items():
            sections[name] = laid_over(sections.get(name, {}), values)
    return RecipeFile(find_recipe(recipe).stem, sections)


def read_layers(recipe: str | Path, overrides: Sequence[str] = ()) -> list[Layer]:
    """Return what a recipe is made of, each laid over those before: bases, the recipe, its local file, overrides."""
    path = find_recipe(recipe)
    layers, local = layers_of(path, ()), local_file(path)
    if local.is_file():
        document = parsed(local)
        if BASE in document:
            raise ConfigError(f"{local}: a local file is laid over recipe {path.stem} and has no {BASE} of its own")
        layers.append(Layer(str(local), checked_sections(document, local)))
    layers = begun_anew(layers, "teacher")
    settings: dict[str, Settings] = {}
    for layer in layers:
        settings = {**settings, **{name: laid_over(settings.get(name, {}), of) for name, of in layer.sections.items()}}
    for override in overrides:
        name, key, value = parse_override(override)
        *parents, last = key.split(".")
        table: Any = settings.get(name, {})
        for parent in parents:
            table = table.get(parent, {})
            if not isinstance(table, Mapping):
                raise ConfigError(f"--set {override}: {name}.{parent} is a value and holds no settings")
        nested: dict[str, Json] = {last: value}
        for parent in reversed(parents):
            nested = {parent: nested}
        layers.append(Layer(f"--set {override}", {name: nested}))
        settings[name] = laid_over(settings.get(name, {}), nested)
    return layers


def begun_anew(layers: Sequence[Layer], section: str) -> list[Layer]:
    """Return the layers, those without a section that come before one which gives it another `name`.

    Another teacher has other settings: what a base says of its own would be refused, or mean something else.
    """
    start, name = 0, None
    for number, layer in enumerate(layers):
        given = layer.sections.get(section, {}).get("name", name)
        if given != name:
            start, name = number, given
    return [
        Layer(layer.origin, {key: of for key, of in layer.sections.items() if key != section or number >= start})
        for number, layer in enumerate(layers)
    ]


def local_file(path: Path) -> Path:
    """Return where settings of one's own are laid over a recipe: NAME.local.toml beside it, of a built-in one here."""
    name = f"{path.stem}.local.toml"
    return Path(name) if path.parent == RECIPES else path.with_name(name)


def layers_of(path: Path, derived: tuple[Path, ...]) -> list[Layer]:
    """Return a recipe file and the bases below it, undermost first; `derived` are the files that build on it.

    Raises ConfigError for a malformed file, or a base that is missing or builds on itself.
    """
    if path.resolve() in derived:
        raise ConfigError(f"{path}: its base builds on this recipe again; a recipe cannot be its own base")
    document, below = parsed(path), []
    base = document.pop(BASE, None)
    if base is not None:
        if not isinstance(base, str) or Path(base).name != base:
            raise ConfigError(f"{path}: {BASE} is {base!r}; name a built-in recipe, or a .toml file in the same folder")
        beside = path.with_name(base if base.endswith(".toml") else f"{base}.toml")
        found = beside if beside.is_file() else find_recipe(base)
        below = layers_of(found, (*derived, path.resolve()))
    return [*below, Layer(str(path), checked_sections(document, path))]


def parsed(path: Path) -> dict[str, Json]:
    """Return what a TOML file says; raises ConfigError where it is none."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def checked_sections(document: Settings, path: Path) -> dict[str, Settings]:
    """Return the sections of a file; raises ConfigError for a value outside of them."""
    sections: dict[str, Settings] = {}
    for name, values in document.items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"{path}: `{name}` stands outside a section; write it below one, such as [data]")
        sections[name] = values
    return sections


def laid_over(base: Settings, values: Settings) -> dict[str, Json]:
    """Return the settings of a section that differs from a base in some of them, and in some of a table's within it."""
    both = {
        key: laid_over(below, value)
        for key, value in values.items()
        if isinstance(value, Mapping) and isinstance(below := base.get(key), Mapping)
    }
    return {**base, **values, **both}


def find_recipe(recipe: str | Path) -> Path:
    """Return the file of a recipe given by path or by a built-in name; raises ConfigError if there is none."""
    path = Path(recipe)
    if path.is_file():
        return path
    built_in = RECIPES / f"{recipe}.toml"
    if path.name == str(recipe) and built_in.is_file():
        return built_in
    names = sorted(file.stem for file in RECIPES.glob("*.toml"))
    beside = sorted(str(path.with_name(file.name)) for file in path.parent.glob("*.toml") if file.is_file())
    whole = f"{recipe}.toml"
    hint = f" (did you mean `{whole}`?)" if whole in beside else nearest(str(recipe), [*names, *beside])
    raise ConfigError(f"no recipe at {path}{hint}, and none of that name is built in ({listing(names)})")


def parse_override(override: str) -> tuple[str, str, Any]:
    """Return section, key and value of `section.key=value`; the value is TOML, and a bare word is taken as a string."""
    target, equals, text = override.partition("=")
    name, dot, key = target.strip().partition(".")
    if not equals or not dot or not key:
        raise ConfigError(f"--set {override}: expected section.key=value, for example --set group.policy=confidence")
    try:
        return name, key, tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return name, key, text.strip()


@cache
def hints_of(kind: Hashable) -> Mapping[str, Any]:
    """Return the annotations of a class as types; a recipe is read often, and looking them up takes a millisecond."""
    return types.MappingProxyType(typing.get_type_hints(kind))


def parse_section(name: str, values: Settings, kind: type[T]) -> T:
    """Return `values` as the frozen dataclass `kind`, every key and type checked; see RecipeFile.section."""
    hints = hints_of(typing.cast(Hashable, kind))
    known = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"[{name}] has no setting `{key}`{nearest(key, known)}; it has {listing(known)}")
    try:
        return kind(**{key: convert(f"{name}.{key}", value, hints[key]) for key, value in values.items()})
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"[{name}]: {error}") from None


def convert(where: str, value: Any, kind: Any) -> Any:  # noqa: C901 (a case for every kind of type)
    """Return a TOML value as the annotated type: bool, int, float, str, Literal, dataclasses, tuples and unions."""
    if isinstance(value, str) and "://" in value and where not in URIS:
        raise ConfigError(
            f"{where} is {shown_uri(value)!r}, an address; what it names has to lie on this machine, or in a folder "
            f"that is mounted here: only {', '.join(URIS)} may be addresses"
        )
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return parse_section(where, value, kind)
    if origin in (typing.Union, types.UnionType):
        tables = [one for one in typing.get_args(kind) if isinstance(one, type) and dataclasses.is_dataclass(one)]
        if isinstance(value, Mapping) and len(tables) == 1:  # whose own sentences say more
            return parse_section(where, value, tables[0])
        for option in typing.get_args(kind):
            try:
                return convert(where, value, option)
            except ConfigError:
                continue
    elif origin is typing.Literal:
        options = typing.get_args(kind)
        if value in options:
            return value
        raise ConfigError(f"{where} is {value!r}; choose one of {listing([repr(option) for option in options])}")
    elif origin is tuple:
        items = typing.get_args(kind)
        if isinstance(value, list | tuple):
            if len(items) == 2 and items[1] is Ellipsis:
                return tuple(convert(where, item, items[0]) for item in value)
            if len(items) == len(value):
                return tuple(convert(where, item, option) for item, option in zip(value, items, strict=True))
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where} is {value}; expected a finite number")
        return float(value)
    elif (kind is int and isinstance(value, int) and not isinstance(value, bool)) or (
        kind in (bool, str) and isinstance(value, kind)
    ):
        return value
    elif kind is type(None) and value is None:
        return None
    name = getattr(kind, "__name__", None) if origin is None else None
    raise ConfigError(f"{where} is {value!r}; expected {name or str(kind)}")


def nearest(word: str, known: Sequence[str]) -> str:
    """Return ` (did you mean ...?)` for a likely slip of the pen, else an empty string."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean `{close[0]}`?)" if close else ""


def listing(names: Sequence[str]) -> str:
    """Return names as one readable list."""
    return ", ".join(names) if names else "none"


def default_values(kind: type[Any]) -> dict[str, Json]:
    """Return the defaults of a dataclass by field; a field without one is left out."""
    found = {}
    for item in dataclasses.fields(kind):
        value = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if value is not dataclasses.MISSING:
            found[item.name] = value
    return found


def changed_values(config: Any) -> dict[str, Json]:
    """Return the fields of a frozen dataclass whose value differs from the default.

    Only these enter an identity, so that adding a setting with a default renames no table. A field without a default
    always counts.
    """
    defaults, changed = default_values(type(config)), {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if item.name not in defaults or value != defaults[item.name] or type(value) is not type(defaults[item.name]):
            changed[item.name] = value
    return changed
