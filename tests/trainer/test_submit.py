"""Submission files: what the servers of nuScenes lidarseg and SemanticKITTI take, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from manifests.config import ConfigError
from manifests.ontology import load_ontology
from manifests.storage.errors import StoreError
from manifests.tables.answers import Predict
from manifests.tables.sensors import Index
from tests.filled import record
from trainer.errors import TrainerError
from trainer.inference import submit as module
from trainer.inference.predict import predict
from trainer.inference.submit import KITTI_SCANS, LIDARSEG_CLASSES, submit
from trainer.loop.train import train

Labels = dict[str, npt.NDArray[Any]]
"""Labels of the points of a frame, by frame."""

# What learning_map_inv in semantic-kitti.yaml of semantic-kitti-api says of classes 0..19.
OFFICIAL_RAW = [0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81]


def index_row(name: str, **changes: Any) -> Index:
    """Return a row of table `index` for a frame without cameras."""
    path = f"sequences/08/velodyne/00000{name[1]}.bin"
    return record(
        Index, **{"frame_id": name, "lidar_token": f"token-{name}", "lidar_path": path, "n_points": 1000} | changes
    )


@pytest.fixture
def predicted(fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch) -> Labels:
    """The fleet with predictions of split val, and these by frame; its classes pass as those of the challenge."""
    fleet.put("index", index_row)
    recipe = fleet.recipe()
    train(recipe, "distill", console)
    table = predict(recipe, console)
    monkeypatch.setattr(module, "LIDARSEG_CLASSES", recipe.ontology.class_names[1:])
    monkeypatch.setitem(module.LIDARSEG_FRAMES, "val", 2)
    return {row.frame_id: row.label for row in fleet.store.every(Predict, table.fingerprint, table.shards)}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_nuscenes_gets_a_byte_per_point_and_what_the_network_was_given(
    fleet: Any, predicted: Labels, console: Console
) -> None:
    folder = submit(fleet.recipe(), console)
    assert folder == fleet.folder / "runs/street/submission-val"
    names = ["lidarseg/val/token-v0_lidarseg.bin", "lidarseg/val/token-v1_lidarseg.bin", "val/submission.json"]
    assert files(folder) == names
    for name, label in zip(names[:2], predicted.values(), strict=True):
        np.testing.assert_array_equal(np.fromfile(folder / name, np.uint8), label)
    meta = json.loads((folder / names[2]).read_text())["meta"]
    assert {name for name, used in meta.items() if used} == {"use_lidar", "use_external"} and len(meta) == 5
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".submission")] == []


def test_semantic_kitti_gets_raw_labels_of_32_bits(
    fleet: Any,
    predicted: Labels,
    console: Console,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    kitti = module.SemanticKitti({"08": 2}, np.array([0, 10, 40, 50], np.uint32))
    monkeypatch.setitem(module.BENCHMARKS, "nuscenes", lambda recipe, of: kitti)
    monkeypatch.setattr(module.SemanticKitti, "expected", lambda self: {"": 2})  # scenes have other names here
    folder = submit(fleet.recipe(), console, tmp_path / "out")
    assert files(folder) == [f"sequences/08/predictions/00000{number}.label" for number in (0, 1)]
    for name, label in zip(files(folder), predicted.values(), strict=True):
        np.testing.assert_array_equal(np.fromfile(folder / name, "<u4"), np.array([0, 10, 40, 50])[label])


def test_the_inverse_learning_map_is_the_official_one() -> None:
    ontology = load_ontology("semantic_kitti")
    assert ontology.raw_of_class().tolist() == OFFICIAL_RAW
    assert ontology.class_of_raw_labels(ontology.raw_of_class()).tolist() == list(range(20))
    with pytest.raises(ValueError, match="class 'barrier' of dictionary nuscenes has no fine class of that name"):
        load_ontology("nuscenes").raw_of_class()


def test_what_the_benchmarks_know_is_what_they_publish() -> None:
    assert load_ontology("nuscenes").class_names[1:] == LIDARSEG_CLASSES
    assert sum(KITTI_SCANS[name] for name in ["00", "01", "02", "03", "04", "05", "06", "07", "09", "10"]) == 19130
    assert sum(KITTI_SCANS[f"{number}"] for number in range(11, 22)) == 20351


def test_a_submission_that_would_not_be_complete_is_refused(
    fleet: Any, predicted: Labels, console: Console, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setitem(module.LIDARSEG_FRAMES, "val", 6019)
    folder = fleet.folder / "runs/street/submission-val"
    with pytest.raises(StoreError, match=r"not be complete: the split has 6019 frames, 2 are here.*--partial"):
        submit(fleet.recipe(), console)
    assert not folder.exists()
    submit(fleet.recipe(), console, partial=True)
    assert "2 frames in" in (said := capsys.readouterr().out) and "NOT complete" in said

    kitti = module.SemanticKitti({"20": 831, "21": 2721}, np.zeros(4, np.uint32))
    assert module.missing_frames(kitti, {"20": 831}) == ["sequence 21 has 2721 frames, 0 are here"]


def test_a_frame_without_a_prediction_is_named(fleet: Any, console: Console, predicted: Labels) -> None:
    fleet.put("points", fleet.failing(fleet.points_row, ["v0"]))
    recipe = fleet.recipe(f"predict.checkpoint={fleet.folder / 'runs/street/distill'}")  # trained before the change
    predict(recipe, console)
    with pytest.raises(StoreError, match=r"not be complete: v0 \(points: the sweep is truncated\)"):
        submit(recipe, console)


def test_a_folder_is_whole_or_absent_and_never_overwritten(
    fleet: Any, predicted: Labels, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = fleet.recipe(), fleet.folder / "out"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.Lidarseg, "further", full)
        with pytest.raises(TrainerError, match="out cannot be written: No space left on device"):
            submit(recipe, console, out)
    assert [path.name for path in fleet.folder.iterdir() if "out" in path.name] == []
    submit(recipe, console, out)
    with pytest.raises(ConfigError, match="out is there already; remove it, or name another folder with --out"):
        submit(recipe, console, out)


def test_names_from_tables_stay_in_the_folder(fleet: Any, console: Console, predicted: Labels) -> None:
    fleet.put("index", lambda name: index_row(name, lidar_token="../../x", lidar_path="../velodyne/000000.bin"))
    with pytest.raises(StoreError, match=r"sweep token '../../x' is no file name"):
        submit(fleet.recipe(), console)
    with pytest.raises(StoreError, match=r"'../velodyne/000000.bin' is no scan of SemanticKITTI"):
        module.SemanticKitti({}, np.zeros(4, np.uint32)).file(
            index_row("v0", lidar_path="../velodyne/000000.bin"), np.zeros(1, np.uint8)
        )


def test_what_cannot_be_submitted_is_said(
    fleet: Any, console: Console, predicted: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r'predict.split is "all"; nuScenes takes the splits train, val, test'):
        submit(fleet.recipe("predict.split=all"), console)
    with pytest.raises(ConfigError, match="data set folder has no benchmark to submit to"):
        submit(fleet.recipe("data.dataset=folder"), console)
    with pytest.raises(ConfigError, match="class 'car' of dictionary street has no fine class"):
        submit(fleet.recipe("data.dataset=semantic_kitti"), console)
    monkeypatch.setattr(module, "LIDARSEG_CLASSES", LIDARSEG_CLASSES)
    with pytest.raises(ConfigError, match="dictionary street does not have the 16 classes of the lidarseg challenge"):
        submit(fleet.recipe(), console)
