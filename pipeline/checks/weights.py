"""Whether the teacher's files are there, and the right ones; nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.weights import Weights
from pipeline.checks.findings import Finding
from pipeline.frame import Frame
from pipeline.teachers.artifacts import check_folder
from pipeline.teachers.loading.weights import at_hand, verified


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
    parts = [config, *(getattr(config, name) for name in ("mask_config", "feature_config") if hasattr(config, name))]
    found = [getattr(part, name, None) for part in parts for name in ("pinned", "pinned_clip", "pinned_dino")]
    return [weights for weights in found if weights is not None and weights.source]


def check_weights(weights: Weights) -> Finding:
    """Return whether a network's file is here, pinned, and the pinned one."""
    key, what = f"teacher.{weights.key}", weights.source
    if weights.seed is not None:
        return Finding("note", "weights", f'{key} is "{what}": random weights, whose results mean nothing')
    path = at_hand(weights)
    if weights.is_tag and path is None:
        pinned = (
            f"pinned by its published sha256, and fetched from {weights.link}"
            if weights.link
            else f"pinned by {key}_sha256"
            if weights.sha256
            else "not pinned: the first run says the line to add"
        )
        return Finding(
            "ok" if weights.sha256 else "note",
            "weights",
            f'{key} is "{what}", which open_clip fetches when a run first needs it; {pinned}',
        )
    if path is None and weights.is_hub:
        return Finding(
            "note",
            "weights",
            f"{key}: {what} is not in the cache; a run fetches it, which needs the network on every machine that "
            "encodes. Fetch it once, or give a path",
        )
    try:
        verified(weights, path or Path(what))
    except ConfigError as error:
        return Finding("problem", "weights", str(error))
    return Finding("ok", "weights", f"{key}: {what} is here and has the pinned sha256")
