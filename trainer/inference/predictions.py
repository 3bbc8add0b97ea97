"""The refs that keep the tables of runs and predictions, and tables of predictions to be read."""

from __future__ import annotations

from manifests.asked import pin
from manifests.fingerprint import digest
from manifests.recipe import Recipe
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store


def shard_key(fingerprint: str, points: ShardFile) -> str:
    """Return the key of a shard of predictions: that of the points it was made of, in a table of this identity."""
    return digest([fingerprint, points.key])


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
