from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manifests.ontology import Ontology, parse_ontology
from manifests.sections.tables import GroupConfig
from manifests.tables import superpoints
from manifests.tables.arrow import to_arrow
from manifests.tables.sensors import Project
from pipeline.frame import Camera
from pipeline.stages.group import STAGE, group_frame, in_255ths
from superpixels.segments import Segments
from tests.filled import record

CAR, ROAD, SKY = 0, 1, 2
PARITY = GroupConfig(policy="last_camera", occluded=True)


@pytest.fixture(scope="module")
def ontology() -> Ontology:
    """Classes ignore, car, road; prompts 0 car, 1 road, 2 sky, which is ignored."""
    names = {"ignore": "sky", "car": "car", "road": "road"}
    return parse_ontology(
        {
            "name": "small",
            "version": 1,
            "class": [{"name": name, "colour": "#000000"} for name in names],
            "group": [
                {"name": prompt, "fine": name, "thing": False, "prompts": [prompt]}
                for name, prompt in (("car", "car"), ("road", "road"), ("ignore", "sky"))
            ],
        }
    )


def segments(label_map: list[list[int]], prompts: list[int], scores: list[float]) -> Segments:
    return Segments.from_label_map(np.array(label_map), prompts, scores, np.eye(len(prompts), 4))


def camera(width_px: int, height_px: int) -> Camera:
    matrix = np.array([[10.0, 0, 0], [0, 10, 0], [0, 0, 1]])  # the optical axis goes through pixel (0, 0)
    return Camera("C", "t", "p", 0, matrix, np.eye(4), width_px=width_px, height_px=height_px)


def pairs(*rows: tuple[int, int, int, int, bool]) -> Project:
    """Pairs from (point, view, row, column, occluded), as table `project` has them."""
    point, view, row, col, occluded = np.array(rows).reshape(-1, 5).T
    return record(
        Project,
        point=point.astype(np.int32),
        view=view.astype(np.uint8),
        row_px=row.astype(np.uint16),
        col_px=col.astype(np.uint16),
        u_px=col.astype(np.float32),
        v_px=row.astype(np.float32),
        occluded=occluded.astype(np.bool_),
    )


# Two cameras of 2 x 4 pixels. View 0: car left (sure), nothing right. View 1: sky above, road below (hardly sure).
CAMERAS = (camera(4, 2), camera(4, 2))
VIEWS = [
    segments([[1, 1, 0, 0], [1, 1, 0, 0]], [CAR], [0.9]),
    segments([[1, 1, 1, 1], [2, 2, 2, 2]], [SKY, ROAD], [0.5, 0.25]),
]
PAIRS = pairs(
    (0, 0, 0, 0, False),  # car
    (1, 0, 1, 1, False),  # car, and road in view 1
    (2, 0, 0, 3, False),  # no segment
    (4, 0, 0, 1, True),  # car, occluded
    (1, 1, 1, 0, False),
    (3, 1, 0, 2, False),  # sky
    (4, 1, 1, 3, False),  # road
)


@pytest.fixture
def group(ontology: Ontology) -> Any:
    """Groups the pairs above, or others, with the given settings; the result fits the schema."""

    def run(config: GroupConfig, given: Any = PAIRS, cameras: Any = CAMERAS, views: Any = VIEWS, n: int = 5) -> Any:
        row = group_frame(given, cameras, views, n, config, ontology)
        to_arrow([row], superpoints.Group)
        return row

    return run


def test_superpoints_are_the_segments_that_points_hit_numbered_by_view_and_segment(group: Any) -> None:
    row = group(PARITY)
    assert row.superpoint_view.tolist() == [0, 1, 1]
    assert row.superpoint_segment.tolist() == [1, 1, 2]
    assert row.superpoint_prompt.tolist() == [CAR, SKY, ROAD]
    assert row.superpoint_fine.tolist() == [1, 0, 2]
    np.testing.assert_allclose(row.superpoint_score, [0.9, 0.5, 0.25], atol=1e-3)


def test_a_point_keeps_its_superpoint_in_every_view_that_sees_it(group: Any) -> None:
    row = group(PARITY)
    assert row.pair.tolist() == [0, 1, 3, 4, 5, 6]
    assert row.pair_superpoint.tolist() == [0, 0, 0, 2, 1, 2]


def test_under_last_camera_the_later_view_names_the_point(group: Any) -> None:
    row = group(PARITY)
    assert row.point_superpoint.tolist() == [0, 2, -1, 1, 2]
    assert row.label.tolist() == [1, 2, 0, 0, 2]


def test_under_confidence_the_surer_segment_names_the_point(group: Any) -> None:
    row = group(GroupConfig(policy="confidence", occluded=True))
    assert row.point_superpoint.tolist() == [0, 0, -1, 1, 0]
    assert row.label.tolist() == [1, 1, 0, 0, 1]


def test_under_nearest_axis_the_view_that_sees_it_closer_to_its_axis_names_the_point(group: Any) -> None:
    row = group(GroupConfig(policy="nearest_axis", occluded=True))
    assert row.point_superpoint.tolist() == [
        0,
        2,
        -1,
        1,
        0,
    ]  # point 1: (1, 1) against (1, 0); 4: (0, 1) against (1, 3)


def test_a_longer_focal_length_makes_the_same_pixel_nearer_to_the_axis(group: Any) -> None:
    both = pairs((0, 0, 1, 1, False), (0, 1, 1, 1, False))
    far = replace(CAMERAS[0], intrinsics=np.diag([99.0, 99, 1]))
    nearest = GroupConfig(policy="nearest_axis", occluded=True)
    assert group(nearest, both, (far, CAMERAS[1]), n=1).label.tolist() == [1]
    assert group(nearest, both, (CAMERAS[0], far), n=1).label.tolist() == [2]


def test_occluded_pairs_count_for_nothing_unless_they_are_kept(group: Any) -> None:
    row = group(GroupConfig(policy="confidence"))
    assert row.pair.tolist() == [0, 1, 4, 5, 6]
    assert row.label.tolist() == [1, 1, 0, 0, 2]  # point 4 was a car only through an occluded pair


def test_superpoints_of_too_few_points_are_dropped_and_the_others_numbered_anew(group: Any) -> None:
    row = group(GroupConfig(policy="last_camera", occluded=True, min_points=2))
    assert row.superpoint_prompt.tolist() == [CAR, ROAD]
    assert row.pair.tolist() == [0, 1, 3, 4, 6]
    assert row.pair_superpoint.tolist() == [0, 0, 0, 1, 1]
    assert row.point_superpoint.tolist() == [0, 1, -1, -1, 1]
    assert group(replace(PARITY, min_points=4)).point_superpoint.tolist() == [-1] * 5


def test_occluded_pairs_do_not_help_a_superpoint_over_the_minimum(group: Any) -> None:
    assert group(GroupConfig(min_points=3)).superpoint_prompt.tolist() == []
    assert group(GroupConfig(min_points=3, occluded=True)).superpoint_prompt.tolist() == [CAR]


def test_a_point_in_an_ignored_class_keeps_its_superpoint_but_has_neither_label_nor_confidence(group: Any) -> None:
    row = group(PARITY)
    assert (row.point_superpoint[3], row.label[3], row.confidence[3]) == (1, 0, 0)


def test_confidence_is_the_score_of_the_winning_segment_in_255ths(group: Any) -> None:
    assert group(PARITY).confidence.tolist() == [229, 64, 0, 0, 64]  # 0.9 in float16 is a little less


def test_scores_above_zero_never_round_to_zero_and_none_overflows() -> None:
    scores = np.array([0, 1e-4, 0.5, 1, 1.5, -1], np.float16)
    assert in_255ths(scores).tolist() == [0, 1, 128, 255, 255, 0]


def test_a_label_map_of_lower_resolution_is_read_at_the_map_pixel_that_covers_the_image_pixel(group: Any) -> None:
    coarse = segments([[1, 2]], [CAR, ROAD], [1, 1])  # for an image of 3 x 5: columns 0 to 2 and 3 to 4
    given = pairs(*((point, 0, point % 3, point, False) for point in range(5)))
    row = group(PARITY, given, (camera(5, 3),), [coarse])
    assert row.label.tolist() == [1, 1, 1, 2, 2]


@pytest.mark.parametrize("cameras", [0, 1, 2])
def test_frames_without_cameras_pairs_or_segments_give_empty_superpoints(group: Any, cameras: int) -> None:
    nothing = segments([[0, 0]], [], [])
    row = group(GroupConfig(), pairs(), CAMERAS[:cameras], [nothing] * cameras)
    assert row.point_superpoint.tolist() == [-1] * 5 and row.label.tolist() == [0] * 5
    assert len(row.superpoint_view) == len(row.pair) == 0


def test_settings_are_what_differs_from_the_defaults_and_the_maps_of_the_dictionary(
    recipe_over: Any, tmp_path: Any
) -> None:
    default, strict = recipe_over(tmp_path), recipe_over(tmp_path, group=GroupConfig(min_points=5))
    content = default.ontology.label_content()
    assert STAGE.settings(default) == {"ontology": content}
    assert STAGE.settings(strict) == {"ontology": content, "min_points": 5}
