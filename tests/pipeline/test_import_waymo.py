"""Waymo's version 2 as scenes: components as documented, written here, from a known scene of points."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from manifests.config import ConfigError
from pipeline.__main__ import app
from pipeline.exchange.imports.waymo import import_waymo
from pipeline.frame import read_image
from pipeline.lenses import Lens
from tests.pipeline.test_imports import frames_of

NAME = "10017090168044687777_6380_000_6400_000"
STAMPS = (1_550_083_467_346_370, 1_550_083_467_446_370)
HEIGHT, WIDTH = 6, 40
LOW, HIGH = -0.3, 0.05
COMPONENTS = ["lidar", "lidar_calibration", "lidar_pose", "camera_image", "camera_calibration", "vehicle_pose"]


def pose(turn: tuple[float, float, float], place: tuple[float, float, float]) -> npt.NDArray[Any]:
    """Return a pose (4, 4) by roll, pitch, yaw in radians, and place."""
    found = np.eye(4)
    found[:3, :3] = Rotation.from_euler("xyz", turn).as_matrix()
    found[:3, 3] = place
    return found


EGO_FROM_LASER = {1: pose((0.01, -0.02, 2.6), (1.4, 0.0, 2.2)), 2: pose((0, 0, 0.1), (4.0, 0.0, 0.7))}
WORLD_FROM_EGO = {STAMPS[0]: pose((0.01, 0.02, 0.7), (100, -50, 3)), STAMPS[1]: pose((0, 0.02, 0.72), (101, -49.2, 3))}
EGO_FROM_CAM = pose((0, 0.01, 0.02), (1.5, 0.1, 2.1))


def write(root: Path, component: str, rows: list[dict[str, Any]]) -> None:
    (root / component).mkdir(parents=True, exist_ok=True)
    keyed = [{"key.segment_context_name": NAME} | row for row in rows]
    parquet.write_table(pa.Table.from_pylist(keyed), root / component / f"{NAME}.parquet")


def image_of(values: npt.NDArray[Any], of: str) -> dict[str, Any]:
    return {f"{of}.values": values.astype(np.float32).ravel().tolist(), f"{of}.shape": list(values.shape)}


@pytest.fixture
def segment(tmp_path: Path) -> Path:
    """Two frames. The world is a sphere of 20 m around a place, seen from within, each pixel when it was taken."""
    root = tmp_path / "training"
    lidar, poses = [], []
    for number, stamp in enumerate(STAMPS):
        for laser, ego_from_laser in EGO_FROM_LASER.items():
            image, pixels = np.full((HEIGHT, WIDTH, 4), -1.0), np.zeros((HEIGHT, WIDTH, 6))
            up = (LOW + (HIGH - LOW) * (np.arange(HEIGHT) + 0.5) / HEIGHT)[::-1]
            own_yaw = np.arctan2(ego_from_laser[1, 0], ego_from_laser[0, 0])
            for i, j in np.ndindex(HEIGHT, WIDTH):
                late_s = (j / WIDTH - 0.5) * 0.1 if laser == 1 else 0.0
                turn = (0.01 * late_s, 0.02, 0.7 + 0.2 * (number * 0.1 + late_s))
                place = (100 + 10 * (number * 0.1 + late_s), -50 + 8 * (number * 0.1 + late_s), 3.0)
                pixels[i, j] = [*turn, *place]
                azimuth = ((WIDTH - j - 0.5) / WIDTH * 2 - 1) * np.pi - own_yaw
                ray = np.array([np.cos(azimuth) * np.cos(up[i]), np.sin(azimuth) * np.cos(up[i]), np.sin(up[i])])
                world_from_ego = pose(turn, place) if laser == 1 else WORLD_FROM_EGO[stamp]
                world_from_laser = world_from_ego @ ego_from_laser
                direction, eye = world_from_laser[:3, :3] @ ray, world_from_laser[:3, 3] - [100, -50, 3]
                along = eye @ direction
                image[i, j, 0] = -along + np.sqrt(along**2 - eye @ eye + 400)
                image[i, j, 1] = 0.5
            image[0, :5, 0] = -1.0  # nothing came back
            key = {"key.frame_timestamp_micros": stamp, "key.laser_name": laser}
            lidar.append(key | image_of(image, "[LiDARComponent].range_image_return1"))
            if laser == 1:
                poses.append(key | image_of(pixels, "[LiDARPoseComponent].range_image_return1"))
    write(root, "lidar", lidar)
    write(root, "lidar_pose", poses)
    of = "[LiDARCalibrationComponent]."
    inclination = {f"{of}beam_inclination.min": LOW, f"{of}beam_inclination.max": HIGH}
    listed = (LOW + (HIGH - LOW) * (np.arange(HEIGHT) + 0.5) / HEIGHT).tolist()
    write(
        root,
        "lidar_calibration",
        [
            {"key.laser_name": laser, f"{of}extrinsic.transform": one.ravel().tolist()}
            | inclination
            | {f"{of}beam_inclination.values": listed if laser == 1 else None}
            for laser, one in EGO_FROM_LASER.items()
        ],
    )
    of = "[CameraCalibrationComponent]."
    lens = dict(zip(("f_u", "f_v", "c_u", "c_v", "k1", "k2", "p1", "p2", "k3"), LENS, strict=True))
    camera = {f"{of}intrinsic.{key}": value for key, value in lens.items()}
    camera |= {f"{of}extrinsic.transform": EGO_FROM_CAM.ravel().tolist(), "key.camera_name": 1}
    write(root, "camera_calibration", [camera])
    Image.new("RGB", (64, 48), (200, 0, 0)).save(file := io.BytesIO(), "JPEG")
    of = "[CameraImageComponent]."
    taken = {"key.frame_timestamp_micros": STAMPS[0], "key.camera_name": 1, f"{of}image": file.getvalue()}
    taken |= {f"{of}pose.transform": WORLD_FROM_EGO[STAMPS[1]].ravel().tolist()}
    taken |= {f"{of}pose_timestamp": STAMPS[0] / 1e6 + 0.01}
    write(root, "camera_image", [taken])
    moved = "[VehiclePoseComponent].world_from_vehicle.transform"
    stamped = [{"key.frame_timestamp_micros": at, moved: one.ravel().tolist()} for at, one in WORLD_FROM_EGO.items()]
    write(root, "vehicle_pose", stamped)
    return root / "lidar" / f"{NAME}.parquet"


LENS = (60.0, 61.0, 31.0, 23.0, 0.04, -0.3, 0.001, -0.0002, 0.0)


def test_a_segment_of_waymo_is_a_scene_whose_points_lie_where_they_were_seen(segment: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["import", "waymo", str(segment), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    dataset, frames = frames_of(tmp_path / "out")
    assert [frame.timestamp_us for frame in frames] == list(STAMPS)
    for frame in frames:
        cloud = dataset.read_cloud(frame)
        assert len(cloud.xyz_m) == 2 * (HEIGHT * WIDTH - 5) and set(cloud.intensity.tolist()) == {0.5}
        in_world = (frame.world_from_lidar @ np.vstack([cloud.xyz_m.T, np.ones(len(cloud.xyz_m))]))[:3].T
        np.testing.assert_allclose(np.linalg.norm(in_world - [100, -50, 3], axis=1), 20, atol=1e-4)
    points = np.load(tmp_path / "out" / NAME / f"points/{STAMPS[0]}.npy")
    assert points.dtype.names == ("x", "y", "z", "intensity", "laser") and set(points["laser"]) == {1, 2}


def test_a_camera_of_waymo_looks_where_it_looks_there(segment: Path, tmp_path: Path) -> None:
    import_waymo(segment, tmp_path / "out")
    _, [first, second] = frames_of(tmp_path / "out")
    assert [len(first.cameras), len(second.cameras)] == [1, 0]
    [camera] = first.cameras
    assert camera.lens == Lens("brown", LENS[4:]) and camera.intrinsics.ravel().tolist()[:6] == [60, 0, 31, 0, 61, 23]
    assert abs(camera.timestamp_us - STAMPS[0] - 10_000) <= 1
    # a point 10 m ahead of their camera, 2 m to its left and 1 m above, in the vehicle's frame at the image
    in_ego_at_image = EGO_FROM_CAM @ [10, 2, 1, 1]
    in_ego = np.linalg.inv(WORLD_FROM_EGO[STAMPS[0]]) @ WORLD_FROM_EGO[STAMPS[1]] @ in_ego_at_image
    np.testing.assert_allclose(camera.cam_from_lidar @ in_ego, [-2, -1, 10, 1], atol=1e-6)
    assert read_image(tmp_path / "out", camera)[0, 0, 0] > 190


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_segment_that_lacks_a_component_is_a_sentence_and_leaves_nothing_behind(
    segment: Path, tmp_path: Path, component: str
) -> None:
    (segment.parent.parent / component / segment.name).unlink()
    with pytest.raises(ConfigError, match=f"{component}/{NAME}.parquet"):
        import_waymo(segment, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_what_is_no_segment_of_waymo_is_a_sentence(segment: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name a segment by that file of it"):
        import_waymo(segment.parent, tmp_path / "out")
    table = parquet.read_table(segment.parent.parent / "vehicle_pose" / segment.name)
    parquet.write_table(
        table.drop_columns(table.column_names[-1]), segment.parent.parent / "vehicle_pose" / segment.name
    )
    with pytest.raises(ConfigError, match=r"has no .*world_from_vehicle\.transform"):
        import_waymo(segment, tmp_path / "out")
