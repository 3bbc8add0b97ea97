"""The engine in plain PyTorch computes what MinkowskiEngine does."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from torch import Tensor, nn

from manifests.labels import predict_identity
from manifests.records.codec import as_document
from manifests.sections.network import NetworkConfig
from manifests.tables.answers import Predict
from tests.records import told
from trainer.checkpoints import checkpoint
from trainer.inference.predict import predict
from trainer.loop.train import train
from trainer.network.minkunet import build_network
from trainer.network.sparse import Engine, Minkowski
from trainer.network.torch_engine import TorchEngine


def _cells(n_frames: int = 2, n_voxels: int = 600, seed: int = 0) -> Tensor:
    """Distinct voxels of a few frames on both sides of zero, in no order."""
    generator = torch.Generator().manual_seed(seed)
    cells: Tensor = torch.randint(-9, 9, (n_voxels, 4), generator=generator)
    cells[:, 0] = cells[:, 0] % n_frames
    cells = torch.unique(cells, dim=0)
    return cells[torch.randperm(len(cells), generator=generator)].int()


def kernel_of(layer: nn.Module) -> nn.Parameter:
    return layer.get_parameter("kernel")


def _apart(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


def _down_and_up(engine: Engine) -> nn.Module:
    return nn.Sequential(engine.convolution(3, 4, 2, 2), engine.transposed_convolution(4, 5, 2, 2))


def _two_levels(engine: Engine) -> nn.Module:
    layers = [engine.convolution(3, 4, 2, 2), engine.convolution(4, 5, 2, 2), engine.convolution(5, 5, 3, 1)]
    back = [engine.transposed_convolution(5, 4, 2, 2), engine.transposed_convolution(4, 5, 2, 2)]
    return nn.Sequential(*layers, *back)


LAYERS: dict[str, Callable[[Engine], nn.Module]] = {
    "1x1x1": lambda engine: engine.convolution(3, 5, 1, 1),
    "3x3x3": lambda engine: engine.convolution(3, 5, 3, 1),
    "5x5x5": lambda engine: engine.convolution(3, 5, 5, 1),
    "one input": lambda engine: engine.convolution(3, 1, 3, 1),
    "strided and transposed": _down_and_up,
    "two levels": _two_levels,
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_and_all_its_gradients_equal_minkowskiengines(name: str) -> None:
    cells = _cells()
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(len(cells), 3, generator=generator)
    results: list[list[Tensor]] = []
    weights: dict[str, Tensor] = {}
    for engine in (Minkowski(), TorchEngine()):
        layer = LAYERS[name](engine)
        if not weights:
            weights = {key: torch.randn(p.shape, generator=generator) for key, p in layer.named_parameters()}
        layer.load_state_dict(weights)
        leaf = features.clone().requires_grad_()
        source = engine.tensor(cells, leaf)
        rows = engine.input_rows(layer(source), source)
        loss = (rows * torch.arange(1.0, rows.shape[1] + 1)).square().sum()
        results.append([rows, *torch.autograd.grad(loss, [leaf, *layer.parameters()])])
    for expected, got in zip(*results, strict=True):
        assert _apart(got, expected) < 1e-5


def test_strided_voxels_lie_where_minkowskiengine_puts_them() -> None:
    cells = _cells()
    places = []
    for engine in (Minkowski(), TorchEngine()):
        x = engine.tensor(cells, torch.ones(len(cells), 1))
        for _ in range(3):
            x = engine.convolution(1, 1, 2, 2)(x)
        assert x.C.dtype == torch.int32
        places.append(sorted(x.C.tolist()))
    assert places[0] == places[1]


def test_the_full_network_equals_minkowskiengines_in_outputs_gradients_and_statistics() -> None:
    """Gradients in float64: float32 sums that differ in the last bit turn a few units of ReLU, in either engine."""
    cells = _cells()
    features = torch.rand(len(cells), 1, generator=torch.Generator().manual_seed(2))
    found: list[dict[str, Tensor]] = []
    for engine in (Minkowski(), TorchEngine()):
        generator = torch.Generator().manual_seed(0)
        network = build_network(NetworkConfig(), 1, 17, engine, generator=generator)
        with torch.no_grad():
            single = network.eval()(cells, features)
        leaf = features.double().requires_grad_()
        output = network.train().double()(cells, leaf)
        output.square().mean().backward()
        gradients = {f"gradient of {key}": p.grad for key, p in network.named_parameters() if p.grad is not None}
        assert leaf.grad is not None
        statistics = {key: buffer.double() for key, buffer in network.named_buffers()}
        outputs = {"output": output.detach(), "output in float32": single, "gradient of features": leaf.grad}
        found.append(outputs | gradients | statistics)
    expected, got = found
    assert len(expected) > 250 and expected.keys() == got.keys()
    apart = {key: _apart(got[key], expected[key]) for key in expected}
    assert apart.pop("output in float32") < 1e-5
    assert {key: value for key, value in apart.items() if value > 1e-9} == {}


def test_layers_of_the_same_voxels_share_one_map() -> None:
    engine = TorchEngine()
    x = engine.tensor(_cells(), torch.ones(len(_cells()), 1))
    one, two = (engine.convolution(1, 1, 3, 1) for _ in range(2))
    down, up = engine.convolution(1, 1, 2, 2), engine.transposed_convolution(1, 1, 2, 2)
    same = x.level.same(3)
    assert one(two(x)).level.same(3) is same and up(down(x)).level is x.level
    assert down(x).level is down(one(x)).level


@given(
    st.sets(st.tuples(st.integers(0, 2), *[st.integers(-4, 4)] * 3), max_size=30),
    st.sampled_from([3, 5]),
)
def test_a_map_joins_exactly_the_voxels_that_lie_an_offset_apart(places: set[tuple[int, ...]], size: int) -> None:
    cells = torch.tensor(sorted(places), dtype=torch.int32).reshape(-1, 4)
    level = TorchEngine().tensor(cells, torch.ones(len(cells), 1)).level
    kernel_map = level.same(size)
    reach = size // 2
    found = set()
    for j, (start, stop) in enumerate(zip(kernel_map.bounds[:-1], kernel_map.bounds[1:], strict=True)):
        offset = (0, j % size - reach, j // size % size - reach, j // size**2 - reach)
        for i, o in zip(kernel_map.inputs[start:stop].tolist(), kernel_map.outputs[start:stop].tolist(), strict=True):
            assert (cells[i] - cells[o]).tolist() == list(offset)
            found.add((i, o))
    close = {
        (i, o)
        for i, one in enumerate(cells.tolist())
        for o, two in enumerate(cells.tolist())
        if i != o and one[0] == two[0] and max(abs(a - b) for a, b in zip(one, two, strict=True)) <= reach
    }
    assert found == close and kernel_map.centre == size**3 // 2


def test_gradients_are_those_of_finite_differences() -> None:
    engine, cells = TorchEngine(), _cells(n_voxels=12)
    layers = [engine.convolution(2, 3, 3, 1), engine.convolution(3, 2, 2, 2), engine.transposed_convolution(2, 2, 2, 2)]

    def run(features: Tensor, *kernels: Tensor) -> Tensor:
        x = source = engine.tensor(cells, features)
        for layer, kernel in zip(layers, kernels, strict=True):
            x = torch.func.functional_call(layer, {"kernel": kernel}, (x,))
        return engine.input_rows(x, source)

    leaves = [torch.randn(len(cells), 2), *(torch.randn(kernel_of(layer).shape) for layer in layers)]
    assert torch.autograd.gradcheck(run, [leaf.double().requires_grad_() for leaf in leaves])


def test_under_autocast_products_are_bfloat16_and_weights_learn_in_float32() -> None:
    engine, cells = TorchEngine(), _cells()
    generator = torch.Generator().manual_seed(1)
    layer = engine.convolution(8, 16, 3, 1)
    with torch.no_grad():
        kernel_of(layer).normal_(generator=generator)
    features = torch.randn(len(cells), 8, generator=generator)
    found = []
    for wanted in (False, True):
        leaf = features.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=wanted):
            output = layer(engine.tensor(cells, leaf)).F
        assert output.dtype == (torch.bfloat16 if wanted else torch.float32)
        found.append((output.float(), *torch.autograd.grad(output.float().square().mean(), (leaf, kernel_of(layer)))))
    for exact, rounded in zip(*found, strict=True):
        assert rounded.dtype == torch.float32 and 0 < _apart(rounded, exact) < 0.02


def test_no_voxels_give_no_rows() -> None:
    network = build_network(NetworkConfig("minkunet_small"), 1, 4, TorchEngine()).eval()
    assert network(torch.zeros(0, 4, dtype=torch.int32), torch.zeros(0, 1)).shape == (0, 4)


def test_the_whole_range_of_int32_fits_on_one_axis_and_not_on_three() -> None:
    engine, far = TorchEngine(), 2**31 - 1
    along = torch.tensor([[0, -far - 1, 0, 0], [0, far, 0, 0]], dtype=torch.int32)
    x = engine.convolution(1, 1, 3, 1)(engine.tensor(along, torch.ones(2, 1)))
    assert x.C.tolist() == along.tolist()
    across = torch.tensor([[0, -far, -far, -far], [0, far, far, far]], dtype=torch.int32)
    with pytest.raises(ValueError, match="too far apart for 64-bit keys"):
        engine.tensor(across, torch.ones(2, 1))


def test_layers_that_the_engine_does_not_have_are_sentences() -> None:
    engine = TorchEngine()
    for size, stride in ((2, 1), (3, 2)):
        with pytest.raises(ValueError, match=f"size {size} and stride {stride} is not of this engine"):
            engine.convolution(1, 1, size, stride)
    with pytest.raises(ValueError, match="size 3 and stride 1 is not of this engine"):
        engine.transposed_convolution(1, 1, 3, 1)
    with pytest.raises(ValueError, match="voxels of stride 1 came from no convolution of stride 2"):
        engine.transposed_convolution(1, 1, 2, 2)(engine.tensor(_cells(), torch.ones(len(_cells()), 1)))


def test_a_recipe_chooses_the_engine_which_counts_as_part_of_what_is_computed(fleet: Any, console: Console) -> None:
    ours, other = fleet.recipe("network.engine=torch"), fleet.recipe()
    path = train(ours, "distill", console)
    document = checkpoint.read_document(path)
    assert as_document(document)["identity"]["network"]["engine"] == "torch"
    loss = told(document.loss)["total"]
    assert math.isfinite(loss)
    table = predict(ours, console)
    one, two = (predict_identity(recipe, "w", "p").settings for recipe in (ours, other))
    assert one == {**two, "engine": "torch"}
    # Weights are of no engine: the other one predicts with them, and only near ties differ.
    labels = []
    for made in (table, predict(other, console)):
        rows = fleet.store.every(Predict, made.fingerprint, made.shards)
        labels.append(np.concatenate([row.label for row in rows]))
    assert table.fingerprint != made.fingerprint and (labels[0] == labels[1]).mean() > 0.99


def test_without_minkowskiengine_a_recipe_for_it_names_the_other_engine(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from manifests.config import ConfigError

    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "MinkowskiEngine" else found(name, *rest)
    )
    with pytest.raises(ConfigError, match=r'set network.engine to "torch"'):
        train(fleet.recipe("network.engine=minkowski"), "distill", console)
    assert isinstance(train(fleet.recipe("network.engine=torch"), "distill", console), Path)
