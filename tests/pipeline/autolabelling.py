"""Runs commands of ours and reads the label files that they leave."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from typer.testing import CliRunner, Result


def autolabel(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "afov", "autolabel", *words], capture_output=True, text=True, check=False
    )


def command(program: Any, *words: str) -> Result:
    done = CliRunner().invoke(program, list(words))
    assert done.exit_code == 0, done.output
    return done


def label_files(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The labels of every frame, as any program would read them."""
    with (folder / "frames.csv").open(newline="") as table:
        return {row["frame_id"]: np.load(folder / row["npy"]) for row in csv.DictReader(table)}
