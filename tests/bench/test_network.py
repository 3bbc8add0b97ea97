"""The half of `make bench` that times the network."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import bench.network


def run(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(bench.network.main)
    return CliRunner().invoke(app, arguments)


@pytest.fixture(autouse=True)
def short_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.network, "simulated_sweep", partial(bench.network.simulated_sweep, n_azimuths=60))


def test_a_simulated_sweep_lies_on_the_ground_and_before_the_fronts() -> None:
    xyz_m = bench.network.simulated_sweep(0)
    assert xyz_m.shape == (32 * 60, 3) and xyz_m.dtype == np.float32
    assert xyz_m[:, 2].min() > -2.1 and np.abs(xyz_m[:, 1]).max() < 11


def test_every_way_and_every_goal_is_printed() -> None:
    done = run("--network", "minkunet_small", "--repeats", "1", "--frames", "2")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line[:32].rstrip() for line in lines[2:7]] == [
        "forward, minkowski",
        "forward + backward, minkowski",
        "forward, torch",
        "forward + backward, torch",
        "training step, torch",
    ]
    assert len([line for line in lines if line.startswith(("met", "missed"))]) == 3


def test_nothing_is_timed_when_the_engines_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.network, "TOLERANCE", 0.0)
    done = run("--network", "minkunet_small", "--repeats", "1")
    assert done.exit_code == 1 and "nothing is timed" in done.output and "training step" not in done.output


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_its_lines_say_so() -> None:
    done = run("--gpu")
    assert done.exit_code == 1 and "torch sees no GPU here" in done.output
