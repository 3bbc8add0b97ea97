"""Things that images show near the sensor, put into labels that the points alone gave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt


def merge_image_labels(
    xyz_m: npt.NDArray[np.floating[Any]],
    labels: npt.NDArray[np.uint8],
    image_labels: npt.NDArray[np.uint8],
    thing_classes: tuple[int, ...],
    seed: int,
    strength: float = 4.0,
    even_m: float = 20.0,
) -> npt.NDArray[np.uint8]:
    """Return labels in which things that images show near the sensor replace what the points alone said, (n,).

    Only labels of `thing_classes` are taken over, each with the chance of `trust_in_image` at its horizontal distance.
    Equation: reference implementation, optional merge; there without a seed.
    """
    distance_m = np.hypot(xyz_m[:, 0], xyz_m[:, 1])
    drawn = np.random.default_rng(seed).random(len(labels)) < trust_in_image(distance_m, strength, even_m)
    taken = drawn & (image_labels != 0) & np.isin(image_labels, thing_classes)
    return np.where(taken, image_labels, labels)


def trust_in_image(
    distance_m: npt.NDArray[np.floating[Any]], strength: float = 4.0, even_m: float = 20.0
) -> npt.NDArray[np.float64]:
    """Return how far an image label is trusted against a point's own, 0..1; one half at `even_m`.

    p = b e^(-d/T) / (1 + b e^(-d/T)) with b = `strength` and T = `even_m` / ln b.
    """
    odds = strength * np.exp(-np.asarray(distance_m, np.float64) * math.log(strength) / even_m)
    trust: npt.NDArray[np.float64] = odds / (1 + odds)
    return trust
