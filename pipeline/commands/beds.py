"""Commands of the beds that things are shown and measured on: those live in bench, and run as programs of their own."""

from __future__ import annotations

import subprocess
import sys

import typer


def city(context: typer.Context) -> None:
    """Write a synthetic city in nuScenes format (python -m bench.city): OUT --size tiny|demo|bench --seed N."""
    raise typer.Exit(subprocess.run([sys.executable, "-m", "bench.city", *context.args], check=False).returncode)
