"""Confidences that are made to mean what they say: a monotone map from how sure a label is to how often such are right.

Confidences are whole numbers 0..255, in 1/255, as in superpixels.reliability. Source: Oron & Flournoy, "Centered
Isotonic Regression: Point and Interval Estimation for Dose-Response Studies" (Statistics in Biopharmaceutical Research,
2017): shares are pooled until they rise (pool adjacent violators), and joined by straight lines between the centres of
the pools. Within a pool the order of labels then stays what it was, so that the surest labels stay the surest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from superpixels.reliability import LEVELS

Counts = NDArray[np.int64]
Levels = NDArray[np.uint8]


def fitted(compared: Counts, right: Counts) -> Levels:
    """Return the calibrated confidence of every confidence, (256,) in 1/255, never falling.

    ``compared`` (256,) counts labels by confidence that were compared with something, ``right`` (256,) those of them
    that are as it says. Confidence 0 stays 0 and no other one becomes it: 0 is what points without a label have. Below
    the centre of the first pool, and above that of the last, all are as sure as these. Raises ValueError where nothing
    was compared, or counts do not fit.
    """
    if compared.shape != (LEVELS,) or right.shape != (LEVELS,) or (right < 0).any() or (right > compared).any():
        raise ValueError(f"counts have shapes {compared.shape} and {right.shape}; expected 0 <= right <= compared")
    level = np.flatnonzero(compared[1:]) + 1
    if not len(level):
        raise ValueError("nothing was compared")
    weight = compared[level].astype(np.float64)
    pooled = isotonic_regression(right[level] / weight, weights=weight)
    first = pooled.blocks[:-1]
    centre = np.add.reduceat(weight * level, first) / np.add.reduceat(weight, first)
    share = np.interp(np.arange(LEVELS), centre, pooled.x[first])
    found: Levels = np.rint(255 * share).clip(1, LEVELS - 1).astype(np.uint8)
    found[0] = 0
    return found
