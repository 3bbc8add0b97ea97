"""What `python -m trainer check` finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from manifests.recipe import load_recipe
from trainer import machine


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text('[data]\nroot = "data"\n[network]\nengine = "torch"\n[predict]\nsplit = "mini_val"\n')
    return path


def test_the_engine_is_compared_and_the_splits_are_told(recipe_path: Path) -> None:
    found = machine.look_at(load_recipe(recipe_path, ["run.device=cpu"]))
    assert found.problem == "" and found.device == "cpu" and found.error is not None and found.error < 1e-5
    assert found.splits["predict"] == "mini_val" and found.splits["distill"] == "train"
    assert json.loads(found.json())["engine"] == "torch"
    assert any("dense convolutions" in sentence for sentence in found.sentences())


def test_an_engine_that_computes_wrongly_and_a_gpu_that_is_not_there_are_problems(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "run.device" in machine.look_at(load_recipe(recipe_path, ["run.device=cuda:99"])).problem

    def wrong(*_: object) -> float:
        raise RuntimeError("this build computes wrong numbers")

    monkeypatch.setattr(machine, "check_engine", wrong)
    found = machine.look_at(load_recipe(recipe_path, ["run.device=cpu"]))
    assert found.error is None and list(found.sentences())[-1] == "this build computes wrong numbers"
