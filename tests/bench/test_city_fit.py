"""The presets of the city and real mistakes: what counts as the teacher's own, what is searched for, what is told."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from bench import city_fit
from bench.city_fit import WORTH, Answer, City, calibrated, config_of, faults, told, without_noise
from bench.real_errors import Lasting
from bench.real_fit import Sweep
from manifests.recipe import load_recipe
from manifests.sections.teachers.oracle import OracleConfig
from manifests.tables.base import Rows
from manifests.tables.labels import Label
from manifests.tables.sensors import Points, Project
from pipeline.frame import Frame

RECIPE = load_recipe("san_like")


def sweep(label: list[int], time_us: int = 0) -> Sweep:
    """Points of class 1, 5 m apart; a camera sees all but the last."""
    n = len(label)
    xyz_m = np.zeros((n, 3), np.float32)
    xyz_m[:, 0] = 5.0 * np.arange(n)
    truth, seen = np.ones(n, np.uint8), np.arange(n - 1)
    zero = np.zeros(n - 1)
    rows = Rows(
        Points(frame_id="f", n_points=n, xyz_m=xyz_m, intensity=np.zeros(n, np.float32)),
        Label(frame_id="f", label=truth, raw=truth.astype(np.uint16)),
        Project(
            frame_id="f",
            point=seen.astype(np.int32),
            view=zero.astype(np.uint8),
            u_px=zero.astype(np.float32),
            v_px=zero.astype(np.float32),
            row_px=zero.astype(np.uint16),
            col_px=zero.astype(np.uint16),
            depth_m=zero.astype(np.float32),
            occluded=zero.astype(np.bool_),
        ),
    )
    frame = Frame("f", "s", time_us, "l", "l.bin", None, np.eye(4), np.eye(4), (), n_points=n)
    return Sweep(frame, rows, np.array(label, np.uint8), np.full(n, 200, np.uint8))


def test_mistakes_that_perfect_maps_make_too_are_not_the_teacher_s_own() -> None:
    sweeps = [sweep([2, 2, 1, 1, 1]), sweep([2, 1, 1, 1, 1], 500_000), sweep([3, 1, 1, 1, 1], 1_000_000)]
    perfect = [one.label for one in (sweep([1, 2, 1, 1, 1]), sweep([1, 1, 1, 1, 1]), sweep([1, 1, 1, 1, 1]))]
    answer = Answer(RECIPE, sweeps, perfect)
    every, own = (answer.lasting(own=one) for one in (False, True))
    assert [(one.gap_s, one.met, one.wrong, one.alike) for one in every] == [(0.5, 3, 2, 1), (1.0, 2, 1, 0)]
    assert [(one.met, one.wrong, one.alike) for one in own] == [(2, 2, 1), (1, 1, 0)]
    answer.__dict__["voted"] = [np.ones(5, np.uint8), np.array([1, 1, 2, 1, 1], np.uint8), np.ones(5, np.uint8)]
    assert answer.balance(own=False) == (4, 1) and answer.balance(own=True) == (3, 1)
    assert answer.labels_worth == pytest.approx(8 / 12), "of class 1 eight of twelve in sight; 2 and 3 do not occur"


@dataclass
class Line:
    """In place of a city: worth falls along a line with confusion."""

    asked: list[float]

    def answer(self, config: OracleConfig) -> Any:
        self.asked.append(config.confusion)

        @dataclass
        class Found:
            recipe: Any
            labels_worth: float

        return Found(replace(RECIPE, teacher=config), 0.9 - 0.6 * config.confusion)


def test_confusion_is_found_that_labels_have_the_worth_they_are_meant_to_have() -> None:
    city: Any = Line([])
    assert isinstance(RECIPE.teacher, OracleConfig)
    found = calibrated(city, replace(RECIPE.teacher, confusion=0.1), 0.55)
    assert config_of(found).confusion == pytest.approx(0.35 / 0.6, abs=0.01) and len(city.asked) <= city_fit.MOST_TRIES


def test_what_is_off_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Answer(RECIPE, [sweep([1, 1, 2, 1, 1])], [np.ones(5, np.uint8)])
    answer.__dict__["voted"] = [np.ones(5, np.uint8)]
    good = [Lasting(0.5, 100, 87, 71), Lasting(1.0, 100, 83, 69)]
    monkeypatch.setattr(Answer, "lasting", lambda self, own: good)
    monkeypatch.setattr(Answer, "labels_worth", 0.55)
    assert list(faults(answer, 0.55)) == []
    assert any("the vote mends 1 and spoils 0" in line for line in told(answer))
    good[1] = Lasting(1.0, 100, 75, 69)
    monkeypatch.setattr(Answer, "labels_worth", 0.58)
    assert list(faults(answer, 0.55)) == [
        "labels come to 58.0 mIoU and are meant to have 55",
        "after 1.0 s wrong again: -8.0 points beside real mistakes",
    ]


def test_the_presets_are_those_whose_worth_is_known_and_a_teacher_without_noise_has_none() -> None:
    for name in WORTH:
        teacher = load_recipe(name).teacher
        assert isinstance(teacher, OracleConfig) and teacher.source == "maps"
        clean = without_noise(teacher)
        assert not any((clean.confusion, clean.drop, clean.merge, clean.boundary_shift_px, clean.jitter_px))
    assert City.__doc__
