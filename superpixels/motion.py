"""What moves: things at places that other sweeps found free, told by rays alone; no label is looked at.

A place is free in another sweep if all its returns in that direction lie beyond, taken if it has a return there, and
else unknown: behind something nearer, or where nothing came back. Each sweep of a window is one observation, and they
add up in logarithms of odds, as in occupancy grids (Moravec and Elfes 1985). Single points of the road or of leaves are
often looked through by chance; what hangs together above the ground and is free in good part has moved. Constants are
ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from superpixels.instances import MOST
from superpixels.places import RangeImage, Voxels, extents, moved
from superpixels.reach import check_reach, window_of

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class MotionConfig:
    """How things that move are found; recipe section ``[motion]``.

    ``reach``, ``reach_s``
        Sweeps before and after that are asked, and the seconds within which they lie, as in ``[vote]``.
    ``azimuth_deg``, ``elevation_deg``, ``through_m``
        A sweep looks through a place as in ``[vote]``.
    ``voxel_m``
        Edge of the cubes in which a return of another sweep says that a place is taken.
    ``free``, ``taken``
        What a sweep that looks through a place says against something that stands there, and one that has a return
        there for it, in logarithms of odds. The first is more: what drives by may be met at its place again by its own
        other end.
    ``standing_below``
        A point was moving if it is less likely than this to be of something that stands, 0..1.
    ``ground_m``, ``cell_m``
        Things begin this high above the lowest return around: in a square of this edge and its eight neighbours.
    ``gap_m``
        Edge of the cubes that are joined to one thing where they touch.
    ``share``, ``fewest``, ``largest_m``
        A thing moves if this share of its points was moving, it has so many points, and is no longer than this.
    """

    reach: int = 8
    reach_s: float = 0.0
    azimuth_deg: float = 1.0
    elevation_deg: float = 1.5
    through_m: float = 0.5
    voxel_m: float = 0.4
    free: float = 1.7
    taken: float = 0.6
    standing_below: float = 0.3
    ground_m: float = 0.3
    cell_m: float = 1.0
    gap_m: float = 0.4
    share: float = 0.3
    fewest: int = 8
    largest_m: float = 20.0

    def __post_init__(self) -> None:
        above_0 = ("azimuth_deg", "elevation_deg", "voxel_m", "cell_m", "gap_m", "fewest", "largest_m")
        for name in above_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected a number above 0")
        for name in ("reach_s", "through_m", "free", "taken", "ground_m"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        for name in ("standing_below", "share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0..1")
        check_reach(self.reach, least=1)

    @property
    def window(self) -> int:
        """Sweeps before and after among which those are that are asked."""
        return window_of(self)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Returns of a sweep, (n, 3) in its own LiDAR frame, and the pose (4, 4) that leads into the present one's."""

    xyz_m: Floats
    here_from_lidar: Floats


def standing(xyz_m: Floats, others: Sequence[Sweep], config: MotionConfig) -> npt.NDArray[np.float64]:
    """Return how likely points (n, 3), all of them returns, are of something that stands, (n,) 0..1.

    A point of whose place no other sweep knows anything has 0.5.
    """
    here = xyz_m.astype(np.float64)
    voxels = Voxels(here, (config.voxel_m,) * 3)
    odds = np.zeros(len(here))
    for other in others:
        place = other.xyz_m.astype(np.float64)
        through = RangeImage(place, config).looks_through(moved(np.linalg.inv(other.here_from_lidar), here))
        taken = voxels.taken(moved(other.here_from_lidar, place))[voxels.of_point]
        odds += config.taken * taken - config.free * (through & ~taken)
    return np.asarray(1 / (1 + np.exp(-odds)))


def moving_things(xyz_m: Floats, stands: Floats, config: MotionConfig) -> npt.NDArray[np.uint16]:
    """Return the number of the moving thing that each return (n, 3) belongs to, (n,) 1, 2, ...; 0 for none.

    ``stands`` (n,) is what `standing` says. Things are numbered by their first points, anew in every sweep.
    """
    found = np.zeros(len(xyz_m), np.uint16)
    points = np.flatnonzero(above_ground_m(xyz_m, config.cell_m) > config.ground_m)
    if not len(points):
        return found
    thing = touching(xyz_m[points], config.gap_m)
    n_points = np.bincount(thing)
    n_moving = np.bincount(thing, stands[points] < config.standing_below)
    low, high = extents(xyz_m[points, :2], thing, len(n_points))
    moves = (n_points >= config.fewest) & (n_moving >= np.maximum(config.share * n_points, 1))
    moves &= (high - low).max(axis=1) <= config.largest_m
    numbers = np.zeros(len(n_points), np.uint16)
    large = np.flatnonzero(moves)[:MOST]
    numbers[large] = 1 + np.arange(len(large))
    found[points] = numbers[thing]
    return found


def above_ground_m(xyz_m: Floats, cell_m: float) -> Floats:
    """Return how high points (n, 3), z up, lie above the lowest one in their square or the eight around it, (n,)."""
    if not len(xyz_m):
        return np.zeros(0)
    square = np.floor(xyz_m[:, :2] / cell_m).astype(np.int64)
    kinds, of_point = np.unique(square, axis=0, return_inverse=True)
    lowest = np.full(len(kinds), np.inf)
    np.minimum.at(lowest, of_point, xyz_m[:, 2])
    around = lowest.copy()
    for first, second in neighbours(kinds):
        np.minimum.at(around, first, lowest[second])
        np.minimum.at(around, second, lowest[first])
    return np.asarray(xyz_m[:, 2] - around[of_point])


def touching(xyz_m: Floats, gap_m: float) -> npt.NDArray[np.int64]:
    """Return which thing points (n, 3) belong to, (n,) 0, 1, ... by their first points: cubes that touch are one."""
    cube = np.floor(xyz_m / gap_m).astype(np.int64)
    kinds, of_point = np.unique(cube, axis=0, return_inverse=True)
    pairs = [np.stack(both) for both in neighbours(kinds)]
    first, second = np.concatenate(pairs, axis=1)
    near = scipy.sparse.coo_array((np.ones(len(first), np.bool_), (first, second)), shape=(len(kinds),) * 2)
    thing = scipy.sparse.csgraph.connected_components(near, directed=False)[1][of_point]
    _, begins, of_thing = np.unique(thing, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(begins))[of_thing].astype(np.int64)


def neighbours(cells: npt.NDArray[np.int64]) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Return pairs of different cells (k, d) that touch, by a corner too, by direction: indices (q,) of both.

    Every pair stands there once.
    """
    away = cells - cells.min(axis=0) + 1
    sides = away.max(axis=0) + 2
    steps = np.cumprod([1, *sides[:0:-1]])[::-1]
    key = away @ steps
    order = np.argsort(key)
    found = []
    for direction in product((-1, 0, 1), repeat=cells.shape[1]):
        step = int(np.dot(direction, steps))
        if step <= 0:
            continue
        place = np.minimum(np.searchsorted(key, key + step, sorter=order), len(key) - 1)
        other = order[place]
        meets = key[other] == key + step
        found.append((np.flatnonzero(meets), other[meets]))
    return found
