"""Moving things followed: on things whose ways are known."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from superpixels.tracks import Things, follow


def things(ago_s: float, *middles_m: Sequence[float]) -> Things:
    """Things of the size of a car."""
    middle = np.array(middles_m, np.float64).reshape(-1, 3)
    return Things(middle, np.tile([4.0, 1.8, 1.5], (len(middle), 1)), ago_s)


def test_boxes_by_hand() -> None:
    xyz_m = np.array([[0.0, 0, 0], [2, 4, 1], [9, 9, 9], [5, 5, 5]])
    found = Things.of(xyz_m, np.array([1, 1, 0, 3], np.uint16), 0.5)
    np.testing.assert_array_equal(found.middle_m, np.array([[1, 2, 0.5], [np.nan] * 3, [5, 5, 5]]))
    np.testing.assert_array_equal(found.size_m, np.array([[2, 4, 1], [np.nan] * 3, [0, 0, 0]]))
    assert follow(found, [found, found])[0].of.tolist() == [0, 0, 0], "at one time nothing has a velocity"


def test_two_cars_on_their_ways_are_told_apart_whatever_their_order() -> None:
    """One drives by at 10 m/s, one comes the other way at 5 m/s; 0.5 s from sweep to sweep."""
    here = things(0.0, (0, 0, 0), (20, 4, 0))
    before = things(0.5, (22.5, 4, 0), (-5, 0, 0))  # listed the other way round
    later = things(-0.5, (5, 0, 0), (17.5, 4, 0))
    much_later = things(-1.5, (15, 0, 0), (12.5, 4, 0), (40, 40, 0))
    found = follow(here, [much_later, before, later])
    assert [one.of.tolist() for one in found] == [[1, 2, 0], [2, 1], [1, 2]]
    np.testing.assert_allclose(found[1].shift_m, np.array([[-2.5, 0, 0], [5, 0, 0]]))
    np.testing.assert_allclose(found[0].shift_m, np.array([[-15, 0, 0], [7.5, 0, 0], [0, 0, 0]]))


def test_at_the_end_of_a_drive_two_sweeps_before_tell_the_velocity() -> None:
    here = things(0.0, (0, 0, 0))
    found = follow(here, [things(0.5, (-4, 0, 0)), things(1.0, (-8.3, 0, 0)), things(1.5, (-13, 0, 0), (-4, 0, 0))])
    assert [one.of.tolist() for one in found] == [[1], [1], [1, 0]]


def test_what_is_on_no_line_or_too_fast_is_not_followed() -> None:
    here = things(0.0, (0, 0, 0))
    assert not any(one.of.any() for one in follow(here, [things(0.5, (5, 0, 0)), things(-0.5, (5, 0, 0))])), "turned"
    assert not any(one.of.any() for one in follow(here, [things(0.5, (-20, 0, 0)), things(-0.5, (20, 0, 0))])), "40 m/s"
    assert not any(one.of.any() for one in follow(here, [things(0.5, (-4, 0, 0))])), "one other sweep"
    assert not any(one.of.any() for one in follow(here, [things(0.5), things(-0.5)])), "sweeps without moving things"
    assert [one.of.tolist() for one in follow(things(0.0), [things(0.5, (1, 1, 1)), things(1.0)])] == [[0], []]


def test_a_thing_is_met_once_and_the_nearer_one_wins() -> None:
    here = things(0.0, (0, 0, 0))
    found = follow(here, [things(0.5, (-2, 0, 0)), things(-0.5, (2, 0, 0)), things(-1.0, (4.5, 0, 0), (4.1, 0, 0))])
    assert found[2].of.tolist() == [0, 1]


@given(seed=st.integers(0, 2**32 - 1), step_s=st.sampled_from([0.1, 0.5]))
@settings(max_examples=40, deadline=None)
def test_things_far_apart_at_any_steady_velocity_are_followed_through_the_window(seed: int, step_s: float) -> None:
    rng = np.random.default_rng(seed)
    n_things = int(rng.integers(1, 5))
    start = np.column_stack([np.arange(n_things) * 0.0, np.arange(n_things) * 50.0, np.zeros(n_things)])
    velocity = np.column_stack([rng.uniform(-15, 15, n_things), np.zeros((n_things, 2))])
    orders = [rng.permutation(n_things) for _ in range(6)]
    ago_s = [step_s * number for number in (-3, -2, -1, 1, 2, 3)]
    others = [
        things(ago, *(start - velocity * ago + rng.uniform(-0.1, 0.1, start.shape))[order])
        for ago, order in zip(ago_s, orders, strict=True)
    ]
    found = follow(things(0.0, *start), others)
    for one, order, ago in zip(found, orders, ago_s, strict=True):
        assert one.of.tolist() == (order + 1).tolist()
        assert one.shift_m == pytest.approx((velocity * ago)[order], abs=0.2)


def test_a_thing_that_was_missed_in_the_nearest_sweep_is_followed_all_the_same() -> None:
    here = things(0.0, (0, 0, 0))
    way = {ago_s: (-10 * ago_s, 0, 0) for ago_s in (1.5, 1.0, 0.5, -0.5, -1.0)}
    others = [things(ago_s, *([] if ago_s == -0.5 else [at])) for ago_s, at in way.items()]
    assert [one.of.tolist() for one in follow(here, others)] == [[1], [1], [1], [], [1]]
    strangers = [things(ago_s, (0, 60, 0) if ago_s == -0.5 else at) for ago_s, at in way.items()]
    assert [one.of.tolist() for one in follow(here, strangers)] == [[1], [1], [1], [0], [1]]


def test_things_that_have_nothing_to_do_with_each_other_are_seldom_followed() -> None:
    rng = np.random.default_rng(0)
    for ago_s in ((0.5, -0.5), (1.0, -1.0), (1.0, 4.0), (2.0, -2.0)):
        met = [
            follow(first, others)[0].of.astype(bool).mean()
            for first, *others in (
                [things(time_s, *rng.uniform((-40, -40, 0), (40, 40, 0), (10, 3))) for time_s in (0.0, *ago_s)]
                for _ in range(40)
            )
        ]
        assert np.mean(met) < 0.06, ago_s


def test_of_two_ways_that_fit_alike_none_is_taken() -> None:
    """Cars 10 m apart in a lane go 5 m from sweep to sweep, or back: nobody can tell."""
    around = [things(ago_s, (-5, 0, 0), (5, 0, 0)) for ago_s in (0.5, -0.5)]
    assert not any(one.of.any() for one in follow(things(0.0, (0, 0, 0)), around))


def test_a_thing_of_another_sweep_belongs_to_one_of_ours() -> None:
    """Two walk side by side, 1.2 m apart; the second one is missed before."""
    here = things(0.0, (0, 0, 0), (0, 1.2, 0))
    found = follow(here, [things(0.5, (-0.7, 0, 0)), things(-0.5, (0.7, 0, 0), (0.7, 1.2, 0))])
    assert [one.of.tolist() for one in found] == [[1], [1, 0]]


def test_sweeps_of_one_time_and_the_order_of_sweeps_do_no_harm() -> None:
    here = things(0.0, (0, 0, 0))
    others = [things(0.0, (9, 9, 0)), things(1.0, (-4, 0, 0)), things(1.0, (-4.1, 0, 0)), things(1.5, (-6, 0, 0))]
    assert [one.of.tolist() for one in follow(here, others)] == [[0], [1], [1], [1]]
    rng = np.random.default_rng(1)
    for _ in range(20):
        crowd = things(0.0, *rng.uniform(-6, 6, (6, 3)))
        times_s = (-1.0, -0.5, 0.5, 1.0)
        around = [things(time_s, *rng.uniform(-6, 6, (6, 3))) for time_s in times_s]
        order = rng.permutation(4)
        straight, mixed = follow(crowd, around), follow(crowd, [around[number] for number in order])
        for place, number in enumerate(order):
            assert mixed[place].of.tolist() == straight[number].of.tolist()


def test_hundreds_of_things_take_little_memory() -> None:
    rng = np.random.default_rng(2)
    around = [things(time_s, *rng.uniform(-60, 60, (300, 3))) for time_s in (0.5, -0.5)]
    tracemalloc.start()
    try:
        follow(things(0.0, *rng.uniform(-60, 60, (300, 3))), around)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
