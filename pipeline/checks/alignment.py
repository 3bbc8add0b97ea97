"""Whether images and sweeps fit together, as the calibration puts them: marks of the sweep moved over the image.

Everything is moved over everything by one correlation, so that the place of best fit is known as well, and how far
chance goes: a score is in deviations from what other places give. What was measured on real frames stands in
docs/reliability.md (bench/doctor.py writes it): right calibrations score 4.5 and more, wrong ones less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy

from pipeline.checks.signals import HILL, Array, Marks, View
from pipeline.frame import Camera

ALIGNED = 4.5  # a score from here on tells a right calibration
REACH = (40, 64)  # by how many cells, down and across, marks are moved against the image
_NEAR = 2  # cells: still counts as no move, about a quarter of a degree in nuScenes
_TOGETHER = np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])  # signals that are asked together
_STEP_DEG = 0.25  # of the panorama
_MOST_ELEVATION_DEG = 60.0
_TILTS = range(-6, 7)  # steps that a turned camera may be tilted as well
_APART_DEG = 3.0  # two turns that are nearer than this are one


@dataclass(frozen=True, eq=False)
class Fit:
    """How well marks fit: `score` where the calibration puts them, `best` anywhere near, and `shift_deg` where that is.

    Both are deviations from what other places give. The shift is in degrees of view, right and down. `weights`
    (3, 2) make deviations out of what `measure` returns: of both signals together, and of each alone.
    """

    score: float
    best: float
    shift_deg: tuple[float, float]
    weights: Array

    @property
    def aligned(self) -> bool:
        """Whether the score tells that the calibration is right; a low one alone does not tell that it is wrong."""
        return self.score >= ALIGNED


def fit_of(views: Sequence[View]) -> Fit:
    """Return how well the marks of one camera fit in some frames, where their calibrations put them."""
    return judge([correlate(view) for view in views], views[0].picture.cell_px, views[0].camera.intrinsics)


def correlate(view: View) -> Array:
    """Return the mean of each layer under its marks for every move of the marks, by cells down and across; (2, ., .).

    No move is in the middle. A camera that sees no mark gets zeros. Maps of several frames may be added up.
    """
    rows, columns = view.picture.layers.shape[1:]
    down, across = REACH
    # room for every move without coming in again on the other side
    shape = scipy.fft.next_fast_len(rows + down, True), scipy.fft.next_fast_len(columns + across, True)
    found = np.zeros((2, 2 * down + 1, 2 * across + 1))
    for signal, marks in enumerate(view.marks):
        row, column, inside = _cells(view, marks, view.camera.cam_from_lidar[None], view.camera.intrinsics[None])
        weight = marks.weight[inside[0]]
        if not len(weight):
            continue
        flat = row[inside] * columns + column[inside]
        placed = np.bincount(flat, weight, rows * columns).reshape(rows, columns) / np.abs(weight).sum()
        spectrum = scipy.fft.rfft2(view.picture.layers[signal], shape) * np.conj(
            scipy.fft.rfft2(placed.astype(np.float32), shape)
        )
        moved = scipy.fft.irfft2(spectrum, shape)
        found[signal] = moved[np.ix_(np.arange(-down, down + 1), np.arange(-across, across + 1))]
    return found


def _cells(view: View, marks: Marks, poses: Array, intrinsics: Array) -> tuple[Array, Array, Array]:
    """Return row and column of the cell, (k, n), that each mark falls into by each of k calibrations, and whether that
    is in the image.
    """
    matrices = (intrinsics @ poses[:, :3, :3]).astype(np.float32)
    offsets = np.einsum("kij,kj->ki", intrinsics, poses[:, :3, 3]).astype(np.float32)
    across, down, depth = np.moveaxis(marks.xyz_m @ matrices.transpose(0, 2, 1) + offsets[:, None], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        u_px, v_px = across / depth, down / depth
        inside = (depth > 1) & (u_px > 0) & (u_px < view.picture.width_px - 1)
        inside &= (v_px > 0) & (v_px < view.picture.height_px - 1)
    rows, columns = view.picture.layers.shape[1:]
    row, column = (
        np.minimum(np.where(inside, px, 0).astype(np.int32) // view.picture.cell_px, most - 1)
        for px, most in ((v_px, rows), (u_px, columns))
    )
    return row, column, inside


def judge(maps: Sequence[Array], cell_px: int, intrinsics: Array) -> Fit:
    """Return how well marks fit, by the maps of one camera in some frames: by the signals together, or one of them."""
    total = np.sum(maps, axis=0)
    sharp = total - np.stack([scipy.ndimage.gaussian_filter(one, HILL) for one in total])
    deviation = sharp.std(axis=(1, 2))
    weights = _TOGETHER / np.where(deviation > 1e-9, deviation, np.inf)
    mixed = np.tensordot(weights, sharp, 1)
    weights = weights / np.maximum(mixed.std(axis=(1, 2)), 1e-9)[:, None]
    mixed /= np.maximum(mixed.std(axis=(1, 2), keepdims=True), 1e-9)
    down, across = REACH
    here = mixed[:, down - _NEAR : down + _NEAR + 1, across - _NEAR : across + _NEAR + 1]
    _, row, column = np.unravel_index(int(mixed.argmax()), mixed.shape)
    shift = ((column - across) * cell_px / intrinsics[0, 0], (row - down) * cell_px / intrinsics[1, 1])
    degrees = math.degrees(math.atan(shift[0])), math.degrees(math.atan(shift[1]))
    return Fit(float(here.max()), float(mixed.max()), degrees, weights)


# -- other calibrations than the given one


def measure(view: View, poses: Array, intrinsics: Array) -> Array:
    """Return the mean of each layer under its marks, (k, 2), by each of k calibrations: poses (k, 4, 4) and camera
    matrices (k, 3, 3).

    The first is the one to compare with: the others' means are scaled by the root of how many marks they see beside it,
    so that chance does as much in all of them.
    """
    found = np.zeros((len(poses), 2))
    for signal, marks in enumerate(view.marks):
        row, column, inside = _cells(view, marks, poses, intrinsics)
        weight = np.where(inside, marks.weight, 0)
        under = (view.picture.layers[signal][row, column] * weight).sum(axis=1)
        seen = np.abs(weight).sum(axis=1)
        found[:, signal] = under / np.sqrt(np.maximum(seen * max(float(seen[0]), 1e-9), 1e-9))
    return found


def ahead_only(view: View, margin_deg: float = 20.0) -> View:
    """Return the view with those marks only that lie within its field of view, or near it."""
    picture, intrinsics = view.picture, view.camera.intrinsics
    far = np.hypot(
        max(intrinsics[0, 2], picture.width_px - intrinsics[0, 2]) / intrinsics[0, 0],
        max(intrinsics[1, 2], picture.height_px - intrinsics[1, 2]) / intrinsics[1, 1],
    )
    least = math.cos(min(math.atan(far) + math.radians(margin_deg), math.pi))
    kept = []
    for marks in view.marks:
        seen = marks.xyz_m @ view.camera.cam_from_lidar[:3, :3].T + view.camera.cam_from_lidar[:3, 3]
        near = seen[:, 2] >= least * np.linalg.norm(seen, axis=1)
        kept.append(Marks(marks.xyz_m[near], marks.weight[near]))
    return replace(view, marks=(kept[0], kept[1]))


# -- a camera turned about the upright axis, all the way round


def best_turns(views: Sequence[View], up: Array, n: int = 3) -> list[tuple[float, float]]:
    """Return the turns of a camera that fit best, by degrees to the right about `up` (3,), LiDAR frame, and degrees
    down; the best first. These are guesses: `fit_of` tells what each is worth.
    """
    total = np.sum([turn(view, up) for view in views], axis=0)  # signal, sum or weight, tilt, turn
    seen = np.maximum(total[:, 1], 0)
    enough = seen > 0.3 * np.median(seen, axis=(1, 2), keepdims=True)
    sharp = np.where(enough, total[:, 0] / np.sqrt(np.maximum(seen, 1e-9)), 0)
    sharp -= scipy.ndimage.gaussian_filter1d(sharp, 16, axis=2, mode="wrap")
    deviation = sharp.std(axis=(1, 2))
    mixed = np.tensordot(_TOGETHER / np.where(deviation > 1e-9, deviation, np.inf), sharp, 1)
    mixed /= np.maximum(mixed.std(axis=(1, 2), keepdims=True), 1e-9)
    best, angles = mixed.max(axis=0), turns_deg()
    found = []
    for _ in range(n):
        tilt, place = np.unravel_index(int(best.argmax()), best.shape)
        found.append((float(angles[place]), _TILTS[tilt] * _STEP_DEG))
        best[:, np.abs((angles - angles[place] + 180) % 360 - 180) < _APART_DEG] = -np.inf
    return found


def turns_deg() -> Array:
    """Return the angles of `turn`, in degrees to the right: 0 first, then all the way round."""
    angle = np.arange(round(360 / _STEP_DEG)) * _STEP_DEG
    return (angle + 180) % 360 - 180


def turn(view: View, up: Array) -> Array:
    """Return for every turn of the camera about `up` (3,), LiDAR frame, the sum of each layer under its marks and the
    weight of those marks, (2, 2, tilts, turns); see `turns_deg`. Tilts are small ones, down.
    """
    level = level_frame(view.camera, up)
    layers, mask, lowest = _panorama(view, level)
    rows, columns = mask.shape
    images = scipy.fft.rfft(np.concatenate([layers, mask[None]]), axis=2)
    found = np.zeros((2, 2, len(_TILTS), columns))
    for signal, marks in enumerate(view.marks):
        seen = (marks.xyz_m @ view.camera.cam_from_lidar[:3, :3].T + view.camera.cam_from_lidar[:3, 3]) @ level
        elevation = np.degrees(np.arctan2(seen[:, 2], np.hypot(seen[:, 0], seen[:, 1])))
        at = np.floor((elevation - lowest) / _STEP_DEG).astype(int) - _TILTS[0]
        column = np.round(np.degrees(np.arctan2(-seen[:, 1], seen[:, 0])) / _STEP_DEG).astype(int) % columns
        high = rows + len(_TILTS) - 1  # rows of marks, more than those of the image by the tilts
        kept = (at >= 0) & (at < high)
        for part, weight in enumerate((marks.weight, np.abs(marks.weight))):
            flat = np.bincount(at[kept] * columns + column[kept], weight[kept], high * columns)
            placed = scipy.fft.rfft(flat.reshape(high, columns).astype(np.float32), axis=1)
            against = np.conj(images[2 if part else signal])
            for tilt in range(len(_TILTS)):
                # a camera that is turned right by a sees marks at azimuth x + a where it saw those at x
                spectrum = np.einsum("ij,ij->j", placed[tilt : tilt + rows], against)
                found[signal, part, len(_TILTS) - 1 - tilt] = scipy.fft.irfft(spectrum, columns)
    return found


def turned(view: View, up: Array, right_deg: float, down_deg: float) -> View:
    """Return the view as a camera sees it that is turned about `up` to the right, and then down."""
    level = level_frame(view.camera, up)
    right, down = math.radians(right_deg), math.radians(down_deg)
    about_up = np.array([[math.cos(right), -math.sin(right), 0], [math.sin(right), math.cos(right), 0], [0, 0, 1]])
    about_left = np.array([[math.cos(down), 0, -math.sin(down)], [0, 1, 0], [math.sin(down), 0, math.cos(down)]])
    rotation = np.eye(4)
    rotation[:3, :3] = level @ about_left @ about_up @ level.T
    return replace(view, camera=replace(view.camera, cam_from_lidar=rotation @ view.camera.cam_from_lidar))


def level_frame(camera: Camera, up: Array) -> Array:
    """Return a rotation (3, 3): ahead, left and up as seen by the camera, ahead along its axis but level."""
    upward = camera.cam_from_lidar[:3, :3] @ up
    ahead = np.array([0, 0, 1.0]) - upward * upward[2]
    if np.linalg.norm(ahead) < 1e-3:  # it looks straight up or down
        ahead = np.array([0, 1.0, 0]) - upward * upward[1]
    ahead /= np.linalg.norm(ahead)
    return np.stack([ahead, np.cross(upward, ahead), upward], axis=1)


def _panorama(view: View, level: Array) -> tuple[Array, Array, float]:
    """Return the layers by elevation, ascending, and azimuth to the right, (2, rows, turns), where there is image at
    all, and the least elevation in degrees.
    """
    elevations = np.arange(-_MOST_ELEVATION_DEG, _MOST_ELEVATION_DEG, _STEP_DEG) + _STEP_DEG / 2
    azimuth, elevation = np.meshgrid(np.radians(turns_deg()), np.radians(elevations))
    ray = np.stack([np.cos(elevation) * np.cos(azimuth), -np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    across, down, depth = np.einsum("ij,jkl->ikl", view.camera.intrinsics @ level, ray)
    picture = view.picture
    with np.errstate(divide="ignore", invalid="ignore"):
        u_px, v_px = across / depth, down / depth
        inside = (depth > 0.05) & (u_px > 0) & (u_px < picture.width_px - 1)
        inside &= (v_px > 0) & (v_px < picture.height_px - 1)
    rows = np.flatnonzero(inside.any(axis=1))
    first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 1)
    inside, u_px, v_px = inside[first:last], u_px[first:last], v_px[first:last]
    place = np.stack([v_px[inside], u_px[inside]]) / picture.cell_px - 0.5
    layers = np.zeros((2, *inside.shape), np.float32)
    for signal in range(2):
        layers[signal][inside] = scipy.ndimage.map_coordinates(picture.layers[signal], place, order=1, mode="nearest")
    return layers, inside.astype(np.float32), float(elevations[first] - _STEP_DEG / 2)
