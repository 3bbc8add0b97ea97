"""Labels made consistent over time: what several sweeps of one place say is put to the vote.

Points of neighbouring sweeps are brought into one frame, and voxels collect their weighted votes. Points that no camera
saw get what other sweeps saw there. What moved must not smear: a vote counts only where neither sweep looked through
the place of the other's point. The paper (arXiv 2405.15286) has no such step; consolidation over time is what later
methods add (LOSC, arXiv 2507.07605). Formulas and constants are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class VotingConfig:
    """How neighbouring sweeps vote; recipe section ``[vote]``.

    ``reach``
        Sweeps before and after that have a vote, as far as the scene goes; 0: only the sweep itself.
    ``voxel_m``, ``coarse_voxel_m``
        Edge of the cubes that collect votes, and of larger ones for points that find none in theirs (0: not tried).
    ``range_half_m``, ``time_half_s``
        A vote counts half if the point was that far from its sensor, or that long ago or ahead.
    ``disputed``
        Weight of a point that two cameras name differently, 0..1.
    ``own``
        How much more the label that a point has counts than one vote of its surroundings.
    ``margin``
        A label is replaced only if the winner's share of the votes exceeds its own by this; a point without a label
        takes the winner.
    ``azimuth_deg``, ``elevation_deg``, ``through_m``
        A sweep looks through a place if all its returns in that direction, within a cell of this size, are farther away
        by ``through_m`` and 5 % of the distance.
    ``prior``
        Evidence that nothing is known: confidence is winner / (all votes + prior).
    """

    reach: int = 3
    voxel_m: float = 0.2
    coarse_voxel_m: float = 0.6
    range_half_m: float = 30.0
    time_half_s: float = 2.0
    disputed: float = 0.5
    own: float = 1.0
    margin: float = 0.1
    azimuth_deg: float = 1.0
    elevation_deg: float = 1.5
    through_m: float = 0.5
    prior: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.reach <= 64:
            raise ValueError(f"reach is {self.reach}; expected 0..64 sweeps")
        for name in ("voxel_m", "range_half_m", "time_half_s", "azimuth_deg", "elevation_deg"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("coarse_voxel_m", "own", "margin", "through_m", "prior"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if not 0 <= self.disputed <= 1:
            raise ValueError(f"disputed is {self.disputed}; expected 0..1")


class Taken(Protocol):
    """When and where a sweep was taken: a frame."""

    @property
    def timestamp_us(self) -> int:
        """Time of the sweep."""

    @property
    def world_from_lidar(self) -> Floats:
        """Pose of the LiDAR in the world at that time, (4, 4)."""


@dataclass(frozen=True, eq=False)
class Ballot:
    """What one sweep says: ``xyz_m`` (n, 3) in its own LiDAR frame, ``label`` (n,) 0 none, ``weight`` (n,) 0..1.

    ``here_from_lidar`` (4, 4) leads into the frame of the sweep that is voted on, ``ago_s`` is how long before (or, if
    negative, after) it was taken.
    """

    xyz_m: Floats
    label: npt.NDArray[np.uint8]
    weight: Floats
    here_from_lidar: Floats
    ago_s: float = 0.0

    @classmethod
    def cast(cls, xyz_m: Floats, label: npt.NDArray[np.uint8], weight: Floats, taken: Taken, here: Taken) -> Self:
        """Return what the sweep that was `taken` says to the one taken `here`."""
        here_from_lidar = np.linalg.inv(here.world_from_lidar) @ taken.world_from_lidar
        return cls(xyz_m, label, weight, here_from_lidar, (here.timestamp_us - taken.timestamp_us) / 1e6)


@dataclass(frozen=True, eq=False)
class Voted:
    """Aligned with the sweep (n,): ``label`` uint8, 0 none; ``confidence`` 0..1, 0 where there is no label; ``changed``
    says where the label is not the one it was, or there was none."""

    label: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32]
    changed: npt.NDArray[np.bool_]


def vote(own: Ballot, others: Sequence[Ballot], n_classes: int, config: VotingConfig | None = None) -> Voted:
    """Return the labels of the sweep ``own`` after a vote among it and other sweeps of the same place.

    Neither the order of points nor that of ``others`` matters, up to the rounding of float64 sums. Labels are
    0..``n_classes``. Raises ValueError for points that are not finite, labels out of range, or arrays that do not fit.
    """
    config = config or VotingConfig()
    ballots = [own, *others]
    for ballot in ballots:
        _check(ballot, n_classes)
    here = own.xyz_m.astype(np.float64)
    n_points, has = len(here), own.label > 0
    seen_from_here = RangeImage(here, config)
    # one row per ballot: where it may speak of a point of ours, and its votes that nothing here speaks against
    heard: list[npt.NDArray[np.bool_]] = []
    places: list[Floats] = []
    weights: list[Floats] = []
    labels: list[npt.NDArray[np.uint8]] = []
    for ballot in ballots:
        there = ballot.xyz_m.astype(np.float64)
        range_m = np.linalg.norm(there, axis=1)
        weight = ballot.weight * 0.5 ** (range_m / config.range_half_m + abs(ballot.ago_s) / config.time_half_s)
        votes = (ballot.label > 0) & (weight > 0)
        place = there
        may_speak = np.ones(n_points, np.bool_)
        if ballot is not own:
            place = _moved(ballot.here_from_lidar, there)
            votes &= ~seen_from_here.looks_through(place)
            in_its_frame = _moved(np.linalg.inv(ballot.here_from_lidar), here)
            may_speak = ~RangeImage(there, config).looks_through(in_its_frame)
        heard.append(may_speak)
        places.append(place[votes])
        weights.append(weight[votes])
        labels.append(ballot.label[votes])

    score = np.zeros((n_points, n_classes + 1))
    for edge_m in (config.voxel_m, config.coarse_voxel_m):
        without = np.flatnonzero(score.sum(axis=1) == 0)
        if not edge_m or not len(without):
            continue
        for speaks, place, weight, label in zip(heard, places, weights, labels, strict=True):
            score[without] += _votes_at(here[without], place, weight, label, n_classes, edge_m) * speaks[without, None]

    everyone = np.arange(n_points)
    range_here_m = np.linalg.norm(here, axis=1)
    own_weight = config.own * own.weight * 0.5 ** (range_here_m / config.range_half_m)
    score[everyone[has], own.label[has]] += own_weight[has]
    total = score.sum(axis=1)
    winner = score.argmax(axis=1)
    share = np.divide(score, total[:, None], out=np.zeros_like(score), where=total[:, None] > 0)
    keeps = has & (share[everyone, winner] - share[everyone, own.label] <= config.margin)
    label = np.where(keeps, own.label, winner).astype(np.uint8)
    label[total == 0] = own.label[total == 0]
    confidence = np.zeros(n_points, np.float32)
    sure = (label > 0) & (total > 0)
    np.divide(score[everyone, label], total + config.prior, out=confidence, where=sure, casting="same_kind")
    return Voted(label, confidence, label != own.label)


def seen_twice(
    first: Ballot, second: Ballot, n_classes: int, config: VotingConfig | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return how many voxels have a name in both of two sweeps, and how many have the same one, by class of the first.

    Both are (classes + 1,), entry 0 is 0. A voxel's name is that of most of its named points, the lowest of several.
    Places that either sweep looks through do not count: what stood there has moved. Weights play no part. Raises
    ValueError like `vote`.
    """
    config = config or VotingConfig()
    for ballot in (first, second):
        _check(ballot, n_classes)
    here, there = first.xyz_m.astype(np.float64), second.xyz_m.astype(np.float64)
    second_here = _moved(second.here_from_lidar, there)
    first_there = _moved(np.linalg.inv(second.here_from_lidar), here)
    of_first = (first.label > 0) & ~RangeImage(there, config).looks_through(first_there)
    of_second = (second.label > 0) & ~RangeImage(here, config).looks_through(second_here)
    at = np.unique(np.floor(here[of_first] / config.voxel_m), axis=0) * config.voxel_m + config.voxel_m / 2
    votes = [
        _votes_at(at, place[chosen], np.ones(int(chosen.sum())), ballot.label[chosen], n_classes, config.voxel_m)
        for ballot, place, chosen in ((first, here, of_first), (second, second_here, of_second))
    ]
    both = (votes[0].sum(axis=1) > 0) & (votes[1].sum(axis=1) > 0)
    names = [one[both].argmax(axis=1) for one in votes]
    met, same = (np.bincount(some, minlength=n_classes + 1) for some in (names[0], names[0][names[0] == names[1]]))
    return met, same


class RangeImage:
    """How near the returns of a sweep are, by direction: the least range in cells of azimuth and elevation."""

    def __init__(self, xyz_m: Floats, config: VotingConfig) -> None:
        """``xyz_m`` (n, 3) in the frame of the sensor."""
        self._config = config
        self._n_columns = int(np.ceil(360 / config.azimuth_deg))
        self._n_rows = int(np.ceil(180 / config.elevation_deg))
        cell, range_m = self._cells(xyz_m)
        self._nearest_m = np.full(self._n_columns * self._n_rows, np.nan)
        np.fmin.at(self._nearest_m, cell, range_m)

    def looks_through(self, xyz_m: Floats) -> npt.NDArray[np.bool_]:
        """Return for which places (n, 3), in the frame of the sensor, all returns in their direction lie beyond."""
        cell, range_m = self._cells(xyz_m)
        beyond_m = range_m * 1.05 + self._config.through_m
        return np.asarray(self._nearest_m[cell] > beyond_m)  # false where there was no return

    def _cells(self, xyz_m: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
        range_m = np.linalg.norm(xyz_m, axis=1)
        azimuth = np.degrees(np.arctan2(xyz_m[:, 1], xyz_m[:, 0])) + 180
        flat_m = np.hypot(xyz_m[:, 0], xyz_m[:, 1])
        elevation = np.degrees(np.arctan2(xyz_m[:, 2], flat_m)) + 90
        column = (azimuth / self._config.azimuth_deg).astype(np.int64) % self._n_columns
        row = np.minimum((elevation / self._config.elevation_deg).astype(np.int64), self._n_rows - 1)
        return row * self._n_columns + column, range_m


def _votes_at(
    here: Floats, place: Floats, weight: Floats, label: npt.NDArray[np.uint8], n_classes: int, edge_m: float
) -> Floats:
    """Return the votes (n, classes + 1) in the voxel of every point ``here`` (n, 3)."""
    cells = np.floor(np.concatenate([here, place]) / edge_m).astype(np.int64)
    low = cells.min(axis=0, initial=0)
    sides = cells.max(axis=0, initial=0) - low + 1
    key = ((cells[:, 0] - low[0]) * sides[1] + cells[:, 1] - low[1]) * sides[2] + cells[:, 2] - low[2]
    voxels, voxel = np.unique(key[: len(here)], return_inverse=True)
    if not len(voxels):
        return np.zeros((0, n_classes + 1))
    spot = np.minimum(np.searchsorted(voxels, key[len(here) :]), len(voxels) - 1)
    meets = voxels[spot] == key[len(here) :]
    place_of_vote = spot[meets] * (n_classes + 1) + label[meets]
    votes = np.bincount(place_of_vote, weight[meets], len(voxels) * (n_classes + 1))
    return np.asarray(votes.reshape(len(voxels), n_classes + 1)[voxel])


def _moved(there_from_here: Floats, xyz_m: Floats) -> Floats:
    return np.asarray(xyz_m @ there_from_here[:3, :3].T + there_from_here[:3, 3])


def _check(ballot: Ballot, n_classes: int) -> None:
    """Raise ValueError unless a ballot is whole."""
    n = len(ballot.xyz_m)
    shapes = ballot.xyz_m.shape, ballot.label.shape, ballot.weight.shape, np.shape(ballot.here_from_lidar)
    if shapes != ((n, 3), (n,), (n,), (4, 4)):
        raise ValueError(f"a ballot has shapes {shapes}; expected (n, 3), (n,), (n,) and (4, 4)")
    if not (np.isfinite(ballot.xyz_m).all() and np.isfinite(ballot.weight).all()):
        raise ValueError("a ballot has points or weights that are not finite; a sweep is cleaned when it is read")
    if n and int(ballot.label.max()) > n_classes:
        raise ValueError(f"a ballot has label {ballot.label.max()}; expected 0..{n_classes}")
