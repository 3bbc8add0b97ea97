"""The learning of true labels: what learns, from which part of the data, and that its result predicts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from manifests.config import ConfigError
from manifests.recipe import load_recipe
from manifests.records.checkpoint import CheckpointRecord
from manifests.sections.training import FinetuneConfig, ProbeConfig
from manifests.splits import load_split
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from tests.records import told
from tests.refs import identity
from trainer.checkpoints import checkpoint
from trainer.data.tables import Every, Tables, select_frames
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.loop.train import train
from trainer.scoring.evaluate import evaluate


@pytest.fixture
def distilled(fleet: Any, console: Console) -> Path:
    """The checkpoint of a distillation."""
    return train(fleet.recipe(), "distill", console)


def document(fleet: Any, task: str, epoch: int = 1) -> CheckpointRecord:
    return checkpoint.read_document(checkpoint.epoch_path(fleet.folder / "runs/street" / task, epoch))


def test_the_defaults_are_those_of_the_paper() -> None:
    """method.md 7 and table (e): momentum, dampening and decay are those of all tasks."""
    probe, finetune = asdict(ProbeConfig()), asdict(FinetuneConfig())
    for settings in (probe, finetune):
        assert (settings["epochs"], settings["batch_size"], settings["drop_last"]) == (30, 16, True)
        assert (settings["momentum"], settings["dampening"], settings["weight_decay"]) == (0.9, 0.1, 1e-4)
        assert settings["batch_norm_momentum"] == 0.02
    assert (probe["lr"], probe["every_scene"]) == (0.05, 1)
    assert (finetune["lr_trunk"], finetune["lr_head"], finetune["every_scene"]) == (0.02, 2.0, 100)


def test_a_probe_moves_nothing_but_the_last_layer(fleet: Any, console: Console, distilled: Path) -> None:
    path = train(fleet.recipe("probe.epochs=1", "probe.batch_size=2"), "probe", console)
    before, after = checkpoint.load(distilled).weights, checkpoint.load(path).weights
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"final.kernel", "final.bias"}, "statistics of batch norm stay as well"


def test_fine_tuning_takes_the_head_over_and_moves_everything(fleet: Any, console: Console, distilled: Path) -> None:
    words = ("finetune.epochs=1", "finetune.every_scene=1", "finetune.batch_size=2", "finetune.lr_head=0")
    path = train(fleet.recipe(*words), "finetune", console)
    before, after = checkpoint.load(distilled).weights, checkpoint.load(path).weights
    assert torch.equal(before["final.kernel"], after["final.kernel"]), "taken over, and here at rest"
    assert not torch.equal(before["conv0p1s1.kernel"], after["conv0p1s1.kernel"])
    assert told(document(fleet, "finetune").identity).init == checkpoint.read_document(distilled).weights
    assert document(fleet, "finetune").config["network"]["batch_norm_momentum"] == 0.02
    assert set(told(document(fleet, "finetune").tables)) == {"points", "label"}


def test_all_labels_are_learnt_predicted_and_scored(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe(
        "supervised.epochs=20",
        "supervised.batch_size=5",
        "supervised.lr_head=0.2",
        "supervised.batch_norm_momentum=0.3",
        "network.block_batch_norm_momentum=0.3",
        "augment.rotate=false",
        "augment.flip=false",
        "predict.of=supervised",
        "predict.split=train",
        "evaluate.split=train",
    )
    fleet.drop_table("pairs")
    train(recipe, "supervised", console)
    predict(recipe, console)
    assert evaluate(recipe, console).scores["unseen"].mean_iou > 0.9, "pseudo-labels do not reach there"


def test_a_task_that_has_not_run_is_named(fleet: Any, console: Console) -> None:
    with pytest.raises(TrainerError, match=r'probe.init is "distill".*make distill RECIPE=\S*street'):
        train(fleet.recipe(), "probe", console)
    with pytest.raises(TrainerError, match=r"make finetune RECIPE=\S*street"):
        predict(fleet.recipe("predict.of=finetune"), console)
    with pytest.raises(TrainerError, match="finetune: there is no such checkpoint"):
        train(fleet.recipe("distill.init=finetune"), "distill", console)


def test_a_folder_of_a_run_may_start_another(fleet: Any, console: Console, distilled: Path) -> None:
    train(fleet.recipe(f"probe.init={distilled.parent}", "probe.epochs=1"), "probe", console)
    assert told(document(fleet, "probe").identity).init == checkpoint.read_document(distilled).weights


def test_labels_of_another_dictionary_teach_nothing(fleet: Any, console: Console) -> None:
    table = fleet.ref().tables["label"]
    fleet.store.write_manifest(Manifest("label", table.fingerprint, identity("label", {"ontology": {}}), table.shards))
    with pytest.raises(StoreError, match="made with another class dictionary"):
        train(fleet.recipe(), "supervised", console)
    fleet.drop_table("label")
    with pytest.raises(StoreError, match=r"make label RECIPE=\S*street"):
        train(fleet.recipe(), "supervised", console)


# -- one percent -------------------------------------------------------------------------------------------------------


def chosen(fleet: Any, scene: int, scan: int, excluded: frozenset[str] = frozenset()) -> list[str]:
    tables = Tables(fleet.store, fleet.ref(), ["points", "label"])
    frames = select_frames(tables, "train", "nuscenes", excluded, Every(scene, scan)).frames
    return [frame.frame_id for frame in frames]


def test_a_part_of_a_split_is_taken_by_scene_or_by_scan(fleet: Any) -> None:
    assert chosen(fleet, 1, 1) == ["a0", "a1", "a2", "b0", "b1"]
    assert chosen(fleet, 2, 1) == ["b0", "b1"]
    assert chosen(fleet, 1, 2) == ["a0", "a2", "b1"]
    assert chosen(fleet, 2, 2) == ["b0"]
    assert chosen(fleet, 1, 2, frozenset({"a0"})) == ["a2", "b1"], "what is left out moves nothing else"
    fleet.put("label", fleet.failing(fleet.label_row, ["a0"]))
    assert chosen(fleet, 1, 2) == ["a2", "b1"]


def test_too_few_scenes_for_one_percent_are_a_sentence(fleet: Any, console: Console, distilled: Path) -> None:
    with pytest.raises(ConfigError, match=r'"train" has 2 scenes here.*set every_scene to 2 or less'):
        train(fleet.recipe(), "finetune", console)


def test_one_percent_of_nuscenes_is_seven_scenes_and_of_kitti_192_scans() -> None:
    """The scenes that valeoai/SLidR counts out: the 100th, 200th, ... in the order of the data set."""
    train_scenes = load_split("train", "nuscenes", [f"scene-{number:04d}" for number in range(1200)])
    every = FinetuneConfig().every_scene
    assert train_scenes[every - 1 :: every] == tuple(
        f"scene-{number}" for number in ("0171", "0300", "0435", "0589", "0747", "0959", "1110")
    )
    kitti = load_recipe("kitti_downstream").finetune
    assert len(np.arange(19_130)[:: kitti.every_scan]) == 192
    assert (kitti.lr_trunk, kitti.lr_head, kitti.batch_size, kitti.every_scene) == (0.05, 2.0, 10, 1)
