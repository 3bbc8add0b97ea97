"""Batches: the voxels of some frames as tensors, with what they are to learn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

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
    def supervised_frame(self) -> Tensor:
        """The frame of every row that teaches, (k,) int64: what losses count by."""
        return self.voxel_frame[:0]

    @property
    def supervised_weight(self) -> Tensor | None:
        """How much each of these rows may count, (k,) whole numbers; None where all count the same."""
        return None

    def silent(self) -> Self:
        """Return the batch with nothing that teaches."""
        return self

    @property
    def coords(self) -> Tensor:
        """Frame and cell of every voxel, (v, 4) int32: what the network takes."""
        return torch.column_stack([self.voxel_frame.to(self.cells.dtype), self.cells])

    def each(self, function: Callable[[Any], Any]) -> Self:
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
    superpoints, `superpoint_vector` (s, d) float16, `superpoint_prompt` and `superpoint_frame` (s,) int64.
    """

    pair_voxel: Tensor = field(metadata=OF_VOXEL)
    pair_superpoint: Tensor = field(metadata=OF_SUPERPOINT)
    superpoint_vector: Tensor
    superpoint_prompt: Tensor
    superpoint_frame: Tensor = field(metadata=OF_FRAME)

    @property
    def supervised_frame(self) -> Tensor:
        return self.superpoint_frame[torch.bincount(self.pair_superpoint, minlength=len(self.superpoint_frame)) > 0]

    def silent(self) -> Self:
        return replace(self, pair_voxel=self.pair_voxel[:0], pair_superpoint=self.pair_superpoint[:0])


@dataclass(frozen=True)
class TargetBatch(Batch):
    """For the learning of classes: `labels` (v,) int64, the class that every voxel is to learn, 0 none."""

    labels: Tensor

    @property
    def supervised_frame(self) -> Tensor:
        return self.voxel_frame[self.labels > 0]

    def silent(self) -> Self:
        return replace(self, labels=torch.zeros_like(self.labels))


@dataclass(frozen=True)
class ConfidentBatch(TargetBatch):
    """For the learning of classes where it counts how sure they are: `confidence` (v,) uint8 in 1/255."""

    confidence: Tensor

    @property
    def supervised_weight(self) -> Tensor:
        return self.confidence[self.labels > 0]


@dataclass(frozen=True)
class SoftBatch(TargetBatch):
    """For the learning of what voxels may be: `shares` (v, classes) float32; of voxels that teach they add up to 1."""

    shares: Tensor


@dataclass(frozen=True)
class PointBatch(Batch):
    """For prediction: `point_voxel` (n,) int64, the voxel of every return; `n_points` (frames,) int64 returns a frame.

    `is_return` (m,) bool are all points, those that came back from nothing included; `n_rows` (frames,) how many.
    """

    point_voxel: Tensor = field(metadata=OF_VOXEL)
    n_points: Tensor
    is_return: Tensor
    n_rows: Tensor


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
