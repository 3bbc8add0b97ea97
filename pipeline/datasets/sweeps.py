"""The sweep of a frame, whichever data set it is of: its file, decoded, in the LiDAR's own frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from manifests.sections.data import DataConfig
from pipeline.datasets.clouds import Cloud, read_cloud
from pipeline.frame import Frame, FrameError, read_file
from pipeline.geometry import Float64, inverse_pose


def read_sweep(frame: Frame, data: DataConfig, usual: Sequence[str] | None = None) -> Cloud:
    """Return the sweep of a frame; raises FrameError, naming the file, if it is missing or damaged.

    `usual` are the columns of bare float32, where the data set always has the same.
    """
    content = read_file(Path(data.root), frame.lidar_path, frame.lidar_sha256)
    try:
        return read_cloud(frame.lidar_path, content, usual, data, lidar_from_points(frame, data))
    except ValueError as error:
        raise FrameError(f"{frame.lidar_path}: {error}") from None


def lidar_from_points(frame: Frame, data: DataConfig) -> Float64 | None:
    """Return the pose (4, 4) that takes points as they are stored to the LiDAR's frame; None where that is theirs."""
    if data.points_in == "ego":
        return inverse_pose(frame.ego_from_lidar)
    return inverse_pose(frame.world_from_lidar) if data.points_in == "world" else None
