"""Numbers of a run for MLflow or Weights & Biases, beside its own log; both are extras.

A tracker that fails costs its numbers and never the run: that is told once. A run that goes on does so in the tracker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from manifests.config import ConfigError
from manifests.fingerprint import digest
from manifests.records.codec import as_document
from manifests.records.run import NumbersLine, StartLine
from manifests.sections.data import Tracker as TrackerName

MOST_CHARACTERS = 500  # of a setting's value, as MLflow takes them


class Backend(Protocol):
    """What there is to do for a tracker."""

    def start(self, title: str, settings: Mapping[str, str]) -> None:
        """Begin a run of a title, or go on with it."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to curves."""

    def end(self) -> None:
        """All is told."""


class Mlflow:
    """MLflow: where MLFLOW_TRACKING_URI says, else in files, in the folder `mlflow` of all runs."""

    def __init__(self, folder: Path) -> None:
        import mlflow

        self._mlflow, self._folder = mlflow, folder

    def start(self, title: str, settings: Mapping[str, str]) -> None:
        """Begin a run in the experiment of its name, or go on with the one that the folder knows."""
        import os

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it 3.17 refuses files
            self._mlflow.set_tracking_uri((self._folder.parent.parent / "mlflow").absolute().as_uri())
        self._mlflow.set_experiment(title.partition("/")[0])
        known = self._folder / "mlflow_run"
        run_id = known.read_text().strip() if known.is_file() else None
        run = self._mlflow.start_run(run_id=run_id, run_name=title)
        if run_id is None:
            known.write_text(run.info.run_id + "\n")
            self._mlflow.log_params(dict(settings))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to curves."""
        self._mlflow.log_metrics(dict(values), step=step)

    def end(self) -> None:
        """End the run."""
        self._mlflow.end_run()


class Wandb:
    """Weights & Biases, project `afov`: with WANDB_MODE=offline, in files in the run's folder."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self._wandb, self._folder, self._run = wandb, folder, None

    def start(self, title: str, settings: Mapping[str, str]) -> None:
        """Begin the run of this folder, or go on with it."""
        self._run = self._wandb.init(
            project="afov",
            name=title,
            id=digest(str(self._folder.absolute())),
            resume="allow",
            dir=str(self._folder),
            config=dict(settings),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to curves."""
        self._wandb.log(dict(values), step=step)

    def end(self) -> None:
        """End the run."""
        self._wandb.finish()


BACKENDS: Mapping[str, Callable[[Path], Backend]] = {"mlflow": Mlflow, "wandb": Wandb}
PACKAGES = {"mlflow": "mlflow-skinny", "wandb": "wandb"}


class Tracking:
    """Tells a tracker of a run, as long as that works."""

    def __init__(self, name: TrackerName, folder: Path, tell: Callable[[str], None]) -> None:
        """Open the tracker; raises ConfigError where its package is not installed."""
        self._name, self._folder, self._tell = name, folder, tell
        self._backend: Backend | None = None
        if name:
            try:
                self._backend = BACKENDS[name](folder)
            except ImportError:
                raise ConfigError(
                    f'run.track is "{name}", but that is not installed; run: pip install {PACKAGES[name]}'
                ) from None

    def start(self, line: StartLine) -> None:
        """Tell that a run begins or goes on, and its settings."""
        title = f"{self._folder.parent.name}/{self._folder.name}"
        self._do(lambda backend: backend.start(title, flat(line)))

    def numbers(self, line: NumbersLine) -> None:
        """Tell the numbers of a step or of an epoch."""
        values = {f"{line.event}/{name}": value for name, value in line.curves().items()}
        self._do(lambda backend: backend.log(values, line.step))

    def end(self) -> None:
        """Tell that the process ends."""
        self._do(lambda backend: backend.end())

    def _do(self, what: Callable[[Backend], None]) -> None:
        if self._backend is None:
            return
        try:
            what(self._backend)
        except Exception as error:  # whatever a service, a network or a disk may raise
            self._backend = None
            self._tell(f"{self._name} is told no more of this run: {type(error).__name__}: {error}")


def flat(line: StartLine) -> dict[str, str]:
    """Return what a run was asked, by dotted keys, and its commit; passwords are left out of it already."""
    found: dict[str, str] = {"recipe": line.recipe, "task": line.task, "commit": line.commit or ""}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = str(value)[:MOST_CHARACTERS]

    walk("", (as_document(line) or {}).get("config", {}))
    return found
