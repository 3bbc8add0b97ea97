"""Two ways to have shards built: in this process, or by Ray actors. The same worker, the same bytes."""

from __future__ import annotations

import logging
import math
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from manifests.config import ConfigError
from pipeline.engine.tasks import Failure, Outcome, Queue, Task
from pipeline.engine.worker import Worker
from pipeline.recipe import Recipe
from pipeline.stages import STAGES

_log = logging.getLogger(__name__)

LOST_WORKERS = 2  # a shard that took this many workers down is set aside instead of tried again
LOST_NODES = 10  # a shard that was aboard this many nodes that went away is set aside as well
FULL_DISKS = 2  # a node whose disk had no room for this many shards gets no more
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

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, stage by stage; raises ConfigError where the recipe is at fault."""
        n_full = 0
        while stages := queue.stages():
            if n_full >= FULL_DISKS:
                yield from given_up(queue, stages, "not tried, since the disk is full; free space and run again")
                continue
            task = queue.take(stages[0])
            outcome = self._worker.run(task)
            n_full += outcome.disk_full
            yield task, outcome


@dataclass
class Hand:
    """An actor, the stage it last worked for, and the node it runs on once that is known."""

    actor: Any
    node: str = ""
    stage: str = ""


@dataclass
class Lane:
    """The workers that take the same share of a GPU: `room` is how many there may be, `stages` those they work for.

    `hired` are not placed yet; `busy` is how many have a shard; `refused` counts hires in a row that came to nothing;
    `asked` is when it began to ask for those that are hired.
    """

    gpus: float
    room: int = 0
    stages: set[str] = field(default_factory=set)
    idle: list[Hand] = field(default_factory=list)
    hired: dict[Any, Hand] = field(default_factory=dict)
    busy: int = 0
    refused: int = 0
    asked: float = 0.0

    @property
    def starves(self) -> bool:
        """Whether it has asked for workers in vain for a while, and has none."""
        return bool(self.hired) and not (self.busy or self.idle) and time.monotonic() - self.asked > LOOK_S


class RayPool:
    """Builds shards on Ray Core actors: one shard at a time each, lost ones replaced wherever there is room.

    Stages that take the same share of a GPU have one lane of workers, and lanes work side by side: while GPUs encode
    some shards, CPUs list others and segment those that are encoded. Workers on GPUs take no CPU in Ray's books, so
    that none on a CPU can be in their place. A worker stays with its stage while that has tasks, since another one
    would load its network anew.

    A shard is handed to an actor that has been placed and has answered, never to one that still waits for a node: a
    cluster that shrinks under a run slows it down and does not stop it. A shard whose worker died is tried once more,
    by another worker; one that was aboard a node that went away is not to blame, and is tried again more often. A node
    whose disk is full is left out for the rest of the run; its shards go to others that have room for a worker.

    Ray Core and not Ray Data: the store needs its own file names, one writer per shard, and resume keyed by recipe.
    Raises on entry ConfigError for a store that workers would look for elsewhere, and RuntimeError if Ray cannot be
    started or reached.
    """

    def __init__(self, recipe: Recipe, worker: type[Worker] = Worker) -> None:
        self._recipe, self._worker = recipe, worker
        self._lanes: dict[float, Lane] = {}
        self._full: Counter[str] = Counter()  # shards that the disk of a node had no room for

    def __enter__(self) -> RayPool:
        run = self._recipe.run
        if run.ray_address != "local" and "://" not in run.store and not Path(run.store).expanduser().is_absolute():
            raise ConfigError(
                f'run.store is "{run.store}", and each worker of a cluster would look for it in a folder of its own: '
                "give an absolute path that all machines see, or s3://bucket/folder"
            )
        self._ray = connect(self._recipe)
        cpus = float(self._ray.cluster_resources().get("CPU", 1.0))
        # a worker takes a whole CPU unless there are fewer CPUs than workers; Ray counts in steps of 0.0001
        self._cpus = min(1.0, math.floor(cpus / self._recipe.run.workers * 1e4) / 1e4)
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes.values():
            self._dismiss(lane.idle)

    def _dismiss(self, hands: list[Hand]) -> None:
        while hands:
            self._ray.kill(hands.pop().actor)

    def _hire(self, lane: Lane) -> None:
        """Ask for an actor; the first thing it answers is the node that it was placed on."""
        if not lane.hired:
            lane.asked = time.monotonic()
        cpus = 0.0 if lane.gpus else self._cpus
        left_out = ",".join(sorted(self._left_out()))
        where = {"label_selector": {"ray.io/node-id": f"!in({left_out})"}} if left_out else {}
        remote = self._ray.remote(num_cpus=cpus, num_gpus=lane.gpus, max_restarts=0, **where)(placed(self._worker))
        actor = remote.remote(self._recipe)
        lane.hired[actor.where.remote()] = Hand(actor)

    def _places(self, stage: str, gpus: float) -> int:
        """Return how many workers the cluster has room for; raises RuntimeError where it has room for none."""
        workers = self._recipe.run.workers
        if gpus:
            workers = min(workers, sum(int(node["Resources"]["GPU"] // gpus) for node in self._nodes(gpus)))
        if not workers:
            raise RuntimeError(
                f"stage {stage} wants {gpus} GPUs a worker, and no node of this Ray cluster has as many; lower "
                "run.gpus_per_worker (for segments run.segment_gpus), or set it to 0 for the CPU"
            )
        return workers

    def _nodes(self, gpus: float) -> list[Any]:
        """Return the nodes that can have a worker with this share of a GPU, and take shards."""
        kind, share = ("GPU", gpus) if gpus else ("CPU", self._cpus)
        able = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get(kind, 0.0) >= share]
        return [node for node in able if node["NodeID"] not in self._left_out()]

    def _left_out(self) -> set[str]:
        """Return the nodes that get no more shards, since their disks are full."""
        return {node for node, n_shards in self._full.items() if n_shards >= FULL_DISKS}

    def _note_full(self, lane: Lane, hand: Hand, outcome: Outcome) -> Outcome | None:
        """Count a shard that a disk had no room for; return None if another node may have, else the outcome, told so.

        A node where it happens again is left out.
        """
        self._full[hand.node] += 1
        name = next((named(node) for node in self._ray.nodes() if node["NodeID"] == hand.node), hand.node)
        failures = tuple(replace(failure, cause=f"{name}: {failure.cause}") for failure in outcome.failures)
        if self._full[hand.node] == FULL_DISKS:
            _log.warning(
                "%s gets no more shards in this run: its disk is full. Free space there; runs that start afterwards "
                "use it again (%s)", name, "; ".join(failure.cause for failure in outcome.failures),
            )  # fmt: skip
            for other in self._lanes.values():
                self._dismiss([one for one in other.idle if one.node == hand.node])
                other.idle = [one for one in other.idle if one.node != hand.node]
                other.stages.clear()  # the room for workers is counted anew
        return None if self._nodes(lane.gpus) else replace(outcome, failures=failures)

    def _without_node(self, queue: Queue) -> list[str]:
        """Return the stages in the queue that no node is left for, since disks are full."""
        if not self._left_out():
            return []
        return [stage for stage in queue.stages() if not self._nodes(STAGES[stage].gpus(self._recipe) or 0.0)]

    def _free(self, lane: Lane, hand: Hand) -> None:
        """Have a worker wait for its next shard, or let it go if its node gets none any more."""
        if hand.node in self._left_out():
            self._dismiss([hand])
        else:
            lane.idle.append(hand)

    def _alive(self, node: str) -> bool:
        return any(one["NodeID"] == node and one["Alive"] for one in self._ray.nodes())

    def _lane(self, stage: str) -> Lane:
        """Return the lane of a stage; raises RuntimeError where the cluster has no room for its workers."""
        gpus = STAGES[stage].gpus(self._recipe) or 0.0
        lane = self._lanes.setdefault(gpus, Lane(gpus))
        if stage not in lane.stages:
            lane.room = self._places(stage, gpus)
            lane.stages.add(stage)
        return lane

    def _hand_out(self, queue: Queue, busy: dict[Any, tuple[Lane, Hand, Task]]) -> None:
        """Give tasks to the workers that have none, and hire as many as there is room and work for."""
        for stage in queue.stages():
            lane = self._lane(stage)
            while lane.idle and queue.count(lane.stages):
                hand = next((one for one in lane.idle if queue.count([one.stage])), lane.idle[-1])
                lane.idle.remove(hand)
                if not queue.count([hand.stage]):
                    hand.stage = next(name for name in queue.stages() if name in lane.stages)
                task = queue.take(hand.stage)
                busy[hand.actor.run.remote(task)] = lane, hand, task
                lane.busy += 1
            while len(lane.hired) < min(lane.room - lane.busy, queue.count(lane.stages)):
                self._hire(lane)

    def _make_room(self, queue: Queue) -> None:
        """Let idle workers on GPUs go where a lane has tasks and no worker at all: they may be in its place."""
        if any(lane.starves for lane in self._lanes.values()):
            for lane in self._lanes.values():
                if lane.gpus and not queue.count(lane.stages):
                    self._dismiss(lane.idle)

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, as they come; raises ConfigError where the recipe is at fault.

        No more than `run.workers` shards of a lane are under way at any time, and the next ones wait until the caller
        has taken an outcome. An error is raised when what was under way has come to its end.
        """
        errors = self._ray.exceptions
        busy: dict[Any, tuple[Lane, Hand, Task]] = {}
        lost: dict[tuple[str, str], Losses] = {}
        fault: Exception | None = None
        for lane in self._lanes.values():
            lane.stages.clear()  # the cluster may have changed since
        last_sign = time.monotonic()
        try:
            while busy or (queue and fault is None):
                if fault is None and (stages := self._without_node(queue)):
                    cause = (
                        "not tried: the disks of all nodes with room for a worker are full; free space and run again"
                    )
                    yield from given_up(queue, stages, cause)
                    continue
                if fault is None:
                    try:
                        self._hand_out(queue, busy)
                    except RuntimeError as error:
                        fault = error
                        continue
                self._make_room(queue)
                hired = {reference: lane for lane in self._lanes.values() for reference in lane.hired}
                # new workers first: of shards there may always be one that is ready
                ready, _ = self._ray.wait([*hired, *busy], num_returns=1, timeout=LOOK_S)
                if not ready:
                    if not busy and time.monotonic() - last_sign > PATIENCE_S:
                        yield from given_up(
                            queue, queue.stages(), f"no node had room for a worker in {PATIENCE_S:.0f} s"
                        )
                    continue
                last_sign = time.monotonic()
                if ready[0] in hired:
                    lane = hired[ready[0]]
                    hand = lane.hired.pop(ready[0])
                    try:
                        hand.node = self._ray.get(ready[0])
                    except errors.RayError as error:
                        lane.refused += 1
                        if lane.refused > lane.room and not lane.busy:
                            yield from given_up(queue, sorted(lane.stages), f"no worker could be started: {error}")
                    else:
                        lane.refused = 0
                        self._free(lane, hand)
                    continue
                lane, hand, task = busy.pop(ready[0])
                lane.busy -= 1
                try:
                    outcome = self._ray.get(ready[0])
                except errors.RayActorError as error:
                    losses = lost.get((task.stage, task.shard), Losses())
                    if self._alive(hand.node):
                        losses = replace(losses, workers=losses.workers + 1)
                    else:
                        losses = replace(losses, nodes=losses.nodes + 1)
                    lost[task.stage, task.shard] = losses
                    if losses.workers < LOST_WORKERS and losses.nodes < LOST_NODES:
                        queue.put(task)
                        continue
                    outcome = lost_outcome(task, f"{losses.told}: {error}")
                except errors.RayTaskError as error:
                    self._free(lane, hand)
                    if isinstance(error.cause, ConfigError):
                        fault = fault or error.cause
                        continue
                    outcome = lost_outcome(task, str(error))
                except errors.RayError as error:
                    self._free(lane, hand)
                    outcome = lost_outcome(task, str(error))
                else:
                    told = self._note_full(lane, hand, outcome) if outcome.disk_full else outcome
                    self._free(lane, hand)
                    if told is None:
                        queue.put(task)
                        continue
                    outcome = told
                yield task, outcome
            if fault is not None:
                raise fault from None
        finally:
            self._dismiss([hand for _, hand, _ in busy.values()])
            for lane in self._lanes.values():
                self._dismiss(list(lane.hired.values()))
                lane.hired.clear()
                lane.busy = 0


@dataclass(frozen=True)
class Losses:
    """How many workers died over a shard, and how many nodes went away with it aboard."""

    workers: int = 0
    nodes: int = 0

    @property
    def told(self) -> str:
        """The losses in words."""
        return f"its worker died {self.workers} times, its node went away {self.nodes} times"


def named(node: Mapping[str, Any]) -> str:
    """Return the name of a node for people, of what Ray says of it."""
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]} in Ray)"


def placed(worker: type[Worker]) -> type[Worker]:
    """Return the worker with a method that tells on which node it runs."""

    class Placed(worker):  # type: ignore[misc, valid-type]
        def where(self) -> str:
            import ray

            return str(ray.get_runtime_context().get_node_id())

    return Placed


def given_up(queue: Queue, stages: Sequence[str], cause: str) -> Iterator[tuple[Task, Outcome]]:
    """Yield every task of some stages that waits as one that was not built, and why."""
    for stage in stages:
        while queue.count([stage]):
            task = queue.take(stage)
            yield task, lost_outcome(task, cause)


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
        root = str(Path(__file__).parent.parent.parent)
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
