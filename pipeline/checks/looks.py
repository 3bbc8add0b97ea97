"""Frames as the checks of sensors see them: points, marks, layers of images, and how the vehicle moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy

from manifests.storage.places import Root
from pipeline.checks.signals import Array, View, find_layers, find_marks
from pipeline.datasets.base import Dataset
from pipeline.frame import Camera, Frame, read_image
from pipeline.geometry import inverse_pose
from pipeline.lenses import rectified

MOST_STEP_S = 2.0  # frames farther apart in time tell nothing of how the vehicle moves now
_AROUND_M = 15.0  # ground is looked for as far as this
_LEAST_HEIGHT_M = 0.3  # of a LiDAR above the ground


@dataclass(frozen=True, eq=False)
class Motion:
    """How the vehicle moves at a sweep: `turn_rad_s` (3,), rotation vector, and `velocity_m_s` (3,), LiDAR frame."""

    turn_rad_s: Array
    velocity_m_s: Array

    @property
    def speed_m_s(self) -> float:
        """Return how fast the LiDAR moves."""
        return float(np.linalg.norm(self.velocity_m_s))

    def later_from_now(self, after_s: npt.ArrayLike) -> Array:
        """Return poses (k, 4, 4) that take points from the LiDAR frame now to the one at times (k,) later."""
        times = np.asarray(after_s, np.float64)
        poses = np.tile(np.eye(4), (len(times), 1, 1))
        rotation = scipy.spatial.transform.Rotation.from_rotvec(times[:, None] * self.turn_rad_s).as_matrix()
        poses[:, :3, :3] = rotation.transpose(0, 2, 1)
        poses[:, :3, 3] = -np.einsum("kji,kj->ki", rotation, times[:, None] * self.velocity_m_s)
        return poses


@dataclass(frozen=True, eq=False)
class Look:
    """One frame that was opened: its points (n, 3) and their intensity (n,), and a view for each of its cameras.

    `motion` is None where no frame is near enough in time to tell. `notes` say what was taken for what in its sweep.
    """

    frame: Frame
    xyz_m: npt.NDArray[np.float32]
    intensity: npt.NDArray[np.float32]
    views: tuple[View, ...]
    motion: Motion | None
    notes: tuple[str, ...] = ()

    @property
    def up(self) -> Array:
        """Return the direction (3,) that the vehicle's pose calls up, LiDAR frame."""
        return np.asarray(self.frame.ego_from_lidar[2, :3])


def look_at(dataset: Dataset, root: Root, frame: Frame, motion: Motion | None) -> Look:
    """Return what the checks see of a frame that stage `index` found good."""
    cloud = dataset.read_cloud(frame)
    xyz_m, intensity = cloud.xyz_m, cloud.intensity
    marks = find_marks(xyz_m, intensity, eye_of(frame, xyz_m))
    views = tuple(View(find_layers(straight(root, camera)), marks, camera) for camera in frame.cameras)
    return Look(frame, xyz_m, intensity, views, motion, cloud.notes)


def straight(root: Root, camera: Camera) -> npt.NDArray[np.uint8]:
    """Return the image of a camera as a pinhole would have taken it: the checks know no lens."""
    image = read_image(root, camera)
    return image if camera.lens.straight else rectified(image, camera.lens, camera.intrinsics)


def eye_of(frame: Frame, xyz_m: Array) -> Array:
    """Return where the sensor is, (3,), LiDAR frame: the origin, or amid the cameras where the origin is on the ground.

    Points that are kept in the frame of the vehicle have their origin on the road, where no LiDAR is.
    """
    height_m = xyz_m[np.linalg.norm(xyz_m, axis=1) < _AROUND_M] @ frame.ego_from_lidar[2, :3]
    if not frame.cameras or not len(height_m):
        return np.zeros(3)
    counts, edges_m = np.histogram(height_m, np.arange(-4, 4, 0.2))
    if edges_m[counts.argmax() + 1] < -_LEAST_HEIGHT_M:
        return np.zeros(3)
    return np.asarray(np.mean([inverse_pose(camera.cam_from_lidar)[:3, 3] for camera in frame.cameras], axis=0))


def motions(frames: Sequence[Frame]) -> Mapping[str, Motion]:
    """Return how the vehicle moves at each frame by its id, from the poses of the frames around it in its scene."""
    found: dict[str, Motion] = {}
    by_scene: dict[str, list[Frame]] = {}
    for frame in frames:
        by_scene.setdefault(frame.scene, []).append(frame)
    for scene in by_scene.values():
        for place, frame in enumerate(scene):
            before, after = scene[max(place - 1, 0)], scene[min(place + 1, len(scene) - 1)]
            step_s = (after.timestamp_us - before.timestamp_us) / 1e6
            if 0 < step_s <= 2 * MOST_STEP_S:
                step = inverse_pose(before.world_from_lidar) @ after.world_from_lidar
                if np.isfinite(step).all():
                    turn = scipy.spatial.transform.Rotation.from_matrix(step[:3, :3]).as_rotvec()
                    found[frame.frame_id] = Motion(turn / step_s, step[:3, 3] / step_s)
    return found
