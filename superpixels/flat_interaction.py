"""Approximate Flat Interaction (AFI): point labels corrected and filled along the flat surfaces of one sweep.

No network and no training: each point hands its label to the points that lie on a line or plane with it. The method is
that of the paper (arXiv 2405.15286): an encoder of four levels of farthest-point samples that notes in which directions
the surface around each sample goes on, and a decoder that hands evidence back from coarse to fine where such a
direction points at the receiver. `FlatInteractionConfig.parity()` is the reference implementation; the defaults are
ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from superpixels.flat_config import DEFAULTS, FlatInteractionConfig, Floats, Ints
from superpixels.flat_gate import borne_out, ego_ring, reached, replaceable, without_islands
from superpixels.flat_levels import decode, encode
from superpixels.returns import is_return
from superpixels.unfit import Unfit

MOST_AT_ONE_PLACE = 100  # returns of the same coordinates; more are a sensor's way to say that there was none


@dataclass(frozen=True)
class Refined:
    """Labels after the exchange, aligned with the points.

    `labels` uint8 (n,), 0 where there was neither a label nor evidence. `score` float32 (n,), 0..1: the share of the
    evidence handed to the point that speaks for its label. `changed` bool (n,): the label differs from the input's.
    `notes` are sentences about steps that were left out.
    """

    labels: npt.NDArray[np.uint8]
    score: Floats
    changed: npt.NDArray[np.bool_]
    notes: tuple[str, ...] = ()


def refine(
    xyz_m: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    config: FlatInteractionConfig = DEFAULTS,
    *,
    n_classes: int | None = None,
    ground_classes: tuple[int, ...] = (),
    sensor_height_m: float | None = None,
    likelihood: Floats | None = None,
) -> Refined:
    """Return the labels of a sweep after flat interaction: noise repaired, gaps filled.

    `xyz_m` (n, 3), metres, LiDAR frame with z up; `labels` (n,) 0..n_classes, 0 for none; `n_classes` is the largest
    label where it is left out. The ego ring needs `sensor_height_m`, the height of the LiDAR above the ground, from
    calibration, and `ground_classes`; without them it is skipped with a note. Any n is fine, 0 too. With
    `seed_point="content"` the result does not depend on the order of the points. Returns of which more than
    `MOST_AT_ONE_PLACE` have the same coordinates are none, and so are any at (0, 0, 0):
    they keep their label, and the others are refined as if these were not there.

    `likelihood` (n, n_classes + 1) float32, 0..1, is the evidence that a point gives for every class, where it has a
    label; without it, that is 1 for its label.

    Raises ValueError for coordinates that are not finite, labels out of range and arrays that do not belong together.
    """
    xyz, label = checked(xyz_m, labels)
    top = int(label.max(initial=0)) if n_classes is None else n_classes
    if label.max(initial=0) > top:
        raise ValueError(f"a label is {label.max()}, but there are {top} classes; labels run from 0 (none) to {top}")
    piled = in_piles(xyz) | ~is_return(xyz)
    if likelihood is not None and likelihood.shape != (len(label), top + 1):
        raise ValueError(f"likelihoods are {likelihood.shape}; expected {(len(label), top + 1)}")
    if piled.any():
        apart = refine(
            xyz[~piled],
            label[~piled],
            config,
            n_classes=top,
            ground_classes=ground_classes,
            sensor_height_m=sensor_height_m,
            likelihood=None if likelihood is None else likelihood[~piled],
        )
        found = Refined(label.copy(), np.zeros(len(label), np.float32), np.zeros(len(label), np.bool_), apart.notes)
        for whole, part in ((found.labels, apart.labels), (found.score, apart.score), (found.changed, apart.changed)):
            whole[~piled] = part
        return found
    if not len(label):
        return Refined(label, np.empty(0, np.float32), np.empty(0, np.bool_))
    if config.seed_point == "first":
        return refine_in_order(xyz, label, config, top, ground_classes, sensor_height_m, likelihood)
    # Everything works on one order of the points that their content gives, so that no tie is broken by the input's.
    order = order_of_content(xyz, label)
    some = None if likelihood is None else likelihood[order]
    found = refine_in_order(xyz[order], label[order], config, top, ground_classes, sensor_height_m, some)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return Refined(found.labels[back], found.score[back], found.changed[back], found.notes)


def in_piles(xyz_m: Floats) -> npt.NDArray[np.bool_]:
    """Return which points lie where more than `MOST_AT_ONE_PLACE` others of the same coordinates do, (n,).

    Nearest neighbours are found among all of these for each of them, which takes the square of their number.
    """
    bits = (xyz_m + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0: there are two zeros
    key = bits @ np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
    sorted_keys = np.sort(key)
    if not (sorted_keys[MOST_AT_ONE_PLACE:] == sorted_keys[:-MOST_AT_ONE_PLACE]).any():
        return np.zeros(len(key), np.bool_)
    _, place, count = np.unique(key, return_inverse=True, return_counts=True)
    piled = count[place] > MOST_AT_ONE_PLACE
    if piled.any():  # of different points with one key, which hardly ever are
        _, place, count = np.unique(xyz_m[piled], axis=0, return_inverse=True, return_counts=True)
        piled[piled] = count[place.ravel()] > MOST_AT_ONE_PLACE
    return np.asarray(piled)


def order_of_content(xyz_m: Floats, label: npt.NDArray[np.uint8]) -> Ints:
    """Return the order of the points by x, then y, z and label, (n,); only points alike in all may trade places."""
    order = np.argsort(xyz_m[:, 0])
    same = np.diff(xyz_m[order, 0], prepend=np.nan, append=np.nan) == 0
    tied = np.flatnonzero(same[1:] | same[:-1])
    some = order[tied]
    order[tied] = some[np.lexsort((label[some], xyz_m[some, 2], xyz_m[some, 1], xyz_m[some, 0]))]
    return order


def checked(
    xyz_m: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.integer[Any]]
) -> tuple[Floats, npt.NDArray[np.uint8]]:
    """Return points as float32 and labels as uint8; raises ValueError, with a sentence, for what neither can be."""
    xyz, label = np.ascontiguousarray(xyz_m, np.float32), np.asarray(labels)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or label.shape != xyz.shape[:1]:
        raise ValueError(f"points are {xyz.shape} and labels {label.shape}; expected (n, 3) and (n,)")
    bad = ~np.isfinite(xyz).all(axis=1)
    if bad.any():
        raise Unfit(
            f"{bad.sum()} of {len(xyz)} points have a coordinate that is NaN or infinite, the first is point "
            f"{bad.argmax()}; leave such returns out where the sweep is read"
        )
    if label.size and (label.min() < 0 or label.max() > 255):
        raise ValueError(f"labels run from {label.min()} to {label.max()}; expected 0 (none) to 255")
    return xyz, label.astype(np.uint8)


def refine_in_order(
    xyz_m: Floats,
    label: npt.NDArray[np.uint8],
    config: FlatInteractionConfig,
    n_classes: int,
    ground_classes: tuple[int, ...],
    sensor_height_m: float | None,
    likelihood: Floats | None = None,
) -> Refined:
    """Return the labels after flat interaction; ties between points go to the earlier one. See `refine`."""
    ring, notes = ego_ring(xyz_m, config, ground_classes, sensor_height_m)
    old = label.copy()
    old[ring if config.ring == "all" else ring[~np.isin(label[ring], ground_classes)]] = 0
    source = old.copy()
    if sensor_height_m is not None:
        source[np.sqrt(xyz_m[:, 0] ** 2 + xyz_m[:, 1] ** 2) <= np.float32(config.ego_radius_m)] = 0
    evidence = (source[:, None] == np.arange(n_classes + 1)).astype(np.float32)
    if likelihood is not None:
        evidence = np.where(source[:, None] > 0, likelihood, np.float32(0))
    evidence[:, 0] = 0
    tree = scipy.spatial.cKDTree(xyz_m)
    levels = encode(xyz_m, evidence, config, tree)
    *_, score = decode(levels, config)
    score[np.ix_(ring, ~np.isin(np.arange(n_classes + 1), ground_classes))] = 0
    winner = score.argmax(axis=1)  # column 0 is zero, so this is 0 where there is no evidence

    row = np.arange(len(label))
    if config.gated:
        contested = np.flatnonzero((old != 0) & (winner != old))
        ahead = score[contested, winner[contested]] - score[contested, old[contested]]
        open_to = contested[ahead > config.margin]
        lost = open_to[replaceable(xyz_m, source, winner, open_to, tree, config)]
        kept = np.setdiff1d(contested, lost, assume_unique=True)
        winner[kept] = old[kept]
    if config.fill_share and source.any():
        gap = np.flatnonzero((old == 0) & (winner != 0))
        gap = np.setdiff1d(gap, ring, assume_unique=True)
        loose = gap[reached(xyz_m[gap], levels[1], config) < config.fill_share]
        known = np.flatnonzero(source)
        winner[loose] = source[known[scipy.spatial.cKDTree(xyz_m[known]).query(xyz_m[loose])[1]]]
    gap = np.flatnonzero((old == 0) & (winner != 0))
    winner[gap[~borne_out(xyz_m, source, winner, score, gap, config)]] = 0
    if config.gated and config.island_points:
        drained = without_islands(xyz_m, winner, tree, config)
        drained[ring] = np.where(np.isin(drained[ring], ground_classes), drained[ring], winner[ring])
        winner = drained
    return Refined(winner.astype(np.uint8), score[row, winner], winner != label, notes)
