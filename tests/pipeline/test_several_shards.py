"""A worker of Ray on a (fake) GPU has several shards under way: the same bytes, and none is blamed for another."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests.recipe import Recipe
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, Task
from tests.pipeline import test_chaos as chaos

cluster, logs, recipe_of = chaos.cluster, chaos.logs, chaos.recipe_of
on_cluster, expected, device_name_as_it_was = chaos.on_cluster, chaos.expected, chaos.device_name_as_it_was


def test_a_gpu_has_several_shards_under_way_and_one_that_takes_workers_down_takes_no_other_with_it(
    on_cluster: Callable[..., Recipe], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was aboard with a shard that kills is tried alone, and not blamed twice."""
    marks = tmp_path / "marks"
    marks.mkdir()
    monkeypatch.setattr("pipeline.engine.ray_pool.START_S", 600.0)  # a busy machine starts the next worker late

    class Several(chaos.fake_gpu(0.5)):  # type: ignore[misc]
        def at_once(self, stage: str) -> int:
            return 3 if stage == "encode" else 1

        def run(self, task: Task) -> Outcome:
            if (task.stage, task.shard) == ("encode", "drive-1"):
                time.sleep(0.3)
                os.kill(os.getpid(), signal.SIGKILL)
            with self._lock:
                self.n_here = getattr(self, "n_here", 0) + 1
                if self.n_here > 1:
                    (marks / task.stage).touch()
            try:
                outcome: Outcome = super().run(task)
            finally:
                self.n_here -= 1
            return outcome

    recipe = on_cluster("run.workers=1")
    with RayPool(recipe, Several) as pool:
        [failure] = Runner(recipe).run(["encode"], pool)
    assert failure.shard == "drive-1" and "its worker died 2 times" in failure.cause
    assert [mark.name for mark in marks.iterdir()] == ["encode"]
    rest = {name: sha for name, sha in expected.items() if name != "encode/drive-1"}
    assert chaos.shards_of(recipe) == rest
    with RayPool(recipe, chaos.fake_gpu(0)) as pool:
        assert Runner(recipe).run(["encode"], pool) == []
    assert chaos.shards_of(recipe) == expected
