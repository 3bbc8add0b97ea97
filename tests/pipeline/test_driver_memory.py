"""What the driver keeps of a large data set in memory: nothing by frame, only by shard."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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


def kept_by_a_run(n_frames: int, path: Path) -> int:
    """Bytes that a driver keeps after listing the frames and a run over three stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            module, "open_dataset", lambda data: type("Simulated", (), {"frames": lambda _: simulated(n_frames)})()
        )
        runner = Runner(load_recipe(path, [f"run.store={path.parent / str(n_frames)}"]))
        patch.setattr(runner, "_index_digest", lambda *_: "00")  # reads shards, which nobody wrote
        gc.collect()
        tracemalloc.start()
        try:
            assert sum(len(frames) for frames in runner.listing().values()) == n_frames
            assert runner.run(["points", "project"], Committed()) == []
            gc.collect()
            sys._clear_type_cache()  # holds thousands of the names that NumPy makes anew whenever an array is pickled
            return tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()


def growth(path: Path) -> int:
    """Bytes that 60 times the frames in as many shards add to what a driver keeps."""
    kept_by_a_run(SCENES, path)  # imports and caches
    return kept_by_a_run(SCENES * 60, path) - kept_by_a_run(SCENES, path)


def test_a_run_keeps_nothing_by_frame(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        f'[data]\nroot = "{tmp_path}"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\nweights = "random:0"\n'
    )
    # a process of its own: threads that other tests left in this one keep something meanwhile, and it would be counted
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as alone:
        grown = alone.submit(growth, path).result()
    assert grown < 10 * SCENES * 59  # under ten bytes a frame
