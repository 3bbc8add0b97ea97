"""A label map as run lengths: what goes in comes out, and damage is noticed."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from superpixels.segments import Segments, compact

#     a small image: segment 2 in two parts, one pixel of nothing
LABELS = np.array([[1, 1, 2, 2], [1, 0, 2, 3], [2, 3, 3, 3]], dtype=np.uint16)


def small() -> Segments:
    vector = np.array([[3.0, 4.0], [0.0, 2.0], [-5.0, 0.0]])
    return Segments.from_label_map(LABELS, prompt_id=[7, 3, 7], score=[0.5, 0.25, 1.0], vector=vector)


def test_runs_go_row_by_row_and_areas_are_counted() -> None:
    segments = small()
    assert segments.run_value.tolist() == [1, 2, 1, 0, 2, 3, 2, 3]
    assert segments.run_length.tolist() == [2, 2, 1, 1, 1, 1, 1, 3]
    assert segments.area_px.tolist() == [3, 4, 4]
    assert segments.area_px.sum() + (LABELS == 0).sum() == LABELS.size
    assert len(segments) == 3


def test_vectors_are_scaled_to_length_one() -> None:
    np.testing.assert_allclose(small().vector, np.array([[0.6, 0.8], [0, 1], [-1, 0]]), atol=1e-3)


def test_columns_have_the_stored_types() -> None:
    types = {name: str(value.dtype) for name, value in vars(small()).items() if isinstance(value, np.ndarray)}
    assert types == {
        "run_value": "uint16", "run_length": "uint32", "prompt_id": "int32",
        "score": "float16", "area_px": "int32", "vector": "float16",
    }  # fmt: skip


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 5)), st.data())
def test_any_label_map_comes_back_whole_and_pixel_by_pixel(labels: npt.NDArray[Any], data: st.DataObject) -> None:
    segments = Segments.from_label_map(labels, np.arange(5), np.ones(5), np.eye(5))
    np.testing.assert_array_equal(segments.label_map(), labels)
    assert segments.area_px.tolist() == [int((labels == k).sum()) for k in range(1, 6)]
    pixels = st.lists(st.tuples(*(st.integers(0, side - 1) for side in labels.shape)), max_size=12)
    row, col = np.array(data.draw(pixels), dtype=np.int64).reshape(-1, 2).T
    np.testing.assert_array_equal(segments.lookup(row, col), labels[row, col])


def test_more_than_255_segments_keep_their_ids() -> None:
    labels = np.arange(60_000).reshape(200, 300)
    segments = Segments.from_label_map(labels, np.arange(59_999), np.ones(59_999), np.ones((59_999, 1)))
    assert segments.lookup(np.array([199]), np.array([299])).tolist() == [59_999]
    np.testing.assert_array_equal(segments.label_map(), labels)


def test_an_image_without_segments_works() -> None:
    segments = Segments.from_label_map(np.zeros((2, 3), np.uint16), [], [], np.empty((0, 8)))
    assert len(segments) == 0
    assert segments.vector.shape == (0, 8)
    assert segments.lookup(np.array([1]), np.array([2])).tolist() == [0]


def test_a_segment_without_pixels_may_have_no_vector() -> None:
    segments = Segments.from_label_map(np.ones((1, 2), np.uint16), [4, 5], [1, 1], np.array([[1.0, 0], [0, 0]]))
    assert segments.area_px.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labels", "prompts", "vector", "says"),
    [
        (LABELS, [7, 3], np.eye(2), r"holds ids 0..3; expected 0..2"),
        (LABELS.astype(np.int32) - 1, [7, 3, 7], np.eye(3), r"holds ids -1..2; expected 0..3"),
        (LABELS, [7, 3, 7], np.eye(2), r"vectors have shape \(2, 2\); expected \(3, d\)"),
        (LABELS, [7, 3, 7], np.diag([1.0, 0, 1]), "vector of segment 2 has length 0"),
        (LABELS, [7, 3, 7], np.diag([1.0, np.nan, 1]), "vector of segment 2 has length nan"),
        (LABELS, [7, -3, 7], np.eye(3), "prompt_id holds a negative value"),
        (LABELS.ravel(), [7, 3, 7], np.eye(3), r"shape \(12,\); expected \(height, width\)"),
        (LABELS.astype(np.float32), [7, 3, 7], np.eye(3), "dtype float32; expected whole numbers"),
        (np.zeros((1, 1), np.int64), np.zeros(65_536), np.ones((65_536, 1)), "at most 65535 segments"),
    ],
)
def test_what_cannot_be_stored_is_refused(
    labels: npt.NDArray[Any], prompts: list[int], vector: npt.NDArray[Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        Segments.from_label_map(labels, prompts, np.ones(len(prompts)), vector)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ({"run_length": np.array([2, 2, 1, 1, 1, 1, 1, 2], np.uint32)}, "the runs cover 11 pixels"),
        ({"run_length": np.array([3, 2, 1, 1, 1, 1, 0, 3], np.uint32)}, "runs of at least one"),
        ({"run_length": np.array([12], np.uint32)}, r"run_length is uint32 \(1,\); expected uint32 \(8,\)"),
        ({"height_px": 4}, "expected 4 x 4 pixels"),
        ({"height_px": -3, "width_px": -4}, "-3 x -4 pixels; expected at least 1 x 1"),
        ({"run_value": np.array([1, 2, 1, 0, 2, 4, 2, 3], np.uint16)}, "holds id 4, but there are 3 segments"),
        ({"run_value": np.array([2, 2, 1, 0, 2, 3, 2, 3], np.uint16)}, "area_px differs"),
        ({"prompt_id": np.array([1, 2], np.int32)}, r"score is float16 \(3,\); expected float16 \(2,\)"),
        ({"prompt_id": np.array([1, 2, 3], np.int64)}, "prompt_id is int64"),
        ({"score": np.array([0, np.inf, 0], np.float16)}, "score holds a value that is not finite"),
        ({"vector": np.full((3, 2), 0.1, np.float16)}, "vector of segment 1 has length 0.14"),
    ],
)
def test_damage_is_noticed(damage: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(small(), **damage).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(("row", "col"), [(-1, 0), (3, 0), (0, -1), (0, 4)])
def test_a_pixel_outside_the_image_is_an_error(row: int, col: int) -> None:
    with pytest.raises(ValueError, match="1 pixels are outside the image of 3 x 4 pixels"):
        small().lookup(np.array([0, row]), np.array([0, col]))


PROMPTS = np.array(
    [
        [9, 9, 2, 9],
        [2, 9, 2, 9],
        [2, 2, 9, 5],
    ]
)


def test_one_segment_per_prompt_in_order_of_prompt() -> None:
    labels, prompt = compact(PROMPTS)
    assert prompt.tolist() == [2, 5, 9]
    assert labels.tolist() == [[3, 3, 1, 3], [1, 3, 1, 3], [1, 1, 3, 2]]


def test_one_segment_per_region_in_order_of_prompt_and_first_pixel() -> None:
    labels, prompt = compact(PROMPTS, split="component")
    assert prompt.tolist() == [2, 2, 5, 9, 9, 9]
    assert labels.tolist() == [[4, 4, 1, 5], [2, 4, 1, 5], [2, 2, 6, 3]]


def test_small_segments_and_left_out_pixels_become_none() -> None:
    labels, prompt = compact(PROMPTS, split="component", min_area_px=2)
    assert prompt.tolist() == [2, 2, 9, 9]
    assert labels.tolist() == [[3, 3, 1, 4], [2, 3, 1, 4], [2, 2, 0, 0]]
    labels, prompt = compact(PROMPTS, keep=PROMPTS != 9)
    assert prompt.tolist() == [2, 5]
    assert labels.tolist() == [[0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 0, 2]]
    labels, prompt = compact(PROMPTS, keep=np.zeros(PROMPTS.shape, bool), split="component")
    assert not labels.any() and prompt.tolist() == []


@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 3)))
def test_regions_are_the_4_connected_ones_of_each_prompt(prompts: npt.NDArray[Any]) -> None:
    from scipy.ndimage import label as label_binary

    labels, prompt = compact(prompts, split="component")
    expected = np.zeros(prompts.shape, dtype=int)
    for value in range(4):
        regions, count = label_binary(prompts == value)  # 4-connected, numbered by first pixel
        expected[regions > 0] = regions[regions > 0] + expected.max()
        assert (prompt == value).sum() == count
    np.testing.assert_array_equal(labels, expected)


def test_more_regions_than_ids_are_an_error() -> None:
    checkerboard = np.indices((300, 300)).sum(axis=0) % 2
    with pytest.raises(ValueError, match="90000 segments in one image, at most 65535 fit; raise min_area_px"):
        compact(checkerboard, split="component")


def test_a_prompt_map_must_be_an_image_of_prompt_ids() -> None:
    with pytest.raises(ValueError, match="negative prompt id; mark pixels without a prompt in keep"):
        compact(np.array([[-1, 0]]))
    with pytest.raises(ValueError, match=r"must be \(H, W\)"):
        compact(PROMPTS, keep=np.ones(3, bool))
    with pytest.raises(ValueError, match="expected 'prompt' or 'component'"):
        compact(PROMPTS, split="class")  # type: ignore[arg-type]
