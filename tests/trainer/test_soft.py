"""Learning what points may be, all of it, instead of the label alone."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from rich.console import Console

from manifests.asked import pin
from manifests.config import ConfigError
from manifests.fingerprint import canonical
from manifests.learnt import settings_of
from manifests.sections.training import DistillConfig
from manifests.storage.errors import StoreError
from manifests.tables.labels import Belief
from trainer.checkpoints import checkpoint
from trainer.loop.train import train
from trainer.objectives.losses import segmentation_loss

# For the label: probability 0.7 and 0.5.
THREE_VOXELS = torch.tensor([[0.1, 0.7, 0.2], [0.2, 0.3, 0.5], [0.1, 0.6, 0.3]]).log()
THREE_LABELS = torch.tensor([1, 2, 2])
KEPT = '[vote]\nbelief = true\n[target]\nlabels = "vote"\n'


def soft_fleet(fleet: Any, share: int = 155, other: int = 100) -> Any:
    """Return the fleet with table `belief`: what `target` says, and less likely the class after it."""
    fleet.recipe_path.write_text(fleet.recipe_path.read_text().replace("        ", "") + KEPT)
    n_classes = len(fleet.recipe().ontology.classes)

    def belief_row(name: str) -> Belief:
        label = fleet.target_row(name).label
        named = (label > 0).astype(np.uint8)
        after = np.where(label > 0, label % (n_classes - 1) + 1, 0)
        nothing = np.zeros_like(label)
        return Belief(
            frame_id=name,
            label=np.column_stack([label, after, nothing]).astype(np.uint8),
            share=np.column_stack([share * named, other * named, nothing]).astype(np.uint8),
        )

    fleet.put("belief", belief_row)
    return fleet


def first_weights(fleet: Any, console: Console, *settings: str) -> Any:
    """Return the last layer after one step of a training."""
    run = ("distill.epochs=1", "distill.batch_size=5", *settings)
    path = train(fleet.recipe(*run), "distill", console)
    return checkpoint.load(path).weights["final.kernel"].clone()


def test_a_soft_training_reads_the_shares_and_learns_otherwise(fleet: Any, console: Console) -> None:
    soft_fleet(fleet)
    hard = first_weights(fleet, console, "run.name=hard")
    soft = first_weights(fleet, console, "run.name=soft", "distill.loss=soft")
    assert not np.array_equal(hard.numpy(), soft.numpy())
    learnt = fleet.store.expect_ref(pin(fleet.recipe("run.name=soft", "distill.loss=soft"), "distill"))
    assert {"points", "belief", "target"} == set(learnt.tables)


def test_shares_of_one_class_are_the_label(fleet: Any, console: Console) -> None:
    soft_fleet(fleet, 255, 0)
    first = "voxels.label=first"  # of one point, so that no voxel holds several labels
    hard = first_weights(fleet, console, "run.name=hard", first)
    soft = first_weights(fleet, console, "run.name=soft", first, "distill.loss=soft")
    np.testing.assert_allclose(hard.numpy(), soft.numpy(), atol=1e-6)


def test_what_is_missing_is_told(fleet: Any, console: Console) -> None:
    with pytest.raises(ConfigError, match=r'distill.loss = "soft" looks at all classes .* set vote.belief = true'):
        train(fleet.recipe("distill.loss=soft"), "distill", console)
    with pytest.raises(StoreError, match="belief"):
        train(fleet.packed("distill.loss=soft", "vote.belief=true", "target.labels=vote"), "distill", console)
    with pytest.raises(ValueError, match="loss is 'softer'"):
        DistillConfig(loss="softer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shares say already how sure"):
        DistillConfig(loss="soft", weight="confidence")


def test_hard_trainings_are_what_they_were(fleet: Any) -> None:
    plain, soft = fleet.recipe(), fleet.recipe("distill.loss=soft")
    assert "loss" not in canonical(settings_of(plain, "distill"))
    assert settings_of(plain, "distill") != settings_of(soft, "distill")
    assert settings_of(plain, "pretrain") == settings_of(soft, "pretrain")


def test_soft_cross_entropy_pulls_towards_what_voxels_may_be() -> None:
    shares = torch.tensor([[0.0, 0.75, 0.25], [0.0, 0.25, 0.75], [0.5, 0.5, 0.0]])
    labels = torch.tensor([1, 2, 0])  # the last teaches nothing, whatever its shares are
    logits = THREE_VOXELS.clone().requires_grad_()
    terms = segmentation_loss(logits, labels, shares=shares)
    by_hand = -(0.75 * math.log(0.7) + 0.25 * math.log(0.2) + 0.25 * math.log(0.3) + 0.75 * math.log(0.5)) / 2
    assert terms.cross_entropy.item() == pytest.approx(by_hand)
    torch.testing.assert_close(terms.lovasz, segmentation_loss(THREE_VOXELS, labels).lovasz)
    # of softmax and cross-entropy together the gradient is probability less share, over the two rows that teach
    (gradient,) = torch.autograd.grad(terms.cross_entropy, logits)
    expected = torch.tensor([[0.1, -0.05, -0.05], [0.2, 0.05, -0.25], [0.0, 0.0, 0.0]]) / 2
    torch.testing.assert_close(gradient, expected)


def test_shares_of_the_label_alone_are_hard() -> None:
    frame = torch.tensor([0, 0, 1])
    alone = torch.nn.functional.one_hot(THREE_LABELS, 3).float()
    ways: tuple[Literal["batch", "scan"], ...] = ("batch", "scan")
    for lovasz in ways:
        soft = segmentation_loss(THREE_VOXELS, THREE_LABELS, frame, lovasz, shares=alone)
        for term, expected in zip(soft, segmentation_loss(THREE_VOXELS, THREE_LABELS, frame, lovasz), strict=True):
            torch.testing.assert_close(term, expected)
