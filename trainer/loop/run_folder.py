"""A run: what it learns from what, where it lives, and what an earlier one left there."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from manifests.asked import pin
from manifests.fingerprint import Settings, differences, digest, plain
from manifests.learnt import changes_since, settings_of
from manifests.provenance import TRAINER_PACKAGES, made_by, package_versions
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.records.evaluation import Compared
from manifests.records.run import (
    Ancestor,
    Dictionary,
    FramesIdentity,
    LearntTable,
    RunDescription,
    RunIdentity,
    StartLine,
    TableIdentity,
)
from manifests.sections.training import Task
from manifests.shown import shown_values
from manifests.storage import sealed
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.store import Store
from trainer.checkpoints import checkpoint
from trainer.data.tables import Selection, Tables
from trainer.errors import TrainerError
from trainer.loop.log import now
from trainer.loop.ranks import Ranks
from trainer.network.sparse import Engine
from trainer.objectives.objective import Objective
from trainer.objectives.registry import EARLIER_RUNS
from trainer.records import protocol, record


@dataclass(frozen=True)
class Run:
    """A run that is ready to start: where it lives, what it learns from what, and where its weights begin."""

    recipe: Recipe
    objective: Objective
    folder: Path
    engine: Engine
    device: torch.device
    ranks: Ranks
    tables: Tables
    selection: Selection
    excluded: frozenset[str]
    used: Mapping[str, TableRef]
    compared: Compared
    initial: Path | None
    ancestor: Ancestor | None
    teacher: Settings | None

    @property
    def identity(self) -> RunIdentity:
        """What the result depends on; a run is continued only where it is the same."""
        by_process = getattr(self.objective.settings, "negatives", "") == "local" and self.ranks.world_size > 1
        settings = settings_of(self.recipe, self.objective.task)
        frames = [frame.frame_id for frame in self.selection.frames]
        return RunIdentity(
            ontology=str(settings.pop("ontology")),
            tables={
                name: TableIdentity(table.fingerprint, digest([shard.key for shard in table.shards]))
                for name, table in self.used.items()
            },
            frames=FramesIdentity(len(frames), digest(frames)),
            init=self.ancestor.weights if self.ancestor else None,
            # superpoints are then told from those of their own process, so that another number is another loss
            processes=self.ranks.world_size if by_process else None,
            settings=settings,
        )

    def start(self, epoch: int, batch: int) -> StartLine:
        """Return what the log says of a start: the document, from which state, with which frames and files."""
        described = self.document()
        return StartLine(
            **{item.name: getattr(described, item.name) for item in fields(described)},
            time=now(),
            format=sealed.SEALED_SINCE,
            epoch=epoch,
            batch=batch,
            frames=len(self.selection.frames),
            sources=self.compared,
            left_out={reason: tuple(names) for reason, names in self.selection.dropped.items()},
        )

    def place(self) -> str:
        """Return what computes: the device, and how many processes share the work."""
        alone = self.ranks.world_size == 1
        return (
            str(self.device) if alone else f"{self.device.type}, {self.ranks.world_size} processes sharing every batch"
        )

    def document(self) -> RunDescription:
        """Return what log and checkpoints record of the run."""
        recipe, task = self.recipe, self.objective.task
        sections = ("data", "run", "voxels", "network", "augment", task)
        made = record.made_with(self.tables.store, self.used)
        departures = protocol.departures(recipe, task, len(self.selection.frames), self.ancestor, made)
        return RunDescription(
            task=task,
            recipe=recipe.name,
            identity=self.identity,
            config=shown_values({name: plain(asdict(getattr(recipe, name))) for name in sections}),
            written=shown_values(plain(recipe.written)),
            departures=None if departures is None else tuple(departures),
            reads_labels=record.reads_labels(recipe, task, self.ancestor, self.teacher),
            initial=self.ancestor,
            teacher=self.teacher,
            n_outputs=self.objective.n_outputs,
            tables={
                name: LearntTable(table.fingerprint, {shard.shard: shard.key for shard in table.shards})
                for name, table in self.used.items()
            },
            ontology=Dictionary(recipe.ontology.name, recipe.ontology.version),
            class_names=recipe.ontology.class_names,
            seed=self.objective.settings.seed,
            epochs=self.objective.settings.epochs,
            versions=package_versions(TRAINER_PACKAGES),
            commit=made_by().commit,
            device=str(self.device),
            ranks=self.ranks.world_size,
            hardware=record.hardware(),
        )


def initial_checkpoint(recipe: Recipe, task: Task, init: str, store: Store) -> Path | None:
    """Return the checkpoint that `<task>.init` means, or None for random weights.

    Raises TrainerError if it is that of a run which has not been started, or not come to its end, or which learnt
    something else than the recipe asks for now; a checkpoint that is named by its path is taken as it is.
    """
    if not init:
        return None
    earlier = next((one for one in EARLIER_RUNS.get(task, ()) if one == init), None)
    path = recipe.folder() / init if earlier else Path(init).expanduser()
    if not earlier and not path.is_dir():
        return path
    advice = f"run: {recipe.make(init)}" if earlier else "finish that run"
    found = checkpoint.latest(path)
    if found is None:
        raise TrainerError(
            f'{task}.init is "{init}", but {path} holds no checkpoint; {advice}, or set {task}.init to a checkpoint, '
            'or to "" for random weights'
        )
    document = checkpoint.read_document(found)
    if not document.is_finished:
        raise TrainerError(
            f"the run in {path} has finished {document.epoch} of {document.epochs} epochs; {advice}, or set "
            f"{task}.init to {found}"
        )
    changes = changes_since(document.student, recipe, earlier, store, checkpoint.newest_weights) if earlier else []
    if changes:
        listed = "".join(f"\n  {line}" for line in changes)
        raise TrainerError(
            f"{found}, which {task} would start from, is of another recipe than the one at hand, or of this one before "
            f"it was changed:{listed}\nTrain it again: {recipe.make(init, more=['--fresh'])} (moves the old run "
            f"aside), or set {task}.init to {found} to start from it as it is"
        )
    return found


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a run's folder and yield its file descriptor; raises TrainerError if another run holds it."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise TrainerError(f"{path} cannot be written: {error.strerror}; set run.runs to a folder of yours") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 100, 0).decode(errors="replace").strip()
            raise TrainerError(
                f"another run is writing into {folder} (process {holder or 'unknown'}); wait for it, stop it, or give "
                "this one another recipe name or run.runs"
            ) from None
        except OSError as error:  # Lustre without -o flock, NFS without lockd
            raise TrainerError(
                f"{path} cannot be locked: {error.strerror}. The file system of {folder.parent} knows no locks, which "
                f"keep two runs from writing into one folder; set run.runs to a folder that lies elsewhere"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def earlier_run(store: Store, run: Run, resume: str, fresh: bool, tell: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint to go on from, or None to start; `fresh` moves an earlier run aside first.

    Damaged ones that are newer are renamed, and `tell` is told of them. Raises TrainerError if the folder holds a run
    of another configuration, one that may not be continued, or none but damaged checkpoints.
    """
    if fresh and run.folder.exists():
        move_aside(store, run)
    newest = checkpoint.newest(run.folder)
    path = newest.path
    if path is None and newest.damaged:
        raise TrainerError(
            f"{run.folder} holds no state that is whole: {'; '.join(newest.damaged.values())}. Pass --fresh to move it "
            "aside and start over"
        )
    if path is None:
        return None
    if resume == "never":
        raise TrainerError(
            f"{run.folder} holds {path.name} already; leave out --resume never to go on from it, or pass --fresh to "
            "move it aside and start over"
        )
    changes = differences(as_document(checkpoint.read_document(path).identity) or {}, as_document(run.identity))
    if changes:
        listed = "".join(f"\n  {line}" for line in changes)
        raise TrainerError(
            f"{run.folder} holds a run of another configuration:{listed}\nSet these back to go on, or pass --fresh to "
            "move it aside and start over; nothing is lost"
        )
    for damaged, what in newest.damaged.items():
        tell(f"{what}. It is kept as {checkpoint.set_aside(damaged).name}; going on from {path.name}")
    return path


def move_aside(store: Store, run: Run) -> None:
    """Rename a run's folder, and keep its tables under a ref of that name too."""
    number = 1
    while (aside := run.folder.with_name(f"{run.folder.name}.old-{number}")).exists():
        number += 1
    with suppress(StoreError):  # it never came to pin a table, or the store is another one
        store.write_ref(pin(run.recipe, aside.name), store.expect_ref(pin(run.recipe, run.folder.name)))
    run.folder.rename(aside)
