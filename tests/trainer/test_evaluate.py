"""Scores that can be checked by hand, and what is said where there is nothing to score."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from manifests.asked import made_anew, pin
from manifests.config import ConfigError
from manifests.fingerprint import Json
from manifests.labels import predict_identity, predict_key
from manifests.provenance import git_commit
from manifests.records.codec import as_document
from manifests.records.evaluation import MergedFrom
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.sealed import read_sealed
from manifests.tables.answers import Predict
from manifests.tables.arrow import to_arrow
from manifests.tables.labels import Label, Target
from manifests.tables.sensors import Index, Points
from manifests.tables.superpoints import Group
from superpixels.flat_interaction import refine
from superpixels.metrics import Confusion
from tests.filled import record
from tests.refs import identity
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.loop.train import train
from trainer.scoring.evaluate import evaluate

LABEL = np.array([0, 1, 1, 2, 2, 2, 3, 3], np.uint8)
ANSWER = np.array([1, 1, 2, 2, 2, 1, 3, 2], np.uint8)
PSEUDO = np.array([1, 1, 0, 2, 0, 0, 3, 0], np.uint8)
SEEN = np.array([1, 1, 0, 1, 0, 1, 1, 0], np.bool_)
# of both frames together, by class: labelled, predicted and labelled, hits -> IoU
# car 4, 4, 2 -> 1/3;  road 6, 8, 4 -> 2/5;  wall 4, 2, 2 -> 1/2


def label_row(name: str) -> Label:
    return Label(frame_id=name, label=LABEL, raw=LABEL.astype(np.uint16))


def target_row(name: str) -> Target:
    return Target(frame_id=name, label=PSEUDO, confidence=PSEUDO, seen=SEEN)


@pytest.fixture
def scored(fleet: Any) -> Any:
    """Two frames of eight points with labels, pseudo-labels and predictions."""
    fleet.frames = {"scene-0103": ("v0", "v1")}
    xyz_m = np.ones((8, 3), np.float32)
    fleet.put("points", lambda name: Points(frame_id=name, n_points=8, xyz_m=xyz_m, intensity=xyz_m[:, 0]))
    fleet.put("label", label_row)
    fleet.put("target", target_row)
    put_predictions(fleet, {"v0": ANSWER, "v1": ANSWER})
    return fleet


def put_predictions(fleet: Any, answers: Mapping[str, Any]) -> None:
    rows = [record(Predict, frame_id=name, label=answer, confidence=answer) for name, answer in answers.items()]
    points = fleet.ref().tables["points"]
    key = predict_key("a1b2", points.shards[0])
    shard = fleet.store.write("predict", "a1b2", "scene-0103", key, to_arrow(rows, Predict))
    made_of = predict_identity(fleet.recipe(), "feed", points.fingerprint)
    made: dict[str, Json] = {"checkpoint": "epoch-0002.safetensors", "epoch": 2}
    fleet.store.write_manifest(Manifest("predict", "a1b2", made_of, (shard,), made))
    fleet.store.write_ref(
        pin(fleet.recipe(), "predict"), Ref("street", {"predict": TableRef("predict", "a1b2", (shard,))})
    )


def test_what_the_confidence_is_worth_is_said(scored: Any, console: Console, capsys: Any) -> None:
    """The fixture's confidence is the class's number in 1/255: next to nothing, and the surest points are walls."""
    evaluate(scored.recipe(), console)
    found = json.loads((scored.folder / "runs/street/evaluate.json").read_text())["scores"]["all"]
    named, right = np.tile(ANSWER[1:], 2), np.tile(ANSWER[1:] == LABEL[1:], 2)
    assert found["calibration_error"] == pytest.approx(abs(right.sum() - (named / 255).sum()) / len(named))
    assert found["risk"][0][0] == pytest.approx(2 / 14) and found["risk"][-1][0] == 1.0
    assert found["risk"][0][1] == pytest.approx(0.0), "both points called a wall are"
    assert found["risk"][-1][1] == pytest.approx(1 - found["mean_iou"])
    assert "confidence: expected calibration error" in capsys.readouterr().out


def test_scores_are_those_computed_by_hand(scored: Any, console: Console, capsys: Any) -> None:
    result = evaluate(scored.recipe(), console)
    every = result.scores["all"]
    np.testing.assert_allclose(every.iou, [1 / 3, 2 / 5, 1 / 2])
    assert every.mean_iou == pytest.approx((1 / 3 + 2 / 5 + 1 / 2) / 3)
    assert every.micro_iou == pytest.approx(8 / (14 + 14 - 8))
    assert every.frequency_weighted_iou == pytest.approx((4 / 3 + 6 * 2 / 5 + 4 / 2) / 14)
    assert every.n_points == 14, "points without a label do not count"
    shown = capsys.readouterr().out
    assert "mIoU" in shown and "41.11" in shown


def test_seen_and_unseen_points_are_scored_apart(scored: Any, console: Console) -> None:
    scores = evaluate(scored.recipe(), console).scores
    # seen: labels 1 2 2 3, answers 1 2 1 3; unseen: labels 1 2 3, answers 2 2 2
    np.testing.assert_allclose(scores["seen"].iou, [1 / 2, 1 / 2, 1])
    np.testing.assert_allclose(scores["unseen"].iou, [0, 1 / 3, 0])
    assert scores["seen"].n_points + scores["unseen"].n_points == scores["all"].n_points


def test_the_scores_are_written_as_json(scored: Any, console: Console) -> None:
    evaluate(scored.recipe(), console)
    document = json.loads((scored.folder / "runs/street/evaluate.json").read_text())
    assert document["classes"] == ["car", "road", "wall"]
    assert document["scores"]["all"]["iou"] == pytest.approx([1 / 3, 2 / 5, 1 / 2])
    assert document["confusion"]["all"] == [[0, 2, 0, 0], [0, 2, 2, 0], [0, 2, 4, 0], [0, 0, 2, 2]]
    assert (document["epoch"], document["weights"], document["frames"]) == (2, "feed", 2)
    assert document["tables"]["predict"] == "a1b2"


def test_scores_name_the_shards_and_the_scenes_that_they_are_of(scored: Any, console: Console) -> None:
    chosen = scored.folder / "chosen.txt"
    chosen.write_text("scene-0103\n")
    points = scored.ref().tables["points"].shards[0]
    for of, kinds in (
        ("prediction", {"label", "predict", "target", "points"}),
        ("tree", {"label", "target", "points"}),
    ):
        recipe = scored.recipe(f"evaluate.split={chosen}", f"distill.split={chosen}")
        document = evaluate(recipe, console, of).document  # type: ignore[arg-type]
        assert document.contents and set(document.contents) == kinds
        assert document.contents["points"] == {"scene-0103": f"{points.key}.{points.sha256[:12]}"}
        assert made_anew(document.contents, scored.ref().tables) == []
    assert document.contents and document.learnt_from and document.learnt_from.contents
    assert document.learnt_from.contents.keys() == {"points", "target"}
    said = document.split_content, document.learnt_from.split_content
    chosen.write_text("# the same\nscene-0103\n")
    assert evaluate(recipe, console, "pseudo").document.split_content == said[0] == said[1]

    scored.put("target", lambda name: replace(scored.target_row(name), label=scored.sweep(name).label * 0))
    assert made_anew(document.contents, scored.ref().tables) == ["target: shard scene-0103"]


def test_pseudo_labels_are_scored_against_labels_too(scored: Any, console: Console) -> None:
    scores = evaluate(scored.recipe(), console, "pseudo").scores
    np.testing.assert_allclose(scores["all"].iou, [1 / 2, 1 / 3, 1 / 2])  # a pseudo-label of 0 misses the class
    assert (scored.folder / "runs/street/evaluate-pseudo.json").is_file()
    assert not (scored.folder / "runs/street/evaluate.json").exists()


@pytest.fixture
def patchy(fleet: Any) -> Any:
    """The two validation frames with predictions that are right but for a tenth, wrong at random."""
    fleet.frames = {"scene-0103": ("v0", "v1")}
    for stage, row_of in (("points", fleet.points_row), ("label", fleet.label_row), ("target", fleet.target_row)):
        fleet.put(stage, row_of)
    pose = np.eye(4)
    pose[2, 3] = 1.8
    fleet.put("index", lambda name: record(Index, frame_id=name, ego_from_lidar=pose, world_from_lidar=np.eye(4)))
    put_predictions(fleet, {name: spoilt(fleet.sweep(name).label, n) for n, name in enumerate(("v0", "v1"))})
    return fleet


def spoilt(label: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(label)) < 0.1, rng.integers(1, 4, len(label)), label).astype(np.uint8)


def test_predictions_are_scored_before_and_after_flat_interaction(patchy: Any, console: Console, capsys: Any) -> None:
    result = evaluate(patchy.recipe("evaluate.refine=afi"), console)
    expected = Confusion(3)
    plain = evaluate(patchy.recipe(), console)
    n_changed = 0
    for n, name in enumerate(("v0", "v1")):
        scan = patchy.sweep(name)
        found = refine(scan.xyz_m, spoilt(scan.label, n), n_classes=3, ground_classes=(2,), sensor_height_m=1.8)
        expected.add(scan.label, found.labels)
        n_changed += int(found.changed.sum())
    document = json.loads((patchy.folder / "runs/street/evaluate-afi.json").read_text())
    assert document["confusion"]["all"] == expected.matrix.tolist()
    assert document["scores_before"] == as_document(plain.document.scores) and document["confusion_before"]
    assert result.before is not None and result.before["all"].mean_iou == plain.scores["all"].mean_iou
    assert result.scores["all"].mean_iou > result.before["all"].mean_iou + 0.05
    assert document["refine"] == {
        "name": "afi",
        "settings": {},
        "merge": None,
        "changed": {"all": n_changed, **{part: document["refine"]["changed"][part] for part in ("seen", "unseen")}},
        "notes": {},
    }
    assert sum(document["refine"]["changed"][part] for part in ("seen", "unseen")) == n_changed > 0
    assert "before and after afi" in capsys.readouterr().out
    assert set(document["tables"]) == {"label", "predict", "target", "index", "points", "refine"}


def test_pseudo_labels_are_refined_too_and_gaps_get_labels(patchy: Any, console: Console) -> None:
    anywhere = ("correct.fill_reach_m=0", "correct.fill_certainty=0", "correct.fill_agreement=0")  # of a thin sweep
    result = evaluate(patchy.recipe("evaluate.refine=afi", *anywhere), console, "pseudo")
    assert (patchy.folder / "runs/street/evaluate-pseudo-afi.json").is_file()
    assert result.before is not None and result.before["unseen"].mean_iou == 0
    assert result.scores["unseen"].mean_iou > 0.3


def test_things_in_images_are_merged_into_predictions_before_they_are_refined(patchy: Any, console: Console) -> None:
    """All is called a wall; pseudo-labels show the cars that cameras see, and near ones are mostly believed."""
    put_predictions(patchy, {name: np.full(1000, 3, np.uint8) for name in ("v0", "v1")})
    settings = ("evaluate.refine=afi", "refine.merge=true", "correct.max_support=0")
    document = evaluate(patchy.recipe(*settings), console).document
    assert document.refine and document.refine.merge == MergedFrom("target", 0)
    assert document.confusion_before
    hits, before = (np.diag(some["seen"]) for some in (document.confusion, document.confusion_before))
    assert before[1] == 0 and hits[1] > 0.5 * np.sum(document.confusion["seen"], axis=1)[1]
    unseen = evaluate(patchy.recipe(*settings), console).document.confusion["unseen"]
    assert document.confusion["unseen"] == unseen, "the draws are seeded"
    other = evaluate(patchy.recipe(*settings, "refine.merge_seed=1"), console).document
    assert other.confusion["seen"] != document.confusion["seen"]
    with pytest.raises(ConfigError, match=r'set of = "prediction" and by = "afi" or "vote.afi"'):
        patchy.recipe("refine.merge=true", "refine.by=vote")


def test_refinement_does_not_see_true_labels(patchy: Any, console: Console) -> None:
    """Whatever the truth, the same answers are counted."""
    answers = []
    for shift in (0, 1):
        patchy.put("label", lambda name, shift=shift: label_row_of(patchy, name, shift))
        document = evaluate(patchy.recipe("evaluate.refine=afi"), console).document
        answers.append(np.sum(document.confusion["all"], axis=0).tolist())
    assert answers[0] == answers[1]


def label_row_of(fleet: Any, name: str, shift: int) -> Label:
    label = (fleet.label_row(name).label - 1 + shift) % 3 + 1
    return Label(frame_id=name, label=label.astype(np.uint8), raw=label.astype(np.uint16))


def test_pseudo_labels_that_are_corrected_already_are_refined_from_the_start(patchy: Any, console: Console) -> None:
    """Else flat interaction would be scored twice over."""
    corrected = ("target.labels=correct", "evaluate.refine=afi")
    with pytest.raises(StoreError, match=r"make group RECIPE=\S*street"):
        evaluate(patchy.packed(*corrected), console, "pseudo")
    nothing = np.zeros(1000, np.uint8)
    patchy.put("group", lambda name: record(Group, frame_id=name, label=nothing))
    result = evaluate(patchy.packed(*corrected), console, "pseudo")
    assert result.before is not None and result.before["seen"].mean_iou == 0
    assert evaluate(patchy.packed(corrected[0]), console, "pseudo").scores["seen"].mean_iou == 1


def test_points_that_are_not_finite_are_named(patchy: Any, console: Console) -> None:
    def broken(name: str) -> Points:
        points: Points = patchy.points_row(name)
        points.xyz_m[5] = np.nan
        return points

    patchy.put("points", broken)
    put_predictions(patchy, {name: patchy.sweep(name).label for name in ("v0", "v1")})
    with pytest.raises(StoreError, match="frame v0: 1 of 1000 points have a coordinate that is NaN"):
        evaluate(patchy.recipe("evaluate.refine=afi"), console)


def test_a_class_that_does_not_occur_counts_as_the_recipe_says(scored: Any, console: Console) -> None:
    no_walls = np.where(LABEL == 3, 2, LABEL).astype(np.uint8)
    scored.put("label", lambda name: replace(label_row(name), label=no_walls))
    scored.put("target", lambda name: replace(target_row(name), label=np.minimum(PSEUDO, 2)))
    document = evaluate(scored.recipe(), console, "pseudo").document
    assert document.scores["all"].iou[2] is None
    scores = evaluate(scored.recipe("evaluate.absent=one"), console, "pseudo").scores
    assert scores["all"].iou[2] == 1


def test_without_targets_all_points_are_scored_together(scored: Any, console: Console, capsys: Any) -> None:
    scored.drop_table("target")
    assert list(evaluate(scored.recipe(), console).scores) == ["all"]
    assert "make target RECIPE=/" in capsys.readouterr().out
    with pytest.raises(StoreError, match=r"make target RECIPE=\S*street"):
        evaluate(scored.recipe(), console, "pseudo")


def test_frames_without_labels_are_left_out_and_counted(scored: Any, console: Console) -> None:
    scored.put("label", scored.failing(label_row, ["v1"]))
    document = evaluate(scored.recipe(), console).document
    assert document.frames == 1
    assert document.left_out == {"failed in stage label": ("v1",)}
    assert document.scores["all"].points == 7


def test_logs_without_labels_are_a_sentence(scored: Any, console: Console) -> None:
    scored.put("label", scored.failing(label_row, ["v0", "v1"]))
    with pytest.raises(StoreError, match=r"has no labels to evaluate against; run: make label RECIPE=\S*street"):
        evaluate(scored.recipe(), console)
    scored.drop_table("label")
    with pytest.raises(StoreError, match=r"has no labels to evaluate against; run: make label RECIPE=\S*street"):
        evaluate(scored.recipe(), console)


def test_labels_and_predictions_of_different_sweeps_are_refused(scored: Any, console: Console) -> None:
    scored.put("label", lambda name: record(Label, frame_id=name, label=LABEL[:5]))
    with pytest.raises(StoreError, match=r"frame v0 has unequal numbers of points.*5.*8"):
        evaluate(scored.recipe(), console)


def test_labels_of_another_dictionary_are_refused(scored: Any, console: Console) -> None:
    scored.put("label", lambda name: replace(label_row(name), label=LABEL + np.uint8(9)))
    with pytest.raises(StoreError, match=r"frame v0: labels run from 9 to 12; expected 0..3; .*make pack label"):
        evaluate(scored.recipe(), console)


def test_scenes_that_were_not_predicted_are_not_passed_over(fleet: Any, console: Console) -> None:
    train(fleet.recipe(), "distill", console)
    predict(fleet.recipe(), console)
    with pytest.raises(StoreError, match=r"`predict` .* does not hold the 3 frames of shard scene-0061.*make predict"):
        evaluate(fleet.recipe("evaluate.split=all"), console)


def test_predictions_that_are_missing_or_out_of_date_are_refused(fleet: Any, console: Console) -> None:
    with pytest.raises(StoreError, match=r"no predictions yet; run: make predict RECIPE=\S*street"):
        evaluate(fleet.recipe(), console)
    recipe = fleet.recipe("distill.keep_every=1")
    train(recipe, "distill", console)
    first = fleet.folder / "runs/street/distill/epoch-0001.safetensors"
    predict(fleet.recipe(f"predict.checkpoint={first}"), console)
    with pytest.raises(StoreError, match=r"are of .*epoch-0001.*; .*epoch-0002.* holds others by now"):
        evaluate(recipe, console)
    evaluate(fleet.recipe(f"predict.checkpoint={first}"), console)

    def moved(name: str) -> Points:
        points: Points = fleet.points_row(name)
        return replace(points, intensity=points.intensity + 1)

    predict(recipe, console)
    points = fleet.ref().tables["points"]
    other_keys = tuple(
        replace(shard, key="00ff", name=shard.name.replace(shard.key, "00ff")) for shard in points.shards
    )
    fleet.set_table(replace(points, shards=other_keys))
    with pytest.raises(StoreError, match="were made anew since the predictions of recipe street were made"):
        evaluate(recipe, console)
    fleet.put("points", moved)
    with pytest.raises(StoreError, match="were made anew since the predictions of recipe street were made"):
        evaluate(recipe, console)


def test_predictions_of_other_settings_or_another_class_dictionary_are_refused(fleet: Any, console: Console) -> None:
    """The weights are the same, and so is their digest; but class 1 would be counted as another."""
    train(fleet.recipe(), "distill", console)
    predict(fleet.recipe(), console)
    with pytest.raises(StoreError, match=r"of other settings \(voxels.size_m: 0.4 -> 0.5\); run: make predict"):
        evaluate(fleet.recipe("voxels.size_m=0.5"), console)
    with pytest.raises(TrainerError, match=r"(?s)is of another recipe than the one at hand.*distill.seed: .* -> 7"):
        evaluate(fleet.recipe("distill.seed=7"), console)
    assert not (fleet.folder / "runs/street/evaluate.json").exists(), "a student of another seed has no score here"
    dictionary = fleet.folder / "street_classes.toml"
    names = {"car": "road", "road": "car"}
    text = re.sub(r'(?<=name = ")(car|road)(?=", colour)', lambda found: names[found[0]], dictionary.read_text())
    dictionary.write_text(text)
    assert fleet.recipe().ontology.class_names == ("ignore", "road", "car", "wall")
    with pytest.raises(StoreError, match="no labels to evaluate against"):
        evaluate(fleet.recipe(), console)
    with pytest.raises(StoreError, match="of other classes than dictionary street has now; run: make distill predict"):
        evaluate(fleet.packed(), console)


def test_labels_of_another_class_dictionary_are_refused(scored: Any, console: Console) -> None:
    """Classes are numbers in the tables: with two of them swapped every score would be of something else."""
    recipe = scored.recipe("evaluate.split=all")
    table = scored.ref().tables["label"]
    content = recipe.ontology.raw_content()
    for ontology, refused in ((content, False), ({**content, "of": "another"}, True)):
        made_of = identity("label", {"ontology": ontology})
        scored.store.write_manifest(Manifest("label", table.fingerprint, made_of, table.shards))
        if refused:
            with pytest.raises(StoreError, match="made with another class dictionary"):
                evaluate(recipe, console)
        else:
            evaluate(recipe, console)


def test_scores_of_other_weights_stay_beside_and_each_names_its_own(fleet: Any, console: Console) -> None:
    last = train(fleet.recipe("distill.keep_every=1"), "distill", console)
    found = {}
    for path in (checkpoint.epoch_path(last.parent, 1), last):
        recipe = fleet.recipe(f"predict.checkpoint={path}")
        predict(recipe, console)
        evaluate(recipe, console)
        found[path] = read_sealed(recipe.folder() / "evaluate.json")
    kept = fleet.folder / "runs/street/evaluations"
    for path, scored in found.items():
        document = checkpoint.read_document(path)
        assert {name: scored[name] for name in ("weights", "epoch", "step", "checkpoint")} == {
            **{name: getattr(document, name) for name in ("weights", "epoch", "step")},
            "checkpoint": str(path),
        }
        assert scored["commit"] == git_commit() == scored["predicted_by_commit"]
        assert read_sealed(kept / document.weights / "evaluate.json") == scored
    assert found[last]["weights"] != found[checkpoint.epoch_path(last.parent, 1)]["weights"]
