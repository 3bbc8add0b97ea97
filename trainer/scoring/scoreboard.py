"""All scores of some recipes in one table: pseudo-labels, students and yardsticks, seen and unseen points apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from rich.table import Table

from manifests.asked import made_anew, tables_of
from manifests.learnt import changes_since
from manifests.recipe import Recipe
from manifests.records.evaluation import EvaluationRecord, PartScores
from manifests.sections.training import Task
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.sealed import read_as
from manifests.storage.store import Store
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.records.record import states_of, teacher_of, weights_of
from trainer.scoring.evaluate import content_of_split

NAMES = {
    "pseudo": "pseudo-labels",
    "prediction": "student",
    "majority": "most frequent class",
    "tree": "decision tree",
}
"""What is scored, in the order of the table."""

OUT_OF_DATE = ", OUT OF DATE"
"""Marks scores of weights, pseudo-labels or other shards that have been made anew since."""

OTHERWISE = ", TRAINED OTHERWISE"
"""Marks scores of a student that learnt something else than the recipe asks for now."""

SCORED_OTHERWISE = ", SCORED OTHERWISE"
"""Marks scores over another split than `evaluate.split`, or with absent classes counted otherwise."""

UNKNOWN = ", SHARDS UNKNOWN"
"""Marks scores that do not say of which shards they are: those of versions up to 0.9."""

NOT_THERE = ", TABLES NOT THERE"
"""Marks scores of a recipe whose tables are not there, or not whole, to compare with."""

PARTS = {"seen": "seen", "unseen": "unseen", "all": "all"}


@dataclass(frozen=True)
class Line:
    """One evaluation: what was scored, and IoU in 0..1 by part of the points; None is a score of nothing."""

    title: str
    mean_iou: Mapping[str, float | None]
    iou: Mapping[str, Sequence[float | None]]


def read_lines(recipes: Sequence[Recipe]) -> list[Line]:
    """Return the evaluations of some recipes, those that were refined before and after; equal ones are listed once.

    A title names its recipe where several have scores of that kind that differ, and says where weights or
    pseudo-labels have been made anew since they were scored.

    Raises TrainerError if there are none, if one cannot be read, or if they are not of the same points and classes.
    """
    first, *others = recipes
    for other in others:
        if other.ontology.class_names != first.ontology.class_names:
            raise TrainerError(
                f"recipes {first.name} and {other.name} do not have the same classes, so their scores cannot stand in "
                "one table"
            )
    found: list[Found] = []
    judged = set()
    for recipe in recipes:
        facts = facts_of(recipe)
        for path in sorted(recipe.folder().glob("evaluate*.json")):
            document = read(path, recipe)
            if document.classes != recipe.ontology.class_names[1:]:
                raise TrainerError(
                    f"{path} scores other classes than recipe {recipe.name} has; run: {recipe.make('evaluate')}"
                )
            for title, scores in titled(document, facts).items():
                entry = Found(list(NAMES).index(document.of), title, recipe.name, scores)
                listed = [one for one in found if one.title == title and one.scores == scores]
                if not listed or (document.of == "prediction" and all(one.recipe != recipe.name for one in listed)):
                    found.append(entry)
            judged.add(
                (
                    document.split,
                    document.frames,
                    document.scores["all"].points,
                    document.absent,
                    document.shards,
                )
            )
    if not found:
        names = ", ".join(recipe.name for recipe in recipes)
        raise TrainerError(f"there are no scores of {names} yet; run: {recipes[0].make('predict', 'evaluate')}")
    if len(judged) > 1:
        raise TrainerError(
            f"the scores of {', '.join(recipe.name for recipe in recipes)} are of different frames or points, or "
            "absent classes count differently (evaluate.absent), so they cannot stand in one table; evaluate each of "
            f"them again: {' and '.join(recipe.make('evaluate') for recipe in recipes)}"
        )
    n_titles = Counter(entry.title for entry in found)
    lines = []
    for entry in sorted(found, key=lambda entry: entry.rank):
        named = len(recipes) > 1 and (entry.rank == list(NAMES).index("prediction") or n_titles[entry.title] > 1)
        lines.append(line(f"{entry.title} ({entry.recipe})" if named else entry.title, entry.scores))
    return lines


@dataclass(frozen=True)
class Found:
    """One line of the table before it has its full title; `rank` is its place in NAMES."""

    rank: int
    title: str
    recipe: str
    scores: Mapping[str, PartScores]


@dataclass(frozen=True)
class Facts:
    """What there is of a recipe now: whether its teacher is supervised, its tables, and where its runs lie."""

    supervised: bool
    tables: Mapping[str, TableRef]
    recipe: Recipe
    store: Store

    @property
    def runs(self) -> Path:
        """The folder of its runs."""
        return self.recipe.folder()

    def weights(self, student: str) -> dict[str, Path]:
        """Return the checkpoints that a run keeps by the digest of their weights."""
        folder = self.runs / student
        return {weights: path for path in states_of(folder) if (weights := weights_of(path)) is not None}

    def learnt_otherwise(self, path: Path, task: Task) -> bool:
        """Return whether a checkpoint learnt something else than the recipe asks of its run now."""
        student = checkpoint.read_document(path).student
        return bool(changes_since(student, self.recipe, task, self.store, checkpoint.newest_weights))


def facts_of(recipe: Recipe) -> Facts:
    """Return what there is of a recipe, as far as its tables are there to tell."""
    store = Store.open(recipe.run.store)
    try:
        ref = tables_of(store, recipe, ["target"])
    except StoreError:
        return Facts(False, {}, recipe, store)
    try:
        teacher = teacher_of(store, ref, None) or {}
    except StoreError:
        teacher = {}
    return Facts(bool(teacher.get("supervised")), ref.tables, recipe, store)


def titled(document: EvaluationRecord, facts: Facts) -> dict[str, Mapping[str, PartScores]]:
    """Return the scores of an evaluation by title: one, or before and after refinement."""
    of, tables, student = document.of, document.tables, document.learnt_by
    title = NAMES[of] + (f", {student}" if student != "distill" else "")
    if of in ("pseudo", "prediction") and facts.supervised:
        title += ", supervised teacher"
    title += which_weights(document, student, facts) if of == "prediction" else ""
    title += "" if title.endswith(OUT_OF_DATE) else which_shards(document, facts)
    title += "" if is_scored_as_asked(document, facts.recipe) else SCORED_OTHERWISE
    if document.refine is None or document.scores_before is None:
        return {title: document.scores}
    # pseudo-labels that are learnt corrected are refined from those that are not: other labels, another line
    uncorrected = of == "pseudo" and not {"group", "vote"}.isdisjoint(tables)
    before = f"{title}, not corrected" if uncorrected else title
    return {
        before: document.scores_before,
        f"{title} + {' + '.join(document.refinement.upper().split('+'))}": document.scores,
    }


def which_weights(document: EvaluationRecord, student: str, facts: Facts) -> str:
    """Return what a title has to say of weights that are not the result of the student's run; mostly nothing."""
    file, kept = document.checkpoint, facts.weights(student)
    if document.weights is None or document.weights in kept:
        said = f", epoch {document.epoch} of {document.epochs}" if document.is_of_unfinished_run else ""
        task: Task | None = student if student in get_args(Task) else None  # type: ignore[assignment]
        otherwise = document.weights and task and facts.learnt_otherwise(kept[document.weights], task)
        return said + (OTHERWISE if otherwise else "")
    elsewhere = file and Path(file).expanduser().parent.resolve() != (facts.runs / student).resolve()
    return f", {file}" if elsewhere else OUT_OF_DATE


def which_shards(document: EvaluationRecord, facts: Facts) -> str:
    """Return what a title has to say of tables or shards that are not those of the recipe any more; mostly nothing."""
    target, now = document.tables.get("target"), facts.tables.get("target")
    if document.of != "prediction" and now and target not in (None, now.fingerprint):
        return OUT_OF_DATE
    if None in document.every_content:
        return UNKNOWN
    if not facts.tables and any(document.every_content):
        return NOT_THERE
    return OUT_OF_DATE if any(made_anew(part or {}, facts.tables) for part in document.every_content) else ""


def is_scored_as_asked(document: EvaluationRecord, recipe: Recipe) -> bool:
    """Return whether scores are over the split that the recipe names now, and count absent classes as it does."""
    wanted = recipe.evaluate
    content = content_of_split(wanted.split) if document.split_content else None
    same = document.split_content == content if content else document.split == wanted.split
    return same and document.absent == wanted.absent


def read(path: Path, recipe: Recipe) -> EvaluationRecord:
    """Return an evaluation; raises TrainerError if it cannot be read."""
    try:
        document = read_as(EvaluationRecord, path)
        if document.of not in NAMES:
            raise ValueError(f'it is of "{document.of}"')
        return document
    except (OSError, ValueError) as error:
        raise TrainerError(
            f"{path} is no evaluation that can be read ({error}); run: {recipe.make('evaluate')}"
        ) from None


def line(title: str, scores: Mapping[str, PartScores]) -> Line:
    """Return the scores of one evaluation as a line of the table."""
    return Line(
        title,
        {part: scores[part].mean_iou for part in PARTS if part in scores},
        {part: scores[part].iou for part in PARTS if part in scores},
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
