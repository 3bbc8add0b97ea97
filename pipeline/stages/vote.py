"""Stage `vote`: pseudo-labels made consistent over time, by the sweeps before and after in the same scene."""

from __future__ import annotations

import numpy as np

from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.base import UInt8
from manifests.tables.labels import Vote
from manifests.tables.sensors import Coordinates, PointOfPair
from manifests.tables.superpoints import NamedPoints
from manifests.tables.teacher import Score
from pipeline.frame import FrameError
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from pipeline.stages.group import agreement
from superpixels.lifting import with_runners_up
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
    label, sure = group.label, group.confidence
    if recipe.vote.names > 1:
        label, sure = several_names(one.rows[PointOfPair], group, one.rows[Score], recipe.ontology, recipe.vote.names)
        disputed = disputed[:, None]
    return Ballot.cast(one.rows[Coordinates].xyz_m, label, sure / 255 * disputed, one.frame, here.frame)


def several_names(
    project: PointOfPair, group: NamedPoints, score: Score, ontology: Ontology, names: int
) -> tuple[UInt8, UInt8]:
    """Return what superpixels.lifting.with_runners_up does of a frame, from rows of its tables."""
    named = ontology.class_of_prompt[group.superpoint_prompt][group.pair_superpoint]
    pairs = project.point[group.pair], named, score.score[group.pair]
    of_pairs = score.runner_up[group.pair], score.runner_up_score[group.pair]
    return with_runners_up(group.label, group.confidence, pairs, *of_pairs, names)


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
