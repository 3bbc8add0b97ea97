"""What is written down of a table: what it is made from, and what made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from manifests.fingerprint import Settings, differences, digest
from manifests.records.codec import NULL, REST, as_document
from manifests.records.evaluation import Compared
from manifests.records.run import Student

Columns = tuple[tuple[str, str, str, str], ...]
"""Name, Arrow type, dtype and shape of every column."""


@dataclass(frozen=True)
class Identity:
    """All that the rows of a table depend on, readable.

    `version` is that of the stage that makes it, `settings` are those that can change a row and are no defaults, and
    `needs` the fingerprints of the tables that a row is made from, by their names.
    """

    stage: str
    version: int
    columns: Columns
    settings: Settings
    needs: Mapping[str, str]

    @cached_property
    def fingerprint(self) -> str:
        """The digest of all of it, which names the folder of the table; see `manifests.fingerprint.canonical`."""
        return digest(as_document(self))

    def changes(self, now: Identity) -> list[str]:
        """Return a line per value in which another one differs, such as `settings.min_points: 2 -> 3`."""
        return differences(as_document(self), as_document(now))


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a shard: the commit of the code, the versions of packages, the device, and the images at once of a
    network; nothing of it in a shard of the trainer, whose manifest says it, or of a version that did not write it.
    """

    commit: str | None = None
    packages: Mapping[str, str] | None = None
    device: str | None = None
    batch: int | None = None


@dataclass(frozen=True)
class Work:
    """What a run did for one stage: how many frames, and how long each worker was at it if all had the same share."""

    frames: int
    seconds: float
    workers: int

    @property
    def seconds_per_frame(self) -> float | None:
        """Worker seconds that a frame took; None where there was nothing to do."""
        able = self.frames > 0 and self.seconds >= 0 and self.workers > 0
        return self.seconds * self.workers / self.frames if able else None


@dataclass(frozen=True, kw_only=True)
class Built:
    """What the manifest of a table of the pipeline says of how it was made: by its last run, and in all.

    `started` and `finished` are times of that run by its own clock, `devices` and `batches` those of its networks.
    `git_commit` and `packages` are not known where it built no shard; `origins` says by which of them shards were made,
    and how many. `failed` are frames whose row is only a status, `failures` (shard, frame, cause) what was not built,
    of a whole shard without a frame. `counts` are sums over all rows. `more` is what other versions wrote.
    """

    recipe: str | None = None
    started: str | None = None
    finished: str | None = None
    pool: str | None = None
    devices: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    git_commit: str | None = field(default=None, metadata=NULL)
    packages: Mapping[str, str] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    origins: tuple[Settings, ...] = ()
    failed: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    work: Work | None = None
    failures: tuple[tuple[str, str | None, str], ...] = ()
    more: Settings = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What the manifest of a table of the trainer says of how it was made; `more` is what other versions wrote."""

    commit: str | None = field(default=None, metadata=NULL)
    versions: Mapping[str, str] = field(default_factory=dict)
    finished: str | None = None
    more: Settings = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, kw_only=True)
class Predicted(Computed):
    """What the manifest of a table says that a network made: with which checkpoint, how far trained, and where.

    `checkpoint` is its path and `checkpoint_looks` how it looked from outside (`manifests.fingerprint.looks_of`);
    `student` is what its network learnt, `class_names` what its outputs mean,
    where they mean classes; `sources` how far the files behind the points were compared.
    """

    checkpoint: str | None = None
    checkpoint_looks: str | None = field(default=None, metadata=NULL)
    student: Student | None = None
    weights: str | None = field(default=None, metadata=NULL)
    epoch: int | None = field(default=None, metadata=NULL)
    step: int | None = field(default=None, metadata=NULL)
    epochs: int | None = field(default=None, metadata=NULL)
    device: str | None = None
    class_names: tuple[str, ...] | None = None
    sources: Compared | None = None


@dataclass(frozen=True)
class AskedTable:
    """A table that a recipe asks for: its identity, the settings in it, and a digest of its columns.

    Versions up to 0.9 did not write the fingerprint.
    """

    version: int
    settings: Settings
    columns: str
    fingerprint: str | None = None

    def changes(self, name: str, now: AskedTable) -> list[str]:
        """Return in what another one differs, as sentences about a table of this name; readable."""
        found = differences({name: self.settings}, {name: now.settings})
        if self.version != now.version:
            found.append(f"{name}: made by version {self.version} of the stage, which is {now.version} now")
        if self.columns != now.columns:
            found.append(f"{name}: its columns are others now")
        return found


@dataclass(frozen=True)
class AskedTables:
    """All that the tables of a recipe depend on, readable: which data, and every table by name.

    `received` is true where the tables were handed on, so that their data set need not be here.
    """

    data: Settings
    tables: Mapping[str, AskedTable]
    received: bool | None = None

    @cached_property
    def key(self) -> str:
        """The digest of it, which names the recipe's ref."""
        return digest(as_document(self))

    @property
    def root(self) -> str:
        """The folder of the data set, as every working folder names it."""
        return str(self.data["root"])
