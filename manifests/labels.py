"""Labels that the trainer makes, tables `predict` and `refine`: what they are made from, and which a recipe means now.

Both sides compute it: the trainer, which makes the tables, and the pipeline, which shows them and hands them on. What a
checkpoint holds is known to the trainer alone: it compares that itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from manifests.asked import pin, tables_of
from manifests.config import changed_values
from manifests.fingerprint import Json, differences, digest, looks_of
from manifests.learnt import changes_since, recorded_weights
from manifests.recipe import Recipe
from manifests.records.table import Identity, Predicted
from manifests.sections.network import NetworkConfig, without_labels
from manifests.sections.training import Improvement, Task
from manifests.splits import ALL
from manifests.stages import changed_votes
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.answers import Predict, Refine, Similarity
from manifests.tables.arrow import column_digests
from manifests.tables.base import FrameRecord

PREDICT_VERSION = 1
"""Raised when the code changes what a prediction is."""

SIMILARITY_VERSION = 1
"""Raised when the code changes what a similarity is."""

REFINE_VERSION = 2
"""Raised when the code changes what a refined label is."""

ORIGINS = ("none", "camera", "neighbour", "flat interaction", "student")
"""Where a label comes from, by its number in column `origin`."""

POSES = ("frame_id", "status", "timestamp_us", "ego_from_lidar", "world_from_lidar")
"""What refinement reads of `index`: nothing else there changes a refined label."""


# -- predictions -------------------------------------------------------------------------------------------------------


def predict_identity(recipe: Recipe, weights: str, points: str) -> Identity:
    """Return what a table of predictions depends on: weights, and the table of points."""
    views = {"views": recipe.predict.views} if recipe.predict.views > 1 else {}
    return network_identity(Predict, PREDICT_VERSION, recipe, weights, points, **views)


def network_identity(
    kind: type[FrameRecord], version: int, recipe: Recipe, weights: str, points: str, **more: Json
) -> Identity:
    """Return what a table depends on that a network with these weights makes of points; `more` are further settings."""
    return Identity(
        stage=kind.table,
        version=version,
        columns=kind.signature(),
        settings={
            "weights": weights,
            "voxels": changed_values(without_labels(recipe.voxels)),
            "network": recipe.network.name,
            **NetworkConfig(engine=recipe.network.engine).content(),
            **more,
        },
        needs={"points": points},
    )


def predict_key(fingerprint: str, points: ShardFile) -> str:
    """Return the key of a shard of predictions: that of the points it was made of, in a table of this identity."""
    return digest([fingerprint, points.key])


def predictions_of(store: Store, recipe: Recipe, points: TableRef) -> tuple[TableRef, Manifest]:
    """Return the table of predictions of a recipe as it is now, and its manifest.

    Raises StoreError if there are none, or if the points, the settings or the class dictionary have changed since they
    were made: classes are numbers there. By which weights they were made stands in the manifest.
    """
    answers = Answers(f"the predictions of recipe {recipe.name}", pin(recipe, "predict"), recipe.make("predict"))
    table = pinned_table(store, answers.ref, "predict")
    if table is None:
        raise StoreError(f"recipe {recipe.name} has no predictions yet; {answers.advice}")
    manifest = expect_manifest(store, table, answers.advice)
    answers.check_made_of(table, manifest, points)
    answers.check_settings(manifest, predict_identity(recipe, weights_of(manifest), points.fingerprint))
    if manifest.how(Predicted).class_names not in (None, recipe.ontology.class_names):
        raise StoreError(
            f"the predictions of recipe {recipe.name} are of other classes than dictionary {recipe.ontology.name} has "
            f"now; run: {recipe.make(recipe.predict.of, 'predict')}"
        )
    return table, manifest


def weights_of(manifest: Manifest) -> str:
    """Return the digest of the weights that predictions were made by."""
    return str(manifest.identity.settings.get("weights"))


def students_predictions(store: Store, recipe: Recipe, points: TableRef) -> tuple[TableRef, Manifest]:
    """Return what `predictions_of` does, where they are of the very student that the recipe names now.

    For those who open no checkpoint: predictions say of which file they are, and what their student learnt. Raises
    StoreError where that is another file, one that was written anew, or a student that learnt on, or something else.
    """
    table, manifest = predictions_of(store, recipe, points)
    answers = Answers(f"the predictions of recipe {recipe.name}", pin(recipe, "predict"), recipe.make("predict"))
    answers.check_student(store, recipe, recipe.predict.of, manifest, recipe.predict.checkpoint)
    return table, manifest


def similarity_pin(recipe: Recipe, slug: str) -> str:
    """Return the name of the ref that keeps the similarities to a phrase, by its name in files."""
    return pin(recipe, f"similarity-{slug}")


def similarity_identity(recipe: Recipe, weights: str, points: str, query: str) -> Identity:
    """Return what a table of similarities depends on: weights, the table of points, and the identity of the query."""
    return network_identity(Similarity, SIMILARITY_VERSION, recipe, weights, points, query=query)


def similarities_of(
    store: Store, recipe: Recipe, points: TableRef, slug: str, query: str, phrase: str
) -> TableRef | None:
    """Return the table of similarities to a query by the pre-training that the recipe asks for, None if none is there.

    `query` is the identity of the query. Raises StoreError where they are of other points, settings or another vector
    of the phrase, or of a pre-training that learnt on, or something else.
    """
    answers = Answers(
        f"the similarities to “{phrase}” of recipe {recipe.name}",
        similarity_pin(recipe, slug),
        recipe.make("query", phrase=phrase),
    )
    table = pinned_table(store, answers.ref, "similarity")
    if table is None:
        return None
    manifest = expect_manifest(store, table, answers.advice)
    answers.check_made_of(table, manifest, points)
    answers.check_settings(manifest, similarity_identity(recipe, weights_of(manifest), points.fingerprint, query))
    answers.check_student(store, recipe, "pretrain", manifest)
    return table


@dataclass(frozen=True)
class Answers:
    """What a network made of points, as sentences call it; the ref that keeps it, and the command that makes it."""

    what: str
    ref: str
    command: str

    @property
    def advice(self) -> str:
        """What to do, for the end of a sentence."""
        return f"run: {self.command}"

    def check_made_of(self, table: TableRef, manifest: Manifest, points: TableRef) -> None:
        """Raise StoreError unless the table was made of these very points."""
        keys = {shard.shard: predict_key(table.fingerprint, shard) for shard in points.shards}
        changed = any(keys.get(shard.shard) != shard.key for shard in table.shards)
        if changed or manifest.identity.needs.get("points") != points.fingerprint:
            raise StoreError(f"the points were made anew since {self.what} were made of them; {self.advice}")

    def check_settings(self, manifest: Manifest, wanted: Identity) -> None:
        """Raise StoreError unless the table is of the settings, and of the version, that are wanted."""
        before = manifest.identity
        changes = differences(before.settings, wanted.settings)
        if before.version != wanted.version:
            changes.append(f"made by version {before.version} of the code, which is {wanted.version} now")
        if changes:
            raise StoreError(f"{self.what} are of other settings ({'; '.join(changes)}); {self.advice}")

    def check_student(self, store: Store, recipe: Recipe, task: Task, manifest: Manifest, named: str = "") -> None:
        """Raise StoreError unless the network is the newest of a task of the recipe as it is now, or the one `named`.

        No checkpoint is opened: the manifest says of which file the table is, and what was learnt there.
        """
        made, weights = manifest.how(Predicted), weights_of(manifest)
        if made.student is None or not made.checkpoint:
            raise StoreError(
                f"{self.what} do not say what their student learnt: an earlier version made them; to have it noted, "
                f"which computes nothing again, {self.advice}"
            )
        start = named or recipe.folder() / task
        wanted, path = (Path(one).expanduser().absolute() for one in (start, made.checkpoint))
        if wanted not in (path, path.parent):
            raise StoreError(f"{self.what} are of {path}, and it names {wanted} now; {self.advice}")
        if named:
            if looks_of(path) not in (None, made.checkpoint_looks):
                raise StoreError(f"{path} was written anew since {self.what} were made with it; {self.advice}")
            return
        if (now := recorded_weights(recipe, task)) not in (None, weights):
            raise StoreError(f"{self.what} are of weights {weights}; its student has {now} by now; {self.advice}")
        if changes := changes_since(made.student, recipe, task, store):
            listed = "".join(f"\n  {line}" for line in changes)
            raise StoreError(
                f"{self.what} are of a student of another recipe than the one at hand, or of this one before it was "
                f"changed:{listed}\nTake the change back, or train it: {recipe.make(task, more=['--fresh'])} (which "
                f"moves the old run aside), then {self.advice}"
            )


# -- refined labels ----------------------------------------------------------------------------------------------------


def refine_pin(recipe: Recipe, of: str, by: str) -> str:
    """Return the name of the ref that keeps labels refined in one way, and what they were made of."""
    return pin(recipe, f"refine-{of}-{by}")


def pseudo_labels_before(recipe: Recipe) -> str:
    """Return the table of the pseudo-labels as they are before the flat interaction that `target.labels` asks for.

    Those are what is refined: corrected ones would be corrected twice over.
    """
    return {"group": "target", "correct": "group", "vote": "vote", "vote+correct": "vote"}[recipe.target.labels]


def steps_left(recipe: Recipe, of: str, by: Improvement) -> Improvement:
    """Return what is still to be done to labels: pseudo-labels that stage `vote` put to the vote are not voted again.

    Raises StoreError if nothing is.
    """
    if of != "pseudo" or pseudo_labels_before(recipe) != "vote" or by == "afi":
        return by
    if by == "vote":
        raise StoreError(
            f"the pseudo-labels of recipe {recipe.name} have been put to the vote by stage `vote` already; ask for "
            f'"afi" or "vote+afi", or choose target.labels = "group" and run: {recipe.make("target")}'
        )
    return "afi"


def refine_identity(recipe: Recipe, of: str, by: Improvement, needs: Mapping[str, str], **more: Json) -> Identity:
    """Return what a table of refined labels depends on: how they are refined, and the tables they are made from.

    `more` says what else the labels depend on that are refined, where no table says so.
    """
    left, settings = steps_left(recipe, of, by), recipe.refine
    found: dict[str, Json] = {"of": of, "steps": left, "n_classes": len(recipe.ontology.classes) - 1, **more}
    of_stages = ("names", "belief")  # of stage `vote`, and of what it keeps
    voting = {key: value for key, value in changed_votes(recipe).items() if key not in of_stages}
    if "vote" in left and voting:
        found["vote"] = voting
    if "afi" in left:
        correcting = {key: value for key, value in changed_values(recipe.correct).items() if key != "evidence"}
        if correcting:  # here a label alone is evidence
            found["correct"] = correcting
        found["ground_classes"] = list(recipe.ontology.ground_class_ids)
        if settings.merge and of == "prediction":
            found["merge"] = {"seed": settings.merge_seed, "things": recipe.ontology.thing_of_class.tolist()}
    return Identity("refine", REFINE_VERSION, Refine.signature(), found, dict(needs))


def reach_of(recipe: Recipe, steps: str) -> int:
    """Return how many sweeps before and after may have a say in a label."""
    return recipe.vote.window if "vote" in steps else 0


def followed(recipe: Recipe, of: str, by: str) -> tuple[str, ...]:
    """Return the table that says what moves, where labels are put to a vote that follows it; see `steps_left`."""
    voted = of == "pseudo" and pseudo_labels_before(recipe) == "vote"
    return ("motion",) if "vote" in by and not voted and recipe.vote.follow else ()


def refine_keys(
    store: Store,
    fingerprint: str,
    index: TableRef,
    others: Sequence[TableRef],
    shards: Collection[str],
    reach: int,
    silent: Collection[str],
) -> dict[str, str]:
    """Return the keys of shards of refined labels: the content of all that is within reach of their frames.

    That are the shards of `others`, poses and times of `index`, and which frames are excluded. Raises StoreError for a
    shard of `index` that is damaged.
    """
    files = [{shard.shard: shard.sha256 for shard in table.shards} for table in others]
    keys: dict[str, str] = {}
    for _, of_scene in groupby(index.shards, key=lambda shard: scene_of(shard.shard)):
        scene = list(of_scene)
        known: dict[str, tuple[list[str], dict[str, str]]] = {}
        for number, shard in enumerate(scene):
            if shard.shard not in shards:
                continue
            content: list[Json] = []
            names: list[str] = []
            for near in scene[in_reach([one.rows for one in scene], number, reach)]:
                if near.shard not in known:
                    read = store.read(index.stage, index.fingerprint, near, POSES)
                    known[near.shard] = read.column("frame_id").to_pylist(), column_digests(read)
                content.append([near.shard, known[near.shard][1], [of_table.get(near.shard, "") for of_table in files]])
                names += known[near.shard][0]
            first = names.index(known[shard.shard][0][0]) if shard.rows else 0
            heard = names[max(first - reach, 0) : first + shard.rows + reach]
            keys[shard.shard] = digest([fingerprint, content, sorted(set(heard) & set(silent))])
    return keys


def in_reach(rows: Sequence[int], number: int, reach: int) -> slice:
    """Return which shards of a scene, of so many frames each, hold a frame within reach of those of one of them."""
    first, last = number, number + 1
    before, after = reach, reach
    while first > 0 and before > 0:
        first -= 1
        before -= rows[first]
    while last < len(rows) and after > 0:
        after -= rows[last]
        last += 1
    return slice(first, last)


def refine_split(recipe: Recipe) -> str:
    """Return the split whose labels a recipe refines."""
    return recipe.refine.split or (recipe.predict.split if recipe.refine.of == "prediction" else ALL)


def refined_of(store: Store, recipe: Recipe, ref: Ref) -> tuple[TableRef, Manifest]:
    """Return the table `refine` that a recipe asks for now, as far as it was made, and its manifest.

    `ref` names the tables that the recipe asks for. Raises StoreError if there is none, or if anything that it was made
    from is another one by now.
    """
    of, by, advice = recipe.refine.of, recipe.refine.by, f"run: {recipe.make('refine')}"
    table = pinned_table(store, refine_pin(recipe, of, by), "refine")
    if table is None:
        raise StoreError(f"recipe {recipe.name} has no refined labels yet; {advice}")
    moving = followed(recipe, of, by)
    if not set(moving) <= ref.tables.keys():  # not every reader of refined labels asks for it
        others = {name: tables_of(store, recipe, [name]).table(name) for name in moving}
        ref = replace(ref, tables={**ref.tables, **others})
    before, merges = ref.tables.get(pseudo_labels_before(recipe)), recipe.refine.merge and of == "prediction"
    needed = [
        ref.table("points"),
        *map(ref.table, moving),
        students_predictions(store, recipe, ref.table("points"))[0] if of == "prediction" else before,
    ]
    tables = [one for one in (*needed, before if merges else None) if one]
    identity = refine_identity(recipe, of, by, {one.stage: one.fingerprint for one in tables})
    manifest = expect_manifest(store, table, advice)
    changes = manifest.identity.changes(identity)
    if changes:
        raise StoreError(f"the refined labels of recipe {recipe.name} are others ({'; '.join(changes)}); {advice}")
    names, reach = {shard.shard for shard in table.shards}, reach_of(recipe, steps_left(recipe, of, by))
    silent = {*ref.excluded, *recipe.data.exclude}
    keys = refine_keys(store, table.fingerprint, ref.table("index"), tables, names, reach, silent)
    stale = [shard.shard for shard in table.shards if keys.get(shard.shard) != shard.key]
    if stale:
        raise StoreError(
            f"what the refined labels of shard {stale[0]} were made from is another by now, or its frames are; {advice}"
        )
    return table, manifest


# -- both --------------------------------------------------------------------------------------------------------------


def pinned_table(store: Store, name: str, stage: str) -> TableRef | None:
    """Return the table of a stage that a ref names, None if there is none yet."""
    pinned = store.read_ref(name)
    return pinned.tables.get(stage) if pinned else None


def expect_manifest(store: Store, table: TableRef, advice: str) -> Manifest:
    """Return the manifest of a table; raises StoreError, which ends with the advice, if there is none."""
    manifest = store.read_manifest(table.stage, table.fingerprint)
    if manifest is None:
        raise StoreError(f"the manifest of `{table.stage}` {table.fingerprint} is missing; {advice}")
    return manifest
