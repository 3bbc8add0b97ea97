"""Shards made by several processes, of this machine or of a Ray cluster: any order of making gives the same files."""

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

from manifests.endings import RunError
from manifests.ray_cluster import alive, connect, cpu_share, node_here, raylet_died, shortened
from manifests.recipe import Recipe
from trainer.errors import TrainerError

Made = TypeVar("Made")
Input = TypeVar("Input")

_make: Callable[[str, Any], Any] | None = None  # of a worker, which inherits it: what it closes over is not sent


LOOK_S = 5.0  # how often to look whether Ray is still there while no shard is finished
TRIES = 3  # how many workers a shard of Ray's may take down, or lose with their nodes, before the run ends


def each_shard(
    make: Callable[[str, Input], Made], shards: Mapping[str, Input], recipe: Recipe
) -> Iterator[tuple[str, Made]]:
    """Yield the name of every shard and what was made of it, as they are finished, by the workers of section `[run]`.

    Raises what `make` raises, and TrainerError where a worker is lost. Workers end with this process, however it ends.
    """
    if recipe.run.pool == "ray":
        yield from each_on_ray(make, shards, recipe)
    else:
        yield from each_here(make, shards, recipe.run.loader_workers)


def each_on_ray(
    make: Callable[[str, Input], Made], shards: Mapping[str, Input], recipe: Recipe
) -> Iterator[tuple[str, Made]]:
    """Yield what tasks of Ray make, `run.workers` at a time; each has a shard, whose rows go through the store.

    A shard whose worker died, or whose node went away, is tried again elsewhere. Raises like `each_shard`, and RunError
    and ConfigError for a cluster that cannot be used.
    """
    if not shards:
        return
    ray = connect(recipe)
    here, share = node_here(ray), cpu_share(ray, recipe.run.workers)
    if not any(node["Alive"] and node["Resources"].get("CPU", 0.0) >= share for node in ray.nodes()):
        raise RunError("no node of this Ray cluster has a CPU to refine with")
    task = ray.remote(num_cpus=share, max_retries=TRIES - 1)(_make_on_ray)
    shared, waiting = ray.put(make), iter(shards.items())
    running: dict[Any, str] = {}  # shards by the reference of what is made of them
    try:
        while True:
            while len(running) < recipe.run.workers and (given := next(waiting, None)) is not None:
                running[task.remote(shared, *given)] = given[0]
            if not running:
                return
            done, _ = ray.wait(list(running), timeout=LOOK_S)
            if not done and not alive(ray, here):
                raise raylet_died(recipe)
            for finished in done:
                name = running.pop(finished)
                yield name, ray.get(finished)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error  # what `make` raised, and where
    except ray.exceptions.RayError as error:
        raise TrainerError(
            f"Ray lost the workers of a shard {TRIES} times, most often since memory ran out: {shortened(str(error))}. "
            "Finished shards are kept: lower run.workers, and run the same command again"
        ) from error
    finally:
        for unfinished in running:  # files count only when they are whole
            ray.cancel(unfinished, force=True)


def _make_on_ray(make: Callable[[str, Input], Made], name: str, given: Input) -> Made:
    return make(name, given)


def each_here(
    make: Callable[[str, Input], Made], shards: Mapping[str, Input], n_workers: int
) -> Iterator[tuple[str, Made]]:
    """Yield what processes of this machine make; with fewer than two of them, this one. Raises like `each_shard`."""
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
