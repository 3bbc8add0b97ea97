"""What is published about weights: digests and links, each with its source, from `weights.toml`."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from manifests.sections.teachers.weights import Weights

FILE = Path(__file__).parents[2] / "weights.toml"


@dataclass(frozen=True)
class Published:
    """A file of weights: its name, size, licence, and where it is.

    `sha256` is empty where no digest is stated anywhere that could be read; `source` says who states what. `tag` is
    what open_clip calls the file for the models `models`.
    """

    file: str
    megabytes: int
    licence: str
    link: str
    source: str
    sha256: str = ""
    tag: str = ""
    models: tuple[str, ...] = ()


@cache
def published() -> tuple[Published, ...]:
    """Return all that is known; read once."""
    rows = tomllib.loads(FILE.read_text())["weights"]
    return tuple(Published(**{**row, "models": tuple(row.get("models", ()))}) for row in rows)


def of_file(name: str) -> Published | None:
    """Return what is known of a file by its name, None if nothing is."""
    return next((one for one in published() if one.file == name), None)


def pinned_by_publication(weights: Weights, model: str) -> Weights:
    """Return weights pinned by the published digest, where they are a tag of a model that has one.

    Weights that the recipe pins stay as they are; where it says the published digest, the link comes with it.
    """
    known = next((one for one in published() if one.tag == weights.source and model in one.models), None)
    if known is None or not known.sha256 or weights.sha256 not in ("", known.sha256):
        return weights
    return replace(weights, sha256=known.sha256, link=known.link)
