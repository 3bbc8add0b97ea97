"""A frame's rows as a sample: augmented, voxelised, with what it is to learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from manifests.sections.network import AugmentConfig, VoxelConfig
from manifests.tables.base import Rows
from manifests.tables.labels import Belief, Target
from manifests.tables.sensors import Points
from manifests.tables.superpoints import Pairs
from superpixels.returns import is_return
from trainer.data.augment import augment, view_of
from trainer.data.batches import Batch, ConfidentBatch, PairBatch, PointBatch, SoftBatch, TargetBatch, join
from trainer.data.voxels import Voxels, voxel_confidences, voxel_labels, voxel_shares, voxelise


def pair_sample(
    voxels: VoxelConfig,
    augmentation: AugmentConfig | None,
    rows: Rows,
    rng: np.random.Generator,
    *,
    n_prompts: int | None = None,
) -> PairBatch:
    """Return one frame of tables `points` and `pairs`, seen as `augmentation` draws it; raises like `checked_pairs`."""
    sweep, pairs = checked_pairs(rows[Points], rows[Pairs], n_prompts)
    there = is_return(sweep.xyz_m)
    if not there.all():  # no pair has a point that is none
        sweep, pairs = some_of(sweep, there), replace(pairs, point=(np.cumsum(there, dtype=np.int32) - 1)[pairs.point])
    view, _, kept = transformed(sweep, pairs, augmentation, rng)
    assert kept is not None
    return pair_batch(view, kept, voxelise(view.xyz_m, view.intensity, voxels))


def pair_batch(sweep: Points, pairs: Pairs, grid: Voxels) -> PairBatch:
    """Return what contrastive pre-training learns from, of a sweep whose voxels are known."""
    return PairBatch(
        **vars(batch_of(sweep.frame_id, grid)),
        pair_voxel=torch.from_numpy(grid.inverse[pairs.point]),
        pair_superpoint=torch.from_numpy(pairs.superpoint.astype(np.int64)),
        superpoint_vector=torch.from_numpy(pairs.vector.copy()),
        superpoint_prompt=torch.from_numpy(pairs.superpoint_prompt.astype(np.int64)),
        superpoint_frame=torch.zeros(len(pairs.superpoint_prompt), dtype=torch.int64),
    )


def checked_pairs(sweep: Points, pairs: Pairs, n_prompts: int | None) -> tuple[Points, Pairs]:
    """Return a sweep and its pairs; raises ValueError, with table and column, for rows that are not there.

    An index of -1 would otherwise be the last row, without a word. `n_prompts` is the number of prompts, where it is
    known.
    """
    check_sweep(sweep)
    check_rows("pairs", "point", pairs.point, len(sweep.xyz_m), "points of the sweep")
    check_rows("pairs", "superpoint", pairs.superpoint, len(pairs.superpoint_prompt), "superpoints")
    check_rows("pairs", "superpoint_prompt", pairs.superpoint_prompt, n_prompts, "prompts")
    check_rows("pairs", "superpoint_view", pairs.superpoint_view, len(pairs.height_px), "views")
    lengths = {
        "superpoint": len(pairs.superpoint), "row_px": len(pairs.row_px), "col_px": len(pairs.col_px)
    }  # fmt: skip
    for column, length in lengths.items():
        if length != len(pairs.point):
            raise unusable("pairs", f"column `{column}` has {length} rows and `point` {len(pairs.point)}")
    if len(pairs.vector) != len(pairs.superpoint_prompt):
        what = f"column `vector` has {len(pairs.vector)} rows for {len(pairs.superpoint_prompt)} superpoints"
        raise unusable("pairs", what)
    if not all_finite(pairs.vector):
        raise unusable("pairs", "column `vector` holds what is no finite number")
    return sweep, pairs


def all_finite(values: NDArray[np.float16]) -> bool:
    """Return whether no value is infinite or NaN, by the bits of exponents: np.isfinite takes 15 times as long here."""
    return bool((values.view(np.uint16) & 0x7FFF).max(initial=0) < 0x7C00)


def check_sweep(sweep: Points) -> None:
    """Raise ValueError, with table and column, unless every point has a place and an intensity."""
    if sweep.xyz_m.ndim != 2 or sweep.xyz_m.shape[1] != 3:
        raise unusable("points", f"column `xyz_m` has shape {sweep.xyz_m.shape}; expected (n, 3)")
    if len(sweep.intensity) != len(sweep.xyz_m):
        raise unusable("points", f"column `intensity` has {len(sweep.intensity)} rows for {len(sweep.xyz_m)} points")


def check_rows(table: str, column: str, rows: NDArray[Any], n_rows: int | None, of_what: str) -> None:
    """Raise ValueError unless all numbers of rows are among so many; None stands for a number that is not known."""
    if not len(rows):
        return
    low, high = int(rows.min()), int(rows.max())
    wrong = low if low < 0 else high if n_rows is not None and high >= n_rows else None
    if wrong is not None:
        at = int(np.flatnonzero(rows == wrong)[0])
        expected = f"0 to {n_rows - 1}, one of {n_rows} {of_what}" if n_rows else f"0 or more, one of the {of_what}"
        raise unusable(table, f"column `{column}` holds {wrong} in row {at}; expected {expected}")


def unusable(table: str, what: str) -> ValueError:
    """Return the error for rows that no stage makes; a shard that counts is only built again where that is asked."""
    return ValueError(f"table `{table}`, {what}; run: make {table} RECIPE=... ARGS=--again")


def target_sample(
    voxels: VoxelConfig,
    augmentation: AugmentConfig | None,
    class_names: Sequence[str],
    rows: Rows,
    rng: np.random.Generator,
    *,
    confident: bool = False,
    soft: bool = False,
) -> TargetBatch:
    """Return one frame of tables `points` and `target`, seen as `augmentation` draws it; raises like `class_sample`.

    With `confident` it is a ConfidentBatch, with `soft`, which takes table `belief` too, a SoftBatch.
    """
    target = rows[Target]
    if soft:
        shares = point_shares(rows[Belief], target.label, len(class_names))
        return class_sample(voxels, augmentation, class_names, rows[Points], target.label, rng, shares=shares)
    if confident and len(target.confidence) != len(target.label):
        what = f"column `confidence` has {len(target.confidence)} rows for {len(target.label)} labels"
        raise unusable("target", what)
    confidence = target.confidence if confident else None
    return class_sample(voxels, augmentation, class_names, rows[Points], target.label, rng, confidence)


def point_shares(belief: Belief, label: NDArray[np.uint8], n_classes: int) -> NDArray[np.float32]:
    """Return what points may be, (n, n_classes): the shares in `belief`, which add up to 1, or `label` (n,) alone.

    That is where the label is not the likeliest class of the vote: it was corrected since, by a person or along
    surfaces. Points without a label have no shares. Raises ValueError for a table of other points or classes.
    """
    if len(belief.label) != len(label):
        raise unusable("belief", f"column `label` has {len(belief.label)} rows and table `target` {len(label)}")
    if belief.label.max(initial=0) >= n_classes:
        raise unusable("belief", f"column `label` holds {belief.label.max()}, which is none of the {n_classes} classes")
    named = np.where(belief.label > 0, belief.share, 0).astype(np.float32)
    named[belief.label[:, 0] != label] = 0
    total = named.sum(axis=1)
    found = np.zeros((len(label), n_classes), np.float32)
    every = np.arange(len(label))
    for rank in range(named.shape[1]):
        found[every, belief.label[:, rank]] += named[:, rank] / np.maximum(total, 1)
    found[every[total == 0], label[total == 0]] = 1
    found[:, 0] = 0
    return found


def class_sample(
    voxels: VoxelConfig,
    augmentation: AugmentConfig | None,
    class_names: Sequence[str],
    sweep: Points,
    label: NDArray[np.uint8],
    rng: np.random.Generator,
    confidence: NDArray[np.uint8] | None = None,
    *,
    shares: NDArray[np.float32] | None = None,
    table: str = "target",
) -> TargetBatch:
    """Return a sweep whose points bear classes, `label` (n,), 0 none, seen as `augmentation` draws it.

    With the `confidence` (n,) of these labels in 1/255 it is a ConfidentBatch, with the `shares` (n, classes) of what
    points may be, which add up to 1 where there is a label, a SoftBatch. Raises ValueError for a label that is
    none of the classes, or labels of another sweep, in terms of their `table`.
    """
    check_sweep(sweep)
    if len(label) != len(sweep.xyz_m):
        raise unusable(table, f"column `label` has {len(label)} labels for a sweep of {len(sweep.xyz_m)} points")
    if label.max(initial=0) >= len(class_names):
        where = f"column `label` holds {label.max()} in row {int(label.argmax())}"
        raise unusable(table, f"{where}, which is none of the {len(class_names)} classes")
    there = is_return(sweep.xyz_m)
    if not there.all():
        sweep, label = some_of(sweep, there), label[there]
        confidence = None if confidence is None else confidence[there]
        shares = None if shares is None else shares[there]
    sweep, kept, _ = transformed(sweep, None, augmentation, rng)
    grid = voxelise(sweep.xyz_m, sweep.intensity, voxels)
    labels = voxel_labels(label[kept], grid.inverse, len(grid.coords), voxels.label)
    target = TargetBatch(**vars(batch_of(sweep.frame_id, grid)), labels=torch.from_numpy(labels))
    if shares is not None:
        may_be = voxel_shares(shares[kept], label[kept], grid, labels, voxels.label)
        return SoftBatch(**vars(target), shares=torch.from_numpy(may_be))
    if confidence is None:
        return target
    sure = voxel_confidences(confidence[kept], label[kept], grid, labels, voxels.label)
    return ConfidentBatch(**vars(target), confidence=torch.from_numpy(sure))


def point_sample(voxels: VoxelConfig, views: int, rows: Rows, _: np.random.Generator) -> PointBatch:
    """Return fixed views of one frame of table `points` as so many frames; the first is the frame as it is."""
    sweep = rows[Points]
    check_sweep(sweep)
    there = is_return(sweep.xyz_m)
    some = some_of(sweep, there)
    grids = (voxelise(view_of(some.xyz_m, number), some.intensity, voxels) for number in range(views))
    return join(
        [
            PointBatch(
                **vars(batch_of(sweep.frame_id, grid)),
                point_voxel=torch.from_numpy(grid.inverse),
                n_points=torch.tensor([len(some.xyz_m)]),
                is_return=torch.from_numpy(there),
                n_rows=torch.tensor([len(there)]),
            )
            for grid in grids
        ]
    )


def some_of(sweep: Points, chosen: NDArray[np.bool_]) -> Points:
    """Return some points of a sweep."""
    if chosen.all():
        return sweep
    xyz_m = sweep.xyz_m[chosen]
    return replace(sweep, n_points=len(xyz_m), xyz_m=xyz_m, intensity=sweep.intensity[chosen])


def transformed(
    sweep: Points, pairs: Pairs | None, augmentation: AugmentConfig | None, rng: np.random.Generator
) -> tuple[Points, NDArray[np.int64], Pairs | None]:
    """Return a random view of a sweep, the rows of the points it keeps, and its pairs; or all as it is.

    Raises ValueError if there is nothing to see.
    """
    if len(sweep.xyz_m) == 0:
        raise ValueError("the sweep has no points to learn from; exclude the frame with data.exclude")
    if augmentation is None:
        return sweep, np.arange(len(sweep.xyz_m)), pairs
    view = augment(sweep.xyz_m, pairs, augmentation, rng)
    intensity = sweep.intensity[view.kept_point]
    seen = replace(sweep, n_points=len(view.xyz_m), xyz_m=view.xyz_m, intensity=intensity)
    return seen, view.kept_point, view.pairs


def batch_of(frame_id: str, grid: Voxels) -> Batch:
    """Return the voxels of one frame: the fields that every batch has."""
    return Batch(
        frame_ids=(frame_id,),
        voxel_frame=torch.zeros(len(grid.coords), dtype=torch.int64),
        cells=torch.from_numpy(grid.coords),
        features=torch.from_numpy(grid.features),
    )
