"""Stage `correct`: pseudo-labels after flat interaction: noise repaired, and points that no camera sees labelled."""

from __future__ import annotations

import numpy as np

from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.stages import SPECS, corrected_table
from manifests.tables.base import Float32, UInt8
from manifests.tables.labels import Belief, Correct
from manifests.tables.sensors import Points
from pipeline.frame import FrameError
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from superpixels.flat_config import FlatInteractionConfig
from superpixels.flat_interaction import refine
from superpixels.ground import height_of_sensor_m
from superpixels.unfit import Unfit


def prepare(recipe: Recipe) -> FrameFunction[Correct]:
    """Return the function that corrects the pseudo-labels of a frame."""

    def correct(inputs: FrameInput) -> Correct:
        points, before = inputs.rows[Points], inputs.rows[corrected_table(recipe)]
        height_m = height_of_sensor_m(inputs.frame.ego_from_lidar)
        belief = inputs.rows[Belief] if recipe.correct.evidence == "divided" else None
        return correct_frame(points, before.label, height_m, recipe.correct, recipe.ontology, belief)

    return correct


def correct_frame(
    points: Points,
    label: UInt8,
    height_m: float | None,
    config: FlatInteractionConfig,
    ontology: Ontology,
    belief: Belief | None = None,
) -> Correct:
    """Return the row of table `correct` from a sweep, its pseudo-labels, (n,), and what else its points may be."""
    try:
        found = refine(
            points.xyz_m,
            label,
            config,
            n_classes=len(ontology.classes) - 1,
            ground_classes=ontology.ground_class_ids,
            sensor_height_m=height_m,
            likelihood=None if belief is None else likelihoods(belief, len(ontology.classes)),
        )
    except Unfit as error:
        raise FrameError(str(error)) from error
    return Correct(
        frame_id=points.frame_id,
        label=found.labels,
        score=np.rint(np.clip(found.score, 0, 1) * 255).astype(np.uint8),
        changed=found.changed,
        note="; ".join(found.notes) or None,
    )


def likelihoods(belief: Belief, n_classes: int) -> Float32:
    """Return how likely every class is at every point, (n, classes), 0 for class 0; what is left is not known."""
    found = np.zeros((len(belief.label), n_classes), np.float32)
    every = np.arange(len(found))
    for label, share in zip(belief.label.T, belief.share.T, strict=True):
        found[every, label] += share / np.float32(255)
    found[:, 0] = 0
    return found


STAGE = Stage(
    table=SPECS["correct"],
    prepare=prepare,
    index_columns=("n_points", "ego_from_lidar"),
    count=lambda row: {
        "points": len(row.label),
        "labelled_points": int(np.count_nonzero(row.label)),
        "changed_points": int(row.changed.sum()),
        "frames_without_ego_ring": int(row.note is not None),
    },
    kilobytes_per_frame=lambda recipe: 60.0,
)
