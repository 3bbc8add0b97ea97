"""Calibrated confidences: fitted without and with true labels, kept with their identity, and used where labels are."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from manifests.asked import pin
from manifests.calibration import VERSION, calibration_of, refusal, wanted
from manifests.config import ConfigError
from manifests.fingerprint import Json
from manifests.labels import predict_identity, predict_key
from manifests.recipe import Recipe
from manifests.sections.labels import LabelTable
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.tables.answers import Calibrate, Predict
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Rows
from manifests.tables.labels import Label, Target
from manifests.tables.sensors import Index, Points
from manifests.tables.superpoints import Group
from pipeline.exchange.labels import write_labels
from pipeline.exchange.review import review
from tests.filled import record
from tests.versions import digest_of
from trainer.__main__ import app
from trainer.inference.held_out import Weighted
from trainer.inference.refined_table import refine
from trainer.scoring.calibrate import calibrate
from trainer.scoring.evaluate import evaluate

CAR, ROAD, WALL = 1, 2, 3
FRAMES = {
    "scene-0061": tuple(f"a{n}" for n in range(6)),  # official train split
    "scene-0103": tuple(f"v{n}" for n in range(6)),  # official val split
}
Y_M, Z_M = np.meshgrid(np.linspace(-20, 20, 80) + 0.05, np.linspace(-2, 3, 10) + 0.05)
PLACES_M = np.stack([np.full(Y_M.size, 20.05), Y_M.ravel(), Z_M.ravel()], axis=1)  # a wall, one point in a cube
N = len(PLACES_M)
SURE, UNSURE = 240, 200  # what labels say of themselves; of the first 90 %, of the second 60 % are right
TRUE = np.full(N, WALL, np.uint8)


def said(name: str) -> tuple[Any, Any]:
    """Return the pseudo-labels of a frame and their confidence: errors fall on other points in every frame."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    confidence = np.where(np.arange(N) % 2, SURE, UNSURE).astype(np.uint8)
    label = TRUE.copy()
    for level, wrong in ((SURE, 0.1), (UNSURE, 0.4)):
        points = np.flatnonzero(confidence == level)
        label[rng.permutation(points)[: round(wrong * len(points))]] = CAR
    return label, confidence


def index_row(name: str) -> Index:
    return record(
        Index, frame_id=name, timestamp_us=100_000 * int(name[1]), ego_from_lidar=np.eye(4), world_from_lidar=np.eye(4)
    )


def points_row(name: str) -> Points:
    xyz_m = PLACES_M.astype(np.float32)
    return Points(frame_id=name, n_points=N, xyz_m=xyz_m, intensity=xyz_m[:, 0])


def group_row(name: str) -> Group:
    label, confidence = said(name)
    return record(Group, frame_id=name, label=label, confidence=confidence)


def target_row(name: str) -> Target:
    label, confidence = said(name)
    return Target(frame_id=name, label=label, confidence=confidence, seen=np.ones(N, np.bool_))


@pytest.fixture
def wall(fleet: Any) -> Any:
    """A fleet that stands before a wall."""
    fleet.frames = FRAMES
    fleet.put("index", index_row)
    fleet.put("points", points_row)
    fleet.put("group", group_row)
    fleet.put("target", target_row)
    fleet.put("label", lambda name: Label(frame_id=name, label=TRUE, raw=TRUE.astype(np.uint16)))
    return fleet


def predicted(fleet: Any) -> None:
    """Let a student say what the pseudo-labels say."""
    points = fleet.ref().tables["points"]

    def row(name: str) -> Predict:
        label, confidence = said(name)
        nothing = np.zeros((N, 2), np.uint8)
        return Predict(
            frame_id=name, label=label, confidence=confidence, runner_up=nothing, runner_up_confidence=nothing
        )

    shards = tuple(
        fleet.store.write(
            "predict",
            "a1b2",
            one.shard,
            predict_key("a1b2", one),
            to_arrow([row(n) for n in FRAMES[one.shard]], Predict),
        )
        for one in points.shards
    )
    made: dict[str, Json] = {
        "epoch": 2,
        "checkpoint": str(fleet.recipe().folder() / "distill/epoch-0002.safetensors"),
        "student": {},
    }
    fleet.store.write_manifest(
        Manifest("predict", "a1b2", predict_identity(fleet.recipe(), "feed", points.fingerprint), shards, made)
    )
    fleet.store.write_ref(
        pin(fleet.recipe(), "predict"), Ref("street", {"predict": TableRef("predict", "a1b2", shards)})
    )


def row_in(fleet: Any, table: TableRef) -> Calibrate:
    [row] = fleet.store.every(Calibrate, table.fingerprint, table.shards)
    assert isinstance(row, Calibrate)
    return row


BY_TRUTH = ("calibrate.by=truth", "calibrate.split=train")
VOTED = ("refine.of=pseudo", "refine.by=vote", "labels.of=refine")


def test_by_the_truth_a_confidence_becomes_the_share_that_is_right(wall: Any, console: Console) -> None:
    row = row_in(wall, calibrate(wall.recipe(*BY_TRUTH), console, "target"))
    assert row.confidence[SURE] == round(0.9 * 255) and row.confidence[UNSURE] == round(0.6 * 255)
    assert row.compared[SURE] == row.compared[UNSURE] == N // 2 * 6, "of the frames of split train alone"
    assert row.right[SURE] == 0.9 * N // 2 * 6
    assert row.error_before == pytest.approx((abs(0.9 - SURE / 255) + abs(0.6 - UNSURE / 255)) / 2)
    assert row.error_after < 0.002 and row.augrc_after == pytest.approx(row.augrc_before)
    assert (VERSION, digest_of([row])) == (1, "e930d301592c"), (
        "raise VERSION in manifests/calibration.py where this is meant"
    )


def test_without_labels_what_a_sweep_says_that_had_no_say_is_counted(wall: Any, console: Console) -> None:
    row = row_in(wall, calibrate(wall.recipe("calibrate.by=agreement"), console, "group"))
    compared = right = 0
    for names in FRAMES.values():
        for name in names:
            others = [one for one in names if abs(int(one[1]) - int(name[1])) == 1]
            other = others[zlib.crc32(name.encode()) % len(others)]
            (label, confidence), (evidence, _) = said(name), said(other)
            compared += int((confidence == SURE).sum())
            right += int((label == evidence)[confidence == SURE].sum())
    assert (row.compared[SURE], row.right[SURE]) == (compared, right)
    assert row.confidence[SURE] == round(255 * right / compared)


def test_a_calibrated_vote_is_nearer_to_the_truth_that_nobody_showed_it(wall: Any, console: Console) -> None:
    recipe = wall.recipe(*VOTED, "calibrate.by=agreement", "evaluate.refine=vote", "refine.split=all", "vote.prior=20")
    refine(recipe, console)
    calibrate(recipe, console, "refine")
    scores = evaluate(recipe, console, "pseudo").document.scores["all"]
    assert scores.calibrated_error is not None and scores.calibration_error is not None
    assert scores.calibrated_error < scores.calibration_error / 2
    assert scores.calibrated_augrc is not None and scores.augrc is not None
    assert scores.calibrated_augrc <= scores.augrc + 0.002
    document = json.loads((wall.folder / "runs/street/evaluate-pseudo-vote.json").read_text())
    assert document["calibrated"]["by"] == "agreement" and document["calibrated"]["scored_too"] == 0
    wall.drop_table("label")
    label_free = wall.recipe(*VOTED, "calibrate.by=agreement", "refine.split=all", "vote.prior=20")
    assert "was there already" in told(label_free, console, wall), "no true label took part"


def told(recipe: Recipe, console: Console, fleet: Any) -> str:
    with console.capture() as heard:
        calibrate(recipe, console, recipe.labels.of)
    return heard.get()


def test_the_sweep_that_is_left_out_is_one_that_has_a_vote(wall: Any, console: Console) -> None:
    """Sweeps are 0.1 s apart: within 0.15 s lie the next one on each side, whatever number of them is allowed."""
    rows = []
    for near in (("vote.reach=1",), ("vote.reach=8", "vote.reach_s=0.15"), ("vote.reach=8",)):
        recipe = wall.recipe(*VOTED, "calibrate.by=agreement", "refine.split=all", *near)
        refine(recipe, console)
        rows.append(row_in(wall, calibrate(recipe, console, "refine")))
    one, in_time, all_of_them = (digest_of([row]) for row in rows)
    assert one == in_time != all_of_them


def test_points_that_are_heard_less_keep_what_they_say(wall: Any) -> None:
    """In logarithms trust is no part of how likely classes are, so it is handed on by itself, as stage `vote` does."""
    label, confidence = said("a0")
    say = np.where(np.arange(N) % 2, 0.5, 1.0)
    one = Weighted(Rows(index_row("a0"), points_row("a0")), label, confidence, None, say)
    ballot = one.ballot(one)
    assert ballot.trust is say and np.array_equal(ballot.weight, confidence / 255)


@pytest.mark.parametrize(
    ("settings", "of", "named"),
    [
        (
            ("target.labels=vote", "target.confidence=margin", "vote.belief=true"),
            "target",
            'target.confidence = "margin"',
        ),
        (("target.labels=vote+correct", "correct.evidence=divided", "vote.belief=true"), "target", "correct.evidence"),
        (("target.labels=vote+correct", "correct.evidence=divided", "vote.belief=true"), "correct", "correct.evidence"),
    ],
)
def test_labels_that_cannot_be_made_again_are_refused(
    wall: Any, console: Console, settings: tuple[str, ...], of: LabelTable, named: str
) -> None:
    with pytest.raises(ConfigError, match=f"makes labels of table `{of}` again without one sweep, .* know {named}"):
        calibrate(wall.recipe("calibrate.by=agreement", *settings), console, of)
    assert refusal(wall.recipe("calibrate.by=agreement", *settings), "vote") == ""
    assert refusal(wall.recipe(*BY_TRUTH, *settings), of) == ""


def test_students_are_refused_without_true_labels(wall: Any, console: Console) -> None:
    predicted(wall)
    recipe = wall.recipe("calibrate.by=agreement")
    ofs: tuple[LabelTable, ...] = ("predict", "refine")
    for of in ofs:
        with pytest.raises(ConfigError, match=f"table `{of}` holds what a student says: one network names all sweeps"):
            calibrate(recipe, console, of)
    with pytest.raises(ConfigError, match='is "", so confidences stay as they are'):
        calibrate(wall.recipe(), console, "group")
    with pytest.raises(ConfigError, match="name the scenes whose true labels are read"):
        wall.recipe("calibrate.by=truth")


def test_a_student_is_calibrated_on_a_labelled_split_and_the_score_says_so(wall: Any, console: Console) -> None:
    predicted(wall)
    calibrate(wall.recipe(*BY_TRUTH), console, "predict")
    with console.capture() as heard:
        document = evaluate(wall.recipe(*BY_TRUTH), console).document
    scores = document.scores["all"]
    assert scores.calibrated_error is not None and scores.calibrated_error < 0.01
    assert document.calibrated and document.calibrated.scored_too == 0
    assert "those of split train to calibrate confidences" in heard.get()
    too_good = wall.recipe("calibrate.by=truth", "calibrate.split=all")
    calibrate(too_good, console, "predict")
    with console.capture() as heard:
        document = evaluate(too_good, console).document
    assert document.calibrated and document.calibrated.scored_too == 1
    assert "fitted on the true labels of 1 of the scored scenes: its error here is too good" in heard.get()


def test_label_files_are_of_one_calibration_and_say_which(wall: Any, console: Console, tmp_path: Path) -> None:
    plain, by_truth = wall.recipe("labels.of=target"), wall.recipe("labels.of=target", *BY_TRUTH)
    out = tmp_path / "labels"
    before = write_labels(plain, out)
    assert before.record.calibrated is None
    with pytest.raises(
        StoreError, match="the confidence of table `target` of recipe street is not calibrated yet; run:"
    ):
        write_labels(by_truth, out)
    calibrate(by_truth, console, "target")
    done = write_labels(by_truth, out)
    assert done.aside and done.record.identity != before.record.identity
    about = done.record.calibrated
    assert about and about.by == "truth" and about.split == "train" and about.error_after < about.error_before
    confidence = np.load(next(out.glob("npy/scene-0103/v0.confidence.npy")))
    assert set(confidence.tolist()) == {round(0.9 * 255), round(0.6 * 255)}
    assert write_labels(by_truth, out).kept
    # a threshold is one of calibrated confidences: what is 200/255 sure of itself is right in 60 %
    certain = write_labels(
        wall.recipe("labels.of=target", "labels.min_confidence=0.7", *BY_TRUTH), tmp_path / "certain"
    )
    assert certain.record.counts.not_sure_enough == N // 2 * 12 and before.record.counts.not_sure_enough == 0
    _, risks = review(by_truth, tmp_path / "review", 2)
    assert risks[0].doubt == pytest.approx(1 - (round(0.9 * 255) + round(0.6 * 255)) / 2 / 255)


@pytest.mark.parametrize(
    "changed", [["calibrate.frames=3"], ["calibrate.split=val"], ["calibrate.by=agreement"], ["data.exclude=['a0']"]]
)
def test_a_calibration_of_other_settings_or_frames_is_not_used(
    wall: Any, console: Console, changed: Sequence[str]
) -> None:
    calibrate(wall.recipe(*BY_TRUTH), console, "group")
    labels = wall.ref().tables["group"]
    found = calibration_of(wall.store, wall.recipe(*BY_TRUTH), "group", labels)
    assert found is not None
    other = wall.packed(*BY_TRUTH, *changed)
    with pytest.raises(
        StoreError, match="was calibrated with other settings, or on labels that are others by now; run:"
    ):
        calibration_of(wall.store, other, "group", labels)
    calibrate(other, console, "group")
    now = calibration_of(wall.store, other, "group", labels)
    assert now is not None and now.content != found.content


def test_a_calibration_is_not_used_once_what_it_was_fitted_on_is_another(wall: Any, console: Console) -> None:
    recipe = wall.recipe(*BY_TRUTH)
    calibrate(recipe, console, "group")
    key = wanted(wall.store, recipe, "group").key
    wall.put("label", lambda name: Label(frame_id=name, label=np.full(N, ROAD, np.uint8), raw=TRUE.astype(np.uint16)))
    assert wanted(wall.store, recipe, "group").key != key
    with pytest.raises(StoreError, match="on labels that are others by now"):
        calibration_of(wall.store, recipe, "group", wall.ref().tables["group"])


def test_too_little_to_compare_is_no_calibration(wall: Any, console: Console) -> None:
    with pytest.raises(StoreError, match="only 800 labels of table `group` can be compared with a true one; 1000 are"):
        calibrate(wall.recipe(*BY_TRUTH, "calibrate.frames=1"), console, "group")


def test_collected_is_only_what_no_calibration_needs(wall: Any, console: Console) -> None:
    table = calibrate(wall.recipe(*BY_TRUTH), console, "group")
    garbage = {path for path, _ in wall.store.unreferenced(0)}
    assert not any(path.startswith(f"calibrate/{table.fingerprint}") for path in garbage)


def test_the_command_says_what_it_found(wall: Any) -> None:
    by_truth = [word for one in BY_TRUTH for word in ("--set", one)]
    done = CliRunner().invoke(app, ["calibrate", str(wall.recipe_path), "--of", "group", *by_truth])
    assert done.exit_code == 0, done.output
    assert (
        "calibrate: table group by true labels: 4800 labels compared, expected calibration error 11.3 →" in done.output
    )
    refused = CliRunner().invoke(app, ["calibrate", str(wall.recipe_path), "--of", "everything", *by_truth])
    assert refused.exit_code == 2
