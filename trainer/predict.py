"""Predictions as a table of the store: one class and its probability for every point of every frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from manifests.config import changed_values
from manifests.fingerprint import digest, plain
from manifests.rows import failed_row
from manifests.schema import PREDICT, signature
from manifests.store import Manifest, Ref, ShardFile, Store, TableRef, scene_of
from trainer import checkpoint, data, official
from trainer.config import Recipe, TrainerError
from trainer.learner import N_INPUTS
from trainer.minkunet import NetworkConfig, build_network
from trainer.sparse import open_engine
from trainer.train import deterministic, pin, progress_bar, resolve_device
from trainer.voxels import without_labels

VERSION = 1
"""Raised when the code changes what a prediction is."""


@dataclass(frozen=True)
class Predicted:
    """Aligned with the points of a frame (n,): `label` uint8, never 0, and its probability, `confidence` uint8 in
    1/255."""

    label: NDArray[np.uint8]
    confidence: NDArray[np.uint8]


def predict(recipe: Recipe, console: Console) -> TableRef:
    """Predict every frame of the split's scenes and return the table, which the ref `runs/<recipe>-predict` names.

    The table is identified by the weights, the table of points and the voxels, and each shard by the points it was made
    of: what is there already is not computed again. A frame without points to read keeps its row, failed.

    Raises StoreError for tables that are missing or damaged, ConfigError for a recipe that cannot be run here, and
    TrainerError if there is no checkpoint or one of other classes, voxels or network.
    """
    store = Store.open(recipe.run.store)
    ref = store.read_ref(recipe.name)
    engine = open_engine(recipe.network.engine)
    device = resolve_device(recipe.run.device, engine)
    tables = data.Tables(store, ref, ["points"])
    scenes = data.scenes_of_split(tables, recipe.predict.split, recipe.data.dataset)
    shards = [shard for shard in tables.shards if scene_of(shard) in scenes]

    path = checkpoint_path(recipe)
    if path is None:
        raise TrainerError(
            f"{recipe.predict.checkpoint or recipe.folder() / recipe.predict.of} holds no checkpoint; run: make "
            f"{recipe.predict.of} RECIPE={recipe.name}, or set predict.of or predict.checkpoint"
        )
    learnt = official.load(path)
    unchecked = checkpoint.check_voxels(learnt, recipe.voxels, intensity=True)
    if unchecked:
        console.print(f"{path} does not say on which voxels it was trained ({', '.join(unchecked)}): not compared")
    trained, wanted = learnt.document.get("class_names"), list(recipe.ontology.class_names)
    n_outputs = learnt.weights["final.kernel"].shape[-1] if "final.kernel" in learnt.weights else 0
    if trained is None and n_outputs == len(wanted):
        console.print(f"{path} does not name its classes: taken for those of dictionary {recipe.ontology.name}")
    elif learnt.document["task"] == "pretrain" or trained != wanted:
        classes = ", ".join((trained or [])[1:]) if learnt.document["task"] != "pretrain" else ""
        raise TrainerError(
            f"{path} predicts {classes or 'no classes'} ({n_outputs} outputs); "
            f"dictionary {recipe.ontology.name} has {', '.join(wanted[1:])}"
        )
    network = build_network(recipe.network, N_INPUTS, len(wanted), engine)
    checkpoint.load_weights(learnt, network)
    network.to(device).eval()
    progress = f"epoch {learnt.document.get('epoch', '?')} of {learnt.document.get('epochs', '?')}"
    console.print(f"predict: {len(shards)} shards with {path} ({progress}), on {device}")

    identity = predict_identity(recipe, learnt.document["weights"], tables.tables[0].fingerprint)
    fingerprint = digest(identity)
    keys = {shard: shard_key(fingerprint, tables.file("points", shard)) for shard in shards}
    committed = store.shards("predict", fingerprint)
    missing = [shard for shard in shards if (shard, keys[shard]) not in committed]
    with deterministic(recipe.run.deterministic, device, engine), progress_bar(console, recipe.run.progress) as bar:
        shown = bar.add_task("predict", total=sum(tables.file("points", shard).rows for shard in missing))
        for shard, rows in predicted_shards(recipe, tables, missing, network, device):
            with store.writer("predict", fingerprint, shard, keys[shard], PREDICT) as writer:
                for row in rows:
                    writer.append(row)
                    bar.update(shown, advance=1)
                committed[shard, keys[shard]] = writer.commit()

    table = TableRef("predict", fingerprint, tuple(committed[shard, keys[shard]] for shard in shards))
    made = {
        "checkpoint": str(path),
        "epoch": learnt.document.get("epoch"),
        "epochs": learnt.document.get("epochs"),
        "class_names": wanted,
        "commit": checkpoint.git_commit(),
        "versions": checkpoint.versions(),
        "device": str(device),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    store.write_manifest(Manifest("predict", fingerprint, identity, everything(committed), made))
    points = ref.table("points")
    seen = replace(points, shards=tuple(shard for shard in points.shards if shard.shard in keys))
    store.write_ref(pin(recipe, "predict"), Ref(recipe.name, {"points": seen, "predict": table}, ref.excluded))
    console.print(
        f"predict: {len(missing)} shards computed, {len(shards) - len(missing)} were there, table {fingerprint}"
    )
    return table


def checkpoint_path(recipe: Recipe) -> Path | None:
    """Return the checkpoint to predict with: the one that the recipe names, or the newest of the task it names.

    Where the recipe names the folder of a run, that is its newest. None if there is none in the folder.
    """
    named = Path(recipe.predict.checkpoint or recipe.folder() / recipe.predict.of).expanduser()
    return checkpoint.latest(named) if named.is_dir() or not recipe.predict.checkpoint else named


def predict_identity(recipe: Recipe, weights: str, points: str) -> dict[str, Any]:
    """Return what a table of predictions depends on."""
    identity: dict[str, Any] = plain(
        {
            "stage": "predict",
            "version": VERSION,
            "columns": signature(PREDICT),
            "settings": {
                "weights": weights,
                "voxels": changed_values(without_labels(recipe.voxels)),
                "network": recipe.network.name,
                **changed_values(NetworkConfig(engine=recipe.network.engine)),
            },
            "needs": {"points": points},
        }
    )
    return identity


def shard_key(fingerprint: str, points: ShardFile) -> str:
    """Return the key of a shard of predictions: that of the points it was made of, in a table of this identity."""
    return digest([fingerprint, points.key])


def everything(committed: dict[tuple[str, str], ShardFile]) -> tuple[ShardFile, ...]:
    """Return all shards of a table, ordered by name."""
    return tuple(committed[name] for name in sorted(committed))


def predicted_shards(
    recipe: Recipe, tables: data.Tables, shards: Sequence[str], network: nn.Module, device: torch.device
) -> Iterator[tuple[str, Iterator[dict[str, Any]]]]:
    """Yield each shard and the rows of its table, in frame order; workers prepare the frames of the next meanwhile."""
    states = {shard: [state for (state,) in tables.states(shard)] for shard in shards}
    frames = [
        data.FrameRow(shard, row, state["frame_id"])
        for shard in shards
        for row, state in enumerate(states[shard])
        if state["status"] == "ok"
    ]
    samples = data.BatchDataset(tables, frames, partial(data.point_sample, recipe.voxels), seed=0)
    size = recipe.run.batch_size
    numbers = [(0, tuple(range(i, min(i + size, len(frames))))) for i in range(0, len(frames), size)]
    with data.load_batches(samples, numbers, recipe.run.loader_workers, pin=device.type == "cuda") as loader:
        predictions = (frame for batch in loader for frame in predict_batch(network, data.checked_batch(batch), device))
        for shard in shards:
            yield shard, (predicted_row(state, predictions) for state in states[shard])


def predicted_row(state: dict[str, Any], predictions: Iterator[Predicted]) -> dict[str, Any]:
    """Return the row of a frame: the next prediction, or the reason why there is none."""
    if state["status"] != "ok":
        return failed_row(state["frame_id"], f"points: {state['reason']}")
    predicted = next(predictions)
    return dict(
        frame_id=state["frame_id"],
        status="ok",
        reason=None,
        label=predicted.label,
        confidence=predicted.confidence,
    )


def predict_batch(network: nn.Module, batch: data.PointBatch, device: torch.device) -> Iterator[Predicted]:
    """Yield the prediction of every frame in a batch: that of its voxel for every point."""
    counts = batch.n_points.tolist()
    if len(batch.cells) == 0:
        label = confidence = torch.zeros(0, dtype=torch.uint8)
    else:
        with torch.inference_mode():
            logits = network(batch.coords.to(device), batch.features.to(device))
            label, confidence = (part.cpu()[batch.point_voxel] for part in best_class(logits))
    for frame_label, frame_confidence in zip(torch.split(label, counts), torch.split(confidence, counts), strict=True):
        yield Predicted(frame_label.numpy(), frame_confidence.numpy())


def best_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the likeliest class of every row but 0, (v,) uint8, and its probability among these, uint8 in 1/255.

    Class 0 means "none": it is no answer, so its logit takes no part (the nuScenes devkit forbids it too).
    """
    probability, label = logits[:, 1:].float().softmax(1).max(1)
    return (label + 1).to(torch.uint8), (probability * 255).round().to(torch.uint8)
