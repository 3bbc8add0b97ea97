"""What a confidence is worth, on examples that can be computed by hand."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpixels.metrics import Confusion, scores
from superpixels.reliability import Reliability, calibration_error, trust


def counted(truth: list[int], label: list[int], confidence: list[int], n_classes: int = 2) -> Reliability:
    found = Reliability(n_classes)
    found.add(np.array(truth), np.array(label), np.array(confidence, np.uint8))
    return found


def test_the_calibration_error_is_the_distance_from_the_share_that_is_right() -> None:
    sure = counted([1, 1, 1, 2], [1, 1, 1, 1], [255, 255, 255, 255])
    assert calibration_error(sure) == pytest.approx(0.25)
    assert calibration_error(counted([1, 2], [1, 1], [128, 128])) == pytest.approx(abs(128 / 255 - 0.5))
    # two bins: 2 points at 0.2 of which none is right, 2 at 1.0 that are right
    assert calibration_error(counted([1, 1, 1, 1], [2, 2, 1, 1], [51, 51, 255, 255])) == pytest.approx(0.1)
    assert np.isnan(calibration_error(counted([1], [0], [0]))), "nothing is said of the point"


def test_risk_grows_with_coverage_where_confidence_tells_something() -> None:
    # the surer half is right, the other wrong: risk 0 up to coverage 1/2, then 1 - mIoU of all
    found = trust(counted([1, 2, 1, 2], [1, 2, 2, 1], [200, 200, 50, 50]))
    # of all: 1 hit of 3 in either class
    assert [*chain(*found.curve)] == [0.5, 0.0, 1.0, pytest.approx(2 / 3)]
    assert found.augrc == pytest.approx(0.5 * (0.0 + 2 / 3) / 2)


def test_a_confidence_that_tells_nothing_gives_half_of_the_risk() -> None:
    found = trust(counted([1, 2, 1, 2], [1, 2, 2, 1], [99, 99, 99, 99]))
    assert found.augrc == pytest.approx(2 / 3 / 2) and [*found.curve] == [pytest.approx((1.0, 2 / 3))]
    upside_down = trust(counted([1, 2, 1, 2], [1, 2, 2, 1], [50, 50, 200, 200]))
    assert upside_down.augrc > found.augrc


def test_points_without_a_true_label_count_nowhere_and_those_without_a_label_are_missed() -> None:
    assert trust(counted([0, 0, 1], [1, 2, 1], [9, 9, 9])) == trust(counted([1], [1], [9]))
    assert trust(counted([1, 1], [1, 0], [255, 0])).curve == ((0.5, 0.0), (1.0, 0.5))
    nothing = trust(Reliability(2))
    assert np.isnan(nothing.augrc) and np.isnan(nothing.calibration_error) and nothing.curve == ()


@given(st.integers(0, 2**31), st.sampled_from(["exclude", "one", "zero"]))
def test_at_full_coverage_the_risk_is_that_of_all_points_and_parts_add_up(seed: int, absent: str) -> None:
    rng = np.random.default_rng(seed)
    truth, label = rng.integers(0, 4, (2, 300))
    sure = rng.integers(0, 256, 300).astype(np.uint8)
    whole, parts = Reliability(3), Reliability(3)
    whole.add(truth, label, sure)
    for some in np.array_split(rng.permutation(300), 4):
        parts.add(truth[some], label[some], sure[some])
    found = trust(whole, absent)  # type: ignore[arg-type]
    assert found == trust(parts, absent)  # type: ignore[arg-type]
    counts = Confusion(3)
    counts.add(truth, label)
    assert found.curve[-1] == (1.0, pytest.approx(1 - scores(counts, absent).mean_iou))  # type: ignore[arg-type]
    assert len(found.curve) <= 20 and 0 <= found.augrc <= 1 and 0 <= found.calibration_error <= 1
