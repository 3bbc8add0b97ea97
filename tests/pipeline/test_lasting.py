"""Mistakes that belong to a place: they last as long, and come and go as often, as they are said to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kstest

from pipeline.teachers.lasting import (
    by_range,
    mapped,
    nearest_points,
    place_chances,
    place_shifts,
    region_means,
    squares,
    steady,
    stirred,
    told_scores,
)

NAMES = np.arange(1, 20_001, dtype=np.uint64)


def at(time_s: float, half_life_s: float = 3.0, **changed: Any) -> Any:
    return place_chances(NAMES, time_s, **{"seed": 0, "key": "drive confusion", "half_life_s": half_life_s, **changed})


def test_numbers_of_places_are_uniform_and_those_of_another_drive_or_seed_are_others() -> None:
    for drawn in (at(0.0), at(1e9), at(0.0, 0.0)):
        assert kstest(drawn, "uniform").pvalue > 1e-4 and drawn.min() > 0 and drawn.max() < 1
    for other in (at(0.0, key="another"), at(0.0, seed=1)):
        assert abs(np.corrcoef(at(0.0), other)[0, 1]) < 0.03


@pytest.mark.parametrize("start_s", [0.0, 1.5e9])
def test_half_of_the_places_are_decided_anew_within_the_half_life(start_s: float) -> None:
    first = at(start_s)
    for gap_s, left in ((0.1, 0.5 ** (0.1 / 3)), (3.0, 0.5), (6.0, 0.25), (9.0, 0.125)):
        assert (at(start_s + gap_s) == first).mean() == pytest.approx(left, abs=0.015)
    np.testing.assert_array_equal(at(0.0, 0.0), at(1e6, 0.0), err_msg="0 is never")


def test_what_is_steady_changes_only_where_a_call_is_close() -> None:
    rng = np.random.default_rng(0)
    place = rng.random(50_000)
    one, other = (steady(place, rng.random(50_000), 0.95) for _ in range(2))
    assert kstest(one, "uniform").pvalue > 1e-4
    flipped = (one < 0.3) != (other < 0.3)
    assert 0.02 < flipped.mean() < 0.2
    assert np.abs(place[flipped] - 0.3).mean() < np.abs(place[~flipped] - 0.3).mean() / 2
    np.testing.assert_array_equal(steady(place, other, 1.0), steady(place, one, 1.0))
    unknown = np.full(50_000, np.nan)
    np.testing.assert_allclose(steady(unknown, one, 0.95), one, atol=1e-9, err_msg="of no place the image decides")


def test_mistakes_are_likelier_far_away_and_as_likely_as_said_at_ten_metres() -> None:
    chance = np.linspace(0.001, 0.999, 999)
    np.testing.assert_allclose(by_range(chance, np.full(999, 10.0), 0.4), chance, atol=1e-9)
    np.testing.assert_allclose(by_range(chance, np.full(999, np.nan), 0.4), chance, atol=1e-9)
    near, far = ((by_range(chance, np.full(999, at_m), 0.4) < 0.2).mean() for at_m in (5.0, 40.0))
    assert near < 0.12 and far > 0.45


def test_squares_of_the_ground_have_the_same_name_from_wherever_they_are_seen() -> None:
    xyz_m = np.array([[0.1, 0.1, 5.0], [1.9, 1.9, -3.0], [-0.1, 0.1, 0.0], [0.1, -0.1, 0.0], [4e6, 4e6, 0.0]])
    name = squares(xyz_m, 2.0)
    assert name[0] == name[1] and len(np.unique(name)) == 4
    assert stirred([name, name])[0] != name[0]


def test_stored_maps_keep_their_numbers_and_zero_is_unknown() -> None:
    for stored in (np.array([[0, 7], [7, 1003]], np.uint16), np.array([[7, 7], [7, 1003]], np.uint16)):
        places = mapped(stored)
        np.testing.assert_array_equal(np.append(np.uint64(0), places.name)[places.map], stored)
        np.testing.assert_array_equal(places.map == 0, stored == 0)


def test_boundaries_of_a_thing_move_alike_on_both_sides_and_wherever_it_is_seen() -> None:
    here, there = (np.full((9, 20), 1003, np.uint16) for _ in range(2))
    here[3:6, 5:8] = there[3:6, 12:15] = 7  # a thing on one square of the ground, which the car has passed
    here[:, -1] = 0  # and the sky
    kept: dict[str, Any] = {"seed": 0, "key": "drive boundary", "half_life_s": 0.0, "reach_px": 2.0}
    one, other = (place_shifts(mapped(stored), 0.0, **kept) for stored in (here, there))
    np.testing.assert_array_equal(one[:, 1:8, 3:10], other[:, 1:8, 10:17], err_msg="two pixels around it as well")
    assert len(np.unique(one[0, 1:8, 3:10])) == 1 and one[0, 4, 6] != one[0, 4, 2] and one[0, 4, 6] != one[1, 4, 6]
    assert np.isfinite(one).all(), "beside the sky the ground decides"
    assert np.isnan(place_shifts(mapped(np.zeros((3, 3), np.uint16)), 0.0, **kept)).all()
    later = [place_shifts(mapped(here), time_s, **{**kept, "half_life_s": 1.0}) for time_s in (0.0, 0.001, 1e6)]
    np.testing.assert_array_equal(later[0], later[1])
    assert (later[0] != later[2]).all()


def test_shifts_of_places_are_normal_numbers() -> None:
    stored = np.arange(1, 60_001, dtype=np.uint16).reshape(200, 300)
    found = place_shifts(mapped(stored), 0.0, seed=0, key="drive", half_life_s=0.0, reach_px=0.0)
    assert found.mean() == pytest.approx(0, abs=0.02) and found.std() == pytest.approx(1, abs=0.02)
    assert abs(np.corrcoef(*found.reshape(2, -1))[0, 1]) < 0.02


def test_every_pixel_has_its_nearest_point_and_regions_the_mean_of_what_is_known() -> None:
    nearest = nearest_points(np.array([0, 3]), np.array([0, 5]), 4, 6)
    assert nearest[0, 0] == 0 and nearest[3, 5] == 1 and nearest[0, 1] == 0 and nearest[3, 4] == 1
    assert (nearest_points(np.empty(0, int), np.empty(0, int), 2, 2) == -1).all()
    region = np.array([[1, 1, 2], [0, 3, 2]], np.int32)
    value = np.array([[1.0, 3.0, np.nan], [9.0, np.nan, 4.0]])
    np.testing.assert_array_equal(region_means(region, value), [2.0, 4.0, np.nan])


def test_scores_have_the_quantiles_that_are_given_and_the_closest_call_the_least() -> None:
    scored = np.array([[0.5, 0.1], [0.9, 0.3], [1.0, 0.9]])
    right = np.array([True, True, True, False, False])
    doubt = np.array([1.0, 0.5, 0.0, 1.0, 0.25])
    np.testing.assert_allclose(told_scores(right, doubt, scored), [0.5, 0.9, 1.0, 0.1, 0.6])
