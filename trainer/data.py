"""Packed tables as batches of tensors: rows picked by split, zipped, augmented and voxelised by worker processes."""

from __future__ import annotations

import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from manifests.config import ConfigError
from manifests.fingerprint import plain
from manifests.ontology import Ontology
from manifests.rows import Row
from manifests.sample import SuperpointPairs, Sweep, pairs_of, sweep_of, targets_of
from manifests.splits import load_split
from manifests.storage.store import Ref, ShardFile, ShardReader, Store, StoreError, TableRef, scene_of
from trainer.augment import AugmentConfig, augment, view_of
from trainer.config import TrainerError
from trainer.voxels import VoxelConfig, Voxels, voxel_confidences, voxel_labels, voxelise

OPEN_SHARDS = 64  # per process and table: file handles are limited, and opening again costs less than a millisecond


# -- which frames ------------------------------------------------------------------------------------------------------


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
        """Raises StoreError if the ref lacks a table, or a table a shard of another; it names the make target."""
        self.store = store
        self.tables = tuple(ref.table(stage) for stage in stages)
        self._shards: dict[str, tuple[ShardFile, ...]] = {}
        by_name = [{shard.shard: shard for shard in table.shards} for table in self.tables]
        for shard in self.tables[0].shards:
            files = []
            for table, named in zip(self.tables, by_name, strict=True):
                if shard.shard not in named or named[shard.shard].rows != shard.rows:
                    raise StoreError(
                        f"table `{table.stage}` of recipe {ref.recipe} does not hold the {shard.rows} frames of shard "
                        f"{shard.shard} that `{self.tables[0].stage}` holds; run: make {table.stage} "
                        f"RECIPE={ref.recipe}"
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

    def row(self, frame: FrameRow, stages: Collection[str] | None = None) -> list[dict[str, Any]]:
        """Return the frame's row in every table, or in those of some stages, in the order of the tables.

        Raises StoreError if a shard is missing or damaged, or if the tables are not aligned.
        """
        rows = []
        for number, table in enumerate(self.tables):
            if stages is not None and table.stage not in stages:
                continue
            row = self._reader(number, frame.shard).row(frame.row)
            if row["frame_id"] != frame.frame_id or row["status"] != "ok":
                raise StoreError(
                    f"table `{table.stage}`, shard {frame.shard}, row {frame.row} holds frame {row['frame_id']} with "
                    f'status "{row["status"]}"; expected {frame.frame_id} with status "ok". The tables do not belong '
                    "together; run: make pack"
                )
            rows.append(row)
        return rows

    def states(self, shard: str) -> Iterator[list[dict[str, Any]]]:
        """Yield, frame by frame, its name, status and reason in every table; raises like `row`."""
        columns = ("frame_id", "status", "reason")
        states = [
            self.store.read(table.stage, table.fingerprint, file, columns).to_pylist()
            for table, file in zip(self.tables, self._shards[shard], strict=True)
        ]
        for row, frame in enumerate(zip(*states, strict=True)):
            if len({state["frame_id"] for state in frame}) != 1:
                names = ", ".join(f"{t.stage}: {s['frame_id']}" for t, s in zip(self.tables, frame, strict=True))
                raise StoreError(f"row {row} of shard {shard} is not one frame ({names}); run: make pack")
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
            name = states[0]["frame_id"]
            failed = [t.stage for t, state in zip(tables.tables, states, strict=True) if state["status"] != "ok"]
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


def check_dictionary(store: Store, ref: Ref, stage: str, content: Mapping[str, Any]) -> None:
    """Raise StoreError unless a table that holds classes was made with this content of the class dictionary.

    Classes are numbers there; with another dictionary they would silently mean other things. The manifests say what
    each table was made with.
    """
    table = ref.tables.get(stage)
    made = table and store.read_manifest(stage, table.fingerprint)
    if made and made.identity.get("settings", {}).get("ontology") != plain(content):
        raise StoreError(
            f"table `{stage}` of recipe {ref.recipe} was made with another class dictionary than the recipe names now; "
            f"run: make {stage} RECIPE={ref.recipe}"
        )


def read_text(store: Store, ref: Ref, ontology: Ontology) -> Tensor:
    """Return the prompt vectors, (p, d) float32, in the order of the class dictionary.

    Raises StoreError if the table is missing, damaged, or holds the prompts of another dictionary.
    """
    table = ref.table("text")
    rows = [row for shard in table.shards for row in store.rows(table.stage, table.fingerprint, shard)]
    rows.sort(key=lambda row: row["prompt_id"])
    if tuple(row["prompt"] for row in rows) != ontology.prompts:
        raise StoreError(
            f"table `text` of recipe {ref.recipe} holds {len(rows)} prompts that are not those of "
            f"dictionary {ontology.name}; run: make pack RECIPE={ref.recipe}"
        )
    return torch.from_numpy(np.stack([row["vector"] for row in rows]))


# -- batches -----------------------------------------------------------------------------------------------------------

B = TypeVar("B", bound="Batch")

# Fields of row numbers say what they count; these move up when batches are joined.
OF_FRAME = {"rows_of": "frame_ids"}
OF_VOXEL = {"rows_of": "cells"}
OF_SUPERPOINT = {"rows_of": "superpoint_prompt"}


@dataclass(frozen=True)
class Batch:
    """Voxels of some frames, one frame after the other.

    `voxel_frame` (v,) int64 frame within the batch; `cells` (v, 3) int32, distinct within a frame; `features` (v, 1)
    float32. Everything that counts rows of something else counts through the whole batch.
    """

    frame_ids: tuple[str, ...]
    voxel_frame: Tensor = field(metadata=OF_FRAME)
    cells: Tensor
    features: Tensor

    @property
    def taught(self) -> Tensor:
        """The frame of every row that teaches, (k,) int64: what losses count by."""
        return self.voxel_frame[:0]

    @property
    def taught_weight(self) -> Tensor | None:
        """How much each of these rows may count, (k,) whole numbers; None where all count the same."""
        return None

    def silent(self) -> Self:
        """Return the batch with nothing that teaches."""
        return self

    @property
    def coords(self) -> Tensor:
        """Frame and cell of every voxel, (v, 4) int32: what the network takes."""
        return torch.column_stack([self.voxel_frame.to(self.cells.dtype), self.cells])

    def each(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return the batch with the function applied to every tensor."""
        names = [item.name for item in fields(self) if item.name != "frame_ids"]
        changes: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return replace(self, **changes)

    def pin_memory(self) -> Self:
        """Return the batch in page-locked memory; the loader calls this where a GPU trains."""
        return self.each(Tensor.pin_memory)


@dataclass(frozen=True)
class PairBatch(Batch):
    """For contrastive pre-training: aligned with pairs, `pair_voxel` and `pair_superpoint` (m,) int64; aligned with
    superpoints, `superpoint_vector` (s, d) float16, `superpoint_prompt` and `superpoint_frame` (s,) int64."""

    pair_voxel: Tensor = field(metadata=OF_VOXEL)
    pair_superpoint: Tensor = field(metadata=OF_SUPERPOINT)
    superpoint_vector: Tensor
    superpoint_prompt: Tensor
    superpoint_frame: Tensor = field(metadata=OF_FRAME)

    @property
    def taught(self) -> Tensor:
        return self.superpoint_frame[torch.bincount(self.pair_superpoint, minlength=len(self.superpoint_frame)) > 0]

    def silent(self) -> Self:
        return replace(self, pair_voxel=self.pair_voxel[:0], pair_superpoint=self.pair_superpoint[:0])


@dataclass(frozen=True)
class TargetBatch(Batch):
    """For the learning of classes: `labels` (v,) int64, the class that every voxel is to learn, 0 none."""

    labels: Tensor

    @property
    def taught(self) -> Tensor:
        return self.voxel_frame[self.labels > 0]

    def silent(self) -> Self:
        return replace(self, labels=torch.zeros_like(self.labels))


@dataclass(frozen=True)
class ConfidentBatch(TargetBatch):
    """For the learning of classes where it counts how sure they are: `confidence` (v,) uint8 in 1/255."""

    confidence: Tensor

    @property
    def taught_weight(self) -> Tensor:
        return self.confidence[self.labels > 0]


@dataclass(frozen=True)
class PointBatch(Batch):
    """For prediction: `point_voxel` (n,) int64, the voxel of every point; `n_points` (frames,) int64 points a frame."""

    point_voxel: Tensor = field(metadata=OF_VOXEL)
    n_points: Tensor


def join(samples: Sequence[B]) -> B:
    """Return batches as one, rows one after the other and row numbers moved up."""
    joined: dict[str, Any] = {"frame_ids": tuple(name for sample in samples for name in sample.frame_ids)}
    for item in fields(samples[0]):
        if item.name == "frame_ids":
            continue
        values = [getattr(sample, item.name) for sample in samples]
        if "rows_of" in item.metadata:
            lengths = [len(getattr(sample, item.metadata["rows_of"])) for sample in samples]
            starts = np.cumsum([0, *lengths[:-1]]).tolist()
            values = [value + start for value, start in zip(values, starts, strict=True)]
        # without superpoints, the width of their vectors is not known either
        joined[item.name] = torch.cat([value for value in values if len(value)] or values[:1])
    return replace(samples[0], **joined)


def pair_sample(
    voxels: VoxelConfig, augmentation: AugmentConfig | None, rows: Sequence[Row], rng: np.random.Generator
) -> PairBatch:
    """Return one frame of tables `points` and `pairs`, seen as `augmentation` draws it."""
    sweep, _, pairs = transformed(sweep_of(rows[0]), pairs_of(rows[1]), augmentation, rng)
    assert pairs is not None
    grid = voxelise(sweep.xyz_m, sweep.intensity, voxels)
    return PairBatch(
        **voxel_fields(sweep.frame_id, grid),
        pair_voxel=torch.from_numpy(grid.inverse[pairs.point]),
        pair_superpoint=torch.from_numpy(pairs.superpoint.astype(np.int64)),
        superpoint_vector=torch.from_numpy(pairs.vector.copy()),
        superpoint_prompt=torch.from_numpy(pairs.prompt_id.astype(np.int64)),
        superpoint_frame=torch.zeros(len(pairs.prompt_id), dtype=torch.int64),
    )


def target_sample(
    voxels: VoxelConfig,
    augmentation: AugmentConfig | None,
    class_names: Sequence[str],
    rows: Sequence[Row],
    rng: np.random.Generator,
    *,
    confident: bool = False,
) -> TargetBatch:
    """Return one frame of tables `points` and `target`, seen as `augmentation` draws it; raises like `class_sample`.

    With `confident` it is a ConfidentBatch.
    """
    target = targets_of(rows[1])
    confidence = target.confidence if confident else None
    return class_sample(voxels, augmentation, class_names, sweep_of(rows[0]), target.label, rng, confidence)


def class_sample(
    voxels: VoxelConfig,
    augmentation: AugmentConfig | None,
    class_names: Sequence[str],
    sweep: Sweep,
    label: NDArray[np.uint8],
    rng: np.random.Generator,
    confidence: NDArray[np.uint8] | None = None,
) -> TargetBatch:
    """Return a sweep whose points bear classes, `label` (n,), 0 none, seen as `augmentation` draws it.

    With the `confidence` (n,) of these labels in 1/255 it is a ConfidentBatch. Raises ValueError for a label that is
    none of the classes, or labels of another sweep.
    """
    if len(label) != len(sweep.xyz_m):
        raise ValueError(f"{len(label)} labels for a sweep of {len(sweep.xyz_m)} points; run: make pack")
    if label.max(initial=0) >= len(class_names):
        raise ValueError(
            f"label {label.max()} is none of the {len(class_names)} classes; was the table made with another "
            "dictionary? run: make pack"
        )
    sweep, kept, _ = transformed(sweep, None, augmentation, rng)
    grid = voxelise(sweep.xyz_m, sweep.intensity, voxels)
    labels = voxel_labels(label[kept], grid.inverse, len(grid.coords), voxels.label)
    taught = TargetBatch(**voxel_fields(sweep.frame_id, grid), labels=torch.from_numpy(labels))
    if confidence is None:
        return taught
    sure = voxel_confidences(confidence[kept], label[kept], grid, labels, voxels.label)
    return ConfidentBatch(**vars(taught), confidence=torch.from_numpy(sure))


def point_sample(voxels: VoxelConfig, views: int, rows: Sequence[Row], _: np.random.Generator) -> PointBatch:
    """Return fixed views of one frame of table `points` as so many frames; the first is the frame as it is."""
    sweep = sweep_of(rows[0])
    grids = (voxelise(view_of(sweep.xyz_m, number), sweep.intensity, voxels) for number in range(views))
    return join(
        [
            PointBatch(
                **voxel_fields(sweep.frame_id, grid),
                point_voxel=torch.from_numpy(grid.inverse),
                n_points=torch.tensor([len(sweep.xyz_m)]),
            )
            for grid in grids
        ]
    )


def transformed(
    sweep: Sweep, pairs: SuperpointPairs | None, augmentation: AugmentConfig | None, rng: np.random.Generator
) -> tuple[Sweep, NDArray[np.int64], SuperpointPairs | None]:
    """Return a random view of a sweep, the rows of the points it keeps, and its pairs; or all as it is.

    Raises ValueError if there is nothing to see.
    """
    if len(sweep.xyz_m) == 0:
        raise ValueError("the sweep has no points to learn from; exclude the frame with data.exclude")
    if augmentation is None:
        return sweep, np.arange(len(sweep.xyz_m)), pairs
    view = augment(sweep.xyz_m, pairs, augmentation, rng)
    return Sweep(sweep.frame_id, view.xyz_m, sweep.intensity[view.kept_point]), view.kept_point, view.pairs


def voxel_fields(frame_id: str, grid: Voxels) -> dict[str, Any]:
    """Return the fields that every batch has, of one frame."""
    return {
        "frame_ids": (frame_id,),
        "voxel_frame": torch.zeros(len(grid.coords), dtype=torch.int64),
        "cells": torch.from_numpy(grid.coords),
        "features": torch.from_numpy(grid.features),
    }


# -- loading -----------------------------------------------------------------------------------------------------------

BatchKey = tuple[int, tuple[int, ...]]
"""Epoch, and numbers of the frames in a batch."""

MakeSample = Callable[[Sequence[Row], np.random.Generator], Batch]


class BatchDataset(Dataset[Batch | Exception]):
    """Batches by epoch and frame numbers.

    Every sample has a random generator of its own, seeded by (seed, epoch, frame number), so batches do not depend on
    how many workers make them. A batch that cannot be made is the exception that says why: raised in a worker, it would
    arrive wrapped in a trace.
    """

    def __init__(self, tables: Tables, frames: Sequence[FrameRow], make_sample: MakeSample, seed: int) -> None:
        self._tables, self._frames, self._make_sample, self._seed = tables, frames, make_sample, seed

    def __getitem__(self, key: BatchKey) -> Batch | Exception:
        epoch, numbers = key
        try:
            return join([self._sample(epoch, number) for number in numbers])
        except (StoreError, ValueError) as error:
            return error

    def _sample(self, epoch: int, number: int) -> Batch:
        frame = self._frames[number]
        rows = self._tables.row(frame)
        try:
            return self._make_sample(rows, np.random.default_rng([self._seed, epoch, number]))
        except ValueError as error:
            raise StoreError(f"frame {frame.frame_id}: {error}") from None


@dataclass(frozen=True)
class Part:
    """Frames that go through the network at once. `silent`: they are there for company only and teach nothing, where a
    batch has fewer frames than there are processes to share them."""

    numbers: tuple[int, ...]
    silent: bool = False


@dataclass(frozen=True)
class Step:
    """One batch: all of its frames, and the parts of it that this process computes, one after the other."""

    numbers: tuple[int, ...]
    parts: tuple[Part, ...]


class EpochOrder(Sampler[BatchKey]):
    """The batches of one epoch, frames shuffled by (seed, epoch), in the parts that one of several processes loads.

    Set `epoch` before iterating, and `first`, the batch to begin with. Neither the order of frames nor what makes a
    batch depends on how many processes share it, nor on how many parts each of them cuts its share into.
    """

    def __init__(
        self,
        n_frames: int,
        batch_size: int,
        seed: int,
        drop_last: bool,
        *,
        rank: int = 0,
        n_ranks: int = 1,
        n_parts: int = 1,
    ) -> None:
        n_batches = n_frames // batch_size if drop_last else -(-n_frames // batch_size)
        self._n_batches = max(n_batches, 1)
        self._n_frames, self._batch_size, self._seed = n_frames, batch_size, seed
        self._rank, self._n_ranks, self._n_parts = rank, n_ranks, n_parts
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._n_batches

    def steps(self) -> Iterator[Step]:
        """Yield the batches of the epoch from the first one to do."""
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._n_frames).tolist()
        for number in range(self.first, self._n_batches):
            numbers = tuple(order[number * self._batch_size : (number + 1) * self._batch_size])
            share = cut(numbers, self._n_ranks)[self._rank]
            n_parts = min(self._n_parts, -(-len(numbers) // self._n_ranks))  # as many in every process
            parts = (Part(part) if part else Part(numbers[:1], silent=True) for part in cut(share, n_parts))
            yield Step(numbers, tuple(parts))

    def __iter__(self) -> Iterator[BatchKey]:
        return ((self.epoch, part.numbers) for step in self.steps() for part in step.parts)


def cut(numbers: tuple[int, ...], n_parts: int) -> list[tuple[int, ...]]:
    """Return the numbers in parts, in order, of which none is more than one longer than another."""
    ends = [len(numbers) * part // n_parts for part in range(n_parts + 1)]
    return [numbers[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


@contextmanager
def load_batches(
    dataset: BatchDataset,
    order: Sampler[BatchKey] | Sequence[BatchKey],
    n_workers: int,
    pin: bool,
    at_start: Callable[[], None] | None = None,
) -> Iterator[DataLoader[Batch | Exception]]:
    """Yield a loader of the batches in that order; its workers, which stay alive, prepare two each ahead.

    `at_start` runs in every worker before anything else. The workers end with the block, however it is left.
    """

    def start(_: int) -> None:
        # Ctrl-C, and what ends a whole group of processes, reach the workers too: the main process ends them
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if at_start is not None:
            at_start()

    loader = DataLoader(
        dataset,
        sampler=order,
        batch_size=None,
        collate_fn=unchanged,
        num_workers=n_workers,
        prefetch_factor=2 if n_workers else None,
        persistent_workers=n_workers > 0,
        multiprocessing_context="fork" if n_workers else None,
        pin_memory=pin,
        worker_init_fn=start,
        generator=torch.Generator().manual_seed(0),  # else every epoch would move torch's own random state
    )
    try:
        yield loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainerError(
            f"a process of the loader was lost ({str(error).rstrip('.')}); most often memory ran out. What is saved is "
            "kept: lower run.loader_workers, and run the same command again"
        ) from None
    finally:
        iterator: Any = loader._iterator
        if iterator is not None:  # left to the garbage collector, it waits five seconds for each worker
            iterator._shutdown_workers()


def unchanged(batch: Any) -> Any:
    """Return the batch; torch's own way would take it apart."""
    return batch


def checked_batch(batch: Batch | Exception) -> Any:
    """Return a batch that a loader gave; raises what kept it from being made."""
    if isinstance(batch, Exception):
        raise batch
    return batch
