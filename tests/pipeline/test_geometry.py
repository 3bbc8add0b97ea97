"""Poses and projection on cases small enough to check by eye."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from pipeline.geometry import (
    axis_distance,
    chained,
    check_intrinsics,
    compose_cam_from_lidar,
    inverse_pose,
    pose_matrix,
    project,
)

WIDTH, HEIGHT = 1600, 900
INTRINSICS = np.array([[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]])
IDENTITY = np.eye(4)

unit = st.floats(-1, 1)
quaternions = arrays(np.float64, 4, elements=unit).filter(lambda q: np.linalg.norm(q) > 0.1)
translations = arrays(np.float64, 3, elements=st.floats(-2000, 2000))


def test_a_quarter_turn_about_z_takes_x_to_y() -> None:
    half = np.sqrt(0.5)
    b_from_a = pose_matrix([half, 0, 0, half], [10, 20, 30])
    np.testing.assert_allclose(b_from_a @ [1, 0, 0, 1], [10, 21, 30, 1], atol=1e-12)
    np.testing.assert_allclose(pose_matrix([7, 0, 0, 7], [10, 20, 30]), b_from_a, atol=1e-12)


@given(quaternions, st.sampled_from([1.0, 1e-200, 1e200]))
def test_a_quaternion_gives_the_bits_that_scipy_gives_and_its_length_does_not_matter(
    q: npt.NDArray[Any], s: float
) -> None:
    expected = Rotation.from_quat(q, scalar_first=True).as_matrix()
    if s == 1:
        np.testing.assert_array_equal(pose_matrix(q, [0, 0, 0])[:3, :3], expected)
    np.testing.assert_allclose(pose_matrix(q * s, [0, 0, 0])[:3, :3], expected, atol=1e-14)


@given(st.lists(arrays(np.float64, (4, 4), elements=st.floats(-9, 9)), min_size=1, max_size=4))
def test_a_chain_is_the_product_from_left_to_right(matrices: list[npt.NDArray[Any]]) -> None:
    expected = matrices[0]
    for matrix in matrices[1:]:
        expected = expected @ matrix
    np.testing.assert_allclose(chained(*matrices), expected, atol=1e-9)


@given(quaternions, translations)
def test_an_inverse_undoes_its_pose(rotation: npt.NDArray[Any], translation: npt.NDArray[Any]) -> None:
    b_from_a = pose_matrix(rotation, translation)
    np.testing.assert_allclose(inverse_pose(b_from_a) @ b_from_a, IDENTITY, atol=1e-9)


@given(
    st.lists(st.builds(pose_matrix, quaternions, translations), min_size=4, max_size=4),
    arrays(np.float64, (3, 5), elements=st.floats(-80, 80)),
)
def test_the_composed_matrix_equals_the_chain_step_by_step(
    poses: list[npt.NDArray[Any]], xyz: npt.NDArray[Any]
) -> None:
    lidar, sweep, image, cam = poses

    def rotation(pose: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return pose[:3, :3]

    def translation(pose: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return pose[:3, 3:]

    ego = rotation(lidar) @ xyz + translation(lidar)
    world = rotation(sweep) @ ego + translation(sweep)
    ego_at_image = rotation(image).T @ (world - translation(image))
    in_cam = rotation(cam).T @ (ego_at_image - translation(cam))
    cam_from_lidar = compose_cam_from_lidar(
        ego_from_cam=cam, world_from_ego_at_image=image, world_from_ego_at_sweep=sweep, ego_from_lidar=lidar
    )
    composed = cam_from_lidar @ np.vstack([xyz, np.ones((1, 5))])
    np.testing.assert_allclose(composed[:3], in_cam, atol=1e-9)


def test_identity_poses_leave_a_point_where_it_is() -> None:
    cam_from_lidar = compose_cam_from_lidar(
        ego_from_cam=IDENTITY,
        world_from_ego_at_image=IDENTITY,
        world_from_ego_at_sweep=IDENTITY,
        ego_from_lidar=IDENTITY,
    )
    np.testing.assert_array_equal(cam_from_lidar, IDENTITY)


def test_a_point_on_the_optical_axis_lands_on_the_principal_point() -> None:
    seen = project(np.array([[0.0, 0, 5]]), IDENTITY, INTRINSICS, WIDTH, HEIGHT)
    assert (seen.u_px.tolist(), seen.v_px.tolist(), seen.depth_m.tolist()) == ([800.0], [450.0], [5.0])
    assert (seen.row_px.tolist(), seen.col_px.tolist()) == ([450], [800])
    assert axis_distance(seen.u_px, seen.v_px, INTRINSICS).tolist() == [0.0]


def test_points_behind_near_or_beside_the_camera_are_not_kept() -> None:
    xyz = np.array([[0, 0, -5], [0, 0, 0], [0, 0, 1], [0, 0, 1.001], [9, 0, 5], [0.1, 0.2, -0.0]])
    seen = project(xyz, IDENTITY, INTRINSICS, WIDTH, HEIGHT)
    assert seen.point.tolist() == [3]
    assert project(xyz, IDENTITY, INTRINSICS, WIDTH, HEIGHT, min_depth_m=0.0).point.tolist() == [2, 3]


def at_pixel(u: float, v: float) -> npt.NDArray[Any]:
    return np.array([[(u - 800) / 1000 * 8, (v - 450) / 1000 * 8, 8.0]])  # at 8 m, so that pixels of .5 stay exact


@pytest.mark.parametrize(
    ("u", "v", "kept"),
    [(0, 10, False), (0.25, 10, True), (1598.75, 10, True), (1599, 10, False),
     (10, 0, False), (10, 0.25, True), (10, 898.75, True), (10, 899, False)],
)  # fmt: skip
def test_the_border_pixels_are_kept_by_half(u: float, v: float, kept: bool) -> None:
    intrinsics = np.array([[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]])
    seen = project(at_pixel(u, v), IDENTITY, intrinsics, WIDTH, HEIGHT)
    assert len(seen.point) == kept


def test_pixels_are_rounded_half_to_even() -> None:
    intrinsics = np.array([[8.0, 0, 0], [0, 8, 0], [0, 0, 1]])
    xyz = np.array([[0.5, 1.5, 8], [2.5, 3.5, 8]])
    seen = project(xyz, IDENTITY, intrinsics, 10, 10)
    assert seen.u_px.tolist() == [0.5, 2.5]
    assert (seen.col_px.tolist(), seen.row_px.tolist()) == ([0, 2], [2, 4])


@given(arrays(np.float32, (40, 3), elements=st.floats(-50, 50, width=32)), quaternions, st.integers(2, 40))
def test_kept_points_are_in_order_in_front_and_in_the_image_and_the_others_are_not(
    xyz: npt.NDArray[Any], rotation: npt.NDArray[Any], width: int
) -> None:
    cam_from_lidar = pose_matrix(rotation, [0.1, -0.2, 0.3])
    intrinsics = np.array([[10.0, 0, 5], [0, 10, 6], [0, 0, 1]])
    seen = project(xyz, cam_from_lidar, intrinsics, width, 13)
    assert (np.diff(seen.point) > 0).all()
    assert (seen.depth_m > 1).all()
    assert ((seen.row_px >= 0) & (seen.row_px < 13) & (seen.col_px >= 0) & (seen.col_px < width)).all()
    expected = []
    for i, point in enumerate(xyz.astype(np.float64)):
        x, y, depth = cam_from_lidar[:3, :3] @ point + cam_from_lidar[:3, 3]
        if depth > 1 and 0 < 10 * x / depth + 5 < width - 1 and 0 < 10 * y / depth + 6 < 12:
            expected.append(i)
    # the other order of operations may move a point across a border by rounding
    assert len(set(expected) ^ set(seen.point.tolist())) <= 1


def test_a_long_sweep_is_projected_like_its_parts() -> None:
    xyz = np.random.default_rng(0).normal(size=(20_001, 3)).astype(np.float32) * 30
    whole = project(xyz, IDENTITY, INTRINSICS, WIDTH, HEIGHT)
    parts = [project(xyz[start : start + 7_000], IDENTITY, INTRINSICS, WIDTH, HEIGHT) for start in (0, 7_000, 14_000)]
    point = np.concatenate([part.point + 7_000 * i for i, part in enumerate(parts)])
    np.testing.assert_array_equal(whole.point, point)
    np.testing.assert_allclose(whole.u_px, np.concatenate([part.u_px for part in parts]), rtol=1e-12)


def test_points_that_are_not_finite_are_not_seen() -> None:
    xyz = np.array([[0, 0, 5], [np.nan, 0, 5], [0, 0, np.inf], [np.inf, 0, 5], [0, -np.inf, 5], [0, 0, 6]], np.float32)
    assert project(xyz, IDENTITY, INTRINSICS, WIDTH, HEIGHT).point.tolist() == [0, 5]


def test_an_empty_sweep_gives_an_empty_projection() -> None:
    seen = project(np.empty((0, 3), np.float32), IDENTITY, INTRINSICS, WIDTH, HEIGHT)
    types = {name: (str(array.dtype), array.shape) for name, array in vars(seen).items()}
    whole, real = ("int32", (0,)), ("float64", (0,))
    assert types == {
        "point": whole, "u_px": real, "v_px": real, "depth_m": real, "row_px": whole, "col_px": whole,
    }  # fmt: skip


def test_axis_distance_is_the_tangent_of_the_angle_to_the_optical_axis() -> None:
    xyz = np.array([[3.0, 4.0, 10.0], [-0.6, 0.8, 2.0]])
    skewed = np.array([[200.0, 7, 800], [0, 220, 450], [0, 0, 1]])
    seen = project(xyz, IDENTITY, skewed, WIDTH, HEIGHT)
    np.testing.assert_allclose(axis_distance(seen.u_px, seen.v_px, skewed), [0.5, 0.5], rtol=1e-12)


@pytest.mark.parametrize(
    ("intrinsics", "says"),
    [
        ([[1000, 0, 800], [0, 0, 450], [0, 0, 1]], "are singular; check the calibration"),
        ([[1000, 0, 800], [0, 1000, 450], [0, 0, 0]], r"last row of the intrinsics is \[0.0, 0.0, 0.0\]"),
        ([[np.nan, 0, 800], [0, 1000, 450], [0, 0, 1]], "expected 3 x 3 finite numbers"),
        ([[1000, 0, 800, 0], [0, 1000, 450, 0], [0, 0, 1, 0]], "expected 3 x 3 finite numbers"),
    ],
)
def test_unusable_intrinsics_are_an_error(intrinsics: list[list[float]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_intrinsics(intrinsics)
    with pytest.raises(ValueError, match=says):
        project(np.ones((1, 3)), IDENTITY, intrinsics, WIDTH, HEIGHT)


@pytest.mark.parametrize(
    ("rotation", "translation", "says"),
    [
        ([0, 0, 0, 0], [0, 0, 0], "expected a quaternion of 4 finite numbers"),
        ([1, 0, 0], [0, 0, 0], "expected a quaternion of 4 finite numbers"),
        ([1, 0, np.nan, 0], [0, 0, 0], "expected a quaternion of 4 finite numbers"),
        ([1, 0, 0, 0], [0, np.inf, 0], "expected 3 finite numbers in metres"),
        ([1, 0, 0, 0], [0, 0], "expected 3 finite numbers in metres"),
    ],
)
def test_unusable_poses_are_an_error(rotation: list[float], translation: list[float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pose_matrix(rotation, translation)


def test_unusable_arguments_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"points have shape \(1, 4\); expected \(n, 3\)"):
        project(np.ones((1, 4)), IDENTITY, INTRINSICS, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match="expected 4 x 4 finite numbers"):
        project(np.ones((1, 3)), IDENTITY[:3], INTRINSICS, WIDTH, HEIGHT)
    with pytest.raises(ValueError, match=r"min_depth_m is -1.0"):
        project(np.ones((1, 3)), IDENTITY, INTRINSICS, WIDTH, HEIGHT, min_depth_m=-1.0)
