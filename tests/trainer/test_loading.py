"""What can go wrong between the processes of the loader and the run that waits for them."""

import multiprocessing
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset, get_worker_info

from manifests.tables.sensors import Points
from trainer.data import loading
from trainer.data.batches import Batch, PairBatch
from trainer.data.loading import BatchDataset, StoppedWaiting, load_batches
from trainer.data.samples import pair_sample
from trainer.data.tables import Tables, select_frames
from trainer.errors import TrainerError

KEYS = [(0, (0, 1)), (0, (2, 3)), (0, (4,))]


def samples(fleet: Any, make_sample: Any = None) -> BatchDataset:
    tables = Tables(fleet.store, fleet.ref(), ["points", "pairs"])
    recipe = fleet.recipe()
    frames = select_frames(tables, "train", "nuscenes", ()).frames
    return BatchDataset(tables, frames, make_sample or partial(pair_sample, recipe.voxels, recipe.augment), seed=0)


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(value, getattr(other, name)) for name, value in vars(one).items()]
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_without_room_in_shared_memory_batches_come_through_pipes(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A tensor that does not fit into /dev/shm is lost by torch without a word, and the run waits for ever."""
    with load_batches(samples(fleet), KEYS, 0, pin=False) as loader:
        expected = list(loader)
    monkeypatch.setattr(loading, "SHARED_MEMORY", Path("/nowhere"))
    monkeypatch.setattr(torch.multiprocessing.reductions, "reduce_storage", lambda _: pytest.fail("it was shared"))
    with load_batches(samples(fleet), KEYS, 2, pin=False) as loader:
        found = [*loader, *loader]
    assert all(type(batch) is PairBatch for batch in found)
    assert all(equal(*pair) for pair in zip(found, [*expected, *expected], strict=True))
    assert capfd.readouterr().err.count("/nowhere has too little room for the batches of 2 workers") == 1


def test_room_is_asked_for_what_all_workers_may_be_about_to_share(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = samples(fleet)[KEYS[0]]
    assert isinstance(batch, Batch)
    n_bytes = sum(value.nbytes for value in vars(batch).values() if isinstance(value, torch.Tensor))

    class Place:
        f_frsize, f_bavail = 1, 6 * n_bytes

    monkeypatch.setattr(os, "statvfs", lambda _: Place)
    assert loading.has_room(batch, 2)
    assert not loading.has_room(batch, 3)


def test_a_worker_that_stands_still_is_told_with_its_frame_and_can_be_left(
    fleet: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "POLL_S", 0.1)
    monkeypatch.setattr(loading, "STALL_S", 0.5)
    recipe = fleet.recipe()

    def stuck(rows: Any, rng: Any) -> Any:
        if rows[Points].frame_id == "b0" and get_worker_info():
            time.sleep(1000)
        return pair_sample(recipe.voxels, recipe.augment, rows, rng)

    began = time.monotonic()
    with (
        pytest.raises(StoppedWaiting),
        load_batches(samples(fleet, stuck), [(0, (number,)) for number in range(5)], 2, pin=False) as loader,
    ):
        loader.asked_to_end = lambda: time.monotonic() - began > 2.5
        for _ in loader:
            pass
    told = capfd.readouterr().err
    assert "waiting for 1 s for the loader: its process" in told
    assert "has been at frame b0 for" in told and "Ctrl-C ends the run" in told
    assert not multiprocessing.active_children(), "what does not end by itself is killed"


def test_a_worker_that_stands_still_for_too_long_ends_the_run(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("POLL_S", 0.1), ("STALL_S", 0.3), ("GIVE_UP_S", 0.6), ("PATIENCE_S", 0.1)):
        monkeypatch.setattr(loading, name, seconds)
    stuck = samples(fleet, lambda *_: time.sleep(1000))
    with (
        pytest.raises(TrainerError, match=r"at frame a0 for .* s; the store or its disk does not answer"),
        load_batches(stuck, KEYS, 1, pin=False) as loader,
    ):
        next(iter(loader))


class Unsendable:
    """A batch that is lost when it is sent, as one that does not fit into shared memory."""

    def __reduce__(self) -> Any:
        raise OSError(28, "No space left on device")


class Losing(Dataset[Any]):
    def __getitem__(self, _: Any) -> Any:
        return Unsendable()


def test_a_batch_that_is_lost_on_its_way_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "POLL_S", 0.1)
    monkeypatch.setattr(loading, "STALL_S", 0.5)
    with (
        pytest.raises(TrainerError, match=r"a batch was lost on its way from process .*/dev/shm is too small or full"),
        load_batches(Losing(), KEYS, 1, pin=False) as loader,
    ):
        next(iter(loader))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torch deletes half a loader
def test_processes_that_cannot_be_started_are_a_sentence(fleet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(multiprocessing.context.ForkContext, "Queue", full, raising=False)
    with (
        pytest.raises(TrainerError, match=r"processes of the loader cannot be started: .*No space left"),
        load_batches(samples(fleet), KEYS, 1, pin=False) as loader,
    ):
        next(iter(loader))
