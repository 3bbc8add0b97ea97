"""Scores of pixels: what a teacher says of each, where they land, and what becomes of them in `group` and `vote`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.config import ConfigError
from manifests.ontology import parse_ontology
from manifests.recipe import load_recipe
from manifests.sections.tables import GroupConfig
from manifests.stages import fingerprint, with_needs
from manifests.tables.sensors import PixelOfPair, PointOfPair, Project
from manifests.tables.superpoints import NamedPoints
from manifests.tables.teacher import Score
from pipeline.frame import Camera
from pipeline.stages.group import group_frame
from pipeline.stages.score import at_pairs, runners_up
from pipeline.stages.vote import several_names
from pipeline.teachers.base import RankingTeacher
from pipeline.teachers.registry import TEACHERS
from superpixels.pooling import strip_argmax
from superpixels.segments import Segments
from tests.fixed_rows import recipe_over, rows_of, write_log
from tests.pipeline.test_teachers import BLANK, EXAMPLES, frame_of, recipe_of, run

ONTOLOGY = parse_ontology(
    {
        "name": "two",
        "version": 1,
        "class": [{"name": name, "colour": "#000000"} for name in ("ignore", "road", "car")],
        "fine": [{"name": name, "class": name, "raw": [n]} for n, name in enumerate(("ignore", "road", "car"))],
        "group": [{"name": name, "fine": name, "thing": False, "prompts": [name]} for name in ("road", "car")],
    }
)


def camera(name: str) -> Camera:
    return Camera(name, name, "", 0, np.diag([10.0, 10.0, 1.0]), np.eye(4), width_px=4, height_px=2)


def pairs(points: list[int], views: list[int], rows: list[int], cols: list[int]) -> Project:
    n = len(points)
    return Project(
        frame_id="f",
        point=np.array(points, np.int32),
        view=np.array(views, np.uint8),
        u_px=np.array(cols, np.float32),
        v_px=np.array(rows, np.float32),
        row_px=np.array(rows, np.uint16),
        col_px=np.array(cols, np.uint16),
        depth_m=np.ones(n, np.float32),
        occluded=np.zeros(n, np.bool_),
    )


def view_of(label_map: list[list[int]], prompts: list[int], scores: list[float]) -> Segments:
    return Segments.from_label_map(
        np.array(label_map, np.uint16), np.array(prompts, np.int32), np.array(scores), np.ones((len(prompts), 2))
    )


def test_a_pair_gets_the_score_of_its_pixel_and_none_where_no_segment_is() -> None:
    seen = pairs([0, 1, 2, 0], [0, 0, 0, 1], [0, 1, 1, 1], [0, 3, 1, 2])
    part = PixelOfPair(frame_id="f", view=seen.view, row_px=seen.row_px, col_px=seen.col_px)
    small = view_of([[1, 2]], [0, 1], [0.5, 0.5])  # a map of a pixel for every 2 x 2 of the image
    other = view_of([[0, 0, 0, 0], [0, 0, 1, 1]], [1], [0.5])
    maps = [np.array([[0.2, 1.0]]), np.array([[0.9] * 4, [0.9, 0.9, 1e-4, 0.9]])]
    found = at_pairs(part, [camera("A"), camera("B")], [small, other], maps)
    assert found.tolist() == [51, 255, 51, 1] and found.dtype == np.uint8
    found = at_pairs(part, [camera("A"), camera("B")], [small, view_of([[0] * 4] * 2, [], [])], maps)
    assert found.tolist() == [51, 255, 51, 0]


def test_a_label_is_as_sure_as_the_pixel_of_the_camera_that_wins() -> None:
    """Point 0 is road to camera A and car to B: by whole segments A is surer, in its pixel B is."""
    seen = pairs([0, 1, 0, 2], [0, 0, 1, 1], [0, 0, 0, 0], [0, 3, 0, 3])
    views = [view_of([[1] * 4] * 2, [0], [0.9]), view_of([[1] * 4] * 2, [1], [0.6])]
    cameras = [camera("A"), camera("B")]
    whole = group_frame(seen, cameras, views, 4, GroupConfig(), ONTOLOGY)
    assert whole.label.tolist() == [1, 1, 2, 0] and whole.confidence.tolist() == [
        229,
        229,
        153,
        0,
    ]  # 0.9 is less in float16
    score = np.array([20, 240, 200, 7], np.uint8)
    found = group_frame(seen, cameras, views, 4, GroupConfig(scores="pixel"), ONTOLOGY, score)
    assert found.label.tolist() == [2, 1, 2, 0] and found.confidence.tolist() == [200, 240, 7, 0]
    np.testing.assert_array_equal(found.superpoint_score, whole.superpoint_score)


def test_beside_its_own_a_pixel_has_the_classes_that_are_next_likely() -> None:
    columns = np.array([0, 2, 3], np.uint16)
    part = PixelOfPair(frame_id="f", view=np.zeros(3, np.uint8), row_px=np.zeros(3, np.uint16), col_px=columns)
    view = view_of([[1, 2, 0, 0]], [0, 1], [0.5, 0.5])  # road, car and two pixels of no segment
    grid = np.zeros((4, 1, 4), np.float32)
    grid[:, 0, 0] = 0.5, 0.2, 0.2, 0.1  # class 0, road, car, and a third class
    grid[:, 0, 2] = 0.0, 0.6, 0.4, 0.0
    own = np.array([1, 2])
    classes, scores = runners_up(part, [camera("A")], [view], [grid], own)
    assert classes.tolist() == [[2, 3], [0, 0], [0, 0]] and scores.tolist() == [[51, 26], [0, 0], [0, 0]]
    grid[3, 0, 0] = 1e-3
    classes, scores = runners_up(part, [camera("A")], [view], [grid], own)
    assert classes[0].tolist() == [2, 0] and scores[0].tolist() == [51, 0], "what rounds to nothing has no name"
    assert not runners_up(part, [camera("A")], [view_of([[0] * 4], [], [])], [grid], own).any()


def test_a_point_s_names_are_those_of_the_pixel_that_is_surest_of_its_label() -> None:
    """Point 0 is road to two cameras and car to a third; point 1 is sky, which is no class."""
    project = PointOfPair(frame_id="f", point=np.array([0, 1, 0, 0, 2], np.int32))
    group = NamedPoints(
        frame_id="f",
        superpoint_prompt=np.array([0, 0, 1], np.int32),
        pair=np.array([0, 2, 3], np.int32),
        pair_superpoint=np.array([0, 1, 2], np.int32),
        label=np.array([1, 0, 0], np.uint8),
        confidence=np.array([90, 0, 0], np.uint8),
    )
    surest = np.array([90, 9, 60, 80, 99], np.uint8)
    others = np.array([[2, 0], [2, 2], [0, 0], [1, 0], [1, 1]], np.uint8)
    score = Score(frame_id="f", score=surest, runner_up=others, runner_up_score=others * np.uint8(10))
    label, sure = several_names(project, group, score, ONTOLOGY, 3)
    assert label.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 0]]
    assert sure.tolist() == [[90, 20, 0], [0, 0, 0], [0, 0, 0]]
    assert several_names(project, group, score, ONTOLOGY, 2)[0].tolist() == [[1, 2], [0, 0], [0, 0]]


def test_several_names_need_scores_of_pixels_and_one_name_is_what_it_was(tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    with pytest.raises(ConfigError, match=r'vote.names is 3, .* set group.scores = "pixel", or vote.names = 1'):
        with_needs(recipe_over(tmp_path / "log", "vote.names=3", "target.labels=vote"), ["target"])
    one, three = (
        recipe_over(tmp_path / "log", "group.scores=pixel", "target.labels=vote", f"vote.names={names}")
        for names in (1, 3)
    )
    assert fingerprint(one, "group") == fingerprint(three, "group")
    assert fingerprint(one, "vote") != fingerprint(three, "vote")
    for single, several in zip(rows_of(one)["vote"], rows_of(three)["vote"], strict=True):
        # the simulated teacher tells of no other class, so the second and the third name of every point are empty
        np.testing.assert_array_equal(single.label, several.label)
        np.testing.assert_array_equal(single.confidence, several.confidence)


@pytest.mark.parametrize("example", sorted(EXAMPLES))
def test_teachers_that_score_pixels_score_every_pixel_of_their_segments(example: str, tmp_path: Path) -> None:
    recipe = recipe_of(example, tmp_path)
    if not recipe.teacher.scores_pixels:
        with pytest.raises(ConfigError, match=r"scores whole segments; those of artifacts, .*san score pixels"):
            with_needs(replace(recipe, group=GroupConfig(scores="pixel")), ["group"])
        return
    frame = frame_of("FRONT", "SIDE")
    text, encoding, views = run(recipe, frame)
    teacher: Any = TEACHERS[recipe.teacher.name].load(recipe, "segment")
    bare = [replace(view, vector=np.empty((len(view), 0), np.float16)) for view in views]
    if isinstance(teacher, RankingTeacher):
        class_of_prompt = recipe.ontology.class_of_prompt
        for view, grid in zip(views, teacher.class_grids(frame, encoding, text, bare, class_of_prompt), strict=True):
            assert grid.shape[0] == class_of_prompt.max() + 1 and 0 <= grid.min() <= grid.max() <= 1 + 1e-5
            best = strip_argmax(grid, view.height_px, view.width_px)[0]
            label_map = view.label_map()
            named = np.append(0, class_of_prompt[view.prompt_id])[label_map]
            assert (best == named)[label_map > 0].mean() > 0.98
    for view, scores in zip(views, teacher.pixel_scores(frame, encoding, text, bare), strict=True):
        label_map = view.label_map()
        assert scores.shape == label_map.shape
        inside = scores[label_map > 0]
        assert np.isfinite(inside).all() and inside.min() >= 0 and inside.max() <= 1 + 1e-5
        area = np.bincount(label_map.ravel(), minlength=len(view) + 1)[1:]
        mean = np.bincount(label_map.ravel(), scores.ravel(), minlength=len(view) + 1)[1:] / area
        if recipe.teacher.name == "composite" and recipe.teacher.masks != "sam3":  # type: ignore[attr-defined]
            continue  # a segment is named by the features of all its pixels at once
        if recipe.teacher.name == "fcclip":  # of a segment, the names of its queries alone; of a pixel, their masks too
            assert (mean <= view.score + 2e-3).all()
        else:  # of SAN, a segment weighs queries over all its pixels at once
            np.testing.assert_allclose(mean, view.score, atol=0.05 if recipe.teacher.name == "san" else 2e-3)


def test_scores_of_pixels_reach_points_and_votes_and_leave_what_they_do_not_touch(tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    plain, pixel = (recipe_over(tmp_path / "log", *words) for words in ((), ("group.scores=pixel",)))
    before, after = rows_of(plain), rows_of(pixel)
    assert "score" not in before and len(after["score"]) == len(after["group"])
    for one, other in zip(before["group"], after["group"], strict=True):  # the simulated teacher's are its segments'
        np.testing.assert_array_equal(one.label, other.label)
        np.testing.assert_array_equal(one.confidence, other.confidence)
        assert other.confidence.any()
    assert fingerprint(plain, "segment") == fingerprint(pixel, "segment")
    assert fingerprint(plain, "group") != fingerprint(pixel, "group")


def test_a_table_that_is_not_kept_cannot_be_looked_at_again() -> None:
    recipe = load_recipe("nuscenes_mini", ["data.root=x", "group.scores=pixel", "run.keep_encode=false"])
    with pytest.raises(
        ConfigError, match=r"looks at table encode once more, and run.keep_encode is false; set it true"
    ):
        with_needs(recipe, ["group"])
    assert "score" in with_needs(replace(recipe, run=replace(recipe.run, keep_encode=True)), ["group"])
    assert "score" not in with_needs(BLANK, ["group"])
