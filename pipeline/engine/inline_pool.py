"""Shards built one after the other in this process."""

from __future__ import annotations

from collections.abc import Iterator

from manifests.recipe import Recipe
from pipeline.engine.tasks import FULL_DISKS, Outcome, Queue, Task, given_up
from pipeline.engine.worker import Worker


class InlinePool:
    """Builds one shard after the other in this process."""

    def __init__(self, recipe: Recipe) -> None:
        self._worker = Worker(recipe)

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, stage by stage; raises ConfigError or Bug where a worker meets one."""
        n_full = 0
        while stages := queue.stages():
            if n_full >= FULL_DISKS:
                yield from given_up(queue, stages, "not tried, since the disk is full; free space and run again")
                continue
            task = queue.take(stages[0])
            outcome = self._worker.run(task)
            n_full += outcome.disk_full
            yield task, outcome
