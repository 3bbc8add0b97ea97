"""Weights that no recipe pins, pinned on their first use: the digest of the file at hand goes into the local file.

From then on any other file under that name is an error. It happens before anything is planned, in the process that
plans: the digest is part of the identity of tables, and every worker verifies it.
"""

from __future__ import annotations

import json
import os
import secrets
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from manifests.config import ConfigError, find_recipe, local_file
from manifests.recipe import Recipe, load_recipe
from manifests.sections.teachers.weights import Weights
from pipeline.teachers.loading.towers import clip_activation, fetch_tag
from pipeline.teachers.loading.weights import NotPinned, weights_file

HEAD = (
    "# Settings of one's own, laid over the recipe of this name. Pins were written on the first use of the weights.\n"
)


def networks_of(config: Any) -> Iterator[tuple[Any, Weights]]:
    """Yield the weights of all networks that a teacher's section names, each with the section that names it."""
    parts = [config, *(getattr(config, name) for name in ("mask_config", "feature_config") if hasattr(config, name))]
    parts += [one.config for one in getattr(config, "members", ())]
    for part in parts:
        for name in ("pinned", "pinned_clip", "pinned_dino", "pinned_text"):
            weights = getattr(part, name, None)
            if weights is not None and weights.source:
                yield part, weights


def pinned_on_first_use(recipe: Recipe, tell: Callable[[str], None]) -> Recipe:
    """Return a recipe whose weights are all pinned; what is not yet is fetched, and its digest written down.

    Raises ConfigError where weights cannot be had, and, with the line to add, where `--set` chose the teacher: the
    local file would then pin another file than the recipe names.
    """
    settings: dict[str, str] = {}
    for part, weights in networks_of(recipe.teacher):
        if weights.sha256 or weights.seed is not None:
            continue
        try:
            if weights.is_tag:
                model = part.text_model if weights.key == "text_weights" else part.model
                fetch_tag(model, weights, clip_activation(model, getattr(part, "quick_gelu", None)))
            else:
                weights_file(weights)
        except NotPinned as error:
            if any(one.startswith("teacher.") for one in recipe.overrides):
                raise
            settings |= error.settings
    if not settings:
        return recipe
    path = local_file(find_recipe(recipe.typed or recipe.name))
    add_settings(path, settings)
    lines = ", ".join(f'{key} = "{value}"' for key, value in settings.items())
    tell(f"the teacher's weights are pinned from now on, in {path}: {lines}; another file is then an error")
    return load_recipe(recipe.typed or recipe.name, recipe.overrides)


def add_settings(path: Path, settings: Mapping[str, str]) -> None:
    """Add settings of `[teacher]`, by their dotted keys, to a local file; what stands there stays as it is.

    The file appears whole or not at all. Raises ConfigError with the lines to add where it cannot be written.
    """
    text = path.read_text(encoding="utf-8") if path.is_file() else HEAD
    wanted = tomllib.loads(text)
    for dotted, value in settings.items():
        *parents, key = ["teacher", *dotted.split(".")]
        table = wanted
        for parent in parents:
            table = table.setdefault(parent, {})
        table[key] = value
        text = with_line(text, ".".join(parents), f"{key} = {json.dumps(value)}")
    try:
        if tomllib.loads(text) != wanted:
            raise ValueError("a line cannot be added to it")
        scratch = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, path)
    except (OSError, ValueError) as error:
        lines = " and ".join(f'{key} = "{value}"' for key, value in settings.items())
        raise ConfigError(f"{path} cannot be written ({error}); add {lines} to section [teacher]") from None


def with_line(text: str, section: str, line: str) -> str:
    """Return TOML with a line below the header of a section, which is added where there is none."""
    lines = text.splitlines()
    for place, one in enumerate(lines):
        if one.split("#")[0].strip() == f"[{section}]":
            return "\n".join([*lines[: place + 1], line, *lines[place + 1 :]]) + "\n"
    return text.rstrip("\n") + f"\n\n[{section}]\n{line}\n"
