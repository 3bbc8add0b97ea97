"""Pooling and argmax on the coarse grid equal the dense computation they replace."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch.nn.functional import interpolate

from superpixels.pooling import at_pixels, bilinear_matrix, mean_score, pool_grid, segment_weights, strip_argmax
from superpixels.segments import Segments, compact


def dense(grid: npt.NDArray[Any], height: int, width: int) -> npt.NDArray[Any]:
    upsampled = interpolate(torch.from_numpy(grid)[None], (height, width), mode="bilinear", align_corners=False)
    return upsampled[0].numpy()


def smooth_scores(prompts: int, height: int, width: int) -> npt.NDArray[Any]:
    noise = np.random.default_rng(0).normal(size=(prompts, height, width))
    return np.asarray(gaussian_filter(noise, (0, 1.5, 1.5)), np.float32)


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_matrix_of_upsampling_is_what_torch_does_to_the_identity(size: int, grid: int) -> None:
    expected = interpolate(torch.eye(grid, dtype=torch.float64)[None], size, mode="linear", align_corners=False)[0].T
    np.testing.assert_allclose(bilinear_matrix(size, grid), expected, atol=1e-12)


@given(st.integers(1, 13), st.integers(1, 17), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_weights_of_segments_equal_both_matrices_around_each_mask(
    height: int, width: int, grid_h: int, grid_w: int, seed: int
) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, (height, width))
    a_h, a_w = bilinear_matrix(height, grid_h), bilinear_matrix(width, grid_w)
    expected = np.stack([(a_h.T @ (labels == k) @ a_w).ravel() for k in (1, 2, 3)])
    weights = segment_weights(labels, 3, grid_h, grid_w).toarray()
    np.testing.assert_allclose(weights, expected, atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), [(labels == k).sum() for k in (1, 2, 3)], atol=1e-12)


@pytest.mark.parametrize("shape", [(90, 160), (45, 83)])
def test_pooled_vectors_equal_pooling_the_dense_map(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(32, 7, 11)).astype(np.float32)
    labels, prompt = compact(strip_argmax(smooth_scores(9, 7, 11), *shape)[0], split="component", min_area_px=3)
    n = len(prompt)
    upsampled = dense(features.astype(np.float64), *shape)
    total = np.stack([upsampled[:, labels == k].sum(axis=1) for k in range(1, n + 1)])
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    pooled = pool_grid(features, labels, n)
    assert n > 9
    assert pooled.dtype == np.float32
    np.testing.assert_allclose(pooled, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(pooled, axis=1), 1, atol=1e-5)
    assert (pooled * expected).sum(axis=1).min() > 0.99999


def test_a_segment_inside_one_flat_region_gets_that_direction() -> None:
    features = np.zeros((2, 2, 4))
    features[0, :, :2] = 3.0  # left half points along x, right half along y
    features[1, :, 2:] = 5.0
    labels = np.zeros((8, 16), np.uint16)
    labels[:, :4], labels[:, 13:] = 1, 2
    np.testing.assert_allclose(pool_grid(features, labels, 3), [[1, 0], [0, 1], [0, 0]], atol=1e-7)


def test_an_image_without_segments_gives_no_vectors() -> None:
    assert pool_grid(np.ones((8, 2, 2)), np.zeros((4, 4), np.uint16), 0).shape == (0, 8)


def test_pooling_into_segments_makes_a_valid_record() -> None:
    best, score = strip_argmax(smooth_scores(5, 6, 8), 48, 64)
    labels, prompt = compact(best)
    features = np.random.default_rng(2).normal(size=(16, 6, 8))
    pooled = pool_grid(features, labels, len(prompt))
    segments = Segments.from_label_map(labels, prompt, mean_score(score, labels, len(prompt)), pooled)
    np.testing.assert_array_equal(prompt[segments.label_map().astype(int) - 1], best)


def test_labels_beyond_n_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"holds ids 0..3; expected 0..2"):
        pool_grid(np.ones((1, 2, 2)), np.array([[0, 3]]), 2)
    with pytest.raises(ValueError, match=r"expected \(d, h, w\)"):
        pool_grid(np.ones((2, 2)), np.array([[0, 1]]), 1)


def test_mean_scores_are_over_the_pixels_of_each_segment() -> None:
    labels = np.array([[1, 1, 0], [3, 1, 3]])
    score = np.array([[1.0, 2, 100], [5, 6, 7]])
    assert mean_score(score, labels, 3).tolist() == [3, 0, 6]
    with pytest.raises(ValueError, match="differ in shape"):
        mean_score(score[:1], labels, 3)


def test_the_argmax_equals_that_of_the_dense_scores() -> None:
    cosine = smooth_scores(40, 14, 25).astype(np.float64)
    best, score = strip_argmax(cosine, 112, 200)
    upsampled = dense(cosine, 112, 200)
    assert best.dtype == np.uint16
    np.testing.assert_array_equal(best, upsampled.argmax(axis=0))
    np.testing.assert_allclose(score, upsampled.max(axis=0), rtol=1e-6)


def test_in_single_precision_the_argmax_differs_at_most_where_scores_are_equal_to_rounding() -> None:
    cosine = smooth_scores(40, 14, 25)
    best, score = strip_argmax(cosine, 113, 199)
    upsampled = dense(cosine, 113, 199)
    np.testing.assert_allclose(score, upsampled.max(axis=0), atol=1e-6)
    of_best = np.take_along_axis(upsampled, best[None].astype(int), axis=0)[0]
    np.testing.assert_allclose(of_best, upsampled.max(axis=0), atol=1e-6)
    assert (best == upsampled.argmax(axis=0)).mean() > 0.999


def test_the_number_of_rows_at_a_time_changes_nothing() -> None:
    cosine = smooth_scores(6, 5, 7)
    best, score = strip_argmax(cosine, 31, 40, rows_per_strip=1)
    for rows in (3, 31, 100):
        other_best, other_score = strip_argmax(cosine, 31, 40, rows_per_strip=rows)
        np.testing.assert_array_equal(best, other_best)
        np.testing.assert_array_equal(score, other_score)


def test_of_prompts_with_equal_scores_the_first_wins_everywhere() -> None:
    cosine = smooth_scores(3, 9, 9)
    best, _ = strip_argmax(cosine[[0, 1, 2, 1, 0]], 70, 71)
    assert set(np.unique(best)) == {0, 1, 2}


def test_scores_must_be_prompts_by_rows_by_columns() -> None:
    with pytest.raises(ValueError, match=r"expected \(prompts, h, w\)"):
        strip_argmax(np.ones((2, 2)), 4, 4)
    with pytest.raises(ValueError, match="rows_per_strip is 0"):
        strip_argmax(np.ones((1, 2, 2)), 4, 4, rows_per_strip=0)


def test_a_value_that_is_no_number_is_not_hidden() -> None:
    pooled = pool_grid(np.full((1, 2, 2), np.nan), np.array([[1, 1], [1, 1]]), 1)
    assert np.isnan(pooled).all()


def test_scores_at_single_pixels_are_those_of_the_dense_map() -> None:
    scores = smooth_scores(5, 4, 7)
    row, col = np.mgrid[:9, :20].reshape(2, -1)
    found = at_pixels(scores, row, col, 9, 20)
    best, highest = strip_argmax(scores, 9, 20)
    assert found.shape == (180, 5) and found.dtype == np.float32
    np.testing.assert_array_equal(found.argmax(axis=1), best.ravel())
    np.testing.assert_allclose(found.max(axis=1), highest.ravel(), atol=1e-6)
