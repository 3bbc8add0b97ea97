"""An objective: what is learnt, and from what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from manifests.sections.training import SgdConfig, Task
from trainer.data.loading import MakeSample
from trainer.data.tables import Every
from trainer.objectives.losses import GlobalBatch


class Terms(Protocol):
    """The scalars of a loss by name; `total` is what is minimised."""

    @property
    def total(self) -> Tensor: ...

    def _asdict(self) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Objective:
    """What is learnt from what: tables of frames, tables that all frames share, how a row becomes a sample, the
    network's head, and the loss of a part of a batch, as its share of the loss of the whole.

    `init` says where weights start (see DistillConfig), `every` from which part of the split it learns. With
    `frozen_trunk` only the layer `final` learns, and the network stays in evaluation mode.
    """

    task: Task
    settings: SgdConfig
    stages: tuple[str, ...]
    broadcast: tuple[str, ...]
    make_sample: MakeSample
    n_outputs: int
    normalise_output: bool
    lr_trunk: float
    lr_head: float
    loss: Callable[[Tensor, Any, GlobalBatch], Terms]
    init: str = ""
    every: Every = Every()
    frozen_trunk: bool = False
