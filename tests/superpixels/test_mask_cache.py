from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpixels.mask_cache import coded, decoded, restored


def log_sigmoid(logit: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return -np.logaddexp(0, -logit)


@given(st.integers(0, 1000), st.floats(0.1, 30))
def test_a_logit_in_a_byte_is_off_by_half_a_step(seed: int, scale: float) -> None:
    logit = np.random.default_rng(seed).normal(-scale, scale, (5, 3, 4)).astype(np.float32)
    peak = logit.max(axis=0).astype(np.float16)
    distance = np.abs(peak.astype(np.float32) - logit)
    error = np.abs(decoded(coded(logit, peak), peak) - logit)
    half_a_step = np.sqrt(4**2 + distance**2) / 73 / 2
    rounded = np.abs(peak.astype(np.float32) - logit.max(axis=0))  # the peak itself is a float16
    assert (error <= 1.02 * half_a_step + rounded + 1e-5)[distance < 65].all()


def test_logits_far_below_zero_are_still_told_apart() -> None:
    logit = np.array([[[-60.0]], [[-40.0]], [[-13.0]]], np.float32)
    peak = np.array([[-13.0]], np.float16)
    np.testing.assert_allclose(decoded(coded(logit, peak), peak).ravel(), [-60, -40, -13], rtol=0.02)


def test_what_is_further_below_the_peak_than_a_byte_reaches_stays_below_all_else() -> None:
    logit = np.array([[[-np.inf]], [[-500.0]], [[5.0]]], np.float32)
    peak = np.array([[5.0]], np.float16)
    assert decoded(coded(logit, peak), peak).ravel() == pytest.approx([-60.7, -60.7, 5], abs=0.2)


def test_masks_are_exact_where_they_could_win_and_coarse_below_the_bound_elsewhere() -> None:
    near = np.zeros((2, 2, 4), np.bool_)
    near[0, 0, :2] = True
    near[1, 1] = True
    logit = np.array([7, 8, 1, 2, 3, 4], np.float32)  # of query 0, then of query 1
    coarse = np.full((2, 1, 2), -6, np.float32)
    coarse[1, 0] = 9  # where query 1 is not near, its coarse mask is not to be believed
    bound = np.full((2, 4), np.log(0.25), np.float32)
    found = restored(near, logit, coarse, bound, np.array([0, 1]))
    np.testing.assert_allclose(found[0], [[7, 8, -6, -6], [-6, -6, -6, -6]])
    np.testing.assert_allclose(found[1], [[np.log(1 / 3)] * 4, [1, 2, 3, 4]], rtol=1e-5)
    np.testing.assert_array_equal(restored(near, logit, coarse, bound, np.array([1])), found[1:])


def test_parts_that_do_not_fit_together_are_refused() -> None:
    near = np.ones((2, 2, 4), np.bool_)
    bound = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"15 mask logits, .* do not fit 16 cells"):
        restored(near, np.ones(15, np.float32), np.ones((2, 1, 1), np.float32), bound, np.arange(2))


@given(st.integers(0, 2000))
def test_no_dictionary_makes_a_query_win_where_it_could_not(seed: int) -> None:
    """At the cells themselves the owner is the same as with all masks, whatever scores the dictionary gives."""
    rng = np.random.default_rng(seed)
    prompts, queries = 20, 8
    logit = rng.normal(0, 6, (queries, 5, 6)).astype(np.float32)
    prior = -rng.exponential(2, queries)  # what the names of its training say, which may be wrong altogether
    bound = (log_sigmoid(logit) + prior[:, None, None]).max(axis=0) - np.log(1 + prompts)
    near = log_sigmoid(logit) >= bound
    coarse = rng.normal(0, 6, (queries, 1, 1)).astype(np.float32)
    found = restored(near, logit[near], coarse, bound, np.arange(queries))
    score = rng.uniform(1 / (1 + prompts), 1, queries)[:, None, None]
    np.testing.assert_array_equal(
        (np.log(score) + log_sigmoid(found)).argmax(axis=0), (np.log(score) + log_sigmoid(logit)).argmax(axis=0)
    )
