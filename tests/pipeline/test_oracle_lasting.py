"""The simulated teacher's mistakes in several images: those of places that stay, and boundaries that do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from manifests.tables.base import Rows
from pipeline.teachers.oracle import Oracle
from pipeline.teachers.registry import TEACHERS
from tests.pipeline.test_oracle import (
    NUSCENES,
    camera,
    class_map,
    frame_of,
    places_of,
    recipe_at,
    see,
    share_alike,
    street,
    with_maps,
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return with_maps(tmp_path)


def test_steady_mistakes_are_the_same_for_longer_and_fade_with_the_half_life(root: Path) -> None:
    places_of(root)
    fresh, steady, fading = (
        share_alike(root, **values)
        for values in ({}, {"steadiness": 0.995}, {"steadiness": 0.995, "half_life_s": 1e-3})
    )
    assert fresh < 0.7 < 0.8 < steady
    assert fading > 0.8, "both images are of one moment"
    recipe = recipe_at(root, confusion=1.0, steadiness=1.0, half_life_s=2.0)
    teacher = TEACHERS["oracle"].load(recipe, "segment")
    vectors = teacher.text(NUSCENES.prompts)
    drawn = [
        class_map(teacher.segment(replace(frame_of(camera("a")), timestamp_us=time_us), {}, vectors)[0])
        for time_us in (0, 100_000, 60_000_000)
    ]
    same = [(one == drawn[0]).mean() for one in drawn]
    assert same[1] > same[2]


def test_boundaries_that_stay_are_the_same_in_two_images_of_a_camera(root: Path) -> None:
    def shifted(**values: Any) -> list[npt.NDArray[Any]]:
        recipe = recipe_at(root, boundary_shift_px=3.0, jitter_px=3.0, jitter_deg=1.0, **values)
        teacher = TEACHERS["oracle"].load(recipe, "segment")
        vectors = teacher.text(NUSCENES.prompts)
        seen = [replace(camera(token), name="front") for token in "ab"]
        return [class_map(found) for found in teacher.segment(frame_of(*seen), {}, vectors)]

    one, other = shifted(boundary_steadiness=1.0)
    np.testing.assert_array_equal(one, other)
    apart = [(one != other).mean() for one, other in (shifted(), shifted(boundary_steadiness=0.9))]
    assert apart[0] > 1.5 * apart[1] > 0
    [truth] = see(recipe_at(root))
    assert (one != class_map(truth)).mean() > 0.01


def test_boundaries_of_places_are_the_same_for_two_cameras_and_those_of_images_are_not(root: Path) -> None:
    places_of(root)

    def shifted(*times_us: int, **values: Any) -> list[npt.NDArray[Any]]:
        recipe = recipe_at(root, boundary_shift_px=3.0, **values)
        teacher = TEACHERS["oracle"].load(recipe, "segment")
        vectors = teacher.text(NUSCENES.prompts)
        frames = [replace(frame_of(camera(token)), timestamp_us=at) for token, at in zip("ab", times_us, strict=True)]
        return [class_map(teacher.segment(frame, {}, vectors)[0]) for frame in frames]

    right = NUSCENES.class_of_fine[NUSCENES.fine_of_raw_labels(street())]

    def alike(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
        wrong = (one != right) | (other != right)
        assert wrong.mean() > 0.005
        return float((one == other)[wrong].mean())

    steady, fresh = shifted(0, 500_000, boundary_places=1.0), shifted(0, 500_000)
    np.testing.assert_array_equal(steady[0], steady[1])
    assert alike(*steady) > 0.9 > 0.5 > alike(*fresh)
    fading = shifted(0, 60_000_000, boundary_places=1.0, half_life_s=1.0)
    assert alike(*fading) < 0.6
    assert alike(*shifted(0, 100_000, boundary_places=1.0, half_life_s=10.0)) > 0.9


def test_pixels_that_a_boundary_was_moved_over_have_the_scores_of_mistakes(root: Path) -> None:
    places_of(root)
    recipe = recipe_at(
        root, boundary_shift_px=3.0, boundary_places=0.9, scored=((0.8, 0.1), (1.0, 0.3)), half_life_s=2.0
    )
    teacher = TEACHERS["oracle"].load(recipe, "segment")
    assert isinstance(teacher, Oracle)
    (found,) = teacher.spoilt_views(frame_of(camera("a")), Rows(), teacher.text(NUSCENES.prompts))
    named = class_map(found.segments)
    right = NUSCENES.class_of_fine[NUSCENES.fine_of_raw_labels(street())]
    counted = (named > 0) & (right > 0)
    wrong = counted & (named != right)
    assert wrong.sum() > 50
    assert found.score_map[wrong].max() <= 0.3 and found.score_map[counted & ~wrong].min() >= 0.8
