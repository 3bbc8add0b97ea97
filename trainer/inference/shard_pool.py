"""Shards made by several processes: any order of making gives the same files."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from trainer.errors import TrainerError

Made = TypeVar("Made")
Input = TypeVar("Input")

_make: Callable[[str, Any], Any] | None = None  # of a worker, which inherits it: what it closes over is not sent


def each_shard(
    make: Callable[[str, Input], Made], shards: Mapping[str, Input], n_workers: int
) -> Iterator[tuple[str, Made]]:
    """Yield the name of every shard and what was made of it, as they are finished; with fewer than two workers, here.

    Raises what `make` raises, and TrainerError where a worker is lost. Workers end with this process, however it ends.
    """
    n_workers = min(n_workers, len(shards))
    if n_workers < 2:
        yield from ((name, make(name, given)) for name, given in shards.items())
        return
    global _make
    _make = make
    pool = ProcessPoolExecutor(n_workers, multiprocessing.get_context("fork"), _begin, (os.getpid(),))
    try:
        tasks = {pool.submit(_made, name, given): name for name, given in shards.items()}
        for task in as_completed(tasks):
            yield tasks[task], task.result()
    except BrokenProcessPool:
        raise TrainerError(
            "a process that refines shards was lost; most often memory ran out. Finished shards are kept: lower "
            "run.loader_workers, and run the same command again"
        ) from None
    finally:
        _make = None
        workers = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:  # they write files that count only when they are whole
            worker.kill()
        for worker in workers:
            worker.join()


def _begin(parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it does."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _made(name: str, given: Any) -> Any:
    assert _make is not None
    return _make(name, given)
