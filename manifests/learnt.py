"""What a recipe asks of a training, and whether a student learnt that: a folder's name says neither.

Both sides ask it: the trainer of the checkpoint that it opens, the pipeline of what predictions say of their student.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from manifests.asked import tables_of
from manifests.config import changed_values
from manifests.fingerprint import Json, Settings, differences, digest, plain
from manifests.recipe import Recipe
from manifests.records.run import LearntTable, RunIdentity, Student
from manifests.sections.network import without_labels, without_pairs
from manifests.sections.training import Task
from manifests.shown import shown_values
from manifests.splits import split_content
from manifests.stages import fingerprint
from manifests.storage import sealed
from manifests.storage.errors import StoreError
from manifests.storage.store import Store

VERSION = 1
"""Raised when the code, or another default, changes what a training makes of the same settings (tests/versions.py)."""


def settings_of(recipe: Recipe, task: Task) -> dict[str, Json]:
    """Return the settings that the result of a task depends on, readable; the tables it reads are not among them.

    How many checkpoints are kept has no influence; of `init` the initial weights count, not where they lie.
    """
    recipe = recipe.seen_by(task)
    settings = changed_values(recipe.settings(task))
    for name in ("keep_every", "init"):
        settings.pop(name, None)
    if (split := str(settings.get("split", ""))).endswith(".txt"):  # what the file says, not what it is called
        settings["split"] = split_content(split)
    found: dict[str, Json] = plain(
        {
            "task": task,
            task: settings,
            "voxels": changed_values(without_labels(recipe.voxels) if task == "pretrain" else recipe.voxels),
            "network": recipe.network.content(),
            "augment": changed_values(recipe.augment if task == "pretrain" else without_pairs(recipe.augment)),
            "ontology": digest(recipe.ontology.label_content()),
        }
    )
    if VERSION > 1:  # not at first, so that runs made before there was one stay what they are
        found["version"] = VERSION
    return found


def without_engine(settings: Settings) -> Settings:
    """Return settings of a training without the engine: weights are of none, and what predicts says which it used."""
    network = settings["network"] or {}
    assert isinstance(network, Mapping), "of a recipe, or of an identity made of one"
    return {**settings, "network": {key: value for key, value in network.items() if key != "engine"}}


Weights = Callable[[Recipe, str], str | None]
"""Returns the digest of the newest weights that a recipe has of a task, None if there are none."""


def recorded_weights(recipe: Recipe, task: str) -> str | None:
    """Return the newest weights of a task by the record of its run; None if there is none. Raises StoreError."""
    path = recipe.folder() / task / "run.json"
    if not path.is_file():
        return None
    try:
        result = sealed.read_sealed(path).get("result")
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}; write it again: {recipe.make(task)}") from None
    weights = result.get("weights") if isinstance(result, Mapping) else None
    return None if weights is None else str(weights)


def changes_since(
    student: Student, recipe: Recipe, task: Task, store: Store, weights: Weights = recorded_weights
) -> list[str]:
    """Return in what the run of a student differs from what the recipe asks for now.

    Settings, the initial weights, the identities of the tables it learnt from, and the shards of these as far as the
    store still has them: files that were replaced and packed again since make other shards. And all this of the run
    that it started from, where the recipe names that run. A checkpoint that does not tell (an official file) differs
    in nothing that could be said.
    """
    identity = student.identity
    if identity is None:
        return []
    wanted, known = settings_of(recipe, task), {**identity.settings, "ontology": identity.ontology}
    changes = differences(without_engine({name: known.get(name) for name in wanted}), without_engine(wanted))
    changes += other_start(identity, student, recipe, task, weights)
    exclude = student.setting("data", "exclude")
    learnt_without = sorted(map(str, exclude)) if isinstance(exclude, list) else []
    changes += differences({"data.exclude": learnt_without}, {"data.exclude": sorted(recipe.data.exclude)})
    for stage, table in identity.tables.items():
        now = fingerprint(recipe, stage)
        if table.fingerprint != now:
            changes.append(f"table `{stage}`: it learnt from {table.fingerprint}, the recipe now asks for {now}")
    changes = changes or other_shards(student.tables or {}, recipe, store)
    return changes or earlier_changes(student, recipe, task, store, weights)


def earlier_changes(student: Student, recipe: Recipe, task: Task, store: Store, weights: Weights) -> list[str]:
    """Return in what the run that a student started from differs from what the recipe asks of that run now.

    None where it started from a file that the recipe names by its path, which is taken as it is, or does not tell.
    """
    start = next((one for one in get_args(Task) if one == getattr(recipe.settings(task), "init", "")), task)
    if student.initial is None or start == task:
        return []
    found = changes_since(student.initial, recipe, start, store, weights)
    return [f"run `{start}`, from which it started: {line}" for line in found]


def other_start(identity: RunIdentity, student: Student, recipe: Recipe, task: Task, weights: Weights) -> list[str]:
    """Return how the initial weights of a run differ from those that the recipe names now, as far as they are there."""
    then = str(student.setting(task, "init") or "")
    now = getattr(recipe.settings(task), "init", "")
    if then != shown_values(now):
        return differences({f"{task}.init": then}, {f"{task}.init": now})
    found = weights(recipe, now) if now in get_args(Task) and now != task else None
    if found in (None, identity.init):
        return []
    return [f"{task}.init: it started from other weights of `{now}` than those in {recipe.folder() / now} now"]


def other_shards(learnt: Mapping[str, LearntTable], recipe: Recipe, store: Store) -> list[str]:
    """Return which shards a run learnt from are others now; none where the store has no tables to compare with."""
    try:
        ref = tables_of(store, recipe, learnt)
    except StoreError:
        return []
    found = []
    for stage, table in learnt.items():
        now = {shard.shard: shard.key for shard in ref.tables[stage].shards} if stage in ref.tables else {}
        others = [shard for shard, key in table.shards.items() if now.get(shard, key) != key]
        if others:
            more = f", and {len(others) - 1} more" if len(others) > 1 else ""
            found.append(f"table `{stage}`: shard {others[0]}{more} was made anew from other files since")
    return found
