"""The likeliest classes of every cell of a network's grid, in two bytes each, and back.

A network that tells some twenty classes apart is sure of one to three in nearly every cell. So a cell keeps its few
largest probabilities, in steps of 1/255, with their classes; what the others have between them is lost.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def likeliest(
    probability: npt.NDArray[np.floating[Any]], top: int, exact: bool = False
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the `top` likeliest classes of each cell and their probabilities, both (top, h, w), the likeliest first.

    `probability` (c, h, w) lies in 0..1. Classes are uint8, or uint16 where there are more than 256; probabilities are
    rounded to uint8, 255 being 1, or stay float32 where `exact`. Of equal ones the first class comes first, and beyond
    the first place what rounds to 0 is class 0.
    """
    if probability.ndim != 3 or top < 1:
        raise ValueError(f"probabilities have shape {probability.shape}; expected (classes, h, w), top 1 or more")
    n, height, width = probability.shape
    top = min(top, n)
    flat = probability.reshape(n, -1).astype(np.float32)  # a copy
    classes = np.empty((top, flat.shape[1]), np.uint8 if n <= 256 else np.uint16)
    kept = np.empty((top, flat.shape[1]), np.float32 if exact else np.uint8)
    cell = np.arange(flat.shape[1])
    for rank in range(top):
        best = flat.argmax(axis=0)
        value = np.clip(flat[best, cell], 0, 1)
        kept[rank] = value if exact else np.rint(255 * value)
        classes[rank] = best if rank == 0 else np.where(kept[rank] > 0, best, 0)
        flat[best, cell] = -1
    return classes.reshape(top, height, width), kept.reshape(top, height, width)


def restored(classes: npt.NDArray[np.integer[Any]], kept: npt.NDArray[Any], n: int) -> npt.NDArray[np.float32]:
    """Return the probabilities (n, h, w) of n classes, 0 for those that a cell has not kept; inverse of `likeliest`.

    Raises ValueError for arrays that do not fit together.
    """
    if classes.shape != kept.shape or classes.ndim != 3 or classes.max(initial=0) >= n:
        raise ValueError(
            f"classes {classes.shape} up to {classes.max(initial=0)} and probabilities {kept.shape} are not the "
            f"likeliest of {n} classes on one grid"
        )
    whole = np.zeros((n, classes[0].size), np.float32)
    cell = np.arange(whole.shape[1])
    for some, values in zip(classes.reshape(len(classes), -1), kept.reshape(len(kept), -1), strict=True):
        value = values.astype(np.float32) / np.float32(255) if kept.dtype == np.uint8 else values
        at = some.astype(np.int64)
        whole[at, cell] = np.maximum(whole[at, cell], value)  # a class 0 of probability 0 may come after the true one
    return whole.reshape(n, *classes.shape[1:])
