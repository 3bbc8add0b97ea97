"""Commands as a message tells them: for whoever called make, or for whoever called `afov`, with the recipe as typed.

A message that arises where the recipe is at hand has its words: `Recipe.make`. One that arises deep in a store, a row
or a worker does not know them, and may be kept in a table, where it must read the same for everybody. It says
`make points RECIPE=...`, and whoever tells it puts there what the user typed: see `filled`.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence

STYLE = "AFOV_ADVICE"
"""The environment variable that says how the user called us: "make" (also where it is not set) or "afov"."""

TRAINING = ("pretrain", "distill", "probe", "finetune", "supervised")
VERBS = (
    *(*TRAINING, "predict", "refine", "evaluate", "scores", "submit", "report", "query", "view", "pictures", "labels"),
    *("calibrate", "review", "autolabel", "show", "doctor", "plan", "why", "status", "verify", "gc"),
)
"""Targets that are verbs of `afov`; all others are tables, which `afov run` builds."""

UNKNOWN = "RECIPE=..."
"""What stands in a command for the words of a recipe that is not known where the message arises."""

MARK = f"python -m pipeline store mark {UNKNOWN}"
"""The command that no make target has."""

HEAL = "drop it with: make verify RECIPE=... ARGS=--heal, and run the same command again"

_COMMAND = re.compile(
    rf"(?:{re.escape(MARK)}|make (?P<targets>[a-z]+(?: [a-z]+)*) {re.escape(UNKNOWN)})"
    r'(?: ARGS=(?P<option>--[a-z-]+))?(?: WORDS="(?P<phrase>[^"]*)")?'
)


def words_of(typed: str, overrides: Sequence[str] = (), more: Sequence[str] = ()) -> str:
    """Return a recipe, its overrides and `more` options as they follow a verb, of make or of `afov`."""
    options = " ".join([*(f"--set {shlex.quote(one)}" for one in overrides), *more])
    if not by_make():
        return f"{shlex.quote(typed)} {options}".strip()
    return f"RECIPE={shlex.quote(typed)}" + (f" ARGS={shlex.quote(options)}" if options else "")


def command(targets: Sequence[str], words: str, phrase: str | None = None) -> str:
    """Return the command that makes targets of a recipe, `words` as `words_of` has them; query asks `phrase`."""
    if by_make():
        said = [] if phrase is None else [f"WORDS={shlex.quote(phrase)}"]
        return " ".join(["make", *targets, words, *said])
    recipe, *options = shlex.split(words)
    tables = [target for target in targets if target not in VERBS]
    calls = [["afov", "run", recipe, *tables, *options]] if tables else []
    said = [] if phrase is None else [phrase]
    calls += [["afov", target, recipe, *said, *options] for target in targets if target in VERBS]
    return " && ".join(map(shlex.join, calls))


def by_make() -> bool:
    """Return whether commands are told as make's."""
    return os.environ.get(STYLE, "make") == "make"


def filled(text: str, typed: str, overrides: Sequence[str] = ()) -> str:
    """Return a message with the recipe as it was typed in those commands that were written without knowing it."""

    def told(found: re.Match[str]) -> str:
        if found["targets"]:
            words = words_of(typed, overrides, [found["option"]] if found["option"] else [])
            return command(found["targets"].split(), words, found["phrase"])
        program = ["python", "-m", "pipeline", "store", "mark"] if by_make() else ["afov", "mark-store"]
        return shlex.join([*program, typed, *(word for one in overrides for word in ("--set", one))])

    return _COMMAND.sub(told, text) if UNKNOWN in text else text
