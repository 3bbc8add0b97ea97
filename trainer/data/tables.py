"""Tables of the store row by row, and which of their frames a split selects."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from manifests.config import ConfigError
from manifests.fingerprint import Settings, plain
from manifests.ontology import Ontology
from manifests.splits import load_split
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile, ShardReader
from manifests.storage.store import Store
from manifests.tables.arrow import FAILED, OK
from manifests.tables.base import Failed, FrameRecord, Rows
from manifests.tables.registry import FRAME_TABLES
from manifests.tables.teacher import Text

OPEN_SHARDS = 64  # per process and table: file handles are limited, and opening again costs less than a millisecond


@dataclass(frozen=True)
class FrameRow:
    """Where a frame lies in every table of a recipe: shard and row, and its name."""

    shard: str
    row: int
    frame_id: str

    @property
    def scene(self) -> str:
        """The drive it belongs to; long ones are cut into shards `<scene>+<first frame>`."""
        return scene_of(self.shard)


@dataclass(frozen=True)
class Selection:
    """The frames that take part, in the order of the store, and those of the split that do not, by reason."""

    frames: tuple[FrameRow, ...]
    dropped: Mapping[str, tuple[str, ...]]

    def sentence(self) -> str:
        """Return how many frames take part and how many do not, and why."""
        n_scenes = len({frame.scene for frame in self.frames})
        left_out = [f"{len(names)} {reason}" for reason, names in self.dropped.items()]
        tail = f"; left out: {', '.join(left_out)}" if left_out else ""
        return f"{len(self.frames)} frames of {n_scenes} scenes{tail}"


class Tables:
    """Some tables of a ref, read row by row; row `i` of a shard is the same frame in each of them.

    Opens its files when they are first asked for, anew in every process, so it can be handed to workers.
    """

    def __init__(self, store: Store, ref: Ref, stages: Sequence[str]) -> None:
        """Raise StoreError if the ref lacks a table, or a table a shard of another; it names the make target."""
        self.store = store
        self.tables = tuple(ref.table(stage) for stage in stages)
        self._kinds = [FRAME_TABLES[stage] for stage in stages]
        self._shards: dict[str, tuple[ShardFile, ...]] = {}
        by_name = [{shard.shard: shard for shard in table.shards} for table in self.tables]
        for shard in self.tables[0].shards:
            files = []
            for table, named in zip(self.tables, by_name, strict=True):
                if shard.shard not in named or named[shard.shard].rows != shard.rows:
                    raise StoreError(
                        f"table `{table.stage}` of recipe {ref.recipe} does not hold the {shard.rows} frames of shard "
                        f"{shard.shard} that `{self.tables[0].stage}` holds; run: {ref.make(table.stage)}"
                    )
                files.append(named[shard.shard])
            self._shards[shard.shard] = tuple(files)
        self._readers: OrderedDict[tuple[int, str], ShardReader] = OrderedDict()
        self._process = os.getpid()

    @property
    def shards(self) -> tuple[str, ...]:
        """Names of the shards, in the order of the data set."""
        return tuple(self._shards)

    def file(self, stage: str, shard: str) -> ShardFile:
        """Return the file of a shard in one of the tables."""
        return self._shards[shard][[table.stage for table in self.tables].index(stage)]

    def rows(self, frame: FrameRow, stages: Collection[str] | None = None) -> Rows:
        """Return the frame's row in every table, or in those of some stages.

        Raises StoreError if a shard is missing or damaged, or if the tables are not aligned.
        """
        rows = []
        for number, table in enumerate(self.tables):
            if stages is not None and table.stage not in stages:
                continue
            row = self._reader(number, frame.shard).record(frame.row, self._kinds[number])
            if row.frame_id != frame.frame_id or isinstance(row, Failed):
                status = FAILED if isinstance(row, Failed) else OK
                raise StoreError(
                    f"table `{table.stage}`, shard {frame.shard}, row {frame.row} holds frame {row.frame_id} with "
                    f'status "{status}"; expected {frame.frame_id} with status "{OK}". The tables do not belong '
                    "together; run: make pack RECIPE=... ARGS=--again"
                )
            rows.append(row)
        return Rows(*rows)

    def states(self, shard: str) -> Iterator[list[FrameRecord | Failed]]:
        """Yield, frame by frame, whether it failed in each of the tables, and why; raises like `rows`."""
        states = [
            self.store.states(table.stage, table.fingerprint, file)
            for table, file in zip(self.tables, self._shards[shard], strict=True)
        ]
        for row, frame in enumerate(zip(*states, strict=True)):
            if len({state.frame_id for state in frame}) != 1:
                names = ", ".join(f"{t.stage}: {s.frame_id}" for t, s in zip(self.tables, frame, strict=True))
                raise StoreError(
                    f"row {row} of shard {shard} is not one frame ({names}); run: make pack RECIPE=... ARGS=--again"
                )
            yield list(frame)

    def used(self, frames: Sequence[FrameRow]) -> dict[str, TableRef]:
        """Return the tables by name, cut down to the shards that hold any of the frames."""
        names = {frame.shard for frame in frames}
        return {
            table.stage: replace(table, shards=tuple(shard for shard in table.shards if shard.shard in names))
            for table in self.tables
        }

    def _reader(self, number: int, shard: str) -> ShardReader:
        if self._process != os.getpid():  # a forked worker shares file positions and connections with its parent
            self.store = self.store.reopened()
            self._readers, self._process = OrderedDict(), os.getpid()
        if (number, shard) not in self._readers:
            if len(self._readers) >= OPEN_SHARDS * len(self.tables):
                self._readers.popitem(last=False)
            table = self.tables[number]
            self._readers[number, shard] = self.store.open_shard(
                table.stage, table.fingerprint, self._shards[shard][number]
            )
        self._readers.move_to_end((number, shard))
        return self._readers[number, shard]


@dataclass(frozen=True)
class Every:
    """A part of a split: the last of every `scene` scenes, and of their scans the first of every `scan`.

    Both in the order of the data set, over all there are: a frame that failed or is excluded moves no other one.
    """

    scene: int = 1
    scan: int = 1


def select_frames(
    tables: Tables, split: str, dataset: str, excluded: Collection[str], every: Every = Every()
) -> Selection:
    """Return the frames of a split, or of a part of it, that are neither excluded nor failed in any of the tables.

    Raises ConfigError if the split is unknown or empty here, or has too few scenes for the part; StoreError if no frame
    is left.
    """
    scenes = scenes_of_split(tables, split, dataset)
    if every.scene > 1:
        in_order = [name for name in dict.fromkeys(map(scene_of, tables.shards)) if name in scenes]
        scenes = frozenset(in_order[every.scene - 1 :: every.scene])
        if not scenes:
            raise ConfigError(
                f'split "{split}" has {len(in_order)} scenes here, so one of every {every.scene} is none; set '
                f"every_scene to {len(in_order)} or less"
            )
    n_scans = 0
    frames: list[FrameRow] = []
    dropped: dict[str, list[str]] = {}
    for shard in tables.shards:
        if scene_of(shard) not in scenes:
            continue
        for row, states in enumerate(tables.states(shard)):
            n_scans += 1
            if (n_scans - 1) % every.scan:
                continue
            name = states[0].frame_id
            failed = [t.stage for t, state in zip(tables.tables, states, strict=True) if isinstance(state, Failed)]
            if name in excluded:
                dropped.setdefault("excluded by data.exclude", []).append(name)
            elif failed:
                dropped.setdefault(f"failed in stage {failed[0]}", []).append(name)
            else:
                frames.append(FrameRow(shard, row, name))
    selection = Selection(tuple(frames), {reason: tuple(names) for reason, names in dropped.items()})
    if not frames:
        raise StoreError(f'no frame of split "{split}" can be used: {selection.sentence()}')
    return selection


def scenes_of_split(tables: Tables, split: str, dataset: str) -> frozenset[str]:
    """Return the scenes of a split that the tables hold; raises ConfigError if it is unknown or empty here."""
    available = tuple(dict.fromkeys(scene_of(shard) for shard in tables.shards))
    try:
        return frozenset(load_split(split, dataset, available))
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from None


def check_dictionary(store: Store, ref: Ref, stage: str, content: Settings) -> None:
    """Raise StoreError unless a table that holds classes was made with this content of the class dictionary.

    Classes are numbers there; with another dictionary they would silently mean other things. The manifests say what
    each table was made with.
    """
    table = ref.tables.get(stage)
    made = table and store.read_manifest(stage, table.fingerprint)
    if made and made.identity.settings.get("ontology") != plain(content):
        raise StoreError(
            f"table `{stage}` of recipe {ref.recipe} was made with another class dictionary than the recipe names now; "
            f"run: {ref.make(stage)}"
        )


def read_text(store: Store, ref: Ref, ontology: Ontology) -> Tensor:
    """Return the prompt vectors, (p, d) float32, in the order of the class dictionary.

    Raises StoreError if the table is missing, damaged, or holds the prompts of another dictionary.
    """
    table = ref.table("text")
    rows = sorted(store.every(Text, table.fingerprint, table.shards), key=lambda row: row.prompt_id)
    if tuple(row.prompt for row in rows) != ontology.prompts:
        raise StoreError(
            f"table `text` of recipe {ref.recipe} holds {len(rows)} prompts that are not those of "
            f"dictionary {ontology.name}; run: {ref.make('pack')}"
        )
    return torch.from_numpy(np.stack([row.vector for row in rows]))
