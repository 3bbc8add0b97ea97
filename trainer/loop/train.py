"""Training: one loop for every objective, read from top to bottom."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from manifests.asked import pin, tables_of
from manifests.recipe import Recipe
from manifests.records.checkpoint import CheckpointRecord, EpochSoFar
from manifests.records.codec import as_record
from manifests.records.run import NumbersLine
from manifests.sections.data import RunConfig
from manifests.sections.training import Task
from manifests.sources import compare_files
from manifests.splits import check_named
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from trainer.checkpoints import checkpoint, official
from trainer.data.batches import Batch
from trainer.data.loading import BatchDataset, EpochOrder, StoppedWaiting, load_batches
from trainer.data.tables import Tables, check_dictionary, select_frames
from trainer.errors import TrainerError
from trainer.loop.device import deterministic, resolve_device, unused_gpu
from trainer.loop.learner import Learner
from trainer.loop.log import Log, now, progress_bar
from trainer.loop.ranks import Ranks, joined
from trainer.loop.run_folder import Run, earlier_run, initial_checkpoint, locked
from trainer.network.sparse import open_engine
from trainer.objectives.losses import Counts, GlobalBatch, counts
from trainer.objectives.registry import OBJECTIVES, tables_read
from trainer.records import record

LOG_EVERY = 20  # steps between two lines of the log
TOGETHER_S = (
    10.0  # several processes end together, between two steps; one whose loader stands still ends alone after so long
)


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
        if unused := unused_gpu(run.device):
            console.print(unused)
        lock = ranks.from_first(lambda: held.enter_context(locked(run.folder)))
        path = ranks.from_first(lambda: earlier_run(store, run, resume, fresh, console.print))
        earlier = checkpoint.load(path) if path else None
        n_epochs = run.objective.settings.epochs
        if earlier is not None and earlier.document.epoch == n_epochs:
            console.print(f"{task}: {earlier.path} is finished ({n_epochs} epochs); --fresh starts anew")
            if ranks.is_first:  # it may have been killed before its report was written
                record.write_record(run.recipe, task, store)
            return earlier.path
        console.print(f"{task}: {run.selection.sentence()}, on {run.place()}")
        if run.compared.note:
            console.print(run.compared.note)
        if ranks.is_first:
            store.write_ref(pin(recipe, task), Ref(recipe.name, run.used, tuple(sorted(run.excluded))))
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
    check_named(f"{task}.split", getattr(recipe, task).split, recipe.data.dataset)
    ref = tables_of(store, recipe, tables_read(recipe, task))
    check_dictionary(store, ref, "group", recipe.ontology.label_content())
    engine = open_engine(recipe.network.engine, recipe.run.device)
    device = resolve_device(recipe.run.device, engine, ranks)
    asked, recipe = recipe, recipe.seen_by(task)
    objective = OBJECTIVES[task](recipe, store, ref, device)
    tables = Tables(store, ref, objective.stages)
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    selection = select_frames(tables, objective.settings.split, recipe.data.dataset, excluded, objective.every)
    used = tables.used(selection.frames) | {stage: ref.table(stage) for stage in objective.broadcast}
    shards = {frame.shard for frame in selection.frames}
    compared = ranks.from_first(lambda: compare_files(store, recipe, ref, shards, objective.stages))
    initial = initial_checkpoint(asked, task, objective.init, store)
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
        compared=compared,
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
    departures = run.document().departures
    if departures:
        console.print(f"not as in the paper: {'; '.join(departures)}")
    console.print(f"{run.objective.task}: the report of the run is {report}")


def learn(run: Run, earlier: checkpoint.Checkpoint | None, lock: int | None, console: Console) -> Path:
    """Train from the start, or from an earlier checkpoint of the run, to the last epoch; return its checkpoint.

    `lock` is the file descriptor of the run's lock, which is not for the workers to hold.
    """
    # the network and its optimiser, the order of the frames by epoch, and how far an earlier run has come
    recipe, ranks = run.recipe, run.ranks
    settings, frames = run.objective.settings, run.selection.frames
    learner = Learner(run.objective, recipe.network, run.engine, run.device, ranks)
    order = EpochOrder(
        len(frames),
        settings.batch_size,
        settings.seed,
        settings.drop_last,
        rank=ranks.rank,
        world_size=ranks.world_size,
        n_parts=settings.accumulate,
    )
    samples = BatchDataset(run.tables, frames, run.objective.make_sample, settings.seed)
    ranks.from_first(lambda: check_supervision(run, samples))
    state = begin(run, learner, earlier, len(order), console)
    order.epoch, order.first = state.epoch, state.so_far.batches
    keeper = Keeper(run, learner)

    # workers that prepare batches, then the log, the bar and the handler of signals: each ends with its block
    with load_batches(
        samples,
        order,
        recipe.run.loader_workers,
        pin=run.device.type == "cuda",
        at_start=partial(os.close, lock) if lock is not None else None,
    ) as loader:
        batches = iter(loader)  # forks the workers, before the log and the progress bar start their threads
        with (
            Log(
                run.folder if ranks.is_first else None, state.step, state.epoch, console.print, recipe.run.track
            ) as log,
            progress_bar(console, recipe.run.progress and ranks.is_first) as bar,
            Stop(ranks) as stop,
        ):
            stop.stands_still = lambda: loader.waiting
            loader.asked_to_end, loader.grace_s = lambda: stop.asked, 0.0 if ranks.world_size == 1 else TOGETHER_S
            log.write(run.start(state.epoch, state.so_far.batches))
            if ranks.is_first:
                record.write_record(recipe, run.objective.task, run.tables.store)
            shown = bar.add_task("", total=(settings.epochs - state.epoch) * len(order), completed=state.so_far.batches)

            # every epoch at its learning rate; the workers go through the frames anew for the next
            for epoch in range(state.epoch + 1, settings.epochs + 1):
                learner.start_epoch(cosine(epoch - 1, settings.epochs))
                tell = partial(show, bar, shown, epoch, settings.epochs)
                train_epoch(run, learner, order, batches, state, keeper, log, stop, tell)
                finish_epoch(run, learner, state, keeper, log, console)
                if epoch < settings.epochs:
                    order.epoch, order.first = epoch, 0
                    batches = iter(loader)
    return checkpoint.epoch_path(run.folder, settings.epochs)


def train_epoch(
    run: Run,
    learner: Learner,
    order: EpochOrder,
    batches: Iterator[Batch],
    state: State,
    keeper: Keeper,
    log: Log,
    stop: Stop,
    tell: Callable[[float], None],
) -> None:
    """Go through the batches of an epoch that are still to do: the loop of training.

    Raises KeyboardInterrupt, with the state saved, where any process was asked to end.
    """
    ranks, so_far, epoch = run.ranks, state.so_far, state.epoch + 1
    started = time.perf_counter() - so_far.elapsed_s

    for batch in order.steps():
        # the parts of this process, which the workers of the loader have prepared meanwhile
        asked = time.perf_counter()
        try:
            parts = [next(batches) for _ in batch.parts]
        except StoppedWaiting:
            keeper.save_middle(state)
            raise KeyboardInterrupt from None
        parts = [one.silent() if part.silent else one for one, part in zip(parts, batch.parts, strict=True)]
        so_far.waited_s += time.perf_counter() - asked

        # what all processes hold together, of which the loss is one; and whether to end before this step
        global_batch, ending = agree(ranks, parts, stop.asked)
        if ending:
            keeper.save_middle(state)
            raise KeyboardInterrupt

        # forward and backward, part by part: gradients add up to those of the whole batch
        values = learner.backward(parts, global_batch)
        if not all(map(math.isfinite, values.values())):
            names = [run.selection.frames[number].frame_id for number in batch.numbers]
            raise TrainerError(non_finite(values, names, epoch))
        learner.optimizer_step()

        # count, tell, and keep the state where that is due
        state.step += 1
        state.n_supervised += rows_or_weight(global_batch.counts, parts)
        so_far.add(values, len(batch.numbers), time.perf_counter() - started)
        if state.step % LOG_EVERY == 0:
            log.numbers(NumbersLine(event="step", time=now(), epoch=epoch, step=state.step, values=values))
        tell(values["total"])
        keeper.save_middle_if_due(state)


def finish_epoch(run: Run, learner: Learner, state: State, keeper: Keeper, log: Log, console: Console) -> None:
    """Log and keep what an epoch came to, and put the state at the start of the next.

    Raises TrainerError if the run ends here and has had nothing to learn: what it learnt is nothing, and is not kept.
    """
    settings, so_far, epoch = run.objective.settings, state.so_far, state.epoch + 1
    # random views and batches left out may take what little there is in one epoch
    if state.n_supervised == 0 and epoch == settings.epochs:
        raise TrainerError(f"the loss never had a term: {without_supervision(run)}")
    means, speed = so_far.means(), so_far.speed()
    # first the log: what is saved is never done again, and so would not be logged
    log.numbers(
        NumbersLine(
            event="epoch",
            time=now(),
            epoch=epoch,
            step=state.step,
            seconds=so_far.elapsed_s,
            **speed,
            values={**means, **learner.rates()},
        )
    )
    state.epoch, state.so_far = epoch, SoFar()
    keeper.save_epoch(state, means)
    console.print(
        f"epoch {epoch}/{settings.epochs}: loss {means['total']:.4f}, {speed['frames_per_second']:.1f} frames/s, "
        f"{speed['data_wait_share']:.0%} of the time waiting for data"
    )


def begin(run: Run, learner: Learner, earlier: checkpoint.Checkpoint | None, n_batches: int, console: Console) -> State:
    """Put the learner into the state to go on from, or give it the weights to start from; return how far that is."""
    state, settings = State(), run.objective.settings
    if earlier is not None:
        learner.restore(earlier)
        state = State.of(earlier)
        middle = f" and {state.so_far.batches} of {n_batches} batches of the next" if state.so_far.batches else ""
        console.print(f"going on after epoch {state.epoch} of {settings.epochs}{middle}")
    elif run.initial is not None:
        taken = checkpoint.load_initial(learner.network, official.load(run.initial), run.recipe.voxels)
        console.print(f"starting from {run.initial}: {taken.sentence()}")
    if run.ranks.world_size > 1 and run.device.type == "cpu" and not run.objective.frozen_trunk:
        console.print("on CPUs, batch norm counts the frames of each process apart; on GPUs, those of all together")
    return state


def show(bar: Progress, task: TaskID, epoch: int, epochs: int, loss: float) -> None:
    """Move the progress bar on by a batch."""
    bar.update(task, advance=1, description=f"epoch {epoch}/{epochs}  {loss:.3f}")


# -- nothing to learn --------------------------------------------------------------------------------------------------


def check_supervision(run: Run, samples: BatchDataset) -> None:
    """Raise TrainerError unless some frame gives the loss something to learn from; looks at no more than it takes."""
    if not any(
        rows_or_weight(counts(sample.supervised_frame, sample.supervised_weight), [sample])
        for sample in samples.of_epoch(0)
    ):
        raise TrainerError(without_supervision(run))


def rows_or_weight(found: Counts, parts: Sequence[Batch]) -> int:
    """Return how many rows of a batch teach: those of its parts, or what they weigh where some may weigh nothing."""
    return found.n_rows if parts[0].supervised_weight is None else found.weight


def without_supervision(run: Run) -> str:
    """Return the sentence for a run without anything to learn from, with what was looked at."""
    task, settings, table = run.objective.task, run.objective.settings, run.objective.stages[-1]
    wanted = {"pairs": "a pair of a point and a superpoint", "target": "a pseudo-label"}.get(table, "a true label")
    sure = " with a confidence above 0" if getattr(settings, "weight", "none") == "confidence" else ""
    return (
        f'no point of split "{settings.split}" has {wanted}{sure}, so {task} has nothing to learn. Looked at: '
        f"{run.selection.sentence()}, in tables {' and '.join(run.objective.stages)}. Look at the images, the teacher "
        f"and [group] of the recipe ({run.recipe.make('report')}), or name another split"
    )


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


@dataclass
class State:
    """How far a run has come: epochs and steps done, what of the next epoch, and rows that have taught so far."""

    epoch: int = 0
    step: int = 0
    n_supervised: int = 0
    so_far: SoFar = field(default_factory=SoFar)

    @classmethod
    def of(cls, earlier: checkpoint.Checkpoint) -> State:
        """Return the state that a checkpoint was saved in; raises DamagedCheckpoint if it does not say."""
        document = earlier.document
        if document.epoch is None or document.step is None:
            raise checkpoint.DamagedCheckpoint(f"{earlier.path} does not say how far its run had come")
        # what was saved before rows were counted has had some: there was no telling
        n_supervised = 1 if document.taught is None else document.taught
        done = document.so_far or EpochSoFar()
        so_far = SoFar(done.batches, done.frames, dict(done.sums), done.waited_s, done.elapsed_s)
        return cls(document.epoch, document.step, n_supervised, so_far)

    def within(self, run: CheckpointRecord) -> CheckpointRecord:
        """Return what a checkpoint of a run says of it in this state."""
        so_far = as_record(EpochSoFar, asdict(self.so_far)) if self.so_far.batches else None
        return replace(run, epoch=self.epoch, step=self.step, taught=self.n_supervised, so_far=so_far)


class Keeper:
    """Writes the states of a run into its folder; the first of several processes does."""

    def __init__(self, run: Run, learner: Learner) -> None:
        self.document = CheckpointRecord.of_run(run.document())
        self._run, self._learner, self._saved = run, learner, time.perf_counter()

    def save_epoch(self, state: State, loss: Mapping[str, float]) -> None:
        """Keep the state after an epoch, and delete those that are not to be kept."""
        if self._run.ranks.is_first:
            path = checkpoint.epoch_path(self._run.folder, state.epoch)
            self._learner.save(path, replace(state.within(self.document), loss=dict(loss)))
            checkpoint.prune(self._run.folder, self._run.objective.settings.keep_every)
        self._saved = time.perf_counter()

    def save_middle(self, state: State) -> None:
        """Keep the state in the middle of an epoch, once something of it is done."""
        if self._run.ranks.is_first and state.so_far.batches:
            checkpoint.before_running(self._run.folder)
            self._learner.save(checkpoint.running_path(self._run.folder), state.within(self.document))
            self._saved = time.perf_counter()

    def save_middle_if_due(self, state: State) -> None:
        """Keep the state if as many steps or minutes have passed as the recipe says."""
        if is_due(self._run.recipe.run, state.step, time.perf_counter() - self._saved):
            self.save_middle(state)


class Stop:
    """Notes Ctrl-C and SIGTERM, so that a run can end between two steps; a second one ends a run that is alone at once.

    (`torchrun` passes on what the terminal has sent to every process already, and ends those that take 30 s.)
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks, self.asked = ranks, False
        self.stands_still: Callable[[], bool] = lambda: False  # whether nobody would see that it was asked

    def __enter__(self) -> Stop:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        if self.asked and self._ranks.world_size == 1:
            raise KeyboardInterrupt
        if not self.asked and self._ranks.is_first:
            os.write(2, b"trainer: saving before the next step, then ending\n")
        self.asked = True
        # torch fetches what it shares from the worker itself, and waits for ever for one that is frozen
        if self._ranks.world_size == 1 and self.stands_still():
            raise StoppedWaiting


def agree(ranks: Ranks, parts: Sequence[Batch], ending: bool) -> tuple[GlobalBatch, bool]:
    """Return what the parts of all processes hold together, and whether any of them was asked to end."""
    found = [counts(part.supervised_frame, part.supervised_weight) for part in parts]
    totals = [sum(column) for column in zip(*found, strict=True)]
    *totals, n_ending = ranks.all_reduce(torch.tensor([*totals, int(ending)])).tolist()
    return GlobalBatch(Counts(*totals), ranks.world_size, ranks.gather), n_ending > 0


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
