"""How a perfect class map is spoilt: the noise model of the simulated teacher, as functions of arrays.

Classes here are whole numbers from 0, and -1 (`NOTHING`) is no class; regions are numbered from 1, and 0 is no region.
Every function that draws gets a generator of its own, and a strength scales draws or is compared with them, never
decides their number. So one strength can be changed while other faults stay where they are, and a stronger setting
adds to the faults of a weaker one. Strength 0 changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage

Integers = npt.NDArray[np.integer[Any]]

NOTHING = -1

MOST_PLACES = 2**16
"""Places of regions are below this: maps of them hold 16 bits."""

_NODES_BEYOND = 3  # of the grid behind a smooth field: a node three spacings away counts exp(-9/2), about 1 %


def generator(seed: int, token: str, name: str) -> np.random.Generator:
    """Return the generator of one kind of noise in one image: what it draws depends on nothing but the arguments."""
    word = int.from_bytes(hashlib.sha256(f"{name} {token}".encode()).digest()[:16], "big")
    return np.random.default_rng([seed, word])


_WAVE = np.float32(0.25)  # how far the border of a patch strays, as a share of its side

# -- where things are -------------------------------------------------------------------------------------------------


def smooth_field(rng: np.random.Generator, height_px: int, width_px: int, length_px: float) -> npt.NDArray[np.float32]:
    """Return a random field (H, W), normal with mean 0 and variance 1 in every pixel, smooth over about `length_px`.

    A mix of independent values on a grid of spacing `length_px` with Gaussian weights, scaled to variance 1; pixels at
    distance d correlate as exp(-d^2 / (4 length_px^2)).
    """
    along = [mixing_weights(size, length_px) for size in (height_px, width_px)]
    nodes = rng.standard_normal((along[0].shape[1], along[1].shape[1])).astype(np.float32)
    field: npt.NDArray[np.float32] = along[0] @ nodes @ along[1].T
    return field


def mixing_weights(size_px: int, length_px: float) -> npt.NDArray[np.float32]:
    """Return the weights of grid nodes in each pixel of a line, (size, nodes), rows of length 1."""
    node = np.arange(-_NODES_BEYOND, np.ceil(size_px / length_px) + _NODES_BEYOND + 1)
    weight = np.exp(-0.5 * (np.arange(size_px)[:, None] / length_px - node) ** 2)
    return np.asarray(weight / np.linalg.norm(weight, axis=1, keepdims=True), np.float32)


def shift_boundaries(
    class_map: Integers,
    rng: np.random.Generator,
    *,
    boundary_shift_px: float,
    boundary_length_px: float,
    lasting: np.random.Generator | None = None,
    steadiness: float = 0.0,
    of_place: npt.NDArray[np.float32] | None = None,
    place_share: float = 0.0,
) -> Integers:
    """Return a class map (H, W) in which every pixel shows the class that a smooth random shift away belongs there.

    The shift has standard deviation `boundary_shift_px` across a boundary of any direction, and changes along it over
    about `boundary_length_px`. Beyond the border of the image the classes at the border go on. A share `steadiness` of
    its variance is drawn by `lasting`, which all images of a camera in a drive share. Where `of_place` (2, H, W),
    normal numbers for down and right, is not NaN, `place_share` of the variance comes from it, the rest as said before.
    """
    if not boundary_shift_px:
        return class_map
    height, width = class_map.shape
    down, right = (smooth_field(rng, height, width, boundary_length_px) for _ in range(2))
    if lasting is not None and steadiness:
        kept, fresh = np.float32(np.sqrt(steadiness)), np.float32(np.sqrt(1 - steadiness))
        down, right = (
            kept * smooth_field(lasting, height, width, boundary_length_px) + fresh * one for one in (down, right)
        )
    if of_place is not None and place_share:
        kept, other = np.float32(np.sqrt(place_share)), np.float32(np.sqrt(1 - place_share))
        down, right = (
            np.where(np.isnan(placed), one, kept * placed + other * one)
            for placed, one in zip(of_place, (down, right), strict=True)
        )
    row = np.arange(height, dtype=np.float32)[:, None] + np.float32(boundary_shift_px) * down
    col = np.arange(width, dtype=np.float32)[None, :] + np.float32(boundary_shift_px) * right
    return sample_nearest(class_map, row, col)


def jitter(
    class_map: Integers,
    rng: np.random.Generator,
    *,
    jitter_px: float,
    jitter_deg: float,
    lasting: np.random.Generator | None = None,
    steadiness: float = 0.0,
) -> Integers:
    """Return a class map (H, W) moved as a whole and turned about its centre, as a calibration slightly off does.

    Both shifts, down and right, are normal with standard deviation `jitter_px`, the angle with `jitter_deg`; a share
    `steadiness` of their variance is drawn by `lasting`, which all images of a camera in a drive share.
    """
    if not jitter_px and not jitter_deg:
        return class_map
    down, right, turn = rng.standard_normal(3)
    if lasting is not None and steadiness:
        kept = lasting.standard_normal(3)
        down, right, turn = np.sqrt(steadiness) * kept + np.sqrt(1 - steadiness) * np.array([down, right, turn])
    height, width = class_map.shape
    angle = np.deg2rad(jitter_deg * turn)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    above, left = (height - 1) / 2, (width - 1) / 2
    row = (np.arange(height, dtype=np.float32) - np.float32(above))[:, None]
    col = (np.arange(width, dtype=np.float32) - np.float32(left))[None, :]
    return sample_nearest(
        class_map,
        cosine * row + sine * col + np.float32(above + jitter_px * down),
        cosine * col - sine * row + np.float32(left + jitter_px * right),
    )


def sample_nearest(class_map: Integers, row: npt.NDArray[np.float32], col: npt.NDArray[np.float32]) -> Integers:
    """Return the class map at fractional rows and columns, (H, W) each; outside, that of the nearest border pixel."""
    height, width = class_map.shape
    nearest_row = np.rint(np.clip(row, 0, height - 1)).astype(np.int32)
    nearest_col = np.rint(np.clip(col, 0, width - 1)).astype(np.int32)
    return np.take(class_map, nearest_row * width + nearest_col)


# -- what is judged as one --------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Regions:
    """The parts of an image that a teacher names as one: n connected regions of one class.

    `region_map` (H, W) int32 holds 1..n, 0 where there is no class. Aligned with regions 1..n, (n,): `class_id`,
    `area_px` in pixels of the map, and `place`, the number that the region has in all images, 0 where unknown.
    """

    region_map: npt.NDArray[np.int32]
    class_id: Integers
    area_px: npt.NDArray[np.int64]
    place: Integers

    def __len__(self) -> int:
        return len(self.class_id)


def find_regions(
    class_map: Integers,
    thing: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    patch_px: float,
    place_map: Integers | None = None,
) -> Regions:
    """Return the 4-connected regions of a class map (H, W); `thing` says which classes are countable, (classes,).

    Where `patch_px` is above 0, what is not countable (road, walls) is cut into patches of about that side, with
    wavy borders: a teacher is wrong about a stretch of pavement, not about all of it. With a `place_map` (H, W) regions
    are of one place too, and there are no other patches.
    """
    key = class_map.astype(np.int32) + 1
    if place_map is not None:
        key += place_map.astype(np.int32) * (len(thing) + 1) * (class_map != NOTHING)
    elif patch_px:
        height, width = class_map.shape
        start_row, start_col = rng.random(2)
        down, right = (smooth_field(rng, height, width, patch_px) for _ in range(2))
        row = _WAVE * down + (np.arange(height) / patch_px + start_row + 1).astype(np.float32)[:, None]
        col = _WAVE * right + (np.arange(width) / patch_px + start_col + 1).astype(np.float32)
        per_row = int(width / patch_px) + 4
        patch = row.astype(np.int32) * per_row + col.astype(np.int32)
        patch *= np.append(~thing, False)[class_map]  # the last entry stands for NOTHING
        key += patch * (len(thing) + 1)
    region_map = skimage.measure.label(key, background=0, connectivity=1).astype(np.int32)
    area_px = np.bincount(region_map.ravel())
    class_id = np.zeros(len(area_px), class_map.dtype)
    class_id[region_map] = class_map
    place = np.zeros(len(area_px), np.int64)
    if place_map is not None:
        place[region_map] = place_map
    return Regions(region_map, class_id[1:], area_px[1:], place[1:])


@dataclass(frozen=True, eq=False)
class Borders:
    """Which regions touch which: aligned, (b,). Every border is there twice, once from either side.

    `region` and `neighbour` are 1..n, sorted; `length_px` counts the pairs of touching pixels.
    """

    region: npt.NDArray[np.int64]
    neighbour: npt.NDArray[np.int64]
    length_px: npt.NDArray[np.int64]


def find_borders(regions: Regions) -> Borders:
    """Return the borders between regions, 4-connected; what has no class borders on nothing."""
    one = regions.region_map
    pairs = []
    for here, there in ((one[:, :-1], one[:, 1:]), (one[:-1], one[1:])):
        touching = np.flatnonzero((here != there).ravel() & (here > 0).ravel() & (there > 0).ravel())
        pairs.append((here.ravel()[touching], there.ravel()[touching]))
    a, b = (np.concatenate(side).astype(np.int64) for side in zip(*pairs, strict=True))
    base = len(regions) + 1
    key, length_px = np.unique(np.concatenate([a * base + b, b * base + a]), return_counts=True)
    return Borders(key // base, key % base, length_px)


def chances(
    place: Integers,
    image: np.random.Generator,
    drive: np.random.Generator,
    *,
    rows: int = 1,
    persistence: float,
) -> npt.NDArray[np.float64]:
    """Return numbers uniform in 0..1 to decide with, (rows, n): for a share of the places the same in every image.

    `image` is the generator of one image, `drive` one that all images of a drive share. A share `persistence` of the
    places (n,) of regions has its numbers from `drive`: whoever is wrong there in one image is so in the next. Place 0
    is unknown and never among them.
    """
    chance = image.random((rows, len(place)))
    if not persistence:
        return chance
    lasting = drive.random((1 + rows, MOST_PLACES))[:, place]
    return np.where((lasting[0] < persistence) & (place > 0), lasting[1:], chance)


def swallow(
    regions: Regions,
    chance: npt.NDArray[np.float64],
    *,
    drop: float,
    drop_area_px: float,
    merge: float,
) -> npt.NDArray[np.int64]:
    """Return for each region the index of the region whose name it takes, its own where nothing happens, (n,).

    `chance` (2, n), uniform in 0..1, decides about the two things that can happen.
    A region of area A is dropped, that is taken for its surroundings, with probability drop * exp(-A / drop_area_px),
    and merged into a neighbour of another class with probability `merge`. Only larger neighbours swallow; of several
    the one with the longest border does. Where that is swallowed in turn, its taker takes both.
    """
    dropped = chance[0] < drop * np.exp(-regions.area_px / drop_area_px)
    merged = ~dropped & (chance[1] < merge)
    taker = np.arange(len(regions))
    if not (dropped | merged).any():
        return taker
    borders = find_borders(regions)
    region, neighbour = borders.region - 1, borders.neighbour - 1
    foreign = regions.class_id[region] != regions.class_id[neighbour]
    swallows = dropped[region] | (merged[region] & foreign)
    swallows &= regions.area_px[region] < regions.area_px[neighbour]  # so nobody is swallowed by what it swallows
    region, neighbour, length_px = region[swallows], neighbour[swallows], borders.length_px[swallows]
    shortest_first = np.lexsort((-neighbour, length_px, region))
    taker[region[shortest_first]] = neighbour[shortest_first]  # of several values for one place the last stays
    while (taker != taker[taker]).any():
        taker = taker[taker]
    return taker


# -- what things are called -------------------------------------------------------------------------------------------


def confuse(
    class_id: Integers, chance: npt.NDArray[np.float64], share: npt.NDArray[np.float64], strength: float
) -> Integers:
    """Return the class that each region is taken for, (n,); `chance` (n,), uniform in 0..1, decides.

    `share` (classes, classes) holds at [a, b] the probability at strength 1 that a region of class a is taken for b;
    the diagonal is 0, and what a row lacks to 1 is the probability that the region is taken for what it is.
    """
    below = np.cumsum(share * strength, axis=1)[class_id]
    taken_for = (chance[:, None] >= below).sum(axis=1)
    return np.where(taken_for < len(share), taken_for, class_id)


def scatter(choice: Integers, pool_of: Integers, rng: np.random.Generator, strength: float) -> Integers:
    """Return choices (n,) of which a share `strength` is replaced by another member of the same pool, all alike likely.

    `pool_of` (m,) is the pool of each thing that can be chosen, 0..m-1. Pools of one member leave nothing to choose.
    """
    chance, which = rng.random((2, len(choice)))
    by_pool = np.argsort(pool_of, kind="stable")
    size = np.bincount(pool_of)
    first = np.cumsum(size) - size
    place = np.empty(len(pool_of), np.int64)
    place[by_pool] = np.arange(len(pool_of)) - first[pool_of[by_pool]]
    pool = pool_of[choice]
    step = 1 + np.floor(which * (size[pool] - 1)).astype(np.int64)
    other = by_pool[first[pool] + (place[choice] + step) % size[pool]]
    return np.where(chance < strength, other, choice)


def noisy_vectors(
    vector: npt.NDArray[np.float32], rng: np.random.Generator, strength: float
) -> npt.NDArray[np.float32]:
    """Return unit vectors (n, d) plus Gaussian noise of expected length `strength`, scaled to length 1 again."""
    noise = rng.standard_normal(vector.shape).astype(np.float32)
    moved = vector + np.float32(strength / np.sqrt(max(vector.shape[1], 1))) * noise
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    return np.asarray(moved / np.maximum(length, np.finfo(np.float32).tiny), np.float32)


def noisy_scores(
    label_map: Integers,
    n: int,
    right: npt.NDArray[np.bool_],
    known: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    strength: float,
) -> npt.NDArray[np.float64]:
    """Return a score for each of segments 1..n, (n,): (1 - strength) * share + strength * chance, in 0..1.

    The share is that of pixels named right, `chance` is uniform. All maps are (H, W); only pixels whose truth is
    `known` count, and a segment without any has share 1.
    """
    counted = label_map[known]
    n_right = np.bincount(counted, weights=right[known], minlength=n + 1)[1:]
    n_known = np.bincount(counted, minlength=n + 1)[1:]
    share = np.divide(n_right, n_known, out=np.ones(n), where=n_known > 0)
    return np.asarray((1 - strength) * share + strength * rng.random(n))


def share_table(rows: Sequence[tuple[str, str, float]], class_names: tuple[str, ...]) -> npt.NDArray[np.float64]:
    """Return (class, taken for, share) rows as the matrix that `confuse` reads; raises ValueError for a bad row.

    Classes must be in `class_names` and not "ignore" (number 0), shares above 0 and at most 1 in sum for each class.
    """
    share = np.zeros((len(class_names), len(class_names)))
    for true, taken_for, value in rows:
        for name in (true, taken_for):
            if name not in class_names[1:]:
                raise ValueError(
                    f'confused names class "{name}"; the class dictionary has {", ".join(class_names[1:])}'
                )
        if true == taken_for or not 0 < value <= 1:
            raise ValueError(
                f'confused has ("{true}", "{taken_for}", {value}); expected two classes and 0 < share <= 1'
            )
        share[class_names.index(true), class_names.index(taken_for)] += value
    worst = int(share.sum(axis=1).argmax())
    if share[worst].sum() > 1 + 1e-9:
        raise ValueError(f'the shares of class "{class_names[worst]}" in confused sum to {share[worst].sum():.3g} > 1')
    return share
