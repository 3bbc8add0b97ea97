"""Commands as a message tells them: for whoever called make, or for whoever called `afov`, with the recipe as typed."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

STYLE = "AFOV_ADVICE"
"""The environment variable that says how the user called us: "make" (also where it is not set) or "afov"."""

TRAINING = ("pretrain", "distill", "probe", "finetune", "supervised")
VERBS = (*TRAINING, "predict", "evaluate", "scores", "submit", "report", "query", "view", "pictures", "doctor", "plan")
"""Targets that are verbs of `afov`; all others are tables, which `afov run` builds."""


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
