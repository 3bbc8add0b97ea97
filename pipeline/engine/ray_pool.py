"""Shards built by Ray actors: who works for which stage, where there is room, and what became of lost ones."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from manifests.config import ConfigError
from manifests.endings import Bug, RunError, summary
from manifests.ray_cluster import (
    alive,
    connect,
    cpu_share,
    last_words,
    named,
    node_here,
    placed,
    raylet_died,
    shortened,
)
from manifests.recipe import Recipe
from pipeline.engine.lanes import LOOK_S, Lane, RayWorker
from pipeline.engine.tasks import FULL_DISKS, Outcome, Queue, Task, given_up, lost_outcome
from pipeline.engine.worker import AT_ONCE, Worker
from pipeline.stages.registry import STAGES

_log = logging.getLogger(__name__)

LOST_WORKERS = 2  # a shard that took this many workers down is set aside instead of tried again
LOST_NODES = 10  # a shard that was aboard this many nodes that went away is set aside as well
TELL_S = 30.0  # how often to say what a run waits for that has no worker
START_S = 45.0  # how long workers may end as they start before the run ends too
LOCAL_S = 120.0  # how long this machine alone may take to start a worker, silently: a busy one takes a while
FULL_EVERYWHERE = "not tried: the disks of all nodes with room for a worker are full; free space and run again"
PATIENCE_S = 900.0  # how long a cluster without room for any worker may take to get some: autoscalers take minutes
IDLE_S = 120.0  # how long workers on a cluster's GPUs stay without a shard: an autoscaler may take their node back


@dataclass(frozen=True)
class Losses:
    """How many workers died over a shard, and how many nodes went away with it aboard."""

    workers: int = 0
    nodes: int = 0

    @property
    def told(self) -> str:
        """The losses in words."""
        return f"its worker died {self.workers} times, its node went away {self.nodes} times"


@dataclass
class UnderWay:
    """One run of the pool: the tasks that workers have, by the reference of their outcome, and what went wrong so far.

    `fault` is raised when what is under way has come to its end. `last_sign`: when a worker last showed that it lives;
    `n_told`: how often it was said since that none does.
    """

    tasks: dict[Any, tuple[Lane, RayWorker, Task]] = field(default_factory=dict)
    losses: dict[tuple[str, str], Losses] = field(default_factory=dict)
    fault: Exception | None = None
    n_told: int = 0
    last_sign: float = field(default_factory=time.monotonic)


def with_gpus(recipe: Recipe, n_gpus: float) -> Recipe:
    """Return the recipe with the share of a GPU that "auto" means on a cluster of so many: one, if it has any."""
    run = recipe.run
    if run.gpus_per_worker != "auto":
        return recipe
    return replace(recipe, run=replace(run, gpus_per_worker=1.0 if n_gpus >= 1 and run.device != "cpu" else 0.0))


def no_room(stage: str, gpus: float, waited_s: float = 0.0) -> RunError:
    """Return the error for a stage that no node has GPUs for."""
    return RunError(
        f"stage {stage} wants {gpus} GPUs a worker, and no node of this Ray cluster has as many"
        f"{f', nor had one in {waited_s:.0f} s' if waited_s else ''}; lower run.gpus_per_worker (for segments "
        "run.segment_gpus), or set it to 0 for the CPU"
    )


class RayPool:
    """Builds shards on Ray Core actors; lost ones are replaced wherever there is room.

    Stages that take the same share of a GPU have one lane of workers, and lanes work side by side: while GPUs encode
    some shards, CPUs list others and segment those that are encoded. Workers on GPUs take no CPU in Ray's books, so
    that none on a CPU can be in their place. A worker stays with its stage while that has tasks, since another one
    would load its network anew.

    A worker on a GPU has several shards under way where there are enough, so that neither the start nor the end of one
    leaves the GPU without work; it commits them in the order in which they began, and each has the bytes that it has
    alone. A cluster is asked for as many workers as there are tasks, up to `run.workers`: those that it has no room for
    are the demand that an autoscaler sees, and nodes that join get them at once.

    A shard is handed to an actor that has been placed and has answered, never to one that still waits for a node: a
    cluster that shrinks under a run slows it down and does not stop it. A shard whose worker died is tried once more,
    by another worker, and alone, since others that were aboard were not to blame; one that was aboard a node that went
    away is tried again more often. A node whose disk is full is left out for the rest of the run; its shards go to
    others that have room for a worker.

    Ray Core and not Ray Data: the store needs its own file names, one writer per shard, and resume keyed by recipe.
    Raises on entry ConfigError for a store that workers would look for elsewhere, and RunError if Ray cannot be
    started or reached.
    """

    def __init__(self, recipe: Recipe, worker: type[Worker] = Worker) -> None:
        self._recipe, self._worker = recipe, worker
        self._lanes: dict[float, Lane] = {}
        self._now = UnderWay()
        self._full: Counter[str] = Counter()  # shards that the disk of a node had no room for

    def __enter__(self) -> RayPool:
        self._ray = connect(self._recipe)
        self._here = node_here(self._ray)
        resources = self._ray.cluster_resources()
        self._recipe = with_gpus(self._recipe, float(resources.get("GPU", 0.0)))
        self._cpus = cpu_share(self._ray, self._recipe.run.workers)
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes.values():
            self._stop(lane, lane.idle)

    def _stop(self, lane: Lane, workers: Sequence[RayWorker]) -> None:
        for worker in workers:
            self._ray.kill(worker.actor)
        lane.workers = [one for one in lane.workers if one not in workers]
        lane.starting = {sign: one for sign, one in lane.starting.items() if one not in workers}

    def _start(self, lane: Lane) -> None:
        """Ask for an actor; the first thing it answers is the node that it was placed on, and how much it can do."""
        if not lane.starting:
            lane.asked = time.monotonic()
        cpus = 0.0 if lane.gpus else self._cpus
        left_out = ",".join(sorted(self._left_out()))
        where = {"label_selector": {"ray.io/node-id": f"!in({left_out})"}} if left_out else {}
        share: dict[str, Any] = {
            "num_cpus": cpus,
            "num_gpus": lane.gpus,
            "max_concurrency": AT_ONCE if lane.gpus else 1,
        }
        remote = self._ray.remote(max_restarts=0, **share, **where)(placed(self._worker))
        actor = remote.remote(self._recipe)
        several = [name for name in STAGES if lane.gpus and self._gpus(name) == lane.gpus]
        lane.starting[actor.where.remote(several)] = RayWorker(actor)

    def _gpus(self, stage: str) -> float:
        return STAGES[stage].gpus(self._recipe) or 0.0

    @property
    def _may_grow(self) -> bool:
        """Whether nodes may join: those of a cluster; this machine alone stays as it is."""
        return self._recipe.run.ray_address != "local"

    def _places(self, stage: str, gpus: float) -> int:
        """Return how many workers there is room for; raises RunError where there is none, and none can come."""
        workers = self._room(gpus)
        if not workers and not self._may_grow:
            raise no_room(stage, gpus)
        if not workers:
            _log.warning(
                "stage %s wants %g GPUs a worker, and no node of this Ray cluster has as many now. Asked for, for an "
                "autoscaler to see; where there is none, lower run.gpus_per_worker (for segments run.segment_gpus), or "
                "set it to 0 for the CPU. Once nothing else is to do, the run waits %.0f s", stage, gpus, PATIENCE_S,
            )  # fmt: skip
        return workers

    def _room(self, gpus: float) -> int:
        """Return how many workers with this share of a GPU the cluster has room for now; for none is no error."""
        workers = self._recipe.run.workers
        if gpus:
            return min(workers, sum(int(node["Resources"]["GPU"] // gpus) for node in self._nodes(gpus)))
        return workers

    def _grow(self, lane: Lane) -> None:
        """Have a lane take the room of nodes that have joined since it was counted; every few seconds.

        Where nodes have gone, it stays: what they had aboard is tried again as soon as there is room.
        """
        now = time.monotonic()
        if now - lane.counted < LOOK_S:
            return
        lane.counted, room = now, self._room(lane.gpus)
        if room > lane.room:
            _log.info("the cluster has grown: room for %d workers with %g GPUs, %d before", room, lane.gpus, lane.room)
            lane.room = room

    def _nodes(self, gpus: float) -> list[Any]:
        """Return the nodes that can have a worker with this share of a GPU, and take shards."""
        kind, share = ("GPU", gpus) if gpus else ("CPU", self._cpus)
        able = [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get(kind, 0.0) >= share]
        return [node for node in able if node["NodeID"] not in self._left_out()]

    def _left_out(self) -> set[str]:
        """Return the nodes that get no more shards, since their disks are full."""
        return {node for node, n_shards in self._full.items() if n_shards >= FULL_DISKS}

    def _note_full(self, lane: Lane, worker: RayWorker, outcome: Outcome) -> Outcome | None:
        """Count a shard that a disk had no room for; return None if another node may have, else the outcome, told so.

        A node where it happens again is left out.
        """
        self._full[worker.node] += 1
        name = next((named(node) for node in self._ray.nodes() if node["NodeID"] == worker.node), worker.node)
        failures = tuple(replace(failure, cause=f"{name}: {failure.cause}") for failure in outcome.failures)
        if self._full[worker.node] == FULL_DISKS:
            _log.warning(
                "%s gets no more shards in this run: its disk is full. Free space there; runs that start afterwards "
                "use it again (%s)", name, "; ".join(failure.cause for failure in outcome.failures),
            )  # fmt: skip
            for other in self._lanes.values():
                self._stop(other, [one for one in other.idle if one.node == worker.node])
                other.stages.clear()  # the room for workers is counted anew
        return None if self._nodes(lane.gpus) else replace(outcome, failures=failures)

    def _without_node(self, queue: Queue) -> list[str]:
        """Return the stages in the queue that no node is left for, since disks are full."""
        if not self._left_out():
            return []
        return [stage for stage in queue.stages() if not self._nodes(self._gpus(stage))]

    def _free(self, lane: Lane, worker: RayWorker) -> None:
        """Let a worker that has no shard go if its node gets none any more."""
        if not worker.n_tasks and worker.node in self._left_out():
            self._stop(lane, [worker])

    def _lane(self, stage: str) -> Lane:
        """Return the lane of a stage; raises RunError where the cluster has no room for its workers."""
        gpus = self._gpus(stage)
        lane = self._lanes.setdefault(gpus, Lane(gpus))
        if stage not in lane.stages:
            lane.room, lane.counted = self._places(stage, gpus), time.monotonic()
            lane.stages.add(stage)
        self._grow(lane)
        return lane

    def _assign(self, queue: Queue) -> None:
        """Give tasks to the workers that have none, and start as many as there is room and work for."""
        for stage in queue.stages():
            lane = self._lane(stage)
            while worker := lane.next(queue, self._now.losses):
                task = queue.take(worker.stage)
                self._now.tasks[worker.actor.run.remote(task)] = lane, worker, task
                worker.n_tasks += 1
                worker.alone = (task.stage, task.shard) in self._now.losses
            most = self._recipe.run.workers if self._may_grow else lane.room
            while len(lane.starting) < min(most - len(lane.workers), queue.count(lane.stages)):
                self._start(lane)

    def _make_room(self, queue: Queue) -> None:
        """Let workers on GPUs go that have no task, where a lane has some and no worker: they may be in its place.

        In a cluster they go after a while in any case, and with them those that are only asked for.
        """
        starved = any(lane.starves for lane in self._lanes.values())
        for lane in self._lanes.values():
            if not lane.gpus:
                continue
            now, waits = time.monotonic(), queue.count(lane.stages)
            if waits or lane.busy:
                lane.needed = now
            if not waits and (starved or (self._may_grow and now - lane.needed > IDLE_S)):
                self._stop(lane, [*lane.idle, *lane.starting.values()])

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, as they come; raises ConfigError or Bug where a worker met one.

        No more than `run.workers` workers of a lane have shards at any time, and the next ones wait until the caller
        has taken an outcome. An error is raised when what was under way has come to its end.
        """
        self._now = now = UnderWay()
        for lane in self._lanes.values():
            lane.stages.clear()  # the cluster may have changed since
        try:
            while now.tasks or (queue and now.fault is None):
                # tasks to idle workers, new workers where there is room, none where no disk has any
                if now.fault is None and (stages := self._without_node(queue)):
                    yield from given_up(queue, stages, FULL_EVERYWHERE)
                    continue
                if now.fault is None and not self._may_assign(queue):
                    continue
                self._make_room(queue)
                # the first sign of life: a worker that has been placed, or one that is through with its task
                sign = self._first_sign()
                if sign is None:
                    self._look_around(queue)
                    if not now.tasks and time.monotonic() - now.last_sign > PATIENCE_S:
                        yield from self._without_room(queue)
                elif sign not in now.tasks:
                    yield from self._place(sign, queue)
                elif (done := self._outcome(sign, queue)) is not None:
                    yield done
            if now.fault is not None:
                raise now.fault from None
        finally:
            self._abandon()

    def _without_room(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Give all that waits up; what never had room for a worker is the recipe's fault, or the cluster's."""
        for stage in queue.stages():
            if not self._lane(stage).room:
                self._now.fault = no_room(stage, self._gpus(stage), PATIENCE_S)
                return
        yield from given_up(queue, queue.stages(), f"no node had room for a worker in {PATIENCE_S:.0f} s")

    def _look_around(self, queue: Queue) -> None:
        """Say now and then what the run waits for; raises RunError for what does not get better by waiting."""
        now, local = self._now, self._recipe.run.ray_address == "local"
        if not alive(self._ray, self._here):
            raise raylet_died(self._recipe)
        if now.tasks:
            return
        waited_s = time.monotonic() - max([now.last_sign, *(lane.asked for lane in self._lanes.values())])
        cause = last_words() if waited_s > START_S else ""
        if cause:
            raise RunError(f"workers end as they start; the last one said: {cause}")
        if local and waited_s > LOCAL_S:
            raise RunError(
                f"Ray has started no worker on this machine in {LOCAL_S:.0f} s, and does not say why; its logs are in "
                '/tmp/ray/session_latest/logs. run.pool = "inline" does without Ray'
            )
        if waited_s > TELL_S * (now.n_told + 1):
            now.n_told += 1
            self._tell_waiting(queue, waited_s, LOCAL_S if local else PATIENCE_S)

    def _tell_waiting(self, queue: Queue, waited_s: float, most_s: float) -> None:
        """Say that no worker has started yet, and of how much there is."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        room = " and ".join(f"{sum(n['Resources'].get(kind, 0) for n in nodes):g} {kind}s" for kind in ("CPU", "GPU"))
        asked = sum(len(lane.starting) for lane in self._lanes.values())
        _log.warning(
            "no worker after %.0f s: %d asked for, for %s; Ray has %d nodes with %s. Waiting on, %.0f s at most",
            *(waited_s, asked, ", ".join(queue.stages()), len(nodes), room, most_s),
        )

    def _may_assign(self, queue: Queue) -> bool:
        """Assign what can be, and return True; note the fault where the cluster has no room for a stage's workers."""
        try:
            self._assign(queue)
        except RunError as error:
            self._now.fault = error
        return self._now.fault is None

    def _first_sign(self) -> Any | None:
        """Return the first reference that is ready, of a worker that starts or of a task; None if none is for a while.

        Workers come first: of tasks there may always be one that is ready.
        """
        starting = [reference for lane in self._lanes.values() for reference in lane.starting]
        ready, _ = self._ray.wait([*starting, *self._now.tasks], num_returns=1, timeout=LOOK_S)
        if not ready:
            return None
        self._now.last_sign, self._now.n_told = time.monotonic(), 0
        return ready[0]

    def _place(self, sign: Any, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Have a worker that answered wait for a task; give its stages up where no worker can be started at all."""
        lane = next(lane for lane in self._lanes.values() if sign in lane.starting)
        worker = lane.starting.pop(sign)
        try:
            worker.node, worker.at_once = self._ray.get(sign)
        except self._ray.exceptions.RayError as error:
            lane.failed_starts += 1
            if lane.failed_starts > lane.room and not lane.busy:
                yield from given_up(queue, sorted(lane.stages), f"no worker could be started: {shortened(str(error))}")
        else:
            lane.failed_starts = 0
            lane.workers.append(worker)
            self._free(lane, worker)

    def _outcome(self, sign: Any, queue: Queue) -> tuple[Task, Outcome] | None:
        """Return a task that came to its end and what came of it; None where it is tried again or the recipe is wrong.

        A worker that lives waits for its next task.
        """
        errors = self._ray.exceptions
        lane, worker, task = self._now.tasks.pop(sign)
        worker.n_tasks -= 1
        worker.alone = False
        outcome: Outcome | None
        try:
            outcome = self._ray.get(sign)
        except errors.RayActorError as error:
            self._stop(lane, [worker])
            losses = self._note_loss(task, worker)
            if losses.workers < LOST_WORKERS and losses.nodes < LOST_NODES:
                queue.put(task)
                return None
            return task, lost_outcome(task, f"{losses.told}: {error}")
        except errors.RayTaskError as error:
            # a worker raises nothing else than these two; what comes anyway is a bug too
            self._free(lane, worker)
            told = isinstance(error.cause, ConfigError | Bug)
            fault = error.cause if told else Bug(f"{summary(error.cause or error)} (in stage {task.stage})", str(error))
            self._now.fault = self._now.fault or fault
            return None
        except errors.RayError as error:
            self._free(lane, worker)
            return task, lost_outcome(task, str(error))
        if outcome.disk_full:
            outcome = self._note_full(lane, worker, outcome)
        self._free(lane, worker)
        if outcome is None:
            queue.put(task)
            return None
        return task, outcome

    def _note_loss(self, task: Task, worker: RayWorker) -> Losses:
        """Count a shard's worker that died, or its node that went away, and return all that it lost in this run."""
        losses = self._now.losses.get((task.stage, task.shard), Losses())
        if alive(self._ray, worker.node):
            losses = replace(losses, workers=losses.workers + 1)
        else:
            losses = replace(losses, nodes=losses.nodes + 1)
        self._now.losses[task.stage, task.shard] = losses
        return losses

    def _abandon(self) -> None:
        """Let go of the workers that are not idle: with a task, or not placed yet."""
        for lane in self._lanes.values():
            self._stop(lane, [*lane.starting.values(), *(one for one in lane.workers if one.n_tasks)])
