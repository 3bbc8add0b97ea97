"""Places in space: the voxels that points lie in, and what a sweep saw in the direction of a place."""

from __future__ import annotations

from functools import reduce
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]


class Looking(Protocol):
    """How a sweep is asked what it saw: cells of directions, and how far beyond a place returns must lie."""

    @property
    def azimuth_deg(self) -> float:
        """Width of a cell."""

    @property
    def elevation_deg(self) -> float:
        """Height of a cell."""

    @property
    def through_m(self) -> float:
        """How much farther away than a place all returns in its direction are, beside 5 % of the distance."""


class Voxels:
    """The voxels that some points lie in; ``of_point`` (n,) is the voxel of each."""

    def __init__(
        self, xyz_m: Floats, edges_m: tuple[float, float, float], space: npt.NDArray[np.int64] | None = None
    ) -> None:
        """``xyz_m`` (n, 3), edges of a voxel along x, y and z.

        ``space`` (n,), 0 or more, keeps points apart that lie in one place: those of different spaces share no voxel.
        """
        self._edges_m = np.asarray(edges_m)
        cells = self._cells(xyz_m, space)
        self._low = cells.min(axis=0, initial=0)
        self._sides = cells.max(axis=0, initial=0) - self._low + 1
        self._keys, self.of_point = np.unique(self._key(cells), return_inverse=True)

    def votes(
        self,
        met: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
        label: npt.NDArray[np.uint8],
        weight: Floats,
        n_classes: int,
    ) -> Floats:
        """Return the votes (voxels, classes + 1) in every voxel: those of the points that ``met`` says lie in it.

        ``label`` and ``weight`` (m, k) are those of all points that were asked for.
        """
        point, voxel = met
        place_of_vote = voxel[:, None] * (n_classes + 1) + label[point]
        votes = np.bincount(place_of_vote.ravel(), weight[point].ravel(), minlength=len(self._keys) * (n_classes + 1))
        # of no votes at all, NumPy counts in whole numbers
        return votes.reshape(len(self._keys), n_classes + 1).astype(np.float64, copy=False)

    def met(
        self, xyz_m: Floats, space: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return which of the points at ``xyz_m`` (m, 3) lie in a voxel of their space, and in which, (q,) both."""
        cells = self._cells(xyz_m, space)
        within = (
            (cells[:, axis] >= low) & (cells[:, axis] < low + side)
            for axis, (low, side) in enumerate(zip(self._low, self._sides, strict=True))
        )
        inside = np.flatnonzero(reduce(np.logical_and, within))
        key = self._key(cells[inside])
        voxel = np.minimum(np.searchsorted(self._keys, key), len(self._keys) - 1)
        meets = self._keys[voxel] == key if len(self._keys) else np.zeros(len(key), np.bool_)
        return inside[meets], voxel[meets]

    def taken(self, xyz_m: Floats) -> npt.NDArray[np.bool_]:
        """Return in which voxels points (m, 3) lie, (voxels,)."""
        found = np.zeros(len(self._keys), np.bool_)
        found[self.met(xyz_m)[1]] = True
        return found

    def _cells(self, xyz_m: Floats, space: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        cells = np.floor(xyz_m / self._edges_m).astype(np.int64)
        return np.asarray(cells if space is None else np.column_stack([cells, space]))

    def _key(self, cells: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        first, *others = (cells - self._low).T
        for side, column in zip(self._sides[1:], others, strict=True):
            first = first * side + column
        return np.asarray(first)


class RangeImage:
    """How near the returns of a sweep are, by direction: the least range in cells of azimuth and elevation."""

    def __init__(self, xyz_m: Floats, config: Looking) -> None:
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
        range_m = length_m(xyz_m)
        azimuth = np.degrees(np.arctan2(xyz_m[:, 1], xyz_m[:, 0])) + 180
        flat_m = np.hypot(xyz_m[:, 0], xyz_m[:, 1])
        elevation = np.degrees(np.arctan2(xyz_m[:, 2], flat_m)) + 90
        column = (azimuth / self._config.azimuth_deg).astype(np.int64) % self._n_columns
        row = np.minimum((elevation / self._config.elevation_deg).astype(np.int64), self._n_rows - 1)
        return row * self._n_columns + column, range_m


def length_m(xyz_m: Floats) -> Floats:
    """Return the lengths of vectors (n, 3); the same bits as np.linalg.norm, in a third of its time."""
    x, y, z = xyz_m.T
    return np.asarray(np.sqrt(x * x + y * y + z * z))


def moved(there_from_here: Floats, xyz_m: Floats) -> Floats:
    """Return points (n, 3) in the frame that a pose (4, 4) leads into."""
    return np.asarray(xyz_m @ there_from_here[:3, :3].T + there_from_here[:3, 3])


def extents(places_m: Floats, group: npt.NDArray[np.int64], n_groups: int) -> tuple[Floats, Floats]:
    """Return the lowest and highest coordinates (g, d) of each group of places (n, d); ``group`` (n,) from 0.

    NaN of a group that has no place.
    """
    low, high = (np.full((n_groups, places_m.shape[1]), end) for end in (np.inf, -np.inf))
    np.minimum.at(low, group, places_m)
    np.maximum.at(high, group, places_m)
    empty = np.isinf(low)
    return np.where(empty, np.nan, low), np.where(empty, np.nan, high)
