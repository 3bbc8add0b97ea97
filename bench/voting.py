"""What a vote costs: CPU seconds for one sweep among the eight before and after it.

    python -m bench.voting [--turns 10]

Sweeps are those of the synthetic street (bench/afi.py), 32,000 points each, one label in ten wrong, driven along at
18 km/h and 2 sweeps a second.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.afi import N_CLASSES, street
from superpixels.voting import Ballot, VotingConfig, vote

SWEEPS = 17
STEP_M, STEP_US = 2.5, 500_000


@dataclass(frozen=True)
class Pose:
    """When and where a sweep was taken."""

    timestamp_us: int
    world_from_lidar: npt.NDArray[np.float64]


@dataclass(frozen=True)
class VoteCost:
    """CPU seconds of one vote: the least and the median of the turns; `n_points` of the sweep that is voted on."""

    n_points: int
    cpu_min_s: float
    cpu_median_s: float


def window() -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.float32], Pose]]:
    """Return points, labels, weights and pose of the sweeps of a window, in order of time."""
    rng = np.random.default_rng(0)
    sweeps = []
    for number in range(SWEEPS):
        xyz_m, label = street(number % 4)
        wrong = rng.random(len(label)) < 0.1
        label[wrong] = rng.integers(1, N_CLASSES + 1, wrong.sum())
        pose = np.eye(4)
        pose[0, 3] = number * STEP_M
        sweeps.append((xyz_m, label, rng.random(len(label)).astype(np.float32), Pose(number * STEP_US, pose)))
    return sweeps


def measure(turns: int) -> VoteCost:
    """Return what a vote on the middle sweep of the window costs."""
    sweeps = window()
    here = sweeps.pop(SWEEPS // 2)
    config, cpu_s = VotingConfig(reach=SWEEPS // 2), []
    for _ in range(turns):
        begun = time.process_time()
        own, *others = (Ballot.cast(*one, here[3]) for one in (here, *sweeps))
        vote(own, others, N_CLASSES, config)
        cpu_s.append(time.process_time() - begun)
    return VoteCost(len(here[0]), min(cpu_s), float(np.median(cpu_s)))


def main(arguments: list[str] | None = None) -> None:
    """Print what a vote costs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--turns", type=int, default=10)
    cost = measure(parser.parse_args(arguments).turns)
    print(
        f"vote of {SWEEPS} sweeps on one of {cost.n_points:,} points: {1000 * cost.cpu_min_s:.0f} CPU ms, median "
        f"{1000 * cost.cpu_median_s:.0f} (goal 150)"
    )


if __name__ == "__main__":
    main()
