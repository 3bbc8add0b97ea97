"""Stage `vote`: pseudo-labels made consistent over time, by the sweeps before and after in the same scene."""

from __future__ import annotations

import numpy as np

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.labels import Vote
from manifests.tables.sensors import Coordinates, PointOfPair
from manifests.tables.superpoints import NamedPoints
from pipeline.frame import FrameError
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from pipeline.stages.group import agreement
from superpixels.unfit import Unfit
from superpixels.voting import Ballot, vote


def prepare(recipe: Recipe) -> FrameFunction[Vote]:
    """Return the function that puts the pseudo-labels of a frame to the vote of its neighbours in time."""

    def voted(inputs: FrameInput) -> Vote:
        own, *others = (ballot(one, inputs, recipe) for one in (inputs, *inputs.around))
        try:
            found = vote(own, others, len(recipe.ontology.classes) - 1, recipe.vote)
        except Unfit as error:
            raise FrameError(str(error)) from error
        confidence = np.rint(found.confidence * 255)
        return Vote(
            frame_id=inputs.frame.frame_id,
            label=found.label,
            confidence=np.where(found.label > 0, np.maximum(confidence, 1), 0).astype(np.uint8),
            changed=found.changed,
        )

    return voted


def ballot(one: FrameInput, here: FrameInput, recipe: Recipe) -> Ballot:
    """Return what a frame has to say: its pseudo-labels, weighted by confidence and by how far its cameras agree."""
    group = one.rows[NamedPoints]
    shared, agreed = agreement(one.rows[PointOfPair], group, recipe.ontology)
    disputed = np.where(shared & ~agreed, recipe.vote.disputed, 1.0)
    weight = group.confidence / 255 * disputed
    return Ballot.cast(one.rows[Coordinates].xyz_m, group.label, weight, one.frame, here.frame)


STAGE = Stage(
    table=SPECS["vote"],
    prepare=prepare,
    index_columns=("n_points", "timestamp_us", "world_from_lidar"),
    count=lambda row: {
        "points": len(row.label),
        "labelled_points": int(np.count_nonzero(row.label)),
        "changed_points": int(row.changed.sum()),
    },
    kilobytes_per_frame=lambda recipe: 30.0,
)
