"""What a sweep says must show in an image, and what the image shows.

Two signals, each a set of marks in the sweep and a layer of the image:

*Edges.* A thing that stands before something farther away ends in the sweep where it ends in the image, so points at
such ends fall on edges of the image if the calibration is right (the idea of Levinson and Thrun, "Automatic Online
Calibration of Cameras and Lasers", 2013). Only upright edges count: a spinning LiDAR sees them sharply, between two
points of one ring.

*Brightness.* What returns more of the laser's light than what is around it tends to be brighter in the image, too (the
idea of Pandey and others, "Automatic Targetless Extrinsic Calibration of a 3D Lidar and Camera by Maximizing Mutual
Information", 2012). It says nothing where a sweep has no intensity.

`alignment` asks whether they fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from pipeline.frame import Camera

CELLS = 600  # columns of cells that an image is reduced to
HILL = 6  # cells: things and sky make hills broader than this; edges make peaks
_RING = 4.0  # how much more a difference in elevation counts than one in azimuth when neighbours on a ring are sought
_NEAR_M, _FAR_M = 2.0, 60.0  # nearer is the vehicle itself, farther a ring is too thin
_JUMP_M, _JUMP = 0.3, 0.05  # an end of a thing: the next point of the ring is this much farther, metres plus share
_MOST_M = 3.0  # a longer jump tells no more
_MOST_MARKS = 10_000  # of each signal and sweep: more tell no more
_STEP_DEG = 0.25  # of the sphere's grid
_AROUND_DEG = 1.0  # brightness is what a point has more than those around it, as far as this
_OUTLIER = 2.0  # deviations, beyond which brightness tells no more

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Marks:
    """Points of a sweep that must show in an image: `xyz_m` (n, 3), LiDAR frame, and how much each counts, signed."""

    xyz_m: npt.NDArray[np.float32]
    weight: npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Picture:
    """Layers of an image by cells of `cell_px` pixels, each of mean 0 and deviation 1; the image's size in pixels.

    `layers` float32 (2, rows, columns): upright edges beside what is usual around them, and brightness beside its own
    surroundings. They are what the two marks of a sweep are compared with, in this order.
    """

    layers: npt.NDArray[np.float32]
    cell_px: int
    width_px: int
    height_px: int


@dataclass(frozen=True, eq=False)
class View:
    """One image with the marks of the sweep it belongs to, edges and brightness."""

    picture: Picture
    marks: tuple[Marks, Marks]
    camera: Camera


# -- marks of a sweep


def find_marks(xyz_m: npt.NDArray[np.float32], intensity: npt.NDArray[np.float32], eye_m: Array) -> tuple[Marks, Marks]:
    """Return the ends of things and what is brighter or darker than its surroundings, in a sweep (n, 3).

    `eye_m` (3,) is where the sensor is, LiDAR frame: some logs keep points in the frame of the vehicle, below it.
    """
    xyz_m, intensity = _usable(xyz_m, intensity)
    return find_ends(xyz_m, eye_m), find_contrast(xyz_m, intensity)


def _usable(xyz_m: Array, intensity: Array) -> tuple[Array, Array]:
    range_m = np.linalg.norm(xyz_m, axis=1)
    kept = (range_m > _NEAR_M) & np.isfinite(range_m) & np.isfinite(intensity)
    return xyz_m[kept], intensity[kept]


def find_ends(xyz_m: npt.NDArray[np.float32], eye_m: Array) -> Marks:
    """Return where things end in a sweep float32 (n, 3) seen from `eye_m` (3,): points whose neighbour on the ring is
    much farther away.
    """
    seen = xyz_m - np.asarray(eye_m, np.float32)
    range_m = np.linalg.norm(seen, axis=1)
    if len(xyz_m) < 3:
        return Marks(xyz_m[:0], np.empty(0, np.float32))
    azimuth = np.arctan2(seen[:, 1], seen[:, 0])
    elevation = np.arcsin(seen[:, 2] / np.maximum(range_m, 1e-6))
    place = np.stack([np.cos(azimuth), np.sin(azimuth), _RING * elevation], axis=1)
    _, near = scipy.spatial.cKDTree(place).query(place, k=3)
    jump_m = range_m[near].max(axis=1) - range_m
    ends = np.flatnonzero((jump_m > _JUMP_M + _JUMP * range_m) & (range_m < _FAR_M) & (range_m > _NEAR_M))
    return Marks(xyz_m[ends], np.sqrt(np.minimum(jump_m[ends], _MOST_M)).astype(np.float32))


def find_contrast(xyz_m: npt.NDArray[np.float32], intensity: npt.NDArray[np.float32]) -> Marks:
    """Return the points that give back more light than those around them, or less; none where intensity says nothing.

    The square root is taken, so that few strong reflectors do not speak for all.
    """
    light = np.sqrt(np.maximum(intensity, 0))
    if len(light) < 3 or np.ptp(light) == 0:
        return Marks(xyz_m[:0], np.empty(0, np.float32))
    range_m = np.linalg.norm(xyz_m, axis=1)
    row = np.floor(np.degrees(np.arcsin(xyz_m[:, 2] / range_m)) / _STEP_DEG).astype(int) + round(90 / _STEP_DEG)
    column = np.floor((np.degrees(np.arctan2(xyz_m[:, 1], xyz_m[:, 0])) + 180) / _STEP_DEG).astype(int)
    shape = round(180 / _STEP_DEG) + 1, round(360 / _STEP_DEG) + 1
    sums, counts = (
        np.bincount(row * shape[1] + column, weight, shape[0] * shape[1]).reshape(shape).astype(np.float32)
        for weight in (light, np.ones(len(light)))
    )
    width = _AROUND_DEG / _STEP_DEG
    usual = scipy.ndimage.gaussian_filter(sums, width, truncate=2) / np.maximum(
        scipy.ndimage.gaussian_filter(counts, width, truncate=2), 1e-9
    )
    more = light - usual[row, column]
    more /= max(float(more.std()), 1e-9)
    told = np.argsort(-np.abs(more), kind="stable")[:_MOST_MARKS]
    return Marks(xyz_m[told], np.clip(more[told], -_OUTLIER, _OUTLIER).astype(np.float32))


# -- layers of an image


def find_layers(rgb: npt.NDArray[np.uint8]) -> Picture:
    """Return the upright edges of an image uint8 (H, W, 3), and its brightness, each beside what is usual around."""
    height_px, width_px = rgb.shape[:2]
    cell = max(1, round(width_px / CELLS))
    rows, columns = height_px // cell, width_px // cell
    cut = rgb[: rows * cell, : columns * cell]
    grey = cut.reshape(rows, cell, columns, cell, 3).mean(axis=(1, 3, 4), dtype=np.float32)
    edges = np.abs(scipy.ndimage.sobel(scipy.ndimage.gaussian_filter(grey, 0.5), axis=1))
    edges /= 10 + scipy.ndimage.gaussian_filter(edges, 20)
    edges = scipy.ndimage.gaussian_filter(np.minimum(edges, np.percentile(edges, 95)), 1)
    light = scipy.ndimage.gaussian_filter(grey, 0.5)
    light -= scipy.ndimage.gaussian_filter(light, HILL)
    light = np.clip(light / (5 + np.sqrt(scipy.ndimage.gaussian_filter(light * light, 15))), -_OUTLIER, _OUTLIER)
    layers = np.stack([edges, light])
    layers -= layers.mean(axis=(1, 2), keepdims=True)
    layers /= np.maximum(layers.std(axis=(1, 2), keepdims=True), 1e-6)
    return Picture(layers, cell, width_px, height_px)
