"""Predictions as a table of the store: one class and its probability for every point of every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal

import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from manifests.asked import pin, tables_of
from manifests.fingerprint import looks_of
from manifests.labels import predict_identity, predict_key
from manifests.learnt import changes_since
from manifests.provenance import TRAINER_PACKAGES, made_by, package_versions
from manifests.recipe import Recipe
from manifests.records.codec import as_document
from manifests.records.run import Student
from manifests.records.table import Identity, Predicted
from manifests.sections.training import Task
from manifests.sources import compare_files
from manifests.splits import check_named
from manifests.storage.manifest import Manifest
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.answers import Predict
from manifests.tables.base import F, Failed, FrameRecord, UInt8
from trainer.checkpoints import checkpoint, official
from trainer.data.batches import PointBatch
from trainer.data.loading import BatchDataset, load_batches
from trainer.data.samples import point_sample
from trainer.data.tables import FrameRow, Tables, scenes_of_split
from trainer.errors import TrainerError
from trainer.loop.device import deterministic, resolve_device, unused_gpu
from trainer.loop.learner import N_INPUTS
from trainer.loop.log import progress_bar
from trainer.network.minkunet import build_network
from trainer.network.sparse import Engine, open_engine


@dataclass(frozen=True)
class Saying(Generic[F]):
    """How a row of a table comes from what a network says of voxels, (v, outputs).

    `tensors` makes some tensors (v, ...) of it; `record` makes a frame's row of its name and, for each of these, what
    they hold of its points, (n, ...).
    """

    kind: type[F]
    tensors: Callable[[Tensor], tuple[Tensor, ...]]
    record: Callable[..., F]


@dataclass(frozen=True, eq=False)
class Sweeps:
    """The sweeps of `predict.split`, by shard, and where a network runs over them."""

    recipe: Recipe
    store: Store
    ref: Ref
    tables: Tables
    shards: tuple[str, ...]
    engine: Engine
    device: torch.device

    @classmethod
    def open(cls, recipe: Recipe) -> Sweeps:
        """Raise StoreError for a missing table of points, and ConfigError for a recipe that cannot be run here."""
        check_named("predict.split", recipe.predict.split, recipe.data.dataset)
        store = Store.open(recipe.run.store)
        ref = tables_of(store, recipe, ["points"])
        engine = open_engine(recipe.network.engine, recipe.run.device)
        device = resolve_device(recipe.run.device, engine)
        tables = Tables(store, ref, ["points"])
        scenes = scenes_of_split(tables, recipe.predict.split, recipe.data.dataset)
        shards = tuple(shard for shard in tables.shards if scene_of(shard) in scenes)
        return cls(recipe, store, ref, tables, shards, engine, device)

    @property
    def points(self) -> str:
        """The fingerprint of the table of points."""
        return self.tables.tables[0].fingerprint


def predict(recipe: Recipe, console: Console) -> TableRef:
    """Predict every frame of the split's scenes and return the table, which the ref `runs/<recipe>-predict` names.

    Raises StoreError for tables that are missing or damaged, ConfigError for a recipe that cannot be run here, and
    TrainerError if there is no checkpoint or one of other classes, voxels or network.
    """
    sweeps = Sweeps.open(recipe)
    path = checkpoint_path(recipe)
    if path is None:
        raise TrainerError(
            f"{recipe.predict.checkpoint or recipe.folder() / recipe.predict.of} holds no checkpoint; run: "
            f"{recipe.make(recipe.predict.of)}, or set predict.of or predict.checkpoint"
        )
    learnt = load_learnt(path, recipe, console, "" if recipe.predict.checkpoint else recipe.predict.of)
    check_student(path, learnt.document.student, recipe, sweeps.store)
    trained, wanted = learnt.document.class_names, recipe.ontology.class_names
    n_outputs = n_outputs_of(learnt)
    if trained is None and n_outputs == len(wanted):
        console.print(f"{path} does not name its classes: taken for those of dictionary {recipe.ontology.name}")
    elif learnt.document.task == "pretrain" or trained != wanted:
        classes = ", ".join((trained or ())[1:]) if learnt.document.task != "pretrain" else ""
        raise TrainerError(
            f"{path} predicts {classes or 'no classes'} ({n_outputs} outputs); "
            f"dictionary {recipe.ontology.name} has {', '.join(wanted[1:])}"
        )
    network = build_network(recipe.network, N_INPUTS, len(wanted), sweeps.engine)
    identity, name = predict_identity(recipe, learnt.document.weights, sweeps.points), pin(recipe, "predict")
    views = recipe.predict.views
    return run_over(sweeps, path, learnt, network, SAYS_CLASSES, identity, name, console, views, wanted)


def check_student(path: Path, student: Student, recipe: Recipe, store: Store) -> None:
    """Raise TrainerError if the recipe's own student learnt something else than it asks for now; one named is taken."""
    if not recipe.predict.checkpoint:
        named = ", or name the file to predict with as it is: predict.checkpoint"
        check_run(path, student, recipe, recipe.predict.of, store, named)


def check_run(path: Path, student: Student, recipe: Recipe, task: Task, store: Store, or_: str = "") -> None:
    """Raise TrainerError if a run of the recipe learnt something else than it asks for now; `or_` is further advice."""
    changes = changes_since(student, recipe, task, store, checkpoint.newest_weights)
    if changes:
        listed = "".join(f"\n  {line}" for line in changes)
        raise TrainerError(
            f"{path} is of another recipe than the one at hand, or of this one before it was changed:{listed}\n"
            f"Train it: {recipe.make(task, more=['--fresh'])} (which moves the old run aside){or_}"
        )


def load_learnt(path: Path, recipe: Recipe, console: Console, task: Task | Literal[""]) -> checkpoint.Checkpoint:
    """Return a checkpoint of the recipe's run of a task, or, without one, a file that the recipe names.

    Raises TrainerError if it cannot be read, has learnt nothing, or on other voxels than the recipe's.
    """
    try:
        learnt = official.load(path)
    except checkpoint.DamagedCheckpoint as error:
        if not task:
            raise
        raise checkpoint.DamagedCheckpoint(
            f"{str(error).removesuffix(checkpoint.EARLIER)}; the run goes on from its newest whole state with: "
            f"{recipe.make(task)}"
        ) from None
    checkpoint.check_learnt(learnt)
    unchecked = checkpoint.check_voxels(learnt, recipe.voxels, intensity=True)
    if unchecked:
        console.print(f"{path} does not say on which voxels it was trained ({', '.join(unchecked)}): not compared")
    return learnt


def n_outputs_of(learnt: checkpoint.Checkpoint) -> int:
    """Return how many numbers the network of a checkpoint gives each voxel; 0 if it does not say."""
    return int(learnt.weights["final.kernel"].shape[-1]) if "final.kernel" in learnt.weights else 0


def run_over(
    sweeps: Sweeps,
    path: Path,
    learnt: checkpoint.Checkpoint,
    network: nn.Module,
    saying: Saying[F],
    identity: Identity,
    name: str,
    console: Console,
    views: int = 1,
    class_names: tuple[str, ...] | None = None,
) -> TableRef:
    """Run what a checkpoint learnt over all sweeps; return the table of what it says of them, which ref `name` names.

    With several `views` of each sweep, `saying` is given what they say of each point together: see `averaged`.

    The table is identified by what `identity` says, the weights and the table of points among it, and each shard by the
    points it was made of: what is there already is not computed again. A frame without points to read keeps its row,
    failed. `class_names` says what outputs mean, where they mean classes. Raises StoreError for tables that are
    damaged, and TrainerError for weights of another network.
    """
    recipe, store, tables, device = sweeps.recipe, sweeps.store, sweeps.tables, sweeps.device
    stage = identity.stage
    checkpoint.load_weights(learnt, network)
    network.to(device).eval()
    if unused := unused_gpu(device):
        console.print(unused)
    console.print(f"{stage}: {len(sweeps.shards)} shards with {path} ({learnt.document.progress}), on {device}")

    compared = compare_files(store, recipe, sweeps.ref, sweeps.shards, ["points"])
    if compared.note:
        console.print(compared.note)
    fingerprint = identity.fingerprint
    keys = {shard: predict_key(fingerprint, tables.file("points", shard)) for shard in sweeps.shards}
    committed = store.shards(stage, fingerprint)
    missing = [shard for shard in sweeps.shards if (shard, keys[shard]) not in committed]
    run = store.begin(name, Ref(recipe.name, {}), [(stage, fingerprint)]) if missing else ""
    with (
        deterministic(recipe.run.deterministic, device, sweeps.engine),
        progress_bar(console, recipe.run.progress) as bar,
    ):
        shown = bar.add_task(stage, total=sum(tables.file("points", shard).rows for shard in missing))
        for shard, rows in answered_shards(recipe, tables, missing, network, device, saying, views):
            with store.writer(stage, fingerprint, shard, keys[shard], saying.kind.schema) as writer:
                for row in rows:
                    writer.append(row)
                    bar.update(shown, advance=1)
                committed[shard, keys[shard]] = writer.commit()

    table = TableRef(stage, fingerprint, tuple(committed[shard, keys[shard]] for shard in sweeps.shards))
    how = replace(how_made(path, learnt, device), class_names=class_names, sources=compared)
    store.write_manifest(Manifest(stage, fingerprint, identity, everything(committed), as_document(how)))
    points = sweeps.ref.table("points")
    seen = replace(points, shards=tuple(shard for shard in points.shards if shard.shard in keys))
    store.write_ref(name, Ref(recipe.name, {"points": seen, stage: table}, sweeps.ref.excluded), run)
    console.print(
        f"{stage}: {len(missing)} shards computed, {len(sweeps.shards) - len(missing)} were there, table {fingerprint}"
    )
    return table


def how_made(path: Path, learnt: checkpoint.Checkpoint, device: torch.device) -> Predicted:
    """Return what a manifest says of how a network made a table: weights, code, packages, device and time."""
    known = learnt.document
    return Predicted(
        checkpoint=str(path),
        checkpoint_looks=looks_of(path),
        student=known.student,
        weights=known.weights,
        epoch=known.epoch,
        step=known.step,
        epochs=known.epochs,
        commit=made_by().commit,
        versions=package_versions(TRAINER_PACKAGES),
        device=str(device),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def checkpoint_path(recipe: Recipe) -> Path | None:
    """Return the checkpoint to predict with: the one that the recipe names, or the newest of the task it names.

    Where the recipe names the folder of a run, that is its newest. None if there is none in the folder.
    """
    named = Path(recipe.predict.checkpoint or recipe.folder() / recipe.predict.of).expanduser()
    return checkpoint.latest(named) if named.is_dir() or not recipe.predict.checkpoint else named


def everything(committed: dict[tuple[str, str], ShardFile]) -> tuple[ShardFile, ...]:
    """Return all shards of a table, ordered by name."""
    return tuple(committed[name] for name in sorted(committed))


def answered_shards(
    recipe: Recipe,
    tables: Tables,
    shards: Sequence[str],
    network: nn.Module,
    device: torch.device,
    saying: Saying[F],
    views: int,
) -> Iterator[tuple[str, Iterator[F | Failed]]]:
    """Yield each shard and the rows of its table, in frame order; workers prepare the frames of the next meanwhile."""
    states = {shard: [state for (state,) in tables.states(shard)] for shard in shards}
    frames = [
        FrameRow(shard, row, state.frame_id)
        for shard in shards
        for row, state in enumerate(states[shard])
        if not isinstance(state, Failed)
    ]
    samples = BatchDataset(tables, frames, partial(point_sample, recipe.voxels, views), seed=0)
    size = recipe.run.batch_size
    numbers = [(0, tuple(range(i, min(i + size, len(frames))))) for i in range(0, len(frames), size)]
    with load_batches(samples, numbers, recipe.run.loader_workers, pin=device.type == "cuda") as loader:
        answers = (frame for batch in loader for frame in answer_batch(network, batch, device, saying.tensors, views))
        for shard in shards:
            yield shard, (answered_row(state, answers, saying) for state in states[shard])


def answered_row(
    state: FrameRecord | Failed, answers: Iterator[tuple[NDArray[Any], ...]], saying: Saying[F]
) -> F | Failed:
    """Return the row of a frame: the next answer, or the reason why there is none."""
    if isinstance(state, Failed):
        return Failed(state.frame_id, f"points: {state.reason}")
    return saying.record(state.frame_id, *next(answers))


def answer_batch(
    network: nn.Module,
    batch: PointBatch,
    device: torch.device,
    tensors: Callable[[Tensor], tuple[Tensor, ...]],
    views: int = 1,
) -> Iterator[tuple[NDArray[Any], ...]]:
    """Yield what `tensors` holds of every frame in a batch: to every point what is said of its voxel, (n, ...) each.

    Of points that came back from nothing it is 0: no class, and not sure. With several views, so many frames of the
    batch are one frame, and their voxels' logits are averaged for each point.
    """
    counts = batch.n_points.tolist()[::views]
    with torch.inference_mode():
        if len(batch.cells):
            output = network(batch.coords.to(device), batch.features.to(device))
        else:  # no points in any of the frames: there is nothing to run, but the answers have shapes
            output = torch.zeros(0, int(network.get_parameter("final.kernel").shape[-1]), device=device)
        if views == 1:
            values = [value.cpu()[batch.point_voxel] for value in tensors(output)]
        else:
            of_views = torch.split(output[batch.point_voxel.to(device)], batch.n_points.tolist())
            frames = [averaged(of_views[i : i + views]) for i in range(0, len(of_views), views)]
            values = [value.cpu() for value in tensors(torch.cat(frames))]
    parts = (torch.split(value, counts) for value in values)
    rows = torch.split(batch.is_return, batch.n_rows.tolist())[::views]
    for frame, there in zip(zip(*parts, strict=True), rows, strict=True):
        yield tuple(spread(value, there).numpy() for value in frame)


def spread(values: Tensor, there: Tensor) -> Tensor:
    """Return values (k, ...) at the rows (n,) that are there, and 0 at all others."""
    if len(values) == len(there):
        return values
    whole = torch.zeros((len(there), *values.shape[1:]), dtype=values.dtype)
    whole[there] = values
    return whole


def averaged(views: Sequence[Tensor]) -> Tensor:
    """Return logits (n, classes) that give the mean of the probabilities which several views give the classes but 0.

    `views` are the logits (n, classes) of each. The logit of class 0, which is no answer, is 0.
    """
    mean = torch.stack([logits[:, 1:].float().softmax(1) for logits in views]).mean(0)
    return torch.nn.functional.pad(mean.log(), (1, 0))


def classes_of(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return three classes, likeliest first, and their probabilities, (v, 3) each; a class that is nearly none is 0."""
    label, confidence = likeliest(logits, 3)
    label[:, 1:] *= confidence[:, 1:] > 0
    return label, confidence


def predicted(frame_id: str, label: UInt8, confidence: UInt8) -> Predict:
    """Return the row of table `predict` from three classes of every point and their probabilities, (n, 3) each."""
    return Predict(
        frame_id=frame_id,
        label=label[:, 0],
        confidence=confidence[:, 0],
        runner_up=label[:, 1:],
        runner_up_confidence=confidence[:, 1:],
    )


SAYS_CLASSES = Saying(Predict, classes_of, predicted)


def likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` likeliest classes of every row but 0, (v, k) uint8, and their probabilities, uint8 in 1/255.

    Class 0 means "none": it is no answer, so its logit takes no part (the nuScenes devkit forbids it too). It fills up
    where there are fewer than `k` classes. Of equally likely classes the first comes first.
    """
    probability, order = logits[:, 1:].float().softmax(1).sort(dim=1, descending=True, stable=True)
    missing = (0, max(0, k - probability.shape[1]))
    label = torch.nn.functional.pad((order[:, :k] + 1).to(torch.uint8), missing)
    return label, torch.nn.functional.pad((probability[:, :k] * 255).round().to(torch.uint8), missing)
