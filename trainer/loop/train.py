"""Training: one loop for every objective, read from top to bottom."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from manifests.config import ConfigError, RunConfig, changed_values
from manifests.fingerprint import differences, digest, plain
from manifests.storage.store import Ref, Store, StoreError, TableRef
from trainer import data
from trainer.augment import without_pairs
from trainer.checkpoints import checkpoint, official
from trainer.config import Recipe, Task, TrainerError
from trainer.inference.predictions import pin
from trainer.loop.learner import Learner
from trainer.loop.ranks import ALONE, Ranks, joined
from trainer.network.sparse import Engine, check_engine, open_engine
from trainer.objectives.losses import Counts, Whole, counts, segmentation_loss, soft_text_target, tmp_loss
from trainer.objectives.objective import Objective, Terms
from trainer.objectives.supervised import finetuning, full_supervision, probing
from trainer.records import protocol, record
from trainer.voxels import without_labels

LOG_EVERY = 20  # steps between two lines of the log


def pretraining(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return contrastive pre-training (TMP): superpoints find their masks and their prompts.

    The head is as wide as the prompt vectors. The paper (arXiv 2405.15286), section "TMP".
    """
    settings = recipe.pretrain
    text = data.read_text(store, ref, recipe.ontology).to(device)
    groups = torch.from_numpy(recipe.ontology.group_of_prompt.astype(np.int64)).to(device)
    target = soft_text_target(text, groups, settings.target_weight, settings.target_power, settings.clamp_cosines)

    def loss(output: Tensor, batch: data.PairBatch, whole: Whole) -> Terms:
        return tmp_loss(
            output,
            batch.pair_voxel,
            batch.pair_superpoint,
            batch.superpoint_vector,
            batch.superpoint_prompt,
            batch.superpoint_frame,
            text,
            target,
            settings,
            whole,
        )

    return Objective(
        task="pretrain",
        settings=settings,
        stages=("points", "pairs"),
        broadcast=("text",),
        make_sample=partial(data.pair_sample, recipe.voxels, recipe.augment),
        n_outputs=text.shape[1],
        normalise_output=True,
        lr_trunk=settings.lr,
        lr_head=settings.lr,
        loss=loss,
    )


def distillation(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return the learning of pseudo-labels, one output per class and one for "none".

    The paper (arXiv 2405.15286), annotation-free training; points whose pseudo-label is 0 teach nothing.
    """
    if "text" in ref.tables:
        data.read_text(
            store, ref, recipe.ontology
        )  # the pseudo-labels count the classes of the dictionary it was made of
    settings = recipe.distill
    n_outputs = len(recipe.ontology.classes)
    confident = settings.weight == "confidence"
    class_names = recipe.ontology.class_names

    def loss(output: Tensor, batch: data.TargetBatch, whole: Whole) -> Terms:
        weight = batch.confidence if isinstance(batch, data.ConfidentBatch) else None
        return segmentation_loss(output, batch.labels, batch.voxel_frame, settings.lovasz, whole=whole, weight=weight)

    return Objective(
        task="distill",
        settings=settings,
        stages=("points", "target"),
        broadcast=(),
        make_sample=partial(data.target_sample, recipe.voxels, recipe.augment, class_names, confident=confident),
        n_outputs=n_outputs,
        normalise_output=False,
        lr_trunk=settings.lr_trunk,
        lr_head=settings.lr_head,
        loss=loss,
        init=settings.init,
    )


OBJECTIVES: dict[Task, Callable[[Recipe, Store, Ref, torch.device], Objective]] = {
    "pretrain": pretraining,
    "distill": distillation,
    "probe": probing,
    "finetune": finetuning,
    "supervised": full_supervision,
}


EARLIER_RUNS: dict[Task, tuple[Task, ...]] = {
    "distill": ("pretrain",),
    "probe": ("pretrain", "distill"),
    "finetune": ("pretrain", "distill"),
    "supervised": ("pretrain", "distill"),
}
"""Whose weights a task may start from by name, in the same recipe."""


@dataclass(frozen=True)
class Run:
    """A run that is ready to start: where it lives, what it learns from what, and where its weights begin."""

    recipe: Recipe
    objective: Objective
    folder: Path
    engine: Engine
    device: torch.device
    ranks: Ranks
    tables: data.Tables
    selection: data.Selection
    excluded: frozenset[str]
    used: Mapping[str, TableRef]
    initial: Path | None
    ancestor: Mapping[str, Any] | None
    teacher: Mapping[str, Any] | None

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on, readable; a run is continued only where it is the same."""
        recipe, task, settings = self.recipe, self.objective.task, changed_values(self.objective.settings)
        for name in ("keep_every", "init"):  # no influence; and the initial weights count, not where they lie
            settings.pop(name, None)
        identity: dict[str, Any] = plain(
            {
                "task": task,
                task: settings,
                "voxels": changed_values(without_labels(recipe.voxels) if task == "pretrain" else recipe.voxels),
                "network": changed_values(recipe.network),
                "augment": changed_values(recipe.augment if task == "pretrain" else without_pairs(recipe.augment)),
                "tables": {
                    name: {"fingerprint": table.fingerprint, "shards": digest([shard.key for shard in table.shards])}
                    for name, table in self.used.items()
                },
                "frames": {
                    "number": len(self.selection.frames),
                    "digest": digest([frame.frame_id for frame in self.selection.frames]),
                },
                "ontology": digest(recipe.ontology.label_content()),
                "init": self.ancestor["weights"] if self.ancestor else None,
            }
        )
        return identity

    def place(self) -> str:
        """Return what computes: the device, and how many processes share the work."""
        alone = self.ranks.size == 1
        return str(self.device) if alone else f"{self.device.type}, {self.ranks.size} processes sharing every batch"

    def document(self) -> dict[str, Any]:
        """Return what log and checkpoints record of the run."""
        recipe = self.recipe
        task = self.objective.task
        sections = ("data", "run", "voxels", "network", "augment", task)
        return {
            "task": task,
            "recipe": recipe.name,
            "identity": self.identity,
            "config": {name: plain(asdict(getattr(recipe, name))) for name in sections},
            "written": plain(recipe.written),
            "departures": protocol.departures(
                recipe,
                task,
                len(self.selection.frames),
                self.ancestor,
                record.made_with(self.tables.store, self.used),
            ),
            "reads_labels": record.reads_labels(recipe, task, self.ancestor, self.teacher),
            "initial": self.ancestor,
            "teacher": self.teacher,
            "n_outputs": self.objective.n_outputs,
            "tables": {
                name: {"fingerprint": table.fingerprint, "shards": {shard.shard: shard.key for shard in table.shards}}
                for name, table in self.used.items()
            },
            "ontology": {"name": recipe.ontology.name, "version": recipe.ontology.version},
            "class_names": list(recipe.ontology.class_names),
            "seed": self.objective.settings.seed,
            "epochs": self.objective.settings.epochs,
            "versions": checkpoint.versions(),
            "commit": checkpoint.git_commit(),
            "device": str(self.device),
            "ranks": self.ranks.size,
            "hardware": record.hardware(),
        }


def train(recipe: Recipe, task: Task, console: Console, *, resume: str = "auto", fresh: bool = False) -> Path:
    """Train until the last epoch is done and return its checkpoint; go on where an earlier run of the recipe stopped.

    `resume` "auto" continues from the last state that the same configuration saved, "never" refuses to; `fresh` moves
    an earlier run aside and starts over. Into the folder of the run go `log.jsonl`, `tensorboard/`, one checkpoint per
    epoch, and the state in the middle of one as often as `[run]` asks, and when Ctrl-C or SIGTERM ends the run. The
    store gets the ref `runs/<recipe>-<task>`, which keeps the tables from being collected. Started by `torchrun`, all
    processes train together; the first one prints and writes.

    Raises StoreError for tables that are missing or damaged, ConfigError for a recipe that cannot be run here, and
    TrainerError for anything else that the user can mend. KeyboardInterrupt carries a sentence on what is kept.
    """
    with joined() as ranks, ExitStack() as held:
        if not ranks.is_first:
            console = Console(quiet=True)
        store = Store.open(recipe.run.store)
        run = prepare(recipe, task, store, ranks)
        held.enter_context(deterministic(recipe.run.deterministic, run.device, run.engine))
        lock = ranks.from_first(lambda: held.enter_context(locked(run.folder)))
        path = ranks.from_first(lambda: earlier_run(store, run, resume, fresh))
        earlier = checkpoint.load(path) if path else None
        n_epochs = run.objective.settings.epochs
        if earlier is not None and earlier.document["epoch"] == n_epochs:
            console.print(f"{task}: {earlier.path} is finished ({n_epochs} epochs); --fresh starts anew")
            if ranks.is_first:  # it may have been killed before its report was written
                record.write_record(run.recipe, task, store)
            return earlier.path
        console.print(f"{task}: {run.selection.sentence()}, on {run.place()}")
        if ranks.is_first:
            store.write_ref(pin(recipe.name, task), Ref(recipe.name, run.used, tuple(sorted(run.excluded))))
        try:
            path = learn(run, earlier, lock if ranks.is_first else None, console)
        except KeyboardInterrupt:
            if not ranks.is_first:
                raise KeyboardInterrupt(f"rank {ranks.rank} ends with the others") from None
            record.write_record(run.recipe, task, store)
            raise KeyboardInterrupt(what_is_kept(run)) from None
        if ranks.is_first:
            say_how_it_was_run(run, record.write_record(run.recipe, task, store), console)
        return path


def prepare(recipe: Recipe, task: Task, store: Store, ranks: Ranks) -> Run:
    """Return the run of a task; raises like `train`."""
    ref = store.read_ref(recipe.name)
    data.check_dictionary(store, ref, "group", recipe.ontology.label_content())
    engine = open_engine(recipe.network.engine)
    device = resolve_device(recipe.run.device, engine, ranks)
    recipe = recipe.seen_by(task)
    objective = OBJECTIVES[task](recipe, store, ref, device)
    tables = data.Tables(store, ref, objective.stages)
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    selection = data.select_frames(tables, objective.settings.split, recipe.data.dataset, excluded, objective.every)
    used = tables.used(selection.frames) | {stage: ref.table(stage) for stage in objective.broadcast}
    initial = initial_checkpoint(recipe, task, objective.init)
    ancestor = record.ancestor(initial, official.read_document(initial)) if initial else None
    return Run(
        recipe=recipe,
        objective=objective,
        folder=recipe.folder() / task,
        engine=engine,
        device=device,
        ranks=ranks,
        tables=tables,
        selection=selection,
        excluded=excluded,
        used=used,
        initial=initial,
        ancestor=ancestor,
        teacher=record.teacher_of(store, ref, ancestor),
    )


def what_is_kept(run: Run) -> str:
    """Return the sentence for a run that was interrupted."""
    done = max(checkpoint.finished_epochs(run.folder), default=0)
    middle = " and the state in the middle of the next one" if checkpoint.running_path(run.folder).is_file() else ""
    return (
        f"interrupted; {done} of {run.objective.settings.epochs} epochs{middle} are finished and kept in {run.folder}. "
        "The same command goes on from there"
    )


def say_how_it_was_run(run: Run, report: Path | None, console: Console) -> None:
    """Print in what a finished run differs from the paper's, and where its report is."""
    departures = run.document()["departures"]
    if departures:
        console.print(f"not as in the paper: {'; '.join(departures)}")
    console.print(f"{run.objective.task}: the report of the run is {report}")


def learn(run: Run, earlier: checkpoint.Checkpoint | None, lock: int | None, console: Console) -> Path:
    """Train from the start, or from an earlier checkpoint of the run, to the last epoch; return its checkpoint.

    `lock` is the file descriptor of the run's lock, which is not for the workers to hold.
    """
    recipe, objective, ranks = run.recipe, run.objective, run.ranks
    settings, frames = objective.settings, run.selection.frames

    learner = Learner(objective, recipe.network, run.engine, run.device, ranks)
    order = data.EpochOrder(
        len(frames),
        settings.batch_size,
        settings.seed,
        settings.drop_last,
        rank=ranks.rank,
        n_ranks=ranks.size,
        n_parts=settings.accumulate,
    )
    done, step, so_far = 0, 0, SoFar()
    if earlier is not None:
        learner.restore(earlier)
        done, step = earlier.document["epoch"], earlier.document["step"]
        so_far = SoFar(**earlier.document.get("so_far", {}))
        middle = f" and {so_far.batches} of {len(order)} batches of the next" if so_far.batches else ""
        console.print(f"going on after epoch {done} of {settings.epochs}{middle}")
    elif run.initial is not None:
        taken = checkpoint.load_initial(learner.network, official.load(run.initial), recipe.voxels)
        console.print(f"starting from {run.initial}: {taken.sentence()}")
    if ranks.size > 1 and run.device.type == "cpu" and not objective.frozen_trunk:
        console.print("on CPUs, batch norm counts the frames of each process apart; on GPUs, those of all together")
    order.epoch, order.first = done, so_far.batches
    document = run.document()
    saved = time.perf_counter()

    def save(path: Path, epoch: int, **more: Any) -> None:
        learner.save(path, {**document, "epoch": epoch, "step": step, **more})

    with data.load_batches(
        data.BatchDataset(run.tables, frames, objective.make_sample, settings.seed),
        order,
        recipe.run.loader_workers,
        pin=run.device.type == "cuda",
        at_start=partial(os.close, lock) if lock is not None else None,
    ) as loader:
        batches = iter(loader)  # forks the workers, before the log and the progress bar start their threads
        with (
            Log(run.folder if ranks.is_first else None, step) as log,
            progress_bar(console, recipe.run.progress and ranks.is_first) as bar,
            Stop(ranks) as stop,
        ):
            left_out = {reason: list(names) for reason, names in run.selection.dropped.items()}
            log.event("start", **document, epoch=done, batch=so_far.batches, frames=len(frames), left_out=left_out)
            shown = bar.add_task("", total=(settings.epochs - done) * len(order), completed=so_far.batches)

            for epoch in range(done + 1, settings.epochs + 1):
                learner.start_epoch(cosine(epoch - 1, settings.epochs))
                started = time.perf_counter() - so_far.elapsed_s

                for batch in order.steps():
                    asked = time.perf_counter()
                    parts = [data.checked_batch(next(batches)) for _ in batch.parts]
                    parts = [one.silent() if part.silent else one for one, part in zip(parts, batch.parts, strict=True)]
                    so_far.waited_s += time.perf_counter() - asked
                    whole, ending = agree(ranks, parts, stop.asked)
                    if ending:
                        if ranks.is_first and so_far.batches:
                            save(checkpoint.running_path(run.folder), epoch - 1, so_far=asdict(so_far))
                        raise KeyboardInterrupt

                    values = learner.find_gradients(parts, whole)
                    if not all(map(math.isfinite, values.values())):
                        names = [frames[number].frame_id for number in batch.numbers]
                        raise TrainerError(non_finite(values, names, epoch))
                    learner.follow_gradients()

                    step += 1
                    so_far.add(values, len(batch.numbers), time.perf_counter() - started)
                    if step % LOG_EVERY == 0:
                        log.scalars("step", step, epoch, values)
                    bar.update(shown, advance=1, description=f"epoch {epoch}/{settings.epochs}  {values['total']:.3f}")
                    if ranks.is_first and is_due(recipe.run, step, time.perf_counter() - saved):
                        save(checkpoint.running_path(run.folder), epoch - 1, so_far=asdict(so_far))
                        saved = time.perf_counter()

                means, speed = so_far.means(), so_far.speed()
                # first the log: what is saved is never done again, and so would not be logged
                log.scalars("epoch", step, epoch, {**means, **learner.rates(), **speed, "seconds": so_far.elapsed_s})
                if ranks.is_first:
                    save(checkpoint.epoch_path(run.folder, epoch), epoch, loss=means)
                    checkpoint.prune(run.folder, settings.keep_every)
                console.print(
                    f"epoch {epoch}/{settings.epochs}: loss {means['total']:.4f}, "
                    f"{speed['frames_per_second']:.1f} frames/s, "
                    f"{speed['data_wait_share']:.0%} of the time waiting for data"
                )
                saved, so_far = time.perf_counter(), SoFar()
                if epoch < settings.epochs:
                    order.epoch, order.first = epoch, 0
                    batches = iter(loader)
    return checkpoint.epoch_path(run.folder, settings.epochs)


# -- the parts of the loop ---------------------------------------------------------------------------------------------


@dataclass
class SoFar:
    """What has been done of an epoch: batches and frames, the sum of every term of the loss, and time."""

    batches: int = 0
    frames: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    waited_s: float = 0.0
    elapsed_s: float = 0.0

    def add(self, values: Mapping[str, float], n_frames: int, elapsed_s: float) -> None:
        """Count a batch, the last of which ended that long after the epoch began."""
        self.batches += 1
        self.frames += n_frames
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in values.items()}
        self.elapsed_s = elapsed_s

    def means(self) -> dict[str, float]:
        """Return the mean of every term over the batches."""
        return {name: value / self.batches for name, value in self.sums.items()}

    def speed(self) -> dict[str, float]:
        """Return frames a second, and which share of the time went by waiting for data."""
        return {"frames_per_second": self.frames / self.elapsed_s, "data_wait_share": self.waited_s / self.elapsed_s}


class Stop:
    """Notes Ctrl-C and SIGTERM, so that a run can end between two steps; a second one ends a run that is alone at once.

    (`torchrun` passes on what the terminal has sent to every process already, and ends those that take 30 s.)
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self.asked = ranks, False

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked and self._ranks.size == 1:
            raise KeyboardInterrupt
        if not self.asked and self._ranks.is_first:
            os.write(2, b"trainer: saving before the next step, then ending\n")
        self.asked = True


def agree(ranks: Ranks, parts: Sequence[data.Batch], ending: bool) -> tuple[Whole, bool]:
    """Return what the parts of all processes hold together, and whether any of them was asked to end."""
    found = [counts(part.taught, part.taught_weight) for part in parts]
    totals = [sum(column) for column in zip(*found, strict=True)]
    *totals, n_ending = ranks.sum(torch.tensor([*totals, int(ending)])).tolist()
    return Whole(Counts(*totals), ranks.size, ranks.gather), n_ending > 0


def is_due(run: RunConfig, step: int, since_s: float) -> bool:
    """Return whether the middle of an epoch is to be saved, so many seconds after anything was."""
    by_step = run.checkpoint_steps > 0 and step % run.checkpoint_steps == 0
    return by_step or (run.checkpoint_minutes > 0 and since_s >= 60 * run.checkpoint_minutes)


def cosine(epoch: int, n_epochs: int) -> float:
    """Return the share of the full rate in epoch 0, 1, ...: from 1 down towards 0, (1 + cos(pi e / E)) / 2."""
    return (1 + math.cos(math.pi * epoch / n_epochs)) / 2


def non_finite(values: Mapping[str, float], frame_ids: Sequence[str], epoch: int) -> str:
    """Return the sentence for a loss that is not a number."""
    terms = ", ".join(f"{name} {value}" for name, value in values.items())
    return (
        f"the loss is not finite in epoch {epoch} ({terms}) on frames {', '.join(frame_ids)}. Finished epochs are "
        "kept. Lower the learning rate, or look at these frames and leave them out with data.exclude"
    )


def resolve_device(name: str, engine: Engine, ranks: Ranks = ALONE) -> torch.device:
    """Return the device of `run.device`: "auto" is the GPU where torch and the engine can both use one.

    Of several processes on a machine each gets a GPU of its own.

    On a GPU the engine is compared with dense convolutions first: it is built from source there, and forks of it have
    been wrong. Raises ConfigError for a device that is not there, RuntimeError for an engine that computes wrongly.
    """
    try:
        device = torch.device("cuda" if engine.cuda_usable() else "cpu") if name == "auto" else torch.device(name)
    except RuntimeError:
        raise ConfigError(f'run.device is "{name}"; choose "auto", "cpu", "cuda" or "cuda:1"') from None
    if device.type == "cuda" and not engine.cuda_usable():
        raise ConfigError(
            f'run.device is "{name}", but torch or the {engine.name} engine has no GPU here; set it to "cpu" or "auto"'
        )
    if device.type == "cuda" and ranks.size > 1:
        if ranks.local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {ranks.local} of this machine has no GPU: there are {torch.cuda.device_count()}; start as "
                "many processes (torchrun --nproc-per-node)"
            )
        device = torch.device("cuda", ranks.local)
        torch.cuda.set_device(device)
    if device.type == "cuda":
        check_engine(engine, device)
    return device


@contextmanager
def deterministic(wanted: bool, device: torch.device, engine: Engine) -> Iterator[None]:
    """Within the block, equal inputs give equal bits; on a GPU as far as torch and the sparse engine can."""
    if not wanted:
        yield
        return
    if device.type == "cpu":
        try:
            engine.require_deterministic()
        except RuntimeError as error:
            raise ConfigError(f"run.deterministic = true: {error}") from None
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    memory.fill_uninitialized_memory = False  # nothing reads it, and filling costs 4 % of a step
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled


def progress_bar(console: Console, wanted: bool) -> Progress:
    """Return a bar with the time left, or one that shows nothing where nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (wanted and console.is_terminal),
        transient=True,
    )


# -- runs and their folders --------------------------------------------------------------------------------------------


def initial_checkpoint(recipe: Recipe, task: Task, init: str) -> Path | None:
    """Return the checkpoint that `<task>.init` means, or None for random weights.

    Raises TrainerError if it is that of a run which has not been started, or not come to its end.
    """
    if not init:
        return None
    earlier = init in EARLIER_RUNS.get(task, ())
    path = recipe.folder() / init if earlier else Path(init).expanduser()
    if not earlier and not path.is_dir():
        return path
    advice = f"run: make {init} RECIPE={recipe.name}" if earlier else "finish that run"
    found = checkpoint.latest(path)
    if found is None:
        raise TrainerError(
            f'{task}.init is "{init}", but {path} holds no checkpoint; {advice}, or set {task}.init to a checkpoint, '
            'or to "" for random weights'
        )
    document = checkpoint.read_document(found)
    if "epochs" in document and document["epoch"] < document["epochs"]:  # an imported one tells no number of epochs
        raise TrainerError(
            f"the run in {path} has finished {document['epoch']} of {document['epochs']} epochs; {advice}, or set "
            f"{task}.init to {found}"
        )
    return found


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the lock of a run's folder and yield its file descriptor; raises TrainerError if another run holds it."""
    path = folder.with_name(f"{folder.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
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
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield lock
    finally:
        os.close(lock)


def earlier_run(store: Store, run: Run, resume: str, fresh: bool) -> Path | None:
    """Return the checkpoint to go on from, or None to start; `fresh` moves an earlier run aside first.

    Raises TrainerError if the folder holds a run of another configuration, or one that may not be continued.
    """
    if fresh and run.folder.exists():
        move_aside(store, run)
    path = checkpoint.newest(run.folder)
    if path is None:
        return None
    if resume == "never":
        raise TrainerError(
            f"{run.folder} holds {path.name} already; leave out --resume never to go on from it, or pass --fresh to "
            "move it aside and start over"
        )
    changes = differences(checkpoint.read_document(path)["identity"], run.identity)
    if changes:
        listed = "".join(f"\n  {line}" for line in changes)
        raise TrainerError(
            f"{run.folder} holds a run of another configuration:{listed}\nSet these back to go on, or pass --fresh to "
            "move it aside and start over; nothing is lost"
        )
    return path


def move_aside(store: Store, run: Run) -> None:
    """Rename a run's folder, and keep its tables under a ref of that name too."""
    number = 1
    while (aside := run.folder.with_name(f"{run.folder.name}.old-{number}")).exists():
        number += 1
    try:
        name = run.recipe.name
        store.write_ref(pin(name, aside.name), store.read_ref(pin(name, run.folder.name)))
    except StoreError:
        pass  # it never came to pin a table, or the store is another one
    run.folder.rename(aside)


class Log:
    """The log of a run: one JSON object a line in `log.jsonl`, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path | None, step: int) -> None:
        """`step` is the number of steps done; what TensorBoard holds beyond it was lost. Without a folder, nothing is
        written."""
        self._folder, self._step = folder, step

    def __enter__(self) -> Log:
        if self._folder is None:
            return self
        # takes two seconds to import
        from torch.utils.tensorboard import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "log.jsonl"
        cut_off = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", encoding="utf-8")
        if cut_off:  # by a kill in the middle of a line, which must not swallow the next one
            self._file.write("\n")
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._board.close()
            self._file.close()

    def event(self, kind: str, **values: Any) -> None:
        """Add a line with the time of day."""
        if self._folder is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps({"event": kind, "time": now, **values}, allow_nan=False) + "\n")
        self._file.flush()

    def scalars(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add a line of numbers, and a point to a curve of each."""
        if self._folder is None:
            return
        self.event(kind, epoch=epoch, step=step, **values)
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
