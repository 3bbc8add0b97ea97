"""Refinement at test time: who has a vote on whose labels, and that flat interaction comes after it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from manifests.asked import pin
from manifests.config import ConfigError
from manifests.fingerprint import Json
from manifests.labels import predict_identity, predict_key
from manifests.records.evaluation import EvaluationRecord
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.tables.answers import Predict
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Rows
from manifests.tables.labels import Label, Target, Vote
from manifests.tables.sensors import Index, Points
from superpixels.voting import Ballot, VotingConfig, vote
from tests.filled import record
from trainer.data.tables import FrameRow, Tables, select_frames
from trainer.inference.refine import Answered, windows
from trainer.scoring.evaluate import evaluate, evaluate_each

CAR, ROAD, WALL = 1, 2, 3
SHARDS = {"scene-0103+0000": ("v0", "v1"), "scene-0103+0002": ("v2",), "scene-0003": ("w0",)}
STEP_M, STEP_US = 1.0, 500_000  # the vehicle drives ahead
AHEAD_M = {"v0": 0.0, "v1": STEP_M, "v2": 2 * STEP_M, "w0": 0.0}
PLACES_M = np.array([[8.1, y, 0.1] for y in (-2.1, -0.1, 1.9)])  # in the world: three points of a wall


def pose(name: str) -> Any:
    world_from_lidar = np.eye(4)
    world_from_lidar[0, 3] = AHEAD_M[name]
    return world_from_lidar


def index_row(name: str) -> Index:
    time_us = int(AHEAD_M[name] / STEP_M * STEP_US)
    return record(Index, frame_id=name, timestamp_us=time_us, ego_from_lidar=np.eye(4), world_from_lidar=pose(name))


def points_row(name: str, xyz_m: Any) -> Points:
    return Points(frame_id=name, n_points=len(xyz_m), xyz_m=xyz_m, intensity=xyz_m[:, 0])


def target_row(name: str, label: Any, sure: int = 204) -> Target:
    """All points are seen, and equally sure."""
    confidence, seen = np.full(len(label), sure, np.uint8), np.ones(len(label), np.bool_)
    return Target(frame_id=name, label=np.array(label, np.uint8), confidence=confidence, seen=seen)


def seen_from(name: str, places_m: Any) -> Any:
    """Places in the world, in the LiDAR frame of a frame."""
    return (np.asarray(places_m) - [AHEAD_M[name], 0, 0]).astype(np.float32)


def fill(
    fleet: Any,
    said: Mapping[str, list[int]],
    places: Mapping[str, Any] | None = None,
    truth: int = WALL,
    second: Mapping[str, int] | None = None,
) -> None:
    """Frames that see the wall, or other places, what pseudo-labels and predictions say of it, and the truth.

    `second` is the second likeliest class of all points in the predictions of a frame, almost as likely as the first.
    """
    fleet.frames = SHARDS
    xyz_m = {name: seen_from(name, (places or {}).get(name, PLACES_M)) for name in AHEAD_M}
    label = {name: np.array(said[name], np.uint8) for name in said}
    sure = {name: np.full(len(some), 204, np.uint8) for name, some in label.items()}
    true = {name: np.full(len(some), truth, np.uint8) for name, some in label.items()}
    fleet.put("index", index_row)
    fleet.put("points", lambda n: points_row(n, xyz_m[n]))
    fleet.put("target", lambda n: target_row(n, label[n]))
    fleet.put("label", lambda n: Label(frame_id=n, label=true[n], raw=true[n].astype(np.uint16)))

    def predicted(n: str) -> Predict:
        runner_up = np.tile(np.array([(second or {}).get(n, 0), 0], np.uint8), (len(label[n]), 1))
        almost = np.where(runner_up > 0, 200, 0).astype(np.uint8)
        said = {"label": label[n], "confidence": sure[n], "runner_up": runner_up, "runner_up_confidence": almost}
        return Predict(frame_id=n, **said)

    points = fleet.ref().tables["points"]
    shards = tuple(
        fleet.store.write(
            "predict",
            "a1b2",
            shard.shard,
            predict_key("a1b2", shard),
            to_arrow([predicted(n) for n in SHARDS[shard.shard]], Predict),
        )
        for shard in points.shards
    )
    identity = predict_identity(fleet.recipe(), "feed", points.fingerprint)
    made: dict[str, Json] = {
        "epoch": 2,
        "checkpoint": str(fleet.recipe().folder() / "distill/epoch-0002.safetensors"),
        "student": {},
    }
    fleet.store.write_manifest(Manifest("predict", "a1b2", identity, shards, made))
    fleet.store.write_ref(
        pin(fleet.recipe(), "predict"), Ref("street", {"predict": TableRef("predict", "a1b2", shards)})
    )


TWO_OUTVOTE_ONE = ("evaluate.refine=vote", "vote.own=0")  # what a frame says itself counts once, not twice
RIGHT = [WALL, WALL, WALL]
MIDDLE_ERRS = {"v0": RIGHT, "v1": [WALL, CAR, WALL], "v2": RIGHT, "w0": [CAR, CAR, CAR]}


def called_a_car(document: EvaluationRecord, key: str = "confusion") -> int:
    """How many points of the wall are called a car."""
    return int(getattr(document, key)["all"][WALL][CAR])


@pytest.mark.parametrize("of", ["prediction", "pseudo"])
def test_an_error_of_one_frame_is_outvoted_by_the_frames_before_and_after(
    fleet: Any, console: Console, of: Any, capsys: Any
) -> None:
    fill(fleet, MIDDLE_ERRS)
    result = evaluate(fleet.recipe(*TWO_OUTVOTE_ONE), console, of)
    # the other scene stands at the same place in its own world, and nobody hears it
    assert called_a_car(result.document, "confusion_before") == 1 + 3 and called_a_car(result.document) == 3
    name = "evaluate-vote.json" if of == "prediction" else "evaluate-pseudo-vote.json"
    document = json.loads((fleet.folder / "runs/street" / name).read_text())
    assert document["refine"] == {
        "name": "vote",
        "voting": {"own": 0.0},
        "merge": None,
        "changed": {"all": 1, "seen": 1, "unseen": 0},
        "notes": {},
    }
    assert f"{of} before and after vote" in capsys.readouterr().out

    def ballot(name: str) -> Ballot:
        weight = np.full(3, 0.8)
        here_from_lidar = np.linalg.inv(pose("v1")) @ pose(name)
        ago_s = (AHEAD_M["v1"] - AHEAD_M[name]) / STEP_M * STEP_US / 1e6
        return Ballot(seen_from(name, PLACES_M), np.array(MIDDLE_ERRS[name], np.uint8), weight, here_from_lidar, ago_s)

    assert vote(ballot("v1"), [ballot("v0"), ballot("v2")], 3, VotingConfig(own=0)).label.tolist() == RIGHT


def test_predictions_vote_for_their_runners_up_too(fleet: Any, console: Console) -> None:
    # the first and the last sweep lean to the car, yet all three find the wall likely
    said = {"v0": [CAR] * 3, "v1": RIGHT, "v2": [CAR] * 3, "w0": RIGHT}
    fill(fleet, said)
    assert called_a_car(evaluate(fleet.recipe(*TWO_OUTVOTE_ONE), console).document) == 9
    fill(fleet, said, second={"v0": WALL, "v2": WALL})
    assert called_a_car(evaluate(fleet.recipe(*TWO_OUTVOTE_ONE), console).document) == 0
    assert called_a_car(evaluate(fleet.recipe(*TWO_OUTVOTE_ONE), console, "pseudo").document) == 9


def test_constants_are_those_of_the_section_vote(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    for words, n_cars in (("vote.reach=0", 4), ("vote.own=1", 4), ("vote.reach=1", 3)):
        document = evaluate(fleet.recipe(*TWO_OUTVOTE_ONE, words), console).document
        assert called_a_car(document) == n_cars
    assert document.refine and document.refine.voting == {"reach": 1, "own": 0.0}
    assert fleet.recipe("vote.reach=1").vote == VotingConfig(reach=1)


def test_several_refinements_are_scored_in_one_go(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    found = evaluate_each(fleet.recipe(), console, "prediction", ["vote+afi", "none", "vote", "afi"])
    files = {path.name for path in (fleet.folder / "runs/street").glob("*.json")}
    assert files == {"evaluate.json", "evaluate-afi.json", "evaluate-vote.json", "evaluate-vote-afi.json"}
    assert found["none"].before is None and called_a_car(found["none"].document) == 4
    for name in ("afi", "vote", "vote+afi"):
        alone = evaluate(fleet.recipe(f"evaluate.refine={name}"), console)
        assert alone.document == found[name].document
        assert alone.document.confusion_before == found["none"].document.confusion
    refined = found["vote+afi"].document.refine
    assert refined and None not in (refined.settings, refined.voting)
    with pytest.raises(ConfigError, match='and by "vote": things in images are merged into predictions before flat'):
        fleet.recipe("refine.by=vote", "refine.merge=true")


def test_what_has_driven_away_does_not_smear(fleet: Any, console: Console) -> None:
    """A car stood where the next sweep sees a wall 20 m away; its side shares a voxel with a post that still stands."""
    y_m, z_m = np.meshgrid(np.linspace(-5, 5, 201), np.linspace(-1, 1, 5))
    beyond = np.stack([np.full(y_m.size, 21.0), y_m.ravel(), z_m.ravel()], axis=1)
    car, post = [[11.05, y, 0.1] for y in (0.3, 0.6, 1.01)], [11.05, 1.19, 0.1]
    places = {"v0": car, "v1": [*beyond, post]}
    said = {"v0": [CAR] * 3, "v1": [0] * 1006, "v2": [0] * 3, "w0": [0] * 3}
    fill(fleet, said, places)
    smeared = evaluate(fleet.recipe("evaluate.refine=vote", "vote.through_m=1e9"), console, "pseudo").document
    assert called_a_car(smeared) == 3 + 1, "without the test of what is looked through"
    assert called_a_car(evaluate(fleet.recipe("evaluate.refine=vote"), console, "pseudo").document) == 3


def test_frames_that_failed_have_no_vote_nor_have_those_that_are_excluded(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    settings = (*TWO_OUTVOTE_ONE, "vote.reach=1")
    excluded = evaluate(fleet.packed(*settings, 'data.exclude=["v0", "w0"]'), console).document
    assert excluded.frames == 2 and called_a_car(excluded) == 1
    fleet.put("points", fleet.failing(lambda name: points_row(name, seen_from(name, PLACES_M)), ["v0"]))
    fleet.put("target", lambda name: target_row(name, MIDDLE_ERRS[name]))
    alone = evaluate(fleet.recipe(*settings), console, "pseudo").document
    # one against one, and that one half a second later
    assert called_a_car(alone) == 1 + 3


def test_a_window_goes_through_ends_of_shards_and_reads_every_frame_once(fleet: Any) -> None:
    fill(fleet, MIDDLE_ERRS)
    tables = Tables(fleet.store, fleet.ref(), ["points"])
    frames = select_frames(tables, "val", "nuscenes", ["v1"]).frames
    assert [frame.frame_id for frame in frames] == ["v0", "v2", "w0"]
    read: list[str] = []

    def answered(frame: FrameRow) -> Answered:
        read.append(frame.frame_id)
        return Answered(Rows(index_row(frame.frame_id)), np.zeros(0, np.uint8))

    def names(reach: int) -> list[tuple[str, list[str]]]:
        read.clear()
        found = windows(tables, frames, reach, ["points"], answered)
        return [(one.frame_id, [other.rows[Index].frame_id for other in around]) for one, _, around in found]

    assert names(1) == [("v0", ["v1"]), ("v2", ["v1"]), ("w0", [])]
    assert names(5) == [("v0", ["v1", "v2"]), ("v2", ["v0", "v1"]), ("w0", [])]
    assert read == ["v0", "v1", "v2", "w0"]
    assert names(0) == [("v0", []), ("v2", []), ("w0", [])] and read == ["v0", "v2", "w0"]


def test_pseudo_labels_are_not_put_to_the_vote_twice(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    label, sure, changed = np.array(RIGHT, np.uint8), np.full(3, 204, np.uint8), np.ones(3, np.bool_)
    fleet.put("vote", lambda name: Vote(frame_id=name, label=label, confidence=sure, changed=changed))
    voted = fleet.packed("target.labels=vote")
    with pytest.raises(StoreError, match=r"have been put to the vote by stage `vote` already; .*make target"):
        evaluate_each(voted, console, "pseudo", ["vote"])
    found = evaluate_each(voted, console, "pseudo", ["afi", "vote+afi"])
    assert found["vote+afi"].document.confusion == found["afi"].document.confusion
    assert found["afi"].document.tables["refine"] == found["vote+afi"].document.tables["refine"], "one table"
    assert called_a_car(found["afi"].document, "confusion_before") == 0, "what the vote said is corrected"


def test_yardsticks_have_a_vote_too(fleet: Any, console: Console) -> None:
    fill(fleet, MIDDLE_ERRS)
    recipe = fleet.recipe(*TWO_OUTVOTE_ONE)
    recipe = replace(recipe, distill=replace(recipe.distill, split="val"))
    assert called_a_car(evaluate(recipe, console, "majority").document) == 0
