"""Starts pipeline and trainer as processes of their own, where one command needs both."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from manifests.pulse import left_to_another

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
"""One thread: MinkowskiEngine's results are then the same in every run, and it is no slower."""


def words_for(module: str, words: Sequence[str]) -> list[str]:
    """Return the command line of a module of ours."""
    return [sys.executable, "-m", module, *words]


def call(module: str, *words: str) -> int:
    """Run a module of ours to its end, its output on this terminal, and return its exit code."""
    with left_to_another():
        return subprocess.run(words_for(module, words), env={**os.environ, **ENVIRONMENT}, check=False).returncode


def start(module: str, *words: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a module of ours beside this process; what it prints goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return subprocess.Popen(
            words_for(module, words), env={**os.environ, **ENVIRONMENT}, stdout=file, stderr=subprocess.STDOUT
        )
