"""What the ladder on real frames says, as docs/ladder_real.json and the tables of its chapter in docs/results.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.ladder_plan import Rung, write_text
from bench.ladder_results import Records, between_markers, table, with_earlier

BEGIN, END = "<!-- real frames: begin, written by make ladder -->", "<!-- real frames: end -->"
NAMES = {
    "nearest": "`group`, every gap filled by the nearest label (control)",
}
HEADINGS = (
    "pseudo-labels",
    "seen: named %",
    "right %",
    "mIoU",
    "mIoU, nameable",
    "unseen: named %",
    "right of these %",
    "all: mIoU",
    "mended",
    "spoilt",
    "right among the surest 25 / 50 / 75 %",
)


def write_real_documents(
    folder: Path, preset: str, overrides: Sequence[str], rungs: Mapping[str, Rung], records: Records
) -> list[Path]:
    """Write ladder_real.json and the tables in results.md; other presets and steps stay. Returns their paths."""
    if not records:
        return []
    numbers, page = folder / "ladder_real.json", folder / "results.md"
    presets = json.loads(numbers.read_text(encoding="utf-8"))["presets"] if numbers.is_file() else {}
    told = [one for one in overrides if not one.startswith("run.")]  # where and how it ran changes no number
    presets[preset] = with_earlier(presets.get(preset), told, records)
    write_text(numbers, json.dumps({"format": 1, "teacher": "real", "presets": presets}, indent=1) + "\n")
    generated = "\n".join(section(name, document, rungs) for name, document in presets.items())
    write_text(page, between_markers(page.read_text(encoding="utf-8"), generated, BEGIN, END))
    return [numbers, page]


def section(preset: str, document: Mapping[str, Any], rungs: Mapping[str, Rung]) -> str:
    """Return heading, origin and tables of one preset."""
    records: Records = document["steps"]
    labels = {name: record["labels"] for name, record in records.items() if "labels" in record}
    students = {name: record for name, record in records.items() if "labels" not in record}
    commits = sorted({record["commit"] for record in records.values()})
    dates = sorted(record["date"][:10] for record in records.values())
    changed = "".join(f" --set {override}" for override in document["overrides"])
    lines = [
        f"### Preset `{preset}`",
        "",
        f"`make ladder ARGS='--bed kitti-real --preset {preset}{changed}'`; {dates[0]} to {dates[-1]}, commit "
        f"{', '.join(commits)}.",
    ]
    if labels:
        lines += ["", bed_of(labels), "", *labels_table(labels, rungs), "", *classes_table(labels, rungs)]
    if students:
        longest = max((one["training"]["seconds"] for one in students.values() if one["training"]), default=0.0)
        lines += [
            "",
            f"Students, trained on the other sequences and scored on 08; the longest training {longest:.0f} s:",
            "",
            table(rungs, records),
        ]
    return "\n".join(lines) + "\n"


def bed_of(labels: Mapping[str, Any]) -> str:
    """Return how large the bed is, and which classes the teacher can name."""
    one = next(iter(labels.values()))
    parts = next(iter(one["lines"].values()))["parts"]
    return (
        f"{one['frames']} frames of {len(one['scenes'])} sequences, {parts['seen']['points']:,} seen and "
        f"{parts['unseen']['points']:,} unseen points with a true class. Of {parts['seen']['classes']} classes among "
        f"seen points (and {parts['unseen']['classes']} among unseen) the teacher names {len(one['nameable'])}: "
        f"{', '.join(one['nameable'])}."
    )


def lines_of(labels: Mapping[str, Any], rungs: Mapping[str, Rung]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield title and scores of every line of labels, in the order of the file of rungs."""
    for name, rung in rungs.items():
        if name in labels:
            for line, scores in labels[name]["lines"].items():
                yield NAMES.get(line, rung.title), scores


def labels_table(labels: Mapping[str, Any], rungs: Mapping[str, Rung]) -> list[str]:
    """Return the scores of all lines of labels as a table in Markdown."""
    rows = ["| " + " | ".join(HEADINGS) + " |", "|---|" + "---:|" * (len(HEADINGS) - 1)]
    for title, scores in lines_of(labels, rungs):
        seen, unseen, every = (scores["parts"][part] for part in ("seen", "unseen", "all"))
        cells = [
            *(percent(seen[key], 1) for key in ("named", "right")),
            *(percent(seen[key], 2) for key in ("mean_iou", "mean_iou_nameable")),
            *(percent(unseen[key], 1) for key in ("named", "right_of_named")),
            percent(every["mean_iou"], 2),
            *(f"{scores[key]:,}" for key in ("mended", "spoilt")),
            " / ".join(percent(one, 1) for one in scores["right_among_surest"].values()),
        ]
        rows.append("| " + " | ".join([title, *cells]) + " |")
    return rows


def classes_table(labels: Mapping[str, Any], rungs: Mapping[str, Rung]) -> list[str]:
    """Return the IoU of every class that occurs among seen points, line by line, as a table in Markdown."""
    lines = list(lines_of(labels, rungs))
    names = list(lines[0][1]["parts"]["seen"]["iou"])
    rows = ["| IoU of seen points, % | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for title, scores in lines:
        found = scores["parts"]["seen"]["iou"]
        rows.append("| " + " | ".join([title, *(percent(found.get(name), 1) for name in names)]) + " |")
    return rows


def percent(share: float | None, digits: int) -> str:
    """Return a share in percent, nothing for none."""
    return "" if share is None else f"{100 * share:.{digits}f}"
