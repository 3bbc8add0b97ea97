"""Who gets which shard when: the pool of production on a SIMULATED cluster, whose clock and workers are made up."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest

from bench import cluster
from bench.cluster import Node, Simulated, growing, run, schedules, simulated
from manifests.recipe import load_recipe
from pipeline.engine.lanes import Lane, RayWorker
from pipeline.engine.tasks import Queue, Task


def tasks(stage: str, n_tasks: int) -> list[Task]:
    return [Task(stage, "00", f"s{number}", "00", 1) for number in range(n_tasks)]


@pytest.fixture
def gpu_lane() -> Lane:
    return Lane(1.0, room=2, stages={"encode"})


def worker(name: str, n_tasks: int = 0) -> RayWorker:
    return RayWorker(name, "node", "encode", {"encode": 3}, n_tasks)


def test_with_nodes_that_join_in_mid_run_a_pool_comes_within_a_tenth_of_the_ideal_schedule() -> None:
    one, several, from_none = schedules(400)
    assert several.share >= 0.9 and from_none.share >= 0.9
    assert several.seconds < 0.95 * one.seconds  # several shards under way are what makes it


def test_an_autoscaler_is_shown_a_demand_where_no_node_has_a_gpu_and_no_more_than_there_is_to_do() -> None:
    ray = Simulated(growing(), autoscaler=True)
    assert run("three shards", ray, 3, 64).most_asked <= 3
    assert any(node.gpus for node in ray.there)


def test_a_gpu_node_that_joins_is_used_though_all_was_asked_for_before() -> None:
    def nodes() -> list[Node]:
        return [Node("head", 0.0, 4, 0), Node("first", 10.0, 4, 1), Node("second", 300.0, 4, 1)]

    both, alone = run("both", Simulated(nodes()), 40, 8), run("alone", Simulated(nodes()[:2]), 40, 8)
    assert both.seconds < 0.75 * alone.seconds


def test_workers_without_shards_give_their_gpus_back_in_a_cluster() -> None:
    recipe = load_recipe("nuscenes_clip", ["run.pool=ray", "run.ray_address=auto", "run.store=/nowhere"])
    recipe = replace(recipe, run=replace(recipe.run, workers=4, gpus_per_worker=1.0))
    ray = Simulated([Node("head", 0.0, 1, 2)])
    queue = Queue([*tasks("encode", 4), *tasks("index", 60)])  # twelve minutes on one core
    held = {}
    with simulated(ray, recipe) as pool:
        for task, _ in pool.run(queue):
            held[ray.now_s, task.stage] = ray.there[0].used["GPU"]
    encoded = max(when for when, stage in held if stage == "encode")
    assert held[encoded, "encode"] == 2
    after = [gpus for (when, _), gpus in held.items() if when > encoded + cluster.START_S + 130]
    assert after and set(after) == {0}


def test_shares_that_exclude_each_other_take_turns() -> None:
    recipe = load_recipe("nuscenes_clip", ["run.pool=ray", "run.ray_address=auto", "run.store=/nowhere"])
    recipe = replace(recipe, run=replace(recipe.run, workers=8, gpus_per_worker=1.0, segment_gpus=0.5))
    queue = Queue([*tasks("encode", 6), *tasks("segment", 6)])
    done = defaultdict(list)
    with simulated(Simulated([Node("head", 0.0, 4, 2)]), recipe) as pool:
        for task, outcome in pool.run(queue):
            assert not outcome.failures
            done[task.stage].append(task.shard)
    assert {stage: len(shards) for stage, shards in done.items()} == {"encode": 6, "segment": 6}


def test_idle_workers_come_first_then_those_with_the_fewest_shards(gpu_lane: Lane) -> None:
    busy, idle = worker("busy", 1), worker("idle")
    gpu_lane.workers = [busy, idle]
    queue = Queue(tasks("encode", 9))
    assert gpu_lane.next(queue, {}) is idle
    idle.n_tasks = 2
    assert gpu_lane.next(queue, {}) is busy
    busy.n_tasks = idle.n_tasks = 3
    assert gpu_lane.next(queue, {}) is None


def test_a_second_shard_is_given_where_it_keeps_nobody_else_waiting(gpu_lane: Lane) -> None:
    gpu_lane.workers = [worker("busy", 1)]
    gpu_lane.starting = {"sign": worker("starting")}
    assert gpu_lane.next(Queue(tasks("encode", 1)), {}) is None  # the one that starts gets it
    assert gpu_lane.next(Queue(tasks("encode", 2)), {}) is gpu_lane.workers[0]
    gpu_lane.room = 1  # no room: it is asked for, and may never come
    assert gpu_lane.next(Queue(tasks("encode", 1)), {}) is gpu_lane.workers[0]
    gpu_lane.workers = [worker("one", 1), worker("other", 1)]
    assert gpu_lane.next(Queue(tasks("encode", 1)), {}) is None  # whoever is through first gets it


def test_a_shard_that_took_a_worker_down_keeps_company_with_no_other(gpu_lane: Lane) -> None:
    busy = worker("busy", 1)
    gpu_lane.workers = [busy]
    assert gpu_lane.next(Queue(tasks("encode", 9)), {("encode", "s0")}) is None
    busy.n_tasks = 0
    assert gpu_lane.next(Queue(tasks("encode", 9)), {("encode", "s0")}) is busy
    busy.n_tasks, busy.alone = 1, True
    assert gpu_lane.next(Queue(tasks("encode", 9)), {}) is None
