"""Pictures of the report, and what it says of each: frames, answers to queries, confusions and curves."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.fingerprint import Settings
from manifests.ontology import Ontology
from manifests.query import By
from manifests.recipe import Recipe
from manifests.records.log import RunLog
from manifests.stages import corrected_table
from manifests.storage.places import root_of
from manifests.tables.answers import Predict
from manifests.tables.base import UInt8
from manifests.tables.labels import Correct, Label, Target
from manifests.tables.sensors import Points, Project
from manifests.tables.teacher import Segment
from pipeline.look.browse import Browser, FrameRows, Place
from pipeline.look.cloud import cloud
from pipeline.look.pictures import (
    Panel,
    camera_pictures,
    changes,
    classes_in,
    from_above,
    heat,
    heat_pictures,
    panels,
    save_confusion,
    save_curves,
    save_image,
    save_panel,
)
from pipeline.look.query import Asked
from superpixels.flat_interaction import refine
from superpixels.ground import height_of_sensor_m
from superpixels.reliability import Trust

PICTURES = "pictures"
IMAGE_PX, PANEL_PX = 960, 800
BEST_FRAMES = 2  # of each ranking of a query, how many frames are drawn
BY: Mapping[By, str] = {"masks": "by mask vectors", "tmp": "by TMP features"}


@dataclass(frozen=True)
class Picture:
    """A picture of the page: its file relative to the page, a heading, a sentence below, and what it shows in words.

    `cloud` is the frame of which the large view has the points of this picture, empty where it shows an image.
    """

    file: str
    title: str
    about: str
    alt: str
    cloud: str = ""


@dataclass(frozen=True)
class ShownFrame:
    """One frame of the page; `classes` are the classes that occur, `doubt` is why it is here, `cloud` its points."""

    scene: str
    frame_id: str
    time: str
    about: str
    cameras: tuple[Picture, ...]
    panels: tuple[Picture, ...]
    classes: tuple[int, ...]
    doubt: str = ""
    cloud: Settings | None = None


@dataclass(frozen=True)
class ShownQuery:
    """What was asked and found: tables of the ranking, each with a heading and a sentence, and the best frames."""

    phrase: str
    rankings: tuple[tuple[str, str, list[tuple[str, ...]]], ...]
    frames: tuple[ShownFrame, ...]


def show_frame(item: FrameRows, recipe: Recipe, folder: Path, number: int, refined: Collection[str] = ()) -> ShownFrame:
    """Draw a frame into the folder's pictures and return what the page says of it; `refined` as in `refinements`."""
    frame, rows, ontology = item.frame, item.rows, recipe.ontology
    cameras = []
    views = camera_pictures(item, root_of(recipe.data), ontology, IMAGE_PX)
    for view, (camera, picture) in enumerate(zip(frame.cameras, views, strict=True)):
        file = f"{PICTURES}/{number:03d}-view-{view}.jpg"
        save_image(folder / file, picture)
        n_segments = int(rows[Segment].segments_in_view[view])
        n_points = int(np.count_nonzero((rows[Project].view == view) & ~rows[Project].occluded))
        about = f"{n_segments:,} segments, {n_points:,} points"
        alt = f"Image of {camera.name} with {about}, coloured by class"
        cameras.append(Picture(file, camera.name, about, alt))
    above = []
    for place, panel in enumerate([*panels(item.labels, ontology), *refinements(item, recipe, refined)]):
        file = f"{PICTURES}/{number:03d}-above-{place}.png"
        save_panel(folder / file, from_above(frame, rows[Points].xyz_m), panel, PANEL_PX)
        alt = f"{panel.title} of the points from above, 100 by 100 metres: {panel.about}"
        above.append(Picture(file, panel.title, panel.about, alt, frame.frame_id))
    seen, label = rows[Target].seen, rows[Target].label
    return ShownFrame(
        scene=frame.scene,
        frame_id=frame.frame_id,
        time=time_of_day(frame.timestamp_us),
        about=f"{len(seen):,} points, {percent(seen.sum(), len(seen))} seen by a camera, "
        f"{percent(np.count_nonzero(label), len(seen))} with a pseudo-label",
        cameras=tuple(cameras),
        panels=tuple(above),
        classes=tuple(classes_in(item.labels)),
        cloud=cloud(item),
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
    frame, xyz_m = item.frame, item.rows[Points].xyz_m
    cameras, above, about = [], [], []
    for by, margin in asked.margins(place, frame.frame_id, len(xyz_m)).items():
        ranking = asked.rankings[by]
        rgb, shown = heat(margin, ranking.low, ranking.high)
        views = heat_pictures(item, root_of(recipe.data), rgb, shown, IMAGE_PX)
        for view, (camera, picture) in enumerate(zip(frame.cameras, views, strict=True)):
            file = f"{PICTURES}/{name}-{by}-view-{view}.jpg"
            save_image(folder / file, picture)
            alt = f"Image of {camera.name}, its points coloured by how like “{asked.query.phrase}” they are {BY[by]}"
            cameras.append(Picture(file, camera.name, BY[by], alt))
        file = f"{PICTURES}/{name}-{by}-above.png"
        known = int(np.isfinite(margin).sum())
        said = f"{BY[by]}: {known:,} points are known, the most similar has the margin {np.nanmax(margin):+.3f}"
        save_panel(folder / file, from_above(frame, xyz_m), Panel(BY[by], said, rgb, shown), PANEL_PX)
        alt = f"Points from above, 100 by 100 metres, coloured by how like “{asked.query.phrase}” they are {BY[by]}"
        above.append(Picture(file, "From above", said, alt))
        about.append(said)
    time = time_of_day(frame.timestamp_us)
    return ShownFrame(frame.scene, frame.frame_id, time, "; ".join(about), tuple(cameras), tuple(above), ())


def refinements(item: FrameRows, recipe: Recipe, refined: Collection[str]) -> list[Panel]:
    """Return views from above of what flat interaction changes: in pseudo-labels where table `correct` is there or they
    were scored so ("pseudo" in `refined`), and in predictions where they were ("prediction").
    """
    labels, found = item.labels, []
    truth = labels.get(Label.table)

    def after(label: UInt8) -> UInt8:
        return refine(
            item.rows[Points].xyz_m,
            label,
            recipe.correct,
            n_classes=len(recipe.ontology.classes) - 1,
            ground_classes=recipe.ontology.ground_class_ids,
            sensor_height_m=height_of_sensor_m(item.frame.ego_from_lidar),
        ).labels

    title = "Changed by flat interaction:"
    correct = item.rows.get(Correct)
    if correct or "pseudo" in refined:
        before = labels[corrected_table(recipe).table] if correct else item.rows[Target].label
        new = correct.label if correct else after(before)
        found.append(changes(before, new, truth, f"{title} pseudo-labels", recipe.ontology))
    if Predict.table in labels and "prediction" in refined:
        before = labels[Predict.table]
        found.append(changes(before, after(before), truth, f"{title} predictions", recipe.ontology))
    return found


def time_of_day(timestamp_us: int) -> str:
    """Return a time to read, in UTC, to the millisecond; times that are no date are given as they are."""
    try:
        when = datetime.fromtimestamp(timestamp_us / 1e6, UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        return f"{timestamp_us} µs"
    return f"{when.isoformat(sep=' ', timespec='milliseconds')} UTC"


def confusion_picture(
    title: str, confusion: NDArray[np.int64], folder: Path, number: int, ontology: Ontology
) -> Picture:
    """Draw a confusion matrix, points by truth (rows) and answer, into the folder's pictures."""
    file = f"{PICTURES}/confusion-{number}.svg"
    save_confusion(folder / file, confusion, ontology.class_names)
    n_points = int(confusion[1:].sum())
    about = f"of each true class (row) the share of its points that got each answer, in %; {n_points:,} points"
    return Picture(file, title, about, f"Confusion matrix, {title}: {about}")


def curve_pictures(task: str, log: RunLog, folder: Path, stem: str) -> tuple[Picture, ...]:
    """Draw the loss and the learning rates of a run by step into files of the folder that start with `stem`."""
    pictures: list[Picture] = []
    for what in ("loss", "learning rate"):
        curves: dict[str, list[tuple[float, float]]] = {}
        for line in log.epochs:
            for name, value in (line.losses if what == "loss" else line.rates).items():
                curves.setdefault(name, []).append((line.step, value))
        if not curves:
            continue
        file = f"{PICTURES}/{stem}-{len(pictures)}.svg"
        single = [(line.step, line.values["total"]) for line in log.steps] if what == "loss" else []
        save_curves(folder / file, curves, what, single)
        last = ", ".join(f"{name} {points[-1][1]:.4g}" for name, points in curves.items())
        pictures.append(Picture(file, what, last, f"{what} of {task} by step; at the end: {last}"))
    return tuple(pictures)


def risk_picture(worth: Mapping[str, Trust], folder: Path) -> Picture | None:
    """Draw risk against coverage of tables of labels by name into the folder's pictures; None where nothing tells."""
    curves = {
        name: [(100 * cover, 100 * risk) for cover, risk in one.curve] for name, one in worth.items() if one.curve
    }
    if not curves:
        return None
    file = f"{PICTURES}/risk.svg"
    save_curves(folder / file, curves, "risk, 1 - mIoU in %", along="coverage: the surest part of the points, in %")
    told = ", ".join(f"{name} AUGRC {100 * worth[name].augrc:.1f} %" for name in curves)
    about = f"a curve that rises to the right belongs to a confidence that knows what is wrong; {told}"
    return Picture(file, "Risk and coverage", about, f"Risk against coverage of labels: {about}")


def percent(part: float, whole: float) -> str:
    """Return a share in percent; a share of nothing is a dash."""
    return f"{100 * part / whole:.1f} %" if whole else "–"
