"""What the trainer says of itself: GPUs, engine, splits. It answers in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

from manifests.config import ConfigError, read_recipe
from manifests.recipe import Recipe
from manifests.sections.training import Task
from manifests.splits import load_split
from manifests.storage.names import scene_of
from pipeline.checks.findings import Finding
from pipeline.engine.runner import Runner

TRAINER_TIMEOUT_S = 120


def check_trainer(
    recipe: Recipe,
    overrides: Sequence[str],
    source: str | Path,
    ask: Callable[[Sequence[str]], tuple[str, str]] | None = None,
) -> Iterator[Finding]:
    """Yield GPUs, the engine's self-check and the sizes of the trainer's splits, as `python -m trainer check` tells."""
    words = [sys.executable, "-m", "trainer", "check", str(source), "--json"]
    for override in overrides:
        words += ["--set", override]
    output, errors = (ask or ask_program)(words)
    try:
        machine = json.loads(output.strip().rpartition("\n")[2])
        gpus, problem, splits = machine["gpus"], machine["problem"], machine["splits"]
        engine, device, error = machine["engine"], machine["device"], machine["error"]
        unused = str(machine.get("unused", ""))
    except (ValueError, KeyError, TypeError):
        said = (errors.strip() or output.strip() or "nothing").rpartition("\n")[2]
        yield Finding("problem", "trainer", f"`python -m trainer check` did not answer; it said: {said}")
        return
    yield from check_gpus(recipe, [(str(name), float(memory_gb)) for name, memory_gb in gpus])
    if unused:
        yield Finding("note" if recipe.run.device == "cpu" else "problem", "gpu", unused)
    if problem:
        yield Finding("problem", "engine", str(problem))
    else:
        yield Finding("ok", "engine", f"{engine} on {device} is within {error:.1e} of dense convolutions")
    yield from check_splits(recipe, splits, source, overrides)


def ask_program(words: Sequence[str]) -> tuple[str, str]:
    """Return what a program prints, output and errors; it runs in the checkout."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=TRAINER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"nothing within {TRAINER_TIMEOUT_S} seconds"
    return done.stdout, done.stderr


def check_gpus(recipe: Recipe, gpus: Sequence[tuple[str, float]]) -> Iterator[Finding]:
    """Yield whether there are as many GPUs as the run asks for."""
    run = recipe.run
    told = ", ".join(f"{name} ({memory_gb:.0f} GB)" for name, memory_gb in gpus) or "none"
    asked = max(run.gpu_share, run.segment_gpus)
    if run.pool == "ray" and run.ray_address == "local" and asked > len(gpus):
        yield Finding(
            "problem",
            "gpu",
            f"workers ask for {asked:g} GPUs each, torch sees {told}; set run.gpus_per_worker and run.segment_gpus to "
            "0 for the CPU, or mend the driver",
        )
    elif recipe.teacher.has_encode and not gpus:
        yield Finding("note", "gpu", "torch sees none: encoding runs on the CPU; `plan --cost` tells how long")
    elif gpus and run.pool == "ray" and recipe.teacher.has_encode and not run.asks_for_gpus:
        yield Finding(
            "problem",
            "gpu",
            f'there are {told}, but run.gpus_per_worker is 0: Ray gives workers none; set it to "auto" or 1',
        )
    else:
        yield Finding("ok", "gpu", told)


def check_splits(
    recipe: Recipe, splits: Mapping[str, str], source: str | Path, overrides: Sequence[str]
) -> Iterator[Finding]:
    """Yield how many frames every part of the trainer would see of the frames that the recipe packs.

    An empty split is a fault where the recipe has the section, and otherwise one of a task that may never be asked for.
    """
    try:
        counts: Counter[str] = Counter()
        for shard, frames in Runner(recipe).listing().items():
            counts[scene_of(shard)] += len(frames)
    except ConfigError:
        return  # told before
    written = read_recipe(source, overrides).sections
    sizes: dict[str, int] = {}
    for task, split in splits.items():
        try:
            sizes[task] = sum(counts[scene] for scene in load_split(split, recipe.data.dataset, tuple(counts)))
        except (ValueError, OSError) as error:
            if task in written:
                yield Finding("problem", "split", f"{task}.split: {error}")
            else:
                sizes[task] = 0
    shown = [
        f"{task} {sizes[task]}" for task in splits if sizes.get(task) or (task not in get_args(Task) and task in sizes)
    ]
    if shown:
        yield Finding("ok", "split", f"frames: {', '.join(shown)}")
    empty = [task for task, size in sizes.items() if not size]
    if empty:
        yield Finding("note", "split", f"no frames here for {', '.join(empty)}; name a split in a section of that name")
