"""The simulated teacher's mistakes in several images: those of places that stay, and boundaries that do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

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
