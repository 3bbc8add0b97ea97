"""Shards built in this process: one after the other, or several at once where a network has a device of its own."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from manifests.recipe import Recipe
from pipeline.engine.tasks import FULL_DISKS, Outcome, Queue, Task, given_up
from pipeline.engine.worker import Worker


class InlinePool:
    """Builds shards in this process, those of one stage at a time."""

    def __init__(self, recipe: Recipe) -> None:
        self._worker = Worker(recipe)

    def __enter__(self) -> InlinePool:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, stage by stage; raises ConfigError or Bug where a worker meets one.

        Outcomes come in the order in which tasks were taken. When the caller stops early, or one of them raises, those
        behind it come to no commit.
        """
        n_full = 0
        under_way: deque[tuple[Task, Future[Outcome]]] = deque()
        self._worker.stop(False)
        with ThreadPoolExecutor(thread_name_prefix="shard") as threads:
            try:
                while (stages := queue.stages()) or under_way:
                    if n_full >= FULL_DISKS and not under_way:
                        cause = "not tried, since the disk is full; free space and run again"
                        yield from given_up(queue, stages, cause)
                        continue
                    at_once = self._worker.at_once(stages[0]) if stages and n_full < FULL_DISKS else 0
                    if at_once == 1 and not under_way:
                        task = queue.take(stages[0])
                        outcome = self._worker.run(task)
                    else:
                        while 1 < at_once > len(under_way) and queue.count(stages[:1]):
                            if under_way and under_way[0][0].stage != stages[0]:
                                break
                            task = queue.take(stages[0])
                            under_way.append((task, threads.submit(self._worker.run, task)))
                        task, future = under_way[0]
                        outcome = future.result()
                        under_way.popleft()
                    n_full += outcome.disk_full
                    yield task, outcome
            finally:
                if under_way:
                    self._worker.stop()
