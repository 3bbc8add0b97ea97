"""The trainer's sections of a recipe."""

from typing import Any

import pytest

from manifests.config import ConfigError
from manifests.sections.training import DistillConfig, EvaluateConfig, PredictConfig, PretrainConfig


def test_the_defaults_are_the_papers() -> None:
    pretrain, distill = PretrainConfig(), DistillConfig()
    assert (pretrain.split, pretrain.epochs, pretrain.batch_size, pretrain.lr) == ("parametrize", 40, 4, 0.5)
    assert (pretrain.temperature, pretrain.image_weight, pretrain.text_weight) == (0.07, 0.5, 0.5)
    assert (pretrain.target_weight, pretrain.target_power, pretrain.drop_last) == (0.2, 1.0, True)
    assert pretrain.negatives == "frame", "the paper has one frame on a device"
    assert (distill.split, distill.epochs, distill.batch_size) == ("train", 5, 16)
    assert (distill.lr_head, distill.lr_trunk, distill.init) == (2.0, 0.02, "pretrain")
    for sgd in (pretrain, distill):
        assert (sgd.momentum, sgd.dampening, sgd.weight_decay) == (0.9, 0.1, 1e-4)
    assert PredictConfig().split == EvaluateConfig().split == "val"
    assert EvaluateConfig().absent == "exclude"


def test_a_recipe_is_read_with_its_dictionary(fleet: Any) -> None:
    recipe = fleet.recipe("pretrain.negatives=local", "distill.epochs=7")
    assert recipe.name == "street"
    assert recipe.ontology.class_names == ("ignore", "car", "road", "wall")
    assert recipe.pretrain.negatives == "local"
    assert recipe.distill.epochs == 7
    assert recipe.folder() == fleet.folder / "runs" / "street"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pretrain.epoch=3", "did you mean `epochs`"),
        ("pretrain.temperature=0", "temperature"),
        ("pretrain.negatives=all", "negatives"),
        ("distill.epochs=0", "at least 1"),
        ("distill.lovasz=image", "lovasz"),
        ("distill.accumulate=2", 'lovasz is "batch" and accumulate 2'),
        ("pretrain.accumulate=5", "in 1 to 2 parts"),
        ("distill.precision=half", "precision"),
        ("distill.clip_norm=-1", "clip_norm"),
        ("distill.ema_decay=1", "ema_decay"),
        ("run.checkpoint_steps=-1", "checkpoint_steps"),
        ("distill.momentum=1", "momentum"),
        ("distill.weight=votes", "weight is 'votes'"),
        ("predict.views=0", "views is 0"),
        ("distill.lr_head=nan", "lr_head is nan"),
        ("distill.keep_every=-1", "0 or more"),
        ('distill.split=""', "split is empty"),
        ("evaluate.absent=maybe", "exclude"),
        ("voxels.size_m=0", "size_m"),
        ("data.ontology=cityscapes", "cityscapes"),
    ],
)
def test_what_is_not_right_in_a_recipe_is_said(fleet: Any, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        fleet.recipe(override)
