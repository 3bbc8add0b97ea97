"""What training would find on this machine: GPUs, an engine and whether it computes rightly, the scenes asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import get_args

import torch

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.training import Task
from trainer.loop.device import resolve_device, unused_gpu
from trainer.network.sparse import check_engine, open_engine


@dataclass(frozen=True)
class Machine:
    """What was found. `error` is the engine's largest relative error against dense convolutions, None if unusable.

    `gpus` are name and memory (GB) of every GPU that torch sees; `splits` the scenes that each part of the recipe
    names or takes by default. `problem` is a sentence, empty where training can start, and so is `unused`, of a GPU
    that is here and would not be used.
    """

    engine: str
    device: str
    error: float | None
    gpus: tuple[tuple[str, float], ...]
    splits: Mapping[str, str]
    problem: str = ""
    unused: str = ""

    def json(self) -> str:
        """Return it as one JSON document on one line, for programs."""
        return json.dumps(asdict(self))

    def sentences(self) -> Iterator[str]:
        """Yield it for people."""
        for name, gigabytes in self.gpus:
            yield f"GPU {name}, {gigabytes:.0f} GB"
        if not self.gpus:
            yield f"torch {torch.__version__} sees no GPU"
        if self.error is not None:
            yield f"engine {self.engine} on {self.device} is within {self.error:.1e} of dense convolutions"
        if self.problem:
            yield self.problem
        if self.unused:
            yield self.unused


def look_at(recipe: Recipe) -> Machine:
    """Return what this machine offers a recipe; what keeps training from starting is its `problem`."""
    gpus = tuple(
        (torch.cuda.get_device_name(one), torch.cuda.get_device_properties(one).total_memory / 1e9)
        for one in range(torch.cuda.device_count())
    )
    splits = {name: str(getattr(recipe, name).split) for name in (*get_args(Task), "predict", "evaluate")}
    name, device, error, problem, unused = str(recipe.network.engine), "cpu", None, "", ""
    try:
        engine = open_engine(name, recipe.run.device)
        name = engine.name
        if recipe.run.deterministic:
            engine.require_deterministic()
        chosen = resolve_device(recipe.run.device, engine)
        device, error, unused = str(chosen), check_engine(engine, chosen), unused_gpu(chosen)
    except (ConfigError, RuntimeError, ImportError, OSError) as fault:  # a build for another torch or CUDA may not load
        problem = " ".join(str(fault).split())
    return Machine(name, device, error, gpus, splits, problem, unused)
