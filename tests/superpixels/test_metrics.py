"""Confusion matrix and scores."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpixels.metrics import AbsentRule, Confusion, scores

GOLDEN = Path(__file__).parent.parent / "golden"


def _confusion(matrix: list[list[int]]) -> Confusion:
    confusion = Confusion(len(matrix) - 1)
    confusion.matrix += np.array(matrix)
    return confusion


def test_the_example_matrix_has_its_known_scores() -> None:
    result = scores(_confusion([[0, 0, 0], [1, 8, 1], [0, 2, 4]]))
    np.testing.assert_allclose(result.iou, [8 / 12, 4 / 7])
    assert result.mean_iou == pytest.approx(0.619, abs=5e-4)
    assert result.micro_iou == pytest.approx(0.600, abs=5e-4)
    assert result.frequency_weighted_iou == pytest.approx(0.631, abs=5e-4)
    assert result.n_points == 16


def test_rows_are_labels_and_columns_predictions() -> None:
    confusion = Confusion(2)
    confusion.add(np.array([1, 1, 2, 0]), np.array([1, 2, 0, 2]))
    assert confusion.matrix.tolist() == [[0, 0, 1], [0, 1, 1], [1, 0, 0]]


def test_predicting_nothing_misses_the_class_and_unlabelled_points_count_nowhere() -> None:
    confusion = Confusion(1)
    confusion.add(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 1]))
    result = scores(confusion)
    assert result.iou.tolist() == [0.5] and result.n_points == 2


@pytest.mark.parametrize(("absent", "mean"), [("exclude", 0.75), ("one", 2.5 / 3), ("zero", 0.5)])
def test_a_class_that_never_occurs_counts_as_asked(absent: AbsentRule, mean: float) -> None:
    result = scores(_confusion([[0, 0, 0, 0], [2, 2, 0, 0], [0, 0, 6, 0], [0, 0, 0, 0]]), absent)
    assert result.mean_iou == pytest.approx(mean)
    assert result.frequency_weighted_iou == pytest.approx(0.8)
    assert np.isnan(result.iou[2]) == (absent == "exclude")


def test_a_class_that_is_predicted_but_never_labelled_scores_zero() -> None:
    assert scores(_confusion([[0, 0, 0], [0, 3, 1], [0, 0, 0]])).iou.tolist() == [0.75, 0.0]


def test_scores_of_no_points_are_nan() -> None:
    result = scores(Confusion(3))
    assert np.isnan([result.mean_iou, result.micro_iou, result.frequency_weighted_iou]).all() and result.n_points == 0


def test_counts_beyond_float32_stay_exact() -> None:
    confusion = _confusion([[0, 0], [0, 2**24]])
    confusion.add(np.array([1]), np.array([1]))
    assert confusion.matrix[1, 1] == 2**24 + 1 and confusion.matrix.dtype == np.int64


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60), st.integers(0, 60))
def test_shards_add_up_to_the_whole(pairs: list[tuple[int, int]], cut: int) -> None:
    values = np.array(pairs, np.uint8).reshape(-1, 2)
    whole, first, second = Confusion(4), Confusion(4), Confusion(4)
    whole.add(values[:, 0], values[:, 1])
    first.add(values[:cut, 0], values[:cut, 1])
    second.add(values[cut:, 0], values[cut:, 1])
    second.merge(first)
    np.testing.assert_array_equal(whole.matrix, second.matrix)
    assert whole.matrix.sum() == len(pairs)


def test_what_does_not_fit_is_refused() -> None:
    confusion = Confusion(2)
    with pytest.raises(ValueError, match=r"labels run from 0 to 3; expected 0..2"):
        confusion.add(np.array([0, 3]), np.array([0, 0]))
    with pytest.raises(ValueError, match="predictions run from -1 to 0"):
        confusion.add(np.array([0, 0]), np.array([0, -1]))
    with pytest.raises(ValueError, match="do not fit"):
        confusion.add(np.array([0]), np.array([0, 1]))
    with pytest.raises(ValueError, match="3 classes cannot be added to counts of 2"):
        confusion.merge(Confusion(3))
    with pytest.raises(ValueError, match="at least one class"):
        Confusion(0)
    with pytest.raises(ValueError, match="absent is 'nan'"):
        scores(confusion, "nan")  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["a", "b"])
def test_scores_equal_the_reference_implementation(case: str) -> None:
    golden = np.load(GOLDEN / "metrics_iou.npz")
    labels, predictions = golden[f"{case}_labels"], golden[f"{case}_preds"]
    confusion = Confusion(16)
    confusion.add(labels, predictions)
    np.testing.assert_array_equal(confusion.matrix[1:], golden[f"{case}_hist"][1:])
    result = scores(confusion, absent="one")
    np.testing.assert_allclose(result.iou, golden[f"{case}_iou"], rtol=1e-6)
    assert result.mean_iou == pytest.approx(float(golden[f"{case}_miou"]), rel=1e-6)
    assert result.micro_iou == pytest.approx(float(golden[f"{case}_fwiou"]), rel=1e-6)

    # Nothing ignored: move every class up by one, so that none is called 0.
    shifted = Confusion(17)
    shifted.add(labels + 1, predictions + 1)
    result = scores(shifted, absent="one")
    np.testing.assert_allclose(result.iou, golden[f"{case}_iou_noignore"], rtol=1e-6)
    assert result.mean_iou == pytest.approx(float(golden[f"{case}_miou_noignore"]), rel=1e-6)
    assert result.micro_iou == pytest.approx(float(golden[f"{case}_fwiou_noignore"]), rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scores_equal_the_nuscenes_evaluator_where_nothing_is_left_unpredicted() -> None:
    from nuscenes.eval.lidarseg.utils import ConfusionMatrix

    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 16, 5000), rng.integers(1, 16, 5000)  # class 16 never occurs
    predictions = np.where(rng.random(5000) < 0.5, np.maximum(labels, 1), predictions)
    theirs = ConfusionMatrix(17, ignore_idx=0)
    theirs.update(labels, predictions)
    ours = Confusion(16)
    ours.add(labels, predictions)
    result = scores(ours)
    np.testing.assert_allclose(result.iou, theirs.get_per_class_iou()[1:])
    assert result.mean_iou == pytest.approx(theirs.get_mean_iou())
    assert result.frequency_weighted_iou == pytest.approx(theirs.get_freqweighted_iou())
