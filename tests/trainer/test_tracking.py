"""Trackers beside a run's own log: with stand-ins, and with MLflow's files where that is installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from manifests.config import ConfigError
from trainer.loop.train import train


class StandIn(ModuleType):
    """A tracker's module that keeps what it is told."""

    def __init__(self, name: str, broken: bool = False) -> None:
        super().__init__(name)
        self.told: list[tuple[str, Any]] = []
        self.broken = broken

    def _keep(self, what: str, value: Any) -> None:
        if self.broken:
            raise ConnectionError("no route")
        self.told.append((what, value))

    def set_tracking_uri(self, uri: str) -> None:
        self._keep("uri", uri)

    def set_experiment(self, name: str) -> None:
        self._keep("experiment", name)

    def start_run(self, run_id: str | None, run_name: str) -> SimpleNamespace:
        self._keep("start", (run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "r1"))

    def log_params(self, params: dict[str, str]) -> None:
        self._keep("params", params)

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self._keep("numbers", (step, values))

    def end_run(self) -> None:
        self._keep("end", None)

    def init(self, **words: Any) -> None:
        self._keep("init", words)

    def log(self, values: dict[str, float], step: int) -> None:
        self._keep("numbers", (step, values))

    def finish(self) -> None:
        self._keep("end", None)


def of(stand_in: StandIn, what: str) -> list[Any]:
    return [value for name, value in stand_in.told if name == what]


def test_mlflow_is_told_settings_and_curves_and_goes_on_with_the_same_run(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", stand_in)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(fleet.recipe("run.track=mlflow", "distill.epochs=2", "run.name=quick"), "distill", console)
    (uri,), (start,), (params,) = (of(stand_in, what) for what in ("uri", "start", "params"))
    assert uri == (fleet.folder / "runs" / "mlflow").as_uri() and start == (None, "quick/distill")
    assert params["distill.lr_head"] == "0.2" and params["recipe"] == "street"
    epochs = [(step, values["epoch/total"]) for step, values in of(stand_in, "numbers") if "epoch/total" in values]
    assert len(epochs) == 2 and epochs[0][0] < epochs[1][0] and of(stand_in, "end") == [None]
    assert (fleet.folder / "runs/quick/distill/mlflow_run").read_text() == "r1\n"


def test_wandb_is_told_in_the_run_of_the_folder(fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = StandIn("wandb")
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    train(fleet.recipe("run.track=wandb", "distill.epochs=1"), "distill", console)
    (words,) = of(stand_in, "init")
    assert words["name"] == "street/distill" and words["resume"] == "allow" and len(words["id"]) == 12
    assert of(stand_in, "numbers") and of(stand_in, "end") == [None]


def test_a_tracker_that_fails_costs_its_numbers_and_not_the_run(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", StandIn("mlflow", broken=True))
    train(fleet.recipe("run.track=mlflow", "distill.epochs=1"), "distill", console)
    assert capsys.readouterr().out.count("mlflow is told no more of this run: ConnectionError: no route") == 1


def test_one_that_is_not_installed_stops_the_run_before_it_learns(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r'run.track is "wandb", but that is not installed; run: pip install wandb'):
        train(fleet.recipe("run.track=wandb"), "distill", console)


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: extra `logging`")
def test_mlflows_own_files_hold_the_run(fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    train(fleet.recipe("run.track=mlflow", "distill.epochs=2"), "distill", console)
    curves: list[Path] = list((fleet.folder / "runs" / "mlflow").glob("*/*/metrics/epoch/total"))
    assert len(curves) == 1 and len(curves[0].read_text().splitlines()) == 2


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed: extra `logging`")
def test_wandbs_own_files_hold_the_run(fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    train(fleet.recipe("run.track=wandb", "distill.epochs=2"), "distill", console)
    (written,) = (fleet.folder / "runs").rglob("offline-run-*/run-*.wandb")
    assert written.read_bytes().count(b"epoch/total") >= 2, "a record of each epoch"
