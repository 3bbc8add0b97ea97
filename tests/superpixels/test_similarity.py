"""Similarity to a phrase, by hand: three directions, of which two are prompts of a dictionary."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from superpixels.similarity import TOP_POINTS, similarity, spread, top_mean

HYDRANT, ROAD, WALL = np.eye(3, dtype=np.float32)


def test_the_margin_tells_a_good_name_from_a_vector_that_is_like_everything() -> None:
    vectors = np.stack([HYDRANT, ROAD, (HYDRANT + ROAD + WALL) / np.sqrt(3), 0.6 * HYDRANT + 0.8 * ROAD])
    cosine, margin = similarity(vectors, HYDRANT, np.stack([ROAD, WALL]))
    np.testing.assert_allclose(cosine, [1, 0, 0.577, 0.6], atol=1e-3)
    np.testing.assert_allclose(margin, [1, -1, 0, -0.2], atol=1e-3)
    alone = similarity(vectors, HYDRANT, np.zeros((0, 3)))
    np.testing.assert_array_equal(alone.margin, alone.cosine)


def test_a_point_is_as_similar_as_the_best_of_its_superpoints_and_unknown_without_any() -> None:
    found = similarity(np.stack([HYDRANT, ROAD]), HYDRANT, ROAD[None])
    points = spread(found, np.array([0, 2, 2, 3]), np.array([0, 0, 1, 1]), n_points=4)
    np.testing.assert_array_equal(points.cosine, [1, np.nan, 1, 0])
    np.testing.assert_array_equal(points.margin, [1, np.nan, 1, -1])
    nothing = similarity(np.zeros((0, 3)), HYDRANT, ROAD[None])
    assert np.isnan(spread(nothing, np.zeros(0, int), np.zeros(0, int), 2).margin).all()


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=3 * TOP_POINTS))
def test_the_score_of_a_frame_is_the_mean_of_its_best_points(values: list[float]) -> None:
    with_gaps = np.array([*values, np.nan, np.nan], np.float32)
    np.testing.assert_allclose(top_mean(with_gaps), np.mean(sorted(values)[-TOP_POINTS:]), atol=1e-6)
    assert np.isnan(top_mean(np.array([np.nan])))
