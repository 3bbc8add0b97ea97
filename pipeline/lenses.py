"""Lenses: where a ray of a raw camera lands beside the place that a pinhole gives it, and as far as that holds.

Models and the order of their coefficients are OpenCV's: "brown" k1, k2, p1, p2[, k3] (Brown and Conrady), "rational"
k1, k2, p1, p2, k3, k4, k5, k6, and "fisheye" k1, k2, k3, k4 (Kannala and Brandt, "A Generic Camera Model", 2006). Each
is a polynomial that was fitted inside the image and turns back somewhere outside: a ray beyond that would land in the
image again, where it is not seen, so it is left out (`valid_radius`).

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


@dataclass(frozen=True)
class Lens:
    """A model and its coefficients; raises ValueError for a number of them that the model does not have."""

    model: str = "pinhole"
    coefficients: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise ValueError(f"the lens model is {self.model!r}; there are {', '.join(MODELS)}")
        n, known = len(self.coefficients), MODELS[self.model]
        if n not in known:
            raise ValueError(f"{n} coefficients of model {self.model}; it has {' or '.join(map(str, known))}")
        if not all(map(math.isfinite, self.coefficients)):
            raise ValueError(f"coefficients of model {self.model} are {list(self.coefficients)}; expected numbers")

    @property
    def straight(self) -> bool:
        """Whether rays go straight through it."""
        return self.model == "pinhole" or (self.model != "fisheye" and not any(self.coefficients))

    @property
    def padded(self) -> list[float]:
        """The coefficients, and zeros up to `MOST`."""
        return [*self.coefficients, *[0.0] * (MOST - len(self.coefficients))]


PINHOLE = Lens()


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
    return Lens(model, tuple(padded[: MODELS[model][-1]].tolist()))


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


@lru_cache(maxsize=1024)
def valid_radius(lens: Lens) -> float:
    """Return how far from the axis, at depth 1, a ray may be: where the model turns back, or infinity."""
    if lens.straight:
        return math.inf
    if lens.model == "fisheye":
        k1, k2, k3, k4 = lens.coefficients
        turn = least_root([1, 3 * k1, 5 * k2, 7 * k3, 9 * k4])
        return math.tan(math.sqrt(turn)) if turn < (math.pi / 2) ** 2 else math.inf
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

    height_px, width_px = image.shape[:2]
    (fx, skew, cx), (shear, fy, cy), _ = intrinsics.tolist()
    v_px, u_px = np.divmod(np.arange(height_px * width_px, dtype=np.float64), width_px)
    determinant = fx * fy - skew * shear
    x = (fy * (u_px - cx) - skew * (v_px - cy)) / determinant
    y = (fx * (v_px - cy) - shear * (u_px - cx)) / determinant
    across, down, valid = bend(lens, x, y)
    place = np.stack([shear * across + fy * down + cy, fx * across + skew * down + cx])
    place[:, ~valid] = -10.0
    found: list[npt.NDArray[Any]] = [
        map_coordinates(image[:, :, i], place, order=1, cval=0) for i in range(image.shape[2])
    ]
    return np.asarray(np.stack(found, axis=1).reshape(image.shape))
