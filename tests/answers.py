"""Tables of a network's answers as the trainer writes them: of a student that learnt what the recipe asks for."""

from __future__ import annotations

from collections.abc import Callable

from manifests.asked import pin
from manifests.fingerprint import Settings
from manifests.labels import predict_identity, predict_key, similarity_identity, similarity_pin
from manifests.learnt import settings_of
from manifests.query import Query
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.records.run import FramesIdentity, LearntTable, RunIdentity, Student, TableIdentity
from manifests.records.table import Identity, Predicted
from manifests.sections.training import Task
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Predict, Similarity
from manifests.tables.arrow import to_arrow
from manifests.tables.base import FrameRecord
from manifests.tables.sensors import Points
from tests.refs import newest

WEIGHTS = "0" * 12


def learnt(recipe: Recipe, task: Task) -> Student:
    """Return what a checkpoint says of a run of the recipe as it is now, as far as it is compared."""
    tables = newest(Store.open(recipe.run.store), recipe.name).tables
    read = {name: tables[name] for name in ("points", "pairs" if task == "pretrain" else "target")}
    settings = settings_of(recipe, task)
    identity = RunIdentity(
        ontology=str(settings.pop("ontology")),
        tables={name: TableIdentity(table.fingerprint, "") for name, table in read.items()},
        frames=FramesIdentity(0, ""),
        init=None,
        settings=settings,
    )
    shards = {
        name: LearntTable(table.fingerprint, {one.shard: one.key for one in table.shards})
        for name, table in read.items()
    }
    config: dict[str, Settings] = {task: {"init": getattr(recipe.settings(task), "init", "")}, "data": {"exclude": []}}
    return Student(task, identity, shards, config)


def put_answers(
    recipe: Recipe,
    identity: Identity,
    name: str,
    task: Task,
    answer: Callable[[Points], FrameRecord],
) -> TableRef:
    """Write a table of answers to the recipe's points, one a frame, and the ref `name` that keeps it."""
    store, stage = Store.open(recipe.run.store), identity.stage
    points, fingerprint = newest(store, recipe.name).table("points"), identity.fingerprint
    shards = []
    for shard in points.shards:
        rows = [answer(row) for row in store.every(Points, points.fingerprint, [shard])]
        written = to_arrow(rows, type(rows[0]))
        shards.append(store.write(stage, fingerprint, shard.shard, predict_key(fingerprint, shard), written))
    table = TableRef(stage, fingerprint, tuple(shards))
    made = Predicted(
        checkpoint=str(recipe.folder() / task / "epoch-0001.safetensors"),
        epoch=1,
        student=learnt(recipe, task),
        class_names=recipe.ontology.class_names,
    )
    store.write_manifest(Manifest(stage, fingerprint, identity, table.shards, as_document(made)))
    store.write_ref(name, Ref(recipe.name, {"points": points, stage: table}))
    return table


def put_predictions(recipe: Recipe, answer: Callable[[Points], Predict]) -> TableRef:
    """Write predictions of the student that the recipe asks for."""
    points = newest(Store.open(recipe.run.store), recipe.name).table("points")
    identity = predict_identity(recipe, WEIGHTS, points.fingerprint)
    return put_answers(recipe, identity, pin(recipe, "predict"), recipe.predict.of, answer)


def put_similarities(recipe: Recipe, query: Query, answer: Callable[[Points], Similarity]) -> TableRef:
    """Write similarities to a phrase by the pre-training that the recipe asks for."""
    points = newest(Store.open(recipe.run.store), recipe.name).table("points")
    identity = similarity_identity(recipe, WEIGHTS, points.fingerprint, query.identity)
    return put_answers(recipe, identity, similarity_pin(recipe, query.slug), "pretrain", answer)
