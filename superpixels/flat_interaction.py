"""Approximate Flat Interaction (AFI): point labels corrected and filled along the flat surfaces of one sweep.

No network and no training: each point hands its label to the points that lie on a line or plane with it. The method is
that of the paper (arXiv 2405.15286): an encoder of four levels of farthest-point samples that notes in which directions
the surface around each sample goes on, and a decoder that hands evidence back from coarse to fine where such a
direction points at the receiver. `FlatInteractionConfig.parity()` is the reference implementation; the defaults are
ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from superpixels.ground import plane_inliers, ring_candidates, stood_on
from superpixels.returns import is_return
from superpixels.unfit import Unfit

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

RINGS = ("off", "contradicted", "all")
SEEDS = ("first", "content")
THINNING = 3  # the ratio of the reference's levels
MOST_AT_ONE_PLACE = 100  # returns of the same coordinates; more are a sensor's way to say that there was none
LEAST_SHORE = 6  # points; fewer do not make a plane and a circle
POINTS_PER_SAMPLE = 12  # with fewer, stray labels have samples of their own and spread in small clouds
UNREACHED = np.float32(1e10)
EPS = np.float32(1e-8)
EPS_ROW = np.float32(1e-9)
EPS_INFLUENCE = np.float32(1e-7)
EPS_DECODER = np.float32(1e-6)


@dataclass(frozen=True)
class FlatInteractionConfig:
    """Every constant of the method; the defaults were chosen by measurement (docs/afi.md), `parity()` is the reference.

    Sampling: `samples` are the sizes of the levels, finest first. `seed_point` is the first sample: "first" (the first
    point of the array) or "content" (the point farthest from the centroid, whatever the order of the points). There are
    at most a twelfth as many samples as points and each level is at most a third of the one below, unless
    `repeat_samples` has points sampled again when all have been taken, as the reference does. Points within
    `origin_radius_m` of the sensor are never samples.

    Encoder: `neighbours` per sample, sorted into `directions` of a Fibonacci sphere; a direction with at most
    `min_count` neighbours does not count. Two directions are collinear if the cosine between them exceeds
    `collinear_cos`. A sample keeps `centre_weight` of its own evidence, and `maximum_weight` of the strongest among its
    neighbours.

    Decoder: `decoder_neighbours` coarse samples per point; `residual` is the weight of a point's own evidence relative
    to the mean weight of what it is handed, per level, finest first.

    Gate: a label is replaced only if the winner's score exceeds that of the old label by more than `margin`, at most
    the share `max_support` of the `support_neighbours` nearest points bear the old label (1.0: no such test), at least
    the share `agreement` of the `agreement_neighbours` nearest bear the winner (0.0: no such test), and the point does
    not stand apart: the farthest of the latter is at most `max_isolation` times as far away as it is, in the median,
    for these themselves (0.0: no such test). `gated` false replaces every label.

    Gaps: a point without a label gets the winner wherever there is evidence; but where less than `fill_share` of a
    surface leads to it, the label of the nearest point that has one (0.0: never).

    Islands, where the gate is in force: wrong labels come in patches, which agree with themselves. Points that bear one
    label and hang together by their `island_links` nearest neighbours, 2 to `island_points` of them, take the class of
    their shore, the points of other labels among the `island_shore` nearest of theirs, if these are of one class (a
    share of `island_purity` at least), lie all around (seen from the island's centre, in the plane of the shore, no
    gap is wider than `island_gap_deg`), and both lie in one plane: the island's points at most `island_flatness` off
    it, the shore's half as much in the root mean square, in units of the shore's lesser spread. With 0 points there
    are none.

    Ego ring, where the height of the sensor is known: points within `ego_radius_m` (horizontally) are the vehicle
    itself and give no evidence. Points of the ground plane between `ring_inner_m` and `ring_outer_m` end in a ground
    class or in none; `ring` says which of them lose their label for that: "all", those whose label is "contradicted"
    because it is no ground class, or, with "off", none, and the plane is not looked for. Candidates lie less than
    `ring_clearance_m` above the ground that the height lets expect; the plane is RANSAC's: of `ring_trials`
    planes through `ring_min_samples` points, drawn with `ring_seed`, the one with most points within `ring_residual_m`.
    Where something stands on the ground, its foot lies on the plane too: points of the ring are left alone that have
    another within `standing_radius_m` (horizontally) and `standing_low_m` to `standing_high_m` above the plane (radius
    0: no such test).
    """

    samples: tuple[int, ...] = (2730, 910, 303, 101)
    seed_point: str = "content"
    repeat_samples: bool = False
    origin_radius_m: float = 0.0
    neighbours: int = 20
    directions: int = 20
    min_count: int = 0
    collinear_cos: float = 0.99
    centre_weight: float = 0.1
    maximum_weight: float = 1e-8
    decoder_neighbours: int = 6
    residual: tuple[float, ...] = (0.0, 0.3, 0.01, 0.01)
    gated: bool = True
    margin: float = 0.5
    support_neighbours: int = 40
    max_support: float = 0.1
    agreement_neighbours: int = 5
    agreement: float = 0.6
    max_isolation: float = 1.5
    fill_share: float = 0.2
    island_points: int = 300
    island_links: int = 8
    island_shore: int = 20
    island_purity: float = 0.9
    island_gap_deg: float = 143.0
    island_flatness: float = 0.2
    ego_radius_m: float = 2.0
    ring: str = "contradicted"
    ring_inner_m: float = 2.0
    ring_outer_m: float = 5.0
    ring_clearance_m: float = 0.44
    ring_min_samples: int = 10
    ring_residual_m: float = 0.1
    ring_trials: int = 20
    ring_seed: int = 42
    standing_radius_m: float = 0.3
    standing_low_m: float = 0.25
    standing_high_m: float = 2.0

    def __post_init__(self) -> None:
        if not self.samples or min(self.samples) < 1 or list(self.samples) != sorted(self.samples, reverse=True):
            raise ValueError(f"samples is {self.samples}; give the sizes of the levels, finest first, at least 1 each")
        if len(self.residual) != len(self.samples):
            raise ValueError(
                f"residual has {len(self.residual)} values for {len(self.samples)} levels; give one a level"
            )
        if self.seed_point not in SEEDS:
            raise ValueError(f'seed_point is "{self.seed_point}"; choose "first" or "content"')
        if self.ring not in RINGS:
            raise ValueError(f'ring is "{self.ring}"; choose "off", "contradicted" or "all"')
        counts = (
            *(self.neighbours, self.decoder_neighbours, self.support_neighbours, self.agreement_neighbours),
            *(self.island_links, self.island_shore),
        )
        if min(counts) < 1 or self.directions < 2:
            raise ValueError("every number of neighbours must be at least 1, and directions at least 2")
        if not 0 < self.collinear_cos < 1 or min(self.margin, self.max_isolation, self.fill_share) < 0:
            raise ValueError("0 < collinear_cos < 1, margin >= 0, max_isolation >= 0 and fill_share >= 0 are required")
        if not all(0 <= share <= 1 for share in (self.max_support, self.agreement, self.island_purity)):
            raise ValueError("max_support, agreement and island_purity are shares; give 0 to 1")
        if min(self.island_points, self.island_gap_deg, self.island_flatness) < 0:
            raise ValueError("island_points, island_gap_deg and island_flatness must be 0 or more")

    @classmethod
    def parity(cls) -> FlatInteractionConfig:
        """Return the constants of the reference implementation: same samples, same features, same labels."""
        return cls(
            samples=(1365, 455, 151, 50),
            seed_point="first",
            repeat_samples=True,
            origin_radius_m=1e-3**0.5,
            collinear_cos=0.995,
            residual=(0.01, 0.3, 0.01, 0.01),
            gated=False,
            fill_share=0.0,
            ring="all",
            standing_radius_m=0.0,
        )


DEFAULTS = FlatInteractionConfig()


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


@dataclass(frozen=True)
class Level:
    """Samples of one level of the encoder, finest level first in a list of these.

    `index` (s,) and `neighbour` (s, k) are positions in the level below; `xyz_m` (s, 3) and `feature` (s, c) belong to
    the samples. `offset_m` (s, d, 3) is the mean offset of the neighbours in each direction, `share` (s, d) how much of
    the surface goes on that way, `influence` (s,) how well the sample lies on a surface already known. Level 0, all
    points, has no directions and index 0..n-1.
    """

    index: Ints
    neighbour: Ints
    xyz_m: Floats
    feature: Floats
    offset_m: Floats
    share: Floats
    influence: Floats


def refine(
    xyz_m: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.integer[Any]],
    config: FlatInteractionConfig = DEFAULTS,
    *,
    n_classes: int | None = None,
    ground_classes: tuple[int, ...] = (),
    sensor_height_m: float | None = None,
) -> Refined:
    """Return the labels of a sweep after flat interaction: noise repaired, gaps filled.

    `xyz_m` (n, 3), metres, LiDAR frame with z up; `labels` (n,) 0..n_classes, 0 for none; `n_classes` is the largest
    label where it is left out. The ego ring needs `sensor_height_m`, the height of the LiDAR above the ground, from
    calibration, and `ground_classes`; without them it is skipped with a note. Any n is fine, 0 too. With
    `seed_point="content"` the result does not depend on the order of the points. Returns of which more than
    `MOST_AT_ONE_PLACE` have the same coordinates are none, and so are any at (0, 0, 0):
    they keep their label, and the others are refined as if these were not there.

    Raises ValueError for coordinates that are not finite, labels out of range and arrays that do not belong together.
    """
    xyz, label = checked(xyz_m, labels)
    top = int(label.max(initial=0)) if n_classes is None else n_classes
    if label.max(initial=0) > top:
        raise ValueError(f"a label is {label.max()}, but there are {top} classes; labels run from 0 (none) to {top}")
    piled = in_piles(xyz) | ~is_return(xyz)
    if piled.any():
        apart = refine(
            xyz[~piled],
            label[~piled],
            config,
            n_classes=top,
            ground_classes=ground_classes,
            sensor_height_m=sensor_height_m,
        )
        found = Refined(label.copy(), np.zeros(len(label), np.float32), np.zeros(len(label), np.bool_), apart.notes)
        for whole, part in ((found.labels, apart.labels), (found.score, apart.score), (found.changed, apart.changed)):
            whole[~piled] = part
        return found
    if not len(label):
        return Refined(label, np.empty(0, np.float32), np.empty(0, np.bool_))
    if config.seed_point == "first":
        return refine_in_order(xyz, label, config, top, ground_classes, sensor_height_m)
    # Everything works on one order of the points that their content gives, so that no tie is broken by the input's.
    order = order_of_content(xyz, label)
    found = refine_in_order(xyz[order], label[order], config, top, ground_classes, sensor_height_m)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return Refined(found.labels[back], found.score[back], found.changed[back], found.notes)


def in_piles(xyz_m: Floats) -> npt.NDArray[np.bool_]:
    """Return which points lie where more than `MOST_AT_ONE_PLACE` others of the same coordinates do, (n,).

    Nearest neighbours are found among all of these for each of them, which takes the square of their number.
    """
    bits = (xyz_m + np.float32(0)).view(np.uint32).astype(np.uint64)  # + 0: there are two zeros
    key = bits @ np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
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


def merge_image_labels(
    xyz_m: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.uint8],
    image_labels: npt.NDArray[np.uint8],
    thing_classes: tuple[int, ...],
    seed: int,
    strength: float = 4.0,
    even_m: float = 20.0,
) -> npt.NDArray[np.uint8]:
    """Return labels in which things that images show near the sensor replace what the points alone said, (n,).

    Only labels of `thing_classes` are taken over, each with the chance of `trust_in_image` at its horizontal distance.
    Equation: reference implementation, optional merge; there without a seed.
    """
    distance_m = np.hypot(xyz_m[:, 0], xyz_m[:, 1])
    drawn = np.random.default_rng(seed).random(len(labels)) < trust_in_image(distance_m, strength, even_m)
    taken = drawn & (image_labels != 0) & np.isin(image_labels, thing_classes)
    return np.where(taken, image_labels, labels)


def trust_in_image(
    distance_m: npt.NDArray[np.floating[Any]], strength: float = 4.0, even_m: float = 20.0
) -> npt.NDArray[np.float64]:
    """Return how far an image label is trusted against a point's own, 0..1; one half at `even_m`.

    p = b e^(-d/T) / (1 + b e^(-d/T)) with b = `strength` and T = `even_m` / ln b.
    """
    odds = strength * np.exp(-np.asarray(distance_m, np.float64) * math.log(strength) / even_m)
    trust: npt.NDArray[np.float64] = odds / (1 + odds)
    return trust


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
) -> Refined:
    """Return the labels after flat interaction; ties between points go to the earlier one. See `refine`."""
    ring, notes = ego_ring(xyz_m, config, ground_classes, sensor_height_m)
    old = label.copy()
    old[ring if config.ring == "all" else ring[~np.isin(label[ring], ground_classes)]] = 0
    source = old.copy()
    if sensor_height_m is not None:
        source[np.sqrt(xyz_m[:, 0] ** 2 + xyz_m[:, 1] ** 2) <= np.float32(config.ego_radius_m)] = 0
    evidence = (source[:, None] == np.arange(n_classes + 1)).astype(np.float32)
    evidence[:, 0] = 0
    tree = cKDTree(xyz_m)
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
        winner[loose] = source[known[cKDTree(xyz_m[known]).query(xyz_m[loose])[1]]]
    if config.gated and config.island_points:
        drained = without_islands(xyz_m, winner, tree, config)
        drained[ring] = np.where(np.isin(drained[ring], ground_classes), drained[ring], winner[ring])
        winner = drained
    return Refined(winner.astype(np.uint8), score[row, winner], winner != label, notes)


def replaceable(
    xyz_m: Floats,
    label: npt.NDArray[np.uint8],
    winner: Ints,
    point: Ints,
    tree: cKDTree,
    config: FlatInteractionConfig,
) -> npt.NDArray[np.bool_]:
    """Return for each of some points whether its surroundings let it lose its label to the winner, (p,).

    That is: hardly any of its nearest points share its label, most of the very nearest bear the winner, and it does not
    stand apart from them. The point itself does not count, nor do points without a label.
    """
    free = np.ones(len(point), np.bool_)
    k = min(max(config.support_neighbours, config.agreement_neighbours) + 1, len(xyz_m))
    if k == 1 or not len(point):
        return free
    away_m, near = (found.reshape(len(point), k) for found in tree.query(xyz_m[point], k))
    others = near != point[:, None]
    bears = label[near]
    if config.max_support < 1:
        known = (bears != 0) & others
        known[:, config.support_neighbours + 1 :] = False
        same = known & (bears == label[point, None])
        free &= same.sum(axis=1) <= config.max_support * known.sum(axis=1)
    last = min(config.agreement_neighbours, k - 1)
    if config.agreement:
        known = (bears != 0) & others
        known[:, last + 1 :] = False
        same = known & (bears == winner[point, None])
        free &= same.sum(axis=1) >= config.agreement * np.maximum(known.sum(axis=1), 1)
    if config.max_isolation:
        close, place = np.unique(near[free][:, 1 : last + 1], return_inverse=True)
        usual_m = tree.query(xyz_m[close], last + 1)[0][:, last][place.reshape(-1, last)]
        free[free] = away_m[free][:, last] <= config.max_isolation * np.median(usual_m, axis=1)
    return free


def without_islands(xyz_m: Floats, label: Ints, tree: cKDTree, config: FlatInteractionConfig) -> Ints:
    """Return labels in which every flat island has taken the class of the shore around it, (n,).

    Islands are judged by the labels as given, not by what becomes of others.
    """
    n, changed = len(label), label.copy()
    links = min(config.island_links, n - 1)
    if links < 1:
        return changed
    near = tree.query(xyz_m, links + 1)[1]
    same = (label[near] == label[:, None]) & (label != 0)[:, None]
    one, other = np.broadcast_to(np.arange(n)[:, None], near.shape)[same], near[same]
    _, part = connected_components(coo_matrix((np.ones(len(one), np.bool_), (one, other)), (n, n)), directed=False)
    size = np.bincount(part)
    order = np.argsort(part, kind="stable")
    first = np.cumsum(size) - size
    for island in np.flatnonzero((size >= 2) & (size <= config.island_points)):
        point = order[first[island] : first[island] + size[island]]
        if label[point[0]] == 0:
            continue
        shore = np.unique(tree.query(xyz_m[point], min(config.island_shore + 1, n))[1])
        shore = shore[(part[shore] != island) & (label[shore] != 0)]
        if len(shore) < LEAST_SHORE:
            continue
        count = np.bincount(label[shore])
        around = int(count.argmax())
        if around == label[point[0]] or count[around] < config.island_purity * len(shore):
            continue
        if flush(xyz_m[point], xyz_m[shore[label[shore] == around]], config):
            changed[point] = around
    return changed


def flush(island_m: Floats, shore_m: Floats, config: FlatInteractionConfig) -> bool:
    """Return whether an island (p, 3) lies in the plane of its shore (s, 3), which lies all around it."""
    middle = shore_m.mean(axis=0)
    _, spread, axes = np.linalg.svd(shore_m - middle, full_matrices=False)
    lesser, across = spread[1:3] / math.sqrt(len(shore_m))
    limit = config.island_flatness * lesser
    if across > limit / 2 or np.abs((island_m - middle) @ axes[2]).max() > limit:
        return False
    from_centre = (shore_m - island_m.mean(axis=0)) @ axes[:2].T
    bearing = np.sort(np.arctan2(from_centre[:, 1], from_centre[:, 0]))
    gap = np.diff(bearing, append=bearing[0] + 2 * np.pi).max()
    return bool(gap <= math.radians(config.island_gap_deg))


def reached(xyz_m: Floats, coarse: Level, config: FlatInteractionConfig) -> Floats:
    """Return how much known surface leads to each point from the samples around it, (n,); 0 where none does."""
    k = min(config.decoder_neighbours, len(coarse.xyz_m))
    sender = cKDTree(coarse.xyz_m).query(xyz_m, k)[1].reshape(-1, k)
    total: Floats = alignment(xyz_m, coarse, sender, config.collinear_cos).sum(axis=1)
    return total


def ego_ring(
    xyz_m: Floats, config: FlatInteractionConfig, ground_classes: tuple[int, ...], sensor_height_m: float | None
) -> tuple[Ints, tuple[str, ...]]:
    """Return the indices of the points of the ego ring that lie on the ground, and why there are none."""
    none = np.empty(0, np.int64)
    if config.ring == "off":
        return none, ()
    if sensor_height_m is None or not ground_classes:
        missing = "the height of the sensor" if sensor_height_m is None else "which classes are ground"
        return none, (f"ego ring skipped: {missing} was not given",)
    ring = ring_candidates(xyz_m, sensor_height_m, config.ring_inner_m, config.ring_outer_m, config.ring_clearance_m)
    if len(ring) < config.ring_min_samples:
        return none, (f"ego ring skipped: {len(ring)} points lie in it, {config.ring_min_samples} are needed",)
    inlier = plane_inliers(
        xyz_m[ring], config.ring_min_samples, config.ring_residual_m, config.ring_trials, config.ring_seed
    )
    if inlier is None:
        return none, (f"ego ring skipped: its {len(ring)} points lie on no plane",)
    ring = ring[inlier]
    if config.standing_radius_m:
        own = np.sqrt(xyz_m[:, 0] ** 2 + xyz_m[:, 1] ** 2) <= np.float32(config.ego_radius_m)
        around = config.standing_radius_m, config.standing_low_m, config.standing_high_m
        ring = ring[~stood_on(xyz_m[ring], xyz_m[~own], *around)]
    return ring, ()


def directions(n: int) -> Floats:
    """Return n unit vectors spread over a sphere along a Fibonacci spiral around the y axis, float32 (n, 3)."""
    i = np.arange(n)
    y = 1 - 2 * i / (n - 1)
    radius, angle = np.sqrt(np.maximum(1 - y**2, 0)), i * np.pi * (3 - np.sqrt(5))
    unit: Floats = np.stack([radius * np.cos(angle), y, radius * np.sin(angle)], axis=1).astype(np.float32)
    return unit


def farthest_points(
    xyz_m: Floats, n_samples: int, start: int = 0, origin_radius_m: float = 0.0, repeat: bool = False
) -> Ints:
    """Return the indices of n samples, each the point farthest from all before it; exact, in float32.

    Points within `origin_radius_m` of the origin are passed over. Fewer samples come back where fewer distinct points
    are left; `repeat` fills up with the first point that may be taken. Ties go to the point that comes first along
    the widest axis, then to the lower index.

    A new sample can only be nearer than all before it to points within the present largest distance of it. Points are
    sorted along the widest axis, so these lie in one short slice, and no distance matrix is ever needed.
    """
    n_samples = n_samples if repeat else min(n_samples, len(xyz_m))
    axis = int(np.ptp(xyz_m, axis=0).argmax())
    order = np.argsort(xyz_m[:, axis], kind="stable")
    at = int(np.flatnonzero(order == start)[0])
    points = np.ascontiguousarray(xyz_m[order].T)
    along = points[axis].tolist()
    squared = np.full(len(order), UNREACHED)
    squared[(points**2).sum(axis=0) <= origin_radius_m**2] = -1 if origin_radius_m else UNREACHED
    buffer = np.empty_like(points)
    chosen = np.empty(n_samples, np.int64)
    chosen[0], reach = start, math.inf
    for k in range(1, n_samples):
        low, high = bisect_left(along, along[at] - reach), bisect_right(along, along[at] + reach)
        offset = np.subtract(points[:, low:high], points[:, at, None], out=buffer[:, : high - low])
        offset *= offset
        distance = offset[0]
        distance += offset[1]
        distance += offset[2]
        nearer = squared[low:high]
        np.minimum(nearer, distance, out=nearer)
        at = int(squared.argmax())
        farthest = float(squared[at])
        if farthest <= 0:
            if not repeat:
                return chosen[:k]
            # the reference scans in index order, so what it finds again and again is the lowest index it may take
            chosen[k:] = order[squared >= 0].min() if farthest == 0 else 0
            return chosen
        chosen[k] = order[at]
        reach = math.sqrt(farthest) * 1.0001  # a little more, for rounding
    return chosen


def shares(rows: Floats, axis: int = -1) -> Floats:
    """Return non-negative rows divided by their sum; a row of zeros stays one."""
    divided: Floats = rows / (rows.sum(axis=axis, keepdims=True) + EPS_ROW)
    return divided


def encode(xyz_m: Floats, evidence: Floats, config: FlatInteractionConfig, tree: cKDTree | None = None) -> list[Level]:
    """Return the levels of the encoder, all points first: what lies around ever fewer samples, and where it goes on.

    `evidence` float32 (n, c), `tree` over `xyz_m` if there is one. Equations: reference implementation, encoder.
    """
    n, none = len(xyz_m), np.empty((0, 0), np.float32)
    every = np.arange(n)
    levels = [Level(every, every[:, None], xyz_m, evidence, none[:, :, None], none, np.ones(n, np.float32))]
    start, tree = 0, cKDTree(xyz_m) if tree is None else tree
    if config.seed_point == "content":
        start = int(((xyz_m - xyz_m.mean(axis=0, dtype=np.float64)) ** 2).sum(axis=1).argmax())
    for size in config.samples:
        below = levels[-1]
        if not config.repeat_samples:
            size = min(size, max(1, len(below.xyz_m) // (THINNING if below.share.size else POINTS_PER_SAMPLE)))
        index = farthest_points(below.xyz_m, size, start, config.origin_radius_m, config.repeat_samples)
        k = min(config.neighbours, len(below.xyz_m))
        neighbour = tree.query(below.xyz_m[index], k)[1].reshape(-1, k)
        levels.append(pool(below, index, neighbour, config))
        start, tree = 0, cKDTree(levels[-1].xyz_m)
    return levels


def pool(below: Level, index: Ints, neighbour: Ints, config: FlatInteractionConfig) -> Level:
    """Return the level of the samples `index` (s,) of the level below, whose neighbours there are `neighbour` (s, k).

    The first level weighs a direction by its number of neighbours; later ones by how well the surfaces known around the
    sample and around the neighbours in that direction continue each other.
    """
    centre = below.xyz_m[index]
    (n, k), m = neighbour.shape, config.directions
    offset = below.xyz_m[neighbour] - centre[:, None]
    length = np.sqrt((offset**2).sum(axis=2))
    unit = offset / (length + EPS)[:, :, None]

    # A sample's own offset of length 0 falls into direction 0, where it must not count as a neighbour.
    slot = (unit @ directions(m).T).argmax(axis=2) + m * np.arange(n)[:, None]
    slots = csr_matrix((np.ones(n * k, np.float32), (slot.ravel(), np.arange(n * k))), (n * m, n * k))
    count = np.bincount(slot.ravel(), minlength=n * m).reshape(n, m).astype(np.float32)
    count[:, 0] -= 1
    mean = (slots @ offset.reshape(n * k, 3)).reshape(n, m, 3) / (count + EPS)[:, :, None]
    feature_of_neighbour = below.feature[neighbour]
    gathered = shares((slots @ feature_of_neighbour.reshape(n * k, -1)).reshape(n, m, -1))

    if not below.share.size:
        counted = count * (count > config.min_count)
        share = counted / (counted.sum(axis=1, keepdims=True) + EPS)
        influence = np.ones(n, np.float32)
    else:
        weight = continuation(below, index, neighbour, unit, length, config.collinear_cos)
        total = weight.sum(axis=1)
        share = (slots @ weight.ravel()).reshape(n, m) / (total + EPS_INFLUENCE)[:, None]
        influence = total / (total.mean() + EPS)

    near_first = shares(share / (np.sqrt((mean**2).sum(axis=2)) + EPS))
    feature = influence[:, None] * (near_first[:, :, None] * gathered).sum(axis=1)
    feature += np.float32(config.centre_weight) * below.feature[index]
    feature += np.float32(config.maximum_weight) * feature_of_neighbour.max(axis=1)
    return Level(index, neighbour, centre, shares(feature), mean, share, influence)


def continuation(
    below: Level, index: Ints, neighbour: Ints, unit: Floats, length: Floats, collinear_cos: float
) -> Floats:
    """Return how far the surfaces known around a sample and around each of its neighbours are one, (n, k).

    Both ends need a known direction along the line between them; the weight is the share of that line, extended by what
    either end knows beyond it, that known surface covers. A sample has weight 0 to itself.
    """
    limit = np.float32(collinear_cos)
    reach = np.sqrt((below.offset_m**2).sum(axis=2))
    known = below.offset_m / (reach + EPS)[:, :, None]

    def along(at: Ints) -> tuple[Floats, Floats, Floats]:
        cosine = (known[at] @ unit[:, :, :, None])[..., 0]
        own = np.broadcast_to(reach[at], cosine.shape)
        ahead, behind = (np.where(side, own, 0).max(axis=2) for side in (cosine > limit, -cosine > limit))
        return (below.share[at] * (np.abs(cosine) > limit)).sum(axis=2), ahead, behind

    centre_share, centre_towards, centre_away = along(index[:, None])
    far_share, far_beyond, far_back = along(neighbour)
    known_m = centre_towards + centre_away + far_beyond + far_back
    both = (centre_towards + centre_away > 0) & (far_beyond + far_back > 0)
    covered = both * known_m / (length + centre_away + far_beyond + EPS)
    weight: Floats = centre_share * far_share * covered
    return weight


def decode(levels: list[Level], config: FlatInteractionConfig) -> Iterator[Floats]:
    """Yield the evidence per class of every level, (s, c), from the coarsest but one to all points.

    Rows sum to at most 1; a row of zeros has no evidence. Equations: reference implementation, decoder.
    """
    handed = levels[-1].feature
    for fine, coarse, residual in zip(levels[-2::-1], levels[:0:-1], config.residual[::-1], strict=True):
        k = min(config.decoder_neighbours, len(coarse.xyz_m))
        sender = cKDTree(coarse.xyz_m).query(fine.xyz_m, k)[1].reshape(-1, k)
        weight = alignment(fine.xyz_m, coarse, sender, config.collinear_cos)
        total = weight.sum(axis=1) + EPS
        part = weight / total[:, None] + EPS_DECODER
        part /= part.sum(axis=1, keepdims=True) + EPS
        rows = np.arange(0, part.size + 1, k)
        mixed = csr_matrix((part.ravel(), sender.ravel(), rows), (len(part), len(handed))) @ handed
        if residual:  # else what is handed stands alone, and how much it weighs does not matter
            mixed = total[:, None] * mixed + (EPS + np.float32(residual) * total.mean()) * fine.feature
        handed = shares(mixed)
        yield handed


def alignment(xyz_m: Floats, coarse: Level, sender: Ints, collinear_cos: float) -> Floats:
    """Return how much surface goes from each sender along the line to the point, (n, k): the shares of such directions.

    Most of a sample's directions are empty, so directions are visited by rank among its used ones, and a pair of point
    and sender drops out once the sender has no more.
    """
    used = np.argsort(coarse.share <= 0, axis=1, kind="stable")
    n_used = (coarse.share > 0).sum(axis=1)
    share = np.take_along_axis(coarse.share, used, axis=1)
    offset = np.take_along_axis(coarse.offset_m, used[:, :, None], axis=1)
    known = offset / (np.sqrt((offset**2).sum(axis=2)) + EPS)[:, :, None]
    columns = [np.ascontiguousarray(column.T) for column in (known[..., 0], known[..., 1], known[..., 2], share)]

    # Pairs whose sender has most directions come first: those that still have one at a rank are then at the front.
    left = n_used[sender.ravel()].astype(np.uint8)
    pair = np.argsort(left.max(initial=0) - left, kind="stable")
    at = sender.ravel()[pair]
    towards = (coarse.xyz_m[at] - xyz_m[pair // sender.shape[1]]).T
    x, y, z = towards / (np.sqrt(towards[0] ** 2 + towards[1] ** 2 + towards[2] ** 2) + EPS)
    ends = len(left) - np.cumsum(np.bincount(left, minlength=1))
    weight = np.zeros(len(left), np.float32)
    for rank, end in enumerate(ends[:-1]):
        u, v, w, s = (column[rank].take(at[:end]) for column in columns)
        u *= x[:end]
        v *= y[:end]
        w *= z[:end]
        u += v
        u += w
        s *= np.abs(u, out=u) > np.float32(collinear_cos)
        weight[:end] += s
    in_order = np.empty_like(weight)
    in_order[pair] = weight
    return in_order.reshape(sender.shape)
