"""Training: one loop for every objective, read from top to bottom."""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from manifests.config import ConfigError, changed_values
from manifests.fingerprint import differences, digest, plain
from manifests.store import Ref, Store, StoreError, TableRef
from trainer import checkpoint, data, official, protocol, record
from trainer.config import Recipe, SgdConfig, Task, TrainerError
from trainer.losses import segmentation_loss, soft_text_target, tmp_loss
from trainer.minkunet import build_network, freeze_trunk, parameter_groups
from trainer.objective import Objective, Terms
from trainer.sparse import Engine, check_engine, open_engine
from trainer.supervised import finetuning, full_supervision, probing

N_INPUTS = 1  # a voxel's only feature is its intensity
LOG_EVERY = 20  # steps between two lines of the log


def pretraining(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return contrastive pre-training (TMP): superpoints find their masks and their prompts.

    The head is as wide as the prompt vectors. The paper (arXiv 2405.15286), section "TMP".
    """
    settings = recipe.pretrain
    text = data.read_text(store, ref, recipe.ontology).to(device)
    groups = torch.from_numpy(recipe.ontology.group_of_prompt.astype(np.int64)).to(device)
    target = soft_text_target(text, groups, settings.target_weight, settings.target_power, settings.clamp_cosines)

    def loss(output: Tensor, batch: data.PairBatch) -> Terms:
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

    def loss(output: Tensor, batch: data.TargetBatch) -> Terms:
        return segmentation_loss(output, batch.labels)

    return Objective(
        task="distill",
        settings=settings,
        stages=("points", "target"),
        broadcast=(),
        make_sample=partial(data.target_sample, recipe.voxels, recipe.augment, recipe.ontology.class_names),
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
    tables: data.Tables
    selection: data.Selection
    used: Mapping[str, TableRef]
    initial: Path | None
    ancestor: Mapping[str, Any] | None
    teacher: Mapping[str, Any] | None

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on, readable; a run is continued only where it is the same."""
        recipe, settings = self.recipe, changed_values(self.objective.settings)
        for name in ("keep_every", "init"):  # no influence; and the initial weights count, not where they lie
            settings.pop(name, None)
        identity: dict[str, Any] = plain(
            {
                "task": self.objective.task,
                self.objective.task: settings,
                "voxels": changed_values(recipe.voxels),
                "network": changed_values(recipe.network),
                "augment": changed_values(recipe.augment),
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
            "departures": protocol.departures(recipe, task, len(self.selection.frames), self.ancestor),
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
            "hardware": record.hardware(),
        }


def train(recipe: Recipe, task: Task, console: Console, *, resume: str = "auto", fresh: bool = False) -> Path:
    """Train until the last epoch is done and return its checkpoint; go on where an earlier run of the recipe stopped.

    `resume` "auto" continues after the last finished epoch of the same configuration, "never" refuses to; `fresh` moves
    an earlier run aside and starts over. Into the folder of the run go `log.jsonl`, `tensorboard/` and one checkpoint
    per epoch. The store gets the ref `runs/<recipe>-<task>`, which keeps the tables from being collected.

    Raises StoreError for tables that are missing or damaged, ConfigError for a recipe that cannot be run here, and
    TrainerError for anything else that the user can mend. KeyboardInterrupt carries a sentence on what is kept.
    """
    store = Store.open(recipe.run.store)
    ref = store.read_ref(recipe.name)
    data.check_dictionary(store, ref, "group", recipe.ontology.label_content())
    engine = open_engine(recipe.network.engine)
    device = resolve_device(recipe.run.device, engine)
    recipe = recipe.seen_by(task)
    objective = OBJECTIVES[task](recipe, store, ref, device)
    tables = data.Tables(store, ref, objective.stages)
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    selection = data.select_frames(tables, objective.settings.split, recipe.data.dataset, excluded, objective.every)
    used = tables.used(selection.frames) | {stage: ref.table(stage) for stage in objective.broadcast}
    folder = recipe.folder() / task
    initial = initial_checkpoint(recipe, task, objective.init)
    ancestor = record.ancestor(initial) if initial else None
    teacher = record.teacher_of(store, ref, ancestor)
    run = Run(recipe, objective, folder, engine, device, tables, selection, used, initial, ancestor, teacher)

    with locked(folder) as lock, deterministic(recipe.run.deterministic, device, engine):
        earlier = earlier_run(store, run, resume, fresh)
        if earlier is not None and earlier.document["epoch"] == objective.settings.epochs:
            console.print(
                f"{task}: {earlier.path} is finished ({objective.settings.epochs} epochs); --fresh starts anew"
            )
            return earlier.path
        console.print(f"{task}: {selection.sentence()}, on {device}")
        store.write_ref(pin(recipe, task), Ref(recipe.name, used, tuple(sorted(excluded))))
        try:
            path = learn(run, earlier, lock, console)
            say_how_it_was_run(run, record.write_record(recipe, task, store), console)
            return path
        except KeyboardInterrupt:
            record.write_record(recipe, task, store)
            done = max(checkpoint.finished_epochs(folder), default=0)
            raise KeyboardInterrupt(
                f"interrupted; {done} of {objective.settings.epochs} epochs are finished and kept in {folder}. The "
                "same command goes on from there"
            ) from None


def say_how_it_was_run(run: Run, report: Path | None, console: Console) -> None:
    """Print in what a finished run differs from the paper's, and where its report is."""
    departures = run.document()["departures"]
    if departures:
        console.print(f"not as in the paper: {'; '.join(departures)}")
    console.print(f"{run.objective.task}: the report of the run is {report}")


def learn(run: Run, earlier: checkpoint.Checkpoint | None, lock: int, console: Console) -> Path:
    """Train from the start, or from an earlier checkpoint of the run, to the last epoch; return its checkpoint.

    `lock` is the file descriptor of the run's lock, which is not for the workers to hold.
    """
    recipe, objective, device = run.recipe, run.objective, run.device
    settings, n_frames = objective.settings, len(run.selection.frames)

    seed_everything(settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    network = build_network(
        recipe.network,
        N_INPUTS,
        objective.n_outputs,
        run.engine,
        normalise_output=objective.normalise_output,
        generator=generator,
    ).to(device)
    if objective.frozen_trunk:
        freeze_trunk(network)
    optimiser = build_optimiser(parameter_groups(network, objective.lr_trunk, objective.lr_head), settings)
    full_rates = [group["lr"] for group in optimiser.param_groups]
    done = step = 0
    if earlier is not None:
        checkpoint.restore(earlier, network, optimiser)
        done, step = earlier.document["epoch"], earlier.document["step"]
        console.print(f"going on after epoch {done} of {settings.epochs}")
    elif run.initial is not None:
        taken = checkpoint.load_initial(network, official.load(run.initial), recipe.voxels)
        console.print(f"starting from {run.initial}: {taken.sentence()}")

    frames = data.BatchDataset(run.tables, run.selection.frames, objective.make_sample, settings.seed)
    order = data.EpochOrder(n_frames, settings.batch_size, settings.seed, settings.drop_last)
    order.epoch = done
    document = run.document()
    with data.load_batches(
        frames, order, recipe.run.loader_workers, pin=device.type == "cuda", at_start=partial(os.close, lock)
    ) as loader:
        batches = iter(loader)  # forks the workers, before the log and the progress bar start their threads
        with Log(run.folder, step) as log, progress_bar(console, recipe.run.progress) as bar:
            left_out = {reason: list(names) for reason, names in run.selection.dropped.items()}
            log.event("start", **document, epoch=done, frames=n_frames, left_out=left_out)
            shown = bar.add_task("", total=(settings.epochs - done) * len(order))

            for epoch in range(done + 1, settings.epochs + 1):
                network.train(not objective.frozen_trunk)
                for group, full_rate in zip(optimiser.param_groups, full_rates, strict=True):
                    group["lr"] = full_rate * cosine(epoch - 1, settings.epochs)
                sums: dict[str, float] = {}
                n_seen, waited_s, started = 0, 0.0, time.perf_counter()

                for _ in range(len(order)):
                    asked = time.perf_counter()
                    batch = data.checked_batch(next(batches)).each(partial(to_device, device=device))
                    waited_s += time.perf_counter() - asked

                    terms = objective.loss(network(batch.coords, batch.features), batch)
                    values = named_values(terms)
                    if not all(map(math.isfinite, values.values())):
                        raise TrainerError(non_finite(values, batch.frame_ids, epoch))
                    optimiser.zero_grad(set_to_none=True)
                    torch.autograd.backward(terms.total)
                    optimiser.step()

                    step += 1
                    n_seen += len(batch.frame_ids)
                    sums = {name: sums.get(name, 0.0) + value for name, value in values.items()}
                    if step % LOG_EVERY == 0:
                        log.scalars("step", step, epoch, values)
                    bar.update(shown, advance=1, description=f"epoch {epoch}/{settings.epochs}  {values['total']:.3f}")

                elapsed_s = time.perf_counter() - started
                means = {name: value / len(order) for name, value in sums.items()}
                path = checkpoint.epoch_path(run.folder, epoch)
                checkpoint.save(path, network, optimiser, {**document, "epoch": epoch, "step": step, "loss": means})
                checkpoint.prune(run.folder, settings.keep_every)
                rates = {f"lr_{group['name']}": group["lr"] for group in optimiser.param_groups}
                speed = {"frames_per_second": n_seen / elapsed_s, "data_wait_share": waited_s / elapsed_s}
                log.scalars("epoch", step, epoch, {**means, **rates, **speed, "seconds": elapsed_s})
                console.print(
                    f"epoch {epoch}/{settings.epochs}: loss {means['total']:.4f}, {n_seen / elapsed_s:.1f} frames/s, "
                    f"{speed['data_wait_share']:.0%} of the time waiting for data"
                )
                if epoch < settings.epochs:
                    order.epoch = epoch
                    batches = iter(loader)
    return checkpoint.epoch_path(run.folder, settings.epochs)


# -- the parts of the loop ---------------------------------------------------------------------------------------------


def cosine(epoch: int, n_epochs: int) -> float:
    """Return the share of the full rate in epoch 0, 1, ...: from 1 down towards 0, (1 + cos(pi e / E)) / 2."""
    return (1 + math.cos(math.pi * epoch / n_epochs)) / 2


def build_optimiser(groups: list[dict[str, Any]], settings: SgdConfig) -> torch.optim.Optimizer:
    """Return the optimiser of an objective over groups of parameters, each with a rate of its own."""
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(groups, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        groups, momentum=settings.momentum, dampening=settings.dampening, weight_decay=settings.weight_decay
    )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; from page-locked memory it travels while the GPU computes."""
    return tensor.to(device, non_blocking=True)


def named_values(terms: Terms) -> dict[str, float]:
    """Return the terms of a loss as numbers, fetched from the device at once."""
    named = terms._asdict()
    return dict(zip(named, torch.stack([value.detach() for value in named.values()]).tolist(), strict=True))


def non_finite(values: Mapping[str, float], frame_ids: tuple[str, ...], epoch: int) -> str:
    """Return the sentence for a loss that is not a number."""
    terms = ", ".join(f"{name} {value}" for name, value in values.items())
    return (
        f"the loss is not finite in epoch {epoch} ({terms}) on frames {', '.join(frame_ids)}. Finished epochs are "
        "kept. Lower the learning rate, or look at these frames and leave them out with data.exclude"
    )


def resolve_device(name: str, engine: Engine) -> torch.device:
    """Return the device of `run.device`: "auto" is the GPU where torch and the engine can both use one.

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
    if device.type == "cuda":
        check_engine(engine, device)
    return device


def seed_everything(seed: int) -> None:
    """Seed the process's own generators (Python, NumPy, torch); what the trainer draws has generators of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


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
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


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
    if document["epoch"] < document["epochs"]:
        raise TrainerError(
            f"the run in {path} has finished {document['epoch']} of {document['epochs']} epochs; {advice}, or set "
            f"{task}.init to {found}"
        )
    return found


def pin(recipe: Recipe, task: str) -> str:
    """Return the name of the ref that keeps the tables of a run."""
    return f"runs/{recipe.name}-{task}"


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


def earlier_run(store: Store, run: Run, resume: str, fresh: bool) -> checkpoint.Checkpoint | None:
    """Return the checkpoint to go on from, or None to start; `fresh` moves an earlier run aside first.

    Raises TrainerError if the folder holds a run of another configuration, or one that may not be continued.
    """
    if fresh and run.folder.exists():
        move_aside(store, run)
    path = checkpoint.latest(run.folder)
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
    return checkpoint.load(path)


def move_aside(store: Store, run: Run) -> None:
    """Rename a run's folder, and keep its tables under a ref of that name too."""
    number = 1
    while (aside := run.folder.with_name(f"{run.folder.name}.old-{number}")).exists():
        number += 1
    try:
        store.write_ref(pin(run.recipe, aside.name), store.read_ref(pin(run.recipe, run.folder.name)))
    except StoreError:
        pass  # it never came to pin a table, or the store is another one
    run.folder.rename(aside)


class Log:
    """The log of a run: one JSON object a line in `log.jsonl`, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        """`step` is the number of steps done; what TensorBoard holds beyond it was lost with an interrupted epoch."""
        self._folder, self._step = folder, step

    def __enter__(self) -> Log:
        # takes two seconds to import
        from torch.utils.tensorboard import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        self._file = (self._folder / "log.jsonl").open("a", encoding="utf-8")
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        self._board.close()
        self._file.close()

    def event(self, kind: str, **values: Any) -> None:
        """Add a line with the time of day."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps({"event": kind, "time": now, **values}, allow_nan=False) + "\n")
        self._file.flush()

    def scalars(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add a line of numbers, and a point to a curve of each."""
        self.event(kind, epoch=epoch, step=step, **values)
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
