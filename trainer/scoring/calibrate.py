"""Confidences made to mean what they say: fitted on how often labels are right, kept as a table of one row."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from rich.console import Console

from manifests.calibration import SHARD, Wanted, calibration_of, compared_with, remade, wanted
from manifests.config import ConfigError
from manifests.provenance import TRAINER_PACKAGES, made_by, package_versions
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.records.evaluation import CalibratedBy
from manifests.records.table import Computed
from manifests.sections.labels import LabelTable
from manifests.sources import compare_files
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.answers import Calibrate
from manifests.tables.labels import Label
from manifests.tables.said import labels_said
from superpixels.calibration import fitted
from superpixels.reliability import Reliability, trust
from trainer.data.tables import FrameRow, Tables, select_frames
from trainer.inference.held_out import held_out
from trainer.inference.refine import Labels
from trainer.loop.log import progress_bar

LEAST = 1000  # labels to be compared: with fewer, shares say little


def calibrate(recipe: Recipe, console: Console, of: LabelTable) -> TableRef:
    """Fit the calibration of the labels of a table as section `[calibrate]` asks, unless it is there; return it.

    Raises ConfigError where the section asks for none, these labels cannot be calibrated so, or there is no such split;
    StoreError for tables that are missing, damaged or old, or where hardly any label can be compared.
    """
    if not recipe.calibrate.by:
        raise ConfigError(
            'calibrate.by is "", so confidences stay as they are; set "agreement" (pseudo-labels, without any true '
            'label) or "truth" (a split that has true labels)'
        )
    store = Store.open(recipe.run.store)
    asked = wanted(store, recipe, of)
    shard = store.shards("calibrate", asked.identity.fingerprint).get((SHARD, asked.key))
    note = "; it was there already" if shard else ""
    if shard is None:
        shards = {shard.shard for table in asked.labels for shard in table.shards}
        compared = compare_files(store, recipe, asked.ref, shards, [table.stage for table in asked.tables])
        if compared.note:
            console.print(compared.note)
        shard = write(store, asked, row_of(recipe, store, asked, console))
    table = keep(store, recipe, asked, shard)
    [row] = store.every(Calibrate, table.fingerprint, table.shards)
    by = "true labels" if recipe.calibrate.by == "truth" else "a sweep that had no say"
    console.print(
        f"calibrate: table {of} by {by}: {int(row.compared.sum())} labels compared, expected calibration error "
        f"{100 * row.error_before:.1f} → {100 * row.error_after:.1f} %, AUGRC {100 * row.augrc_before:.1f} → "
        f"{100 * row.augrc_after:.1f} % of these; table {table.fingerprint}{note}"
    )
    return table


def row_of(recipe: Recipe, store: Store, asked: Wanted, console: Console) -> Calibrate:
    """Return the calibration that was asked for; raises StoreError like `calibrate`."""
    found = Reliability(len(recipe.ontology.classes) - 1)
    for evidence, label, confidence in compared_labels(recipe, store, asked, console):
        found.add(evidence, label, confidence)
    n_compared = int(found.compared.sum())
    if n_compared < LEAST:
        what = "a true one" if recipe.calibrate.by == "truth" else "what a sweep says that had no say in them"
        raise StoreError(
            f"only {n_compared} labels of table `{asked.of}` can be compared with {what}; {LEAST} are needed. Choose "
            "more scenes (calibrate.split) or frames (calibrate.frames), or calibrate.by"
        )
    level = fitted(found.compared, found.as_true)
    before, after = trust(found), trust(found.mapped(level))
    return Calibrate(
        confidence=level,
        compared=found.compared,
        right=found.as_true,
        error_before=before.calibration_error,
        error_after=after.calibration_error,
        augrc_before=before.augrc,
        augrc_after=after.augrc,
    )


def compared_labels(
    recipe: Recipe, store: Store, asked: Wanted, console: Console
) -> Iterator[tuple[Labels, Labels, Labels]]:
    """Yield, frame by frame, what labels are compared with, the labels, and how sure they are in 1/255, (m,) each."""
    names = compared_with(recipe, asked.of)
    tables_by_name = by_name(asked.tables)
    if recipe.calibrate.by == "truth":
        names = (*names, *(table.stage for table in asked.labels))
    ref = Ref(recipe.name, tables_by_name, words=recipe.words)
    tables = Tables(store, common(ref, names), names)
    frames = evenly(
        select_frames(tables, asked.split, recipe.data.dataset, asked.silent).frames, recipe.calibrate.frames
    )
    with progress_bar(console, recipe.run.progress) as bar:
        shown = bar.add_task("calibrate", total=len(frames))
        if recipe.calibrate.by == "truth":
            for frame in frames:
                rows = tables.rows(frame)
                yield (rows[Label].label, *labels_said(rows))
                bar.update(shown, advance=1)
            return
        for found in held_out(recipe, remade(recipe, asked.of), tables, frames, asked.silent):
            bar.update(shown, advance=1)
            if found is not None:
                yield found.evidence, found.label, found.confidence


def common(ref: Ref, names: Sequence[str]) -> Ref:
    """Return a ref whose tables hold the shards alone that all of some have."""
    shards = set.intersection(*({one.shard for one in ref.table(name).shards} for name in names))
    return Ref(
        ref.recipe,
        {
            name: TableRef(name, one.fingerprint, tuple(shard for shard in one.shards if shard.shard in shards))
            for name, one in ref.tables.items()
        },
        words=ref.words,
    )


def evenly(frames: Sequence[FrameRow], most: int) -> list[FrameRow]:
    """Return at most so many frames, evenly spread, in their order."""
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))
    return [frames[number] for number in chosen]


def by_name(tables: Iterable[TableRef]) -> dict[str, TableRef]:
    """Return tables by their names."""
    return {table.stage: table for table in tables}


def write(store: Store, asked: Wanted, row: Calibrate) -> ShardFile:
    """Write a calibration as a table, and return its shard."""
    with store.writer("calibrate", asked.identity.fingerprint, SHARD, asked.key, Calibrate.schema) as writer:
        writer.append(row)
        return writer.commit()


def keep(store: Store, recipe: Recipe, asked: Wanted, shard: ShardFile) -> TableRef:
    """Name the calibration by a ref, with all that it is made from, and return it."""
    fingerprint = asked.identity.fingerprint
    how = Computed(
        commit=made_by().commit,
        versions=package_versions(TRAINER_PACKAGES),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    committed = store.shards("calibrate", fingerprint)
    every = tuple(committed[place] for place in sorted(committed))
    store.write_manifest(Manifest("calibrate", fingerprint, asked.identity, every, as_document(how)))
    table = TableRef("calibrate", fingerprint, (shard,))
    store.write_ref(asked.name, Ref(recipe.name, {**by_name(asked.tables), "calibrate": table}))
    return table


def calibration_to_score(
    recipe: Recipe, console: Console, store: Store, of: LabelTable, labels: TableRef, scenes: Collection[str]
) -> tuple[Labels | None, CalibratedBy | None]:
    """Return the confidence in place of each, (256,), and what is told of it; None where there is no calibration.

    Where the recipe asks for one and these labels have none, the console says why, and where it was fitted on the true
    labels of `scenes` that are scored.
    """
    try:
        found = calibration_of(store, recipe, of, labels)
    except (StoreError, ConfigError) as error:
        console.print(f"confidences are scored as they are: {error}")
        return None, None
    if found is None:
        return None, None
    too = found.scenes & set(scenes) if found.about.by == "truth" else set()
    if too:
        console.print(
            f"the calibration of table `{of}` was fitted on the true labels of {len(too)} of the scored scenes: its "
            "error here is too good; name others in calibrate.split"
        )
    return found.level, replace(found.about, scored_too=len(too))
