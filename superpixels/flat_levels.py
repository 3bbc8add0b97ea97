"""Encoder and decoder of flat interaction: levels of samples, the directions in which a surface goes on, evidence."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy

from superpixels.flat_config import FlatInteractionConfig, Floats, Ints

THINNING = 3  # the ratio of the reference's levels
POINTS_PER_SAMPLE = 12  # with fewer, stray labels have samples of their own and spread in small clouds
UNREACHED = np.float32(1e10)
EPS = np.float32(1e-8)
EPS_ROW = np.float32(1e-9)
EPS_INFLUENCE = np.float32(1e-7)
EPS_DECODER = np.float32(1e-6)


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


def encode(
    xyz_m: Floats, evidence: Floats, config: FlatInteractionConfig, tree: scipy.spatial.cKDTree | None = None
) -> list[Level]:
    """Return the levels of the encoder, all points first: what lies around ever fewer samples, and where it goes on.

    `evidence` float32 (n, c), `tree` over `xyz_m` if there is one. Equations: reference implementation, encoder.
    """
    n, none = len(xyz_m), np.empty((0, 0), np.float32)
    every = np.arange(n)
    levels = [Level(every, every[:, None], xyz_m, evidence, none[:, :, None], none, np.ones(n, np.float32))]
    start, tree = 0, scipy.spatial.cKDTree(xyz_m) if tree is None else tree
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
        start, tree = 0, scipy.spatial.cKDTree(levels[-1].xyz_m)
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
    slots = scipy.sparse.csr_matrix((np.ones(n * k, np.float32), (slot.ravel(), np.arange(n * k))), (n * m, n * k))
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
        sender = scipy.spatial.cKDTree(coarse.xyz_m).query(fine.xyz_m, k)[1].reshape(-1, k)
        weight = alignment(fine.xyz_m, coarse, sender, config.collinear_cos)
        total = weight.sum(axis=1) + EPS
        part = weight / total[:, None] + EPS_DECODER
        part /= part.sum(axis=1, keepdims=True) + EPS
        rows = np.arange(0, part.size + 1, k)
        mixed = scipy.sparse.csr_matrix((part.ravel(), sender.ravel(), rows), (len(part), len(handed))) @ handed
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
