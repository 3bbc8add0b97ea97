"""A scene of data set `folder`, written down; it appears whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from manifests.config import ConfigError
from pipeline.datasets.folder import FILE
from pipeline.geometry import Float64
from pipeline.lenses import PINHOLE, Lens


@dataclass(frozen=True, eq=False)
class ImportedCamera:
    """A camera of a scene: file names with {frame} in them, camera matrix (3, 3), lens, pose in the vehicle (4, 4)."""

    name: str
    images: str
    intrinsics: Float64
    ego_from_cam: Float64
    lens: Lens = PINHOLE


@dataclass(frozen=True, eq=False)
class ImportedImage:
    """What differs of one image: its file, its time, and where the vehicle was then, as far as that is known."""

    file: str
    timestamp_us: int
    world_from_ego: Float64 | None = None


@dataclass(frozen=True, eq=False)
class ImportedFrame:
    """A sweep by its name, its time, where the vehicle was, and its images by camera; some may have none."""

    name: str
    timestamp_us: int
    world_from_ego: Float64 | None = None
    images: Mapping[str, ImportedImage] = field(default_factory=dict)


MOST_POSE_GAP_S = 1.0  # poses farther apart than this tell nothing of what is between them


class Poses:
    """Where something was, by time in nanoseconds."""

    def __init__(self, poses: Iterable[tuple[int, Float64]]) -> None:
        """`poses` (4, 4) are in any order; of two at one time, the last counts."""
        by_time = dict(poses)
        self._stamps = sorted(by_time)
        self._poses = [by_time[stamp] for stamp in self._stamps]

    def at(self, ns: int) -> Float64 | None:
        """Return the pose (4, 4) between those around a time; None outside of them, or in too wide a gap."""
        stamps = self._stamps
        after = bisect_left(stamps, ns)
        if after < len(stamps) and stamps[after] == ns:
            return self._poses[after]
        if after in (0, len(stamps)) or stamps[after] - stamps[after - 1] > MOST_POSE_GAP_S * 1e9:
            return None
        share = (ns - stamps[after - 1]) / (stamps[after] - stamps[after - 1])
        both = np.stack([self._poses[after - 1], self._poses[after]])
        pose = np.eye(4)
        pose[:3, :3] = scipy.spatial.transform.Slerp(
            [0.0, 1.0], scipy.spatial.transform.Rotation.from_matrix(both[:, :3, :3])
        )(share).as_matrix()
        pose[:3, 3] = (1 - share) * both[0, :3, 3] + share * both[1, :3, 3]
        return pose


def scene_toml(
    points: str, ego_from_lidar: Float64, cameras: Sequence[ImportedCamera], frames: Sequence[ImportedFrame]
) -> str:
    """Return the description of a scene; numbers keep all their digits."""
    lines = [f"points = {text(points)}", f"ego_from_lidar = {rows(ego_from_lidar)}"]
    for camera in cameras:
        lines += ["", "[[camera]]", f"name = {text(camera.name)}", f"images = {text(camera.images)}"]
        lines += [f"intrinsics = {rows(camera.intrinsics)}", f"ego_from_cam = {rows(camera.ego_from_cam)}"]
        if not camera.lens.straight:
            lines += [f'lens = "{camera.lens.model}"', f"distortion = {list(camera.lens.coefficients)}"]
    for frame in frames:
        lines += ["", "[[frame]]", f"name = {text(frame.name)}", f"timestamp_us = {frame.timestamp_us}"]
        lines += pose_line(frame.world_from_ego)
        without = [camera.name for camera in cameras if camera.name not in frame.images]
        lines += [f"without = {json.dumps(without)}"] if without else []
        for name, image in frame.images.items():
            lines += [
                f"[frame.image.{text(name)}]",
                f"file = {text(image.file)}",
                f"timestamp_us = {image.timestamp_us}",
            ]
            lines += pose_line(image.world_from_ego) if frame.world_from_ego is not None else []
    return "\n".join(lines) + "\n"


def pose_line(world_from_ego: Float64 | None) -> list[str]:
    """Return the line of a pose, none where it is not known."""
    return [] if world_from_ego is None else [f"world_from_ego = {rows(world_from_ego)}"]


def rows(matrix: Float64) -> str:
    """Return a matrix as TOML."""
    return str(matrix.tolist())


def text(value: str) -> str:
    """Return a string as TOML; JSON writes them alike."""
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def new_scene(out: Path, name: str) -> Iterator[Path]:
    """Give a folder to write a scene into, and put it in its place when all is written.

    Raises ConfigError where a scene of that name is there already.
    """
    place, scratch = out / name, out / f".{name}.{os.getpid()}"
    if place.exists():
        raise ConfigError(f"{place} is there already; name another folder, or remove it to import the log again")
    scratch.mkdir(parents=True)
    try:
        yield scratch
        scratch.rename(place)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def write_scene(folder: Path, *described: Any) -> None:
    """Write the description of a scene into its folder; arguments are those of `scene_toml`."""
    (folder / FILE).write_text(scene_toml(*described), encoding="utf-8")
