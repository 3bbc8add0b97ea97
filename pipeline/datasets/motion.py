"""How the vehicle moves at a time, from the poses that a log has around it; and points of a sweep brought to one time.

A motion is that of a rigid body, (6,): how fast it turns, as a rotation vector in rad/s, and its velocity in m/s, both
in the frame of a sensor at that time. It is taken as lasting over a sweep or the readout of an image, some 0.1 s: at 3
m/s2 that is 4 mm off at their ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from pipeline.geometry import Float64, chained, inverse_pose, moved_along

LEAST_STEP_US = 20_000  # between poses that tell a motion: over less, a centimetre of noise is a walking pace
MOST_STEP_US = 2_000_000  # farther apart, they tell nothing of what is between them
DIGITS = 9  # of a motion: its last bits are those of one processor's sines
MOST_OFFSET_S = 1.0  # of a point's time from that of its sweep
CLOCK_S = 86_400.0  # times beyond a day are of a clock, and not from the sweep on


class Track:
    """Where a vehicle was, by time."""

    def __init__(self, poses: Iterable[tuple[int, Float64]]) -> None:
        """`poses` are times in microseconds, and `world_from_ego` (4, 4) then; those not finite tell nothing."""
        by_time = {time_us: pose for time_us, pose in poses if np.isfinite(pose).all()}
        self._times_us = sorted(by_time)
        self._poses = by_time

    def motion(self, time_us: int, sensor_from_ego: Float64) -> Float64 | None:
        """Return how a sensor moves at a time (6,), its pose on the vehicle given; None where no poses tell it."""
        times = self._times_us
        before = bisect_right(times, time_us - LEAST_STEP_US) - 1
        after = bisect_left(times, time_us + LEAST_STEP_US)
        at = bisect_left(times, time_us)
        here = at if at < len(times) and times[at] == time_us else None
        first = before if before >= 0 and time_us - times[before] <= MOST_STEP_US else here
        last = after if after < len(times) and times[after] - time_us <= MOST_STEP_US else here
        if first is None or last is None or first == last or not np.isfinite(sensor_from_ego).all():
            return None
        seconds = (times[last] - times[first]) / 1e6
        ego_from_sensor = inverse_pose(sensor_from_ego)
        world_from_first, world_from_last = (chained(self._poses[times[one]], ego_from_sensor) for one in (first, last))
        return motion_of(chained(inverse_pose(world_from_first), world_from_last), seconds)


def motion_of(first_from_last: Float64, seconds: float) -> Float64:
    """Return the motion (6,) that takes a sensor from one pose to the other in so many seconds."""
    turn = scipy.spatial.transform.Rotation.from_matrix(first_from_last[:3, :3]).as_rotvec()
    angle = float(np.linalg.norm(turn))
    cross = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
    # the inverse of the mean rotation on the way
    half = angle / 2
    factor = 1 / 12 if angle < 1e-4 else (1 - half / np.tan(half)) / angle**2
    shift = (
        first_from_last[:3, 3]
        - cross @ first_from_last[:3, 3] / 2
        + factor * (cross @ (cross @ first_from_last[:3, 3]))
    )
    return np.asarray(np.round(np.concatenate([turn, shift]) / seconds, DIGITS) + 0.0)


def seconds_from(times: npt.NDArray[np.generic], unit_us: float, timestamp_us: int) -> Float64:
    """Return times of points (n,) as seconds from that of their sweep; raises ValueError where they cannot be that.

    Those that go beyond a day are of the clock of `timestamp_us`, others from the sweep on.
    """
    if times.dtype.kind not in "fiu" or not np.isfinite(times.astype(np.float64)).all():
        raise ValueError("its times of points are not all finite numbers")
    most = float(np.abs(times.astype(np.float64)).max(initial=0))
    of_clock = most * unit_us / 1e6 > CLOCK_S
    if of_clock and times.dtype == np.float32:
        raise ValueError(
            f"its times of points go up to {most:.9g}, as of a clock, in float32, which tells them apart by "
            f"{np.spacing(np.float32(most)) * unit_us / 1e6:.2g} s; keep them in float64, or from the sweep on"
        )
    if of_clock and times.dtype.kind in "iu" and unit_us <= 1:  # nanoseconds since 1970 do not fit into float64
        start = round(timestamp_us / unit_us)
        apart_s = (times.astype(np.int64) - start).astype(np.float64) * (unit_us / 1e6)
    else:
        apart_s = times.astype(np.float64) * (unit_us / 1e6) - (timestamp_us / 1e6 if of_clock else 0.0)
    if len(apart_s) and float(np.abs(apart_s).max()) > MOST_OFFSET_S:
        raise ValueError(
            f"its times of points are {apart_s.min():.6g} to {apart_s.max():.6g} s from its own time; a sweep takes "
            "0.05 to 0.2 s. Is [data] time_column_unit the unit they have, and their clock that of the sweeps?"
        )
    return apart_s


def at_one_time(xyz: npt.NDArray[np.floating[Any]], apart_s: Float64, motion: Float64) -> Float64:
    """Return points (n, 3), each as seen from where the sensor was when it was taken, from where it was at time 0.

    `motion` (6,) is that of the sensor, `apart_s` (n,) when each was taken. Points at 0, 0, 0 stay there.
    """
    columns = xyz.T.astype(np.float64, order="C")
    inside = moved_along(motion, apart_s, columns).T
    return np.where((xyz == 0).all(axis=1)[:, None], 0.0, inside)
