"""The device that computes, and computing that repeats itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from manifests.config import ConfigError
from trainer.loop.ranks import ALONE, Ranks
from trainer.network.sparse import Engine, check_engine


def resolve_device(name: str, engine: Engine, ranks: Ranks = ALONE) -> torch.device:
    """Return the device of `run.device`: "auto" is the GPU where torch and the engine can both use one.

    Of several processes on a machine each gets a GPU of its own.

    On a GPU the engine is compared with dense convolutions first: it is built from source there, and forks of it have
    been wrong. Raises ConfigError for a device that is not there, RuntimeError for an engine that computes wrongly.
    """
    try:
        device = torch.device("cuda" if engine.cuda_usable() else "cpu") if name == "auto" else torch.device(name)
    except RuntimeError:
        raise ConfigError(f'run.device is "{name}"; choose "auto", "cpu", "cuda" or "cuda:1"') from None
    if device.type == "cuda" and not engine.cuda_usable():
        raise ConfigError(
            f'run.device is "{name}", but torch or the {engine.name} engine has no GPU here; set it to "cpu" or "auto"'
        )
    if device.type == "cuda" and ranks.world_size > 1:
        if ranks.local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {ranks.local} of this machine has no GPU: there are {torch.cuda.device_count()}; start as "
                "many processes (torchrun --nproc-per-node)"
            )
        device = torch.device("cuda", ranks.local)
        torch.cuda.set_device(device)
    if device.type == "cuda":
        check_engine(engine, device)
    return device


DRIVER = Path("/proc/driver/nvidia/version")
"""There where a driver of NVIDIA is loaded, whatever torch can do with it."""


def unused_gpu(device: torch.device) -> str:
    """Return a sentence where a GPU is here and this device is the CPU; empty where none is here, or it is used."""
    if device.type != "cpu":
        return ""
    if torch.cuda.is_available():
        return (
            f"A GPU IS HERE AND NOT USED: {torch.cuda.get_device_name(0)}. On the CPU this takes up to a hundred times "
            'as long; set run.device = "auto" and network.engine = "auto"'
        )
    if DRIVER.exists():
        return (
            f"A GPU IS HERE AND NOT USED: a driver of NVIDIA is loaded, but torch {torch.__version__} "
            f"{f'of CUDA {torch.version.cuda} cannot use it' if torch.version.cuda else 'is built for the CPU alone'}; "
            "docs/gpu.md says which torch to install"
        )
    return ""


@contextmanager
def deterministic(wanted: bool, device: torch.device, engine: Engine) -> Iterator[None]:
    """Within the block, equal inputs give equal bits; on a GPU as far as torch and the sparse engine can."""
    if not wanted:
        yield
        return
    if device.type == "cpu":
        try:
            engine.require_deterministic()
        except RuntimeError as error:
            raise ConfigError(f"run.deterministic = true: {error}") from None
    before = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    # what use_deterministic_algorithms does, without loading the compiler of torch, which takes a second
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "warn")
    memory.fill_uninitialized_memory = False  # nothing reads it, and filling costs 4 % of a step
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)
        memory.fill_uninitialized_memory = filled
