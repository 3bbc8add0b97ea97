"""Stage `correct`: pseudo-labels after flat interaction: noise repaired, and points that no camera sees labelled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.rows import Row
from manifests.stages import SPECS, corrected_table
from pipeline.frame import FrameError
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from superpixels.flat_interaction import FlatInteractionConfig, refine
from superpixels.ground import height_of_sensor_m
from superpixels.unfit import Unfit


def prepare(recipe: Recipe) -> FrameFunction:
    """Return the function that corrects the pseudo-labels of a frame."""

    def correct(inputs: FrameInput) -> Row:
        xyz_m, label = inputs.rows["points"]["xyz_m"], inputs.rows[corrected_table(recipe)]["label"]
        height_m = height_of_sensor_m(inputs.frame.ego_from_lidar)
        return correct_frame(xyz_m, label, height_m, recipe.correct, recipe.ontology)

    return correct


def correct_frame(
    xyz_m: npt.NDArray[np.float32],
    label: npt.NDArray[np.uint8],
    height_m: float | None,
    config: FlatInteractionConfig,
    ontology: Ontology,
) -> Row:
    """Return the columns of table `correct` from a sweep and its pseudo-labels."""
    try:
        found = refine(
            xyz_m,
            label,
            config,
            n_classes=len(ontology.classes) - 1,
            ground_classes=ontology.ground_class_ids,
            sensor_height_m=height_m,
        )
    except Unfit as error:
        raise FrameError(str(error)) from error
    return {
        "label": found.labels,
        "score": np.rint(np.clip(found.score, 0, 1) * 255).astype(np.uint8),
        "changed": found.changed,
        "note": "; ".join(found.notes) or None,
    }


STAGE = Stage(
    table=SPECS["correct"],
    prepare=prepare,
    index_columns=("n_points", "ego_from_lidar"),
    count=lambda row: {
        "points": len(row["label"]),
        "changed_points": int(row["changed"].sum()),
        "frames_without_ego_ring": int(row["note"] is not None),
    },
    kilobytes_per_frame=lambda recipe: 60.0,
)
