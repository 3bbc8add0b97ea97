"""How alike vectors are to a phrase: cosines, and what is left of them beside the prompts of a class dictionary.

Raw cosines of CLIP are all alike: every image has about 0.2 with every sentence, so 0.25 may be much or nothing. What
tells is whether anything else names a vector better. Its *margin* is its cosine with the phrase, less its largest
cosine with any prompt of the dictionary: above 0 the phrase is the best name there is, far below it is a wrong one.
(LERF, arXiv 2303.09553, compares a query with a few canonical phrases in the same way, behind a softmax, which keeps
the order.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TOP_POINTS = 50
"""A frame is as like a phrase as this many of its most similar points are on average: about what a small thing nearby
has, and more than one segment gone wrong far away."""


class Similarity(NamedTuple):
    """Cosine with a phrase, and margin over the prompts of a dictionary; both float32 (n,), NaN where nothing is known.

    The two are found apart: a point's largest cosine and its largest margin may be of different superpoints.
    """

    cosine: NDArray[np.float32]
    margin: NDArray[np.float32]


def similarity(vectors: NDArray[Any], phrase: NDArray[Any], rivals: NDArray[Any]) -> Similarity:
    """Return how alike unit vectors (n, d) are to a phrase (d,), and by how much more than to any of the rivals (p, d).

    Without rivals the margin is the cosine.
    """
    vectors = vectors.astype(np.float32)
    cosine = np.asarray(vectors @ phrase.astype(np.float32), np.float32)
    if len(rivals) == 0 or len(vectors) == 0:
        return Similarity(cosine, cosine)
    return Similarity(cosine, cosine - (vectors @ rivals.astype(np.float32).T).max(axis=1))


def spread(found: Similarity, point: NDArray[Any], superpoint: NDArray[Any], n_points: int) -> Similarity:
    """Return the similarity of points: the largest over the superpoints that each belongs to; NaN where it has none.

    `found` is that of the superpoints, `point` and `superpoint` (p,) say who belongs where.
    """
    values = []
    for value in found:
        largest = np.full(n_points, -np.inf, np.float32)
        np.maximum.at(largest, point, value[superpoint])
        values.append(np.where(np.isinf(largest), np.float32(np.nan), largest))
    return Similarity(*values)


def top_mean(values: NDArray[Any]) -> float:
    """Return the mean of the `TOP_POINTS` largest of some values, or of all if there are fewer; NaN of none."""
    known = values[np.isfinite(values)].astype(np.float64)
    if len(known) == 0:
        return float("nan")
    if len(known) > TOP_POINTS:
        known = np.partition(known, len(known) - TOP_POINTS)[-TOP_POINTS:]
    return float(known.mean())
