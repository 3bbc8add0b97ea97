"""Lenses: where a ray of a raw camera lands beside the place that a pinhole gives it, and as far as that holds.

Models and the order of their coefficients are OpenCV's: "brown" k1, k2, p1, p2[, k3] (Brown and Conrady), "rational"
k1, k2, p1, p2, k3, k4, k5, k6, and "fisheye" k1, k2, k3, k4 (Kannala and Brandt, "A Generic Camera Model", 2006). Each
is a polynomial that was fitted inside the image and turns back somewhere outside: a ray beyond that would land in the
image again, where it is not seen, so it is left out (`valid_radius`). A fisheye of which the angle of view is stated
(`field_rad`) may see beyond 90 degrees from its axis, where no plane at depth 1 is: its rays go by their angle.

A `Shutter` says in which order the rows of an image were read out, and how the camera moved meanwhile.

All is written out in single steps, as in `geometry`; the arc tangent of a fisheye alone may differ in the last bit of
float64 between processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

MODELS: dict[str, tuple[int, ...]] = {"pinhole": (0,), "brown": (4, 5), "rational": (8,), "fisheye": (4,)}
"""Numbers of coefficients that each model may have."""

OTHER_NAMES = {"plumb_bob": "brown", "rational_polynomial": "rational", "equidistant": "fisheye"}
"""What ROS calls the models. Source: sensor_msgs/distortion_models.hpp."""

MOST = 8  # coefficients of any model
_STEPS = 4096  # of the table that a radius is looked up in
_NEWTON, _SLOPE, _EXACT_PX = 6, 1e-6, 0.01  # steps, a difference at depth 1, and how near a step must end


@dataclass(frozen=True)
class Lens:
    """A model and its coefficients; raises ValueError for a number of them that the model does not have.

    `field_rad` is a fisheye's whole angle of view, 0 where it is not stated: then it sees nothing beyond 90 degrees
    from its axis. Where it is, a point's depth is its distance from the camera.
    """

    model: str = "pinhole"
    coefficients: tuple[float, ...] = ()
    field_rad: float = 0.0

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"the lens model is {self.model!r}; there are {', '.join(MODELS)}")
        n, known = len(self.coefficients), MODELS[self.model]
        if n not in known:
            raise ValueError(f"{n} coefficients of model {self.model}; it has {' or '.join(map(str, known))}")
        if not all(map(math.isfinite, self.coefficients)):
            raise ValueError(f"coefficients of model {self.model} are {list(self.coefficients)}; expected numbers")
        if self.field_rad and (self.model != "fisheye" or not 0 < self.field_rad <= 2 * math.pi):
            raise ValueError(
                f"the angle of view is {math.degrees(self.field_rad):g} degrees of a {self.model}; it is stated of a "
                "fisheye alone, and more than 0 and at most 360"
            )

    @property
    def straight(self) -> bool:
        """Whether rays go straight through it."""
        return self.model == "pinhole" or (self.model != "fisheye" and not any(self.coefficients))

    @property
    def padded(self) -> list[float]:
        """The coefficients, a fisheye's angle of view, and zeros up to `MOST`."""
        values = [*self.coefficients, self.field_rad] if self.field_rad else list(self.coefficients)
        return [*values, *[0.0] * (MOST - len(values))]


PINHOLE = Lens()

DIRECTIONS = ("down", "up", "right", "left")
"""In which order an image is read out: from its first row, its last, its first column, its last."""


@dataclass(frozen=True)
class Shutter:
    """How an image was read out, row by row or column by column; by itself, all at once.

    `direction` is one of `DIRECTIONS`, "" for all at once, and `readout_s` how long it took from the first to the last.
    The image's time, and its pose, are those of its middle. `motion` (6,) is how the camera moved: rotation vector in
    rad/s, velocity in m/s, in its own frame.
    """

    direction: str = ""
    readout_s: float = 0.0
    motion: tuple[float, ...] = (0.0,) * 6

    @property
    def rolls(self) -> bool:
        """Whether rows see things from different places."""
        return bool(self.direction) and self.readout_s > 0 and any(self.motion)

    def seconds(self, u_px: Float64, v_px: Float64, width_px: int, height_px: int) -> Float64:
        """Return when pixels (p,) were read out, from the middle of the image on; those outside as the edge is."""
        place, length = (v_px, height_px) if self.direction in ("down", "up") else (u_px, width_px)
        share = np.clip(np.nan_to_num(place, nan=0.0), 0, length - 1) / max(length - 1, 1) - 0.5
        return share * (self.readout_s if self.direction in ("down", "right") else -self.readout_s)


GLOBAL = Shutter()


def lens_of(coefficients: Sequence[float], model: str = "") -> Lens:
    """Return the lens of a list of coefficients, as tables have them: none or zeros only are a pinhole.

    Without a model, the number of coefficients tells it: 4 or 5 brown, 8 rational (and 12 or 14 whose others are 0).
    Raises ValueError for other numbers.
    """
    values = tuple(map(float, coefficients))
    if model:
        return Lens(OTHER_NAMES.get(model, model), values)
    if not any(values):
        return PINHOLE
    if len(values) in (12, 14) and not any(values[8:]):
        values = values[:8]
    if len(values) == 8 and not any(values[5:]):
        values = values[:5]
    names = {4: "brown", 5: "brown", 8: "rational"}
    if len(values) not in names:
        raise ValueError(f"{len(values)} coefficients of distortion; expected 4, 5 or 8 as OpenCV orders them")
    return Lens(names[len(values)], values)


def lens_in(model: str, padded: Float64) -> Lens:
    """Return the lens of a row of table `index`: its model, and its coefficients with zeros behind."""
    if model == "pinhole":
        return PINHOLE
    n = MODELS[model][-1]
    return Lens(model, tuple(padded[:n].tolist()), float(padded[n]) if model == "fisheye" else 0.0)


def bend(lens: Lens, x: Float64, y: Float64) -> tuple[Float64, Float64, npt.NDArray[np.bool_]]:
    """Return where rays through (x, y) at depth 1 land, at depth 1 too, and which of them the model is valid for."""
    squared = x * x + y * y
    if lens.straight:
        return x, y, np.ones(len(x), np.bool_)
    valid = squared <= valid_radius(lens) ** 2
    if lens.model == "fisheye":
        radius = np.sqrt(squared)
        angle = np.arctan(radius)
        k1, k2, k3, k4 = lens.coefficients
        s = angle * angle
        bent = angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
        scale = np.divide(bent, radius, out=np.ones_like(radius), where=radius > 0)
        return x * scale, y * scale, valid
    k1, k2, p1, p2, k3, k4, k5, k6 = lens.padded
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        radial = (1 + squared * (k1 + squared * (k2 + squared * k3))) / (
            1 + squared * (k4 + squared * (k5 + squared * k6))
        )
        across = x * radial + (2 * p1 * (x * y) + p2 * (squared + 2 * (x * x)))
        down = y * radial + (p1 * (squared + 2 * (y * y)) + 2 * p2 * (x * y))
    return across, down, valid


def bend_wide(lens: Lens, x: Float64, y: Float64, z: Float64) -> tuple[Float64, Float64, npt.NDArray[np.bool_]]:
    """Return what `bend` does, of rays through (x, y, z) and a fisheye whose angle of view is stated."""
    radius = np.sqrt(x * x + y * y)
    angle = np.arctan2(radius, z)
    k1, k2, k3, k4 = lens.coefficients
    s = angle * angle
    bent = angle * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4))))
    scale = np.divide(bent, radius, out=np.zeros_like(radius), where=radius > 0)
    most = min(lens.field_rad / 2, turning_angle(lens))
    return x * scale, y * scale, (angle <= most) & ((radius > 0) | (z > 0))


def turning_angle(lens: Lens) -> float:
    """Return the angle from the axis of a fisheye beyond which its polynomial turns back, or infinity."""
    k1, k2, k3, k4 = lens.coefficients
    turn = least_root([1, 3 * k1, 5 * k2, 7 * k3, 9 * k4])
    return math.sqrt(turn) if turn < math.inf else math.inf


@lru_cache(maxsize=1024)
def valid_radius(lens: Lens) -> float:
    """Return how far from the axis, at depth 1, a ray may be: where the model turns back, or infinity."""
    if lens.straight:
        return math.inf
    if lens.model == "fisheye":
        most = min(turning_angle(lens), lens.field_rad / 2 if lens.field_rad else math.inf)
        return math.tan(most) if most < math.pi / 2 else math.inf
    k1, k2, _, _, k3, k4, k5, k6 = lens.padded
    above, below = np.array([1, k1, k2, k3]), np.array([1, k4, k5, k6])  # of the squared radius, ascending
    slope = np.convolve(above, below)  # of radius * above / below, times below squared
    for sign, first, second in ((2, above, below), (-2, below, above)):
        part = sign * np.convolve(np.arange(1, 4) * first[1:], second)
        slope[1:] += part
    turn = min(least_root(slope.tolist()), least_root(below.tolist()))
    return math.sqrt(turn) if turn < math.inf else math.inf


def least_root(ascending: Sequence[float]) -> float:
    """Return the least root above 0 of a polynomial that is 1 at 0, infinity where there is none.

    It is the inverse of the largest root of the polynomial turned round, whose first coefficient is 1.
    """
    roots = np.roots(np.array(ascending, np.float64))
    real = roots.real[(np.abs(roots.imag) < 1e-9 * np.maximum(np.abs(roots), 1e-3)) & (roots.real > 1e-9)]
    return 1 / float(real.max()) if len(real) else math.inf


def unbent_radius(lens: Lens, bent: Float64) -> Float64:
    """Return how far from the axis rays are at depth 1 that land at these radii, tangential distortion left aside."""
    if lens.straight:
        return bent
    most = min(valid_radius(lens), 20.0)  # 87 degrees
    radius = np.linspace(0, most, _STEPS, endpoint=False)
    landed, _, _ = bend(Lens(lens.model, radial_only(lens)), radius, np.zeros(_STEPS))
    return np.asarray(np.interp(bent, landed, radius))


def radial_only(lens: Lens) -> tuple[float, ...]:
    """Return the coefficients of a lens without its tangential ones."""
    if lens.model == "fisheye":
        return lens.coefficients
    return tuple(0.0 if i in (2, 3) else value for i, value in enumerate(lens.coefficients))


def rectified(image: npt.NDArray[Any], lens: Lens, intrinsics: Float64) -> npt.NDArray[Any]:
    """Return an image (H, W, 3) of a camera as its pinhole would have taken it; black where the lens shows nothing."""
    from scipy.ndimage import map_coordinates

    u_px, v_px, valid = raw_places(lens, intrinsics, *grid(*image.shape[:2]))
    place = np.where(valid, np.stack([v_px, u_px]), -10.0)
    found: list[npt.NDArray[Any]] = [
        map_coordinates(image[:, :, i], place, order=1, cval=0) for i in range(image.shape[2])
    ]
    return np.asarray(np.stack(found, axis=1).reshape(image.shape))


def grid(height_px: int, width_px: int) -> tuple[Float64, Float64]:
    """Return the columns and rows of all pixels of an image, row by row, (H * W,) each."""
    v_px, u_px = np.divmod(np.arange(height_px * width_px, dtype=np.float64), width_px)
    return u_px, v_px


def raw_places(
    lens: Lens, intrinsics: Float64, u_px: Float64, v_px: Float64
) -> tuple[Float64, Float64, npt.NDArray[np.bool_]]:
    """Return where in its raw image a camera shows what its pinhole shows at pixels (n,), u and v, and whether it
    shows that at all.
    """
    x, y, valid = bend(lens, *at_depth_1(intrinsics, u_px, v_px))
    (fx, skew, cx), (shear, fy, cy), _ = intrinsics.tolist()
    return fx * x + skew * y + cx, shear * x + fy * y + cy, valid


def pinhole_places(
    lens: Lens, intrinsics: Float64, u_px: Float64, v_px: Float64
) -> tuple[Float64, Float64, npt.NDArray[np.bool_]]:
    """Return where its pinhole shows what a camera shows at pixels (n,) of its raw image, u and v, and whether any
    place of the pinhole's plane does: the inverse of `raw_places`, to `_EXACT_PX`.

    Newton's steps, from where radial distortion alone would have it; slopes are differences.
    """
    (fx, skew, cx), (shear, fy, cy), _ = intrinsics.tolist()
    x_raw, y_raw = at_depth_1(intrinsics, u_px, v_px)
    radius = np.sqrt(x_raw * x_raw + y_raw * y_raw)
    scale = np.divide(unbent_radius(lens, radius), radius, out=np.ones_like(radius), where=radius > 0)
    x, y = x_raw * scale, y_raw * scale
    with np.errstate(all="ignore"):  # what does not converge is not valid
        for _ in range(_NEWTON):
            (bx, by, _), (bx_x, by_x, _), (bx_y, by_y, _) = (
                bend(lens, x + dx, y + dy) for dx, dy in ((0, 0), (_SLOPE, 0), (0, _SLOPE))
            )
            a, b, c, d = (bx_x - bx) / _SLOPE, (bx_y - bx) / _SLOPE, (by_x - by) / _SLOPE, (by_y - by) / _SLOPE
            right, down, determinant = x_raw - bx, y_raw - by, a * d - b * c
            x, y = x + (d * right - b * down) / determinant, y + (a * down - c * right) / determinant
        bx, by, valid = bend(lens, x, y)
        valid = valid & (np.hypot((bx - x_raw) * fx, (by - y_raw) * fy) < _EXACT_PX)
        return fx * x + skew * y + cx, shear * x + fy * y + cy, valid


def at_depth_1(intrinsics: Float64, u_px: Float64, v_px: Float64) -> tuple[Float64, Float64]:
    """Return where rays of a pinhole through pixels (n,) are at depth 1, x and y."""
    (fx, skew, cx), (shear, fy, cy), _ = intrinsics.tolist()
    determinant = fx * fy - skew * shear
    return (
        (fy * (u_px - cx) - skew * (v_px - cy)) / determinant,
        (fx * (v_px - cy) - shear * (u_px - cx)) / determinant,
    )
