"""Scores against true labels, per point."""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from manifests.config import changed_values
from manifests.fingerprint import differences, plain
from manifests.sample import sweep_of
from manifests.store import Ref, Store, StoreError, TableRef, scene_of
from superpixels.flat_interaction import Refined, merge_image_labels, refine
from superpixels.ground import height_of_sensor_m
from superpixels.metrics import Confusion, Scores, scores
from trainer import data, official, record
from trainer.baselines import learn_baseline
from trainer.config import Recipe
from trainer.predict import checkpoint_path, predict_identity, shard_key
from trainer.train import pin, progress_bar

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


def evaluate(recipe: Recipe, console: Console, of: Of = "prediction") -> Evaluation:
    """Score predictions, or the pseudo-labels that were learnt ("pseudo"), against the true labels of a split.

    "majority" and "tree" are yardsticks without a network that learn from the same pseudo-labels. Prints a table and
    writes `evaluate.json` (`evaluate-pseudo.json`, ...) into the folder of the recipe's runs. All points of the frames
    count, seen by a camera or not; where a pseudo-label is 0, the class is missed. With
    `evaluate.refine` labels are scored before and after flat interaction, which sees points and these labels alone, and
    the file is named `evaluate-afi.json` (`evaluate-pseudo-afi.json`).

    Raises StoreError where there are no labels, no predictions, or those of another checkpoint.
    """
    store = Store.open(recipe.run.store)
    ref = store.read_ref(recipe.name)
    data.check_dictionary(store, ref, "group", recipe.ontology.label_content())
    data.check_dictionary(store, ref, "label", recipe.ontology.raw_content())
    labels = labels_of_split(store, ref, recipe)
    refining = recipe.evaluate.refine == "afi"
    judged, origin, answer_of = answers(of, refining, recipe, store, ref)
    seen_from = [ref.tables["target"]] if "target" in ref.tables else []
    geometry = [ref.table("index"), ref.table("points")] if refining else []
    images = pseudo_labels(store, ref, refining) if recipe.evaluate.merge and of == "prediction" else None
    merged_from = [images] if images else []
    joined = {table.stage: table for table in (labels, judged, *seen_from, *geometry, *merged_from)}
    tables = data.Tables(store, Ref(recipe.name, joined), list(joined))
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    selection = data.select_frames(tables, recipe.evaluate.split, recipe.data.dataset, excluded)

    n_classes = len(recipe.ontology.classes) - 1
    parts: tuple[Part, ...] = get_args(Part) if seen_from else ("all",)
    counts, counts_before = ({part: Confusion(n_classes) for part in parts} for _ in range(2))
    changed, notes = Counter[str](), Counter[str]()
    with progress_bar(console, recipe.run.progress) as bar:
        for frame in bar.track(selection.frames, description="evaluate"):
            rows = dict(zip(joined, tables.row(frame), strict=True))
            per_point = {stage: "xyz_m" if stage == "points" else "label" for stage in rows if stage != "index"}
            n_points = {stage: len(rows[stage][column]) for stage, column in per_point.items()}
            if len(set(n_points.values())) > 1:
                raise StoreError(f"frame {frame.frame_id} has unequal numbers of points ({n_points}); run: make pack")
            truth, answer = rows["label"]["label"], answer_of(rows)
            where: dict[Part, NDArray[np.bool_]] = {"all": np.ones(len(truth), np.bool_)}
            if seen_from:
                where |= {"seen": rows["target"]["seen"], "unseen": ~rows["target"]["seen"]}
            try:
                for part, points in where.items():
                    counts_before[part].add(truth[points], answer[points])
                if refining:
                    shown = rows[images.stage]["label"] if images else None
                    found = refined(rows["points"]["xyz_m"], answer, shown, rows["index"], recipe)
            except ValueError as error:
                raise StoreError(
                    f"frame {frame.frame_id}: {error}; was a table made with another dictionary? run: make pack label"
                ) from None
            if refining:
                for part, points in where.items():
                    counts[part].add(truth[points], found.labels[points])
                    changed[part] += int((found.labels != answer)[points].sum())
                notes.update(found.notes)
    if not refining:
        counts = counts_before

    results, before = (
        {part: scores(count, recipe.evaluate.absent) for part, count in some.items()}
        for some in (counts, counts_before)
    )
    refinement = {
        "refine": {
            "name": recipe.evaluate.refine,
            "settings": plain(changed_values(recipe.correct)),
            "merge": {"table": images.stage, "seed": recipe.evaluate.merge_seed} if images else None,
            "changed": dict(changed),
            "notes": dict(notes),
        },
        "scores_before": {part: score_document(score) for part, score in before.items()},
        "confusion_before": {part: count.matrix.tolist() for part, count in counts_before.items()},
    }
    document = {
        "of": of,
        "recipe": recipe.name,
        "split": recipe.evaluate.split,
        "absent": recipe.evaluate.absent,
        "frames": len(selection.frames),
        "shards": list(dict.fromkeys(frame.shard for frame in selection.frames)),
        "left_out": {reason: list(names) for reason, names in selection.dropped.items()},
        **origin,
        "tables": {stage: table.fingerprint for stage, table in joined.items()},
        "classes": list(recipe.ontology.class_names[1:]),
        "scores": {part: score_document(score) for part, score in results.items()},
        "confusion": {part: count.matrix.tolist() for part, count in counts.items()},
        **(refinement if refining else {}),
    }
    student = recipe.predict.of
    what = of if of != "prediction" else student if student != "distill" else None
    words = ["evaluate", *([what] if what else []), *([recipe.evaluate.refine] if refining else [])]
    path = recipe.folder() / f"{'-'.join(words)}.json"
    record.write_json(path, document)
    report = record.write_record(recipe, student if of == "prediction" else "distill", store)
    console.print(score_table(recipe, of, results, before if refining else None))
    for note, n_frames in notes.items():
        console.print(f"{n_frames} frames: {note}")
    console.print(f"true labels were {record.use_of_labels(document)}")
    console.print(f"{selection.sentence()}; written to {path}{f' and {report}' if report else ''}")
    if not seen_from:
        console.print(f"seen and unseen points apart need table `target`; run: make target RECIPE={recipe.name}")
    return Evaluation(results, document, before if refining else None)


def refined(
    xyz_m: NDArray[np.float32],
    label: NDArray[np.uint8],
    image_label: NDArray[np.uint8] | None,
    index: Mapping[str, Any],
    recipe: Recipe,
) -> Refined:
    """Return labels of a sweep after flat interaction, things in images merged in before where there are image labels.

    `index` is the frame's row there: the pose of the LiDAR on the vehicle, and the name that the draws are seeded with.
    Raises ValueError for a point that is not finite.
    """
    if image_label is not None:
        things = tuple(np.flatnonzero(recipe.ontology.thing_of_class).tolist())
        seed = recipe.evaluate.merge_seed + zlib.crc32(index["frame_id"].encode())
        label = merge_image_labels(xyz_m, label, image_label, things, seed)
    return refine(
        xyz_m,
        label,
        recipe.correct,
        n_classes=len(recipe.ontology.classes) - 1,
        ground_classes=recipe.ontology.ground_class_ids,
        sensor_height_m=height_of_sensor_m(index["ego_from_lidar"]),
    )


def answers(
    of: Of, refining: bool, recipe: Recipe, store: Store, ref: Ref
) -> tuple[TableRef, dict[str, Any], Callable[[Mapping[str, Any]], NDArray[np.uint8]]]:
    """Return the table that is judged, where it comes from, and the function from a frame's rows to labels (n,)."""
    if of == "majority" or of == "tree":
        learnt = learn_baseline(of, recipe, store, ref)
        origin = {"learnt_from": {"split": recipe.distill.split, "target": ref.table("target").fingerprint}}
        return ref.table("points"), origin, lambda rows: learnt(sweep_of(rows["points"]))
    judged, origin = (pseudo_labels(store, ref, refining), {}) if of == "pseudo" else predictions(store, recipe, ref)
    return judged, origin, lambda rows: rows[judged.stage]["label"]


def pseudo_labels(store: Store, ref: Ref, refining: bool) -> TableRef:
    """Return the table of pseudo-labels to score: those that are learnt, or, to be refined, those not corrected yet."""
    target = ref.table("target")
    manifest = store.read_manifest(target.stage, target.fingerprint)
    needs = manifest.identity.get("needs", {}) if manifest else {}
    return ref.table("vote" if "vote" in needs else "group") if refining and "correct" in needs else target


def predictions(store: Store, recipe: Recipe, ref: Ref) -> tuple[TableRef, dict[str, Any]]:
    """Return the table of the recipe's predictions and where they come from.

    Raises StoreError if there are none, or if the checkpoint, the points, the settings or the class dictionary have
    changed since they were made: classes are numbers there.
    """
    advice = f"run: make predict RECIPE={recipe.name}"
    if pin(recipe, "predict") not in store.refs():
        raise StoreError(f"recipe {recipe.name} has no predictions yet; {advice}")
    table = store.read_ref(pin(recipe, "predict")).table("predict")
    manifest = store.read_manifest(table.stage, table.fingerprint)
    if manifest is None:
        raise StoreError(f"the manifest of predictions {table.fingerprint} is missing; {advice}")
    keys = {shard.shard: shard_key(table.fingerprint, shard) for shard in ref.table("points").shards}
    changed = any(keys.get(shard.shard) != shard.key for shard in table.shards)
    if changed or manifest.identity["needs"]["points"] != ref.table("points").fingerprint:
        raise StoreError(f"the points of recipe {recipe.name} were made anew since they were predicted; {advice}")
    path, weights = checkpoint_path(recipe), manifest.identity["settings"]["weights"]
    if path is not None and official.read_document(path)["weights"] != weights:
        raise StoreError(
            f"the predictions of recipe {recipe.name} are of {manifest.made.get('checkpoint')} (weights {weights}); "
            f"{path} holds others by now; {advice}"
        )
    settings = predict_identity(recipe, weights, ref.table("points").fingerprint)["settings"]
    changes = differences(manifest.identity["settings"], settings)
    if changes:
        raise StoreError(
            f"the predictions of recipe {recipe.name} are of other settings ({'; '.join(changes)}); {advice}"
        )
    named = manifest.made.get("class_names") or (class_names_of(path) if path is not None else None)
    if named not in (None, list(recipe.ontology.class_names)):
        raise StoreError(
            f"the predictions of recipe {recipe.name} are of other classes than dictionary {recipe.ontology.name} has "
            f"now; run: make {recipe.predict.of} predict RECIPE={recipe.name}"
        )
    origin = {name: manifest.made.get(name) for name in ("checkpoint", "epoch", "epochs", "device")}
    origin |= {"student": recipe.predict.of, "weights": weights}
    return table, origin


def class_names_of(path: Path) -> list[str] | None:
    """Return the classes that a checkpoint names, ours or official; None if it names none."""
    named: list[str] | None = official.read_document(path).get("class_names")
    return named


def labels_of_split(store: Store, ref: Ref, recipe: Recipe) -> TableRef:
    """Return the table of true labels, cut down to the scenes of the split.

    Raises StoreError unless some frame of the split has labels.
    """
    nothing = StoreError(
        f'split "{recipe.evaluate.split}" of recipe {recipe.name} has no labels to evaluate against; run: make label '
        f"RECIPE={recipe.name} where the data set has them, or choose evaluate.split"
    )
    if "label" not in ref.tables:
        raise nothing
    tables = data.Tables(store, ref, ["label"])
    scenes = data.scenes_of_split(tables, recipe.evaluate.split, recipe.data.dataset)
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
    recipe: Recipe, of: Of, results: Mapping[Part, Scores], before: Mapping[Part, Scores] | None = None
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

    what = of if before is None else f"{of} before and after {recipe.evaluate.refine}"
    table = Table(title=f"{recipe.name}: {what} on {recipe.evaluate.split}, IoU in %")
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
