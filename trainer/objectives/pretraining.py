"""Contrastive pre-training (TMP)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from manifests.recipe import Recipe
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from trainer.data.batches import PairBatch
from trainer.data.samples import pair_sample
from trainer.data.tables import read_text
from trainer.objectives.losses import GlobalBatch, soft_text_target, tmp_loss
from trainer.objectives.objective import Objective, Terms


def pretraining(recipe: Recipe, store: Store, ref: Ref, device: torch.device) -> Objective:
    """Return contrastive pre-training (TMP): superpoints find their masks and their prompts.

    The head is as wide as the prompt vectors. The paper (arXiv 2405.15286), section "TMP".
    """
    settings = recipe.pretrain
    text = read_text(store, ref, recipe.ontology).to(device)
    groups = torch.from_numpy(recipe.ontology.group_of_prompt.astype(np.int64)).to(device)
    target = soft_text_target(text, groups, settings.target_weight, settings.target_power, settings.clamp_cosines)

    def loss(output: Tensor, batch: PairBatch, global_batch: GlobalBatch) -> Terms:
        return tmp_loss(
            output,
            batch.pair_voxel,
            batch.pair_superpoint,
            batch.superpoint_vector,
            batch.superpoint_prompt,
            batch.superpoint_frame,
            text,
            target,
            settings,
            global_batch,
        )

    return Objective(
        task="pretrain",
        settings=settings,
        stages=("points", "pairs"),
        broadcast=("text",),
        make_sample=partial(pair_sample, recipe.voxels, recipe.augment, n_prompts=len(text)),
        n_outputs=text.shape[1],
        normalise_output=True,
        lr_trunk=settings.lr,
        lr_head=settings.lr,
        loss=loss,
    )
