"""Our way: the same labels and samples from the store, by the stages of the pipeline and the loader of the trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from manifests.asked import tables_of
from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.network import AugmentConfig, VoxelConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.artifacts import TEXT, ArtifactsConfig
from manifests.storage.places import root_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile, ShardReader
from manifests.storage.store import Store
from manifests.tables.base import F, Rows
from manifests.tables.sensors import Coordinates, Index
from manifests.tables.superpoints import Group
from manifests.tables.teacher import SegmentMaps
from pipeline.datasets.registry import open_dataset
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Task
from pipeline.engine.worker import Worker
from pipeline.frame import Frame, read_file
from pipeline.stages import group, project
from pipeline.stages.base import FrameInput
from pipeline.stages.project import visible_pairs
from pipeline.stages.registry import PACKED, STAGES
from pipeline.teachers.artifacts import read_bytes, read_matrices
from superpixels.lifting import official_point_labels
from trainer.data.batches import PairBatch, TargetBatch
from trainer.data.loading import BatchDataset, MakeSample
from trainer.data.samples import pair_sample, target_sample
from trainer.data.tables import FrameRow, Tables

PARITY = GroupConfig(policy="last_camera", occluded=True)
SCENE = "scene"
SCENE_FRAMES = 40
"""Key frames of a nuScenes scene. The more rows a shard has, the longer its footer, which is read when it is opened."""


@dataclass(frozen=True)
class Source:
    """Key frames in nuScenes layout with official mask files."""

    name: str
    root: Path
    masks: Path
    version: str = "v1.0-trainval"


@dataclass(frozen=True, eq=False)
class Loaded:
    """A frame read into memory: points float32 (n, 3), and its row of table `segment`."""

    frame: Frame
    xyz_m: npt.NDArray[np.float32]
    segment: SegmentMaps


def recipe_for(source: Source, folder: Path, scenes: Sequence[str]) -> Recipe:
    """Return the recipe that packs some scenes of a source into a store in `folder`, labelled as the reference does."""
    split = folder / "scenes.txt"
    split.write_text("\n".join(scenes))
    ontology = load_ontology("nuscenes")
    return Recipe(
        name="bench",
        data=DataConfig(root=str(source.root), version=source.version, split=str(split)),
        run=RunConfig(store=str(folder / "store")),
        teacher=ArtifactsConfig(folder=str(source.masks), void=has_void(source.masks, len(ontology.prompts))),
        project=ProjectConfig(),
        text=TextConfig(),
        segment=SegmentConfig(),
        group=PARITY,
        ontology=ontology,
    )


def has_void(masks: Path, n_prompts: int) -> bool:
    """Return whether official text vectors have a row more than there are prompts: the usual way drops it unseen."""
    return len(read_matrices(read_bytes(masks / TEXT))[0]) == n_prompts + 1


class OurWay:
    """Makes labels and samples of the frames of a small store, one shard as long as a scene; `build` makes it.

    Frames go by number, in the order of `frame_ids`.
    """

    def __init__(self, recipe: Recipe, ref: Ref, frame_ids: Sequence[str]) -> None:
        self.frame_ids = tuple(frame_ids)
        self._recipe, self._ref = recipe, ref
        self._store = Store.open(recipe.run.store)
        self._worker = Worker(recipe)
        self._dataset = open_dataset(recipe.data)
        self._project, self._group = project.prepare(recipe), group.prepare(recipe)
        self._default_group = group.prepare(replace(recipe, group=GroupConfig()))
        self._index, self._points, self._segment = (
            self._store.open_shard(name, *self.shard(name)) for name in ("index", "points", "segment")
        )

    @classmethod
    def build(cls, recipe: Recipe, folder: Path) -> OurWay:
        """Build the tables of a recipe in this process; raises RuntimeError naming the first frame that failed."""
        with InlinePool(recipe) as pool:
            failures = Runner(recipe).run(PACKED, pool)
        if failures:
            first = failures[0]
            raise RuntimeError(f"stage {first.stage}, shard {first.shard}, frame {first.frame_id}: {first.cause}")
        store = Store.open(recipe.run.store)
        ref = tables_of(store, recipe, PACKED)
        long = replace(recipe, run=replace(recipe.run, store=str(folder / "scene")))
        index = ref.table("index")
        rows = [state.frame_id for shard in index.shards for state in store.states("index", index.fingerprint, shard)]
        return cls(long, as_one_scene(store, ref, Store.open(long.run.store)), rows)

    def shard(self, name: str) -> tuple[str, ShardFile]:
        """Return the fingerprint of a table and its only shard."""
        table = self._ref.table(name)
        return table.fingerprint, table.shards[0]

    def bytes_per_frame(self, name: str) -> float:
        """Return how many bytes of a table a frame takes, its share of the footer included."""
        _, shard = self.shard(name)
        return shard.bytes / shard.rows

    # -- labels -------------------------------------------------------------------------------------------------------

    def _frame(self, number: int) -> Frame:
        return Frame.of(row_of(self._index, number, Index))

    def group_row(self, number: int, parity: bool = True) -> Group:
        """Return the row of table `group` of a frame: sweep from table `points`, masks from table `segment`.

        Without `parity` the labels are those of our own default settings.
        """
        frame, points = self._frame(number), Rows(row_of(self._points, number, Coordinates))
        pairs = self._project(FrameInput(frame, points))
        rows = Rows(pairs, row_of(self._segment, number, SegmentMaps))
        return (self._group if parity else self._default_group)(FrameInput(frame, rows))

    def load(self, number: int) -> Loaded:
        """Return what `group_loaded` takes."""
        frame = self._frame(number)
        xyz_m = self._dataset.read_cloud(frame).xyz_m
        return Loaded(frame, xyz_m, row_of(self._segment, number, SegmentMaps))

    def group_loaded(self, loaded: Loaded) -> Group:
        """Return the row of table `group` of a frame that is in memory."""
        pairs = visible_pairs(loaded.frame, loaded.xyz_m, self._recipe.project)
        return self._group(FrameInput(loaded.frame, Rows(pairs, loaded.segment)))

    def run_stages(self, stages: Sequence[str] = ("project", "group")) -> int:
        """Build tables anew as a worker of the pipeline does; return for how many frames."""
        shards = {name: self.shard(name) for name in ("index", "points", "segment")}
        for stage in stages:
            fingerprint, old = self.shard(stage)
            needs = {"index", *(need.table for need in STAGES[stage].needs(self._recipe))}
            rows = {name: shard for name, shard in shards.items() if name in needs}
            outcome = self._worker.run(Task(stage, fingerprint, old.shard, old.key, old.rows, rows=rows))
            if outcome.shard is None:
                raise RuntimeError(f"stage {stage}, frame {outcome.failures[0].frame_id}: {outcome.failures[0].cause}")
            shards[stage] = fingerprint, outcome.shard
        return shards[stages[-1]][1].rows

    def sweep_file(self, number: int) -> bytes:
        """Return the file of a frame's sweep."""
        return read_file(root_of(self._recipe.data), self._frame(number).lidar_path)

    def stored_group_row(self, number: int) -> Group:
        """Return a frame's row of table `group` as it lies in the store now."""
        [shard] = self._store.shards("group", self.shard("group")[0]).values()
        return row_of(self._store.open_shard("group", self.shard("group")[0], shard), number, Group)

    # -- samples ------------------------------------------------------------------------------------------------------

    def pair_batch(self, number: int, voxels: VoxelConfig, augmentation: AugmentConfig | None) -> PairBatch:
        """Return a frame as pre-training gets it."""
        batch = self._batch(number, ("points", "pairs"), partial(pair_sample, voxels, augmentation))
        assert isinstance(batch, PairBatch)
        return batch

    def target_batch(self, number: int, voxels: VoxelConfig, augmentation: AugmentConfig | None) -> TargetBatch:
        """Return a frame as distillation gets it."""
        names = [one.name for one in self._recipe.ontology.classes]
        batch = self._batch(number, ("points", "target"), partial(target_sample, voxels, augmentation, names))
        assert isinstance(batch, TargetBatch)
        return batch

    def _batch(self, number: int, stages: Sequence[str], make_sample: MakeSample) -> Any:
        # The shards are opened for this sample alone: shuffled frames of hundreds of scenes seldom meet an open one.
        tables = Tables(self._store, self._ref, stages)
        frame = FrameRow(SCENE, number, self.frame_ids[number])
        batch = BatchDataset(tables, [frame], make_sample, seed=0)[0, (0,)]
        if isinstance(batch, Exception):
            raise batch
        return batch


def row_of(reader: ShardReader, number: int, kind: type[F]) -> F:
    """Return the row of a frame that did not fail."""
    row = reader.record(number, kind)
    assert isinstance(row, kind)
    return row


def as_one_scene(store: Store, ref: Ref, target: Store) -> Ref:
    """Copy every table of frames to `target` as one shard of `SCENE_FRAMES` rows: the frames there are, repeated."""
    tables = {}
    for name in (name for name in ref.tables if not STAGES[name].build):
        table = ref.table(name)
        rows = pa.concat_tables(
            store.read(name, table.fingerprint, shard).replace_schema_metadata() for shard in table.shards
        )
        numbers = list(islice(cycle(range(rows.num_rows)), max(SCENE_FRAMES, rows.num_rows)))
        shard = target.write(name, table.fingerprint, SCENE, table.shards[0].key, rows.take(numbers))
        tables[name] = TableRef(name, table.fingerprint, (shard,))
    return Ref(ref.recipe, tables)


def official_labels(row: Group) -> npt.NDArray[np.int32]:
    """Return the labels in a row of table `group` in the format of the reference's files."""
    return official_point_labels(row.point_superpoint, row.superpoint_fine)
