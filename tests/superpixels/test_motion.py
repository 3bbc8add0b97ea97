"""What moves, found by rays: on a small street whose truth is known by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpixels.motion import MotionConfig, Sweep, above_ground_m, moving_things, neighbours, standing, touching

Points = npt.NDArray[np.float64]


def street() -> Points:
    """Ground 1.8 m below the sensor, and a wall 20 m ahead."""
    x, y = np.meshgrid(np.arange(4, 20, 0.5), np.arange(-8, 8, 0.5))
    ground = np.column_stack([x.ravel(), y.ravel(), np.full(x.size, -1.8)])
    y, z = np.meshgrid(np.arange(-8, 8, 0.1), np.arange(-1.6, 2, 0.2))
    return np.concatenate([ground, np.column_stack([np.full(y.size, 20.0), y.ravel(), z.ravel()])])


def car(x_m: float, y_m: float) -> Points:
    """The rear of a car, 1.8 m wide and 1.2 m high."""
    y, z = np.meshgrid(np.arange(-0.9, 0.91, 0.1), np.arange(-1.4, -0.2, 0.1))
    return np.column_stack([np.full(y.size, x_m), y_m + y.ravel(), z.ravel()])


def hidden_behind(points: Points, thing: Points) -> npt.NDArray[np.bool_]:
    """Return which points the sensor does not see for a thing before them."""
    low, high = (thing[:, 1:] / thing[:, :1]).min(axis=0), (thing[:, 1:] / thing[:, :1]).max(axis=0)
    across = points[:, 1:] / points[:, :1]
    return np.asarray(((across >= low) & (across <= high)).all(axis=1) & (points[:, 0] > thing[0, 0]))


def sweep(*cars: Points) -> Points:
    """The street as it is seen with some cars."""
    points = street()
    for one in cars:
        points = points[~hidden_behind(points, one)]
    return np.concatenate([points, *cars])


def test_a_car_that_drives_moves_and_one_that_is_parked_does_not() -> None:
    parked = car(10.0, -4.0)
    here = sweep(parked, car(10.0, 2.0))
    others = [Sweep(sweep(parked, car(10.0 + 4 * step, 2.0)), np.eye(4)) for step in (-1, 1, 2)]
    stands = standing(here, others, MotionConfig())
    thing = moving_things(here, stands, MotionConfig())
    drives = (np.abs(here[:, 0] - 10) < 0.01) & (here[:, 1] > 0) & (here[:, 2] > -1.5)
    assert thing[drives].tolist() == [1] * int(drives.sum())
    assert not thing[~drives].any()
    assert stands[drives].max() < 0.3 < 0.5 < stands[(here[:, 1] < 0) & (here[:, 2] > -1.5)].min()


def test_odds_add_up_by_hand() -> None:
    point = np.array([[10.0, 0, 0]])
    beyond, there, before = np.array([[15.0, 0, 0]]), np.array([[10.1, 0, 0]]), np.array([[5.0, 0, 0]])
    config = MotionConfig(free=1.0, taken=2.0)

    def likely(*others: Points) -> float:
        return float(standing(point, [Sweep(one, np.eye(4)) for one in others], config)[0])

    assert likely() == 0.5
    assert likely(before) == 0.5, "behind something nearer nothing is known"
    assert likely(beyond) == pytest.approx(1 / (1 + np.e))
    assert likely(there) == pytest.approx(1 / (1 + np.exp(-2)))
    assert likely(beyond, beyond, there, before) == pytest.approx(0.5)


def test_another_sweep_is_asked_from_where_it_was_taken() -> None:
    point, shift = np.array([[10.0, 0, 0]]), np.eye(4)
    shift[0, 3] = 5.0  # taken 5 m farther on: the place is 5 m ahead there
    assert standing(point, [Sweep(np.array([[5.0, 0, 0]]), shift)], MotionConfig())[0] > 0.5
    assert standing(point, [Sweep(np.array([[9.0, 0, 0]]), shift)], MotionConfig())[0] < 0.5


def test_single_points_and_the_ground_are_no_things() -> None:
    here = sweep(car(10.0, 2.0))
    stands = np.zeros(len(here))  # as if all had moved: only the car and the wall stand above the ground, 16 m wide
    thing = moving_things(here, stands, MotionConfig(largest_m=10.0))
    assert set(here[thing > 0][:, 0]) == {10.0}
    assert not thing[here[:, 2] < -1.5].any()
    assert not moving_things(here, stands, MotionConfig(largest_m=10.0, fewest=500)).any()
    assert not moving_things(here, stands + 0.5, MotionConfig()).any()
    assert moving_things(np.zeros((0, 3)), np.zeros(0), MotionConfig()).shape == (0,)


def test_a_thing_moves_by_the_share_of_its_points_that_were_moving() -> None:
    here = sweep(car(10.0, 2.0))
    of_car = np.flatnonzero((here[:, 0] == 10.0) & (here[:, 2] > -1.5))
    stands = np.ones(len(here))
    stands[of_car[: len(of_car) // 4]] = 0.0
    assert not moving_things(here, stands, MotionConfig(share=0.3)).any()
    assert moving_things(here, stands, MotionConfig(share=0.2))[of_car].all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_cells_touch_as_loops_over_them_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cells = np.unique(rng.integers(-3, 4, (int(rng.integers(1, 40)), 3)), axis=0)
    found = {
        frozenset(pair) for both in neighbours(cells) for pair in zip(*(one.tolist() for one in both), strict=True)
    }
    expected = {
        frozenset((one, other))
        for one in range(len(cells))
        for other in range(one)
        if np.abs(cells[one] - cells[other]).max() == 1
    }
    assert found == expected
    assert sum(len(first) for first, _ in neighbours(cells)) == len(expected), "every pair stands there once"


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_heights_and_things_do_not_depend_on_the_order_of_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.uniform(-4, 4, (60, 3))
    order = rng.permutation(60)
    np.testing.assert_array_equal(above_ground_m(points, 1.0)[order], above_ground_m(points[order], 1.0))
    one, other = touching(points, 0.8)[order], touching(points[order], 0.8)
    assert len(set(zip(one.tolist(), other.tolist(), strict=True))) == len(set(one.tolist())), "the same ones"
    for index, point in enumerate(points):
        around = np.abs(np.floor(points[:, :2]) - np.floor(point[:2])).max(axis=1) <= 1
        assert above_ground_m(points, 1.0)[index] == point[2] - points[around, 2].min()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"reach": 0}, "reach is 0; expected 1..64"),
        ({"gap_m": 0.0}, "gap_m is 0.0; expected a number above 0"),
        ({"free": -1.0}, "free is -1.0; expected 0 or more"),
        ({"share": 1.5}, "share is 1.5; expected 0..1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        replace(MotionConfig(), **wrong)
