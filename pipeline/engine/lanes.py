"""The workers of a pool that take the same share of a GPU, and which of them gets the next shard."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.engine.tasks import Queue

LOOK_S = 5.0  # how often to look up while nothing happens


@dataclass(eq=False)
class RayWorker:
    """An actor, the stage it last worked for, and the node it runs on once that is known.

    It has `n_tasks` shards under way, `at_once` says how many of a stage it can have: several where a network has a
    device of its own, else one. `alone`: it has a shard that it is to have alone.
    """

    actor: Any
    node: str = ""
    stage: str = ""
    at_once: Mapping[str, int] = field(default_factory=dict)
    n_tasks: int = 0
    alone: bool = False

    @property
    def more(self) -> bool:
        """Whether it can have another shard of its stage beside those that it has."""
        return not self.alone and self.n_tasks < self.at_once.get(self.stage, 1)


@dataclass
class Lane:
    """The workers that take the same share of a GPU: `room` is how many there may be, `stages` those they work for.

    Those `starting` are not placed yet, and `workers` are; `failed_starts` counts those in a row; `asked` is when it
    began to ask for those that are starting, `counted` when the room was counted last, `needed` when it last had work.
    """

    gpus: float
    room: int = 0
    stages: set[str] = field(default_factory=set)
    workers: list[RayWorker] = field(default_factory=list)
    starting: dict[Any, RayWorker] = field(default_factory=dict)
    failed_starts: int = 0
    asked: float = 0.0
    counted: float = 0.0
    needed: float = 0.0

    @property
    def idle(self) -> list[RayWorker]:
        """The workers that have no shard."""
        return [one for one in self.workers if not one.n_tasks]

    @property
    def busy(self) -> int:
        """How many workers have one."""
        return len(self.workers) - len(self.idle)

    @property
    def starves(self) -> bool:
        """Whether it has asked for workers in vain for a while, and has none."""
        return bool(self.starting) and not self.workers and time.monotonic() - self.asked > LOOK_S

    def next(self, queue: Queue, alone: Collection[tuple[str, str]]) -> RayWorker | None:
        """Return the worker that gets the next task of the queue, its stage set; None if all have what they can.

        Idle ones come first, of these one that has the network of a stage loaded. Then a second and a third shard are
        given to who can have several, so that a GPU has work while one shard ends and the next begins; but none that a
        worker which is about to start would be without, and at the end of a run one each, so that all end together.
        Shards in `alone` keep company with no other.
        """
        if not queue.count(self.stages):
            return None
        if idle := self.idle:
            worker = next((one for one in idle if queue.count([one.stage])), idle[-1])
            if not queue.count([worker.stage]):
                worker.stage = next(name for name in queue.stages() if name in self.stages)
            return worker
        coming = max(0, min(len(self.starting), self.room - len(self.workers)))
        spare = queue.count(self.stages) - coming
        able = [
            one
            for one in self.workers
            if one.more and spare >= one.n_tasks * len(self.workers) and queue.count([one.stage])
            if (one.stage, queue.first(one.stage).shard) not in alone
        ]
        return min(able, key=lambda one: one.n_tasks, default=None)
