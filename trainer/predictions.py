"""Tables of predictions, to be read: by `evaluate`, and by a distillation that learns another student's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from manifests.config import ConfigError
from manifests.fingerprint import digest
from manifests.store import Manifest, Ref, ShardFile, Store, StoreError, TableRef, scene_of
from trainer import data
from trainer.config import Recipe


def pin(recipe: str, task: str) -> str:
    """Return the name of the ref that keeps the tables of a run, or the predictions, of a recipe of that name."""
    return f"runs/{recipe}-{task}"


def shard_key(fingerprint: str, points: ShardFile) -> str:
    """Return the key of a shard of predictions: that of the points it was made of, in a table of this identity."""
    return digest([fingerprint, points.key])


def read_predictions(store: Store, recipe: str, points: TableRef, advice: str) -> tuple[TableRef, Manifest]:
    """Return the table of predictions of a recipe of that name, and its manifest.

    Raises StoreError, which ends with the advice, if there are none, or if they are of other points than these.
    """
    name = pin(recipe, "predict")
    if name not in store.refs():
        raise StoreError(f"recipe {recipe} has no predictions yet; {advice}")
    table = store.read_ref(name).table("predict")
    manifest = store.read_manifest(table.stage, table.fingerprint)
    if manifest is None:
        raise StoreError(f"the manifest of predictions {table.fingerprint} is missing; {advice}")
    keys = {shard.shard: shard_key(table.fingerprint, shard) for shard in points.shards}
    changed = any(keys.get(shard.shard) != shard.key for shard in table.shards)
    if changed or manifest.identity["needs"]["points"] != points.fingerprint:
        raise StoreError(f"the points of recipe {recipe} were made anew since they were predicted; {advice}")
    return table, manifest


def with_student(recipe: Recipe, store: Store, ref: Ref) -> tuple[Ref, Mapping[str, Any]]:
    """Return the ref with the scenes of `distill.split` alone and what `distill.student` predicted there, and what is
    known of the checkpoint that did (see `record.ancestor`).

    Raises ConfigError if the student is the recipe itself, and StoreError for predictions that are missing, of other
    points or classes, or not of all these scenes.
    """
    student, split = recipe.distill.student, recipe.distill.split
    if student == recipe.name:
        raise ConfigError(
            "distill.student is the recipe itself, whose run would take the place of the one that predicted; copy the "
            "recipe to another name"
        )
    advice = f"run: python -m trainer predict {student} --set 'predict.split=\"{split}\"'"
    points = ref.table("points")
    table, manifest = read_predictions(store, student, points, advice)
    scenes = data.scenes_of_split(data.Tables(store, ref, ["points"]), split, recipe.data.dataset)
    wanted = tuple(shard for shard in points.shards if scene_of(shard.shard) in scenes)
    absent = scenes - {scene_of(shard.shard) for shard in table.shards}
    if absent:
        raise StoreError(
            f"the predictions of recipe {student} lack {len(absent)} of the {len(scenes)} scenes of distill.split "
            f'"{split}", say {min(absent)}; {advice}'
        )
    if manifest.made.get("class_names") != list(recipe.ontology.class_names):
        raise StoreError(
            f"the predictions of recipe {student} are of other classes than dictionary {recipe.ontology.name} has; "
            "name the same data.ontology in both recipes"
        )
    origin: Mapping[str, Any] | None = manifest.made.get("origin")
    if origin is None:
        raise StoreError(f"the predictions of recipe {student} do not say what their network learnt from; {advice}")
    tables = {**ref.tables, "points": replace(points, shards=wanted), "predict": table}
    return replace(ref, tables=tables), origin
