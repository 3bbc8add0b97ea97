"""Which points of a sweep are returns."""

from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from superpixels.returns import is_return

SPECIAL = st.sampled_from([0.0, -0.0, 2.0**-60, -3.0, np.inf, np.nan])


@given(arrays(np.float32, st.tuples(st.integers(0, 6), st.just(3)), elements=SPECIAL))
def test_all_but_zeros_are_returns_whatever_else_they_hold(xyz_m: npt.NDArray[Any]) -> None:
    found = is_return(xyz_m)
    assert found.shape == (len(xyz_m),) and found.tolist() == [any(value != 0 for value in row) for row in xyz_m]
