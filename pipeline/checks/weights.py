"""Whether the teacher's files are there, and the right ones; nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.published import published
from manifests.sections.teachers.weights import Weights
from pipeline.checks.findings import Finding
from pipeline.frame import Frame
from pipeline.teachers.artifacts import check_folder
from pipeline.teachers.loading.pinning import networks_of
from pipeline.teachers.loading.weights import NotPinned, at_hand, verified


def check_teacher(recipe: Recipe, frames: Sequence[Frame]) -> Iterator[Finding]:
    """Yield whether the teacher's files are there and the right ones; never fetches any."""
    config = recipe.teacher
    if isinstance(config, ArtifactsConfig):
        tokens = [camera.token for frame in frames for camera in frame.cameras]
        problems = check_folder(config, tokens, recipe.ontology)
        for problem in problems[:10]:
            yield Finding("problem", "teacher", problem)
        if len(problems) > 10:
            yield Finding("problem", "teacher", f"and {len(problems) - 10} more of {len(tokens)} images looked at")
        if not problems:
            yield Finding("ok", "teacher", f"masks, names and vectors of {len(tokens)} images in {config.folder} fit")
        return
    for weights in weights_of(config):
        yield check_weights(weights)
    if config.simulated:
        yield Finding("note", "teacher", f"{config.name} is simulated: it knows the truth, and results mean nothing")


def weights_of(config: Any) -> list[Weights]:
    """Return the weights of all networks that a teacher's section names."""
    return [weights for _, weights in networks_of(config)]


def check_weights(weights: Weights) -> Finding:
    """Return whether a network's file is here, pinned, and the pinned one; else what a run will fetch."""
    key, what = f"teacher.{weights.key}", weights.source
    if weights.seed is not None:
        return Finding("note", "weights", f'{key} is "{what}": random weights, whose results mean nothing')
    path = at_hand(weights)
    if path is None and not weights.is_local:
        return Finding("note" if weights.is_hub or not weights.sha256 else "ok", "weights", to_fetch(weights))
    try:
        verified(weights, path or Path(what))
    except NotPinned as error:
        lines = ", ".join(f"{name} = {value}" for name, value in error.settings.items())
        return Finding("note", "weights", f"{key}: {what} is here; the first run pins it as it is now: {lines}")
    except ConfigError as error:
        return Finding("problem", "weights", str(error))
    return Finding("ok", "weights", f"{key}: {what} is here and has the pinned sha256")


def to_fetch(weights: Weights) -> str:
    """Return what a run fetches: from where, how large it is, its licence, and what pins it."""
    name = weights.source.rpartition("/")[2]
    known = [one for one in published() if weights.source == one.tag or name == one.file]
    known = [one for one in known if not weights.link or one.link == weights.link][:1]
    size = "; ".join(f"about {one.megabytes} MB, {one.licence}" for one in known) or "size and licence are not known"
    whence = weights.link or next((one.link for one in known), "" if weights.is_tag else "the hub")
    pin = f"pinned by {weights.key}_sha256" if weights.sha256 else "not pinned: the first run does that"
    return (
        f'teacher.{weights.key} is "{weights.source}", which is not on this machine: a run fetches it'
        f"{f' from {whence}' if whence else ''} ({size}; "
        f"{'pinned by its published sha256' if weights.link else pin}), on every machine that encodes"
    )
