"""The report of a recipe: one page to open offline, with its frames, scores, curves and identities."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.asked import made_anew
from manifests.config import ConfigError, listing
from manifests.fingerprint import differences, digest, plain
from manifests.ontology import Ontology
from manifests.query import HEADINGS, By
from manifests.recipe import Recipe
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.shown import shown_values
from manifests.splits import split_content
from manifests.stages import corrected_table
from manifests.storage import sealed
from manifests.storage.store import Store
from pipeline.engine.runner import Runner
from pipeline.look.browse import Browser, FrameRows, Place, Track
from pipeline.look.pictures import (
    CHANGES,
    VERDICTS,
    Panel,
    camera_pictures,
    changes,
    classes_in,
    heat,
    heat_pictures,
    heat_scale,
    panels,
    save_confusion,
    save_curves,
    save_image,
    save_panel,
)
from pipeline.look.quality import LabelQuality, label_quality, measure
from pipeline.look.query import Asked, asked_of
from pipeline.stages.registry import STAGES
from superpixels.flat_interaction import refine
from superpixels.ground import height_of_sensor_m

PAGE = "index.html"
PICTURES = "pictures"
GENERATOR = "AFOV report"  # in the page's head: a folder is replaced only if it holds a report
COUNTED_PAIRS = 40  # frames, each with the next of its scene, over which tables of labels are judged
COUNTED_FRAMES = 200  # coverage and agreement are counted over this many frames at most, evenly chosen
IMAGE_PX, PANEL_PX = 960, 800
BEST_FRAMES = 2  # of each ranking of a query, how many frames are drawn
BY: Mapping[By, str] = {"masks": "by mask vectors", "tmp": "by TMP features"}
SCORED = {
    "prediction": "Student",
    "pseudo": "Pseudo-labels",
    "tree": "Decision tree",
    "majority": "Most frequent class",
}
"""What evaluations score, in the order of the page; the last two are yardsticks that learnt from the pseudo-labels."""


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its file relative to the page, a heading, a sentence below, and what it shows in words."""

    file: str
    title: str
    about: str
    alt: str


@dataclass(frozen=True)
class ShownFrame:
    """One frame of the page; `classes` are the classes that occur."""

    scene: str
    frame_id: str
    time: str
    about: str
    cameras: tuple[Picture, ...]
    panels: tuple[Picture, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class ShownQuery:
    """What was asked and found: tables of the ranking, each with a heading and a sentence, and the best frames."""

    phrase: str
    rankings: tuple[tuple[str, str, list[tuple[str, ...]]], ...]
    frames: tuple[ShownFrame, ...]


@dataclass(frozen=True)
class Scores:
    """IoU in 0..1, by class (class 1 first) and in summary; None is a score of nothing. `points` have a true label."""

    iou: tuple[float | None, ...]
    mean_iou: float | None
    micro_iou: float | None
    frequency_weighted_iou: float | None
    points: int


@dataclass(frozen=True)
class Evaluation:
    """Scores as `trainer evaluate` wrote them, by part of the points ("all", "seen", "unseen").

    `of` is "prediction" or "pseudo"; `steps` are those of a refinement ("vote", "afi"), `before` are the scores before
    it, both empty where there was none, and `changed` counts the labels that it changed. `about` says of what they are,
    `newer` which weights the run has by now, where they are of others: then they are no headline. `confusion` counts
    points by truth (rows) and answer, class 0 first; None where it was not written.
    """

    of: str
    steps: tuple[str, ...]
    title: str
    about: str
    parts: Mapping[str, Scores]
    newer: str
    before: Mapping[str, Scores]
    changed: Mapping[str, int]
    confusion: NDArray[np.int64] | None


@dataclass(frozen=True)
class Training:
    """One training run: what was started, its curves, facts in words, and its own report as the trainer wrote it."""

    task: str
    curves: tuple[Picture, ...]
    facts: Mapping[str, str]
    document: str
    record: str


@dataclass(frozen=True)
class Identity:
    """One table: its name, what identifies it, what it holds, how it was made, and all of this as JSON."""

    table: str
    fingerprint: str
    version: str
    frames: int
    failed: int
    megabytes: float
    finished: str
    commit: str
    device: str
    changes: tuple[str, ...]
    document: str


def write_report(
    recipe: Recipe, folder: Path, n_frames: int, track: Track = lambda items, _: items, now: datetime | None = None
) -> Path:
    """Write the report of a recipe into `folder` and return the path of its page.

    At most `n_frames` frames are drawn, evenly chosen. An older report in the folder is replaced once the new one is
    whole. Raises StoreError for tables that are missing or damaged, FrameError for an image that cannot be read, and
    ConfigError if the folder holds anything but a report or cannot be written.
    """
    check_replaceable(folder)
    store = Store.open(recipe.run.store)
    browser = Browser.open(store, recipe)
    runs = Path(recipe.run.runs).expanduser() / recipe.name
    scratch = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    try:
        (scratch / PICTURES).mkdir(parents=True)
        evaluations, unreadable = read_evaluations(runs, browser, recipe.ontology)
        refined = {item.of for item in evaluations if item.before and item.steps == ("afi",)}
        frames = [
            show_frame(browser.read(place), recipe, scratch, number, refined)
            for number, place in enumerate(track(browser.choose(n_frames), "frames"))
        ]
        quality = measure(
            (browser.read(place) for place in track(browser.choose(COUNTED_FRAMES), "counts")), recipe.ontology
        )
        pairs = (
            (browser.read(place), browser.read(follower) if (follower := browser.after(place)) else None)
            for place in track(browser.choose(COUNTED_PAIRS), "labels")
        )
        tables_of_labels = label_quality(pairs, recipe.ontology)
        identities = [identity_of(browser, name, recipe) for name in browser.tables]
        queries, not_asked = asked_of(browser, recipe.run.runs)
        page = render(
            recipe=recipe,
            now=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
            notices=[*notices(browser, recipe), *unreadable, *not_asked],
            sections=sections(recipe),
            classes=class_table(recipe.ontology),
            verdicts=VERDICTS,
            changes=CHANGES if refined or "correct" in browser.tables else {},
            frames=frames,
            quality=quality,
            tables_of_labels=[(item, item.scores()) for item in tables_of_labels],
            judged=any(item.confusion for item in tables_of_labels),
            learnt=learnt_classes(tables_of_labels, recipe.ontology),
            n_frames_in_all=len(browser.places()),
            has=set(browser.tables),
            scored=evaluations,
            evaluations=[item for item in evaluations if not item.before],
            refined=[item for item in evaluations if item.before],
            confusions=[
                confusion_picture(item, scratch, number, recipe.ontology)
                for number, item in enumerate(evaluations)
                if item.confusion is not None and item.confusion[1:].any() and item.of != "majority"
            ],
            trainings=[training(path, scratch, number, browser) for number, path in enumerate(log_files(runs))],
            identities=identities,
            headings=HEADINGS,
            heat_scale=heat_scale(),
            asked=[show_query(one, browser, recipe, scratch, number) for number, one in enumerate(queries)],
        )
        (scratch / PAGE).write_text(page, encoding="utf-8")
        replace_folder(scratch, folder)
    except OSError as error:
        raise ConfigError(f"the report in {folder} cannot be made: {error}; --out names another folder") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder / PAGE


# -- frames ------------------------------------------------------------------------------------------------------------


def show_frame(item: FrameRows, recipe: Recipe, folder: Path, number: int, refined: Collection[str] = ()) -> ShownFrame:
    """Draw a frame into the folder's pictures and return what the page says of it; `refined` as in `refinements`."""
    frame, rows, ontology = item.frame, item.rows, recipe.ontology
    cameras = []
    views = camera_pictures(item, Path(recipe.data.root), ontology, IMAGE_PX)
    for view, (camera, picture) in enumerate(zip(frame.cameras, views, strict=True)):
        file = f"{PICTURES}/{number:03d}-view-{view}.jpg"
        save_image(folder / file, picture)
        n_segments = int(rows["segment"]["segments_in_view"][view])
        n_points = int(np.count_nonzero((rows["project"]["view"] == view) & ~rows["project"]["occluded"]))
        about = f"{n_segments:,} segments, {n_points:,} points"
        alt = f"Image of {camera.name} with {about}, coloured by class"
        cameras.append(Picture(file, camera.name, about, alt))
    above = []
    for place, panel in enumerate([*panels(rows, ontology), *refinements(item, recipe, refined)]):
        file = f"{PICTURES}/{number:03d}-above-{place}.png"
        save_panel(folder / file, rows["points"]["xyz_m"], panel, PANEL_PX)
        alt = f"{panel.title} of the points from above, 100 by 100 metres: {panel.about}"
        above.append(Picture(file, panel.title, panel.about, alt))
    seen, label = rows["target"]["seen"], rows["target"]["label"]
    return ShownFrame(
        scene=frame.scene,
        frame_id=frame.frame_id,
        time=time_of_day(frame.timestamp_us),
        about=f"{len(seen):,} points, {percent(seen.sum(), len(seen))} seen by a camera, "
        f"{percent(np.count_nonzero(label), len(seen))} with a pseudo-label",
        cameras=tuple(cameras),
        panels=tuple(above),
        classes=tuple(classes_in(rows)),
    )


def show_query(asked: Asked, browser: Browser, recipe: Recipe, folder: Path, number: int) -> ShownQuery:
    """Draw the best frames of a query into the folder's pictures and return what the page says of it."""
    best = {
        Place(frame.shard, frame.row): None
        for ranking in asked.rankings.values()
        for frame in ranking.frames[:BEST_FRAMES]
    }
    places = set(browser.places())
    return ShownQuery(
        phrase=asked.query.phrase,
        rankings=tuple((BY[by], ranking.about(), ranking.cells()) for by, ranking in asked.rankings.items()),
        frames=tuple(
            show_heat(browser.read(place), asked, place, recipe, folder, f"asked-{number}-{frame}")
            for frame, place in enumerate(best)
            if place in places
        ),
    )


def show_heat(item: FrameRows, asked: Asked, place: Place, recipe: Recipe, folder: Path, name: str) -> ShownFrame:
    """Draw how like a query the points of a frame are, in its images and from above."""
    frame, xyz_m = item.frame, item.rows["points"]["xyz_m"]
    cameras, above, about = [], [], []
    for by, margin in asked.margins(place, frame.frame_id, len(xyz_m)).items():
        ranking = asked.rankings[by]
        rgb, shown = heat(margin, ranking.low, ranking.high)
        views = heat_pictures(item, Path(recipe.data.root), rgb, shown, IMAGE_PX)
        for view, (camera, picture) in enumerate(zip(frame.cameras, views, strict=True)):
            file = f"{PICTURES}/{name}-{by}-view-{view}.jpg"
            save_image(folder / file, picture)
            alt = f"Image of {camera.name}, its points coloured by how like “{asked.query.phrase}” they are {BY[by]}"
            cameras.append(Picture(file, camera.name, BY[by], alt))
        file = f"{PICTURES}/{name}-{by}-above.png"
        known = int(np.isfinite(margin).sum())
        said = f"{BY[by]}: {known:,} points are known, the most similar has the margin {np.nanmax(margin):+.3f}"
        save_panel(folder / file, xyz_m, Panel(BY[by], said, rgb, shown), PANEL_PX)
        alt = f"Points from above, 100 by 100 metres, coloured by how like “{asked.query.phrase}” they are {BY[by]}"
        above.append(Picture(file, "From above", said, alt))
        about.append(said)
    time = time_of_day(frame.timestamp_us)
    return ShownFrame(frame.scene, frame.frame_id, time, "; ".join(about), tuple(cameras), tuple(above), ())


def refinements(item: FrameRows, recipe: Recipe, refined: Collection[str]) -> list[Panel]:
    """Return views from above of what flat interaction changes: in pseudo-labels where table `correct` is there or they
    were scored so ("pseudo" in `refined`), and in predictions where they were ("prediction")."""
    rows, found = item.rows, []
    truth = rows["label"]["label"] if "label" in rows else None

    def after(label: Any) -> Any:
        return refine(
            rows["points"]["xyz_m"],
            label,
            recipe.correct,
            n_classes=len(recipe.ontology.classes) - 1,
            ground_classes=recipe.ontology.ground_class_ids,
            sensor_height_m=height_of_sensor_m(item.frame.ego_from_lidar),
        ).labels

    title = "Changed by flat interaction:"
    if "correct" in rows or "pseudo" in refined:
        before = rows[corrected_table(recipe) if "correct" in rows else "target"]["label"]
        new = rows["correct"]["label"] if "correct" in rows else after(before)
        found.append(changes(before, new, truth, f"{title} pseudo-labels", recipe.ontology))
    if "predict" in rows and "prediction" in refined:
        before = rows["predict"]["label"]
        found.append(changes(before, after(before), truth, f"{title} predictions", recipe.ontology))
    return found


def time_of_day(timestamp_us: int) -> str:
    """Return a time to read, in UTC, to the millisecond; times that are no date are given as they are."""
    try:
        when = datetime.fromtimestamp(timestamp_us / 1e6, UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_us} µs"
    return f"{when.isoformat(sep=' ', timespec='milliseconds')} UTC"


def percent(part: float, whole: float) -> str:
    """Return a share in percent; a share of nothing is a dash."""
    return f"{100 * part / whole:.1f} %" if whole else "–"


def class_table(ontology: Ontology) -> list[tuple[str, str]]:
    """Return name and colour of every class, 0 first."""
    return [(item.name, "#" + bytes(item.rgb).hex()) for item in ontology.classes]


# -- what must be said first -------------------------------------------------------------------------------------------


def learnt_classes(tables: Sequence[LabelQuality], ontology: Ontology) -> list[tuple[str, list[str]]]:
    """Return, class by class, how far the labels that are learnt agree over time, and their precision and recall."""
    (target,) = [item for item in tables if item.table == "target"]
    rows = []
    for index, name in enumerate(ontology.class_names[1:]):
        cells = [percent(target.same[index + 1], target.met[index + 1])]
        if target.confusion:
            cells += [percent(score, 1.0) if np.isfinite(score) else "–" for score in (
                part[index] for part in target.precision_and_recall()
            )]  # fmt: skip
        rows.append((name, cells))
    return rows


def notices(browser: Browser, recipe: Recipe) -> list[str]:
    """Return sentences on what the pictures and numbers must not be taken for."""
    found = []
    settings = [made_from(browser, name).get("settings", {}) for name in browser.tables]
    teachers = [item["teacher"] for item in settings if "teacher" in item]
    kind_of = {str(item.get("name")): TEACHER_SECTIONS.get(str(item.get("name"))) for item in teachers}
    simulated = {str(item.get("name")) for item in teachers if item.get("simulated")}
    simulated |= {name for name, kind in kind_of.items() if kind and kind.simulated}
    parts = [part for item in teachers for part in (item, *item.values()) if isinstance(part, Mapping)]
    random = {str(part["weights"]) for part in parts if str(part.get("weights")).startswith("random:")}
    supervised = {f"{item.get('name')} ({item.get('trained_on')})" for item in teachers if item.get("supervised")}
    proposed = {str(item["trained_on"]) for item in teachers if "trained_on" in item and not item.get("supervised")}
    if simulated:
        found.append(
            f"The teacher “{listing(sorted(simulated))}” is simulated: its segments are made from the true labels and "
            "then spoilt on purpose; no image was understood. Scores show how the system works, not what label-free "
            "learning reaches."
        )
    if random:
        found.append(f"The teacher has random weights ({listing(sorted(random))}): its segments mean nothing.")
    if supervised:
        found.append(
            f"The teacher “{listing(sorted(supervised))}” is supervised: it learnt from labels of driving scenes, "
            "drawn by people, so scores say nothing about label-free learning."
        )
    if proposed:
        found.append(
            f"The teacher learnt where objects end from the labels of {listing(sorted(proposed))}: people drew them, "
            "in everyday photographs and not in driving scenes. What objects are called, it did not take from them."
        )
    if "label" not in browser.tables:
        found.append(
            "There are no true labels here, so nothing is compared with the truth. Where the data set has them: "
            f"{recipe.make('label')}"
        )
    if "predict" not in browser.tables:
        found.append(
            "There are no predictions of these points yet, so the student is not shown. Run: "
            f"{recipe.make('distill', 'predict')}"
        )
    return found


def made_from(browser: Browser, name: str) -> Mapping[str, Any]:
    """Return the readable identity of a table; empty if its manifest is missing."""
    manifest = browser.store.read_manifest(name, browser.tables[name].fingerprint)
    return manifest.identity if manifest else {}


# -- scores and curves -------------------------------------------------------------------------------------------------


def read_evaluations(runs: Path, browser: Browser, ontology: Ontology) -> tuple[list[Evaluation], list[str]]:
    """Return the evaluations in the folder of a recipe's runs, and sentences on those that cannot be shown."""
    found, unreadable = [], []
    for path in sorted(runs.glob("evaluate*.json")):
        try:
            found.append(evaluation(path, browser, ontology))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            unreadable.append(f"{path} is left out: {error}. Run: {browser.recipe.make('evaluate')}")
    order = list(SCORED)
    found.sort(key=lambda item: order.index(item.of) if item.of in order else len(order))
    return found, unreadable


def evaluation(path: Path, browser: Browser, ontology: Ontology) -> Evaluation:
    """Return one evaluation; raises ValueError, KeyError or the like if it is none, or one of other classes."""
    document = sealed.read_sealed(path)
    if document["classes"] != list(ontology.class_names[1:]):
        raise ValueError(f"its classes are not those of dictionary {ontology.name}")
    parts = {name: scores_of(part) for name, part in document["scores"].items()}
    refinement = document.get("refine", {})
    before = {name: scores_of(part) for name, part in document["scores_before"].items()} if refinement else {}
    if any(len(part.iou) != len(document["classes"]) for part in (*parts.values(), *before.values())):
        raise ValueError("it has not one IoU per class")
    kind = SCORED.get(document["of"], str(document["of"]))
    words = ["evaluate", *([] if document["of"] == "prediction" else [document["of"]])]
    steps = tuple(refinement["name"].split("+")) if refinement else ()
    kind, words = " + ".join([kind, *map(str.upper, steps)]), [*words, *steps]
    about = f"{document['frames']} frames of split “{document['split']}”"
    if document.get("checkpoint"):
        step = f", step {document['step']}" if document.get("step") is not None else ""
        about += f", {document['checkpoint']} (epoch {document['epoch']}{step})"
    if document.get("weights"):
        about += f", weights {document['weights']}"
    if document.get("commit"):
        about += f", scored by commit {document['commit']}"
    newest = sealed.newest_checkpoint(path.parent / str(document.get("student", "distill"))) or {}
    of_newest = newest.get("weights") is not None and newest["weights"] == document.get("weights")
    newer = ""
    if document["of"] == "prediction" and newest and not of_newest:
        newer = f"weights {newest.get('weights')}, epoch {newest.get('epoch')} of {newest.get('epochs')}"
    if others := of_others(document, browser, of_newest):
        raise ValueError(f"its scores were made from {others}")
    counts = document.get("confusion", {}).get("all")
    confusion = np.array(counts, np.int64) if counts is not None else None
    if confusion is not None and confusion.shape != (len(ontology.classes),) * 2:
        raise ValueError(f"its confusion matrix has the shape {confusion.shape}")
    return Evaluation(
        of=document["of"],
        steps=steps,
        title=kind if path.stem == "-".join(words) else f"{kind} ({path.stem.removeprefix('evaluate-')})",
        about=about,
        parts=parts,
        newer=newer,
        before=before,
        changed={name: int(number) for name, number in refinement.get("changed", {}).items()},
        confusion=confusion,
    )


def of_others(document: Mapping[str, Any], browser: Browser, of_newest: bool) -> str:
    """Return what is not, or not known to be, the recipe's of what an evaluation was made from; mostly nothing.

    Where the evaluation is `of_newest`, weights that the run still has, another student may have predicted since.
    """
    tables = {name: table for name, table in browser.tables.items() if not (name == "predict" and of_newest)}
    used = {name: one for name, one in document["tables"].items() if not (name == "predict" and of_newest)}
    gone = [name for name, one in used.items() if name not in tables or tables[name].fingerprint != one]
    if gone:
        return f"tables that are not those of the recipe any more ({', '.join(gone)})"
    split = document["split"]
    if str(split).endswith(".txt") and document.get("split_content") != digest(split_content(split)):
        return f"a split {split} that said something else, or is not known to have said the same"
    lesson = document.get("learnt_from")
    parts = [document.get("contents"), *([lesson.get("contents")] if lesson else [])]
    if not all(isinstance(part, Mapping) for part in parts):
        return "shards that it does not name: an older version of this program wrote it"
    anew = [line for part in parts for line in made_anew(part or {}, tables)]
    return f"shards that were made anew since ({'; '.join(anew)})" if anew else ""


def confusion_picture(item: Evaluation, folder: Path, number: int, ontology: Ontology) -> Picture:
    """Draw the confusion matrix of an evaluation into the folder's pictures."""
    assert item.confusion is not None
    file = f"{PICTURES}/confusion-{number}.svg"
    save_confusion(folder / file, item.confusion, ontology.class_names)
    n_points = int(item.confusion[1:].sum())
    about = f"of each true class (row) the share of its points that got each answer, in %; {n_points:,} points"
    return Picture(file, item.title, about, f"Confusion matrix, {item.title}: {about}")


def scores_of(part: Mapping[str, Any]) -> Scores:
    """Return the scores of one part of the points; raises ValueError, KeyError or TypeError if it is none."""

    def score(value: Any) -> float | None:
        return None if value is None else float(value)

    return Scores(
        iou=tuple(score(value) for value in part["iou"]),
        mean_iou=score(part["mean_iou"]),
        micro_iou=score(part["micro_iou"]),
        frequency_weighted_iou=score(part["frequency_weighted_iou"]),
        points=int(part["points"]),
    )


def log_files(runs: Path) -> list[Path]:
    """Return the logs of a recipe's runs, pre-training first; those that were moved aside are left out."""
    found = [path for path in runs.glob("*/log.jsonl") if ".old-" not in path.parent.name]
    return sorted(found, key=lambda path: (path.parent.name != "pretrain", path.parent.name))


def training(path: Path, folder: Path, number: int, browser: Browser) -> Training:
    """Return a training run from its log, and draw its curves into the folder's pictures.

    A step that was taken again after an interruption counts as it went the last time.
    """
    start: dict[str, Any] = {}
    lines: dict[str, dict[int, dict[str, Any]]] = {"epoch": {}, "step": {}}
    log = sealed.read_lines(path.read_bytes())
    for line in log.documents:
        if line.get("event") == "start":
            start = line
        elif line.get("event") in lines:
            lines[line["event"]][int(line["step"])] = line
    epochs, steps = ([line for _, line in sorted(some.items())] for some in lines.values())
    task = path.parent.name
    curves: list[Picture] = []
    for what, wanted in (("loss", is_loss), ("learning rate", is_rate)):
        values: dict[str, list[tuple[float, float]]] = {}
        for line in epochs:
            for name, value in line.items():
                if wanted(name):
                    values.setdefault(name.removeprefix("lr_"), []).append((line["step"], value))
        if values:
            file = f"{PICTURES}/run-{number}-curves-{len(curves)}.svg"
            single = [(line["step"], line["total"]) for line in steps] if what == "loss" else []
            save_curves(folder / file, values, what, single)
            last = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in values.items())
            curves.append(Picture(file, what, last, f"{what} of {task} by step; at the end: {last}"))
    record: dict[str, Any] = {}
    try:
        record = read_record(path.parent)
        found = facts(start, epochs) | record_facts(record, browser)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = facts(start, epochs) | {"report of the run": f"cannot be read: {type(error).__name__} {error}"}
    if log.damage:
        found["the log"] = f"{path} is not whole ({log.damage}); curves show the lines that are"
    return Training(task, tuple(curves), found, indented(start), indented(record) if record else "")


def read_record(run: Path) -> dict[str, Any]:
    """Return the report that the trainer wrote of a run, by the run's folder; empty if there is none.

    Raises ValueError if it is not what was written.
    """
    try:
        return dict(shown_values(sealed.read_sealed(run / "run.json")))
    except FileNotFoundError:
        return {}


def record_facts(record: Mapping[str, Any], browser: Browser) -> dict[str, str]:
    """Return what the report of a run says first: labels, departures from the paper, scores beside the paper's."""
    if not record:
        return {}
    departures = record.get("departures")
    found = {"true labels": "took part" if record.get("reads_labels") else "took no part"}
    found["not as in the paper"] = (
        "the paper has no such run" if departures is None else "; ".join(map(str, departures)) or "nothing"
    )
    result, hardware = record.get("result"), record.get("hardware")
    if result:
        found["result"] = f"weights {result['weights']}, {result['chosen']}"
    for name, item in record.get("evaluations", {}).items():
        of_result = item.get("weights") is not None and item["weights"] == (result or {}).get("weights")
        if others := of_others(item, browser, of_result):
            found[name] = f"left out: its scores were made from {others}"
            continue
        obtained = item["scores"]["all"]["mean_iou"]
        text = "no score" if obtained is None else f"mIoU {100 * obtained:.2f} %"
        if "expected" in item:
            paper = item["expected"]
            text += f"; the paper has {paper['mean_iou_percent']:.2f} % ({paper['row']}; {paper['source']})"
        differs = [*(departures or ()), *item.get("departures", ())]
        text += (
            f"; not comparable as it stands: {len(differs)} settings differ" if "expected" in item and differs else ""
        )
        trained_on = item.get("also_trained_on")
        text += f"; {len(trained_on)} of its {len(item['shards'])} scenes were also trained on" if trained_on else ""
        found[name] = f"{text}. Labels were {item['labels']}" if "labels" in item else text
    if hardware:
        gpus = ", ".join(gpu["name"] for gpu in hardware["gpus"]) or "no GPU"
        found["hardware"] = (
            f"{hardware['processor']}, {hardware['usable_cores']} cores, {hardware['threads']} threads, "
            f"{hardware['memory_bytes'] / 2**30:.0f} GiB, {gpus}"
        )
    return found


def is_rate(name: str) -> bool:
    """Return whether a number of the log is a learning rate."""
    return name.startswith("lr_")


def is_loss(name: str) -> bool:
    """Return whether a number of the log is a term of the loss."""
    others = {"event", "time", "epoch", "step", "frames_per_second", "data_wait_share", "seconds"}
    return name not in others and not is_rate(name)


def facts(start: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the facts of a training run that a reader asks for first."""
    found = {"epochs": f"{epochs[-1]['epoch'] if epochs else 0} of {start.get('epochs', '?')}"}
    if epochs:
        seconds = sum(line["seconds"] for line in epochs)
        found["time"] = f"{seconds:,.0f} s, {epochs[-1]['frames_per_second']:.1f} frames/s in the last epoch"
    identity = start.get("identity", {})
    found |= {name: str(start[name]) for name in ("frames", "seed", "device", "commit") if name in start}
    if "init" in identity:
        found["initial weights"] = str(identity["init"] or "random")
    for name, table in start.get("tables", {}).items():
        found[f"table {name}"] = str(table.get("fingerprint"))
    return found


# -- identities --------------------------------------------------------------------------------------------------------


def identity_of(browser: Browser, name: str, recipe: Recipe) -> Identity:
    """Return what identifies a table and how it was made; `changes` names settings the recipe has changed since."""
    table = browser.tables[name]
    manifest = browser.store.read_manifest(name, table.fingerprint)
    made = manifest.made if manifest else {}
    identity = manifest.identity if manifest else {}
    document = {"identity": identity, "made": made, "shards": {shard.shard: shard.name for shard in table.shards}}
    return Identity(
        table=name,
        fingerprint=table.fingerprint,
        version=str(identity.get("version", "?")),
        frames=table.rows,
        failed=sum(len(shard.failed) for shard in table.shards),
        megabytes=sum(shard.bytes for shard in table.shards) / 1e6,
        finished=str(made.get("finished", "?")),
        commit=str(made.get("git_commit") or made.get("commit") or "?"),
        device=", ".join(map(str, made.get("devices", ()))) or str(made.get("device", "?")),
        changes=tuple(changes_since(name, identity, recipe)),
        document=indented(document),
    )


def changes_since(name: str, identity: Mapping[str, Any], recipe: Recipe) -> list[str]:
    """Return how the recipe as it is now differs from what a table of the pipeline was made from."""
    if name not in STAGES or not identity:
        return []
    try:
        return differences(identity, Runner(recipe).identity(STAGES[name]))
    except ConfigError as error:  # say, the teacher's files are elsewhere; the tables can still be shown
        return [f"cannot be compared with the recipe: {error}"]


def sections(recipe: Recipe) -> dict[str, str]:
    """Return the sections of a recipe as JSON; the class dictionary, which one of them names, is left out."""
    return {
        name: indented(values)
        for name, values in asdict(recipe).items()
        if isinstance(values, dict) and name != "ontology"
    }


def indented(value: Any) -> str:
    """Return a value as JSON to read."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False)


# -- the page and its folder -------------------------------------------------------------------------------------------


def render(**context: Any) -> str:
    """Return the page; every value is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template("report.html.jinja").render(generator=GENERATOR, **context)


def check_replaceable(folder: Path) -> None:
    """Raise ConfigError if the folder holds anything but a report: it is about to be replaced as a whole."""
    if not folder.exists():
        return
    refusal = ConfigError(f"{folder} is there already and holds no report; name another folder with --out")
    if not folder.is_dir() or folder.is_symlink():
        raise refusal
    names = {path.name for path in folder.iterdir()}
    page = folder / PAGE
    if names and (names - {PAGE, PICTURES} or not page.is_file() or GENERATOR not in page.read_text("utf-8")[:1000]):
        raise refusal


def replace_folder(new: Path, folder: Path) -> None:
    """Put a finished folder in the place of an older one, which is deleted then."""
    if folder.exists():
        old = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old)
    else:
        new.rename(folder)
