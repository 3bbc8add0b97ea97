"""Stage `vote`: pseudo-labels made consistent over time, by the sweeps before and after in the same scene."""

from __future__ import annotations

import numpy as np

from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.base import Float32, UInt8
from manifests.tables.labels import Belief, Vote
from manifests.tables.motion import MovingThings
from manifests.tables.sensors import Coordinates, PointOfPair
from manifests.tables.superpoints import NamedPoints
from manifests.tables.teacher import Score
from pipeline.frame import FrameError
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from pipeline.stages.group import agreement
from superpixels.lifting import with_runners_up
from superpixels.reach import asked_among
from superpixels.unfit import Unfit
from superpixels.voting import Ballot, Voted, vote


def prepare(recipe: Recipe) -> FrameFunction[Vote]:
    """Return the function that puts the pseudo-labels of a frame to the vote of its neighbours in time."""
    if recipe.vote.belief:
        return likeliest

    def voted(inputs: FrameInput) -> Vote:
        found = held(inputs, recipe)
        return Vote(
            frame_id=inputs.frame.frame_id,
            label=found.label,
            confidence=told(found.label, found.confidence),
            changed=found.changed,
        )

    return voted


def likeliest(inputs: FrameInput) -> Vote:
    """Return the likeliest class of every point, where all that it may be is in table `belief`."""
    belief, before = inputs.rows[Belief], inputs.rows[NamedPoints].label
    label, share = np.ascontiguousarray(belief.label[:, 0]), np.ascontiguousarray(belief.share[:, 0])
    return Vote(frame_id=inputs.frame.frame_id, label=label, confidence=share, changed=label != before)


def held(inputs: FrameInput, recipe: Recipe) -> Voted:
    """Return what comes of the vote on the points of a frame; raises FrameError for a sweep or pose that is unfit."""
    ago_s = [(inputs.frame.timestamp_us - one.frame.timestamp_us) / 1e6 for one in inputs.around]
    asked = [inputs.around[number] for number in asked_among(ago_s, recipe.vote)]
    own, *others = (ballot(one, inputs, recipe) for one in (inputs, *asked))
    try:
        return vote(own, others, len(recipe.ontology.classes) - 1, recipe.vote)
    except Unfit as error:
        raise FrameError(str(error)) from error


def told(label: UInt8, share: Float32) -> UInt8:
    """Return shares of labels in 1/255, at least 1 where there is a label, and else 0."""
    confidence = np.rint(share * 255)
    return np.where(label > 0, np.maximum(confidence, 1), 0).astype(np.uint8)


def ballot(one: FrameInput, here: FrameInput, recipe: Recipe) -> Ballot:
    """Return what a frame has to say: its pseudo-labels, weighted by confidence and by how far its cameras agree."""
    group = one.rows[NamedPoints]
    shared, agreed = agreement(one.rows[PointOfPair], group, recipe.ontology)
    disputed = np.where(shared & ~agreed, recipe.vote.disputed, 1.0)
    label, sure = group.label, group.confidence
    if recipe.vote.names > 1:
        label, sure = several_names(one.rows[PointOfPair], group, one.rows[Score], recipe.ontology, recipe.vote.names)
    thing = one.rows[MovingThings].thing if recipe.vote.follow else None
    return Ballot.cast(one.rows[Coordinates].xyz_m, label, sure / 255, one.frame, here.frame, disputed, thing)


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
