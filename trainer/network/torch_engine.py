"""Sparse convolutions in plain PyTorch: kernel maps by sorting and searching, then gather, multiply, add.

Made for machines on which MinkowskiEngine does not build. It needs torch alone, runs where torch runs, and on one CPU
core is about as fast: both spend their time in matrix products (docs/benchmarks.md).

A kernel map lists, offset by offset, which input row meets which output row. It depends on the voxels alone: each is
made once for a batch and serves every layer of its kind there, forward and backward.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate, pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_ROWS_AT_ONCE = 2048
"""Pairs that a CPU takes in one step: what is gathered and multiplied stays in its cache (1 MB for 128 channels)."""


def check_coords(coords: Tensor) -> None:
    """Raise ValueError unless coordinates have the type and shape that an engine takes."""
    if coords.dtype != torch.int32 or coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(
            f"coords are {coords.dtype} {tuple(coords.shape)}; expected int32 (v, 4): frame, then three cells"
        )


def check_distinct(n_voxels: int, n_places: int) -> None:
    """Raise ValueError unless every voxel has a place of its own."""
    if n_voxels != n_places:
        raise ValueError(f"{n_voxels} voxels share {n_places} places; voxels of a frame must be distinct")


@dataclass(frozen=True, eq=False)
class KernelMap:
    """Pairs of an input and an output row, offset by offset.

    ``inputs``, ``outputs`` (p,) int64: those of offset j stand at ``bounds[j]:bounds[j + 1]``, both ascending, no row
    twice. ``centre`` is the offset, if any, that joins each of the ``n_outputs`` rows with itself; its pairs are not
    listed.
    """

    inputs: Tensor
    outputs: Tensor
    bounds: tuple[int, ...]
    centre: int | None
    n_inputs: int
    n_outputs: int

    @functools.cached_property
    def reversed(self) -> "KernelMap":
        """The map of the transposed convolution: inputs and outputs change places."""
        return KernelMap(self.outputs, self.inputs, self.bounds, self.centre, self.n_outputs, self.n_inputs)

    @functools.cached_property
    def steps(self) -> tuple[tuple[int, Tensor, Tensor], ...]:
        """Offset, input rows and output rows, at most :data:`_ROWS_AT_ONCE` pairs at a time on a CPU."""
        size = _ROWS_AT_ONCE if self.inputs.device.type == "cpu" else max(1, len(self.inputs))
        return tuple(
            (j, self.inputs[first : min(first + size, stop)], self.outputs[first : min(first + size, stop)])
            for j, (start, stop) in enumerate(pairwise(self.bounds))
            for first in range(start, stop, size)
        )


class Level:
    """The distinct voxels of a batch at one tensor stride, and the kernel maps on them that were needed so far.

    ``cells`` int64 (v, 4): frame and three coordinates in units of the stride, in ascending order. Neighbours lie close
    to each other in memory then, and a shift keeps the order.
    """

    def __init__(self, cells: Tensor, stride: int, finer: "Level | None" = None) -> None:
        self.cells, self.stride, self.finer = cells, stride, finer
        self._same: dict[int, KernelMap] = {}
        self._coarser: dict[int, tuple[Level, KernelMap]] = {}

    def same(self, size: int) -> KernelMap:
        """Return the map of a convolution of odd size and stride 1."""
        if size not in self._same:
            self._same[size] = _same_map(self.cells, size)
        return self._same[size]

    def coarser(self, factor: int) -> "tuple[Level, KernelMap]":
        """Return the voxels of a convolution whose size and stride are ``factor``, and its map."""
        if factor not in self._coarser:
            cells, kernel_map = _strided(self.cells, factor)
            self._coarser[factor] = Level(cells, self.stride * factor, self), kernel_map
        return self._coarser[factor]


@dataclass(frozen=True, eq=False)
class Voxels:
    """Features (v, c) on the voxels of a level; ``given`` (v,) holds the row that each given voxel has become,
    None where their order was kept.
    """

    F: Tensor
    level: Level
    given: Tensor | None = field(default=None, repr=False)

    @property
    def C(self) -> Tensor:
        """Places, int32 (v, 4): the frame, then three cells, multiples of the tensor stride."""
        scale = self.level.cells.new_tensor([1] + [self.level.stride] * 3)
        return (self.level.cells * scale).int()


class TorchEngine:
    """The engine of this module, behind :class:`trainer.network.sparse.Engine`.

    On a CPU, equal inputs give equal bits as long as the number of threads stays the same: every sum is taken in a
    fixed order.
    """

    name = "torch"

    def tensor(self, coords: Tensor, features: Tensor) -> Voxels:
        check_coords(coords)
        cells = coords.long()
        keys = _keys(cells, reach=0)[0]
        if bool((keys[1:] > keys[:-1]).all()):
            return Voxels(features, Level(cells, stride=1))
        keys, order = torch.sort(keys)
        check_distinct(len(keys), len(keys) - int((keys[1:] == keys[:-1]).sum()))
        given = torch.empty_like(order)
        given[order] = torch.arange(len(order), device=order.device)
        return Voxels(features.index_select(0, order), Level(cells[order], stride=1), given)

    def replace(self, tensor: Any, features: Tensor) -> Voxels:
        return Voxels(features, tensor.level, tensor.given)

    def concatenate(self, first: Any, second: Any) -> Voxels:
        return self.replace(first, torch.cat([first.F, second.F], dim=1))

    def convolution(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        return Convolution(n_inputs, n_outputs, kernel_size, stride)

    def transposed_convolution(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        return TransposedConvolution(n_inputs, n_outputs, kernel_size, stride)

    def input_rows(self, output: Any, source: Any) -> Tensor:
        rows: Tensor = output.F
        return rows if source.given is None else rows.index_select(0, source.given)

    def cuda_usable(self) -> bool:
        return torch.cuda.is_available()

    def require_deterministic(self) -> None:
        """Nothing to check: the class says what holds."""


class _Layer(nn.Module):
    """What both convolutions share: the kernel, drawn by nobody yet."""

    def __init__(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.kernel_size, self.stride = kernel_size, stride
        shape = (kernel_size**3, n_inputs, n_outputs) if kernel_size > 1 else (n_inputs, n_outputs)
        self.kernel = nn.Parameter(torch.zeros(shape))

    def extra_repr(self) -> str:
        return f"kernel={tuple(self.kernel.shape)}, stride={self.stride}"


class Convolution(_Layer):
    """A convolution of odd size, or one of equal size and stride, which makes voxels coarser."""

    def __init__(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> None:
        if kernel_size % 2 == 0 if stride == 1 else kernel_size != stride:
            raise ValueError(
                f"a convolution of size {kernel_size} and stride {stride} is not of this engine; expected an odd size "
                "with stride 1, or equal size and stride"
            )
        super().__init__(n_inputs, n_outputs, kernel_size, stride)

    def forward(self, x: Voxels) -> Voxels:
        if self.kernel_size == 1:
            return Voxels(x.F @ self.kernel, x.level)
        if self.stride == 1:
            return Voxels(convolve(x.F, self.kernel, x.level.same(self.kernel_size)), x.level)
        level, kernel_map = x.level.coarser(self.stride)
        return Voxels(convolve(x.F, self.kernel, kernel_map), level)


class TransposedConvolution(_Layer):
    """The convolution back to the finer voxels that one of equal size and stride came from."""

    def __init__(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> None:
        if kernel_size != stride or stride == 1:
            raise ValueError(
                f"a transposed convolution of size {kernel_size} and stride {stride} is not of this engine; expected "
                "equal size and stride, from 2"
            )
        super().__init__(n_inputs, n_outputs, kernel_size, stride)

    def forward(self, x: Voxels) -> Voxels:
        finer = x.level.finer
        if finer is None or finer.stride * self.stride != x.level.stride:
            raise ValueError(
                f"voxels of stride {x.level.stride} came from no convolution of stride {self.stride}; a transposed "
                "convolution goes back to the voxels of one"
            )
        return Voxels(convolve(x.F, self.kernel, finer.coarser(self.stride)[1].reversed), finer)


# -- arithmetic --------------------------------------------------------------------------------------------------------


def convolve(features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
    """Output (n_outputs, c_out): for every pair of the map, its input row times the kernel of its offset.

    Under autocast it multiplies in the lower precision, as torch's own layers do; sums over offsets are float32 always.
    """
    device = features.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        features, kernel = features.to(dtype), kernel.to(dtype)
    with torch.autocast(device, enabled=False):
        output: Tensor = _Convolve.apply(features, kernel, kernel_map)  # type: ignore[no-untyped-call]
    return output


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, kernel: Tensor, kernel_map: KernelMap) -> Tensor:
        ctx.save_for_backward(features, kernel)
        ctx.kernel_map = kernel_map
        kernels = kernel.unbind(0)
        shape = (kernel_map.n_outputs, kernel.shape[2])
        sums = _start(features, kernels, kernel_map.centre, shape)
        with _in_any_order(features.device):
            for j, inputs, outputs in kernel_map.steps:
                sums.index_add_(0, outputs, torch.mm(features.index_select(0, inputs), kernels[j]).to(sums.dtype))
        return sums.to(features.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        features, kernel = ctx.saved_tensors
        kernel_map: KernelMap = ctx.kernel_map
        centre = kernel_map.centre
        gradient = gradient.contiguous()
        kernels = kernel.transpose(1, 2).unbind(0)
        of_features = of_kernel = None
        if ctx.needs_input_grad[0]:
            of_features = _start(gradient, kernels, centre, tuple(features.shape))
        if ctx.needs_input_grad[1]:
            of_kernel = torch.zeros_like(kernel, dtype=_sum_dtype(kernel))
            if centre is not None:
                _add_product(of_kernel[centre], features.t(), gradient)
        of_kernels = of_kernel.unbind(0) if of_kernel is not None else ()
        with _in_any_order(gradient.device):
            for j, inputs, outputs in kernel_map.steps:
                rows = gradient.index_select(0, outputs)
                if of_features is not None:
                    of_features.index_add_(0, inputs, torch.mm(rows, kernels[j]).to(of_features.dtype))
                if of_kernels:
                    _add_product(of_kernels[j], features.index_select(0, inputs).t(), rows)
        return (
            None if of_features is None else of_features.to(features.dtype),
            None if of_kernel is None else of_kernel.to(kernel.dtype),
            None,
        )


@contextmanager
def _in_any_order(device: torch.device) -> Iterator[None]:
    """Within the block, a GPU adds rows as it likes, also where torch is asked to be deterministic.

    No offset of a kernel map has a row twice, so nothing depends on the order; torch, which cannot know, would sort the
    rows of every addition first.
    """
    asked = torch.are_deterministic_algorithms_enabled() and device.type == "cuda"
    if not asked:
        yield
        return
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before)


def _sum_dtype(rows: Tensor) -> torch.dtype:
    """float32 for half precision, else that of the rows: up to 27 products come together in an output."""
    return torch.promote_types(rows.dtype, torch.float32)


def _start(rows: Tensor, kernels: tuple[Tensor, ...], centre: int | None, shape: tuple[int, ...]) -> Tensor:
    """Return what sums of a convolution start from: the products of the centre, which need no gathering, or zeros."""
    dtype = _sum_dtype(rows)
    return rows.new_zeros(shape, dtype=dtype) if centre is None else torch.mm(rows, kernels[centre]).to(dtype)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


# -- kernel maps -------------------------------------------------------------------------------------------------------


def _keys(cells: Tensor, reach: int) -> tuple[Tensor, tuple[int, int, int]]:
    """One int64 per cell (v,), in the order of the cells, and what a step along each of the three axes adds to it.

    Steps of up to ``reach`` along every axis lead to the key of another place of the frame, or to that of none.
    """
    if len(cells) == 0:
        return cells.new_zeros(0), (0, 0, 0)
    lowest, highest = (bound.tolist() for bound in (cells.amin(0), cells.amax(0)))
    frames, *sides = (high - low + 1 + reach for low, high in zip(lowest, highest, strict=True))
    steps = (sides[1] * sides[2], sides[2], 1)
    if frames * sides[0] * steps[0] >= 2**63:
        raise ValueError(f"voxels lie from {lowest} to {highest} (frame, three cells): too far apart for 64-bit keys")
    weights = cells.new_tensor([sides[0] * steps[0], *steps])
    return ((cells - cells.new_tensor(lowest)) * weights).sum(1), steps


def _same_map(cells: Tensor, size: int) -> KernelMap:
    """Return the map of odd ``size`` on ascending ``cells``: row i meets output o at offset j: cells[i] = cells[o] + j.

    Only half of the offsets, those after the centre in the order of the cells, are searched: at -j the same pairs meet
    with inputs and outputs exchanged. One search finds a whole run along the last axis, whose places have consecutive
    keys.
    """
    reach = size // 2
    keys, (x_step, y_step, _) = _keys(cells, reach)
    span = range(-reach, reach + 1)
    columns = [(x, y) for x, y in product(span, span) if (x, y) >= (0, 0)]
    starts = cells.new_tensor([x * x_step + y * y_step - reach for x, y in columns])
    wanted = keys + starts[:, None]
    rows = torch.searchsorted(keys, wanted)
    padded = torch.cat([keys, keys.new_full((1,), -1)])
    found: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
    for z in span:
        hits = padded[rows] == wanted
        counts = hits.sum(1).tolist()
        inputs, outputs = torch.split(rows[hits], counts), torch.split(hits.nonzero()[:, 1], counts)
        for (x, y), i, o in zip(columns, inputs, outputs, strict=True):
            if (x, y, z) > (0, 0, 0):
                found[x, y, z], found[-x, -y, -z] = (i, o), (o, i)
        rows += hits
        wanted += 1

    nothing = keys.new_zeros(0)
    # The first axis runs fastest over the kernel's index.
    offsets = [(x, y, z) for z, y, x in product(span, span, span)]
    pairs = [found.get(offset, (nothing, nothing)) for offset in offsets]
    return _joined(pairs, size**3 // 2, len(cells), len(cells))


def _strided(cells: Tensor, factor: int) -> tuple[Tensor, KernelMap]:
    """Return the coarse cells of ascending ``cells``, ascending, and the map of size and stride ``factor``.

    Each cell meets its coarse cell at the offset of its place in it.
    """
    coarse = cells.clone()
    coarse[:, 1:] = torch.div(cells[:, 1:], factor, rounding_mode="floor")
    within = cells[:, 1:] - coarse[:, 1:] * factor
    offset = (within * cells.new_tensor([1, factor, factor**2])).sum(1)  # the first axis runs fastest
    places, outputs = torch.unique(_keys(coarse, reach=0)[0], return_inverse=True)
    coarse_cells = cells.new_empty(len(places), 4)
    coarse_cells[outputs] = coarse
    inputs = torch.argsort(offset, stable=True)
    counts = torch.bincount(offset, minlength=factor**3).tolist()
    bounds = tuple(accumulate(counts, initial=0))
    return coarse_cells, KernelMap(inputs, outputs[inputs], bounds, None, len(cells), len(places))


def _joined(pairs: list[tuple[Tensor, Tensor]], centre: int, n_inputs: int, n_outputs: int) -> KernelMap:
    """Return a map of input and output rows per offset."""
    inputs, outputs = (torch.cat(rows) for rows in zip(*pairs, strict=True))
    bounds = tuple(accumulate((len(rows) for rows, _ in pairs), initial=0))
    return KernelMap(inputs, outputs, bounds, centre, n_inputs, n_outputs)
