"""Samples and directions of flat interaction."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from superpixels.flat_levels import directions, farthest_points
from tests.superpixels.test_flat_interaction import clouds


def test_directions_are_unit_vectors_from_one_pole_of_the_y_axis_to_the_other() -> None:
    found = directions(20)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found[[0, 19], 1], [1, -1])
    np.testing.assert_allclose(np.diff(found[:, 1]), -2 / 19, atol=1e-6)


def test_samples_on_a_line_are_the_ends_first() -> None:
    xyz_m = np.array([[0, 0, 0], [1, 0, 0], [4, 0, 0], [6, 0, 0], [10, 0, 0]], np.float32)
    assert farthest_points(xyz_m, 4).tolist() == [0, 4, 2, 3]


def test_samples_end_with_the_distinct_points_unless_repeated() -> None:
    xyz_m = np.array([[0, 0, 0], [2, 0, 0], [2, 0, 0], [0, 0, 0]], np.float32)
    assert farthest_points(xyz_m, 4).tolist() == [0, 1]
    assert farthest_points(xyz_m, 4, repeat=True).tolist() == [0, 1, 0, 0]


def test_points_at_the_origin_are_no_samples_where_a_radius_is_given() -> None:
    xyz_m = np.array([[5, 0, 0], [0.01, 0, 0], [4, 0, 0]], np.float32)
    assert farthest_points(xyz_m, 3).tolist() == [0, 1, 2]
    assert farthest_points(xyz_m, 3, origin_radius_m=0.03).tolist() == [0, 2]


@given(clouds, st.integers(1, 80))
def test_every_sample_is_as_far_from_those_before_it_as_a_point_can_be(xyz_m: Any, n_samples: int) -> None:
    chosen = farthest_points(xyz_m, n_samples, start=len(xyz_m) - 1)
    squared = ((xyz_m[:, None] - xyz_m[chosen]) ** 2).sum(axis=2)
    for k in range(1, len(chosen)):
        nearest = squared[:, :k].min(axis=1)
        assert nearest[chosen[k]] == nearest.max() > 0
    assert len(chosen) == min(n_samples, len(np.unique(xyz_m, axis=0)))
