"""Segmentation scores from an exact confusion matrix."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

AbsentRule = Literal["exclude", "one", "zero"]


class Confusion:
    """Counts of (label, prediction) pairs that can be added up in any order, shard by shard.

    ``matrix`` is (n_classes + 1, n_classes + 1) int64, rows are labels, columns predictions; row and column 0 stand for
    "no class". 64 bits, because a float32 matrix stops counting at 2**24 points, less than half a thousand sweeps.
    """

    def __init__(self, n_classes: int) -> None:
        if n_classes < 1:
            raise ValueError(f"a confusion matrix needs at least one class besides 0; got {n_classes}")
        self.n_classes = n_classes
        self.matrix: NDArray[np.int64] = np.zeros((n_classes + 1, n_classes + 1), np.int64)

    def add(self, labels: NDArray[np.integer[Any]], predictions: NDArray[np.integer[Any]]) -> None:
        """Count aligned labels and predictions, both (n,) in 0..n_classes."""
        if labels.shape != predictions.shape:
            raise ValueError(
                f"{labels.shape} labels do not fit {predictions.shape} predictions; both are one per point"
            )
        size = self.n_classes + 1
        for name, values in (("label", labels), ("prediction", predictions)):
            if values.size and not 0 <= int(values.min()) <= int(values.max()) < size:
                raise ValueError(f"{name}s run from {values.min()} to {values.max()}; expected 0..{self.n_classes}")
        pairs = labels.astype(np.int64).ravel() * size + predictions.ravel()
        self.matrix += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def merge(self, other: "Confusion") -> None:
        """Add the counts of another part of the data set."""
        if other.n_classes != self.n_classes:
            raise ValueError(
                f"counts of {other.n_classes} classes cannot be added to counts of {self.n_classes} classes"
            )
        self.matrix += other.matrix


@dataclass(frozen=True)
class Scores:
    """Scores in 0..1 over the points that have a label. A score of nothing is NaN.

    ``iou`` (n_classes,) float64 for classes 1..n, NaN where ``absent="exclude"`` left a class out; ``mean_iou`` its
    mean; ``micro_iou`` pools all classes before dividing (the reference implementation prints it as "fwIoU");
    ``frequency_weighted_iou`` weights every class by its share of the labels (nuScenes devkit, fwIoU of the
    literature); ``n_points`` labelled points.
    """

    iou: NDArray[np.float64]
    mean_iou: float
    micro_iou: float
    frequency_weighted_iou: float
    n_points: int


def scores(confusion: Confusion, absent: AbsentRule = "exclude") -> Scores:
    """IoU of every class 1..n and its summaries.

    Points whose label is 0 count nowhere; a prediction of 0 is a miss of the labelled class. A class that is neither
    labelled nor predicted has no IoU: ``"exclude"`` leaves it out (nuScenes devkit), ``"one"`` counts it as 1
    (reference implementation), ``"zero"`` as 0 (SemanticKITTI's evaluator).
    """
    if absent not in get_args(AbsentRule):
        raise ValueError(f"absent is {absent!r}; expected one of {get_args(AbsentRule)}")
    counts = confusion.matrix[1:]
    hits = np.diagonal(counts[:, 1:])
    labelled = counts.sum(axis=1)
    predicted = counts[:, 1:].sum(axis=0)
    union = labelled + predicted - hits
    iou = np.full(confusion.n_classes, {"exclude": np.nan, "one": 1.0, "zero": 0.0}[absent])
    np.divide(hits, union, out=iou, where=union > 0)
    scored = iou[~np.isnan(iou)]
    n_points = int(labelled.sum())
    n_hits = int(hits.sum())
    return Scores(
        iou=iou,
        mean_iou=float(scored.mean()) if scored.size else float("nan"),
        micro_iou=n_hits / (2 * n_points - n_hits) if n_points else float("nan"),
        frequency_weighted_iou=float((labelled * np.nan_to_num(iou)).sum() / n_points) if n_points else float("nan"),
        n_points=n_points,
    )
