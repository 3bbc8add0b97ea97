"""Every verb of `afov`, the job that it belongs to, and the program that has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from manifests.sections.training import Task

PROGRAMS: Mapping[str, str] = {
    "afov": "afov.commands",
    "pipeline": "pipeline.__main__",
    "trainer": "trainer.__main__",
}
"""Where the `app` of each program is."""

JOBS: Mapping[str, Mapping[str, str]] = {
    "Start here": {
        "autolabel": "afov",
        "demo": "afov",
        "recipes": "afov",
        "show": "afov",
        "doctor": "pipeline",
        "plan": "pipeline",
    },
    "Tables": {
        "run": "afov",
        "why": "pipeline",
        "status": "pipeline",
        "verify": "pipeline",
        "gc": "pipeline",
    },
    "Students": {
        **dict.fromkeys(get_args(Task), "trainer"),
        "predict": "trainer",
        "refine": "trainer",
    },
    "Scores": {
        "evaluate": "trainer",
        "calibrate": "trainer",
        "scores": "trainer",
        "runs": "trainer",
        "diff": "trainer",
        "submit": "trainer",
    },
    "Look": {
        "report": "pipeline",
        "view": "pipeline",
        "pictures": "pipeline",
        "query": "afov",
    },
    "Hand on": {
        "import": "pipeline",
        "share": "afov",
        "receive": "afov",
        "publish": "afov",
        "fetch": "afov",
        "labels": "pipeline",
        "review": "pipeline",
        "export": "pipeline",
        "import-checkpoint": "trainer import",
        "export-checkpoint": "trainer export",
        "mark-store": "pipeline store mark",
    },
    "Find a fault": {
        "debug-frame": "afov",
        "check-teacher": "pipeline",
        "check": "trainer",
        "city": "pipeline",
        "docs": "afov",
    },
}
"""Verbs by job, in the order of the help: the program, and the verb's name there where it has another."""

ELSEWHERE = {"pipeline": {"run", "debug-frame", "query", "store", "docs"}, "trainer": {"query", "import", "export"}}
"""Verbs of a program that `afov` has in another form: the recipe first, or two programs in one."""


def source(verb: str) -> tuple[str, list[str]] | None:
    """Return the program of a verb and the words that name it there; None for one that no job lists."""
    for verbs in JOBS.values():
        if verb in verbs:
            program, *words = verbs[verb].split()
            return program, words or [verb]
    return None


def job_of(verb: str) -> str:
    """Return the job that a verb belongs to."""
    return next((job for job, verbs in JOBS.items() if verb in verbs), "More")
