"""Who loads what when: the order of an epoch, and the processes that make its batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from manifests.rows import Row
from manifests.storage.errors import StoreError
from trainer.data.batches import Batch, join
from trainer.data.tables import FrameRow, Tables
from trainer.errors import TrainerError

BatchKey = tuple[int, tuple[int, ...]]
"""Epoch, and numbers of the frames in a batch."""

MakeSample = Callable[[Sequence[Row], np.random.Generator], Batch]


class BatchDataset(Dataset[Batch | Exception]):
    """Batches by epoch and frame numbers.

    Every sample has a random generator of its own, seeded by (seed, epoch, frame number), so batches do not depend on
    how many workers make them. A batch that cannot be made is the exception that says why: raised in a worker, it would
    arrive wrapped in a trace.
    """

    def __init__(self, tables: Tables, frames: Sequence[FrameRow], make_sample: MakeSample, seed: int) -> None:
        self._tables, self._frames, self._make_sample, self._seed = tables, frames, make_sample, seed

    def __getitem__(self, key: BatchKey) -> Batch | Exception:
        epoch, numbers = key
        try:
            return join([self._sample(epoch, number) for number in numbers])
        except (StoreError, ValueError) as error:
            return error

    def _sample(self, epoch: int, number: int) -> Batch:
        frame = self._frames[number]
        rows = self._tables.row(frame)
        try:
            return self._make_sample(rows, np.random.default_rng([self._seed, epoch, number]))
        except ValueError as error:
            raise StoreError(f"frame {frame.frame_id}: {error}") from None


@dataclass(frozen=True)
class Part:
    """Frames that go through the network at once. `silent`: they are there for company only and teach nothing, where a
    batch has fewer frames than there are processes to share them."""

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
        n_ranks: int = 1,
        n_parts: int = 1,
    ) -> None:
        n_batches = n_frames // batch_size if drop_last else -(-n_frames // batch_size)
        self._n_batches = max(n_batches, 1)
        self._n_frames, self._batch_size, self._seed = n_frames, batch_size, seed
        self._rank, self._n_ranks, self._n_parts = rank, n_ranks, n_parts
        self.epoch = self.first = 0

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return self._n_batches

    def steps(self) -> Iterator[Step]:
        """Yield the batches of the epoch from the first one to do."""
        order = np.random.default_rng([self._seed, self.epoch]).permutation(self._n_frames).tolist()
        for number in range(self.first, self._n_batches):
            numbers = tuple(order[number * self._batch_size : (number + 1) * self._batch_size])
            share = cut(numbers, self._n_ranks)[self._rank]
            n_parts = min(self._n_parts, -(-len(numbers) // self._n_ranks))  # as many in every process
            parts = (Part(part) if part else Part(numbers[:1], silent=True) for part in cut(share, n_parts))
            yield Step(numbers, tuple(parts))

    def __iter__(self) -> Iterator[BatchKey]:
        return ((self.epoch, part.numbers) for step in self.steps() for part in step.parts)


def cut(numbers: tuple[int, ...], n_parts: int) -> list[tuple[int, ...]]:
    """Return the numbers in parts, in order, of which none is more than one longer than another."""
    ends = [len(numbers) * part // n_parts for part in range(n_parts + 1)]
    return [numbers[start:end] for start, end in zip(ends[:-1], ends[1:], strict=True)]


@contextmanager
def load_batches(
    dataset: BatchDataset,
    order: Sampler[BatchKey] | Sequence[BatchKey],
    n_workers: int,
    pin: bool,
    at_start: Callable[[], None] | None = None,
) -> Iterator[DataLoader[Batch | Exception]]:
    """Yield a loader of the batches in that order; its workers, which stay alive, prepare two each ahead.

    `at_start` runs in every worker before anything else. The workers end with the block, however it is left.
    """

    def start(_: int) -> None:
        # Ctrl-C, and what ends a whole group of processes, reach the workers too: the main process ends them
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        if at_start is not None:
            at_start()

    loader = DataLoader(
        dataset,
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
        yield loader
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise TrainerError(
            f"a process of the loader was lost ({str(error).rstrip('.')}); most often memory ran out. What is saved is "
            "kept: lower run.loader_workers, and run the same command again"
        ) from None
    finally:
        iterator: Any = loader._iterator
        if iterator is not None:  # left to the garbage collector, it waits five seconds for each worker
            iterator._shutdown_workers()


def unchanged(batch: Any) -> Any:
    """Return the batch; torch's own way would take it apart."""
    return batch


def checked_batch(batch: Batch | Exception) -> Any:
    """Return a batch that a loader gave; raises what kept it from being made."""
    if isinstance(batch, Exception):
        raise batch
    return batch
