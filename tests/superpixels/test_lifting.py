"""Superpoints from pairs, one label per point by an explicit rule, and the official point label files."""

import io
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superpixels.lifting import (
    Policy,
    Superpoints,
    occluded,
    official_point_labels,
    parse_official_point_labels,
    resolve,
    superpoints,
)

# point 0 is seen by views 0 and 2, point 1 by 0 and 1, point 4 by none; the second pair of point 3 hits no segment
POINT = np.array([0, 1, 3, 1, 2, 3, 0], dtype=np.int32)
VIEW = np.array([0, 0, 0, 1, 1, 2, 2], dtype=np.uint8)
SEGMENT = np.array([5, 5, 2, 5, 300, 0, 1], dtype=np.uint16)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]:
    """Pairs of up to 12 points in up to 4 views, a point at most once per view, in any order."""
    seen = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 3)), unique=True, max_size=30))
    point, view = np.array(seen, dtype=np.int32).reshape(-1, 2).T
    segment = draw(st.lists(st.integers(0, 3), min_size=len(seen), max_size=len(seen)))
    return point, view.astype(np.uint8), np.array(segment, dtype=np.uint16)


def test_superpoints_are_numbered_by_view_and_then_by_segment() -> None:
    found = superpoints(POINT, VIEW, SEGMENT)
    assert list(zip(found.view, found.segment, found.n_points, strict=True)) == [
        (0, 2, 1), (0, 5, 2), (1, 5, 1), (1, 300, 1), (2, 1, 1),
    ]  # fmt: skip
    assert found.pair_point.tolist() == [0, 1, 3, 1, 2, 0]
    assert found.pair_superpoint.tolist() == [1, 1, 0, 2, 3, 4]
    assert len(found) == 5


@given(pairs())
def test_superpoints_are_a_bijection_with_the_segments_hit(
    frame: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
) -> None:
    point, view, segment = frame
    found = superpoints(*frame)
    hit = segment > 0
    names = list(zip(found.view.tolist(), found.segment.tolist(), strict=True))
    assert names == sorted({(v, s) for v, s in zip(view[hit].tolist(), segment[hit].tolist(), strict=True)})
    np.testing.assert_array_equal(found.pair_point, point[hit])
    np.testing.assert_array_equal(found.view[found.pair_superpoint], view[hit])
    np.testing.assert_array_equal(found.segment[found.pair_superpoint], segment[hit])
    np.testing.assert_array_equal(found.n_points, np.bincount(found.pair_superpoint, minlength=len(found)))
    assert (found.n_points >= 1).all()


def test_a_frame_that_hits_nothing_has_no_superpoints() -> None:
    found = superpoints(POINT, VIEW, np.zeros_like(SEGMENT))
    assert (len(found), found.pair_point.size) == (0, 0)
    assert resolve(found.pair_point, found.pair_superpoint, 3, "last_camera").tolist() == [-1, -1, -1]


@given(pairs())
def test_last_camera_is_what_writing_the_segments_one_after_another_leaves(
    frame: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]],
) -> None:
    point, view, segment = frame
    expected, k = np.full(12, -1), 0
    for v in range(4):
        for s in sorted(set(segment[view == v].tolist()) - {0}):
            expected[point[(view == v) & (segment == s)]] = k
            k += 1
    found = superpoints(*frame)
    np.testing.assert_array_equal(resolve(found.pair_point, found.pair_superpoint, 12, "last_camera"), expected)


def test_the_last_camera_wins_only_where_it_hits_a_segment() -> None:
    found = superpoints(POINT, VIEW, SEGMENT)
    assert resolve(found.pair_point, found.pair_superpoint, 5, "last_camera").tolist() == [4, 2, 3, 0, -1]


def resolve_small(
    found: Superpoints, policy: Policy, score: list[float], axis: list[float], hidden: int = 0
) -> list[int]:
    marks = np.arange(found.pair_point.size) < hidden
    chosen = resolve(
        found.pair_point,
        found.pair_superpoint,
        3,
        policy,
        pair_score=np.array(score, np.float16)[found.pair_superpoint],
        pair_axis_distance=np.array(axis),
        pair_occluded=marks,
    )
    return [int(one) for one in chosen]


def test_confidence_takes_the_surer_segment_then_the_nearer_axis_then_the_first_view() -> None:
    # all three points are seen by views 0 and 1, in superpoints 0 and 1
    found = superpoints(np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1]), np.array([1] * 6))
    axis = [0.1, 0.3, 0.2, 0.2, 0.1, 0.2]
    assert resolve_small(found, "confidence", [0.5, 0.75], axis) == [1, 1, 1]
    assert resolve_small(found, "confidence", [0.75, 0.5], axis) == [0, 0, 0]
    assert resolve_small(found, "confidence", [0.5, 0.5], axis) == [0, 1, 0]


def test_nearest_axis_takes_the_smaller_angle_then_the_first_view() -> None:
    found = superpoints(np.array([0, 1, 2, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1]), np.array([1] * 6))
    assert resolve_small(found, "nearest_axis", [0.9, 0.1], [0.1, 0.3, 0.2, 0.2, 0.1, 0.2]) == [0, 1, 0]


@pytest.mark.parametrize("policy", ["last_camera", "confidence", "nearest_axis"])
def test_occluded_pairs_do_not_count_under_any_policy(policy: Policy) -> None:
    found = superpoints(np.array([0, 1, 0]), np.array([0, 0, 1]), np.array([1, 1, 1]))
    assert resolve_small(found, policy, [1.0, 0.0], [0.1, 0.1, 0.2], hidden=2) == [1, -1, -1]
    assert resolve_small(found, policy, [1.0, 0.0], [0.1, 0.1, 0.2], hidden=3) == [-1, -1, -1]


@given(pairs(), st.sampled_from(["last_camera", "confidence", "nearest_axis"]), st.randoms(use_true_random=False))
def test_the_order_of_the_pairs_changes_no_label(
    frame: tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]], policy: Policy, random: Random
) -> None:
    rng = np.random.default_rng(random.getrandbits(32))
    found = superpoints(*frame)
    score, axis = rng.integers(0, 3, found.pair_point.size) / 2, rng.integers(0, 3, found.pair_point.size) / 2
    shuffled = rng.permutation(found.pair_point.size)

    def chosen(order: npt.NDArray[Any]) -> list[int]:
        labels = resolve(
            found.pair_point[order],
            found.pair_superpoint[order],
            12,
            policy,
            pair_score=score[order],
            pair_axis_distance=axis[order],
        )
        return [int(one) for one in labels]

    assert chosen(np.arange(found.pair_point.size)) == chosen(shuffled)


def test_a_policy_asks_for_what_it_compares() -> None:
    point, superpoint = np.array([0]), np.array([0])
    with pytest.raises(ValueError, match="compares pair_score and pair_axis_distance"):
        resolve(point, superpoint, 1, "confidence", pair_score=np.ones(1))
    with pytest.raises(ValueError, match="compares pair_axis_distance"):
        resolve(point, superpoint, 1, "nearest_axis")
    with pytest.raises(ValueError, match="expected one of last_camera, confidence, nearest_axis"):
        resolve(point, superpoint, 1, "majority")  # type: ignore[arg-type]


def test_arrays_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        superpoints(POINT, VIEW[:-1], SEGMENT)
    with pytest.raises(ValueError, match=r"view holds 0..256; expected 0..255"):
        superpoints(np.array([0, 1]), np.array([0, 256]), np.array([1, 1]))
    with pytest.raises(ValueError, match=r"pair_point holds 5..5; expected 0..4"):
        resolve(np.array([5]), np.array([0]), 5, "last_camera")


def test_a_point_behind_a_nearer_one_in_the_same_cell_is_occluded() -> None:
    #            near  behind  just within 5 % + 1 m   other cell  other view
    view = np.array([0, 0, 0, 0, 1])
    row = np.array([3, 0, 7, 8, 3])
    col = np.array([9, 15, 8, 9, 9])
    depth = np.array([10.0, 30.0, 11.5, 30.0, 30.0])
    assert occluded(view, row, col, depth).tolist() == [False, True, False, False, False]
    farther = depth + np.array([0, 0, 0.01, 0, 0])
    assert occluded(view, row, col, farther).tolist() == [False, True, True, False, False]
    assert occluded(view, row, col, depth, cell_px=16).tolist() == [False, True, False, True, False]
    assert occluded(view, row, col, depth, ratio=3.0).tolist() == [False] * 5


def test_with_the_occlusion_filter_the_background_point_is_unlabelled() -> None:
    point, view, segment = np.array([0, 1]), np.array([0, 0]), np.array([1, 1])
    behind = occluded(view, np.array([2, 3]), np.array([4, 5]), np.array([5.0, 25.0]))
    found = superpoints(point, view, segment)
    assert resolve(found.pair_point, found.pair_superpoint, 2, "last_camera", pair_occluded=behind).tolist() == [0, -1]
    assert resolve(found.pair_point, found.pair_superpoint, 2, "last_camera").tolist() == [0, 0]


@given(st.lists(st.tuples(*[st.integers(0, 30)] * 2, st.floats(1, 80)), max_size=40))
def test_occlusion_equals_comparing_every_pair_with_every_other(seen: list[tuple[int, int, float]]) -> None:
    row, col = np.array([s[:2] for s in seen], dtype=np.int32).reshape(-1, 2).T
    depth = np.array([s[2] for s in seen], dtype=np.float64)
    same_cell = (row[:, None] // 8 == row // 8) & (col[:, None] // 8 == col // 8)
    least = np.where(same_cell, depth, np.inf).min(axis=1, initial=np.inf)
    expected = depth > least * 1.05 + 1.0
    np.testing.assert_array_equal(occluded(np.zeros(len(seen), np.uint8), row, col, depth), expected)


def test_occlusion_settings_out_of_range_are_errors() -> None:
    one = np.array([1])
    with pytest.raises(ValueError, match="cell_px 0"):
        occluded(one, one, one, np.ones(1), cell_px=0)


def test_official_labels_are_100_times_superpoint_plus_fine_class() -> None:
    labels = official_point_labels(np.array([0, -1, 12, 1]), np.array([17, 24] + [0] * 10 + [31]))
    assert labels.dtype == np.int32
    assert labels.tolist() == [17, -1, 1231, 124]
    superpoint, fine = parse_official_point_labels(labels, 4)
    assert superpoint.tolist() == [0, -1, 12, 1]
    assert fine.tolist() == [17, -1, 31, 24]


@given(st.lists(st.integers(0, 31), min_size=1, max_size=8), st.data())
def test_official_labels_survive_a_round_trip_through_files(fine: list[int], data: st.DataObject) -> None:
    superpoint = np.array(data.draw(st.lists(st.integers(-1, len(fine) - 1), max_size=20)), dtype=np.int32)
    labels = official_point_labels(superpoint, np.array(fine))
    npy, parquet = io.BytesIO(), io.BytesIO()
    np.save(npy, labels)
    pq.write_table(pa.table({"label": np.load(io.BytesIO(npy.getvalue()))}), parquet)
    stored = pq.read_table(io.BytesIO(parquet.getvalue()))["label"].to_numpy()
    np.testing.assert_array_equal(stored, labels)
    parsed, fine_of_point = parse_official_point_labels(stored, len(superpoint))
    np.testing.assert_array_equal(parsed, superpoint)
    np.testing.assert_array_equal(fine_of_point, np.where(superpoint < 0, -1, np.array(fine)[superpoint]))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([17, -1], "2 point labels for a sweep of 3 points"),
        ([17, -1, 132], r"\[132\] are neither -1 nor 100"),
        ([17, -1, -100], r"\[-100\] are neither -1 nor 100"),
        ([317, 324, -1], r"superpoints \[3\] have more than one fine class"),
        ([1.0, 2.0, 3.0], "expected whole numbers"),
    ],
)
def test_a_wrong_official_file_says_what_is_wrong(labels: list[int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_official_point_labels(np.array(labels), 3)


def test_only_what_the_official_format_can_hold_is_written() -> None:
    with pytest.raises(ValueError, match=r"fine_of_superpoint holds 32..32; expected 0..31"):
        official_point_labels(np.array([0]), np.array([32]))
    with pytest.raises(ValueError, match=r"point_superpoint holds 0..1; expected -1..0"):
        official_point_labels(np.array([0, 1]), np.array([3]))
