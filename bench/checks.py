"""That both ways give the same: the condition for putting their times side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bench.packed import official_labels
from bench.usual import Sample, Target, UsualWay
from manifests.tables.superpoints import Group
from trainer.data.batches import PairBatch, TargetBatch

ROUNDED_POINTS = 5
"""Points whose label may differ, per frame, when the chain of poses is computed in float32, as the devkit does."""

HALF_STEP = 5e-4
"""Vectors of length 1 are kept in float16."""


class DifferentResults(RuntimeError):
    """The ways disagree, so their times cannot be compared."""


def check_labels(usual: UsualWay, frame_id: str, group: Group) -> None:
    """Raise DifferentResults unless a row of table `group` has the labels of the usual way.

    Computed in float64 all must be equal; in float32, the usual precision, up to `ROUNDED_POINTS` may differ.
    """
    ours = official_labels(group)
    views, cloud = usual.views(frame_id, images=False), usual.cloud(frame_id)
    if len(ours) != cloud.nbr_points():
        raise DifferentResults(f"frame {frame_id}: {len(ours)} point labels for {cloud.nbr_points()} points")
    for precision, allowed in ((np.float32, ROUNDED_POINTS), (np.float64, 0)):
        cloud.points = cloud.points.astype(precision)
        differ = int(np.count_nonzero(usual.label_points(frame_id, cloud, views) != ours))
        if differ > allowed:
            raise DifferentResults(
                f"frame {frame_id}: {differ} point labels differ from the usual chain in {np.dtype(precision).name}; "
                f"expected at most {allowed}"
            )


def check_pairs(usual: UsualWay, frame_id: str, ours: PairBatch) -> None:
    """Raise DifferentResults unless both ways make one training sample: voxels, pairs, superpoints, their vectors.

    Ours has the pairs that hit a segment, and the segments that are hit; the usual sample, in float64, is cut down to
    these.
    """
    sample = usual.sample(frame_id, images=False, precision=np.float64)
    place = check_voxels(frame_id, sample, ours)
    view, row, col = sample.pair_pixel.numpy().T
    segment = sample.label_maps.numpy()[view, row, col]
    hit = segment > 0
    key, superpoint = np.unique(np.stack([view[hit], segment[hit]]), axis=1, return_inverse=True)
    names = {(a, b): (number, prompt) for number, (a, b, prompt) in enumerate(sample.names.tolist())}
    number, prompt = np.array([names[a, b] for a, b in key.T.tolist()], np.int64).reshape(-1, 2).T
    vectors = sample.vectors.numpy()[number]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    same(frame_id, "voxels of pairs", place[sample.pair_voxel.numpy()[hit]], ours.pair_voxel)
    same(frame_id, "superpoints of pairs", superpoint.ravel(), ours.pair_superpoint)
    same(frame_id, "prompts of superpoints", prompt, ours.superpoint_prompt)
    if np.abs(vectors - ours.superpoint_vector.numpy()).max(initial=0) > HALF_STEP:
        raise DifferentResults(f"frame {frame_id}: vectors of superpoints differ by more than {HALF_STEP}")


def check_targets(usual: UsualWay, frame_id: str, ours: TargetBatch) -> None:
    """Raise DifferentResults unless both ways have the same voxels, and the same class in all but a few of them.

    The usual point labels come from float32, so up to `ROUNDED_POINTS` may differ.
    """
    target = usual.target(frame_id)
    place = check_voxels(frame_id, target, ours)
    differ = int(np.count_nonzero(target.labels.numpy() != ours.labels.numpy()[place]))
    if differ > ROUNDED_POINTS:
        raise DifferentResults(f"frame {frame_id}: classes of {differ} voxels differ")


def check_voxels(frame_id: str, usual: Sample | Target, ours: PairBatch | TargetBatch) -> npt.NDArray[np.int64]:
    """Return which of our voxels each usual one is, (v,); raises DifferentResults if cells or features differ."""
    cells = usual.cells.numpy()
    order = np.lexsort(cells.T[::-1])
    same(frame_id, "cells of voxels", cells[order], ours.cells)
    same(frame_id, "features of voxels", usual.features.numpy()[order], ours.features)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return place


def same(frame_id: str, what: str, usual: npt.NDArray[Any], ours: Tensor) -> None:
    """Raise DifferentResults unless two arrays are equal."""
    if not np.array_equal(usual, ours.numpy()):
        raise DifferentResults(f"frame {frame_id}: {what} differ, {usual.shape} and {tuple(ours.shape)}")
