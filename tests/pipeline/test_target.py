from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.frame import Frame
from pipeline.stages.target import STAGE

FRAME = Frame("f", "s", 0, "t", "p", None, np.eye(4), np.eye(4), ())


def test_targets_are_the_pseudo_labels_and_say_which_points_a_camera_sees(recipe_over: Any, run_stage: Any) -> None:
    group = {"label": np.array([3, 0, 0, 7], np.uint8), "confidence": np.array([255, 0, 0, 9], np.uint8)}
    project = {"point": np.array([0, 3, 0, 2], np.int32), "occluded": np.array([False, False, True, True])}
    row = run_stage(STAGE, recipe_over("/r"), FRAME, group=group, project=project)
    assert row["label"].tolist() == [3, 0, 0, 7] and row["confidence"].tolist() == [255, 0, 0, 9]
    assert row["seen"].tolist() == [True, False, True, True]
    assert STAGE.count(row) == {"points": 4, "seen_points": 3}


def test_true_labels_are_not_among_what_it_needs(recipe_over: Any) -> None:
    assert [need.table for need in STAGE.needs(recipe_over("/r"))] == ["group", "project"]
