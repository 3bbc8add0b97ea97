"""MCAP logs of ROS 2 by a mapping, a TOML that says which topic plays which part.

    rectified = false                 # true where the image topics are rectified ones: P of CameraInfo counts then
    nearest_s = 0.06                  # an image farther from its sweep than this is none of it
    every = 1                         # every n-th sweep is a frame
    ego = "base_link"                 # the frame of the vehicle

    [points]
    topic = "/lidar/points"           # sensor_msgs/msg/PointCloud2
    [pose]
    topic = "/odometry"               # nav_msgs/msg/Odometry; leave it out where there is none
    [[camera]]
    name = "front"
    topic = "/front/image/compressed" # sensor_msgs/msg/CompressedImage or Image
    info = "/front/camera_info"       # sensor_msgs/msg/CameraInfo

How sensors stand to each other is read from /tf_static, by the frames that clouds and images name in their headers.
Needs the packages mcap and mcap-ros2-support (extra `import`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import scipy

from manifests.config import ConfigError, convert, parse_section
from pipeline.datasets.folder import read_toml
from pipeline.exchange.imports.ros import FrameTree, camera_of, cloud_of, header_of, image_of, plain_name, pose_of
from pipeline.exchange.imports.scene import ImportedCamera, ImportedFrame, ImportedImage, new_scene, write_scene
from pipeline.geometry import Float64, chained

TF = "/tf_static"
MOST_POSE_GAP_S = 1.0  # poses farther apart than this tell nothing of what is between them

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class Topic:
    """One topic of a log."""

    topic: str


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
    pose: Topic | None = None
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
        return (self.points.topic, *of_cameras, *([self.pose.topic] if self.pose else []), TF)


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


def import_mcap(log: Path, out: Path, mapping: Path) -> str:
    """Write an MCAP as a scene of its name and return that; raises ConfigError for what is not as mapped."""
    mapped, name = mapping_of(mapping), re.sub(r"[^A-Za-z0-9_.+-]", "_", log.stem)
    try:
        with log.open("rb") as file:
            check_topics(file, log, mapped)
            times, tree, infos, poses = survey(file, log, mapped)
            with new_scene(out, name) as folder:
                fill_scene(file, log, folder, mapped, times, tree, infos, poses)
    except OSError as error:
        raise ConfigError(f"{log}: {error.strerror or error}") from None
    return name


def open_reader(file: BinaryIO, log: Path) -> Any:
    """Return a reader of an MCAP; raises ConfigError where the packages for it are not installed."""
    try:
        from mcap.reader import make_reader
        from mcap_ros2.decoder import DecoderFactory
    except ImportError:
        raise ConfigError(
            "reading MCAP needs the packages mcap and mcap-ros2-support; install them with: "
            "pip install -r install/requirements-import.txt"
        ) from None
    file.seek(0)
    try:
        return make_reader(file, decoder_factories=[DecoderFactory()])
    except Exception as error:  # the reader fails in as many ways as files are damaged
        raise ConfigError(f"{log}: this is no whole MCAP ({error})") from None


def messages(file: BinaryIO, log: Path, topics: Sequence[str], decoded: bool) -> Iterator[tuple[str, Any]]:
    """Yield topic and message, in the order of the log: decoded, or as bytes; raises ConfigError for a damaged file."""
    reader = open_reader(file, log)
    try:
        if decoded:
            for _, channel, _, message in reader.iter_decoded_messages(topics=list(topics)):
                yield channel.topic, message
        else:
            for _, channel, message in reader.iter_messages(topics=list(topics)):
                yield channel.topic, bytes(message.data)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{log}: it cannot be read to its end ({type(error).__name__}: {error})") from None


def check_topics(file: BinaryIO, log: Path, mapped: Mapped) -> None:
    """Raise ConfigError unless all topics of the mapping are in a log, as messages of ROS 2."""
    try:
        summary = open_reader(file, log).get_summary()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"{log}: this is no whole MCAP ({error})") from None
    channels = {one.topic: one for one in summary.channels.values()} if summary else {}
    missing = [topic for topic in mapped.topics if topic not in channels]
    if missing:
        raise ConfigError(f"{log} has no topic {missing[0]}; it has {', '.join(sorted(channels)) or 'none'}")
    other = [topic for topic in mapped.topics if channels[topic].message_encoding != "cdr"]
    if other:
        raise ConfigError(f"{log}: {other[0]} is encoded as {channels[other[0]].message_encoding!r}; ROS 2 has 'cdr'")


def survey(
    file: BinaryIO, log: Path, mapped: Mapped
) -> tuple[Mapping[str, Times], FrameTree, Mapping[str, Any], tuple[list[int], list[Float64], str]]:
    """Return when clouds and images were taken, how frames stand, CameraInfo by topic, and poses of the vehicle.

    Poses are times in nanoseconds, world_from_child (4, 4), and the name of the child's frame.
    """
    big = [mapped.points.topic, *(one.topic for one in mapped.camera)]
    times = {topic: Times([], "") for topic in big}
    for topic, content in messages(file, log, big, decoded=False):
        ns, frame = header_of(content)
        times[topic].ns.append(ns)
        times[topic] = Times(times[topic].ns, frame)
    tree, infos = FrameTree(), {}
    stamps: list[int] = []
    found: list[Float64] = []
    child = mapped.ego
    small = [TF, *(one.info for one in mapped.camera), *([mapped.pose.topic] if mapped.pose else [])]
    for topic, message in messages(file, log, small, decoded=True):
        if topic == TF:
            tree.add(message)
        elif mapped.pose and topic == mapped.pose.topic:
            stamps.append(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)
            found.append(pose_of(getattr(message.pose, "pose", message.pose)))
            child = plain_name(getattr(message, "child_frame_id", "") or mapped.ego)
        else:
            infos[topic] = message
    silent = [topic for topic in big if not times[topic].ns]
    silent += [one.info for one in mapped.camera if one.info not in infos]
    if silent:
        raise ConfigError(f"{log}: there is no message on {silent[0]}")
    return times, tree, infos, (stamps, found, child)


def pose_at(ns: int, stamps: Sequence[int], poses: Sequence[Float64]) -> Float64 | None:
    """Return the pose (4, 4) between those around a time, nanoseconds; None outside of them, or in too wide a gap."""
    after = bisect_left(stamps, ns)
    if after < len(stamps) and stamps[after] == ns:
        return poses[after]
    if after in (0, len(stamps)) or stamps[after] - stamps[after - 1] > MOST_POSE_GAP_S * 1e9:
        return None
    share = (ns - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
    both = np.stack([poses[after - 1], poses[after]])
    pose = np.eye(4)
    pose[:3, :3] = scipy.spatial.transform.Slerp(
        [0.0, 1.0], scipy.spatial.transform.Rotation.from_matrix(both[:, :3, :3])
    )(share).as_matrix()
    pose[:3, 3] = (1 - share) * both[0, :3, 3] + share * both[1, :3, 3]
    return pose


def fill_scene(
    file: BinaryIO,
    log: Path,
    folder: Path,
    mapped: Mapped,
    times: Mapping[str, Times],
    tree: FrameTree,
    infos: Mapping[str, Any],
    poses: tuple[list[int], list[Float64], str],
) -> None:
    """Write sweeps and images that are near each other in time, and the description of the scene."""
    order = np.argsort(poses[0], kind="stable").tolist()
    stamps, world = [poses[0][i] for i in order], [poses[1][i] for i in order]
    child_from_ego = tree.pose(poses[2], mapped.ego)

    def world_from_ego(ns: int) -> Float64 | None:
        pose = pose_at(ns, stamps, world)
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
    files = write_files(file, log, folder, mapped, wanted)
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
        intrinsics, lens = camera_of(infos[camera.info], mapped.rectified, f"{log}: {camera.info}")
        ego_from_cam = tree.pose(mapped.ego, times[camera.topic].frame)
        cameras.append(ImportedCamera(camera.name, f"{camera.name}/{{frame}}", intrinsics, ego_from_cam, lens))
    ego_from_lidar = tree.pose(mapped.ego, times[mapped.points.topic].frame)
    write_scene(folder, "points/{frame}.npy", ego_from_lidar, cameras, frames)


def write_files(
    file: BinaryIO, log: Path, folder: Path, mapped: Mapped, wanted: Mapping[str, Mapping[int, Sequence[int]]]
) -> Mapping[tuple[str, int], str]:
    """Write the messages that are wanted, and return the names of image files by topic and position."""
    names = {one.topic: one.name for one in mapped.camera}
    for part in ("points", *names.values()):
        (folder / part).mkdir(exist_ok=True)
    counts = dict.fromkeys(wanted, -1)
    found: dict[tuple[str, int], str] = {}
    for topic, message in messages(file, log, list(wanted), decoded=True):
        counts[topic] += 1
        at = counts[topic]
        if at not in wanted[topic]:
            continue
        where = f"{log}: {topic}, message {at}"
        if topic == mapped.points.topic:
            np.save(folder / "points" / f"{at:06d}.npy", cloud_of(message, where))
            continue
        content, ending = image_of(message, where)
        found[topic, at] = f"{names[topic]}/{at:06d}{ending}"
        (folder / found[topic, at]).write_bytes(content)
    return found
