"""Scores against true labels, per point."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from manifests.asked import contents_of, tables_of
from manifests.config import changed_values
from manifests.fingerprint import digest, plain
from manifests.labels import followed
from manifests.provenance import made_by
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.records.evaluation import (
    CalibratedBy,
    Compared,
    EvaluationRecord,
    LearntFrom,
    MergedFrom,
    Origin,
    PartScores,
    Refined,
)
from manifests.sections.labels import LabelTable
from manifests.sections.training import Improvement, Refinement
from manifests.sources import compare_files
from manifests.splits import split_content
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Predict, Refine
from manifests.tables.base import Failed, Rows
from manifests.tables.labels import Label, Target, Vote
from manifests.tables.sensors import Points
from manifests.tables.superpoints import Group
from superpixels.metrics import Confusion, Scores, scores
from superpixels.reliability import Reliability, Trust, trust
from trainer.data.tables import FrameRow, Selection, Tables, check_dictionary, scenes_of_split, select_frames
from trainer.inference.refine import Answered, Labels
from trainer.inference.refined_table import refine_each
from trainer.inference.sources import Source, source_of
from trainer.loop.log import progress_bar
from trainer.records import record
from trainer.scoring.baselines import learn_baseline
from trainer.scoring.calibrate import calibration_to_score

Of = Literal["prediction", "pseudo", "majority", "tree"]
Part = Literal["all", "seen", "unseen"]
LABELLED: tuple[type[Group | Vote | Target | Label | Predict | Refine], ...] = (
    *(Group, Vote, Target, Label, Predict, Refine),
)


@dataclass(frozen=True)
class Evaluation:
    """Scores over all points, and apart over those that some camera sees and those that none does.

    `before` are the scores before refinement, where the recipe asks for one.
    """

    scores: Mapping[Part, Scores]
    document: EvaluationRecord
    before: Mapping[Part, Scores] | None = None


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts by part of the points: of labels against the truth, by confidence too, and of labels that were changed.

    `notes` counts frames by what a refinement had to say of them.
    """

    counts: dict[Part, Confusion]
    by_confidence: dict[Part, Reliability]
    changed: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, parts: Sequence[Part], n_classes: int) -> Tally:
        """Return the counts of nothing."""
        return cls({part: Confusion(n_classes) for part in parts}, {part: Reliability(n_classes) for part in parts})

    def add(
        self,
        truth: Labels,
        before: Labels,
        after: Labels,
        confidence: Labels | None,
        where: Mapping[Part, NDArray[np.bool_]],
    ) -> None:
        """Count a frame, all arrays (n,); raises ValueError for classes that there are not."""
        for part, points in where.items():
            self.counts[part].add(truth[points], after[points])
            if confidence is not None:
                self.by_confidence[part].add(truth[points], after[points], confidence[points])
            self.changed[part] += int((before != after)[points].sum())


def evaluate(recipe: Recipe, console: Console, of: Of = "prediction") -> Evaluation:
    """Score predictions, or the pseudo-labels that were learnt ("pseudo"), against the true labels of a split.

    "majority" and "tree" are yardsticks without a network that learn from the same pseudo-labels. Prints a table and
    writes `evaluate.json` (`evaluate-pseudo.json`, ...) into the folder of the recipe's runs, and into
    `evaluations/<weights>` there, where those of other weights stay as they are. All points of the frames
    count, seen by a camera or not; where a pseudo-label is 0, the class is missed. With
    `evaluate.refine` labels are scored before and after flat interaction, the vote of the sweeps before and after, or
    both: after, what table `refine` says, which is made where it is not there yet; and the file is named
    `evaluate-afi.json`, `evaluate-pseudo-vote.json`, `evaluate-vote-afi.json`.

    Raises StoreError where there are no labels, no predictions, or those of another checkpoint.
    """
    return evaluate_each(recipe, console, of, [recipe.evaluate.refine])[recipe.evaluate.refine]


def evaluate_each(
    recipe: Recipe, console: Console, of: Of, refinements: Collection[Refinement]
) -> dict[Refinement, Evaluation]:
    """Score the same labels with several refinements, as `evaluate` does with one."""
    store = Store.open(recipe.run.store)
    ways: list[Improvement] = [name for name in get_args(Improvement) if name in refinements]
    moving = followed(recipe, of, " ".join(ways))
    ref = tables_of(store, recipe, ["points", "index", *moving] if ways else ["points"])
    check_dictionary(store, ref, "group", recipe.ontology.label_content())
    check_dictionary(store, ref, "label", recipe.ontology.raw_content())
    labels_of_split(store, ref, recipe)  # before anything is computed that nothing could be compared with
    found: dict[Refinement, Evaluation] = {}
    refined: Mapping[Improvement, TableRef] = {}
    if "none" in refinements:
        source = labels_to_score(of, recipe, store, ref, to_refine=False)
        judged = judged_labels(recipe, store, ref, source, None)
        found["none"] = evaluate_one(recipe, console, store, judged, of, "none")
    if ways:
        source = labels_to_score(of, recipe, store, ref, to_refine=True)
        refined = refine_each(recipe, store, ref, source, ways, recipe.evaluate.split, console)
    for name, table in refined.items():
        judged = judged_labels(recipe, store, ref, source, table)
        found[name] = evaluate_one(recipe, console, store, judged, of, name)
    console.print(judged.selection.sentence())
    if judged.compared.note:
        console.print(judged.compared.note)
    if not judged.sees:
        console.print(f"seen and unseen points apart need table `target`; run: {recipe.make('target')}")
    return found


def evaluate_one(
    recipe: Recipe, console: Console, store: Store, judged: Judged, of: Of, refinement: Refinement
) -> Evaluation:
    """Score labels as they are ("none"), or before and after a refinement."""
    before, after = tallied(recipe, judged, console)
    level, about = calibration(recipe, console, store, judged, of)
    if judged.refined is None:
        said = replace(document_of(recipe, of, judged, before, level), calibrated=about)
        return tell(recipe, console, store, said, before, None)
    said = replace(
        document_of(recipe, of, judged, after, level),
        calibrated=about,
        refine=refinement_document(recipe, refinement, judged, after),
        scores_before=part_scores(before, recipe),
        confusion_before=confusions(before),
    )
    return tell(recipe, console, store, said, after, before)


def calibration(
    recipe: Recipe, console: Console, store: Store, judged: Judged, of: Of
) -> tuple[Labels | None, CalibratedBy | None]:
    """Return what `calibration_to_score` does of the labels at hand; nothing of yardsticks."""
    if of not in ("prediction", "pseudo"):
        return None, None
    scored: LabelTable = "refine" if judged.refined else "predict" if of == "prediction" else "target"
    scenes = {frame.scene for frame in judged.selection.frames}
    return calibration_to_score(recipe, console, store, scored, judged.refined or judged.source.table, scenes)


@dataclass(frozen=True, eq=False)
class Judged:
    """Labels to score: the tables that are read, the frames of the split, the labels as they are (`source`), and the
    table that they were refined into, if they were; `compared` is how far the files behind the tables were.
    """

    tables: Tables
    points: TableRef
    selection: Selection
    source: Source
    refined: TableRef | None
    compared: Compared

    @property
    def stages(self) -> tuple[str, ...]:
        """The tables by name."""
        return tuple(table.stage for table in self.tables.tables)

    @property
    def sees(self) -> bool:
        """Whether it is known which points some camera sees."""
        return "target" in self.stages

    @property
    def read_from(self) -> tuple[TableRef, ...]:
        """The tables that scores are made from; the points are among them, of which predictions are."""
        return (*self.tables.tables, *([] if "points" in self.stages else [self.points]))


def judged_labels(recipe: Recipe, store: Store, ref: Ref, source: Source, refined: TableRef | None) -> Judged:
    """Return what there is to score, and with what; raises StoreError like `evaluate`."""
    labels = labels_of_split(store, ref, recipe)
    seen_from = [ref.tables["target"]] if "target" in ref.tables else []
    geometry = [ref.table("index"), ref.table("points")] if refined else []
    joined = {table.stage: table for table in (labels, source.table, *seen_from, *geometry)}
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    before = Tables(store, Ref(recipe.name, joined, words=recipe.words), list(joined))
    selection = select_frames(before, recipe.evaluate.split, recipe.data.dataset, excluded)
    compared = compare_files(store, recipe, ref, before.shards, list(joined))
    if refined is None:
        return Judged(before, ref.table("points"), selection, source, None, compared)
    check_refined(recipe, store, selection, refined)
    joined["refine"] = refined
    tables = Tables(store, Ref(recipe.name, joined, words=recipe.words), list(joined))
    return Judged(tables, ref.table("points"), selection, source, refined, compared)


def check_refined(recipe: Recipe, store: Store, selection: Selection, refined: TableRef) -> None:
    """Raise StoreError if a frame that could be scored has no refined labels: scores would be of other frames."""
    failed = {name for shard in refined.shards for name in shard.failed}
    unfit = next((frame for frame in selection.frames if frame.frame_id in failed), None)
    if unfit is None:
        return
    file = next(shard for shard in refined.shards if shard.shard == unfit.shard)
    state = store.states("refine", refined.fingerprint, file)[unfit.row]
    reason = state.reason if isinstance(state, Failed) else "its row and the sidecar of its shard disagree"
    raise StoreError(
        f"frame {unfit.frame_id}: {reason}; it has no refined labels to score. Leave it out by name, [data] "
        f'exclude = ["{unfit.frame_id}"], and run: {recipe.make("pack")}'
    )


def tallied(recipe: Recipe, judged: Judged, console: Console) -> tuple[Tally, Tally]:
    """Go through the frames once; return the counts of labels as they are, and of refined ones."""
    n_classes = len(recipe.ontology.classes) - 1
    parts: tuple[Part, ...] = get_args(Part) if judged.sees else ("all",)
    scored_tables = [name for name in judged.stages if name not in ("index", "points")] + [judged.source.table.stage]
    before, after = (Tally.of(parts, n_classes) for _ in range(2))
    with progress_bar(console, recipe.run.progress) as bar:
        for frame in bar.track(judged.selection.frames, description="evaluate"):
            rows = judged.tables.rows(frame, scored_tables)
            check_lengths(frame, rows)
            truth, answer = rows[Label].label, judged.source.answer_of(rows)
            label = answer.label
            where = parts_of(rows, len(truth), judged.sees)
            try:
                before.add(truth, label, label, answer.sure, where)
                if judged.refined:
                    after.add(truth, label, rows[Refine].label, rows[Refine].confidence, where)
                    after.notes.update(filter(None, (rows[Refine].note or "").split("; ")))
            except ValueError as error:
                raise StoreError(
                    f"frame {frame.frame_id}: {error}; was a table made with another dictionary? run: "
                    f"{recipe.make('pack', 'label')}"
                ) from None
    return before, after


def check_lengths(frame: FrameRow, rows: Rows) -> None:
    """Raise StoreError unless all tables have as many points of a frame."""
    n_points = {row.table: len(row.label) for kind in LABELLED if (row := rows.get(kind))}
    if points := rows.get(Points):
        n_points["points"] = len(points.xyz_m)
    if target := rows.get(Target):
        n_points["target, column seen"] = len(target.seen)
    if len(set(n_points.values())) > 1:
        raise StoreError(
            f"frame {frame.frame_id} has unequal numbers of points ({n_points}); run: make pack RECIPE=... ARGS=--again"
        )


def parts_of(rows: Rows, n_points: int, sees: bool) -> dict[Part, NDArray[np.bool_]]:
    """Return which points (n,) belong to each part that is scored."""
    where: dict[Part, NDArray[np.bool_]] = {"all": np.ones(n_points, np.bool_)}
    if sees:
        seen = rows[Target].seen
        where |= {"seen": seen, "unseen": ~seen}
    return where


def document_of(recipe: Recipe, of: Of, judged: Judged, tally: Tally, level: Labels | None) -> EvaluationRecord:
    """Return what an evaluation says of what was scored, and the scores; `level` are calibrated confidences."""
    return EvaluationRecord(
        **{item.name: getattr(judged.source.known, item.name) for item in fields(Origin)},
        of=of,
        recipe=recipe.name,
        split=recipe.evaluate.split,
        split_content=content_of_split(recipe.evaluate.split),
        absent=recipe.evaluate.absent,
        frames=len(judged.selection.frames),
        shards=tuple(dict.fromkeys(frame.shard for frame in judged.selection.frames)),
        left_out={reason: tuple(names) for reason, names in judged.selection.dropped.items()},
        commit=made_by().commit,
        tables={table.stage: table.fingerprint for table in judged.tables.tables},
        contents=contents_of(judged.read_from, {frame.scene for frame in judged.selection.frames}),
        sources=judged.compared,
        classes=recipe.ontology.class_names[1:],
        scores=part_scores(tally, recipe, level),
        confusion=confusions(tally),
    )


def refinement_document(recipe: Recipe, name: Refinement, judged: Judged, tally: Tally) -> Refined:
    """Return what an evaluation says of what was done to labels."""
    images = judged.source.images if "afi" in name else None
    return Refined(
        name=name,
        settings=plain(changed_values(recipe.correct)) if "afi" in name else None,
        voting=plain(changed_values(recipe.vote)) if "vote" in name else None,
        merge=MergedFrom(images.stage, recipe.refine.merge_seed) if images else None,
        changed=dict(tally.changed),
        notes=dict(tally.notes),
    )


def part_scores(tally: Tally, recipe: Recipe, level: Labels | None = None) -> dict[str, PartScores]:
    """Return scores by part of the points, as a document has them, with confidences as they are and calibrated."""
    absent = recipe.evaluate.absent
    found: dict[str, PartScores] = {}
    for part, score in scored(tally, recipe).items():
        by_confidence = tally.by_confidence[part]
        found[part] = score_document(score, trust(by_confidence, absent))
        if level is not None:
            told = trust(by_confidence.mapped(level), absent)
            error, area = number(told.calibration_error), number(told.augrc)
            found[part] = replace(found[part], calibrated_error=error, calibrated_augrc=area)
    return found


def confusions(tally: Tally) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Return the counts of points by truth (rows) and answer, by part of the points."""
    return {part: tuple(map(tuple, count.matrix.tolist())) for part, count in tally.counts.items()}


def scored(tally: Tally, recipe: Recipe) -> dict[Part, Scores]:
    """Return the scores by part of the points."""
    return {part: scores(count, recipe.evaluate.absent) for part, count in tally.counts.items()}


def tell(
    recipe: Recipe, console: Console, store: Store, document: EvaluationRecord, after: Tally, before: Tally | None
) -> Evaluation:
    """Write an evaluation into the folder of the recipe's runs, print its table, and return it."""
    of, student, refinement = document.of, recipe.predict.of, document.refinement
    what = of if of != "prediction" else student if student != "distill" else ""
    name = f"{'-'.join(filter(None, ('evaluate', what, *refinement.split('+'))))}.json"
    path = recipe.folder() / name
    record.write_json(recipe.folder() / "evaluations" / kept_under(document) / name, document)
    record.write_json(path, document)
    report = record.write_record(recipe, student if of == "prediction" else "distill", store)
    found = Evaluation(scored(after, recipe), document, scored(before, recipe) if before else None)
    title = f"{of} before and after {refinement}" if before else of
    console.print(score_table(recipe, title, found.scores, found.before))
    all_points = document.scores["all"]
    if all_points.augrc is not None and all_points.calibration_error is not None:
        error, area = (
            " → ".join(f"{100 * one:.1f}" for one in both if one is not None)
            for both in (
                (all_points.calibration_error, all_points.calibrated_error),
                (all_points.augrc, all_points.calibrated_augrc),
            )
        )
        console.print(
            f"confidence: expected calibration error {error} %, AUGRC {area} % (0: the surest labels are right; "
            f"docs/labels.md){'; after the arrow as calibrated' if document.calibrated else ''}"
        )
    for note, n_frames in after.notes.items():
        console.print(f"{n_frames} frames: {note}")
    console.print(f"true labels were {record.use_of_labels(document)}")
    console.print(f"written to {path}{f' and {report}' if report else ''}")
    return found


def kept_under(document: EvaluationRecord) -> str:
    """Return the folder in which an evaluation is kept for good: that of its weights, or of the tables it judges."""
    return document.weights or digest([document.of, document.tables])


def lesson_of(recipe: Recipe, store: Store, ref: Ref) -> LearntFrom:
    """Return what a yardstick learns from: a split, and its shards of the tables."""
    split, tables = recipe.distill.split, Tables(store, ref, ["points", "target"])
    scenes = scenes_of_split(tables, split, recipe.data.dataset)
    contents = contents_of(tables.tables, scenes)
    return LearntFrom(split, tables.tables[1].fingerprint, content_of_split(split), contents)


def content_of_split(split: str) -> str | None:
    """Return, of a split that is a file, a digest of what it says; a named one says it by its name."""
    return digest(split_content(split)) if split.endswith(".txt") else None


def labels_to_score(of: Of, recipe: Recipe, store: Store, ref: Ref, to_refine: bool) -> Source:
    """Return the labels that are judged; raises StoreError like `evaluate`, or where a yardstick has nothing to learn.

    What a yardstick says depends on the pseudo-labels of its split, so that their shards are in the identity of what
    is made of it.
    """
    if of == "prediction" or of == "pseudo":
        return source_of(of, recipe, store, ref, to_refine)
    learnt = learn_baseline(of, recipe, store, ref)
    lesson = lesson_of(recipe, store, ref)
    known, more = Origin(learnt_from=lesson), {"learnt": digest([of, recipe.distill.seed, as_document(lesson)])}
    return Source(of, ref.table("points"), lambda rows: Answered(rows, learnt(rows[Points])), None, known, more)


def labels_of_split(store: Store, ref: Ref, recipe: Recipe) -> TableRef:
    """Return the table of true labels, cut down to the scenes of the split.

    Raises StoreError unless some frame of the split has labels.
    """
    nothing = StoreError(
        f'split "{recipe.evaluate.split}" of recipe {recipe.name} has no labels to evaluate against; run: '
        f"{recipe.make('label')} where the data set has them, or choose evaluate.split"
    )
    if "label" not in ref.tables:
        raise nothing
    tables = Tables(store, ref, ["label"])
    scenes = scenes_of_split(tables, recipe.evaluate.split, recipe.data.dataset)
    shards = [shard for shard in tables.shards if scene_of(shard) in scenes]
    if not any(not isinstance(state, Failed) for shard in shards for (state,) in tables.states(shard)):
        raise nothing
    return replace(ref.table("label"), shards=tuple(tables.file("label", shard) for shard in shards))


def score_document(score: Scores, worth: Trust) -> PartScores:
    """Return scores as a document has them; a score of nothing is None."""
    return PartScores(
        mean_iou=number(score.mean_iou),
        micro_iou=number(score.micro_iou),
        frequency_weighted_iou=number(score.frequency_weighted_iou),
        points=score.n_points,
        iou=tuple(number(value) for value in score.iou.tolist()),
        calibration_error=number(worth.calibration_error),
        augrc=number(worth.augrc),
        risk=worth.curve,
    )


def number(value: float) -> float | None:
    """Return a number as JSON has it."""
    return None if math.isnan(value) else value


def score_table(
    recipe: Recipe, title: str, results: Mapping[Part, Scores], before: Mapping[Part, Scores] | None = None
) -> Table:
    """Return IoU in percent, a row per class and summary, a column per part of the points.

    With scores from before a refinement, every value is two: before and after.
    """
    titles = {"all": "all points", "seen": "seen by a camera", "unseen": "unseen"}

    def cells(value: Callable[[Scores], float]) -> list[str]:
        after = [percent(value(score)) for score in results.values()]
        if before is None:
            return after
        return [f"{percent(value(before[part]))} → {text}" for part, text in zip(results, after, strict=True)]

    table = Table(title=f"{recipe.name}: {title} on {recipe.evaluate.split}, IoU in %")
    table.add_column("class")
    for part in results:
        table.add_column(titles[part], justify="right")
    for index, name in enumerate(recipe.ontology.class_names[1:]):
        table.add_row(name, *cells(lambda score, index=index: float(score.iou[index])))  # type: ignore[misc]
    table.add_section()
    table.add_row("mIoU", *cells(lambda score: score.mean_iou), style="bold")
    table.add_row("micro IoU", *cells(lambda score: score.micro_iou))
    table.add_row("frequency-weighted IoU", *cells(lambda score: score.frequency_weighted_iou))
    table.add_row("labelled points", *(f"{score.n_points:,}" for score in results.values()))
    return table


def percent(value: float | np.floating[Any]) -> str:
    """Return a share in percent with two digits; a score of nothing is a dash."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
