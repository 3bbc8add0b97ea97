"""The report of a recipe: one page to open offline, with its frames, scores, curves and identities."""

from __future__ import annotations

import base64
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from manifests.config import ConfigError, listing
from manifests.ontology import Ontology
from manifests.query import HEADINGS
from manifests.recipe import Recipe
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.storage.store import Store
from pipeline.look.browse import Browser, Track
from pipeline.look.documents import (
    indented,
    log_files,
    made_from,
    read_evaluations,
    shown_table,
    shown_training,
    unrefined,
    with_unrefined,
)
from pipeline.look.figures import PICTURES, confusion_picture, percent, risk_picture, show_frame, show_query
from pipeline.look.pictures import CHANGES, VERDICTS, heat_scale
from pipeline.look.quality import LabelQuality, label_quality, measure
from pipeline.look.query import asked_of
from pipeline.look.worst import ranked, to_draw

PAGE = "index.html"
GENERATOR = "AFOV report"  # in the page's head: a folder is replaced only if it holds a report
COUNTED_PAIRS = 40  # frames, each with the next of its scene, over which tables of labels are judged
LISTED_FRAMES = 20  # of those that are counted, how many of the most doubtful are listed
COUNTED_FRAMES = 200  # coverage and agreement are counted over this many frames at most, evenly chosen


def write_report(
    recipe: Recipe,
    folder: Path,
    n_frames: int,
    track: Track = lambda items, _: items,
    now: datetime | None = None,
    single_file: bool = False,
) -> Path:
    """Write the report of a recipe into `folder` and return the path of its page.

    At most `n_frames` frames are drawn, the most doubtful first; pictures lie beside the page, or in it where it shall
    be a `single_file`. An older report in the folder is replaced once the new one is whole. Raises StoreError for
    tables that are missing or damaged, FrameError for an image that cannot be read, and ConfigError if the folder holds
    anything but a report or cannot be written.
    """
    check_replaceable(folder)
    store = Store.open(recipe.run.store)
    browser = Browser.open(store, recipe)
    scratch = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    try:
        (scratch / PICTURES).mkdir(parents=True)
        made = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        found = contents(recipe, browser, scratch, n_frames, track)
        page = render(pictures_in=scratch if single_file else None, now=made, **found)
        (scratch / PAGE).write_text(page, encoding="utf-8")
        if single_file:
            shutil.rmtree(scratch / PICTURES)
        replace_folder(scratch, folder)
    except OSError as error:
        raise ConfigError(f"the report in {folder} cannot be made: {error}; --out names another folder") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder / PAGE


def contents(recipe: Recipe, browser: Browser, scratch: Path, n_frames: int, track: Track) -> dict[str, object]:
    """Return all that the page says, by its name in the template, and draw its pictures into `scratch`."""
    runs = recipe.folder()
    evaluations, unreadable = read_evaluations(runs, browser, recipe.ontology)
    refined = {item.of for item in evaluations if item.before and item.steps == ("afi",)}
    places = browser.choose(COUNTED_FRAMES)
    quality = measure((browser.read(place) for place in track(places, "counts")), recipe.ontology)
    pairs = (
        (browser.read(place), browser.read(follower) if (follower := browser.after(place)) else None)
        for place in track(browser.choose(COUNTED_PAIRS), "labels")
    )
    tables_of_labels = label_quality(pairs, recipe.ontology)
    worst = ranked(places, quality.doubts)
    chosen = track(to_draw(worst, browser.choose(n_frames), n_frames), "frames")
    frames = [
        replace(
            show_frame(browser.read(one.place), recipe, scratch, number, refined),
            doubt=f"Rank {one.rank} of {len(worst)} by doubt: {one.about}.",
        )
        for number, one in enumerate(chosen)
    ]
    identities = [shown_table(browser, name, recipe) for name in browser.tables]
    queries, not_asked = asked_of(browser, recipe.run.runs)
    calibrations, not_calibrated = browser.calibrations()
    return {
        "recipe": recipe,
        "notices": [*notices(browser, recipe), *not_calibrated, *unreadable, *not_asked],
        "calibrated": {name: one.about for name, one in calibrations.items()},
        "sections": sections(recipe),
        "classes": class_table(recipe.ontology),
        "verdicts": VERDICTS,
        "changes": CHANGES if refined or "correct" in browser.tables else {},
        "frames": frames,
        "worst": worst[:LISTED_FRAMES],
        "quality": quality,
        "tables_of_labels": [
            (item, item.scores(), item.worth(one.level) if (one := calibrations.get(item.table)) else None)
            for item in tables_of_labels
        ],
        "risk": risk_picture({one.table: worth for one in tables_of_labels if (worth := one.worth())}, scratch),
        "judged": any(item.confusion for item in tables_of_labels),
        "learnt": learnt_classes(tables_of_labels, recipe.ontology),
        "n_frames_in_all": len(browser.places()),
        "has": set(browser.tables),
        "scored": with_unrefined(evaluations),
        "evaluations": unrefined(evaluations),
        "refined": [item for item in evaluations if item.before],
        "confusions": [
            confusion_picture(item.title, item.confusion, scratch, number, recipe.ontology)
            for number, item in enumerate(evaluations)
            if item.confusion is not None and item.confusion[1:].any() and item.of != "majority"
        ],
        "trainings": [shown_training(path, scratch, number, browser) for number, path in enumerate(log_files(runs))],
        "identities": identities,
        "headings": HEADINGS,
        "heat_scale": heat_scale(),
        "asked": [show_query(one, browser, recipe, scratch, number) for number, one in enumerate(queries)],
    }


# -- what the page says of a recipe -----------------------------------------------------------------------------------


def notices(browser: Browser, recipe: Recipe) -> list[str]:
    """Return sentences on what the pictures and numbers must not be taken for."""
    found = []
    settings = [made.settings for name in browser.tables if (made := made_from(browser, name))]
    teachers = [one for item in settings if isinstance(one := item.get("teacher"), Mapping)]
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
    found += browser.not_shown()
    if "predict" not in browser.tables and "predict" not in browser.hidden:
        found.append(
            "There are no predictions of these points yet, so the student is not shown. Run: "
            f"{recipe.make('distill', 'predict')}"
        )
    return found


def class_table(ontology: Ontology) -> list[tuple[str, str]]:
    """Return name and colour of every class, 0 first."""
    return [(item.name, "#" + bytes(item.rgb).hex()) for item in ontology.classes]


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


def sections(recipe: Recipe) -> dict[str, str]:
    """Return the sections of a recipe as JSON; the class dictionary, which one of them names, is left out."""
    return {
        name: indented(values)
        for name, values in asdict(recipe).items()
        if isinstance(values, dict) and name != "ontology"
    }


# -- the page and its folder -------------------------------------------------------------------------------------------


def render(*, pictures_in: Path | None, **context: Any) -> str:
    """Return the page; every value is escaped. Pictures are part of it where `pictures_in` says where they are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    environment.filters["source"] = lambda file: file if pictures_in is None else data_uri(pictures_in / file)
    embedded = pictures_in is not None
    return environment.get_template("report.html.jinja").render(generator=GENERATOR, embedded=embedded, **context)


def data_uri(path: Path) -> str:
    """Return a picture as an address that holds all of it."""
    kind = {".jpg": "image/jpeg", ".png": "image/png", ".svg": "image/svg+xml"}[path.suffix]
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


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
