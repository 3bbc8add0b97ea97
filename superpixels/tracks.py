"""Moving things followed from sweep to sweep: which of them is which, by constant velocity.

Which way a thing of the present sweep goes is told by two of those around it: of the pairs of things there it is the
one that lies on a line with it in time. From there it is looked for in every sweep, from near to far, where it would be
at that velocity. A way that another one fits nearly as well is not taken. No label is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from superpixels.places import extents

Floats = npt.NDArray[np.floating[Any]]

FASTEST_MPS = 30.0
"""Nothing is looked for that would be faster."""
NEAR_M = 1.0
"""How far a thing may be from where it is expected: what is seen of it changes, and with it its middle."""
ACCELERATION_MPS2 = 3.0
"""How much its velocity may change meanwhile."""
FARTHEST_M = 2.0
"""Whatever changed meanwhile, it is looked for no farther away than this."""
TOLD_BY, TOLD_WITHIN_S = 6, 1.5
"""Sweeps that tell a velocity, the nearest ones, none longer ago or ahead: by then other things may lie on the line."""
SETTLES_S = 0.5
"""A velocity told over so long or longer is believed; over less, the one before counts, too."""
SIZE_COUNTS = 0.3
"""A metre of difference in size counts as so many metres of distance; what is seen of a thing changes."""
SPEED_COUNTS = 0.02
"""So does a metre per second: of two velocities that fit equally well, the lower one is more likely."""
CLEAR_M = 0.1
"""By so much a way has to fit better than the next one."""


@dataclass(frozen=True, eq=False)
class Things:
    """The moving things of a sweep, in the present LiDAR frame, and how long before (negative: after) it was taken.

    ``middle_m`` (t, 3) is the middle of the box around each along the axes, ``size_m`` (t, 3) its edges; NaN
    of one that has no points.
    """

    middle_m: Floats
    size_m: Floats
    ago_s: float

    @classmethod
    def of(cls, xyz_m: Floats, thing: npt.NDArray[np.uint16], ago_s: float) -> Things:
        """Return the things 1, 2, ... that points (n, 3) belong to, (n,); 0 is none."""
        chosen = thing > 0
        low, high = extents(xyz_m[chosen], thing[chosen].astype(np.int64) - 1, int(thing.max(initial=0)))
        return cls((low + high) / 2, high - low, ago_s)


@dataclass(frozen=True, eq=False)
class Followed:
    """What became of the things of one sweep: ``of`` (t,) the thing of the present sweep that each is, from 1, 0 none;
    ``shift_m`` (t, 3) leads from where it was to where that one is.
    """

    of: npt.NDArray[np.int64]
    shift_m: Floats


def follow(here: Things, others: Sequence[Things]) -> list[Followed]:
    """Return what became of the things of other sweeps, in their order.

    A thing of the present sweep is met once in each of them at most. With fewer than two others, or in sweeps of the
    present time, nothing is followed. The order of ``others`` does not matter where their times differ.
    """
    found = [Followed(np.zeros(len(one.middle_m), np.int64), np.zeros_like(one.middle_m)) for one in others]
    order = sorted((number for number, one in enumerate(others) if one.ago_s), key=lambda n: _nearness(others[n]))
    velocity_mps = _velocities(here, [others[number] for number in order])
    for before in (True, False):
        at_m, at_s = here.middle_m.copy(), np.zeros(len(here.middle_m))
        speed = velocity_mps.copy()  # m/s along x, y, z as time goes on
        for number in order:
            one = others[number]
            if (one.ago_s > 0) != before or not len(one.middle_m):
                continue
            past_s = -one.ago_s - at_s
            expected_m = at_m + speed * past_s[:, None]
            away_m = _distance_m(expected_m, one.middle_m)
            cost = away_m + SIZE_COUNTS * _distance_m(here.size_m, one.size_m)
            allowed_m = np.minimum(NEAR_M + ACCELERATION_MPS2 * past_s**2 / 2, FARTHEST_M)
            far = ~(away_m <= allowed_m[:, None])  # not known counts as far
            mine, its = scipy.optimize.linear_sum_assignment(np.where(far, 1e6, cost))
            kept = ~far[mine, its]
            mine, its = mine[kept], its[kept]
            moved = past_s[mine, None] != 0  # else another sweep of the same time
            new = np.divide(one.middle_m[its] - at_m[mine], past_s[mine, None], out=speed[mine], where=moved)
            believed = np.minimum(np.abs(past_s[mine, None]) / SETTLES_S, 1.0)
            speed[mine] += believed * (new - speed[mine])
            at_m[mine], at_s[mine] = one.middle_m[its], -one.ago_s
            found[number].of[its] = mine + 1
            found[number].shift_m[its] = here.middle_m[mine] - one.middle_m[its]
    return found


def _nearness(one: Things) -> tuple[float, bool]:
    """Return what sweeps are sorted by: how near in time they are, those before first."""
    return abs(one.ago_s), one.ago_s < 0


def _velocities(here: Things, others: Sequence[Things]) -> Floats:
    """Return the velocity of each thing (t, 3) in m/s, NaN where no two other ones lie on a line with it in time.

    ``others`` from near to far. Nearer pairs of sweeps are asked first; of the ways in a pair those that fit best are
    taken first, and a thing of another sweep belongs to one of ours.
    """
    found = np.full(here.middle_m.shape, np.nan)
    near = [one for one in others if abs(one.ago_s) <= TOLD_WITHIN_S and len(one.middle_m)][:TOLD_BY]
    taken: set[tuple[int, int]] = set()
    for first, second in sorted(combinations(range(len(near)), 2), key=max):
        if near[first].ago_s == near[second].ago_s:
            continue
        ways = [
            way
            for thing in np.flatnonzero(np.isnan(found[:, 0]))
            for way in _clear(list(_ways(here, int(thing), near[first], near[second])))
        ]
        for _, thing, one, other in sorted(ways):
            if {(first, one), (second, other)} & taken or not np.isnan(found[thing, 0]):
                continue
            taken |= {(first, one), (second, other)}
            found[thing] = (here.middle_m[thing] - near[first].middle_m[one]) / near[first].ago_s
    return found


Way = tuple[float, int, int, int]
"""What a way costs in metres, whose it is, and by which things of two other sweeps it leads."""


def _ways(here: Things, thing: int, first: Things, second: Things) -> Iterator[Way]:
    """Yield the ways that a thing may have come and gone, by two other sweeps."""
    velocity_mps = (here.middle_m[thing] - first.middle_m) / first.ago_s  # (first, 3)
    speed_mps = np.linalg.norm(velocity_mps, axis=1)
    possible = np.flatnonzero(speed_mps <= FASTEST_MPS)
    away_m = _distance_m(here.middle_m[thing] - velocity_mps[possible] * second.ago_s, second.middle_m)
    # what the first one's middle is off by grows with the time to the second; so does what acceleration adds
    allowed_m = NEAR_M * max(1.0, abs(second.ago_s / first.ago_s))
    allowed_m += ACCELERATION_MPS2 * abs(second.ago_s * (first.ago_s - second.ago_s)) / 2
    size_m = here.size_m[None, thing]
    off_m = [SIZE_COUNTS * _distance_m(size_m, one.size_m)[0] for one in (first, second)]
    for place, other in zip(*np.nonzero(away_m <= min(allowed_m, FARTHEST_M)), strict=True):
        one = possible[place]
        cost = away_m[place, other] + SPEED_COUNTS * speed_mps[one] + off_m[0][one] + off_m[1][other]
        yield float(cost), thing, int(one), int(other)


def _clear(ways: Sequence[Way]) -> Sequence[Way]:
    """Return all ways of a thing, or none where two that begin differently fit nearly as well."""
    best = min(ways, default=None)
    if best is None or any(way[2] != best[2] and way[0] < best[0] + CLEAR_M for way in ways):
        return []
    return ways


def _distance_m(first: Floats, second: Floats) -> Floats:
    """Return how far points (t, 3) are from others (u, 3), (t, u)."""
    return np.asarray(np.linalg.norm(first[:, None] - second[None], axis=2))
