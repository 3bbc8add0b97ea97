"""The one door to sparse convolutions: what a network asks of an engine, and the engine on MinkowskiEngine.

Another engine is a class with the methods of :class:`Engine` and a line in :data:`ENGINES`; the one in plain PyTorch is
:mod:`trainer.network.torch_engine`.
"""

import collections
import collections.abc
import functools
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from itertools import product
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from manifests.config import ConfigError
from manifests.endings import RunError
from trainer.network.torch_engine import TorchEngine, check_coords, check_distinct


class SparseTensor(Protocol):
    """Features on voxels at one tensor stride; only the engine knows where the voxels are."""

    @property
    def F(self) -> Tensor:
        """Features, one row per voxel, (v, c)."""
        ...

    @property
    def C(self) -> Tensor:
        """Places, int32 (v, 4), row by row: frame of the batch, then three cells, multiples of the tensor stride."""
        ...


class Engine(Protocol):
    """Sparse convolutions on integer voxels in three dimensions.

    Convolutions are modules from sparse tensor to sparse tensor with one parameter, ``kernel`` (volume, c_in, c_out),
    whose index runs over the offsets with the first spatial axis fastest: -1..1 for odd sizes, 0..1 for size 2, times
    the tensor stride. They have no bias. Stride 1 keeps voxels and rows; stride 2 puts voxels at floor(c / 2s) * 2s,
    also below zero. Official checkpoints then load into any engine.

    Building a layer leaves torch's random state alone; the network draws the weights.
    """

    @property
    def name(self) -> str:
        """The engine's key in :data:`ENGINES`."""
        ...

    def tensor(self, coords: Tensor, features: Tensor) -> SparseTensor:
        """Features (v, c) on distinct voxels: ``coords`` int32 (v, 4), frame of the batch first, on the same device."""
        ...

    def replace(self, tensor: SparseTensor, features: Tensor) -> SparseTensor:
        """Other features (v, c') on the voxels of ``tensor``, row by row."""
        ...

    def concatenate(self, first: SparseTensor, second: SparseTensor) -> SparseTensor:
        """Features side by side; both live on the same voxels."""
        ...

    def convolution(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        """Output[u] = sum over offsets j of kernel[j]^T input[u + j]."""
        ...

    def transposed_convolution(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        """Output[u + j] += kernel[j]^T input[u], on the voxels that the strided convolution of that level came from."""
        ...

    def input_rows(self, output: SparseTensor, source: SparseTensor) -> Tensor:
        """Features of ``output`` in the row order in which ``source`` was given to :meth:`tensor`."""
        ...

    def cuda_usable(self) -> bool:
        """Whether this build of the engine can run on the GPU that torch sees."""
        ...

    def require_deterministic(self) -> None:
        """Check that equal inputs will give bit-equal features and gradients on the CPU, run after run.

        Raises
        ------
        RuntimeError
            They will not; the message says what to do.
        """
        ...


def at_least_float32(features: Tensor) -> Tensor:
    """Return what autocast has halved in single precision again, and all else as it is."""
    return features.to(torch.promote_types(features.dtype, torch.float32))


class Minkowski:
    """MinkowskiEngine 0.5.4 behind :class:`Engine`; it convolves in float32, also under autocast."""

    name = "minkowski"

    def tensor(self, coords: Tensor, features: Tensor) -> SparseTensor:
        check_coords(coords)
        tensor: Any = _minkowski().SparseTensor(features=at_least_float32(features), coordinates=coords)
        check_distinct(len(features), len(tensor.F))
        return tensor  # type: ignore[no-any-return]

    def replace(self, tensor: SparseTensor, features: Tensor) -> SparseTensor:
        voxels: Any = tensor
        return _minkowski().SparseTensor(  # type: ignore[no-any-return]
            features=at_least_float32(features),
            coordinate_map_key=voxels.coordinate_map_key,
            coordinate_manager=voxels.coordinate_manager,
        )

    def concatenate(self, first: SparseTensor, second: SparseTensor) -> SparseTensor:
        return _minkowski().cat(first, second)  # type: ignore[no-any-return]

    def convolution(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        return self._layer("MinkowskiConvolution", n_inputs, n_outputs, kernel_size, stride)

    def transposed_convolution(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        return self._layer("MinkowskiConvolutionTranspose", n_inputs, n_outputs, kernel_size, stride)

    def _layer(self, kind: str, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # Every layer makes an instance of an autograd function, which torch deprecates, and never needs it.
            warnings.filterwarnings("ignore", message=".* should not be instantiated", category=DeprecationWarning)
            layer: nn.Module = getattr(_minkowski(), kind)(
                n_inputs, n_outputs, kernel_size=kernel_size, stride=stride, dimension=3
            )
        return layer

    def input_rows(self, output: SparseTensor, source: SparseTensor) -> Tensor:
        # On a GPU the engine may reorder the rows it is given.
        rows: Tensor = source.inverse_mapping.long()  # type: ignore[attr-defined]
        in_place = torch.arange(len(rows), device=rows.device)
        return output.F if torch.equal(rows, in_place) else output.F[rows]

    def cuda_usable(self) -> bool:
        # A build without CUDA can stand beside a torch with CUDA.
        return torch.cuda.is_available() and bool(_minkowski().is_cuda_available())

    def require_deterministic(self) -> None:
        """MinkowskiEngine adds up in the order in which its threads finish, and reads their number when it is imported;
        ``torch.set_num_threads(1)`` comes too late. One thread costs nothing: its CPU kernels gain almost nothing from
        a second.
        """
        threads = os.environ.get("OMP_NUM_THREADS")
        if threads != "1":
            loaded = "is already loaded" if "MinkowskiEngine" in sys.modules else "is about to be loaded"
            raise RunError(
                f"OMP_NUM_THREADS is {threads!r} and MinkowskiEngine {loaded}: its sums would differ from run to run "
                "in the last bits. Start the process with OMP_NUM_THREADS=1, or train without asking for determinism."
            )


ENGINES: dict[str, Callable[[], Engine]] = {"minkowski": Minkowski, "torch": TorchEngine}


def open_engine(name: str, device: str = "auto") -> Engine:
    """Return the engine of that name, the value of ``network.engine`` in a recipe, for the device of ``run.device``.

    Raises
    ------
    ConfigError
        It needs a package that is not installed.
    """
    if name == "auto":
        return ENGINES[engine_for(device)]()
    if name == "minkowski" and not _installed("MinkowskiEngine"):
        raise ConfigError(
            'network.engine is "minkowski", but MinkowskiEngine is not installed; set network.engine to "torch", which '
            "needs PyTorch alone, or run: make setup"
        )
    return ENGINES[name]()


def engine_for(device: str) -> str:
    """Return the engine that "auto" takes: MinkowskiEngine, unless it is not installed or cannot use a GPU that is here
    and may be used.
    """
    if not _installed("MinkowskiEngine"):
        return "torch"
    if device == "cpu" or not torch.cuda.is_available():
        return "minkowski"
    try:
        return "minkowski" if Minkowski().cuda_usable() else "torch"
    except (ImportError, OSError):  # a build for another torch or CUDA does not load
        return "torch"


def check_engine(engine: Engine, device: torch.device | str = "cpu", tolerance: float = 1e-4) -> float:
    """Return the largest relative error of the engine against dense convolutions in float64, if it is tolerable.

    A 3x3x3, a strided and a transposed convolution on half-filled cubes on both sides of zero, features and all
    gradients. Builds for new CUDA versions are unofficial, and some compute wrong numbers without failing: run this
    before trusting one.

    Raises
    ------
    RuntimeError
        The error exceeds ``tolerance``.
    """
    generator = torch.Generator().manual_seed(0)
    side, n_frames, n_channels = 8, 2, 4
    grid = torch.tensor(list(product(range(n_frames), *[range(side)] * 3)))
    grid = grid[torch.randperm(len(grid), generator=generator)[: len(grid) // 2]]
    features = torch.randn(len(grid), n_channels, generator=generator)
    weights = torch.randn(len(grid), n_channels, generator=generator)
    layers: list[Any] = [
        engine.convolution(n_channels, n_channels, kernel_size=3, stride=1).to(device),
        engine.convolution(n_channels, n_channels, kernel_size=2, stride=2).to(device),
        engine.transposed_convolution(n_channels, n_channels, kernel_size=2, stride=2).to(device),
    ]
    kernels = [torch.randn(layer.kernel.shape, generator=generator) for layer in layers]
    with torch.no_grad():
        for layer, kernel in zip(layers, kernels, strict=True):
            layer.kernel.copy_(kernel)

    centred = grid - torch.tensor([0, side // 2, side // 2, side // 2])
    sparse_leaves = [features.to(device).clone().requires_grad_(), *(layer.kernel for layer in layers)]
    source = engine.tensor(centred.int().to(device), sparse_leaves[0])
    output = source
    for layer in layers:
        output = layer(output)
    rows = engine.input_rows(output, source)
    obtained = [rows, *torch.autograd.grad((rows * weights.to(device)).sum(), sparse_leaves)]

    dense_leaves = [tensor.double().requires_grad_() for tensor in (features, *kernels)]
    dense_rows = _dense_rows(grid, side, *dense_leaves)
    expected = [dense_rows, *torch.autograd.grad((dense_rows * weights).sum(), dense_leaves)]
    error = 0.0
    for sparse, dense in zip(obtained, expected, strict=True):
        difference = (sparse.cpu() - dense).detach().abs().max() / dense.detach().abs().max()
        error = max(error, float(difference.nan_to_num(torch.inf)))
    if error > tolerance:
        raise RunError(
            f"sparse engine {engine.name!r} on {device} differs from dense convolutions by {error:.1e} relative, "
            f"more than {tolerance:.0e}: this build computes wrong numbers. Reinstall it or use another engine."
        )
    return error


def _dense_rows(grid: Tensor, side: int, features: Tensor, *kernels: Tensor) -> Tensor:
    """Return what :func:`check_engine`'s three layers give on a dense grid, at the occupied cells ``grid`` (v, 4)."""
    frame, x, y, z = grid.T
    n_frames, n_channels = int(frame.max()) + 1, features.shape[1]

    def dense(rows: Tensor) -> Tensor:
        cells = rows.new_zeros(n_frames, side, side, side, n_channels).index_put((frame, x, y, z), rows)
        return cells.permute(0, 4, 1, 2, 3)

    same, down, up = kernels
    # Kernel rows run with x fastest: unfolded, the axes are (z, y, x, c_in, c_out).
    same, down = (k.reshape(*[round(len(k) ** (1 / 3))] * 3, *k.shape[1:]).permute(4, 3, 2, 1, 0) for k in (same, down))
    up = up.reshape(2, 2, 2, *up.shape[1:]).permute(3, 4, 2, 1, 0)
    convolved = nn.functional.conv3d(dense(features), same, padding=1).permute(0, 2, 3, 4, 1)[frame, x, y, z]
    strided = nn.functional.conv3d(dense(convolved), down, stride=2)
    return nn.functional.conv_transpose3d(strided, up, stride=2).permute(0, 2, 3, 4, 1)[frame, x, y, z]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:
        return False


@functools.cache
def _minkowski() -> ModuleType:
    """MinkowskiEngine, imported on first use."""
    if not hasattr(collections, "Sequence"):
        # 0.5.4 looks up a name that Python 3.10 moved to collections.abc.
        collections.Sequence = collections.abc.Sequence  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        # A build for the CPU says so at every import; cuda_usable() answers that question.
        warnings.filterwarnings(
            "ignore", message="The MinkowskiEngine was compiled with CPU_ONLY flag", category=UserWarning
        )
        import MinkowskiEngine
    return MinkowskiEngine  # type: ignore[no-any-return]
