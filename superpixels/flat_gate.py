"""Where flat interaction may change a label, and where it may not: the gate, islands, the ego ring."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import scipy

from superpixels.flat_config import FlatInteractionConfig, Floats, Ints
from superpixels.flat_levels import Level, alignment
from superpixels.ground import plane_inliers, ring_candidates, stood_on

LEAST_BORDER = 6  # points; fewer do not make a plane and a circle


def replaceable(
    xyz_m: Floats,
    label: npt.NDArray[np.uint8],
    winner: Ints,
    point: Ints,
    tree: scipy.spatial.cKDTree,
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


def without_islands(xyz_m: Floats, label: Ints, tree: scipy.spatial.cKDTree, config: FlatInteractionConfig) -> Ints:
    """Return labels in which every flat island has taken the class of the border around it, (n,).

    Islands are judged by the labels as given, not by what becomes of others.
    """
    n, changed = len(label), label.copy()
    links = min(config.island_links, n - 1)
    if links < 1:
        return changed
    near = tree.query(xyz_m, links + 1)[1]
    same = (label[near] == label[:, None]) & (label != 0)[:, None]
    one, other = np.broadcast_to(np.arange(n)[:, None], near.shape)[same], near[same]
    _, part = scipy.sparse.csgraph.connected_components(
        scipy.sparse.coo_matrix((np.ones(len(one), np.bool_), (one, other)), (n, n)), directed=False
    )
    size = np.bincount(part)
    order = np.argsort(part, kind="stable")
    first = np.cumsum(size) - size
    for island in np.flatnonzero((size >= 2) & (size <= config.island_points)):
        point = order[first[island] : first[island] + size[island]]
        if label[point[0]] == 0:
            continue
        border = np.unique(tree.query(xyz_m[point], min(config.island_shore + 1, n))[1])
        border = border[(part[border] != island) & (label[border] != 0)]
        if len(border) < LEAST_BORDER:
            continue
        count = np.bincount(label[border])
        around = int(count.argmax())
        if around == label[point[0]] or count[around] < config.island_purity * len(border):
            continue
        if flush(xyz_m[point], xyz_m[border[label[border] == around]], config):
            changed[point] = around
    return changed


def flush(island_m: Floats, border_m: Floats, config: FlatInteractionConfig) -> bool:
    """Return whether an island (p, 3) lies in the plane of its border (s, 3), which lies all around it."""
    middle = border_m.mean(axis=0)
    _, spread, axes = np.linalg.svd(border_m - middle, full_matrices=False)
    lesser, across = spread[1:3] / math.sqrt(len(border_m))
    limit = config.island_flatness * lesser
    if across > limit / 2 or np.abs((island_m - middle) @ axes[2]).max() > limit:
        return False
    from_centre = (border_m - island_m.mean(axis=0)) @ axes[:2].T
    bearing = np.sort(np.arctan2(from_centre[:, 1], from_centre[:, 0]))
    gap = np.diff(bearing, append=bearing[0] + 2 * np.pi).max()
    return bool(gap <= math.radians(config.island_gap_deg))


def reached(xyz_m: Floats, coarse: Level, config: FlatInteractionConfig) -> Floats:
    """Return how much known surface leads to each point from the samples around it, (n,); 0 where none does."""
    k = min(config.decoder_neighbours, len(coarse.xyz_m))
    sender = scipy.spatial.cKDTree(coarse.xyz_m).query(xyz_m, k)[1].reshape(-1, k)
    total: Floats = alignment(xyz_m, coarse, sender, config.collinear_cos).sum(axis=1)
    return total


def borne_out(
    xyz_m: Floats,
    label: npt.NDArray[np.uint8],
    winner: Ints,
    score: Floats,
    gap: Ints,
    config: FlatInteractionConfig,
) -> npt.NDArray[np.bool_]:
    """Return for each of some points without a label whether evidence reaches so far that it may get one, (g,).

    That is: a point with a label is near, enough of the evidence handed to it speaks for the winner, and so do the
    nearest points that have a label. `label` (n,) are those that give evidence, `score` (n, c) is what was handed on.
    """
    known = np.flatnonzero(label)
    fine = score[gap, winner[gap]] >= config.fill_certainty
    if not (config.fill_reach_m or config.fill_agreement) or not len(known):
        return np.asarray(fine)
    k = min(config.fill_neighbours, len(known))
    limit_m = config.fill_reach_m or np.inf
    away_m, near = (found.reshape(-1, k) for found in scipy.spatial.cKDTree(xyz_m[known]).query(xyz_m[gap[fine]], k))
    same = label[known[near]] == winner[gap[fine], None]
    fine[fine] = (away_m[:, 0] <= limit_m) & (same.sum(axis=1) >= config.fill_agreement * k)
    return np.asarray(fine)


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
