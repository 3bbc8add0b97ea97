"""Random views of one training frame: transforms of the cloud, and of its point-pixel pairs.

Each transform is a function of its draws; :func:`augment` makes the draws. Flipping an image sideways is not among
them: it moves pixels and masks together, so no pair changes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.sections.network import AugmentConfig
from manifests.tables.superpoints import Pairs

Integers = NDArray[np.integer[Any]]

# Height and width of the reference implementation's crops; they set how pixels at the edge of a box round.
CROP_OUTPUT_PX = (224, 416)
_MAX_BOXES = 20  # the reference implementation draws until a box fits, for ever if none does


@dataclass(frozen=True)
class Augmented:
    """One random view of a frame: ``xyz_m`` (k, 3) float32, ``kept_point`` (k,) int64 rows of the original points, and
    the surviving pairs, whose ``point`` counts among the kept points. Superpoints stay, with or without pairs.
    """

    xyz_m: NDArray[np.float32]
    kept_point: NDArray[np.int64]
    pairs: Pairs | None


@dataclass(frozen=True)
class Box:
    """Pixels of one image: rows from ``top``, columns from ``left``."""

    top: int
    left: int
    height: int
    width: int


def augment(
    xyz_m: NDArray[np.float32], pairs: Pairs | None, config: AugmentConfig, rng: np.random.Generator
) -> Augmented:
    """One random view of a frame: ``xyz_m`` (n, 3) in the lidar frame and its pairs; equal seeds give equal views."""
    kept = np.ones(len(xyz_m), np.bool_)
    if config.rotate:
        xyz_m = rotated(xyz_m, rng.uniform(0, 2 * np.pi))
    if config.flip:
        flip_x, flip_y = rng.random(2) < 0.5
        xyz_m = flipped(xyz_m, bool(flip_x), bool(flip_y))
    if pairs is None or len(xyz_m) == 0:
        return Augmented(xyz_m, np.arange(len(xyz_m)), pairs)
    if config.cuboids:
        share = rng.uniform(0, config.cuboid_max_share)
        kept = outside_cuboid(xyz_m, int(rng.integers(len(xyz_m))), share)
        pairs, kept = _dropped_unless_scarce(pairs, kept, config.cuboid_min_pairs)
    if config.crop:
        pairs = _filtered(pairs, _random_crop(pairs, config, rng))
    kept_point = np.flatnonzero(kept)
    return Augmented(xyz_m[kept_point], kept_point, pairs)


def rotated(xyz_m: NDArray[np.float32], angle_rad: float) -> NDArray[np.float32]:
    """Return the points turned about z, counter-clockwise seen from above, (n, 3) float32."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    rotation = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    turned: NDArray[np.float32] = (xyz_m @ rotation.T).astype(np.float32)
    return turned


def flipped(xyz_m: NDArray[np.float32], flip_x: bool, flip_y: bool) -> NDArray[np.float32]:
    """Return the points with the sign of x and of y changed where asked, (n, 3)."""
    return xyz_m * np.array([-1 if flip_x else 1, -1 if flip_y else 1, 1], xyz_m.dtype)


def view_of(xyz_m: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    """Return one of the fixed views that predictions are averaged over, (n, 3); view 0 is the sweep as it is.

    View k is turned about z by k golden angles, which spread evenly however many there are and never bring the cells of
    a grid back onto one another; odd views are mirrored too.
    """
    if number == 0:
        return xyz_m
    return flipped(rotated(xyz_m, number * np.pi * (3 - np.sqrt(5))), False, number % 2 == 1)


def outside_cuboid(xyz_m: NDArray[np.float32], centre: int, share: float) -> NDArray[np.bool_]:
    """Which points to keep, (n,): all but those strictly inside a box around point ``centre``.

    The box measures ``share`` of the cloud's extent along each axis.
    """
    inside = np.ones(len(xyz_m), np.bool_)
    for axis_m in np.ascontiguousarray(xyz_m.T):
        inside &= np.abs(axis_m - axis_m[centre]) < share * np.ptp(axis_m) / 2
    return ~inside


def _dropped_unless_scarce(pairs: Pairs, kept: NDArray[np.bool_], min_pairs: int) -> tuple[Pairs, NDArray[np.bool_]]:
    """Return the pairs of kept points, renumbered, and ``kept``; or everything, if a camera would keep too few.

    A camera that has no pairs at all is no reason: it would forbid every drop.
    """
    survivors = _filtered(pairs, kept[pairs.point])
    if ((_pairs_per_view(survivors) < min_pairs) & (_pairs_per_view(pairs) > 0)).any():
        return pairs, np.ones_like(kept)
    new_index = np.cumsum(kept, dtype=np.int32) - 1
    return replace(survivors, point=new_index[survivors.point]), kept


def _random_crop(pairs: Pairs, config: AugmentConfig, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which pairs lie in a random box of their image, (m,); a camera for which no box is found keeps all."""
    kept = np.ones(len(pairs.point), np.bool_)
    view_of_pair = pairs.superpoint_view[pairs.superpoint]
    for view, n_pairs in enumerate(_pairs_per_view(pairs)):
        if n_pairs == 0:
            continue
        rows = np.flatnonzero(view_of_pair == view)
        height, width = int(pairs.height_px[view]), int(pairs.width_px[view])
        for _ in range(_MAX_BOXES):
            inside = in_box(pairs.row_px[rows], pairs.col_px[rows], _random_box(height, width, config, rng))
            n_inside = np.count_nonzero(inside)
            if n_inside > config.crop_min_pairs or n_inside > 0.75 * n_pairs:
                kept[rows] = inside
                break
    return kept


def _filtered(pairs: Pairs, mask: NDArray[np.bool_]) -> Pairs:
    """Return the pairs where ``mask`` (m,) is true."""
    aligned = {name: getattr(pairs, name)[mask] for name in ("point", "superpoint", "row_px", "col_px")}
    return replace(pairs, **aligned)


def _pairs_per_view(pairs: Pairs) -> NDArray[np.int64]:
    return np.bincount(pairs.superpoint_view[pairs.superpoint], minlength=len(pairs.height_px))


def _random_box(height: int, width: int, config: AugmentConfig, rng: np.random.Generator) -> Box:
    """Draw a box of uniform area and log-uniform aspect, uniformly placed; the whole image if ten stick out."""
    for _ in range(10):
        area = height * width * rng.uniform(*config.crop_area)
        aspect = np.exp(rng.uniform(*np.log(config.crop_aspect)))
        box_height, box_width = round((area / aspect) ** 0.5), round((area * aspect) ** 0.5)
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return Box(int(top), int(left), box_height, box_width)
    return Box(0, 0, height, width)


def in_box(row_px: Integers, col_px: Integers, box: Box) -> NDArray[np.bool_]:
    """Which pixels a crop to ``box`` keeps, (m,).

    Inside is decided after the crop is resized to :data:`CROP_OUTPUT_PX`, as in the reference implementation: a pixel
    just outside the box may round into it.
    """
    row = _scaled(row_px, box.top, box.height, CROP_OUTPUT_PX[0])
    col = _scaled(col_px, box.left, box.width, CROP_OUTPUT_PX[1])
    return (row >= 0) & (row < CROP_OUTPUT_PX[0]) & (col >= 0) & (col < CROP_OUTPUT_PX[1])


def resize_pixels(
    row_px: Integers,
    col_px: Integers,
    height: int,
    width: int,
    out: tuple[int, int] = CROP_OUTPUT_PX,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns, (m,) int64, of pixels of a (height, width) image once the whole image is resized to ``out``.

    Rounded half to even; the last pixels, which would round off the end, stay inside.
    """
    row = _scaled(row_px, 0, height, out[0]).clip(max=out[0] - 1)
    col = _scaled(col_px, 0, width, out[1]).clip(max=out[1] - 1)
    return row, col


def _scaled(pixel: Integers, start: int, size: int, out: int) -> NDArray[np.int64]:
    """Pixels along one axis after ``size`` pixels from ``start`` on are resized to ``out``."""
    # Tables hold unsigned pixels, which would wrap around below `start`.
    scaled: NDArray[np.int64] = np.rint((pixel.astype(np.int64) - start) * out / size).astype(np.int64)
    return scaled
