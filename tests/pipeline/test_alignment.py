"""Marks of a sweep against an image, on a scene that can be worked out by hand: posts before a wall."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.transform import Rotation

from pipeline.checks.alignment import ALIGNED, best_turns, fit_of, measure, turned
from pipeline.checks.signals import View, find_contrast, find_ends, find_layers, find_marks
from pipeline.frame import Camera

WIDTH_PX, HEIGHT_PX, FOCAL_PX = 400, 200, 300.0
AXES = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # cam_from_lidar, the lidar's x ahead
UP = np.array([0, 0, 1.0])
EYE = np.zeros(3)


def posts(azimuth: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Whether a post stands there; unevenly, so that no move puts posts on other posts."""
    degrees = np.degrees(azimuth)
    there = [
        abs(degrees - middle) < wide
        for middle, wide in ((-24, 1.5), (-9, 0.6), (3, 5), (20, 2), (70, 1), (110, 4), (-80, 2), (-150, 3))
    ]
    return np.asarray(np.any(there, axis=0))


def sweep_at(step_deg: float = 0.2) -> npt.NDArray[Any]:
    """A spinning LiDAR with 21 rings: posts at 10 m, a hand's breadth to two metres wide, and a wall at 40 m."""
    azimuth, elevation = np.meshgrid(np.radians(np.arange(-180, 180, step_deg)), np.radians(np.arange(-15, 6.0)))
    direction = np.stack(
        [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], axis=-1
    )
    return np.asarray(direction.reshape(-1, 3) * np.where(posts(azimuth.ravel()), 10, 40)[:, None], np.float32)


@pytest.fixture(scope="module")
def sweep() -> npt.NDArray[Any]:
    return sweep_at()


@pytest.fixture(scope="module")
def view(sweep: npt.NDArray[Any]) -> View:
    """What the camera sees of it: dark posts on a bright wall, to the left for positive azimuth."""
    azimuth = -np.arctan((np.arange(WIDTH_PX) - WIDTH_PX / 2) / FOCAL_PX)
    row = np.where(posts(azimuth), 40, 200).astype(np.uint8)
    rgb = np.broadcast_to(row[None, :, None], (HEIGHT_PX, WIDTH_PX, 3)).copy()
    matrix = np.array([[FOCAL_PX, 0, WIDTH_PX / 2], [0, FOCAL_PX, HEIGHT_PX / 2], [0, 0, 1]])
    camera = Camera("ahead", "t", "t.jpg", 0, matrix, AXES, width_px=WIDTH_PX, height_px=HEIGHT_PX)
    return View(find_layers(rgb), find_marks(sweep, np.zeros(len(sweep), np.float32), EYE), camera)


def yawed(view: View, degrees: float) -> View:
    """The view with a pose that is turned to the right: what it sees seems to lie further to the left."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("y", -degrees, degrees=True).as_matrix()
    return replace(view, camera=replace(view.camera, cam_from_lidar=turn @ view.camera.cam_from_lidar))


def test_ends_of_things_are_the_near_points_beside_a_gap(sweep: npt.NDArray[Any]) -> None:
    ends = find_ends(sweep, EYE)
    assert set(np.round(np.linalg.norm(ends.xyz_m, axis=1))) == {10}
    assert len(ends.xyz_m) == 8 * 2 * 21  # both sides of each post, in every ring
    assert len(find_ends(sweep[:2], EYE).xyz_m) == 0


def test_contrast_is_what_returns_more_or_less_than_its_surroundings(sweep: npt.NDArray[Any]) -> None:
    light = np.full(len(sweep), 4.0, np.float32)
    assert len(find_contrast(sweep, light).xyz_m) == 0  # the same everywhere says nothing
    light[1000] = 100
    marks = find_contrast(sweep, light)
    np.testing.assert_array_equal(marks.xyz_m[marks.weight.argmax()], sweep[1000])


def test_a_right_calibration_scores_where_it_is(view: View) -> None:
    fit = fit_of([view])
    assert fit.aligned and abs(fit.shift_deg[0]) < 0.4


@pytest.mark.parametrize("degrees", [-130.0, -20.0, 64.0])
def test_a_turn_of_any_size_is_found_with_its_angle(view: View, degrees: float) -> None:
    wrong = yawed(view, degrees)
    assert not fit_of([wrong]).aligned
    # a pose that is turned to the right is mended by a turn to the left
    fits = [(fit_of([turned(wrong, UP, *guess)]).score, guess[0]) for guess in best_turns([wrong], UP)]
    best, right = max(fits)
    assert best > ALIGNED and abs((right + degrees + 180) % 360 - 180) < 0.5


def test_measuring_no_change_is_what_the_others_are_compared_with(view: View) -> None:
    poses = np.stack([view.camera.cam_from_lidar, yawed(view, 5).camera.cam_from_lidar])
    own, wrong = measure(view, poses, np.stack([view.camera.intrinsics] * 2))
    assert own[0] > 1 and wrong[0] < 0.5 * own[0]  # edges
    assert own[1] == wrong[1] == 0  # no intensity, no brightness


def test_a_camera_that_sees_nothing_fits_nowhere(view: View) -> None:
    behind = replace(view.camera, cam_from_lidar=np.diag([1.0, 1, -1, 1]) @ np.diag([1.0, 1, 1, 1]) @ AXES)
    first, second = (replace(one, xyz_m=one.xyz_m[:0], weight=one.weight[:0]) for one in view.marks)
    empty = replace(view, camera=behind, marks=(first, second))
    fit = fit_of([empty])
    assert (fit.score, fit.best) == (0, 0) and not fit.aligned
