from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from superpixels.ground import height_of_sensor_m, plane_inliers, ring_candidates, stood_on

PLANE = {"min_samples": 10, "residual_m": 0.1, "trials": 20, "seed": 42}


def test_the_height_of_the_sensor_is_that_of_its_pose_on_the_vehicle() -> None:
    ego_from_lidar = np.eye(4)
    assert height_of_sensor_m(ego_from_lidar) is None
    ego_from_lidar[2, 3] = 1.84
    assert height_of_sensor_m(ego_from_lidar) == 1.84


def test_the_ring_lies_between_two_distances_and_close_to_the_expected_ground() -> None:
    xyz_m = np.array(
        [[3, 0, -1.84], [1.9, 0, -1.84], [0, 5.1, -1.84], [0, -4, -1.5], [3, 0, -1.39], [-3, 3, -9]], np.float32
    )
    assert ring_candidates(xyz_m, 1.84, 2.0, 5.0, 0.44).tolist() == [0, 3, 5]


def test_a_lower_sensor_expects_the_ground_nearer() -> None:
    xyz_m = np.array([[3, 0, -0.7], [3, 0, -0.3]], np.float32)
    assert ring_candidates(xyz_m, 1.0, 2.0, 5.0, 0.44).tolist() == [0]


def test_ground_is_stood_on_where_a_point_is_right_above_it_but_not_far_above() -> None:
    ground_m = np.array([[x, y, 0.1 * x - 1.8] for x in range(5) for y in range(5)], np.float32)  # a slope of 10 %
    foot, shelf, bridge = [1.1, 1, -0.7], [2, 3, -1.5], [4, 4, 3.0]
    found = stood_on(ground_m, np.concatenate([ground_m, [foot, shelf, bridge]]), 0.3, 0.25, 2.0)
    assert ground_m[found, :2].tolist() == [[1, 1]], "0.1 m above is still the ground, 4.4 m above is another storey"
    assert not stood_on(ground_m, ground_m, 0.3, 0.25, 2.0).any()
    assert len(stood_on(ground_m[:0], ground_m, 0.3, 0.25, 2.0)) == 0


@settings(max_examples=25)
@given(st.integers(0, 1000), st.floats(-0.1, 0.1), st.floats(-0.1, 0.1))
def test_the_plane_is_found_below_things_that_stand_on_it(seed: int, a: float, b: float) -> None:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(-5, 5, (300, 2))
    above = np.arange(300) < 30
    z = a * xy[:, 0] + b * xy[:, 1] - 1.8 + np.where(above, 0.4, rng.uniform(-0.02, 0.02, 300))
    inlier = plane_inliers(np.column_stack([xy, z]).astype(np.float32), **PLANE)  # type: ignore[arg-type]
    assert inlier is not None and inlier[~above].mean() > 0.95 and not inlier[above].all()


def test_too_few_points_are_no_plane() -> None:
    assert plane_inliers(np.zeros((9, 3), np.float32), **PLANE) is None  # type: ignore[arg-type]


def test_points_without_a_common_plane_are_no_plane() -> None:
    xyz_m = np.zeros((12, 3), np.float32)
    xyz_m[:, 2] = 100.0 * np.arange(12) ** 2
    assert plane_inliers(xyz_m, **PLANE) is None  # type: ignore[arg-type]
