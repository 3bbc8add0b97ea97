"""Table `refine`: labels after the vote of the sweeps around them and flat interaction, of a student or of a teacher.

A shard is made on its own: frames that it shares a window with are read of the shards beside it, and no more frames are
held than are in reach. Several processes (`run.loader_workers`), or Ray's workers, make several shards; the bytes are
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

import numpy as np
from rich.console import Console

from manifests.asked import tables_of
from manifests.labels import (
    ORIGINS,
    followed,
    in_reach,
    pinned_table,
    reach_of,
    refine_identity,
    refine_keys,
    refine_pin,
    refine_split,
    steps_left,
)
from manifests.provenance import TRAINER_PACKAGES, made_by, package_versions
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.records.table import Computed, Identity
from manifests.sections.training import Improvement
from manifests.sources import compare_files
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.answers import Refine
from manifests.tables.base import Failed, FrameRecord
from superpixels.unfit import Unfit
from trainer.data.tables import FrameRow, Tables, check_dictionary, scenes_of_split
from trainer.inference.refine import Answered, refined, windows
from trainer.inference.shard_pool import each_shard
from trainer.inference.sources import Source, pseudo_labels, source_of
from trainer.loop.log import progress_bar


def refine(recipe: Recipe, console: Console) -> TableRef:
    """Refine the labels that section `[refine]` names, and return the table.

    Raises StoreError for tables that are missing, damaged, old, or made of files that were replaced since, ConfigError
    for a split that there is not, and TrainerError where the student is of another recipe.
    """
    store, settings = Store.open(recipe.run.store), recipe.refine
    ref = tables_of(store, recipe, ["index", "points", *followed(recipe, settings.of, settings.by)])
    check_dictionary(store, ref, "group", recipe.ontology.label_content())
    source = source_of(settings.of, recipe, store, ref, to_refine=True)
    index = Tables(store, ref, ["index"])
    scenes = scenes_of_split(index, refine_split(recipe), recipe.data.dataset)
    shards = {shard for shard in index.shards if scene_of(shard) in scenes}
    compared = compare_files(store, recipe, ref, shards, ["points", source.table.stage])
    if compared.note:
        console.print(compared.note)
    return refine_each(recipe, store, ref, source, [settings.by], refine_split(recipe), console)[settings.by]


@dataclass(frozen=True, eq=False)
class Work:
    """One table to be made of a source: by what, its identity, and the keys of its shards, those made earlier too."""

    by: Improvement
    steps: Improvement
    tables: tuple[TableRef, ...]
    identity: Identity
    keys: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """The digest of the identity."""
        return self.identity.fingerprint


def refine_each(
    recipe: Recipe,
    store: Store,
    ref: Ref,
    source: Source,
    ways: Sequence[Improvement],
    split: str,
    console: Console,
) -> dict[Improvement, TableRef]:
    """Return tables of the labels of a split refined in several ways; a frame is read once for all that lack it."""
    index = Tables(store, ref, ["index"])
    scenes = scenes_of_split(index, split, recipe.data.dataset)
    shards = [shard for shard in index.shards if scene_of(shard) in scenes]
    silent = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    works = [work_of(recipe, store, ref, source, by, shards, silent) for by in ways]
    committed = {work.by: store.shards("refine", work.fingerprint) for work in works}
    lacking: dict[str, list[Work]] = {}
    for shard in shards:
        if some := [work for work in works if (shard, work.keys[shard]) not in committed[work.by]]:
            lacking[shard] = some
    n_made = Counter(work.by for some in lacking.values() for work in some)
    runs = {
        work.by: store.begin(
            refine_pin(recipe, source.of, work.by), Ref(recipe.name, {}), [("refine", work.fingerprint)]
        )
        for work in works
        if n_made[work.by]
    }
    with progress_bar(console, recipe.run.progress) as bar:
        shown = bar.add_task("refine", total=sum(index.file("index", shard).rows for shard in lacking))
        make = partial(made_shards, recipe, store, ref, source, silent)
        for shard, made in each_shard(make, lacking, recipe):
            for by, file in made.items():
                committed[by][shard, file.key] = file
            bar.update(shown, advance=index.file("index", shard).rows)
    found = {}
    for work in works:
        name = refine_pin(recipe, source.of, work.by)
        found[work.by] = published(recipe, store, ref, work, name, shards, committed[work.by], runs.get(work.by, ""))
        console.print(
            f"refine: {source.of} by {work.by}: {n_made[work.by]} shards computed, {len(shards) - n_made[work.by]} "
            f"were there, table {work.fingerprint}"
        )
        tell_failures(found[work.by], console)
    return found


def work_of(
    recipe: Recipe,
    store: Store,
    ref: Ref,
    source: Source,
    by: Improvement,
    shards: Sequence[str],
    silent: Collection[str],
) -> Work:
    """Return what has to be there of a table for some shards; keys are those of shards made earlier too."""
    steps = steps_left(recipe, source.of, by)
    moving = map(ref.table, followed(recipe, source.of, by))
    some = (ref.table("points"), *moving, source.table, *([source.images] if source.images and "afi" in steps else []))
    tables = tuple({table.stage: table for table in some}.values())
    identity = refine_identity(
        recipe, source.of, by, {table.stage: table.fingerprint for table in tables}, **source.more
    )
    earlier = pinned_table(store, refine_pin(recipe, source.of, by), "refine")
    names = {*shards, *(shard.shard for shard in (earlier.shards if earlier else ()))}
    reach = reach_of(recipe, steps)
    keys = refine_keys(store, identity.fingerprint, ref.table("index"), tables, names, reach, silent)
    return Work(by, steps, tables, identity, keys)


def made_shards(
    recipe: Recipe,
    store: Store,
    ref: Ref,
    source: Source,
    silent: frozenset[str],
    shard: str,
    works: Sequence[Work],
) -> dict[Improvement, ShardFile]:
    """Make a shard of some tables; each frame is read once, and the vote is held once for all.

    Where a frame failed in a table that not all of them are made from, each is made alone: what is made beside it must
    not tell in its rows.
    """
    reach = max(reach_of(recipe, work.steps) for work in works)
    used = {table.stage: table for table in (ref.table("index"), *(one for work in works for one in work.tables))}
    tables = tables_near(store.reopened(), recipe, used, shard, reach)
    if len(works) > 1 and fails_apart(tables, works):
        found: dict[Improvement, ShardFile] = {}
        for work in works:
            found |= made_shards(recipe, store, ref, source, silent, shard, [work])
        return found
    heard = frozenset({"index", "points", source.table.stage, *({"motion"} & set(used))})

    def read(frame: FrameRow) -> Answered:
        return source.answer_of(tables.rows(frame, heard))

    states = [(one[0].frame_id, why_not(one, tables, silent)) for one in tables.states(shard)]
    frames = [FrameRow(shard, row, name) for row, (name, reason) in enumerate(states) if reason is None]
    near = windows(tables, frames, reach, heard, read, silent)
    with ExitStack() as stack:
        writers = {
            work.by: stack.enter_context(
                tables.store.writer("refine", work.fingerprint, shard, work.keys[shard], Refine.schema)
            )
            for work in works
        }
        for name, reason in states:
            if reason is not None:
                rows: dict[Improvement, Refine | Failed] = {work.by: Failed(name, reason) for work in works}
            else:
                rows = rows_of_frame(recipe, tables, source, works, *next(near))
            for by, row in rows.items():
                writers[by].append(row, counts_of(row))
        return {by: writer.commit() for by, writer in writers.items()}


def fails_apart(tables: Tables, works: Sequence[Work]) -> bool:
    """Return whether a frame failed in a table that only some of the works need."""
    counts = Counter(table.stage for work in works for table in work.tables)
    apart = {stage for stage, count in counts.items() if count < len(works)}
    asked = [table.stage in apart for table in tables.tables]
    return bool(apart) and any(
        isinstance(state, Failed) and one
        for shard in tables.shards
        for states in tables.states(shard)
        for state, one in zip(states, asked, strict=True)
    )


def tables_near(store: Store, recipe: Recipe, used: Mapping[str, TableRef], shard: str, reach: int) -> Tables:
    """Return tables cut down to a shard and those of its scene that hold a frame within reach of its own."""
    scene = [one for one in used["index"].shards if scene_of(one.shard) == scene_of(shard)]
    number = [one.shard for one in scene].index(shard)
    names = {one.shard for one in scene[in_reach([one.rows for one in scene], number, reach)]}
    cut = {
        stage: replace(table, shards=tuple(one for one in table.shards if one.shard in names))
        for stage, table in used.items()
    }
    return Tables(store, Ref(recipe.name, cut, words=recipe.words), list(cut))


def why_not(states: Sequence[FrameRecord | Failed], tables: Tables, silent: Collection[str]) -> str | None:
    """Return why a frame cannot be refined, from its states in all tables; None if it can."""
    if states[0].frame_id in silent:
        return "excluded by data.exclude"
    for state, table in zip(states, tables.tables, strict=True):
        if isinstance(state, Failed):
            return f"{table.stage}: {state.reason}"
    return None


def rows_of_frame(
    recipe: Recipe,
    tables: Tables,
    source: Source,
    works: Sequence[Work],
    frame: FrameRow,
    own: Answered,
    around: Sequence[Answered],
) -> dict[Improvement, Refine | Failed]:
    """Return a frame's row of every table; raises StoreError for tables that do not fit each other or the recipe."""
    images = None
    if source.images and any(source.images in work.tables for work in works):
        images = pseudo_labels(tables.rows(frame, [source.images.stage]), source.images.stage)
    try:
        found = refined({work.steps for work in works}, own, around, images, recipe)
    except Unfit as error:
        if len(works) == 1:
            return {works[0].by: Failed(frame.frame_id, str(error))}
        alone = (rows_of_frame(recipe, tables, source, [work], frame, own, around) for work in works)
        return {by: row for rows in alone for by, row in rows.items()}
    except ValueError as error:
        raise StoreError(
            f"frame {frame.frame_id}: {error}; was a table made with another dictionary? run: {recipe.make('pack')}"
        ) from None
    return {work.by: found[work.steps].record(frame.frame_id) for work in works}


def counts_of(row: Refine | Failed) -> dict[str, int]:
    """Return what is summed up over rows: points, and those whose label comes from each origin."""
    if isinstance(row, Failed):
        return {}
    counts = np.bincount(row.origin, minlength=len(ORIGINS)).tolist()
    named = {f"from_{name.replace(' ', '_')}": count for name, count in zip(ORIGINS[1:], counts[1:], strict=True)}
    return {"points": len(row.label), **named}


def published(
    recipe: Recipe,
    store: Store,
    ref: Ref,
    work: Work,
    name: str,
    shards: Sequence[str],
    committed: Mapping[tuple[str, str], ShardFile],
    run: str,
) -> TableRef:
    """Write manifest and ref of a table, and return it cut down to some shards.

    The ref names every shard that was made for this recipe and still holds, of whichever split.
    """
    known = {shard: committed[shard, key] for shard, key in work.keys.items() if (shard, key) in committed}
    ordered = tuple(known[one.shard] for one in ref.table("index").shards if one.shard in known)
    how = Computed(
        commit=made_by().commit,
        versions=package_versions(TRAINER_PACKAGES),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    everything = tuple(committed[place] for place in sorted(committed))
    store.write_manifest(Manifest("refine", work.fingerprint, work.identity, everything, as_document(how)))
    whole = TableRef("refine", work.fingerprint, ordered)
    store.write_ref(name, Ref(recipe.name, {table.stage: table for table in (*work.tables, whole)}, ref.excluded), run)
    return replace(whole, shards=tuple(known[shard] for shard in shards))


def tell_failures(table: TableRef, console: Console) -> None:
    """Say which frames have no labels, where any have none; their rows say why."""
    failed = [name for shard in table.shards for name in shard.failed]
    if failed:
        more = f", and {len(failed) - 3} more" if len(failed) > 3 else ""
        console.print(f"refine: {len(failed)} frames have no labels: {', '.join(failed[:3])}{more}")
