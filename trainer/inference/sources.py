"""Labels that can be scored, refined or sent: of the student, or those that it learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from manifests.fingerprint import Settings
from manifests.labels import predictions_of, pseudo_labels_before, weights_of
from manifests.recipe import Recipe
from manifests.records.evaluation import Origin
from manifests.records.table import Predicted
from manifests.sections.training import Refinable
from manifests.storage.errors import StoreError
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Predict
from manifests.tables.base import Rows
from manifests.tables.labels import Target, Vote
from manifests.tables.superpoints import Group
from trainer.checkpoints import official
from trainer.inference.predict import check_student, checkpoint_path
from trainer.inference.refine import CAMERA, NEIGHBOUR, Answered, Labels, PseudoLabels


@dataclass(frozen=True, eq=False)
class Source:
    """Where labels come from: the table whose rows hold them, or what they are told from, and the function that tells.

    `of` names them. `images` is the table whose things are merged in before flat interaction, None where none are.
    `known` is what a document says of their origin, `more` what an identity says beside the tables.
    """

    of: str
    table: TableRef
    answer_of: Callable[[Rows], Answered]
    images: TableRef | None = None
    known: Origin = Origin()
    more: Settings = field(default_factory=dict)


def source_of(of: Refinable, recipe: Recipe, store: Store, ref: Ref, to_refine: bool) -> Source:
    """Return labels as they are predicted or learnt, or, to be refined, as they are before flat interaction.

    Raises StoreError and TrainerError like `predictions`.
    """
    if of == "prediction":
        table, known = predictions(store, recipe, ref)
        images = ref.table(pseudo_labels_before(recipe)) if to_refine and recipe.refine.merge else None
        return Source(of, table, lambda rows: Answered(rows, *said_by(rows[Predict])), images, known)
    table = ref.table(pseudo_labels_before(recipe) if to_refine else "target")
    return Source(of, table, lambda rows: pseudo_label_of(rows, table.stage))


def pseudo_label_of(rows: Rows, stage: str) -> Answered:
    """Return the pseudo-labels of a frame; those that stage `vote` changed come from its neighbours."""
    row = pseudo_labels(rows, stage)
    origin = np.where(row.changed, NEIGHBOUR, CAMERA) if isinstance(row, Vote) else np.full(len(row.label), CAMERA)
    return Answered(rows, row.label, row.confidence, origin)


def pseudo_labels(rows: Rows, stage: str) -> PseudoLabels:
    """Return the row of a frame in one of the tables of pseudo-labels."""
    kinds: dict[str, type[PseudoLabels]] = {kind.table: kind for kind in (Group, Vote, Target)}
    return rows[kinds[stage]]


def said_by(row: Predict) -> tuple[Labels, Labels]:
    """Return the classes (n, 3) of a row of predictions, the likeliest first, and how sure they are, of that shape."""
    said = np.column_stack([row.label, row.runner_up])
    return said, np.column_stack([row.confidence, row.runner_up_confidence])


def predictions(store: Store, recipe: Recipe, ref: Ref) -> tuple[TableRef, Origin]:
    """Return the table of the recipe's predictions and what is known of where they come from.

    Raises StoreError if there are none, or if the checkpoint, the points, the settings or the class dictionary have
    changed since they were made; TrainerError where the student is of another recipe.
    """
    table, manifest = predictions_of(store, recipe, ref.table("points"))
    path, weights, made = checkpoint_path(recipe), weights_of(manifest), manifest.how(Predicted)
    if path is not None:
        document = official.read_document(path)
        if document.weights != weights:
            raise StoreError(
                f"the predictions of recipe {recipe.name} are of {made.checkpoint} (weights "
                f"{weights}); {path} holds others by now; run: {recipe.make('predict')}"
            )
        check_classes(made.class_names or document.class_names, recipe)
        check_student(path, document.student, recipe, store)
    return table, Origin(
        checkpoint=made.checkpoint,
        epoch=made.epoch,
        epochs=made.epochs,
        step=made.step,
        device=made.device,
        student=recipe.predict.of,
        weights=weights,
        predicted_by_commit=made.commit,
    )


def check_classes(named: Sequence[str] | None, recipe: Recipe) -> None:
    """Raise StoreError unless predictions are of the recipe's classes, as far as they say of which they are."""
    if named is not None and tuple(named) != recipe.ontology.class_names:
        raise StoreError(
            f"the predictions of recipe {recipe.name} are of other classes than dictionary {recipe.ontology.name} has "
            f"now; run: {recipe.make(recipe.predict.of, 'predict')}"
        )
