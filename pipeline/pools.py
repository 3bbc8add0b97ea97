"""Two ways to have shards built: in this process, or by Ray actors. The same worker, the same bytes."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from manifests.config import ConfigError
from pipeline.recipe import Recipe
from pipeline.runner import Failure, Outcome, Task, Worker
from pipeline.stages.base import Stage

LOST_WORKERS = 2  # a shard that took this many workers down is set aside instead of tried again


def make_pool(recipe: Recipe) -> InlinePool | RayPool:
    """Return the pool that the recipe's `[run]` section asks for; use it in a `with` block."""
    return RayPool(recipe) if recipe.run.pool == "ray" else InlinePool(recipe)


class InlinePool:
    """Builds one shard after the other in this process."""

    def __init__(self, recipe: Recipe) -> None:
        self._worker = Worker(recipe)

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, in order."""
        for task in tasks:
            yield task, self._worker.run(task)


class RayPool:
    """Builds shards on Ray Core actors: one shard at a time each, a lost actor replaced and its shard tried once more.

    Actors are kept from stage to stage unless the stage needs other resources. Ray Core and not Ray Data: the store
    needs its own file names, one writer per shard, and resume keyed by recipe. Raises RuntimeError on entry if Ray
    cannot be started or reached.
    """

    def __init__(self, recipe: Recipe, worker: type[Worker] = Worker) -> None:
        self._recipe, self._worker = recipe, worker
        self._idle: list[Any] = []
        self._gpus = 0.0

    def __enter__(self) -> RayPool:
        self._ray = connect(self._recipe)
        cpus = float(self._ray.cluster_resources().get("CPU", 1.0))
        # a worker takes a whole CPU unless there are fewer CPUs than workers
        self._cpus = min(1.0, cpus / self._recipe.run.workers)
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss(self._idle)

    def _dismiss(self, actors: list[Any]) -> None:
        while actors:
            self._ray.kill(actors.pop())

    def _hire(self) -> Any:
        remote = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0)(self._worker)
        return remote.remote(self._recipe)

    def _places(self, stage: Stage, gpus: float) -> int:
        """Return how many workers the cluster has room for: an actor that is never placed would wait for ever."""
        workers = self._recipe.run.workers
        if gpus:
            nodes = [node["Resources"].get("GPU", 0.0) for node in self._ray.nodes() if node["Alive"]]
            workers = min(workers, sum(int(node // gpus) for node in nodes))
        if not workers:
            raise RuntimeError(
                f"stage {stage.name} wants {gpus} GPUs a worker, and no node of this Ray cluster has as many; lower "
                "run.gpus_per_worker (for segments run.segment_gpus), or set it to 0 for the CPU"
            )
        return workers

    def run(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, as they come; raises ConfigError where the recipe is at fault."""
        gpus = stage.gpus(self._recipe) or 0.0
        if gpus != self._gpus:
            self._dismiss(self._idle)
            self._gpus = gpus
        workers = self._places(stage, gpus)
        waiting = deque((task, 0) for task in tasks)
        busy: dict[Any, tuple[Any, Task, int]] = {}
        try:
            while waiting or busy:
                while waiting and len(busy) < workers:
                    actor = self._idle.pop() if self._idle else self._hire()
                    task, lost = waiting.popleft()
                    busy[actor.run.remote(task)] = actor, task, lost
                ready, _ = self._ray.wait(list(busy), num_returns=1)
                actor, task, lost = busy.pop(ready[0])
                try:
                    outcome = self._ray.get(ready[0])
                except self._ray.exceptions.RayActorError as error:
                    if lost + 1 < LOST_WORKERS:
                        waiting.append((task, lost + 1))
                        continue
                    outcome = lost_outcome(task, f"its worker died {lost + 1} times: {error}")
                except self._ray.exceptions.RayTaskError as error:
                    self._idle.append(actor)
                    if isinstance(error.cause, ConfigError):
                        raise error.cause from None
                    outcome = lost_outcome(task, str(error))
                except self._ray.exceptions.RayError as error:
                    self._idle.append(actor)
                    outcome = lost_outcome(task, str(error))
                else:
                    self._idle.append(actor)
                yield task, outcome
        finally:
            self._dismiss([actor for actor, _, _ in busy.values()])


def lost_outcome(task: Task, cause: str) -> Outcome:
    """Return the outcome of a shard that no worker could finish."""
    return Outcome(None, (Failure(task.stage, task.shard, None, " ".join(cause.split())[:300]),))


def connect(recipe: Recipe) -> Any:
    """Return the ray module, connected to the cluster at `run.ray_address` or to a local one started for this run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray 2.60 would otherwise blank CUDA_VISIBLE_DEVICES for workers without GPUs and warn about it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        local = recipe.run.ray_address == "local"
        options: dict[str, Any] = {"address": recipe.run.ray_address}
        if local:
            options |= {
                "num_cpus": max(recipe.run.workers, os.cpu_count() or 1),
                "include_dashboard": False,
                "object_store_memory": 256 * 2**20,  # tasks and outcomes are small: rows go through the store
            }
        root = str(Path(__file__).parent.parent)
        try:
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": root}},
            )
        except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
            raise RuntimeError(f"Ray at run.ray_address = {recipe.run.ray_address!r} cannot be used: {error}") from None
    return ray
