"""Self-training: a distillation that learns what another recipe's student predicted."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from manifests.config import ConfigError
from manifests.store import Manifest, Ref, StoreError
from trainer import checkpoint, record
from trainer.config import Recipe, load_recipe
from trainer.predict import predict
from trainer.train import train

SHORT = ("distill.epochs=1", "distill.batch_size=5", "predict.split=train")


def pupil(fleet: Any, *overrides: str) -> Recipe:
    """Return another recipe of the store, which has nothing but the same points."""
    path = fleet.folder / "pupil.toml"
    path.write_text(fleet.recipe_path.read_text())
    fleet.store.write_ref("pupil", Ref("pupil", {"points": fleet.ref().tables["points"]}))
    return load_recipe(path, (*SHORT, "distill.student=street", *overrides))


def document_of(path: Any) -> Mapping[str, Any]:
    return checkpoint.read_document(path)


def test_a_student_teaches_another_one(fleet: Any, console: Console, capsys: Any) -> None:
    first = train(fleet.recipe(*SHORT), "distill", console)
    table = predict(fleet.recipe(*SHORT), console)
    path = train(pupil(fleet), "distill", console)
    document = document_of(path)
    assert f"learning what {first} predicted" in capsys.readouterr().out

    tables = document["identity"]["tables"]
    assert set(tables) == {"points", "predict"}
    assert tables["predict"]["fingerprint"] == table.fingerprint
    assert "student" not in document["identity"]["distill"], "the predictions count, not whose name they bear"
    assert document["identity"]["frames"]["number"] == 5
    assert fleet.store.read_ref("runs/pupil-distill").tables["predict"] == table, "kept from being collected"
    assert document["student"]["weights"] == document_of(first)["weights"]
    assert document["reads_labels"] is False
    assert record.read_record(path.parent)["student"]["recipe"] == "street"

    with pytest.raises(Exception, match="another configuration"):
        train(pupil(fleet, "distill.least=0.5"), "distill", console)


def test_labels_that_the_student_read_are_not_forgotten(fleet: Any, console: Console) -> None:
    supervised = fleet.recipe("supervised.epochs=1", "predict.of=supervised", "predict.split=train")
    train(supervised, "supervised", console)
    predict(supervised, console)
    assert document_of(train(pupil(fleet), "distill", console))["reads_labels"] is True

    # ... and by the teacher of a student of a student, of which only the first one knew it
    recipe = fleet.recipe()
    simulated = {"name": "simulated", "simulated": True}
    assert record.reads_labels(recipe, "distill", None, simulated) is True
    second = {"reads_labels": record.reads_labels(recipe, "distill", None, None, {"reads_labels": True})}
    assert record.reads_labels(recipe, "distill", None, None, second) is True
    assert record.reads_labels(recipe, "distill", None, None, {"reads_labels": False}) is False


def test_predictions_that_cannot_be_learnt_are_sentences(fleet: Any, console: Console) -> None:
    advice = "run: python -m trainer predict street --set 'predict.split=\"train\"'"

    def refused(*overrides: str) -> str:
        with pytest.raises((StoreError, ConfigError)) as caught:
            train(pupil(fleet, *overrides), "distill", console)
        return str(caught.value)

    assert refused() == f"recipe street has no predictions yet; {advice}"
    assert "distill.student is the recipe itself" in refused("distill.student=pupil")
    assert "has no predictions yet" in refused("distill.student=../street")

    train(fleet.recipe(*SHORT), "distill", console)
    predict(fleet.recipe(*SHORT, "predict.split=val"), console)
    lacking = "the predictions of recipe street lack 2 of the 2 scenes of distill.split"
    assert refused() == f'{lacking} "train", say scene-0061; {advice}'

    table = predict(fleet.recipe(*SHORT), console)
    manifest = fleet.store.read_manifest("predict", table.fingerprint)
    assert isinstance(manifest, Manifest)
    for made, words in (
        ({"class_names": ["ignore", "car", "wall", "road"]}, "are of other classes than dictionary street"),
        ({"origin": None}, f"do not say what their network learnt from; {advice}"),
    ):
        fleet.store.write_manifest(replace(manifest, made={**manifest.made, **made}))
        assert words in refused()
    fleet.store.write_manifest(manifest)

    moved = np.float32(1)
    fleet.put("points", lambda name: fleet.points_row(name) | {"intensity": fleet.sweep(name).intensity + moved})
    assert refused() == f"the points of recipe street were made anew since they were predicted; {advice}"
