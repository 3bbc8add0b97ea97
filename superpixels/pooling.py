"""Pooling over segments and argmax over prompts of features that live on a coarse grid, never upsampled as a whole.

Upsampling is bilinear with half-pixel centres: output i samples the grid at (i + 0.5) * grid / size - 0.5, clamped to
the first and last cell, as torch's ``interpolate(mode="bilinear", align_corners=False)`` does. It is linear and
separable, U = A_h (x) A_w, and a sum over pixels is linear too; so the two can be swapped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy


def bilinear_taps(size: int, grid: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """For each of ``size`` outputs the two grid cells it mixes and the weight of the second; each (size,)."""
    if size < 1 or grid < 1:
        raise ValueError(f"cannot sample {size} outputs from {grid} cells; both must be at least 1")
    position = np.clip((np.arange(size) + 0.5) * (grid / size) - 0.5, 0, grid - 1)
    first = np.floor(position).astype(np.int64)
    second = np.minimum(first + 1, grid - 1).astype(np.int64)
    return first, second, (position - first).astype(np.float64)


def bilinear_matrix(size: int, grid: int) -> npt.NDArray[np.float64]:
    """Return the (size, grid) matrix of one-dimensional bilinear upsampling; rows sum to 1."""
    first, second, weight = bilinear_taps(size, grid)
    matrix = np.zeros((size, grid), dtype=np.float64)
    output = np.arange(size)
    matrix[output, first] = 1 - weight
    matrix[output, second] += weight  # at the border both taps are one cell
    return matrix


def segment_weights(
    label_map: npt.NDArray[np.integer[Any]], n: int, grid_h: int, grid_w: int
) -> scipy.sparse.csr_array:
    """How much of each grid cell the upsampled pixels of each segment hold: sparse float64 (n, grid_h * grid_w).

    Row k - 1 is A_h^T 1_k A_w for segment k of the label map (H, W); label 0 is no segment. A row sums to the
    segment's area. Works on runs of equal label, whose horizontal weights are differences of one cumulative sum.
    """
    if label_map.ndim != 2 or not label_map.size:
        raise ValueError(f"the label map has shape {label_map.shape}; expected (height, width), not empty")
    if not 0 <= label_map.min() <= label_map.max() <= n:
        raise ValueError(f"the label map holds ids {label_map.min()}..{label_map.max()}; expected 0..{n}")
    height, width = label_map.shape
    # Runs end with their row. Of each: label, row, first column, column after the last.
    starts = np.ones(label_map.shape, dtype=np.bool_)
    np.not_equal(label_map[:, 1:], label_map[:, :-1], out=starts[:, 1:])
    start = np.flatnonzero(starts)
    label = label_map.ravel()[start]
    row, column = np.divmod(start, width)
    end = column + np.diff(start, append=label_map.size)
    row, column, end, label = (run[label > 0] for run in (row, column, end, label))
    # A run touches a range of cells; list every (run, cell).
    left, right, _ = bilinear_taps(width, grid_w)
    cells = right[end - 1] - left[column] + 1
    run = np.repeat(np.arange(len(label)), cells)
    cell = np.arange(len(run)) - np.repeat(np.cumsum(cells) - cells - left[column], cells)
    until = np.concatenate((np.zeros((1, grid_w)), np.cumsum(bilinear_matrix(width, grid_w), axis=0)))
    along = until[end[run], cell] - until[column[run], cell]
    # And each of these lands in the two grid rows that its pixel row mixes.
    above, below, weight = bilinear_taps(height, grid_h)
    segment, row = label[run].astype(np.int64) - 1, row[run]
    grid_cell = np.concatenate((above[row], below[row])) * grid_w + np.tile(cell, 2)
    value = np.concatenate((along * (1 - weight[row]), along * weight[row]))
    return scipy.sparse.csr_array((value, (np.tile(segment, 2), grid_cell)), shape=(n, grid_h * grid_w))


def pool_grid(
    features: npt.NDArray[np.floating[Any]], label_map: npt.NDArray[np.integer[Any]], n: int
) -> npt.NDArray[np.float32]:
    """Return the unit vector of each segment, (n, d): normalised sum over its pixels of bilinearly upsampled features.

    ``features`` (d, h, w) are on any grid, ``label_map`` (H, W) holds 0..n with 0 for no segment. The caller chooses
    whether features have length 1 per cell before. Up to rounding this equals pooling the dense map (d, H, W). A
    segment without pixels, or whose features cancel out, has a row of zeros.
    """
    if features.ndim != 3:
        raise ValueError(f"features have shape {features.shape}; expected (d, h, w)")
    depth, grid_h, grid_w = features.shape
    per_cell = np.ascontiguousarray(features.reshape(depth, -1).T, dtype=np.float32)
    total = segment_weights(label_map, n, grid_h, grid_w).astype(np.float32) @ per_cell
    length = np.linalg.norm(total, axis=1, keepdims=True)
    return np.asarray(np.divide(total, length, out=np.zeros_like(total), where=length != 0))


def mean_score(
    score_map: npt.NDArray[np.floating[Any]], label_map: npt.NDArray[np.integer[Any]], n: int
) -> npt.NDArray[np.float32]:
    """Return the mean of a score map (H, W) over the pixels of each segment, (n,); 0 for a segment without pixels."""
    if score_map.shape != label_map.shape:
        raise ValueError(f"score map {score_map.shape} and label map {label_map.shape} differ in shape")
    total = np.bincount(label_map.ravel(), weights=score_map.ravel(), minlength=n + 1)
    area = np.bincount(label_map.ravel(), minlength=n + 1)
    return np.asarray((total / np.maximum(area, 1))[1:], dtype=np.float32)


def strip_argmax(
    cosine: npt.NDArray[np.floating[Any]], height_px: int, width_px: int, rows_per_strip: int = 4
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float32]]:
    """Return the best prompt of each pixel, (H, W), and its score, (H, W), of scores (T, h, w) upsampled bilinearly.

    Exactly the argmax of the upsampled scores (T, H, W), which are made for ``rows_per_strip`` rows at a time only.
    Of equal scores the first prompt wins; prompts with equal scores on the grid stay equal, as every prompt is mixed
    by the same operations. The result does not depend on ``rows_per_strip``. Raises ValueError for more than 65535
    prompts.
    """
    if cosine.ndim != 3 or not 1 <= len(cosine) <= 65535:
        raise ValueError(f"scores have shape {cosine.shape}; expected (prompts, h, w) with 1 to 65535 prompts")
    if rows_per_strip < 1:
        raise ValueError(f"rows_per_strip is {rows_per_strip}; expected at least 1")
    _, grid_h, grid_w = cosine.shape
    dtype: Any = np.float64 if cosine.dtype == np.float64 else np.float32
    by_cell = np.ascontiguousarray(cosine.transpose(1, 2, 0), dtype=dtype)  # prompts last: the argmax runs along memory
    left, right, across = bilinear_taps(width_px, grid_w)
    above, below, down = bilinear_taps(height_px, grid_h)
    weight_right, weight_below = across.astype(dtype)[:, None], down.astype(dtype)[:, None, None]
    wide = by_cell[:, left] * (1 - weight_right) + by_cell[:, right] * weight_right  # (h, W, T)
    best = np.empty((height_px, width_px), dtype=np.uint16)
    score = np.empty((height_px, width_px), dtype=np.float32)
    for top in range(0, height_px, rows_per_strip):
        rows = slice(top, top + rows_per_strip)
        strip = wide[above[rows]] * (1 - weight_below[rows])
        strip += wide[below[rows]] * weight_below[rows]
        winner = strip.argmax(axis=2)
        best[rows] = winner
        score[rows] = np.take_along_axis(strip, winner[..., None], axis=2)[..., 0]
    return best, score


def at_pixels(
    scores: npt.NDArray[np.floating[Any]],
    row_px: npt.NDArray[np.integer[Any]],
    col_px: npt.NDArray[np.integer[Any]],
    height_px: int,
    width_px: int,
) -> npt.NDArray[np.float32]:
    """Return scores (T, h, w), upsampled bilinearly to (T, H, W), at some pixels, (p, T); see `strip_argmax`."""
    _, grid_h, grid_w = scores.shape
    by_cell = scores.transpose(1, 2, 0).astype(np.float32)
    left, right, across = (taps[col_px] for taps in bilinear_taps(width_px, grid_w))
    above, below, down = (taps[row_px] for taps in bilinear_taps(height_px, grid_h))
    across, down = across.astype(np.float32)[:, None], down.astype(np.float32)[:, None]
    upper = by_cell[above, left] * (1 - across) + by_cell[above, right] * across
    lower = by_cell[below, left] * (1 - across) + by_cell[below, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


def upsampled(scores: npt.NDArray[np.floating[Any]], height_px: int, width_px: int) -> npt.NDArray[np.float32]:
    """Return scores (T, h, w) on a grid of (T, H, W), bilinearly; see `strip_argmax`, and `at_pixels` for some."""
    left, right, across = bilinear_taps(width_px, scores.shape[2])
    above, below, down = bilinear_taps(height_px, scores.shape[1])
    weight_right, weight_below = across.astype(np.float32), down.astype(np.float32)[:, None]
    values = scores.astype(np.float32)
    tall = values[:, above] * (1 - weight_below) + values[:, below] * weight_below
    return np.asarray(tall[:, :, left] * (1 - weight_right) + tall[:, :, right] * weight_right)
