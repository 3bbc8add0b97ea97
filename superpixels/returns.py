"""Points of a sweep that are none: pulses that came back from nothing, kept as 0, 0, 0 so that rows stay aligned."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def is_return(xyz_m: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
    """Return which points (n, 3) of a sweep are returns, (n,): all but those that lie exactly at the sensor."""
    x, y, z = xyz_m.T
    found: npt.NDArray[np.bool_] = x != 0
    found |= y != 0  # column by column: `any` along rows of three takes ten times as long
    found |= z != 0
    return found
