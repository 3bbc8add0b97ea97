"""Sections of what is learnt, predicted and scored."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from superpixels.metrics import AbsentRule

Negatives = Literal["frame", "local", "global"]

Lovasz = Literal["batch", "scan"]


@dataclass(frozen=True)
class TmpConfig:
    """Tri-modal contrastive pre-training; the defaults but ``clamp_cosines`` are the reference implementation's.

    ``temperature``
        Of both softmaxes.
    ``image_weight``, ``text_weight``
        Weights of the two terms of the loss.

    ``negatives``
        What a superpoint is told from. ``"frame"``: those of its own frame, and the loss is the mean over frames.
        ``"global"``: all others of the batch, on whichever device they are. Neither depends on how frames are laid out
        over devices. ``"local"`` does, as the reference implementation: all others that its device holds, and the loss
        is the mean over devices. (The official runs hold one frame on a device, where it equals ``"frame"``.)
    ``mask_same_prompt``
        Other superpoints with the same prompt are no negatives.
    ``renormalise``
        Superpoints are scaled to unit length; the mean of unit vectors is shorter where a superpoint is not uniform.
    ``target_weight``, ``target_power``, ``clamp_cosines``
        See :func:`soft_text_target`.
    """

    temperature: float = 0.07
    image_weight: float = 0.5
    text_weight: float = 0.5
    negatives: Negatives = "local"
    mask_same_prompt: bool = False
    renormalise: bool = False
    target_weight: float = 0.2
    target_power: float = 1.0
    clamp_cosines: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"the temperature is {self.temperature}; expected a number above 0")
        for name in ("image_weight", "text_weight"):
            weight: float = getattr(self, name)
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"{name} is {weight}; expected 0 or more")
        if self.image_weight == self.text_weight == 0:
            raise ValueError("image_weight and text_weight are both 0; nothing would be learnt")
        if self.negatives not in get_args(Negatives):
            raise ValueError(f"negatives is {self.negatives!r}; expected one of {get_args(Negatives)}")
        check_target(self.target_weight, self.target_power, self.clamp_cosines)


Task = Literal["pretrain", "distill", "probe", "finetune", "supervised"]

Student = Literal["distill", "probe", "finetune", "supervised"]
"""The tasks that end with a network that names classes."""

Improvement = Literal["afi", "vote", "vote+afi"]
"""What is done to labels at the end."""

Refinement = Literal["none", Improvement]

Refinable = Literal["prediction", "pseudo"]

Optimiser = Literal["sgd", "adamw"]

Precision = Literal["float32", "bfloat16", "float16"]

Weight = Literal["none", "confidence"]
DistillLoss = Literal["hard", "soft"]


@dataclass(frozen=True)
class SgdConfig:
    """What all objectives share: frames, and gradient descent with a cosine from the full rate to 0.

    ``split``
        Scenes to learn from: a named split, "all", or a ``.txt`` file of scenes.
    ``epochs``, ``batch_size``
        Passes over the frames; frames per step, on all devices together.
    ``accumulate``
        Parts in which a device goes through its frames of a step, one after the other, to hold less in memory. The loss
        stays that of the whole step; batch norm sees a part.
    ``drop_last``
        Leave out an epoch's last batch where it is not full (unless it is the only one).
    ``optimiser``
        "sgd" (the paper) or "adamw", which learns more from few steps; its rates are some hundred times smaller.
    ``momentum``, ``dampening``, ``weight_decay``
        As torch's SGD defines them; AdamW takes the last one only.
    ``seed``
        Of the initial weights, of the order of frames, and of the augmentation of every frame in every epoch.
    ``precision``
        Of the network's features on the way: "bfloat16" and "float16" (whose gradients are scaled, so that small ones
        are not lost) where the engine and the layer allow it. Weights, losses and batch norm statistics are float32.
    ``clip_norm``
        Longest gradient, over all parameters; a longer one is shortened. 0 does nothing.
    ``ema_decay``
        Keep a moving average of the weights too, of which every step moves 1 - decay towards the new ones; it is what
        the checkpoint gives to predict with and to start from. 0 keeps none.
    ``keep_every``
        Checkpoints to keep besides the last: 0 none, 1 every epoch (as the reference implementation does), 5 every
        fifth. It changes no result, so it may change between a run and its continuation.
    """

    split: str = "train"
    epochs: int = 5
    batch_size: int = 16
    drop_last: bool = False
    optimiser: Optimiser = "sgd"
    momentum: float = 0.9
    dampening: float = 0.1
    weight_decay: float = 1e-4
    seed: int = 0
    keep_every: int = 0
    accumulate: int = 1
    precision: Precision = "float32"
    clip_norm: float = 0.0
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if not self.split:
            raise ValueError('split is empty; name a split, a .txt file of scenes, or "all"')
        if self.epochs < 1 or self.batch_size < 1:
            raise ValueError(f"epochs is {self.epochs} and batch_size {self.batch_size}; both must be at least 1")
        if self.optimiser not in get_args(Optimiser):
            raise ValueError(f'optimiser is "{self.optimiser}"; choose one of {get_args(Optimiser)}')
        if not 0 <= self.momentum < 1 or not 0 <= self.dampening <= 1:
            raise ValueError(f"momentum is {self.momentum} and dampening {self.dampening}; expected [0, 1) and [0, 1]")
        check_rate("weight_decay", self.weight_decay)
        check_rate("clip_norm", self.clip_norm)
        if self.accumulate < 1 or self.accumulate > self.batch_size:
            raise ValueError(
                f"accumulate is {self.accumulate}; a step of {self.batch_size} frames is gone through in 1 to "
                f"{self.batch_size} parts"
            )
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is {self.precision!r}; choose one of {get_args(Precision)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; expected [0, 1), for example 0.999")
        if self.seed < 0 or self.keep_every < 0:
            raise ValueError(f"seed is {self.seed} and keep_every {self.keep_every}; both must be 0 or more")


@dataclass(frozen=True)
class PretrainConfig(TmpConfig, SgdConfig):
    """Section ``[pretrain]``: tri-modal contrastive pre-training (TMP); options of the loss as in TmpConfig.

    Defaults are the paper's (arXiv 2405.15286) and the reference implementation's, which puts one frame on each of four
    devices: a superpoint is told from those of its own frame. Full parity needs ``clamp_cosines = false`` too.
    ``lr`` is the learning rate of the first step.
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
        if self.negatives == "global" and self.accumulate > 1:
            raise ValueError(
                f'negatives is "global" and accumulate {self.accumulate}: superpoints cannot be told from those of '
                'parts that are not there yet; set negatives to "frame", or accumulate to 1'
            )


@dataclass(frozen=True)
class ClassesConfig(SgdConfig):
    """What the tasks that learn classes share, by cross-entropy plus Lovász.

    ``lovasz``
        ``"batch"``: the IoU that the Lovász term bounds is that of the whole step, on whichever devices it lies
        (parity: the official runs hold it on one); ``"scan"``: that of each sweep, and the term is the mean over
        sweeps, so nothing has to be gathered.
    """

    lovasz: Lovasz = "batch"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lovasz not in get_args(Lovasz):
            raise ValueError(f"lovasz is {self.lovasz!r}; choose one of {get_args(Lovasz)}")
        if self.lovasz == "batch" and self.accumulate > 1:
            raise ValueError(
                f'lovasz is "batch" and accumulate {self.accumulate}: the IoU of a whole step cannot be known part by '
                'part; set lovasz to "scan", or accumulate to 1'
            )


@dataclass(frozen=True)
class DistillConfig(ClassesConfig):
    """Section ``[distill]``: learning the pseudo-labels of table ``target``, cross-entropy plus Lovász.

    ``lr_head`` is the rate of the layer ``final``, ``lr_trunk`` of all others. ``init`` is where the weights start:
    "pretrain" (the finished pre-training of this recipe), the path of a checkpoint (ours or an official file) or of a
    run's folder, or "" (at random). Defaults are the paper's 5 epochs from TMP. Parity: ``label = "first"`` in
    ``[voxels]``.

    ``loss``
        What the cross-entropy compares with: "hard", the label of a voxel (the paper), or "soft", what its points may
        be by the vote: the mean of the shares that table ``belief`` keeps (vote.belief), those of each point adding up
        to 1. Points that were corrected since are what they were called then. Lovász learns the label either way.
    ``weight``
        How much a voxel counts in both terms of the loss: "none", all the same (the paper), or "confidence", as much as
        its label is sure: the mean confidence of its points that bear it (see losses.segmentation_loss).
    """

    lr_head: float = 2.0
    lr_trunk: float = 0.02
    init: str = "pretrain"
    weight: Weight = "none"
    loss: DistillLoss = "hard"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in get_args(DistillLoss):
            raise ValueError(f"loss is {self.loss!r}; choose one of {get_args(DistillLoss)}")
        if self.loss == "soft" and self.weight != "none":
            raise ValueError(
                f'loss is "soft", so that shares say already how sure a label is, and weight {self.weight!r}; set '
                'weight to "none"'
            )
        if self.weight not in get_args(Weight):
            raise ValueError(f"weight is {self.weight!r}; choose one of {get_args(Weight)}")
        check_rate("lr_head", self.lr_head)
        check_rate("lr_trunk", self.lr_trunk)


@dataclass(frozen=True)
class LabelledConfig(ClassesConfig):
    """What the tasks that learn true labels share; ``init`` as in DistillConfig, or "distill".

    ``every_scene``, ``every_scan``
        Learn from the last of every n scenes, and from the first of every n scans of these, both in the order of the
        data set: 1 % of nuScenes is ``every_scene = 100``, 7 of its 700 train scenes; 1 % of SemanticKITTI is
        ``every_scan = 100``, 192 of its 19,130 scans. Which of the n counts is as in valeoai/SLidR.
    ``batch_norm_momentum``
        In place of ``network.batch_norm_momentum``.

    Defaults are the paper's, whose voxels take the label of their first point (``voxels.label``).
    """

    epochs: int = 30
    drop_last: bool = True
    init: str = "distill"
    every_scene: int = 1
    every_scan: int = 1
    batch_norm_momentum: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.every_scene < 1 or self.every_scan < 1:
            raise ValueError(
                f"every_scene is {self.every_scene} and every_scan {self.every_scan}; 1 takes all, 100 one of 100"
            )
        if not 0 < self.batch_norm_momentum <= 1:
            raise ValueError(f"batch_norm_momentum is {self.batch_norm_momentum}; expected a weight in (0, 1]")


@dataclass(frozen=True)
class ProbeConfig(LabelledConfig):
    """Section ``[probe]``: linear probing.

    Only the layer ``final`` learns, at the rate ``lr``; all statistics of batch norm stay.
    """

    lr: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("lr", self.lr)


@dataclass(frozen=True)
class FinetuneConfig(LabelledConfig):
    """Section ``[finetune]``: the whole network learns few labels; ``lr_head`` and ``lr_trunk`` as in DistillConfig.

    Defaults are 1 % of nuScenes. The paper's 1 % of SemanticKITTI: ``every_scene = 1``, ``every_scan = 100``,
    ``batch_size = 10``, ``lr_trunk = 0.05``.
    """

    every_scene: int = 100
    lr_head: float = 2.0
    lr_trunk: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rate("lr_head", self.lr_head)
        check_rate("lr_trunk", self.lr_trunk)


@dataclass(frozen=True)
class SupervisedConfig(FinetuneConfig):
    """Section ``[supervised]``: all labels from random weights, which bounds what label-free learning can reach.

    The paper has no such run; the rates are those of its fine-tuning.
    """

    init: str = ""
    every_scene: int = 1


@dataclass(frozen=True)
class PredictConfig:
    """Section ``[predict]``: the scenes to predict, and with what.

    ``split`` names the scenes to predict. ``of`` is the task whose newest checkpoint predicts; ``checkpoint`` names a
    file instead, ours or an official one, or the folder of a run for its newest. ``views`` is over how many views of
    each sweep, turned and mirrored, the probabilities of a point are averaged; it takes as many times as long, and 1 is
    the sweep itself.
    """

    split: str = "val"
    of: Student = "distill"
    checkpoint: str = ""
    views: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.views <= 64:
            raise ValueError(f"views is {self.views}; expected 1..64 views of each sweep")


@dataclass(frozen=True)
class RefineConfig:
    """Section ``[refine]``: which labels are made better at the end, and how; table `refine` holds the result.

    ``of``
        "prediction", what the student says, or "pseudo", the pseudo-labels: then no training takes part.
    ``by``
        "afi", flat interaction with the constants of ``[correct]``; "vote", the vote of the sweeps before and after
        with those of ``[vote]``; "vote+afi", first the vote.
    ``split``
        The scenes; "": those of ``predict.split``, or all of them for pseudo-labels.
    ``merge``, ``merge_seed``
        Before flat interaction, let things that pseudo-labels show near the sensor replace predictions, by chance, the
        surer the nearer (an option of the reference, off there too); the seed is that of the draws.
    """

    of: Refinable = "prediction"
    by: Improvement = "vote+afi"
    split: str = ""
    merge: bool = False
    merge_seed: int = 0

    def __post_init__(self) -> None:
        if self.of not in get_args(Refinable):
            raise ValueError(f'of is "{self.of}"; choose one of {get_args(Refinable)}')
        if self.by not in get_args(Improvement):
            raise ValueError(f'by is "{self.by}"; choose one of {get_args(Improvement)}')
        if self.merge and ("afi" not in self.by or self.of == "pseudo"):
            raise ValueError(
                f'merge is true, but of is "{self.of}" and by "{self.by}": things in images are merged into '
                'predictions before flat interaction; set of = "prediction" and by = "afi" or "vote+afi", or '
                "merge = false"
            )
        if self.merge_seed < 0:
            raise ValueError(f"merge_seed is {self.merge_seed}; it must be 0 or more")


@dataclass(frozen=True)
class EvaluateConfig:
    """Section ``[evaluate]``: the scenes to score, and what a class without points and predictions counts.

    ``split`` names the scenes to score.
    ``absent``: "exclude" (nuScenes devkit), "one" (parity with the reference implementation) or "zero" (SemanticKITTI).
    ``refine``: "none", or what labels are scored before and after: "afi", flat interaction with the constants of
    ``[correct]``; "vote", the vote of the sweeps before and after with those of ``[vote]``; "vote+afi", first the vote.
    Of these, table `refine` is what is scored.
    """

    split: str = "val"
    absent: AbsentRule = "exclude"
    refine: Refinement = "none"

    def __post_init__(self) -> None:
        if self.absent not in get_args(AbsentRule):
            raise ValueError(f'absent is "{self.absent}"; choose one of {get_args(AbsentRule)}')
        if self.refine not in get_args(Refinement):
            raise ValueError(f'refine is "{self.refine}"; choose one of {get_args(Refinement)}')


def check_rate(name: str, value: Any) -> None:
    """Raise ValueError unless `value` is finite and 0 or more."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; expected a finite number, 0 or more")


def check_target(weight: float, power: float, clamp: bool) -> None:
    """Raise ValueError unless a soft text target can be made so; see trainer.objectives.losses.soft_text_target."""
    if not 0 <= weight <= 1:
        raise ValueError(f"the target's own weight is {weight}; expected 0..1")
    if not (math.isfinite(power) and power > 0):
        raise ValueError(f"the power of the cosines is {power}; expected a number above 0")
    if not clamp and power != int(power):
        raise ValueError(f"a negative cosine has no power {power}; clamp the cosines or choose a whole number")
