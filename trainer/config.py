"""The trainer's view of a recipe: its sections as frozen dataclasses, and the class dictionary it names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from manifests.config import ConfigError, DataConfig, RunConfig, read_recipe
from manifests.ontology import Ontology, load_ontology
from superpixels.flat_interaction import FlatInteractionConfig
from trainer.augment import AugmentConfig
from trainer.losses import Negatives, TmpConfig
from trainer.metrics import AbsentRule
from trainer.minkunet import NetworkConfig
from trainer.voxels import VoxelConfig

Task = Literal["pretrain", "distill"]
Refinement = Literal["none", "afi"]


class TrainerError(RuntimeError):
    """A run that cannot go on for a reason the user can mend; printed without a trace, exit status 1."""


@dataclass(frozen=True)
class SgdConfig:
    """What both objectives share: frames, and stochastic gradient descent with a cosine from the full rate to 0.

    ``split``
        Scenes to learn from: a named split, "all", or a ``.txt`` file of scenes.
    ``epochs``, ``batch_size``
        Passes over the frames; frames per step.
    ``drop_last``
        Leave out an epoch's last batch where it is not full (unless it is the only one).
    ``momentum``, ``dampening``, ``weight_decay``
        As torch's SGD defines them.
    ``seed``
        Of the initial weights, of the order of frames, and of the augmentation of every frame in every epoch.
    ``keep_every``
        Checkpoints to keep besides the last: 0 none, 1 every epoch (as the reference implementation does), 5 every
        fifth. It changes no result, so it may change between a run and its continuation.
    """

    split: str = "train"
    epochs: int = 5
    batch_size: int = 16
    drop_last: bool = False
    momentum: float = 0.9
    dampening: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0
    keep_every: int = 0

    def __post_init__(self) -> None:
        if not self.split:
            raise ValueError('split is empty; name a split, a .txt file of scenes, or "all"')
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs is {self.epochs} and batch_size {self.batch_size}; both must be at least 1")
        if not 0 <= self.momentum < 1 or not 0 <= self.dampening <= 1:
            raise ValueError(f"momentum is {self.momentum} and dampening {self.dampening}; expected [0, 1) and [0, 1]")
        check_rate("weight_decay", self.weight_decay)
        if self.seed < 0 or self.keep_every < 0:
            raise ValueError(f"seed is {self.seed} and keep_every {self.keep_every}; both must be 0 or more")


@dataclass(frozen=True)
class PretrainConfig(TmpConfig, SgdConfig):
    """Section ``[pretrain]``: tri-modal contrastive pre-training (TMP); options of the loss as in TmpConfig.

    Defaults are the paper's (arXiv 2405.15286) and the reference implementation's, which puts one frame on each of four
    devices: a superpoint is told from those of its own frame. Full parity needs ``clamp_cosines = false`` too.
    """

    split: str = "parametrize"
    epochs: int = 40
    batch_size: int = 4
    drop_last: bool = True
    negatives: Negatives = "frame"
    lr: float = 0.5

    def __post_init__(self) -> None:
        TmpConfig.__post_init__(self)
        SgdConfig.__post_init__(self)
        check_rate("lr", self.lr)


@dataclass(frozen=True)
class DistillConfig(SgdConfig):
    """Section ``[distill]``: learning the pseudo-labels of table ``target``, cross-entropy plus Lovász.

    ``lr_head`` is the rate of the layer ``final``, ``lr_trunk`` of all others. ``init`` is where the weights start:
    "pretrain" (the finished pre-training of this recipe), the path of a checkpoint, or "" (at random). Defaults are the
    paper's 5 epochs from TMP. Parity: ``label = "first"`` in ``[voxels]``.
    """

    lr_head: float = 2.0
    lr_trunk: float = 0.02
    init: str = "pretrain"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("lr_head", self.lr_head)
        check_rate("lr_trunk", self.lr_trunk)


@dataclass(frozen=True)
class PredictConfig:
    """Section ``[predict]``: the scenes to predict, and the checkpoint ("": the newest that the recipe distilled)."""

    split: str = "val"
    checkpoint: str = ""


@dataclass(frozen=True)
class EvaluateConfig:
    """Section ``[evaluate]``: the scenes to score, and what a class without points and predictions counts.

    ``absent``: "exclude" (nuScenes devkit), "one" (parity with the reference implementation) or "zero" (SemanticKITTI).
    ``refine``: "none", or "afi" to score labels before and after flat interaction with the constants of ``[correct]``.
    """

    split: str = "val"
    absent: AbsentRule = "exclude"
    refine: Refinement = "none"

    def __post_init__(self) -> None:
        if self.absent not in get_args(AbsentRule):
            raise ValueError(f'absent is "{self.absent}"; choose one of {get_args(AbsentRule)}')
        if self.refine not in get_args(Refinement):
            raise ValueError(f'refine is "{self.refine}"; choose one of {get_args(Refinement)}')


@dataclass(frozen=True)
class Recipe:
    """Everything the trainer computes, typed."""

    name: str
    data: DataConfig
    run: RunConfig
    ontology: Ontology
    voxels: VoxelConfig
    network: NetworkConfig
    augment: AugmentConfig
    pretrain: PretrainConfig
    distill: DistillConfig
    predict: PredictConfig
    evaluate: EvaluateConfig
    correct: FlatInteractionConfig

    def folder(self) -> Path:
        """Return where the runs of this recipe are kept."""
        return Path(self.run.runs).expanduser() / self.name


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by path or built-in name; raises ConfigError with a sentence for anything that is not right."""
    file = read_recipe(recipe, overrides)
    data = file.section("data", DataConfig)
    try:
        ontology = load_ontology(data.ontology)
    except (ValueError, OSError) as error:
        raise ConfigError(f"data.ontology: {error}") from None
    return Recipe(
        name=file.name,
        data=data,
        run=file.section("run", RunConfig),
        ontology=ontology,
        voxels=file.section("voxels", VoxelConfig),
        network=file.section("network", NetworkConfig),
        augment=file.section("augment", AugmentConfig),
        pretrain=file.section("pretrain", PretrainConfig),
        distill=file.section("distill", DistillConfig),
        predict=file.section("predict", PredictConfig),
        evaluate=file.section("evaluate", EvaluateConfig),
        correct=file.section("correct", FlatInteractionConfig),
    )


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is finite and 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; expected a finite number, 0 or more")
