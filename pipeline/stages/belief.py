"""Stage `belief`: what a point may be after the vote over time, of which stage `vote` takes the likeliest."""

from __future__ import annotations

import numpy as np

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.labels import Belief
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from pipeline.stages.vote import held, told


def prepare(recipe: Recipe) -> FrameFunction[Belief]:
    """Return the function that puts the pseudo-labels of a frame to the vote and keeps the three likeliest classes."""

    def believed(inputs: FrameInput) -> Belief:
        found = held(inputs, recipe)
        first = told(found.label, found.confidence)
        # the next ones are never surer than the first, also where that is rounded up
        others = np.minimum(np.rint(found.other_confidence * 255).astype(np.uint8), first[:, None])
        return Belief(
            frame_id=inputs.frame.frame_id,
            label=np.column_stack([found.label, np.where(others > 0, found.others, 0)]).astype(np.uint8),
            share=np.column_stack([first, others]),
        )

    return believed


STAGE = Stage(
    table=SPECS["belief"],
    prepare=prepare,
    index_columns=("n_points", "timestamp_us", "world_from_lidar"),
    count=lambda row: {
        "points": len(row.label),
        "labelled_points": int(np.count_nonzero(row.label[:, 0])),
        "points_of_two_classes": int(np.count_nonzero(row.label[:, 1])),
    },
    kilobytes_per_frame=lambda recipe: 60.0,
)
