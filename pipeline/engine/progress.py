"""How far the tables of a recipe are, read from the store: no Ray, no driver, from any machine that sees both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Failure, StagePlan


@dataclass(frozen=True)
class Progress:
    """One stage: its shards, how many are committed, their frames and bytes, and when one last was.

    `failures` are those that the last finished run of this stage told, of shards that are still missing.
    `last_written` is by the clock of the machine that keeps the files.
    """

    stage: str
    n_shards: int
    n_done: int
    n_frames: int
    n_bytes: int
    last_written: datetime | None
    failures: tuple[Failure, ...]


def progress_of(runner: Runner, targets: Sequence[str]) -> Iterator[Progress]:
    """Yield the progress of the named stages and of all that they need, in the order data flows."""
    for plan in runner.plan(targets):
        done = plan.done
        yield Progress(
            plan.stage.name,
            len(plan.shards),
            len(done),
            sum(shard.rows for shard in done.values()) if not plan.stage.build else 0,
            sum(shard.bytes for shard in done.values()),
            runner.store.last_written(plan.stage.name, plan.fingerprint),
            tuple(failures_of(runner, plan)),
        )


def failures_of(runner: Runner, plan: StagePlan) -> Iterator[Failure]:
    """Yield what the manifest of a stage says has failed, without what was built since."""
    manifest = runner.store.read_manifest(plan.stage.name, plan.fingerprint)
    told = manifest.made.get("failures", []) if manifest else []
    missing = {shard.shard for shard in plan.shards if not shard.done}
    for item in told if isinstance(told, list) else []:
        match item:
            case [str(shard), str() | None as frame_id, str(cause)] if shard in missing:
                yield Failure(plan.stage.name, shard, frame_id, cause)
