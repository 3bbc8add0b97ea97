"""Features seen in overlapping windows: how pixels mix the cells of all windows, which lie side by side in one grid.

An image goes through a network in windows. What each gives is upsampled to its own pixels (bilinearly, see
superpixels.pooling), where windows overlap their values are averaged, and the whole is resized to the size asked for.
All three are linear, and along each axis they are one matrix (pixels, cells): windows form rows and columns. So the
cells of all windows, laid side by side, are a grid like any other, whose pixels mix more than two cells along an axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from superpixels.pooling import bilinear_matrix

_ROWS_PER_STRIP = 4  # as many rows of scores are held at once: a few MB


@dataclass(frozen=True)
class Windows:
    """Where windows of `size` pixels lie along an axis of `length`: one every `stride` pixels, and one at the end."""

    length: int
    size: int
    stride: int

    @property
    def starts(self) -> list[int]:
        """First pixel of each; the windows cover the axis."""
        last = max(self.length - self.size, 0)
        return sorted({*range(0, last, self.stride), last})

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First pixel of each window, and the one after its last; an axis shorter than a window is one."""
        return [(start, start + min(self.size, self.length)) for start in self.starts]

    @property
    def seen(self) -> int:
        """How many pixels all windows have together."""
        return len(self.starts) * min(self.size, self.length)


def window_matrix(size: int, spans_px: Sequence[tuple[int, int]], cells: int) -> npt.NDArray[np.float64]:
    """Return how `size` pixels along an axis mix the cells of windows side by side: (size, cells), rows sum to 1.

    `spans_px` are first pixel and end of each window in the image as the network saw it, which ends with the last one;
    each window has an equal share of the cells. Raises ValueError if windows leave a gap.
    """
    seen = max(end for _, end in spans_px)
    if cells % len(spans_px):
        raise ValueError(f"{cells} cells do not belong to {len(spans_px)} windows alike")
    per_window = cells // len(spans_px)
    total, count = np.zeros((seen, cells)), np.zeros((seen, 1))
    for number, (start, end) in enumerate(spans_px):
        columns = slice(number * per_window, (number + 1) * per_window)
        total[start:end, columns] = bilinear_matrix(end - start, per_window)
        count[start:end] += 1
    if not count.all():
        raise ValueError(f"windows {list(spans_px)} leave a gap: no window sees pixel {int(np.argmin(count))}")
    return bilinear_matrix(size, seen) @ (total / count)


def mixed_argmax(
    scores: npt.NDArray[np.floating[Any]], down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]
) -> npt.NDArray[np.uint16]:
    """Return the best prompt of each pixel, (H, W), of scores (T, h, w); down (H, h) and across (W, w) mix them.

    Scores of all pixels are made for a few rows at a time only. Of equal scores the first prompt wins. Raises
    ValueError for more than 65535 prompts.
    """
    if scores.ndim != 3 or not 1 <= len(scores) <= 65535:
        raise ValueError(f"scores have shape {scores.shape}; expected (T, h, w) with 1 to 65535 prompts")
    by_row = scipy.sparse.csr_array(across.astype(np.float32))
    # (h, W, T): along the axis that is mixed first, each pixel has few cells; prompts last, for an argmax in one go
    wide = np.stack([by_row @ row for row in scores.astype(np.float32).transpose(1, 2, 0)])
    best = np.empty((len(down), len(across)), np.uint16)
    for top in range(0, len(down), _ROWS_PER_STRIP):
        rows = down[top : top + _ROWS_PER_STRIP].astype(np.float32)
        used = np.flatnonzero(rows.any(axis=0))
        best[top : top + _ROWS_PER_STRIP] = np.tensordot(rows[:, used], wide[used], axes=1).argmax(axis=2)
    return best


def mixed_weights(
    label_map: npt.NDArray[np.integer[Any]], n: int, down: npt.NDArray[np.float64], across: npt.NDArray[np.float64]
) -> scipy.sparse.csr_array:
    """Return how much of each cell the pixels of each segment hold: sparse float64 (n, h * w).

    Row k - 1 is down^T 1_k across for segment k of the label map (H, W), as superpixels.pooling.segment_weights has it
    for one grid; label 0 is no segment, and a row sums to the segment's area.
    """
    if not 0 <= label_map.min() <= label_map.max() <= n:
        raise ValueError(f"the label map holds ids {label_map.min()}..{label_map.max()}; expected 0..{n}")
    height, width = label_map.shape
    grid_h, grid_w = down.shape[1], across.shape[1]
    # Sum over the pixels of each segment in each pixel row first: (segments times rows, w), few of which are not empty.
    row, column = np.nonzero(label_map)
    segment = label_map[row, column].astype(np.int64) - 1
    ones = np.ones(len(row))
    along = scipy.sparse.csr_array(
        (ones, (segment * height + row, column)), shape=(n * height, width)
    ) @ scipy.sparse.csr_array(across)
    # Then over pixel rows: each mixes few rows of cells, and each of these sums lands in its segment's row of cells.
    found = along.tocoo()
    of_segment, of_row = np.divmod(found.row, height)
    tap_row, tap_cell = np.nonzero(down)
    first = np.searchsorted(tap_row, np.arange(height + 1))
    taps = (first[1:] - first[:-1])[of_row]
    entry = np.repeat(np.arange(len(of_row)), taps)
    tap = np.arange(len(entry)) - np.repeat(np.cumsum(taps) - taps - first[of_row], taps)
    value = found.data[entry] * down[tap_row[tap], tap_cell[tap]]
    cell = tap_cell[tap] * grid_w + found.col[entry]
    return scipy.sparse.csr_array((value, (of_segment[entry], cell)), shape=(n, grid_h * grid_w))
