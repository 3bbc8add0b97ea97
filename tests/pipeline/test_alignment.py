"""Edges in depth against edges in an image, on a scene that can be worked out by hand: one post before a wall."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from pipeline.checks.alignment import ALIGNED, correlate, find_edges, find_ends, judge
from pipeline.frame import Camera

WIDTH_PX, HEIGHT_PX, FOCAL_PX = 400, 200, 300.0
AXES = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # cam_from_lidar, the lidar's x ahead


@pytest.fixture
def camera() -> Camera:
    intrinsics = np.array([[FOCAL_PX, 0, WIDTH_PX / 2], [0, FOCAL_PX, HEIGHT_PX / 2], [0, 0, 1]])
    return Camera("ahead", "t", "t.jpg", 0, intrinsics, AXES, width_px=WIDTH_PX, height_px=HEIGHT_PX)


@pytest.fixture
def sweep() -> np.ndarray:
    """A spinning LiDAR with 21 rings: posts at 10 m, a hand's breadth to two metres wide, and a wall at 40 m."""
    azimuth, elevation = np.meshgrid(np.radians(np.arange(-40, 40, 0.2)), np.radians(np.arange(-15, 6.0)))
    direction = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )
    return (direction.reshape(-1, 3) * np.where(posts(azimuth.ravel()), 10, 40)[:, None]).astype(np.float32)


def posts(azimuth: np.ndarray) -> np.ndarray:
    """Whether a post stands there; unevenly, so that no move puts posts on other posts."""
    degrees = np.degrees(azimuth)
    return np.logical_or.reduce(
        [abs(degrees - middle) < wide for middle, wide in ((-24, 1.5), (-9, 0.6), (3, 5), (20, 2))]
    )


@pytest.fixture
def picture() -> np.ndarray:
    """What the camera sees of it: dark posts on a bright wall, to the left for positive azimuth."""
    azimuth = -np.arctan((np.arange(WIDTH_PX) - WIDTH_PX / 2) / FOCAL_PX)
    row = np.where(posts(azimuth), 40, 200).astype(np.uint8)
    return np.broadcast_to(row[None, :, None], (HEIGHT_PX, WIDTH_PX, 3)).copy()


def turned(camera: Camera, degrees: float) -> Camera:
    """The camera with a pose that is turned to the right: what it sees seems to lie further to the left."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", -degrees, degrees=True).as_matrix()
    return replace(camera, cam_from_lidar=turn @ camera.cam_from_lidar)


def test_ends_of_things_are_the_near_points_beside_a_gap(sweep: np.ndarray) -> None:
    ends = find_ends(sweep)
    assert set(np.round(np.linalg.norm(ends.xyz_m, axis=1))) == {10}
    assert len(ends.xyz_m) == 4 * 2 * 21  # both sides of each post, in every ring
    assert len(find_ends(sweep[:2]).xyz_m) == 0


def test_a_right_calibration_scores_where_it_is(sweep: np.ndarray, picture: np.ndarray, camera: Camera) -> None:
    edges = find_edges(picture)
    fit = judge([correlate(edges, find_ends(sweep), camera, camera.cam_from_lidar)], edges.cell_px, camera.intrinsics)
    assert fit.aligned and abs(fit.shift_deg[0]) < 0.4


@pytest.mark.parametrize("degrees", [-4.0, 3.0])
def test_a_turned_camera_fits_as_far_off_as_it_was_turned(
    sweep: np.ndarray, picture: np.ndarray, camera: Camera, degrees: float
) -> None:
    edges, wrong = find_edges(picture), turned(camera, degrees)
    fit = judge([correlate(edges, find_ends(sweep), wrong, wrong.cam_from_lidar)], edges.cell_px, camera.intrinsics)
    assert not fit.aligned and fit.best > ALIGNED
    assert fit.shift_deg[0] == pytest.approx(degrees, abs=1)


def test_a_camera_that_sees_nothing_fits_nowhere(sweep: np.ndarray, picture: np.ndarray, camera: Camera) -> None:
    edges, behind = find_edges(picture), np.diag([1.0, 1, -1, 1]) @ camera.cam_from_lidar
    fit = judge([correlate(edges, find_ends(sweep), camera, behind)], edges.cell_px, camera.intrinsics)
    assert (fit.score, fit.best) == (0, 0) and not fit.aligned
