"""What the doctor says of single sensors: sweeps, times, poses, and how cameras stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pipeline.checks.looks import Look, eye_of, motions
from pipeline.checks.mounting import check_mounting
from pipeline.checks.poses import Step, check_poses
from pipeline.checks.signals import Picture, View
from pipeline.checks.sweeps import faults_of
from pipeline.checks.times import check_times
from pipeline.frame import Camera, Frame
from pipeline.geometry import inverse_pose, pose_matrix

AXES = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])  # cam_from_lidar, the lidar's x ahead
MATRIX = np.array([[600.0, 0, 400], [0, 600, 300], [0, 0, 1]])
UP = np.array([0, 0, 1.0])


def street(seed: int = 0) -> npt.NDArray[Any]:
    """A road below the sensor, two walls along it, and posts."""
    rng = np.random.default_rng(seed)
    road = np.column_stack([rng.uniform(-30, 30, 8000), rng.uniform(-6, 6, 8000), rng.normal(-1.8, 0.02, 8000)])
    walls = np.column_stack([rng.uniform(-30, 30, 3000), rng.choice([-7.03, 7.02], 3000), rng.uniform(-1.8, 4, 3000)])
    x, y = rng.uniform(-30, 30, 40), rng.uniform(-6, 6, 40)
    posts = np.column_stack([np.repeat(x, 25), np.repeat(y, 25), np.tile(np.linspace(-1.8, 1, 25), 40)])
    return np.asarray(np.concatenate([road, walls, posts]), np.float32)


def faults(xyz_m: npt.NDArray[Any], intensity: npt.NDArray[Any], up: npt.NDArray[Any] = UP) -> list[str]:
    return [fault.kind for fault in faults_of(xyz_m, intensity, up)]


LIGHT = np.random.default_rng(1).uniform(0, 1, 12000).astype(np.float32)


def test_a_right_sweep_has_no_fault() -> None:
    assert faults(street(), LIGHT) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda xyz: xyz * 1000, "units"),  # millimetres
        (lambda xyz: xyz * 0.01, "units"),
        (lambda xyz: xyz + np.array([4e5, 5e6, 0], np.float32), "units"),  # UTM
        (lambda xyz: xyz[:, [0, 2, 1]], "ground"),  # y up
        (lambda xyz: np.concatenate([xyz[:4000], 0 * xyz[4000:]]), "zero"),
        (lambda xyz: np.round(xyz), "columns"),
        (lambda xyz: np.concatenate([xyz[:6000], xyz[:6000]]), "twice"),
    ],
)
def test_points_that_are_no_metres_around_the_sensor_are_told(change: object, kind: str) -> None:
    assert kind in faults(change(street()), LIGHT)  # type: ignore[operator]


@given(are=st.integers(3, 6), read_as=st.sampled_from([4, 5]), scale=st.sampled_from([1.0, 255.0]))
def test_every_wrong_number_of_columns_is_told(are: int, read_as: int, scale: float) -> None:
    n = 12000
    extra = np.column_stack([np.round(LIGHT * scale), np.arange(n) % 32, np.linspace(0, 0.1, n)])
    flat = np.column_stack([street(), extra])[:, :are].astype(np.float32).ravel()
    rows = flat[: len(flat) // read_as * read_as].reshape(-1, read_as)
    told = faults(rows[:, :3], rows[:, 3])
    assert told == [] if are == read_as else "columns" in told


def test_intensity_that_says_nothing_or_goes_far_is_told() -> None:
    assert faults(street(), np.zeros(12000, np.float32)) == ["intensity"]
    assert faults(street(), LIGHT * 60000) == ["intensity"]
    assert faults(street()[:500], LIGHT[:500]) == ["few"]


# -- times


def frame(name: str, time_us: int, x_m: float = 0, image_us: int | None = None, scene: str = "a") -> Frame:
    pose = pose_matrix([1, 0, 0, 0], [x_m, 0, 0])
    taken = time_us if image_us is None else image_us
    camera = Camera("front", f"{name}c", "c.png", taken, MATRIX, AXES, width_px=800, height_px=600)
    return Frame(name, scene, time_us, name, f"{name}.bin", None, np.eye(4), pose, (camera,))


def told(frames: Sequence[Frame]) -> str:
    return "\n".join(f"{finding.level}: {finding.text}" for finding in check_times(frames))


@pytest.mark.parametrize(("unit", "word"), [(1e-3, "milliseconds"), (1e3, "nanoseconds"), (1, ""), (1e-6, "seconds")])
def test_times_of_another_unit_are_named(unit: float, word: str) -> None:
    step_us = 3_000_000 if word == "seconds" else 100_000
    text = told([frame(str(i), round((10**12 + i * step_us) * unit), x_m=i * 0.5) for i in range(5)])
    assert (f"they look like {word}" in text and "problem" in text) if word else text.startswith("ok")


def test_times_that_are_all_the_same_go_back_or_are_far_from_the_image() -> None:
    assert "note" in told([frame(str(i), 0, x_m=i) for i in range(3)])
    assert "go back" in told([frame("0", 0), frame("1", 500_000), frame("2", 400_000)])
    late = told([frame(str(i), i * 100_000, x_m=i, image_us=i * 100_000 + 400_000) for i in range(5)])
    assert "front: images are 0.4 s later than sweeps" in late and "problem" in late


def test_a_vehicle_that_flies_or_never_moves_is_told() -> None:
    assert "1000 m/s" in told([frame(str(i), i * 100_000, x_m=i * 100) for i in range(5)])
    assert "note: the pose of the vehicle is the same" in told([frame(str(i), i * 100_000) for i in range(5)])


def test_motion_is_that_of_the_frames_around() -> None:
    moving = motions([frame(str(i), i * 100_000, x_m=i) for i in range(3)] + [frame("9", 0, scene="b")])
    assert sorted(moving) == ["0", "1", "2"] and moving["1"].speed_m_s == pytest.approx(10)
    point = moving["1"].later_from_now([0.5])[0] @ [5, 0, 0, 1]  # the LiDAR has driven 5 m by then
    np.testing.assert_allclose(point, [0, 0, 0, 1], atol=1e-9)


# -- poses


def steps(told_pose: npt.NDArray[Any], is_pose: npt.NDArray[Any]) -> list[Step]:
    """Two sweeps of a street, taken from places that `is_pose` tells apart, with frames that say `told_pose`."""
    before = street(0).astype(np.float64)
    back = inverse_pose(is_pose)
    after = before @ back[:3, :3].T + back[:3, 3]
    later = replace(frame("1", 100_000), world_from_lidar=told_pose)
    return [Step(frame("0", 0), later, before, after)]


def test_sweeps_that_meet_by_their_poses_are_fine_and_others_are_told() -> None:
    is_pose = pose_matrix([np.cos(0.02), 0, 0, np.sin(0.02)], [1.5, 0.1, 0])
    [fine] = check_poses(steps(is_pose, is_pose))
    assert fine.level == "ok"
    [wrong] = check_poses(steps(inverse_pose(is_pose), is_pose))
    assert wrong.level == "problem" and "inverted" in wrong.text


# -- how cameras stand


def test_a_sensor_on_the_ground_is_taken_to_be_amid_the_cameras() -> None:
    """The road is 1.8 m below the LiDAR; in the frame of the vehicle it is at height 0, and the camera 1.5 m above."""
    here = frame("0", 0)
    np.testing.assert_array_equal(eye_of(here, street()), [0, 0, 0])
    pose = AXES.copy()
    pose[1, 3] = 1.5
    raised = replace(here, cameras=(replace(here.cameras[0], cam_from_lidar=pose),))
    np.testing.assert_allclose(eye_of(raised, street() + np.array([0, 0, 1.8], np.float32)), [0, 0, 1.5])


def looks(
    cam_from_lidar: npt.NDArray[Any], matrix: npt.NDArray[Any] = MATRIX, size: tuple[int, int] = (800, 600)
) -> list[tuple[Look, View]]:
    camera = Camera("front", "c", "c.png", 0, matrix, cam_from_lidar, width_px=size[0], height_px=size[1])
    empty = Picture(np.zeros((2, 60, 80), np.float32), 10, *size)
    view = View(empty, (), camera)  # type: ignore[arg-type]
    here = replace(frame("0", 0), cameras=(camera,))
    return [(Look(here, street(), LIGHT, (view,), None), view)]


def problems(pairs: list[tuple[Look, View]], aligned: bool = False) -> str:
    found = check_mounting("front", pairs, aligned)
    return "\n".join(finding.text for finding in found if finding.level == "problem")


def test_a_right_camera_has_no_problem_whichever_way_it_looks() -> None:
    for yaw in range(0, 360, 30):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("z", yaw, degrees=True).as_matrix()
        assert problems(looks(AXES @ turn)) == ""


def test_an_inverted_matrix_is_told_with_its_angle() -> None:
    assert "the LiDAR's up lies 90 degrees off the image's up" in problems(looks(inverse_pose(AXES)))
    assert "up lies" not in problems(looks(inverse_pose(AXES)), aligned=True)


@given(scale=st.floats(0.25, 4).filter(lambda s: not 0.75 <= s <= 1.3))
def test_a_camera_matrix_of_another_size_of_image_is_told(scale: float) -> None:
    assert "principal point" in problems(looks(AXES, MATRIX * [[scale], [scale], [1]]))


def test_a_crop_is_no_problem() -> None:
    matrix = MATRIX.copy()
    matrix[1, 2] = 150  # the upper half of the image was cut off
    assert problems(looks(AXES, matrix, (800, 450))) == ""


def test_a_camera_that_looks_where_no_point_is_sees_too_few() -> None:
    up = np.eye(4)
    up[:3, :3] = Rotation.from_euler("x", -88, degrees=True).as_matrix()
    assert "sees 0.00% of a sweep's points" in problems(looks(up @ AXES))
