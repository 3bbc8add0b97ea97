"""Scores against true labels, per point."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from manifests.asked import contents_of, tables_of
from manifests.config import changed_values
from manifests.fingerprint import digest, plain
from manifests.provenance import git_commit
from manifests.recipe import Recipe
from manifests.sample import sweep_of
from manifests.sections.training import Refinement
from manifests.splits import split_content
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from superpixels.metrics import Confusion, Scores, scores
from trainer.data.tables import FrameRow, Selection, Tables, check_dictionary, scenes_of_split, select_frames
from trainer.inference.predictions import predictions
from trainer.inference.refine import Answered, Labels, refined, windows
from trainer.loop.log import progress_bar
from trainer.records import record
from trainer.scoring.baselines import learn_baseline

Of = Literal["prediction", "pseudo", "majority", "tree"]
Part = Literal["all", "seen", "unseen"]


@dataclass(frozen=True)
class Evaluation:
    """Scores over all points, and apart over those that some camera sees and those that none does.

    `before` are the scores before refinement, where the recipe asks for one.
    """

    scores: Mapping[Part, Scores]
    document: Mapping[str, Any]
    before: Mapping[Part, Scores] | None = None


@dataclass(frozen=True, eq=False)
class Tally:
    """Counts by part of the points: of labels against the truth, and of labels that a refinement changed.

    `notes` counts frames by what a refinement had to say of them.
    """

    counts: dict[Part, Confusion]
    changed: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def add(self, truth: Labels, before: Labels, after: Labels, where: Mapping[Part, NDArray[np.bool_]]) -> None:
        """Count a frame, all arrays (n,); raises ValueError for classes that there are not."""
        for part, points in where.items():
            self.counts[part].add(truth[points], after[points])
            self.changed[part] += int((before != after)[points].sum())


def evaluate(recipe: Recipe, console: Console, of: Of = "prediction") -> Evaluation:
    """Score predictions, or the pseudo-labels that were learnt ("pseudo"), against the true labels of a split.

    "majority" and "tree" are yardsticks without a network that learn from the same pseudo-labels. Prints a table and
    writes `evaluate.json` (`evaluate-pseudo.json`, ...) into the folder of the recipe's runs, and into
    `evaluations/<weights>` there, where those of other weights stay as they are. All points of the frames
    count, seen by a camera or not; where a pseudo-label is 0, the class is missed. With
    `evaluate.refine` labels are scored before and after flat interaction, the vote of the sweeps before and after, or
    both, which see points, poses and these labels alone, and the file is named `evaluate-afi.json`,
    `evaluate-pseudo-vote.json`, `evaluate-vote-afi.json`.

    Raises StoreError where there are no labels, no predictions, or those of another checkpoint.
    """
    return evaluate_each(recipe, console, of, [recipe.evaluate.refine])[recipe.evaluate.refine]


def evaluate_each(
    recipe: Recipe, console: Console, of: Of, refinements: Collection[Refinement]
) -> dict[Refinement, Evaluation]:
    """Score the same labels with several refinements, as `evaluate` does with one; frames are read once for all."""
    chosen = [name for name in get_args(Refinement) if name in refinements]
    found: dict[Refinement, Evaluation] = {}
    for names in ([name for name in chosen if name == "none"], [name for name in chosen if name != "none"]):
        if names:
            found |= one_pass(recipe, console, of, names)
    return found


def one_pass(recipe: Recipe, console: Console, of: Of, names: Sequence[Refinement]) -> dict[Refinement, Evaluation]:
    """Score labels before and after some refinements, or without any: ["none"]."""
    store = Store.open(recipe.run.store)
    refining = [name for name in names if name != "none"]
    judged = judged_labels(recipe, store, of, refining)
    before, after = tallied(recipe, judged, refining, console)
    document = document_of(recipe, of, judged)
    evaluations: dict[Refinement, Evaluation] = {}
    for name, tally in after.items():
        said = document | counted(tally, recipe) | {"refine": refinement_document(recipe, name, judged, tally)}
        said |= {f"{key}_before": value for key, value in counted(before, recipe).items()}
        evaluations[name] = tell(recipe, console, store, said, tally, before)
    if not refining:
        evaluations["none"] = tell(recipe, console, store, document | counted(before, recipe), before, None)
    console.print(judged.selection.sentence())
    if not judged.sees:
        console.print(f"seen and unseen points apart need table `target`; run: {recipe.make('target')}")
    return evaluations


@dataclass(frozen=True, eq=False)
class Judged:
    """Labels to score: the tables that are read, the frames of the split, and the function from rows to labels.

    `heard` are the tables that labels and their refinement come from, `images` the one whose things are merged in, None
    where that is not asked for. `silent` are the frames that are excluded. `origin` is what is known of where the
    labels come from.
    """

    tables: Tables
    points: TableRef
    selection: Selection
    heard: frozenset[str]
    silent: frozenset[str]
    images: TableRef | None
    origin: Mapping[str, Any]
    answer_of: Callable[[Mapping[str, Any]], Answered]

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

    def read(self, frame: FrameRow) -> Answered:
        """Return what is said of a frame, without the truth."""
        return self.answer_of(rows_of(self.tables, frame, self.heard))


def judged_labels(recipe: Recipe, store: Store, of: Of, refining: Sequence[Refinement]) -> Judged:
    """Return what there is to score, and with what; raises StoreError like `evaluate`."""
    ref = tables_of(store, recipe, ["points", "index"] if refining else ["points"])
    check_dictionary(store, ref, "group", recipe.ontology.label_content())
    check_dictionary(store, ref, "label", recipe.ontology.raw_content())
    labels = labels_of_split(store, ref, recipe)
    judged, origin, answer_of = answers(of, refining, recipe, store, ref)
    seen_from = [ref.tables["target"]] if "target" in ref.tables else []
    geometry = [ref.table("index"), ref.table("points")] if refining else []
    images = pseudo_labels(store, ref, ["afi"]) if recipe.evaluate.merge and of == "prediction" else None
    merged_from = [images] if images else []
    joined = {table.stage: table for table in (labels, judged, *seen_from, *geometry, *merged_from)}
    tables = Tables(store, Ref(recipe.name, joined, words=recipe.words), list(joined))
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    return Judged(
        tables=tables,
        points=ref.table("points"),
        selection=select_frames(tables, recipe.evaluate.split, recipe.data.dataset, excluded),
        heard=frozenset({judged.stage, *(table.stage for table in geometry)}),
        silent=excluded,
        images=images,
        origin=origin,
        answer_of=answer_of,
    )


def tallied(
    recipe: Recipe, judged: Judged, refining: Sequence[Refinement], console: Console
) -> tuple[Tally, dict[Refinement, Tally]]:
    """Go through the frames once; return the counts of labels as they are, and those after each refinement."""
    n_classes = len(recipe.ontology.classes) - 1
    parts: tuple[Part, ...] = get_args(Part) if judged.sees else ("all",)
    before, *others = (Tally({part: Confusion(n_classes) for part in parts}) for _ in ["", *refining])
    after = dict(zip(refining, others, strict=True))
    reach = recipe.vote.reach if any("vote" in name for name in refining) else 0
    frames, rest = judged.selection.frames, set(judged.stages) - judged.heard

    # a vote hears sweeps before and after, so that labels are read ahead; the truth of a frame only when it is scored
    near = windows(judged.tables, frames, reach, judged.heard, judged.read, judged.silent)
    with progress_bar(console, recipe.run.progress) as bar:
        for frame, own, around in bar.track(near, total=len(frames), description="evaluate"):
            rows = {**own.rows, **rows_of(judged.tables, frame, rest)}
            check_lengths(frame, rows)
            truth = rows["label"]["label"]
            where = parts_of(rows, len(truth), judged.sees)
            try:
                before.add(truth, own.label, own.label, where)
                shown = rows[judged.images.stage]["label"] if judged.images else None
                for name, (label, notes) in refined(refining, own, around, shown, recipe).items():
                    after[name].add(truth, own.label, label, where)
                    after[name].notes.update(notes)
            except ValueError as error:
                raise StoreError(
                    f"frame {frame.frame_id}: {error}; was a table made with another dictionary? run: "
                    f"{recipe.make('pack', 'label')}"
                ) from None
    return before, after


def check_lengths(frame: FrameRow, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise StoreError unless all tables have as many points of a frame."""
    columns = {stage: "xyz_m" if stage == "points" else "label" for stage in rows if stage != "index"}
    n_points = {stage: len(rows[stage][column]) for stage, column in columns.items()}
    if "target" in rows:
        n_points["target, column seen"] = len(rows["target"]["seen"])
    if len(set(n_points.values())) > 1:
        raise StoreError(
            f"frame {frame.frame_id} has unequal numbers of points ({n_points}); run: make pack RECIPE=..."
        )


def parts_of(rows: Mapping[str, Mapping[str, Any]], n_points: int, sees: bool) -> dict[Part, NDArray[np.bool_]]:
    """Return which points (n,) belong to each part that is scored."""
    where: dict[Part, NDArray[np.bool_]] = {"all": np.ones(n_points, np.bool_)}
    if sees:
        where |= {"seen": rows["target"]["seen"], "unseen": ~rows["target"]["seen"]}
    return where


def document_of(recipe: Recipe, of: Of, judged: Judged) -> dict[str, Any]:
    """Return what an evaluation says of what was scored, as JSON."""
    return {
        "of": of,
        "recipe": recipe.name,
        "split": recipe.evaluate.split,
        **content_of_split(recipe.evaluate.split),
        "absent": recipe.evaluate.absent,
        "frames": len(judged.selection.frames),
        "shards": list(dict.fromkeys(frame.shard for frame in judged.selection.frames)),
        "left_out": {reason: list(names) for reason, names in judged.selection.dropped.items()},
        **judged.origin,
        "commit": git_commit(),
        "tables": {table.stage: table.fingerprint for table in judged.tables.tables},
        "contents": contents_of(judged.read_from, {frame.scene for frame in judged.selection.frames}),
        "classes": list(recipe.ontology.class_names[1:]),
    }


def refinement_document(recipe: Recipe, name: Refinement, judged: Judged, tally: Tally) -> dict[str, Any]:
    """Return what an evaluation says of what was done to labels, as JSON."""
    settings = {"settings": plain(changed_values(recipe.correct))} if "afi" in name else {}
    voting = {"voting": plain(changed_values(recipe.vote))} if "vote" in name else {}
    merged = judged.images is not None and "afi" in name
    merge = {"table": judged.images.stage, "seed": recipe.evaluate.merge_seed} if judged.images and merged else None
    counts = {"changed": dict(tally.changed), "notes": dict(tally.notes)}
    return {"name": name, **settings, **voting, "merge": merge, **counts}


def rows_of(tables: Tables, frame: FrameRow, stages: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the rows of a frame in the tables of some stages; raises StoreError like `Tables.row`."""
    names = [table.stage for table in tables.tables if table.stage in stages]
    return dict(zip(names, tables.row(frame, stages), strict=True))


def counted(tally: Tally, recipe: Recipe) -> dict[str, Any]:
    """Return scores and confusions by part of the points, as JSON."""
    return {
        "scores": {part: score_document(score) for part, score in scored(tally, recipe).items()},
        "confusion": {part: count.matrix.tolist() for part, count in tally.counts.items()},
    }


def scored(tally: Tally, recipe: Recipe) -> dict[Part, Scores]:
    """Return the scores by part of the points."""
    return {part: scores(count, recipe.evaluate.absent) for part, count in tally.counts.items()}


def tell(
    recipe: Recipe, console: Console, store: Store, document: Mapping[str, Any], after: Tally, before: Tally | None
) -> Evaluation:
    """Write an evaluation into the folder of the recipe's runs, print its table, and return it."""
    of, student = document["of"], recipe.predict.of
    refinement = document.get("refine", {}).get("name", "")
    what = of if of != "prediction" else student if student != "distill" else ""
    name = f"{'-'.join(filter(None, ('evaluate', what, *refinement.split('+'))))}.json"
    path = recipe.folder() / name
    record.write_json(recipe.folder() / "evaluations" / kept_under(document) / name, document)
    record.write_json(path, document)
    report = record.write_record(recipe, student if of == "prediction" else "distill", store)
    found = Evaluation(scored(after, recipe), document, scored(before, recipe) if before else None)
    title = f"{of} before and after {refinement}" if before else of
    console.print(score_table(recipe, title, found.scores, found.before))
    for note, n_frames in after.notes.items():
        console.print(f"{n_frames} frames: {note}")
    console.print(f"true labels were {record.use_of_labels(document)}")
    console.print(f"written to {path}{f' and {report}' if report else ''}")
    return found


def kept_under(document: Mapping[str, Any]) -> str:
    """Return the folder in which an evaluation is kept for good: that of its weights, or of the tables it judges."""
    return str(document.get("weights") or digest([document["of"], document["tables"]]))


def answers(
    of: Of, refining: Sequence[Refinement], recipe: Recipe, store: Store, ref: Ref
) -> tuple[TableRef, dict[str, Any], Callable[[Mapping[str, Any]], Answered]]:
    """Return the table that is judged, where it comes from, and the function from a frame's rows to its labels."""
    if of == "majority" or of == "tree":
        learnt = learn_baseline(of, recipe, store, ref)
        origin = {"learnt_from": lesson_of(recipe, store, ref)}
        return ref.table("points"), origin, lambda rows: Answered(rows, learnt(sweep_of(rows["points"])))
    judged, origin = (pseudo_labels(store, ref, refining), {}) if of == "pseudo" else predictions(store, recipe, ref)
    return judged, origin, lambda rows: Answered(rows, *said_by(rows[judged.stage]))


def lesson_of(recipe: Recipe, store: Store, ref: Ref) -> dict[str, Any]:
    """Return what a yardstick learns from: a split, and its shards of the tables."""
    split, tables = recipe.distill.split, Tables(store, ref, ["points", "target"])
    scenes = scenes_of_split(tables, split, recipe.data.dataset)
    contents = contents_of(tables.tables, scenes)
    return {"split": split, **content_of_split(split), "target": tables.tables[1].fingerprint, "contents": contents}


def content_of_split(split: str) -> dict[str, str]:
    """Return, of a split that is a file, a digest of what it says; a named one says it by its name."""
    return {"split_content": digest(split_content(split))} if split.endswith(".txt") else {}


def said_by(row: Mapping[str, Any]) -> tuple[Labels, Labels]:
    """Return the classes (n,) or, of a row of predictions, (n, 3), and how sure they are, of the same shape."""
    label, confidence = row["label"], row["confidence"]
    if "runner_up" not in row:
        return label, confidence
    return np.column_stack([label, row["runner_up"]]), np.column_stack([confidence, row["runner_up_confidence"]])


def pseudo_labels(store: Store, ref: Ref, refining: Sequence[Refinement]) -> TableRef:
    """Return the table of pseudo-labels to score: those that are learnt, or, to be refined, those not corrected yet.

    Raises StoreError if they are to be put to the vote and have been already, by stage `vote`.
    """
    target = ref.table("target")
    manifest = store.read_manifest(target.stage, target.fingerprint)
    needs = manifest.identity.get("needs", {}) if manifest else {}
    if "vote" in needs and any("vote" in name for name in refining):
        raise StoreError(
            f"the pseudo-labels of recipe {ref.recipe} have been put to the vote by stage `vote` already; score them "
            'without refinement or with "afi", or choose target.labels = "group" and run: '
            f"{ref.make('target')}"
        )
    return ref.table("vote" if "vote" in needs else "group") if refining and "correct" in needs else target


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
    if not any(state["status"] == "ok" for shard in shards for (state,) in tables.states(shard)):
        raise nothing
    return replace(ref.table("label"), shards=tuple(tables.file("label", shard) for shard in shards))


def score_document(score: Scores) -> dict[str, Any]:
    """Return scores as JSON; a score of nothing is null."""
    return {
        "mean_iou": number(score.mean_iou),
        "micro_iou": number(score.micro_iou),
        "frequency_weighted_iou": number(score.frequency_weighted_iou),
        "points": score.n_points,
        "iou": [number(value) for value in score.iou.tolist()],
    }


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
