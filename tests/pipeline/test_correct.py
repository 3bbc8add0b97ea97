from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.afi import street
from manifests.fingerprint import canonical
from manifests.tables.sensors import Points
from manifests.tables.superpoints import Group
from pipeline.frame import Frame, FrameError
from pipeline.stages.correct import STAGE
from superpixels.flat_config import FlatInteractionConfig
from tests.filled import record

EGO_FROM_LIDAR = np.eye(4)
EGO_FROM_LIDAR[2, 3] = 1.84
FRAME = Frame("f", "s", 0, "t", "p", None, EGO_FROM_LIDAR, np.eye(4), ())


def rows(xyz_m: Any, label: Any) -> tuple[Points, Group]:
    return record(Points, xyz_m=xyz_m.astype(np.float32)), record(Group, label=label.astype(np.uint8))


def test_gaps_are_filled_and_stray_labels_repaired(recipe_over: Any, run_stage: Any) -> None:
    xyz_m, truth = street(0)
    label = np.where(np.abs(np.arctan2(xyz_m[:, 1], xyz_m[:, 0])) < 0.2, 0, truth)
    stray = np.flatnonzero(label == 11)[::100]
    label[stray] = 16
    row = run_stage(STAGE, recipe_over("/r"), FRAME, *rows(xyz_m, label))
    assert row.note is None
    np.testing.assert_array_equal(row.changed, row.label != label)
    assert (row.label[stray] == 11).mean() > 0.9
    assert STAGE.count(row) == {
        "points": len(label),
        "labelled_points": int((row.label > 0).sum()),
        "changed_points": int(row.changed.sum()),
        "frames_without_ego_ring": 0,
    }
    assert row.score[row.changed].min() > 0
    gap = label == 0
    assert 0.2 < (row.label[gap] > 0).mean() < 0.9, "only as far as evidence reaches"
    assert (row.label == truth)[gap & (row.label > 0)].mean() > 0.9


def test_the_constants_of_the_recipe_decide(recipe_over: Any, run_stage: Any, shared: Path) -> None:
    with np.load(shared / "golden" / "afi_1.npz") as file:
        golden = {name: file[name] for name in ("xyz", "labels_in", "labels_out_exact_knn")}
    recipe = recipe_over("/r", correct=FlatInteractionConfig.parity())
    row = run_stage(STAGE, recipe, FRAME, *rows(golden["xyz"], golden["labels_in"]))
    np.testing.assert_array_equal(row.label, golden["labels_out_exact_knn"])
    assert STAGE.settings(recipe) != STAGE.settings(recipe_over("/r"))
    assert canonical(STAGE.settings(recipe))


def test_without_a_frame_on_the_ground_the_ring_is_skipped_with_a_note(recipe_over: Any, run_stage: Any) -> None:
    frame = Frame("f", "s", 0, "t", "p", None, np.eye(4), np.eye(4), ())
    row = run_stage(STAGE, recipe_over("/r"), frame, *rows(np.eye(3), np.array([1, 1, 1])))
    assert row.note == "ego ring skipped: the height of the sensor was not given"
    assert row.label.tolist() == [1, 1, 1] and STAGE.count(row)["frames_without_ego_ring"] == 1


def test_a_frame_without_any_labels_stays_without(recipe_over: Any, run_stage: Any) -> None:
    row = run_stage(STAGE, recipe_over("/r"), FRAME, *rows(street(0)[0][::50], np.zeros(635)))
    assert not row.label.any() and not row.score.any() and not row.changed.any()


def test_a_sweep_with_a_point_that_is_not_finite_is_a_bad_frame(recipe_over: Any, run_stage: Any) -> None:
    xyz_m = np.eye(3)
    xyz_m[0, 0] = np.nan
    with pytest.raises(FrameError, match="NaN or infinite"):
        run_stage(STAGE, recipe_over("/r"), FRAME, *rows(xyz_m, np.array([1, 1, 1])))


def test_true_labels_are_not_among_what_it_needs(recipe_over: Any) -> None:
    assert [need.table for need in STAGE.needs(recipe_over("/r"))] == ["points", "group"]
