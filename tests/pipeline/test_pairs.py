from __future__ import annotations

from typing import Any

import numpy as np

from manifests.tables.sensors import Project
from manifests.tables.superpoints import Superpoints
from manifests.tables.teacher import Segment
from pipeline.frame import Camera, Frame
from pipeline.stages.pairs import STAGE
from pipeline.stages.segment import segment_row
from superpixels.segments import Segments
from tests.filled import record

CAMERAS = tuple(Camera(f"C{i}", "t", "p", 0, np.eye(3), np.eye(4), 0, 1600 + i, 900 + i) for i in range(3))
FRAME = Frame("f", "s", 0, "t", "p", None, np.eye(4), np.eye(4), CAMERAS)


def test_pairs_carry_the_vectors_of_hit_superpoints_and_pixels_of_the_full_image(
    recipe_over: Any, run_stage: Any
) -> None:
    # View 0 has two segments, view 1 none, view 2 three; points hit segment 2 of view 0 and segments 1 and 3 of view 2.
    views = [
        Segments.from_label_map(np.array([[1, 2]]), [10, 11], [1, 1], np.eye(5)[[0, 1]]),
        Segments.from_label_map(np.array([[0, 0]]), [], [], np.zeros((0, 5))),
        Segments.from_label_map(np.array([[1, 2, 3]]), [12, 13, 14], [1, 1, 1], np.eye(5)[[2, 3, 4]]),
    ]
    project = record(
        Project,
        point=np.array([4, 5, 6, 7, 4], np.int32),
        row_px=np.array([1, 2, 3, 4, 5], np.uint16),
        col_px=np.array([11, 12, 13, 14, 15], np.uint16),
    )
    group = record(
        Superpoints,
        pair=np.array([1, 3, 4], np.int32),
        pair_superpoint=np.array([0, 1, 2], np.int32),
        superpoint_view=np.array([0, 2, 2], np.uint8),
        superpoint_segment=np.array([2, 1, 3], np.uint16),
        superpoint_prompt=np.array([11, 12, 14], np.int32),
    )
    row = run_stage(STAGE, recipe_over("/r"), FRAME, project, group, segment_row("f", views))
    assert row.point.tolist() == [5, 7, 4] and row.superpoint.tolist() == [0, 1, 2]
    assert row.row_px.tolist() == [2, 4, 5] and row.col_px.tolist() == [12, 14, 15]
    assert row.superpoint_prompt.tolist() == [11, 12, 14] and row.superpoint_view.tolist() == [0, 2, 2]
    np.testing.assert_array_equal(row.vector, np.eye(5)[[1, 2, 4]])
    assert row.height_px.tolist() == [900, 901, 902] and row.width_px.tolist() == [1600, 1601, 1602]


def test_a_frame_without_superpoints_has_empty_pairs(recipe_over: Any, run_stage: Any) -> None:
    nothing = record(Segment, segments_in_view=np.zeros(3, np.int32))
    row = run_stage(STAGE, recipe_over("/r"), FRAME, record(Project), record(Superpoints), nothing)
    assert len(row.point) == len(row.vector) == 0
