"""Messages of ROS as arrays: clouds, images, cameras, poses, and the tree of frames. Knows no file format.

Source: the definitions of sensor_msgs, geometry_msgs, nav_msgs and tf2_msgs.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from pipeline.exchange.imports.scene import Poses
from pipeline.geometry import Float64, chained, inverse_pose, pose_matrix
from pipeline.lenses import Lens, lens_of

POINT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 8: "f8"}
"""NumPy's names of PointField's data types."""

PIXELS = {
    "rgb8": ("u1", 3),
    "bgr8": ("u1", 3),
    "mono8": ("u1", 1),
    "8UC1": ("u1", 1),
    "8UC3": ("u1", 3),
    "mono16": ("u2", 1),
}
ENDINGS = {"jpeg": ".jpg", "jpg": ".jpg", "png": ".png", "webp": ".webp", "tiff": ".tiff"}


def header_of(message: bytes) -> tuple[int, str]:
    """Return time in nanoseconds and frame of a CDR message that begins with a Header, without decoding the rest.

    Raises ConfigError for bytes that are none.
    """
    try:
        order = "<" if message[1] & 1 else ">"
        seconds, nanoseconds, length = struct.unpack_from(f"{order}iII", message, 4)
        return seconds * 10**9 + nanoseconds, message[16 : 16 + length].rstrip(b"\0").decode()
    except (struct.error, IndexError, UnicodeDecodeError):
        raise ConfigError("a message does not begin with a header (time and frame); is it of ROS 2?") from None


def cloud_of(message: Any, where: str) -> npt.NDArray[Any]:
    """Return the points of a PointCloud2 as a structured array (n,), fields of one value each by name.

    Raises ConfigError for a message that is cut off, or has no x, y and z.
    """
    order = ">" if message.is_bigendian else "<"
    fields = [one for one in message.fields if one.count == 1 and one.datatype in POINT_TYPES]
    names = [one.name for one in fields]
    if not set(names) >= {"x", "y", "z"} or len(set(names)) < len(names):
        raise ConfigError(f"{where}: fields x, y and z were expected, each once; it has {', '.join(names) or 'none'}")
    record = np.dtype(
        {
            "names": names,
            "formats": [order + POINT_TYPES[one.datatype] for one in fields],
            "offsets": [one.offset for one in fields],
            "itemsize": message.point_step,
        }
    )
    row_bytes, content = message.width * message.point_step, bytes(message.data)
    if message.row_step < row_bytes or len(content) < message.row_step * message.height:
        raise ConfigError(f"{where}: the cloud is truncated: {len(content)} bytes for {message.height} rows")
    rows = [np.frombuffer(content, record, message.width, y * message.row_step) for y in range(message.height)]
    points = np.concatenate(rows) if rows else np.zeros(0, record)
    packed = np.zeros(len(points), [(name, points.dtype[name].newbyteorder("<")) for name in names])
    for name in names:
        packed[name] = points[name]
    nothing = np.isnan(np.stack([packed[axis].astype(np.float64) for axis in "xyz"])).all(axis=0)
    for name in names:
        packed[name][nothing] = 0  # pulses that came back from nothing
    return packed


def image_of(message: Any, where: str) -> tuple[bytes, str]:
    """Return an image as a file, and how its name ends: as it is, or a PNG of its pixels.

    Raises ConfigError for an encoding that is not read.
    """
    if hasattr(message, "format"):  # CompressedImage: "jpeg", or "bgr8; jpeg compressed bgr8"
        kind = next((word for word in message.format.replace(";", " ").lower().split() if word in ENDINGS), None)
        if kind is None:
            raise ConfigError(f"{where}: images of format {message.format!r} are not read, only {', '.join(ENDINGS)}")
        return bytes(message.data), ENDINGS[kind]
    if message.encoding not in PIXELS:
        raise ConfigError(f"{where}: images of encoding {message.encoding!r} are not read, only {', '.join(PIXELS)}")
    from PIL import Image

    kind, channels = PIXELS[message.encoding]
    element = np.dtype((">" if message.is_bigendian else "<") + kind)
    row = message.width * channels * element.itemsize
    content = np.frombuffer(bytes(message.data), np.uint8)
    if message.step < row or len(content) < message.step * message.height:
        raise ConfigError(f"{where}: the image is truncated: {len(content)} bytes for {message.height} rows")
    lines = content[: message.step * message.height].reshape(message.height, message.step)[:, :row]
    pixels = np.ascontiguousarray(lines).view(element).reshape(message.height, message.width, channels)
    pixels = pixels[:, :, ::-1] if message.encoding in ("bgr8", "8UC3") else pixels
    plain = np.ascontiguousarray(pixels[:, :, 0] if channels == 1 else pixels, element.newbyteorder("="))
    Image.fromarray(plain).save(file := io.BytesIO(), "PNG")
    return file.getvalue(), ".png"


def camera_of(info: Any, rectified: bool, where: str) -> tuple[Float64, Lens]:
    """Return camera matrix (3, 3) and lens of a CameraInfo: of its raw images, or of its rectified ones.

    Raises ConfigError for a distortion that is not known.
    """
    if rectified:
        return np.array(info.p, np.float64).reshape(3, 4)[:, :3], lens_of(())
    try:
        return np.array(info.k, np.float64).reshape(3, 3), lens_of(
            list(info.d), info.distortion_model if any(info.d) else ""
        )
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def pose_of(pose: Any) -> Float64:
    """Return a Pose or Transform as (4, 4); raises ValueError for one that is none."""
    place = getattr(pose, "translation", None) or pose.position
    turn = getattr(pose, "rotation", None) or pose.orientation
    return pose_matrix([turn.w, turn.x, turn.y, turn.z], [place.x, place.y, place.z])


class FrameTree:
    """Poses between frames by name: fixed ones as /tf_static tells them, and by time as /tf does."""

    def __init__(self) -> None:
        self._above: dict[str, tuple[str, Float64]] = {}
        self._moving: dict[str, tuple[str, dict[int, Float64]]] = {}
        self._poses: dict[str, Poses] = {}

    def add(self, message: Any) -> None:
        """Take in a TFMessage of /tf_static; a frame that is told again is told anew."""
        for one in message.transforms:
            child, parent = plain_name(one.child_frame_id), plain_name(one.header.frame_id)
            self._above[child] = parent, pose_of(one.transform)

    def add_moving(self, message: Any) -> None:
        """Take in a TFMessage of /tf; raises ConfigError where a frame has another one above it than before."""
        for one in message.transforms:
            child, parent = plain_name(one.child_frame_id), plain_name(one.header.frame_id)
            known, by_time = self._moving.setdefault(child, (parent, {}))
            if known != parent:
                raise ConfigError(f"/tf has frame {child} below {known} and below {parent}; it must be below one")
            by_time[one.header.stamp.sec * 10**9 + one.header.stamp.nanosec] = pose_of(one.transform)
            self._poses.pop(child, None)

    def pose_at(self, target: str, source: str, ns: int) -> Float64 | None:
        """Return `target_from_source` (4, 4) at a time, `target` being above `source`; None where it is not told then.

        Raises ConfigError where `target` is not above it at any time.
        """
        name, target, found = plain_name(source), plain_name(target), np.eye(4)
        passed = {name}
        while name != target:
            if name in self._moving:
                above, by_time = self._moving[name]
                poses = self._poses.setdefault(name, Poses(by_time.items()))
                pose = poses.at(ns)
            elif name in self._above:
                above, pose = self._above[name]
            else:
                raise ConfigError(
                    f"/tf and /tf_static do not lead from {source} up to {target}: there is nothing above {name}"
                )
            if pose is None:
                return None
            if above in passed:
                raise ConfigError(f"/tf goes round in a circle at frame {above}")
            passed.add(above)
            name, found = above, chained(pose, found)
        return found

    def pose(self, target: str, source: str) -> Float64:
        """Return `target_from_source` (4, 4); raises ConfigError where nothing joins them."""
        from_source, from_target = self._chain(plain_name(source)), self._chain(plain_name(target))
        common = next((name for name in from_source if name in from_target), None)
        if common is None:
            known = sorted({*self._above, *(parent for parent, _ in self._above.values())})
            raise ConfigError(
                f"/tf_static does not join frames {source} and {target}; it has {', '.join(known) or 'none'}"
            )
        return chained(inverse_pose(from_target[common]), from_source[common])

    def _chain(self, name: str) -> Mapping[str, Float64]:
        """Return the poses of a frame in itself and in all frames above it."""
        found = {name: np.eye(4)}
        while name in self._above:
            above, pose = self._above[name]
            if above in found:
                raise ConfigError(f"/tf_static goes round in a circle at frame {above}")
            found[above] = chained(pose, found[name])
            name = above
        return found


def plain_name(frame: str) -> str:
    """Return the name of a frame without a slash before it, as ROS 1 wrote them."""
    return frame.removeprefix("/")
