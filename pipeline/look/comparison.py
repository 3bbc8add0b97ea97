"""Several recipes on one page: scores, classes, what was asked otherwise, and curves; one file to open offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from manifests.config import ConfigError
from manifests.effective import effective, toml_value
from manifests.recipe import Recipe
from manifests.records.log import run_log
from manifests.storage import sealed
from manifests.storage.store import Store
from pipeline.look.browse import Browser
from pipeline.look.documents import ShownScores, log_files, read_evaluations, unrefined, with_unrefined
from pipeline.look.report import notices

PARTS = ("seen", "unseen", "all")
PAGE, GENERATOR = "index.html", "AFOV comparison"
HOW = {"run"}
"""The section that changes nothing of what is computed."""


@dataclass(frozen=True)
class Compared:
    """A recipe and its evaluations."""

    recipe: Recipe
    scores: tuple[ShownScores, ...]

    @property
    def title(self) -> str:
        """What its columns are called."""
        return self.recipe.run_name


@dataclass(frozen=True)
class ClassRow:
    """IoU of one class in %, a recipe each, and how far each is from the first."""

    name: str
    values: tuple[float | None, ...]
    differences: tuple[float | None, ...]


def write_comparison(recipes: Sequence[Recipe], folder: Path) -> Path:
    """Write the page of several recipes into `folder` and return its path.

    Raises ConfigError for recipes of different classes, and where the page cannot be written; StoreError for tables
    that are damaged or of another recipe.
    """
    classes = recipes[0].ontology.class_names
    for other in recipes[1:]:
        if other.ontology.class_names != classes:
            raise ConfigError(f"recipes {recipes[0].name} and {other.name} have other classes: nothing can be compared")
    compared, left_out = [], []
    for recipe in recipes:
        browser = Browser.open(Store.open(recipe.run.store), recipe)
        scores, sentences = read_evaluations(recipe.folder(), browser, recipe.ontology)
        compared.append(Compared(recipe, tuple(scores)))
        left_out += [*notices(browser, recipe), *sentences]
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("comparison.html.jinja").render(
        titles=[one.title for one in compared],
        now=datetime.now(UTC).isoformat(timespec="seconds"),
        notices=list(dict.fromkeys(left_out)),
        parts=PARTS,
        scores=summary(compared),
        classes=class_rows(compared),
        settings=asked_otherwise(recipes),
        curves=curves(recipes),
    )
    path = folder / PAGE
    try:
        if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:1000]:
            raise ConfigError(f"{path} is there already and is no comparison; name another folder with --out")
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the page in {folder} cannot be made: {error}; --out names another folder") from None
    return path


def summary(compared: Sequence[Compared]) -> list[tuple[str, str, list[float | None]]]:
    """Return what was scored, of which recipe, and its mIoU in % over the parts of the points."""
    rows = [
        (one.title, recipe.title, [percent(one.parts[part].mean_iou) if part in one.parts else None for part in PARTS])
        for recipe in compared
        for one in with_unrefined(recipe.scores)
    ]
    titles = [title for title, _, _ in rows]
    return sorted(rows, key=lambda row: titles.index(row[0]))


def class_rows(compared: Sequence[Compared]) -> list[ClassRow]:
    """Return the IoU of each class over all points, of the student of each recipe."""
    found = []
    plain = [unrefined(recipe.scores) for recipe in compared]
    students = [next((one for one in some if one.of == "prediction"), None) for some in plain]
    for number, name in enumerate(compared[0].recipe.ontology.class_names[1:]):
        scored = [one.parts["all"].iou[number] if one and "all" in one.parts else None for one in students]
        values = tuple(map(percent, scored))
        first = values[0]
        apart = tuple(None if value is None or first is None else round(value - first, 2) for value in values)
        found.append(ClassRow(name, values, apart))
    return found


def percent(value: float | None) -> float | None:
    """Return a share as % with two places."""
    return None if value is None else round(100 * value, 2)


def asked_otherwise(recipes: Sequence[Recipe]) -> list[tuple[str, list[str]]]:
    """Return the settings in which recipes differ, and the value of each."""
    values: list[Mapping[str, str]] = [
        {
            f"{one.section}.{one.key}": "left out" if one.value is None else toml_value(one.value)
            for one in effective(recipe.typed or recipe.name, recipe.overrides)
            if one.section not in HOW
        }
        for recipe in recipes
    ]
    keys = dict.fromkeys(key for some in values for key in some)
    rows = [(key, [some.get(key, "–") for some in values]) for key in keys]
    return [(key, row) for key, row in rows if len(set(row)) > 1]


def curves(recipes: Sequence[Recipe]) -> list[tuple[str, str]]:
    """Return a picture of the loss over epochs for each task, all recipes in it, as a data URI."""
    from matplotlib.figure import Figure

    lines: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for recipe in recipes:
        for path in log_files(recipe.folder()):
            log = run_log(sealed.read_lines(path.read_bytes()).documents)
            epochs = [one for one in log.epochs if "total" in one.values]
            if epochs:
                points = [one.epoch for one in epochs], [one.values["total"] for one in epochs]
                lines.setdefault(path.parent.name, {})[recipe.run_name] = points
    found = []
    for task, runs in lines.items():
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        for title, (epochs_done, losses) in runs.items():
            axes.plot(epochs_done, losses, marker="o", markersize=3, label=title)
        axes.set(xlabel="epoch", ylabel="loss", title=task)
        axes.legend()
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        found.append((task, "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()))
    return found
