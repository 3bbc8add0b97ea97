from __future__ import annotations

from typing import Any

import numpy as np

from manifests.fingerprint import digest
from manifests.sections.tables import TargetConfig
from manifests.tables.labels import Correct
from manifests.tables.sensors import Project
from manifests.tables.superpoints import Group
from pipeline.frame import Frame
from pipeline.stages.target import STAGE
from tests.filled import record

FRAME = Frame("f", "s", 0, "t", "p", None, np.eye(4), np.eye(4), ())


def test_targets_are_the_pseudo_labels_and_say_which_points_a_camera_sees(recipe_over: Any, run_stage: Any) -> None:
    group = record(Group, label=np.array([3, 0, 0, 7], np.uint8), confidence=np.array([255, 0, 0, 9], np.uint8))
    point, occluded = np.array([0, 3, 0, 2], np.int32), np.array([False, False, True, True])
    row = run_stage(STAGE, recipe_over("/r"), FRAME, group, record(Project, point=point, occluded=occluded))
    assert row.label.tolist() == [3, 0, 0, 7] and row.confidence.tolist() == [255, 0, 0, 9]
    assert row.seen.tolist() == [True, False, True, True]
    assert STAGE.count(row) == {"points": 4, "seen_points": 3}


def test_corrected_labels_bring_their_share_of_the_evidence_and_others_keep_the_teacher_s_confidence(
    recipe_over: Any, run_stage: Any
) -> None:
    label, confidence = np.array([3, 0, 4, 7, 5], np.uint8), np.array([255, 0, 80, 9, 60], np.uint8)
    group = record(Group, label=label, confidence=confidence)
    correct = record(
        Correct,
        label=np.array([3, 2, 6, 7, 0], np.uint8),
        score=np.array([100, 200, 0, 50, 0], np.uint8),
        changed=np.array([False, True, True, False, True]),
    )
    recipe = recipe_over("/r", target=TargetConfig(labels="correct"))
    project = record(Project, point=np.array([0, 2], np.int32))
    row = run_stage(STAGE, recipe, FRAME, group, correct, project)
    assert row.label.tolist() == [3, 2, 6, 7, 0]
    assert row.confidence.tolist() == [255, 200, 1, 9, 0], "a label always has some confidence, no label none"
    assert row.seen.tolist() == [True, False, True, False, False]
    assert [need.table for need in STAGE.needs(recipe)] == ["group", "correct", "project"]


def test_the_choice_of_labels_is_part_of_the_identity_and_the_default_is_not(recipe_over: Any) -> None:
    chosen = recipe_over("/r", target=TargetConfig(labels="correct"))
    assert STAGE.settings(recipe_over("/r")) == {}
    assert digest(dict(STAGE.settings(chosen))) != digest({})


def test_true_labels_are_not_among_what_it_needs(recipe_over: Any) -> None:
    assert [need.table for need in STAGE.needs(recipe_over("/r"))] == ["group", "project"]
