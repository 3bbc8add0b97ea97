"""What is done to labels at test time: the vote of the sweeps around a frame, and flat interaction.

Both see points, these labels and poses, and never the truth. The vote asks sweeps that were taken after the present
one too, so it is offline: for logs that lie on a disk, not for a vehicle on its way.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.recipe import Recipe
from manifests.sections.training import Refinement
from manifests.storage.names import scene_of
from superpixels.flat_interaction import Refined, merge_image_labels, refine
from superpixels.ground import height_of_sensor_m
from superpixels.voting import Ballot, vote
from trainer.data.tables import FrameRow, Tables

Labels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Answered:
    """A frame with what is said of its points: its `rows` by table, `said` (n,) or (n, k) classes, the likeliest first,
    0 none, and `confidence` of the same shape in 1/255. Without a confidence all points count the same.
    """

    rows: Mapping[str, Mapping[str, Any]]
    said: Labels
    confidence: Labels | None = None

    @property
    def label(self) -> Labels:
        """The likeliest class of every point, (n,)."""
        return self.said if self.said.ndim == 1 else self.said[:, 0]

    @property
    def timestamp_us(self) -> int:
        """Time of the sweep."""
        return int(self.rows["index"]["timestamp_us"])

    @property
    def world_from_lidar(self) -> NDArray[np.float64]:
        """Pose of the LiDAR in the world at that time, (4, 4)."""
        return np.asarray(self.rows["index"]["world_from_lidar"])

    def ballot(self, here: Answered) -> Ballot:
        """Return what this frame says to another one, or to itself."""
        weight = np.ones(self.said.shape) if self.confidence is None else self.confidence / 255
        return Ballot.cast(self.rows["points"]["xyz_m"], self.said, weight, self, here)


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
    of_stages = [table.stage in stages for table in tables.tables]
    for scene, chosen in groupby(frames, key=lambda frame: frame.scene):
        places: list[FrameRow | None] = []  # of all frames of the scene; None: it failed, or is silent
        first: dict[str, int] = {}
        for shard in (name for name in tables.shards if scene_of(name) == scene):
            first[shard] = len(places)
            for row, states in enumerate(tables.states(shard)):
                failed = any(state["status"] != "ok" for state, asked in zip(states, of_stages, strict=True) if asked)
                frame_id = states[0]["frame_id"]
                places.append(None if failed or frame_id in silent else FrameRow(shard, row, frame_id))
        near: dict[int, Answered] = {}
        for frame in chosen:
            here = first[frame.shard] + frame.row
            near = {place: one for place, one in near.items() if place >= here - reach}
            for place in range(max(here - reach, 0), min(here + reach + 1, len(places))):
                if place not in near and (neighbour := places[place]) is not None:
                    near[place] = read(neighbour)
            yield frame, near[here], tuple(near[place] for place in sorted(near) if place != here)


def refined(
    names: Sequence[Refinement],
    own: Answered,
    around: Sequence[Answered],
    image_label: Labels | None,
    recipe: Recipe,
) -> dict[Refinement, tuple[Labels, tuple[str, ...]]]:
    """Return labels (n,) by refinement, and what there is to note of each; the vote is held once.

    Raises ValueError for a point that is not finite.
    """
    voted = own.label
    if any("vote" in name for name in names):
        ballots = [one.ballot(own) for one in (own, *around)]
        voted = vote(ballots[0], ballots[1:], len(recipe.ontology.classes) - 1, recipe.vote).label
    found: dict[Refinement, tuple[Labels, tuple[str, ...]]] = {}
    for name in names:
        label = voted if "vote" in name else own.label
        if "afi" in name:
            flat = flat_interaction(own.rows["points"]["xyz_m"], label, image_label, own.rows["index"], recipe)
            found[name] = flat.labels, flat.notes
        else:
            found[name] = label, ()
    return found


def flat_interaction(
    xyz_m: NDArray[np.float32],
    label: Labels,
    image_label: Labels | None,
    index: Mapping[str, Any],
    recipe: Recipe,
) -> Refined:
    """Return labels of a sweep after flat interaction, things in images merged in before where there are image labels.

    `index` is the frame's row there: the pose of the LiDAR on the vehicle, and the name that the draws are seeded with.
    Raises ValueError for a point that is not finite.
    """
    if image_label is not None:
        things = tuple(np.flatnonzero(recipe.ontology.thing_of_class).tolist())
        seed = recipe.evaluate.merge_seed + zlib.crc32(index["frame_id"].encode())
        label = merge_image_labels(xyz_m, label, image_label, things, seed)
    return refine(
        xyz_m,
        label,
        recipe.correct,
        n_classes=len(recipe.ontology.classes) - 1,
        ground_classes=recipe.ontology.ground_class_ids,
        sensor_height_m=height_of_sensor_m(index["ego_from_lidar"]),
    )
