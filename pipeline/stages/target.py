"""Stage `target`: what distillation learns from: a class and a confidence per point, and which points cameras see."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from manifests.recipe import Recipe
from manifests.rows import Row
from manifests.stages import SPECS
from pipeline.stages.base import FrameFunction, FrameInput, Stage


def prepare(recipe: Recipe) -> FrameFunction:
    """Return the function that takes the targets of a frame from its pseudo-labels."""

    def take(inputs: FrameInput) -> Row:
        before = inputs.rows["vote" if "vote" in inputs.rows else "group"]
        label, confidence = before["label"], before["confidence"]
        if "correct" in inputs.rows:
            label, confidence = corrected(confidence, inputs.rows["correct"])
        seen = np.zeros(len(label), np.bool_)
        seen[inputs.rows["project"]["point"]] = True
        return {"label": label, "confidence": confidence, "seen": seen}

    return take


def corrected(confidence: npt.NDArray[np.uint8], correct: Row) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return labels after flat interaction, and the confidence of each in 1/255, (n,).

    A label that was not touched keeps the teacher's confidence; one that is new has its share of the evidence, at least
    1. Where there is no label, confidence is 0.
    """
    label = correct["label"]
    sure = np.where(correct["changed"], np.maximum(correct["score"], 1), confidence)
    return label, np.where(label > 0, sure, 0).astype(np.uint8)


STAGE = Stage(
    table=SPECS["target"],
    prepare=prepare,
    count=lambda row: {"points": len(row["seen"]), "seen_points": int(row["seen"].sum())},
    kilobytes_per_frame=lambda recipe: 15.0,
)
