"""What a training writes down of itself: the lines of its log, and `run.json`, all it takes to repeat it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from manifests.fingerprint import Settings
from manifests.records.codec import REST
from manifests.records.evaluation import Compared, JudgedEvaluation


@dataclass(frozen=True)
class Gpu:
    """A GPU by name, with its memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Hardware:
    """What computes: processor, cores, memory, threads, GPUs and the system; no name of the machine."""

    processor: str
    cores: int | None
    usable_cores: int | None
    memory_bytes: int
    threads: int
    omp_num_threads: str | None
    gpus: tuple[Gpu, ...]
    cuda: str | None
    system: str


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """A checkpoint that a run starts from, as far as it tells: an official file tells little.

    `student` is what it learnt, to be compared with what a recipe asks of that earlier run.
    """

    file: str
    weights: str | None = None
    task: str | None = None
    recipe: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    n_outputs: int | None = None
    teacher: Settings | None = None
    reads_labels: bool | None = None
    initial: Ancestor | None = None
    student: Student | None = None


@dataclass(frozen=True)
class LearntTable:
    """A table that a run learns from: its identity, and the key of every shard by name."""

    fingerprint: str
    shards: Mapping[str, str]


@dataclass(frozen=True)
class Dictionary:
    """A class dictionary by name and version."""

    name: str
    version: int


@dataclass(frozen=True)
class TableIdentity:
    """A table that a run depends on, by its identity and a digest of the keys of its shards."""

    fingerprint: str
    shards: str


@dataclass(frozen=True)
class FramesIdentity:
    """The frames that a run learns from, by number and a digest of their names."""

    number: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """All that the result of a run depends on, readable; `settings` are those of the task and of the sections it reads.

    `init` is the digest of the weights it starts from, `ontology` of what labels mean. `processes` counts where the
    loss depends on how many there are.
    """

    ontology: str
    tables: Mapping[str, TableIdentity]
    frames: FramesIdentity
    init: str | None
    processes: int | None = None
    settings: Settings = field(metadata=REST)


@dataclass(frozen=True)
class Student:
    """What of a checkpoint is compared with a recipe: predictions keep it, to be asked without their checkpoint.

    Of `config` it is where the weights of the task come from, and which frames were left out; `initial` is the same of
    the run that it started from.
    """

    task: str | None = None
    identity: RunIdentity | None = None
    tables: Mapping[str, LearntTable] | None = None
    config: Mapping[str, Settings] = field(default_factory=dict)
    initial: Student | None = None

    def setting(self, section: str, name: str) -> object:
        """Return a setting of the run, None where the checkpoint does not tell."""
        return self.config.get(section, {}).get(name)


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What log and checkpoints record of a run: what it learns from what, on what, and how.

    `identity` is all that its result depends on; `config` the settings of the sections it reads, `written`
    those that the recipe spells out. `departures` are differences from the paper's run, None where it has no such run.
    """

    task: str
    recipe: str
    identity: RunIdentity
    config: Mapping[str, Settings]
    written: Mapping[str, Settings] = field(default_factory=dict)
    departures: tuple[str, ...] | None = None
    reads_labels: bool | None = None
    initial: Ancestor | None = None
    teacher: Settings | None = None
    n_outputs: int | None = None
    tables: Mapping[str, LearntTable]
    ontology: Dictionary
    class_names: tuple[str, ...]
    seed: int
    epochs: int
    versions: Mapping[str, str]
    commit: str | None
    device: str
    ranks: int = 1
    hardware: Hardware | None = None


@dataclass(frozen=True, kw_only=True)
class StartLine(RunDescription):
    """A line of the log: a run starts, or goes on after `epoch` epochs and `batch` batches of the next."""

    event: Literal["start"] = "start"
    time: str
    format: int = 1
    epoch: int = 0
    batch: int = 0
    frames: int
    sources: Compared | None = None
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NumbersLine:
    """A line of the log: the numbers of a step, or the means over an epoch.

    `values` are the terms of the loss, `total` among them, and the rates `lr_<what>`; an epoch has its time too.
    """

    event: Literal["step", "epoch"] = "epoch"  # which `run.json` did not write once
    time: str
    epoch: int
    step: int
    seconds: float | None = None
    frames_per_second: float | None = None
    data_wait_share: float | None = None
    values: Mapping[str, float] = field(metadata=REST)

    def curves(self) -> dict[str, float]:
        """Return every number by name."""
        speed = {name: getattr(self, name) for name in ("frames_per_second", "data_wait_share", "seconds")}
        return {**self.values, **{name: value for name, value in speed.items() if value is not None}}

    @property
    def losses(self) -> dict[str, float]:
        """The terms of the loss by name."""
        return {name: value for name, value in self.values.items() if not name.startswith("lr_")}

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates by what learns with them."""
        return {name.removeprefix("lr_"): value for name, value in self.values.items() if name.startswith("lr_")}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a run came to: its newest checkpoint, and by what it was chosen."""

    file: str
    sha256: str
    weights: str
    epoch: int
    step: int | None = None
    chosen: str


@dataclass(frozen=True)
class LearntFrames(FramesIdentity):
    """The frames a run learnt from, and those left out, by the reason."""

    left_out: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ShardsMade:
    """How many shards of a table there were, and a digest of their keys."""

    number: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class TableMade:
    """A table that a run depends on: its identity, settings other than defaults, and what made it."""

    fingerprint: str
    settings: Settings | None
    version: int | None
    commit: str | None = None
    packages: Settings | None = None
    shards: ShardsMade | None = None


@dataclass(frozen=True)
class KnownClasses:
    """The class dictionary of a run, with a digest of what labels mean in it."""

    name: str
    version: int
    labels: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class EarlierStart:
    """A start of a run before its last one."""

    time: str | None
    epoch: int | None
    versions: Mapping[str, str] | None
    commit: str | None
    device: str | None
    ranks: int | None
    hardware: Hardware | None


@dataclass(frozen=True)
class LogState:
    """How many lines the log had when the record was written, and what was wrong with it, empty where nothing was."""

    lines: int
    damage: str


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """`run.json`, the record of a run: what it was asked, what it learnt from, on what it ran, and what it came to."""

    format: int
    recipe: str
    task: str
    state: str
    result: Result | None
    reads_labels: bool | None
    departures: tuple[str, ...] | None
    seed: int
    epochs: int
    frames: LearntFrames
    sources: Compared | None = None
    config: Mapping[str, Settings]
    written: Mapping[str, Settings]
    initial: Ancestor | None
    teacher: Settings | None
    tables: Mapping[str, TableMade]
    ontology: KnownClasses
    versions: Mapping[str, str]
    commit: str | None
    device: str
    processes: int
    hardware: Hardware | None
    earlier_starts: tuple[EarlierStart, ...]
    curves: tuple[NumbersLine, ...]
    log: LogState | None = None
    evaluations: Mapping[str, JudgedEvaluation]
    unreadable: Mapping[str, str] = field(default_factory=dict)
