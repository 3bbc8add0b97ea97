"""The report of a run: complete, label-free where the run was, and comparable."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from manifests.fingerprint import Json, sha256_file
from manifests.records.codec import as_document, as_record
from manifests.records.evaluation import JudgedEvaluation
from manifests.records.run import RunRecord
from manifests.storage.manifest import Manifest
from tests.records import evaluation, part
from tests.refs import identity
from trainer.__main__ import app
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.loop.train import train
from trainer.records.compare import compare, result_differences
from trainer.records.record import read_record
from trainer.scoring.evaluate import evaluate


def report(fleet: Any, task: str, runs: str = "runs") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((fleet.folder / runs / "street" / task / "run.json").read_text())
    return document


def record_in(fleet: Any, task: str, runs: str = "runs") -> RunRecord:
    return read_record(fleet.folder / runs / "street" / task)


def made_from(fleet: Any, stage: str, settings: dict[str, Any], **needs: str) -> str:
    """Give a table of the recipe a manifest and return its fingerprint."""
    table = fleet.ref().tables[stage]
    made_of = identity(stage, settings, 2, **needs)
    made: dict[str, Json] = {"git_commit": "abc", "packages": {"numpy": "1"}}
    fleet.store.write_manifest(Manifest(stage, table.fingerprint, made_of, table.shards, made))
    return str(table.fingerprint)


def test_a_report_holds_all_it_takes_to_repeat_the_run(fleet: Any, console: Console, capsys: Any) -> None:
    fleet.set_table(type(fleet.ref().tables["target"])("segment", "5e9", ()))
    segment = made_from(fleet, "segment", {"teacher": {"name": "artifacts", "layout": "san"}})
    made_from(fleet, "target", {"min_confidence": 3}, segment=segment)
    path = train(fleet.recipe("distill.seed=3"), "distill", console)
    found = report(fleet, "distill")
    assert (found["task"], found["state"], found["seed"], found["epochs"]) == ("distill", "finished", 3, 2)
    assert found["result"] == {
        "file": "epoch-0002.safetensors",
        "sha256": sha256_file(path),
        "weights": checkpoint.read_document(path).weights,
        "epoch": 2,
        "step": 4,
        "chosen": "the last epoch; no label chose it",
    }
    assert found["tables"].keys() == {"points", "target", "segment"}, "and what the tables were made from"
    assert found["tables"]["target"]["settings"] == {"min_confidence": 3}
    assert found["tables"]["points"]["shards"]["number"] == 2
    assert found["teacher"] == {"name": "artifacts", "layout": "san"}
    assert found["config"]["distill"]["lr_head"] == 0.2 and found["written"]["distill"]["seed"] == 3
    assert found["versions"]["torch"] == torch.__version__
    assert found["hardware"]["threads"] == torch.get_num_threads() and found["hardware"]["memory_bytes"] > 2**28
    assert [epoch["epoch"] for epoch in found["curves"]] == [1, 2] and found["curves"][1]["total"] > 0
    assert found["reads_labels"] is False
    assert "distill.epochs: 5 -> 2" in found["departures"] and "frames: 28130 -> 5" in found["departures"]
    assert "not as in the paper: " in capsys.readouterr().out


def test_scores_come_in_with_what_the_paper_got(fleet: Any, console: Console) -> None:
    made_from(fleet, "target", {}, segment="5e9")
    fleet.set_table(type(fleet.ref().tables["target"])("segment", "5e9", ()))
    made_from(fleet, "segment", {"teacher": {"name": "artifacts", "layout": "san"}})
    train(fleet.recipe(), "pretrain", console)
    recipe = fleet.recipe("distill.init=pretrain")
    train(recipe, "distill", console)
    predict(recipe, console)
    result = evaluate(recipe, console)
    evaluate(recipe, console, "pseudo")
    found = report(fleet, "distill")
    assert found["evaluations"].keys() == {"evaluate", "evaluate-pseudo"}
    assert found["tables"].keys() >= {"points", "target", "segment", "label"}
    scored = found["evaluations"]["evaluate"]
    obtained = 100 * result.scores["all"].mean_iou
    assert scored["expected"]["mean_iou_percent"] == 47.42
    assert scored["expected"]["row"] == "SAN, annotation-free, from AFOV-TMP"
    assert scored["expected"]["obtained_percent"] == pytest.approx(obtained, abs=0.01)
    assert scored["departures"] == ["evaluate.frames: 6019 -> 2"]
    assert scored["confusion"] == as_document(result.document.confusion)
    assert scored["test_time"]["refine"] == "none" and scored["labels"] == "read to score split val; they chose nothing"
    assert found["initial"]["task"] == "pretrain" and found["initial"]["reads_labels"] is False


def test_an_epoch_that_is_not_the_last_is_marked(fleet: Any, console: Console, capsys: Any) -> None:
    train(fleet.recipe("distill.keep_every=1"), "distill", console)
    first = fleet.recipe(f"predict.checkpoint={fleet.folder}/runs/street/distill/epoch-0001.safetensors")
    predict(first, console)
    evaluate(first, console)
    scored = report(fleet, "distill")["evaluations"]["evaluate"]
    assert "epoch 1 of 2, which is not the result" in scored["labels"] and "use of labels" in scored["labels"]
    assert "true labels were read to score epoch 1 of 2, which is not the result" in capsys.readouterr().out


def test_labels_are_never_forgotten(fleet: Any, console: Console) -> None:
    train(fleet.recipe("supervised.epochs=1"), "supervised", console)
    assert report(fleet, "supervised")["reads_labels"] is True
    assert report(fleet, "supervised")["departures"] is None, "the paper has no such run"
    train(fleet.recipe(f"distill.init={fleet.folder}/runs/street/supervised"), "distill", console)
    assert report(fleet, "distill")["reads_labels"] is True, "its weights come from labels"


def test_scores_of_every_student_have_a_place_of_their_own(fleet: Any, console: Console) -> None:
    train(fleet.recipe(), "distill", console)
    train(fleet.recipe("probe.epochs=1"), "probe", console)
    for words in ((), ("predict.of=probe", "probe.epochs=1")):
        predict(fleet.recipe(*words), console)
        evaluate(fleet.recipe(*words), console)
    assert list(report(fleet, "distill")["evaluations"]) == ["evaluate"]
    assert list(report(fleet, "probe")["evaluations"]) == ["evaluate-probe"]
    shown = CliRunner().invoke(app, ["scores", str(fleet.recipe_path)])
    assert shown.exit_code == 0 and "student, probe" in shown.output


def test_scenes_that_were_trained_on_are_marked(fleet: Any, console: Console) -> None:
    train(fleet.recipe("distill.epochs=1"), "distill", console)
    recipe = fleet.recipe("distill.epochs=1", "predict.split=all", "evaluate.split=all")
    predict(recipe, console)
    evaluate(recipe, console)
    scored = report(fleet, "distill")["evaluations"]["evaluate"]
    assert scored["shards"] == ["scene-0061", "scene-0655", "scene-0103"]
    assert scored["also_trained_on"] == ["scene-0061", "scene-0655"]


def test_an_interrupted_run_has_a_report_too(fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = checkpoint.prune

    def press(folder: Path, keep_every: int) -> None:
        prune(folder, keep_every)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "prune", press)
        train(fleet.recipe(), "distill", console)
    found = report(fleet, "distill")
    assert found["state"] == "1 of 2 epochs" and found["result"]["chosen"] == "the newest epoch; the run has not ended"
    train(fleet.recipe(), "distill", console)
    found = report(fleet, "distill")
    assert found["state"] == "finished" and found["result"]["chosen"] == "the last epoch; no label chose it"
    (earlier,) = found["earlier_starts"]
    assert earlier["epoch"] == 0 and earlier["hardware"] == found["hardware"]


# -- two runs ----------------------------------------------------------------------------------------------------------


def test_two_runs_of_the_same_do_not_differ(fleet: Any, console: Console) -> None:
    for runs in ("one", "two"):
        train(fleet.recipe(f"run.runs={fleet.folder}/{runs}", "distill.epochs=1"), "distill", console)
    found = compare(record_in(fleet, "distill", "one"), record_in(fleet, "distill", "two"))
    assert found.keys() == {"settings"}
    (line,) = found["settings"]
    assert line.startswith("run.runs: ")


def test_diff_says_what_was_set_otherwise_and_what_it_came_to(fleet: Any, console: Console) -> None:
    for runs, rate in (("one", 0.2), ("two", 0.3)):
        recipe = fleet.recipe(f"run.runs={fleet.folder}/{runs}", "distill.epochs=1", f"distill.lr_head={rate}")
        train(recipe, "distill", console)
        predict(recipe, console)
        evaluate(recipe, console)
    folders = [str(fleet.folder / runs / "street/distill") for runs in ("one", "two")]
    shown = CliRunner().invoke(app, ["diff", *folders])
    assert shown.exit_code == 0, shown.output
    assert "  distill.lr_head: 0.2 -> 0.3" in shown.output
    assert "first apart in epoch 1: lr_head: 0.2 -> 0.3" in shown.output
    assert "prediction, mIoU of all points: " in shown.output and "prediction, car of unseen points: " in shown.output
    assert "weights:" in shown.output and "data:" not in shown.output
    assert CliRunner().invoke(app, ["diff", folders[0], folders[0]]).output == "the runs do not differ\n"


def test_named_runs_of_a_recipe_stand_side_by_side_in_a_list(fleet: Any, console: Console) -> None:
    recipe = str(fleet.recipe_path)
    for name, more in (("slow", "distill.lr_head=0.1"), ("fast", "distill.lr_head=0.4")):
        words = ["distill", recipe, "--set", "distill.epochs=1", "--set", more, "--name", name]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, done.output
    runs = str(fleet.folder / "runs")
    listed = CliRunner().invoke(app, ["runs", "--runs", runs], env={"COLUMNS": "200"})
    rows = [line.split() for line in listed.output.splitlines()]
    assert [row[0] for row in rows[1:3]] == ["fast/distill", "slow/distill"]
    assert all(row[1:6] == ["street", "finished", "1", "of", "1"] for row in rows[1:3])
    shown = CliRunner().invoke(app, ["diff", "fast/distill", "slow/distill", "--runs", runs])
    assert "  distill.lr_head: 0.4 -> 0.1" in shown.output and "run.name: " in shown.output
    assert CliRunner().invoke(app, ["diff", "fast", "slow", "--runs", runs]).output == shown.output
    unknown = CliRunner().invoke(app, ["diff", "fasd/distill", "slow", "--runs", runs])
    assert unknown.exit_code == 1 and "there is no run fasd/distill (did you mean `fast/distill`?)" in unknown.output
    (fleet.folder / "runs/fast/probe").mkdir()
    (fleet.folder / "runs/fast/probe/log.jsonl").touch()
    several = CliRunner().invoke(app, ["diff", "fast", "slow", "--runs", runs])
    assert several.exit_code == 1 and "fast has 2 runs; name one of them: fast/distill, fast/probe" in several.output
    shutil.rmtree(fleet.folder / "runs/fast/probe")
    again = CliRunner().invoke(app, ["distill", recipe, "--set", "distill.lr_head=0.1", "--name", "../up"])
    assert again.exit_code == 2 and "letters, digits" in again.stderr
    narrow = CliRunner().invoke(app, ["runs", "--runs", runs], env={"COLUMNS": "40"}).output
    assert "fast/distill" in narrow and "slow/distill" in narrow, "names are for `diff`, and never cut off"
    (fleet.folder / "empty").mkdir()
    assert "no runs in" in CliRunner().invoke(app, ["runs", "--runs", str(fleet.folder / "empty")]).output
    assert CliRunner().invoke(app, ["runs", "--runs", str(fleet.folder / "none")]).exit_code == 1


def test_runs_of_two_tasks_are_compared_in_what_they_share(fleet: Any, console: Console) -> None:
    train(fleet.recipe("distill.epochs=1"), "distill", console)
    train(fleet.recipe("supervised.epochs=1", "supervised.batch_size=2"), "supervised", console)
    found = compare(record_in(fleet, "distill"), record_in(fleet, "supervised"))
    assert {"training.batch_size: 3 -> 2", "training.lr_head: 0.2 -> 2.0"} < set(found["settings"])
    assert not any(line.startswith(("distill.", "supervised.")) for line in found["settings"])
    assert "reads_labels: false -> true" in found["run"] and "results" not in found


def test_what_differs_in_scores_is_a_line_each() -> None:
    def scored(mean_iou: float | None) -> JudgedEvaluation:
        scores = {"all": part(mean_iou, iou=[0.5], points=7)}
        return as_record(JudgedEvaluation, evaluation(classes=["car"], scores=scores))

    assert result_differences({"evaluate": scored(0.25)}, {"evaluate-probe": scored(0.375)}) == [
        "prediction, mIoU of all points: 25.0 -> 37.5 (+12.50)"
    ]
    assert result_differences({"a": scored(None)}, {"a": scored(0.5)}) == [
        "prediction, mIoU of all points: None -> 50.0"
    ]
    assert result_differences({"a": scored(0.5)}, {}) == ["prediction: scored -> not scored"]


def test_a_table_that_one_run_did_not_read_is_none_and_no_default(fleet: Any, console: Console) -> None:
    train(fleet.recipe("distill.epochs=1"), "distill", console)
    record = record_in(fleet, "distill")
    fewer = replace(record, tables={name: one for name, one in record.tables.items() if name != "target"})
    lines = compare(record, fewer)["data"]
    assert lines and all(line.startswith("tables.target") and line.endswith(" -> (none)") for line in lines)


def test_what_is_no_report_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[]")
    shown = CliRunner().invoke(app, ["diff", str(tmp_path), str(tmp_path)])
    assert shown.exit_code == 1 and "is no report of a run" in shown.output
    with pytest.raises(TrainerError, match="name a run as `runs` lists it"):
        read_record(tmp_path / "nowhere")
