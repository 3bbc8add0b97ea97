"""Stage `target`: what distillation learns from: a class and a confidence per point, and which points cameras see.

Labels that people corrected come before those of machines.
"""

from __future__ import annotations

import numpy as np

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.base import UInt8
from manifests.tables.labels import Belief, Correct, Mend, Target, Vote
from manifests.tables.sensors import Project
from manifests.tables.superpoints import Group
from pipeline.stages.base import FrameFunction, FrameInput, Stage

CERTAIN = 255  # in 1/255: a person said so


def prepare(recipe: Recipe) -> FrameFunction[Target]:
    """Return the function that takes the targets of a frame from its pseudo-labels."""

    def take(inputs: FrameInput) -> Target:
        before = inputs.rows.get(Vote) or inputs.rows[Group]
        label, confidence = before.label, before.confidence
        if recipe.target.confidence == "margin":
            confidence = margin(inputs.rows[Belief])
        if correct := inputs.rows.get(Correct):
            label, confidence = correct.label, correct.confidence_over(confidence)
        if mend := inputs.rows.get(Mend):
            label = np.where(mend.given, mend.label, label)
            confidence = np.where(mend.given, np.where(mend.label > 0, CERTAIN, 0), confidence).astype(np.uint8)
        seen = np.zeros(len(label), np.bool_)
        seen[inputs.rows[Project].point] = True
        return Target(frame_id=before.frame_id, label=label, confidence=confidence, seen=seen)

    return take


def margin(belief: Belief) -> UInt8:
    """Return how far the likeliest class is ahead of the next one, (n,) in 1/255; at least 1 where there is a label."""
    ahead = belief.share[:, 0].astype(np.int64) - belief.share[:, 1]
    return np.where(belief.label[:, 0] > 0, np.maximum(ahead, 1), 0).astype(np.uint8)


STAGE = Stage(
    table=SPECS["target"],
    prepare=prepare,
    count=lambda row: {"points": len(row.seen), "seen_points": int(row.seen.sum())},
    kilobytes_per_frame=lambda recipe: 15.0,
)
