"""Segments of the Waymo Open Dataset, perception, version 2: a folder for each component, in it a Parquet per segment.

| of Waymo | becomes |
|---|---|
| lidar, lidar_calibration, lidar_pose: first returns of all five LiDARs | points, in the vehicle's frame |
| camera_image: image, pose.transform, pose_timestamp | images as they are, with their own time and pose |
| camera_calibration: f_u, f_v, c_u, c_v, k1, k2, p1, p2, k3; extrinsic | intrinsics, lens, ego_from_cam |
| vehicle_pose | world_from_ego |

Points get a column `laser` (1 top, 2 front, 3 left, 4 right, 5 rear). Those of the top LiDAR are brought to the frame's
time by the pose that each pixel has; a row of a range image is a beam, from the top down, and a column an azimuth, from
the back over the left. Cameras have rolling shutters, of which nothing is taken over: images count as taken at the time
of their pose. Only TFRecords of version 1 need TensorFlow; they are not read. Sources: the data set's
`dataset.proto` and `utils/range_image_utils.py`, and Sun and others, "Scalability in Perception for Autonomous Driving:
Waymo Open Dataset" (CVPR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.config import ConfigError
from pipeline.exchange.imports.scene import ImportedCamera, ImportedFrame, ImportedImage, new_scene, write_scene
from pipeline.geometry import Float64, chained, inverse_pose
from pipeline.lenses import lens_of

TOP = 1
CAMERAS = {1: "front", 2: "front_left", 3: "front_right", 4: "side_left", 5: "side_right"}
OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
"""Their camera frame (x forward, y left, z up) from ours (x right, y down, z forward)."""

_STAMP, _LASER, _CAMERA = "key.frame_timestamp_micros", "key.laser_name", "key.camera_name"
_RECORD = np.dtype([("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "<f4"), ("laser", "u1")])


def import_waymo(segment: Path, out: Path) -> str:
    """Write a segment, named by its file in folder `lidar`, as a scene, and return its name; raises ConfigError."""
    if segment.parent.name != "lidar" or segment.suffix != ".parquet":
        raise ConfigError(f"{segment} is no Parquet in a folder `lidar`; name a segment by that file of it")
    root, name = segment.parent.parent, segment.stem
    poses = {
        int(row.value(_STAMP)): row.pose("[VehiclePoseComponent].world_from_vehicle.transform")
        for row in rows(root, "vehicle_pose", name)
    }
    lasers = {int(row.value(_LASER)): row for row in rows(root, "lidar_calibration", name)}
    with new_scene(out, name) as folder:
        cameras = [
            camera_of(row) for row in rows(root, "camera_calibration", name) if int(row.value(_CAMERA)) in CAMERAS
        ]
        images = write_images(root, name, folder)
        stamps = write_points(root, name, folder, lasers, poses)
        both = sorted(stamps & poses.keys())
        frames = [ImportedFrame(str(at), at, poses[at], images.get(at, {})) for at in both]
        if not frames:
            raise ConfigError(f"{segment}: no frame has both points and a row in vehicle_pose")
        write_scene(folder, "points/{frame}.npy", np.eye(4), cameras, frames)
    return name


@dataclass(frozen=True)
class Row:
    """A row of a component, as a table of one."""

    table: pa.RecordBatch

    def has(self, key: str) -> bool:
        """Return whether it has a value of that name."""
        return key in self.table.schema.names and bool(self.table[key][0].is_valid)

    def value(self, key: str) -> Any:
        """Return a value; raises ConfigError where it has none of that name."""
        if not self.has(key):
            raise ConfigError(f"a row of Waymo's tables has no {key}; it has {', '.join(self.table.schema.names)}")
        return self.table[key][0].as_py()

    def numbers(self, key: str) -> Float64:
        """Return a list of numbers, (n,); raises ConfigError where it has none of that name."""
        if not self.has(key):
            self.value(key)
        return np.asarray(self.table[key][0].values.to_numpy(zero_copy_only=False), np.float64)

    def pose(self, key: str) -> Float64:
        """Return a pose (4, 4); raises ConfigError where it is none."""
        found = np.array(self.value(key), np.float64)
        if found.size != 16 or not np.isfinite(found).all():
            raise ConfigError(f"{key} is {found.ravel().tolist()}; expected 16 numbers")
        return found.reshape(4, 4)

    def image(self, key: str) -> Float64 | None:
        """Return a range image; None where it has none, as of a return that did not come."""
        if not self.has(f"{key}.values") or not self.has(f"{key}.shape"):
            return None
        return self.numbers(f"{key}.values").reshape(self.value(f"{key}.shape"))


def rows(root: Path, component: str, name: str) -> Iterator[Row]:
    """Yield the rows of a component of a segment, one at a time: some hold megabytes; raises ConfigError."""
    from pyarrow import parquet

    path = root / component / f"{name}.parquet"
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1):
                yield Row(batch)
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"{path}: {error}; expected a component of the Waymo Open Dataset, version 2") from None


def camera_of(row: Row) -> ImportedCamera:
    """Return a camera of a row of `camera_calibration`."""
    name, of = CAMERAS[int(row.value(_CAMERA))], "[CameraCalibrationComponent].intrinsic."
    fx, fy, cx, cy = (float(row.value(of + key)) for key in ("f_u", "f_v", "c_u", "c_v"))
    lens = lens_of([float(row.value(of + key)) for key in ("k1", "k2", "p1", "p2", "k3")])
    ego_from_cam = chained(row.pose("[CameraCalibrationComponent].extrinsic.transform"), OPTICAL)
    return ImportedCamera(
        name, f"{name}/{{frame}}.jpg", np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]), ego_from_cam, lens
    )


def write_images(root: Path, name: str, folder: Path) -> dict[int, dict[str, ImportedImage]]:
    """Write images as they are, and return them by frame and camera."""
    found: dict[int, dict[str, ImportedImage]] = {}
    for each in CAMERAS.values():
        (folder / each).mkdir()
    for row in rows(root, "camera_image", name):
        stamp, camera = int(row.value(_STAMP)), CAMERAS.get(int(row.value(_CAMERA)))
        if camera is None:
            continue
        file = f"{camera}/{stamp}.jpg"
        (folder / file).write_bytes(row.value("[CameraImageComponent].image"))
        taken_us = round(float(row.value("[CameraImageComponent].pose_timestamp")) * 1e6)
        pose = row.pose("[CameraImageComponent].pose.transform")
        found.setdefault(stamp, {})[camera] = ImportedImage(file, taken_us, pose)
    return found


def write_points(
    root: Path, name: str, folder: Path, lasers: Mapping[int, Row], poses: Mapping[int, Float64]
) -> set[int]:
    """Write the points of every frame that has a pose, and return its times."""
    (folder / "points").mkdir()
    pixel_poses = rows(root, "lidar_pose", name)
    waiting: dict[int, Float64] = {}

    def pixel_pose(stamp: int) -> Float64:
        while stamp not in waiting:
            row = next(pixel_poses, None)
            if row is None:
                raise ConfigError(f"{root}/lidar_pose/{name}.parquet has no pixel poses of frame {stamp}")
            found = row.image("[LiDARPoseComponent].range_image_return1")
            if found is not None and int(row.value(_LASER)) == TOP:
                waiting[int(row.value(_STAMP))] = found
        return waiting.pop(stamp)

    parts: dict[int, dict[int, Any]] = {}
    done: set[int] = set()
    for row in rows(root, "lidar", name):
        stamp, laser = int(row.value(_STAMP)), int(row.value(_LASER))
        image = row.image("[LiDARComponent].range_image_return1")
        if stamp not in poses:
            continue
        if laser not in lasers:
            raise ConfigError(f"{root}/lidar_calibration/{name}.parquet has no row for LiDAR {laser}")
        if image is not None:
            moved = (pixel_pose(stamp), poses[stamp]) if laser == TOP else None
            parts.setdefault(stamp, {})[laser] = points_of(image, lasers[laser], laser, moved)
        if len(parts.get(stamp, {})) == len(lasers):
            save(folder, stamp, parts.pop(stamp))
            done.add(stamp)
    for stamp, found in parts.items():  # of LiDARs that were silent
        save(folder, stamp, found)
        done.add(stamp)
    return done


def save(folder: Path, stamp: int, parts: Mapping[int, Any]) -> None:
    """Write the points of one frame, LiDAR after LiDAR."""
    np.save(folder / "points" / f"{stamp}.npy", np.concatenate([parts[laser] for laser in sorted(parts)]))


def points_of(image: Float64, calibration: Row, laser: int, moved: tuple[Float64, Float64] | None) -> Any:
    """Return the points (n,) of a range image (H, W, 4), in the vehicle's frame.

    `moved` are the poses of all pixels, (H, W, 6): roll, pitch, yaw, x, y, z of the vehicle in the world, and the pose
    of the frame (4, 4).
    """
    of = "[LiDARCalibrationComponent]."
    ego_from_laser = calibration.pose(f"{of}extrinsic.transform")
    height, width = image.shape[:2]
    listed = f"{of}beam_inclination.values"
    if calibration.has(listed) and len(calibration.numbers(listed)) == height:
        up = calibration.numbers(listed)[::-1]
    else:
        low, high = (float(calibration.value(f"{of}beam_inclination.{key}")) for key in ("min", "max"))
        up = (low + (high - low) * (np.arange(height) + 0.5) / height)[::-1]
    turn = math.atan2(ego_from_laser[1, 0], ego_from_laser[0, 0])
    azimuth = ((np.arange(width, 0, -1) - 0.5) / width * 2 - 1) * np.pi - turn
    row, column = np.nonzero(image[:, :, 0] > 0)
    range_m, intensity = image[row, column, 0], image[row, column, 1]
    level = np.cos(up[row]) * range_m
    in_laser = np.stack([np.cos(azimuth[column]) * level, np.sin(azimuth[column]) * level, np.sin(up[row]) * range_m])
    xyz = ego_from_laser[:3, :3] @ in_laser + ego_from_laser[:3, 3:]
    if moved is not None:
        pixels, world_from_ego = moved
        if pixels.shape[:2] != (height, width):
            raise ConfigError(f"pixel poses are {pixels.shape}, but the range image has {height} x {width} pixels")
        roll, pitch, yaw, *place = pixels[row, column].T
        x, y, z = xyz
        y, z = np.cos(roll) * y - np.sin(roll) * z, np.sin(roll) * y + np.cos(roll) * z
        x, z = np.cos(pitch) * x + np.sin(pitch) * z, np.cos(pitch) * z - np.sin(pitch) * x
        x, y = np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y
        ego_from_world = inverse_pose(world_from_ego)
        xyz = ego_from_world[:3, :3] @ (np.stack([x, y, z]) + np.stack(place)) + ego_from_world[:3, 3:]
    found = np.zeros(len(row), _RECORD)
    found["x"], found["y"], found["z"] = xyz
    found["intensity"], found["laser"] = intensity, laser
    return found
