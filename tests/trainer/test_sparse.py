"""The door to sparse convolutions."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.network.sparse import ENGINES, Engine, Minkowski, SparseTensor, check_engine

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_knows_its_name_and_computes_what_dense_convolutions_do(name: str) -> None:
    engine = ENGINES[name]()
    assert engine.name == name
    assert check_engine(engine) < 1e-5


class _Wrong(Minkowski):
    """An engine whose strided kernels lie the wrong way round, as a bad build's might."""

    def convolution(self, n_inputs: int, n_outputs: int, kernel_size: int, stride: int) -> nn.Module:
        layer = super().convolution(n_inputs, n_outputs, kernel_size, stride)

        def flip(module: nn.Module, arguments: Any) -> None:
            kernel: Any = module.kernel
            kernel.data = kernel.data.flip(0)

        if stride == 2:
            layer.register_forward_pre_hook(flip)
        return layer


def test_a_build_that_computes_wrong_numbers_is_found_out() -> None:
    with pytest.raises(RuntimeError, match=r"'minkowski' on cpu differs from dense convolutions by .* wrong numbers"):
        check_engine(_Wrong())


def test_the_check_leaves_the_caller_its_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    check_engine(Minkowski())
    assert torch.rand(1) == expected


def _cells(*cells: tuple[int, int, int, int]) -> Tensor:
    return torch.tensor(cells, dtype=torch.int32)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]()


def test_voxels_keep_the_order_they_are_given_in(engine: Engine) -> None:
    features = torch.arange(4.0)[:, None]
    tensor = engine.tensor(_cells((1, 5, 5, 5), (0, -3, 2, 1), (1, 0, 0, 0), (0, 5, 5, 5)), features)
    assert engine.input_rows(tensor, tensor).tolist() == features.tolist()


def test_other_features_and_features_side_by_side_keep_the_voxels(engine: Engine) -> None:
    tensor = engine.tensor(_cells((0, 0, 0, 0), (0, 0, 0, 1)), torch.tensor([[1.0], [2.0]]))
    both = engine.concatenate(tensor, engine.replace(tensor, tensor.F * 10))
    assert both.F.tolist() == [[1, 10], [2, 20]]


def test_a_strided_and_a_transposed_convolution_return_to_their_voxels_also_below_zero(engine: Engine) -> None:
    cells = _cells((0, -1, -2, -3), (0, 1, 2, 3), (0, -2, -2, -4))
    source = engine.tensor(cells, torch.tensor([[1.0], [2.0], [4.0]]))
    down, up = engine.convolution(1, 1, 2, 2), engine.transposed_convolution(1, 1, 2, 2)
    with torch.no_grad():
        for layer in (down, up):
            for kernel in layer.parameters():
                kernel.fill_(1.0)
    halved: SparseTensor = down(source)
    # (-1, -2, -3) and (-2, -2, -4) share the coarse voxel (-2, -2, -4).
    assert sorted(halved.F.flatten().tolist()) == [2, 5]
    assert engine.input_rows(up(halved), source).flatten().tolist() == [5, 2, 5]


def test_voxels_that_share_a_place_are_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="2 voxels share 1 places"):
        engine.tensor(_cells((0, 1, 1, 1), (0, 1, 1, 1)), torch.ones(2, 1))


@pytest.mark.parametrize("cells", [torch.zeros(2, 4, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int32)])
def test_coordinates_of_another_kind_are_refused(engine: Engine, cells: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected int32 \(v, 4\)"):
        engine.tensor(cells, torch.ones(2, 1))


def test_an_engine_is_usable_on_cuda_only_if_torch_is(engine: Engine) -> None:
    assert engine.cuda_usable() <= torch.cuda.is_available()


@pytest.mark.parametrize("threads", [None, "", "2"])
def test_more_than_one_thread_is_no_determinism_of_minkowskiengine(
    monkeypatch: pytest.MonkeyPatch, threads: str | None
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    with pytest.raises(RuntimeError, match="Start the process with OMP_NUM_THREADS=1"):
        Minkowski().require_deterministic()


@pytest.mark.parametrize("name", ENGINES)
def test_one_thread_is_determinism(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ENGINES[name]().require_deterministic()


_WITHOUT_MINKOWSKIENGINE = """
import sys
import torch

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0].startswith("MinkowskiEngine"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
from manifests.sections.network import NetworkConfig
from trainer.network.minkunet import build_network
from trainer.network.sparse import check_engine, open_engine

engine = open_engine("torch")
check_engine(engine)
network = build_network(NetworkConfig("minkunet_small", engine="torch"), 1, 4, engine)
cells = torch.cartesian_prod(torch.arange(2), *[torch.arange(-5, 5)] * 3).int()
network(cells, torch.ones(len(cells), 1)).square().mean().backward()
try:
    open_engine("minkowski")
except Exception as error:
    print(error)
"""


def test_the_torch_engine_learns_where_minkowskiengine_is_not_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_MINKOWSKIENGINE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "MinkowskiEngine is not installed" in done.stdout and 'network.engine to "torch"' in done.stdout
