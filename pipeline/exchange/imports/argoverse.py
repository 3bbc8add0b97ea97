"""Logs of the Argoverse 2 sensor data set by reference: a folder with `sensors`, `calibration` and a table of poses.

| of Argoverse 2 | becomes |
|---|---|
| sensors/lidar/*.feather: x, y, z in the vehicle's frame at the name's time, intensity | points, a frame each |
| sensors/cameras/ring_*/*.jpg, rectified | the nearest to each sweep, with its own time and pose |
| calibration/intrinsics.feather: fx_px, fy_px, cx_px, cy_px | intrinsics |
| calibration/egovehicle_SE3_sensor.feather | ego_from_cam |
| city_SE3_egovehicle.feather | world_from_ego |

Sweeps are of two stacked LiDARs, joined, the vehicle's motion taken out. Their frame has its origin on the rear axle;
ours lies on the road below it. The stereo cameras are grey and are left out. Sources: Wilson and others, "Argoverse 2"
(NeurIPS Datasets 2021), and the package av2 (`structures/sweep.py`, `geometry/camera/pinhole_camera.py`), which uses no
distortion either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.config import ConfigError
from pipeline.datasets.times import nearest
from pipeline.exchange.imports.scene import (
    ImportedCamera,
    ImportedFrame,
    ImportedImage,
    Poses,
    new_scene,
    write_scene,
)
from pipeline.geometry import Float64, chained, inverse_pose, pose_matrix

AXLE_HEIGHT_M = 0.33  # above the road: the radius of the wheels, 225/50 R17
POSE = ("qw", "qx", "qy", "qz", "tx_m", "ty_m", "tz_m")
LENS = ("fx_px", "fy_px", "cx_px", "cy_px")
NEAREST_NS = 40_000_000  # cameras take an image each 50 ms


def import_argoverse2(log: Path, out: Path) -> str:
    """Write a log as a scene whose files are links, and return its name; raises ConfigError for what is not there."""
    sweeps = sorted((log / "sensors/lidar").glob("*.feather"), key=lambda path: time_in(path))
    if not sweeps:
        raise ConfigError(f"{log}/sensors/lidar holds no sweep; expected files like 315968200660259000.feather")
    ego_from_theirs = np.eye(4)
    ego_from_theirs[2, 3] = AXLE_HEIGHT_M
    mounted = "calibration/egovehicle_SE3_sensor"
    theirs_from_sensor = {
        name: pose_in(tuple(pose), f"{log}/{mounted}.feather: {name}")
        for name, *pose in columns(log, mounted, "sensor_name", *POSE)
    }
    driven = "city_SE3_egovehicle"
    poses = Poses(
        (ns, pose_in(tuple(pose), f"{log}/{driven}.feather: {ns}"))
        for ns, *pose in columns(log, driven, "timestamp_ns", *POSE)
    )
    cameras, images = [], {}
    for name, fx, fy, cx, cy in columns(log, "calibration/intrinsics", "sensor_name", *LENS):
        files = sorted((log / "sensors/cameras" / name).glob("*.jpg"), key=lambda path: time_in(path))
        if not name.startswith("ring_") or not files:
            continue
        if name not in theirs_from_sensor:
            raise ConfigError(f"{log}/{mounted}.feather has no row for {name}")
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
        ego_from_cam = chained(ego_from_theirs, theirs_from_sensor[name])
        cameras.append(ImportedCamera(name, f"cameras/{name}/{{frame}}.jpg", matrix, ego_from_cam))
        images[name] = files, [time_in(file) for file in files]

    def world_from_ego(ns: int) -> Float64 | None:
        pose = poses.at(ns)
        return None if pose is None else chained(pose, inverse_pose(ego_from_theirs))

    frames = []
    for path in sweeps:
        ns, near = time_in(path), {}
        for name, (files, times) in images.items():
            at = nearest(times, ns)
            if abs(times[at] - ns) <= NEAREST_NS:
                file = f"cameras/{name}/{files[at].name}"
                near[name] = ImportedImage(file, times[at] // 1000, world_from_ego(times[at]))
        frames.append(ImportedFrame(path.stem, ns // 1000, world_from_ego(ns), near))
    with new_scene(out, log.name) as folder:
        (folder / "lidar").symlink_to((log / "sensors/lidar").resolve())
        (folder / "cameras").symlink_to((log / "sensors/cameras").resolve())
        write_scene(folder, "lidar/{frame}.feather", ego_from_theirs, cameras, frames)
    return log.name


def columns(log: Path, name: str, *wanted: str) -> list[tuple[Any, ...]]:
    """Return the rows of some columns of a table of a log; raises ConfigError where it cannot be read or lacks one."""
    from pyarrow import feather

    path = log / f"{name}.feather"
    try:
        table = feather.read_table(path, memory_map=False)
        return list(zip(*(table[column].to_pylist() for column in wanted), strict=True))
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: {error}; expected a log of the Argoverse 2 sensor data set") from None


def pose_in(row: tuple[Any, ...], where: str) -> Float64:
    """Return the pose (4, 4) of columns `POSE`; raises ConfigError for one that is none."""
    try:
        return pose_matrix(row[:4], row[4:])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from None


def time_in(path: Path) -> int:
    """Return the time in the name of a file, nanoseconds; raises ConfigError for a name that is none."""
    if not path.stem.isdigit():
        raise ConfigError(f"{path} is not called after its time in nanoseconds, as files of Argoverse 2 are")
    return int(path.stem)
