"""Frames of a recipe to look at: evenly chosen, each with its rows of every table that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import numpy as np

from manifests.asked import pin, tables_of
from manifests.calibration import Calibration, calibration_of
from manifests.config import ConfigError
from manifests.labels import pinned_table, refine_pin, refined_of, students_predictions
from manifests.recipe import Recipe
from manifests.sections.labels import LabelTable
from manifests.storage.errors import StoreError
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.answers import Predict, Refine
from manifests.tables.base import Failed, FrameRecord, Rows, UInt8
from manifests.tables.labels import Correct, Label, Target, Vote
from manifests.tables.sensors import Index, Points, Project
from manifests.tables.superpoints import Group
from manifests.tables.teacher import Segment
from pipeline.frame import Frame

SHOWN: tuple[type[FrameRecord], ...] = (Index, Points, Project, Segment, Group, Target)
NEEDED = tuple(kind.table for kind in SHOWN)
"""What a frame must have to be shown; `make pack` builds all of it."""

SENSED = ("index", "points", "project")
"""What it must have for points on images to be shown, before any network has looked at them."""

OPTIONAL: tuple[type[FrameRecord], ...] = (Label, Predict, Vote, Correct, Refine)
"""What is shown of a frame if it exists: true labels, predictions, and labels after a vote and flat interaction."""

LABELLED: tuple[type[Group | Vote | Correct | Target | Predict | Refine | Label], ...] = (
    *(Group, Vote, Correct, Target, Predict, Refine, Label),
)
"""Tables with a label for each point, in the order data flows; the truth last."""

Track = Callable[[Sequence[Any], str], Iterable[Any]]
"""Hands on the items of a sequence one by one, and shows somebody how far it got; the text says with what."""


@dataclass(frozen=True)
class Place:
    """Where a frame is found: its row in every shard of this name."""

    shard: str
    row: int


@dataclass(frozen=True)
class FrameRows:
    """A frame and its rows by table; those of `OPTIONAL` only where they exist."""

    frame: Frame
    rows: Rows

    @property
    def labels(self) -> dict[str, UInt8]:
        """The labels of the points, (n,), by table, as far as there are some."""
        rows = ((kind.table, self.rows.get(kind)) for kind in LABELLED)
        return {name: row.label for name, row in rows if row is not None}

    @property
    def confidences(self) -> dict[str, UInt8]:
        """How sure the labels of the points are, (n,) in 1/255, by table, as far as it says so itself."""
        rows = (self.rows.get(kind) for kind in LABELLED if kind not in (Correct, Label))
        return {row.table: row.confidence for row in rows if row is not None and not isinstance(row, Correct | Label)}


@dataclass(frozen=True)
class Browser:
    """The tables of a recipe, side by side. Predictions count if they are of the student that the recipe asks for now,
    and refined labels if all that they were made from is the recipe's; `hidden` says by table why they do not.

    A frame that lacks a row of a table that is `needed` is not shown.
    """

    store: Store
    recipe: Recipe
    tables: Mapping[str, TableRef]
    excluded: frozenset[str]
    needed: tuple[str, ...] = NEEDED
    hidden: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, store: Store, recipe: Recipe, needed: tuple[str, ...] = NEEDED) -> Browser:
        """Return the tables that a recipe asks for; raises StoreError naming the make target if one lacks."""
        ref = tables_of(store, recipe, needed)
        answers, hidden = answers_of(store, recipe, ref) if "points" in ref.tables else ({}, {})
        return cls(store, recipe, {**ref.tables, **answers}, frozenset(ref.excluded), needed, hidden)

    def not_shown(self) -> list[str]:
        """Return, in sentences, why answers that there are of the student are not shown."""
        called = {"predict": "Predictions", "refine": "Refined labels"}
        return [f"{called[name]} are not shown: {reason}" for name, reason in self.hidden.items()]

    def calibrations(self) -> tuple[Mapping[str, Calibration], list[str]]:
        """Return the calibrations of labels by table, and sentences on the one that the recipe asks for and lacks."""
        found: dict[str, Calibration] = {}
        lacking: list[str] = []
        names: tuple[LabelTable, ...] = get_args(LabelTable)
        for name in names:
            if name not in self.tables:
                continue
            try:
                one = calibration_of(self.store, self.recipe, name, self.tables[name])
            except (StoreError, ConfigError) as error:
                lacking += [f"Confidences are shown as they are: {error}."] if name == self.recipe.labels.of else []
                continue
            if one:
                found[name] = one
        return found, lacking

    def places(self) -> list[Place]:
        """Return every frame that no needed table lacks, excluded ones left out, in the order of the tables."""
        return [Place(shard.shard, row) for shard in self.tables["index"].shards for row in self._rows_of(shard)]

    def choose(self, limit: int) -> list[Place]:
        """Return at most `limit` frames, evenly spread: over those with predictions if there are any, else over all.

        Raises StoreError if there is none.
        """
        places = self.places()
        if not places:
            raise StoreError(f"recipe {self.recipe.name} has no frame to show: all of its rows failed, or are excluded")
        predicted = self._shards["predict"]
        places = [place for place in places if place.shard in predicted] or places
        chosen = np.unique(np.linspace(0, len(places) - 1, min(limit, len(places))).round().astype(int))
        return [places[position] for position in chosen]

    def after(self, place: Place) -> Place | None:
        """Return the next frame of the same shard, or None if there is none that could be shown."""
        follower = Place(place.shard, place.row + 1)
        return follower if follower.row in self._rows_of(self._shards["index"][place.shard]) else None

    def read(self, place: Place) -> FrameRows:
        """Return a frame with its rows; raises StoreError for a table that is damaged, old, or out of step."""
        rows: list[FrameRecord] = []
        index = self._row(Index, place)
        for kind in (*SHOWN, *OPTIONAL):
            if place.shard not in self._shards[kind.table]:
                continue
            row = index if kind is Index else self._row(kind, place)
            if row.frame_id != index.frame_id:
                raise StoreError(
                    f"row {place.row} of shard {place.shard} is frame {row.frame_id} in table `{kind.table}` and "
                    f"{index.frame_id} in `index`; run: {self.recipe.make(kind.table, more=['--again'])}"
                )
            if isinstance(row, FrameRecord):
                rows.append(row)
        found = Rows(*rows)
        return FrameRows(Frame.of(found[Index]), found)

    def _row(self, kind: type[FrameRecord], place: Place) -> FrameRecord | Failed:
        name = kind.table
        reader = self.store.open_shard(name, self.tables[name].fingerprint, self._shards[name][place.shard])
        if missing := reader.unlike(kind):
            raise StoreError(
                f"table `{name}` of recipe {self.recipe.name} has no {', '.join(missing)}: an older version of this "
                f"program made it; run: {self.recipe.make(name)}"
            )
        return reader.record(place.row, kind)

    def _rows_of(self, shard: ShardFile) -> Sequence[int]:
        """Return which rows of a shard of `index` can be shown, ascending."""
        bad = self.excluded.union(*(self._shards[name][shard.shard].failed for name in self.needed))
        if not bad:
            return range(shard.rows)
        states = self.store.states("index", self.tables["index"].fingerprint, shard)
        return [row for row, state in enumerate(states) if state.frame_id not in bad]

    @cached_property
    def _shards(self) -> Mapping[str, Mapping[str, ShardFile]]:
        """The shards of every table by name; a table that there is not has none."""
        return {
            name: {shard.shard: shard for shard in self.tables[name].shards} if name in self.tables else {}
            for name in (kind.table for kind in (*SHOWN, *OPTIONAL))
        }


def answers_of(store: Store, recipe: Recipe, ref: Ref) -> tuple[dict[str, TableRef], dict[str, str]]:
    """Return the trainer's tables of a recipe as it is now, and by table why one that there is cannot be shown.

    Raises StoreError for a ref that is damaged.
    """
    tables: dict[str, TableRef] = {}
    hidden: dict[str, str] = {}
    kept = {"predict": pin(recipe, "predict"), "refine": refine_pin(recipe, recipe.refine.of, recipe.refine.by)}
    for stage, name in kept.items():
        if pinned_table(store, name, stage) is None:
            continue
        try:
            if stage == "predict":
                tables[stage], _ = students_predictions(store, recipe, ref.table("points"))
            else:
                tables[stage], _ = refined_of(store, recipe, ref)
        except (StoreError, ConfigError) as error:
            hidden[stage] = str(error)
    return tables, hidden
