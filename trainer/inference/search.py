"""Ask the map by TMP features: how like a phrase a network after contrastive pre-training finds every point."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from manifests.asked import pin
from manifests.fingerprint import differences
from manifests.labels import similarity_identity, similarity_pin
from manifests.query import (
    HEADINGS,
    Query,
    RankedFrame,
    Ranking,
    check_width,
    cleaned,
    encoder_of,
    queries_folder,
    rank,
    read_query,
    slug_of,
    write_ranking,
)
from manifests.recipe import Recipe
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.answers import Similarity
from manifests.tables.base import Float16
from manifests.tables.teacher import Text
from superpixels.similarity import top_mean
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.inference.predict import Saying, Sweeps, check_run, load_learnt, n_outputs_of, run_over
from trainer.loop.learner import N_INPUTS
from trainer.network.minkunet import build_network


def search(recipe: Recipe, phrase: str, n_frames: int, console: Console) -> Ranking:
    """Write the similarity to a phrase of every point in `predict.split`; return the `n_frames` frames most like it.

    The phrase's vector is that of the query which the pipeline wrote; the features are those of the recipe's finished
    pre-training, a point's being that of its voxel, seen by a camera or not. The pin `similarity-<slug>` keeps the
    table. Raises ConfigError for a vector of another size than the features, StoreError for tables that are missing or
    damaged, and TrainerError where the phrase was not asked yet or no finished pre-training of the recipe fits.
    """
    folder = queries_folder(recipe.run.runs, recipe.run_name)
    path = folder / f"{slug_of(cleaned(phrase))}.json"
    advice = f"run: {recipe.make('query', phrase=cleaned(phrase))}"
    if not path.is_file():
        raise TrainerError(f"{path} is not there: the text encoder has to say first what the phrase is; {advice}")
    query = read_query(path)
    network_path = finished_pretraining(recipe)
    sweeps = Sweeps.open(recipe)
    if query.text != sweeps.ref.table("text").fingerprint:
        raise TrainerError(f"the text vectors were made anew since “{query.phrase}” was asked; {advice}")
    check_encoder(recipe, query, sweeps.store)

    learnt = load_learnt(network_path, recipe, console, "pretrain")
    check_run(network_path, learnt.document.student, recipe, "pretrain", sweeps.store)
    check_width(query, n_outputs_of(learnt), str(network_path))
    network = build_network(recipe.network, N_INPUTS, len(query.vector), sweeps.engine, normalise_output=True)
    weights = learnt.document.weights
    identity = similarity_identity(recipe, weights, sweeps.points, query.identity)
    name, saying = similarity_pin(recipe, query.slug), similarity_to(query, sweeps)
    table = run_over(sweeps, network_path, learnt, network, saying, identity, name, console)
    ranking = rank_by_features(query, sweeps.store, table, {*sweeps.ref.excluded, *recipe.data.exclude}, n_frames)
    write_ranking(folder, query, ranking)
    shown = Table(*HEADINGS, title=f"“{escape(query.phrase)}”, by TMP features")
    for cells in ranking.cells():
        shown.add_row(*cells)
    console.print(shown)
    console.print(ranking.about())
    return ranking


def finished_pretraining(recipe: Recipe) -> Path:
    """Return the last checkpoint of the recipe's pre-training; raises TrainerError unless it has come to its end."""
    folder, advice = recipe.folder() / "pretrain", f"run: {recipe.make('pretrain')}"
    path = checkpoint.latest(folder)
    if path is None:
        raise TrainerError(f"{folder} holds no checkpoint, so there are no TMP features to ask; {advice}")
    document = checkpoint.read_document(path)
    if not document.is_finished:
        raise TrainerError(f"the run in {folder} has finished {document.epoch} of {document.epochs} epochs; {advice}")
    return path


def check_encoder(recipe: Recipe, query: Query, store: Store) -> None:
    """Raise TrainerError if the pre-training learnt vectors of another text encoder than the query's."""
    name = pin(recipe, "pretrain")
    pinned = store.read_ref(name)
    learnt = pinned.tables.get("text") if pinned else None
    manifest = store.read_manifest("text", learnt.fingerprint) if learnt else None
    changes = differences(encoder_of(manifest.identity.settings), query.encoder) if manifest else []
    if changes:
        raise TrainerError(
            f"pre-training learnt vectors of another text encoder than that of “{query.phrase}” "
            f"({'; '.join(changes)}); run: {recipe.make('pretrain', more=['--fresh'])}"
        )


def similarity_to(query: Query, sweeps: Sweeps) -> Saying[Similarity]:
    """Return the way from unit features (v, d) to rows of table `similarity`: cosine and margin.

    They are what superpixels.similarity says, on the device of the network.
    """
    rivals = query.rivals(text_rows(sweeps.store, sweeps.ref))
    phrase, others = (torch.from_numpy(part).to(sweeps.device) for part in (query.vector, rivals))

    def tensors(features: Tensor) -> tuple[Tensor, Tensor]:
        cosine = features.float() @ phrase
        margin = cosine - (features.float() @ others.T).amax(1) if len(others) else cosine
        return cosine.half(), margin.half()

    def record(frame_id: str, cosine: Float16, margin: Float16) -> Similarity:
        return Similarity(frame_id=frame_id, cosine=cosine, margin=margin)

    return Saying(Similarity, tensors, record)


def text_rows(store: Store, ref: Ref) -> list[Text]:
    """Return the rows of table `text`."""
    table = ref.table("text")
    return store.every(Text, table.fingerprint, table.shards)


def rank_by_features(query: Query, store: Store, table: TableRef, excluded: set[str], limit: int) -> Ranking:
    """Return the frames whose points are most like a query; raises ConfigError if there is no point."""
    found: list[RankedFrame] = []
    medians: list[float] = []
    for shard in table.shards:
        for number, row in enumerate(store.records(Similarity, table.fingerprint, shard)):
            if isinstance(row, Similarity) and row.frame_id not in excluded and len(row.margin):
                scores = top_mean(row.margin), top_mean(row.cosine)
                found.append(RankedFrame(row.frame_id, shard.shard, number, *scores, len(row.margin)))
                medians.append(float(np.median(row.margin.astype(np.float32))))
    return rank("tmp", query, table.fingerprint, found, medians, limit)
