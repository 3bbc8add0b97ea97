"""Training on nothing is refused, and so is what it would have made; rows that are not there are named."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file

from manifests.config import ConfigError
from manifests.records.codec import as_document
from manifests.storage.errors import StoreError
from manifests.tables.labels import Target
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.loop import train as trainer_train
from trainer.loop.train import train

PAIR_COLUMNS = ("point", "superpoint", "row_px", "col_px", "superpoint_view", "superpoint_prompt", "vector")


def without(row: Any, *columns: str) -> Any:
    return replace(row, **{column: getattr(row, column)[:0] for column in columns})


def unlabelled(row: Any) -> Any:
    return replace(row, label=np.zeros_like(row.label))


def runs(fleet: Any) -> list[str]:
    return [path.name for path in (fleet.folder / "runs").rglob("*.safetensors")]


def test_pretraining_without_a_pair_is_refused_before_it_starts(fleet: Any, console: Console) -> None:
    fleet.put("pairs", lambda name: without(fleet.pairs_row(name), *PAIR_COLUMNS))
    with pytest.raises(TrainerError, match="has a pair of a point and a superpoint, so pretrain has nothing") as caught:
        train(fleet.recipe("pretrain.split=train"), "pretrain", console)
    assert "Looked at: 5 frames of 2 scenes, in tables points and pairs" in str(caught.value)
    assert runs(fleet) == []


def test_a_mistyped_split_is_told_before_tables_are_missed(fleet: Any, console: Console) -> None:
    store = f"run.store={fleet.folder / 'elsewhere'}"
    with pytest.raises(ConfigError, match=r"pretrain\.split: unknown split 'tran'"):
        train(fleet.recipe("pretrain.split=tran", store), "pretrain", console)
    with pytest.raises(ConfigError, match=r"predict\.split: unknown split 'tran'"):
        predict(fleet.recipe("predict.split=tran", store), console)


@pytest.mark.parametrize("task", ["distill", "supervised", "probe", "finetune"])
def test_classes_without_a_label_are_refused_before_they_are_learnt(fleet: Any, console: Console, task: Any) -> None:
    fleet.put("target", lambda name: unlabelled(fleet.target_row(name)))
    fleet.put("label", lambda name: unlabelled(fleet.label_row(name)))
    wanted = "a pseudo-label" if task == "distill" else "a true label"
    with pytest.raises(TrainerError, match=f"no point of split .* has {wanted}, so {task} has nothing to learn"):
        train(fleet.recipe(f"{task}.init=", f"{task}.every_scene=1"), task, console) if task != "distill" else train(
            fleet.recipe(), task, console
        )
    assert runs(fleet) == []


def test_labels_that_weigh_nothing_are_nothing(fleet: Any, console: Console) -> None:
    fleet.put("target", lambda name: replace(fleet.target_row(name), confidence=np.zeros(1000, np.uint8)))
    with pytest.raises(TrainerError, match="has a pseudo-label with a confidence above 0"):
        train(fleet.recipe("distill.weight=confidence"), "distill", console)
    train(fleet.recipe("distill.epochs=1"), "distill", console)


def test_what_is_left_out_is_said(fleet: Any, console: Console) -> None:
    fleet.put("target", lambda name: unlabelled(fleet.target_row(name)))
    with pytest.raises(TrainerError, match=r"3 frames of 2 scenes; left out: 2 excluded by data.exclude, in tables"):
        train(fleet.packed("data.exclude=['a0', 'b0']"), "distill", console)


def test_a_run_whose_loss_never_had_a_term_is_refused_at_its_end(
    fleet: Any, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there to learn before random views and batches were drawn may not be there after."""
    fleet.put("target", lambda name: unlabelled(fleet.target_row(name)))
    monkeypatch.setattr(trainer_train, "check_supervision", lambda *_: None)
    with pytest.raises(TrainerError, match="the loss never had a term: no point of split"):
        train(fleet.recipe(), "distill", console)
    assert runs(fleet) == ["epoch-0001.safetensors"], "of the epochs before, which say that they learnt nothing"
    with pytest.raises(TrainerError, match=r"epoch-0001.safetensors has learnt nothing"):
        predict(fleet.recipe(), console)
    with pytest.raises(TrainerError, match=r"epoch-0001.safetensors has learnt nothing"):
        path = fleet.folder / "runs/street/distill/epoch-0001.safetensors"
        train(fleet.recipe(f"supervised.init={path}"), "supervised", console)


def test_an_untrained_head_from_before_rows_were_counted_is_refused(fleet: Any, console: Console) -> None:
    path = train(fleet.recipe("distill.epochs=1"), "distill", console)
    loss = {"total": 0.0, "cross_entropy": 0, "lovasz": 0}
    document = as_document(checkpoint.read_document(path)) | {"format": 1, "loss": loss}
    document.pop("taught")
    save_file(load_file(path), path, metadata={"checkpoint": json.dumps(document)})
    with pytest.raises(TrainerError, match="has learnt nothing"):
        predict(fleet.recipe(), console)


def changed(column: str, value: int) -> Callable[[Any], Any]:
    """Return a function that puts a number into row 7, or 1 where there are fewer, of a column."""

    def change(row: Any) -> Any:
        numbers = getattr(row, column).copy()
        numbers[min(7, len(numbers) - 1)] = value
        return replace(row, **{column: numbers})

    return change


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("point", -1, r"column `point` holds -1 in row 7; expected 0 to 999, one of 1000 points of the sweep"),
        ("point", 1000, r"column `point` holds 1000 in row 7; expected 0 to 999"),
        ("superpoint", -1, r"column `superpoint` holds -1 in row 7; expected 0 to 3, one of 4 superpoints"),
        ("superpoint", 6, r"column `superpoint` holds 6"),
        ("superpoint_prompt", -1, r"column `superpoint_prompt` holds -1 in row \d; expected 0 to 5, one of 6 prompts"),
        ("superpoint_prompt", 6, r"column `superpoint_prompt` holds 6"),
        ("superpoint_view", 2, r"column `superpoint_view` holds 2 in row \d; expected 0 to 1, one of 2 views"),
    ],
)
def test_a_row_that_is_not_there_is_named(fleet: Any, console: Console, column: str, value: int, words: str) -> None:
    change = changed(column, value)
    fleet.put("pairs", lambda name: change(fleet.pairs_row(name)) if name == "b0" else fleet.pairs_row(name))
    with pytest.raises(StoreError, match=rf"frame b0: table `pairs`, {words}.*run: make pairs"):
        train(fleet.recipe(f"run.loader_workers={int(value == 1000)}"), "pretrain", console)


def test_columns_that_do_not_belong_together_are_named(fleet: Any, console: Console) -> None:
    def short(name: str) -> Target:
        row: Target = fleet.target_row(name)
        cut = replace(row, label=row.label[:-1], confidence=row.confidence[:-1], seen=row.seen[:-1])
        return cut if name == "a0" else row

    fleet.put("target", short)
    with pytest.raises(
        StoreError, match=r"frame a0: table `target`, column `label` has 999 labels for a sweep of 1000"
    ):
        train(fleet.recipe(), "distill", console)
    fleet.put("target", lambda name: changed("label", 200)(fleet.target_row(name)))
    with pytest.raises(
        StoreError, match=r"table `target`, column `label` holds 200 in row 7, which is none of the 4 classes"
    ):
        train(fleet.recipe(), "distill", console)
