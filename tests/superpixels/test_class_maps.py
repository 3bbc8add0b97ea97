"""The likeliest classes of every cell, there and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpixels.class_maps import likeliest, restored


def test_the_likeliest_come_first_in_steps_of_a_255th() -> None:
    probability = np.array([[[0.2, 0.0]], [[0.5, 1.0]], [[0.3, 0.0]]])  # three classes, a grid of one row, two cells
    classes, kept = likeliest(probability, top=2)
    assert classes.dtype == kept.dtype == np.uint8
    assert classes.tolist() == [[[1, 1]], [[2, 0]]] and kept.tolist() == [[[128, 255]], [[76, 0]]]
    found = restored(classes, kept, 3)
    np.testing.assert_allclose(found[:, 0], np.array([[0, 0], [128 / 255, 1], [76 / 255, 0]]), atol=1e-7)


def test_of_equal_ones_the_first_comes_first_and_more_than_there_are_is_all() -> None:
    classes, kept = likeliest(np.full((3, 1, 1), 1 / 3), top=9)
    assert classes.ravel().tolist() == [0, 1, 2] and set(kept.ravel()) == {85}


def test_many_classes_take_two_bytes() -> None:
    classes, _ = likeliest(np.eye(300)[:, :, None], top=1)
    assert classes.dtype == np.uint16 and classes[0, 299, 0] == 299


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_what_is_kept_comes_back_and_the_rest_is_0(seed: int, n: int, top: int, exact: bool) -> None:
    rng = np.random.default_rng(seed)
    probability = rng.dirichlet(np.full(n, 0.3), (3, 4)).transpose(2, 0, 1).astype(np.float32)
    found = restored(*likeliest(probability, top, exact), n)
    rank = (-probability).argsort(axis=0, kind="stable").argsort(axis=0, kind="stable")
    expected = np.where(rank < top, probability, 0)
    np.testing.assert_allclose(found, expected, atol=0 if exact else 0.5 / 255 + 1e-6)
    assert (found.argmax(axis=0) == likeliest(probability, top, exact)[0][0]).mean() > (0.999 if exact else 0.5)


def test_arrays_that_do_not_fit_are_refused() -> None:
    classes, kept = likeliest(np.eye(3)[:, :, None], top=1)
    with pytest.raises(ValueError, match="are not the likeliest of 2 classes"):
        restored(classes, kept, 2)
    with pytest.raises(ValueError, match="on one grid"):
        restored(classes, kept[:, :2], 3)
    with pytest.raises(ValueError, match="top 1 or more"):
        likeliest(np.zeros((3, 3)), 1)
