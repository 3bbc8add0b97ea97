"""A recipe as it takes effect: every setting, and the file, the `--set` or the default that it comes from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.config import RECIPES, Layer, changed_values, read_layers
from manifests.recipe import SECTION_CLASSES, Recipe, load_recipe
from manifests.shown import shown_text

DEFAULT = "default"
MOST_ALIGNED = 60  # characters of a line; the origin of a longer one follows it at once


@dataclass(frozen=True)
class Effective:
    """One setting: its section (of a table within one, too), key, value, and where that comes from."""

    section: str
    key: str
    value: Any
    origin: str


def effective(recipe: str | Path, overrides: Sequence[str] = ()) -> list[Effective]:
    """Return every setting of a recipe in the order of its sections; raises ConfigError like `load_recipe`."""
    loaded, layers = load_recipe(recipe, overrides), read_layers(recipe, overrides)
    names = [*SECTION_CLASSES]
    names.insert(names.index("run") + 1, "teacher")
    return [one for name in names for one in of_section(loaded, layers, name)]


def of_section(recipe: Recipe, layers: Sequence[Layer], name: str) -> Iterator[Effective]:
    """Yield the settings of a section, those of tables within it last."""
    yield from of_table(getattr(recipe, name), [(layer.origin, layer.sections.get(name, {})) for layer in layers], name)


def of_table(values: Any, layers: Sequence[tuple[str, Any]], name: str) -> Iterator[Effective]:
    """Yield the settings of a dataclass; `layers` are what was written of it, and where."""
    inner = []
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value):
            inner.append((field.name, value))
            continue
        origins = [origin for origin, written in layers if isinstance(written, Mapping) and field.name in written]
        yield Effective(name, field.name, value, shown_origin(origins[-1]) if origins else DEFAULT)
    for key, value in inner:
        below = [(origin, written.get(key, {}) if isinstance(written, Mapping) else {}) for origin, written in layers]
        yield from of_table(value, below, f"{name}.{key}")


def shown_origin(origin: str) -> str:
    """Return where a value comes from as it may be shown: a built-in recipe by its name."""
    path = Path(origin)
    return f"recipe {path.stem}" if path.parent == RECIPES else shown_text(origin)


def as_toml(settings: Sequence[Effective]) -> str:
    """Return settings as TOML, the origin of each behind it; what is left out stands as a comment."""
    width = max((len(line_of(one)) for one in settings if len(line_of(one)) <= MOST_ALIGNED), default=0)
    lines: list[str] = []
    section = ""
    for one in settings:
        if one.section != section:
            section = one.section
            lines += ["", f"[{section}]"]
        lines.append(f"{line_of(one):<{width}}  # {one.origin}")
    return "\n".join(lines).strip()


def line_of(one: Effective) -> str:
    """Return a setting as a line of TOML."""
    return f"{one.key} = {toml_value(one.value)}" if one.value is not None else f"# {one.key} is left out"


def toml_value(value: Any) -> str:
    """Return a value as TOML has it, without passwords."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(shown_text(value), ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "{" + ", ".join(f"{key} = {toml_value(one)}" for key, one in changed_values(value).items()) + "}"
    return repr(value)
