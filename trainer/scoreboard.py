"""All scores of some recipes in one table: pseudo-labels, students and yardsticks, seen and unseen points apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from manifests.store import Store, StoreError
from trainer.config import Recipe, TrainerError
from trainer.record import teacher_of

NAMES = {
    "pseudo": "pseudo-labels",
    "prediction": "student",
    "majority": "most frequent class",
    "tree": "decision tree",
}
"""What is scored, in the order of the table."""

PARTS = {"seen": "seen", "unseen": "unseen", "all": "all"}


@dataclass(frozen=True)
class Line:
    """One evaluation: what was scored, and IoU in 0..1 by part of the points; None is a score of nothing."""

    title: str
    mean_iou: Mapping[str, float | None]
    iou: Mapping[str, Sequence[float | None]]


def read_lines(recipes: Sequence[Recipe]) -> list[Line]:
    """Return the evaluations of some recipes, those that were refined before and after; equal ones are listed once.

    Raises TrainerError if there are none, if one cannot be read, or if they are not of the same points.
    """
    found: list[tuple[int, Line, Mapping[str, Any]]] = []
    judged = set()
    for recipe in recipes:
        mark = ", supervised teacher" if has_supervised_teacher(recipe) else ""
        for path in sorted(recipe.folder().glob("evaluate*.json")):
            document = read(path)
            if document["classes"] != list(recipe.ontology.class_names[1:]):
                raise TrainerError(
                    f"{path} scores other classes than recipe {recipe.name} has; run make evaluate again"
                )
            student = document.get("student", "distill")
            title = NAMES[document["of"]] + (f", {student}" if student != "distill" else "")
            if document["of"] == "prediction" and len(recipes) > 1:
                title = f"{title} ({recipe.name})"
            if document["of"] in ("pseudo", "prediction"):
                title += mark
            rank = list(NAMES).index(document["of"])
            versions = {title: document["scores"]}
            if "refine" in document:
                refined = f"{title} + {document['refine']['name'].upper()}"
                versions = {title: document["scores_before"], refined: document["scores"]}
            for name, scores in versions.items():
                if not any(rank == other[0] and scores == other[2] for other in found):
                    found.append((rank, line(name, scores), scores))
            judged.add((document["split"], document["frames"], document["scores"]["all"]["points"]))
    if not found:
        names = ", ".join(recipe.name for recipe in recipes)
        raise TrainerError(f"there are no scores of {names} yet; run: make predict evaluate RECIPE={recipes[0].name}")
    if len(judged) > 1:
        raise TrainerError(
            f"the scores of {', '.join(recipe.name for recipe in recipes)} are of different frames or points, so they "
            "cannot stand in one table; run make evaluate for each of them again"
        )
    return [item for _, item, _ in sorted(found, key=lambda entry: entry[0])]


def has_supervised_teacher(recipe: Recipe) -> bool:
    """Return whether labels of driving scenes taught the recipe's teacher, as far as its tables are there to tell."""
    store = Store.open(recipe.run.store)
    try:
        teacher = teacher_of(store, store.read_ref(recipe.name), None)
    except StoreError:
        return False
    return bool((teacher or {}).get("supervised"))


def read(path: Path) -> dict[str, Any]:
    """Return an evaluation; raises TrainerError if it cannot be read."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if document["of"] not in NAMES:
            raise ValueError(f'it is of "{document["of"]}"')
        return document
    except (OSError, ValueError, KeyError) as error:
        raise TrainerError(f"{path} is no evaluation that can be read ({error}); run make evaluate again") from None


def line(title: str, scores: Mapping[str, Any]) -> Line:
    """Return the scores of one evaluation as a line of the table."""
    return Line(
        title,
        {part: scores[part]["mean_iou"] for part in PARTS if part in scores},
        {part: scores[part]["iou"] for part in PARTS if part in scores},
    )


def summary_table(lines: Sequence[Line]) -> Table:
    """Return mIoU in percent, a numbered row per evaluation, a column per part of the points."""
    table = Table(title="mIoU in %")
    table.add_column("", justify="right")
    table.add_column("")
    for name in PARTS.values():
        table.add_column(f"{name} points", justify="right")
    for number, item in enumerate(lines, start=1):
        table.add_row(str(number), item.title, *(cell(item.mean_iou.get(part), 2) for part in PARTS))
    return table


def class_tables(lines: Sequence[Line], class_names: Sequence[str]) -> list[Table]:
    """Return IoU in percent, a table per part of the points, a row per class (class 1 first), a column per evaluation.

    Columns bear the numbers of `summary_table`: seven titles side by side would not fit a terminal.
    """
    tables = []
    for part in ("seen", "unseen") if any("seen" in item.iou for item in lines) else ("all",):
        table = Table(title=f"IoU in %, {PARTS[part]} points")
        table.add_column("class", no_wrap=True)
        for number, _ in enumerate(lines, start=1):
            table.add_column(str(number), justify="right")
        for index, name in enumerate(class_names):
            table.add_row(name, *(cell(item.iou[part][index], 1) if part in item.iou else "-" for item in lines))
        tables.append(table)
    return tables


def cell(value: float | None, digits: int) -> str:
    """Return a share in percent; a score of nothing is a dash."""
    return "-" if value is None else f"{100 * value:.{digits}f}"
