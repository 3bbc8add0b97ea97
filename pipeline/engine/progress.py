"""How far the tables of a recipe are, read from the store: no Ray, no driver, from any machine that sees it.

Where the data set is on this machine too, its list of frames says how many shards there are to be; without it, the
shards that the store has heard of do.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.records.table import Built
from manifests.storage.errors import StoreError
from manifests.storage.places import RemotePath, root_of
from manifests.storage.store import Store
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import ALL, Failure
from pipeline.stages.base import Stage
from pipeline.stages.registry import with_upstream


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


def has_data(recipe: Recipe) -> bool:
    """Return whether the data set of a recipe is on this machine."""
    root = root_of(recipe.data)
    try:
        return root.is_dir() if isinstance(root, RemotePath) else root.expanduser().is_dir()
    except StoreError:  # a bucket that cannot be read from here
        return False


def progress_of(runner: Runner, targets: Sequence[str]) -> Iterator[Progress]:
    """Yield the progress of the named stages and of all that they need, in the order data flows."""
    if not has_data(runner.recipe):
        yield from progress_in_store(runner, targets)
        return
    for plan in runner.plan(targets):
        done = plan.done
        yield Progress(
            plan.stage.name,
            len(plan.shards),
            len(done),
            sum(shard.rows for shard in done.values()) if not plan.stage.build else 0,
            sum(shard.bytes for shard in done.values()),
            runner.store.last_written(plan.stage.name, plan.fingerprint),
            tuple(failures_of(runner.store, plan.stage.name, plan.fingerprint, plan.done)),
        )


def progress_in_store(runner: Runner, targets: Sequence[str]) -> Iterator[Progress]:
    """Yield the same for a data set that is elsewhere: of the shards that have been committed, or have failed, so far.

    A stage is behind by what `index` has and it has not. Shards of scenes that the split does not name any more count,
    and so does a shard that is built of files which have changed since: only the data could tell.
    """
    known: set[str] = set()
    for stage in with_upstream(tuple(targets), runner.recipe):
        fingerprint = fingerprint_in_store(runner, stage)
        committed = runner.store.shards(stage.name, fingerprint) if fingerprint else {}
        done = {name: shard for (name, _), shard in committed.items()}
        failures = tuple(failures_of(runner.store, stage.name, fingerprint, done)) if fingerprint else ()
        names = {ALL} if stage.build else known | done.keys() | {failure.shard for failure in failures}
        known |= names - {ALL}
        yield Progress(
            stage.name,
            len(names),
            len(done),
            sum(shard.rows for shard in done.values()) if not stage.build else 0,
            sum(shard.bytes for shard in done.values()),
            runner.store.last_written(stage.name, fingerprint) if fingerprint else None,
            failures,
        )


def fingerprint_in_store(runner: Runner, stage: Stage[Any]) -> str | None:
    """Return the name of a stage's table: where that depends on files that are not here, as the recipe's ref has it."""
    try:
        return runner.identity(stage).fingerprint
    except (ConfigError, OSError):
        ref = runner.store.read_ref(runner.recipe.name)
        if ref is None:
            return None
        named = [(one.stage, one.fingerprint) for one in (*ref.tables.values(), *ref.held)]
        named += [(one.stage, one.fingerprint) for one in ref.building]
        return next((fingerprint for name, fingerprint in named if name == stage.name), None)


def failures_of(store: Store, stage: str, fingerprint: str, done: Container[str]) -> Iterator[Failure]:
    """Yield what the manifest of a table says has failed, without the shards that are done since."""
    manifest = store.read_manifest(stage, fingerprint)
    for shard, frame_id, cause in manifest.how(Built).failures if manifest else ():
        if shard not in done:
            yield Failure(stage, shard, frame_id, cause)
