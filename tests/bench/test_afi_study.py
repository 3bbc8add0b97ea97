from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import bench.afi_study as afi_study
from bench.afi import street
from bench.afi_study import (
    ERRORS,
    UNSEEN,
    Memory,
    StudyFrame,
    cases,
    confusion,
    counted,
    evenly,
    mean_iou,
    nearest_label,
    scores,
)
from manifests.ontology import load_ontology


def frame(seed: int, half: str, every: int = 20) -> StudyFrame:
    xyz_m, truth = street(seed)
    return StudyFrame(f"street {seed}", "street", half, xyz_m[::every], truth[::every], load_ontology("nuscenes"), 1.84)


def test_errors_spoil_as_much_as_they_say_and_are_the_same_each_time() -> None:
    one = frame(0, "choose", every=1)
    spoilt = {case.error: case.labels for case in cases([one])}
    wrong = {error: (labels != one.truth).mean() for error, labels in spoilt.items()}
    assert wrong["clean"] == 0
    assert wrong["5 % flips"] == pytest.approx(0.05, abs=0.015)
    assert wrong["15 % flips"] == pytest.approx(0.15, abs=0.03)
    assert 0.12 <= wrong["12 % in small patches"] < 0.2 and 0.12 <= wrong["12 % in large patches"] < 0.5
    assert 0 < wrong["bleed 0.5 deg"] < 0.1 and 0.12 < wrong["mixture"] < 0.5
    assert 0.1 < (spoilt[UNSEEN] == 0).mean() < 0.5 and spoilt[UNSEEN].max() <= 16
    for case in cases([one]):
        np.testing.assert_array_equal(case.labels, spoilt[case.error])


def test_iou_counts_classes_of_the_truth_and_an_unlabelled_point_as_wrong() -> None:
    truth, found = np.array([1, 1, 1, 2, 0], np.uint8), np.array([1, 1, 0, 3, 1], np.uint8)
    assert mean_iou(confusion(truth, found, 3)) == pytest.approx(100 * (2 / 3 + 0) / 2)


def test_a_gap_gets_the_nearest_label_and_the_share_that_is_right_is_scored() -> None:
    [case] = [case for case in cases([frame(0, "choose")]) if case.error == UNSEEN]
    filled = nearest_label(case)
    hidden = case.labels == 0
    assert filled.all() and (filled == case.labels)[~hidden].all()
    expected = 100 * (filled == case.frame.truth)[hidden].mean()
    found = scores([case], lambda case: counted(case, nearest_label(case)))
    assert found["street", "unseen"] == pytest.approx(expected)


def test_frames_are_spread_over_each_half() -> None:
    frames = [
        replace(frame(0, half, every=1000), name=f"{half} {i}") for half in ("choose", "report") for i in range(5)
    ]
    assert [one.name for one in evenly(frames, (1, 2))] == ["choose 0", "report 0", "report 4"]
    assert len(evenly(frames, (9, 9))) == 10


def test_the_study_writes_a_table_for_each_half_and_a_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {"default": afi_study.DEFAULT, "no gate": afi_study.UNGATED}
    monkeypatch.setattr(afi_study, "VARIANTS", chosen)
    monkeypatch.setattr(afi_study, "REPORTED", ("default",))
    monkeypatch.setattr(afi_study, "PLOTTED", tuple(chosen))
    monkeypatch.setattr(afi_study, "GATES", ("default",))
    memory = Memory(tmp_path / "counts.jsonl")
    text = afi_study.study([frame(0, "choose"), frame(1, "report")], tmp_path, memory)
    monkeypatch.setattr(afi_study, "refined", lambda *_: pytest.fail("what was counted is known"))
    again = afi_study.study([frame(0, "choose"), frame(1, "report")], tmp_path, Memory(tmp_path / "counts.jsonl"))
    assert again == text
    assert text.count("### To ") == 2 and "| no gate |" in text and (tmp_path / "afi.png").stat().st_size > 1000
    cells = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(cells) == {len(ERRORS) + 3}
