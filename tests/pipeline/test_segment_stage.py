"""Stages text, encode and segment: what they need, what renames their tables, and the rows they make."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manifests.config import ConfigError
from manifests.fingerprint import canonical
from manifests.ontology import Group, parse_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.stages import Need
from manifests.tables.arrow import from_arrow, to_arrow
from manifests.tables.base import F, Rows
from manifests.tables.teacher import Encode, Text
from pipeline.frame import Camera, Frame, FrameError
from pipeline.stages import encode, segment, text
from pipeline.stages.base import FrameInput
from pipeline.stages.segment import segment_row, views_of
from superpixels.segments import Segments

ONTOLOGY = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}],
        "group": [{"name": "cars", "fine": "car", "thing": True, "prompts": ["car", "van", "bus"]}],
    }
)


def recipe_at(root: Path, teacher: ClipDenseConfig | ArtifactsConfig, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "name": "test",
        "data": DataConfig(root=str(root)),
        "run": RunConfig(device="cpu"),
        "teacher": teacher,
        "project": ProjectConfig(),
        "text": TextConfig(),
        "segment": SegmentConfig(),
        "group": GroupConfig(),
        "ontology": ONTOLOGY,
    }
    return Recipe(**(values | sections))


def clip(**settings: Any) -> ClipDenseConfig:
    return ClipDenseConfig(**{"model": "tiny", "weights": "random:0", "short_side_px": 32, **settings})


@pytest.fixture
def files(tmp_path: Path) -> ArtifactsConfig:
    """Official files of one image of 4 x 2 pixels."""
    Image.fromarray(np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(json.dumps([{"id": 1, "category_id": 2}]))
    torch.save(torch.tensor([[0.0, 0], [0, 2]]), tmp_path / "a.pt")
    torch.save(torch.eye(3, 2) + 1, tmp_path / "text_embedding.pt")
    (tmp_path / "prompts.txt").write_text("car\nvan\nbus\n")
    return ArtifactsConfig(folder=str(tmp_path))


def frame_of(*cameras: Camera) -> Frame:
    return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), cameras)


def camera(name: str, width_px: int, height_px: int) -> Camera:
    return Camera(name, name, f"{name}.png", 0, np.eye(3), np.eye(4), width_px=width_px, height_px=height_px)


def stored(made: F) -> F:
    """The row of one frame after a trip through the table."""
    [row] = from_arrow(to_arrow([made], type(made)), type(made))
    assert isinstance(row, type(made))
    return row


def identities(recipe: Recipe) -> dict[str, str]:
    return {stage.name: canonical(dict(stage.settings(recipe))) for stage in (text.STAGE, encode.STAGE, segment.STAGE)}


def changed(before: Recipe, after: Recipe) -> set[str]:
    """The stages whose own settings differ."""
    return {name for name, value in identities(before).items() if identities(after)[name] != value}


# -- what depends on what


def test_segments_need_an_encoding_only_if_the_teacher_has_one(tmp_path: Path, files: ArtifactsConfig) -> None:
    prompts = Need(Text, "broadcast")
    assert segment.STAGE.needs(recipe_at(tmp_path, clip())) == (Need(Encode), prompts)
    assert segment.STAGE.needs(recipe_at(tmp_path, files)) == (prompts,)
    with pytest.raises(ConfigError, match="has nothing to encode"):
        encode.prepare(recipe_at(tmp_path, files))


def test_each_change_renames_the_tables_that_it_concerns(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, clip())
    other_prompts = replace(ONTOLOGY, groups=(Group("cars", "car", True, ("car", "lorry")),))
    for after, renamed in (
        (replace(recipe, ontology=other_prompts), {"text"}),
        (replace(recipe, ontology=replace(ONTOLOGY, version=2)), set()),
        (replace(recipe, text=TextConfig("single")), {"text"}),
        (replace(recipe, teacher=clip(weights="random:1")), {"text", "encode"}),
        (replace(recipe, teacher=clip(mode="naclip")), {"encode"}),
        (replace(recipe, teacher=clip(logit_scale=100.0)), {"segment"}),
        (replace(recipe, segment=SegmentConfig(min_area_px=9)), {"segment"}),
        (replace(recipe, run=RunConfig(device="auto", batch_size=3)), set()),
        (replace(recipe, data=DataConfig(root="elsewhere")), set()),
        (replace(recipe, group=GroupConfig(min_points=4)), set()),
    ):
        assert changed(recipe, after) == renamed, after


def test_an_identity_holds_the_sentences_and_the_prompts(tmp_path: Path) -> None:
    settings = text.STAGE.settings(recipe_at(tmp_path, clip(), text=TextConfig("single")))
    assert settings["templates"] == ["a photo of a {}."]
    assert settings["prompts"] == ["car", "van", "bus"]
    with pytest.raises(ConfigError, match=r'text.templates is "vild"'):
        text.STAGE.settings(recipe_at(tmp_path, clip(), text=TextConfig("vild")))


def test_random_weights_are_marked_in_the_identity(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, clip())
    assert "random:0" in identities(recipe)["text"]
    assert "random:0" in identities(recipe)["encode"]


def test_settings_that_a_ready_made_teacher_ignores_are_refused(tmp_path: Path, files: ArtifactsConfig) -> None:
    with pytest.raises(ConfigError, match=r"\[segment\] does not apply .* remove min_area_px"):
        segment.STAGE.settings(recipe_at(tmp_path, files, segment=SegmentConfig(min_area_px=9)))
    with pytest.raises(ConfigError, match=r"\[text\] does not apply"):
        text.STAGE.settings(recipe_at(tmp_path, files, text=TextConfig("single")))


# -- the rows


def text_rows(recipe: Recipe) -> list[Text]:
    """Rows of table `text` of a recipe; they have been through Arrow."""
    return [row for row in from_arrow(to_arrow(text.build(recipe), Text), Text) if isinstance(row, Text)]


def test_text_rows_are_prompts_in_order(tmp_path: Path) -> None:
    rows = text_rows(recipe_at(tmp_path, clip()))
    assert [(row.prompt_id, row.prompt) for row in rows] == [(0, "car"), (1, "van"), (2, "bus")]
    assert [row.vector.shape for row in rows] == [(32,)] * 3
    assert all(row.vector.dtype == np.float32 for row in rows)


def test_text_vectors_of_official_files_become_rows(tmp_path: Path, files: ArtifactsConfig) -> None:
    vectors = [row.vector for row in text.build(recipe_at(tmp_path, files))]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_images_become_segments_through_both_tables(tmp_path: Path) -> None:
    frame = frame_of(camera("FRONT", 96, 64), camera("SIDE", 64, 96))
    rng = np.random.default_rng(0)
    for one in frame.cameras:
        pixels = rng.integers(0, 256, (one.height_px, one.width_px, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / one.image_path)
    recipe = recipe_at(tmp_path, clip())
    prompts = text_rows(recipe)
    encoded = stored(encode.prepare(recipe)(FrameInput(frame)))
    assert encoded.encoding["SIDE/grid"].shape == (6, 4, 32)
    inputs = FrameInput(frame, Rows(encoded), prompts)
    row = stored(segment.prepare(recipe)(inputs))
    views = views_of(row)
    assert [(one.height_px, one.width_px) for one in views] == [(32, 48), (48, 32)]
    for view in views:
        view.check()
    assert segment.STAGE.count(row) == {"segments": sum(len(one) for one in views)}


def test_official_files_become_segments(tmp_path: Path, files: ArtifactsConfig) -> None:
    recipe = recipe_at(tmp_path, files)
    inputs = FrameInput(frame_of(camera("a", 4, 2)), text=text.build(recipe))
    [found] = views_of(stored(segment.prepare(recipe)(inputs)))
    assert found.label_map().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert found.prompt_id.tolist() == [2]
    with pytest.raises(FrameError, match=r"a\.png: has 4 x 2 pixels, the image has 5 x 2"):
        segment.prepare(recipe)(FrameInput(frame_of(camera("a", 5, 2)), text=text.build(recipe)))


def test_a_frame_without_cameras_has_an_empty_row(tmp_path: Path, files: ArtifactsConfig) -> None:
    recipe = recipe_at(tmp_path, files)
    row = stored(segment.prepare(recipe)(FrameInput(frame_of(), text=text.build(recipe))))
    assert views_of(row) == []


def test_what_arrays_complain_about_becomes_the_frame_that_failed(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, clip(unit_cells=False))
    # a dead tower: nothing has a direction
    zero = Encode(frame_id="f", encoding={"C/grid": np.zeros((2, 2, 32), np.float16)})
    inputs = FrameInput(frame_of(camera("C", 8, 8)), Rows(zero), text.build(recipe))
    with pytest.raises(FrameError, match="length 0"):
        segment.prepare(recipe)(inputs)


# -- views in one row


def view(label_map: list[list[int]], prompts: list[int]) -> Segments:
    vectors = np.eye(len(prompts), 3)
    return Segments.from_label_map(np.array(label_map), prompts, np.full(len(prompts), 0.5), vectors)


def test_views_come_out_of_a_row_as_they_went_in() -> None:
    views = [view([[1, 1, 2]], [7, 3]), view([[0, 0]], []), view([[1], [0]], [5])]
    row = stored(segment_row("f", views))
    assert row.runs_in_view.tolist() == [2, 1, 2]
    assert row.segments_in_view.tolist() == [2, 0, 1]
    for before, after in zip(views, views_of(row), strict=True):
        after.check()
        for field in fields(Segments):
            if len(before) or field.name != "vector":  # no vectors have no length
                np.testing.assert_array_equal(getattr(after, field.name), getattr(before, field.name))


def test_views_without_any_segment_make_a_row() -> None:
    [found] = views_of(stored(segment_row("f", [view([[0, 0]], [])])))
    assert len(found) == 0
    assert found.label_map().tolist() == [[0, 0]]


def test_views_in_different_spaces_are_refused() -> None:
    wide = Segments.from_label_map(np.ones((1, 1), int), [0], [1.0], np.eye(1, 4))
    with pytest.raises(ValueError, match=r"vectors of one frame have \[3, 4\] values"):
        segment_row("f", [view([[1]], [0]), wide])
