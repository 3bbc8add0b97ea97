"""Make targets: what runs in which order, and that no variable is ever run."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# that `make test` hands on
VARIABLES = ("RECIPE", "ARGS", "OUT", "TABLES", "ARCHIVE", "WORDS", "SIZE", "A", "B", "PYTHON", "STAGE")
ROOT = Path(__file__).resolve().parent.parent


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", *VARIABLES)
    }
    return subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.fixture
def making(tmp_path: Path) -> Callable[..., list[list[str]]]:
    """Return a function that makes targets with a stand-in for Python, and returns the words of its calls."""
    calls = tmp_path / "calls.json"
    python = tmp_path / "a python"
    python.write_text(
        f"#!{sys.executable}\nimport json, sys\nwith open({str(calls)!r}, 'a') as file:\n"
        "    file.write(json.dumps(sys.argv[1:]) + chr(10))\n"
    )
    python.chmod(0o755)
    words = tmp_path / "python"
    words.symlink_to(python)

    def called(*arguments: str) -> list[list[str]]:
        calls.unlink(missing_ok=True)
        done = make(*arguments, f"PYTHON={python}", f"PY={words}")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in calls.read_text().splitlines()]

    return called


def test_stages_and_training_run_in_the_order_they_are_named_even_in_parallel(
    making: Callable[..., list[list[str]]],
) -> None:
    called = making("-j4", "pack", "pretrain", "distill", "RECIPE=nuscenes_mini", "ARGS=--set a.b='1 2'")
    assert called == [
        ["install/setup.py"],
        ["-m", "afov", "run", "nuscenes_mini", "pack", "--set", "a.b=1 2"],
        ["-m", "afov", "pretrain", "nuscenes_mini", "--set", "a.b=1 2"],
        ["-m", "afov", "distill", "nuscenes_mini", "--set", "a.b=1 2"],
    ]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ("points", ["run", "city", "points", "--set", "run.pool=inline", "--again"]),
        ("distill", ["distill", "city", "--again"]),
    ],
)
def test_a_profile_is_of_the_command_that_builds_or_trains(
    tmp_path: Path, making: Callable[..., list[list[str]]], stage: str, words: list[str]
) -> None:
    (tmp_path / "py-spy").symlink_to(tmp_path / "a python")
    _, called = making("profile", "RECIPE=city", f"STAGE={stage}", "ARGS=--again")
    spy, watched = called[: called.index("--")], called[called.index("--") + 1 :]
    assert spy[0] == "record"
    assert spy[-1] == f"profile/{stage}.svg"
    assert watched[1:] == ["-m", "afov", *words]
    assert "name what to look at" in make("profile", "RECIPE=city", f"PYTHON={tmp_path / 'a python'}").stderr


NAMED = {"export": ["OUT"], "query": ["WORDS"], "share": ["ARCHIVE"], "receive": ["ARCHIVE"], "diff": ["A", "B"]}
"""Targets with variables of their own that hold text."""

HOSTILE = [
    "$(touch {mark})",
    "$(shell touch {mark})",
    "`touch {mark}`",
    "x; touch {mark}",
    'x" ; touch {mark} ; "',
    "x' ; touch {mark} ; '",
    "$${{IFS}}touch {mark}",
    "a b & touch {mark}",
    "x | touch {mark} # ${{HOME}} \\",
]


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("target", ["pack", "distill", "plan", "report", "show", *NAMED])
def test_what_a_variable_holds_is_text_that_nothing_runs(
    making: Callable[..., list[list[str]]], tmp_path: Path, target: str, hostile: str
) -> None:
    mark = tmp_path / "mark"
    text = hostile.format(mark=mark)
    names = NAMED.get(target, [])
    recipe = () if target == "diff" else ("RECIPE",)
    called = making(target, *(f"{name}={text}" for name in (*recipe, *names)))
    assert not mark.exists()
    assert all(text in words for words in called[1:]) and len(called) > 1


def test_the_tables_to_share_and_a_size_run_nothing_either(
    making: Callable[..., list[list[str]]], tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    for hostile in HOSTILE:
        text = hostile.format(mark=mark)
        assert making("share", "RECIPE=city", "ARCHIVE=a.tar", f"TABLES={text}")[1][2:5] == ["share", "city", "a.tar"]
        printed = make("-n", "demo", f"SIZE={text}", f"PYTHON={sys.executable}").stdout
        assert '--size "$SIZE"' in printed and not mark.exists()


@pytest.mark.parametrize("target", ["pack", "label", "why", "evaluate"])
def test_a_target_without_its_recipe_says_so_before_anything_is_installed(target: str) -> None:
    result = make(target)
    assert result.returncode == 2
    assert f"make {target} RECIPE=nuscenes_mini" in result.stderr
    assert result.stdout == ""


def test_a_python_that_is_not_there_is_named() -> None:
    result = make("setup", "PYTHON=python3.11-nowhere")
    assert result.returncode == 2
    assert "python3.11-nowhere was not found" in result.stderr


def test_help_tells_of_every_target() -> None:
    told = make("help").stdout
    database = make("-p", "-n", "help").stdout
    targets = next(line for line in database.splitlines() if line.startswith(".PHONY:")).split()[1:]
    assert len(targets) > 20
    asked = {"recipe", "archive"}  # what others need: is it given?
    assert [target for target in targets if target not in asked and f"  {target} " not in told] == []


def test_tables_are_handed_on_by_name_of_a_file(making: Callable[..., list[list[str]]]) -> None:
    given = ("RECIPE=city", "ARCHIVE=out/a city.tar")
    words = ["-m", "afov", "share", "city", "out/a city.tar"]
    assert making("share", *given, "TABLES=points pairs", "ARGS=--licence L")[1:] == [
        [*words, "points", "pairs", "--licence", "L"]
    ]
    assert making("share", *given)[1:] == [[*words, "pack", "text"]]
    assert making("receive", given[1])[1:] == [["-m", "afov", "receive", "out/a city.tar"]]
    assert making("export", "RECIPE=city")[1:] == [["-m", "afov", "export", "city", "export/city"]]
    for without in (make("share", "RECIPE=city"), make("receive")):
        assert without.returncode == 2 and without.stdout == "" and "ARCHIVE=city.tar" in without.stderr
