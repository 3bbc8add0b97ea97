"""Messages of ROS 2 as MCAP logs hold them, and a log of frames, for tests."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from pipeline.geometry import pose_matrix

HEADER = "std_msgs/Header header\n"
STD = """================================================================================
MSG: std_msgs/Header
builtin_interfaces/Time stamp
string frame_id
================================================================================
MSG: builtin_interfaces/Time
int32 sec
uint32 nanosec
"""
GEOMETRY = """================================================================================
MSG: geometry_msgs/Vector3
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Point
float64 x
float64 y
float64 z
================================================================================
MSG: geometry_msgs/Quaternion
float64 x
float64 y
float64 z
float64 w
================================================================================
MSG: geometry_msgs/Transform
geometry_msgs/Vector3 translation
geometry_msgs/Quaternion rotation
================================================================================
MSG: geometry_msgs/TransformStamped
std_msgs/Header header
string child_frame_id
geometry_msgs/Transform transform
================================================================================
MSG: geometry_msgs/Pose
geometry_msgs/Point position
geometry_msgs/Quaternion orientation
================================================================================
MSG: geometry_msgs/PoseWithCovariance
geometry_msgs/Pose pose
float64[36] covariance
"""
DEFINITIONS = {
    "sensor_msgs/msg/PointCloud2": HEADER + "uint32 height\nuint32 width\nsensor_msgs/PointField[] fields\n"
    "bool is_bigendian\nuint32 point_step\nuint32 row_step\nuint8[] data\nbool is_dense\n" + STD + "=" * 80 + "\n"
    "MSG: sensor_msgs/PointField\nstring name\nuint32 offset\nuint8 datatype\nuint32 count\n",
    "sensor_msgs/msg/CompressedImage": HEADER + "string format\nuint8[] data\n" + STD,
    "sensor_msgs/msg/CameraInfo": HEADER + "uint32 height\nuint32 width\nstring distortion_model\nfloat64[] d\n"
    "float64[9] k\nfloat64[9] r\nfloat64[12] p\n" + STD,
    "tf2_msgs/msg/TFMessage": "geometry_msgs/TransformStamped[] transforms\n" + STD + GEOMETRY,
    "nav_msgs/msg/Odometry": HEADER + "string child_frame_id\ngeometry_msgs/PoseWithCovariance pose\n" + STD + GEOMETRY,
}


def stamp(ns: int) -> dict[str, int]:
    return {"sec": ns // 10**9, "nanosec": ns % 10**9}


def header(ns: int, frame: str) -> dict[str, Any]:
    return {"stamp": stamp(ns), "frame_id": frame}


def cloud(points: npt.NDArray[Any], ns: int = 0, big: bool = False, padding: int = 0) -> dict[str, Any]:
    """A PointCloud2 of float32 x, y, z, intensity and a uint16 ring, each record followed by some bytes."""
    order = ">" if big else "<"
    names = ("x", "y", "z", "intensity")
    record = np.dtype([*((name, f"{order}f4") for name in names), ("ring", f"{order}u2"), ("pad", "u1", (padding,))])
    rows = np.zeros(len(points), record)
    for i, name in enumerate(names):
        rows[name] = points[:, i]
    rows["ring"] = np.arange(len(points)) % 32
    fields = [{"name": n, "offset": 4 * i, "datatype": 7, "count": 1} for i, n in enumerate(names)]
    return {
        "header": header(ns, "lidar"),
        "height": 1,
        "width": len(points),
        "fields": [*fields, {"name": "ring", "offset": 16, "datatype": 4, "count": 1}],
        "is_bigendian": big,
        "point_step": record.itemsize,
        "row_step": record.itemsize * len(points),
        "data": rows.tobytes(),
        "is_dense": True,
    }


def transform(parent: str, child: str, pose: npt.NDArray[Any]) -> dict[str, Any]:
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat().tolist()
    place = dict(zip("xyz", pose[:3, 3].tolist(), strict=True))
    turn = {"x": x, "y": y, "z": z, "w": w}
    return {"header": header(0, parent), "child_frame_id": child, "transform": {"translation": place, "rotation": turn}}


BEGINS_US = 1_700_000_000_000_000


def write_log(scene: Path, path: Path, ticks_per_us: int = 1) -> str:
    """Write a scene of data set `folder` as a log, with topics for points, images, lenses, TF and odometry.

    Odometry is sent at the time of every sweep and image, so that nothing is interpolated. Returns the mapping that
    reads it. Times of the scene may be of a finer unit than their name says.
    """
    from mcap_ros2.writer import Writer

    document = tomllib.loads((scene / "scene.toml").read_text())
    first = min(frame["timestamp_us"] for frame in document["frame"])
    for frame in document["frame"]:
        for one in (frame, *frame["image"].values()):  # ROS has 32 bits for seconds
            one["timestamp_us"] = BEGINS_US + (one["timestamp_us"] - first) // ticks_per_us
    sent: list[tuple[int, str, str, dict[str, Any]]] = []

    def send(us: int, topic: str, kind: str, content: dict[str, Any]) -> None:
        sent.append((1000 * us, topic, kind, content))

    def odometry(us: int, pose: dict[str, Any]) -> None:
        where = dict(zip("xyz", pose["translation"], strict=True))
        turn = dict(zip("wxyz", pose["rotation"], strict=True))
        content = {"header": header(1000 * us, "map"), "child_frame_id": "base_link"}
        content["pose"] = {"pose": {"position": where, "orientation": turn}, "covariance": [0.0] * 36}
        send(us, "/odometry", "nav_msgs/msg/Odometry", content)

    first_us = BEGINS_US - 1_000_000
    poses = {"lidar": document["ego_from_lidar"]} | {one["name"]: one["ego_from_cam"] for one in document["camera"]}
    tree = [
        transform("base_link", name, pose_matrix(pose["rotation"], pose["translation"])) for name, pose in poses.items()
    ]
    send(first_us, "/tf_static", "tf2_msgs/msg/TFMessage", {"transforms": tree})
    for camera in document["camera"]:
        lens = {"distortion_model": "plumb_bob", "d": [0.0] * 5, "r": np.eye(3).ravel().tolist(), "p": [0.0] * 12}
        lens |= {"k": np.array(camera["intrinsics"], float).ravel().tolist(), "height": 900, "width": 1600}
        lens["header"] = header(1000 * first_us, camera["name"])
        send(first_us, f"/{camera['name']}/info", "sensor_msgs/msg/CameraInfo", lens)
    for frame in document["frame"]:
        us = frame["timestamp_us"]
        points = np.fromfile(scene / document["points"].format(frame=frame["name"]), "<f4").reshape(-1, 5)[:, :4]
        send(us, "/points", "sensor_msgs/msg/PointCloud2", cloud(points, 1000 * us))
        odometry(us, frame["world_from_ego"])
        for name, image in frame["image"].items():
            at = image["timestamp_us"]
            content = {"header": header(1000 * at, name), "format": "jpeg"}
            content["data"] = (scene / image["file"]).read_bytes()
            send(at, f"/{name}/image", "sensor_msgs/msg/CompressedImage", content)
            odometry(at, image["world_from_ego"])
    with path.open("wb") as file:
        writer: Any = Writer(file)
        schemas = {name: writer.register_msgdef(name, definition) for name, definition in DEFINITIONS.items()}
        for ns, topic, kind, content in sorted(sent, key=lambda one: one[0]):
            writer.write_message(topic, schemas[kind], content, log_time=ns, publish_time=ns)
        writer.finish()
    mapping = '[points]\ntopic = "/points"\n[pose]\ntopic = "/odometry"\n'
    return mapping + "".join(
        f'[[camera]]\nname = "{name}"\ntopic = "/{name}/image"\ninfo = "/{name}/info"\n'
        for name in (one["name"] for one in document["camera"])
    )
