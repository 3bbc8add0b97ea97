"""From packed tables to batches."""

import ast
import os
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.config import ConfigError
from manifests.sections.network import AugmentConfig, VoxelConfig
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.tables.base import Rows
from manifests.tables.labels import Belief, Target
from manifests.tables.sensors import Points
from tests.filled import record
from trainer.data import tables as data_tables
from trainer.data.batches import Batch, ConfidentBatch, PairBatch, SoftBatch, TargetBatch, join
from trainer.data.loading import BatchDataset, EpochOrder, Part, Step, load_batches
from trainer.data.samples import all_finite, pair_sample, target_sample
from trainer.data.tables import FrameRow, Tables, read_text, select_frames

VOXELS = VoxelConfig(size_m=0.4, angle_deg=4)
AUGMENT = AugmentConfig(crop_min_pairs=50, cuboid_min_pairs=50)
CLASSES = ("ignore", "car", "road", "wall")


def tables_of(fleet: Any, *stages: str) -> Tables:
    return Tables(fleet.store, fleet.ref(), stages)


def equal(one: Batch, other: Batch) -> bool:
    return one.frame_ids == other.frame_ids and all(
        torch.equal(getattr(one, item.name), getattr(other, item.name))
        for item in fields(one)
        if item.name != "frame_ids"
    )


# -- which frames ------------------------------------------------------------------------------------------------------


def test_a_split_selects_scenes_in_the_order_of_the_store(fleet: Any) -> None:
    tables = tables_of(fleet, "points", "target")
    train = select_frames(tables, "train", "nuscenes", ())
    assert [frame.frame_id for frame in train.frames] == ["a0", "a1", "a2", "b0", "b1"]
    assert train.frames[3] == FrameRow("scene-0655", 0, "b0")
    assert train.sentence() == "5 frames of 2 scenes"
    val = select_frames(tables, "val", "nuscenes", ())
    assert [frame.frame_id for frame in val.frames] == ["v0", "v1"]


def test_chunks_of_a_long_scene_belong_to_it() -> None:
    assert FrameRow("scene-0061+064", 0, "a0").scene == "scene-0061"
    assert FrameRow("08+0128", 0, "a0").scene == "08"


def test_failed_and_excluded_frames_are_left_out_and_counted(fleet: Any) -> None:
    fleet.put("points", fleet.failing(fleet.points_row, ["a0"]))
    fleet.put("target", fleet.failing(fleet.target_row, ["a0", "b1"]))
    selection = select_frames(tables_of(fleet, "points", "target"), "train", "nuscenes", ["a2"])
    assert [frame.frame_id for frame in selection.frames] == ["a1", "b0"]
    assert selection.dropped == {
        "failed in stage points": ("a0",),
        "excluded by data.exclude": ("a2",),
        "failed in stage target": ("b1",),
    }
    assert "left out: 1 failed in stage points, 1 excluded by data.exclude" in selection.sentence()


def test_a_split_without_frames_here_is_a_sentence(fleet: Any) -> None:
    tables = tables_of(fleet, "points")
    with pytest.raises(ConfigError, match="split 'test' of nuscenes is empty here"):
        select_frames(tables, "test", "nuscenes", ())
    with pytest.raises(ConfigError, match="unknown split 'trian'"):
        select_frames(tables, "trian", "nuscenes", ())
    with pytest.raises(ConfigError, match="no such split file"):
        select_frames(tables, "mine.txt", "nuscenes", ())
    with pytest.raises(StoreError, match=r'no frame of split "val" can be used: 0 frames.*2 excluded'):
        select_frames(tables, "val", "nuscenes", ["v0", "v1"])


def test_a_missing_table_or_shard_names_the_make_target(fleet: Any) -> None:
    with pytest.raises(StoreError, match="make segment RECIPE="):
        tables_of(fleet, "points", "segment")
    target = fleet.ref().tables["target"]
    fleet.set_table(TableRef("target", target.fingerprint, target.shards[:1]))
    with pytest.raises(StoreError, match=r"shard scene-0655.*make target RECIPE="):
        tables_of(fleet, "points", "target")


def test_tables_that_are_not_aligned_are_refused(fleet: Any) -> None:
    other = {"a0": "a1", "a1": "a0"}
    fleet.put("target", lambda name: fleet.target_row(other.get(name, name)))
    tables = tables_of(fleet, "points", "target")
    with pytest.raises(StoreError, match=r"points: a0, target: a1.*make pack"):
        select_frames(tables, "train", "nuscenes", ())
    with pytest.raises(StoreError, match="holds frame a1"):
        tables.rows(FrameRow("scene-0061", 0, "a0"))


def test_used_tables_hold_only_the_shards_that_were_read(fleet: Any) -> None:
    tables = tables_of(fleet, "points", "pairs")
    used = tables.used([FrameRow("scene-0655", 1, "b1")])
    assert {name: [shard.shard for shard in table.shards] for name, table in used.items()} == {
        "points": ["scene-0655"],
        "pairs": ["scene-0655"],
    }


def test_only_so_many_shards_stay_open(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_tables, "OPEN_SHARDS", 1)
    tables = tables_of(fleet, "points", "target")
    for shard, row, name in [("scene-0061", 2, "a2"), ("scene-0655", 0, "b0"), ("scene-0061", 0, "a0")]:
        assert [found.frame_id for found in tables.rows(FrameRow(shard, row, name))] == [name, name]
        assert len(tables._readers) <= 2


# -- prompt vectors ----------------------------------------------------------------------------------------------------


def test_prompt_vectors_come_in_the_order_of_the_dictionary(fleet: Any) -> None:
    text = read_text(fleet.store, fleet.ref(), fleet.recipe().ontology)
    np.testing.assert_array_equal(text.numpy(), fleet.text)


def test_prompt_vectors_of_another_dictionary_are_refused(fleet: Any) -> None:
    with pytest.raises(StoreError, match="not those of dictionary nuscenes; run: make pack"):
        read_text(fleet.store, fleet.ref(), fleet.recipe("data.ontology=nuscenes").ontology)


# -- samples and batches -----------------------------------------------------------------------------------------------


def test_a_target_sample_has_the_majority_of_each_voxel() -> None:
    xyz_m = np.array([[0.9, 0, 0], [1.0, 0, 0], [1.1, 0, 0], [5, 0, 0]], np.float32)
    points = record(Points, xyz_m=xyz_m, intensity=np.array([7, 8, 9, 10], np.float32))
    target = record(Target, label=np.array([0, 2, 2, 1], np.uint8))
    sample = target_sample(VOXELS, None, CLASSES, Rows(points, target), np.random.default_rng(0))
    assert sample.coords.tolist() == [[0, 2, 0, 0], [0, 12, 0, 0]]
    assert sample.features.tolist() == [[7], [10]]
    assert sample.labels.tolist() == [2, 1]
    assert type(sample) is TargetBatch, "nobody asked how sure they are"

    rows = Rows(points, replace(target, confidence=np.array([0, 100, 201, 255], np.uint8)))
    sure = target_sample(VOXELS, None, CLASSES, rows, np.random.default_rng(0), confident=True)
    assert isinstance(sure, ConfidentBatch)
    assert sure.labels.tolist() == [2, 1]
    assert sure.confidence.tolist() == [150, 255]
    assert join([sure, sure]).confidence.tolist() == [150, 255, 150, 255]


def test_a_soft_sample_has_what_the_points_of_each_voxel_may_be() -> None:
    xyz_m = np.array([[0.9, 0, 0], [1.0, 0, 0], [1.1, 0, 0], [5, 0, 0], [9, 0, 0]], np.float32)
    points = record(Points, xyz_m=xyz_m, intensity=np.zeros(5, np.float32))
    target = record(Target, label=np.array([0, 2, 2, 1, 0], np.uint8))
    # the first is nothing by now, the fourth was called 2 by the vote and is 1 since
    belief = record(
        Belief,
        label=np.array([[1, 0, 0], [2, 1, 3], [2, 0, 0], [2, 1, 0], [0, 0, 0]], np.uint8),
        share=np.array([[90, 0, 0], [100, 60, 40], [51, 0, 0], [200, 50, 0], [0, 0, 0]], np.uint8),
    )
    rows = Rows(points, belief, target)
    soft = target_sample(VOXELS, None, CLASSES, rows, np.random.default_rng(0), soft=True)
    assert isinstance(soft, SoftBatch) and soft.labels.tolist() == [2, 1, 0]
    expected = np.zeros((3, len(CLASSES)), np.float32)
    expected[0, [1, 2, 3]] = (0 + 60 / 200) / 2, (1 + 100 / 200) / 2, (0 + 40 / 200) / 2
    expected[1, 1] = 1
    np.testing.assert_allclose(soft.shares.numpy(), expected, atol=1e-6)
    assert join([soft, soft]).shares.shape == (6, len(CLASSES))
    first = target_sample(replace(VOXELS, label="first"), None, CLASSES, rows, np.random.default_rng(0), soft=True)
    assert isinstance(first, SoftBatch) and first.labels.tolist() == [0, 1, 0]
    np.testing.assert_allclose(first.shares.numpy(), expected * [[0], [1], [0]])
    for wrong in (
        replace(belief, label=belief.label[1:], share=belief.share[1:]),
        replace(belief, label=np.full((5, 3), 99, np.uint8)),
    ):
        with pytest.raises(ValueError, match="table `belief`, column `label`"):
            target_sample(VOXELS, None, CLASSES, Rows(points, wrong, target), np.random.default_rng(0), soft=True)


def test_pairs_point_at_the_voxels_of_their_points(fleet: Any) -> None:
    points, pairs = fleet.points_row("a0"), fleet.pairs_row("a0")
    sample = pair_sample(VOXELS, None, Rows(points, pairs), np.random.default_rng(0))
    x, y, z = points.xyz_m[pairs.point].T
    cells = np.stack([np.hypot(x, y) / 0.4, np.degrees(np.arctan2(y, x)) / 4, z / 0.4], axis=1)
    agree = (sample.cells[sample.pair_voxel].numpy() == np.floor(cells)).all(axis=1)
    assert agree.mean() > 0.999  # float32 against float64 at the edge of a cell
    np.testing.assert_array_equal(sample.pair_superpoint.numpy(), pairs.superpoint)
    np.testing.assert_array_equal(sample.superpoint_vector.numpy(), pairs.vector)


def test_augmented_pairs_are_some_of_the_pairs_of_the_kept_points(fleet: Any) -> None:
    rows = Rows(fleet.points_row("a1"), fleet.pairs_row("a1"))
    whole = pair_sample(VOXELS, None, rows, np.random.default_rng(0))
    seen = pair_sample(VOXELS, AUGMENT, rows, np.random.default_rng(0))
    assert 0 < len(seen.pair_voxel) < len(whole.pair_voxel)
    assert int(seen.pair_voxel.max()) < len(seen.cells)
    torch.testing.assert_close(seen.superpoint_prompt, whole.superpoint_prompt)


def test_hundreds_of_masks_in_one_image_and_none_in_another_keep_their_vectors(fleet: Any) -> None:
    points, n_masks = fleet.points_row("a0"), 400
    point = np.arange(0, 1000, 2, dtype=np.int32)
    vector = np.random.default_rng(0).normal(size=(n_masks, 8)).astype(np.float16)
    pairs = replace(
        fleet.pairs_row("a0"),
        point=point,
        superpoint=(np.arange(500) % n_masks).astype(np.int32),
        row_px=np.full(500, 40, np.uint16),
        col_px=np.full(500, 80, np.uint16),
        superpoint_view=np.zeros(n_masks, np.uint8),  # the second camera sees nothing
        superpoint_prompt=(np.arange(n_masks) % 6).astype(np.int32),
        vector=vector,
    )
    sample = pair_sample(VOXELS, AUGMENT, Rows(points, pairs), np.random.default_rng(0))
    batch = join([sample, sample])
    assert len(batch.superpoint_vector) == 2 * n_masks
    assert torch.equal(batch.superpoint_vector[n_masks + 399], torch.from_numpy(vector[399]))
    second = batch.pair_superpoint[len(sample.pair_superpoint) :]
    assert torch.equal(second, sample.pair_superpoint + n_masks) and int(second.max()) >= n_masks + 255
    assert set(batch.supervised_frame.tolist()) == {0, 1}


def test_joining_moves_row_numbers_up() -> None:
    def sample(name: str, n_voxels: int, n_superpoints: int) -> PairBatch:
        return PairBatch(
            frame_ids=(name,),
            voxel_frame=torch.zeros(n_voxels, dtype=torch.int64),
            cells=torch.full((n_voxels, 3), n_voxels, dtype=torch.int32),
            features=torch.full((n_voxels, 1), 0.5),
            pair_voxel=torch.arange(n_voxels),
            pair_superpoint=torch.zeros(n_voxels, dtype=torch.int64),
            superpoint_vector=torch.zeros(n_superpoints, 4 if n_superpoints else 0, dtype=torch.float16),
            superpoint_prompt=torch.full((n_superpoints,), 9),
            superpoint_frame=torch.zeros(n_superpoints, dtype=torch.int64),
        )

    # the frame in the middle has no superpoints, hence vectors of unknown size
    batch = join([sample("a", 2, 3), sample("b", 1, 0), sample("c", 2, 1)])
    assert batch.frame_ids == ("a", "b", "c")
    assert batch.coords.tolist() == [[0, 2, 2, 2], [0, 2, 2, 2], [1, 1, 1, 1], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert batch.pair_voxel.tolist() == [0, 1, 2, 3, 4]
    assert batch.pair_superpoint.tolist() == [0, 0, 3, 3, 3]
    assert batch.superpoint_prompt.tolist() == [9, 9, 9, 9]
    assert batch.superpoint_frame.tolist() == [0, 0, 0, 2]
    assert batch.superpoint_vector.shape == (4, 4)


def dataset(fleet: Any, seed: int = 0) -> BatchDataset:
    tables = tables_of(fleet, "points", "pairs")
    frames = select_frames(tables, "train", "nuscenes", ()).frames
    return BatchDataset(tables, frames, partial(pair_sample, VOXELS, AUGMENT), seed)


def loaded(fleet: Any, n_workers: int, epochs: tuple[int, ...], seed: int = 0) -> list[PairBatch]:
    order = EpochOrder(5, 2, seed, drop_last=False)
    batches = []
    with load_batches(dataset(fleet, seed), order, n_workers, pin=False) as loader:
        for order.epoch in epochs:
            batches += list(loader)
    return batches


def test_batches_do_not_depend_on_the_number_of_workers(fleet: Any) -> None:
    before = torch.get_rng_state()
    alone, two = loaded(fleet, 0, (0, 1)), loaded(fleet, 2, (0, 1))
    assert len(alone) == 6
    assert all(equal(one, other) for one, other in zip(alone, two, strict=True))
    assert torch.equal(before, torch.get_rng_state()), "loading must not move torch's random state"


def test_an_epoch_looks_the_same_however_it_is_reached(fleet: Any) -> None:
    after_another, at_once, other_seed = (
        loaded(fleet, 0, (0, 1))[3:],
        loaded(fleet, 0, (1,)),
        loaded(fleet, 0, (1,), seed=4),
    )
    assert all(equal(one, other) for one, other in zip(after_another, at_once, strict=True))
    assert not all(equal(one, other) for one, other in zip(other_seed, at_once, strict=True))


def test_every_epoch_shows_every_frame_once_in_another_order() -> None:
    order = EpochOrder(10, 4, seed=3, drop_last=False)
    epochs = []
    for order.epoch in range(2):
        batches = list(order)
        assert [len(numbers) for _, numbers in batches] == [4, 4, 2]
        assert {epoch for epoch, _ in batches} == {order.epoch}
        epochs.append([number for _, numbers in batches for number in numbers])
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(10))
    assert epochs[0] != epochs[1]


def test_the_last_batch_is_dropped_only_if_there_is_another() -> None:
    assert [len(numbers) for _, numbers in EpochOrder(10, 4, 0, drop_last=True)] == [4, 4]
    assert [len(numbers) for _, numbers in EpochOrder(3, 4, 0, drop_last=True)] == [3]


def test_processes_share_a_batch_whose_frames_do_not_depend_on_them() -> None:
    def steps(rank: int, world_size: int, n_parts: int = 1) -> list[Step]:
        order = EpochOrder(5, 2, seed=3, drop_last=False, rank=rank, world_size=world_size, n_parts=n_parts)
        return list(order.steps())

    alone = steps(0, 1)
    first, second = steps(0, 2), steps(1, 2)
    for whole, one, other in zip(alone[:2], first, second, strict=False):
        assert whole.numbers == one.numbers == other.numbers
        assert whole.parts == (Part(whole.numbers),)
        assert one.parts[0].numbers + other.parts[0].numbers == whole.numbers
    # the last frame is alone: the first process goes along without anything to learn
    assert first[2].parts == (Part(alone[2].numbers, silent=True),)
    assert second[2].parts == (Part(alone[2].numbers),)
    assert [[part.numbers for part in step.parts] for step in steps(0, 1, n_parts=2)] == [
        [(number,) for number in step.numbers] for step in alone
    ]


def test_an_epoch_goes_on_from_any_of_its_batches(fleet: Any) -> None:
    order = EpochOrder(5, 2, 0, drop_last=False)
    order.first = 1
    with load_batches(dataset(fleet), order, 0, pin=False) as loader:
        rest = list(loader)
    assert all(equal(one, other) for one, other in zip(rest, loaded(fleet, 0, (0,))[1:], strict=True))


def test_what_is_silent_teaches_nothing(fleet: Any) -> None:
    (batch, *_) = loaded(fleet, 0, (0,))
    assert len(batch.supervised_frame) > 0
    assert len(batch.silent().supervised_frame) == 0
    rows = Rows(fleet.points_row("a0"), fleet.target_row("a0"))
    target = target_sample(VOXELS, None, CLASSES, rows, np.random.default_rng(0))
    assert len(target.supervised_frame) == np.count_nonzero(target.labels)
    assert len(target.silent().supervised_frame) == 0


def test_loading_opens_no_image(fleet: Any) -> None:
    opened: list[str] = []
    listening = True

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if listening and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(note)
    loaded(fleet, 0, (0,))
    listening = False
    assert [name for name in opened if name.lower().endswith((".jpg", ".jpeg", ".png", ".webp"))] == []
    assert not Path(fleet.recipe().data.root).exists(), "and there are none: the tables are all there is"
    trees = [ast.parse(path.read_text()) for path in Path(data_tables.__file__).parent.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    assert imported.isdisjoint({"PIL", "cv2", "imageio", "skimage", "torchvision", "matplotlib"})


@pytest.mark.parametrize("n_workers", [0, 1])
def test_a_damaged_shard_is_reported_without_a_trace(fleet: Any, n_workers: int) -> None:
    dataset(fleet)
    shard = fleet.ref().tables["pairs"].shards[0]
    (path,) = Path(fleet.folder / "store").rglob(shard.name)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))
    with (
        pytest.raises(StoreError, match=f"{shard.name} is damaged") as caught,
        load_batches(dataset(fleet), [(0, (0, 1, 2))], n_workers, pin=False) as loader,
    ):
        next(iter(loader))
    assert "Traceback" not in str(caught.value)


def test_a_frame_that_cannot_be_used_is_named(fleet: Any) -> None:
    frames = [FrameRow("scene-0061", 0, "a0")]
    two_classes = partial(target_sample, VOXELS, None, ("ignore", "car"))
    batch = BatchDataset(tables_of(fleet, "points", "target"), frames, two_classes, 0)[0, (0,)]
    assert isinstance(batch, StoreError)
    assert "frame a0: table `target`, column `label` holds 3 in row 0, which is none of the 2 classes" in str(batch)

    fleet.put("points", lambda name: record(Points, frame_id=name))
    pairs = partial(pair_sample, VOXELS, AUGMENT)
    batch = BatchDataset(tables_of(fleet, "points", "pairs"), frames, pairs, 0)[0, (0,)]
    assert isinstance(batch, StoreError)
    assert "frame a0: table `pairs`, column `point` holds" in str(batch), "of a sweep without points"


def test_a_forked_process_opens_its_own_files(fleet: Any) -> None:
    tables = tables_of(fleet, "points")
    frame = FrameRow("scene-0061", 0, "a0")
    tables.rows(frame)
    opened = dict(tables._readers)
    tables._process = os.getpid() + 1  # as a child would find it
    tables.rows(frame)
    assert all(tables._readers[key] is not reader for key, reader in opened.items())


def test_what_is_finite_is_told_from_the_bits_of_every_half_as_numpy_tells_it() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    assert [all_finite(one) for one in halves[:, None]] == np.isfinite(halves).tolist()
    assert all_finite(halves[:0])
