"""The sweep of a frame, whichever data set it is of: its files, decoded, in the LiDAR's own frame; masks of cameras."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from manifests.storage.places import root_of
from pipeline.datasets.clouds import Cloud, Moving, joined, read_cloud
from pipeline.frame import Frame, FrameError, read_file
from pipeline.geometry import Float64, inverse_pose

_log = logging.getLogger(__name__)


def read_sweep(frame: Frame, data: DataConfig, usual: Sequence[str] | None = None) -> Cloud:
    """Return the sweep of a frame, those of several LiDARs joined; raises FrameError, naming the file at fault.

    `usual` are the columns of bare float32, where the data set always has the same.
    """
    lidar_from_stored = lidar_from_points(frame, data)
    if not frame.sweeps:
        moving = Moving(frame.lidar_motion, frame.timestamp_us) if data.time_column else None
        return read_one(frame.lidar_path, frame.lidar_sha256, data, usual, lidar_from_stored, moving)
    if data.time_column:
        raise FrameError("data.time_column: points of several LiDARs that are joined have no times of their own here")
    clouds = [read_one(one.path, one.sha256, data, usual, lidar_from_stored) for one in frame.sweeps]
    in_own_frame = lidar_from_stored is None
    return joined(clouds, [one.lidar_from_sweep if in_own_frame else np.eye(4) for one in frame.sweeps])


def tell_unswept(where: str, images: Collection[str], sweeps: Collection[str]) -> None:
    """Say how many images, by the numbers that name them, have no sweep of their number: those make no frame."""
    alone = sorted(set(images) - set(sweeps))
    if alone:
        _log.warning("%s: %d images have no sweep and are left out, the first is %s", where, len(alone), alone[0])


def read_one(
    path: str,
    sha256: str,
    data: DataConfig,
    usual: Sequence[str] | None,
    lidar_from_stored: Float64 | None,
    moving: Moving | None = None,
) -> Cloud:
    """Return the points of one file; raises FrameError, naming it, if it is missing or damaged."""
    content = read_file(root_of(data), path, sha256)
    try:
        return read_cloud(path, content, usual, data, lidar_from_stored, moving)
    except ValueError as error:
        raise FrameError(f"{path}: {error}") from None


def lidar_from_points(frame: Frame, data: DataConfig) -> Float64 | None:
    """Return the pose (4, 4) that takes points as they are stored to the LiDAR's frame; None where that is theirs."""
    if data.points_in == "ego":
        return inverse_pose(frame.ego_from_lidar)
    return inverse_pose(frame.world_from_lidar) if data.points_in == "world" else None


MOST_KEPT_BYTES = 256_000_000  # some 450 sweeps of nuScenes


class KeptSweeps:
    """Sweeps that a worker decoded for stage `index`, until stage `points` stores them: none is decoded twice.

    There are at most `most_bytes` of them. Beyond that the oldest are let go, and decoded again by who wants them.
    """

    def __init__(self, most_bytes: int = MOST_KEPT_BYTES) -> None:
        self._most_bytes, self._n_bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[str | bytes, ...], Cloud] = OrderedDict()

    def keep(self, frame: Frame, cloud: Cloud) -> None:
        """Keep the sweep of a frame whose file has a known digest."""
        self.take(frame)
        self._kept[what_decides(frame)] = cloud
        self._n_bytes += cloud.xyz_m.nbytes + cloud.intensity.nbytes
        while self._n_bytes > self._most_bytes:
            self._let_go(next(iter(self._kept)))

    def take(self, frame: Frame) -> Cloud | None:
        """Return the sweep of a frame, which is kept no longer; None where it is not known."""
        key = what_decides(frame)
        return self._let_go(key) if key in self._kept else None

    def clear(self) -> None:
        """Let go of all."""
        self._kept.clear()
        self._n_bytes = 0

    def _let_go(self, key: tuple[str | bytes, ...]) -> Cloud:
        cloud = self._kept.pop(key)
        self._n_bytes -= cloud.xyz_m.nbytes + cloud.intensity.nbytes
        return cloud


def what_decides(frame: Frame) -> tuple[str | bytes, ...]:
    """Return what the sweep of a frame follows from, within one recipe: its files, by their digests, and its poses."""
    poses = (frame.ego_from_lidar.tobytes(), frame.world_from_lidar.tobytes(), frame.lidar_motion.tobytes())
    others = (part for one in frame.sweeps for part in (one.path, one.sha256, one.lidar_from_sweep.tobytes()))
    return frame.frame_id, frame.lidar_path, frame.lidar_sha256, *poses, *others


def masks_of(data: DataConfig, cameras: Collection[str]) -> Mapping[str, str]:
    """Return the masks that there are, by camera, relative to the root; raises ConfigError where there is none."""
    if not data.masks:
        return {}
    found = {name: f"{data.masks}/{name}.png" for name in cameras}
    found = {name: path for name, path in found.items() if (root_of(data) / path).is_file()}
    if not found:
        raise ConfigError(
            f"data.masks is {data.masks!r}, but {data.root} has no file {data.masks}/CAMERA.png for any of the cameras "
            f"{', '.join(sorted(cameras))}"
        )
    return found
