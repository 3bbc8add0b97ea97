"""The reproduction report of a run, `runs/<recipe>/<task>/run.json`: all it takes to repeat it, and what it came to.

It is assembled anew from what training and evaluation wrote (the log, the newest checkpoint, `evaluate*.json`) and from
the manifests of the store, and is the source of nothing. The page of the pipeline's report and `diff` read it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from manifests.fingerprint import Settings, differences, digest, sha256_file
from manifests.recipe import Recipe
from manifests.records.checkpoint import CheckpointRecord
from manifests.records.codec import as_document
from manifests.records.evaluation import EvaluationRecord, Expected, JudgedEvaluation, TestTime
from manifests.records.log import run_log
from manifests.records.run import (
    Ancestor,
    EarlierStart,
    Gpu,
    Hardware,
    KnownClasses,
    LearntFrames,
    LearntTable,
    LogState,
    Result,
    RunDescription,
    RunRecord,
    ShardsMade,
    TableMade,
)
from manifests.records.table import Built
from manifests.sections.training import LabelledConfig, Task
from manifests.storage import sealed
from manifests.storage.refs import Ref, TableRef
from manifests.storage.sealed import read_as
from manifests.storage.store import Store
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.records import protocol

FORMAT = sealed.SEALED_SINCE
_READABLE = (1, FORMAT)
FILE = "run.json"


# -- what is recorded when a run starts --------------------------------------------------------------------------------


def hardware() -> Hardware:
    """Return what computes here."""
    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            gpus.append(Gpu(properties.name, properties.total_memory))
    return Hardware(
        processor=processor(),
        cores=os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        threads=torch.get_num_threads(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
        gpus=tuple(gpus),
        cuda=torch.version.cuda,
        system=platform.platform(),
    )


def processor() -> str:
    """Return the name of the processor, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def ancestor(path: Path, document: CheckpointRecord) -> Ancestor:
    """Return what is known of a checkpoint that a run starts from: of its `document`, in which what it started from
    itself is described alike.
    """
    known = {item.name: getattr(document, item.name) for item in fields(Ancestor) if item.name != "file"}
    return Ancestor(file=str(path), **known)


def reads_labels(recipe: Recipe, task: Task, initial: Ancestor | None, teacher: Settings | None) -> bool:
    """Return whether true labels took part: in the task, in what it starts from, in its teacher, or by corrections.

    A simulated teacher knows those of this data set; a supervised one learnt from those of other driving scenes.
    """
    known = teacher or {}
    earlier = (initial and initial.reads_labels) or known.get("simulated") or known.get("supervised")
    corrected = task == "distill" and recipe.data.corrections  # what people gave: table `target` holds it
    return isinstance(recipe.settings(task), LabelledConfig) or bool(earlier or corrected)


def teacher_of(store: Store, ref: Ref, initial: Ancestor | None) -> Settings | None:
    """Return the teacher's settings: of the recipe's segments, or else of the run that the weights come from."""
    table = ref.tables.get("segment")
    manifest = store.read_manifest("segment", table.fingerprint) if table else None
    if manifest is None:
        return initial.teacher if initial else None
    teacher = manifest.identity.settings.get("teacher")
    return teacher if isinstance(teacher, Mapping) else None


def made_with(store: Store, used: Mapping[str, TableRef]) -> dict[str, Settings]:
    """Return the settings, other than defaults, of the tables a run learns from and of those they were made from."""
    found = with_upstream(store, {name: table.fingerprint for name, table in used.items()}, {})
    return {name: table.settings for name, table in found.items() if table.settings is not None}


# -- the report --------------------------------------------------------------------------------------------------------


def write_record(recipe: Recipe, task: Task, store: Store) -> Path | None:
    """Write the report of a run and return its path, or None where there is no such run.

    Raises TrainerError where it cannot be written.
    """
    folder = recipe.folder() / task
    document = assemble(folder, store)
    if document is None:
        return None
    path = folder / FILE
    write_json(path, document)
    return path


def assemble(folder: Path, store: Store) -> RunRecord | None:
    """Return the report of the run in a folder, or None if it has not been started."""
    lines = read_lines(folder / "log.jsonl")
    log = run_log(lines.documents)
    if not log.starts:
        return None
    start = log.starts[-1]
    kept = [path for path in states_of(folder) if weights_of(path) is not None]
    result = result_of(kept[-1], start.epochs) if kept else None
    done = result.epoch if result else 0
    evaluations, unreadable = read_evaluations(folder, start, {weights_of(path) for path in kept})
    tables = {name: table for item in evaluations.values() for name, table in item.tables.items()}
    for name in ("predict", "refine"):  # results, and no data
        tables.pop(name, None)
    tables |= {name: table.fingerprint for name, table in start.tables.items()}
    return RunRecord(
        format=FORMAT,
        recipe=start.recipe,
        task=start.task,
        state="finished" if done == start.epochs else f"{done} of {start.epochs} epochs",
        result=result,
        reads_labels=start.reads_labels,
        departures=start.departures,
        seed=start.seed,
        epochs=start.epochs,
        frames=LearntFrames(start.identity.frames.number, start.identity.frames.digest, start.left_out),
        sources=start.sources,
        config=start.config,
        written=start.written,
        initial=start.initial,
        teacher=start.teacher,
        tables=with_upstream(store, tables, start.tables),
        ontology=KnownClasses(start.ontology.name, start.ontology.version, start.identity.ontology, start.class_names),
        versions=start.versions,
        commit=start.commit,
        device=start.device,
        processes=start.ranks,
        hardware=start.hardware,
        earlier_starts=tuple(
            EarlierStart(one.time, one.epoch, one.versions, one.commit, one.device, one.ranks, one.hardware)
            for one in log.starts[:-1]
        ),
        curves=log.epochs,
        log=LogState(len(lines.texts), lines.damage or log.damage),
        evaluations=evaluations,
        unreadable=unreadable,
    )


def result_of(path: Path, epochs: int) -> Result:
    """Return what a run came to: its newest checkpoint, which is its result where the run has ended."""
    document = checkpoint.read_document(path)
    ended = document.epoch == epochs
    return Result(
        file=path.name,
        sha256=sha256_file(path),
        weights=document.weights,
        epoch=document.epoch or 0,
        step=document.step,
        chosen="the last epoch; no label chose it" if ended else "the newest epoch; the run has not ended",
    )


def states_of(folder: Path) -> list[Path]:
    """Return the checkpoints that a run keeps of its epochs, the newest last."""
    return [checkpoint.epoch_path(folder, epoch) for epoch in checkpoint.finished_epochs(folder)]


def weights_of(path: Path) -> str | None:
    """Return the digest of a checkpoint's weights, or None if it is damaged."""
    try:
        return checkpoint.read_document(path).weights
    except checkpoint.DamagedCheckpoint:
        return None


def read_lines(path: Path) -> sealed.Lines:
    """Return the lines of a log, none where there is no such file; raises TrainerError if it cannot be read."""
    try:
        return sealed.read_lines(path.read_bytes())
    except FileNotFoundError:
        return sealed.read_lines(b"")
    except OSError as error:
        raise TrainerError(f"{path} cannot be read: {error.strerror or error}") from None


def with_upstream(store: Store, used: Mapping[str, str], learnt: Mapping[str, LearntTable]) -> dict[str, TableMade]:
    """Return identity and making of the tables by name, and of all that they were made from."""
    found: dict[str, TableMade] = {}
    waiting = dict(used)
    while waiting:
        stage, fingerprint = waiting.popitem()
        if stage in found:
            continue
        manifest = store.read_manifest(stage, fingerprint)
        identity, made = (manifest.identity, manifest.how(Built)) if manifest else (None, Built())
        shards = learnt[stage].shards if stage in learnt else None
        found[stage] = TableMade(
            fingerprint=fingerprint,
            settings=identity.settings if identity else None,
            version=identity.version if identity else None,
            commit=made.git_commit,
            packages=made.packages if manifest else None,
            shards=ShardsMade(len(shards), digest(shards)) if shards is not None else None,
        )
        waiting |= {name: need for name, need in (identity.needs if identity else {}).items() if name not in found}
    return dict(sorted(found.items()))


def read_evaluations(
    folder: Path, start: RunDescription, weights: Collection[str | None]
) -> tuple[dict[str, JudgedEvaluation], dict[str, str]]:
    """Return the evaluations of a run's weights, and with those of a distillation the ones of its pseudo-labels.

    The second answer says of those that cannot be read, by name, why.
    """
    found, unreadable = {}, {}
    target = start.tables.get("target") if start.task == "distill" else None
    for path in sorted(folder.parent.glob("evaluate*.json")):
        try:
            evaluation = read_as(EvaluationRecord, path)
        except (OSError, ValueError) as error:
            unreadable[path.name] = str(error) or type(error).__name__
            continue
        of_target = target is not None and is_of(evaluation, target)
        if evaluation.weights in weights if evaluation.of == "prediction" else of_target:
            found[path.stem] = judged(evaluation, start)
    return found, unreadable


def is_of(evaluation: EvaluationRecord, learnt: LearntTable) -> bool:
    """Return whether an evaluation is of the table that was learnt, and of its very shards as far as both have them."""
    scored = (evaluation.contents or {}).get("target", {})
    keys = {shard: content.partition(".")[0] for shard, content in scored.items()}
    same = all(keys.get(shard, key) == key for shard, key in learnt.shards.items())
    return same and learnt.fingerprint in evaluation.tables.values()


def judged(evaluation: EvaluationRecord, start: RunDescription) -> JudgedEvaluation:
    """Return an evaluation with what the paper got, how it was tested, and what its labels were used for."""
    dataset, refine = str(start.config["data"]["dataset"]), evaluation.refinement
    n_paper = protocol.VALIDATION_FRAMES.get(dataset)
    departures = differences(
        {"evaluate.split": "val", "evaluate.frames": n_paper},
        {"evaluate.split": evaluation.split, "evaluate.frames": evaluation.frames},
    )
    test_time = TestTime(
        views=1,
        augmentation="none",
        class_0="never predicted",
        points="every point takes the class of its voxel",
        absent_class=evaluation.absent,
        refine=refine or "none",
        sweeps="those before and after too, so offline" if "vote" in refine else "each by itself",
    )
    learnt = {name for table in start.tables.values() for name in table.shards}
    return JudgedEvaluation(
        **{item.name: getattr(evaluation, item.name) for item in fields(evaluation)},
        departures=tuple(departures),
        test_time=test_time,
        labels=use_of_labels(evaluation),
        also_trained_on=tuple(name for name in evaluation.shards if name in learnt),
        expected=expected(evaluation, start),
    )


def expected(evaluation: EvaluationRecord, start: RunDescription) -> Expected | None:
    """Return what the paper got where a student was scored, beside what it got here; None where it has no such run."""
    refine, obtained = evaluation.refinement, evaluation.scores["all"].mean_iou
    if evaluation.of != "prediction" or "vote" in refine or obtained is None:  # the paper knows no vote
        return None
    data = start.config["data"]
    teacher, started_from = protocol.teacher_name(start.teacher), protocol.start_of(start.initial)
    paper = protocol.expected(
        start.task, str(data["dataset"]), str(data["version"]), started_from, teacher, bool(refine)
    )
    if paper is None:
        return None
    return Expected(
        mean_iou_percent=paper.mean_iou_percent,
        obtained_percent=round(100 * obtained, 2),
        difference=round(100 * obtained - paper.mean_iou_percent, 2),
        row=paper.row,
        source=paper.source,
    )


def use_of_labels(evaluation: EvaluationRecord) -> str:
    """Return what the labels of an evaluation were used for; an epoch that is not the last is marked."""
    if evaluation.is_of_unfinished_run:
        return (
            f"read to score epoch {evaluation.epoch} of {evaluation.epochs}, which is not the result; choosing an "
            "epoch by this score would be a use of labels"
        )
    if evaluation.calibrated and evaluation.calibrated.by == "truth":
        return (
            f"read to score split {evaluation.split}, and those of split {evaluation.calibrated.split} to calibrate "
            "confidences; they chose no label"
        )
    return f"read to score split {evaluation.split}; they chose nothing"


def write_json(path: Path, record: Any) -> None:
    """Write a record as JSON, sealed, there whole or not at all; raises TrainerError where that is not possible."""
    try:
        sealed.write_sealed(path, as_document(record))
    except OSError as error:
        raise TrainerError(f"{path} cannot be written: {error.strerror or error}") from None


def read_record(path: Path) -> RunRecord:
    """Return a report, by its path or by that of the run's folder; raises TrainerError if there is none."""
    file = path / FILE if path.is_dir() else path
    try:
        record = read_as(RunRecord, file)
        if record.format not in _READABLE:
            raise ValueError(f"it is not of format {' or '.join(map(str, _READABLE))}")
    except FileNotFoundError:
        raise TrainerError(
            f"{file}: there is no such report; name a run as `runs` lists it, say city/distill, or its folder"
        ) from None
    except (OSError, ValueError) as error:
        raise TrainerError(f"{file} is no report of a run, or a damaged one: {error}") from None
    return record
