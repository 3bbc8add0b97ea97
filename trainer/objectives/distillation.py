"""Distillation: the learning of pseudo-labels."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from manifests.recipe import Recipe
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from trainer.data.batches import ConfidentBatch, SoftBatch, TargetBatch
from trainer.data.samples import target_sample
from trainer.data.tables import read_text
from trainer.objectives.losses import GlobalBatch, segmentation_loss
from trainer.objectives.objective import Objective, Terms


def distillation(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return the learning of pseudo-labels, one output per class and one for "none".

    The paper (arXiv 2405.15286), annotation-free training; points whose pseudo-label is 0 teach nothing. With soft
    losses it reads table `belief` too, before `target`.
    """
    if "text" in ref.tables:
        read_text(store, ref, recipe.ontology)  # the pseudo-labels count the classes of the dictionary it was made of
    settings = recipe.distill
    n_outputs = len(recipe.ontology.classes)
    confident, soft = settings.weight == "confidence", settings.loss == "soft"
    class_names = recipe.ontology.class_names

    def loss(output: Tensor, batch: TargetBatch, global_batch: GlobalBatch) -> Terms:
        weight = batch.confidence if isinstance(batch, ConfidentBatch) else None
        shares = batch.shares if isinstance(batch, SoftBatch) else None
        return segmentation_loss(
            output,
            batch.labels,
            batch.voxel_frame,
            settings.lovasz,
            global_batch=global_batch,
            weight=weight,
            shares=shares,
        )

    return Objective(
        task="distill",
        settings=settings,
        stages=("points", "belief", "target") if soft else ("points", "target"),
        broadcast=(),
        make_sample=partial(target_sample, recipe.voxels, recipe.augment, class_names, confident=confident, soft=soft),
        n_outputs=n_outputs,
        normalise_output=False,
        lr_trunk=settings.lr_trunk,
        lr_head=settings.lr_head,
        loss=loss,
        init=settings.init,
    )
