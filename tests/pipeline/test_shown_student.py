"""What another student said is shown by no way of looking at frames, and the reason is said."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from manifests.recipe import Recipe, load_recipe
from manifests.records.codec import as_document
from manifests.storage import sealed
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Predict
from manifests.tables.base import Rows
from manifests.tables.sensors import Points
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.look.browse import Browser
from pipeline.look.comparison import write_comparison
from pipeline.look.frames import draw_frames
from pipeline.look.report import write_report
from pipeline.look.viewer import write_recording
from tests.answers import learnt, put_predictions
from tests.filled import record
from tests.fixed_rows import recipe_over, write_log
from tests.pipeline.test_report import NO_FRAME, Page, add_runs


class Recording:
    """A recording that holds nothing."""

    def save(self, path: Path) -> None:
        """Make the file."""
        path.write_bytes(b"")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


RERUN = SimpleNamespace(
    RecordingStream=lambda _: Recording(), ViewCoordinates=SimpleNamespace(RIGHT_HAND_Z_UP="right-handed")
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of a tiny log and its tables."""
    folder = tmp_path_factory.mktemp("shown")
    write_log(folder / "log")
    recipe = recipe_over(folder / "log")
    assert Runner(recipe).run(["points", "pairs", "target"], InlinePool(recipe)) == []
    return folder


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(built, tmp_path / "place"))


def recipe_in(folder: Path) -> Recipe:
    """Return the recipe of a copy."""
    words = [f"run.store={folder / 'store'}", f"run.runs={folder / 'runs'}"]
    return load_recipe(folder / "tiny.toml", words)


def add_predictions(recipe: Recipe) -> TableRef:
    """A student that calls everything a car, as the trainer writes it."""

    def answer(row: Points) -> Predict:
        label = np.full(row.n_points, 4, np.uint8)
        return record(Predict, frame_id=row.frame_id, label=label, confidence=label)

    return put_predictions(recipe, answer)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("distill.epochs=3",), "distill.epochs: .* -> 3.*Take the change back, or train it: make distill"),
        (("network.stem_kernel_size=5",), "network.stem_kernel_size"),
        (("predict.of=finetune",), "and it names .*finetune now"),
        (("predict.checkpoint=other.safetensors",), "and it names .*other.safetensors now"),
        (("voxels.size_m=0.2",), "are of other settings"),
        (("data.ontology=changed",), "are of other classes than dictionary nuscenes has now"),
        (("another training",), "are of weights 0{12}; its student has beef by now"),
        (("an older version",), "do not say what their student learnt"),
    ],
)
def test_what_another_student_said_is_not_shown_and_the_reason_is(
    folder: Path, words: tuple[str, ...], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every way to look at frames: the page, the comparison, pictures and recordings."""
    recipe = recipe_in(folder)
    table = add_predictions(recipe)
    store = Store.open(recipe.run.store)
    assert "predict" in Browser.open(store, recipe).tables
    manifest = store.read_manifest("predict", table.fingerprint)
    assert manifest
    if words == ("another training",):
        (recipe.folder() / "distill").mkdir(parents=True)
        sealed.write_sealed(recipe.folder() / "distill" / "run.json", {"format": 2, "result": {"weights": "beef"}})
    elif words == ("an older version",):
        store.write_manifest(replace(manifest, made={"epoch": 1}))
    elif words == ("data.ontology=changed",):
        store.write_manifest(replace(manifest, made={**manifest.made, "class_names": ["none", "cat"]}))
    else:
        recipe = load_recipe(folder / "tiny.toml", [*recipe.overrides, *words])
    monkeypatch.setattr("pipeline.look.report.show_frame", lambda *_: NO_FRAME)  # no need to draw
    page = Page(write_report(recipe, folder / "out", 1))
    said = re.search(rf"Predictions are not shown: .*{reason}.*make (predict|distill)", page.text)
    assert said, Browser.open(store, recipe).not_shown()
    assert "There are no predictions" not in page.text and table.fingerprint not in page.text
    drawn: list[Rows] = []
    said_too: list[str] = []
    monkeypatch.setattr("pipeline.look.frames.frame_figure", lambda item, *_: drawn.append(item.rows))
    monkeypatch.setattr("pipeline.look.frames.save_figure", lambda *_: None)
    draw_frames(recipe, folder / "pictures", 1, False, said_too.append)
    [told] = said_too
    assert re.search(f"(?s)Predictions are not shown: .*{reason}", told) and drawn[0].get(Predict) is None
    monkeypatch.setitem(sys.modules, "rerun", RERUN)  # an extra
    for name in ("class_list", "layout", "log_frame", "log_heat"):
        monkeypatch.setattr(f"pipeline.look.viewer.{name}", lambda *_: None)
    (sentence,) = write_recording(recipe, folder / "frames.rrd", 1, lambda items, _: items)
    assert re.search(f"(?s)Predictions are not shown: .*{reason}", sentence)
    beside = Page(write_comparison([recipe, recipe], folder / "both"))
    assert re.search(f"Predictions are not shown: .*{reason}", beside.text)


def test_a_ref_of_predictions_that_cannot_be_read_stops(folder: Path) -> None:
    """What is damaged is never taken for what is not there."""
    recipe = recipe_in(folder)
    add_predictions(recipe)
    for path in (folder / "store" / "refs" / "runs").glob("tiny-predict-*.json"):
        path.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        Browser.open(Store.open(recipe.run.store), recipe)


def test_scores_of_a_student_that_learnt_something_else_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.look.report.show_frame", lambda *_: NO_FRAME)  # no need to draw
    recipe = recipe_in(folder)
    add_runs(recipe, weights="feed")
    document = {"format": 1, "weights": "feed", "epoch": 2, "epochs": 2, **as_document(learnt(recipe, "distill"))}
    header = json.dumps({"__metadata__": {"checkpoint": json.dumps(document)}}).encode()
    run = Path(recipe.run.runs) / recipe.name / "distill"
    (run / "epoch-0002.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    tile = "Student: mIoU in %, all points"
    assert tile in Page(write_report(recipe, folder / "out", 1)).text
    page = Page(
        write_report(load_recipe(folder / "tiny.toml", [*recipe.overrides, "distill.epochs=3"]), folder / "out", 1)
    )
    assert tile not in page.text
    assert re.search("evaluate.json is left out: its student learnt something else .*distill.epochs", page.text)
