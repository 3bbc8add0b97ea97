"""Whether disk and memory are enough for a run."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.storage.errors import StoreError
from manifests.storage.names import checked
from pipeline.checks.findings import Finding
from pipeline.engine.runner import Runner
from pipeline.stages.registry import PACKED

WORKER_GB = 0.6  # a worker without a network peaks at 0.46 (docs/cluster.md)
NETWORK_GB = 3.0  # beside that, an estimate for a ViT-B/16 with a batch of images on the CPU


def check_disk(runner: Runner) -> Iterator[Finding]:
    """Yield whether what a run of `pack` would write fits into the store."""
    try:
        checked(runner.recipe.name)
        plans = runner.plan(PACKED)
        free = runner.store.free_bytes()
    except (ConfigError, StoreError, OSError) as error:
        yield Finding("problem", "store", f"no run can be planned: {error}")
        return
    need_gb = sum(plan.gigabytes_to_write for plan in plans)
    where = runner.store.place
    if free is None:
        yield Finding(
            "note", "store", f"{need_gb:.1f} GB to write; how much is free in {where} cannot be told from here"
        )
    elif need_gb * 1e9 > free:
        most = max(plans, key=lambda plan: plan.gigabytes_to_write)
        yield Finding(
            "problem",
            "store",
            f"{need_gb:.1f} GB to write, {free / 1e9:.1f} GB free in {where}; {most.stage.name} takes "
            f"{most.gigabytes_to_write:.1f} GB (run.keep_encode = false keeps no encodings). Point run.store elsewhere",
        )
    else:
        yield Finding("ok", "store", f"{need_gb:.1f} GB to write, {free / 1e9:.1f} GB free in {where}")


def check_memory(recipe: Recipe) -> Iterator[Finding]:
    """Yield whether the workers that run here have memory."""
    run = recipe.run
    if run.pool == "ray" and run.ray_address != "local":
        yield Finding(
            "note", "memory", f"workers run at {run.ray_address}: their memory and GPUs are not looked at here"
        )
        return
    workers = run.workers if run.pool == "ray" else 1
    each_gb = WORKER_GB + (NETWORK_GB if recipe.teacher.has_encode and not run.asks_for_gpus else 0)
    need_gb, free_gb = workers * each_gb, psutil.virtual_memory().available / 1e9
    text = f"{workers} workers take about {need_gb:.1f} GB, {free_gb:.1f} GB are free"
    if need_gb > free_gb:
        yield Finding("problem", "memory", f"{text}; lower run.workers to {max(1, int(free_gb // each_gb))}")
    else:
        yield Finding("ok", "memory", text)
