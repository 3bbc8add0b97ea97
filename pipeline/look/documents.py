"""What the report says of documents: evaluations, logs and records of runs, and what tables were made from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from manifests.asked import made_anew
from manifests.config import ConfigError
from manifests.fingerprint import digest, plain
from manifests.labels import pinned_table, refine_pin
from manifests.learnt import changes_since as learnt_changes
from manifests.ontology import Ontology
from manifests.recipe import Recipe
from manifests.records.checkpoint import CheckpointRecord
from manifests.records.codec import as_document
from manifests.records.evaluation import EvaluationRecord, JudgedEvaluation, PartScores
from manifests.records.log import RunLog, run_log
from manifests.records.run import RunRecord
from manifests.records.table import Built, Identity, Predicted
from manifests.sections.training import Task
from manifests.shown import shown_values
from manifests.splits import split_content
from manifests.storage import sealed
from pipeline.engine.runner import Runner
from pipeline.look.browse import Browser
from pipeline.look.figures import Picture, curve_pictures
from pipeline.stages.registry import STAGES

SCORED = {
    "prediction": "Student",
    "pseudo": "Pseudo-labels",
    "tree": "Decision tree",
    "majority": "Most frequent class",
}
"""What evaluations score, in the order of the page; the last two are yardsticks that learnt from the pseudo-labels."""


# -- scores ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownScores:
    """Scores as `trainer evaluate` wrote them, by part of the points ("all", "seen", "unseen").

    `of` is "prediction" or "pseudo"; `steps` are those of a refinement ("vote", "afi"), `before` are the scores before
    it, both empty where there was none, and `changed` counts the labels that it changed. `about` says of what they are,
    `newer` which weights the run has by now, where they are of others: then they are no headline. `confusion` counts
    points by truth (rows) and answer, class 0 first; None where it was not written.
    """

    of: str
    steps: tuple[str, ...]
    title: str
    about: str
    parts: Mapping[str, PartScores]
    newer: str
    before: Mapping[str, PartScores]
    changed: Mapping[str, int]
    confusion: NDArray[np.int64] | None


def read_evaluations(runs: Path, browser: Browser, ontology: Ontology) -> tuple[list[ShownScores], list[str]]:
    """Return the evaluations in the folder of a recipe's runs, and sentences on those that cannot be shown."""
    found, unreadable = [], []
    for path in sorted(runs.glob("evaluate*.json")):
        try:
            found.append(shown_scores(path, browser, ontology))
        except (OSError, ValueError) as error:
            unreadable.append(f"{path} is left out: {error}. Run: {browser.recipe.make('evaluate')}")
    order = list(SCORED)
    found.sort(key=lambda item: order.index(item.of) if item.of in order else len(order))
    return found, unreadable


def unrefined(found: Sequence[ShownScores]) -> list[ShownScores]:
    """Return the scores of labels as they were made; of those that are there refined alone, what they were before."""
    plain = [item for item in found if not item.before]
    for item in found:
        if item.before and item.of not in {one.of for one in plain}:
            title = SCORED.get(item.of, item.of)
            plain.append(replace(item, steps=(), title=title, parts=item.before, before={}, changed={}, confusion=None))
    return sorted(plain, key=lambda item: list(SCORED).index(item.of) if item.of in SCORED else len(SCORED))


def with_unrefined(found: Sequence[ShownScores]) -> list[ShownScores]:
    """Return all scores, those of `unrefined` labels first."""
    return [*unrefined(found), *(item for item in found if item.before)]


def shown_scores(path: Path, browser: Browser, ontology: Ontology) -> ShownScores:
    """Return one evaluation; raises ValueError if it is none, or one of other classes, and OSError."""
    document = sealed.read_as(EvaluationRecord, path)
    check_classes(document, ontology)
    counts = document.confusion.get("all")
    newest = sealed.newest_checkpoint(path.parent / document.learnt_by)
    of_newest = newest is not None and newest.weights == document.weights
    newer = ""
    if document.of == "prediction" and newest and not of_newest:
        newer = f"weights {newest.weights}, {newest.progress}"
    if others := of_others(document, browser, of_newest):
        raise ValueError(f"its scores were made from {others}")
    if of_newest and (changes := of_another_student(path.parent / document.learnt_by, newest, browser)):
        raise ValueError(f"its student learnt something else than the recipe asks for now ({changes})")
    return ShownScores(
        of=document.of,
        steps=tuple(document.refinement.split("+")) if document.refine else (),
        title=title_of(document, path.stem),
        about=about(document),
        parts=document.scores,
        newer=newer,
        before=document.scores_before or {},
        changed=document.refine.changed if document.refine else {},
        confusion=np.array(counts, np.int64) if counts is not None else None,
    )


def of_others(document: EvaluationRecord, browser: Browser, of_newest: bool) -> str:
    """Return what is not, or not known to be, the recipe's of what an evaluation was made from; mostly nothing.

    Where the evaluation is `of_newest`, weights that the run still has, another student may have predicted since.
    """
    tables = {name: table for name, table in browser.tables.items() if not (name == "predict" and of_newest)}
    if document.refine:  # in this way, which need not be the one that section [refine] asks for
        name = refine_pin(browser.recipe, document.of, document.refinement)
        tables.pop("refine", None)
        if refined := pinned_table(browser.store, name, "refine"):
            tables["refine"] = refined
    used = {name: one for name, one in document.tables.items() if not (name == "predict" and of_newest)}
    gone = [name for name, one in used.items() if name not in tables or tables[name].fingerprint != one]
    if gone:
        return f"tables that are not those of the recipe any more ({', '.join(gone)})"
    split = document.split
    if split.endswith(".txt") and document.split_content != digest(split_content(split)):
        return f"a split {split} that said something else, or is not known to have said the same"
    if None in document.every_content:
        return "shards that it does not name: an older version of this program wrote it"
    anew = [line for part in document.every_content for line in made_anew(part or {}, tables)]
    return f"shards that were made anew since ({'; '.join(anew)})" if anew else ""


def of_another_student(run: Path, learnt: CheckpointRecord | None, browser: Browser) -> str:
    """Return in what a checkpoint of a run differs from what the recipe asks of that run; mostly nothing."""
    if run.name not in get_args(Task) or learnt is None:
        return ""
    task: Task = run.name  # type: ignore[assignment]
    return "; ".join(learnt_changes(learnt.student, browser.recipe, task, browser.store))


def check_classes(document: EvaluationRecord, ontology: Ontology) -> None:
    """Raise ValueError unless an evaluation has a number for every class of a dictionary, and for no other."""
    if document.classes != ontology.class_names[1:]:
        raise ValueError(f"its classes are not those of dictionary {ontology.name}")
    if any(len(part.iou) != len(document.classes) for part in every_part(document)):
        raise ValueError("it has not one IoU per class")
    n_classes = len(ontology.classes)
    for counts in document.confusion.values():
        if len(counts) != n_classes or any(len(row) != n_classes for row in counts):
            raise ValueError(f"its confusion matrix is not one of {n_classes} by {n_classes} classes")


def every_part(document: EvaluationRecord) -> tuple[PartScores, ...]:
    """Return the scores of every part of the points, those before a refinement too."""
    return (*document.scores.values(), *(document.scores_before or {}).values())


def title_of(document: EvaluationRecord, file: str) -> str:
    """Return the heading of an evaluation; one in a file of another name says which."""
    steps = document.refinement.split("+") if document.refine else []
    title = " + ".join([SCORED.get(document.of, document.of), *map(str.upper, steps)])
    usual = "-".join(["evaluate", *([] if document.of == "prediction" else [document.of]), *steps])
    return title if file == usual else f"{title} ({file.removeprefix('evaluate-')})"


def about(document: EvaluationRecord) -> str:
    """Return of what an evaluation is: frames, checkpoint, weights, commit."""
    text = f"{document.frames} frames of split “{document.split}”"
    if document.checkpoint:
        step = f", step {document.step}" if document.step is not None else ""
        text += f", {document.checkpoint} (epoch {document.epoch}{step})"
    if document.weights:
        text += f", weights {document.weights}"
    if document.commit:
        text += f", scored by commit {document.commit[:12]}{'+' * document.commit.endswith('+')}"
    return text


# -- trainings ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownTraining:
    """One training run: what was started, its curves, facts in words, and its own report as the trainer wrote it."""

    task: str
    curves: tuple[Picture, ...]
    facts: Mapping[str, str]
    document: str
    record: str


def log_files(runs: Path) -> list[Path]:
    """Return the logs of a recipe's runs, pre-training first; those that were moved aside are left out."""
    found = [path for path in runs.glob("*/log.jsonl") if ".old-" not in path.parent.name]
    return sorted(found, key=lambda path: (path.parent.name != "pretrain", path.parent.name))


def shown_training(path: Path, folder: Path, number: int, browser: Browser) -> ShownTraining:
    """Return a training run from its log, and draw its curves into the folder's pictures."""
    lines = sealed.read_lines(path.read_bytes())
    log, task = run_log(lines.documents), path.parent.name
    curves, found, record = curve_pictures(task, log, folder, f"run-{number}-curves"), facts(log), ""
    try:
        document = sealed.read_as(RunRecord, path.parent / "run.json")
        found, record = found | record_facts(document, browser), indented(shown_values(as_document(document)))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        found["report of the run"] = f"cannot be read: {error}"
    try:
        if changes := of_another_student(path.parent, sealed.newest_checkpoint(path.parent), browser):
            found["this run is not what the recipe asks for now"] = changes
    except (OSError, ValueError) as error:
        found["its newest checkpoint"] = f"cannot be read: {error}"
    if lines.damage or log.damage:
        found["the log"] = f"{path} is not whole ({lines.damage or log.damage}); curves show the lines that are"
    started = indented(shown_values(as_document(log.starts[-1] if log.starts else {})))
    return ShownTraining(task, curves, found, started, record)


def facts(log: RunLog) -> dict[str, str]:
    """Return the facts of a training run that a reader asks for first."""
    start = log.starts[-1] if log.starts else None
    done = log.epochs[-1].epoch if log.epochs else 0
    found = {"epochs": f"{done} of {start.epochs if start else '?'}"}
    if log.epochs:
        seconds = sum(line.seconds or 0.0 for line in log.epochs)
        found["time"] = f"{seconds:,.0f} s, {log.epochs[-1].frames_per_second or 0.0:.1f} frames/s in the last epoch"
    if start is None:
        return found
    found |= {name: str(getattr(start, name)) for name in ("frames", "seed", "device", "commit")}
    found["initial weights"] = start.identity.init or "random"
    return found | {f"table {name}": table.fingerprint for name, table in start.tables.items()}


def record_facts(record: RunRecord, browser: Browser) -> dict[str, str]:
    """Return what the record of a run says first: labels, departures from the paper, scores beside the paper's."""
    found = {"true labels": "took part" if record.reads_labels else "took no part"}
    departures = record.departures
    found["not as in the paper"] = (
        "the paper has no such run" if departures is None else "; ".join(departures) or "nothing"
    )
    if record.result:
        found["result"] = f"weights {record.result.weights}, {record.result.chosen}"
    found |= {name: judgement(one, record, browser) for name, one in record.evaluations.items()}
    if hardware := record.hardware:
        gpus = ", ".join(gpu.name for gpu in hardware.gpus) or "no GPU"
        found["hardware"] = (
            f"{hardware.processor}, {hardware.usable_cores} cores, {hardware.threads} threads, "
            f"{hardware.memory_bytes / 2**30:.0f} GiB, {gpus}"
        )
    return found


def judgement(evaluation: JudgedEvaluation, record: RunRecord, browser: Browser) -> str:
    """Return a score beside the paper's, whether the two can be compared, and what labels were used for."""
    of_result = record.result is not None and evaluation.weights == record.result.weights
    if others := of_others(evaluation, browser, of_result):
        return f"left out: its scores were made from {others}"
    obtained, paper = evaluation.scores["all"].mean_iou, evaluation.expected
    text = "no score" if obtained is None else f"mIoU {100 * obtained:.2f} %"
    if paper:
        text += f"; the paper has {paper.mean_iou_percent:.2f} % ({paper.row}; {paper.source})"
        differs = (*(record.departures or ()), *evaluation.departures)
        text += f"; not comparable as it stands: {len(differs)} settings differ" if differs else ""
    if evaluation.also_trained_on:
        n_scenes = len(evaluation.shards)
        text += f"; {len(evaluation.also_trained_on)} of its {n_scenes} scenes were also trained on"
    return f"{text}. Labels were {evaluation.labels}" if evaluation.labels else text


# -- tables ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShownTable:
    """One table: its name, what identifies it, what it holds, how it was made, and all of this as JSON."""

    table: str
    fingerprint: str
    version: str
    frames: int
    failed: int
    megabytes: float
    finished: str
    commit: str
    device: str
    changes: tuple[str, ...]
    document: str


def shown_table(browser: Browser, name: str, recipe: Recipe) -> ShownTable:
    """Return what identifies a table and how it was made; `changes` names settings the recipe has changed since."""
    table = browser.tables[name]
    manifest = browser.store.read_manifest(name, table.fingerprint)
    identity = manifest.identity if manifest else None
    built, computed = (manifest.how(Built), manifest.how(Predicted)) if manifest else (Built(), Predicted())
    document = {
        "identity": as_document(identity) or {},
        "made": manifest.made if manifest else {},
        "shards": {shard.shard: shard.name for shard in table.shards},
    }
    return ShownTable(
        table=name,
        fingerprint=table.fingerprint,
        version=str(identity.version if identity else "?"),
        frames=table.rows,
        failed=sum(len(shard.failed) for shard in table.shards),
        megabytes=sum(shard.bytes for shard in table.shards) / 1e6,
        finished=built.finished or "?",
        commit=built.git_commit or computed.commit or "?",
        device=", ".join(built.devices) or computed.device or "?",
        changes=tuple(changes_since(name, identity, recipe)),
        document=indented(document),
    )


def changes_since(name: str, identity: Identity | None, recipe: Recipe) -> list[str]:
    """Return how the recipe as it is now differs from what a table of the pipeline was made from."""
    if name not in STAGES or identity is None:
        return []
    try:
        return identity.changes(Runner(recipe).identity(STAGES[name]))
    except ConfigError as error:  # say, the teacher's files are elsewhere; the tables can still be shown
        return [f"cannot be compared with the recipe: {error}"]


def made_from(browser: Browser, name: str) -> Identity | None:
    """Return the readable identity of a table, None if its manifest is missing."""
    manifest = browser.store.read_manifest(name, browser.tables[name].fingerprint)
    return manifest.identity if manifest else None


def indented(value: object) -> str:
    """Return a value as JSON to read."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False)
