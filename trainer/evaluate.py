"""Scores against true labels, per point. The only module of the trainer that opens table `label`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console
from rich.table import Table

from manifests.store import Ref, Store, StoreError, TableRef, scene_of
from trainer import checkpoint, data
from trainer.config import Recipe, TrainerError
from trainer.metrics import Confusion, Scores, scores
from trainer.predict import checkpoint_path, shard_key
from trainer.train import pin, progress_bar

Of = Literal["prediction", "pseudo"]
Part = Literal["all", "seen", "unseen"]


@dataclass(frozen=True)
class Evaluation:
    """Scores over all points, and apart over those that some camera sees and those that none does."""

    scores: Mapping[Part, Scores]
    document: Mapping[str, Any]


def evaluate(recipe: Recipe, console: Console, of: Of = "prediction") -> Evaluation:
    """Score predictions, or the pseudo-labels that were learnt ("pseudo"), against the true labels of a split.

    Prints a table and writes `evaluate.json` (`evaluate-pseudo.json`) into the folder of the recipe's runs. All points
    of the frames count, seen by a camera or not; where a pseudo-label is 0, the class is missed.

    Raises StoreError where there are no labels, no predictions, or those of another checkpoint.
    """
    store = Store.open(recipe.run.store)
    ref = store.read_ref(recipe.name)
    data.check_dictionary(store, ref, "group", recipe.ontology.label_content())
    data.check_dictionary(store, ref, "label", recipe.ontology.raw_content())
    labels = labels_of_split(store, ref, recipe)
    judged, origin = (ref.table("target"), {}) if of == "pseudo" else predictions(store, recipe, ref)
    seen_from = [ref.tables["target"]] if "target" in ref.tables else []
    joined = {table.stage: table for table in (labels, judged, *seen_from)}
    tables = data.Tables(store, Ref(recipe.name, joined), list(joined))
    excluded = frozenset(ref.excluded) | frozenset(recipe.data.exclude)
    selection = data.select_frames(tables, recipe.evaluate.split, recipe.data.dataset, excluded)

    n_classes = len(recipe.ontology.classes) - 1
    parts: tuple[Part, ...] = get_args(Part) if seen_from else ("all",)
    counts = {part: Confusion(n_classes) for part in parts}
    with progress_bar(console, recipe.run.progress) as bar:
        for frame in bar.track(selection.frames, description="evaluate"):
            rows = dict(zip(joined, tables.row(frame), strict=True))
            n_points = {stage: len(row["label"]) for stage, row in rows.items()}
            if len(set(n_points.values())) > 1:
                raise StoreError(f"frame {frame.frame_id} has unequal numbers of points ({n_points}); run: make pack")
            truth, answer = rows["label"]["label"], rows[judged.stage]["label"]
            try:
                counts["all"].add(truth, answer)
            except ValueError as error:
                raise StoreError(
                    f"frame {frame.frame_id}: {error}; was a table made with another dictionary? run: make pack label"
                ) from None
            if seen_from:
                seen = rows["target"]["seen"]
                counts["seen"].add(truth[seen], answer[seen])
                counts["unseen"].add(truth[~seen], answer[~seen])

    results = {part: scores(count, recipe.evaluate.absent) for part, count in counts.items()}
    document = {
        "of": of,
        "recipe": recipe.name,
        "split": recipe.evaluate.split,
        "absent": recipe.evaluate.absent,
        "frames": len(selection.frames),
        "left_out": {reason: list(names) for reason, names in selection.dropped.items()},
        **origin,
        "tables": {stage: table.fingerprint for stage, table in joined.items()},
        "classes": list(recipe.ontology.class_names[1:]),
        "scores": {part: score_document(score) for part, score in results.items()},
        "confusion": {part: count.matrix.tolist() for part, count in counts.items()},
    }
    path = recipe.folder() / ("evaluate.json" if of == "prediction" else f"evaluate-{of}.json")
    write_json(path, document)
    console.print(score_table(recipe, of, results))
    console.print(f"{selection.sentence()}; written to {path}")
    if not seen_from:
        console.print(f"seen and unseen points apart need table `target`; run: make target RECIPE={recipe.name}")
    return Evaluation(results, document)


def predictions(store: Store, recipe: Recipe, ref: Ref) -> tuple[TableRef, dict[str, Any]]:
    """Return the table of the recipe's predictions and where they come from.

    Raises StoreError if there are none, or if the checkpoint or the points have changed since they were made.
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
    if path is not None and checkpoint.read_document(path)["weights"] != weights:
        raise StoreError(
            f"the predictions of recipe {recipe.name} are of {manifest.made.get('checkpoint')} (weights {weights}); "
            f"{path} holds others by now; {advice}"
        )
    origin = {"checkpoint": manifest.made.get("checkpoint"), "epoch": manifest.made.get("epoch"), "weights": weights}
    return table, origin


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


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document; raises TrainerError where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise TrainerError(f"{path} cannot be written: {error.strerror or error}") from None


def score_table(recipe: Recipe, of: Of, results: Mapping[Part, Scores]) -> Table:
    """Return IoU in percent, a row per class and summary, a column per part of the points."""
    titles = {"all": "all points", "seen": "seen by a camera", "unseen": "unseen"}
    table = Table(title=f"{recipe.name}: {of} on {recipe.evaluate.split}, IoU in %")
    table.add_column("class")
    for part in results:
        table.add_column(titles[part], justify="right")
    for index, name in enumerate(recipe.ontology.class_names[1:]):
        table.add_row(name, *(percent(score.iou[index]) for score in results.values()))
    table.add_section()
    table.add_row("mIoU", *(percent(score.mean_iou) for score in results.values()), style="bold")
    table.add_row("micro IoU", *(percent(score.micro_iou) for score in results.values()))
    table.add_row("frequency-weighted IoU", *(percent(score.frequency_weighted_iou) for score in results.values()))
    table.add_row("labelled points", *(f"{score.n_points:,}" for score in results.values()))
    return table


def percent(value: float | np.floating[Any]) -> str:
    """Return a share in percent with two digits; a score of nothing is a dash."""
    return "-" if np.isnan(value) else f"{100 * value:.2f}"
