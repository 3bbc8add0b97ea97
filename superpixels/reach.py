"""Which sweeps around the present one are asked: those of a window, by number and by time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

FARTHEST = 64
"""Sweeps before and after that can be asked: a shard is as long, and a window goes no farther than the next one."""


class Reaching(Protocol):
    """How far is asked."""

    @property
    def reach(self) -> int:
        """Sweeps before and after."""

    @property
    def reach_s(self) -> float:
        """Seconds before and after within which they lie, spread evenly over them; 0: the next ones."""


def window_of(config: Reaching) -> int:
    """Return the sweeps before and after among which those are that are asked."""
    return FARTHEST if config.reach and config.reach_s else config.reach


def asked_among(ago_s: Sequence[float], config: Reaching) -> list[int]:
    """Return which sweeps of a window are asked, ascending, by how long before (or, negative, after) they were taken.

    All of them, where ``reach_s`` is 0: the window is of so many sweeps then.
    """
    if not config.reach_s:
        return list(range(len(ago_s)))
    found: list[int] = []
    every = np.asarray(ago_s, np.float64)
    for side in (every >= 0, every < 0):
        near = np.flatnonzero(side & (np.abs(every) <= config.reach_s))
        near = near[np.argsort(np.abs(every[near]), kind="stable")]
        if len(near) > config.reach:
            away_s = np.abs(every[near])
            wanted_s = away_s[-1] * np.arange(1, config.reach + 1) / config.reach
            near = near[np.unique(np.abs(away_s[:, None] - wanted_s).argmin(axis=0))]
        found += near.tolist()
    return sorted(found)


def check_reach(reach: int, least: int = 0) -> None:
    """Raise ValueError unless so many sweeps can be asked."""
    if not least <= reach <= FARTHEST:
        raise ValueError(f"reach is {reach}; expected {least}..{FARTHEST} sweeps")
