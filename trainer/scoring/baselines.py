"""Yardsticks without a network: what can be said of a point from the pseudo-labels alone, shape left aside.

A student that has learnt shape must beat both. Neither sees a true label.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from manifests.recipe import Recipe
from manifests.storage.errors import StoreError
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from manifests.tables.labels import Target
from manifests.tables.sensors import Points
from trainer.data.tables import Tables, select_frames

Baseline = Literal["majority", "tree"]
Answer = Callable[[Points], NDArray[np.uint8]]

POINTS = 400_000  # a tree is grown from so many points at most, drawn evenly with the seed of the distillation
SMALLEST_LEAF = 20  # points; without a limit the tree learns the noise of the labels by heart


def learn_baseline(kind: Baseline, recipe: Recipe, store: Store, ref: Ref) -> Answer:
    """Return a function from a sweep to one class in 1..n for each of its points, (n,) uint8.

    "majority" always answers the most frequent pseudo-label; "tree" is a decision tree on intensity, height above the
    sensor (m) and range (m). Both learn from the frames, the pseudo-labels and the seed of section `[distill]`.

    Raises StoreError for missing tables, or where no point has a pseudo-label.
    """
    tables = Tables(store, ref, ["points", "target"])
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    frames = select_frames(tables, recipe.distill.split, recipe.data.dataset, excluded).frames
    n_classes = len(recipe.ontology.classes)
    rng = np.random.default_rng(recipe.distill.seed)
    per_frame = -(-POINTS // len(frames))
    counts = np.zeros(n_classes, np.int64)
    features, labels = [], []
    for frame in frames:
        rows = tables.rows(frame)
        sweep, label = rows[Points], rows[Target].label
        counts += np.bincount(label, minlength=n_classes)
        some = np.sort(rng.permutation(np.flatnonzero(label))[:per_frame])
        features.append(point_features(sweep)[some])
        labels.append(label[some])
    if not counts[1:].any():
        raise StoreError(
            f'no point of split "{recipe.distill.split}" has a pseudo-label, so recipe {recipe.name} gives a baseline '
            "nothing to learn"
        )
    if kind == "majority":
        most_frequent = 1 + int(counts[1:].argmax())
        return lambda sweep: np.full(len(sweep.xyz_m), most_frequent, np.uint8)

    # takes a second to import
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(min_samples_leaf=SMALLEST_LEAF, random_state=recipe.distill.seed)
    tree.fit(np.concatenate(features), np.concatenate(labels))

    def answer(sweep: Points) -> NDArray[np.uint8]:
        features = point_features(sweep)  # of no point, which the tree would refuse
        return np.asarray(tree.predict(features), np.uint8) if len(features) else np.zeros(0, np.uint8)

    return answer


def point_features(sweep: Points) -> NDArray[np.float32]:
    """Return intensity as stored, height above the sensor (m) and horizontal range (m) of every point, (n, 3)."""
    xyz_m = sweep.xyz_m
    range_m = np.hypot(xyz_m[:, 0], xyz_m[:, 1])
    return np.column_stack([sweep.intensity, xyz_m[:, 2], range_m]).astype(np.float32)
