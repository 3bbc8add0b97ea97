"""The 2D segments of one image: a label map kept as run lengths, and what is known of each segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import skimage

from superpixels.unfit import Unfit

LabelMap = npt.NDArray[np.uint16]
Split = Literal["prompt", "component"]

MOST_SEGMENTS = 65535
"""Segment ids are uint16, and 0 is no segment."""

_UNIT_TOLERANCE = 1e-2  # float16 components move the length of a unit vector by less than 1e-3


@dataclass(frozen=True, eq=False)
class Segments:
    """What a teacher found in one image: n segments, numbered 1..n in the label map; 0 is no segment.

    The label map (``height_px``, ``width_px``) is stored row by row as runs of equal value, aligned: ``run_value``
    (r,) uint16 and ``run_length`` (r,) uint32 in pixels. The other arrays are aligned with segments 1..n, so segment
    k is at index k - 1: ``prompt_id`` (n,) int32, ``score`` (n,) float16 (what it means is the teacher's affair,
    higher is surer), ``area_px`` (n,) int32 pixels of the label map, ``vector`` (n, d) float16 of length 1 in the
    space of the prompt vectors (all zero where the area is 0).
    """

    height_px: int
    width_px: int
    run_value: LabelMap
    run_length: npt.NDArray[np.uint32]
    prompt_id: npt.NDArray[np.int32]
    score: npt.NDArray[np.float16]
    area_px: npt.NDArray[np.int32]
    vector: npt.NDArray[np.float16]

    def __len__(self) -> int:
        return len(self.prompt_id)

    @classmethod
    def from_label_map(
        cls,
        label_map: npt.NDArray[np.integer[Any]],
        prompt_id: npt.ArrayLike,
        score: npt.ArrayLike,
        vector: npt.NDArray[np.floating[Any]],
    ) -> Segments:
        """Segments of a label map (H, W) with values 0..n; areas are counted, vectors (n, d) scaled to length 1.

        Raises ValueError if shapes disagree, there are more than 65535 segments, the label map holds an id beyond n,
        or a segment with pixels has a vector of length 0; and like ``check``.
        """
        prompt = np.asarray(prompt_id, dtype=np.int32)
        if label_map.ndim != 2 or not label_map.size:
            raise ValueError(f"the label map has shape {label_map.shape}; expected (height, width), not empty")
        if not np.issubdtype(label_map.dtype, np.integer):
            raise ValueError(f"the label map has dtype {label_map.dtype}; expected whole numbers")
        if prompt.ndim != 1 or len(prompt) > MOST_SEGMENTS:
            raise ValueError(
                f"prompt ids have shape {prompt.shape}; expected (n,), "
                f"one for each of at most {MOST_SEGMENTS} segments: merge or drop small ones"
            )
        if vector.ndim != 2 or len(vector) != len(prompt):
            raise ValueError(f"vectors have shape {vector.shape}; expected ({len(prompt)}, d)")
        lowest, highest = int(label_map.min()), int(label_map.max())
        if lowest < 0 or highest > len(prompt):
            raise ValueError(f"the label map holds ids {lowest}..{highest}; expected 0..{len(prompt)}")
        flat = label_map.ravel()
        start = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
        run_value, run_length = flat[start], np.diff(start, append=flat.size)
        segments = cls(
            height_px=label_map.shape[0],
            width_px=label_map.shape[1],
            run_value=run_value.astype(np.uint16),
            run_length=run_length.astype(np.uint32),
            prompt_id=prompt,
            score=np.asarray(score, dtype=np.float16),
            area_px=_areas(run_value, run_length, len(prompt)),
            vector=_unit(vector).astype(np.float16),
        )
        segments.check()
        return segments

    def label_map(self) -> LabelMap:
        """Return the label map (height_px, width_px): 0 where there is no segment, k inside segment k."""
        return np.repeat(self.run_value, self.run_length).reshape(self.height_px, self.width_px)

    def lookup(self, row_px: npt.NDArray[np.integer[Any]], col_px: npt.NDArray[np.integer[Any]]) -> LabelMap:
        """Return the segment id at each pixel, (p,); raises ValueError if a pixel is outside the image."""
        outside = (row_px < 0) | (row_px >= self.height_px) | (col_px < 0) | (col_px >= self.width_px)
        if outside.any():
            raise ValueError(
                f"{outside.sum()} pixels are outside the image of {self.height_px} x {self.width_px} pixels"
            )
        # Measured for the 20k pixels of six cameras: writing the map out costs 0.7-2.0 ms, searching the runs 1.0-2.2.
        return np.asarray(self.label_map()[row_px, col_px])

    def check(self) -> None:
        """Raise ValueError, saying what is wrong, unless all that the class promises holds."""
        n = len(self.prompt_id)
        expected = {
            "run_value": (np.uint16, (len(self.run_value),)),
            "run_length": (np.uint32, (len(self.run_value),)),
            "prompt_id": (np.int32, (n,)),
            "score": (np.float16, (n,)),
            "area_px": (np.int32, (n,)),
            "vector": (np.float16, (n, self.vector.shape[-1] if self.vector.ndim else 0)),
        }
        for name, (dtype, shape) in expected.items():
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"segments.{name} is {array.dtype} {array.shape}; expected {np.dtype(dtype).name} {shape}"
                )
        if n > MOST_SEGMENTS:
            raise Unfit(f"{n} segments in one image; ids are 16 bits wide, so at most {MOST_SEGMENTS}")
        if min(self.height_px, self.width_px) < 1:
            raise ValueError(f"the image has {self.height_px} x {self.width_px} pixels; expected at least 1 x 1")
        pixels = int(self.run_length.sum(dtype=np.int64))
        if pixels != self.height_px * self.width_px or not self.run_length.all():
            raise ValueError(
                f"the runs cover {pixels} pixels, some of them perhaps empty; "
                f"expected {self.height_px} x {self.width_px} pixels in runs of at least one"
            )
        if self.run_value.max(initial=0) > n:
            raise ValueError(f"the label map holds id {self.run_value.max()}, but there are {n} segments")
        if not np.array_equal(self.area_px, _areas(self.run_value, self.run_length, n)):
            raise ValueError("segments.area_px differs from the pixel counts of the label map")
        if (self.prompt_id < 0).any():
            raise ValueError("segments.prompt_id holds a negative value; every segment has a prompt")
        if not np.isfinite(self.score).all():
            raise Unfit("segments.score holds a value that is not finite")
        length = np.linalg.norm(self.vector.astype(np.float32), axis=1)
        bad = ~(np.abs(length - 1) < _UNIT_TOLERANCE) & ~((self.area_px == 0) & (length == 0))
        if bad.any():
            k = int(np.flatnonzero(bad)[0])
            raise Unfit(f"the vector of segment {k + 1} has length {length[k]}; expected 1")


def compact(
    prompt_map: npt.NDArray[np.integer[Any]],
    *,
    keep: npt.NDArray[np.bool_] | None = None,
    split: Split = "prompt",
    min_area_px: int = 1,
) -> tuple[LabelMap, npt.NDArray[np.int32]]:
    """Return a label map (H, W) with ids 1..n and each segment's prompt id (n,), from the best prompt of each pixel.

    With ``split="prompt"`` all pixels of a prompt are one segment, in order of prompt id, as the AFOV reference
    implementation has it. With "component" every 4-connected region of one prompt is a segment, ordered by prompt id
    and then by its first pixel, row by row. Pixels that ``keep`` (H, W) leaves out, and segments of fewer than
    ``min_area_px`` pixels, become 0. Raises ValueError for more than 65535 segments.
    """
    if prompt_map.ndim != 2 or (keep is not None and keep.shape != prompt_map.shape):
        raise ValueError(
            f"prompt map {prompt_map.shape} and keep {None if keep is None else keep.shape} must be (H, W)"
        )
    if prompt_map.min(initial=0) < 0:
        raise ValueError("the prompt map holds a negative prompt id; mark pixels without a prompt in keep instead")
    # Regions are numbered 1..m, 0 being left out, so that one table of m + 1 entries renames them.
    shifted = prompt_map.astype(np.int32) + 1
    if keep is not None:
        shifted[~keep] = 0
    if split == "prompt":
        region, prompt = shifted, np.arange(-1, int(shifted.max(initial=0)))
        order = np.arange(1, len(prompt))
    elif split == "component":
        region = skimage.measure.label(shifted, background=0, connectivity=1)
        # The regions come numbered by first pixel, so a stable sort by prompt gives the order promised.
        prompt = np.zeros(int(region.max(initial=0)) + 1, dtype=np.int64)
        prompt[region] = shifted - 1
        order = np.argsort(prompt[1:], kind="stable") + 1
    else:
        raise ValueError(f"split is {split!r}; expected 'prompt' or 'component'")
    area = np.bincount(region.ravel(), minlength=len(prompt))
    order = order[area[order] >= max(min_area_px, 1)]
    if len(order) > MOST_SEGMENTS:
        raise Unfit(f"{len(order)} segments in one image, at most {MOST_SEGMENTS} fit; raise min_area_px")
    renamed = np.zeros(len(prompt), dtype=np.uint16)
    renamed[order] = np.arange(1, len(order) + 1)
    return renamed[region], prompt[order].astype(np.int32)


def _areas(run_value: npt.NDArray[Any], run_length: npt.NDArray[Any], n: int) -> npt.NDArray[np.int32]:
    return np.bincount(run_value, weights=run_length, minlength=n + 1)[1:].astype(np.int32)


def _unit(vector: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    vector = vector.astype(np.float32)
    length = np.linalg.norm(vector, axis=1, keepdims=True)
    return np.divide(vector, length, out=np.zeros_like(vector), where=length != 0)
