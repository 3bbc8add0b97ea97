"""A run while it goes on: which shards can be built now, and what came of those that were."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from manifests.records.table import Work
from manifests.storage.shards import ShardFile
from pipeline.engine.planner import Found, Planner
from pipeline.engine.refs import move_ref, write_manifest
from pipeline.engine.tasks import Failure, Outcome, Pool, Queue, ShardPlan, StagePlan, Task, Watcher
from pipeline.stages.registry import STAGES, with_upstream

_log = logging.getLogger("afov.shards")  # for the log file


@dataclass
class StageRun:
    """A stage while a run goes on. `upstream` are the stages that it needs tables of.

    A shard is in `done`, in `waiting` for what it needs, `under_way` (in the queue or with a worker), or it failed.
    `begun`: a worker has had one of them. `n_built` shards with `n_frames` were built in this run, in so many `seconds`
    of its workers.
    """

    found: Found
    upstream: frozenset[str]
    shards: dict[str, ShardPlan] = field(default_factory=dict)
    done: dict[str, ShardFile] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    under_way: set[str] = field(default_factory=set)
    begun: bool = False
    failures: list[Failure] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    batches: set[int] = field(default_factory=set)
    n_built: int = 0
    n_frames: int = 0
    seconds: float = 0.0

    @property
    def fingerprint(self) -> str:
        """The name of the table's folder."""
        return self.found.fingerprint


class Run:
    """A run while it goes on: `queue` has the shards that can be built now; every one that is built may add others."""

    def __init__(
        self, planner: Planner, targets: Sequence[str], pool: Pool, watcher: Watcher | None, again: Sequence[str]
    ) -> None:
        """Plan all stages, as far as what they need is built; raises ConfigError where a table cannot be had."""
        self._planner, self._pool, self._watcher = planner, pool, watcher
        self._started = datetime.now(UTC)
        self._run = ""  # its name in the store, once it builds something
        self.queue = Queue(taken=self._begin)
        self._finished: dict[str, StagePlan] = {}
        self._open: dict[str, StageRun] = {}
        for stage in with_upstream(tuple(targets), planner.recipe):
            needs = {need.table for need in stage.needs(planner.recipe) if need.how != "fused"}
            upstream = frozenset(needs if stage.build or stage.name == "index" else {"index", *needs})
            self._open[stage.name] = StageRun(planner.look(stage, stage.name in again), upstream)
        self._stages = dict(self._open)
        self._before = planner.inherited()
        others = () if "index" in again else [name for name in self._before.tables if name not in self._stages]
        self._kept = planner.unchanged(self._before, others)
        for one in self._stages.values():
            for shard in planner.shards_of(one.found.stage):
                self._plan(one, shard)
        self._finish_stages()

    def take(self, task: Task, outcome: Outcome) -> None:
        """Note what came of a task, and put into the queue what can be built now."""
        one = self._stages[task.stage]
        one.under_way.remove(task.shard)
        one.failures += outcome.failures
        note(task, outcome)
        one.seconds += 0 if outcome.looked else outcome.seconds
        one.shards[task.shard] = replace(one.shards[task.shard], done=outcome.shard, task=None)
        if outcome.shard and not outcome.looked:
            one.n_built += 1
            one.n_frames += task.n_frames
            one.devices.add(outcome.device)
            one.batches |= {outcome.batch} if outcome.batch else set()
        if outcome.shard:
            one.done[task.shard] = outcome.shard
            self._release(task.stage, task.shard)
        if self._watcher:
            self._watcher.shard_finished(task, outcome)
        self._finish_stages()

    @property
    def failures(self) -> list[Failure]:
        """What failed, stage by stage."""
        return [failure for one in self._stages.values() for failure in one.failures]

    def stop(self) -> None:
        """Write the manifests of stages that are not through, as far as they got."""
        for name, one in list(self._open.items()):
            if one.n_built or one.failures:
                self._finish(name, one)
        if self._run and self._open:
            self._planner.store.end(self._planner.recipe.name, self._run)

    def _plan(self, one: StageRun, shard: str) -> bool:
        """Put a shard where it belongs now; return whether it turned out to be built already."""
        planned = self._planner.plan_shard(one.found, shard, self._stages)
        one.shards[shard] = planned
        one.waiting.discard(shard)
        if planned.done:
            one.done[shard] = planned.done
        elif planned.task:
            one.under_way.add(shard)
            self.queue.put(planned.task)
        else:
            one.waiting.add(shard)
        return planned.done is not None

    def _release(self, stage: str, shard: str) -> None:
        """Plan again what waits for a shard that is built now, and what waits for that if it was built before."""
        built = [(stage, shard)]
        while built:
            stage, shard = built.pop()
            everywhere = STAGES[stage].build is not None
            near = () if everywhere else (shard, *self._planner.beside[shard].values())
            for name, one in self._open.items():
                if stage in one.upstream:
                    others = one.shards if everywhere else near
                    built += [(name, other) for other in others if other in one.waiting and self._plan(one, other)]

    def _begin(self, task: Task) -> None:
        """Say that a stage begins when the first of its shards goes to a worker, and in the store that a run does."""
        one = self._stages[task.stage]
        if one.begun:
            return
        if not any(other.begun for other in self._stages.values()):
            tables = [(name, other.found.fingerprint) for name, other in self._stages.items()]
            planner = self._planner
            self._run = planner.store.begin(planner.ref_name, replace(self._before, tables={}), tables)
        one.begun = True
        if self._watcher:
            hope = () if self._open.keys().isdisjoint(one.upstream) else one.waiting
            n_frames = sum(one.shards[shard].n_frames for shard in (*one.under_way, *hope))
            self._watcher.stage_started(self._plan_of(one), n_frames)

    def _plan_of(self, one: StageRun) -> StagePlan:
        stage, found = one.found.stage, one.found
        size = stage.kilobytes_per_frame(self._planner.recipe)
        return StagePlan(stage, found.fingerprint, found.identity, tuple(one.shards.values()), (), size)

    def _finish_stages(self) -> None:
        """Finish the stages of which nothing more can come."""
        for name, one in list(self._open.items()):
            if not one.under_way and self._open.keys().isdisjoint(one.upstream):
                self._finish(name, one)

    def _finish(self, name: str, one: StageRun) -> None:
        """Write a stage's manifest if this run did something for it, or it was lost, and move the recipe's ref."""
        del self._open[name]
        plan = self._finished[name] = self._plan_of(one)
        if one.begun and self._watcher:
            self._watcher.stage_finished(plan)
        lost = bool(one.done) and self._planner.store.read_manifest(name, plan.fingerprint) is None
        if one.n_built or one.failures or lost:
            workers = self._planner.recipe.run.workers
            work = Work(one.n_frames, one.seconds / workers, workers)
            write_manifest(
                self._planner,
                plan,
                self._started,
                self._pool,
                sorted(one.devices),
                sorted(one.batches),
                one.failures,
                work,
                built=one.n_built > 0,
            )
        move_ref(self._planner, self._before, self._finished, self._open, self._kept, self._run)


def note(task: Task, outcome: Outcome) -> None:
    """Write to the log what came of a task: every failure, and the traces of the first."""
    built = "failed" if outcome.shard is None else "built"
    _log.debug("%s %s %s in %.2f s on %s", task.stage, task.shard, built, outcome.seconds, outcome.device)
    for failure in outcome.failures:
        _log.info("failed: %s %s %s: %s", failure.stage, failure.shard, failure.frame_id or "-", failure.cause)
    for trace in outcome.traces:
        _log.info("a trace of %s %s:\n%s", task.stage, task.shard, trace)
