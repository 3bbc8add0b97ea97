"""Stage `encode` beside the bare loop of forward passes: what reading, packing and writing cost on top of the network.

`make bench` prints the numbers. The bare loop runs the same tower over batches that lie in memory already; the stage
reads JPEG files, resizes, fills the same batches, and writes and commits a shard.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.checks import DifferentResults
from bench.teacher_speed import bench_recipe, write_frames
from manifests.storage.store import Store
from manifests.tables.teacher import Encode
from pipeline.stages import encode
from pipeline.stages.base import FrameInput

IMAGES = 24
BATCH = 2  # what stage `encode` gives a network on a CPU
TOWER = {"model": "ViT-B-16-quickgelu", "weights": "random:0", "short_side_px": 224}


@dataclass(frozen=True)
class Overhead:
    """Least seconds of either way over the repeats, for all images, CPU and wall."""

    bare_cpu_s: float
    bare_wall_s: float
    stage_cpu_s: float
    stage_wall_s: float

    @property
    def cpu(self) -> float:
        """How many times the CPU time of the bare loop the stage takes."""
        return self.stage_cpu_s / self.bare_cpu_s

    @property
    def wall(self) -> float:
        """How many times the wall time of the bare loop the stage takes."""
        return self.stage_wall_s / self.bare_wall_s


def measure(repeats: int = 2, images: int = IMAGES, tower: dict[str, object] | None = None) -> Overhead:
    """Measure both ways in turns, after one batch that does not count.

    Raises DifferentResults unless the stage keeps what the bare loop computes, bit for bit, and RuntimeError if a frame
    fails.
    """
    import torch

    from pipeline.teachers.batches import Batches

    with tempfile.TemporaryDirectory(prefix="afov-bench-") as folder:
        root = Path(folder)
        frames = write_frames(root, images, 1600, 900)
        recipe = bench_recipe("clip_dense", root, tower or TOWER, ['run.device="cpu"'])
        stage = encode.stream(recipe)
        assert isinstance(stage, encode.InBatches) and isinstance(stage.batches, Batches) and stage.batch == BATCH
        teacher = stage.batches.teacher
        pixels = [teacher.prepare(frame, camera) for frame in frames for camera in frame.cameras]
        batches = [torch.from_numpy(np.stack(pixels[at : at + BATCH])) for at in range(0, len(pixels), BATCH)]
        store = Store.open(str(root / "store"))

        computed: list[NDArray[Any]] = []
        kept: list[NDArray[Any]] = []

        def bare() -> None:
            with torch.inference_mode():
                computed[:] = [grid for batch in batches for grid in teacher.forward(batch)["grid"].numpy()]

        def whole() -> None:
            kept.clear()
            with store.writer("encode", "00", "noise", "00", Encode.schema) as writer:
                for frame, row in zip(frames, stage(FrameInput(frame) for frame in frames), strict=True):
                    if isinstance(row, Exception):
                        raise RuntimeError(f"frame {frame.frame_id}: {row}")
                    writer.append(row)
                    kept.extend(row.encoding[f"{camera.name}/grid"] for camera in frame.cameras)
                writer.commit()

        with torch.inference_mode():
            teacher.forward(batches[0])
        times: dict[str, list[tuple[float, float]]] = {"bare": [], "stage": []}
        for _ in range(repeats):
            times["bare"].append(timed(bare))
            times["stage"].append(timed(whole))
            if not all(map(np.array_equal, computed, kept)) or len(computed) != len(kept):
                raise DifferentResults("stage encode keeps other grids than the tower gives for the same batches")
    (bare_cpu, bare_wall), (stage_cpu, stage_wall) = (np.min(times[way], axis=0) for way in ("bare", "stage"))
    return Overhead(float(bare_cpu), float(bare_wall), float(stage_cpu), float(stage_wall))


def timed(function: Callable[[], None]) -> tuple[float, float]:
    """Return CPU seconds of this process, all threads, and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - cpu, time.perf_counter() - wall
