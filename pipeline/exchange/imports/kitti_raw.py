"""Raw drives of KITTI by reference: `<date>/<date>_drive_<number>_sync` beside the three calib_*.txt of the day.

| of KITTI | becomes |
|---|---|
| velodyne_points/data/*.bin, timestamps.txt | points, a frame each |
| image_02, image_03 | cameras; image_00 and image_01 are grey |
| P_rect_0x, R_rect_00 (calib_cam_to_cam), R and T (calib_velo_to_cam) | intrinsics, cam_from_lidar |
| R and T (calib_imu_to_velo) | ego_from_lidar: the vehicle's frame lies on the road below the IMU |
| oxts/data/*.txt: lat, lon, alt, roll, pitch, yaw | world_from_ego, in metres from the first frame |

Formats and the Mercator projection: Geiger and others, "Vision meets Robotics: The KITTI Dataset" (IJRR 2013) and the
development kit of the raw data.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import scipy

from manifests.config import ConfigError
from pipeline.datasets.semantic_kitti import split_projection
from pipeline.datasets.sweeps import tell_unswept
from pipeline.exchange.imports.scene import ImportedCamera, ImportedFrame, ImportedImage, new_scene, write_scene
from pipeline.geometry import Float64, chained, inverse_pose

CAMERAS = ("image_02", "image_03")
IMU_HEIGHT_M = 0.93  # above the road: the sensor setup of the paper
EARTH_M = 6378137.0


def import_kitti_raw(drive: Path, out: Path) -> str:
    """Write a drive as a scene whose files are links to those of KITTI, and return the scene's name.

    A scan without an image is a frame without that camera; an image without a scan is no frame, which is said.
    Raises ConfigError for files that are missing or not as described.
    """
    if not (drive / "velodyne_points").is_dir():
        raise ConfigError(f"{drive} has no folder velodyne_points; name a drive of KITTI's raw data, ..._sync")
    cam0_from_lidar = rigid(numbers(drive.parent / "calib_velo_to_cam.txt"))
    lidar_from_imu = rigid(numbers(drive.parent / "calib_imu_to_velo.txt"))
    cams = numbers(drive.parent / "calib_cam_to_cam.txt")
    ego_from_imu = np.eye(4)
    ego_from_imu[2, 3] = IMU_HEIGHT_M
    ego_from_lidar = chained(ego_from_imu, inverse_pose(lidar_from_imu))
    names = sorted(path.stem for path in (drive / "velodyne_points/data").glob("*.bin"))
    if not names:
        raise ConfigError(f"{drive}/velodyne_points/data holds no scan; expected files like 0000000000.bin")
    times = {part: stamps(drive / part / "timestamps.txt") for part in ("velodyne_points", *CAMERAS)}
    world_from_imu = poses_of(drive / "oxts/data", names)
    rectified = np.eye(4)
    rectified[:3, :3] = need(cams, "R_rect_00", 9, drive).reshape(3, 3)
    cameras = []
    for camera in CAMERAS:
        intrinsics, cam_from_cam0 = split_projection(need(cams, f"P_rect_{camera[-2:]}", 12, drive).reshape(3, 4))
        cam_from_lidar = chained(cam_from_cam0, rectified, cam0_from_lidar)
        ego_from_cam = chained(ego_from_lidar, inverse_pose(cam_from_lidar))
        cameras.append(ImportedCamera(camera, f"{camera}/{{frame}}.png", intrinsics, ego_from_cam))
        taken = [path.stem for path in (drive / camera / "data").glob("*.png")]
        tell_unswept(f"{drive.name}/{camera}", taken, names)
    frames = []
    for name, pose in zip(names, world_from_imu, strict=True):
        there = [camera for camera in CAMERAS if (drive / camera / "data" / f"{name}.png").is_file()]
        images = {one: ImportedImage(f"{one}/{name}.png", time_at(times[one], name, drive / one)) for one in there}
        world_from_ego = None if pose is None else chained(pose, inverse_pose(ego_from_imu))
        time_us = time_at(times["velodyne_points"], name, drive / "velodyne_points")
        frames.append(ImportedFrame(name, time_us, world_from_ego, images))
    with new_scene(out, drive.name) as folder:
        for part in ("velodyne_points", *CAMERAS):
            (folder / part).symlink_to((drive / part / "data").resolve())
        write_scene(folder, "velodyne_points/{frame}.bin", ego_from_lidar, cameras, frames)
    return drive.name


def numbers(path: Path) -> dict[str, Float64]:
    """Return the lines `name: numbers` of a calibration; raises ConfigError if it cannot be read."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ConfigError(f"{path}: {what}; a raw drive lies beside the calib_*.txt of its day") from None
    found = {}
    for line in lines:
        name, _, values = line.partition(":")
        try:
            found[name.strip()] = np.array([float(word) for word in values.split()])
        except ValueError:
            continue  # calib_time, corner_dist and the like
    return found


def need(found: dict[str, Float64], name: str, n: int, where: Path) -> Float64:
    """Return an entry of so many numbers; raises ConfigError where there is none."""
    if name not in found or len(found[name]) != n or not np.isfinite(found[name]).all():
        raise ConfigError(f"the calibration beside {where} has no {name} of {n} numbers")
    return found[name]


def rigid(found: dict[str, Float64]) -> Float64:
    """Return the pose (4, 4) of entries R and T; raises ConfigError where they are not there."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = need(found, "R", 9, Path("it")).reshape(3, 3), need(found, "T", 3, Path("it"))
    return pose


def stamps(path: Path) -> list[int]:
    """Return the times of a timestamps.txt in microseconds, UTC; raises ConfigError for a line that is none."""
    try:
        lines = path.read_text(encoding="ascii").split("\n")
        return [microseconds(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def microseconds(line: str) -> int:
    """Return a time such as 2011-09-26 13:02:25.964389445 in microseconds since 1970."""
    whole, _, fraction = line.strip().partition(".")
    seconds = int(datetime.strptime(whole, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000 + int((fraction + "000000")[:6])


def time_at(times: list[int], name: str, where: Path) -> int:
    """Return the time of a file by its number; raises ConfigError where timestamps.txt has none."""
    if not name.isdigit() or int(name) >= len(times):
        raise ConfigError(f"{where}/timestamps.txt has {len(times)} times, and none for {name}")
    return times[int(name)]


def poses_of(folder: Path, names: list[str]) -> list[Float64 | None]:
    """Return the pose of the IMU (4, 4) at each frame in metres from the first; None where there is no oxts file."""
    found: list[Float64 | None] = []
    scale, origin = 0.0, np.zeros(3)
    for name in names:
        path = folder / f"{name}.txt"
        if not path.is_file():
            found.append(None)
            continue
        try:
            lat, lon, alt, roll, pitch, yaw = (float(word) for word in path.read_text().split()[:6])
        except ValueError as error:
            raise ConfigError(
                f"{path}: expected latitude, longitude, altitude, roll, pitch, yaw first ({error})"
            ) from None
        scale = scale or math.cos(math.radians(lat))
        east_m = scale * EARTH_M * math.radians(lon)
        north_m = scale * EARTH_M * math.log(math.tan(math.radians(90 + lat) / 2))
        place = np.array([east_m, north_m, alt])
        origin = place if all(pose is None for pose in found) else origin
        pose = np.eye(4)
        pose[:3, :3] = scipy.spatial.transform.Rotation.from_euler("ZYX", [yaw, pitch, roll]).as_matrix()
        pose[:3, 3] = place - origin
        found.append(pose)
    return found
