"""Argoverse 2, KITTI-360 and bags of ROS 2 as scenes: layouts as documented, written here, geometry by hand."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import feather
from typer.testing import CliRunner

from manifests.config import ConfigError
from pipeline.__main__ import app
from pipeline.datasets.formats import read_feather
from pipeline.exchange.imports.argoverse import AXLE_HEIGHT_M, import_argoverse2
from pipeline.exchange.imports.kitti360 import import_kitti360
from pipeline.exchange.imports.kitti_raw import IMU_HEIGHT_M
from pipeline.exchange.imports.ros import FrameTree
from pipeline.exchange.imports.ros_logs import definition
from pipeline.exchange.imports.ros_mapped import import_ros
from pipeline.geometry import pose_matrix
from tests.pipeline.test_imports import MAPPING, POINTS, frames_of, log, message

__all__ = ["log"]  # a fixture


def imported(*words: object) -> str:
    done = CliRunner().invoke(app, ["import", *map(str, words)])
    assert done.exit_code == 0, done.output
    return done.output


# -- Argoverse 2 -------------------------------------------------------------------------------------------------------

BEGIN_NS = 315_968_200_660_259_000


@pytest.fixture
def argoverse(tmp_path: Path) -> Path:
    """Two sweeps 0.1 s apart; the camera's images come 12 ms later, and none at the second; the car drives 10 m/s."""
    log = tmp_path / "02678d04-cc9f-3148-9f95-1ba66347dff9"
    for part in (
        "sensors/lidar",
        "sensors/cameras/ring_front_center",
        "sensors/cameras/stereo_front_left",
        "calibration",
    ):
        (log / part).mkdir(parents=True)
    xyz = POINTS[:, :3].astype(np.float16)
    for i in range(2):
        columns = {axis: xyz[:, at] for at, axis in enumerate("xyz")}
        columns |= {"intensity": np.array([7, 255, 0], np.uint8), "laser_number": np.array([0, 31, 63], np.uint8)}
        columns |= {"offset_ns": np.array([0, 5, 9], np.int32)}
        feather.write_feather(pa.table(columns), log / f"sensors/lidar/{BEGIN_NS + i * 100_000_000}.feather")
    for camera in ("ring_front_center", "stereo_front_left"):
        Image.new("RGB", (64, 48)).save(log / f"sensors/cameras/{camera}/{BEGIN_NS + 12_000_000}.jpg")
    front = {"sensor_name": "ring_front_center", "qw": 0.5, "qx": -0.5, "qy": 0.5, "qz": -0.5}
    front |= {"tx_m": 1.6, "ty_m": 0.0, "tz_m": 1.4}
    write_rows(log / "calibration/egovehicle_SE3_sensor.feather", [front, front | {"sensor_name": "stereo_front_left"}])
    lens = {"fx_px": 40.0, "fy_px": 41.0, "cx_px": 31.0, "cy_px": 23.0, "k1": -0.2, "k2": 0.1, "k3": 0.0}
    lens |= {"height_px": 48, "width_px": 64}
    names = ("ring_front_center", "stereo_front_left", "ring_side_left")  # of the last there are no images
    write_rows(log / "calibration/intrinsics.feather", [{"sensor_name": name} | lens for name in names])
    still = {"qw": 1.0, "qx": 0.0, "qy": 0.0, "qz": 0.0, "ty_m": 5.0, "tz_m": -2.0}
    poses = [{"timestamp_ns": BEGIN_NS + ms * 1_000_000, "tx_m": 0.01 * ms} | still for ms in (0, 8, 20, 100)]
    write_rows(log / "city_SE3_egovehicle.feather", poses)
    return log


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    feather.write_feather(pa.Table.from_pylist(rows), path)


def test_a_log_of_argoverse_2_is_a_scene_of_links(argoverse: Path, tmp_path: Path) -> None:
    imported("argoverse2", argoverse, tmp_path / "out")
    dataset, [first, second] = frames_of(tmp_path / "out")
    assert first.timestamp_us == BEGIN_NS // 1000 and [len(one.cameras) for one in (first, second)] == [1, 0]
    [camera] = first.cameras
    assert camera.name == "ring_front_center" and camera.lens.straight, "images are rectified, whatever k1 says"
    assert camera.timestamp_us - first.timestamp_us == 12_000
    # a point 5 m ahead of the rear axle: 1.6 m less, 0.12 m less that the car drives until the image, 1.4 m below
    np.testing.assert_allclose(camera.cam_from_lidar @ [5, 0, 0, 1], [0, 1.4, 3.28, 1], atol=1e-9)
    np.testing.assert_allclose(second.world_from_lidar[:3, 3], [1.0, 5, -2], atol=1e-9)
    assert second.ego_from_lidar[2, 3] == AXLE_HEIGHT_M
    cloud = dataset.read_cloud(first)
    np.testing.assert_array_equal(cloud.xyz_m, POINTS[:, :3].astype(np.float16).astype(np.float32))
    assert cloud.intensity.tolist() == [7, 255, 0]
    scene = tmp_path / "out" / argoverse.name
    assert (scene / "lidar").is_symlink() and (scene / "cameras").is_symlink()


def test_what_a_log_of_argoverse_2_lacks_is_a_sentence(argoverse: Path, tmp_path: Path) -> None:
    (argoverse / "city_SE3_egovehicle.feather").write_bytes(b"ARROW1")
    with pytest.raises(ConfigError, match=r"city_SE3_egovehicle.feather: .*expected a log of the Argoverse 2"):
        import_argoverse2(argoverse, tmp_path / "out")
    with pytest.raises(ConfigError, match="holds no sweep; expected files like"):
        import_argoverse2(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_feather_file_that_is_cut_off_or_has_no_points_is_an_error(argoverse: Path) -> None:
    content = next((argoverse / "sensors/lidar").iterdir()).read_bytes()
    assert read_feather(content)["x"].dtype == np.float16
    for damaged in (content[:-20], b"", b"x" * 100):
        with pytest.raises(ValueError, match=r"no whole \.feather"):
            read_feather(damaged)


# -- KITTI-360 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def kitti360(tmp_path: Path) -> Path:
    """Four scans 0.1 s apart at 10 m/s; the first comes before the first pose, the second has no image_01."""
    root, name = tmp_path / "KITTI-360", "2013_05_28_drive_0000_sync"
    drive = root / "data_3d_raw" / name
    stamps = "".join(f"2013-05-28 08:46:02.{9 + i}04499714\n" for i in range(0, 1)) + "".join(
        f"2013-05-28 08:46:03.{i}04499714\n" for i in range(3)
    )
    for part in (drive / "velodyne_points", *(root / "data_2d_raw" / name / one for one in ("image_00", "image_01"))):
        (part / ("data" if part.name == "velodyne_points" else "data_rect")).mkdir(parents=True)
        (part / "timestamps.txt").write_text(stamps)
    for i in range(4):
        (drive / f"velodyne_points/data/{i:010d}.bin").write_bytes(POINTS.tobytes())
        for camera in ("image_00", "image_01"):
            if (i, camera) != (1, "image_01"):
                Image.new("RGB", (8, 6)).save(root / f"data_2d_raw/{name}/{camera}/data_rect/{i:010d}.png")
    calibration = root / "calibration"
    calibration.mkdir()
    turn = "0 0 1 {x} 1 0 0 {y} 0 1 0 {z}"  # imu (x forward, y right, z down) from camera (x right, y down, z forward)
    (calibration / "calib_cam_to_pose.txt").write_text(
        "".join(f"image_0{i}: {turn.format(x=1.5, y=0.6 * i, z=-0.5)}\n" for i in range(4))
    )
    (calibration / "calib_cam_to_velo.txt").write_text("0 0 1 0.8 -1 0 0 0.1 0 -1 0 -0.2\n")
    (calibration / "perspective.txt").write_text(
        "calib_time: 28-May-2013\n"
        + "".join(f"P_rect_0{i}: 4 0 4 {-2 * i} 0 4 3 0 0 0 1 0\nR_rect_0{i}: 1 0 0 0 1 0 0 0 1\n" for i in range(2))
    )
    poses = root / "data_poses" / name
    poses.mkdir(parents=True)
    # the vehicle drives along the world's y: its x is the world's y, its y (right) the world's x, z down
    lines = [f"{i} 0 1 0 3 1 0 0 {i} 0 0 -1 7\n" for i in (1, 3)]
    (poses / "poses.txt").write_text("".join(lines))
    return drive


def test_a_drive_of_kitti_360_is_a_scene_of_links(
    kitti360: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    alone = kitti360.parents[1] / f"data_2d_raw/{kitti360.name}/image_00/data_rect/0000000009.png"
    Image.new("RGB", (8, 6)).save(alone)
    import_kitti360(kitti360, tmp_path / "out")
    assert "image_00: 1 images have no sweep and are left out, the first is 0000000009" in caplog.text
    assert "1 of 4 scans have no pose near them" in caplog.text
    dataset, frames = frames_of(tmp_path / "out")
    assert [one.frame_id[-2:] for one in frames] == ["01", "02", "03"]
    assert [[camera.name[-1] for camera in one.cameras] for one in frames] == [["0"], ["0", "1"], ["0", "1"]]
    camera = frames[1].cameras[1]
    # 10 m ahead of the LiDAR: 0.8 m more from camera 0, whose left side lies 0.1 m from it, 0.2 m below it
    np.testing.assert_allclose(camera.cam_from_lidar @ [10, 0, 0, 1], [0.1 - 0.6, -0.2, 9.2, 1], atol=1e-9)
    # up is up, left is left: camera 0 stands 0.5 m above the IMU, the LiDAR 0.2 m above it and 0.1 m to its right
    np.testing.assert_allclose(frames[0].ego_from_lidar[:3, 3], [0.7, -0.1, IMU_HEIGHT_M + 0.7], atol=1e-9)
    np.testing.assert_allclose(frames[0].ego_from_lidar[:3, :3], np.eye(3), atol=1e-9)
    step = frames[2].world_from_lidar[:3, 3] - frames[1].world_from_lidar[:3, 3]
    np.testing.assert_allclose(step, [0, 1, 0], atol=1e-9)
    assert frames[1].world_from_lidar[2, 3] == pytest.approx(7 + 0.7)
    np.testing.assert_array_equal(dataset.read_cloud(frames[0]).xyz_m, POINTS[:, :3])


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("calibration/perspective.txt", "", "has no P_rect_00 of 12 numbers"),
        ("calibration/calib_cam_to_velo.txt", "1 2 3", "expected 12 numbers a line"),
        ("data_poses/2013_05_28_drive_0000_sync/poses.txt", "1 2 nan", "expected 13 numbers a line"),
    ],
)
def test_what_a_drive_of_kitti_360_lacks_is_a_sentence(
    kitti360: Path, tmp_path: Path, name: str, content: str, sentence: str
) -> None:
    (kitti360.parent.parent / name).write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        import_kitti360(kitti360, tmp_path / "out")


# -- bags of ROS 2, and /tf --------------------------------------------------------------------------------------------


def bag_of(log: Path, bag: Path, kinds: dict[str, str]) -> None:
    """Write the messages of an MCAP as a bag of two SQLite files, with the tables that rosbag2 makes."""
    from mcap.reader import make_reader

    bag.mkdir()
    with log.open("rb") as file:
        sent = [(channel.topic, one.log_time, one.data) for _, channel, one in make_reader(file).iter_messages()]
    for number, part in enumerate((sent[: len(sent) // 2], sent[len(sent) // 2 :])):
        with sqlite3.connect(bag / f"{bag.name}_{number}.db3") as base:
            base.execute(
                "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
                "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL)"
            )
            base.execute(
                "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, "
                "data BLOB NOT NULL)"
            )
            ids = {topic: at for at, topic in enumerate(kinds, start=1)}
            base.executemany(
                "INSERT INTO topics VALUES (?, ?, ?, 'cdr', '')", [(ids[topic], topic, kinds[topic]) for topic in kinds]
            )
            base.executemany(
                "INSERT INTO messages(topic_id, timestamp, data) VALUES (?, ?, ?)",
                [(ids[topic], ns, content) for topic, ns, content in part],
            )
        base.close()


KINDS = {
    "/tf_static": "tf2_msgs/msg/TFMessage",
    "/front/info": "sensor_msgs/msg/CameraInfo",
    "/odometry": "nav_msgs/msg/Odometry",
    "/points": "sensor_msgs/msg/PointCloud2",
    "/front/compressed": "sensor_msgs/msg/CompressedImage",
}


def with_full_messages(log: Path) -> None:
    """Write the messages of a log with all the fields that ROS 2 has, those that the fixture leaves out as zeros."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory
    from mcap_ros2.writer import Writer

    with log.open("rb") as file:
        sent = [
            (channel.topic, one.log_time, plain(decoded))
            for _, channel, one, decoded in make_reader(
                file, decoder_factories=[DecoderFactory()]
            ).iter_decoded_messages()
        ]
    zero = {"x": 0.0, "y": 0.0, "z": 0.0}
    with log.open("wb") as file:
        writer: Any = Writer(file)
        schemas = {topic: writer.register_msgdef(kind, definition(kind)) for topic, kind in KINDS.items()}
        for topic, ns, content in sent:
            if topic == "/odometry":
                content["twist"] = {"twist": {"linear": zero, "angular": zero}, "covariance": [0.0] * 36}
            if topic == "/front/info":
                roi = dict.fromkeys(("x_offset", "y_offset", "height", "width"), 0) | {"do_rectify": False}
                content |= {"binning_x": 0, "binning_y": 0, "roi": roi}
            writer.write_message(topic, schemas[topic], content, log_time=ns, publish_time=ns)
        writer.finish()


def plain(value: Any) -> Any:
    """Return a decoded message as dicts."""
    if hasattr(value, "__slots__"):
        return {name: plain(getattr(value, name)) for name in value.__slots__}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_a_bag_of_sqlite_files_is_the_scene_that_the_mcap_of_its_messages_is(log: Path, tmp_path: Path) -> None:
    with_full_messages(log)
    bag_of(log, tmp_path / "drive_7", KINDS)
    mapping = tmp_path / "topics.toml"
    imported("mcap", log, tmp_path / "one", "--mapping", mapping)
    imported("rosbag2", tmp_path / "drive_7", tmp_path / "other", "--mapping", mapping)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(files) > 5
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "other" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda bag: (bag / "drive_7_0.db3").write_bytes(b"SQLite format 3\0" + bytes(200)), "no whole bag of ROS 2"),
        (lambda bag: [path.unlink() for path in bag.iterdir()], "holds no file that ends in .db3"),
        (lambda bag: (bag / "drive_7_2.db3.zstd").write_bytes(b""), "is compressed"),
        (
            lambda bag: query(bag, "UPDATE topics SET type = 'my/msg/Cloud' WHERE name = '/odometry'"),
            "of type my/msg/Cloud",
        ),
        (lambda bag: query(bag, "UPDATE messages SET data = x'00010000ffffffff'"), "header|is no tf2_msgs"),
        (lambda bag: query(bag, "UPDATE topics SET serialization_format = 'ros1'"), "ROS 2 has 'cdr'"),
    ],
)
def test_a_bag_that_cannot_be_read_is_a_sentence(log: Path, tmp_path: Path, change: Any, sentence: str) -> None:
    with_full_messages(log)
    bag_of(log, tmp_path / "drive_7", KINDS)
    change(tmp_path / "drive_7")
    with pytest.raises(ConfigError, match=sentence):
        import_ros(tmp_path / "drive_7", tmp_path / "out", tmp_path / "topics.toml")


def query(bag: Path, ask: str) -> None:
    for path in bag.glob("*.db3"):
        with sqlite3.connect(path) as base:
            base.execute(ask)
        base.close()


def tf_of(parent: str, child: str, ns: int, pose: npt.NDArray[Any]) -> Any:
    from tests.pipeline.mcap_logs import header, transform

    sent = transform(parent, child, pose) | {"header": header(ns, parent)}
    return message({"transforms": [sent]})


def test_where_the_vehicle_was_is_read_from_moving_frames_between_the_times_of_each() -> None:
    """Map > odom > base_link, told at other times; the correction of odom jumps, odometry turns by a degree a tick."""
    tree = FrameTree()
    tree.add(tf_of("base_link", "lidar", 0, pose_matrix([1, 0, 0, 0], [1, 0, 2])))
    for i in range(5):
        half = np.radians(i) / 2
        tree.add_moving(tf_of("odom", "base_link", i * 100, pose_matrix([np.cos(half), 0, 0, np.sin(half)], [i, 0, 0])))
    tree.add_moving(tf_of("map", "odom", 0, pose_matrix([1, 0, 0, 0], [0, 10, 0])))
    tree.add_moving(tf_of("map", "odom", 400, pose_matrix([1, 0, 0, 0], [0, 14, 0])))
    found = tree.pose_at("map", "base_link", 250)
    assert found is not None
    np.testing.assert_allclose(found[:3, 3], [2.5, 12.5, 0], atol=1e-9)
    assert np.degrees(np.arctan2(found[1, 0], found[0, 0])) == pytest.approx(2.5)
    lidar = tree.pose_at("map", "lidar", 250)
    assert lidar is not None
    np.testing.assert_allclose(lidar, found @ pose_matrix([1, 0, 0, 0], [1, 0, 2]), atol=1e-9)
    assert tree.pose_at("map", "base_link", 401) is None, "after what is known"
    with pytest.raises(ConfigError, match="do not lead from base_link up to utm: there is nothing above map"):
        tree.pose_at("utm", "base_link", 250)
    with pytest.raises(ConfigError, match="below odom and below map; it must be below one"):
        tree.add_moving(tf_of("map", "base_link", 0, np.eye(4)))


def test_poses_of_a_log_may_be_those_of_its_moving_frames(log: Path, tmp_path: Path) -> None:
    """The odometry of the log, sent as /tf instead, gives the same scene."""
    from mcap.reader import make_reader
    from mcap_ros2.decoder import DecoderFactory
    from mcap_ros2.writer import Writer

    from tests.pipeline.mcap_logs import DEFINITIONS

    with log.open("rb") as file:
        sent = [
            (channel.topic, one.log_time, plain(decoded))
            for _, channel, one, decoded in make_reader(
                file, decoder_factories=[DecoderFactory()]
            ).iter_decoded_messages()
        ]
    mapping = tmp_path / "topics.toml"
    import_ros(log, tmp_path / "one", mapping)
    with log.open("wb") as file:
        writer: Any = Writer(file)
        kinds = KINDS | {"/tf": "tf2_msgs/msg/TFMessage"}
        schemas = {topic: writer.register_msgdef(kind, DEFINITIONS[kind]) for topic, kind in kinds.items()}
        for topic, ns, content in sent:
            if topic == "/odometry":
                pose, topic = content["pose"]["pose"], "/tf"
                moving = {"header": content["header"], "child_frame_id": "base_link"}
                moving |= {"transform": {"translation": pose["position"], "rotation": pose["orientation"]}}
                content = {"transforms": [moving]}
            writer.write_message(topic, schemas[topic], content, log_time=ns, publish_time=ns)
        writer.finish()
    mapping.write_text(MAPPING.replace('topic = "/odometry"', 'frame = "odom"'))
    import_ros(log, tmp_path / "other", mapping)
    one, other = (tmp_path / name / "drive_7/scene.toml" for name in ("one", "other"))
    assert one.read_text() == other.read_text()
    mapping.write_text(MAPPING.replace('topic = "/odometry"', 'frame = "odom"\ntopic = "/odometry"'))
    with pytest.raises(ConfigError, match="give topic, one of odometry, or frame"):
        import_ros(log, tmp_path / "third", mapping)


def test_an_import_takes_a_mapping_or_none(tmp_path: Path) -> None:
    refused = CliRunner().invoke(
        app, ["import", "kitti-raw", str(tmp_path), str(tmp_path / "out"), "--mapping", "a.toml"]
    )
    assert refused.exit_code == 2 and "takes no --mapping" in refused.output
    refused = CliRunner().invoke(app, ["import", "rosbag2", str(tmp_path), str(tmp_path / "out")])
    assert refused.exit_code == 2 and "needs --mapping" in refused.output
