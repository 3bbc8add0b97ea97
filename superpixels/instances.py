"""Single objects among the points of a class that can be counted: what lies close together is one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

MOST = 65_535  # numbers that 16 bits have, beside 0
FEWEST = 5  # points of an object: fewer are not told apart from noise


def instances(
    xyz_m: npt.NDArray[np.floating[Any]], label: npt.NDArray[np.uint8], things: Collection[int], gap_m: float
) -> npt.NDArray[np.uint16]:
    """Return the number of the object that each point (n,) belongs to, 1, 2, ...; 0 for no object.

    Points of one of the classes `things` that lie no farther than `gap_m` apart, in any direction along the ground and
    whatever their heights, are of one object. Objects are numbered by class, then by their first point, anew in every
    frame: nothing is followed over time.
    """
    found, n_found = np.zeros(len(label), np.uint16), 0
    for kind in sorted(things):
        points = np.flatnonzero(label == kind)
        if len(points) < FEWEST:
            continue
        pairs = scipy.spatial.cKDTree(xyz_m[points, :2].astype(np.float64)).query_pairs(gap_m, output_type="ndarray")
        near = scipy.sparse.coo_array((np.ones(len(pairs), np.bool_), pairs.T), shape=(len(points), len(points)))
        _, group = scipy.sparse.csgraph.connected_components(near, directed=False)  # numbered by their first points
        large = np.flatnonzero(np.bincount(group) >= FEWEST)[: MOST - n_found]
        number = np.zeros(group.max() + 1, np.uint16)
        number[large] = n_found + 1 + np.arange(len(large))
        found[points] = number[group]
        n_found += len(large)
    return found
