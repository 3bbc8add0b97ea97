"""Units of timestamps, declared or guessed from steps between frames (tables: microseconds); the nearest in time."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from manifests.config import ConfigError

IN_US = {"s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
STEPS_S = (0.004, 20.0)  # between frames of a scene: 250 Hz to three a minute; nuScenes 0.5, KITTI 0.1
_YEAR_9999_US = 2.5e17  # no clock shows more; in nanoseconds that is 1977
_log = logging.getLogger(__name__)


def microseconds(scenes: Sequence[Sequence[float]], declared: str, what: str) -> float:
    """Return how many microseconds the unit of timestamps is, given those of the frames of every scene.

    It is the declared one; else microseconds, unless no clock shows so many of them, or the usual step between frames
    is none in microseconds and is one in a single other unit: then that, with a warning. `what` names them there.
    Raises ConfigError where times do not fit into 64 bits.
    """
    every = [time for times in scenes for time in times]
    most = max((abs(time) for time in every), default=0)
    unit = declared or guessed(scenes, most)
    if unit != "us" and not declared:
        _log.warning('%s go up to %s: taken for %s; [data] time_unit = "us" says otherwise', what, most, unit)
    if most * IN_US[unit] >= 2**63:
        raise ConfigError(f"{what} go up to {most}, which are too many {unit}; name their unit with [data] time_unit")
    return IN_US[unit]


def guessed(scenes: Sequence[Sequence[float]], most: float) -> str:
    """Return the unit that makes sense of times, of which the largest is `most`; "us" where no single other does."""
    if most > _YEAR_9999_US:
        return "ns"
    steps = np.concatenate([np.zeros(0), *(np.diff(np.sort(np.array(times, np.float64))) for times in scenes)])
    steps = steps[steps > 0]
    if not len(steps):
        return "us"
    fits = [unit for unit, in_us in IN_US.items() if STEPS_S[0] <= float(np.median(steps)) * in_us / 1e6 <= STEPS_S[1]]
    return "us" if "us" in fits or len(fits) != 1 else fits[0]


def in_microseconds(time: float, unit_us: float) -> int:
    """Return a time in whole microseconds; whole numbers keep all their digits."""
    if isinstance(time, int):
        return time * round(unit_us) if unit_us >= 1 else time // round(1 / unit_us)
    return round(time * unit_us)


def nearest(times: Sequence[float], time: float) -> int:
    """Return the position of the time that is nearest to another one, the earlier of equal ones; `times` ascend."""
    at = bisect_left(times, time)
    return min(range(max(at - 1, 0), min(at + 1, len(times))), key=lambda place: abs(times[place] - time))
