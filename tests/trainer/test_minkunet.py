"""The sparse U-Net."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from manifests.sections.network import NetworkConfig
from trainer.network.minkunet import (
    ARCHITECTURES,
    Architecture,
    BatchNorm,
    MinkUNet,
    ResidualBlock,
    build_network,
    parameter_groups,
    unit_rows,
)
from trainer.network.sparse import ENGINES, Engine

SMALL = NetworkConfig("minkunet_small")


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    return ENGINES[request.param]()


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _frame(frame: int, n_voxels: int = 400) -> tuple[Tensor, Tensor]:
    """Distinct voxels of one frame, on both sides of zero, and an intensity each."""
    cells = torch.unique(torch.randint(-20, 20, (n_voxels, 3), generator=_seeded(frame)), dim=0)
    cells = cells[torch.randperm(len(cells), generator=_seeded(frame))]
    coords = torch.cat([torch.full((len(cells), 1), frame), cells], dim=1).int()
    return coords, torch.rand(len(cells), 1, generator=_seeded(frame))


@pytest.mark.parametrize(("n_outputs", "n_parameters"), [(17, 37_844_625), (768, 37_917_472)])
def test_minkunet34c_has_its_known_number_of_parameters(engine: Engine, n_outputs: int, n_parameters: int) -> None:
    network = build_network(NetworkConfig(), 1, n_outputs, engine)
    assert sum(parameter.numel() for parameter in network.parameters()) == n_parameters


def test_checkpoints_of_the_reference_implementation_fit_and_equal_seeds_give_its_weights(
    engine: Engine, shared: Path
) -> None:
    description = json.loads((shared / "design" / "checkpoints" / "minkunet34c.keys.json").read_text())
    network = build_network(NetworkConfig(), 1, 768, engine, generator=_seeded())
    state = network.state_dict()
    expected = description["state_dict"]
    assert [(key, list(tensor.shape)) for key, tensor in state.items()] == [(e["key"], e["shape"]) for e in expected]
    assert [str(tensor.dtype) for tensor in state.values()] == [f"torch.{e['dtype']}" for e in expected]
    assert [key for key, _ in network.named_parameters()] == [e["key"] for e in expected if e["trainable"]]
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values()))
    assert digest.hexdigest() == description["sha256_seed0"]


def test_the_small_network_has_the_same_stages_and_a_thirtieth_of_the_parameters(engine: Engine) -> None:
    network = build_network(SMALL, 1, 17, engine)
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_347_713
    full = build_network(NetworkConfig(), 1, 17, engine)
    assert [name for name, _ in network.named_children()] == [name for name, _ in full.named_children()]


def test_initial_weights_depend_on_the_seed_only_and_leave_the_callers_random_numbers_alone(engine: Engine) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = build_network(SMALL, 1, 4, engine, generator=_seeded(1))
    assert torch.rand(1) == expected
    again, other = (build_network(SMALL, 1, 4, engine, generator=_seeded(seed)) for seed in (1, 2))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    kernels = [one.get_parameter("conv0p1s1.kernel") for one in (first, other)]
    assert not torch.equal(*kernels)
    torch.manual_seed(1)
    assert torch.equal(build_network(SMALL, 1, 4, engine).final.kernel, first.final.kernel)


def test_the_configured_momentum_stops_at_residual_blocks(engine: Engine) -> None:
    network = build_network(NetworkConfig("minkunet_small", 0.02, 0.3), 1, 4, engine)
    norms = {name: module for name, module in network.named_modules() if isinstance(module, BatchNorm)}
    inside = {name for name in norms if name.endswith(("norm1", "norm2"))}
    assert {norms[name].bn.momentum for name in inside} == {0.3}
    assert {norm.bn.momentum for name, norm in norms.items() if name not in inside} == {0.02}
    assert any("downsample" in name for name in set(norms) - inside)


def test_a_larger_stem_has_a_larger_kernel(engine: Engine) -> None:
    network = build_network(NetworkConfig("minkunet_small", stem_kernel_size=5), 2, 4, engine)
    assert network.conv0p1s1.kernel.shape == (125, 2, 16)


def test_each_input_voxel_has_an_output_row_whatever_the_order(engine: Engine) -> None:
    network = build_network(SMALL, 1, 5, engine, generator=_seeded()).eval()
    coords, features = _frame(0)
    order = torch.randperm(len(coords), generator=_seeded(9))
    with torch.no_grad():
        straight, shuffled = network(coords, features), network(coords[order], features[order])
    assert straight.shape == (len(coords), 5)
    torch.testing.assert_close(straight[order], shuffled, rtol=1e-4, atol=1e-6)


def test_two_frames_in_a_batch_equal_two_single_runs(engine: Engine) -> None:
    network = build_network(SMALL, 1, 5, engine, generator=_seeded()).eval()
    frames = [_frame(0), _frame(1, 300)]
    alone_at_zero = frames[1][0].clone()
    alone_at_zero[:, 0] = 0
    with torch.no_grad():
        batch = network(torch.cat([frames[0][0], frames[1][0]]), torch.cat([frames[0][1], frames[1][1]]))
        single = torch.cat([network(*frames[0]), network(alone_at_zero, frames[1][1])])
    torch.testing.assert_close(batch, single, rtol=1e-4, atol=1e-6)


def test_normalised_outputs_have_unit_length_and_the_direction_of_the_logits(engine: Engine) -> None:
    unit = build_network(SMALL, 1, 8, engine, normalise_output=True, generator=_seeded()).eval()
    raw = build_network(SMALL, 1, 8, engine, generator=_seeded()).eval()
    coords, features = _frame(0)
    with torch.no_grad():
        vectors, logits = unit(coords, features), raw(coords, features)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(coords)))
    torch.testing.assert_close(vectors * logits.norm(dim=1, keepdim=True), logits, rtol=1e-4, atol=1e-6)


def test_unit_rows_equal_torchs_normalisation_in_value_and_gradient() -> None:
    rows = torch.randn(20, 6, generator=_seeded(), dtype=torch.float64).requires_grad_()
    torch.testing.assert_close(unit_rows(rows), nn.functional.normalize(rows, dim=1))
    assert torch.autograd.gradcheck(unit_rows, rows)
    zero = torch.zeros(1, 3, requires_grad=True)
    unit_rows(zero).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_one_thread_gives_equal_bits_in_features_and_gradients(engine: Engine) -> None:
    results = []
    for _ in range(2):
        network = build_network(SMALL, 1, 4, engine, generator=_seeded())
        output = network(*_frame(0))
        output.square().mean().backward()
        results.append((output.detach(), *(parameter.grad for parameter in network.parameters())))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_head_and_trunk_share_out_the_parameters_and_follow_a_cosine(engine: Engine) -> None:
    network = build_network(SMALL, 1, 4, engine)
    trunk, head = parameter_groups(network, trunk_lr=0.02, head_lr=2.0)
    assert [id(p) for p in head.params] == [id(p) for p in network.final.parameters()]
    both = [id(p) for p in trunk.params + head.params]
    assert sorted(both) == sorted(id(p) for p in network.parameters()) and len(set(both)) == len(both)

    optimiser = torch.optim.SGD([dict(vars(trunk)), dict(vars(head))])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=5)
    for epoch in range(5):
        factor = (1 + np.cos(np.pi * epoch / 5)) / 2
        assert [group["lr"] for group in optimiser.param_groups] == pytest.approx([0.02 * factor, 2.0 * factor])
        optimiser.step()
        schedule.step()


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "minkunet18"},
        {"batch_norm_momentum": 0.0},
        {"batch_norm_momentum": 1.5},
        {"block_batch_norm_momentum": float("nan")},
        {"stem_kernel_size": 4},
        {"stem_kernel_size": 1},
        {"engine": "spconv"},
    ],
)
def test_config_values_out_of_range_are_named(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"network.{name} is"):
        NetworkConfig(**fields)


# --- Against the reference implementation ---


def _close(got: Tensor, expected: np.ndarray[Any, Any], tolerance: float = 2e-5) -> None:
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_outputs_gradients_and_statistics_equal_the_reference_implementation(engine: Engine, shared: Path) -> None:
    golden = np.load(shared / "golden" / "backbone_slim_seed0.npz")
    weights = torch.load(shared / "golden" / "backbone_slim_seed0.pt", weights_only=True)
    slim = Architecture(4, (4, 8, 16, 32, 32, 16, 12, 12), ARCHITECTURES["minkunet34c"].blocks)
    network = MinkUNet(slim, NetworkConfig(), 1, 16, engine, normalise_output=True)
    network.load_state_dict(weights)
    coords, features = torch.from_numpy(golden["coords"]), torch.from_numpy(golden["feats"]).requires_grad_()

    _close(network.eval()(coords, features), golden["eval_out"])
    output = network.train()(coords, features)
    _close(output, golden["train_out"])
    loss = (output * torch.from_numpy(golden["loss_weight"])).sum() / len(coords)
    assert loss.item() == pytest.approx(float(golden["loss"]), rel=1e-5)

    loss.backward()
    assert features.grad is not None
    _close(features.grad, golden["grad_feats"])
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        _close(parameter.grad, golden[f"grad__{name}"])
    statistics = {name: b for name, b in network.named_buffers() if "running" in name}
    assert {f"after__{name}" for name in statistics} == {name for name in golden.files if name.startswith("after__")}
    for name, buffer in statistics.items():
        _close(buffer, golden[f"after__{name}"])


def test_every_stage_of_the_full_network_lives_on_the_reference_implementations_voxels(
    engine: Engine, shared: Path
) -> None:
    golden = np.load(shared / "golden" / "backbone_full_recipe.npz")
    network = build_network(NetworkConfig(), 1, 17, engine, generator=_seeded()).eval()
    seen: dict[str, Any] = {}

    def remember(name: str) -> Any:
        return lambda module, arguments, output: seen.update({name: output})

    for name, module in network.named_children():
        if isinstance(module, BatchNorm | nn.Sequential):
            module.register_forward_hook(remember(name))
    with torch.no_grad():
        output = network(torch.from_numpy(golden["coords"]), torch.from_numpy(golden["feats"]) / 255)
    assert output.shape == golden["eval_out17"].shape
    for key in (key for key in golden.files if key.endswith("_n")):
        stage = key.removeprefix("eval17_").removesuffix("_n")
        rows = getattr(seen[stage], "F", seen[stage])
        assert (len(rows), rows.shape[1]) == (int(golden[key]), len(golden[f"eval17_{stage}_mean"]))
    deepest = seen["block4"].C.numpy()
    expected = golden["eval17_block4_coords"]
    np.testing.assert_array_equal(deepest[np.lexsort(deepest.T)], expected[np.lexsort(expected.T)])


def test_blocks_have_a_projection_exactly_where_the_width_changes(engine: Engine) -> None:
    assert hasattr(ResidualBlock(4, 8, engine, SMALL), "downsample")
    assert not hasattr(ResidualBlock(8, 8, engine, SMALL), "downsample")
