"""Asking the map by TMP features: what a short pre-training says of every point, and what stands in the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from manifests.asked import pin
from manifests.config import ConfigError
from manifests.query import Query, queries_folder, read_ranking, write_query
from manifests.records.checkpoint import CheckpointRecord
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.tables.answers import Similarity
from manifests.tables.base import Failed, Rows
from superpixels.similarity import similarity, top_mean
from tests.refs import identity
from trainer.checkpoints import checkpoint
from trainer.data.samples import point_sample
from trainer.errors import TrainerError
from trainer.inference.search import search
from trainer.loop.train import train
from trainer.network.minkunet import build_network
from trainer.network.sparse import Minkowski


def asked(fleet: Any, phrase: str, vector: Any, text: str = "", seed: int = 0) -> Query:
    """Write the query as the pipeline does."""
    unit = np.asarray(vector, np.float32) / np.linalg.norm(vector)
    text = text or fleet.ref().tables["text"].fingerprint
    query = Query(phrase, unit.astype(np.float32), text, {"teacher": {"seed": seed}})
    write_query(queries_folder(str(fleet.folder / "runs"), "street"), query)
    return query


def test_every_point_has_the_similarity_of_its_voxel_and_frames_are_ranked_by_it(
    fleet: Any, console: Console, capsys: Any
) -> None:
    fleet.put("points", fleet.failing(fleet.points_row, ["a1"]))
    recipe = fleet.packed("predict.split=all", "data.exclude=['b0']", "run.batch_size=1")
    path = train(recipe, "pretrain", console)
    query = asked(fleet, "a car, perhaps", fleet.text[0] + 0.1 * fleet.text[2])
    ranking = search(recipe, "a car,  perhaps", 2, console)

    table = fleet.store.expect_ref(pin(fleet.recipe(), f"similarity-{query.slug}")).tables["similarity"]
    rows = {
        row.frame_id: row for shard in table.shards for row in fleet.store.records(Similarity, table.fingerprint, shard)
    }
    network = build_network(recipe.network, 1, 8, Minkowski(), normalise_output=True).eval()
    checkpoint.load_weights(checkpoint.load(path), network)
    sample = point_sample(recipe.voxels, 1, Rows(fleet.points_row("v1")), np.random.default_rng(0))
    with torch.no_grad():
        features = network(sample.coords, sample.features)[sample.point_voxel].numpy()
    expected = similarity(features, query.vector, fleet.text)
    np.testing.assert_allclose(rows["v1"].cosine, expected.cosine, atol=1e-3)
    np.testing.assert_allclose(rows["v1"].margin, expected.margin, atol=1e-3)
    assert isinstance(rows["a1"], Failed)

    scores = {name: top_mean(row.margin) for name, row in rows.items() if name not in ("a1", "b0")}
    best = sorted(scores, key=lambda name: -scores[name])[:2]
    assert [frame.frame_id for frame in ranking.frames] == best and ranking.n_frames == 5
    folder = queries_folder(str(fleet.folder / "runs"), "street")
    assert read_ranking(folder, query, "tmp") == ranking
    assert "“a car, perhaps”, by TMP features" in capsys.readouterr().out

    search(recipe, "a car, perhaps", 2, console)
    assert "0 shards computed, 3 were there" in capsys.readouterr().out
    asked(fleet, "a car, perhaps", fleet.text[2])
    search(recipe, "a car, perhaps", 2, console)
    assert "3 shards computed, 0 were there" in capsys.readouterr().out, "the phrase has another vector now"


def test_what_stands_in_the_way_is_said(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe("pretrain.epochs=1")
    with pytest.raises(TrainerError, match=r"car\.json is not there.*make query RECIPE=\S*street.* WORDS=car"):
        search(recipe, "car", 1, console)
    asked(fleet, "car", fleet.text[0])
    with pytest.raises(TrainerError, match="no checkpoint, so there are no TMP features to ask; run: make pretrain"):
        search(recipe, "car", 1, console)
    train(recipe, "pretrain", console)
    with pytest.raises(TrainerError, match=r"(?s)of another recipe .*pretrain.epochs: 1 -> 2.*Train it: make pretrain"):
        search(fleet.recipe("pretrain.epochs=2"), "car", 1, console)
    asked(fleet, "car", np.ones(3))
    with pytest.raises(ConfigError, match=r"“car” has a vector of 3 numbers, and .*safetensors has 8"):
        search(recipe, "car", 1, console)
    asked(fleet, "car", fleet.text[0], text="0ld")
    with pytest.raises(TrainerError, match="the text vectors were made anew since “car” was asked"):
        search(recipe, "car", 1, console)
    asked(fleet, "car", fleet.text[0])
    fleet.store.write_manifest(
        Manifest("text", fleet.ref().tables["text"].fingerprint, identity("text", {"teacher": {"seed": 1}}), ())
    )
    with pytest.raises(TrainerError, match=r"another text encoder than that of “car” \(teacher.seed: 1 -> 0\)"):
        search(recipe, "car", 1, console)
    fleet.drop_table("text")
    with pytest.raises(StoreError, match="has no table `text`"):
        search(recipe, "car", 1, console)


def test_a_run_that_is_not_finished_is_not_asked(fleet: Any, console: Console, monkeypatch: Any) -> None:
    asked(fleet, "car", fleet.text[0])
    monkeypatch.setattr(checkpoint, "latest", lambda folder: Path("epoch-0001.safetensors"))
    monkeypatch.setattr(checkpoint, "read_document", lambda path: CheckpointRecord(epoch=1, epochs=3))
    with pytest.raises(TrainerError, match=r"has finished 1 of 3 epochs; run: make pretrain RECIPE=\S*street"):
        search(fleet.recipe(), "car", 1, console)
