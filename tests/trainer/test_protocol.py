"""What the paper ran and got, and how a run is held against it."""

from dataclasses import replace
from typing import Any

import pytest

from manifests.fingerprint import Settings
from manifests.recipe import Recipe, load_recipe
from manifests.records.run import Ancestor
from trainer.records.protocol import departures, expected, start_of, teacher_name

TMP = Ancestor(file="tmp", task="pretrain")
STUDENT = Ancestor(file="student", task="distill", initial=TMP)


def test_the_downstream_recipes_are_the_papers() -> None:
    nuscenes, kitti = load_recipe("nuscenes_downstream"), load_recipe("kitti_downstream")
    assert departures(nuscenes.seen_by("probe"), "probe", 28_130, STUDENT) == []
    assert departures(nuscenes.seen_by("finetune"), "finetune", 280, STUDENT) == []
    assert departures(kitti.seen_by("finetune"), "finetune", 192, TMP) == []


def test_the_parity_recipe_departs_in_nothing() -> None:
    recipe = load_recipe("nuscenes_san_parity")
    assert departures(recipe, "pretrain", 24_000, None) == []
    assert departures(recipe, "distill", 28_130, TMP) == []
    baseline = Ancestor(file="official", task="official", n_outputs=64)
    assert departures(recipe, "distill", 28_130, baseline) == ["distill.epochs: 10 -> 5"]


def test_every_departure_is_named() -> None:
    recipe = load_recipe("nuscenes_downstream", ["probe.epochs=3", "voxels.size_m=0.2", "data.version=v1.0-mini"])
    recipe = replace(recipe, probe=replace(recipe.probe, seed=7, init="pretrain"))
    assert departures(recipe.seen_by("probe"), "probe", 300, TMP) == [
        'data.version: "v1.0-trainval" -> "v1.0-mini"',
        "frames: 28130 -> 300",
        "probe.epochs: 30 -> 3",
        "voxels.size_m: 0.1 -> 0.2",
    ]


def test_how_pseudo_labels_were_made_counts_too() -> None:
    recipe = load_recipe("nuscenes_san_parity")
    parity: dict[str, Settings] = {
        "group": {"policy": "last_camera", "occluded": True, "ontology": {}},
        "target": {},
        "points": {"x": 1},
    }
    assert departures(recipe, "distill", 28_130, TMP, parity) == []
    assert departures(recipe, "distill", 28_130, TMP, {"group": {}, "target": {"labels": "vote"}}) == [
        'group.occluded: true -> "default"',
        'group.policy: "last_camera" -> "default"',
        'target.labels: "default" -> "vote"',
    ]


def test_what_the_paper_did_not_run_has_no_departures() -> None:
    recipe: Recipe = load_recipe("kitti_downstream")
    assert departures(recipe, "supervised", 10, None) is None
    assert departures(recipe, "distill", 10, TMP) is None


@pytest.mark.parametrize(
    ("task", "dataset", "initial", "teacher", "refined", "score"),
    [
        ("distill", "nuscenes", TMP, "SAN", False, 47.42),
        ("distill", "nuscenes", TMP, "SAN", True, 47.73),
        ("distill", "nuscenes", Ancestor(file="official", task="official", n_outputs=64), "FC-CLIP", False, 39.00),
        ("distill", "nuscenes", Ancestor(file="official", task="official", n_outputs=768), "CAT-Seg", False, 42.50),
        ("distill", "nuscenes", None, "SAN", False, None),
        ("distill", "nuscenes", TMP, None, False, None),
        ("probe", "nuscenes", STUDENT, "SAN", False, 56.35),
        ("probe", "nuscenes", TMP, "SAN", False, 46.29),
        ("probe", "nuscenes", None, "SAN", False, 8.1),
        ("finetune", "nuscenes", STUDENT, "SAN", False, 51.75),
        ("finetune", "semantic_kitti", TMP, "CAT-Seg", False, 48.14),
        ("finetune", "semantic_kitti", Ancestor(file="official", task="official", n_outputs=64), None, False, 44.6),
        ("probe", "semantic_kitti", TMP, "SAN", False, None),
        ("supervised", "nuscenes", None, None, False, None),
    ],
)
def test_the_row_is_that_of_task_weights_and_teacher(
    task: Any, dataset: str, initial: Any, teacher: str | None, refined: bool, score: float | None
) -> None:
    version = "v1.0-trainval"
    found = expected(task, dataset, version, start_of(initial), teacher, refined)
    assert (found and found.mean_iou_percent) == score


def test_other_data_and_other_starts_have_no_row() -> None:
    assert expected("probe", "nuscenes", "v1.0-mini", "random", None, False) is None
    assert start_of(Ancestor(file="a", task="distill")) is None
    assert start_of(Ancestor(file="a", task="supervised")) is None
    assert teacher_name({"name": "artifacts", "layout": "catseg"}) == "CAT-Seg"
    assert teacher_name({"name": "artifacts", "layout": "auto"}) is None
    assert teacher_name({"name": "clip_dense"}) is None and teacher_name(None) is None
