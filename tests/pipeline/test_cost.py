"""Hours and GB of a run: from what was measured in the store where there is something, and never made up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manifests import rates
from manifests.recipe import Recipe, load_recipe
from manifests.records.table import Built
from manifests.storage.manifest import Manifest
from pipeline.__main__ import app
from pipeline.engine.cost import MEASURED_BY, MEASURED_S, costs, learning_costs
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.stages.registry import PACKED
from tests.refs import identity


@pytest.fixture
def recipe_of(shared: Path, tiny: Any, tmp_path: Path) -> Callable[..., Recipe]:
    path = tmp_path / "tiny.toml"
    masks = shared / "golden" / "superpixels_tiny"
    path.write_text(
        f'[data]\nroot = "{tiny.path}"\n[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{masks}"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\n'
    )
    return lambda *overrides: load_recipe(path, overrides)


def found(recipe: Recipe) -> dict[str, Any]:
    runner = Runner(recipe)
    return {cost.stage: cost for cost in costs(runner, runner.plan(PACKED))}


def test_without_any_run_the_measurement_counts_and_networks_are_not_guessed(
    recipe_of: Callable[..., Recipe], tmp_path: Path, tiny: Any
) -> None:
    before = found(recipe_of())
    assert before["points"].hours == pytest.approx(3 * MEASURED_S["points"] / 3600)
    assert before["points"].source == MEASURED_BY and before["text"].hours == 0
    path = tmp_path / "dense.toml"
    path.write_text(
        f'[data]\nroot = "{tiny.path}"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\n'
    )
    dense = found(load_recipe(path))
    assert dense["encode"].hours is None and dense["segment"].hours is None and dense["encode"].gigabytes > 0


def test_a_run_of_one_scene_tells_what_the_other_will_cost(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("scene-0001\n")  # two frames; scene-0008 has one
    one = recipe_of(f"data.split={tmp_path / 'one.txt'}")
    assert Runner(one).run(PACKED, InlinePool(one)) == []
    after = found(recipe_of())
    assert {cost.n_frames for cost in after.values()} == {1, 0}
    assert "2 frames of this store" in after["project"].source and after["project"].hours > 0
    [shard] = [item for item in Runner(one).plan(["project"])[-1].done.values()]
    assert after["project"].gigabytes == pytest.approx(shard.bytes / 2 / 1e9)
    changed = found(recipe_of("project.cell_px=16"))
    assert "other settings" in changed["project"].source
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "tiny.toml"), "--cost"], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "hours of one worker" in done.output and "this store" in done.output, done.output


@pytest.mark.parametrize(
    ("work", "seconds"),
    [
        ({"frames": 10, "seconds": 5.0, "workers": 4}, 2.0),
        ({"frames": 0, "seconds": 5.0, "workers": 4}, None),
        ({"frames": "ten"}, None),
        (None, None),
    ],
)
def test_a_manifest_tells_worker_seconds_or_nothing(work: Any, seconds: float | None) -> None:
    how = Manifest("points", "00", identity("points"), (), {"work": work}).how(Built)
    assert (how.work and how.work.seconds_per_frame) == seconds


def test_trainings_and_networks_are_told_from_the_pages_and_marked(
    recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Any
) -> None:
    splits = [f"{name}.split=all" for name in ("pretrain", "distill", "predict")]
    recipe = recipe_of(*splits, "run.device=cpu", "distill.epochs=7", "refine.by=vote")
    after = {cost.stage: cost for cost in learning_costs(Runner(recipe))}
    assert list(after) == ["pretrain", "distill", "predict", "refine"]
    assert after["distill"].n_frames == 3 and after["distill"].source == "docs/benchmarks.md: on one core, 7 epochs"
    assert after["distill"].hours == pytest.approx((rates.STARTS_S + 3 * 7 / 0.43) / 3600)
    assert after["refine"].hours == pytest.approx((rates.STARTS_S + 3 * 0.22) / 3600)
    scratch = recipe_of(*splits, "distill.init=", "predict.checkpoint=x.safetensors")
    assert [cost.stage for cost in learning_costs(Runner(scratch))] == ["predict", "refine"]
    monkeypatch.setattr(rates, "device_of", lambda recipe: "gpu")
    faster = {cost.stage: cost for cost in learning_costs(Runner(recipe))}
    hours = faster["distill"].hours, after["distill"].hours
    assert "on one H100" in faster["distill"].source and hours[0] and hours[1] and hours[0] < hours[1]
    path = tmp_path / "dense.toml"
    path.write_text(
        f'[data]\nroot = "{tiny.path}"\n[teacher]\nname = "clip_dense"\nmodel = "ViT-B-16-quickgelu"\n'
        f'weights = "random:0"\n[run]\nstore = "{tmp_path / "store"}"\n'
    )
    encode = found(load_recipe(path))["encode"]
    assert encode.hours == pytest.approx(3 * 6 / 78 / 3600) and "on one H100" in encode.source
    assert found(load_recipe(path, ["run.device=cpu"]))["encode"].hours is None, "no page tells it of a CPU"
