"""Logs of other programs become scenes of data set `folder`: geometry by hand, bytes as they were."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from pipeline.__main__ import app
from pipeline.datasets.folder import FolderDataset
from pipeline.exchange.imports.kitti_raw import import_kitti_raw
from pipeline.exchange.imports.ros import FrameTree, camera_of, cloud_of, image_of
from pipeline.exchange.imports.ros_mapped import import_ros
from pipeline.frame import Frame, read_image
from pipeline.geometry import chained, inverse_pose, pose_matrix
from pipeline.lenses import Lens
from pipeline.stages.index import check_frame
from tests.pipeline.mcap_logs import DEFINITIONS, cloud, header, transform

POINTS = np.array([[5, 0, 0, 0.5], [8, 1, -1, 1], [3, 0.5, 0, 0]], "<f4")


def frames_of(root: Path) -> tuple[FolderDataset, list[Frame]]:
    dataset = FolderDataset(DataConfig(dataset="folder", root=str(root)))
    return dataset, [check_frame(dataset, root, frame) for frame in dataset.frames()]


# -- KITTI raw -------------------------------------------------------------------------------------


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """Two scans; the second has no image_03, and a third image_03 has no scan.

    The car drives 1e-5 degrees of longitude on the equator, 1.1132 m.
    """
    day = tmp_path / "2011_09_26"
    drive = day / "2011_09_26_drive_0001_sync"
    for part in ("velodyne_points", "image_02", "image_03", "oxts"):
        (drive / part / "data").mkdir(parents=True)
        stamps = "2011-09-26 13:02:25.964389445\n2011-09-26 13:02:26.064389445\n"
        (drive / part / "timestamps.txt").write_text(stamps)
    for number in range(2):
        (drive / f"velodyne_points/data/{number:010d}.bin").write_bytes(POINTS.tobytes())
        Image.new("RGB", (8, 6)).save(drive / f"image_02/data/{number:010d}.png")
        (drive / f"oxts/data/{number:010d}.txt").write_text(f"0 {number * 1e-5} 3 0 0 0 " + "0 " * 24)
    for number in (0, 2):
        Image.new("RGB", (8, 6)).save(drive / f"image_03/data/{number:010d}.png")
    (day / "calib_velo_to_cam.txt").write_text("calib_time: 15-Mar-2012\nR: 0 -1 0 0 0 -1 1 0 0\nT: 0 0 -0.5\n")
    (day / "calib_imu_to_velo.txt").write_text("R: 1 0 0 0 1 0 0 0 1\nT: -0.8 0 -0.7\n")
    (day / "calib_cam_to_cam.txt").write_text(
        "R_rect_00: 1 0 0 0 1 0 0 0 1\nP_rect_02: 4 0 4 -2 0 4 3 0 0 0 1 0\nP_rect_03: 4 0 4 -4 0 4 3 0 0 0 1 0\n"
    )
    return drive


def test_a_raw_drive_of_kitti_is_a_scene_of_links(
    drive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["import", "kitti-raw", str(drive), str(out)])
    assert done.exit_code == 0, done.output
    dataset, (first, second) = frames_of(out)
    assert (out / drive.name / "velodyne_points").is_symlink()
    assert f"{drive.name}/image_03: 1 images have no sweep and are left out, the first is 0000000002" in caplog.text
    assert [camera.name for camera in first.cameras] == ["image_02", "image_03"]
    assert [camera.name for camera in second.cameras] == ["image_02"]
    assert first.timestamp_us == 1_317_042_145_964_389 and second.timestamp_us - first.timestamp_us == 100_000
    # 5 m ahead of the LiDAR; the camera is 0.5 m before it and, by its projection, 0.5 m to the right
    np.testing.assert_allclose(first.cameras[0].cam_from_lidar @ [5, 0, 0, 1], [-0.5, 0, 4.5, 1], atol=1e-12)
    # the IMU is 0.93 m above the road, and the LiDAR 0.7 m above the IMU
    np.testing.assert_allclose(first.ego_from_lidar[:3, 3], [0.8, 0, 1.63], atol=1e-12)
    step = inverse_pose(first.world_from_lidar) @ second.world_from_lidar
    np.testing.assert_allclose(step[:3, 3], [1.1131949, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(dataset.read_cloud(second).xyz_m, POINTS[:, :3])


def test_what_a_raw_drive_lacks_is_a_sentence_and_leaves_nothing_behind(drive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    stamps = drive / "velodyne_points/timestamps.txt"
    whole = stamps.read_text()
    stamps.write_text(whole.splitlines()[0])
    with pytest.raises(ConfigError, match=r"timestamps.txt has 1 times, and none for 0000000001"):
        import_kitti_raw(drive, out)
    stamps.write_text(whole)
    import_kitti_raw(drive, out)
    with pytest.raises(ConfigError, match="is there already; name another folder"):
        import_kitti_raw(drive, out)
    (drive.parent / "calib_velo_to_cam.txt").write_text("R: 1 2\nT: 0 0 0\n")
    with pytest.raises(ConfigError, match="has no R of 9 numbers"):
        import_kitti_raw(drive, tmp_path / "other")
    (drive.parent / "calib_velo_to_cam.txt").unlink()
    with pytest.raises(ConfigError, match="a raw drive lies beside the calib_"):
        import_kitti_raw(drive, tmp_path / "other")
    assert [path.name for path in out.iterdir()] == [drive.name] and not (tmp_path / "other").exists()


# -- messages of ROS -------------------------------------------------------------------------------


def message(content: Any) -> Any:
    """A message as a decoder gives it: attributes for keys."""
    if isinstance(content, Mapping):
        return SimpleNamespace(**{key: message(value) for key, value in content.items()})
    return [message(one) for one in content] if isinstance(content, list) else content


@given(big=st.booleans(), padding=st.integers(0, 7), lost=st.sets(st.integers(0, 9)))
def test_clouds_of_any_layout_are_read_field_by_field(big: bool, padding: int, lost: set[int]) -> None:
    points = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    sent = points.copy()
    sent[list(lost), :3] = np.nan
    found = cloud_of(message(cloud(sent, big=big, padding=padding)), "here")
    assert found.dtype.names == ("x", "y", "z", "intensity", "ring")
    for i, name in enumerate(("x", "y", "z", "intensity")):
        expected = points[:, i].copy()
        expected[list(lost)] = 0
        np.testing.assert_array_equal(found[name], expected)
    cut = cloud(points) | {"data": cloud(points)["data"][:-1]}
    with pytest.raises(ConfigError, match="here: the cloud is truncated"):
        cloud_of(message(cut), "here")


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8", "mono16"])
def test_raw_images_are_the_same_pixels_as_a_png(encoding: str) -> None:
    rng = np.random.default_rng(0)
    kind = np.uint16 if encoding == "mono16" else np.uint8
    pixels = rng.integers(0, np.iinfo(kind).max, (6, 8, 1 if "mono" in encoding else 3)).astype(kind)
    step = pixels[0].nbytes + 3  # rows are padded
    data = b"".join(row.tobytes() + b"\0\0\0" for row in pixels)
    sent = {"height": 6, "width": 8, "encoding": encoding, "is_bigendian": 0, "step": step, "data": data}
    content, ending = image_of(message(sent), "here")
    found = np.asarray(Image.open(io.BytesIO(content)))
    expected = pixels[:, :, ::-1] if encoding == "bgr8" else pixels
    np.testing.assert_array_equal(found.reshape(6, 8, -1), expected)
    assert ending == ".png"
    with pytest.raises(ConfigError, match="images of encoding 'bayer_rggb8' are not read"):
        image_of(message(sent | {"encoding": "bayer_rggb8"}), "here")


def test_cameras_have_the_lens_of_their_info_unless_their_images_are_rectified() -> None:
    info = {"k": [4, 0, 4, 0, 4, 3, 0, 0, 1], "p": [5, 0, 4, 0, 0, 5, 3, 0, 0, 0, 1, 0], "d": [0.1, 0, 0, 0]}
    matrix, lens = camera_of(message(info | {"distortion_model": "equidistant"}), False, "here")
    assert matrix[0, 0] == 4 and lens == Lens("fisheye", (0.1, 0, 0, 0))
    matrix, lens = camera_of(message(info | {"distortion_model": "equidistant"}), True, "here")
    assert matrix[0, 0] == 5 and lens.straight
    with pytest.raises(ConfigError, match="here: the lens model is 'my_lens'"):
        camera_of(message(info | {"distortion_model": "my_lens"}), False, "here")


@given(seed=st.integers(0, 999))
def test_frames_are_joined_over_their_tree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base_from_mast, mast_from_lidar, base_from_camera = (
        pose_matrix(rng.normal(size=4), rng.normal(size=3)) for _ in range(3)
    )
    tree = FrameTree()
    sent = [("base", "mast", base_from_mast), ("/mast", "lidar", mast_from_lidar), ("base", "camera", base_from_camera)]
    tree.add(message({"transforms": [transform(*one) for one in sent]}))
    expected = chained(inverse_pose(base_from_camera), base_from_mast, mast_from_lidar)
    np.testing.assert_allclose(tree.pose("camera", "/lidar"), expected, atol=1e-12)
    with pytest.raises(ConfigError, match="does not join frames radar and camera; it has base, camera, lidar, mast"):
        tree.pose("camera", "radar")


# -- MCAP ------------------------------------------------------------------------------------------

AXES = np.array([[0, 0, 1, 1.5], [-1, 0, 0, 0], [0, -1, 0, 1.4], [0, 0, 0, 1.0]])  # ego_from_cam, looking ahead
MAPPING = """\
[points]
topic = "/points"
[pose]
topic = "/odometry"
[[camera]]
name = "front"
topic = "/front/compressed"
info = "/front/info"
"""


def jpeg(shade: int) -> bytes:
    Image.new("RGB", (64, 48), (shade, shade, shade)).save(file := io.BytesIO(), "JPEG")
    return file.getvalue()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Three sweeps 0.1 s apart; images 10 ms after two of them, 90 ms after the last; odometry at 20 Hz, 10 m/s."""
    pytest.importorskip("mcap_ros2", reason="the extra `import` is not installed: MCAP cannot be written here")
    from mcap_ros2.writer import Writer

    path = tmp_path / "drive 7.mcap"
    start = 1_700_000_000 * 10**9
    with path.open("wb") as file:
        writer: Any = Writer(file)
        schemas = {name: writer.register_msgdef(name, definition) for name, definition in DEFINITIONS.items()}

        def send(topic: str, kind: str, content: dict[str, Any], ns: int) -> None:
            writer.write_message(topic, schemas[kind], content, log_time=ns, publish_time=ns)

        lidar = pose_matrix([1, 0, 0, 0], [0.9, 0, 1.8])
        tree = [transform("base_link", "lidar", lidar), transform("base_link", "front_optical", AXES)]
        send("/tf_static", "tf2_msgs/msg/TFMessage", {"transforms": tree}, start)
        info = {"height": 48, "width": 64, "distortion_model": "plumb_bob", "d": [-0.1, 0.01, 0.0, 0.0, 0.0]}
        info |= {"k": [40.0, 0, 31.5, 0, 40, 23.5, 0, 0, 1], "r": [1.0, 0, 0, 0, 1, 0, 0, 0, 1], "p": [0.0] * 12}
        send("/front/info", "sensor_msgs/msg/CameraInfo", info | {"header": header(start, "front_optical")}, start)
        for i in range(9):
            ns = start + i * 50_000_000
            pose = {"position": {"x": 0.5 * i, "y": 0.0, "z": 0.0}, "orientation": {"x": 0, "y": 0, "z": 0, "w": 1}}
            sent = {"header": header(ns, "odom"), "child_frame_id": "base_link"}
            sent |= {"pose": {"pose": pose, "covariance": [0.0] * 36}}
            send("/odometry", "nav_msgs/msg/Odometry", sent, ns)
        for i, late in enumerate((10, 10, 90)):
            ns = start + i * 100_000_000
            send("/points", "sensor_msgs/msg/PointCloud2", cloud(POINTS, ns), ns)
            at = ns + late * 1_000_000
            image = {
                "header": header(at, "front_optical"),
                "format": "bgr8; jpeg compressed bgr8",
                "data": jpeg(50 * i),
            }
            send("/front/compressed", "sensor_msgs/msg/CompressedImage", image, at)
        writer.finish()
    (tmp_path / "topics.toml").write_text(MAPPING)
    return path


def test_an_mcap_is_a_scene_with_its_cameras_poses_and_nearest_images(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["import", "mcap", str(log), str(out), "--mapping", str(tmp_path / "topics.toml")])
    assert done.exit_code == 0, done.output
    dataset, frames = frames_of(out)
    assert [frame.frame_id for frame in frames] == [f"drive_7/{i:06d}" for i in range(3)]
    assert [len(frame.cameras) for frame in frames] == [1, 1, 0], "an image 90 ms away is none of a sweep's"
    camera = frames[1].cameras[0]
    assert camera.lens == Lens("brown", (-0.1, 0.01, 0, 0, 0)) and camera.intrinsics[0, 0] == 40
    assert camera.timestamp_us - frames[1].timestamp_us == 10_000
    # 5 m ahead of the LiDAR, which is 0.6 m behind the camera and 0.4 m above; the car drives 0.1 m until the image
    np.testing.assert_allclose(camera.cam_from_lidar @ [5, 0, 0, 1], [0, -0.4, 4.3, 1], atol=1e-9)
    np.testing.assert_allclose(frames[1].world_from_lidar[:3, 3], [1.9, 0, 1.8], atol=1e-9)
    cloud = dataset.read_cloud(frames[2])
    xyz_m, intensity = cloud.xyz_m, cloud.intensity
    np.testing.assert_array_equal(np.column_stack([xyz_m, intensity]), POINTS)
    assert abs(int(read_image(out, camera).mean()) - 50) <= 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            ('"/points"', '"/cloud"'),
            "has no topic /cloud; it has /front/compressed, /front/info, /odometry, /points",
        ),
        (('name = "front"', 'name = "../front"'), "the name of a camera is '../front'"),
        (("[points]", "nearest = 1\n[points]"), "has no setting `nearest`"),
        (("[points]", 'ego = "rear_axle"\n[points]'), "does not join frames rear_axle and base_link; it has base_link"),
    ],
)
def test_a_mapping_that_does_not_fit_is_a_sentence(
    log: Path, tmp_path: Path, change: tuple[str, str], sentence: str
) -> None:
    (tmp_path / "topics.toml").write_text(MAPPING.replace(*change))
    with pytest.raises(ConfigError, match=sentence):
        import_ros(log, tmp_path / "out", tmp_path / "topics.toml")
    assert not [path for path in (tmp_path / "out").glob("*") if not path.name.startswith(".")]


def test_a_damaged_mcap_is_a_sentence(log: Path, tmp_path: Path) -> None:
    content = log.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"hello" * 100, content[:200] + bytes(400) + content[600:]):
        log.write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"drive 7.mcap"):
            import_ros(log, tmp_path / "out", tmp_path / "topics.toml")


def test_without_the_packages_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "mcap.reader", None)
    (tmp_path / "a.mcap").write_bytes(struct.pack("<Q", 7))
    (tmp_path / "topics.toml").write_text(MAPPING)
    with pytest.raises(ConfigError, match="needs the packages mcap and mcap-ros2-support; install them with"):
        import_ros(tmp_path / "a.mcap", tmp_path / "out", tmp_path / "topics.toml")
