"""Moving things followed from sweep to sweep: which of them is which, by constant velocity.

Things of the present sweep are looked for in those before and after, from near to far. Which way one goes is told by
three sweeps, the present one and two others: of all pairs of things there it is the pair that lies on a line with it in
time. From there each is expected where it would be at that velocity. No label is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

Floats = npt.NDArray[np.floating[Any]]

FASTEST_MPS = 30.0
"""Nothing is looked for that would be faster."""
NEAR_M = 1.0
"""How far a thing may be from where it is expected: what is seen of it changes, and with it its middle."""
ACCELERATION_MPS2 = 3.0
"""How much its velocity may change meanwhile."""
FARTHEST_M = 3.0
"""However long it was not met, it is not looked for farther from there than this."""
SETTLES_S = 0.5
"""A velocity told over so long or longer is believed; over less, the one before counts, too."""
SIZE_COUNTS = 0.3
"""A metre of difference in size counts as so many metres of distance; what is seen of a thing changes."""
SPEED_COUNTS = 0.02
"""So does a metre per second: of two velocities that fit equally well, the lower one is more likely."""


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
        n_things = int(thing.max(initial=0))
        low, high = np.full((n_things, 3), np.inf), np.full((n_things, 3), -np.inf)
        chosen = thing > 0
        np.minimum.at(low, thing[chosen] - 1, xyz_m[chosen])
        np.maximum.at(high, thing[chosen] - 1, xyz_m[chosen])
        known = np.isfinite(low)
        low, high = np.where(known, low, np.nan), np.where(known, high, np.nan)
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

    A thing of the present sweep is met once in each of them at most. With fewer than two others nothing is followed.
    """
    found = [Followed(np.zeros(len(one.middle_m), np.int64), np.zeros_like(one.middle_m)) for one in others]
    order = sorted(range(len(others)), key=lambda number: abs(others[number].ago_s))
    if len(order) < 2 or not len(here.middle_m):
        return found
    velocity_mps = _velocities(here, others[order[0]], others[order[1]])
    for before in (True, False):
        at_m, size_m, at_s = here.middle_m.copy(), here.size_m, np.zeros(len(here.middle_m))
        speed = velocity_mps.copy()  # m/s along x, y, z as time goes on
        for number in order:
            one = others[number]
            if (one.ago_s > 0) != before or not one.ago_s or not len(one.middle_m):
                continue
            past_s = -one.ago_s - at_s
            expected_m = at_m + speed * past_s[:, None]
            cost = _distance_m(expected_m, one.middle_m) + SIZE_COUNTS * _distance_m(size_m, one.size_m)
            allowed_m = np.minimum(NEAR_M + ACCELERATION_MPS2 * past_s**2 / 2, FARTHEST_M)
            far = ~(_distance_m(expected_m, one.middle_m) <= allowed_m[:, None])  # not known counts as far
            mine, its = scipy.optimize.linear_sum_assignment(np.where(far, 1e6, cost))
            kept = ~far[mine, its]
            mine, its = mine[kept], its[kept]
            new = (one.middle_m[its] - at_m[mine]) / past_s[mine, None]
            believed = np.minimum(np.abs(past_s[mine, None]) / SETTLES_S, 1.0)
            speed[mine] += believed * (new - speed[mine])
            at_m[mine], at_s[mine] = one.middle_m[its], -one.ago_s
            found[number].of[its] = mine + 1
            found[number].shift_m[its] = here.middle_m[mine] - one.middle_m[its]
    return found


def _velocities(here: Things, first: Things, second: Things) -> Floats:
    """Return the velocity of each thing (t, 3) in m/s, NaN where no two other ones lie on a line with it in time."""
    found = np.full(here.middle_m.shape, np.nan)
    if not (len(first.middle_m) and len(second.middle_m) and first.ago_s and second.ago_s):
        return found
    if first.ago_s == second.ago_s:
        return found
    velocity_mps = (here.middle_m[:, None] - first.middle_m[None]) / first.ago_s  # (t, first, 3)
    expected_m = here.middle_m[:, None] - velocity_mps * second.ago_s
    away_m = np.linalg.norm(expected_m[:, :, None] - second.middle_m[None, None], axis=3)  # (t, first, second)
    speed_mps = np.linalg.norm(velocity_mps, axis=2)
    cost = away_m + SPEED_COUNTS * speed_mps[:, :, None]
    cost += SIZE_COUNTS * _distance_m(here.size_m, first.size_m)[:, :, None]
    cost += SIZE_COUNTS * _distance_m(here.size_m, second.size_m)[:, None, :]
    span_s = abs(first.ago_s - second.ago_s)
    allowed_m = NEAR_M * max(1.0, abs(second.ago_s / first.ago_s)) + ACCELERATION_MPS2 * span_s**2 / 2
    fits = (away_m <= allowed_m) & (speed_mps <= FASTEST_MPS)[:, :, None]  # what is not known fits nowhere
    cost[~fits] = np.inf
    best = cost.reshape(len(cost), -1)
    place = best.argmin(axis=1)
    known = np.isfinite(best[np.arange(len(best)), place])
    found[known] = velocity_mps[np.flatnonzero(known), place[known] // len(second.middle_m)]
    return found


def _distance_m(first: Floats, second: Floats) -> Floats:
    """Return how far points (t, 3) are from others (u, 3), (t, u)."""
    return np.asarray(np.linalg.norm(first[:, None] - second[None], axis=2))
