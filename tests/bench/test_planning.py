from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from bench.planning import TARGETS, Listed, cost, fill, recipe_in
from bench.slow_store import Late, far_away
from bench.voting import measure
from pipeline.engine import planner as planning
from pipeline.engine.planner import Planner


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listed:
    some = Listed(3, 2)
    monkeypatch.setattr(planning, "open_dataset", lambda data: some)
    return some


def test_a_plan_asks_a_far_store_once_for_every_sidecar_and_note_and_thrice_for_a_folder(
    tmp_path: Path, listed: Listed
) -> None:
    recipe = recipe_in(tmp_path)
    n_shards = fill(recipe, listed)
    planner = Planner(recipe)
    planner.store = far_away(recipe.run.store, 0.0)
    with mock.patch.object(Late, "_wait") as asked:
        plans = planner.plan(TARGETS)
    assert all(plan.complete for plan in plans)
    assert sum(len(plan.shards) for plan in plans) == n_shards == 3 * (len(plans) - 1) + 1  # `text` has one for all
    notes = 2 * listed.scenes  # of the files of `index` and of the maps that the simulated teacher reads
    assert asked.call_count <= n_shards + notes + 3 * len(plans)


def test_a_plan_of_what_is_built_builds_nothing_near_or_far(tmp_path: Path, listed: Listed) -> None:
    recipe = recipe_in(tmp_path)
    fill(recipe, listed)
    assert cost("near", recipe, turns=1).cpu_s > 0
    assert cost("far", recipe, turns=1, latency_s=0.001).wall_s > 0.01
    (Path(recipe.data.root) / "samples/LIDAR_TOP/0001_001.pcd.bin").write_bytes(b"another sweep")
    with pytest.raises(AssertionError, match="index"):
        cost("changed", recipe, turns=1)


def test_the_bench_of_votes_measures_a_sweep_of_the_street() -> None:
    found = measure(1)
    assert found.n_points > 30_000
    assert np.isclose(found.cpu_min_s, found.cpu_median_s)
