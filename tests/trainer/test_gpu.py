"""What the trainer computes on a GPU is what it computes on a CPU. Skipped where torch sees none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from bench.network import learner, simulated_batch
from manifests.asked import pin
from manifests.records.log import run_log
from manifests.sections.network import Architecture, NetworkConfig
from manifests.sections.training import DistillConfig, Precision
from manifests.storage import sealed
from manifests.tables.answers import Predict
from tests.trainer.test_train import ALL_AT_ONCE, asked_to_end_in_its_fifth_step, same_tensors
from trainer import machine
from trainer.inference.predict import predict
from trainer.loop.learner import Learner
from trainer.loop.ranks import Ranks
from trainer.loop.train import agree, train
from trainer.network.minkunet import build_network
from trainer.network.sparse import ENGINES, Engine, check_engine, open_engine
from trainer.objectives.losses import segmentation_loss
from trainer.objectives.objective import Objective

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
    # of sums that torch cannot order on a GPU, and of how it forks the loader's processes from Python 3.12 on
    pytest.mark.filterwarnings("ignore:.*determinis:UserWarning", "ignore:.*fork:DeprecationWarning"),
]
GPU = "cuda"


@pytest.fixture(params=sorted(ENGINES))
def engine(request: pytest.FixtureRequest) -> Engine:
    """An engine that can use the GPU."""
    try:
        found = open_engine(request.param)
        usable = found.cuda_usable()
    except (RuntimeError, ValueError, ImportError) as error:
        pytest.skip(str(error))
    if not usable:
        pytest.skip(f"the {request.param} engine cannot use this GPU")
    return found


def apart(got: Tensor, expected: Tensor) -> float:
    """Return the length of the difference as a share of what was expected."""
    got, expected = (one.detach().cpu().double() for one in (got, expected))
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


def gradients_of(network: nn.Module) -> Tensor:
    """The gradients of all weights, one after another."""
    found = [parameter.grad for parameter in network.parameters()]
    return torch.cat([one.flatten() for one in found if one is not None])


def log_of(folder: Path, task: str) -> list[dict[str, float]]:
    lines = sealed.read_lines((folder / "street" / task / "log.jsonl").read_bytes())
    return [line.curves() for line in run_log(lines.documents).epochs]


# -- one step ----------------------------------------------------------------------------------------------------------


def test_convolutions_on_the_gpu_are_dense_ones(engine: Engine) -> None:
    assert check_engine(engine, GPU) < 1e-5


@pytest.mark.parametrize("name", ["minkunet_small", "minkunet34c"])
def test_outputs_and_gradients_are_as_near_to_exact_ones_as_those_of_the_cpu(
    engine: Engine, name: Architecture
) -> None:
    """Exact is float64. Batch norm of the few voxels at the bottom makes gradients differ by a percent in float32."""
    batch = simulated_batch(2, 4000)
    found: list[tuple[Tensor, ...]] = []
    for device, kind, dtype in (
        ("cpu", open_engine("torch"), torch.float64),
        ("cpu", open_engine("torch"), torch.float32),
        (GPU, engine, torch.float32),
    ):
        network = build_network(
            NetworkConfig(name), 1, 17, kind, generator=torch.Generator().manual_seed(0), normalise_output=True
        ).to(device, dtype)
        output = network(batch.coords.to(device), batch.features.to(device, dtype))
        loss = 20 * output[torch.arange(len(output), device=device), batch.labels.to(device)].mean()
        torch.autograd.backward(loss)
        gradients = gradients_of(network).cpu()
        found.append((output, loss[None], gradients))
    exact, cpu, gpu = found
    for expected, near, got, most in zip(exact, cpu, gpu, (1e-4, 1e-4, 1e-3), strict=True):
        assert apart(got, expected) < max(most, 5 * apart(near, expected))


@pytest.mark.parametrize(("precision", "most"), [("float32", 1e-4), ("bfloat16", 2e-2), ("float16", 2e-2)])
def test_a_training_step_has_the_loss_of_the_cpu(engine: Engine, precision: Precision, most: float) -> None:
    batch = simulated_batch(2, 4000)
    cpu = learner("minkunet_small", open_engine("torch"), torch.device("cpu"))
    gpu = learner("minkunet_small", engine, torch.device(GPU), precision=precision)
    for _ in range(3):
        losses = []
        for one in (cpu, gpu):
            global_batch, _ = agree(Ranks(), [batch], False)
            losses.append(one.backward([batch], global_batch)["total"])
            one.optimizer_step()
        assert losses[1] == pytest.approx(losses[0], rel=most)
    assert all(parameter.dtype == torch.float32 for parameter in gpu.network.parameters())


class AsTwo(Ranks):
    """One process that says it is two, to go the way of several on a machine with one GPU."""

    @property
    def is_first(self) -> bool:
        return True


def test_batch_norm_and_gradients_of_several_processes_go_through_nccl(tmp_path: Path) -> None:
    """A group of one: torch then takes the mean over one process of a loss that counts double."""
    dist = torch.distributed
    if not dist.is_nccl_available():
        pytest.skip("this torch has no NCCL")
    batch = simulated_batch(2, 4000)
    settings = replace(DistillConfig(), lovasz="scan")
    engine, device = open_engine("torch"), torch.device(GPU, 0)

    def loss(output: Tensor, part: Any, global_batch: Any) -> Any:
        return segmentation_loss(output, part.labels, part.voxel_frame, "scan", global_batch=global_batch)

    def no_sample(*_: object) -> Any:
        raise AssertionError

    objective = Objective("distill", settings, (), (), no_sample, 17, False, 0.1, 0.1, loss)
    gradients = []
    dist.init_process_group(
        "cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1, device_id=device
    )
    try:
        for ranks in (Ranks(), AsTwo(world_size=2)):
            one = Learner(objective, NetworkConfig("minkunet_small", engine="torch"), engine, device, ranks)
            one.start_epoch(1.0)
            global_batch, _ = agree(Ranks(), [batch], False)
            one.backward([batch], global_batch)
            gradients.append(gradients_of(one.network))
            kinds = {type(module).__name__ for module in one.network.modules()}
            assert ("SyncBatchNorm" in kinds) == (ranks.world_size == 2)
        assert apart(gradients[1], 2 * gradients[0]) < 1e-4
        assert Ranks(world_size=2).all_reduce(torch.ones(3, device=device)).tolist() == [1, 1, 1]
    finally:
        dist.destroy_process_group()


# -- whole runs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["pretrain", "distill"])
def test_a_run_has_the_losses_of_the_cpu(
    fleet: Any, console: Console, tmp_path: Path, engine: Engine, task: Any, capsys: Any
) -> None:
    for device, kind in (("cpu", "torch"), (GPU, engine.name)):
        settings = (f"run.device={device}", f"network.engine={kind}", "run.loader_workers=2")
        train(fleet.recipe(*settings, f"run.runs={tmp_path}/{device}"), task, console)
    cpu, gpu = (log_of(tmp_path / device, task) for device in ("cpu", GPU))
    assert [epoch["total"] for epoch in gpu] == pytest.approx([epoch["total"] for epoch in cpu], rel=1e-2)
    assert f", on {GPU}" in capsys.readouterr().out


@pytest.mark.parametrize("overrides", [(), ALL_AT_ONCE], ids=["plain", "all at once"])
def test_a_run_that_is_asked_to_end_goes_on_bit_for_bit_with_the_torch_engine(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    overrides = (f"run.device={GPU}", "network.engine=torch", "distill.batch_size=2", *overrides)
    whole = train(fleet.recipe(*overrides, f"run.runs={tmp_path}/whole"), "distill", console)
    asked_to_end_in_its_fifth_step(fleet.recipe(*overrides), console, monkeypatch)
    torch.rand(5, device=GPU)  # whatever happens in between
    parts = train(fleet.recipe(*overrides), "distill", console)
    assert same_tensors(whole, parts)


def test_predictions_are_those_of_the_cpu(fleet: Any, console: Console, engine: Engine) -> None:
    train(fleet.recipe("run.device=cpu", "network.engine=torch", "distill.epochs=8"), "distill", console)
    labels = []
    for device, kind in (("cpu", "torch"), (GPU, engine.name)):
        predict(fleet.recipe(f"run.device={device}", f"network.engine={kind}"), console)
        table = fleet.store.expect_ref(pin(fleet.recipe(), "predict")).tables["predict"]
        rows = fleet.store.every(Predict, table.fingerprint, table.shards)
        labels.append(np.concatenate([row.label for row in rows]))
    assert len(labels[0]) > 1000 and (labels[0] == labels[1]).mean() > 0.999


def test_the_doctor_finds_the_gpu(fleet: Any) -> None:
    found = machine.look_at(fleet.recipe("run.device=auto", "network.engine=torch"))
    assert (found.device, found.problem) == (GPU, "")
    assert found.gpus[0][0] == torch.cuda.get_device_name(0) and found.gpus[0][1] > 1
