"""The simulated teacher without an image: its settings, its words, and the identities of its tables."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.config import ConfigError
from manifests.fingerprint import canonical
from manifests.ontology import parse_ontology
from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import GroupConfig, TextConfig
from manifests.sections.teachers.oracle import CONFUSED, OracleConfig
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.stages import Need
from manifests.tables.labels import Label
from manifests.tables.sensors import Points, Project
from manifests.tables.teacher import Text
from pipeline.stages import segment, text
from pipeline.teachers.oracle import Oracle
from tests.pipeline.test_oracle import EVERYTHING, NUSCENES, recipe_at, with_maps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_maps(tmp_path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "artifacts"}, 'settings of "oracle"'),
        ({"source": "images"}, 'choose "maps" or "points"'),
        ({"seed": -1}, "expected at least 0"),
        ({"dims": 4}, "at least 8"),
        ({"drop": 1.5}, "drop is 1.5; expected a finite number, 0 to 1"),
        ({"jitter_px": -1.0}, "jitter_px is -1.0"),
        ({"vector_noise": float("inf")}, "vector_noise is inf"),
        ({"boundary_length_px": 0.0}, "boundary_length_px is 0.0"),
        ({"score_noise": float("nan")}, "score_noise is nan"),
        ({"patch_px": 3.0}, "patch_px is 3.0"),
        ({"steadiness": 0.9, "persistence": 0.5}, "choose one"),
        ({"half_life_s": -2.0}, "half_life_s is -2.0"),
        ({"scored": ("ab", "cd")}, "expected rows of two scores"),
        ({"steadiness": 1.5}, "steadiness is 1.5; expected a finite number, 0 to 1"),
        ({"steadiness": 0.9, "place_m": 0.0}, "place_m is 0.0"),
        ({"range_slope": 3.0}, "range_slope is 3.0"),
        ({"scored": ((0.5, 0.5),)}, "scored has one row"),
        ({"scored": ((0.9, 0.5), (0.5, 0.6))}, "from least to greatest"),
        ({"scored": ((0.1, 0.1), (1.0, 1.0)), "score_noise": 0.5}, "choose one"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        OracleConfig(**values)


def test_prompts_of_a_group_are_close_and_classes_far_apart() -> None:
    vectors = Oracle.load(recipe_at(Path(), dims=512), "text").text(NUSCENES.prompts)
    cosine = vectors @ vectors.T
    group, classes = NUSCENES.group_of_prompt, NUSCENES.class_of_prompt
    other = ~np.eye(len(cosine), dtype=np.bool_)
    same_text = np.equal.outer(np.array(NUSCENES.prompts), np.array(NUSCENES.prompts))
    same_group = np.equal.outer(group, group) & other & ~same_text
    same_class = np.equal.outer(classes, classes) & (classes > 0)[:, None] & ~np.equal.outer(group, group)
    different = ~np.equal.outer(classes, classes) & ~same_text
    for chosen, expected in ((same_group, 0.75), (same_class, 0.5), (different, 0.0)):
        assert cosine[chosen].mean() == pytest.approx(expected, abs=0.02)
        assert np.abs(cosine[chosen] - expected).max() < 0.25


def test_ignored_fine_classes_have_nothing_in_common() -> None:
    vectors = Oracle.load(recipe_at(Path(), dims=512), "text").text(NUSCENES.prompts)
    sky, animal = (vectors[NUSCENES.prompts.index(name)] for name in ("sky", "animal"))
    assert abs(float(sky @ animal)) < 0.25


def test_a_vector_depends_on_its_own_words_group_and_class_only() -> None:
    fewer = replace(NUSCENES, groups=NUSCENES.groups[:3])
    vectors = Oracle.load(recipe_at(Path()), "text").text(NUSCENES.prompts)
    np.testing.assert_array_equal(
        Oracle.load(recipe_at(Path(), ontology=fewer), "text").text(fewer.prompts), vectors[: len(fewer.prompts)]
    )
    with pytest.raises(ValueError, match="not those of the class dictionary"):
        Oracle.load(recipe_at(Path()), "text").text(("car",))


def identities(recipe: Recipe) -> dict[str, str]:
    return {stage.name: canonical(dict(stage.settings(recipe))) for stage in (text.STAGE, segment.STAGE)}


def test_both_tables_say_that_they_are_simulated(root: Path) -> None:
    assert TEACHER_SECTIONS["oracle"].simulated
    for stage in (text.STAGE, segment.STAGE):
        settings = stage.settings(recipe_at(root))
        assert settings["teacher"] == {
            "name": "oracle",
            "simulated": True,
            **({"source": "maps"} if stage is segment.STAGE else {}),
        }
        assert "templates" not in settings
    assert segment.STAGE.settings(recipe_at(root))["maps"] == "classmaps/v1.0-city"
    assert not any(kind.simulated for name, kind in TEACHER_SECTIONS.items() if name != "oracle")


def test_each_change_renames_the_tables_that_it_concerns(root: Path) -> None:
    recipe = recipe_at(root)
    regrouped = parse_ontology(
        {
            "name": "street",
            "version": 1,
            "class": [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}],
            "group": [{"name": "all", "fine": "car", "thing": True, "prompts": list(NUSCENES.prompts)}],
        }
    )
    teacher = recipe.teacher
    assert isinstance(teacher, OracleConfig)
    relabelled = replace(NUSCENES, raw_mask=0xFF)
    for after, renamed in (
        (replace(recipe, teacher=replace(teacher, dims=32)), {"text"}),
        (replace(recipe, teacher=replace(teacher, seed=1)), {"segment"}),
        (replace(recipe, teacher=replace(teacher, source="points")), {"segment"}),
        (replace(recipe, teacher=replace(teacher, confused=CONFUSED[:3])), set()),  # of no consequence at strength 0
        (replace(recipe, teacher=replace(teacher, confusion=0.5)), {"segment"}),
        (replace(recipe, ontology=regrouped), {"text", "segment"}),
        (replace(recipe, ontology=relabelled), {"segment"}),
        (replace(recipe, data=replace(recipe.data, version="v2")), {"segment"}),
        (replace(recipe, data=replace(recipe.data, root="elsewhere")), set()),
        (replace(recipe, group=GroupConfig(min_points=4)), set()),
    ):
        before, now = identities(recipe), identities(after)
        assert {name for name in before if before[name] != now[name]} == renamed, after


def test_every_setting_takes_part_in_an_identity() -> None:
    other = {
        **EVERYTHING,
        "source": "points",
        "seed": 1,
        "dims": 32,
        "persistence": 0.5,
        "confused": CONFUSED[:3],
        "drop_area_px": 10.0,
        "steadiness": 0.9,
        "half_life_s": 2.0,
        "place_m": 5.0,
        "boundary_steadiness": 0.5,
        "boundary_places": 0.5,
        "range_slope": 0.2,
        "scored": ((0.5, 0.1), (1.0, 0.9)),
        "slic_px": 10.0,
        "slic_compactness": 1.0,
        "grow_px": 0.0,
    }
    assert other.keys() == {field.name for field in fields(OracleConfig)} - {"name"}
    maps = OracleConfig(**{name: value / 2 for name, value in EVERYTHING.items()})
    for name, value in other.items():
        base = replace(maps, source="points") if name.startswith(("slic", "grow", "place")) else maps
        base = replace(base, steadiness=0.5) if name in ("half_life_s", "place_m") else base
        base = replace(base, score_noise=0.0) if name == "scored" else base
        after = replace(base, **{name: value})  # that source "points" has no persistence is seen when it is made
        assert any(after.settings(stage) != base.settings(stage) for stage in ("text", "segment")), name


def test_the_recipe_of_the_city_is_simulated_and_spoilt_in_every_way() -> None:
    teacher = load_recipe("city").teacher
    assert isinstance(teacher, OracleConfig)
    assert all(getattr(teacher, name) > 0 for name in EVERYTHING)


def test_sentences_of_templates_do_not_apply(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[text\] does not apply to teacher oracle, whose text vectors are drawn"):
        text.STAGE.settings(replace(recipe_at(root), text=TextConfig("single")))


def test_labels_and_pairs_are_needed_for_points_only(root: Path) -> None:
    prompts = Need(Text, "broadcast")
    assert segment.STAGE.needs(recipe_at(root)) == (prompts,)
    assert segment.STAGE.needs(recipe_at(root, source="points")) == (prompts, Need(Label), Need(Project))
    measured = recipe_at(root, confusion=0.5, range_slope=0.2)
    assert segment.STAGE.needs(measured) == (prompts, Need(Project), Need(Points))
    assert "maps" in segment.STAGE.settings(measured), "class maps are still what the truth is read from"


def test_when_and_where_a_sweep_was_taken_counts_where_mistakes_belong_to_places(root: Path) -> None:
    assert segment.STAGE.more_index_columns(recipe_at(root)) == ()
    steady = recipe_at(root, source="points", steadiness=0.9)
    moved = recipe_at(root, boundary_places=0.9, boundary_shift_px=1.0)
    for lasting in (steady, moved):
        assert segment.STAGE.more_index_columns(lasting) == ("timestamp_us", "world_from_lidar")
    assert segment.STAGE.more_index_columns(recipe_at(root, boundary_places=0.9)) == (), "nothing is shifted"
