"""The learning of true labels: linear probing, fine-tuning, and full supervision as an upper bound.

The only objective that opens table `label`. It judges what was learnt without labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from manifests.recipe import Recipe
from manifests.sections.network import AugmentConfig, VoxelConfig
from manifests.sections.training import LabelledConfig, Task
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from manifests.tables.base import Rows
from manifests.tables.labels import Label
from manifests.tables.sensors import Points
from trainer.data.batches import TargetBatch
from trainer.data.samples import class_sample
from trainer.data.tables import Every, check_dictionary
from trainer.objectives.losses import GlobalBatch, segmentation_loss
from trainer.objectives.objective import Objective, Terms

LABELLED = ("points", "label")
"""The tables that learning from true labels reads."""


def probing(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return linear probing: how far one linear layer gets on what the trunk has learnt."""
    return supervision("probe", recipe.probe, 0.0, recipe.probe.lr, recipe, store, ref, frozen_trunk=True)


def finetuning(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return fine-tuning on few labels."""
    settings = recipe.finetune
    return supervision("finetune", settings, settings.lr_trunk, settings.lr_head, recipe, store, ref)


def full_supervision(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return the learning of all labels from scratch."""
    settings = recipe.supervised
    return supervision("supervised", settings, settings.lr_trunk, settings.lr_head, recipe, store, ref)


def supervision(
    task: Task,
    settings: LabelledConfig,
    lr_trunk: float,
    lr_head: float,
    recipe: Recipe,
    store: Store,
    ref: Ref,
    *,
    frozen_trunk: bool = False,
) -> Objective:
    """Return the learning of true labels, cross-entropy plus Lovász; points whose label is 0 teach nothing.

    Raises StoreError if the labels were made with another class dictionary.
    """
    check_dictionary(store, ref, "label", recipe.ontology.raw_content())

    def loss(output: Tensor, batch: TargetBatch, global_batch: GlobalBatch) -> Terms:
        return segmentation_loss(output, batch.labels, batch.voxel_frame, settings.lovasz, global_batch=global_batch)

    return Objective(
        task=task,
        settings=settings,
        stages=LABELLED,
        broadcast=(),
        make_sample=partial(label_sample, recipe.voxels, recipe.augment, recipe.ontology.class_names),
        n_outputs=len(recipe.ontology.classes),
        normalise_output=False,
        lr_trunk=lr_trunk,
        lr_head=lr_head,
        loss=loss,
        init=settings.init,
        every=Every(settings.every_scene, settings.every_scan),
        frozen_trunk=frozen_trunk,
    )


def label_sample(
    voxels: VoxelConfig,
    augmentation: AugmentConfig | None,
    class_names: Sequence[str],
    rows: Rows,
    rng: np.random.Generator,
) -> TargetBatch:
    """Return one frame of tables `points` and `label`, seen as `augmentation` draws it; raises like `class_sample`."""
    return class_sample(voxels, augmentation, class_names, rows[Points], rows[Label].label, rng, table="label")
