"""The command line: exit statuses and sentences."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from trainer.__main__ import app
from trainer.checkpoints import checkpoint


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """The program takes SIGTERM over."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_every_command_explains_itself() -> None:
    assert run("--help").exit_code == 0
    for command in ("pretrain", "distill", "probe", "finetune", "supervised", "predict", "evaluate"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert "--set" in result.output


def test_the_whole_chain_runs(fleet: Any) -> None:
    for command in ("pretrain", "distill", "predict", "evaluate"):
        result = run(command, fleet.recipe_path, "--set", "distill.init=pretrain")
        assert result.exit_code == 0, result.output
    assert "mIoU" in result.output
    assert (fleet.folder / "runs/street/evaluate.json").is_file()
    assert run("evaluate", fleet.recipe_path, "--of", "pseudo").exit_code == 0
    result = run("evaluate", fleet.recipe_path, "--refine", "afi")
    assert result.exit_code == 3 and "make index RECIPE=/" in result.output, "which has the height of the sensor"


@pytest.mark.parametrize(
    ("words", "status", "sentence"),
    [
        (["distill", "--set", "distill.epoch=3"], 2, "did you mean `epochs`"),
        (["distill", "--set", "run.store=elsewhere"], 3, "make pack RECIPE=/"),
        (["distill", "--set", "distill.split=test"], 2, "split 'test' of nuscenes is empty here"),
        (["distill", "--set", "distill.init=pretrain"], 1, "make pretrain RECIPE=/"),
        (["predict"], 1, "make distill RECIPE=/"),
        (["evaluate"], 3, "make predict RECIPE=/"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], status: int, sentence: str
) -> None:
    monkeypatch.chdir(fleet.folder)
    result = run(words[0], fleet.recipe_path, *words[1:])
    assert result.exit_code == status, result.output
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_logs_without_labels_end_with_status_3(fleet: Any) -> None:
    fleet.drop_table("label")
    result = run("evaluate", fleet.recipe_path)
    assert result.exit_code == 3
    assert "has no labels to evaluate against; run: make label RECIPE=/" in result.output


def test_an_unknown_recipe_is_a_sentence() -> None:
    result = run("distill", "nowhere.toml")
    assert result.exit_code == 2
    assert "no recipe at nowhere.toml" in result.output


def test_fresh_and_resume_reach_the_run(fleet: Any) -> None:
    assert run("distill", fleet.recipe_path).exit_code == 0
    assert run("distill", fleet.recipe_path, "--resume", "never").exit_code == 1
    assert run("distill", fleet.recipe_path, "--fresh").exit_code == 0
    assert (fleet.folder / "runs/street/distill.old-1").is_dir()


def test_a_terminated_run_keeps_its_epochs_and_says_so(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prune = checkpoint.prune

    def terminate(folder: Path, keep_every: int) -> None:
        prune(folder, keep_every)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(checkpoint, "prune", terminate)
    result = run("distill", fleet.recipe_path)
    assert result.exit_code == 130
    assert "interrupted; 1 of 2 epochs are finished and kept" in result.output
    assert checkpoint.finished_epochs(fleet.folder / "runs/street/distill") == [1]


def test_determinism_is_set_up_before_torch_is_loaded(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.__main__ import load

    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    load(str(fleet.recipe_path), ["run.deterministic=false"])
    assert os.environ["OMP_NUM_THREADS"] == "3"
    load(str(fleet.recipe_path), ["network.engine=torch"])
    assert os.environ["OMP_NUM_THREADS"] == "3"
    load(str(fleet.recipe_path), None)
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_the_command_line_alone_loads_nothing_heavy() -> None:
    import subprocess

    code = "import sys, trainer.__main__; print([m for m in ('torch', 'MinkowskiEngine') if m in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    answer = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"
