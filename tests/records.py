"""Small whole documents of runs, as JSON, to put beside a test: what they say is as short as it may be."""

from __future__ import annotations

from typing import Any, TypeVar

from manifests.records.codec import as_document
from manifests.records.run import (
    Dictionary,
    FramesIdentity,
    KnownClasses,
    LearntFrames,
    LogState,
    NumbersLine,
    RunIdentity,
    RunRecord,
    StartLine,
)

T = TypeVar("T")

NOW = "2026-11-30T12:00:00.000+00:00"
CLASSES = ("car", "road", "wall")


def part(mean_iou: float | None, n_classes: int = 3, **changes: Any) -> dict[str, Any]:
    """Return scores of some points, the same for every class."""
    scores = {"mean_iou": mean_iou, "micro_iou": 0.5, "frequency_weighted_iou": None, "points": 9}
    return {**scores, "iou": [mean_iou] * n_classes, **changes}


def evaluation(mean_iou: float | None = 0.25, **changes: Any) -> dict[str, Any]:
    """Return an evaluation of predictions."""
    classes = changes.get("classes", CLASSES)
    document = {"of": "prediction", "recipe": "street", "split": "val", "absent": "zero", "frames": 2}
    scores = {name: part(mean_iou, len(classes)) for name in ("all", "seen", "unseen")}
    return {**document, "tables": {}, "contents": {}, "classes": list(classes), "scores": scores, **changes}


def refined(name: str, **changed: int) -> dict[str, Any]:
    """Return what an evaluation says of a refinement that changed so many labels."""
    return {"name": name, "merge": None, "changed": changed, "notes": {}}


def start_line(**changes: Any) -> dict[str, Any]:
    """Return the line of a log with which a run starts."""
    line = StartLine(
        time=NOW,
        frames=5,
        task="distill",
        recipe="street",
        identity=RunIdentity(ontology="0" * 12, tables={}, frames=FramesIdentity(5, "f" * 12), init=None, settings={}),
        config={"data": {"dataset": "nuscenes", "version": "v1.0-mini"}},
        tables={},
        ontology=Dictionary("street", 3),
        class_names=("nothing", *CLASSES),
        seed=7,
        epochs=2,
        versions={"python": "3.11"},
        commit=None,
        device="cpu",
    )
    return {**as_document(line), **changes}


def epoch_line(epoch: int, total: float, **changes: Any) -> dict[str, Any]:
    """Return the line of a log with which an epoch ends, of ten steps, in four seconds."""
    values = {"total": total, "lr_head": 0.1, "lr_trunk": 0.2}
    line = NumbersLine(time=NOW, epoch=epoch, step=10 * epoch, seconds=4.0, frames_per_second=3.0, values=values)
    return {**as_document(line), "data_wait_share": 0.5, **changes}


def run_record(**changes: Any) -> dict[str, Any]:
    """Return the record of a run that has ended."""
    record = RunRecord(
        format=2,
        recipe="street",
        task="distill",
        state="finished",
        result=None,
        reads_labels=False,
        departures=(),
        seed=7,
        epochs=2,
        frames=LearntFrames(4, "f" * 12, {}),
        config={"data": {"dataset": "nuscenes", "version": "v1.0-mini"}, "distill": {}},
        written={},
        initial=None,
        teacher=None,
        tables={},
        ontology=KnownClasses("street", 3, "0" * 12, ("nothing", *CLASSES)),
        versions={"python": "3.11"},
        commit="abc",
        device="cpu",
        processes=1,
        hardware=None,
        earlier_starts=(),
        curves=(),
        log=LogState(3, ""),
        evaluations={},
    )
    return {**as_document(record), **changes}


def hardware(**changes: Any) -> dict[str, Any]:
    """Return a machine without a GPU."""
    cores = {"processor": "CPU", "cores": 4, "usable_cores": 2, "memory_bytes": 2**34, "threads": 1}
    return {**cores, "omp_num_threads": "1", "gpus": [], "cuda": None, "system": "Linux", **changes}


def told(value: T | None) -> T:
    """Return what a record says of something, where it has to."""
    assert value is not None
    return value
