"""The sparse U-Net that learns: voxels in, one vector per voxel out."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from manifests.sections.network import NetworkConfig
from trainer.network.sparse import Engine, SparseTensor, at_least_float32

_N_LEVELS = 4  # strided stages down, and as many up


@dataclass(frozen=True)
class Architecture:
    """Widths and depths of the U-Net: ``stem`` channels, then ``planes`` and residual ``blocks`` of the stages 1..8."""

    stem: int
    planes: tuple[int, int, int, int, int, int, int, int]
    blocks: tuple[int, int, int, int, int, int, int, int]


ARCHITECTURES = {
    # Res16UNet34C of SLidR and AFOV: 37.8 M parameters.
    "minkunet34c": Architecture(32, (32, 64, 128, 256, 256, 128, 96, 96), (2, 3, 4, 6, 2, 2, 2, 2)),
    # For CPUs: the same stages and names, ten times as fast, 1.3 M parameters.
    "minkunet_small": Architecture(16, (16, 32, 64, 64, 64, 64, 32, 32), (1, 1, 1, 1, 1, 1, 1, 1)),
}


def build_network(
    config: NetworkConfig,
    n_inputs: int,
    n_outputs: int,
    engine: Engine,
    *,
    normalise_output: bool = False,
    generator: torch.Generator | None = None,
) -> "MinkUNet":
    """Return the network of a recipe, freshly initialised.

    Parameters
    ----------
    n_inputs, n_outputs : features per voxel (1: intensity) and outputs per voxel (text dimension, or classes with 0)
    normalise_output : unit vectors per voxel, as contrastive pre-training needs them; off, raw logits
    generator : where the initial weights are drawn from; the default is torch's own. Equal seeds give equal weights,
        whatever the engine, and those of the reference implementation.
    """
    network = MinkUNet(ARCHITECTURES[config.name], config, n_inputs, n_outputs, engine, normalise_output)
    _initialise(network, generator)
    return network


@dataclass(frozen=True, eq=False)
class ParameterGroup:
    """Parameters that learn at one rate; its fields are the keys of a group of torch's optimisers."""

    name: str
    lr: float
    params: list[nn.Parameter]


def parameter_groups(network: nn.Module, trunk_lr: float, head_lr: float) -> list[ParameterGroup]:
    """Optimiser groups ``trunk`` and ``head`` (the layer ``final``), which share out every parameter of the network."""
    named = list(network.named_parameters())
    return [
        ParameterGroup("trunk", trunk_lr, [p for name, p in named if not _in_head(name)]),
        ParameterGroup("head", head_lr, [p for name, p in named if _in_head(name)]),
    ]


def freeze_trunk(network: nn.Module) -> None:
    """Let only the layer ``final`` learn; in evaluation mode the statistics of batch norm stay too.

    By name, and not by the order in which layers were made, as in the reference implementation.
    """
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(_in_head(name))


def _in_head(name: str) -> bool:
    return name.startswith("final.")


class MinkUNet(nn.Module):
    """Res16UNet with the reference implementation's layer names, order and shapes, so that its checkpoints load.

    Four strided stages down and four transposed ones up, each followed by residual blocks; on the way up the features
    of the same stride are concatenated, [upsampled, skip]. The layer names tell the tensor stride before the layer
    (p1..p16).
    """

    def __init__(
        self,
        architecture: Architecture,
        config: NetworkConfig,
        n_inputs: int,
        n_outputs: int,
        engine: Engine,
        normalise_output: bool,
    ) -> None:
        super().__init__()
        self.engine = engine
        self.normalise_output = normalise_output
        momentum = config.batch_norm_momentum

        def blocks(stage: int, n_in: int) -> nn.Sequential:
            n_out = architecture.planes[stage - 1]
            widths = [n_in] + [n_out] * architecture.blocks[stage - 1]
            return nn.Sequential(*(ResidualBlock(a, b, engine, config) for a, b in itertools.pairwise(widths)))

        self.conv0p1s1 = engine.convolution(n_inputs, architecture.stem, config.stem_kernel_size, stride=1)
        self.bn0 = BatchNorm(architecture.stem, momentum)
        skips = [architecture.stem]
        for down, norm, block, stage in _down_names():
            setattr(self, down, engine.convolution(skips[-1], skips[-1], kernel_size=2, stride=2))
            setattr(self, norm, BatchNorm(skips[-1], momentum))
            setattr(self, block, blocks(stage, skips[-1]))
            skips.append(architecture.planes[stage - 1])
        width = skips.pop()
        for up, norm, block, stage in _up_names():
            n_up = architecture.planes[stage - 1]
            setattr(self, up, engine.transposed_convolution(width, n_up, kernel_size=2, stride=2))
            setattr(self, norm, BatchNorm(n_up, momentum))
            setattr(self, block, blocks(stage, n_up + skips.pop()))
            width = n_up
        self.final = Pointwise(width, n_outputs, bias=True)

    def forward(self, coords: Tensor, features: Tensor) -> Tensor:
        """One vector per voxel, (v, n_outputs), in the order of the input rows.

        ``coords`` int32 (v, 4) are the frame within the batch and three cells, all distinct; ``features`` float32
        (v, n_inputs) lie on the same device.
        """
        source = self.engine.tensor(coords, features)
        x = self._normalised(self.conv0p1s1(source), "bn0")
        skips = [x]
        for down, norm, block, _ in _down_names():
            x = self._normalised(self.get_submodule(down)(x), norm)
            x = self.get_submodule(block)(x)
            skips.append(x)
        skips.pop()
        for up, norm, block, _ in _up_names():
            x = self._normalised(self.get_submodule(up)(x), norm)
            x = self.get_submodule(block)(self.engine.concatenate(x, skips.pop()))
        output = at_least_float32(self.final(self.engine.input_rows(x, source)))
        return unit_rows(output) if self.normalise_output else output

    def _normalised(self, x: SparseTensor, norm: str) -> SparseTensor:
        return self.engine.replace(x, F.relu(self.get_submodule(norm)(x.F)))


def _down_names() -> Iterator[tuple[str, str, str, int]]:
    """Names of convolution, normalisation and blocks, and the stage they form; first conv1p1s2, bn1, block1, 1."""
    for stage in range(1, _N_LEVELS + 1):
        yield f"conv{stage}p{2 ** (stage - 1)}s2", f"bn{stage}", f"block{stage}", stage


def _up_names() -> Iterator[tuple[str, str, str, int]]:
    """Return the same on the way up; first convtr4p16s2, bntr4, block5, 5."""
    for level in range(_N_LEVELS, 2 * _N_LEVELS):
        yield f"convtr{level}p{2 ** (2 * _N_LEVELS - level)}s2", f"bntr{level}", f"block{level + 1}", level + 1


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions and a shortcut; a projection where the width changes."""

    def __init__(self, n_inputs: int, n_outputs: int, engine: Engine, config: NetworkConfig) -> None:
        super().__init__()
        self.engine = engine
        self.conv1 = engine.convolution(n_inputs, n_outputs, kernel_size=3, stride=1)
        self.norm1 = BatchNorm(n_outputs, config.block_batch_norm_momentum)
        self.conv2 = engine.convolution(n_outputs, n_outputs, kernel_size=3, stride=1)
        self.norm2 = BatchNorm(n_outputs, config.block_batch_norm_momentum)
        if n_inputs != n_outputs:
            projection = Pointwise(n_inputs, n_outputs, bias=False)
            self.downsample = nn.Sequential(projection, BatchNorm(n_outputs, config.batch_norm_momentum))

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = self.conv1(x)
        y = self.conv2(self.engine.replace(y, F.relu(self.norm1(y.F))))
        shortcut = self.downsample(x.F) if hasattr(self, "downsample") else x.F
        return self.engine.replace(y, F.relu(self.norm2(y.F) + shortcut))


class BatchNorm(nn.Module):
    """Batch normalisation of feature rows, under the name that checkpoints of MinkowskiEngine give it."""

    def __init__(self, n_channels: int, momentum: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(n_channels, momentum=momentum)

    def forward(self, features: Tensor) -> Tensor:
        normalised: Tensor = self.bn(features)
        return normalised


class Pointwise(nn.Module):
    """A 1x1x1 convolution: needs no neighbours, hence no engine. Its kernel is (c_in, c_out), its bias (1, c_out)."""

    def __init__(self, n_inputs: int, n_outputs: int, bias: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(n_inputs, n_outputs))
        self.bias = nn.Parameter(torch.zeros(1, n_outputs)) if bias else None

    def forward(self, features: Tensor) -> Tensor:
        product = features @ self.kernel
        return product if self.bias is None else product + self.bias


def unit_rows(vectors: Tensor) -> Tensor:
    """Return the rows (v, d) scaled to unit length; a zero row stays zero.

    Equals ``torch.nn.functional.normalize``, whose backward pass takes five times as long on a CPU (485 against 88 ms
    for 18,000 rows of 768): longer than that of the small network.
    """
    unit: Tensor = _UnitRows.apply(vectors)  # type: ignore[no-untyped-call]
    return unit


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor) -> Tensor:
        inverse_length = torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp_min_(1e-12).reciprocal_()
        unit: Tensor = vectors * inverse_length
        ctx.save_for_backward(unit, inverse_length)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        unit, inverse_length = ctx.saved_tensors
        along = torch.linalg.vecdot(unit, gradient, dim=1).unsqueeze(1)
        return torch.addcmul(gradient, unit, along, value=-1).mul_(inverse_length)


def _initialise(network: MinkUNet, generator: torch.Generator | None) -> None:
    """Kernels and bias uniform in +-1/sqrt(fan); batch norms start as 1 and 0.

    The fan is what one output sums up, c_in times volume; for transposed convolutions c_out times volume
    (MinkowskiEngine's rule, which the reference implementation keeps). Drawn in the order in which the reference
    implementation creates its layers, so that equal seeds give its very weights: the projection of a block comes first.
    """
    kernels = {name: p for name, p in network.named_parameters() if name.endswith("kernel")}
    order = list(kernels)
    for name in kernels:
        if ".downsample." in name:
            order.remove(name)
            order.insert(order.index(name.replace("downsample.0", "conv1")), name)
    with torch.no_grad():
        for name in order:
            *volume, n_inputs, n_outputs = kernels[name].shape
            bound = ((n_outputs if name.startswith("convtr") else n_inputs) * math.prod(volume)) ** -0.5
            kernels[name].uniform_(-bound, bound, generator=generator)
        if network.final.bias is not None:  # `final` came last, and its bias has the same fan
            network.final.bias.uniform_(-bound, bound, generator=generator)
