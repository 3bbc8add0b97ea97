"""A calibration never falls, says how often labels are right, and keeps the surest the surest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from superpixels.calibration import fitted
from superpixels.reliability import LEVELS, Reliability, trust
from superpixels.voting import Ballot, named_at

HERE = np.eye(4)
Counts = NDArray[np.int64]


def counts(of_level: dict[int, tuple[int, int]]) -> tuple[Counts, Counts]:
    """Return how many labels of some confidences were compared, and how many of them are right."""
    compared, right = (np.zeros(LEVELS, np.int64) for _ in range(2))
    for level, (all_of_it, some) in of_level.items():
        compared[level], right[level] = all_of_it, some
    return compared, right


def test_a_confidence_becomes_the_share_that_is_right() -> None:
    found = fitted(*counts({51: (100, 40), 204: (100, 80)}))
    assert found[51] == 102 and found[204] == 204
    assert found[(51 + 204) // 2] == pytest.approx((102 + 204) / 2, abs=1), "a straight line between what was measured"
    assert (found[1:51] == 102).all() and (found[204:] == 204).all() and found[0] == 0


def test_what_falls_is_pooled_and_the_order_within_a_pool_is_kept() -> None:
    # 100 and 200 fall from 0.9 to 0.6, so both are 0.7 on average, at their weighted centre 166.7; 250 stands alone
    found = fitted(*counts({50: (100, 10), 100: (50, 45), 200: (100, 60), 250: (100, 90)}))
    at_centre = 0.7 * 255
    assert found[166] == pytest.approx(at_centre, abs=1.5)
    assert found[50] == round(0.1 * 255) and found[250] == round(0.9 * 255)
    assert found[100] < at_centre < found[200], "isotonic regression alone would make them equal"


def test_no_label_stays_none_and_a_label_never_becomes_none() -> None:
    found = fitted(*counts({10: (100, 0), 250: (10, 10)}))
    assert found[0] == 0 and found[1:].min() == 1 and found[250] == 255


@pytest.mark.parametrize(
    ("compared", "right", "reason"),
    [
        (np.zeros(LEVELS, np.int64), np.zeros(LEVELS, np.int64), "nothing was compared"),
        (np.zeros(3, np.int64), np.zeros(3, np.int64), "counts have shapes"),
        (np.ones(LEVELS, np.int64), np.full(LEVELS, 2), "expected 0 <= right <= compared"),
    ],
)
def test_counts_that_make_no_sense_are_refused(compared: Counts, right: Counts, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fitted(compared, right)


@settings(max_examples=200, deadline=None)
@given(arrays(np.int64, (LEVELS, 2), elements=st.integers(0, 1000)))
def test_it_never_falls_and_stays_within_what_was_measured(drawn: Counts) -> None:
    compared, right = drawn.max(axis=1), drawn.min(axis=1)
    compared[1] += 1
    found = fitted(compared, right)
    assert (np.diff(found.astype(int)) >= 0).all() and found[0] == 0 and found[1:].min() >= 1
    named = compared > 0
    share = right[named] / compared[named]
    named[0] = False
    low, high = (255 * bound(right[named] / compared[named]) for bound in (np.min, np.max))
    assert max(np.floor(low), 1) <= found[1] and found[-1] <= max(np.ceil(high), 1) and len(share)


def overconfident(rng: np.random.Generator, n: int = 60_000) -> Reliability:
    """Return labels of which the confidence is far too high, although it tells the surer from the less sure."""
    found = Reliability(4)
    level = rng.integers(120, 256, n)
    is_right = rng.random(n) < (level / 255) ** 3
    truth = rng.integers(1, 5, n)
    label = np.where(is_right, truth, truth % 4 + 1)
    found.add(truth, label, level.astype(np.uint8))
    return found


def test_the_error_goes_and_the_order_of_risk_stays() -> None:
    fit, held_back = (overconfident(np.random.default_rng(seed)) for seed in (0, 1))
    level = fitted(fit.compared, fit.as_true)
    before, after = trust(held_back), trust(held_back.mapped(level))
    assert before.calibration_error > 0.15 and after.calibration_error < 0.01
    assert after.augrc <= before.augrc + 0.001


def test_mapped_counts_are_those_of_mapped_confidences() -> None:
    rng = np.random.default_rng(3)
    truth, label = rng.integers(0, 4, 500), rng.integers(0, 4, 500)
    confidence = rng.integers(0, 256, 500).astype(np.uint8)
    level = np.sort(rng.integers(0, 256, LEVELS)).astype(np.uint8)
    one, other = Reliability(3), Reliability(3)
    one.add(truth, label, confidence)
    other.add(truth, label, level[confidence])
    for name in ("called", "true", "right"):
        np.testing.assert_array_equal(getattr(one.mapped(level), name), getattr(other, name))


def test_another_sweep_says_what_it_calls_a_place_and_nothing_of_what_it_looks_through() -> None:
    places: NDArray[np.float64] = np.array([[8.05, y, 0.1] for y in (-2.1, -0.1, 1.9)])
    first = Ballot(places, np.array([1, 1, 1], np.uint8), np.ones(3), HERE)
    moved = HERE.copy()
    moved[0, 3] = 2.0  # it stands two metres ahead
    second = Ballot(places - [2.0, 0, 0], np.array([2, 0, 3], np.uint8), np.ones(3), moved)
    assert named_at(first, second, 3).tolist() == [2, 0, 3]
    behind: NDArray[np.float64] = np.array(
        [[30.0, y, 0.1] for y in (-7.8, -0.4, 7.1)]
    )  # it sees far beyond these places
    gone = Ballot(behind - [2.0, 0, 0], np.array([2, 2, 3], np.uint8), np.ones(3), moved)
    assert not named_at(first, gone, 3).any()
    nothing = Ballot(np.zeros((3, 3)), np.array([1, 1, 1], np.uint8), np.ones(3), HERE)
    assert not named_at(nothing, second, 3).any(), "no returns"
