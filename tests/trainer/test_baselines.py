"""Yardsticks without a network: what they learn from pseudo-labels, and that they are scored like a student."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from manifests.storage.errors import StoreError
from manifests.tables.labels import Target
from manifests.tables.sensors import Points
from tests.filled import record
from trainer.scoring.baselines import learn_baseline, point_features
from trainer.scoring.evaluate import evaluate

ROAD = 2


def swept(xyz_m: npt.NDArray[Any], intensity: npt.NDArray[Any]) -> Points:
    return Points(frame_id="x", n_points=len(xyz_m), xyz_m=xyz_m, intensity=intensity)


def learnt(fleet: Any, kind: Any) -> Any:
    return learn_baseline(kind, fleet.recipe(), fleet.store, fleet.ref())


def test_the_majority_is_the_most_frequent_pseudo_label_and_never_none(fleet: Any) -> None:
    sweep = swept(np.zeros((4, 3), np.float32), np.zeros(4, np.float32))
    assert learnt(fleet, "majority")(sweep).tolist() == [ROAD] * 4


@pytest.mark.parametrize("kind", ["majority", "tree"])
def test_a_sweep_without_points_is_answered_with_nothing(fleet: Any, kind: str) -> None:
    sweep = swept(np.zeros((0, 3), np.float32), np.zeros(0, np.float32))
    assert learnt(fleet, kind)(sweep).shape == (0,)


def test_features_are_intensity_height_and_range() -> None:
    sweep = swept(np.array([[3, 4, -1.5]], np.float32), np.array([20], np.float32))
    assert point_features(sweep).tolist() == [[20, -1.5, 5]]


def test_a_tree_beats_the_majority_where_height_tells_classes_apart(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe("distill.split=train", "evaluate.split=val")
    tree, majority = (evaluate(recipe, console, kind).scores["all"] for kind in ("tree", "majority"))
    assert majority.mean_iou == pytest.approx(0.5 / 3, abs=0.01), "half of the points are road"
    assert tree.mean_iou > 2 * majority.mean_iou
    assert {path.name for path in recipe.folder().glob("*.json")} == {"evaluate-tree.json", "evaluate-majority.json"}


def test_the_same_recipe_grows_the_same_tree(fleet: Any) -> None:
    rng = np.random.default_rng(0)
    sweep = swept(rng.uniform(-9, 9, (500, 3)).astype(np.float32), rng.uniform(0, 60, 500).astype(np.float32))
    first, second = (learnt(fleet, "tree")(sweep) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_nothing_can_be_learnt_without_pseudo_labels(fleet: Any) -> None:
    nothing = np.zeros(1000, np.uint8)
    fleet.put("target", lambda name: record(Target, frame_id=name, label=nothing))
    with pytest.raises(StoreError, match="nothing to learn"):
        learnt(fleet, "majority")
