"""Mistakes of the simulated teacher that belong to a place: how long they last, and how they depend on the range.

What is decided about a place follows from numbers in 0..1 that are drawn for it by a hash of what it is, so that every
image of a drive finds the same without any table of places, however many there are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]

REFERENCE_RANGE_M = 10.0
"""Where shares of mistakes hold as they are given; beyond it they grow by `range_slope`, before it they shrink."""

_LEAST = 2.0**-53  # of a chance, so that the normal number of it is finite


@dataclass(frozen=True, eq=False)
class Places:
    """What each pixel of an image shows: `map` (H, W) holds 0 for unknown, else 1 + the place's position in `name`.

    `name` uint64 (k,) is what a place is called in all images of a drive.
    """

    map: npt.NDArray[np.int32]
    name: npt.NDArray[np.uint64]


def no_places(height_px: int, width_px: int) -> Places:
    """Return places of an image in which none is known."""
    return Places(np.zeros((height_px, width_px), np.int32), np.empty(0, np.uint64))


def mapped(place_map: Integers) -> Places:
    """Return the places of a stored map (H, W), whose numbers are the same in all images of a drive, 0 unknown."""
    name, dense = np.unique(place_map, return_inverse=True)
    first = int(name[:1].sum() == 0 and len(name) > 0)  # 0 keeps its meaning
    dense = dense.reshape(place_map.shape).astype(np.int32)
    return Places(dense + (1 - first), name[first:].astype(np.uint64))


def squares(xyz_m: npt.NDArray[Any], side_m: float) -> npt.NDArray[np.uint64]:
    """Return the name of the square of the ground that each point (n, 3) in the world, metres, lies in, (n,)."""
    east, north = (np.floor(xyz_m[:, axis] / side_m).astype(np.int64).astype(np.uint64) for axis in (0, 1))
    return stirred([east, north])


def nearest_points(row_px: Integers, col_px: Integers, height_px: int, width_px: int) -> npt.NDArray[np.int64]:
    """Return for every pixel of an image the nearest of some points, by their pixels (n,), (H, W); -1 without any.

    Of several points in one pixel the last counts.
    """
    from scipy.ndimage import distance_transform_edt

    point = np.full((height_px, width_px), -1, np.int64)
    point[row_px, col_px] = np.arange(len(row_px))
    if not len(row_px):
        return point
    row, col = distance_transform_edt(point < 0, return_distances=False, return_indices=True)
    return np.asarray(point[row, col])


def region_means(region_map: Integers, value: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Return the mean of a map (H, W) over each region, (n,); NaN values do not count, and a mean of none is NaN."""
    counted = np.isfinite(value) & (region_map > 0)
    region, size = region_map[counted], int(region_map.max(initial=0)) + 1
    total, n = np.bincount(region, value[counted], size), np.bincount(region, minlength=size)
    return np.divide(total, n, out=np.full(size, np.nan), where=n > 0)[1:]


def stirred(words: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """Return a hash of aligned words, uint64 (n,): the finaliser of SplitMix64 (Steele, Lea and Flood) after each."""
    found = np.zeros_like(words[0])
    for word in words:
        found = (found ^ word) + np.uint64(0x9E3779B97F4A7C15)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found = found ^ (found >> np.uint64(31))
    return found


def chance_of(words: Sequence[npt.NDArray[np.uint64]]) -> npt.NDArray[np.float64]:
    """Return numbers in 0..1, both left out, that follow from aligned words, (n,), as uniform ones would be drawn."""
    return (stirred(words) >> np.uint64(11)).astype(np.float64) * 2.0**-53 + 2.0**-54


def place_chances(
    name: npt.NDArray[np.uint64], time_s: float, *, seed: int, key: str, half_life_s: float
) -> npt.NDArray[np.float64]:
    """Return a number in 0..1 for each place of a drive at a time, (n,), the same until the place is decided anew.

    `key` names drive and kind of decision. Of any set of places half are decided anew within `half_life_s`, and half of
    the others within the next, as atoms decay; 0 stands for never. A spell of a place has a length drawn from a Gamma
    distribution of shape 2, which is that of the interval of a Poisson process that covers a given moment.
    """
    from scipy.special import gammaincinv

    word = int.from_bytes(hashlib.sha256(f"{seed} {key}".encode()).digest()[:8], "big")
    first = np.full(len(name), word, np.uint64)

    def drawn(number: int, *more: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
        return chance_of([first, name, np.full(len(name), number, np.uint64), *more])

    if not half_life_s:
        return drawn(0)
    length_s = half_life_s / np.log(2) * gammaincinv(2, drawn(1))
    spell = np.floor(time_s / length_s + drawn(2)).astype(np.int64).astype(np.uint64)
    return drawn(3, spell)


def place_shifts(
    places: Places, time_s: float, *, seed: int, key: str, half_life_s: float, reach_px: float
) -> npt.NDArray[np.float32]:
    """Return how far the boundaries near each pixel are shifted down and right, normal numbers (2, H, W); NaN unknown.

    They belong to places in the world and not to the image: all images of a drive find the same, until the place is
    decided anew (`place_chances`). Of the places within `reach_px` of a pixel, up, down and to the sides, the first in
    `places.name` decides, so that both sides of a boundary move alike; of stored maps things come before the ground.
    """
    from scipy.ndimage import minimum_filter

    unknown = len(places.name)
    first = minimum_filter(np.where(places.map > 0, places.map - 1, unknown), 2 * int(np.ceil(reach_px)) + 1)
    drawn = [
        normals(place_chances(places.name, time_s, seed=seed, key=f"{key} {axis}", half_life_s=half_life_s))
        for axis in ("down", "right")
    ]
    return np.stack([np.append(one, np.nan).astype(np.float32)[first] for one in drawn])


def steady(
    place: npt.NDArray[np.float64], image: npt.NDArray[np.float64], steadiness: float
) -> npt.NDArray[np.float64]:
    """Return numbers in 0..1, (n,), of which `steadiness` comes from the place and the rest from the image.

    Both as normal numbers, whose variances are mixed: what is far from doubtful stays as it is in every image, and what
    is in doubt comes and goes, as a network's answers do. NaN in `place` stands for an unknown one.
    """
    from scipy.special import ndtr

    kept = np.where(np.isnan(place), 0.0, steadiness)
    mixed = np.sqrt(kept) * normals(np.nan_to_num(place, nan=0.5)) + np.sqrt(1 - kept) * normals(image)
    return np.asarray(ndtr(mixed))


def by_range(
    chance: npt.NDArray[np.float64], range_m: npt.NDArray[np.float64], slope: float
) -> npt.NDArray[np.float64]:
    """Return numbers in 0..1 moved by the range, (n,): with a slope above 0 low ones become likelier far away.

    As a normal number each goes down by `slope` for every doubling of the range beyond REFERENCE_RANGE_M; where the
    range is NaN it stays.
    """
    from scipy.special import ndtr

    doublings = np.log2(np.maximum(range_m, 1.0) / REFERENCE_RANGE_M)
    return np.asarray(ndtr(normals(chance) - slope * np.nan_to_num(doublings)))


def normals(chance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the normal numbers whose chances these are, (n,)."""
    from scipy.special import ndtri

    return np.asarray(ndtri(np.clip(chance, _LEAST, 1 - _LEAST)))


def told_scores(
    right: npt.NDArray[np.bool_], doubt: npt.NDArray[np.float64], scored: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return how sure a teacher says that it is, (n,), 0..1.

    `scored` (k, 2) holds evenly spaced quantiles of what it says where it is right and where it is wrong, from the
    least to the greatest; `doubt` (n,) in 0..1 is how close a call it was, 1 the closest, which gets the least score.
    """
    at = np.linspace(0, 1, len(scored))
    return np.where(right, np.interp(1 - doubt, at, scored[:, 0]), np.interp(1 - doubt, at, scored[:, 1]))
