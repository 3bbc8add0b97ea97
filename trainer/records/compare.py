"""Two runs side by side: what they were asked otherwise, and what it came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from manifests.fingerprint import Json, differences
from manifests.records.codec import as_document
from manifests.records.evaluation import JudgedEvaluation
from manifests.records.run import NumbersLine, RunRecord
from manifests.sections.training import Task


def compare(one: RunRecord, other: RunRecord) -> dict[str, list[str]]:
    """Return what differs between two runs, `path: one -> other`, under headings; empty if nothing does.

    Times and speeds are left out: they differ always. Runs of two tasks are compared in what their sections share the
    names of, as `training`.
    """
    groups = {
        "run": ("recipe", "task", "state", "seed", "reads_labels"),
        "settings": ("settings",),
        "weights": ("started_from", "weights", "teacher"),
        "data": ("frames", "ontology", "tables"),
        "versions": ("versions", "commit", "device", "processes", "hardware"),
    }
    runs = []
    for run in (one, other):
        settings: dict[str, Json] = {**run.written, **run.config}
        if one.task != other.task:
            settings = {name: values for name, values in settings.items() if name not in get_args(Task)}
            settings["training"] = run.config[run.task]
        initial = as_document(run.initial) or {}
        start = {name: initial.get(name) for name in ("task", "recipe", "epoch", "weights")}
        weights = run.result.weights if run.result else None
        runs.append({**as_document(run), "settings": settings, "started_from": start, "weights": weights})
    found = {}
    for heading, names in groups.items():
        absent = "(default)" if heading == "settings" else "(none)"
        before, after = ({name: run.get(name) for name in names} for run in runs)
        lines = differences(before, after, absent)
        found[heading] = [line.removeprefix("settings.") for line in lines]
    found["curves"] = curve_differences(one.curves, other.curves)
    found["results"] = result_differences(one.evaluations, other.evaluations)
    return {heading: lines for heading, lines in found.items() if lines}


def curve_differences(one: Sequence[NumbersLine], other: Sequence[NumbersLine]) -> list[str]:
    """Return where two training curves part, and where they end; the time it took does not count."""
    a, b = ([{"epoch": line.epoch, "step": line.step, **line.values} for line in some] for some in (one, other))
    lines = []
    apart = next((number for number, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), None)
    if apart is not None:
        lines += [f"first apart in epoch {a[apart]['epoch']}: {line}" for line in differences(a[apart], b[apart])]
    if len(a) != len(b):
        lines.append(f"epochs: {len(a)} -> {len(b)}")
    if a and b and a[-1].get("total") != b[-1].get("total"):
        lines.append(f"loss at the end: {a[-1].get('total')} -> {b[-1].get('total')}")
    return lines


Evaluations = Mapping[str, JudgedEvaluation]


def result_differences(one: Evaluations, other: Evaluations) -> list[str]:
    """Return which scores of two runs differ, in %, and by how much; mIoU first, all points before parts of them."""
    a, b = results_of(one), results_of(other)
    lines = []
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in a or name not in b:
            lines.append(
                f"{name}: {'scored' if name in a else 'not scored'} -> {'scored' if name in b else 'not scored'}"
            )
            continue
        for what in [*a[name], *(what for what in b[name] if what not in a[name])]:
            before, after = a[name].get(what), b[name].get(what)
            if before == after:
                continue
            change = ""
            if isinstance(before, float) and isinstance(after, float):
                change = f" ({after - before:+.2f})"
            lines.append(f"{name}, {what}: {before} -> {after}{change}")
    return lines


def results_of(evaluations: Evaluations) -> dict[str, dict[str, Json]]:
    """Return the scores of a run in %, by what was scored and then by what they are of, `car of seen points`."""

    def percent(value: float | None) -> float | None:
        return None if value is None else round(100 * value, 2)

    found: dict[str, dict[str, Json]] = {}
    for one in evaluations.values():
        rows: dict[str, Json] = {"split": one.split, "what the split file says": one.split_content}
        rows |= {"test time": as_document(one.test_time)}
        for part, scores in one.scores.items():
            rows[f"mIoU of {part} points"] = percent(scores.mean_iou)
            rows |= {
                f"{name} of {part} points": percent(iou) for name, iou in zip(one.classes, scores.iou, strict=True)
            }
            rows[f"number of {part} points"] = scores.points
        found[one.of + (f" + {one.refinement}" if one.refine else "")] = rows
    return found
