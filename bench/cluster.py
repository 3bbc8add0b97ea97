"""How near a Ray pool comes to the ideal schedule of a SIMULATED cluster whose nodes with GPUs join during the run.

`python -m bench.cluster` prints makespans. The pool is the one of production (pipeline.engine.ray_pool); Ray, its
nodes, an autoscaler, workers and the clock are simulated, event by event, so that figures are the same everywhere. The
ideal is a lower bound: work over what is there to do it, without starting workers, loading networks, or the tail.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from unittest import mock

from manifests.recipe import Recipe, load_recipe
from pipeline.engine import lanes, ray_pool
from pipeline.engine.tasks import Outcome, Queue, Task
from pipeline.engine.worker import AT_ONCE

START_S = 8.0  # from being placed to the first answer: Python and its imports
LOAD_S = 20.0  # a network, at the first shard of a stage on a GPU
BEGIN_S, WRITE_S = 3.0, 4.0  # of a shard on a GPU, beside its time on the device
BOOT_S = 90.0  # from an autoscaler's request until the node has joined
CHAIN = ("index", "encode", "segment", "group")
SECONDS = {"index": 12.0, "encode": 40.0, "segment": 20.0, "group": 4.0}
"""What a shard takes: on a core, or for `encode` on the device."""


@dataclass
class Node:
    """A machine of the cluster: when it joins, and what of it is free."""

    name: str
    joins_s: float
    cpus: float
    gpus: float
    used: dict[str, float] = field(default_factory=lambda: {"CPU": 0.0, "GPU": 0.0})

    def has(self, kind: str) -> float:
        """Return how much of a kind it has."""
        return self.gpus if kind == "GPU" else self.cpus

    def take(self, actor: Actor, sign: int = 1) -> None:
        """Give an actor its share, or take it back."""
        self.used["CPU"] += sign * actor.cpus
        self.used["GPU"] += sign * actor.gpus


@dataclass(eq=False)
class Actor:
    """A worker: what it takes, where it is, when it began to be asked for, and how far its device is."""

    cpus: float
    gpus: float
    at_once: int
    node: Node | None = None
    loaded: str = ""
    free_s: float = 0.0
    started: Any = None
    told: tuple[str, ...] = ()
    run: Any = None

    @property
    def where(self) -> Call:
        """The method that answers once it is placed."""
        return Call(lambda stages: self.started(self, stages))


@dataclass(frozen=True)
class Call:
    """A method of an actor."""

    remote: Callable[..., Any]


class Simulated:
    """Ray as far as the pool uses it, at a clock of its own.

    `nodes_to_be` join at their times. With an `autoscaler`, those with GPUs join `BOOT_S` after somebody asked in vain.
    """

    class exceptions:
        """No worker dies here."""

        RayError = RayActorError = RayTaskError = type("Never", (Exception,), {})

    def __init__(self, nodes_to_be: Sequence[Node], autoscaler: bool = False, at_once: int = AT_ONCE) -> None:
        self.now_s, self.at_once, self.autoscaler = 0.0, at_once, autoscaler
        self.there = [one for one in nodes_to_be if one.joins_s == 0]
        self.later = [one for one in nodes_to_be if one.joins_s > 0]
        self.asked: list[Actor] = []
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.ready: dict[object, Any] = {}
        self.busy = {"CPU": 0.0, "GPU": 0.0}  # seconds that cores and devices worked
        self.most_asked = 0
        if not autoscaler:
            for node in self.later:
                self._at(node.joins_s, partial(self._join, node))

    def monotonic(self) -> float:
        """Return the time."""
        return self.now_s

    def nodes(self) -> list[dict[str, Any]]:
        """Return the nodes as Ray tells them."""
        return [
            {"NodeID": one.name, "Alive": True, "Resources": {"CPU": one.cpus, "GPU": one.gpus}} for one in self.there
        ]

    def remote(self, num_cpus: float, num_gpus: float, **_: Any) -> Any:
        """Return what makes actors."""

        def make(recipe: Recipe) -> Actor:
            actor = Actor(num_cpus, num_gpus, self.at_once if num_gpus else 1, started=self._started)
            actor.run = Call(lambda task: self._run(actor, task))
            self.asked.append(actor)
            return actor

        return lambda worker: Call(make)

    def kill(self, actor: Actor) -> None:
        """End an actor; what it took is free."""
        if actor in self.asked:
            self.asked.remove(actor)
        elif actor.node:
            actor.node.take(actor, -1)
            actor.node = None
            self._place()

    def wait(self, signs: Sequence[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        """Let time pass until one of the signs is there."""
        until = self.now_s + timeout
        while True:
            if found := [one for one in signs if one in self.ready]:
                return found[:1], []
            if not self.events or self.events[0][0] > until:
                self.now_s = until
                return [], list(signs)
            self.now_s, _, happen = heapq.heappop(self.events)
            happen()

    def get(self, sign: object) -> Any:
        """Return what came of a call."""
        return self.ready.pop(sign)

    def _at(self, when_s: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when_s, next(self.numbers), happen))

    def _join(self, node: Node) -> None:
        self.there.append(node)
        self._place()

    def _place(self) -> None:
        for actor in list(self.asked):
            for node in self.there:
                fits = node.used["CPU"] + actor.cpus <= node.cpus and node.used["GPU"] + actor.gpus <= node.gpus
                if actor.told and fits:
                    node.take(actor)
                    actor.node, sign = node, actor.told[0]
                    self.asked.remove(actor)
                    answer = node.name, dict.fromkeys(CHAIN, actor.at_once)
                    self._at(self.now_s + START_S, partial(self._tell, sign, answer))
                    break
        waiting = sum(actor.gpus > 0 for actor in self.asked)
        self.most_asked = max(self.most_asked, waiting)
        if self.autoscaler and waiting and self.later:
            node = self.later.pop(0)
            self._at(self.now_s + BOOT_S, partial(self._join, node))

    def _tell(self, sign: object, answer: Any) -> None:
        self.ready[sign] = answer

    def _started(self, actor: Actor, stages: Sequence[str]) -> object:
        sign = f"placed {next(self.numbers)}"
        actor.told = (sign,)
        self._place()
        return sign

    def _run(self, actor: Actor, task: Task) -> object:
        """Begin a shard: on a device it waits for its turn, and what surrounds that goes on beside other shards."""
        sign, seconds = f"done {next(self.numbers)}", SECONDS[task.stage]
        self.busy["GPU" if actor.gpus else "CPU"] += seconds
        if actor.gpus:
            ready_s = self.now_s + BEGIN_S + (LOAD_S if actor.loaded != task.stage else 0.0)
            actor.loaded = task.stage
            actor.free_s = max(ready_s, actor.free_s) + seconds
            end_s = actor.free_s + WRITE_S
        else:
            end_s = self.now_s + seconds
        self._at(end_s, partial(self._tell, sign, Outcome(None, seconds=seconds)))
        return sign


@dataclass(frozen=True)
class Schedule:
    """What one run took, the lower bound, and the most workers with GPUs that were asked for before there was room."""

    way: str
    seconds: float
    ideal_s: float
    most_asked: int

    @property
    def share(self) -> float:
        """The ideal over what it took."""
        return self.ideal_s / self.seconds


@contextmanager
def simulated(ray: Simulated, recipe: Recipe) -> Iterator[ray_pool.RayPool]:
    """Yield a pool on a simulated cluster."""
    pool = ray_pool.RayPool(recipe)
    pool._ray, pool._here, pool._cpus = ray, ray.there[0].name, 1.0
    with (
        mock.patch.object(ray_pool, "time", ray),
        mock.patch.object(lanes, "time", ray),
        mock.patch.object(ray_pool, "alive", return_value=True),
        mock.patch.object(ray_pool, "last_words", return_value=""),
    ):
        yield pool


def run(way: str, ray: Simulated, shards: int, workers: int) -> Schedule:
    """Send shards through all stages, each as soon as it is built of the stage before, and return what it took."""
    recipe = load_recipe("nuscenes_clip", ["run.pool=ray", "run.ray_address=auto", "run.store=/nowhere"])
    recipe = replace(recipe, run=replace(recipe.run, workers=workers, gpus_per_worker=1.0, device="auto"))
    all_nodes = [*ray.there, *ray.later]
    queue = Queue(Task(CHAIN[0], "00", f"s{number}", "00", 1) for number in range(shards))
    done: Counter[str] = Counter()
    with simulated(ray, recipe) as pool:
        for task, outcome in pool.run(queue):
            if outcome.failures:
                raise RuntimeError(outcome.failures[0].cause)
            done[task.stage] += 1
            if (after := CHAIN.index(task.stage) + 1) < len(CHAIN):
                queue.put(replace(task, stage=CHAIN[after]))
    if set(done.values()) != {shards} or len(done) != len(CHAIN):
        raise RuntimeError(f"the simulated run lost shards: {dict(done)}")
    return Schedule(way, ray.now_s, ideal_s(ray, all_nodes, workers), ray.most_asked)


def ideal_s(ray: Simulated, nodes: Sequence[Node], workers: int) -> float:
    """Return when all work could be done at the earliest by what had joined, each kind for itself."""
    found = []
    for kind in ("CPU", "GPU"):
        left, now, rate = ray.busy[kind], 0.0, 0.0
        for node in sorted(nodes, key=lambda node: node.joins_s):
            if rate and left <= (node.joins_s - now) * rate:
                break
            left, now = left - (node.joins_s - now) * rate, node.joins_s
            rate = min(rate + node.has(kind), workers)
        found.append(now + left / rate)
    return max(found)


def growing() -> list[Node]:
    """Return a head without GPUs; two nodes with four each after a minute and a half, two more in mid-run."""
    nodes = [Node("head", 0.0, 16, 0)]
    return nodes + [Node(f"gpu-{number}", when, 16, 4) for number, when in enumerate((90.0, 90.0, 500.0, 700.0))]


def schedules(shards: int) -> list[Schedule]:
    """Return the same work in several ways."""
    found = [
        run("one shard a GPU at a time", Simulated(growing(), at_once=1), shards, 64),
        run("several", Simulated(growing()), shards, 64),
    ]
    ray = Simulated(growing(), autoscaler=True)
    for number, node in enumerate(ray.later):
        node.joins_s = BOOT_S + number  # the soonest that they could be there
    return [*found, run("several, an autoscaler from no GPU", ray, shards, 64)]


def main(arguments: list[str] | None = None) -> None:
    """Print the makespans."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--shards", type=int, default=400)
    options = parser.parse_args(arguments)
    print(f"{options.shards} shards through {', '.join(CHAIN)} on a SIMULATED cluster; seconds of its clock")
    for one in schedules(options.shards):
        told = f"{one.seconds:8.0f} s, ideal {one.ideal_s:6.0f} s: {one.share:.2f}"
        print(f"  {one.way:<36} {told}; most workers asked for beyond the room: {one.most_asked}")


if __name__ == "__main__":
    main()
