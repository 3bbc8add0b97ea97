"""What it costs to plan a data set of nuScenes' size: CPU seconds, local and on an object store that is far away.

    python -m bench.planning [--scenes 850] [--frames 33] [--latency-ms 50]

Frames are listed from memory and their files are empty; shards of the ten tables of training are committed as sidecars
with stand-in files, since planning never opens a shard. Everything else is what `plan`, `status` and `why` do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np

from bench.slow_store import far_away
from manifests.fingerprint import DIGITS
from manifests.recipe import Recipe, load_recipe
from manifests.storage.seen import Seen, write_seen
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from pipeline.engine import planner as planning
from pipeline.engine.planner import Planner, names_in
from pipeline.engine.tasks import Task
from pipeline.frame import Camera, Frame
from pipeline.sources import key_with, stats_of
from pipeline.stages.registry import STAGES

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
STAND_IN = b"a stand-in for a shard; planning never opens it"
TARGETS = ("pairs", "target")


@dataclass(frozen=True)
class Listed:
    """A data set of `scenes` times `frames` key frames with six cameras, listed from memory."""

    scenes: int
    n_frames: int

    def frames(self) -> Iterator[Frame]:
        """Yield the frames, scene after scene."""
        return iter(self._listed)

    @cached_property
    def _listed(self) -> tuple[Frame, ...]:
        return tuple(self._made())

    def _made(self) -> Iterator[Frame]:
        eye = np.eye(4)
        for scene in range(self.scenes):
            for number in range(self.n_frames):
                name = f"{scene:04}_{number:03}"
                cameras = tuple(
                    Camera(
                        camera, f"{name}-{camera}", f"samples/{camera}/{name}.jpg", number * 500_000, eye[:3, :3], eye
                    )
                    for camera in CAMERAS
                )
                pose = eye.copy()
                pose[0, 3] = number
                yield Frame(
                    name, f"scene-{scene:04}", number * 500_000, name, f"samples/LIDAR_TOP/{name}.pcd.bin", None, eye,
                    pose, cameras,
                )  # fmt: skip


@dataclass(frozen=True)
class PlanCost:
    """Seconds of one way to plan: CPU of this process and time on the clock, the least of the turns."""

    name: str
    cpu_s: float
    wall_s: float


def recipe_in(folder: Path) -> Recipe:
    """Return the recipe that is planned: the SIMULATED teacher, labels that are voted and corrected."""
    recipe = load_recipe("city")
    return replace(
        recipe,
        data=replace(recipe.data, root=str(folder / "data")),
        target=replace(recipe.target, labels="vote+correct"),
        run=replace(recipe.run, store=str(folder / "store")),
    )


def fill(recipe: Recipe, listed: Listed) -> int:
    """Write empty files for all frames and commit a stand-in for every shard; return how many shards there are."""
    root, store = Path(recipe.data.root), Store.open(recipe.run.store)
    for folder in ("LIDAR_TOP", *CAMERAS):
        (root / "samples" / folder).mkdir(parents=True)
    for frame in listed.frames():
        for name in (frame.lidar_path, *(camera.image_path for camera in frame.cameras)):
            (root / name).touch()
    n_shards = 0
    while tasks := [shard.task for plan in Planner(recipe).plan(TARGETS) for shard in plan.shards if shard.task]:
        n_shards += len(tasks)
        for task in tasks:
            commit(store, recipe, task)
    return n_shards


def commit(store: Store, recipe: Recipe, task: Task) -> None:
    """Commit a stand-in for one shard, with digests of its columns as a worker would note them."""
    stage, key = STAGES[task.stage], task.key
    if files := stage.files(recipe):
        names = names_in(files, task.frames)
        content = hashlib.sha256("".join(names).encode()).hexdigest()
        key = key_with(task.key, content)
        write_seen(store, files.place, task.shard, task.key, Seen(stats_of(files.root, names), content))
    sha256 = hashlib.sha256(STAND_IN).hexdigest()
    columns = {name: hashlib.sha256(f"{key}{name}".encode()).hexdigest()[:DIGITS] for name in stage.apart}
    name = f"{task.shard}.{key}.{sha256[:DIGITS]}.parquet"
    shard = ShardFile(task.shard, key, name, max(task.n_frames, 1), len(STAND_IN), sha256, sha256, columns=columns)
    store.put_bytes(task.stage, task.fingerprint, shard, [STAND_IN])
    store.put_sidecar(task.stage, task.fingerprint, shard)


def cost(name: str, recipe: Recipe, turns: int, latency_s: float = 0.0) -> PlanCost:
    """Return what a plan costs in which every shard turns out to be built already; raises AssertionError otherwise."""
    cpu_s, wall_s = [], []
    for _ in range(turns):
        begun, clock = time.process_time(), time.monotonic()
        planner = Planner(recipe)
        if latency_s:
            planner.store = far_away(recipe.run.store, latency_s)
        plans = planner.plan(TARGETS)
        cpu_s.append(time.process_time() - begun)
        wall_s.append(time.monotonic() - clock)
        assert all(plan.complete for plan in plans), [plan.stage.name for plan in plans if not plan.complete]
    return PlanCost(name, min(cpu_s), min(wall_s))


def main(arguments: list[str] | None = None) -> None:
    """Print what planning costs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scenes", type=int, default=850)
    parser.add_argument("--frames", type=int, default=33, help="key frames of a scene")
    parser.add_argument("--latency-ms", type=float, default=50.0, help="of every request to the far store")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    listed = Listed(options.scenes, options.frames)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(planning, "open_dataset", return_value=listed):
        recipe = recipe_in(Path(folder))
        n_shards = fill(recipe, listed)
        costs = [
            cost("local", recipe, options.turns),
            cost(f"{options.latency_ms:g} ms away", recipe, 1, options.latency_ms / 1000),
        ]
    if options.json:
        print(json.dumps({"shards": n_shards, **{one.name: [one.cpu_s, one.wall_s] for one in costs}}))
        return
    print(
        f"planning {options.scenes * options.frames} frames in {options.scenes} scenes, {n_shards} shards, all built:"
    )
    for one in costs:
        print(f"  {one.name:12} {one.cpu_s:7.2f} CPU s {one.wall_s:7.2f} s")


if __name__ == "__main__":
    main()
