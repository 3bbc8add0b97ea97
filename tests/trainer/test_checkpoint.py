"""Checkpoints: whole or not at all, exact, and never unpickled."""

import pickle
import random
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from manifests.records.checkpoint import CheckpointRecord
from manifests.sections.network import NetworkConfig, VoxelConfig
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.network.minkunet import build_network
from trainer.network.sparse import Minkowski

VOXELS = VoxelConfig()
DOCUMENT = CheckpointRecord(epoch=1, epochs=5, config={"voxels": asdict(VOXELS)})


class Tiny(nn.Module):
    """A trunk with batch norm and a head, as checkpoints see them."""

    def __init__(self, n_outputs: int = 3, n_channels: int = 4) -> None:
        super().__init__()
        self.trunk = nn.Linear(2, n_channels)
        self.bn = nn.BatchNorm1d(n_channels)
        self.final = nn.Linear(n_channels, n_outputs)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.final(self.bn(self.trunk(features)))
        return output


def sgd(network: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, dampening=0.1)


def step(network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    optimiser.zero_grad()
    network(torch.randn(8, 2)).square().mean().backward()
    optimiser.step()


def adamw(network: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(network.parameters(), lr=0.1)


@pytest.mark.parametrize("make_optimiser", [sgd, adamw])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(
    tmp_path: Path, make_optimiser: Callable[[nn.Module], torch.optim.Optimizer]
) -> None:
    network, path = Tiny(), tmp_path / "epoch-0001.safetensors"
    optimiser = make_optimiser(network)
    step(network, optimiser)
    checkpoint.save(path, network, optimiser, DOCUMENT)
    step(network, optimiser)  # draws from torch's random state
    drawn = (np.random.rand(), random.random(), random.gauss(0, 1))

    again = Tiny()
    optimiser_again = make_optimiser(again)
    checkpoint.restore(checkpoint.load(path), again, optimiser_again)
    step(again, optimiser_again)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values()))  # noqa: B905
    assert (np.random.rand(), random.random(), random.gauss(0, 1)) == drawn


def test_a_moving_average_is_what_a_checkpoint_gives(tmp_path: Path) -> None:
    network, path = Tiny(), tmp_path / "one.safetensors"
    average = {name: parameter.detach() + 1 for name, parameter in network.named_parameters()}
    checkpoint.save(path, network, sgd(network), DOCUMENT, average)
    weights, own = checkpoint.load(path).weights, network.state_dict()
    assert weights.keys() == own.keys(), "buffers have no average of their own"
    assert all(torch.equal(weights[name], average.get(name, own[name])) for name in own)
    again = Tiny()
    assert checkpoint.restore(checkpoint.load(path), again, sgd(again)).keys() == own.keys()
    assert torch.equal(again.final.weight, network.final.weight), "training goes on from the last step"


def test_the_document_is_read_without_the_tensors(tmp_path: Path) -> None:
    network, path = Tiny(), tmp_path / "one.safetensors"
    checkpoint.save(path, network, sgd(network), replace(DOCUMENT, seed=7))
    document = checkpoint.read_document(path)
    assert document.seed == 7
    assert document.weights == checkpoint.weights_digest(network.state_dict())
    assert document.weights != checkpoint.weights_digest(Tiny().state_dict())


def test_a_head_of_another_width_is_left_out_and_named(tmp_path: Path) -> None:
    config = NetworkConfig("minkunet_small")
    pretrained = build_network(config, 1, 768, Minkowski(), generator=torch.Generator().manual_seed(1))
    pretrained.get_buffer("bn0.bn.running_mean").add_(3)
    path = tmp_path / "tmp.safetensors"
    checkpoint.save(path, pretrained, sgd(pretrained), DOCUMENT)

    student = build_network(config, 1, 17, Minkowski(), generator=torch.Generator().manual_seed(2))
    head = student.final.kernel.clone()
    taken = checkpoint.load_initial(student, checkpoint.load(path), VOXELS)
    assert taken.skipped == ("final.kernel", "final.bias")
    assert taken.absent == ()
    assert set(taken.loaded) == set(student.state_dict()) - set(taken.skipped)
    assert "bn0.bn.running_mean" in taken.loaded
    assert "left out: final.kernel, final.bias" in taken.sentence()
    assert torch.equal(student.final.kernel, head)
    ours, theirs = student.state_dict(), pretrained.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in taken.loaded)


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (VoxelConfig(size_m=0.2), "voxels.size_m: 0.1 -> 0.2"),
        (VoxelConfig(coordinates="cartesian"), 'voxels.coordinates: "cylindrical" -> "cartesian"'),
    ],
)
def test_weights_of_another_grid_are_refused(tmp_path: Path, voxels: VoxelConfig, words: str) -> None:
    network, path = Tiny(), tmp_path / "one.safetensors"
    checkpoint.save(path, network, sgd(network), DOCUMENT)
    with pytest.raises(TrainerError, match=words):
        checkpoint.load_initial(Tiny(), checkpoint.load(path), voxels)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    network, path = Tiny(), tmp_path / "one.safetensors"
    checkpoint.save(path, network, sgd(network), DOCUMENT)
    with pytest.raises(TrainerError, match=r"another network: 2 tensors .*final.bias, final.weight"):
        checkpoint.load_weights(checkpoint.load(path), Tiny(n_outputs=5))
    with pytest.raises(TrainerError, match="shares no tensor"):
        checkpoint.load_initial(nn.Linear(2, 2), checkpoint.load(path), VOXELS)


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(small_disk: Path) -> None:
    network, path = Tiny(), small_disk / "epoch-0001.safetensors"
    checkpoint.save(path, network, sgd(network), DOCUMENT)
    before = path.read_bytes()
    with pytest.raises(OSError, match="No space left"), (small_disk / "filler").open("wb") as filler:
        filler.write(bytes(1 << 20))
    with pytest.raises(TrainerError, match=r"cannot be written.*Earlier checkpoints are safe"):
        checkpoint.save(path, network, sgd(network), DOCUMENT)
    assert path.read_bytes() == before
    assert sorted(file.name for file in small_disk.iterdir()) == [path.name, "filler"]


def test_a_flipped_bit_is_found(tmp_path: Path) -> None:
    network, path = Tiny(), tmp_path / "one.safetensors"
    checkpoint.save(path, network, sgd(network), DOCUMENT)
    content = bytearray(path.read_bytes())
    start = content.find(network.final.weight.detach().numpy().tobytes())
    content[start] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(TrainerError, match="is damaged"):
        checkpoint.load(path)


class Bomb:
    """Explodes when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a pickle was run",)


@pytest.mark.parametrize("content", [b"", b"half of a file", pickle.dumps(Bomb())], ids=["empty", "cut", "pickle"])
def test_what_is_no_checkpoint_is_refused_unopened(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(TrainerError, match=r"model.pt is no checkpoint"):
        checkpoint.load(path)


def test_a_missing_checkpoint_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="there is no such checkpoint"):
        checkpoint.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(("keep_every", "kept"), [(0, [4, 5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (3, [3, 4, 5])])
def test_the_last_two_and_every_so_many_checkpoints_are_kept(tmp_path: Path, keep_every: int, kept: list[int]) -> None:
    for epoch in range(1, 6):
        checkpoint.epoch_path(tmp_path, epoch).touch()
    (tmp_path / ".tmp-0123").touch()  # what a killed writer leaves
    checkpoint.prune(tmp_path, keep_every)
    assert checkpoint.finished_epochs(tmp_path) == kept
    assert not (tmp_path / ".tmp-0123").exists()
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch-0005.safetensors"
