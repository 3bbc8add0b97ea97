"""The reproduction report of a run, `runs/<recipe>/<task>/run.json`: all it takes to repeat it, and what it came to.

It is assembled anew from what training and evaluation wrote (the log, the newest checkpoint, `evaluate*.json`) and from
the manifests of the store, and is the source of nothing. The page of the pipeline's report and `diff` read it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from manifests.fingerprint import differences, digest, sha256_file
from manifests.recipe import Recipe
from manifests.sections.training import LabelledConfig, Task
from manifests.storage import sealed
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.records import protocol

FORMAT = sealed.SEALED_SINCE
_READABLE = (1, FORMAT)
FILE = "run.json"


# -- what is recorded when a run starts --------------------------------------------------------------------------------


def hardware() -> dict[str, Any]:
    """Return what computes here: processor, cores, memory, threads, GPUs, and the system. No name of the machine."""
    gpus = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            gpus.append({"name": properties.name, "memory_bytes": properties.total_memory})
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "threads": torch.get_num_threads(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "system": platform.platform(),
    }


def processor() -> str:
    """Return the name of the processor, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def ancestor(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a checkpoint that a run starts from: of its `document`, in which what it started from
    itself is described alike."""
    names = ("weights", "task", "recipe", "epoch", "epochs", "n_outputs", "teacher", "reads_labels", "initial")
    return {"file": str(path), **{name: document[name] for name in names if name in document}}


def reads_labels(
    recipe: Recipe, task: Task, initial: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None
) -> bool:
    """Return whether true labels took part: in the task, in what it starts from, or in its teacher.

    A simulated teacher knows those of this data set; a supervised one learnt from those of other driving scenes.
    """
    known = teacher or {}
    earlier = (initial or {}).get("reads_labels") or known.get("simulated") or known.get("supervised")
    return isinstance(recipe.settings(task), LabelledConfig) or bool(earlier)


def teacher_of(store: Store, ref: Ref, initial: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the teacher's settings: of the recipe's segments, or else of the run that the weights come from."""
    table = ref.tables.get("segment")
    manifest = store.read_manifest("segment", table.fingerprint) if table else None
    if manifest is None:
        return (initial or {}).get("teacher")
    teacher: dict[str, Any] | None = manifest.identity.get("settings", {}).get("teacher")
    return teacher


def made_with(store: Store, used: Mapping[str, TableRef]) -> dict[str, dict[str, Any]]:
    """Return the settings, other than defaults, of the tables a run learns from and of those they were made from."""
    found = with_upstream(store, {name: table.fingerprint for name, table in used.items()}, {})
    return {name: entry["settings"] for name, entry in found.items() if entry["settings"] is not None}


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


def assemble(folder: Path, store: Store) -> dict[str, Any] | None:
    """Return the report of the run in a folder, or None if it has not been started."""
    log = read_lines(folder / "log.jsonl")
    starts, epochs = of_log(log)
    if not starts:
        return None
    start = starts[-1]
    kept = [path for path in states_of(folder) if weights_of(path) is not None]
    result = result_of(kept[-1], start["epochs"]) if kept else None
    done = result["epoch"] if result else 0
    evaluations, unreadable = read_evaluations(folder, start, {weights_of(path) for path in kept})
    tables = {name: table for item in evaluations.values() for name, table in item["tables"].items()}
    for name in ("predict", "refine"):  # results, and no data
        tables.pop(name, None)
    tables |= {name: table["fingerprint"] for name, table in start["tables"].items()}
    return {
        "format": FORMAT,
        "recipe": start["recipe"],
        "task": start["task"],
        "state": "finished" if done == start["epochs"] else f"{done} of {start['epochs']} epochs",
        "result": result,
        "reads_labels": start.get("reads_labels"),
        "departures": start.get("departures"),
        "seed": start["seed"],
        "epochs": start["epochs"],
        "frames": {**start["identity"]["frames"], "left_out": start.get("left_out", {})},
        "config": start["config"],
        "written": start.get("written", {}),
        "initial": start.get("initial"),
        "teacher": start.get("teacher"),
        "tables": with_upstream(store, tables, start["tables"]),
        "ontology": {**start["ontology"], "labels": start["identity"]["ontology"], "classes": start["class_names"]},
        "versions": start["versions"],
        "commit": start["commit"],
        "device": start["device"],
        "processes": start.get("ranks", 1),
        "hardware": start.get("hardware"),
        "earlier_starts": [
            {name: earlier.get(name) for name in ("time", "epoch", "versions", "commit", "device", "ranks", "hardware")}
            for earlier in starts[:-1]
        ],
        "curves": epochs,
        "log": {"lines": len(log.texts), "damage": log.damage},
        "evaluations": evaluations,
        "unreadable": unreadable,
    }


def result_of(path: Path, epochs: int) -> dict[str, Any]:
    """Return what a run came to: its newest checkpoint, which is its result where the run has ended."""
    document = checkpoint.read_document(path)
    ended = document["epoch"] == epochs
    return {
        "file": path.name,
        "sha256": sha256_file(path),
        "weights": document["weights"],
        "epoch": document["epoch"],
        "step": document.get("step"),
        "chosen": "the last epoch; no label chose it" if ended else "the newest epoch; the run has not ended",
    }


def states_of(folder: Path) -> list[Path]:
    """Return the checkpoints that a run keeps of its epochs, the newest last."""
    return [checkpoint.epoch_path(folder, epoch) for epoch in checkpoint.finished_epochs(folder)]


def weights_of(path: Path) -> str | None:
    """Return the digest of a checkpoint's weights, or None if it is damaged."""
    try:
        return str(checkpoint.read_document(path)["weights"])
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


def read_log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return every start of a run and the numbers of its epochs, of the lines of a log that are whole."""
    return of_log(read_lines(path))


def of_log(log: sealed.Lines) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return every start of a run and the numbers of its epochs; of an epoch run twice those of the last time."""
    starts: list[dict[str, Any]] = []
    epochs: dict[int, dict[str, Any]] = {}
    for document in log.documents:
        line = {name: value for name, value in document.items() if name != "event"}
        if document.get("event") == "start":
            starts.append(line)
        elif document.get("event") == "epoch":
            epochs[line["epoch"]] = line
    return starts, [epochs[number] for number in sorted(epochs)]


def with_upstream(store: Store, used: Mapping[str, str], shards: Mapping[str, Any]) -> dict[str, Any]:
    """Return identity and making of the tables by name, and of all that they were made from."""
    found: dict[str, Any] = {}
    waiting = dict(used)
    while waiting:
        stage, fingerprint = waiting.popitem()
        if stage in found:
            continue
        manifest = store.read_manifest(stage, fingerprint)
        identity = dict(manifest.identity) if manifest else {}
        made = manifest.made if manifest else {}
        entry: dict[str, Any] = {"fingerprint": fingerprint, "settings": identity.get("settings")}
        entry |= {
            "version": identity.get("version"),
            "commit": made.get("git_commit"),
            "packages": made.get("packages"),
        }
        if stage in shards:
            entry["shards"] = {"number": len(shards[stage]["shards"]), "digest": digest(shards[stage]["shards"])}
        found[stage] = entry
        waiting |= {name: need for name, need in identity.get("needs", {}).items() if name not in found}
    return dict(sorted(found.items()))


def read_evaluations(
    folder: Path, start: Mapping[str, Any], weights: Collection[str | None]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the evaluations of a run's weights, and with those of a distillation the ones of its pseudo-labels.

    The second answer says of those that cannot be read, by name, why.
    """
    found, unreadable = {}, {}
    for path in sorted(folder.parent.glob("evaluate*.json")):
        try:
            document = sealed.read_sealed(path)
            of = document.get("of")
            of_target = start["task"] == "distill" and is_of(document, start["tables"].get("target", {}))
            if document.get("weights") in weights if of == "prediction" else of_target:
                found[path.stem] = judged(document, start)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            unreadable[path.name] = str(error) or type(error).__name__
    return found, unreadable


def is_of(document: Mapping[str, Any], learnt: Mapping[str, Any]) -> bool:
    """Return whether an evaluation is of the table that was learnt, and of its very shards as far as both have them."""
    scored = document.get("contents", {}).get("target", {})
    keys = {shard: content.partition(".")[0] for shard, content in scored.items()}
    same = all(keys.get(shard, key) == key for shard, key in learnt.get("shards", {}).items())
    return same and learnt.get("fingerprint") in document.get("tables", {}).values()


def judged(document: Mapping[str, Any], start: Mapping[str, Any]) -> dict[str, Any]:
    """Return an evaluation with what the paper got, how it was tested, and what its labels were used for."""
    config, task, split = start["config"], start["task"], document["split"]
    dataset, version = config["data"]["dataset"], config["data"]["version"]
    refine = document.get("refine", {}).get("name")
    result = dict(document)
    n_paper = protocol.VALIDATION_FRAMES.get(dataset)
    result["departures"] = differences(
        {"evaluate.split": "val", "evaluate.frames": n_paper},
        {"evaluate.split": split, "evaluate.frames": document["frames"]},
    )
    result["test_time"] = {
        "views": 1,
        "augmentation": "none",
        "class_0": "never predicted",
        "points": "every point takes the class of its voxel",
        "absent_class": document["absent"],
        "refine": refine or "none",
        "sweeps": "those before and after too, so offline" if "vote" in (refine or "") else "each by itself",
    }
    result["labels"] = use_of_labels(document)
    learnt = {name for table in start["tables"].values() for name in table["shards"]}
    result["also_trained_on"] = [name for name in document.get("shards", ()) if name in learnt]
    if document["of"] != "prediction":
        return result
    teacher = protocol.teacher_name(start.get("teacher"))
    started_from = protocol.start_of(start.get("initial"))
    paper = None  # which knows no vote
    if "vote" not in (refine or ""):
        paper = protocol.expected(task, dataset, version, started_from, teacher, refine is not None)
    obtained = document["scores"]["all"]["mean_iou"]
    if paper is not None and obtained is not None:
        result["expected"] = {
            "mean_iou_percent": paper.mean_iou_percent,
            "obtained_percent": round(100 * obtained, 2),
            "difference": round(100 * obtained - paper.mean_iou_percent, 2),
            "row": paper.row,
            "source": paper.source,
        }
    return result


def use_of_labels(document: Mapping[str, Any]) -> str:
    """Return what the labels of an evaluation were used for; an epoch that is not the last is marked."""
    epoch, epochs = document.get("epoch"), document.get("epochs")
    if document["of"] == "prediction" and epoch is not None and epochs is not None and epoch < epochs:
        return (
            f"read to score epoch {epoch} of {epochs}, which is not the result; choosing an epoch by this score would "
            "be a use of labels"
        )
    return f"read to score split {document['split']}; they chose nothing"


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document, sealed, that is there whole or not at all; raises TrainerError where that is not possible."""
    try:
        sealed.write_sealed(path, document)
    except OSError as error:
        raise TrainerError(f"{path} cannot be written: {error.strerror or error}") from None


# -- two runs side by side ---------------------------------------------------------------------------------------------


def read_record(path: Path) -> dict[str, Any]:
    """Return a report, by its path or by that of the run's folder; raises TrainerError if there is none."""
    file = path / FILE if path.is_dir() else path
    try:
        document = sealed.read_sealed(file)
        if document.get("format") not in _READABLE or "task" not in document:
            raise ValueError(f"it is not of format {' or '.join(map(str, _READABLE))}")
    except FileNotFoundError:
        raise TrainerError(
            f"{file}: there is no such report; name the folder of a run, say runs/city/distill"
        ) from None
    except (OSError, ValueError) as error:
        raise TrainerError(f"{file} is no report of a run, or a damaged one: {error}") from None
    return document


def compare(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, list[str]]:
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
    for document in (one, other):
        settings = {**document.get("written", {}), **document["config"]}
        if one["task"] != other["task"]:
            settings = {name: values for name, values in settings.items() if name not in get_args(Task)}
            settings["training"] = document["config"][document["task"]]
        initial = document.get("initial") or {}
        start = {name: initial.get(name) for name in ("task", "recipe", "epoch", "weights")}
        weights = (document.get("result") or {}).get("weights")
        runs.append({**document, "settings": settings, "started_from": start, "weights": weights})
    found = {}
    for heading, names in groups.items():
        lines = differences(*({name: run.get(name) for name in names} for run in runs))
        found[heading] = [line.removeprefix("settings.") for line in lines]
    found["curves"] = curve_differences(one.get("curves", ()), other.get("curves", ()))
    found["results"] = result_differences(one, other)
    return {heading: lines for heading, lines in found.items() if lines}


def curve_differences(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return where two training curves part, and where they end."""
    timing = ("time", "seconds", "frames_per_second", "data_wait_share")
    a, b = ([{k: v for k, v in epoch.items() if k not in timing} for epoch in some] for some in (one, other))
    lines = []
    apart = next((number for number, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), None)
    if apart is not None:
        lines += [f"first apart in epoch {a[apart].get('epoch')}: {line}" for line in differences(a[apart], b[apart])]
    if len(a) != len(b):
        lines.append(f"epochs: {len(a)} -> {len(b)}")
    if a and b and a[-1].get("total") != b[-1].get("total"):
        lines.append(f"loss at the end: {a[-1].get('total')} -> {b[-1].get('total')}")
    return lines


def result_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
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


def results_of(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the scores of a run in %, by what was scored and then by what they are of, `car of seen points`."""

    def percent(value: float | None) -> float | None:
        return None if value is None else round(100 * value, 2)

    found: dict[str, dict[str, Any]] = {}
    for evaluation in document.get("evaluations", {}).values():
        refine = evaluation.get("refine", {}).get("name")
        rows: dict[str, Any] = {
            "split": evaluation["split"],
            "what the split file says": evaluation.get("split_content"),
        }
        rows |= {"test time": evaluation.get("test_time")}
        for part, scores in evaluation["scores"].items():
            rows[f"mIoU of {part} points"] = percent(scores["mean_iou"])
            for name, iou in zip(evaluation["classes"], scores["iou"], strict=True):
                rows[f"{name} of {part} points"] = percent(iou)
            rows[f"number of {part} points"] = scores["points"]
        found[evaluation["of"] + (f" + {refine}" if refine else "")] = rows
    return found
