"""Every command that a message advises is one: it names its recipe, make and afov understand it, and a test runs it.

A new piece of advice fails here until it is listed, which `python -m tests.advice --write` does, and its command stands
in RUN_BY.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
from typing import Any

import pytest
import typer

from afov.__main__ import app
from manifests.advice import HEAL, MARK, STYLE, VERBS, filled
from tests.advice import ANY, LISTED, ROOT, advised, commands_of, listed, makefile_targets

CHAIN = "tests/trainer/test_main.py::test_the_whole_chain_runs"
STORY = "tests/pipeline/test_main.py::test_plan_run_why_verify_and_gc_tell_one_story"
REPLACED = "tests/pipeline/test_content.py::test_bytes_that_the_index_does_not_know_are_never_kept_and_the_advice_heals"
UNFIT = "tests/pipeline/test_content.py::test_rows_that_no_stage_makes_are_built_again_by_what_is_advised"
RUN_BY = {
    "make ANY": STORY,
    "make ANY --fresh": "tests/trainer/test_main.py::test_fresh_and_resume_reach_the_run",
    "make ANY --again": UNFIT,
    "make ANY predict": CHAIN,
    "make distill predict": CHAIN,
    "make calibrate": "tests/trainer/test_calibrate.py::test_the_command_says_what_it_found",
    "make docs": "tests/pipeline/test_main.py::test_the_description_of_the_tables_is_up_to_date",
    "make evaluate": CHAIN,
    "make group": STORY,
    "make index --again": REPLACED,
    "make label": STORY,
    "make pack": STORY,
    "make pack --again": UNFIT,
    "make pack ANY": STORY,
    "make pack label": STORY,
    "make pairs": STORY,
    "make pictures": "tests/pipeline/test_main.py::test_pictures_show_the_frame",
    "make predict": CHAIN,
    "make predict evaluate": CHAIN,
    "make pretrain": CHAIN,
    "make pretrain --fresh": "tests/trainer/test_main.py::test_fresh_and_resume_reach_the_run",
    "make query": "tests/pipeline/test_query.py::test_the_command_prints_a_ranking_and_writes_into_its_folder_only",
    "make refine": "tests/trainer/test_refined_table.py::test_neither_truth_nor_a_student_is_needed_for_pseudo_labels",
    "make review": "tests/pipeline/test_review.py::test_the_riskiest_frames_go_out_and_not_twice",
    "make report": "tests/pipeline/test_report.py::test_everything_is_on_the_page_and_the_page_asks_for_nothing_else",
    "make setup": CHAIN,
    "make target": STORY,
    "make verify --heal": STORY,
}
"""The test that runs what each command runs."""


def test_every_piece_of_advice_is_listed() -> None:
    known = json.loads(LISTED.read_text(encoding="utf-8"))
    assert listed() == known, "see that a test runs it (RUN_BY), then: python -m tests.advice --write"


def test_advice_names_the_recipe_and_targets_that_there_are() -> None:
    for one in advised():
        assert one.named, (
            f"{one.path}:{one.line} advises `{one.form}` without a recipe: add RECIPE=..., or recipe.make()"
        )
        assert set(one.targets) <= makefile_targets() | {ANY}, f"{one.path}:{one.line}"


def test_every_command_is_run_by_a_test_that_there_is() -> None:
    assert {one.form for one in advised()} == RUN_BY.keys()
    for place in set(RUN_BY.values()):
        path, _, name = place.partition("::")
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, place


@pytest.mark.parametrize("form", sorted(RUN_BY))
def test_make_and_afov_understand_the_command(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if form in ("make docs", "make setup"):
        return
    _, *words = form.replace(ANY, "distill" if "--fresh" in form else "points").split()
    option = f" ARGS={words.pop()}" if words[-1].startswith("--") else ""
    phrase = ' WORDS="fire hydrant"' if words == ["query"] else ""
    advice = f"make {' '.join(words)} RECIPE=...{option}{phrase}"
    monkeypatch.setenv(STYLE, "afov")
    calls = filled(advice, "my city.toml", ["data.exclude=['a b']"]).split(" && ")
    for call in calls:
        understood(shlex.split(call)[1:])
    monkeypatch.setenv(STYLE, "make")
    told = filled(advice, "my city.toml", ["data.exclude=['a b']"])
    assert told != advice
    of_make = {
        "RECIPE",
        "ARGS",
        "TABLES",
        "ARCHIVE",
        "WORDS",
        "SIZE",
        "OUT",
        "OF",
        "AS",
    }  # `make test` hands its own on
    free = {name: value for name, value in os.environ.items() if name not in of_make and not name.startswith("MAKE")}
    done = subprocess.run(["make", "-n", *shlex.split(told)[1:]], cwd=ROOT, env=free, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = [line for line in done.stdout.splitlines() if " -m afov " in line]
    assert len(printed) == len(words)
    values = {"RECIPE": "my city.toml", "WORDS": "fire hydrant"}
    for line in printed:
        said = [re.sub(r"\$(\w+)", lambda name: values[name[1]], word) for word in shlex.split(line)]
        understood(said[said.index("afov") + 1 :])


def understood(words: list[str]) -> None:
    """Raise unless `afov` has the verb and takes the words behind it; nothing is run."""
    group: Any = typer.main.get_command(app)
    command = group.get_command(None, words[0])
    assert command is not None, words
    context = command.make_context(words[0], words[1:])
    recipe = context.params.get("recipe") or context.params["recipes"][0]
    assert recipe == "my city.toml"
    assert list(context.params.get("set_") or context.params["override"]) == ["data.exclude=['a b']"]


def test_targets_that_are_verbs_are_known_as_verbs() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    groups = [re.search(rf"^{name} := (.*)$", text, re.MULTILINE) for name in ("QUESTIONS", "VIEWS", "TRAINER")]
    verbs = {target for group in groups if group for target in group[1].split()}
    assert verbs <= set(VERBS), "else advice would have `afov run` build them as tables"


def test_what_has_no_target_is_understood_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STYLE, "afov")
    assert shlex.split(filled(MARK, "r.toml"))[:2] == ["afov", "mark-store"]
    assert "afov verify r.toml --heal" in filled(HEAL, "r.toml")


def test_commands_are_found_in_texts_however_they_are_put_together() -> None:
    source = (
        'def f(name, recipe):\n    """Advises make pack."""\n    say("run: make " "points RECIPE=...")\n'
        '    say(f"x; run: make {name} RECIPE=... ARGS=--again, then")\n    say("run: make label")\n'
        '    say("these make sense")\n    recipe.make("pack", name, more=["--fresh"])\n'
    )
    found = [(one.form, one.named) for one in commands_of(ast.parse(source), "x.py")]
    assert sorted(found) == [
        ("make ANY --again", True), ("make label", False), ("make pack ANY --fresh", True), ("make points", True),
    ]  # fmt: skip
