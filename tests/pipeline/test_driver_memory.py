"""What the driver keeps of a large data set in memory: nothing by frame, only by shard."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from manifests.recipe import load_recipe
from manifests.storage.shards import ShardFile
from pipeline.engine import planner as module
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, Queue, Task
from pipeline.frame import Frame

SCENES = 40


def simulated(n_frames: int) -> Iterator[Frame]:
    """A listing of that many frames, in 40 scenes, with arrays of their own."""
    for number in range(n_frames):
        name, scene = f"frame-{number:06d}", f"scene-{number * SCENES // n_frames:04d}"
        yield Frame(name, scene, number, name, f"{name}.bin", None, np.eye(4), np.eye(4), ())


class Committed:
    """A pool that says that every shard is built."""

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        while stages := queue.stages():
            task = queue.take(stages[0])
            sha = "0" * 64
            name = f"{task.shard}.{task.key}.{sha[:12]}.parquet"
            yield task, Outcome(ShardFile(task.shard, task.key, name, task.n_frames, 1, sha, sha))


def kept_by_a_run(n_frames: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that a driver keeps after listing the frames and a run over three stages."""
    monkeypatch.setattr(
        module, "open_dataset", lambda data: type("Simulated", (), {"frames": lambda _: simulated(n_frames)})()
    )
    runner = Runner(load_recipe(path, [f"run.store={path.parent / str(n_frames)}"]))
    monkeypatch.setattr(runner, "_index_digest", lambda *_: "00")  # reads shards, which nobody wrote
    gc.collect()
    tracemalloc.start()
    try:
        assert sum(len(frames) for frames in runner.listing().values()) == n_frames
        assert runner.run(["points", "project"], Committed()) == []
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_run_keeps_nothing_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        f'[data]\nroot = "{tmp_path}"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\n'
    )
    kept_by_a_run(40, path, monkeypatch)  # imports and caches
    few = kept_by_a_run(40, path, monkeypatch)
    # as many shards, 60 times the frames; other threads of this process may keep something meanwhile, not every time
    growth = (kept_by_a_run(SCENES * 60, path, monkeypatch) - few for _ in range(4))
    assert any(one < 10 * (SCENES * 60 - 40) for one in growth)  # under ten bytes a frame
