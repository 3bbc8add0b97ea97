"""A teacher's identity holds what can change its rows, and nothing that cannot as the other settings are."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.recipe import Recipe
from manifests.sections.teachers.composite import TipsConfig
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from tests.pipeline.test_teachers import arrays_of, frame_of, recipe_of
from tests.reads import other_recipes

CASES: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "sc": ("clip_dense", {}, {"sigma", "dino"}),
    "naclip": ("clip_dense", {"mode": "naclip"}, {"calibrate_outliers", "calibrate_layers", "dino"}),
    "clearclip": ("clip_dense", {"mode": "clearclip"}, {"sigma", "calibrate_outliers", "calibrate_layers", "dino"}),
    "maskclip": (
        "clip_dense",
        {"mode": "maskclip"},
        {"sigma", "calibrate_outliers", "calibrate_layers", "dino", "positions"},
    ),
    "affinity": (
        "clip_dense",
        {"mode": "affinity", "dino": "tiny", "dino_weights": "random:0"},
        {"sigma", "calibrate_outliers", "calibrate_layers"},
    ),
    "convnext": (
        "clip_dense",
        {"model": "tiny-convnext", "mode": "convnext"},
        {"sigma", "calibrate_outliers", "calibrate_layers", "dino", "positions"},
    ),
    "windows side by side": ("clip_dense", {"window_px": 16, "stride_px": 16}, {"sigma", "dino"}),
    "windows that overlap": ("clip_dense", {"window_px": 16, "stride_px": 8}, {"sigma", "dino"}),
    "san": ("san", {}, set()),
    "san in parity": ("san", {"parity": True}, {"masks"}),
    "fcclip": ("fcclip", {}, set()),
    "fcclip in parity": ("fcclip", {"parity": True}, {"short_side_px", "masks", "reach"}),
    "catseg": ("catseg", {}, set()),
    "catseg in parity": ("catseg", {"parity": True}, {"decode"}),
    "superpixels": ("composite", {}, set()),
    "sam3": ("composite: sam3, tipsv2", {}, {"logit_scale"}),
    "onnx": ("onnx", {}, {"text_model", "text_weights", "quick_gelu"}),
    "onnx with CLIP's text": (
        "onnx",
        {"text": "clip", "text_model": "tiny", "text_weights": "random:0", "quick_gelu": True},
        {"dims"},
    ),
    "ensemble": ("ensemble", {}, set()),
    "oracle without noise": (
        "oracle",
        {"boundary_shift_px": 0.0},
        {
            *("boundary_length_px", "confused", "drop_area_px", "slic_px", "slic_compactness", "grow_px"),
            *("place_m", "half_life_s", "range_slope", "boundary_steadiness", "boundary_places"),
        },
    ),
    "oracle with noise": (
        "oracle",
        {"drop": 0.5},
        {"confused", "slic_px", "slic_compactness", "grow_px", "place_m", "half_life_s", "range_slope"},
    ),
}
"""An example of tests/pipeline/test_teachers.py, settings laid over it, and which are then idle."""

UNCOUNTED = {
    "folder": "what lies there is in the keys of shards",
    "prompts_sha256": "a check of what lies there",
    "weights_revision": "weights are known by their digest",
    "dino_weights_revision": "the same",
    "text_weights_revision": "the same",
    "card": "it is known by what it says",
    "text_model": "of the tiny model there are no others",
    "clip_weights_revision": "the same",
    "quick_gelu": "the name of the tiny model says it",
    "concepts_at_once": "how it is computed",
}
"""Settings that are in no identity, whatever the others are, and why."""


def recipe_for(case: str, folder: Path) -> Recipe:
    example, settings, _ = CASES[case]
    recipe = recipe_of(example, folder)
    teacher: Any = recipe.teacher
    return dataclasses.replace(recipe, teacher=dataclasses.replace(teacher, **settings))


def told(recipe: Recipe) -> list[dict[str, Any]]:
    """What enters the identities of all stages."""
    return [dict(recipe.teacher.settings(stage)) for stage in ("text", "encode", "segment")]


def others(recipe: Recipe, name: str) -> Iterator[Recipe]:
    """Recipes with another value of one setting of the teacher; of paths and pins none."""
    if "weights" not in name:
        yield from other_recipes(recipe, ("teacher", name))


@pytest.mark.parametrize("case", CASES)
def test_what_changes_no_row_changes_no_identity_and_no_row(case: str, tmp_path: Path) -> None:
    recipe = recipe_for(case, tmp_path)
    idle = CASES[case][2]
    assert recipe.teacher.idle() == idle
    frame, before = frame_of("FRONT"), told(recipe)
    rows = arrays_of(recipe, frame) if idle else {}
    for name in idle:
        changed = list(others(recipe, name))
        assert all(told(one) == before for one in changed), name
        for one in changed[:1]:
            found = arrays_of(one, frame)
            assert found.keys() == rows.keys()
            for key, array in rows.items():
                np.testing.assert_array_equal(found[key], array, err_msg=f"{name}: {key}")


@pytest.mark.parametrize("case", CASES)
def test_any_other_setting_is_in_an_identity(case: str, tmp_path: Path) -> None:
    recipe = recipe_for(case, tmp_path)
    before = told(recipe)
    for item in dataclasses.fields(recipe.teacher):
        if item.name in UNCOUNTED or item.name in CASES[case][2] or item.name == "name":
            continue
        for one in others(recipe, item.name):
            assert told(one) != before, f"{item.name} = {getattr(one.teacher, item.name)!r}"


def test_the_stride_of_windows_counts_where_there_are_windows() -> None:
    pinned = ("hub:a/b/model.safetensors", "0" * 64, "0" * 40)
    for window_px, counts in ((0, False), (448, True)):
        one, other = (TipsConfig(*pinned, window_px=window_px, stride_px=stride_px) for stride_px in (100, 200))
        assert (one.settings("encode") != other.settings("encode")) == counts


def test_windows_side_by_side_are_known_alike_with_and_without_their_stride(tmp_path: Path) -> None:
    one, other = (recipe_for(f"windows {how}", tmp_path) for how in ("side by side", "that overlap"))
    plain = dataclasses.replace(one, teacher=dataclasses.replace(one.teacher, stride_px=None))
    assert told(one) == told(plain) != told(other)


def test_every_teacher_of_ours_is_a_case() -> None:
    assert {example.partition(":")[0] for example, _, _ in CASES.values()} | {"artifacts"} == TEACHER_SECTIONS.keys()
