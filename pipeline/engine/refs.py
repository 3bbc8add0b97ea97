"""What a run leaves beside shards: the manifest of every table, and the ref of the recipe."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from manifests.fingerprint import Settings, canonical
from manifests.provenance import made_by
from manifests.records.codec import as_document
from manifests.records.table import Built, Work
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from pipeline.engine.planner import Planner
from pipeline.engine.tasks import Failure, Pool, StagePlan, Table
from pipeline.stages.registry import STAGES

MANY_FAILURES = 200  # how many are kept in a manifest, and told at the end of a run


def write_manifest(
    planner: Planner,
    plan: StagePlan,
    started: datetime,
    pool: Pool,
    devices: list[str],
    batches: list[int],
    failures: Sequence[Failure],
    work: Work,
    built: bool,
) -> None:
    """List everything committed in the table's folder, whichever run made it, and what failed in this run.

    A run that has `built` none of them, and finds the manifest gone, does not claim to have made them: commit and
    packages are not known then.
    """
    shards = tuple(planner.store.shards(plan.stage.name, plan.fingerprint).values())
    totals: dict[str, int] = {}
    for shard in shards:
        for name, count in shard.counts.items():
            totals[name] = totals.get(name, 0) + count
    made = Built(
        recipe=planner.recipe.name,
        started=started.isoformat(timespec="seconds"),
        finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
        pool=type(pool).__name__,
        devices=tuple(devices),
        batches=tuple(batches),
        git_commit=made_by().commit if built else None,
        packages=(made_by().packages or {}) if built else {},
        excluded=planner.recipe.data.exclude,
        origins=tuple(origins_of(shards)),
        failed=tuple(frame for shard in shards for frame in shard.failed),
        counts=totals,
        work=work,
        failures=tuple((one.shard, one.frame_id, one.cause) for one in failures[:MANY_FAILURES]),
    )
    planner.store.write_manifest(Manifest(plan.stage.name, plan.fingerprint, plan.identity, shards, as_document(made)))


def origins_of(shards: Sequence[ShardFile]) -> list[Settings]:
    """Return by what code, packages and devices the shards of a table were made, and how many by each, most first.

    More than one is no fault: keys say that the rows count the same. It is what to look at first where they do not.
    """
    counted = Counter(canonical(as_document(shard.origin)) for shard in shards)
    return [{**json.loads(origin), "shards": number} for origin, number in counted.most_common()]


def move_ref(
    planner: Planner,
    before: Ref,
    plans: Mapping[str, StagePlan],
    under_way: Mapping[str, Table],
    kept: Mapping[str, TableRef],
    run: str = "",
) -> None:
    """Point the recipe's ref at the complete tables that belong to it, whatever other runs do with it meanwhile.

    `before` is what it stands for if it never stood for anything; `kept` are tables that this run does not build and
    that are as a run would leave them.

    Its other shards, of tables still incomplete or `under_way` and of scenes not selected now, are held: a run that
    was stopped, a bad frame in a new scene or another split makes no garbage of finished work. Nor is anything
    garbage that lies beside shards being built, as long as a table is `under_way` in this `run`, or in another one.
    """

    def change(now: Ref | None) -> Ref:
        ref = moved(planner, now or before, plans, under_way, kept)
        return ref if under_way else ref.ended(run)

    planner.store.update_ref(planner.ref_name, change)


def moved(
    planner: Planner,
    before: Ref,
    plans: Mapping[str, StagePlan],
    under_way: Mapping[str, Table],
    kept: Mapping[str, TableRef],
) -> Ref:
    """Return what the recipe stands for after this: see `move_ref`."""
    named = (*before.tables.values(), *before.held)
    tables: dict[str, TableRef] = {}
    held = [table for table in named if table.stage not in STAGES]  # made by newer code in the same store
    for name in STAGES:
        # what this run knows of the table, and what the ref names of the same identity
        plan = plans.get(name)
        found = plan or under_way.get(name)
        earlier = [table for table in named if table.stage == name]
        if not found and not earlier and name not in kept:
            continue
        fingerprint = found.fingerprint if found else (kept.get(name) or earlier[0]).fingerprint
        earlier = [table for table in earlier if table.fingerprint == fingerprint]
        now = dict(found.done) if found else {}

        # a complete table of this run, or one that it leaves alone, is one of the recipe's
        if plan and plan.complete:
            tables[name] = TableRef(name, plan.fingerprint, tuple(now.values()))
        elif not found and name in kept:
            tables[name] = kept[name]

        # all other shards that are known are held: the newest of each name, those of this run first
        known = {shard.shard: shard for table in reversed(earlier) for shard in table.shards} | now
        used = {shard.name for shard in tables[name].shards} if name in tables else set()
        rest = tuple(shard for _, shard in sorted(known.items()) if shard.name not in used)
        if rest:
            held.append(TableRef(name, fingerprint, rest))

    # tables out of step with `index` are not to be read, and no garbage either
    usable = consistent(tables)
    held += [table for name, table in tables.items() if name not in usable]
    return replace(before, tables=usable, excluded=planner.recipe.data.exclude, held=tuple(held))


def consistent(tables: Mapping[str, TableRef]) -> dict[str, TableRef]:
    """Return the tables that hold the same shards as `index`, so that rows of any two of them are the same frames."""
    if "index" not in tables:
        return {}
    names = [shard.shard for shard in tables["index"].shards]
    return {
        name: table
        for name, table in tables.items()
        if STAGES[name].build or [shard.shard for shard in table.shards] == names
    }
