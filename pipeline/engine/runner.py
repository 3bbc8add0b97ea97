"""Builds the tables of a recipe: plans, has workers build what is missing, and gathers what failed."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.engine.planner import Planner
from pipeline.engine.scheduler import Run
from pipeline.engine.tasks import Failure, Pool, Watcher


class Runner(Planner):
    """Plans and builds the tables of one recipe."""

    def run(
        self,
        targets: Sequence[str],
        pool: Pool,
        watcher: Watcher | None = None,
        again: Sequence[str] = (),
    ) -> list[Failure]:
        """Build what is missing of the named stages and all that they need; return what failed.

        A shard is built as soon as what it needs is, whatever other shards and stages are at; a failed one holds up
        what needs it and nothing else. After every stage that is complete, the recipe's ref is moved to it; tables of
        the ref that no longer belong to the recipe are taken out. `again` names stages whose shards are built even if
        they exist. A run that is cut short, by a fault of the recipe or by whoever started it, names what it built.
        """
        under_way = Run(self, targets, pool, watcher, again)
        try:
            for task, outcome in pool.run(under_way.queue):
                under_way.take(task, outcome)
        finally:
            under_way.stop()
        return under_way.failures
