"""From visible point-pixel pairs to superpoints, and from those to one pseudo-label per point.

A pair says that a point of the sweep lands in a pixel of a view. A superpoint is what a 2D segment becomes in 3D: the
points of the frame that land in it. A point that two cameras see belongs to a superpoint in each; ``resolve`` picks
one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]
Policy = Literal["last_camera", "confidence", "nearest_axis"]

NO_SUPERPOINT = -1
"""Stands for no superpoint (or no fine class) in arrays with one entry per point."""


@dataclass(frozen=True, eq=False)
class Superpoints:
    """The superpoints of a frame, numbered 0..s-1 by view and then by segment, and the pairs that make them up.

    ``view`` (s,) uint8 and ``segment`` (s,) uint16, 1.. in that view, name each superpoint's segment; no two
    superpoints share both. ``n_points`` (s,) int32 is at least 1. ``pair_point`` (q,) and ``pair_superpoint`` (q,),
    int32, are the pairs in the order they came, without those that hit no segment: aligned with any array of pairs
    indexed by ``segment > 0``.
    """

    view: npt.NDArray[np.uint8]
    segment: npt.NDArray[np.uint16]
    n_points: npt.NDArray[np.int32]
    pair_point: npt.NDArray[np.int32]
    pair_superpoint: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.segment)


def superpoints(point: Integers, view: Integers, segment: Integers) -> Superpoints:
    """Return the superpoints of a frame from pairs: point of the sweep, view, segment it hits there or 0; each (p,).

    A point occurs at most once per view. Raises ValueError for arrays of different length or values out of range.
    """
    _check_aligned(point=point, view=view, segment=segment)
    _check_range("view", view, 255)
    _check_range("segment", segment, 65535)
    hit = segment > 0
    span = int(segment.max(initial=0)) + 1
    key = view[hit].astype(np.int64) * span + segment[hit]
    count = np.bincount(key)
    hit_key = np.flatnonzero(count)
    superpoint_of_key = np.cumsum(count > 0) - 1
    return Superpoints(
        view=(hit_key // span).astype(np.uint8),
        segment=(hit_key % span).astype(np.uint16),
        n_points=count[hit_key].astype(np.int32),
        pair_point=point[hit].astype(np.int32),
        pair_superpoint=superpoint_of_key[key].astype(np.int32),
    )


def resolve(
    pair_point: Integers,
    pair_superpoint: Integers,
    n_points: int,
    policy: Policy,
    *,
    pair_score: Floats | None = None,
    pair_axis_distance: Floats | None = None,
    pair_occluded: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.int32]:
    """Return the superpoint of each of ``n_points`` points, (n_points,), -1 where it has none.

    Superpoints are numbered by view, as ``superpoints`` does, and all arrays of pairs are aligned, (q,). Where a
    point has several superpoints the ``policy`` decides:

    - "last_camera": the last view, as in the AFOV reference implementation;
    - "confidence": the highest ``pair_score`` (of the pair's segment), then the nearest axis, then the first view;
    - "nearest_axis": the smallest ``pair_axis_distance`` (the tangent to the optical axis), then the first view.

    Pairs that ``pair_occluded`` marks, if given, do not count. Raises ValueError if a policy lacks what it compares,
    or a point is not in 0..n_points-1.
    """
    _check_aligned(
        pair_point=pair_point,
        pair_superpoint=pair_superpoint,
        pair_score=pair_score,
        pair_axis_distance=pair_axis_distance,
        pair_occluded=pair_occluded,
    )
    _check_range("pair_point", pair_point, n_points - 1)
    _check_range("pair_superpoint", pair_superpoint, 2**31 - 1)
    usable = np.arange(pair_point.size) if pair_occluded is None else np.flatnonzero(~pair_occluded)
    point_superpoint = np.full(n_points, NO_SUPERPOINT, dtype=np.int32)
    if policy == "last_camera":  # the later view has the larger number
        np.maximum.at(point_superpoint, pair_point[usable], pair_superpoint[usable].astype(np.int32))
        return point_superpoint
    point_superpoint[pair_point[usable]] = pair_superpoint[usable]
    # Only the points of several pairs, about a tenth, need the policy. They are written again, from worst to best pair:
    # of several values assigned to one place the last stays.
    contested = usable[np.bincount(pair_point[usable], minlength=n_points)[pair_point[usable]] > 1]
    superpoint = pair_superpoint[contested].astype(np.int64)
    if policy == "confidence":
        if pair_score is None or pair_axis_distance is None:
            raise ValueError("policy 'confidence' compares pair_score and pair_axis_distance; give both")
        order = np.lexsort((-superpoint, -pair_axis_distance[contested], pair_score[contested]))
    elif policy == "nearest_axis":
        if pair_axis_distance is None:
            raise ValueError("policy 'nearest_axis' compares pair_axis_distance; give it")
        order = np.lexsort((-superpoint, -pair_axis_distance[contested]))
    else:
        raise ValueError(f"policy is {policy!r}; expected one of {', '.join(get_args(Policy))}")
    point_superpoint[pair_point[contested[order]]] = superpoint[order]
    return point_superpoint


def shared_and_agreed(
    pair_point: Integers, pair_class: Integers, n_points: int, n_classes: int
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which points belong to superpoints of several cameras, and for which of them all are of one class, (n,).

    ``pair_point`` and ``pair_class`` (q,), 0..``n_classes`` - 1, are the pairs that hit a superpoint. A point lies in
    at most one superpoint of a camera, so several superpoints are several cameras. Class 0 (sky, say) is a class like
    any other here: a point that is sky to one camera and a wall to another is disputed.
    """
    point = pair_point.astype(np.int64)
    n_superpoints = np.bincount(point, minlength=n_points)
    n_names = np.bincount(np.unique(point * n_classes + pair_class) // n_classes, minlength=n_points)
    shared = n_superpoints > 1
    return shared, shared & (n_names == 1)


def with_runners_up(
    label: npt.NDArray[np.uint8],
    confidence: npt.NDArray[np.uint8],
    pairs: tuple[Integers, Integers, Integers],
    runner_up: npt.NDArray[np.uint8],
    runner_up_score: npt.NDArray[np.uint8],
    names: int,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Return the likeliest classes of every point and how sure the teacher is of each in 1/255, both (n, names).

    ``label`` and ``confidence`` (n,) are the first. The others are those of the pixel that is surest of it; a point
    without a label has none. ``pairs`` are point, class and score of those that hit a superpoint, (q,) each;
    ``runner_up`` and ``runner_up_score`` (q, 2) what else their pixels may show.
    """
    pair_point, pair_class, pair_score = pairs
    labels, sure = (np.zeros((len(label), names), np.uint8) for _ in range(2))
    labels[:, 0], sure[:, 0] = label, confidence
    speaks = np.flatnonzero((pair_class == label[pair_point]) & (pair_class > 0))
    order = speaks[np.argsort(pair_score[speaks], kind="stable")]  # of several writes the last, surest, stays
    for rank in range(names - 1):
        labels[pair_point[order], 1 + rank] = runner_up[order, rank]
        sure[pair_point[order], 1 + rank] = runner_up_score[order, rank]
    return labels, sure


def occluded(
    view: Integers,
    row_px: Integers,
    col_px: Integers,
    depth_m: Floats,
    *,
    cell_px: int = 8,
    ratio: float = 1.05,
    margin_m: float = 1.0,
) -> npt.NDArray[np.bool_]:
    """Which pairs lie behind something: deeper than ``ratio`` times the least depth of their cell plus ``margin_m``.

    All arrays are aligned, (p,); cells are ``cell_px`` x ``cell_px`` pixels of a view. The lidar on the roof sees
    background that a camera lower down does not, and such points would take the label of the foreground.
    """
    _check_aligned(view=view, row_px=row_px, col_px=col_px, depth_m=depth_m)
    if cell_px < 1 or not ratio >= 1 or not margin_m >= 0:
        raise ValueError(f"cell_px {cell_px}, ratio {ratio}, margin_m {margin_m}; expected at least 1, 1 and 0")
    row, col = row_px // cell_px, col_px // cell_px
    rows, cols = int(row.max(initial=0)) + 1, int(col.max(initial=0)) + 1
    cell = (view.astype(np.int64) * rows + row) * cols + col
    nearest_m = np.full(int(cell.max(initial=0)) + 1, np.inf, dtype=depth_m.dtype)
    np.minimum.at(nearest_m, cell, depth_m)  # for 23k pairs 0.1 ms; sorting them takes 20 times as long
    return np.asarray(depth_m > nearest_m[cell] * ratio + margin_m)


def official_point_labels(
    point_superpoint: Integers, fine_of_superpoint: Integers, *, n_fine: int = 32
) -> npt.NDArray[np.int32]:
    """Point labels in the format of the AFOV reference files, (n,): 100 * superpoint + fine class, -1 for none.

    ``point_superpoint`` (n,) holds 0..s-1 or -1, ``fine_of_superpoint`` (s,) 0..n_fine-1. Raises ValueError otherwise.
    """
    _check_range("point_superpoint", point_superpoint, len(fine_of_superpoint) - 1, least=NO_SUPERPOINT)
    _check_range("fine_of_superpoint", fine_of_superpoint, n_fine - 1)
    labels = np.full(len(point_superpoint), NO_SUPERPOINT, dtype=np.int32)
    has = point_superpoint >= 0
    superpoint = point_superpoint[has].astype(np.int32)
    labels[has] = 100 * superpoint + fine_of_superpoint[superpoint]
    return labels


def parse_official_point_labels(
    labels: Integers, n_points: int, *, n_fine: int = 32
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Superpoint and fine class of each point, both (n_points,) with -1 for none, from labels in the official format.

    Raises ValueError if there is not one label per point of the sweep, if a label is neither -1 nor ends in a fine
    class 0..n_fine-1, or if a superpoint has two fine classes.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"point labels are {labels.dtype} {labels.shape}; expected whole numbers, (n,)")
    if len(labels) != n_points:
        raise ValueError(
            f"{len(labels)} point labels for a sweep of {n_points} points; is this the file of another frame?"
        )
    none = labels == NO_SUPERPOINT
    superpoint, fine = np.divmod(labels.astype(np.int64), 100)
    wrong = labels[~none & ((labels < 0) | (fine >= n_fine))]
    if wrong.size:
        raise ValueError(
            f"point labels {np.unique(wrong)[:10].tolist()} are neither -1 "
            f"nor 100 * superpoint + fine class 0..{n_fine - 1}"
        )
    superpoint[none] = fine[none] = NO_SUPERPOINT
    used, counts = np.unique(np.unique(labels[~none]) // 100, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"superpoints {used[counts > 1][:10].tolist()} have more than one fine class; each has exactly one"
        )
    return superpoint.astype(np.int32), fine.astype(np.int32)


def _check_aligned(**arrays: npt.NDArray[Any] | None) -> None:
    shapes = {name: array.shape for name, array in arrays.items() if array is not None}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"arrays of pairs have shapes {shapes}; expected one dimension and equal length")


def _check_range(name: str, values: Integers, most: int, *, least: int = 0) -> None:
    if values.size and not least <= values.min() <= values.max() <= most:
        raise ValueError(f"{name} holds {values.min()}..{values.max()}; expected {least}..{most}")
