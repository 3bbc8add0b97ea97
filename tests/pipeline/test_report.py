"""The report: what is on its page, what it says of what is not there, and that it never harms an older one."""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from manifests.asked import ref_of
from manifests.config import ConfigError
from manifests.fingerprint import Settings
from manifests.labels import refine_pin
from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import TargetConfig
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.answers import Predict
from manifests.tables.base import FrameRecord, Rows
from manifests.tables.columns import Scalar
from manifests.tables.labels import Correct, Target, Vote
from manifests.tables.sensors import Points
from manifests.tables.superpoints import Group
from pipeline.engine.pools import make_pool
from pipeline.engine.runner import Runner
from pipeline.frame import FrameError
from pipeline.look.browse import Browser, FrameRows, Place
from pipeline.look.documents import shown_table
from pipeline.look.figures import ShownFrame, refinements
from pipeline.look.report import write_report
from pipeline.look.viewer import view_frames
from tests.answers import put_predictions
from tests.filled import record
from tests.records import epoch_line, evaluation, hardware, part, refined, run_record, start_line
from tests.refs import identity, newest, put_ref

NO_FRAME = ShownFrame("scene", "frame", "now", "", (), (), ())
HOSTILE = "no-<script>alert('x')</script>\"><img src=x onerror=y>"


class Page(HTMLParser):
    """Collects tags, the files a page asks for, and its text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.files: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        whole = path.read_text(encoding="utf-8")
        self.feed(whole)
        # points are base64, in which anything may stand
        self.source = re.sub(r'(<script type="application/json" class="cloud"[^>]*>)[^<]*', r"\1", whole)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        assert not any(key.startswith("on") for key in values), "nothing but our own script does anything"
        self.files += [str(values[key]) for key in ("src", "href") if key in values and values[key][:1] != "#"]  # type: ignore[index]
        if tag == "img":
            self.alts.append(str(values.get("alt") or ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem != "script":
            self.text += f" {data}"


def build(recipe: Recipe, *targets: str) -> None:
    with make_pool(recipe) as pool:
        assert Runner(recipe).run(list(targets), pool) == []


@pytest.fixture(scope="module")
def built(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of one simulated key frame and its tables, without truth, predictions or runs."""
    folder = tmp_path_factory.mktemp("report")
    golden = shared / "golden"
    (folder / "one.txt").write_text("scene-0008\n")
    (folder / "tiny.toml").write_text(
        f'[data]\nroot = "{golden / "nuscenes_tiny"}"\nsplit = "{folder / "one.txt"}"\n'
        f'[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{golden / "superpixels_tiny"}"\n'
    )
    build(recipe_in(folder), "points", "pairs", "target")
    return folder


def recipe_in(folder: Path, name: str = "tiny") -> Recipe:
    words = [f"run.store={folder / 'store'}", f"run.runs={folder / 'runs'}"]
    return load_recipe(folder / f"{name}.toml", words)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pictures show is no matter here, so they are drawn small."""
    monkeypatch.setattr("pipeline.look.figures.IMAGE_PX", 160)
    monkeypatch.setattr("pipeline.look.figures.PANEL_PX", 100)


@pytest.fixture
def folder(built: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    return Path(shutil.copytree(built, tmp_path / "place"))


def add_predictions(recipe: Recipe) -> TableRef:
    """A student that calls everything a car, as the trainer writes it."""

    def answer(row: Points) -> Predict:
        label = np.full(row.n_points, 4, np.uint8)
        return record(Predict, frame_id=row.frame_id, label=label, confidence=label)

    return put_predictions(recipe, answer)


def add_runs(recipe: Recipe, word: str = "val", **changes: Any) -> None:
    """What the trainer leaves behind: a log that was cut off and gone on with, and an evaluation."""
    runs = Path(recipe.run.runs) / recipe.name
    (runs / "distill").mkdir(parents=True)
    lines = [start_line(device=word), *(epoch_line(number, 2.5 / number) for number in (1, 2, 2))]
    text = "\n".join(json.dumps(line) for line in lines)
    (runs / "distill" / "log.jsonl").write_text(text.replace("}\n", '}\n{"event": "epo\n', 1))
    classes = recipe.ontology.class_names[1:]
    scores = part(0.25, len(classes), iou=[None] + [0.25] * (len(classes) - 1), points=1234)
    said = {"split": word, "frames": 1, "checkpoint": word, "epoch": 2, "scores": {"all": scores, "seen": scores}}
    document = evaluation(**{"classes": classes, **said, **changes})
    (runs / "evaluate.json").write_text(json.dumps(document, indent=1))


def test_everything_is_on_the_page_and_the_page_asks_for_nothing_else(folder: Path) -> None:
    recipe = recipe_in(folder)
    build(recipe, "label")
    predictions = add_predictions(recipe)
    add_runs(recipe)
    asked: list[tuple[int, str]] = []

    def track(items: Any, what: str) -> Any:
        asked.append((len(items), what))
        return items

    path = write_report(recipe, folder / "out", 4, track)
    page = Page(path)
    assert asked == [(1, "counts"), (1, "labels"), (1, "frames")]
    for title in ("Pseudo-labels", "Predictions", "Truth", "Errors of the predictions", "CAM_FRONT_LEFT", "no answer"):
        assert title in page.text
    for title in ("Classes", "mIoU", "Label coverage and agreement", "Training", "Identities of everything used"):
        assert title in page.text
    assert "Student: mIoU in %, all points" in page.text and "25.0" in page.text and "1,234" in page.text
    assert "2 of 2" in page.text and "8 s, 3.0 frames/s" in page.text and "initial weights random" in page.text
    assert "notice" not in re.findall(r'class="(\w+)"', page.source)
    ref = newest(Store.open(recipe.run.store), "tiny")
    assert all(table.fingerprint in page.text for table in (*ref.tables.values(), predictions))

    files = sorted(str(file.relative_to(path.parent)) for file in path.parent.rglob("*") if file.is_file())
    assert sorted({*page.files, "index.html"}) == files  # every picture is shown, and nothing from elsewhere
    assert not re.search(r"https?:|//\w|@import|url\(", page.source)
    assert len(page.alts) == 6 + 4 + 2 + 1 and all(page.alts), "images, views from above, curves, risk"
    assert page.tags.count("script") == 3, "what all frames share, the points of one, and the large view"
    assert "Rank 1 of 1 by doubt: cameras disagree on" in page.text and "teacher and student on" in page.text


def test_what_flat_interaction_did_is_shown_by_class_and_from_above(folder: Path) -> None:
    recipe = recipe_in(folder)
    build(recipe, "correct", "label")
    add_predictions(recipe)
    add_runs(recipe)
    runs = folder / "runs" / "tiny"
    document = json.loads((runs / "evaluate.json").read_text())
    before = {name: part | {"mean_iou": 0.2, "iou": [None, *[0.375] * 15]} for name, part in document["scores"].items()}
    document |= {"scores_before": before, "refine": refined("afi", all=4321, seen=4000)}
    # refined in another way than [refine] asks for, and the labels before were not scored by themselves
    table = TableRef("refine", "1" * 12, ())
    Store.open(recipe.run.store).write_ref(refine_pin(recipe, "prediction", "afi"), Ref(recipe.name, {"refine": table}))
    (runs / "evaluate-afi.json").write_text(json.dumps(document | {"tables": {"refine": "1" * 12}}, indent=1))
    (runs / "evaluate.json").unlink()
    page = Page(write_report(recipe, folder / "out", 1))
    assert "Student + AFI: 4,321 labels changed" in page.text
    assert "mIoU 20.0 25.0 +5.0 20.0 25.0 +5.0" in page.text, "before, after and change of all and of seen points"
    assert "37.5 25.0 -12.5" in page.text
    assert "Student + AFI: mIoU in %, all points" in page.text and "Student: mIoU in %, all points" in page.text
    for what in ("pseudo-labels", "predictions"):
        assert f"Changed by flat interaction: {what}" in page.text
    assert "points that had no label got one" in page.text and "made right" in page.text
    assert len(page.alts) == 6 + 4 + 2 + 1 + 2


@pytest.mark.parametrize("labels", ["correct", "vote+correct"])
def test_what_a_vote_changed_is_not_put_down_to_flat_interaction(folder: Path, labels: str) -> None:
    recipe = replace(recipe_in(folder), target=TargetConfig(labels))  # type: ignore[arg-type]
    label = {"group": [1, 1, 1, 1], "vote": [1, 1, 2, 2]}
    label["correct"] = [*label["vote" if "vote" in labels else "group"][:3], 3]
    kinds: dict[str, Any] = {"group": Group, "vote": Vote, "correct": Correct}
    rows = [record(kinds[name], label=np.array(values, np.uint8)) for name, values in label.items()]
    (panel,) = refinements(FrameRows(None, Rows(*rows)), recipe, ())  # type: ignore[arg-type]
    assert panel.about == "0 points that had no label got one, 1 labels were replaced"
    assert panel.shown.tolist() == [False, False, False, True]


def test_the_report_of_a_run_is_a_section_with_its_confusion_matrix(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(folder)
    n_classes = len(recipe.ontology.classes)
    counts = np.zeros((n_classes, n_classes), int)
    counts[4, 4], counts[4, 10], counts[0, 1] = 3, 1, 50  # of four points of cars, one was taken for a truck
    add_runs(recipe, confusion={"all": counts.tolist()})
    paper: dict[str, Any] = {"mean_iou_percent": 47.42, "obtained_percent": 25.0, "difference": -22.42}
    paper |= {"row": "SAN", "source": "README"}
    scored = evaluation(labels="read to score split val", expected=paper, shards=["a", "b"], also_trained_on=["b"])
    result = {"file": "e", "sha256": "0", "weights": "feed", "epoch": 2, "step": 4, "chosen": "the last epoch"}
    record = run_record(
        departures=["distill.epochs: 5 -> 2"], evaluations={"evaluate": scored}, result=result, hardware=hardware()
    )
    run = Path(recipe.run.runs) / recipe.name / "distill" / "run.json"
    run.write_text(json.dumps(record, indent=1))
    monkeypatch.setattr("pipeline.look.report.show_frame", lambda *_: NO_FRAME)  # no need to draw
    page = Page(write_report(recipe, folder / "out", 1))
    for text in (
        "true labels took no part",
        "distill.epochs: 5 -> 2",
        "mIoU 25.00 %; the paper has 47.42 % (SAN; README)",
        "1 settings differ",
        "1 of its 2 scenes were also trained on",
        "the last epoch",
        "CPU, 2 cores, 1 threads, 16 GiB, no GPU",
        "The report of the run",
        "4 points",
    ):
        assert text in page.text, text
    drawn = (folder / "out" / "pictures" / "confusion-0.svg").read_text()
    assert "<!-- car -->" in drawn and "<!-- truck -->" in drawn and "<!-- 75 -->" in drawn and "<!-- 25 -->" in drawn
    assert "<!-- bus -->" not in drawn, "no point of it, and none taken for it"
    run.write_text("[1]")
    assert "The report of the run" not in Page(write_report(recipe, folder / "out", 1)).text


def test_the_identity_of_a_table_says_on_which_device_it_was_made(folder: Path) -> None:
    recipe = recipe_in(folder)
    add_predictions(recipe)
    browser = Browser.open(Store.open(recipe.run.store), recipe)
    devices = {name: shown_table(browser, name, recipe).device for name in browser.tables}
    assert {name for name, device in devices.items() if device != "cpu"} <= {"predict"}, devices


def test_scores_are_no_headline_once_the_run_has_newer_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_in(folder)
    add_runs(recipe, weights="feed")
    monkeypatch.setattr("pipeline.look.report.show_frame", lambda *_: NO_FRAME)  # no need to draw
    tile, notice = "Student: mIoU in %, all points", "the run has newer weights by now (weights beef, epoch 2 of 2)"
    for newest_of in ("feed", "beef"):
        document = {"format": 1, "weights": newest_of, "epoch": 2, "epochs": 2}
        header = json.dumps({"__metadata__": {"checkpoint": json.dumps(document)}}).encode()
        run = Path(recipe.run.runs) / recipe.name / "distill"
        (run / "epoch-0002.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        page = Page(write_report(recipe, folder / "out", 1))
        assert (tile in page.text, notice in page.text) == (newest_of == "feed", newest_of == "beef")
        assert "weights feed" in page.text, "scores name what they are of"


def test_what_is_absent_is_said(folder: Path) -> None:
    page = Page(write_report(recipe_in(folder), folder / "out", 1))
    for sentence in (
        "There are no true labels here",
        "make label RECIPE=",
        "There are no predictions of these points yet",
        "There are no scores",
        "There are no training runs of this recipe yet",
    ):
        assert sentence in page.text
    assert "Truth" not in page.text and "Errors" not in page.text
    assert len(page.alts) == 6 + 1


def test_words_from_outside_stay_words(folder: Path, tiny: Any) -> None:
    tiny.change("scene", lambda row: row["name"] == "scene-0008", name=HOSTILE)
    tiny.change("sensor", lambda row: row["channel"] == "CAM_BACK", channel=HOSTILE)
    text = (folder / "tiny.toml").read_text()
    (folder / "hostile.toml").write_text(re.sub('root = ".*"', f'root = "{tiny.path}"', text))
    (folder / "one.txt").write_text(HOSTILE + "\n")
    recipe = recipe_in(folder, "hostile")
    recipe = replace(recipe, data=replace(recipe.data, split=str(folder / "one.txt")))
    build(recipe, "points", "pairs", "target")
    add_runs(recipe, HOSTILE)
    page = Page(write_report(recipe, folder / "out", 1))
    assert page.text.count(HOSTILE) >= 4  # scene, camera, split and device
    assert sum(HOSTILE in alt for alt in page.alts) == 1
    assert page.tags.count("script") == 3 and "x" not in page.files and "<script>alert" not in page.source


def test_what_teachers_knew_before_and_random_weights_are_named_first(folder: Path) -> None:
    recipe = recipe_in(folder)
    browser = Browser.open(Store.open(recipe.run.store), recipe)
    cases: list[tuple[Settings, str]] = [
        ({"name": "oracle", "simulated": True}, "The teacher “oracle” is simulated"),
        ({"name": "clip_dense", "weights": "random:3"}, "random weights (random:3)"),
        ({"name": "composite", "clip_dense": {"weights": "random:4"}}, "random weights (random:4)"),
        (
            {"name": "composite", "trained_on": "mapillary", "supervised": True},
            "The teacher “composite (mapillary)” is supervised: it learnt from labels of driving scenes",
        ),
        ({"name": "composite", "trained_on": "coco"}, "where objects end from the labels of coco"),
    ]
    for teacher, sentence in cases:
        table = browser.tables["segment"]
        settings = identity("segment", {"teacher": teacher})
        browser.store.write_manifest(Manifest("segment", table.fingerprint, settings, table.shards))
        page = Page(write_report(recipe, folder / "out", 1))
        assert sentence in page.text and page.text.index(sentence) < page.text.index("have a pseudo-label")


def test_tables_that_the_recipe_would_make_otherwise_now_are_named(folder: Path) -> None:
    text = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(text + "[group]\nmin_points = 3\n")
    with pytest.raises(StoreError, match=r"(?s)group.min_points: \(default\) -> 3.*make pack"):
        write_report(recipe_in(folder), folder / "out", 1)
    (folder / "tiny.toml").write_text(text)
    add_runs(recipe_in(folder), tables={"target": "fedcba987654"})
    page = Page(write_report(recipe_in(folder), folder / "out", 1))
    assert "not those of the recipe any more (target)" in page.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ["car"]}, "its classes are not those of dictionary nuscenes"),
        ({"scores": {"all": part(0.5, iou=["much"])}}, "its `scores.all.iou[0]` is 'much'; expected float"),
        ({"scores": 3}, "its `scores` is 3; expected an object"),
        ({"splitt": "val"}, "it holds `splitt`, which no such document does"),
    ],
)
def test_an_evaluation_that_does_not_fit_is_left_out_and_named(
    folder: Path, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.look.report.show_frame", lambda *_: NO_FRAME)  # no need to draw
    monkeypatch.setattr("pipeline.look.report.render", lambda **context: "\n".join(context["notices"]))
    recipe = recipe_in(folder)
    add_runs(recipe, **changes)
    text = write_report(recipe, folder / "out", 1).read_text()
    assert "evaluate.json is left out" in text and reason in text and "make evaluate RECIPE=" in text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"contents": {"points": {"scene-0008": "another.shard"}}}, "made anew since (points: shard scene-0008)"),
        (
            {"learnt_from": {"split": "val", "target": "0", "contents": {"target": {"scene-0001": "x"}}}},
            "target: shard scene-0001",
        ),
        ({"contents": None}, "shards that it does not name"),
        ({"split": "chosen.txt", "split_content": "0" * 12}, "chosen.txt that said something else"),
    ],
)
def test_scores_of_other_shards_are_left_out_and_named(
    folder: Path, changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.look.report.show_frame", lambda *_: NO_FRAME)  # no need to draw
    recipe = recipe_in(folder)
    add_runs(recipe, **changes)
    run = Path(recipe.run.runs) / recipe.name
    item = json.loads((run / "evaluate.json").read_text())
    (run / "distill" / "run.json").write_text(json.dumps(run_record(evaluations={"evaluate": item}), indent=1))
    page = Page(write_report(recipe, folder / "out", 1))
    assert "evaluate.json is left out: its scores were made from" in page.text and page.text.count(reason) >= 2
    assert "left out: its scores" in page.text.split("Training")[-1], "and so it is in the report of the run"
    assert "Student: mIoU" not in page.text and "25.00" not in page.text


def test_an_older_report_is_replaced_only_by_a_whole_one(folder: Path, tiny: Any) -> None:
    text = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(re.sub('root = ".*"', f'root = "{tiny.path}"', text))
    tables = newest(Store.open(recipe_in(folder).run.store), "tiny").tables
    recipe, out = recipe_in(folder), folder / "reports" / "out"
    put_ref(Store.open(recipe.run.store), recipe, tables)
    old = write_report(recipe, out, 1).read_text()
    (out / "pictures" / "stray.png").write_bytes(b"of an older report")

    image = next(iter((tiny.path / "samples" / "CAM_BACK").iterdir())).parent
    for file in image.iterdir():
        file.rename(file.with_suffix(".away"))
    with pytest.raises(FrameError, match="CAM_BACK"):
        write_report(recipe, out, 1)
    assert (out / "index.html").read_text() == old and (out / "pictures" / "stray.png").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]

    for file in image.iterdir():
        file.rename(file.with_suffix(".jpg"))
    write_report(recipe, out, 1)
    assert not (out / "pictures" / "stray.png").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["index.html", "thesis.tex"])
def test_a_folder_that_holds_anything_else_is_left_alone(folder: Path, name: str) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / name).write_text("<html>years of work</html>")
    with pytest.raises(ConfigError, match="holds no report"):
        write_report(recipe_in(folder), folder / "mine", 1)
    assert (folder / "mine" / name).read_text() == "<html>years of work</html>"


def test_predictions_of_points_made_anew_are_not_shown(folder: Path) -> None:
    recipe = recipe_in(folder)
    add_predictions(recipe)
    store = Store.open(recipe.run.store)
    assert "predict" in Browser.open(store, recipe).tables
    ref = newest(store, "tiny")
    shards = tuple(replace(shard, key="2" * 12, name=shard.name) for shard in ref.tables["points"].shards)
    shards = tuple(replace(s, name=f"{s.shard}.{s.key}.{s.sha256[:12]}.parquet") for s in shards)
    tables = dict(ref.tables) | {"points": replace(ref.tables["points"], shards=shards)}
    store.write_ref(ref_of(recipe), replace(ref, tables=tables))
    browser = Browser.open(store, recipe)
    assert "predict" not in browser.tables
    [told] = browser.not_shown()
    assert re.search("points were made anew since the predictions .* run: make predict RECIPE=", told)


def test_frames_that_failed_or_are_excluded_are_not_chosen(folder: Path) -> None:
    recipe = recipe_in(folder)
    store = Store.open(recipe.run.store)
    browser = Browser.open(store, recipe)
    (place,) = browser.choose(5)
    frame_id = browser.read(place).frame.frame_id
    store.write_ref(ref_of(recipe), replace(newest(store, "tiny"), excluded=(frame_id,)))
    with pytest.raises(StoreError, match="no frame to show"):
        Browser.open(store, recipe).choose(5)


def test_the_next_frame_is_found_in_its_shard_without_a_look_at_any_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_in(folder)
    store = Store.open(recipe.run.store)
    opened = Browser.open(store, recipe)
    shards = tuple(ShardFile(f"s{i}", "0" * 12, f"{i}.parquet", 4, 1, "", "") for i in range(3))
    tables = {name: replace(table, shards=shards) for name, table in opened.tables.items()}
    read = []

    def states(stage: str, fingerprint: str, shard: ShardFile) -> list[FrameRecord]:
        read.append(shard.shard)
        return [FrameRecord(frame_id=f"{shard.shard}/{i}") for i in range(4)]

    monkeypatch.setattr(store, "states", states)
    browser = replace(opened, tables=tables, excluded=frozenset({"s1/2"}))
    assert browser.after(Place("s1", 0)) == Place("s1", 1)
    assert browser.after(Place("s1", 1)) is None, "the next one is excluded"
    assert browser.after(Place("s1", 3)) is None, "there is no next one"
    assert set(read) == {"s1"}
    assert len(browser.places()) == 11 and Place("s1", 2) not in browser.places()


def test_a_table_of_an_older_version_says_what_to_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = Browser.open(Store.open(recipe_in(folder).run.store), recipe_in(folder))
    newer = Scalar("weight", "a column of tomorrow", "", False, pa.string())
    monkeypatch.setattr(Target, "columns", (*Target.columns, newer))
    with pytest.raises(StoreError, match=r"`target` of recipe tiny has no weight.*make target RECIPE="):
        browser.read(browser.choose(1)[0])


def test_a_recipe_without_tables_says_what_to_run(folder: Path) -> None:
    (folder / "other.toml").write_text((folder / "tiny.toml").read_text() + "[group]\nmin_points = 7\n")
    with pytest.raises(StoreError, match=r"holds nothing of recipe other yet; run: make pack RECIPE=\S*other"):
        write_report(recipe_in(folder, "other"), folder / "out", 1)
    assert not (folder / "out").exists()


def test_the_viewer_says_how_it_is_installed_and_that_it_needs_a_screen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(ConfigError, match=r"no screen here.*--out frames.rrd"):
        view_frames(recipe_in(folder), 1, lambda items, _: items)
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ConfigError, match=r"pip install .*-r install/requirements-viewer\.txt"):
        view_frames(recipe_in(folder), 1, lambda items, _: items)
