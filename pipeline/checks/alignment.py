"""Whether images and sweeps fit together: edges in depth beside edges in the image, moved against each other.

A thing that stands before something farther away ends in the sweep where it ends in the image, so points at such ends
fall on edges of the image if the calibration is right (the idea of Levinson and Thrun, "Automatic Online Calibration
of Cameras and Lasers", 2013). Only upright edges count: a spinning LiDAR sees them sharply, between two points of one
ring. Everything is moved over everything by one correlation, so that the place of best fit is known as well.

Measured on two real key frames of nuScenes: the six right cameras score 4.7 to 8.8 where they are; turned by 10 degrees
about any axis, or given the pose of another camera, they score 4.4 at most (66 wrong poses). Where edges then fit best
is often as far off as the camera was turned. On eleven frames of SemanticKITTI the camera scores 8.2, and 3.6 at most
where it is turned by 10 degrees. A turn of 5 degrees about the optical axis, or of less than 1 about the others, is not
told from a right calibration. Cameras whose images keep their lens distortion score low throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter, sobel
from scipy.spatial import cKDTree

from pipeline.frame import Camera
from pipeline.geometry import project

ALIGNED = 4.5  # a score from here on tells a right calibration, by the measurement above
ELSEWHERE = 6.0  # and a best score from here on, at another place, a wrong one
CELLS = 400  # columns of cells that an image is reduced to
REACH = (40, 64)  # by how many cells, down and across, edges are moved against each other
_NEAR = 2  # cells: still counts as no move, about a third of a degree in nuScenes
_RING = 4.0  # how much more a difference in elevation counts than one in azimuth when neighbours on a ring are sought
_NEAR_M, _FAR_M = 2.0, 60.0  # nearer is the vehicle itself, farther a ring is too thin
_JUMP_M, _JUMP = 0.5, 0.1  # an end of a thing: the next point of the ring is this much farther, metres plus share
_MOST_M = 10.0  # a longer jump tells no more


@dataclass(frozen=True, eq=False)
class Ends:
    """Points of a sweep beyond which it gets deeper at once: `xyz_m` (n, 3), LiDAR frame, and how much each counts."""

    xyz_m: npt.NDArray[np.float32]
    weight: npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class EdgeImage:
    """Upright edges of an image, by cells of `cell_px` pixels: mean 0, deviation 1; and the image's size in pixels."""

    edges: npt.NDArray[np.float32]
    cell_px: int
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Fit:
    """How well edges fit: `score` where the calibration puts them, `best` anywhere near, and `shift_deg` where that is.

    Both are deviations from what other places give. The shift is in degrees of view, right and down.
    """

    score: float
    best: float
    shift_deg: tuple[float, float]

    @property
    def aligned(self) -> bool:
        """Whether the score tells that the calibration is right; a low one alone does not tell that it is wrong."""
        return self.score >= ALIGNED


def find_ends(xyz_m: npt.NDArray[np.float32]) -> Ends:
    """Return where things end in a sweep float32 (n, 3): points whose neighbour on the ring is much farther away."""
    range_m = np.linalg.norm(xyz_m, axis=1)
    kept = (range_m > _NEAR_M) & np.isfinite(range_m)
    xyz_m, range_m = xyz_m[kept], range_m[kept]
    if len(xyz_m) < 3:
        return Ends(xyz_m[:0], np.empty(0, np.float32))
    azimuth = np.arctan2(xyz_m[:, 1], xyz_m[:, 0])
    elevation = np.arcsin(xyz_m[:, 2] / range_m)
    _, near = cKDTree(np.stack([np.cos(azimuth), np.sin(azimuth), _RING * elevation], axis=1)).query(
        np.stack([np.cos(azimuth), np.sin(azimuth), _RING * elevation], axis=1), k=3
    )
    jump_m = range_m[near].max(axis=1) - range_m
    ends = (jump_m > _JUMP_M + _JUMP * range_m) & (range_m < _FAR_M)
    return Ends(xyz_m[ends], np.sqrt(np.minimum(jump_m[ends], _MOST_M)))


def find_edges(rgb: npt.NDArray[np.uint8]) -> EdgeImage:
    """Return the upright edges of an image uint8 (H, W, 3), each beside what is usual around it."""
    height_px, width_px = rgb.shape[:2]
    cell = max(1, round(width_px / CELLS))
    rows, columns = height_px // cell, width_px // cell
    grey = rgb[: rows * cell, : columns * cell].mean(axis=2, dtype=np.float32)
    grey = gaussian_filter(grey.reshape(rows, cell, columns, cell).mean(axis=(1, 3)), 1)
    edges = np.abs(sobel(grey, axis=1))
    edges /= 10 + gaussian_filter(edges, 20)
    edges = gaussian_filter(np.minimum(edges, np.percentile(edges, 95)), 1)
    return EdgeImage((edges - edges.mean()) / max(float(edges.std()), 1e-6), cell, width_px, height_px)


def correlate(image: EdgeImage, ends: Ends, camera: Camera, cam_from_lidar: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the mean edge under the ends for every move of the ends, by cells down and across; no move in the middle.

    `cam_from_lidar` stands in place of the camera's own pose. A camera that sees no end gets zeros. Maps of several
    frames may be added up.
    """
    seen = project(ends.xyz_m, cam_from_lidar, camera.intrinsics, image.width_px, image.height_px)
    rows, columns = image.edges.shape
    down, across = REACH
    if not len(seen.point):
        return np.zeros((2 * down + 1, 2 * across + 1))
    marks = np.zeros((rows, columns))
    at = np.minimum(seen.row_px // image.cell_px, rows - 1), np.minimum(seen.col_px // image.cell_px, columns - 1)
    np.add.at(marks, at, ends.weight[seen.point] / ends.weight[seen.point].sum())
    shape = rows + 2 * down, columns + 2 * across  # room for every move without coming in again on the other side
    moved = np.fft.irfft2(np.fft.rfft2(image.edges, shape) * np.conj(np.fft.rfft2(marks, shape)), shape)
    return np.asarray(moved[np.ix_(np.arange(-down, down + 1), np.arange(-across, across + 1))])


def judge(maps: Sequence[npt.NDArray[Any]], cell_px: int, intrinsics: npt.NDArray[Any]) -> Fit:
    """Return how well edges fit, by the sum of the maps of one camera in some frames."""
    total = np.sum(maps, axis=0)
    sharp = total - gaussian_filter(total, 6)  # things and sky make broad hills; edges make peaks
    sharp = (sharp - sharp.mean()) / max(float(sharp.std()), 1e-12)
    down, across = REACH
    here = sharp[down - _NEAR : down + _NEAR + 1, across - _NEAR : across + _NEAR + 1]
    row, column = np.unravel_index(int(sharp.argmax()), sharp.shape)
    shift = ((column - across) * cell_px / intrinsics[0, 0], (row - down) * cell_px / intrinsics[1, 1])
    return Fit(
        float(here.max()), float(sharp.max()), (math.degrees(math.atan(shift[0])), math.degrees(math.atan(shift[1])))
    )
