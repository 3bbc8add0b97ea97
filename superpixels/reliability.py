"""What a confidence is worth: the expected calibration error, and risk against coverage.

Confidences are whole numbers 0..255, in 1/255, so that counts by level say everything exactly and add up in any order.
Sources: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), for the error in bins; Traub et al.,
"Overcoming Common Flaws in the Evaluation of Selective Classification Systems" (NeurIPS 2024), for the area under the
generalised risk against coverage, here with 1 - mIoU for the risk, as SplatLabel (2026) takes it for segmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superpixels.metrics import AbsentRule

LEVELS = 256
BINS = 15
POINTS = 20  # of the curve that is kept

Counts = NDArray[np.int64]


class Reliability:
    """Counts of labelled points by confidence and class: how many are called so, are so, and are called so rightly.

    All three are (256, n_classes + 1), class 0 of ``called`` for points that nothing is said of.
    """

    def __init__(self, n_classes: int) -> None:
        self.called, self.true, self.right = (np.zeros((LEVELS, n_classes + 1), np.int64) for _ in range(3))

    def add(
        self, truth: NDArray[np.integer[Any]], label: NDArray[np.integer[Any]], confidence: NDArray[np.uint8]
    ) -> None:
        """Count aligned truth, labels and confidences, (n,) each; points whose truth is 0 count nowhere."""
        known = truth > 0
        truth, label, level = truth[known].astype(np.int64), label[known].astype(np.int64), confidence[known]
        for counts, name, chosen in (
            (self.called, label, slice(None)),
            (self.true, truth, slice(None)),
            (self.right, label, label == truth),
        ):
            place = level[chosen].astype(np.int64) * counts.shape[1] + name[chosen]
            counts += np.bincount(place, minlength=counts.size).reshape(counts.shape)

    @property
    def n_points(self) -> int:
        """Points with a true label."""
        return int(self.true.sum())

    @property
    def compared(self) -> Counts:
        """How many points with a label and a true one there are by confidence, (256,)."""
        return np.asarray(self.called[:, 1:].sum(axis=1))

    @property
    def as_true(self) -> Counts:
        """How many of them are called what they are, by confidence, (256,)."""
        return np.asarray(self.right[:, 1:].sum(axis=1))

    def mapped(self, level: NDArray[np.uint8]) -> Reliability:
        """Return the counts of the same points with other confidences: ``level`` (256,) in place of each."""
        found = Reliability(self.called.shape[1] - 1)
        for counts, own in ((found.called, self.called), (found.true, self.true), (found.right, self.right)):
            np.add.at(counts, level, own)
        return found


@dataclass(frozen=True)
class Trust:
    """What a confidence is worth, over the points with a true label; NaN of no points.

    ``calibration_error`` is the mean over points of how far the confidence in their bin of 15 is from the share that is
    right. ``augrc`` is the integral over the coverage c, 0..1, of c times 1 - mIoU of the c surest points: 0 is best,
    and half of the risk is what a confidence gives that tells nothing. ``curve`` are coverages and risks at these.
    """

    calibration_error: float
    augrc: float
    curve: tuple[tuple[float, float], ...]


def trust(found: Reliability, absent: AbsentRule = "exclude") -> Trust:
    """Return what a confidence is worth; ``absent`` says what a class without points counts, as in metrics.scores."""
    if not found.n_points:
        return Trust(float("nan"), float("nan"), ())
    # from the surest level down, all points above a level are those that it covers
    called, true, right = (np.cumsum(counts[::-1], axis=0) for counts in (found.called, found.true, found.right))
    points = true.sum(axis=1)
    risk = 1 - mean_iou(called[:, 1:], true[:, 1:], right[:, 1:], absent)
    met = np.flatnonzero(found.true[::-1].sum(axis=1))  # levels that have points: between them nothing changes
    coverage = np.concatenate([[0.0], points[met] / points[-1]])
    lost = np.concatenate([[0.0], risk[met] * coverage[1:]])
    area = float(np.sum(np.diff(coverage) * (lost[1:] + lost[:-1]) / 2))
    shown = met[
        np.unique(np.searchsorted(coverage[1:], np.arange(1, POINTS + 1) / POINTS - 1e-12).clip(0, len(met) - 1))
    ]
    curve = tuple((float(points[one] / points[-1]), float(risk[one])) for one in shown)
    return Trust(calibration_error(found), area, curve)


def mean_iou(called: Counts, true: Counts, right: Counts, absent: AbsentRule) -> NDArray[np.float64]:
    """Return mIoU by row, from counts (rows, classes) of points that are called so, are so, and both."""
    union = called + true - right
    iou = np.full(union.shape, {"exclude": np.nan, "one": 1.0, "zero": 0.0}[absent])
    np.divide(right, union, out=iou, where=union > 0)
    n_scored = (~np.isnan(iou)).sum(axis=1)
    mean = np.zeros(len(iou))
    np.divide(np.nansum(iou, axis=1), n_scored, out=mean, where=n_scored > 0)
    return mean


def calibration_error(found: Reliability) -> float:
    """Return the expected calibration error, 0..1, of points that have a label and a true one; NaN of none."""
    named, right = found.compared, found.as_true
    if not named.sum():
        return float("nan")
    level = np.arange(LEVELS) / (LEVELS - 1)
    of_bin = np.minimum((level * BINS).astype(np.int64), BINS - 1)
    sure, hit = (np.bincount(of_bin, values, minlength=BINS) for values in (named * level, right))
    return float(np.abs(sure - hit).sum() / named.sum())
