"""How mask logits are kept between stages: coded in bytes, and of many queries only the cells that each could win.

A query wins a pixel by score * sigmoid(m), and its score depends on the class dictionary, which is not known when masks
are cached. But scores are bounded: a query that shows anything has one of at least 1 / (1 + prompts) and at most 1. So
where log sigmoid(m) of a query lies further below the best query than log(1 + prompts), it cannot win, whatever the
dictionary, as long as that best query shows anything by it. There its logits are kept on a coarse grid only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from superpixels.pooling import bilinear_matrix

COARSE_CELLS = 8
"""Side of a cell of the coarse grid, in cells of the fine one."""

# Steps near the peak are _LINEAR / _STEPS; 255 of them reach 66 below it, where a sigmoid is 1e-28 of the peak's.
_LINEAR, _STEPS = 4.0, 73.0


def coded(logit: npt.NDArray[np.floating[Any]], peak: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Return mask logits as bytes: how far each lies below the largest of its cell, in steps that grow with distance.

    A code c stands for `peak` - 4 sinh(c / 73), so steps are 0.05 near the peak and 1.4 % of the distance far below it.
    What decides between queries are differences within a cell; a fixed range of logits would make all below it equal,
    and the pixels there anybody's. `peak` is broadcast against `logit`.
    """
    distance = peak.astype(np.float32) - logit.astype(np.float32)
    codes: npt.NDArray[np.uint8] = np.clip(np.rint(_STEPS * np.arcsinh(distance / _LINEAR)), 0, 255).astype(np.uint8)
    return codes


def decoded(code: npt.NDArray[np.uint8], peak: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Return mask logits from their codes, float32; `peak` is broadcast against `code`."""
    distance = (_LINEAR * np.sinh(np.arange(256) / _STEPS)).astype(np.float32)
    logits: npt.NDArray[np.float32] = peak.astype(np.float32) - distance[code]
    return logits


def restored(
    near: npt.NDArray[np.bool_],
    logit: npt.NDArray[np.float32],
    coarse: npt.NDArray[np.float32],
    bound: npt.NDArray[np.floating[Any]],
    queries: npt.NDArray[np.intp],
) -> npt.NDArray[np.float32]:
    """Return the mask logits of some queries on the whole grid, float32 (k, h, w).

    `near` (q, h, w) says in which cells a query could win; `logit` (n,) are its logits there, query by query and row by
    row. Elsewhere a logit is that of the `coarse` grid (q, ch, cw), sampled bilinearly, but never so large that
    log sigmoid(m) passes `bound` (h, w): a query that has lost a cell is not to win it by the coarse grid's error.

    Raises ValueError for arrays that do not fit together.
    """
    per_query = near.sum(axis=(1, 2), dtype=np.int64)
    if len(logit) != per_query.sum() or len(coarse) != len(near) or bound.shape != near.shape[1:]:
        raise ValueError(
            f"{len(logit)} mask logits, coarse masks {coarse.shape} and bounds {bound.shape} do not fit "
            f"{per_query.sum()} cells that could be won on masks {near.shape}"
        )
    end = np.cumsum(per_query)
    rows = bilinear_matrix(near.shape[1], coarse.shape[1]).astype(np.float32)
    columns = bilinear_matrix(near.shape[2], coarse.shape[2]).astype(np.float32)
    # The inverse of log sigmoid, log(e^x / (1 - e^x)), is infinite at 0; a bound that close binds nothing.
    highest = np.minimum(bound.astype(np.float32), -1e-6)
    highest = highest - np.log(-np.expm1(highest))
    whole = np.empty((len(queries), *near.shape[1:]), np.float32)
    for grid, query in zip(whole, queries, strict=True):
        np.minimum(rows @ coarse[query] @ columns.T, highest, out=grid)
        grid[near[query]] = logit[end[query] - per_query[query] : end[query]]
    return whole
