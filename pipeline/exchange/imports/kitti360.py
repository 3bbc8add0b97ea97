"""Drives of KITTI-360 by reference: `data_3d_raw/<drive>` beside `data_2d_raw`, `data_poses` and `calibration`.

| of KITTI-360 | becomes |
|---|---|
| data_3d_raw/<drive>/velodyne_points: data/*.bin, timestamps.txt | points, a frame each |
| data_2d_raw/<drive>/image_00, image_01: data_rect/*.png, timestamps.txt | cameras, rectified |
| calibration/perspective.txt: P_rect_0x, R_rect_0x | intrinsics, and the turn of the rectified cameras |
| calibration/calib_cam_to_pose.txt, calib_cam_to_velo.txt | ego_from_cam, ego_from_lidar |
| data_poses/<drive>/poses.txt: frame and world_from_imu | world_from_ego; between them as far as they are 1 s apart |

Frames before the first pose and after the last are left out, as are those of a wider gap. The IMU's frame has y right
and z down; ours has y left, z up, and lies on the road below. Sweeps are as measured, the vehicle's motion left in.
The fisheye cameras, image_02 and image_03, have a model of another kind (Mei and Rives) and are left out. Sources: Liao
and others, "KITTI-360" (PAMI 2022), and the data set's kitti360scripts (`devkits/commons/loadCalibration.py`).
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from manifests.config import ConfigError
from pipeline.datasets.semantic_kitti import square
from pipeline.datasets.sweeps import tell_unswept
from pipeline.exchange.imports.kitti_raw import IMU_HEIGHT_M, need, numbers, stamps, time_at
from pipeline.exchange.imports.scene import (
    ImportedCamera,
    ImportedFrame,
    ImportedImage,
    Poses,
    new_scene,
    write_scene,
)
from pipeline.geometry import Float64, chained, inverse_pose

CAMERAS = ("image_00", "image_01")
_log = logging.getLogger(__name__)


def import_kitti360(drive: Path, out: Path) -> str:
    """Write a drive as a scene whose files are links, and return its name; raises ConfigError for what is not there."""
    root, name = drive.parent.parent, drive.name
    ego_from_imu = np.diag([1.0, -1.0, -1.0, 1.0])
    ego_from_imu[2, 3] = IMU_HEIGHT_M
    calibration = root / "calibration"
    perspective = numbers(calibration / "perspective.txt")
    imu_from_cam = numbers(calibration / "calib_cam_to_pose.txt")
    lidar_from_cam0 = square(plain_numbers(calibration / "calib_cam_to_velo.txt", 12)[0])
    ego_from_cam0 = chained(ego_from_imu, square(need(imu_from_cam, "image_00", 12, drive)))
    ego_from_lidar = chained(ego_from_cam0, inverse_pose(lidar_from_cam0))
    lidar = drive / "velodyne_points"
    scans = sorted(path.stem for path in (lidar / "data").glob("*.bin"))
    if not scans:
        raise ConfigError(f"{lidar}/data holds no scan; expected files like 0000000000.bin")
    times = {"lidar": stamps(lidar / "timestamps.txt")}
    cameras = []
    for camera in CAMERAS:
        images = root / "data_2d_raw" / name / camera
        times[camera] = stamps(images / "timestamps.txt")
        matrix = need(perspective, f"P_rect_{camera[-2:]}", 12, drive).reshape(3, 4)[:, :3]
        cam_from_rectified = np.eye(4)
        cam_from_rectified[:3, :3] = need(perspective, f"R_rect_{camera[-2:]}", 9, drive).reshape(3, 3).T
        ego_from_cam = chained(ego_from_imu, square(need(imu_from_cam, camera, 12, drive)), cam_from_rectified)
        cameras.append(ImportedCamera(camera, f"{camera}/{{frame}}.png", matrix, ego_from_cam))
        taken = [path.stem for path in (images / "data_rect").glob("*.png")]
        tell_unswept(f"{name}/{camera}", taken, scans)
    imu = plain_numbers(root / "data_poses" / name / "poses.txt", 13)
    poses = Poses([(1000 * time_at(times["lidar"], f"{int(row[0]):010d}", lidar), square(row[1:])) for row in imu])

    def world_from_ego(time_us: int) -> Float64 | None:
        pose = poses.at(1000 * time_us)
        return None if pose is None else chained(pose, inverse_pose(ego_from_imu))

    frames = []
    for scan in scans:
        time_us = time_at(times["lidar"], scan, lidar)
        pose = world_from_ego(time_us)
        if pose is None:
            continue
        beside = {}
        for camera in CAMERAS:
            if (root / "data_2d_raw" / name / camera / "data_rect" / f"{scan}.png").is_file():
                image_us = time_at(times[camera], scan, root / "data_2d_raw" / name / camera)
                beside[camera] = ImportedImage(f"{camera}/{scan}.png", image_us, world_from_ego(image_us))
        frames.append(ImportedFrame(scan, time_us, pose, beside))
    if len(frames) < len(scans):
        _log.warning(
            "%s: %d of %d scans have no pose near them and are left out", drive, len(scans) - len(frames), len(scans)
        )
    if not frames:
        raise ConfigError(f"{root}/data_poses/{name}/poses.txt has no pose near any scan of {drive}")
    with new_scene(out, name) as folder:
        (folder / "velodyne_points").symlink_to((lidar / "data").resolve())
        for camera in CAMERAS:
            (folder / camera).symlink_to((root / "data_2d_raw" / name / camera / "data_rect").resolve())
        write_scene(folder, "velodyne_points/{frame}.bin", ego_from_lidar, cameras, frames)
    return name


def plain_numbers(path: Path, columns: int) -> list[Float64]:
    """Return the lines of a file of numbers; raises ConfigError for a line of other than so many."""
    try:
        rows = [np.array([float(word) for word in line.split()]) for line in path.read_text("ascii").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None
    rows = [row for row in rows if len(row)]
    wrong = next((row for row in rows if len(row) != columns or not np.isfinite(row).all()), None)
    if not rows or wrong is not None:
        raise ConfigError(f"{path}: expected {columns} numbers a line, and one line at least")
    return rows
