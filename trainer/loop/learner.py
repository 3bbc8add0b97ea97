"""What learns: the network with its optimiser, and how one step of training changes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from manifests.records.checkpoint import CheckpointRecord
from manifests.sections.network import NetworkConfig
from manifests.sections.training import SgdConfig
from trainer.checkpoints import checkpoint
from trainer.data.batches import Batch
from trainer.errors import TrainerError
from trainer.loop.ranks import Ranks
from trainer.network.minkunet import ParameterGroup, build_network, freeze_trunk, parameter_groups
from trainer.network.sparse import Engine
from trainer.objectives.losses import GlobalBatch
from trainer.objectives.objective import Objective

N_INPUTS = 1  # a voxel's only feature is its intensity


class Learner:
    """A network on a device and the state of its optimisation; every process of a run holds the same.

    With several processes on GPUs, batch norm counts the rows of all of them.
    """

    def __init__(
        self, objective: Objective, config: NetworkConfig, engine: Engine, device: torch.device, ranks: Ranks
    ) -> None:
        """Draw the weights from the seed of the objective, which seeds the process's own generators too."""
        settings = objective.settings
        seed_everything(settings.seed)
        self.network: nn.Module = build_network(
            config,
            N_INPUTS,
            objective.n_outputs,
            engine,
            normalise_output=objective.normalise_output,
            generator=torch.Generator().manual_seed(settings.seed),
        ).to(device)
        if objective.frozen_trunk:
            freeze_trunk(self.network)
        elif ranks.world_size > 1 and device.type == "cuda":
            self.network = nn.SyncBatchNorm.convert_sync_batchnorm(self.network)
        groups = parameter_groups(self.network, objective.lr_trunk, objective.lr_head)
        self.optimiser = build_optimiser(groups, settings)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "float16")
        self.average: dict[str, Tensor] | None = None
        self._averaged: int | None = 0  # steps in it; None: of a run that began before it was corrected
        self._full_rates = [group["lr"] for group in self.optimiser.param_groups]
        self._objective, self._device, self._ranks = objective, device, ranks
        self._model: nn.Module | None = None

    def start_epoch(self, share: float) -> None:
        """Set every rate to a share of the full one, and the network to what the objective asks of it."""
        self.network.train(not self._objective.frozen_trunk)
        for group, full_rate in zip(self.optimiser.param_groups, self._full_rates, strict=True):
            group["lr"] = full_rate * share

    def rates(self) -> dict[str, float]:
        """Return the learning rate of every group of parameters."""
        return {f"lr_{group['name']}": group["lr"] for group in self.optimiser.param_groups}

    def backward(self, parts: Sequence[Batch], global_batch: GlobalBatch) -> dict[str, float]:
        """Run forward and backward, put the gradients of a batch in place and return its loss.

        `parts` are those of this process, one after the other.
        """
        if self._model is None:  # only now are the weights those to begin with
            self._model = self._distributed()
            if self._objective.settings.ema_decay and self.average is None:
                self.average = {name: one.detach().clone() for name, one in self.network.named_parameters()}
        self.optimiser.zero_grad(set_to_none=True)
        sums: list[Tensor] = []
        names: list[str] = []
        for number, part in enumerate(parts, start=1):
            batch = part.each(self._to_device)
            waiting = isinstance(self._model, DistributedDataParallel) and number < len(parts)
            with self._model.no_sync() if waiting else nullcontext():  # type: ignore[operator]
                try:
                    with self._autocast():
                        output = self._model(batch.coords, batch.features)
                except ValueError as error:
                    if "more than 1 value per channel" not in str(error):
                        raise
                    raise TrainerError(
                        f"frames {', '.join(part.frame_ids)} together make a single voxel in some layer, which batch "
                        "norm cannot learn from. Leave them out with data.exclude, or put more frames into a batch"
                    ) from None
                terms = self._objective.loss(output, batch, global_batch)
                # torch takes the mean over processes, where the loss of the batch is the sum of their shares
                share = terms.total if self._ranks.world_size == 1 else terms.total * self._ranks.world_size
                torch.autograd.backward(self.scaler.scale(share))
            names = list(terms._asdict())
            sums.append(torch.stack([term.detach() for term in terms._asdict().values()]))
        total = self._ranks.all_reduce(sums[0] if len(sums) == 1 else torch.stack(sums).sum(0))
        return dict(zip(names, total.tolist(), strict=True))

    def optimizer_step(self) -> None:
        """Change the weights by the gradients in place."""
        settings = self._objective.settings
        if settings.clip_norm:
            self.scaler.unscale_(self.optimiser)
            learning = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
            torch.nn.utils.clip_grad_norm_(learning, settings.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if self.average is not None:
            with torch.no_grad():
                share = self._share_of_average(settings.ema_decay)
                for name, parameter in self.network.named_parameters():
                    self.average[name].lerp_(parameter, share)

    def _share_of_average(self, decay: float) -> float:
        """Return how far the moving average goes towards the weights of this step.

        Without a correction it would be that of the initial weights, which count decay^n after n steps: most of it, for
        as many steps as 1 / (1 - decay). Divided by what the steps count, (1 - decay) / (1 - decay^n), they count
        nothing, and the average is the mean of the steps while these are few (Kingma, Ba, "Adam", ICLR 2015, section
        3).
        """
        if self._averaged is None:
            return 1 - decay
        self._averaged += 1
        return (1 - decay) / (1 - decay**self._averaged)

    def save(self, path: Path, document: CheckpointRecord) -> None:
        """Write all that it takes to go on from here.

        Raises TrainerError where it cannot be written, and where a step has left a weight that is not a number: its
        loss was one, and nobody would notice.
        """
        state = self.network.state_dict()
        broken = [name for name, one in state.items() if one.is_floating_point() and not one.isfinite().all()]
        if broken:
            raise TrainerError(
                f"{path} is not written: {len(broken)} tensors of the network are not finite any more "
                f"({', '.join(broken[:4])}{', ...' if len(broken) > 4 else ''}). What was saved before is kept. Lower "
                "the learning rate, or set clip_norm"
            )
        record = replace(
            document,
            scaler=self.scaler.state_dict() if self.scaler.is_enabled() else None,
            averaged=None if self.average is None else self._averaged,
        )
        checkpoint.save(path, self.network, self.optimiser, record, self.average)

    def restore(self, earlier: checkpoint.Checkpoint) -> None:
        """Go on from what `save` wrote; raises TrainerError if it is of another network."""
        average = checkpoint.restore(earlier, self.network, self.optimiser)
        if average:
            self.average = {name: average[name].to(self._device) for name, _ in self.network.named_parameters()}
            self._averaged = earlier.document.averaged
        if self.scaler.is_enabled():
            if earlier.document.scaler is None:
                raise checkpoint.DamagedCheckpoint(f"{earlier.path} does not say how its gradients were scaled")
            self.scaler.load_state_dict(dict(earlier.document.scaler))

    def _to_device(self, tensor: Tensor) -> Tensor:
        # from page-locked memory it travels while the GPU computes
        return tensor.to(self._device, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        precision = self._objective.settings.precision
        kinds = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
        return torch.autocast(self._device.type, kinds[precision], enabled=precision != "float32")

    def _distributed(self) -> nn.Module:
        if self._ranks.world_size == 1:
            return self.network
        return DistributedDataParallel(self.network, device_ids=[self._device] if self._device.type == "cuda" else None)


def build_optimiser(groups: list[ParameterGroup], settings: SgdConfig) -> torch.optim.Optimizer:
    """Return the optimiser of an objective over groups of parameters, each with a rate of its own."""
    of_torch = [dict(vars(group)) for group in groups]
    if settings.optimiser == "adamw":
        return torch.optim.AdamW(of_torch, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        of_torch, momentum=settings.momentum, dampening=settings.dampening, weight_decay=settings.weight_decay
    )


def seed_everything(seed: int) -> None:
    """Seed the process's own generators (Python, NumPy, torch); what the trainer draws has generators of its own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
