"""Stage `target`: what distillation learns from: a class and a confidence per point, and which points cameras see."""

from __future__ import annotations

import numpy as np

from manifests.rows import Row
from manifests.schema import TABLES
from pipeline.recipe import Recipe
from pipeline.stages.base import FrameFunction, FrameInput, Need, Stage


def prepare(recipe: Recipe) -> FrameFunction:
    """Return the function that takes the targets of a frame from its pseudo-labels."""
    return take


def take(inputs: FrameInput) -> Row:
    """Return the columns of table `target`, one entry per point."""
    group = inputs.rows["group"]
    seen = np.zeros(len(group["label"]), np.bool_)
    seen[inputs.rows["project"]["point"]] = True
    return {"label": group["label"], "confidence": group["confidence"], "seen": seen}


STAGE = Stage(
    name="target",
    version=1,
    schema=TABLES["target"],
    needs=lambda recipe: (Need("group"), Need("project")),
    settings=lambda recipe: {},
    prepare=prepare,
    count=lambda row: {"points": len(row["seen"]), "seen_points": int(row["seen"].sum())},
    kilobytes_per_frame=lambda recipe: 15.0,
)
