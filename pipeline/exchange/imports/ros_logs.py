"""Logs of ROS 2 as files: an MCAP, or a bag of SQLite files, `.db3`; messages by topic, whichever it is.

A bag says of its messages only what they are called, so the definitions of those that are read stand here; an MCAP
brings its own. Messages of both are decoded by the packages mcap and mcap-ros2-support (extra `import`). Sources: the
format of MCAP at mcap.dev; for bags, the tables of `rosbag2_storage_sqlite3`; for messages, the files `.msg` of
std_msgs, sensor_msgs, geometry_msgs, nav_msgs and tf2_msgs.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from manifests.config import ConfigError

CDR = "cdr"
ENDINGS = (".mcap", ".db3")

_HEADER = "std_msgs/Header header\n"
_PARTS = {
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id\n",
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec\n",
    "geometry_msgs/Vector3": "float64 x\nfloat64 y\nfloat64 z\n",
    "geometry_msgs/Point": "float64 x\nfloat64 y\nfloat64 z\n",
    "geometry_msgs/Quaternion": "float64 x\nfloat64 y\nfloat64 z\nfloat64 w\n",
    "geometry_msgs/Transform": "geometry_msgs/Vector3 translation\ngeometry_msgs/Quaternion rotation\n",
    "geometry_msgs/TransformStamped": f"{_HEADER}string child_frame_id\ngeometry_msgs/Transform transform\n",
    "geometry_msgs/Pose": "geometry_msgs/Point position\ngeometry_msgs/Quaternion orientation\n",
    "geometry_msgs/PoseWithCovariance": "geometry_msgs/Pose pose\nfloat64[36] covariance\n",
    "geometry_msgs/Twist": "geometry_msgs/Vector3 linear\ngeometry_msgs/Vector3 angular\n",
    "geometry_msgs/TwistWithCovariance": "geometry_msgs/Twist twist\nfloat64[36] covariance\n",
    "sensor_msgs/PointField": "string name\nuint32 offset\nuint8 datatype\nuint32 count\n",
    "sensor_msgs/RegionOfInterest": "uint32 x_offset\nuint32 y_offset\nuint32 height\nuint32 width\nbool do_rectify\n",
}
_MESSAGES = {
    "sensor_msgs/msg/PointCloud2": f"{_HEADER}uint32 height\nuint32 width\nsensor_msgs/PointField[] fields\n"
    "bool is_bigendian\nuint32 point_step\nuint32 row_step\nuint8[] data\nbool is_dense\n",
    "sensor_msgs/msg/CompressedImage": f"{_HEADER}string format\nuint8[] data\n",
    "sensor_msgs/msg/Image": f"{_HEADER}uint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
    "uint8[] data\n",
    "sensor_msgs/msg/CameraInfo": f"{_HEADER}uint32 height\nuint32 width\nstring distortion_model\nfloat64[] d\n"
    "float64[9] k\nfloat64[9] r\nfloat64[12] p\nuint32 binning_x\nuint32 binning_y\nsensor_msgs/RegionOfInterest roi\n",
    "tf2_msgs/msg/TFMessage": "geometry_msgs/TransformStamped[] transforms\n",
    "nav_msgs/msg/Odometry": f"{_HEADER}string child_frame_id\ngeometry_msgs/PoseWithCovariance pose\n"
    "geometry_msgs/TwistWithCovariance twist\n",
    "geometry_msgs/msg/PoseStamped": f"{_HEADER}geometry_msgs/Pose pose\n",
}
"""Messages that are read of bags, field by field as ROS 2 has them."""


class RosLog(Protocol):
    """A log of ROS 2: what topics it has, and their messages."""

    @property
    def place(self) -> Path:
        """Where it lies."""
        ...

    def topics(self) -> Mapping[str, str]:
        """Return how the messages of each topic are encoded; raises ConfigError for a log that cannot be read."""
        ...

    def messages(self, topics: Sequence[str], decoded: bool) -> Iterator[tuple[str, Any]]:
        """Yield topic and message, in the order of the log: decoded, or as bytes; raises ConfigError."""
        ...


@dataclass(frozen=True)
class Mcap:
    """An MCAP that is open for reading."""

    place: Path
    file: BinaryIO

    def topics(self) -> Mapping[str, str]:
        """Return how the messages of each topic are encoded."""
        try:
            summary = self._reader().get_summary()
        except ConfigError:
            raise
        except Exception as error:  # the reader fails in as many ways as files are damaged
            raise ConfigError(f"{self.place}: this is no whole MCAP ({error})") from None
        return {one.topic: one.message_encoding for one in summary.channels.values()} if summary else {}

    def messages(self, topics: Sequence[str], decoded: bool) -> Iterator[tuple[str, Any]]:
        """Yield topic and message, in the order of the log."""
        reader = self._reader()
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
            raise ConfigError(f"{self.place}: it cannot be read to its end ({type(error).__name__}: {error})") from None

    def _reader(self) -> Any:
        try:
            from mcap.reader import make_reader
            from mcap_ros2.decoder import DecoderFactory
        except ImportError:
            raise not_installed() from None
        self.file.seek(0)
        try:
            return make_reader(self.file, decoder_factories=[DecoderFactory()])
        except Exception as error:
            raise ConfigError(f"{self.place}: this is no whole MCAP ({error})") from None


@dataclass(frozen=True)
class Bag:
    """A bag of SQLite files, one after the other."""

    place: Path
    files: tuple[Path, ...]

    def topics(self) -> Mapping[str, str]:
        """Return how the messages of each topic are encoded; raises ConfigError where its type is none that is read."""
        found: dict[str, str] = {}
        for path in self.files:
            rows = self._rows(path, "SELECT name, serialization_format FROM topics", ())
            found |= {str(name): str(encoding) for name, encoding in rows}
        return found

    def messages(self, topics: Sequence[str], decoded: bool) -> Iterator[tuple[str, Any]]:
        """Yield topic and message, in the order of the log, which is that of the times of their arrival."""
        marks = ", ".join("?" * len(topics))
        ask = (
            "SELECT topics.name, topics.type, messages.data FROM messages JOIN topics ON messages.topic_id = topics.id "
            f"WHERE topics.name IN ({marks}) ORDER BY messages.timestamp, messages.id"
        )
        decoders: dict[str, Callable[[bytes], Any]] = {}
        for path in self.files:
            for topic, kind, content in self._rows(path, ask, tuple(topics)):
                if not decoded:
                    yield str(topic), bytes(content)
                    continue
                if kind not in decoders:
                    decoders[kind] = decoder_of(str(kind), f"{self.place}: {topic}")
                try:
                    message = decoders[kind](bytes(content))
                except Exception as error:  # bytes that are no message fail in as many ways
                    raise ConfigError(f"{path}: a message on {topic} is no {kind} ({error})") from None
                yield str(topic), message

    def _rows(self, path: Path, ask: str, values: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as base:
                yield from base.execute(ask, values)
        except sqlite3.Error as error:
            raise ConfigError(f"{path}: this is no whole bag of ROS 2 ({error})") from None


def bag_at(place: Path) -> Bag:
    """Return the bag at a path: one `.db3`, or a folder of them; raises ConfigError where there is none.

    Files that are compressed as a whole end in `.db3.zstd`; `ros2 bag convert` writes them as they are read here.
    """
    if not place.is_dir():
        return Bag(place, (place,))
    files = sorted(place.glob("*.db3"), key=lambda path: [int(part) for part in re.findall(r"\d+", path.stem)][-1:])
    if packed := next(place.glob("*.db3.zstd"), None):
        raise ConfigError(f"{packed} is compressed; unpack it with zstd, or write the bag anew with: ros2 bag convert")
    if not files:
        raise ConfigError(f"{place} holds no file that ends in .db3; expected the folder of a bag of ROS 2")
    return Bag(place, tuple(files))


def decoder_of(kind: str, where: str) -> Callable[[bytes], Any]:
    """Return what decodes messages of a kind; raises ConfigError for one that is not read."""
    try:
        from mcap.records import Schema
        from mcap_ros2.decoder import DecoderFactory
    except ImportError:
        raise not_installed() from None
    if kind not in _MESSAGES:
        raise ConfigError(f"{where} has messages of type {kind}; read are {', '.join(_MESSAGES)}")
    schema = Schema(id=1, name=kind, encoding="ros2msg", data=definition(kind).encode())
    decode: Any = DecoderFactory().decoder_for(CDR, schema)
    return decode  # type: ignore[no-any-return]


def definition(kind: str) -> str:
    """Return the definition of a message with those of its parts, as logs of ROS 2 hold it."""
    parts: dict[str, str] = {}
    waiting = [_MESSAGES[kind]]
    while waiting:
        for name in re.findall(r"^(\w+/\w+)(?:\[\d*\])? ", waiting.pop(), re.MULTILINE):
            if name not in parts:
                parts[name] = _PARTS[name]
                waiting.append(_PARTS[name])
    return _MESSAGES[kind] + "".join(f"{'=' * 80}\nMSG: {name}\n{text}" for name, text in parts.items())


def not_installed() -> ConfigError:
    """Return the error for packages that are not there."""
    return ConfigError(
        "reading logs of ROS 2 needs the packages mcap and mcap-ros2-support; install them with: "
        "pip install -r install/requirements-import.txt"
    )
