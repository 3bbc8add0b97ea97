"""What is handed from the planner to workers and back: tasks, outcomes, and the queue between them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from manifests.records.table import Identity
from manifests.storage.shards import ShardFile
from pipeline.frame import Frame
from pipeline.stages.base import Stage
from pipeline.stages.registry import STAGES

ALL = "all"  # the one shard of a table that all frames share
FULL_DISKS = 2  # a disk that had no room for this many shards gets no more in this run


@dataclass(frozen=True)
class Task:
    """One shard to build: what a worker needs to know. `frames` is the data set's own listing, for stages with `files`.

    Where a stage has `files`, `key` stands for all that a shard depends on but their content, which the worker digests;
    one of `committed` that has the key it then finds, is built already, unless it is asked for `again`. `settings` is a
    digest of what a table for all frames is made from.
    `before` and `after` are the shards next to it in its scene, of the tables that a window is needed of.
    """

    stage: str
    fingerprint: str
    shard: str
    key: str
    n_frames: int
    frames: Sequence[Frame] = ()
    rows: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)
    broadcast: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)
    before: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)
    after: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)
    committed: Mapping[str, ShardFile] = field(default_factory=dict)
    again: bool = False
    settings: str = ""


@dataclass(frozen=True)
class Failure:
    """Something that could not be built. `frame_id` is None where the whole shard failed."""

    stage: str
    shard: str
    frame_id: str | None
    cause: str


@dataclass(frozen=True)
class Outcome:
    """What came of a task: the committed shard or why there is none; the device and batch that networks ran with.

    `seconds` is how long its worker was at it. `disk_full`: for want of space, which another machine may have.
    `looked`: the files were looked at, and the shard made of these bytes was there already.
    `traces` are those of the first failures, for the log.
    """

    shard: ShardFile | None
    failures: tuple[Failure, ...] = ()
    device: str = "cpu"
    batch: int | None = None
    seconds: float = 0.0
    disk_full: bool = False
    looked: bool = False
    traces: tuple[str, ...] = ()


@dataclass(frozen=True)
class ShardPlan:
    """One shard of a stage: built already (`done`), to be built (`task`), or not to be planned yet (neither)."""

    shard: str
    n_frames: int
    done: ShardFile | None
    task: Task | None
    reason: str


@dataclass(frozen=True)
class StagePlan:
    """What a run would do for one stage."""

    stage: Stage[Any]
    fingerprint: str
    identity: Identity
    shards: tuple[ShardPlan, ...]
    changes: tuple[str, ...]
    kilobytes_per_frame: float

    @cached_property
    def done(self) -> dict[str, ShardFile]:
        """The built shards by name."""
        return {shard.shard: shard.done for shard in self.shards if shard.done}

    @property
    def complete(self) -> bool:
        """Whether every shard is built."""
        return all(shard.done for shard in self.shards)

    @property
    def gigabytes_to_write(self) -> float:
        """Estimated size of what is missing, in GB."""
        return sum(shard.n_frames for shard in self.shards if not shard.done) * self.kilobytes_per_frame / 1e6


class Table(Protocol):
    """What is built of a stage, as far as stages that need it want to know."""

    @property
    def fingerprint(self) -> str:
        """The name of its folder."""

    @property
    def done(self) -> Mapping[str, ShardFile]:
        """The built shards by name."""


class Queue:
    """Tasks that can be built now, by stage; more are put in while others are under way.

    `taken` is told of every task that somebody takes.
    """

    def __init__(self, tasks: Iterable[Task] = (), taken: Callable[[Task], None] = lambda task: None) -> None:
        self._tasks: dict[str, deque[Task]] = {}
        self._taken = taken
        for task in tasks:
            self.put(task)

    def __len__(self) -> int:
        return sum(map(len, self._tasks.values()))

    def put(self, task: Task) -> None:
        """Add a task behind the others of its stage."""
        self._tasks.setdefault(task.stage, deque()).append(task)

    def stages(self) -> list[str]:
        """Return the stages that have tasks here, in the order data flows."""
        return [name for name in STAGES if self._tasks.get(name)]

    def count(self, stages: Iterable[str]) -> int:
        """Return how many tasks of these stages are here."""
        return sum(len(self._tasks.get(name, ())) for name in stages)

    def first(self, stage: str) -> Task:
        """Return the first task of a stage that has some, and leave it here."""
        return self._tasks[stage][0]

    def take(self, stage: str) -> Task:
        """Remove and return the first task of a stage that has some."""
        task = self._tasks[stage].popleft()
        self._taken(task)
        return task


class Pool(Protocol):
    """A way to have tasks done by workers, those of several stages side by side if it can."""

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, as they come, until the queue is empty and nothing is under way.

        The caller may put tasks in until it asks for the next outcome. Raises ConfigError where a worker finds the
        recipe at fault, and Bug where it meets a fault of our code, after the outcomes of what was under way.
        """


class Watcher(Protocol):
    """Whoever wants to follow a run: the progress display, or a test."""

    def stage_started(self, plan: StagePlan, n_frames: int) -> None:
        """Return a stage begins to build shards with `n_frames` frames in all."""

    def shard_finished(self, task: Task, outcome: Outcome) -> None:
        """One shard was built or failed."""

    def stage_finished(self, plan: StagePlan) -> None:
        """Return a stage is done."""


def given_up(queue: Queue, stages: Sequence[str], cause: str) -> Iterator[tuple[Task, Outcome]]:
    """Yield every task of some stages that waits as one that was not built, and why."""
    for stage in stages:
        while queue.count([stage]):
            task = queue.take(stage)
            yield task, lost_outcome(task, cause)


def lost_outcome(task: Task, cause: str) -> Outcome:
    """Return the outcome of a shard that no worker could finish."""
    return Outcome(None, (Failure(task.stage, task.shard, None, " ".join(cause.split())[:1500]),))
