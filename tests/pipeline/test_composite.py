"""Masks from one source, names and vectors from another: what a view becomes, on grids that can be checked by eye."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from manifests.config import ConfigError, parse_section, read_recipe
from manifests.ontology import Ontology, parse_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.composite import CompositeConfig, ProposerConfig, Sam3Config
from pipeline.frame import Camera, FrameError
from pipeline.stages.registry import STAGES
from pipeline.teachers.composite import Composite, winners
from superpixels.segments import Segments

ONTOLOGY = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [
            {"name": "ignore", "colour": "#000000"},
            {"name": "car", "colour": "#ff0000"},
            {"name": "road", "colour": "#888888"},
        ],
        "group": [
            {"name": "cars", "fine": "car", "thing": True, "prompts": ["car", "van"], "concepts": ["car"]},
            {"name": "others", "fine": "ignore", "thing": False, "prompts": ["thing"]},
            {"name": "roads", "fine": "road", "thing": False, "prompts": ["road", "van"], "concepts": ["road", "lane"]},
        ],
    }
)
CAR, VAN, THING, ROAD, OTHER_VAN = range(5)
TEXT = np.array([[1, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1], [0, 1, 0]], np.float32)
"""Vectors of the prompts; the two vans have one."""

PIN: dict[str, Any] = {"weights": "folder/model.safetensors", "weights_sha256": "0" * 64}
SLIC = CompositeConfig(masks="slic")
SAM3 = CompositeConfig(masks="sam3", sam3=Sam3Config(**PIN))
PROPOSER = CompositeConfig(masks="proposer", proposer=ProposerConfig(**PIN, trained_on="coco"))


def camera(height_px: int, width_px: int) -> Camera:
    return Camera("C", "t", "i.png", 0, np.eye(3), np.eye(4), 0, width_px, height_px)


def segmented(config: CompositeConfig, region: Any, grid: Any, weight: Any = None, **settings: Any) -> Segments:
    """Return the segments of one view at the size of its region grid; `grid` names a prompt's vector per cell."""
    regions = np.atleast_3d(np.array(region, np.uint16))
    if np.ndim(region) == 2:
        regions = np.array(region, np.uint16)[None]
    weights = np.full(regions.shape, 255, np.uint8) if weight is None else np.array(weight, np.uint8)
    encoding = {"C/region": regions, "C/weight": weights, "C/grid": TEXT[np.array(grid)].astype(np.float16)}
    teacher = Composite(config, ONTOLOGY, SegmentConfig(**{"scale": 1.0, **settings}), None, None)
    return teacher.segment_view(camera(*regions.shape[1:]), encoding, TEXT)


# -- what a view becomes


def test_features_name_masks_that_have_no_name_and_masks_of_one_name_are_one_segment() -> None:
    found = segmented(SLIC, [[4, 4, 7, 9], [4, 4, 7, 9]], [[ROAD, ROAD, CAR, ROAD]] * 2)
    assert found.prompt_id.tolist() == [CAR, ROAD]
    assert found.label_map().tolist() == [[2, 2, 1, 2]] * 2
    np.testing.assert_allclose(found.vector, [[1, 0, 0], [0, 0, 1]], atol=1e-3)
    assert (found.score > 0.99).all()  # exp(40) to one


def test_as_components_masks_stay_apart_in_order_of_prompt_and_first_pixel() -> None:
    regions = [[4, 4, 7, 9], [4, 4, 9, 9], [3, 3, 3, 4]]
    found = segmented(SLIC, regions, [[ROAD, ROAD, CAR, ROAD]] * 2 + [[ROAD] * 4], split="components")
    assert found.prompt_id.tolist() == [CAR, ROAD, ROAD, ROAD, ROAD]
    assert found.label_map().tolist() == [[2, 2, 1, 3], [2, 2, 3, 3], [4, 4, 4, 5]]


def test_small_segments_are_dropped_after_masks_of_one_name_were_joined() -> None:
    regions, grid = [[4, 4, 7, 9]], [[ROAD, ROAD, CAR, ROAD]]
    found = segmented(SLIC, regions, grid, min_area_px=2)
    assert found.label_map().tolist() == [[1, 1, 0, 1]] and found.prompt_id.tolist() == [ROAD]
    found = segmented(SLIC, regions, grid, min_area_px=2, split="components")
    assert found.label_map().tolist() == [[1, 1, 0, 0]]


def test_sam3_says_the_group_and_features_the_prompt_within_it() -> None:
    """The first cell looks like a thing, which is no prompt of cars; van is nearest there. The second is a road."""
    weight = [[[204, 102]]]
    found = segmented(SAM3, [[0, 1]], [[THING, CAR]], weight)
    assert found.prompt_id.tolist() == [VAN, ROAD]  # equal cosines to both of roads: the first wins
    np.testing.assert_allclose(found.score, [0.8, 0.4], atol=1e-3)
    np.testing.assert_allclose(found.vector, np.array([[0.6, 0.8, 0], [1, 0, 0]]), atol=1e-3)
    assert segmented(SAM3, [[1]], [[VAN]]).prompt_id.tolist() == [OTHER_VAN]  # of its own group


def test_of_prompts_with_one_vector_the_first_wins() -> None:
    assert segmented(SLIC, [[0]], [[VAN]]).prompt_id.tolist() == [VAN]


def test_a_pixel_that_nothing_wants_enough_is_in_no_segment() -> None:
    found = segmented(PROPOSER, [[0, 1]], [[CAR, ROAD]], [[[64, 63]]])  # 0.251 and 0.247
    assert found.label_map().tolist() == [[1, 0]] and found.prompt_id.tolist() == [CAR]
    assert len(segmented(PROPOSER, [[0, 1]], [[CAR, ROAD]], [[[63, 63]]])) == 0


def test_more_than_255_segments_keep_their_ids() -> None:
    regions = np.arange(400).reshape(20, 20)
    found = segmented(SLIC, regions, np.full((20, 20), CAR), split="components")
    assert len(found) == 400
    np.testing.assert_array_equal(found.label_map(), regions + 1)


def test_between_cells_weights_are_mixed_and_single_regions_are_not() -> None:
    region = np.array([[[5, 9]], [[9, 5]]], np.uint16)
    weight = np.array([[[255, 204]], [[0, 153]]], np.uint8)
    # region 5 weighs 1 and 0.6 in the two cells, region 9 weighs 0 and 0.8
    best, winning = winners(region, weight, (1, 4))
    assert best.tolist() == [[5, 5, 5, 9]]
    np.testing.assert_allclose(winning, [[1, 0.9, 0.7, 0.8]], atol=1e-6)
    best, winning = winners(region[:1], weight[:1], (2, 4))
    assert best.tolist() == [[5, 5, 9, 9]] * 2
    np.testing.assert_allclose(winning, [[1, 1, 0.8, 0.8]] * 2, atol=1e-6)


def test_features_kept_as_bytes_are_directions() -> None:
    encoding: dict[str, npt.NDArray[Any]] = {
        "C/region": np.array([[[0, 1]]], np.uint16),
        "C/weight": np.full((1, 1, 2), 255, np.uint8),
        "C/grid": np.array([[[127, 0, 0], [95, 127, 0]]], np.int8),
    }
    teacher = Composite(SLIC, ONTOLOGY, SegmentConfig(scale=1.0), None, None)
    found = teacher.segment_view(camera(1, 2), encoding, TEXT)
    assert found.prompt_id.tolist() == [CAR, THING]
    np.testing.assert_allclose(found.vector, np.array([[1, 0, 0], [0.6, 0.8, 0]]), atol=1e-2)


def test_an_encoding_that_does_not_fit_is_a_sentence() -> None:
    teacher = Composite(SLIC, ONTOLOGY, SegmentConfig(), None, None)
    with pytest.raises(FrameError, match="table encode has no C/grid"):
        teacher.segment_view(camera(1, 1), {}, TEXT)
    encoding = {name: np.zeros((1, 1, 2), np.uint8) for name in ("C/grid", "C/region", "C/weight")}
    with pytest.raises(FrameError, match=r"C/grid has shape \(1, 1, 2\); expected \(h, w, 3\)"):
        teacher.segment_view(camera(1, 1), encoding, TEXT)
    with pytest.raises(FrameError, match="regions of other concepts"):
        segmented(SAM3, [[2]], [[CAR]])


# -- what is asked for, and what results depend on


def recipe(config: CompositeConfig, ontology: Ontology = ONTOLOGY, root: str = "data") -> Recipe:
    return Recipe(
        name="test",
        data=DataConfig(root=root),
        run=RunConfig(),
        teacher=config,
        project=ProjectConfig(),
        text=TextConfig(),
        segment=SegmentConfig(),
        group=GroupConfig(),
        ontology=ontology,
    )


def on_disk(folder: Path) -> dict[str, Any]:
    (folder / "config.json").write_text("{}")
    return {"weights": str(folder / "model.safetensors"), "weights_sha256": "0" * 64}


def test_a_section_has_a_table_per_source(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        '[data]\nroot = "data"\n[teacher]\nname = "composite"\nmasks = "proposer"\n'
        '[teacher.proposer]\nweights = "m/model.safetensors"\ntrained_on = "ade20k"\n'
        '[teacher.clip_dense]\nmodel = "tiny"\nweights = "random:1"\n'
    )
    override = f"teacher.proposer.weights_sha256={'ab' * 32}"
    read = read_recipe(path, [override, "teacher.clip_dense.short_side_px=64"]).section("teacher", CompositeConfig)
    assert read.proposer.weights_sha256 == "ab" * 32 and read.clip_dense.short_side_px == 64
    (tmp_path / "surer.toml").write_text('base = "mine"\n[teacher.proposer]\nmin_objectness = 0.75\n')
    surer = read_recipe(tmp_path / "surer.toml", [override]).section("teacher", CompositeConfig)
    assert surer.proposer == dataclasses.replace(read.proposer, min_objectness=0.75)
    with pytest.raises(ConfigError, match=r"teacher.masks is a value and holds no settings"):
        read_recipe(path, ["teacher.masks.weights=1"])
    with pytest.raises(
        ConfigError, match=r"\[teacher.proposer\] has no setting `wieghts` \(did you mean `weights`\?\)"
    ):
        parse_section("teacher", {"proposer": {"wieghts": "x"}}, CompositeConfig)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"masks": "sam2"}, r'masks is "sam2"'),
        ({"features": "dino"}, r'features "dino"'),
        ({"masks": "sam3"}, r"sam3.weights is"),
        ({"masks": "slic", "features": "tipsv2"}, r"tipsv2.weights is"),
        ({"masks": "slic", "sam3": {"min_score": 0.5}}, r"\[teacher.sam3\] is given, but masks are"),
        ({"masks": "slic", "slic": {"side_px": 1.0}}, r"side_px of at least 4"),
        ({"masks": "slic", "clip_dense": {"logit_scale": 9.0}}, r"set teacher.logit_scale"),
        ({"masks": "slic", "logit_scale": 0.0}, r"logit_scale must be positive"),
        ({"masks": "proposer", "proposer": PIN}, r"trained_on is"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_section("teacher", {"name": "composite", **values}, CompositeConfig)


def test_masks_drawn_by_people_in_driving_scenes_make_a_supervised_teacher(tmp_path: Path) -> None:
    def config(trained_on: str) -> CompositeConfig:
        return CompositeConfig(masks="proposer", proposer=ProposerConfig(**on_disk(tmp_path), trained_on=trained_on))

    for stage in ("encode", "segment"):
        assert config("mapillary").settings(stage)["supervised"] is True
        assert config("mapillary").settings(stage)["trained_on"] == "mapillary"
        assert "supervised" not in config("coco").settings(stage)
    assert "supervised" not in SLIC.settings("encode")


def test_another_dictionary_runs_no_image_network_again_as_long_as_its_concepts_stay(tmp_path: Path) -> None:
    groups = list(ONTOLOGY.groups)
    renamed = [dataclasses.replace(groups[0], prompts=("auto", "van", "coupe")), *groups[1:]]
    reworded = [dataclasses.replace(groups[0], concepts=("car", "van")), *groups[1:]]
    config = CompositeConfig(masks="sam3", sam3=Sam3Config(**on_disk(tmp_path)))
    encode, segment, text = [STAGES[name].settings(recipe(config)) for name in ("encode", "segment", "text")]
    for other, same in ((renamed, True), (reworded, False)):
        changed = recipe(config, dataclasses.replace(ONTOLOGY, groups=tuple(other)))
        assert (STAGES["encode"].settings(changed) == encode) is same
        assert (STAGES["text"].settings(changed) == text) is not same
    assert STAGES["segment"].settings(recipe(config, dataclasses.replace(ONTOLOGY, groups=tuple(renamed)))) != segment
    chunks = dataclasses.replace(config, sam3=dataclasses.replace(config.sam3, concepts_at_once=2))
    surer = dataclasses.replace(config, sam3=dataclasses.replace(config.sam3, min_probability=0.5))
    assert STAGES["encode"].settings(recipe(chunks)) == encode == STAGES["encode"].settings(recipe(surer))
    assert STAGES["segment"].settings(recipe(surer)) != segment
    assert STAGES["encode"].settings(recipe(SLIC)).keys() == {"teacher"}
