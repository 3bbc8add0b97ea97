"""What a recipe asks of a training, and whether a checkpoint is of that: a folder's name says neither."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manifests.asked import tables_of
from manifests.config import changed_values
from manifests.fingerprint import differences, digest, plain
from manifests.recipe import Recipe
from manifests.sections.network import without_labels
from manifests.sections.training import Task
from manifests.shown import shown_values
from manifests.splits import split_content
from manifests.stages import fingerprint
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from trainer.checkpoints import checkpoint
from trainer.data.augment import without_pairs
from trainer.objectives.registry import EARLIER_RUNS, READS

VERSION = 1
"""Raised when the code, or another default, changes what a training makes of the same settings (tests/versions.py)."""


def settings_of(recipe: Recipe, task: Task) -> dict[str, Any]:
    """Return the settings that the result of a task depends on, readable; the tables it reads are not among them.

    How many checkpoints are kept has no influence; of `init` the initial weights count, not where they lie.
    """
    recipe = recipe.seen_by(task)
    settings = changed_values(recipe.settings(task))
    for name in ("keep_every", "init"):
        settings.pop(name, None)
    if str(settings.get("split", "")).endswith(".txt"):  # what the file says, not what it is called
        settings["split"] = split_content(settings["split"])
    found: dict[str, Any] = plain(
        {
            "task": task,
            task: settings,
            "voxels": changed_values(without_labels(recipe.voxels) if task == "pretrain" else recipe.voxels),
            "network": changed_values(recipe.network),
            "augment": changed_values(recipe.augment if task == "pretrain" else without_pairs(recipe.augment)),
            "ontology": digest(recipe.ontology.label_content()),
        }
    )
    if VERSION > 1:  # not at first, so that runs made before there was one stay what they are
        found["version"] = VERSION
    return found


def changes_since(document: Mapping[str, Any], recipe: Recipe, task: Task, store: Store) -> list[str]:
    """Return in what the run that a checkpoint's document tells of differs from what the recipe asks for now.

    Settings, the initial weights, the identities of the tables it learnt from, and the shards of these as far as the
    store still has them: files that were replaced and packed again since make other shards. A checkpoint that does not
    tell (an official file) differs in nothing that could be said.
    """
    identity = document.get("identity")
    if not isinstance(identity, Mapping):
        return []
    wanted = settings_of(recipe, task)
    made = {name: identity.get(name) for name in wanted}
    for settings in (made, wanted):  # weights are of no engine; what predicts with them says which one it used
        settings["network"] = {key: value for key, value in (settings["network"] or {}).items() if key != "engine"}
    changes = differences(made, wanted)
    changes += other_start(document, recipe, task)
    learnt_without = document.get("config", {}).get("data", {}).get("exclude", [])
    changes += differences({"data.exclude": sorted(learnt_without)}, {"data.exclude": sorted(recipe.data.exclude)})
    for stage in READS[task]:
        then, now = identity.get("tables", {}).get(stage, {}).get("fingerprint"), fingerprint(recipe, stage)
        if then != now:
            changes.append(f"table `{stage}`: it learnt from {then}, the recipe now asks for {now}")
    return changes or other_shards(document, recipe, task, store)


def other_start(document: Mapping[str, Any], recipe: Recipe, task: Task) -> list[str]:
    """Return how the initial weights of a run differ from those that the recipe names now, as far as they are there."""
    then = document.get("config", {}).get(task, {}).get("init", "")
    now = getattr(recipe.settings(task), "init", "")
    if then != shown_values(now):
        return differences({f"{task}.init": then}, {f"{task}.init": now})
    found = checkpoint.latest(recipe.folder() / now) if now in EARLIER_RUNS.get(task, ()) else None
    if found is None or checkpoint.read_document(found)["weights"] == document["identity"].get("init"):
        return []
    return [f"{task}.init: it started from other weights of `{now}` than those in {found} now"]


def other_shards(document: Mapping[str, Any], recipe: Recipe, task: Task, store: Store) -> list[str]:
    """Return which shards a run learnt from are others now; none where the store has no tables to compare with."""
    try:
        ref = tables_of(store, recipe, READS[task])
    except StoreError:
        return []
    found = []
    for stage, table in document.get("tables", {}).items():
        now = {shard.shard: shard.key for shard in ref.tables[stage].shards} if stage in ref.tables else {}
        others = [shard for shard, key in table.get("shards", {}).items() if now.get(shard, key) != key]
        if others:
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            found.append(f"table `{stage}`: shard {others[0]}{more} was made anew from other files since")
    return found
