"""Superpixels from colour alone, and labels of a few pixels grown to whole superpixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import skimage

Integers = npt.NDArray[np.integer[Any]]

UNLABELLED = -1

_ITERATIONS = 5  # of k-means; the result hardly moves after that, and time is proportional


def slic_superpixels(rgb: npt.NDArray[np.uint8], side_px: float, *, compactness: float = 10.0) -> npt.NDArray[np.int32]:
    """Return the superpixel of each pixel, (H, W), numbered from 0, of an image (H, W, 3).

    SLIC (Achanta et al., "SLIC Superpixels Compared to State-of-the-art Superpixel Methods"): k-means over colour and
    place. Superpixels are connected and about ``side_px`` x ``side_px`` pixels large; a larger ``compactness`` follows
    colour less and makes them squarer. Raises ValueError for anything but an 8-bit colour image, or a side below 1.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or not rgb.size:
        raise ValueError(f"the image is {rgb.dtype} {rgb.shape}; expected uint8 (height, width, 3), not empty")
    if not (side_px >= 1 and compactness > 0):
        raise ValueError(f"side_px is {side_px} and compactness {compactness}; expected at least 1, and above 0")
    superpixel: npt.NDArray[np.int32] = skimage.segmentation.slic(
        rgb,
        n_segments=max(1, round(rgb.shape[0] * rgb.shape[1] / side_px**2)),
        compactness=compactness,
        max_num_iter=_ITERATIONS,
        start_label=0,
    ).astype(np.int32)
    return superpixel


def majority_labels(superpixel: Integers, row_px: Integers, col_px: Integers, label: Integers) -> npt.NDArray[np.int32]:
    """Return the most frequent label among the pixels given in each superpixel, (n,); -1 where none is given.

    ``superpixel`` (H, W) holds 0..n-1; ``row_px``, ``col_px`` and ``label`` (0 or more) are aligned, (p,). Of labels
    that are equally frequent the smallest wins.
    """
    if not row_px.shape == col_px.shape == label.shape or label.min(initial=0) < 0:
        raise ValueError("row_px, col_px and label must have one length, and labels must not be negative")
    n_superpixels, n_labels = int(superpixel.max(initial=-1)) + 1, int(label.max(initial=0)) + 1
    key = superpixel[row_px, col_px].astype(np.int64) * n_labels + label
    votes = np.bincount(key, minlength=n_superpixels * n_labels).reshape(n_superpixels, n_labels)
    return np.where(votes.any(axis=1), votes.argmax(axis=1), UNLABELLED).astype(np.int32)


def grow_labels(superpixel: Integers, label: Integers, reach_px: float) -> npt.NDArray[np.int32]:
    """Labels (n,) in which a superpixel without one has that of the nearest with one; -1 beyond ``reach_px``.

    ``superpixel`` (H, W) holds 0..n-1, ``label`` (n,) is 0 or more, or -1 for none. Distances are between the centres
    of superpixels, in pixels; a reach of 0 grows nothing.
    """
    grown = label.astype(np.int32)
    without, given = np.flatnonzero(label < 0), np.flatnonzero(label >= 0)
    if reach_px <= 0 or not len(without) or not len(given):
        return grown
    height, width = superpixel.shape
    flat = superpixel.ravel()
    area = np.maximum(np.bincount(flat, minlength=len(label)), 1)
    row = np.bincount(flat, weights=np.repeat(np.arange(height), width), minlength=len(label)) / area
    col = np.bincount(flat, weights=np.tile(np.arange(width), height), minlength=len(label)) / area
    centre = np.stack([row, col], axis=1)
    distance, nearest = scipy.spatial.cKDTree(centre[given]).query(centre[without])
    near = distance <= reach_px
    grown[without[near]] = label[given[nearest[near]]]
    return grown
