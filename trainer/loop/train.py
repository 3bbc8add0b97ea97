"""Training: one loop for every objective, read from top to bottom."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from manifests.recipe import Recipe
from manifests.sections.data import RunConfig
from manifests.sections.training import Task
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from trainer.checkpoints import checkpoint, official
from trainer.data.batches import Batch
from trainer.data.loading import BatchDataset, EpochOrder, checked_batch, load_batches
from trainer.data.tables import Tables, check_dictionary, select_frames
from trainer.errors import TrainerError
from trainer.inference.predictions import pin
from trainer.loop.device import deterministic, resolve_device
from trainer.loop.learner import Learner
from trainer.loop.log import Log, progress_bar
from trainer.loop.ranks import Ranks, joined
from trainer.loop.run_folder import Run, earlier_run, initial_checkpoint, locked
from trainer.network.sparse import open_engine
from trainer.objectives.losses import Counts, Whole, counts
from trainer.objectives.registry import OBJECTIVES
from trainer.records import record

LOG_EVERY = 20  # steps between two lines of the log


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
    ref = store.expect_ref(recipe.name)
    check_dictionary(store, ref, "group", recipe.ontology.label_content())
    engine = open_engine(recipe.network.engine)
    device = resolve_device(recipe.run.device, engine, ranks)
    recipe = recipe.seen_by(task)
    objective = OBJECTIVES[task](recipe, store, ref, device)
    tables = Tables(store, ref, objective.stages)
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    selection = select_frames(tables, objective.settings.split, recipe.data.dataset, excluded, objective.every)
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
    order = EpochOrder(
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

    with load_batches(
        BatchDataset(run.tables, frames, objective.make_sample, settings.seed),
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
                    parts = [checked_batch(next(batches)) for _ in batch.parts]
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


def agree(ranks: Ranks, parts: Sequence[Batch], ending: bool) -> tuple[Whole, bool]:
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
