"""One command from drives to label files, on real logs without labels; test_autolabel_city.py scores what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from afov import autolabel as module
from afov import watching
from afov.watching import clock, remaining
from manifests import rates
from manifests.config import ConfigError
from manifests.rates import Amount
from manifests.recipe import Recipe, load_recipe
from manifests.sections.data import DataConfig
from pipeline.__main__ import app as pipeline
from pipeline.datasets.folder import FolderDataset
from tests.pipeline.autolabelling import autolabel, command, label_files
from tests.pipeline.mcap_logs import write_log
from tests.pipeline.scenes import clip_over

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, from which the programs are found."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def write_recipe(path: Path, root: Path) -> None:
    """Write a recipe for logs without labels: a network with random weights names pixels, and nothing is trained."""
    path.write_text(
        clip_over(root)
        + """
        [refine]
        of = "pseudo"
        [labels]
        formats = ["npy", "kitti", "parquet"]
        [run]
        device = "cpu"
        """
    )


# -- from drives to label files


def test_logs_without_labels_are_labelled_without_any_training(
    shared: Path, here: Path, folder_layout: Callable[[Path, str], Path]
) -> None:
    root = folder_layout(shared / "data" / "tri-dgp-nuscenes", "v1.0-trainval")
    assert not any((scene / "labels").exists() and any((scene / "labels").iterdir()) for scene in root.iterdir())
    write_recipe(here / "mine.toml", root)
    done = autolabel("mine.toml")
    assert done.returncode == 0, done.stderr
    assert "autolabel: pack, refine, labels, report; " in done.stdout
    labels = label_files(here / "labels" / "mine")
    # the cameras see less than half of the points, and what no evidence reaches has no label
    assert len(labels) == 3 and all((label > 0).mean() > 0.35 for label in labels.values())
    for said in (
        "coverage: ",
        "agreement: ",
        "look first at the frames",
        f"report: {here / 'reports/mine/index.html'}",
    ):
        assert said in done.stdout
    assert (here / "reports/mine/index.html").is_file()
    again = autolabel("mine.toml")
    assert "pack was there, refine was there, labels was there, report" in again.stdout, again.stdout


def test_an_mcap_log_goes_through_import_doctor_and_autolabel_with_the_geometry_of_the_drive(
    shared: Path, here: Path, folder_layout: Callable[[Path, str], Path]
) -> None:
    pytest.importorskip("mcap_ros2", reason="the extra `import` is not installed: MCAP cannot be written here")
    root = folder_layout(shared / "data" / "tri-dgp-nuscenes", "v1.0-trainval")
    scene = min(one for one in root.iterdir())
    (here / "topics.toml").write_text(write_log(scene, here / "drive.mcap", ticks_per_us=10))
    told = command(pipeline, "import", "mcap", "drive.mcap", "logs", "--mapping", "topics.toml").output
    assert "drive" in told
    before, after = (
        [frame for frame in FolderDataset(DataConfig(dataset="folder", root=str(one))).frames() if frame.scene in names]
        for one, names in ((root, (scene.name,)), (here / "logs", ("drive",)))
    )
    assert len(before) == len(after) > 0
    for one, other in zip(before, after, strict=True):
        assert [camera.name for camera in one.cameras] == [camera.name for camera in other.cameras]
        for left, right in zip(one.cameras, other.cameras, strict=True):
            # the drive has a pose for each camera at one and the same time, up to 1 cm apart; odometry has one
            np.testing.assert_allclose(left.cam_from_lidar, right.cam_from_lidar, rtol=0, atol=0.015)
            assert (root / left.image_path).read_bytes() == (here / "logs" / right.image_path).read_bytes()
    write_recipe(here / "bag.toml", here / "logs")
    doctor = CliRunner().invoke(pipeline, ["doctor", "bag.toml"])
    assert doctor.exit_code == 0, doctor.output
    done = autolabel("bag.toml")
    assert done.returncode == 0, done.stderr
    labels = label_files(here / "labels" / "bag")
    assert len(labels) == len(after) and all((label > 0).mean() > 0.35 for label in labels.values())


# -- steps


def recipe_of(folder: Path, *overrides: str) -> Recipe:
    path = folder / "mine.toml"
    path.write_text(f'[data]\ndataset = "folder"\nroot = "{folder}/log"\n[run]\nstore = "{folder}/store"\n')
    return load_recipe(path, overrides)


@pytest.mark.parametrize(
    ("overrides", "trained", "tables"),
    [
        ((), ["pretrain", "distill"], ("points", "pairs", "target")),
        (("distill.init=",), ["distill"], ("points", "pairs", "target")),
        (("predict.checkpoint=x.pt",), [], ("points", "pairs", "target")),
        (("labels.of=correct",), None, ("points", "pairs", "target", "group", "correct")),
        (("labels.of=correct", "target.labels=vote+correct"), None, ("points", "pairs", "target", "vote", "correct")),
        (("refine.of=pseudo",), None, ("points", "pairs", "target")),
        (("refine.of=pseudo", "vote.follow=true"), None, ("points", "pairs", "target", "motion")),
        (("refine.of=pseudo", "refine.by=afi", "vote.follow=true"), None, ("points", "pairs", "target")),
    ],
)
def test_a_recipe_has_the_steps_that_it_needs(
    tmp_path: Path, overrides: tuple[str, ...], trained: list[str] | None, tables: tuple[str, ...]
) -> None:
    recipe = recipe_of(tmp_path, *overrides)
    assert module.trains(recipe) == (trained is not None)
    assert trained is None or module.students(recipe) == trained
    assert module.tables_for(recipe) == tables


def test_confidences_are_calibrated_before_labels_are_written_where_that_is_asked_for(tmp_path: Path) -> None:
    by_truth = recipe_of(tmp_path, "refine.of=pseudo", "calibrate.by=truth", "calibrate.split=all")
    assert "label" in module.tables_for(by_truth) and "label" not in module.tables_for(recipe_of(tmp_path))
    alone = recipe_of(tmp_path, "refine.of=pseudo", "calibrate.by=agreement")
    assert "label" not in module.tables_for(alone)
    few, many = (rates.calibrating_seconds(alone, n) for n in (10, 100))
    assert rates.calibrating_seconds(by_truth, 100) < few < many == rates.calibrating_seconds(alone, 100)
    assert rates.calibrating_seconds(alone, 10_000) == rates.calibrating_seconds(alone, alone.calibrate.frames)


def test_a_student_of_true_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"predict.of is .supervised., a student of true labels"):
        module.students(recipe_of(tmp_path, "predict.of=supervised"))


def test_a_mistyped_split_is_told_before_the_first_step(tmp_path: Path) -> None:
    right = ["pretrain.split=all", "distill.split=all", "predict.split=all"]
    module.check_splits(recipe_of(tmp_path, *right))
    for wrong in ("pretrain.split", "distill.split", "predict.split"):
        with pytest.raises(ConfigError, match=rf"{wrong}: unknown split 'al' of folder; expected one of all"):
            module.check_splits(recipe_of(tmp_path, *right, f"{wrong}=al"))


def test_a_step_that_fails_ends_the_job_with_its_own_sentence_and_code(here: Path) -> None:
    (here / "mine.toml").write_text('[data]\ndataset = "folder"\nroot = "nowhere"\n')
    done = autolabel(
        "mine.toml", *(word for task in ("pretrain", "distill", "predict") for word in ("--set", f"{task}.split=all"))
    )
    assert done.returncode == 2 and "data.root nowhere holds no scene" in done.stderr


def step(name: str, program: str, seconds: float | None = None) -> module.Step:
    return module.Step(name, (sys.executable, "-c", program), "nothing to do", seconds, lambda: 0.25)


def run_steps(*steps: module.Step) -> list[module.Ended]:
    console = Console(width=200)
    with module.shown(console) as progress:
        return [module.run_step(one, n, steps, progress, time.monotonic()) for n, one in enumerate(steps)]


def test_where_nobody_watches_a_line_tells_how_far_it_is(capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINE_S", 0.3)
    slow = "import sys, time; print('at work'); print('a note', file=sys.stderr); time.sleep(1.0)"
    done = run_steps(step("first", slow), step("second", "print('nothing to do here')", 600.0))
    out, err = capfd.readouterr()
    assert "autolabel: step 1 of 2, first 25 %, 0 s so far, about 10 min left of all" in out and "at work" in out
    assert "a note" in err and "a note" not in out
    assert [(one.name, one.code, one.skipped) for one in done] == [("first", 0, False), ("second", 0, True)]


def test_the_exit_code_of_a_step_is_kept() -> None:
    [ended] = run_steps(step("only", "import sys; print('nothing to do'); sys.exit(3)"))
    assert (ended.code, ended.skipped) == (3, False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_the_step_first_which_saves_what_it_has(here: Path, number: signal.Signals) -> None:
    saving = (
        "import pathlib, signal, sys, time\n"
        "def save(*_):\n    time.sleep(0.3); pathlib.Path('saved').touch(); sys.exit(130)\n"
        "signal.signal(signal.SIGTERM, save)\npathlib.Path('begun').touch()\ntime.sleep(60)\n"
    )
    program = (
        "import sys, time, typer\nfrom rich.console import Console\nfrom afov import autolabel\n"
        "from manifests.console import sentences\n"
        f"step = autolabel.Step('only', (sys.executable, '-c', {saving!r}), 'nothing', None)\n"
        "app = typer.Typer()\n@app.command()\ndef run():\n"
        "    with sentences('autolabel', 'what is finished is kept'), autolabel.shown(Console()) as progress:\n"
        "        autolabel.run_step(step, 0, [step], progress, time.monotonic())\n"
        "app()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    while not (here / "begun").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (here / "saved").exists() and process.returncode == 130
    assert "autolabel: interrupted; what is finished is kept" in errors


# -- estimates


def test_the_rest_of_a_job_is_what_steps_are_expected_to_take_until_the_pace_of_one_is_known() -> None:
    assert remaining((10.0, None, 60.0), [100.0]) == 150.0
    assert remaining((10.0, 0.5, 60.0), [100.0]) == 110.0
    assert remaining((90.0, 0.01, 60.0), [100.0]) == 100.0
    assert remaining((10.0, None, 60.0), [None]) is None and remaining((10.0, None, None), []) is None
    assert [clock(one) for one in (40, 720, 12000)] == ["40 s", "12 min", "3 h 20 min"]


def test_the_progress_of_a_training_is_told_from_its_log(tmp_path: Path) -> None:
    recipe = recipe_of(
        tmp_path, f"run.runs={tmp_path}", "distill.epochs=4", "distill.batch_size=3", "distill.split=all"
    )
    fraction = watching.training_fraction(recipe, "distill", Amount(10, {"all": 10}))
    assert fraction() is None
    (recipe.folder() / "distill").mkdir(parents=True)
    line = {"event": "step", "time": "2026-11-30T10:00:00+00:00", "epoch": 1, "step": 8, "total": 1.0}
    (recipe.folder() / "distill/log.jsonl").write_text(json.dumps(line) + "\n")
    assert fraction() == 0.5, "8 of 4 epochs of 4 steps"


def test_expected_times_grow_with_frames_epochs_and_steps(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, "run.device=cpu", "distill.epochs=2", "distill.split=all", "predict.split=all")
    few, many = (Amount(n, {"all": n}) for n in (100, 200))
    assert rates.training_seconds(recipe, "distill", many) > 1.9 * rates.training_seconds(recipe, "distill", few)
    assert rates.predicting_seconds(recipe, few) < rates.training_seconds(recipe, "distill", few) / 2
    vote = recipe_of(tmp_path, "refine.by=vote")
    assert rates.refining_seconds(vote, 1000) < rates.refining_seconds(recipe, 1000)


def test_the_verb_explains_itself() -> None:
    done = subprocess.run([sys.executable, "-m", "afov", "autolabel", "--help"], capture_output=True, text=True)
    assert "From drives to label files in one command" in done.stdout
