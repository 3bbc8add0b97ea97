"""What surfaces are made of: their colour and pattern in images, and how they answer a LiDAR pulse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, auto
from functools import cache

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Float32 = npt.NDArray[np.float32]


class Stuff(IntEnum):
    """Materials by name; the values are positions in MATERIALS and stand on every triangle."""

    ASPHALT = 0
    MARKING = auto()
    CONCRETE = auto()
    PAVING = auto()
    GRASS = auto()
    SOIL = auto()
    STONE = auto()
    WATER = auto()
    BALLAST = auto()
    STEEL = auto()
    PLASTER = auto()
    BRICKS = auto()
    HOUSE = auto()
    FLATS = auto()
    OFFICE = auto()
    ROOF = auto()
    GLASS = auto()
    PAINT = auto()
    RUBBER = auto()
    LAMP = auto()
    METAL = auto()
    SIGN = auto()
    PLASTIC = auto()
    REFLEX = auto()
    WOOD = auto()
    BARK = auto()
    LEAF = auto()
    CLOTH = auto()
    SKIN = auto()
    SHEETING = auto()


@dataclass(frozen=True)
class Material:
    """One material: linear RGB `colour`, which a triangle's tint multiplies, a `pattern` of PATTERNS, and its echo.

    `reflectance` 0..1 is the echo of the surface seen head-on, 1 a white wall and above 1 a retroreflector; `spread` is
    the standard deviation of its logarithm from pulse to pulse; `rough_m` is added to the noise of ranges; `gloss` is
    the share of sky light that the surface mirrors; `lost` is the share of pulses that pass through or are mirrored
    away.
    """

    colour: tuple[float, float, float]
    reflectance: float
    pattern: str = "plain"
    spread: float = 0.25
    rough_m: float = 0.0
    gloss: float = 0.0
    lost: float = 0.0


# Reflectances follow what a 32-beam sweep shows: median raw intensities near 10 on roads and below 5 on cars, with long
# tails, so that no class can be told by its intensity alone.
MATERIALS: dict[Stuff, Material] = {
    Stuff.ASPHALT: Material((0.115, 0.115, 0.12), 0.13, "asphalt", 0.3),
    Stuff.MARKING: Material((0.66, 0.66, 0.62), 0.55, "worn", 0.4),
    Stuff.CONCRETE: Material((0.38, 0.37, 0.35), 0.25, "plain"),
    Stuff.PAVING: Material((0.33, 0.32, 0.30), 0.21, "slabs", 0.3),
    Stuff.GRASS: Material((0.095, 0.16, 0.04), 0.28, "grass", 0.45, 0.025),
    Stuff.SOIL: Material((0.22, 0.16, 0.10), 0.24, "grass", 0.4, 0.02),
    Stuff.STONE: Material((0.42, 0.36, 0.30), 0.24, "cobbles", 0.35),
    Stuff.WATER: Material((0.03, 0.055, 0.06), 0.03, "ripples", 0.8, 0.0, 0.5, 0.7),
    Stuff.BALLAST: Material((0.17, 0.15, 0.135), 0.19, "ballast", 0.45, 0.02),
    Stuff.STEEL: Material((0.30, 0.28, 0.27), 0.16, "plain", 0.5, 0.0, 0.2),
    Stuff.PLASTER: Material((0.62, 0.58, 0.52), 0.34, "plain", 0.3),
    Stuff.BRICKS: Material((0.36, 0.17, 0.11), 0.26, "bricks", 0.35),
    Stuff.HOUSE: Material((0.62, 0.57, 0.49), 0.32, "house", 0.35),
    Stuff.FLATS: Material((0.40, 0.24, 0.17), 0.28, "flats", 0.35),
    Stuff.OFFICE: Material((0.42, 0.43, 0.45), 0.26, "office", 0.4),
    Stuff.ROOF: Material((0.24, 0.12, 0.085), 0.22, "bricks", 0.3),
    Stuff.GLASS: Material((0.03, 0.035, 0.04), 0.03, "plain", 0.9, 0.0, 0.35, 0.5),
    Stuff.PAINT: Material((0.80, 0.80, 0.80), 0.12, "plain", 0.9, 0.0, 0.16, 0.04),
    Stuff.RUBBER: Material((0.025, 0.025, 0.027), 0.06, "plain", 0.4),
    Stuff.LAMP: Material((0.80, 0.80, 0.78), 0.9, "plain", 0.8, 0.0, 0.2),
    Stuff.METAL: Material((0.30, 0.31, 0.32), 0.23, "plain", 0.4, 0.0, 0.1),
    Stuff.SIGN: Material((0.75, 0.75, 0.75), 1.6, "plain", 0.6),
    Stuff.PLASTIC: Material((0.75, 0.75, 0.75), 0.3, "plain", 0.4),
    Stuff.REFLEX: Material((0.85, 0.85, 0.85), 1.2, "plain", 0.6),
    Stuff.WOOD: Material((0.30, 0.19, 0.11), 0.27, "plain", 0.35),
    Stuff.BARK: Material((0.13, 0.095, 0.07), 0.21, "bark", 0.4, 0.01),
    Stuff.LEAF: Material((0.10, 0.19, 0.05), 0.22, "plain", 0.5, 0.02),
    Stuff.CLOTH: Material((0.70, 0.70, 0.70), 0.24, "plain", 0.5, 0.005),
    Stuff.SKIN: Material((0.55, 0.36, 0.27), 0.30, "plain", 0.3),
    Stuff.SHEETING: Material((0.70, 0.70, 0.70), 0.24, "ribs", 0.5),
}

_COLOUR = np.array([MATERIALS[stuff].colour for stuff in Stuff], np.float32)
_REFLECTANCE = np.array([MATERIALS[stuff].reflectance for stuff in Stuff], np.float32)
_GLOSS = np.array([MATERIALS[stuff].gloss for stuff in Stuff], np.float32)
_LOST = np.array([MATERIALS[stuff].lost for stuff in Stuff], np.float32)
SPREAD = np.array([MATERIALS[stuff].spread for stuff in Stuff], np.float32)
ROUGH_M = np.array([MATERIALS[stuff].rough_m for stuff in Stuff], np.float32)

_TILE = 1024  # a power of two: noise repeats after so many values
_FINER = 12.0  # values of smooth noise to one unit
_PANE = np.array([0.035, 0.045, 0.055], np.float32)


@dataclass(frozen=True, eq=False)
class Surface:
    """How n hit points look and answer; aligned arrays: `albedo` (3, n) linear; the others (n,), as in Material."""

    albedo: Float32
    reflectance: Float32
    gloss: Float32
    lost: Float32


def surface(
    material: npt.NDArray[np.uint8], tint: Float32, position_m: Float32, normal: Float32, distance_m: Float32
) -> Surface:
    """Return the look and the echo of hit points: the material's, with its pattern laid over by place.

    Patterns are functions of the place in the scene, so all sensors and all frames see the same. Fine ones fade with
    distance, as they would in pixels that average over them. Arrays are aligned; positions in the scene's frame.
    """
    albedo = np.ascontiguousarray(tint.T) * _COLOUR.T[:, material]
    # dark things answer less, but far from in proportion: a pulse is infrared
    reflectance = _REFLECTANCE[material] * np.sqrt(0.15 + 0.85 * np.minimum(tint.mean(axis=1), 1.2))
    gloss = _GLOSS[material]
    lost = _LOST[material]
    flat = np.abs(normal[:, 2]) > 0.7
    # along walls: across is measured on the horizontal tangent of the wall, up is height
    length = np.maximum(np.hypot(normal[:, 0], normal[:, 1]), 1e-6)
    along = (position_m[:, 1] * normal[:, 0] - position_m[:, 0] * normal[:, 1]) / length
    u: Float32 = np.where(flat, position_m[:, 0], along)
    v: Float32 = np.where(flat, position_m[:, 1], position_m[:, 2])
    sharp = np.minimum(14.0 / np.maximum(distance_m, 1.0), 1.0)
    grain = speckle(u * 24, v * 24) * sharp
    blotch = noise(u * 1.7 + 91, v * 1.7 + 37)
    shade = np.ones_like(u)
    number = _PATTERN_OF[material]
    for which, pattern in enumerate(PATTERNS.values()):
        here = np.flatnonzero(number == which)
        if len(here):
            inputs = Place(u[here], v[here], grain[here], blotch[here], sharp[here], flat[here])
            shade[here], pane = pattern(inputs)
            if pane is not None:
                glass = here[pane > 0]
                albedo[:, glass] = _PANE[:, None]
                shade[glass] = 0.6 + 1.4 * pane[pane > 0]
                reflectance[glass] *= 0.15
                gloss[glass] = 0.3
                lost[glass] = 0.45
    albedo *= np.maximum(shade, 0.15)
    return Surface(albedo, reflectance * np.maximum(0.6 + 0.4 * shade, 0.2), gloss, lost)


@dataclass(frozen=True, eq=False)
class Place:
    """Where on a surface points lie, aligned: `u`, `v` in metres, noise at two scales, how much detail shows."""

    u: Float32
    v: Float32
    grain: Float32
    blotch: Float32
    sharp: Float32
    flat: npt.NDArray[np.bool_]


Pattern = Callable[[Place], tuple[Float32, Float32 | None]]
"""Gives the brightness at each place and, for walls with windows, the brightness of the pane there (0: no pane)."""


def _plain(at: Place) -> tuple[Float32, None]:
    return 1 + 0.04 * at.grain + 0.05 * at.blotch, None


def _asphalt(at: Place) -> tuple[Float32, None]:
    patches = noise(at.u * 0.45, at.v * 0.45)
    seams = (np.abs(noise(at.u * 0.8 + 11, at.v * 0.8)) < 0.012) * at.sharp  # tar in the cracks
    return 1 + 0.16 * at.grain + 0.08 * at.blotch + 0.10 * patches - 0.3 * seams, None


def _worn(at: Place) -> tuple[Float32, None]:
    return 0.95 + 0.1 * at.grain - 0.25 * np.maximum(noise(at.u * 7, at.v * 7), 0), None


def _slabs(at: Place) -> tuple[Float32, None]:
    joint = ((at.u % 0.8 < 0.025) | (at.v % 0.8 < 0.025)) * at.sharp
    each = hashed(np.floor(at.u / 0.8), np.floor(at.v / 0.8))
    return 0.9 + 0.2 * each + 0.07 * at.grain + 0.06 * at.blotch - 0.35 * joint, None


def _cobbles(at: Place) -> tuple[Float32, None]:
    row = np.floor(at.v / 0.3)
    shifted = at.u + 0.25 * (row % 2)
    joint = ((shifted % 0.5 < 0.03) | (at.v % 0.3 < 0.03)) * at.sharp
    return 0.8 + 0.4 * hashed(np.floor(shifted / 0.5), row) + 0.08 * at.grain - 0.3 * joint, None


def _grass(at: Place) -> tuple[Float32, None]:
    return 1 + 0.28 * at.grain + 0.18 * at.blotch + 0.15 * noise(at.u * 0.5, at.v * 0.5), None


def _ripples(at: Place) -> tuple[Float32, None]:
    return 1 + 0.35 * noise(at.u * 2, at.v * 9), None


def _ballast(at: Place) -> tuple[Float32, None]:
    return 1 + 0.5 * at.grain + 0.1 * at.blotch, None


def _bricks(at: Place) -> tuple[Float32, None]:
    row = np.floor(at.v / 0.1)
    shifted = at.u + 0.14 * (row % 2)
    joint = ((shifted % 0.28 < 0.02) | (at.v % 0.1 < 0.015)) * at.sharp
    each = hashed(np.floor(shifted / 0.28), row) - 0.5
    return 1 + 0.3 * each * at.sharp + 0.06 * at.grain + 0.06 * at.blotch + 0.5 * joint, None


def _bark(at: Place) -> tuple[Float32, None]:
    return 1 + 0.35 * noise(at.u * 40, at.v * 6) * at.sharp, None


def _ribs(at: Place) -> tuple[Float32, None]:
    rib = np.sin(at.u * (2 * np.pi / 0.3))
    return 1 + 0.12 * rib * at.sharp + 0.04 * at.grain + 0.06 * at.blotch, None


def _windows(at: Place, wide_m: float, high_m: float, pane_u: float, pane_v: float) -> Float32:
    """Brightness of window panes in a grid of cells; `pane_u` and `pane_v` are the pane's share of a cell."""
    column, row = np.floor(at.u / wide_m), np.floor((at.v - 0.6) / high_m)
    du, dv = np.abs(at.u / wide_m - column - 0.5), np.abs((at.v - 0.6) / high_m - row - 0.5)
    bar = (du * wide_m < 0.03) & (at.sharp > 0.3)
    inside = (du < pane_u / 2) & (dv < pane_v / 2) & (row >= 0) & ~at.flat & ~bar
    return np.asarray(inside * (0.15 + 0.85 * hashed(column, row)), np.float32)


def _house(at: Place) -> tuple[Float32, Float32]:
    return 1 + 0.06 * at.grain + 0.05 * at.blotch, _windows(at, 2.6, 2.9, 0.42, 0.45)


def _flats(at: Place) -> tuple[Float32, Float32]:
    ledge = np.where((at.v - 0.6) % 3.1 < 0.16, 0.3, 0.0)
    return _bricks(at)[0] + ledge, _windows(at, 3.2, 3.1, 0.5, 0.5)


def _office(at: Place) -> tuple[Float32, Float32]:
    return 1 + 0.04 * at.grain + 0.04 * at.blotch, _windows(at, 1.7, 3.4, 0.86, 0.66)


PATTERNS: dict[str, Pattern] = {
    "plain": _plain,
    "asphalt": _asphalt,
    "worn": _worn,
    "slabs": _slabs,
    "cobbles": _cobbles,
    "grass": _grass,
    "ripples": _ripples,
    "ballast": _ballast,
    "bricks": _bricks,
    "bark": _bark,
    "ribs": _ribs,
    "house": _house,
    "flats": _flats,
    "office": _office,
}

_PATTERN_OF = np.array([list(PATTERNS).index(MATERIALS[stuff].pattern) for stuff in Stuff])


def noise(u: Float32, v: Float32) -> Float32:
    """Return smooth noise of mean 0 and standard deviation 1; its blots are about one unit of u and v in size."""
    column = np.floor(u * _FINER).astype(np.int32) & (_TILE - 1)
    row = np.floor(v * _FINER).astype(np.int32) & (_TILE - 1)
    return np.asarray(_tile(6.0)[row, column])


def speckle(u: Float32, v: Float32) -> Float32:
    """Return rough noise of mean 0 and standard deviation 1, one value to each unit of u and v."""
    column = np.floor(u).astype(np.int32) & (_TILE - 1)
    row = np.floor(v).astype(np.int32) & (_TILE - 1)
    return np.asarray(_tile(0.6)[row, column])


@cache
def _tile(blur: float) -> Float32:
    white = np.random.default_rng(1085).normal(size=(_TILE, _TILE))
    tile = gaussian_filter(white, blur, mode="wrap")
    return np.asarray(tile / tile.std(), np.float32)


def hashed(column: Float32, row: Float32) -> Float32:
    """Return a number in 0..1 that belongs to a cell of a grid and is not like its neighbours'."""
    mixed = column.astype(np.int64) * 73856093 ^ row.astype(np.int64) * 19349663
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed >> 8) & 0xFFFF).astype(np.float32) / np.float32(0xFFFF)
