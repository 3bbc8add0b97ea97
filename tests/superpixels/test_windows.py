"""Windows side by side: one matrix per axis stands for upsampling each, averaging where they overlap, and resizing."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpixels.pooling import bilinear_matrix, segment_weights, strip_argmax
from superpixels.windows import Windows, mixed_argmax, mixed_weights, window_matrix


@pytest.mark.parametrize(
    ("axis", "starts"),
    [
        (Windows(8, 4, 2), [0, 2, 4]),
        (Windows(9, 4, 2), [0, 2, 4, 5]),
        (Windows(4, 4, 2), [0]),
        (Windows(3, 4, 2), [0]),
        (Windows(7, 3, 3), [0, 3, 4]),
    ],
)
def test_windows_cover_everything(axis: Windows, starts: list[int]) -> None:
    assert axis.starts == starts
    assert {pixel for start, end in axis.spans for pixel in range(start, end)} == set(range(axis.length))
    assert axis.seen == sum(end - start for start, end in axis.spans)


def test_a_pixel_averages_what_the_windows_that_see_it_say() -> None:
    # two windows of 2 cells and 4 pixels; both see the pixels 2 and 3
    matrix = window_matrix(6, [(0, 4), (2, 6)], 4)
    cells = np.array([1.0, 1.0, 3.0, 3.0])  # one window says 1 everywhere, the other 3
    assert (matrix @ cells).tolist() == [1, 1, 2, 2, 3, 3]
    np.testing.assert_allclose(matrix.sum(axis=1), 1)


def test_one_window_is_plain_upsampling() -> None:
    np.testing.assert_allclose(window_matrix(45, [(0, 45)], 7), bilinear_matrix(45, 7))
    seen_small = bilinear_matrix(90, 45) @ bilinear_matrix(45, 7)  # resized twice, as who averages at the tower's size
    np.testing.assert_allclose(window_matrix(90, [(0, 45)], 7), seen_small)


def test_windows_that_leave_a_gap_or_share_cells_unevenly_are_refused() -> None:
    with pytest.raises(ValueError, match="leave a gap: no window sees pixel 4"):
        window_matrix(8, [(0, 4), (5, 9)], 4)
    with pytest.raises(ValueError, match="5 cells do not belong to 2 windows alike"):
        window_matrix(8, [(0, 4), (4, 8)], 5)


def smooth(height: int, width: int, seed: int) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).normal(size=(5, height, width)).astype(np.float32)


def test_the_best_prompt_is_that_of_the_mixed_scores() -> None:
    down = window_matrix(31, [(0, 16), (8, 24)], 4)
    across = window_matrix(53, [(0, 16), (16, 32), (24, 40)], 6)
    scores = smooth(4, 6, seed=0)
    expected = np.einsum("Hh,thw,Ww->tHW", down, scores.astype(np.float64), across)
    second, first = np.sort(expected, axis=0)[-2:]
    found = mixed_argmax(scores, down, across)
    assert found.dtype == np.uint16
    assert (found == expected.argmax(axis=0))[first - second > 1e-5].all()


def test_on_one_grid_it_is_what_pooling_gives() -> None:
    scores = smooth(6, 8, seed=1)
    down, across = bilinear_matrix(48, 6), bilinear_matrix(64, 8)
    assert (mixed_argmax(scores, down, across) == strip_argmax(scores, 48, 64)[0]).mean() > 0.999
    label_map = strip_argmax(scores, 48, 64)[0].astype(np.int64)  # label 0 is no segment
    one, other = mixed_weights(label_map, 4, down, across), segment_weights(label_map, 4, 6, 8)
    np.testing.assert_allclose(one.toarray(), other.toarray(), atol=1e-9)


@given(st.integers(1, 5), st.integers(1, 30), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_a_segments_weights_are_sums_over_its_pixels(n: int, height: int, width: int, seed: int) -> None:
    label_map = np.random.default_rng(seed).integers(0, n + 1, (height, width))
    down = window_matrix(height, [(0, 8), (4, 12)], 4)
    across = window_matrix(width, [(0, 8), (8, 16), (12, 20)], 6)
    found = mixed_weights(label_map, n, down, across).toarray()
    for k in range(1, n + 1):
        expected = down.T @ (label_map == k) @ across
        np.testing.assert_allclose(found[k - 1], expected.ravel(), atol=1e-9)
        assert found[k - 1].sum() == pytest.approx((label_map == k).sum())
