"""Yardsticks without a network: what can be said of a point from the pseudo-labels alone, shape left aside.

A student that has learnt shape must beat both. Neither sees a true label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from manifests.recipe import Recipe
from manifests.sample import Sweep, sweep_of, targets_of
from manifests.storage.errors import StoreError
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from trainer.data.tables import Tables, select_frames

Baseline = Literal["majority", "tree"]
Answer = Callable[[Sweep], NDArray[np.uint8]]

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
        sweep, label = learnt_from(dict(zip(("points", "target"), tables.row(frame), strict=True)))
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

    def answer(sweep: Sweep) -> NDArray[np.uint8]:
        features = point_features(sweep)  # of no point, which the tree would refuse
        return np.asarray(tree.predict(features), np.uint8) if len(features) else np.zeros(0, np.uint8)

    return answer


def learnt_from(rows: Mapping[str, Mapping[str, Any]]) -> tuple[Sweep, NDArray[np.uint8]]:
    """Return the sweep of a frame and its pseudo-labels (n,), 0 none."""
    return sweep_of(rows["points"]), np.asarray(targets_of(rows["target"]).label)


def point_features(sweep: Sweep) -> NDArray[np.float32]:
    """Return intensity as stored, height above the sensor (m) and horizontal range (m) of every point, (n, 3)."""
    xyz_m = sweep.xyz_m
    range_m = np.hypot(xyz_m[:, 0], xyz_m[:, 1])
    return np.column_stack([sweep.intensity, xyz_m[:, 2], range_m]).astype(np.float32)
