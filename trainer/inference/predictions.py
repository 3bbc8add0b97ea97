"""Tables of predictions to be read: those of the recipe at hand, and of the student and the settings it has now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from manifests.asked import pin
from manifests.fingerprint import differences
from manifests.recipe import Recipe
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from trainer.checkpoints import official
from trainer.inference.predict import check_student, checkpoint_path, predict_identity, shard_key


def read_predictions(store: Store, recipe: Recipe, points: TableRef, advice: str) -> tuple[TableRef, Manifest]:
    """Return the table of predictions of a recipe of that name, and its manifest.

    Raises StoreError, which ends with the advice, if there are none, or if they are of other points than these.
    """
    name = pin(recipe, "predict")
    pinned = store.read_ref(name)
    table = pinned.tables.get("predict") if pinned else None
    if table is None:
        raise StoreError(f"recipe {recipe.name} has no predictions yet; {advice}")
    manifest = store.read_manifest(table.stage, table.fingerprint)
    if manifest is None:
        raise StoreError(f"the manifest of predictions {table.fingerprint} is missing; {advice}")
    keys = {shard.shard: shard_key(table.fingerprint, shard) for shard in points.shards}
    changed = any(keys.get(shard.shard) != shard.key for shard in table.shards)
    if changed or manifest.identity["needs"]["points"] != points.fingerprint:
        raise StoreError(f"the points of recipe {recipe.name} were made anew since they were predicted; {advice}")
    return table, manifest


def predictions(store: Store, recipe: Recipe, ref: Ref) -> tuple[TableRef, dict[str, Any]]:
    """Return the table of the recipe's predictions and where they come from.

    Raises StoreError if there are none, or if the checkpoint, the points, the settings or the class dictionary have
    changed since they were made: classes are numbers there; TrainerError where the student is of another recipe.
    """
    advice = f"run: {recipe.make('predict')}"
    table, manifest = read_predictions(store, recipe, ref.table("points"), advice)
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
            f"now; run: {recipe.make(recipe.predict.of, 'predict')}"
        )
    if path is not None:
        check_student(path, official.read_document(path), recipe, store)
    origin = {name: manifest.made.get(name) for name in ("checkpoint", "epoch", "epochs", "step", "device")}
    origin |= {"student": recipe.predict.of, "weights": weights, "predicted_by_commit": manifest.made.get("commit")}
    return table, origin


def class_names_of(path: Path) -> list[str] | None:
    """Return the classes that a checkpoint names, ours or official; None if it names none."""
    named: list[str] | None = official.read_document(path).get("class_names")
    return named
