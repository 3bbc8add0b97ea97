"""A batch in parts: over several processes, forked here as `torchrun` would start them (CPU, gloo), or one by one."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from manifests.fingerprint import differences
from manifests.records.codec import as_document
from manifests.sections.network import NetworkConfig
from tests.records import told
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.loop import learner
from trainer.loop import train as trainer_train
from trainer.loop.ranks import ALONE, Ranks, joined
from trainer.loop.train import train
from trainer.network.minkunet import build_network
from trainer.network.sparse import Minkowski

FROZEN = ("distill.epochs=1", "distill.batch_size=2", "pretrain.epochs=1", "pretrain.drop_last=false")


def in_two_processes(function: Callable[[], object], folder: Path) -> list[str]:
    """Run a function in two processes that know of each other; return what each gave, or how it failed, as text."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    folder.mkdir()

    def child(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        try:
            text = str(function())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        (folder / str(rank)).write_text(text)
        os._exit(0)

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=child, args=(rank,)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        if process.exitcode is None:
            process.kill()
            pytest.fail("a rank hangs")
    return [path.read_text() if (path := folder / str(rank)).exists() else "nothing" for rank in range(2)]


def freeze_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the network in evaluation mode: batch norm uses the statistics it has and leaves them as they are."""
    build = build_network

    def frozen(*arguments: Any, **options: Any) -> Any:
        network: Any = build(*arguments, **options)
        unfrozen = network.train
        network.train = lambda mode=True: unfrozen(False)
        return network

    monkeypatch.setattr(learner, "build_network", frozen)


def loss_and_weights(path: Path) -> tuple[dict[str, float], dict[str, Tensor]]:
    found = checkpoint.load(path)
    return dict(told(found.document.loss)), found.weights


def assert_same_result(one: Path, other: Path) -> None:
    """Loss and every weight agree to 1e-5."""
    (loss, weights), (other_loss, other_weights) = loss_and_weights(one), loss_and_weights(other)
    assert loss == pytest.approx(other_loss, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, other_weights[name], rtol=1e-5, atol=1e-5, msg=name)


def test_rows_are_joined_in_order_and_gradients_come_back_summed(tmp_path: Path) -> None:
    def gathered() -> object:
        with joined() as ranks:
            rows = torch.full((ranks.rank + 1, 2), float(ranks.rank), requires_grad=True)
            everything, first = ranks.gather(rows)
            (everything * torch.tensor([[1.0], [10.0], [100.0]])).sum().backward()
            assert rows.grad is not None
            first_said = ranks.from_first(lambda: f"rank {ranks.rank}")
            return everything[:, 0].tolist(), first, rows.grad[:, 0].tolist(), first_said

    assert in_two_processes(gathered, tmp_path / "two") == [
        "([0.0, 1.0, 1.0], 0, [2.0], 'rank 0')",
        "([0.0, 1.0, 1.0], 1, [20.0, 200.0], 'rank 0')",
    ]
    rows = torch.ones(3, 2)
    assert ALONE.gather(rows) == (rows, 0)


@pytest.mark.parametrize(
    ("task", "setting"),
    [
        ("pretrain", "pretrain.negatives=frame"),
        ("pretrain", "pretrain.negatives=global"),
        ("distill", "distill.lovasz=scan"),
        ("distill", "distill.lovasz=batch"),
        ("distill", "distill.weight=confidence"),
    ],
)
def test_two_processes_learn_what_one_learns(
    fleet: Any, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Any, setting: str
) -> None:
    # Batches of 2, 2 and 1 frames: in the last step one of the processes has nothing of its own.
    freeze_statistics(monkeypatch)
    alone = train(fleet.recipe(*FROZEN, setting, f"run.runs={tmp_path}/alone"), task, console)
    recipe = fleet.recipe(*FROZEN, setting, f"run.runs={tmp_path}/two")
    path = tmp_path / "two/street" / task / alone.name
    assert in_two_processes(lambda: train(recipe, task, console), tmp_path / "said") == [str(path)] * 2
    assert_same_result(path, alone)
    assert len(list(path.parent.glob("tensorboard/*"))) == 1, "only the first one writes"
    assert checkpoint.read_document(path).ranks == 2


def test_parts_one_after_the_other_learn_what_the_whole_learns(
    fleet: Any, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_statistics(monkeypatch)
    settings = ("distill.epochs=1", "distill.batch_size=3", "distill.lovasz=scan")
    whole = train(fleet.recipe(*settings, f"run.runs={tmp_path}/whole"), "distill", console)
    assert_same_result(train(fleet.recipe(*settings, "distill.accumulate=2"), "distill", console), whole)


def test_batch_norm_over_all_gpus_is_the_same_network_under_the_same_names() -> None:
    # Its own arithmetic needs GPUs; that it takes over weights, names and results can be seen without.
    network = build_network(NetworkConfig("minkunet_small"), 1, 4, Minkowski())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    parameters = list(network.parameters())
    coords = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 0], [0, 40, 3, 1], [1, 0, 0, 0]], dtype=torch.int32)
    expected = network.eval()(coords, torch.ones(4, 1))
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network)
    n_synced = sum(isinstance(module, torch.nn.SyncBatchNorm) for module in synced.modules())
    assert n_synced == sum(name.endswith("running_mean") for name in before)
    assert {name: tensor.tolist() for name, tensor in synced.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert all(one is other for one, other in zip(synced.parameters(), parameters, strict=True))
    assert torch.equal(synced.eval()(coords, torch.ones(4, 1)), expected)


def test_all_processes_end_where_one_is_asked_to_and_any_number_goes_on(
    fleet: Any, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze_statistics(monkeypatch)
    alone = train(fleet.recipe(*FROZEN, f"run.runs={tmp_path}/alone"), "distill", console)
    recipe = fleet.recipe(*FROZEN, f"run.runs={tmp_path}/two")

    def asked_to_end() -> object:
        step = learner.Learner.optimizer_step

        def press(one: Any) -> None:
            step(one)
            if os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(learner.Learner, "optimizer_step", press)
        return train(recipe, "distill", console)

    said = in_two_processes(asked_to_end, tmp_path / "said")
    assert said[0].startswith("KeyboardInterrupt: interrupted; 0 of 1 epochs and the state in the middle of the next")
    assert said[1] == "KeyboardInterrupt: rank 1 ends with the others"
    middle = checkpoint.read_document(tmp_path / "two/street/distill/running.safetensors")
    assert told(middle.so_far).batches == 1
    assert_same_result(train(recipe, "distill", console), alone)


def test_a_lost_process_ends_the_others_with_a_sentence(
    fleet: Any, console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = fleet.recipe()

    def lost() -> object:
        if os.environ["RANK"] == "1":
            agree, n_batches = trainer_train.agree, 0

            def vanish(*arguments: Any) -> Any:
                nonlocal n_batches
                n_batches += 1
                if n_batches == 2:
                    os._exit(1)
                return agree(*arguments)

            monkeypatch.setattr(trainer_train, "agree", vanish)
        return train(recipe, "distill", console)

    said = in_two_processes(lost, tmp_path / "said")
    assert said[0].startswith("TrainerError: rank 0 of 2 lost another one, which ended before it (")
    assert said[1] == "nothing"


def test_half_an_environment_of_torchrun_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schedulers of clusters set WORLD_SIZE for reasons of their own."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainerError, match=r"WORLD_SIZE is 2 .*RANK, MASTER_ADDR, MASTER_PORT not set"), joined():
        pass


def test_what_the_first_process_refuses_ends_the_others_too(fleet: Any, console: Console, tmp_path: Path) -> None:
    train(fleet.recipe(), "distill", console)
    other = fleet.recipe("distill.lr_head=0.3")
    said = in_two_processes(lambda: train(other, "distill", console), tmp_path / "said")
    assert "holds a run of another configuration" in said[0]
    assert said[1].startswith("TrainerError: rank 1 ends because rank 0 did")


def test_another_number_of_processes_is_another_run_where_the_loss_depends_on_it(
    fleet: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "from_first", lambda _, function: function())  # there is no second process to tell

    def identity(world_size: int, negatives: str) -> Any:
        recipe = fleet.recipe(f"pretrain.negatives={negatives}")
        run = trainer_train.prepare(recipe, "pretrain", fleet.store, Ranks(world_size=world_size))
        return as_document(run.identity)

    assert differences(identity(1, "local"), identity(2, "local")) == ["processes: (default) -> 2"]
    assert differences(identity(1, "frame"), identity(2, "frame")) == []
