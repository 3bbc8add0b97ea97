"""The one door to Ray: connecting to a cluster or starting a local one, and what a worker asks of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manifests.recipe import Recipe
from pipeline.engine.worker import Worker


def connect(recipe: Recipe) -> Any:
    """Return the ray module, connected to the cluster at `run.ray_address` or to a local one started for this run."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Ray 2.60 would otherwise blank CUDA_VISIBLE_DEVICES for workers without GPUs and warn about it
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if not ray.is_initialized():
        local = recipe.run.ray_address == "local"
        options: dict[str, Any] = {"address": recipe.run.ray_address}
        if local:
            options |= {
                "num_cpus": max(recipe.run.workers, os.cpu_count() or 1),
                "include_dashboard": False,
                "object_store_memory": 256 * 2**20,  # tasks and outcomes are small: rows go through the store
            }
        root = str(Path(__file__).parent.parent.parent)
        try:
            ray.init(
                **options,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": {"PYTHONPATH": root}},
            )
        except (ConnectionError, ray.exceptions.RayError, RuntimeError, ValueError) as error:
            raise RuntimeError(f"Ray at run.ray_address = {recipe.run.ray_address!r} cannot be used: {error}") from None
    return ray


def placed(worker: type[Worker]) -> type[Worker]:
    """Return the worker with a method that tells on which node it runs."""

    class Placed(worker):  # type: ignore[misc, valid-type]
        def where(self) -> str:
            import ray

            return str(ray.get_runtime_context().get_node_id())

    return Placed


def named(node: Mapping[str, Any]) -> str:
    """Return the name of a node for people, of what Ray says of it."""
    return f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']}, {node['NodeID'][:8]} in Ray)"
