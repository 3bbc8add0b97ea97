"""One key frame: its files, its calibration, its place in the world; as listed and as `index` stores it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.endings import RunError, summary
from manifests.storage.places import RemotePath, Root
from manifests.tables.sensors import Index
from pipeline.lenses import GLOBAL, MOST, PINHOLE, Lens, Shutter, lens_in, rectified


class FrameError(RunError):
    """A frame that a stage could not handle; it names the file or value at fault and what was expected.

    The message of an excluded frame is stored, so it must be the same wherever it arises: files by their relative name.
    """


UNKNOWN_POSE = np.full((4, 4), np.nan)
"""The pose of a vehicle of which the data set says nothing; what needs it refuses."""

UNKNOWN_MOTION = np.full(6, np.nan)
"""The motion of a LiDAR of which the data set says nothing; what needs it refuses."""


@dataclass(frozen=True)
class Camera:
    """One image of a frame, as its lens took it (a pinhole, where it is rectified); pixel centres at whole coordinates.

    `cam_from_lidar` float64 (4, 4) maps the LiDAR frame at the sweep's time to the camera frame (x right, y down,
    z forward) at the image's time, so the vehicle's motion in between is accounted for. `intrinsics` float64 (3, 3),
    px. `shutter` is how its rows were read out. `mask_path` is a file that shows where the image shows the vehicle
    itself, empty where there is none. Sizes are 0 and digests empty until `index` has opened the files. `rectify`: its
    image is wanted as a pinhole of its `intrinsics` would have taken it, which is in no table.
    """

    name: str
    token: str
    image_path: str
    timestamp_us: int
    intrinsics: NDArray[Any]
    cam_from_lidar: NDArray[Any]
    image_bytes: int = 0
    width_px: int = 0
    height_px: int = 0
    image_sha256: str = ""
    lens: Lens = PINHOLE
    shutter: Shutter = GLOBAL
    mask_path: str = ""
    mask_sha256: str = ""
    rectify: bool = False

    @property
    def bends(self) -> bool:
        """Whether its image is wanted otherwise than it is stored."""
        return self.rectify and not self.lens.straight


@dataclass(frozen=True)
class Sweep:
    """The file of one of several LiDARs whose points are joined to one sweep, and its pose in the frame of that.

    `lidar_from_sweep` float64 (4, 4), the vehicle's motion between their times included. The digest is empty and the
    count 0 until `index` has opened the file.
    """

    name: str
    path: str
    lidar_from_sweep: NDArray[Any]
    sha256: str = ""
    n_points: int = 0


@dataclass(frozen=True)
class Frame:
    """One LiDAR sweep and the images taken with it. Paths are relative to the data root and never leave it.

    `ego_from_lidar` and `world_from_lidar` float64 (4, 4), metres. `lidar_bytes` and `n_points` are 0 until `index` has
    opened the file. `label_path` is None where no true labels exist, `label_sha256` where they are not on disk. A
    missing camera is simply not among `cameras`. `problems` are faults that were found while listing, as sentences;
    `index` reports them and stores no such frame. `files` are the digests of what a stage reads of disk beside that, by
    name (None: not there); a worker fills them in for the stage at hand. `posed` is False where the data set has no
    pose of the vehicle: `world_from_lidar` is `UNKNOWN_POSE` then, and stays it in the tables. `sweeps` are those of
    several LiDARs, of which `lidar_path` is the first and its frame that of all points; empty where there is one LiDAR.
    `lidar_motion` (6,) is how the LiDAR moves at the sweep's time: rotation vector in rad/s, velocity in m/s, in its
    own frame; `UNKNOWN_MOTION` where nothing tells it.
    """

    frame_id: str
    scene: str
    timestamp_us: int
    lidar_token: str
    lidar_path: str
    label_path: str | None
    ego_from_lidar: NDArray[Any]
    world_from_lidar: NDArray[Any]
    cameras: tuple[Camera, ...]
    lidar_bytes: int = 0
    n_points: int = 0
    lidar_sha256: str = ""
    label_sha256: str | None = None
    problems: tuple[str, ...] = ()
    files: Mapping[str, str | None] = field(default_factory=dict)
    posed: bool = True
    sweeps: tuple[Sweep, ...] = ()
    lidar_motion: NDArray[Any] = field(default_factory=UNKNOWN_MOTION.copy)

    @classmethod
    def of(cls, index: Index) -> Frame:
        """Return the frame stored in a row of table `index`."""
        cameras = tuple(
            Camera(
                name=name,
                token=index.camera_token[view],
                image_path=index.image_path[view],
                timestamp_us=int(index.image_timestamp_us[view]),
                intrinsics=index.intrinsics[view],
                cam_from_lidar=index.cam_from_lidar[view],
                image_bytes=int(index.image_bytes[view]),
                image_sha256=index.image_sha256[view],
                width_px=int(index.width_px[view]),
                height_px=int(index.height_px[view]),
                lens=lens_in(index.lens[view], index.distortion[view]),
                shutter=Shutter(
                    index.shutter[view], float(index.readout_s[view]), tuple(index.cam_motion[view].tolist())
                ),
                mask_path=index.mask_path[view],
                mask_sha256=index.mask_sha256[view],
            )
            for view, name in enumerate(index.camera)
        )
        sweeps = tuple(
            Sweep(*values)
            for values in zip(
                index.sweep,
                index.sweep_path,
                index.lidar_from_sweep,
                index.sweep_sha256,
                index.sweep_points.tolist(),
                strict=True,
            )
        )
        return cls(
            frame_id=index.frame_id,
            scene=index.scene,
            timestamp_us=index.timestamp_us,
            lidar_token=index.lidar_token,
            lidar_path=index.lidar_path,
            label_path=index.label_path,
            ego_from_lidar=index.ego_from_lidar,
            world_from_lidar=index.world_from_lidar,
            cameras=cameras,
            lidar_bytes=index.lidar_bytes,
            lidar_sha256=index.lidar_sha256,
            n_points=index.n_points,
            label_sha256=index.label_sha256,
            sweeps=sweeps,
            lidar_motion=index.lidar_motion,
        )

    def index(self) -> Index:
        """Return the frame as a row of table `index`; what was found while listing has no place there."""
        cameras = self.cameras
        return Index(
            frame_id=self.frame_id,
            scene=self.scene,
            timestamp_us=self.timestamp_us,
            lidar_token=self.lidar_token,
            lidar_path=self.lidar_path,
            lidar_bytes=self.lidar_bytes,
            lidar_sha256=self.lidar_sha256,
            n_points=self.n_points,
            sweep=tuple(one.name for one in self.sweeps),
            sweep_path=tuple(one.path for one in self.sweeps),
            sweep_sha256=tuple(one.sha256 for one in self.sweeps),
            sweep_points=np.array([one.n_points for one in self.sweeps], np.int64),
            lidar_from_sweep=np.array([one.lidar_from_sweep for one in self.sweeps], np.float64).reshape(-1, 4, 4),
            label_path=self.label_path,
            label_sha256=self.label_sha256,
            ego_from_lidar=self.ego_from_lidar,
            world_from_lidar=self.world_from_lidar,
            camera=tuple(camera.name for camera in cameras),
            camera_token=tuple(camera.token for camera in cameras),
            image_path=tuple(camera.image_path for camera in cameras),
            image_sha256=tuple(camera.image_sha256 for camera in cameras),
            image_bytes=np.array([camera.image_bytes for camera in cameras], np.int64),
            image_timestamp_us=np.array([camera.timestamp_us for camera in cameras], np.int64),
            width_px=np.array([camera.width_px for camera in cameras], np.int32),
            height_px=np.array([camera.height_px for camera in cameras], np.int32),
            intrinsics=np.array([camera.intrinsics for camera in cameras], np.float64).reshape(-1, 3, 3),
            lens=tuple(camera.lens.model for camera in cameras),
            distortion=np.array([camera.lens.padded for camera in cameras], np.float64).reshape(-1, MOST),
            shutter=tuple(camera.shutter.direction for camera in cameras),
            readout_s=np.array([camera.shutter.readout_s for camera in cameras], np.float64),
            cam_motion=np.array([camera.shutter.motion for camera in cameras], np.float64).reshape(-1, 6),
            lidar_motion=np.asarray(self.lidar_motion, np.float64),
            mask_path=tuple(camera.mask_path for camera in cameras),
            mask_sha256=tuple(camera.mask_sha256 for camera in cameras),
            cam_from_lidar=np.array([camera.cam_from_lidar for camera in cameras], np.float64).reshape(-1, 4, 4),
        )


def seen_by(frame: Frame, cameras: Collection[str], masks: Mapping[str, str] = MappingProxyType({})) -> Frame:
    """Return the frame with the cameras of these names, all where there are none, and with their masks by name.

    "none" is the name of no camera.
    """
    return replace(
        frame,
        cameras=tuple(
            replace(one, mask_path=masks.get(one.name, ""))
            for one in frame.cameras
            if not cameras or one.name in cameras
        ),
    )


def slashed(name: str) -> str:
    """Return the name of a data file as written on Windows with the slashes of everywhere else."""
    return name.replace("\\", "/")


def inside(root: Root, relative: str) -> Root:
    """Return the path of a data file; raises FrameError if the relative name is absolute or climbs out of the root."""
    if not stays_inside(relative):
        raise FrameError(f"{relative!r} leaves the data root {root}; file names in the data set must stay inside it")
    return root / relative


def stays_inside(relative: str) -> bool:
    """Return whether a name is one of a file below the folder that it is relative to."""
    return not (relative.startswith("/") or "\\" in relative or (".." in relative and ".." in relative.split("/")))


def read_file(root: Root, relative: str, sha256: str | None = "") -> bytes:
    """Return the content of a data file, which must have the digest that was recorded of it; "" asks for none.

    None stands for a file that was not there. The digest is that of the very bytes returned, so what is computed from
    them is computed from what the index knows. Raises FrameError if the file is missing or another one, and
    DataUnreachable where a root behind a network gives no answer.
    """
    path = inside(root, relative)
    try:
        content = path.content(sha256 or "") if isinstance(path, RemotePath) else path.read_bytes()
    except OSError as error:
        raise FrameError(f"{relative}: {error.strerror or type(error).__name__}") from None
    if sha256 != "" and hashlib.sha256(content).hexdigest() != sha256:
        raise FrameError(
            f"{relative} {'was put there' if sha256 is None else 'was replaced'} since it was indexed: run again, and "
            "what depends on it is built anew; if that changes nothing, have all files read again first, with: "
            "make index RECIPE=... ARGS=--again"
        )
    return content


def read_image(root: Root, camera: Camera) -> NDArray[Any]:
    """Return an image as uint8 (height, width, 3) RGB, fully decoded.

    Raises FrameError if the file is empty, truncated, not an image, or not the one that was indexed.
    """
    return read_image_for(root, camera, lambda height_px, width_px: (height_px, width_px))[0]


def look_at_image(root: Root, camera: Camera) -> tuple[int, int]:
    """Return (height, width) of an image in pixels, after its file was decoded to the end.

    A JPEG is decoded at an eighth of its size, which takes a third of the time and reads every bit of the file all the
    same. Raises FrameError as `read_image` does.
    """
    found: list[tuple[int, int]] = []

    def smallest(height_px: int, width_px: int) -> tuple[int, int]:
        found.append((height_px, width_px))
        return 1, 1

    open_image_for(root, camera, smallest, scaled=True)
    return found[0]


def read_mask(root: Root, camera: Camera) -> NDArray[np.bool_] | None:
    """Return where an image shows the vehicle itself, bool (height, width); None where the camera has no mask.

    Raises FrameError if the file is not the one that was indexed, no image, or of another size than the camera's.
    """
    if not camera.mask_path:
        return None
    plain = replace(camera, image_path=camera.mask_path, image_sha256=camera.mask_sha256, width_px=0, height_px=0)
    bright: NDArray[np.bool_] = read_image(root, plain).max(axis=2) >= BRIGHT
    if bright.shape != (camera.height_px, camera.width_px):
        raise FrameError(
            f"{camera.mask_path}: {bright.shape[1]} x {bright.shape[0]} pixels, but {camera.image_path} has "
            f"{camera.width_px} x {camera.height_px}"
        )
    return bright


def read_image_for(
    root: Root, camera: Camera, size_of: Callable[[int, int], tuple[int, int]], scaled: bool = False
) -> tuple[NDArray[Any], tuple[int, int]]:
    """Return an image as uint8 (height, width, 3) RGB, and the size that it is wanted at, `size_of` its own in pixels.

    With `scaled`, a JPEG whose half, quarter or eighth is not smaller than that comes as that: its decoder leaves out
    fine waves instead of computing pixels that a resize averages away, in a fraction of the time. All of the file is
    read either way. Raises FrameError as `read_image` does.
    """
    image, size = open_image_for(root, camera, size_of, scaled)
    return np.asarray(image), size


def read_resized(
    root: Root, camera: Camera, size_of: Callable[[int, int], tuple[int, int]], scaled: bool = False
) -> NDArray[np.uint8]:
    """Return an image at the size that `size_of` gives for its own: bicubic, antialiased, on 8-bit pixels.

    The rest is as in `read_image_for`; the pixels are handed on once less.
    """
    [image] = read_at_sizes(root, camera, lambda height_px, width_px: [size_of(height_px, width_px)], scaled)
    return image


def read_at_sizes(
    root: Root, camera: Camera, sizes_of: Callable[[int, int], Iterable[tuple[int, int]]], scaled: bool = False
) -> list[NDArray[np.uint8]]:
    """Return an image at each size (height, width) that `sizes_of` gives for its own; see `read_resized`.

    It is decoded once, with `scaled` no smaller than the largest of them.
    """
    from PIL.Image import Resampling

    sizes: list[tuple[int, int]] = []

    def largest(height_px: int, width_px: int) -> tuple[int, int]:
        sizes.extend(sizes_of(height_px, width_px))
        return max(height for height, _ in sizes), max(width for _, width in sizes)

    image, _ = open_image_for(root, camera, largest, scaled)
    return [np.asarray(image.resize(size[::-1], Resampling.BICUBIC)) for size in sizes]


def open_image_for(
    root: Root, camera: Camera, size_of: Callable[[int, int], tuple[int, int]], scaled: bool
) -> tuple[Any, tuple[int, int]]:
    """Return what `read_image_for` does as an image of Pillow, decoded, in mode RGB."""
    import io

    from PIL import Image, UnidentifiedImageError

    content = read_file(root, camera.image_path, camera.image_sha256)
    try:
        with Image.open(io.BytesIO(content)) as image:
            width_px, height_px = image.size
            if width_px * height_px > MAX_IMAGE_PIXELS:
                raise FrameError(f"{camera.image_path}: {width_px} x {height_px} pixels is no camera image")
            size = size_of(height_px, width_px)
            if scaled and not camera.bends:
                image.draft(None, size[::-1])
            decoded = rgb_of(image, camera.image_path)
    except UnidentifiedImageError:
        raise FrameError(f"{camera.image_path}: cannot be decoded as an image: unknown kind of file") from None
    except FrameError:
        raise
    except Exception as error:  # decoders of damaged files fail in as many ways as there are kinds of files
        raise FrameError(f"{camera.image_path}: cannot be decoded as an image: {summary(error)}") from error
    if camera.width_px and (height_px, width_px) != (camera.height_px, camera.width_px):
        raise FrameError(
            f"{camera.image_path}: {width_px} x {height_px} pixels now, "
            f"{camera.width_px} x {camera.height_px} when it was indexed"
        )
    if camera.bends:
        decoded = Image.fromarray(rectified(np.asarray(decoded), camera.lens, camera.intrinsics))
    return decoded, size


def rgb_of(image: Any, name: str) -> Any:
    """Return a Pillow image in mode RGB, its pixels as they are stored: no EXIF tag turns it.

    Of 16 bits the upper 8 are taken. Raises FrameError for kinds whose scale nothing tells: 10 or 12 bits in 16, whole
    numbers of 32 bits, and floats.
    """
    from PIL import Image

    if image.mode in ("I", "F"):
        kind = "32-bit float" if image.mode == "F" else "32-bit whole-number"
        raise FrameError(f"{name}: nothing tells the scale of a {kind} image; convert it to 8 bits")
    if image.mode == "RGB":
        image.load()  # `convert` would copy what is decoded
        return image
    if not image.mode.startswith("I;16"):
        return image.convert("RGB")
    values = np.asarray(image)
    if values.max(initial=0) < MOST_OF_12_BITS:
        raise FrameError(
            f"{name}: the largest value of this 16-bit image is {values.max(initial=0)}, as if it had 10 or 12 bits; "
            "scale it to 16 bits, or convert it to 8"
        )
    return Image.fromarray(np.repeat((values >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


MOST_OF_12_BITS = 4096
BRIGHT = 128  # in a mask: the vehicle
MAX_IMAGE_PIXELS = 64_000_000  # far above any car camera, far below what a decompression bomb needs
