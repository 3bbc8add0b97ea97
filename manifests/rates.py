"""How long work takes where nobody has measured it here: rates from elsewhere, each with the page that tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manifests.labels import refine_split
from manifests.recipe import Recipe
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.sections.teachers.san import SanConfig
from manifests.sections.teachers.views import cost_of
from manifests.sections.training import Task
from manifests.splits import load_split

TRAINED_PER_S = {
    ("minkunet34c", "gpu"): 33.0,
    ("minkunet_small", "gpu"): 100.0,
    ("minkunet34c", "cpu"): 0.43,
    ("minkunet_small", "cpu"): 2.9,
}
"""Frames that a training takes in a second on one H100, or on one core (docs/benchmarks.md, "The network")."""

ENCODED_PER_S = {"clip_dense B/16": 78.0, "clip_dense L/14": 47.0, "san": 64.0, "fcclip": 17.0}
"""Images that stage `encode` takes in a second, from files to shards, on one H100 with 14 threads that decode
(docs/benchmarks.md): of dense CLIP the slower of two ways, in windows."""

REFINED_S = {"vote": 0.22, "afi": 0.39}
"""Seconds a frame that a step of refinement takes on one core (docs/benchmarks.md, docs/cluster.md)."""

STARTS_S = 8.0  # a process, before it computes anything
PREDICTED = 3.0  # how many times faster than learning from a frame its prediction is
TOLD_BY = "docs/benchmarks.md"


@dataclass(frozen=True)
class Amount:
    """How many frames each part of a recipe has to do with: those of all its scenes, and of splits by name."""

    frames: int
    by_split: Mapping[str, int]

    @classmethod
    def in_scenes(cls, recipe: Recipe, frames_of_scene: Mapping[str, int]) -> Amount:
        """Return the frames of every split that a step of the recipe names, as far as there are such splits."""
        found = {}
        for split in {recipe.pretrain.split, recipe.distill.split, recipe.predict.split, refine_split(recipe)}:
            try:
                scenes = load_split(split, recipe.data.dataset, tuple(frames_of_scene))
            except (ValueError, OSError):
                continue  # the step that needs it says what is wrong
            found[split] = sum(frames_of_scene[scene] for scene in scenes)
        return cls(sum(frames_of_scene.values()), found)

    def of(self, split: str) -> int:
        """Return the frames of a split; an unknown one, which the step itself complains about, has all."""
        return self.by_split.get(split, self.frames)


def device_of(recipe: Recipe) -> str:
    """Return "gpu" where networks of the recipe run on a GPU of this machine, else "cpu"."""
    here = any(Path(place).exists() for place in ("/proc/driver/nvidia", "/dev/nvidia0"))
    return "gpu" if here and recipe.run.device != "cpu" else "cpu"


def students(recipe: Recipe) -> list[Task]:
    """Return the trainings that predictions without true labels need, in their order."""
    if recipe.predict.checkpoint or recipe.predict.of != "distill":
        return []
    return ["pretrain", "distill"] if recipe.distill.init == "pretrain" else ["distill"]


def training_seconds(recipe: Recipe, task: Task, amount: Amount) -> float:
    """Return how long a training takes."""
    settings = recipe.settings(task)
    rate = TRAINED_PER_S.get((recipe.network.name, device_of(recipe)), TRAINED_PER_S["minkunet34c", "cpu"])
    return STARTS_S + amount.of(settings.split) * settings.epochs / rate


def predicting_seconds(recipe: Recipe, amount: Amount) -> float:
    """Return how long predictions take: a third of what learning from as many frames does."""
    one_epoch = training_seconds(recipe, "distill", Amount(amount.of(recipe.predict.split), {})) - STARTS_S
    return STARTS_S + one_epoch / recipe.distill.epochs / PREDICTED * recipe.predict.views


def refining_seconds(recipe: Recipe, frames: int) -> float:
    """Return how long refinement takes."""
    each = sum(seconds for step, seconds in REFINED_S.items() if step in recipe.refine.by)
    workers = recipe.run.workers if recipe.run.pool == "ray" else recipe.run.loader_workers
    return STARTS_S + frames * each / max(workers, 1)


def calibrating_seconds(recipe: Recipe, frames: int) -> float:
    """Return how long it takes to calibrate confidences; by the truth nothing is made again."""
    each = sum(REFINED_S.values()) if recipe.calibrate.by == "agreement" else 0.0
    return STARTS_S + min(frames, recipe.calibrate.frames) * each


def encoded_per_s(recipe: Recipe) -> float | None:
    """Return how many images a second the recipe's network takes on a GPU; None where no page tells, or on a CPU."""
    teacher = recipe.teacher
    if recipe.run.device == "cpu":
        return None
    if isinstance(teacher, ClipDenseConfig):
        kind = next((kind for kind in ("B-16", "L-14") if kind in teacher.model), "")
        alone = ENCODED_PER_S.get(f"clip_dense {kind.replace('-', '/')}")
    else:
        alone = ENCODED_PER_S.get(teacher.name)
    views = teacher.views if isinstance(teacher, ClipDenseConfig | SanConfig) else ()
    return None if alone is None else alone / cost_of(views)
