"""Two ways to have shards built: in this process, or by Ray actors. The same worker, the same bytes."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from manifests.config import ConfigError
from pipeline.recipe import Recipe
from pipeline.runner import Failure, Outcome, Task, Worker
from pipeline.stages.base import Stage

LOST_WORKERS = 2  # a shard that took this many workers down is set aside instead of tried again
LOST_NODES = 10  # a shard that was aboard this many nodes that went away is set aside as well
LOOK_S = 5.0  # how often to look up while nothing happens
PATIENCE_S = 900.0  # how long a cluster without room for any worker may take to get some: autoscalers take minutes


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


@dataclass
class Hand:
    """An actor, and the node it runs on once that is known."""

    actor: Any
    node: str = ""


class RayPool:
    """Builds shards on Ray Core actors: one shard at a time each, lost ones replaced wherever there is room.

    A shard is handed to an actor that has been placed and has answered, never to one that still waits for a node: a
    cluster that shrinks under a run slows it down and does not stop it. A shard whose worker died is tried once more,
    by another worker; one that was aboard a node that went away is not to blame, and is tried again more often. Actors
    are kept from stage to stage unless the stage needs other resources.

    Ray Core and not Ray Data: the store needs its own file names, one writer per shard, and resume keyed by recipe.
    Raises RuntimeError on entry if Ray cannot be started or reached.
    """

    def __init__(self, recipe: Recipe, worker: type[Worker] = Worker) -> None:
        self._recipe, self._worker = recipe, worker
        self._idle: list[Hand] = []
        self._gpus = 0.0

    def __enter__(self) -> RayPool:
        self._ray = connect(self._recipe)
        cpus = float(self._ray.cluster_resources().get("CPU", 1.0))
        # a worker takes a whole CPU unless there are fewer CPUs than workers
        self._cpus = min(1.0, cpus / self._recipe.run.workers)
        return self

    def __exit__(self, *_: object) -> None:
        self._dismiss(self._idle)

    def _dismiss(self, hands: list[Hand]) -> None:
        while hands:
            self._ray.kill(hands.pop().actor)

    def _hire(self) -> tuple[Any, Hand]:
        """Return a new actor, and the reference of its first answer: the node that it was placed on."""
        remote = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus, max_restarts=0)(placed(self._worker))
        actor = remote.remote(self._recipe)
        return actor.where.remote(), Hand(actor)

    def _places(self, stage: Stage, gpus: float) -> int:
        """Return how many workers the cluster has room for; raises RuntimeError where it has room for none."""
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

    def _alive(self, node: str) -> bool:
        return any(one["NodeID"] == node and one["Alive"] for one in self._ray.nodes())

    def run(self, stage: Stage, tasks: Sequence[Task]) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, as they come; raises ConfigError where the recipe is at fault.

        No more than `run.workers` shards are under way at any time, and the next one waits until the caller has taken
        an outcome.
        """
        gpus = stage.gpus(self._recipe) or 0.0
        if gpus != self._gpus:
            self._dismiss(self._idle)
            self._gpus = gpus
        workers = self._places(stage, gpus)
        errors = self._ray.exceptions
        waiting = deque((task, Losses()) for task in tasks)
        busy: dict[Any, tuple[Hand, Task, Losses]] = {}
        hired: dict[Any, Hand] = {}
        refused = 0  # hires in a row that came to nothing
        last_sign = time.monotonic()
        try:
            while waiting or busy:
                while waiting and self._idle:
                    hand = self._idle.pop()
                    task, losses = waiting.popleft()
                    busy[hand.actor.run.remote(task)] = hand, task, losses
                while len(hired) < min(workers - len(busy), len(waiting)):
                    reference, hand = self._hire()
                    hired[reference] = hand
                ready, _ = self._ray.wait([*busy, *hired], num_returns=1, timeout=LOOK_S)
                if not ready:
                    if not busy and time.monotonic() - last_sign > PATIENCE_S:
                        yield from given_up(waiting, f"no node had room for one in {PATIENCE_S:.0f} s")
                    continue
                last_sign = time.monotonic()
                if ready[0] in hired:
                    hand = hired.pop(ready[0])
                    try:
                        hand.node = self._ray.get(ready[0])
                    except errors.RayError as error:
                        refused += 1
                        if refused > workers and not busy:
                            yield from given_up(waiting, str(error))
                    else:
                        refused = 0
                        self._idle.append(hand)
                    continue
                hand, task, losses = busy.pop(ready[0])
                try:
                    outcome = self._ray.get(ready[0])
                except errors.RayActorError as error:
                    if self._alive(hand.node):
                        losses = replace(losses, workers=losses.workers + 1)
                    else:
                        losses = replace(losses, nodes=losses.nodes + 1)
                    if losses.workers < LOST_WORKERS and losses.nodes < LOST_NODES:
                        waiting.append((task, losses))
                        continue
                    outcome = lost_outcome(task, f"{losses.told}: {error}")
                except errors.RayTaskError as error:
                    self._idle.append(hand)
                    if isinstance(error.cause, ConfigError):
                        raise error.cause from None
                    outcome = lost_outcome(task, str(error))
                except errors.RayError as error:
                    self._idle.append(hand)
                    outcome = lost_outcome(task, str(error))
                else:
                    self._idle.append(hand)
                yield task, outcome
        finally:
            self._dismiss([*(hand for hand, _, _ in busy.values()), *hired.values()])


@dataclass(frozen=True)
class Losses:
    """How many workers died over a shard, and how many nodes went away with it aboard."""

    workers: int = 0
    nodes: int = 0

    @property
    def told(self) -> str:
        """The losses in words."""
        return f"its worker died {self.workers} times, its node went away {self.nodes} times"


def placed(worker: type[Worker]) -> type[Worker]:
    """Return the worker with a method that tells on which node it runs."""

    class Placed(worker):  # type: ignore[misc, valid-type]
        def where(self) -> str:
            import ray

            return str(ray.get_runtime_context().get_node_id())

    return Placed


def given_up(waiting: deque[tuple[Task, Losses]], cause: str) -> Iterator[tuple[Task, Outcome]]:
    """Empty the queue: yield every task that waits as one that nobody could be found for."""
    while waiting:
        task, _ = waiting.popleft()
        yield task, lost_outcome(task, f"no worker could be started: {cause}")


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
