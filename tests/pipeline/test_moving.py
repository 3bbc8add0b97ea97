"""Rolling shutters, fisheyes that see behind themselves, and points that have times of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.linalg import expm
from scipy.optimize import brentq

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from manifests.sections.tables import ProjectConfig
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.motion import motion_of
from pipeline.frame import Frame, FrameError
from pipeline.geometry import moved_along, project
from pipeline.lenses import DIRECTIONS, GLOBAL, Lens, Shutter, lens_in, turning_angle
from pipeline.stages.project import visible_pairs

MATRIX = np.array([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
SIZE = 640, 480
MOTION = st.tuples(*[st.floats(-0.6, 0.6)] * 3, *[st.floats(-20, 20)] * 3).map(np.array)


def pose_after(motion: npt.NDArray[Any], seconds: float) -> npt.NDArray[Any]:
    """Return the pose (4, 4) of a body so many seconds later in its frame now, by the matrix exponential."""
    wx, wy, wz, vx, vy, vz = motion
    return np.asarray(expm(np.array([[0, -wz, wy, vx], [wz, 0, -wx, vy], [-wy, wx, 0, vz], [0, 0, 0, 0]]) * seconds))


@settings(max_examples=40)
@given(motion=MOTION, seconds=st.floats(-0.2, 0.2), seed=st.integers(0, 999))
def test_points_are_brought_along_as_the_matrix_exponential_has_it(
    motion: npt.NDArray[Any], seconds: float, seed: int
) -> None:
    points = np.random.default_rng(seed).uniform(-50, 50, (3, 7))
    expected = (pose_after(motion, seconds) @ np.vstack([points, np.ones(7)]))[:3]
    np.testing.assert_allclose(moved_along(motion, np.full(7, seconds), points), expected, atol=1e-10)
    if abs(seconds) > 0.01:
        np.testing.assert_allclose(motion_of(pose_after(motion, seconds), seconds), motion, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(motion=MOTION, direction=st.sampled_from(DIRECTIONS), seed=st.integers(0, 999))
def test_a_point_lands_in_the_row_that_was_read_out_when_it_was_seen_there(
    motion: npt.NDArray[Any], direction: str, seed: int
) -> None:
    """The row is found by bisection here, of the place at a time less the row of that time."""
    readout_s = 0.033
    rng = np.random.default_rng(seed)
    xyz = np.column_stack([rng.uniform(-30, 30, 60), rng.uniform(-20, 20, 60), rng.uniform(12, 60, 60)])
    shutter = Shutter(direction, readout_s, tuple(motion.tolist()))
    found = project(xyz, np.eye(4), MATRIX, *SIZE, shutter=shutter)
    axis = 1 if direction in ("down", "up") else 0
    sign = 1 if direction in ("down", "right") else -1

    def at(point: npt.NDArray[Any], seconds: float) -> npt.NDArray[Any]:
        x, y, z, _ = np.linalg.inv(pose_after(motion, seconds)) @ [*point, 1]
        return np.array([500 * x / z + 320, 500 * y / z + 240])

    def late(seconds: float, point: npt.NDArray[Any]) -> float:
        return float(at(point, seconds)[axis] / (SIZE[axis] - 1) - 0.5 - sign * seconds / readout_s)

    expected = {}
    for number, point in enumerate(xyz):
        if late(-readout_s / 2, point) * late(readout_s / 2, point) < 0:
            uv = at(point, brentq(late, -readout_s / 2, readout_s / 2, args=(point,), xtol=1e-12))
            if (uv > 0).all() and (uv < np.array(SIZE) - 1).all():
                expected[number] = uv
    seen = dict(zip(found.point.tolist(), np.column_stack([found.u_px, found.v_px]), strict=True))
    assert seen.keys() == expected.keys() != set()
    assert max(np.abs(seen[one] - expected[one]).max() for one in seen) < 0.01


def test_a_shutter_of_a_camera_that_stands_still_changes_no_bit() -> None:
    xyz = np.random.default_rng(0).uniform(-40, 40, (500, 3))
    plain, rolled = (project(xyz, np.eye(4), MATRIX, *SIZE, shutter=one) for one in (GLOBAL, Shutter("down", 0.03)))
    assert all(values.tobytes() == getattr(rolled, name).tobytes() for name, values in vars(plain).items())


WIDE = (0.02, -0.005, 0.001, -0.0001)


def test_a_fisheye_of_220_degrees_sees_as_far_behind_itself_and_calls_distance_depth() -> None:
    rng = np.random.default_rng(1)
    xyz = rng.normal(size=(4000, 3))
    xyz *= (rng.uniform(0.5, 40, 4000) / np.linalg.norm(xyz, axis=1))[:, None]
    matrix, size = np.array([[180.0, 0, 400], [0, 180, 400], [0, 0, 1]]), (801, 801)
    lens = Lens("fisheye", WIDE, np.radians(220))
    found = project(xyz, np.eye(4), matrix, *size, min_depth_m=1.0, lens=lens)
    angle = np.arccos(xyz[:, 2] / np.linalg.norm(xyz, axis=1))
    bent = angle + sum(k * angle ** (3 + 2 * i) for i, k in enumerate(WIDE))
    around = np.arctan2(xyz[:, 1], xyz[:, 0])
    uv = np.column_stack([400 + 180 * bent * np.cos(around), 400 + 180 * bent * np.sin(around)])
    assert turning_angle(lens) > np.radians(110)
    expected = (angle <= np.radians(110)) & (np.linalg.norm(xyz, axis=1) > 1) & ((uv > 0) & (uv < 800)).all(axis=1)
    assert found.point.tolist() == np.flatnonzero(expected).tolist()
    assert (angle[found.point] > np.radians(95)).sum() > 100, "points behind the plane of the camera are among them"
    np.testing.assert_allclose(np.column_stack([found.u_px, found.v_px]), uv[found.point], atol=1e-6)
    np.testing.assert_allclose(found.depth_m, np.linalg.norm(xyz[found.point], axis=1))
    ahead = xyz[found.point[angle[found.point] < np.radians(85)]]
    with_cv, _ = cv2.fisheye.projectPoints(
        np.ascontiguousarray(ahead[:, None]), np.zeros(3), np.zeros(3), matrix, np.array(WIDE)
    )
    np.testing.assert_allclose(with_cv[:, 0], uv[found.point][angle[found.point] < np.radians(85)], atol=1e-6)


def test_without_an_angle_of_view_a_fisheye_sees_nothing_behind_itself_and_a_narrow_one_ends_it() -> None:
    behind = np.array([[5.0, 0, -0.5], [0.5, 0, 5.0], [5.0, 0, 5.0]])
    matrix, size = np.array([[180.0, 0, 400], [0, 180, 400], [0, 0, 1]]), (801, 801)

    def seen(field_deg: float) -> list[int]:
        lens = Lens("fisheye", WIDE, np.radians(field_deg))
        found: list[int] = project(behind, np.eye(4), matrix, *size, lens=lens).point.tolist()
        return found

    assert (seen(0), seen(220), seen(60)) == ([1, 2], [0, 1, 2], [1])


def test_a_lens_turns_back_where_its_polynomial_does_whatever_view_is_stated() -> None:
    lens = Lens("fisheye", (0.0, -0.04, 0, 0), 2 * np.pi)
    most = turning_angle(lens)
    around = np.linspace(0.05, 3.1, 400)
    xyz = 10.0 * np.column_stack([np.sin(around), np.zeros(400), np.cos(around)]).astype(np.float64)
    matrix, size = np.array([[100.0, 0, 400], [0, 100, 400], [0, 0, 1]]), (801, 801)
    assert project(xyz, np.eye(4), matrix, *size, lens=lens).point.tolist() == np.flatnonzero(around <= most).tolist()
    assert lens_in("fisheye", np.array(lens.padded)) == lens
    assert lens_in("fisheye", np.array(Lens("fisheye", WIDE).padded)) == Lens("fisheye", WIDE)


# -- in a scene -------------------------------------------------------------------------------------------------------

STEP_S = 0.1


@pytest.fixture
def drive(tmp_path: Path) -> Callable[..., FolderDataset]:
    """Writes three frames of a vehicle in constant motion (6,), camera at the vehicle's origin, and opens them."""

    def make(
        motion: npt.NDArray[Any],
        camera: str = "",
        points: Callable[[int], npt.NDArray[Any]] | None = None,
        posed: bool = True,
        **data: Any,
    ) -> FolderDataset:
        scene = tmp_path / "logs/drive"
        for part in ("points", "front"):
            (scene / part).mkdir(parents=True, exist_ok=True)
        lines = ['points = "points/{frame}.npy"', "[[camera]]", 'name = "front"', 'images = "front/{frame}.png"']
        lines += [f"intrinsics = {MATRIX.tolist()}", f"ego_from_cam = {np.eye(4).tolist()}", camera]
        for i in range(3):
            np.save(scene / f"points/{i}.npy", points(i) if points else np.ones((5, 4), np.float32))
            Image.new("RGB", SIZE).save(scene / f"front/{i}.png")
            lines += ["[[frame]]", f'name = "{i}"', f"timestamp_us = {1_700_000_000_000_000 + 100_000 * i}"]
            pose = pose_after(motion, STEP_S * i).tolist()
            lines += [f"world_from_ego = {pose}"] if posed else []
        (scene / "scene.toml").write_text("\n".join(lines) + "\n")
        return FolderDataset(DataConfig(dataset="folder", root=str(scene.parent), **data))

    return make


TURNING = np.array([0.01, -0.02, 0.4, 14.0, 0.3, -0.1])


def test_a_readout_in_the_description_of_a_scene_moves_pairs_by_the_motion_that_poses_tell(
    drive: Callable[..., FolderDataset],
) -> None:
    [_, frame, _] = drive(TURNING, 'readout_s = 0.03\nreadout = "up"').frames()
    [camera] = frame.cameras
    np.testing.assert_allclose(camera.shutter.motion, TURNING, atol=1e-6)
    assert (camera.shutter.direction, camera.shutter.readout_s) == ("up", 0.03)
    [kept] = Frame.of(frame.index()).cameras
    assert kept.shutter == camera.shutter, "table index keeps it"
    xyz = np.random.default_rng(2).uniform([-20, -15, 5], [20, 15, 40], (400, 3)).astype(np.float32)
    found = visible_pairs(sized(frame), xyz, ProjectConfig())
    expected = project(xyz, np.eye(4), MATRIX, *SIZE, shutter=Shutter("up", 0.03, tuple(TURNING)))
    assert found.point.tolist() == expected.point.tolist()
    np.testing.assert_allclose(found.v_px, expected.v_px, atol=1e-3)
    at_once = visible_pairs(sized(next(drive(TURNING).frames())), xyz, ProjectConfig())
    both = np.intersect1d(found.point, at_once.point, return_indices=True)
    assert np.abs(found.u_px[both[1]] - at_once.u_px[both[2]]).max() > 2, "or nothing was tested"


def sized(frame: Frame) -> Frame:
    """Return a listed frame with the sizes that stage `index` fills in."""
    from dataclasses import replace

    cameras = tuple(replace(one, width_px=SIZE[0], height_px=SIZE[1]) for one in frame.cameras)
    return replace(frame, cameras=cameras)


def test_a_rolling_shutter_without_poses_is_said(
    drive: Callable[..., FolderDataset], caplog: pytest.LogCaptureFixture
) -> None:
    frames = list(drive(TURNING, "readout_s = 0.03", posed=False).frames())
    assert not any(one.shutter.rolls for frame in frames for one in frame.cameras)
    assert any("3 images of rolling shutters" in one for one in caplog.messages), caplog.messages


@pytest.mark.parametrize(
    ("camera", "sentence"),
    [
        ('readout = "down"', "readout, but no readout_s"),
        ("readout_s = 33", "readout_s is 33; expected seconds"),
        ('readout_s = 0.03\nreadout = "sideways"', "expected one of down, up, right, left"),
        ('readout_s = "fast"', "readout_s is 'fast'; expected a number"),
        ("field_deg = 190", "190 degrees of a pinhole; it is stated of a fisheye alone"),
        ('lens = "fisheye"\ndistortion = [0, 0, 0, 0]\nfield_deg = 400', "at most 360"),
    ],
)
def test_what_is_no_shutter_and_no_angle_is_an_error(
    drive: Callable[..., FolderDataset], camera: str, sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        list(drive(TURNING, camera).frames())


UNITS = {"s": 1e-6, "ms": 1e-3, "us": 1.0, "ns": 1e3}


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize(
    ("kind", "of_clock"), [("f4", False), ("f8", False), ("i8", False), ("i8", True), ("f8", True)]
)
def test_points_with_times_of_their_own_are_brought_to_the_time_of_their_sweep(
    drive: Callable[..., FolderDataset], unit: str, kind: str, of_clock: bool
) -> None:
    """The world stands still, the LiDAR moves: what it measured point by point is what it would have seen at once."""
    if kind == "i8" and unit in ("s", "ms"):
        pytest.skip("whole milliseconds tell little")
    world = np.random.default_rng(3).uniform(-40, 40, (200, 3))
    apart_us = np.random.default_rng(4).integers(-50_000, 50_000, 200)

    def measured(i: int) -> npt.NDArray[Any]:
        rows = np.zeros(201, [("x", "f8"), ("y", "f8"), ("z", "f8"), ("intensity", "f4"), ("T", kind)])
        for row, point, after_us in zip(rows, world, apart_us, strict=False):
            lidar_from_world = np.linalg.inv(pose_after(TURNING, STEP_S * i + after_us / 1e6))
            row["x"], row["y"], row["z"], _ = lidar_from_world @ [*point, 1]
        start = 1_700_000_000_000_000 + 100_000 * i if of_clock else 0
        times_us = apart_us + start
        rows["T"][:200] = times_us * int(UNITS[unit]) if kind == "i8" else times_us * UNITS[unit]
        return rows  # the last is a pulse that came back from nothing, of no time

    dataset = drive(TURNING, points=measured, time_column="T", time_column_unit=unit)
    for i, frame in enumerate(dataset.frames()):
        cloud = dataset.read_cloud(Frame.of(frame.index()))
        at_once = (np.linalg.inv(pose_after(TURNING, STEP_S * i)) @ np.vstack([world.T, np.ones(200)]))[:3].T
        np.testing.assert_allclose(cloud.xyz_m[:200], at_once, atol=2e-3 if of_clock else 1e-4)
        assert cloud.xyz_m[200].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("column", "unit", "sentence"),
    [
        ("T", "ms", "expected|from its own time; a sweep takes 0.05 to 0.2 s"),
        ("when", "s", "it has no column when, which data.time_column names; it has x, y, z, intensity, t"),
    ],
)
def test_times_that_cannot_be_those_of_a_sweep_are_an_error(
    drive: Callable[..., FolderDataset], column: str, unit: str, sentence: str
) -> None:
    def measured(_: int) -> npt.NDArray[Any]:
        rows = np.ones(50, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4"), ("T", "f8")])
        rows["T"] = np.linspace(0, 99_000, 50)  # microseconds
        return rows

    dataset = drive(TURNING, points=measured, time_column=column, time_column_unit=unit)
    with pytest.raises(FrameError, match=sentence):
        dataset.read_cloud(next(dataset.frames()))


def test_times_of_points_without_poses_around_are_an_error_and_no_columns_of_coordinates_are_times(
    drive: Callable[..., FolderDataset],
) -> None:
    rows = np.ones(50, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("intensity", "f4"), ("t", "f8")])
    dataset = drive(TURNING, points=lambda _: rows, posed=False, time_column="t", time_column_unit="us")
    with pytest.raises(FrameError, match="no poses around this sweep tell how the vehicle moved"):
        dataset.read_cloud(next(dataset.frames()))
    with pytest.raises(ValueError, match="time_column"):
        DataConfig(root="x", time_column="intensity")
