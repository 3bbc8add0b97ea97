"""The rig: six cameras and a roof LiDAR as on a nuScenes car, in round numbers, and how a LiDAR pulse comes back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.spatial.transform import Rotation

from bench.city.config import CityConfig
from bench.city.materials import ROUGH_M, SPREAD, Float32, Surface
from bench.city.shapes import Array

ELEVATIONS_DEG = np.linspace(-30.67, 10.67, 32)  # an HDL-32E: 32 beams, 1.33 degrees apart; ring 0 looks down most
_BRIGHTNESS = 150.0  # raw intensity of a white wall seen head-on; retroreflectors saturate at 255


@dataclass(frozen=True, eq=False)
class Sensor:
    """A sensor on the car. Ego frame: x forward, y left, z up, origin on the ground below the rear axle.

    `ego_from_sensor` (4, 4); a camera's frame has z along its axis, x right and y down, the LiDAR's x right and y
    forward. `delay_s` is the time of its capture after the sweep's. `field_deg` is a camera's horizontal field of
    view, 0 for the LiDAR.
    """

    channel: str
    ego_from_sensor: Array
    delay_s: float
    field_deg: float = 0.0

    @property
    def is_camera(self) -> bool:
        """Whether it takes images."""
        return self.field_deg > 0

    def intrinsics(self, width_px: int, height_px: int) -> Array:
        """Return the camera matrix (3, 3) in px, pixel centres at integers, the axis through the image's middle."""
        focal = width_px / 2 / np.tan(np.radians(self.field_deg) / 2)
        return np.array([[focal, 0, (width_px - 1) / 2], [0, focal, (height_px - 1) / 2], [0, 0, 1]])


def _camera(channel: str, at_m: tuple[float, float, float], yaw_deg: float, delay_s: float, field_deg: float) -> Sensor:
    forward_from_cam = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", yaw_deg, degrees=True).as_matrix() @ forward_from_cam
    pose[:3, 3] = at_m
    return Sensor(channel, pose, delay_s, field_deg)


def _lidar() -> Sensor:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", -90, degrees=True).as_matrix()
    pose[:3, 3] = 0.94, 0.0, 1.84
    return Sensor("LIDAR_TOP", pose, 0.0)


RIG: tuple[Sensor, ...] = (
    _lidar(),
    _camera("CAM_FRONT", (1.70, 0.0, 1.51), 0, -0.0355, 70),
    _camera("CAM_FRONT_RIGHT", (1.55, -0.49, 1.50), -55, -0.0275, 70),
    _camera("CAM_BACK_RIGHT", (1.02, -0.48, 1.57), -110, -0.020, 70),
    _camera("CAM_BACK", (0.03, 0.0, 1.58), 180, -0.0105, 110),
    _camera("CAM_BACK_LEFT", (1.03, 0.48, 1.57), 110, -0.0005, 70),
    _camera("CAM_FRONT_LEFT", (1.52, 0.49, 1.51), 55, -0.043, 70),
)
"""The LiDAR first, then the cameras as the turning LiDAR passes them; the sweep's time is the end of its turn."""


def camera_rays(
    intrinsics: Array, width_px: int, height_px: int, fisheye: tuple[float, float, float, float] | None = None
) -> Float32:
    """Return the ray of every pixel centre in the camera's frame, (height * width, 3), row by row; z is 1.

    A hit's distance in units of such a ray is its depth. `fisheye` are the coefficients of a lens of that kind.
    """
    u, v = np.meshgrid(np.arange(width_px), np.arange(height_px))
    pixels = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3)
    rays = pixels @ np.linalg.inv(intrinsics).T
    if fisheye is not None:
        rays[:, :2] *= unbent(np.hypot(rays[:, 0], rays[:, 1]), fisheye)[:, None]
    return np.asarray(rays, np.float32)


def unbent(bent: Array, fisheye: tuple[float, float, float, float]) -> Array:
    """Return by how much longer than these radii (n,), where rays land, they are at depth 1 without the lens.

    The angle is found by Newton's method; a ray ends at 86 degrees off the axis.
    """
    powers = np.arange(3, 11, 2)
    angle = bent.copy()
    for _ in range(20):
        terms = np.asarray(fisheye) * angle[:, None] ** powers
        slope = 1 + (np.asarray(fisheye) * powers * angle[:, None] ** (powers - 1)).sum(axis=1)
        angle = np.clip(angle - (angle + terms.sum(axis=1) - bent) / slope, 0, 1.5)
    return np.divide(np.tan(angle), bent, out=np.ones_like(bent), where=bent > 0)


def lidar_rays(azimuths: int) -> tuple[Float32, Float32]:
    """Return unit rays in the LiDAR's frame, (azimuths * 32, 3), and the ring of each, in the order of firing.

    The turn starts on the left and goes clockwise; at each azimuth all 32 beams fire, ring 0 first.
    """
    azimuth = np.repeat(np.arange(azimuths) * (2 * np.pi / azimuths) - np.pi / 2, len(ELEVATIONS_DEG))
    elevation = np.tile(np.radians(ELEVATIONS_DEG), azimuths)
    across = np.cos(elevation)
    rays = np.stack([across * np.sin(azimuth), across * np.cos(azimuth), np.sin(elevation)], axis=1)
    rings = np.tile(np.arange(len(ELEVATIONS_DEG)), azimuths)
    return rays.astype(np.float32), rings.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Echoes:
    """What the LiDAR measures for n rays that met a surface, aligned with them: (n,) each.

    Only rays with `detected` become points. `range_m` carries noise; `intensity` is 0..255; `stray` marks returns from
    something in the air before the surface.
    """

    detected: npt.NDArray[np.bool_]
    range_m: Float32
    intensity: Float32
    stray: npt.NDArray[np.bool_]


def echoes(
    config: CityConfig,
    rng: np.random.Generator,
    range_m: Float32,
    facing: Float32,
    surface: Surface,
    material: npt.NDArray[np.uint8],
) -> Echoes:
    """Return the answer of surfaces at a range, hit at an angle whose cosine is `facing`.

    The received energy falls with the square of range and with the cosine; a pulse below the detection limit is lost
    more likely the weaker it is. What is left of the distance in raw intensities is the angle: the sensor calibrates
    range away.
    """
    n = len(range_m)
    speckle = np.exp(rng.normal(size=n) * SPREAD[material])
    energy = surface.reflectance * speckle * facing * (10.0 / np.maximum(range_m, 1.0)) ** 2
    limit = config.detection_limit
    chance = energy**2 / (energy**2 + limit**2) if limit else np.ones(n)
    detected = (rng.random(n) < chance * (1 - surface.lost)) & (range_m < config.max_range_m)
    noise_m = rng.normal(size=n) * np.hypot(config.range_noise_m, ROUGH_M[material])
    intensity = _BRIGHTNESS * surface.reflectance * speckle * (0.25 + 0.75 * facing)
    stray = detected & (rng.random(n) < config.stray_share)
    air_m = np.minimum(rng.uniform(0.8, 14.0, n), range_m * 0.9)
    return Echoes(
        detected=detected,
        range_m=np.where(stray, air_m, np.maximum(range_m + noise_m, 0.05)).astype(np.float32),
        intensity=np.rint(np.clip(np.where(stray, intensity * 0.2, intensity), 0, 255)).astype(np.float32),
        stray=stray,
    )
