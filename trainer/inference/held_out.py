"""Labels made again without one of the sweeps that had a say, and what that sweep calls the same places.

What has no say in a label can tell how often such labels are right, without any true label: the more often, the
surer these labels should be. Labels are made as stage `vote`, stage `correct` and table `refine` make them, but for
that sweep.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.calibration import Remade
from manifests.recipe import Recipe
from manifests.tables.base import Rows
from manifests.tables.sensors import PointOfPair, Points
from manifests.tables.superpoints import NamedPoints
from manifests.tables.teacher import Score
from superpixels.lifting import shared_and_agreed, with_runners_up
from superpixels.voting import Ballot, named_at
from trainer.data.tables import FrameRow, Tables
from trainer.inference.refine import Answered, Labels, Named, after_flat_interaction, after_vote, heard_by, windows
from trainer.inference.sources import pseudo_label_of


@dataclass(frozen=True, eq=False)
class Weighted(Answered):
    """A frame whose points do not all have the same say: `say` (n,), 0..1, is how much of its weight a vote keeps."""

    say: NDArray[np.floating[Any]] | None = None

    def ballot(self, here: Answered) -> Ballot:
        """Return what this frame says to another one, or to itself."""
        return replace(super().ballot(here), trust=self.say)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Points of a frame that both have a label, (m,): the label, how sure it is in 1/255, and what the sweep says that
    had no say in it.
    """

    label: Labels
    confidence: Labels
    evidence: Labels


def held_out(
    recipe: Recipe, how: Remade, tables: Tables, frames: Sequence[FrameRow], silent: Collection[str]
) -> Iterator[HeldOut | None]:
    """Yield, for every frame, its labels made again without one sweep, and what that one says; None where it is alone.

    `tables` are those of manifests.calibration.compared_with. Which sweep is left out, of those that would have a say,
    is drawn by the name of the frame. Raises StoreError for tables that are damaged or do not fit each other.
    """
    read = {"index", "points", how.base, *(("group", "project") if how.staged else ())}
    read |= {"score"} if how.staged and recipe.vote.names > 1 else set()

    def answer(frame: FrameRow) -> Answered:
        rows = tables.rows(frame, read)
        return as_staged(rows, recipe) if how.staged else pseudo_label_of(rows, how.base)

    reach = recipe.vote.window if how.votes else 0
    for frame, own, around in windows(tables, frames, max(reach, 1), read, answer, silent):
        heard = heard_by(own, around, recipe.vote) if reach else list(around)
        if not heard:
            yield None
            continue
        out = heard.pop(zlib.crc32(frame.frame_id.encode()) % len(heard))
        found = made_again(recipe, how, own, heard if reach else [])
        n_classes = len(recipe.ontology.classes) - 1
        evidence = named_at(plain_ballot(own, own), plain_ballot(out, own), n_classes, recipe.vote)
        both = (found.label > 0) & (evidence > 0)
        yield HeldOut(found.label[both], found.confidence[both], evidence[both])


def made_again(recipe: Recipe, how: Remade, own: Answered, others: Sequence[Answered]) -> Named:
    """Return the labels of a frame as they are made with these others alone."""
    found = Named.of(own)
    if how.votes:
        found = after_vote(found, own, others, recipe)
    return after_flat_interaction(found, own, None, recipe) if "afi" in how.steps else found


def plain_ballot(one: Answered, here: Answered) -> Ballot:
    """Return what a frame calls its points, in the LiDAR frame of another one."""
    return Ballot.cast(one.rows[Points].xyz_m, one.label, np.ones(len(one.label)), one, here)


def as_staged(rows: Rows, recipe: Recipe) -> Weighted:
    """Return what a frame has to say to stage `vote`; see pipeline.stages.vote."""
    group, project, ontology = rows[NamedPoints], rows[PointOfPair], recipe.ontology
    named = ontology.class_of_prompt[group.superpoint_prompt][group.pair_superpoint]
    point = project.point[group.pair]
    shared, agreed = shared_and_agreed(point, named, len(group.label), len(ontology.classes))
    label, sure = group.label, group.confidence
    if recipe.vote.names > 1:
        score = rows[Score]
        of_pairs = score.runner_up[group.pair], score.runner_up_score[group.pair]
        label, sure = with_runners_up(
            label, sure, (point, named, score.score[group.pair]), *of_pairs, recipe.vote.names
        )
    return Weighted(rows, label, sure, None, np.where(shared & ~agreed, recipe.vote.disputed, 1.0))
