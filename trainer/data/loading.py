"""Who loads what when: the order of an epoch, and the processes that make its batches."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from manifests.storage.errors import StoreError
from manifests.tables.base import Rows
from trainer.data.batches import Batch, join
from trainer.data.tables import FrameRow, Tables
from trainer.errors import TrainerError

BatchKey = tuple[int, tuple[int, ...]]
"""Epoch, and numbers of the frames in a batch."""

MakeSample = Callable[[Rows, np.random.Generator], Batch]


class BatchDataset(Dataset[Batch | Exception]):
    """Batches by epoch and frame numbers.

    Every sample has a random generator of its own, seeded by (seed, epoch, frame number), so batches do not depend on
    how many workers make them. A batch that cannot be made is the exception that says why: raised in a worker, it would
    arrive wrapped in a trace.
    """

    def __init__(self, tables: Tables, frames: Sequence[FrameRow], make_sample: MakeSample, seed: int) -> None:
        self._tables, self._frames, self._make_sample, self._seed = tables, frames, make_sample, seed
        self.at: Callable[[int], None] = lambda number: None  # is told the number of every frame that is begun

    def __getitem__(self, key: BatchKey) -> Batch | Exception:
        epoch, numbers = key
        try:
            return join([self._sample(epoch, number) for number in numbers])
        except (StoreError, ValueError) as error:
            return error

    def name(self, number: int) -> str:
        """Return the name of a frame."""
        return self._frames[number].frame_id

    def of_epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield every frame as an epoch sees it, in the order of the frames; raises StoreError as batches do."""
        return (self._sample(epoch, number) for number in range(len(self._frames)))

    def _sample(self, epoch: int, number: int) -> Batch:
        self.at(number)
        frame = self._frames[number]
        rows = self._tables.rows(frame)
        try:
            return self._make_sample(rows, np.random.default_rng([self._seed, epoch, number]))
        except ValueError as error:
            raise StoreError(f"frame {frame.frame_id}: {error}") from None


@dataclass(frozen=True)
class Part:
    """Frames that go through the network at once. `silent`: they are there for company only and teach nothing, where a
    batch has fewer frames than there are processes to share them.
    """

    numbers: tuple[int, ...]
    silent: bool = False


@dataclass(frozen=True)
class Step:
    """One batch: all of its frames, and the parts of it that this process computes, one after the other."""

    numbers: tuple[int, ...]
    parts: tuple[Part, ...]


class EpochOrder(Sampler[BatchKey]):
    """The batches of one epoch, frames shuffled by (seed, epoch), in the parts that one of several processes loads.

    Set `epoch` before iterating, and `first`, the batch to begin with. Neither the order of frames nor what makes a
    batch depends on how many processes share it, nor on how many parts each of them cuts its share into.
    """

    def __init__(
        self,
        n_frames: int,
        batch_size: int,
        seed: int,
        drop_last: bool,
        *,
        rank: int = 0,
        world_size: int = 1,
        n_parts: int = 1,
    ) -> None:
        n_batches = n_frames // batch_size if drop_last else -(-n_frames // batch_size)
        self._n_batches = max(n_batches, 1)
        self._n_frames, self._batch_size, self._seed = n_frames, batch_size, seed
        self._rank, self._world_size, self._n_parts = rank, world_size, n_parts
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._n_batches

    def steps(self) -> Iterator[Step]:
        """Yield the batches of the epoch from the first one to do."""
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._n_frames).tolist()
        for number in range(self.first, self._n_batches):
            numbers = tuple(order[number * self._batch_size : (number + 1) * self._batch_size])
            share = cut(numbers, self._world_size)[self._rank]
            n_parts = min(self._n_parts, -(-len(numbers) // self._world_size))  # as many in every process
            parts = (Part(part) if part else Part(numbers[:1], silent=True) for part in cut(share, n_parts))
            yield Step(numbers, tuple(parts))

    def __iter__(self) -> Iterator[BatchKey]:
        return ((self.epoch, part.numbers) for step in self.steps() for part in step.parts)


def cut(numbers: tuple[int, ...], n_parts: int) -> list[tuple[int, ...]]:
    """Return the numbers in parts, in order, of which none is more than one longer than another."""
    ends = [len(numbers) * part // n_parts for part in range(n_parts + 1)]
    return [numbers[start:end] for start, end in itertools.pairwise(ends)]


POLL_S = 1.0
"""How long a wait for the loader lasts before it is looked whether anything is wrong, or somebody wants to end."""

STALL_S = 30.0
"""After how long a wait for one batch the user is told, and told again every such time."""

GIVE_UP_S = 900.0
"""After how long a wait for one batch a run ends."""

PATIENCE_S = 2.0
"""How long workers may take to end before they are killed: they only read."""


class StoppedWaiting(Exception):
    """The wait for a batch was given up, because the run was asked to end."""


class Board:
    """What every worker is at, in memory that it shares with the main process."""

    def __init__(self, n_workers: int) -> None:
        self._memory = mmap.mmap(-1, max(n_workers, 1) * 16)
        self._rows: NDArray[np.float64] = np.frombuffer(self._memory, np.float64).reshape(-1, 2)
        self._rows[:, 0] = -1

    def at(self, worker: int, number: int) -> None:
        """Note, in a worker, that it begins with a frame; or with -1 that it has nothing to do."""
        self._rows[worker] = number, time.monotonic()

    def of(self, worker: int) -> tuple[int, float]:
        """Return the number of the frame that a worker is at, -1 none, and for how many seconds."""
        number, since_s = self._rows[worker].tolist()
        return int(number), time.monotonic() - since_s


@dataclass(frozen=True)
class Unshared:
    """A batch on its way from a worker as plain arrays, through a pipe: there was no room to share its memory."""

    batch: Any

    def whole(self) -> Batch:
        """Return the batch."""
        batch: Batch = self.batch.each(torch.from_numpy)
        return batch

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; the loader calls this where a GPU trains."""
        return self.whole().pin_memory()


class Watched(Dataset[Any]):
    """A data set whose workers say what they are at, and hand over what they make by whichever way has room."""

    def __init__(self, dataset: Dataset[Batch | Exception], board: Board) -> None:
        self._dataset, self._board = dataset, board

    def __getitem__(self, key: BatchKey) -> Batch | Exception | Unshared:
        worker = get_worker_info()
        if worker is None:
            return self._dataset[key]
        self._board.at(worker.id, key[1][0])
        if isinstance(self._dataset, BatchDataset):
            self._dataset.at = partial(self._board.at, worker.id)
        try:
            batch = self._dataset[key]
        finally:
            self._board.at(worker.id, -1)
        if isinstance(batch, Batch) and not has_room(batch, worker.num_workers):
            return Unshared(batch.each(Tensor.numpy))
        return batch


SHARED_MEMORY = Path("/dev/shm")


def has_room(batch: Batch, n_workers: int) -> bool:
    """Return whether shared memory holds this batch and as many as all workers may be about to put there.

    Torch shares tensors there. Containers often have 64 MB of it, and a batch that does not fit is lost without a word.
    """
    try:
        place = os.statvfs(SHARED_MEMORY)
    except OSError:
        return False
    n_bytes = sum(getattr(batch, item.name).nbytes for item in fields(batch) if item.name != "frame_ids")
    return bool(place.f_bavail * place.f_frsize >= n_bytes * (2 * n_workers + 2))


class Loader:
    """The batches of an order, one after the other, each time it is iterated; workers make them meanwhile.

    Raises TrainerError where workers cannot be started, or one of them loses a batch or stands still for too long.

    `asked_to_end` says whether to give up a wait: then StoppedWaiting is raised. `grace_s` is how long a batch is
    waited for all the same.
    """

    def __init__(self, loader: DataLoader[Any], dataset: Dataset[Any], board: Board) -> None:
        self._loader, self._dataset, self._board = loader, dataset, board
        self._told = False
        self.asked_to_end: Callable[[], bool] = lambda: False
        self.grace_s = 0.0
        self.waiting = False  # whether it is torch's turn: that may stand still where it is not asked

    def __iter__(self) -> Iterator[Any]:
        """Start the workers, or have them begin anew, and return the batches; raises what kept one from being made."""
        if self._loader._iterator is not None:
            self._workers()._timeout = 0  # until they have answered
        try:
            source = iter(self._loader)
        except OSError as error:  # no process, no pipe, no semaphore, which lie in shared memory too
            raise TrainerError(
                f"the processes of the loader cannot be started: {error}. Set run.loader_workers = 0 to read in this "
                "one"
            ) from None
        return self._batches(source)

    def _batches(self, source: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                batch = self._next(source) if self._loader.num_workers else next(source)
            except StopIteration:
                return
            if isinstance(batch, Unshared):
                batch = batch.whole()
                self._tell_of_pipes()
            if isinstance(batch, Exception):
                raise batch
            yield batch

    def _next(self, source: Iterator[Any]) -> Any:
        """Return the next batch of the workers; says what they are at where it takes long."""
        began, told_s = time.monotonic(), 0.0
        self._workers()._timeout = POLL_S
        while True:
            self.waiting = True
            try:
                return next(source)
            except (RuntimeError, OSError) as error:
                if not is_time_out(error):
                    raise
            finally:
                self.waiting = False
            waited_s = time.monotonic() - began
            if self.asked_to_end() and waited_s >= self.grace_s:
                raise StoppedWaiting
            if waited_s - told_s >= STALL_S:
                told_s = waited_s
                self._look_at_workers(waited_s)

    def _look_at_workers(self, waited_s: float) -> None:
        """Say which worker keeps a run waiting, and at what; raises TrainerError where no batch will come any more."""
        workers = self._workers()
        worker = workers._task_info[workers._rcvd_idx][0]
        process = workers._workers[worker].pid
        number, since_s = self._board.of(worker)
        advice = (
            "What is saved is kept; set run.loader_workers = 0 to read in this process, and run the same command again"
        )
        if number < 0:
            raise TrainerError(
                f"a batch was lost on its way from process {process} of the loader, which made it {since_s:.0f} s ago; "
                f"most often {SHARED_MEMORY} is too small or full (docker run --shm-size=8g). {advice}"
            )
        at = self._dataset.name(number) if isinstance(self._dataset, BatchDataset) else str(number)
        told = (
            f"waiting for {waited_s:.0f} s for the loader: its process {process} (worker {worker + 1} of "
            f"{len(workers._workers)}) has been at frame {at} for {since_s:.0f} s"
        )
        if waited_s >= GIVE_UP_S:
            raise TrainerError(f"{told}; the store or its disk does not answer. {advice}")
        say(f"{told}; Ctrl-C ends the run")

    def _tell_of_pipes(self) -> None:
        if not self._told:
            self._told = True
            say(
                f"{SHARED_MEMORY} has too little room for the batches of {self._loader.num_workers} workers, so they "
                f"come through pipes, which takes longer (docker run --shm-size=8g gives a container more)"
            )

    def _workers(self) -> Any:
        return self._loader._iterator


def is_time_out(error: Exception) -> bool:
    """Return whether an error of torch's loader only says that nothing has come yet.

    While it waits, it also opens temporary files, for reasons of its own; a folder for these that is full or missing is
    no reason to end.
    """
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EROFS, errno.EDQUOT)
    return str(error).startswith("DataLoader timed out")


def say(sentence: str) -> None:
    """Print a sentence for the user, also where a progress bar or a quiet console stands before the output."""
    os.write(2, f"trainer: {sentence}\n".encode(errors="backslashreplace"))


@contextmanager
def load_batches(
    dataset: Dataset[Batch | Exception],
    order: Sampler[BatchKey] | Sequence[BatchKey],
    n_workers: int,
    pin: bool,
    at_start: Callable[[], None] | None = None,
) -> Iterator[Loader]:
    """Yield a loader of the batches in that order; its workers, which stay alive, prepare two each ahead.

    `at_start` runs in every worker before anything else. The workers end with the block, however it is left. Raises
    TrainerError where they cannot be started, or one is lost.
    """

    def start(_: int) -> None:
        # Ctrl-C, and what ends a whole group of processes, reach the workers too: the main process ends them
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if at_start is not None:
            at_start()

    board = Board(n_workers)
    loader: DataLoader[Any] = DataLoader(
        Watched(dataset, board),
        sampler=order,
        batch_size=None,
        collate_fn=unchanged,
        num_workers=n_workers,
        prefetch_factor=2 if n_workers else None,
        persistent_workers=n_workers > 0,
        multiprocessing_context="fork" if n_workers else None,
        pin_memory=pin,
        worker_init_fn=start,
        generator=torch.Generator().manual_seed(0),  # else every epoch would move torch's own random state
    )
    try:
        yield Loader(loader, dataset, board)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainerError(
            f"a process of the loader was lost ({str(error).rstrip('.')}); most often memory ran out. What is saved is "
            "kept: lower run.loader_workers, and run the same command again"
        ) from None
    finally:
        if loader._iterator is not None:  # left to the garbage collector, it waits five seconds for each worker
            end_workers(loader._iterator)


def end_workers(workers: Any) -> None:
    """End the workers behind torch's iterator: as it does, but those that do not come to an end soon are killed."""
    torch.utils.data._utils.signal_handling._remove_worker_pids(id(workers))  # type: ignore[attr-defined]
    workers._worker_pids_set = False  # else torch takes their end for a loss

    def kill() -> None:
        for worker in workers._workers:
            if worker._popen is not None and worker._popen.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(worker.pid, signal.SIGKILL)

    timer = threading.Timer(PATIENCE_S, kill)
    timer.daemon = True
    timer.start()
    try:
        workers._shutdown_workers()
    finally:
        timer.cancel()
        kill()


def unchanged(batch: Any) -> Any:
    """Return the batch; torch's own way would take it apart."""
    return batch
