"""Every objective by its task, and whose weights each may start from."""

from __future__ import annotations

from collections.abc import Callable

import torch

from manifests.recipe import Recipe
from manifests.sections.training import Task
from manifests.stages import believed
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from trainer.objectives.distillation import distillation
from trainer.objectives.objective import Objective
from trainer.objectives.pretraining import pretraining
from trainer.objectives.supervised import LABELLED, finetuning, full_supervision, probing

OBJECTIVES: dict[Task, Callable[[Recipe, Store, Ref, torch.device], Objective]] = {
    "pretrain": pretraining,
    "distill": distillation,
    "probe": probing,
    "finetune": finetuning,
    "supervised": full_supervision,
}


READS: dict[Task, tuple[str, ...]] = {
    "pretrain": ("points", "pairs", "text"),
    "distill": ("points", "target"),
    "probe": LABELLED,
    "finetune": LABELLED,
    "supervised": LABELLED,
}
"""The tables that each task reads, whatever the recipe."""


def tables_read(recipe: Recipe, task: Task) -> tuple[str, ...]:
    """Return the tables that a task of a recipe reads; raises ConfigError for one that the recipe does not make."""
    if task == "distill" and recipe.distill.loss == "soft":
        return (*READS[task], *(need.table for need in believed(recipe, 'distill.loss = "soft"')))
    return READS[task]


EARLIER_RUNS: dict[Task, tuple[Task, ...]] = {
    "distill": ("pretrain",),
    "probe": ("pretrain", "distill"),
    "finetune": ("pretrain", "distill"),
    "supervised": ("pretrain", "distill"),
}
"""Whose weights a task may start from by name, in the same recipe."""
