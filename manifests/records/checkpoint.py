"""What a checkpoint says of itself, the JSON document in its header."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from manifests.fingerprint import Settings
from manifests.records.codec import NULL, REST
from manifests.records.run import Ancestor, Dictionary, Hardware, LearntTable, RunDescription, RunIdentity, Student


@dataclass(frozen=True)
class EpochSoFar:
    """What was done of an epoch: batches, frames, sums of the terms of the loss, and seconds, those waited too."""

    batches: int = 0
    frames: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    waited_s: float = 0.0
    elapsed_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CheckpointRecord:
    """What a checkpoint says of itself: all of the run's description, how far it had come, and a digest of its weights.

    `taught` counts the rows that have taught so far, `so_far` tells of an epoch in whose middle it was saved, `loss`
    of one that was done. `scaler` and `averaged` are states of the learner, where it has them. Official files tell
    little: `left_out` names the tensors that are not of the point network; `unit_output` says that its vectors have
    length 1; `unchecked` are settings of voxels that the file did not tell when it was `imported`. `more` is what other
    versions wrote.
    """

    task: str | None = None
    recipe: str | None = None
    identity: RunIdentity | None = None
    config: Mapping[str, Settings] = field(default_factory=dict)
    written: Mapping[str, Settings] | None = None
    departures: tuple[str, ...] | None = None
    reads_labels: bool | None = None
    initial: Ancestor | None = None
    teacher: Settings | None = None
    n_outputs: int | None = None
    tables: Mapping[str, LearntTable] | None = None
    ontology: Dictionary | None = None
    class_names: tuple[str, ...] | None = None
    seed: int | None = None
    epochs: int | None = None
    versions: Mapping[str, str] | None = None
    commit: str | None = field(default=None, metadata=NULL)
    device: str | None = None
    ranks: int | None = None
    hardware: Hardware | None = None
    epoch: int | None = None
    step: int | None = None
    taught: int | None = None
    so_far: EpochSoFar | None = None
    loss: Mapping[str, float] | None = None
    scaler: Settings | None = None
    averaged: int | None = None
    left_out: tuple[str, ...] | None = None
    unit_output: bool | None = None
    imported: str | None = None
    unchecked: tuple[str, ...] | None = None
    more: Settings = field(default_factory=dict, metadata=REST)
    format: int = 0
    weights: str = ""

    @classmethod
    def of_run(cls, run: RunDescription) -> CheckpointRecord:
        """Return what a checkpoint of a run says, before how far that has come."""
        return cls(**{item.name: getattr(run, item.name) for item in fields(run)})

    @property
    def student(self) -> Student:
        """What of it is compared with a recipe."""
        init = self.config.get(str(self.task), {}).get("init", "")
        exclude = self.config.get("data", {}).get("exclude", [])
        config: dict[str, Settings] = {str(self.task): {"init": init}, "data": {"exclude": exclude}}
        earlier = self.initial.student if self.initial else None
        return Student(self.task, self.identity, self.tables or None, config, earlier)

    @property
    def progress(self) -> str:
        """How many of its epochs the run had done, as far as it tells: "epoch 3 of 5"."""
        done, of = ("?" if number is None else number for number in (self.epoch, self.epochs))
        return f"epoch {done} of {of}"

    @property
    def is_finished(self) -> bool:
        """Whether the run had come to its end, as far as it tells; one that was imported does not."""
        return self.epochs is None or (self.epoch or 0) >= self.epochs

    def negative(self) -> str:
        """Return a number of it that counts something and is below 0, by name; empty if there is none."""
        counts = ("step", "epoch", "epochs", "n_outputs", "taught", "averaged")
        return next((name for name in counts if (getattr(self, name) or 0) < 0), "")
