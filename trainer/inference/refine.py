"""What is done to labels at the end: the vote of the sweeps around a frame, and flat interaction.

Both see points, these labels and poses, and never the truth. The vote asks sweeps that were taken after the present
one too, so it is offline: for logs that lie on a disk, not for a vehicle on its way.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from manifests.labels import ORIGINS, in_reach
from manifests.recipe import Recipe
from manifests.sections.training import Improvement
from manifests.storage.names import scene_of
from manifests.tables.answers import Refine
from manifests.tables.base import Failed, Rows
from manifests.tables.labels import Target, Vote
from manifests.tables.motion import MovingThings
from manifests.tables.sensors import Index, Points
from manifests.tables.superpoints import Group
from superpixels.flat_interaction import refine
from superpixels.ground import height_of_sensor_m
from superpixels.image_merge import merge_image_labels
from superpixels.reach import asked_among
from superpixels.voting import Ballot, VotingConfig, vote
from trainer.data.tables import FrameRow, Tables

Labels = NDArray[np.uint8]
PseudoLabels = Group | Vote | Target
"""A row of a table of pseudo-labels that say how sure they are."""

CAMERA, NEIGHBOUR, FLAT, STUDENT = (
    np.uint8(ORIGINS.index(name)) for name in ("camera", "neighbour", "flat interaction", "student")
)


@dataclass(frozen=True, eq=False)
class Answered:
    """A frame with what is said of its points: its `rows` by table, `said` (n,) or (n, k) classes, the likeliest first,
    0 none, and `confidence` of the same shape in 1/255. Without a confidence all points count the same. `origin` (n,)
    says where the likeliest one comes from, of all points from the student where it is left out.
    """

    rows: Rows
    said: Labels
    confidence: Labels | None = None
    origin: Labels | None = None

    @property
    def label(self) -> Labels:
        """The likeliest class of every point, (n,)."""
        return self.said if self.said.ndim == 1 else self.said[:, 0]

    @property
    def sure(self) -> Labels | None:
        """How sure the likeliest class of every point is, (n,) in 1/255; None where nothing says so."""
        return self.confidence if self.confidence is None or self.confidence.ndim == 1 else self.confidence[:, 0]

    @property
    def timestamp_us(self) -> int:
        """Time of the sweep."""
        return self.rows[Index].timestamp_us

    @property
    def world_from_lidar(self) -> NDArray[np.float64]:
        """Pose of the LiDAR in the world at that time, (4, 4)."""
        return self.rows[Index].world_from_lidar

    def ballot(self, here: Answered) -> Ballot:
        """Return what this frame says to another one, or to itself."""
        weight = np.ones(self.said.shape) if self.confidence is None else self.confidence / 255
        moving = self.rows.get(MovingThings)
        thing = None if moving is None else moving.thing
        return Ballot.cast(self.rows[Points].xyz_m, self.said, weight, self, here, thing=thing)


def windows(
    tables: Tables,
    frames: Sequence[FrameRow],
    reach: int,
    stages: Collection[str],
    read: Callable[[FrameRow], Answered],
    silent: Collection[str] = (),
) -> Iterator[tuple[FrameRow, Answered, tuple[Answered, ...]]]:
    """Yield every one of some frames, what was read of it, and of those up to `reach` before and after in its scene.

    `frames` are in the order of the tables, and so are neighbours, through the ends of shards. A neighbour that failed
    in one of the `stages` is left out, and so is one that is `silent`: who is excluded has no say in the labels of
    others. One that is merely not among `frames` has. Each is read once, and no more of them are held than are in
    reach.
    """
    if not reach:
        yield from ((frame, read(frame), ()) for frame in frames)
        return
    for _, of_scene in groupby(frames, key=lambda frame: frame.scene):
        chosen = list(of_scene)
        places = places_near(tables, chosen, reach, stages, silent)
        place_of = {(one.shard, one.row): place for place, one in enumerate(places) if one is not None}
        near: dict[int, Answered] = {}
        for frame in chosen:
            here = place_of[frame.shard, frame.row]
            near = {place: one for place, one in near.items() if place >= here - reach}
            for place in range(max(here - reach, 0), min(here + reach + 1, len(places))):
                if place not in near and (neighbour := places[place]) is not None:
                    near[place] = read(neighbour)
            yield frame, near[here], tuple(near[place] for place in sorted(near) if place != here)


def places_near(
    tables: Tables, frames: Sequence[FrameRow], reach: int, stages: Collection[str], silent: Collection[str]
) -> list[FrameRow | None]:
    """Return the frames of all shards that are within reach of some frames of a scene, in order; see `windows`.

    None stands for one that failed in one of the `stages`, or is silent.
    """
    shards = [name for name in tables.shards if scene_of(name) == frames[0].scene]
    rows = [tables.file(tables.tables[0].stage, name).rows for name in shards]
    first, last = (in_reach(rows, shards.index(frame.shard), reach) for frame in (frames[0], frames[-1]))
    asked = [table.stage in stages for table in tables.tables]
    places: list[FrameRow | None] = []
    for shard in shards[first.start : last.stop]:
        for row, states in enumerate(tables.states(shard)):
            failed = any(isinstance(state, Failed) for state, one in zip(states, asked, strict=True) if one)
            name = states[0].frame_id
            places.append(None if failed or name in silent else FrameRow(shard, row, name))
    return places


@dataclass(frozen=True, eq=False)
class Named:
    """What table `refine` says, (n,) each: class, second choice, the confidence of both in 1/255, where the class
    comes from; and sentences about steps that were left out.
    """

    label: Labels
    confidence: Labels
    runner_up: Labels
    runner_up_confidence: Labels
    origin: Labels
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, own: Answered) -> Named:
        """Return what is said of a frame before anything is done to it."""
        sure = np.full(own.said.shape, 255, np.uint8) if own.confidence is None else own.confidence
        sure = np.where(own.said > 0, sure, 0).astype(np.uint8)
        nothing = np.zeros(len(own.said), np.uint8)
        alone = own.said.ndim == 1 or own.said.shape[1] == 1
        second, second_sure = (nothing, nothing) if alone else (own.said[:, 1], sure[:, 1])
        origin = np.full(len(own.said), STUDENT) if own.origin is None else own.origin
        first = sure if own.said.ndim == 1 else sure[:, 0]
        return cls(own.label, first, second, second_sure, np.where(own.label > 0, origin, 0).astype(np.uint8))

    def renamed(self, label: Labels, confidence: Labels, origin: np.uint8) -> Named:
        """Return the frame with other labels, which come from `origin` where they differ and are so sure there.

        What a point was called before is its second choice then.
        """
        changed = label != self.label
        sure = np.where(changed, np.where(label > 0, np.maximum(confidence, 1), 0), self.confidence).astype(np.uint8)
        return replace(
            self,
            label=label,
            confidence=sure,
            runner_up=np.where(changed, self.label, self.runner_up),
            runner_up_confidence=np.where(changed, np.minimum(self.confidence, sure), self.runner_up_confidence),
            origin=np.where(changed, np.where(label > 0, origin, 0), self.origin).astype(np.uint8),
        )

    def record(self, frame_id: str) -> Refine:
        """Return the table's row of a frame."""
        return Refine(
            frame_id=frame_id,
            label=self.label,
            confidence=self.confidence,
            runner_up=self.runner_up,
            runner_up_confidence=self.runner_up_confidence,
            origin=self.origin,
            note="; ".join(self.notes) or None,
        )


def refined(
    steps: Collection[Improvement],
    own: Answered,
    around: Sequence[Answered],
    images: PseudoLabels | None,
    recipe: Recipe,
) -> dict[Improvement, Named]:
    """Return the labels of a frame by how they were refined; the vote is held once.

    `images` is a row of pseudo-labels whose things are merged into predictions, None where that is not asked for.
    Raises ValueError for a point that is not finite.
    """
    before, voted = Named.of(own), None
    found: dict[Improvement, Named] = {}
    for one in steps:
        if "vote" in one and voted is None:
            voted = after_vote(before, own, around, recipe)
        start = voted if voted is not None and "vote" in one else before
        found[one] = after_flat_interaction(start, own, images, recipe) if "afi" in one else start
    return found


def heard_by(own: Answered, around: Sequence[Answered], config: VotingConfig) -> list[Answered]:
    """Return the sweeps of a window that have a vote on a frame, in their order."""
    ago_s = [(own.timestamp_us - one.timestamp_us) / 1e6 for one in around]
    return [around[number] for number in asked_among(ago_s, config)]


def after_vote(before: Named, own: Answered, around: Sequence[Answered], recipe: Recipe) -> Named:
    """Return the labels of a frame after the vote of the sweeps around it; raises ValueError like `refined`."""
    ballots = [one.ballot(own) for one in (own, *heard_by(own, around, recipe.vote))]
    found = vote(ballots[0], ballots[1:], len(recipe.ontology.classes) - 1, recipe.vote)
    sure, second = (np.rint(one * 255).astype(np.uint8) for one in (found.confidence, found.runner_up_confidence))
    return Named(
        label=found.label,
        confidence=np.where(found.label > 0, np.maximum(sure, 1), 0).astype(np.uint8),
        runner_up=found.runner_up,
        runner_up_confidence=second,
        origin=np.where(found.changed, NEIGHBOUR, before.origin),
    )


def after_flat_interaction(before: Named, own: Answered, images: PseudoLabels | None, recipe: Recipe) -> Named:
    """Return the labels of a frame after flat interaction, things in images merged in before where there are any.

    The draws of the merge are seeded with the frame's name. Raises ValueError for a point that is not finite.
    """
    xyz_m, index = own.rows[Points].xyz_m, own.rows[Index]
    if images is not None:
        things = tuple(np.flatnonzero(recipe.ontology.thing_of_class).tolist())
        seed = recipe.refine.merge_seed + zlib.crc32(index.frame_id.encode())
        merged = merge_image_labels(xyz_m, before.label, images.label, things, seed)
        before = before.renamed(merged, images.confidence, CAMERA)
    found = refine(
        xyz_m,
        before.label,
        recipe.correct,
        n_classes=len(recipe.ontology.classes) - 1,
        ground_classes=recipe.ontology.ground_class_ids,
        sensor_height_m=height_of_sensor_m(index.ego_from_lidar),
    )
    sure = np.rint(np.clip(found.score, 0, 1) * 255).astype(np.uint8)
    return replace(before.renamed(found.labels, sure, FLAT), notes=found.notes)
