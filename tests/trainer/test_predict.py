"""Predictions: per point, never "none", and computed once."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from manifests.asked import pin
from manifests.config import ConfigError
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.tables.answers import Predict
from manifests.tables.base import Failed, Rows
from manifests.tables.sensors import Points
from tests.filled import record
from trainer.checkpoints import checkpoint
from trainer.data.augment import view_of
from trainer.data.samples import point_sample
from trainer.errors import TrainerError
from trainer.inference.predict import averaged, classes_of, likeliest, predict, predicted
from trainer.loop.train import train
from trainer.network.minkunet import build_network
from trainer.network.sparse import Minkowski
from trainer.scoring.evaluate import evaluate


def rows_of(fleet: Any, table: TableRef) -> dict[str, Any]:
    rows = (row for shard in table.shards for row in fleet.store.records(Predict, table.fingerprint, shard))
    return {row.frame_id: row for row in rows}


def test_class_none_is_never_predicted() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, -4.0, -5.0]])
    label, confidence = likeliest(logits, 1)
    assert label.tolist() == [[2], [1]]
    assert confidence.tolist() == [[round(255 / (1 + np.exp(-1)))]] * 2, "among the classes alone, both are e : 1"


def row_of(logits: torch.Tensor) -> Predict:
    return predicted("f", *(values.numpy() for values in classes_of(logits)))


def test_the_two_next_likeliest_classes_are_kept_too() -> None:
    halves = torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = torch.stack([halves.log(), halves.flip(0).log(), torch.tensor([0.0, 0.0, -20.0, -20.0])])
    found = row_of(torch.nn.functional.pad(logits, (1, 0), value=9.0))
    assert found.label.tolist() == [1, 4, 1], "of two equally likely ones the first comes first"
    assert found.runner_up.tolist() == [[2, 3], [3, 2], [2, 0]], "what has no probability has no name"
    assert found.confidence.tolist() == [128, 128, 128]
    assert found.runner_up_confidence.tolist() == [[76, 38], [76, 38], [128, 0]]
    two_classes = row_of(torch.tensor([[0.0, 1.0, 1.0]]))
    assert (two_classes.label.tolist(), two_classes.runner_up.tolist()) == ([1], [[2, 0]])


def test_every_point_gets_the_class_of_its_voxel(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe()
    path = train(recipe, "distill", console)
    row = rows_of(fleet, predict(recipe, console))["v1"]

    network = build_network(recipe.network, 1, 4, Minkowski()).eval()
    checkpoint.load_weights(checkpoint.load(path), network)
    sample = point_sample(recipe.voxels, 1, Rows(fleet.points_row("v1")), np.random.default_rng(0))
    with torch.no_grad():
        label = likeliest(network(sample.coords, sample.features), 1)[0][:, 0]
    agree = row.label == label[sample.point_voxel].numpy()
    assert agree.mean() > 0.999  # the frame was predicted in a batch of two
    assert set(np.unique(row.label)) <= {1, 2, 3}
    assert row.confidence.min() >= 255 // 3


def test_views_are_averaged_as_probabilities_of_the_classes() -> None:
    views = [torch.tensor([[9.0, 0.0, np.log(3)]]), torch.tensor([[-9.0, np.log(3), 0.0]]), torch.tensor([[0.0] * 3])]
    # the second class has 3/4, 1/4 and 1/2
    assert averaged(views).exp().tolist() == [pytest.approx([1.0, 0.5, 0.5])]
    sure = [torch.tensor([[0.0, 200.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 200.0, 0.0]])]
    assert averaged(sure)[0, 3] == -torch.inf
    label, confidence = likeliest(averaged(sure), 2)
    assert (label.tolist(), confidence.tolist()) == ([[1, 2]], [[128, 128]])


def test_predictions_may_be_averaged_over_turned_and_mirrored_views(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe("predict.views=3")
    path = train(recipe, "distill", console)
    table = predict(recipe, console)
    rows = rows_of(fleet, table)

    network = build_network(recipe.network, 1, 4, Minkowski()).eval()
    checkpoint.load_weights(checkpoint.load(path), network)
    sweep = fleet.points_row("v1")
    logits = []
    for xyz_m in (sweep.xyz_m, view_of(sweep.xyz_m, 1), view_of(sweep.xyz_m, 2)):
        turned = Rows(replace(sweep, xyz_m=xyz_m))
        sample = point_sample(recipe.voxels, 1, turned, np.random.default_rng(0))
        with torch.no_grad():
            logits.append(network(sample.coords, sample.features)[sample.point_voxel])
    label, confidence = (column[:, 0] for column in likeliest(averaged(logits), 1))
    assert (rows["v1"].label == label.numpy()).mean() > 0.999  # the frame was predicted in a batch of two
    assert np.abs(rows["v1"].confidence.astype(int) - confidence.numpy().astype(int)).max() <= 2

    plain = predict(fleet.recipe(), console)
    assert plain.fingerprint != table.fingerprint, "how many views there are is part of what a prediction is"
    with pytest.raises(StoreError, match=r"are of other settings \(views: \(default\) -> 3\); run: make predict"):
        evaluate(recipe, console)
    predict(recipe, console)
    evaluate(recipe, console)


def test_scenes_of_the_split_are_predicted_whole(fleet: Any, console: Console) -> None:
    fleet.put("points", fleet.failing(fleet.points_row, ["v0"]))
    recipe = fleet.packed("data.exclude=['v1']")
    train(recipe, "distill", console)
    rows = rows_of(fleet, predict(recipe, console))
    assert list(rows) == ["v0", "v1"]
    assert rows["v0"] == Failed("v0", "points: the sweep is truncated")
    assert len(rows["v1"].label) == 1000, "excluding a frame later must not make the table another"


def test_a_sweep_without_points_has_a_prediction_without_points(fleet: Any, console: Console) -> None:
    fleet.put("points", lambda name: record(Points, frame_id=name) if name == "v0" else fleet.points_row(name))
    train(fleet.recipe(), "distill", console)
    for override in ("run.batch_size=1", "run.batch_size=2"):
        table = predict(fleet.recipe(override), console)
        assert {name: len(row.label) for name, row in rows_of(fleet, table).items()} == {"v0": 0, "v1": 1000}
        for shard in table.shards:
            fleet.store.forget("predict", table.fingerprint, shard)


def test_what_is_there_is_not_computed_again(fleet: Any, console: Console, capsys: Any) -> None:
    recipe = fleet.recipe("predict.split=all")
    train(recipe, "distill", console)
    first = predict(recipe, console)
    files = {shard.shard: shard.name for shard in first.shards}
    assert set(files) == {"scene-0061", "scene-0655", "scene-0103"}
    times = {path.name: path.stat().st_mtime_ns for path in Path(fleet.folder / "store").rglob("*.parquet")}

    fleet.store.forget("predict", first.fingerprint, first.shards[1])
    again = predict(recipe, console)
    assert "1 shards computed, 2 were there" in capsys.readouterr().out
    assert {shard.shard: shard.name for shard in again.shards} == files, "the same bytes"
    for path in Path(fleet.folder / "store").rglob("*.parquet"):
        assert (path.stat().st_mtime_ns == times[path.name]) == (path.name != first.shards[1].name)
    ref = fleet.store.expect_ref(pin(fleet.recipe(), "predict"))
    assert ref.tables["predict"] == again
    manifest = fleet.store.read_manifest("predict", again.fingerprint)
    assert manifest.identity.needs["points"] == fleet.ref().tables["points"].fingerprint


def test_other_weights_make_another_table(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe("distill.keep_every=1")
    train(recipe, "distill", console)
    last = predict(recipe, console)
    first = fleet.folder / "runs/street/distill/epoch-0001.safetensors"
    other = predict(fleet.recipe(f"predict.checkpoint={first}"), console)
    assert other.fingerprint != last.fingerprint


def test_predicting_needs_a_checkpoint_that_fits(fleet: Any, console: Console) -> None:
    with pytest.raises(TrainerError, match=r"holds no checkpoint; run: make distill RECIPE=\S*street"):
        predict(fleet.recipe(), console)
    pretrained = train(fleet.recipe(), "pretrain", console)
    with pytest.raises(TrainerError, match="predicts no classes"):
        predict(fleet.recipe(f"predict.checkpoint={pretrained}"), console)
    train(fleet.recipe(), "distill", console)
    with pytest.raises(TrainerError, match=r"voxels.size_m: 0.4 -> 0.1"):
        predict(fleet.recipe("voxels.size_m=0.1"), console)
    with pytest.raises(TrainerError, match=r"(?s)is of another recipe than the one at hand.*network.name"):
        predict(fleet.recipe("network.name=minkunet34c"), console)
    with pytest.raises(TrainerError, match="dictionary nuscenes has barrier"):
        named = f"predict.checkpoint={fleet.folder / 'runs/street/distill'}"
        predict(fleet.recipe("data.ontology=nuscenes", named), console)
    with pytest.raises(ConfigError, match="split 'test' of nuscenes is empty here"):
        predict(fleet.recipe("predict.split=test"), console)


def test_a_student_of_tables_that_were_made_anew_since_does_not_predict(fleet: Any, console: Console) -> None:
    train(fleet.recipe(), "distill", console)
    fleet.put("target", lambda name: replace(fleet.target_row(name), seen=np.ones(1000, np.bool_)))
    with pytest.raises(TrainerError, match=r"(?s)table `target`: shard .* was made anew from other files since"):
        predict(fleet.recipe(), console)
    named = f"predict.checkpoint={fleet.folder / 'runs/street/distill'}"
    assert predict(fleet.recipe(named), console), "asked for by name it is taken as it is"


def test_a_student_that_learnt_frames_which_are_excluded_now_does_not_predict(fleet: Any, console: Console) -> None:
    train(fleet.recipe(), "distill", console)
    with pytest.raises(TrainerError, match=r"(?s)data.exclude: \[\] -> \[.a0.\]"):
        predict(fleet.packed("data.exclude=['a0']"), console)


def test_a_student_of_other_scenes_of_the_same_split_file_does_not_predict(fleet: Any, console: Console) -> None:
    split = fleet.folder / "mine.txt"
    split.write_text("scene-0061\n")
    recipe = fleet.recipe(f"distill.split={split}")
    train(recipe, "distill", console)
    split.write_text("# the same scenes\nscene-0061\n")
    assert predict(recipe, console)
    split.write_text("scene-0103\n")
    with pytest.raises(TrainerError, match=r"(?s)distill.split: .*scene-0061.* -> .*scene-0103"):
        predict(recipe, console)


def test_a_student_of_other_initial_weights_does_not_predict(fleet: Any, console: Console) -> None:
    started = fleet.recipe("distill.init=pretrain")
    train(started, "pretrain", console)
    train(started, "distill", console)
    assert predict(started, console)
    with pytest.raises(TrainerError, match=r"(?s)is of another recipe than the one at hand.*distill.init: .*pretrain"):
        predict(fleet.recipe(), console)
    with pytest.raises(TrainerError, match=r"run `pretrain`, from which it started: pretrain.seed: .default. -> 3"):
        predict(fleet.recipe("distill.init=pretrain", "pretrain.seed=3"), console)
    train(fleet.recipe("pretrain.seed=3"), "pretrain", console, fresh=True)
    with pytest.raises(TrainerError, match="it started from other weights of `pretrain` than those in"):
        predict(started, console)
