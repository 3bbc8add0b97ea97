"""Logs of ROS 2, MCAP or bags, by a mapping, a TOML that says which topic plays which part.

    rectified = false                 # true where the image topics are rectified ones: P of CameraInfo counts then
    nearest_s = 0.06                  # an image farther from its sweep than this is none of it
    every = 1                         # every n-th sweep is a frame
    ego = "base_link"                 # the frame of the vehicle

    [points]
    topic = "/lidar/points"           # sensor_msgs/msg/PointCloud2
    [pose]
    topic = "/odometry"               # nav_msgs/msg/Odometry or PoseStamped; leave it out where there is none
    # or: frame = "map"               # the frame of the world, above that of the vehicle in /tf
    [[camera]]
    name = "front"
    topic = "/front/image/compressed" # sensor_msgs/msg/CompressedImage or Image
    info = "/front/camera_info"       # sensor_msgs/msg/CameraInfo

How sensors stand to each other is read from /tf_static, by the frames that clouds and images name in their headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manifests.config import ConfigError, convert, parse_section
from pipeline.datasets.folder import read_toml
from pipeline.exchange.imports.ros import FrameTree, camera_of, cloud_of, header_of, image_of, plain_name, pose_of
from pipeline.exchange.imports.ros_logs import CDR, Mcap, RosLog, bag_at
from pipeline.exchange.imports.scene import ImportedCamera, ImportedFrame, ImportedImage, Poses, new_scene, write_scene
from pipeline.geometry import Float64, chained

TF = "/tf_static"
MOVING_TF = "/tf"

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Topic:
    """One topic of a log."""

    topic: str


@dataclass(frozen=True)
class PoseSource:
    """Where poses of the vehicle come from: a topic of odometry, or the frame of the world in the tree of /tf."""

    topic: str = ""
    frame: str = ""

    def __post_init__(self) -> None:
        if bool(self.topic) == bool(self.frame):
            raise ValueError("give topic, one of odometry, or frame, that of the world in /tf")


@dataclass(frozen=True)
class CameraTopics:
    """The topics of a camera, and its name."""

    name: str
    topic: str
    info: str

    def __post_init__(self) -> None:
        if not _WORD.fullmatch(self.name):
            raise ValueError(f"the name of a camera is {self.name!r}; expected letters, digits, '_', '.', '+' and '-'")


@dataclass(frozen=True)
class Mapped:
    """Which topic plays which part; see the top of the file."""

    points: Topic
    pose: PoseSource | None = None
    camera: tuple[CameraTopics, ...] = ()
    ego: str = "base_link"
    rectified: bool = False
    nearest_s: float = 0.06
    every: int = 1

    def __post_init__(self) -> None:
        if self.nearest_s <= 0 or self.every < 1:
            raise ValueError(
                f"nearest_s is {self.nearest_s} and every {self.every}; expected more than 0, and 1 or more"
            )
        if len({one.name for one in self.camera}) < len(self.camera):
            raise ValueError("two cameras have one name")

    @property
    def topics(self) -> tuple[str, ...]:
        """All topics that must be there."""
        of_cameras = [topic for one in self.camera for topic in (one.topic, one.info)]
        of_pose = [self.pose.topic or MOVING_TF] if self.pose else []
        return (self.points.topic, *of_cameras, *of_pose, TF)


@dataclass(frozen=True, eq=False)
class Times:
    """When and in which frame the messages of a topic were taken, (n,), in the order of the log."""

    ns: list[int]
    frame: str

    def nearest(self, ns: int) -> int:
        """Return the position of the message that is nearest in time."""
        return int(np.abs(np.array(self.ns) - ns).argmin())


def mapping_of(path: Path) -> Mapped:
    """Return a mapping; raises ConfigError for one that is not as described."""
    document = dict(read_toml(path))
    cameras = document.pop("camera", [])
    if not isinstance(cameras, list):
        raise ConfigError(f"{path}: camera is not an array of tables; write [[camera]] above each")
    found = parse_section(str(path), document | {"camera": ()}, Mapped)
    return Mapped(**{**vars(found), "camera": tuple(convert(f"{path}: camera", one, CameraTopics) for one in cameras)})


def import_ros(log: Path, out: Path, mapping: Path) -> str:
    """Write a log as a scene of its name and return that; raises ConfigError for what is not as mapped."""
    mapped, name = mapping_of(mapping), re.sub(r"[^A-Za-z0-9_.+-]", "_", log.stem)
    try:
        if log.is_dir() or log.suffix == ".db3":
            write_log_as_scene(bag_at(log), mapped, out, name)
        else:
            with log.open("rb") as file:
                write_log_as_scene(Mcap(log, file), mapped, out, name)
    except OSError as error:
        raise ConfigError(f"{log}: {error.strerror or error}") from None
    return name


def write_log_as_scene(log: RosLog, mapped: Mapped, out: Path, name: str) -> None:
    """Write a log as a scene; raises ConfigError for what is not as mapped."""
    check_topics(log, mapped)
    found = survey(log, mapped)
    with new_scene(out, name) as folder:
        fill_scene(log, folder, mapped, found)


def check_topics(log: RosLog, mapped: Mapped) -> None:
    """Raise ConfigError unless all topics of the mapping are in a log, as messages of ROS 2."""
    encodings = log.topics()
    missing = [topic for topic in mapped.topics if topic not in encodings]
    if missing:
        raise ConfigError(f"{log.place} has no topic {missing[0]}; it has {', '.join(sorted(encodings)) or 'none'}")
    other = [topic for topic in mapped.topics if encodings[topic] != CDR]
    if other:
        raise ConfigError(f"{log.place}: {other[0]} is encoded as {encodings[other[0]]!r}; ROS 2 has {CDR!r}")


@dataclass(frozen=True, eq=False)
class Survey:
    """What a first reading tells: when clouds and images were taken, how frames stand, CameraInfo by topic, odometry.

    `poses` are those of frame `child` in the world.
    """

    times: Mapping[str, Times]
    tree: FrameTree
    infos: Mapping[str, Any]
    poses: Poses
    child: str


def survey(log: RosLog, mapped: Mapped) -> Survey:
    """Return what is to be known of a log before its clouds and images are written."""
    big = [mapped.points.topic, *(one.topic for one in mapped.camera)]
    times = {topic: Times([], "") for topic in big}
    for topic, content in log.messages(big, decoded=False):
        ns, frame = header_of(content)
        times[topic].ns.append(ns)
        times[topic] = Times(times[topic].ns, frame)
    tree, infos = FrameTree(), {}
    stamps: list[int] = []
    found: list[Float64] = []
    child = mapped.ego
    small = [topic for topic in mapped.topics if topic not in times]
    for topic, message in log.messages(small, decoded=True):
        if topic == TF:
            tree.add(message)
        elif topic == MOVING_TF:
            tree.add_moving(message)
        elif mapped.pose and topic == mapped.pose.topic:
            stamps.append(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)
            found.append(pose_of(getattr(message.pose, "pose", message.pose)))
            child = plain_name(getattr(message, "child_frame_id", "") or mapped.ego)
        else:
            infos[topic] = message
    silent = [topic for topic in big if not times[topic].ns]
    silent += [one.info for one in mapped.camera if one.info not in infos]
    if silent:
        raise ConfigError(f"{log.place}: there is no message on {silent[0]}")
    return Survey(times, tree, infos, Poses(zip(stamps, found, strict=True)), child)


def fill_scene(log: RosLog, folder: Path, mapped: Mapped, found: Survey) -> None:
    """Write sweeps and images that are near each other in time, and the description of the scene."""
    times, tree = found.times, found.tree
    in_tree = mapped.pose.frame if mapped.pose else ""
    child_from_ego = np.eye(4) if in_tree else tree.pose(found.child, mapped.ego)

    def world_from_ego(ns: int) -> Float64 | None:
        if in_tree:
            return tree.pose_at(in_tree, mapped.ego, ns)
        pose = found.poses.at(ns)
        return None if pose is None else chained(pose, child_from_ego)

    sweeps = times[mapped.points.topic].ns
    chosen = list(range(0, len(sweeps), mapped.every))
    wanted: dict[str, dict[int, list[int]]] = {mapped.points.topic: {i: [i] for i in chosen}}
    for camera in mapped.camera:
        of_camera = wanted[camera.topic] = {}
        for i in chosen:
            nearest = times[camera.topic].nearest(sweeps[i])
            if abs(times[camera.topic].ns[nearest] - sweeps[i]) <= mapped.nearest_s * 1e9:
                of_camera.setdefault(nearest, []).append(i)
    files = write_files(log, folder, mapped, wanted)
    frames = []
    for i in chosen:
        images = {}
        for camera in mapped.camera:
            near = next((at for at, some in wanted[camera.topic].items() if i in some), None)
            if near is not None:
                ns = times[camera.topic].ns[near]
                at_image = world_from_ego(ns)
                images[camera.name] = ImportedImage(files[camera.topic, near], ns // 1000, at_image)
        frames.append(ImportedFrame(f"{i:06d}", sweeps[i] // 1000, world_from_ego(sweeps[i]), images))
    cameras = []
    for camera in mapped.camera:
        intrinsics, lens = camera_of(found.infos[camera.info], mapped.rectified, f"{log.place}: {camera.info}")
        ego_from_cam = tree.pose(mapped.ego, times[camera.topic].frame)
        cameras.append(ImportedCamera(camera.name, f"{camera.name}/{{frame}}", intrinsics, ego_from_cam, lens))
    ego_from_lidar = tree.pose(mapped.ego, times[mapped.points.topic].frame)
    write_scene(folder, "points/{frame}.npy", ego_from_lidar, cameras, frames)


def write_files(
    log: RosLog, folder: Path, mapped: Mapped, wanted: Mapping[str, Mapping[int, Sequence[int]]]
) -> Mapping[tuple[str, int], str]:
    """Write the messages that are wanted, and return the names of image files by topic and position."""
    names = {one.topic: one.name for one in mapped.camera}
    for part in ("points", *names.values()):
        (folder / part).mkdir(exist_ok=True)
    counts = dict.fromkeys(wanted, -1)
    found: dict[tuple[str, int], str] = {}
    for topic, message in log.messages(list(wanted), decoded=True):
        counts[topic] += 1
        at = counts[topic]
        if at not in wanted[topic]:
            continue
        where = f"{log.place}: {topic}, message {at}"
        if topic == mapped.points.topic:
            np.save(folder / "points" / f"{at:06d}.npy", cloud_of(message, where))
            continue
        content, ending = image_of(message, where)
        found[topic, at] = f"{names[topic]}/{at:06d}{ending}"
        (folder / found[topic, at]).write_bytes(content)
    return found
