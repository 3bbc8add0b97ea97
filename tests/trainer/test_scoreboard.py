"""One table of all scores: what is in it, in which order, and what cannot stand side by side."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from manifests.fingerprint import Settings
from manifests.ontology import load_ontology
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import TableRef
from manifests.storage.store import Store
from tests.records import evaluation, part, refined
from tests.refs import identity, newest, put_ref
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.loop.train import train
from trainer.records.record import reads_labels
from trainer.scoring import scoreboard
from trainer.scoring.evaluate import content_of_split
from trainer.scoring.scoreboard import Line, class_tables, read_lines, summary_table


def scores(mean_iou: float) -> dict[str, Any]:
    return dict.fromkeys(("all", "seen", "unseen"), part(mean_iou, iou=[mean_iou, None, 1.0]))


def put(recipe: Any, name: str, of: str, mean_iou: float, **changes: Any) -> None:
    asked = {"split": recipe.evaluate.split, "absent": recipe.evaluate.absent}
    document = evaluation(of=of, **{"scores": scores(mean_iou), **asked, **changes})
    recipe.folder().mkdir(parents=True, exist_ok=True)
    (recipe.folder() / name).write_text(json.dumps(document, indent=1))


def test_lines_stand_in_the_order_of_what_is_scored_before_and_after_refinement(fleet: Any) -> None:
    recipe = fleet.recipe()
    put(recipe, "evaluate-tree.json", "tree", 0.2)
    put(recipe, "evaluate.json", "prediction", 0.4)
    put(recipe, "evaluate-afi.json", "prediction", 0.45, refine=refined("afi"), scores_before=scores(0.4))
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5)
    lines = read_lines([recipe])
    assert [(line.title, line.mean_iou["seen"]) for line in lines] == [
        ("pseudo-labels", 0.5),
        ("student", 0.4),
        ("student + AFI", 0.45),
        ("decision tree", 0.2),
    ]


def test_recipes_share_the_scores_that_are_equal(fleet: Any, tmp_path: Any) -> None:
    first, second = fleet.recipe(), fleet.recipe(f"run.runs={tmp_path}/elsewhere")
    for recipe in (first, second):
        put(recipe, "evaluate-pseudo.json", "pseudo", 0.5)
    put(first, "evaluate.json", "prediction", 0.4)
    put(second, "evaluate.json", "prediction", 0.3)
    assert [line.title for line in read_lines([first, second])] == [
        "pseudo-labels", "student (street)", "student (street)",
    ]  # fmt: skip


def test_what_a_supervised_teacher_made_is_marked_and_yardsticks_are_not(fleet: Any) -> None:
    recipe = fleet.recipe()
    put(recipe, "evaluate-tree.json", "tree", 0.2)
    put(recipe, "evaluate.json", "prediction", 0.4)
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5)
    store = Store.open(recipe.run.store)
    ref = newest(store, recipe.name)
    table = TableRef("segment", "5" * 12, ())
    teacher: Settings = {"name": "composite", "trained_on": "mapillary", "supervised": True}
    store.write_manifest(Manifest("segment", table.fingerprint, identity("segment", {"teacher": teacher}), ()))
    put_ref(store, recipe, {**ref.tables, "segment": table})
    assert [line.title for line in read_lines([recipe])] == [
        "pseudo-labels, supervised teacher", "student, supervised teacher", "decision tree",
    ]  # fmt: skip
    assert reads_labels(recipe, "distill", None, teacher)


def test_tables_show_percent_and_a_dash_for_nothing() -> None:
    mean_iou = {"seen": 0.5, "unseen": None, "all": 0.25}
    lines = [Line("student", mean_iou, {"seen": [0.5, None], "unseen": [None, 0.125]})]
    console = Console(width=120, record=True, file=StringIO())
    console.print(summary_table(lines), *class_tables(lines, ["car", "road"]))
    shown = console.export_text()
    assert "50.00" in shown and "25.00" in shown
    assert "50.0" in shown and "12.5" in shown
    assert "unseen points" in shown


def test_what_cannot_be_compared_is_refused(fleet: Any) -> None:
    recipe = fleet.recipe()
    with pytest.raises(TrainerError, match="no scores of street yet; run: make predict evaluate"):
        read_lines([recipe])
    put(recipe, "evaluate.json", "prediction", 0.4)
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5, frames=3)
    with pytest.raises(TrainerError, match="of different frames or points"):
        read_lines([recipe])
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5, classes=["cat"])
    with pytest.raises(TrainerError, match="other classes than recipe street has"):
        read_lines([recipe])
    (recipe.folder() / "evaluate-pseudo.json").write_text("{")
    with pytest.raises(TrainerError, match=r"evaluate-pseudo.json is no evaluation that can be read"):
        read_lines([recipe])


def test_scores_of_the_same_things_from_two_recipes_bear_their_names(fleet: Any, tmp_path: Any) -> None:
    """Two teachers' pseudo-labels are two things, and equal scores of two students are two results."""
    first = fleet.recipe()
    second = replace(first, name="lane")
    for recipe, pseudo in ((first, 0.5), (second, 0.6)):
        put(recipe, "evaluate-pseudo.json", "pseudo", pseudo)
        put(recipe, "evaluate-tree.json", "tree", 0.2)
        put(recipe, "evaluate.json", "prediction", 0.4)
    assert [(line.title, line.mean_iou["all"]) for line in read_lines([first, second])] == [
        ("pseudo-labels (street)", 0.5),
        ("pseudo-labels (lane)", 0.6),
        ("student (street)", 0.4),
        ("student (lane)", 0.4),
        ("decision tree", 0.2),
    ]


def test_labels_before_they_were_corrected_are_told_from_those_that_are_learnt(fleet: Any) -> None:
    """With target.labels = "correct", refinement starts from table `group`, and not from what is learnt."""
    recipe = fleet.recipe()
    target = fleet.ref().tables["target"].fingerprint
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5, tables={"target": target})
    tables = {"label": "c", "group": "b", "target": target}
    changes = {"refine": refined("afi"), "scores_before": scores(0.3), "tables": tables}
    put(recipe, "evaluate-pseudo-afi.json", "pseudo", 0.5, **changes)
    assert [line.title for line in read_lines([recipe])] == [
        "pseudo-labels, not corrected", "pseudo-labels + AFI", "pseudo-labels",
    ]  # fmt: skip


def nothing_there(*_: object) -> None:
    raise StoreError("nothing")


def test_scores_of_what_has_been_made_anew_are_marked(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = fleet.recipe("distill.epochs=1")
    weights = checkpoint.read_document(train(recipe, "distill", console)).weights
    target = fleet.ref().tables["target"].fingerprint
    put(recipe, "evaluate.json", "prediction", 0.4, weights=weights)
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5, tables={"target": target})
    assert [line.title for line in read_lines([recipe])] == ["pseudo-labels", "student"]
    edited = read_lines([fleet.recipe("distill.epochs=2")])
    assert [line.title for line in edited] == ["pseudo-labels", "student, TRAINED OTHERWISE"]
    put(recipe, "evaluate.json", "prediction", 0.4, weights="0" * 12)
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5, tables={"target": "0" * 12})
    assert [line.title for line in read_lines([recipe])] == ["pseudo-labels, OUT OF DATE", "student, OUT OF DATE"]
    points = {"points": {"scene-0061": "another.shard"}}
    put(recipe, "evaluate.json", "prediction", 0.4, weights=weights, contents=points)
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5, tables={"target": target}, contents=None)
    titles = ["pseudo-labels, SHARDS UNKNOWN", "student, OUT OF DATE"]
    assert [line.title for line in read_lines([recipe])] == titles
    put(recipe, "evaluate-pseudo.json", "pseudo", 0.5, contents=points)
    with monkeypatch.context() as patch:
        patch.setattr(scoreboard, "tables_of", nothing_there)
        assert read_lines([recipe])[0].title == "pseudo-labels, TABLES NOT THERE"
    put(recipe, "evaluate.json", "prediction", 0.4, weights="0" * 12, checkpoint="else/where.pt")
    put(recipe, "evaluate-pseudo.json", "prediction", 0.5, weights=weights, epoch=1, epochs=2)
    assert [line.title for line in read_lines([recipe])] == ["student, epoch 1 of 2", "student, else/where.pt"]


def test_scores_over_another_split_than_the_recipe_names_are_marked(fleet: Any, tmp_path: Any) -> None:
    split = tmp_path / "mine.txt"
    split.write_text("scene-0061\n")
    recipe = fleet.recipe(f"evaluate.split={split}")
    named, content = ["student"], content_of_split(str(split))
    put(recipe, "evaluate.json", "prediction", 0.4, split="the same by another name", split_content=content)
    assert [line.title for line in read_lines([recipe])] == named
    split.write_text("scene-0103\n")
    assert [line.title for line in read_lines([recipe])] == ["student, SCORED OTHERWISE"]
    put(recipe, "evaluate.json", "prediction", 0.4)
    assert [line.title for line in read_lines([recipe])] == named
    assert read_lines([fleet.recipe("evaluate.split=all")])[0].title == "student, SCORED OTHERWISE"
    put(recipe, "evaluate.json", "prediction", 0.4, absent="one")
    assert [line.title for line in read_lines([recipe])] == ["student, SCORED OTHERWISE"]


@pytest.mark.parametrize("changes", [{"absent": "one"}, {"shards": ["scene-0655"]}])
def test_scores_by_another_rule_or_of_other_scenes_do_not_stand_side_by_side(
    fleet: Any, changes: dict[str, Any]
) -> None:
    recipe = fleet.recipe()
    put(recipe, "evaluate.json", "prediction", 0.4, absent="exclude", shards=["scene-0103"])
    put(recipe, "evaluate-tree.json", "tree", 0.4, **{"absent": "exclude", "shards": ["scene-0103"], **changes})
    with pytest.raises(TrainerError, match="of different frames or points, or absent classes count differently"):
        read_lines([recipe])


def test_recipes_of_other_classes_do_not_stand_side_by_side(fleet: Any) -> None:
    """IoU by class would stand under the names that the first one gives them."""
    first = fleet.recipe()
    second = replace(first, name="lane", ontology=load_ontology("nuscenes"))
    put(first, "evaluate.json", "prediction", 0.4)
    put(second, "evaluate.json", "prediction", 0.4, classes=list(second.ontology.class_names[1:]))
    with pytest.raises(TrainerError, match="recipes street and lane do not have the same classes"):
        read_lines([first, second])


def test_scores_after_a_vote_say_so(fleet: Any) -> None:
    recipe = fleet.recipe()
    for name in ("vote", "vote+afi"):
        changes = {"refine": refined(name), "scores_before": scores(0.4)}
        put(recipe, f"evaluate-{name.replace('+', '-')}.json", "prediction", 0.5, **changes)
    assert [line.title for line in read_lines([recipe])] == ["student", "student + VOTE + AFI", "student + VOTE"]
