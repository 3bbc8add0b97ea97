"""The command `afov`: verbs of both programs under one name, the recipe first, nothing imported before it is needed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from afov import demo
from afov.__main__ import app, program_verbs
from afov.verbs import ELSEWHERE, JOBS, PROGRAMS, source
from manifests.advice import STYLE
from manifests.config import RECIPES
from manifests.endings import RunError
from manifests.recipe import load_recipe

ROOT = Path(__file__).resolve().parent.parent
VERBS = [verb for verbs in JOBS.values() for verb in verbs]


def told(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_every_verb_of_both_programs_has_a_job_and_a_word_of_help() -> None:
    for program, hidden in ELSEWHERE.items():
        unlisted = program_verbs(program).keys() - hidden - set(VERBS)
        assert not unlisted, f"{program} has verbs that no job in afov/verbs.py lists"
    help_text = told("--help")
    assert len(set(VERBS)) == len(VERBS)
    for verb in VERBS:
        assert f" {verb} " in help_text
    assert "More" not in help_text and all(job in help_text for job in JOBS)


def arguments(verb: str) -> list[str]:
    """Return the names of a verb's arguments in order."""
    found = source(verb)
    assert found
    program, words = found
    command: Any = typer.main.get_command(importlib.import_module(PROGRAMS[program]).app)
    for word in words:
        command = command.commands[word]
    return [one.name for one in command.params if one.param_type_name == "argument"]


NO_RECIPE = {"demo", "import", "recipes", "receive", "export-checkpoint", "runs", "diff", "city", "docs"}


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_followed_by_its_recipe(verb: str) -> None:
    names = arguments(verb)
    assert names[:1] in ([["recipe"], ["recipes"]] if verb not in NO_RECIPE else [names[:1]])
    assert verb not in NO_RECIPE or "recipe" not in names


def test_a_table_where_the_recipe_belongs_is_told() -> None:
    done = CliRunner().invoke(app, ["run", "pack", "city"])
    assert done.exit_code == 2 and "the recipe comes first: afov run RECIPE pack" in done.stderr


def test_the_built_in_recipes_are_listed_with_what_they_are_for() -> None:
    lines = told("recipes").splitlines()
    for path in RECIPES.glob("*.toml"):
        line = next(line for line in lines if line.split()[:1] == [path.stem])
        assert len(line.split()) > 5, "its purpose is the comment on top of the file"


def test_completion_names_verbs_and_recipes_and_loads_no_program() -> None:
    code = (
        "import sys, typer, afov.__main__; group = typer.main.get_command(afov.__main__.app)\n"
        "print(*(item.value for item in group.shell_complete(None, 'pre')))\n"
        "print(*{'pipeline', 'trainer'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pretrain", "predict"]
    words = {"_AFOV_COMPLETE": "complete_bash", "COMP_WORDS": "afov doctor kitti_c", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "afov"], cwd=ROOT, env={**os.environ, **words}, capture_output=True, text=True
    )
    assert done.stdout.split() == ["kitti_clip", "kitti_clip_test"]


def test_advice_is_a_command_of_whoever_called_with_the_recipe_as_typed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "my recipe.toml"
    path.write_text('base = "city"\n')
    recipe = load_recipe(str(path), ["group.min_points=5"])
    monkeypatch.setenv(STYLE, "make")
    assert recipe.make("pack", "distill") == f"make pack distill RECIPE='{path}' ARGS='--set group.min_points=5'"
    assert recipe.make("query", phrase="fire hydrant").endswith("WORDS='fire hydrant'")
    assert recipe.make("distill", more=["--fresh"]).endswith("ARGS='--set group.min_points=5 --fresh'")
    monkeypatch.setenv(STYLE, "afov")
    sets = "--set group.min_points=5"
    assert recipe.make("points", "pairs") == f"afov run '{path}' points pairs {sets}"
    assert recipe.make("pack", "distill") == f"afov run '{path}' pack {sets} && afov distill '{path}' {sets}"
    assert recipe.make("query", phrase="fire hydrant") == f"afov query '{path}' 'fire hydrant' {sets}"


def test_a_verb_fails_with_the_programs_own_sentence_and_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(f'base = "city"\n[data]\nroot = "{tmp_path}"\n')
    monkeypatch.setenv(STYLE, "afov")
    done = CliRunner().invoke(app, ["evaluate", "mine.toml"])
    assert done.exit_code == 3 and "afov run mine.toml" in done.stderr


def test_the_demo_ends_with_the_step_that_failed_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def call(module: str, *words: str) -> int:
        calls.append((module, *words))
        return 7 if "pretrain" in words else 0

    started: list[subprocess.Popen[bytes]] = []

    def start(module: str, *words: str, log: Path) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        return started[-1]

    monkeypatch.setattr(demo, "call", call)
    monkeypatch.setattr(demo, "start", start)
    with pytest.raises(RunError, match=r"trainer pretrain city .*ended with exit code 7"):
        demo.demo("tiny", ["a.b=1"], lambda text: None)
    assert calls[0] == ("bench.city", "data/city", "--size", "tiny") and calls[-1][-2:] == ("--set", "a.b=1")
    assert started[0].poll() is not None
