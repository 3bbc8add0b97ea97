"""The loop: what it learns, how it goes on, and how it stops."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import get_worker_info

from manifests.asked import pin
from manifests.config import ConfigError
from manifests.records.log import run_log
from manifests.records.run import Dictionary
from manifests.tables.answers import Predict
from manifests.tables.labels import Target
from manifests.tables.superpoints import Pairs
from tests.records import told
from trainer.checkpoints import checkpoint
from trainer.data import samples
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.loop import train as trainer_train
from trainer.loop.device import resolve_device
from trainer.loop.learner import Learner
from trainer.loop.train import cosine, train
from trainer.network.minkunet import build_network
from trainer.network.sparse import Minkowski
from trainer.records.record import read_lines
from trainer.scoring.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[2]


def log_of(fleet: Any, task: str, kind: str) -> list[dict[str, Any]]:
    lines = (fleet.folder / "runs" / "street" / task / "log.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["event"] == kind]


def same_tensors(one: Path, other: Path) -> bool:
    a, b = checkpoint.load(one).tensors, checkpoint.load(other).tensors
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- what is learnt ----------------------------------------------------------------------------------------------------


def test_the_rate_falls_as_a_cosine() -> None:
    assert [round(cosine(epoch, 4), 4) for epoch in range(4)] == [1.0, 0.8536, 0.5, 0.1464]
    assert cosine(0, 1) == 1
    assert cosine(40, 40) == 0


def test_head_and_trunk_have_rates_of_their_own(fleet: Any, console: Console) -> None:
    train(fleet.recipe("distill.lr_head=0.4", "distill.lr_trunk=0.03"), "distill", console)
    epochs = log_of(fleet, "distill", "epoch")
    assert [event["lr_head"] for event in epochs] == pytest.approx([0.4, 0.2])
    assert [event["lr_trunk"] for event in epochs] == pytest.approx([0.03, 0.015])


def test_the_small_network_learns_the_pseudo_labels(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe(
        "distill.epochs=30",
        "distill.batch_size=5",
        "augment.rotate=false",
        "augment.flip=false",
        "network.batch_norm_momentum=0.3",
        "network.block_batch_norm_momentum=0.3",
        "predict.split=train",
        "evaluate.split=train",
    )
    train(recipe, "distill", console)
    predict(recipe, console)
    table = fleet.store.expect_ref(pin(fleet.recipe(), "predict")).tables["predict"]
    hits = n_labelled = 0
    for shard in table.shards:
        for row in fleet.store.every(Predict, table.fingerprint, [shard]):
            target = fleet.target_row(row.frame_id).label
            hits += np.count_nonzero((row.label == target) & (target > 0))
            n_labelled += np.count_nonzero(target)
    assert hits / n_labelled > 0.95
    assert evaluate(recipe, console).scores["seen"].mean_iou > 0.9


def test_pretraining_brings_superpoints_to_their_prompts(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe("pretrain.epochs=12", "pretrain.lr=0.2")
    path = train(recipe, "pretrain", console)
    losses = [event["total"] for event in log_of(fleet, "pretrain", "epoch")]
    assert losses[-1] < 0.5 * losses[0]
    assert checkpoint.load(path).weights["final.kernel"].shape[1] == fleet.text.shape[1], "as wide as prompt vectors"


def test_distillation_starts_from_the_finished_pretraining(fleet: Any, console: Console, capsys: Any) -> None:
    recipe = fleet.recipe("distill.init=pretrain")
    with pytest.raises(TrainerError, match=r"make pretrain RECIPE=\S*street"):
        train(recipe, "distill", console)
    path = train(recipe, "pretrain", console)
    train(recipe, "distill", console)
    shown = capsys.readouterr().out
    assert "left out: final.kernel, final.bias\n" in shown
    distilled = checkpoint.read_document(fleet.folder / "runs/street/distill/epoch-0002.safetensors")
    assert told(distilled.identity).init == checkpoint.read_document(path).weights


def test_an_unfinished_pretraining_is_not_used_by_accident(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = fleet.recipe("distill.init=pretrain")
    interrupted_after_one_epoch(recipe, "pretrain", console, monkeypatch)
    with pytest.raises(TrainerError, match="has finished 1 of 2 epochs"):
        train(recipe, "distill", console)
    named = fleet.recipe(f"distill.init={fleet.folder}/runs/street/pretrain/epoch-0001.safetensors")
    train(named, "distill", console)


def test_training_needs_neither_labels_nor_the_data_itself(fleet: Any, console: Console) -> None:
    fleet.drop_table("label")
    assert not Path(fleet.recipe().data.root).exists()
    train(fleet.recipe(), "pretrain", console)
    train(fleet.recipe("distill.init=pretrain"), "distill", console)


def test_frames_without_superpoints_or_pseudo_labels_do_no_harm(fleet: Any, console: Console) -> None:
    def unseen(name: str) -> Pairs:
        row: Pairs = fleet.pairs_row(name)
        rows_of_pairs = ("point", "superpoint", "row_px", "col_px")
        rows_of_superpoints = ("superpoint_view", "superpoint_prompt", "vector")
        return replace(row, **{name: getattr(row, name)[:0] for name in rows_of_pairs + rows_of_superpoints})

    def unlabelled(name: str) -> Target:
        row: Target = fleet.target_row(name)
        return replace(row, label=np.zeros_like(row.label))

    fleet.put("pairs", lambda name: fleet.pairs_row(name) if name == "a1" else unseen(name))
    fleet.put("target", lambda name: fleet.target_row(name) if name == "b1" else unlabelled(name))
    train(fleet.recipe(), "pretrain", console)
    train(fleet.recipe(), "distill", console)
    assert len(log_of(fleet, "distill", "epoch")) == 2


def test_a_run_says_what_it_did(fleet: Any, console: Console, capsys: Any) -> None:
    fleet.put("target", fleet.failing(fleet.target_row, ["a1"]))
    train(fleet.packed("data.exclude=['b0']", "distill.seed=3"), "distill", console)
    (start,) = log_of(fleet, "distill", "start")
    assert start["seed"] == 3
    assert start["frames"] == 3
    assert start["left_out"] == {"failed in stage target": ["a1"], "excluded by data.exclude": ["b0"]}
    assert start["tables"]["points"]["shards"].keys() == {"scene-0061", "scene-0655"}
    assert start["versions"]["torch"] == torch.__version__
    epochs = log_of(fleet, "distill", "epoch")
    assert [event["epoch"] for event in epochs] == [1, 2]
    assert all(0 < event["data_wait_share"] < 1 and event["frames_per_second"] > 0 for event in epochs)
    assert all(math.isclose(e["total"], e["cross_entropy"] + e["lovasz"], rel_tol=1e-5) for e in epochs)
    assert list((fleet.folder / "runs/street/distill/tensorboard").iterdir())
    shown = capsys.readouterr().out
    assert "3 frames of 2 scenes; left out: 1 failed in stage target, 1 excluded by data.exclude" in shown


def test_a_checkpoint_names_what_it_saw_and_the_store_keeps_it(fleet: Any, console: Console) -> None:
    document = checkpoint.read_document(train(fleet.recipe(), "pretrain", console))
    ref = fleet.store.expect_ref(pin(fleet.recipe(), "pretrain"))
    assert told(document.tables).keys() == ref.tables.keys() == {"points", "pairs", "text"}
    for stage, table in fleet.ref().tables.items():
        if stage in ref.tables:
            assert told(document.tables)[stage].fingerprint == ref.tables[stage].fingerprint == table.fingerprint
    assert [shard.shard for shard in ref.tables["points"].shards] == ["scene-0061", "scene-0655"]
    assert (document.task, document.epoch, document.step, document.seed) == ("pretrain", 2, 4, 0)
    assert document.ontology == Dictionary("street", 3)
    assert document.config["voxels"]["size_m"] == 0.4


def test_the_weights_do_not_depend_on_the_number_of_workers(fleet: Any, console: Console, tmp_path: Path) -> None:
    alone = train(fleet.recipe(f"run.runs={tmp_path}/alone"), "pretrain", console)
    two = train(fleet.recipe(f"run.runs={tmp_path}/two", "run.loader_workers=2"), "pretrain", console)
    assert same_tensors(alone, two)


def one_step(fleet: Any, console: Console, *overrides: str) -> tuple[dict[str, Tensor], checkpoint.Checkpoint]:
    """Return the weights that a step starts from, and the checkpoint after it."""
    settings = ("distill.epochs=1", "distill.batch_size=5", "distill.lr_trunk=0.2", "distill.weight_decay=0")
    recipe = fleet.recipe(*settings, *overrides)
    network = build_network(recipe.network, 1, 4, Minkowski(), generator=torch.Generator().manual_seed(0))
    before = {name: one.detach() for name, one in network.named_parameters()}
    return before, checkpoint.load(train(recipe, "distill", console))


def test_a_long_gradient_is_shortened(fleet: Any, console: Console) -> None:
    before, after = one_step(fleet, console, "distill.clip_norm=0.01")
    moved = torch.cat([(after.weights[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.2 * 0.01, rel=1e-3)


def test_a_moving_average_is_what_counts_where_it_is_kept(fleet: Any, console: Console) -> None:
    settings = ("distill.ema_decay=0.75", "distill.keep_every=1", "distill.batch_size=5")
    last = train(fleet.recipe("distill.epochs=3", *settings), "distill", console)
    steps = [checkpoint.load(checkpoint.epoch_path(last.parent, epoch)) for epoch in (1, 2, 3)]
    one, two, three = ({name: step.tensors[f"model.{name}"] for name in step.weights} for step in steps)
    after = steps[-1]
    assert torch.equal(steps[0].weights["final.kernel"], one["final.kernel"]), "the weights before count nothing"
    for name in ("conv0p1s1.kernel", "final.kernel", "final.bias"):
        mean = (one[name] * 0.75**2 + two[name] * 0.75 + three[name]) / (0.75**2 + 0.75 + 1)
        torch.testing.assert_close(after.weights[name], mean)
    assert after.document.weights == checkpoint.weights_digest(after.weights)
    assert torch.equal(after.weights["bn0.bn.running_mean"], after.tensors["model.bn0.bn.running_mean"])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_about_the_same(fleet: Any, console: Console, precision: str) -> None:
    _, exact = one_step(fleet, console)
    settings = (f"distill.precision={precision}", f"run.runs={fleet.folder}/low")
    _, low = one_step(fleet, console, *settings)
    assert told(low.document.loss)["total"] == pytest.approx(told(exact.document.loss)["total"], rel=1e-2)
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in low.weights.values())


# -- how it goes on ----------------------------------------------------------------------------------------------------


def interrupted_after_one_epoch(
    recipe: Any, task: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> KeyboardInterrupt:
    """Train until the first checkpoint is written, then press Ctrl-C."""
    prune = checkpoint.prune

    def press(folder: Path, keep_every: int) -> None:
        prune(folder, keep_every)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(checkpoint, "prune", press)
        train(recipe, task, console)
    return caught.value


def asked_to_end_in_its_fifth_step(recipe: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> KeyboardInterrupt:
    """Distil until SIGTERM comes in the fifth step: with batches of two frames, the second of three in an epoch."""
    agree, n_steps = trainer_train.agree, 0

    def press(*arguments: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return agree(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt) as caught:
        patch.setattr(trainer_train, "agree", press)
        train(recipe, "distill", console)
    return caught.value


@pytest.mark.parametrize(("task", "optimiser"), [("pretrain", "sgd"), ("distill", "sgd"), ("distill", "adamw")])
def test_one_epoch_and_one_resumed_equal_two_bit_for_bit(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, task: Any, optimiser: str
) -> None:
    chosen = f"{task}.optimiser={optimiser}"
    whole = train(fleet.recipe(f"run.runs={tmp_path}/whole", chosen), task, console)
    recipe = fleet.recipe(f"run.runs={tmp_path}/parts", chosen)
    stopped = interrupted_after_one_epoch(recipe, task, console, monkeypatch)
    assert "1 of 2 epochs are finished and kept" in str(stopped)
    torch.rand(5)  # whatever happens in between
    parts = train(recipe, task, console)
    assert same_tensors(whole, parts)
    assert checkpoint.read_document(parts).step == checkpoint.read_document(whole).step


ALL_AT_ONCE = (
    "distill.lovasz=scan",
    "distill.accumulate=2",
    "distill.ema_decay=0.9",
    "distill.clip_norm=1",
    "distill.precision=float16",
    "distill.optimiser=adamw",
)


@pytest.mark.parametrize("overrides", [(), ALL_AT_ONCE], ids=["plain", "all at once"])
def test_a_run_that_is_asked_to_end_saves_before_the_next_step_and_goes_on_bit_for_bit(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overrides: tuple[str, ...]
) -> None:
    overrides = ("distill.batch_size=2", *overrides)
    whole = train(fleet.recipe(*overrides, f"run.runs={tmp_path}/whole"), "distill", console)
    stopped = asked_to_end_in_its_fifth_step(fleet.recipe(*overrides), console, monkeypatch)
    assert "1 of 2 epochs and the state in the middle of the next one are finished and kept" in str(stopped)
    running = fleet.folder / "runs/street/distill/running.safetensors"
    document = checkpoint.read_document(running)
    assert (document.epoch, document.step, told(document.so_far).batches) == (1, 5, 2)
    torch.rand(5)  # whatever happens in between
    parts = train(fleet.recipe(*overrides), "distill", console)
    assert same_tensors(whole, parts)
    assert checkpoint.read_document(whole).loss == checkpoint.read_document(parts).loss
    assert not running.exists()


def test_a_state_saved_in_the_middle_of_an_epoch_changes_no_result(
    fleet: Any, console: Console, tmp_path: Path
) -> None:
    rarely = train(fleet.recipe("run.checkpoint_minutes=0", f"run.runs={tmp_path}/rarely"), "distill", console)
    often = train(fleet.recipe("run.checkpoint_steps=1"), "distill", console)
    assert same_tensors(rarely, often)


def test_a_run_that_was_killed_after_its_last_epoch_has_its_report_and_curve_all_the_same(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = fleet.recipe("distill.epochs=1")

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(checkpoint, "prune", killed)
        train(recipe, "distill", console)
    train(recipe, "distill", console)
    report = json.loads((fleet.folder / "runs/street/distill/run.json").read_text())
    assert report["state"] == "finished"
    assert [epoch["epoch"] for epoch in report["curves"]] == [1]


def test_a_line_of_the_log_that_was_cut_off_swallows_no_other(fleet: Any, console: Console) -> None:
    first = train(fleet.recipe("distill.keep_every=1"), "distill", console)
    first.unlink()
    log = first.with_name("log.jsonl")
    log.write_text(log.read_text() + '{"event": "st')
    train(fleet.recipe(), "distill", console)
    found = run_log(read_lines(log).documents)
    assert [start.epoch for start in found.starts] == [0, 1]
    assert [line.epoch for line in found.epochs] == [1, 2]


def test_weights_that_are_not_finite_are_never_kept(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of the last step was finite: nothing else would say that all is lost."""
    follow = Learner.optimizer_step

    def overflow(learner: Learner) -> None:
        follow(learner)
        with torch.no_grad():
            learner.network.get_parameter("final.bias")[0, 1] = torch.inf

    monkeypatch.setattr(Learner, "optimizer_step", overflow)
    with pytest.raises(TrainerError, match=r"1 tensors of the network are not finite any more \(final.bias\)"):
        train(fleet.recipe("distill.epochs=1", "distill.batch_size=5"), "distill", console)
    assert not list((fleet.folder / "runs/street/distill").glob("*.safetensors"))


def test_how_voxels_get_labels_is_nothing_to_pretraining(fleet: Any, console: Console, capsys: Any) -> None:
    path = train(fleet.recipe(), "pretrain", console)
    assert train(fleet.recipe("voxels.label=first"), "pretrain", console) == path
    assert "is finished" in capsys.readouterr().out
    assert not any("voxels.label" in line for line in told(checkpoint.read_document(path).departures))


def test_what_random_views_do_with_pairs_is_nothing_to_distillation(fleet: Any, console: Console, capsys: Any) -> None:
    path = train(fleet.recipe(), "distill", console)
    assert train(fleet.recipe("augment.crop_min_pairs=51", "augment.cuboids=false"), "distill", console) == path
    assert "is finished" in capsys.readouterr().out
    assert not any("augment" in line for line in told(checkpoint.read_document(path).departures))
    with pytest.raises(TrainerError, match=r"augment.flip"):
        train(fleet.recipe("augment.flip=false"), "distill", console)


def test_a_frame_of_a_single_voxel_is_named(fleet: Any, console: Console) -> None:
    def tiny(row: Any) -> Any:
        return replace(row, **{name: value[:1] for name, value in vars(row).items() if isinstance(value, np.ndarray)})

    fleet.put("points", lambda name: replace(tiny(fleet.points_row(name)), n_points=1))
    fleet.put("target", lambda name: tiny(fleet.target_row(name)))
    with pytest.raises(TrainerError, match=r"frames [ab]\d together make a single voxel in some layer"):
        train(fleet.recipe("distill.batch_size=1"), "distill", console)


def test_a_worker_that_is_lost_is_a_sentence(fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = samples.class_sample

    def vanish(*arguments: Any) -> Any:
        return os._exit(9) if get_worker_info() else sample(*arguments)

    monkeypatch.setattr(samples, "class_sample", vanish)
    with pytest.raises(TrainerError, match=r"a process of the loader was lost .*lower run.loader_workers"):
        train(fleet.recipe("run.loader_workers=1"), "distill", console)


# -- how it stops ------------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_a_sentence() -> None:
    assert resolve_device("auto", Minkowski()).type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match=r'run.device is "gpu"'):
        resolve_device("gpu", Minkowski())
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="has no GPU here"):
            resolve_device("cuda", Minkowski())


def test_determinism_needs_one_thread_from_the_start(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with pytest.raises(ConfigError, match="OMP_NUM_THREADS"):
        train(fleet.recipe(), "distill", console)
    train(fleet.recipe("run.deterministic=false"), "distill", console)


def test_a_full_disk_keeps_the_finished_epochs(fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    save = save_file

    def full(tensors: Mapping[str, Tensor], path: Path, metadata: Any) -> None:
        if checkpoint.finished_epochs(path.parent):
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(dict(tensors), path, metadata=metadata)

    with monkeypatch.context() as patch, pytest.raises(TrainerError, match="No space left on device"):
        patch.setattr(checkpoint, "save_file", full)
        train(fleet.recipe(), "distill", console)
    folder = fleet.folder / "runs/street/distill"
    assert [path.name for path in folder.glob("*safetensors*")] == ["epoch-0001.safetensors"]
    assert not list(folder.glob(".tmp-*"))
    train(fleet.recipe(), "distill", console)


def start(fleet: Any, *overrides: str) -> subprocess.Popen[str]:
    options = [word for override in overrides for word in ("--set", override)]
    command = [sys.executable, "-W", "ignore", "-m", "trainer", "distill", str(fleet.recipe_path), *options]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path.name} did not appear"
        time.sleep(0.02)


def test_a_killed_run_goes_on_in_the_middle_of_an_epoch_bit_for_bit(
    fleet: Any, console: Console, tmp_path: Path
) -> None:
    overrides = ("distill.epochs=4", "distill.batch_size=1", "run.checkpoint_steps=3", "run.loader_workers=1")
    whole = train(fleet.recipe(*overrides, f"run.runs={tmp_path}/whole"), "distill", console)
    folder = fleet.folder / "runs/street/distill"

    killed = start(fleet, *overrides)
    wait_for(folder / "running.safetensors", killed)
    killed.kill()
    killed.communicate()
    assert not (folder / "epoch-0004.safetensors").exists()

    parts = train(fleet.recipe(*overrides), "distill", console)
    resumed = log_of(fleet, "distill", "start")[-1]
    assert (resumed["epoch"], resumed["batch"]) > (0, 0), "it went on, not over"
    assert same_tensors(whole, parts)
    assert checkpoint.read_document(whole).loss == checkpoint.read_document(parts).loss


# -- what the recipe says is what is learnt from -----------------------------------------------------------------------
