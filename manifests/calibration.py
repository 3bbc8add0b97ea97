"""Calibrated confidences: of which table of labels, what they were fitted on, and which of them a recipe means now.

The trainer fits them (`trainer.scoring.calibrate`); both sides read them. A calibration is a table of one row. A ref
that is named after the table of labels keeps it, so that it can only be found for the labels that it was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manifests.asked import contents_of, pin, tables_of
from manifests.config import ConfigError
from manifests.fingerprint import Json, digest
from manifests.labels import (
    pinned_table,
    pseudo_labels_before,
    refine_pin,
    refine_split,
    refined_of,
    steps_left,
    students_predictions,
)
from manifests.recipe import Recipe
from manifests.records.evaluation import CalibratedBy
from manifests.records.table import Identity
from manifests.sections.labels import LabelTable
from manifests.splits import ALL, load_split, split_content
from manifests.stages import corrected_table
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Calibrate
from manifests.tables.base import UInt8

VERSION = 1
"""Raised when the code changes what a calibration is."""

SHARD = "all"
"""The one shard of a calibration."""


@dataclass(frozen=True)
class Remade:
    """How labels of a table come from those of single sweeps, so that they can be made again without one of these.

    `base` is the table of single sweeps, `staged` whether stage `vote` puts them to the vote, and `steps` what
    refinement does after that ("" for nothing).
    """

    base: str
    staged: bool
    steps: str

    @property
    def votes(self) -> bool:
        """Whether other sweeps have a say."""
        return self.staged or "vote" in self.steps


def remade(recipe: Recipe, of: LabelTable) -> Remade:
    """Return how pseudo-labels of a table are made; raises StoreError where they cannot be refined."""
    if of == "refine":
        before = pseudo_labels_before(recipe)
        return Remade(
            "group" if before == "vote" else before, before == "vote", steps_left(recipe, "pseudo", recipe.refine.by)
        )
    corrects = "vote+correct" if recipe.target.labels == "vote+correct" else "correct"
    how = {"correct": corrects, "target": recipe.target.labels}.get(of, of)
    return Remade("group", "vote" in how, "afi" if "correct" in how else "")


def of_student(recipe: Recipe, of: LabelTable) -> bool:
    """Return whether the labels of a table are a student's."""
    return of == "predict" or (of == "refine" and recipe.refine.of == "prediction")


def refusal(recipe: Recipe, of: LabelTable) -> str:
    """Return why the labels of a table cannot be calibrated as section `[calibrate]` asks; "" where they can."""
    if recipe.calibrate.by == "agreement" and of_student(recipe, of):
        return (
            f'calibrate.by is "agreement", and table `{of}` holds what a student says: one network names all sweeps, '
            "so that they agree where it is wrong too, and its confidence would mean less than before; fit it on true "
            'labels of some scenes, calibrate.by = "truth", or leave it as it is, calibrate.by = ""'
        )
    if recipe.calibrate.by == "agreement" and (setting := not_made_again(recipe, of)):
        return (
            f'calibrate.by is "agreement", which makes labels of table `{of}` again without one sweep, and it does not '
            f'know {setting} there; fit it on true labels of some scenes, calibrate.by = "truth", or leave it out'
        )
    mended = of == "target" or (of == "refine" and not of_student(recipe, of) and remade(recipe, of).base == "target")
    if recipe.data.corrections and mended:
        return (
            f"table `{of}` holds labels that people corrected (data.corrections), whose confidence is theirs; "
            "calibrate `group`, `vote` or `correct`"
        )
    return ""


def not_made_again(recipe: Recipe, of: LabelTable) -> str:
    """Return a setting by which a table of pseudo-labels is made and which `held_out` of the trainer does not know."""
    if recipe.vote.follow and remade(recipe, of).votes:
        return "vote.follow"
    if of == "target" and recipe.target.confidence == "margin":
        return 'target.confidence = "margin"'
    # refinement starts from tables as they are, and there a label alone is evidence
    corrected = of != "refine" and "afi" in remade(recipe, of).steps
    return 'correct.evidence = "divided"' if corrected and recipe.correct.evidence == "divided" else ""


def labels_made_by_pipeline(recipe: Recipe, of: LabelTable) -> tuple[str, ...]:
    """Return the tables of the pipeline that hold the labels which are called `of`."""
    if of in ("refine", "predict"):
        return ()
    return (corrected_table(recipe).table, "correct") if of == "correct" else (of,)


def compared_with(recipe: Recipe, of: LabelTable) -> tuple[str, ...]:
    """Return the tables that tell how often labels are right: the truth, or all that they are made again from."""
    if recipe.calibrate.by == "truth":
        return ("label",)
    how = remade(recipe, of)
    staged = ("group", "project", *(("score",) if recipe.vote.names > 1 else ())) if how.staged else ()
    return tuple(dict.fromkeys(("index", "points", how.base, *staged)))


@dataclass(frozen=True)
class Wanted:
    """The calibration that a recipe asks for: of which labels, its identity and key, and where it is kept.

    `tables` are all that it is made from, those that hold the labels (`labels`) among them, `ref` what names them;
    `scenes` are those of the split, which it is fitted on, and `silent` frames of them that have no say.
    """

    of: LabelTable
    labels: tuple[TableRef, ...]
    identity: Identity
    key: str
    name: str
    tables: tuple[TableRef, ...]
    scenes: frozenset[str]
    split: str
    ref: Ref
    silent: frozenset[str]


def wanted(store: Store, recipe: Recipe, of: LabelTable, answers: TableRef | None = None) -> Wanted:
    """Return the calibration of the labels of a table that a recipe asks for.

    `answers` is the table where the trainer made it; left out, it is that of the recipe as it is now. Raises
    ConfigError where these labels cannot be calibrated so, or there is no such split, and StoreError for tables that
    are missing or old.
    """
    if reason := refusal(recipe, of):
        raise ConfigError(reason)
    made, against = labels_made_by_pipeline(recipe, of), compared_with(recipe, of)
    ref = tables_of(store, recipe, dict.fromkeys(("index", "points", *made, *against)))
    if not made and answers is None:
        answers = answers_of(store, recipe, ref, of)
    labels = tuple(ref.table(name) for name in made) or ((answers,) if answers else ())
    tables = tuple({one.stage: one for one in (*labels, *map(ref.table, against))}.values())
    settings = recipe.calibrate
    split = settings.split or (refine_split(recipe) if of == "refine" else ALL)
    scenes = scenes_of(recipe, ref.table("index"), labels, split)
    said: dict[str, Json] = {
        "of": of,
        "by": settings.by,
        "split": list(split_content(split)) if split.endswith(".txt") else split,
        "frames": settings.frames,
        "n_classes": len(recipe.ontology.classes) - 1,
    }
    identity = Identity(
        "calibrate", VERSION, Calibrate.signature(), said, {one.stage: one.fingerprint for one in tables}
    )
    silent = frozenset({*ref.excluded, *recipe.data.exclude})
    key = digest([identity.fingerprint, contents_of((ref.table("index"), *tables), scenes), sorted(silent)])
    return Wanted(of, labels, identity, key, pin_of(recipe, of, labels[-1]), tables, scenes, split, ref, silent)


def answers_of(store: Store, recipe: Recipe, ref: Ref, of: LabelTable) -> TableRef:
    """Return the table of the trainer that holds labels; raises StoreError like `refined_of`."""
    if of == "refine":
        return refined_of(store, recipe, ref)[0]
    return students_predictions(store, recipe, ref.table("points"))[0]


def scenes_of(recipe: Recipe, index: TableRef, labels: Sequence[TableRef], split: str) -> frozenset[str]:
    """Return the scenes of a split; raises ConfigError if there is none, StoreError for one that has no labels."""
    try:
        scenes = load_split(
            split, recipe.data.dataset, tuple(dict.fromkeys(scene_of(one.shard) for one in index.shards))
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"calibrate.split: {error}") from None
    for table in labels:
        lacking = set(scenes) - {scene_of(one.shard) for one in table.shards}
        if lacking:
            raise StoreError(
                f"table `{table.stage}` of recipe {recipe.name} has no labels of scene {min(lacking)}, and calibration "
                f"is to be fitted on split {split!r}; run: {recipe.make(table.stage)} for these scenes, or choose "
                "calibrate.split"
            )
    return frozenset(scenes)


def pin_of(recipe: Recipe, of: LabelTable, labels: TableRef) -> str:
    """Return the name of the ref that keeps the calibration of labels: of this very table."""
    return pin(recipe, f"calibrate-{of}-{labels.fingerprint}")


@dataclass(frozen=True, eq=False)
class Calibration:
    """A calibration to be used: the confidence in place of each, (256,) in 1/255, and what is told of it.

    `content` names its bytes, for the identity of what is made with it; `scenes` are those it was fitted on.
    """

    level: UInt8
    about: CalibratedBy
    content: str
    scenes: frozenset[str]


def calibration_of(store: Store, recipe: Recipe, of: LabelTable, labels: TableRef) -> Calibration | None:
    """Return the calibration of a table's labels that a recipe asks for; None where it asks for none.

    Raises StoreError where it was not made yet, or of something else, and ConfigError where these labels cannot be
    calibrated so.
    """
    if not recipe.calibrate.by:
        return None
    if reason := refusal(recipe, of):
        raise ConfigError(reason)
    advice = f"run: {recipe.make('calibrate', more=('--of', of))}"
    table = pinned_table(store, pin_of(recipe, of, labels), "calibrate")
    if table is None:
        raise StoreError(f"the confidence of table `{of}` of recipe {recipe.name} is not calibrated yet; {advice}")
    now = wanted(store, recipe, of, whole(store, recipe, of, labels))
    if table.fingerprint != now.identity.fingerprint or table.shards[0].key != now.key:
        raise StoreError(
            f"the confidence of table `{of}` of recipe {recipe.name} was calibrated with other settings, or on labels "
            f"that are others by now; {advice}"
        )
    [row] = store.every(Calibrate, table.fingerprint, table.shards)
    return Calibration(
        row.confidence, told(row, now, recipe), f"{table.fingerprint}.{table.shards[0].sha256}", now.scenes
    )


def whole(store: Store, recipe: Recipe, of: LabelTable, labels: TableRef) -> TableRef:
    """Return a table with all shards that the recipe has of it; scores are made of those of one split."""
    kept = (
        pinned_table(store, refine_pin(recipe, recipe.refine.of, recipe.refine.by), "refine")
        if of == "refine"
        else None
    )
    return kept if kept and kept.fingerprint == labels.fingerprint else labels


def told(row: Calibrate, of: Wanted, recipe: Recipe) -> CalibratedBy:
    """Return what documents say of a calibration."""
    return CalibratedBy(
        by=recipe.calibrate.by,
        split=of.split,
        table=of.identity.fingerprint,
        compared=int(row.compared.sum()),
        error_before=row.error_before,
        error_after=row.error_after,
        augrc_before=row.augrc_before,
        augrc_after=row.augrc_after,
    )
