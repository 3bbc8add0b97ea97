"""The ladder on real frames: what it counts of labels, how that is told, and two frames from image to page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from bench.ladder import Ladder
from bench.ladder_plan import BEDS, Plan, read_rungs
from bench.real_errors import Named, lasting
from bench.real_labels import Tally, measured, nearest_label, surest
from bench.real_maps import CLASSES, deeplab, write_all
from bench.real_results import BEGIN, END, write_real_documents
from manifests.config import ConfigError
from manifests.recipe import load_recipe
from manifests.sections.teachers.ensemble import EnsembleConfig
from pipeline.__main__ import app
from pipeline.datasets.registry import open_dataset
from pipeline.teachers.artifacts import check_folder
from trainer.__main__ import app as trainer

NAMES = ("ignore", "road", "car", "tram")


def test_labels_are_counted_by_part_and_what_a_step_mends_and_spoils() -> None:
    tally = Tally(3)
    truth = np.array([1, 1, 1, 2, 2, 0, 1], np.uint8)
    before = np.array([1, 2, 1, 0, 2, 1, 0], np.uint8)
    label = np.array([1, 1, 2, 2, 2, 2, 0], np.uint8)
    seen = np.array([True, True, True, True, False, True, False])
    tally.add(truth, label, np.array([255, 100, 200, 0, 9, 255, 0], np.uint8), seen, before)
    told = tally.told(NAMES, np.array([False, True, False, False]))
    assert (told["mended"], told["spoilt"]) == (1, 1)
    sight = told["parts"]["seen"]
    assert sight["points"] == 4 and sight["named"] == 1.0 and sight["right"] == 0.75 and sight["classes"] == 2
    assert sight["iou"] == {"road": pytest.approx(2 / 3), "car": 0.5}, "of a class that does not occur nothing is told"
    assert sight["mean_iou"] == pytest.approx((2 / 3 + 0.5) / 2) and sight["mean_iou_nameable"] == pytest.approx(2 / 3)
    assert told["parts"]["unseen"]["named"] == 0.5 and told["parts"]["unseen"]["right_of_named"] == 1.0
    assert told["right_among_surest"] == {"25": 1.0, "50": 0.5, "75": pytest.approx(2 / 3)}


def test_of_a_level_that_fills_a_share_up_its_part_counts() -> None:
    level = np.zeros((256, 2), np.int64)
    assert surest(level, 0.5) is None
    level[255], level[10] = (0, 1), (2, 1)  # one right for sure, three unsure of which one is right
    assert surest(level, 0.5) == pytest.approx((1 + 1 / 3) / 2) and surest(level, 1.0) == 0.5


def test_the_control_fills_gaps_with_the_nearest_label_and_leaves_lost_pulses() -> None:
    xyz_m = np.array([[1, 0, 0], [2, 0, 0], [9, 0, 0], [10, 0, 0], [0, 0, 0]], np.float32)
    assert nearest_label(xyz_m, np.array([1, 0, 0, 2, 0], np.uint8)).tolist() == [1, 1, 2, 2, 0]
    assert not nearest_label(xyz_m, np.zeros(5, np.uint8)).any()


def test_the_rungs_on_real_frames_are_whole_and_labels_are_judged_table_by_table(tmp_path: Path) -> None:
    path, preset = BEDS["kitti-real"]
    rungs = read_rungs(path)
    plan = Plan(preset, tmp_path, rungs, bed="kitti-real")
    ladder = Ladder.prepare(plan, [0], Console(quiet=True))
    for step in ladder.steps.values():
        plan.sections(step)
        judged = [command for command in plan.commands(step, False) if command[0] == "bench.real_labels"]
        assert bool(judged) == (step.rung.task == "labels")
    with pytest.raises(ConfigError, match="has no `titel`"):
        (tmp_path / "odd.toml").write_text('[rung.a]\ntitel = "x"\ntask = "labels"\n')
        read_rungs(tmp_path / "odd.toml")


def record(**more: Any) -> dict[str, Any]:
    facts = {"commit": "c0ffee", "date": "2026-11-30T00:00:00", "cpu_s": 1.0, "training": None, "scores": {}}
    return {**facts, "seed": None, **more}


def test_two_real_frames_go_from_image_to_page(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "semantickitti-real"
    if not root.is_dir() or not (shared / "data" / "teachers-real").is_dir():
        pytest.skip("the shared frames and networks are not here")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    (tmp_path / "one.txt").write_text("08\n")
    weights = shared / "data" / "teachers-real" / "models" / "espnetv2_s2.0_cityscapes_1248x384.onnx"
    words = {
        "data.root": root,
        "data.split": tmp_path / "one.txt",
        "teacher.weights": weights,
        "run.store": tmp_path / "store",
    }
    changes = [*(f"{key}={value}" for key, value in words.items()), "run.pool=inline", "target.labels=group"]
    told = [word for change in changes for word in ("--set", change)]
    done = CliRunner().invoke(app, ["run", "pack", "kitti_real", *told])
    assert done.exit_code == 0, done.output  # `label` too, which the recipe's `pack` has for evaluate
    found = measured(load_recipe("kitti_real", changes))
    assert found["frames"] == 2 and found["scenes"] == ["08"] and set(found["lines"]) == {"group", "nearest"}
    group, nearest = (found["lines"][name]["parts"]["seen"] for name in ("group", "nearest"))
    assert 0.5 < group["right_of_named"] < 0.95 and group["named"] < 1 == nearest["named"]
    assert found["lines"]["group"]["parts"]["unseen"]["named"] == 0
    surest_first = list(found["lines"]["group"]["right_among_surest"].values())
    assert surest_first == sorted(surest_first, reverse=True) and surest_first[0] > group["right_of_named"]

    (tmp_path / "results.md").write_text(f"# Results\n\n{BEGIN}\n{END}\n\nAfter.\n")
    records = {"group": record(rung="group", labels=found)}
    rungs = read_rungs(BEDS["kitti-real"][0])
    numbers, page = write_real_documents(tmp_path, "kitti_real", [], rungs, records)
    text = page.read_text()
    assert "2 frames of 1 sequences" in text and "the nearest label (control)" in text and text.endswith("After.\n")
    assert f"| {100 * group['mean_iou']:.2f} |" in text
    assert json.loads(numbers.read_text())["presets"]["kitti_real"]["steps"]["group"]["labels"] == found


def test_the_line_that_the_recipe_names_runs_on_two_real_frames(shared: Path, tmp_path: Path) -> None:
    """Pack, distill, predict, evaluate, one after the other, as a fresh checkout would: nothing is missing."""
    root, networks = shared / "data" / "semantickitti-real", shared / "data" / "teachers-real"
    if not root.is_dir() or not networks.is_dir():
        pytest.skip("the shared frames and networks are not here")
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    (tmp_path / "one.txt").write_text("08\n")
    words = {
        "data.root": root,
        "teacher.weights": networks / "models" / "espnetv2_s2.0_cityscapes_1248x384.onnx",
        "voxels.size_m": 0.5,
        "distill.epochs": 1,
        "run.store": tmp_path / "store",
        "run.runs": tmp_path / "runs",
        "run.pool": "inline",
        "run.loader_workers": 0,
        **{f"{section}.split": tmp_path / "one.txt" for section in ("data", "distill", "predict", "evaluate")},
    }
    told = [word for key, value in words.items() for word in ("--set", f"{key}={value}")]
    for program, verb in (
        (app, ["run", "pack"]),
        (trainer, ["distill"]),
        (trainer, ["predict"]),
        (trainer, ["evaluate"]),
    ):
        done = CliRunner().invoke(program, [*verb, "kitti_real", *told])
        assert done.exit_code == 0, done.output
    scores = json.loads((tmp_path / "runs" / "kitti_real" / "evaluate.json").read_text())["scores"]
    assert scores["all"]["points"] > 100_000 and scores["seen"]["mean_iou"] > 0


class Network:
    """In place of DeepLab: the upper half is road, the lower a car, less surely so."""

    def probabilities(self, image: Any, size: tuple[int, int]) -> Any:
        found = np.zeros((CLASSES, 4, 6), np.float32)
        found[0, :2], found[13, 2:] = 0.9, 0.6
        return found


def test_maps_of_another_network_are_a_member_s_files(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "semantickitti-real"
    if not root.is_dir():
        pytest.skip("the shared frames are not here")
    shutil.copytree(root / "sequences" / "08", tmp_path / "sequences" / "08")
    recipe, networks = (load_recipe(name, [f"data.root={tmp_path}"]) for name in ("kitti_real_ensemble", "kitti_real"))
    folder = tmp_path / "maps"
    assert write_all(networks, folder, Network()) == 2 and write_all(networks, folder, Network()) == 0
    assert isinstance(recipe.teacher, EnsembleConfig)
    maps = recipe.teacher.members[1].artifacts
    assert maps is not None
    tokens = [camera.token for frame in open_dataset(recipe.data).frames() for camera in frame.cameras]
    assert check_folder(replace(maps, folder=str(folder)), tokens, recipe.ontology) == []
    with pytest.raises(ConfigError, match="is not there; the networks lie in the shared folder"):
        deeplab(tmp_path)


def sweep(time_s: float, label: list[int], truth: list[int], moved_m: float = 0.0, scene: str = "a") -> Named:
    xyz_m = np.zeros((len(label), 3))
    xyz_m[:, 0] = np.arange(len(label)) * 5.0 + moved_m
    return Named(scene, time_s, xyz_m, np.array(label, np.uint8), np.array(truth, np.uint8))


def test_a_mistake_lasts_where_the_same_place_is_wrong_again() -> None:
    truth = [1, 1, 1, 2]
    first = sweep(0.0, [2, 2, 1, 1], truth)  # three mistakes
    second = sweep(0.1, [2, 1, 2, 3], [1, 1, 1, 2], 0.05)  # one again and alike, one gone, a new one, one otherwise
    third = sweep(0.2, [2, 2, 2, 2], [1, 1, 1, 1], 7.0)  # of other places
    other = sweep(0.0, [2, 2, 2, 2], truth, scene="b")
    found = lasting([first, second, third, other], [1, 2])
    assert [(one.met, one.wrong, one.alike) for one in found] == [(3, 2, 1)] and found[0].gap_s == pytest.approx(0.1)
    assert lasting([other], [1]) == []
    changed = replace(second, truth=np.array([3, 1, 1, 2], np.uint8))
    assert lasting([first, changed], [1])[0].met == 2, "what stands there now is another thing"
