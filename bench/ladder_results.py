"""What the ladder's scores come to: mean and spread over seeds, gains, and the three documents that show them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.ladder_plan import Line, Rung, write_text
from manifests.config import ConfigError

BEGIN, END = "<!-- ladder: begin, written by make ladder -->", "<!-- ladder: end -->"
PARTS = ("all", "seen", "unseen")
TRUST = {"calibration_error": "calibration error", "augrc": "AUGRC"}
"""What the confidence of labels is worth, on all points; small is good. Scores of before it was measured have none."""

INTRODUCTION = """# Results

The ladder of quality, measured on the **synthetic city** with a **simulated teacher**: true class maps, spoilt on
purpose. What a part adds here it adds to labels with faults of the kinds the simulation has; the numbers say nothing
about how well real teachers label real streets, and cannot be compared with the paper's.

    make ladder

Scores are mIoU in percent on drives that nothing was trained on. ± is the standard deviation over seeds; a gain is the
mean over seeds of the difference to the line named, and how many seeds agree in its sign.

"""
Records = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (None of a single one) of some numbers."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        return cls(mean(values), stdev(values) if len(values) > 1 else None) if values else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + (f" ± {self.deviation:.2f}" if self.deviation is not None else "")


@dataclass(frozen=True)
class Gain:
    """The mean of paired differences, of how many seeds, and how many of these agree in its sign."""

    mean: float
    agree: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ({self.agree} of {self.seeds})"


def by_seed(records: Records, line: Line, part: str, what: str = "mean_iou") -> dict[int | None, float]:
    """Return mIoU, or one of `TRUST`, in percent of a line on a part of the points, by seed, where it is there."""
    rung = line.name.partition("+")[0]
    found = {}
    for record in records.values():
        if record["rung"] == rung and line.refine in record["scores"]:
            value = record["scores"][line.refine].get(part, {}).get(what)
            if value is not None:
                found[record["seed"]] = 100 * float(value)
    return found


def gain(own: Mapping[int | None, float], other: Mapping[int | None, float]) -> Gain | None:
    """Return what a line gains over another: differences of equal seeds, or to labels, which have no seed."""
    found = ((value, other.get(seed, other.get(None))) for seed, value in own.items())
    differences = [value - before for value, before in found if before is not None]
    if not differences:
        return None
    middle = mean(differences)
    return Gain(middle, sum(one * middle > 0 for one in differences), len(differences))


def lines_of(rungs: Mapping[str, Rung], records: Records) -> list[Line]:
    """Return the lines that have scores, in the order of the file."""
    return [line for rung in rungs.values() for line in rung.lines() if by_seed(records, line, "all")]


def table(rungs: Mapping[str, Rung], records: Records) -> str:
    """Return the scores of one preset as a table in Markdown."""
    lines = lines_of(rungs, records)
    numbers = {line.name: number for number, line in enumerate(lines, 1)}
    told = [what for what in TRUST if any(by_seed(records, line, "all", what) for line in lines)]
    trust = "".join(f" {TRUST[what]} |" for what in told)
    rows = [f"| | | all points | seen points | unseen points | gain, all points | over |{trust} seeds |"]
    rows.append(f"|---:|---|---:|---:|---:|---:|---:|{'---:|' * len(told)}---:|")
    part = ""
    for line in lines:
        if line.part != part:
            part = line.part
            rows.append(f"| | **{part}** | | | | | | |{' |' * len(told)}")
        scores = {name: by_seed(records, line, name) for name in PARTS}
        against = next((one for one in lines if one.name == line.against), None)
        gained = gain(scores["all"], by_seed(records, against, "all")) if against else None
        spreads = [str(Spread.of(list(scores[name].values())) or "–") for name in PARTS]
        seeds = len([seed for seed in scores["all"] if seed is not None])
        cells = [numbers[line.name], line.title, *spreads, gained or "", numbers[line.against] if gained else ""]
        cells += [str(Spread.of(list(by_seed(records, line, "all", what).values())) or "–") for what in told]
        rows.append("| " + " | ".join(map(str, [*cells, seeds or "none"])) + " |")
    return "\n".join(rows)


def section(preset: str, document: Mapping[str, Any], rungs: Mapping[str, Rung]) -> str:
    """Return heading, origin and table of one preset."""
    records = document["steps"]
    commits = sorted({record["commit"] for record in records.values()})
    dates = sorted(record["date"][:10] for record in records.values())
    hours = sum(record["cpu_s"] for record in records.values()) / 3600
    longest = max((record["training"]["seconds"] for record in records.values() if record["training"]), default=0.0)
    changed = " ".join(f"--set {override}" for override in document["overrides"])
    command = f"make ladder ARGS='--preset {preset}{' ' + changed if changed else ''}'"
    return (
        f"### Preset `{preset}`\n\n`{command}`; {dates[0]} to {dates[-1]}, commit {', '.join(commits)}; "
        f"{hours:.1f} CPU hours, the longest training {longest:.0f} s.\n\n{table(rungs, records)}\n"
    )


def between_markers(text: str, generated: str, begin: str = BEGIN, end: str = END) -> str:
    """Return a document with what stands between the markers replaced, and every other word kept.

    Raises ConfigError unless both markers stand there once, in order.
    """
    before, begun, rest = text.partition(begin)
    _old, ended, after = rest.partition(end)
    if not begun or not ended or begin in rest or end in after:
        raise ConfigError(f"the page of results needs the two lines `{begin}` and `{end}`, once each and in this order")
    return f"{before}{begin}\n\n{generated.strip()}\n\n{end}{after}"


def with_earlier(before: Mapping[str, Any] | None, overrides: Sequence[str], records: Records) -> dict[str, Any]:
    """Return what a document says of a preset: steps that were done now, and earlier ones of the same settings.

    A machine that does some of the steps anew so leaves the others as they were; each has its own commit and date.
    """
    earlier = before["steps"] if before and before["overrides"] == list(overrides) else {}
    return {"overrides": list(overrides), "steps": {**earlier, **records}}


def write_documents(
    folder: Path, preset: str, overrides: Sequence[str], rungs: Mapping[str, Rung], records: Records
) -> list[Path]:
    """Write ladder.json, ladder.png and the table in results.md; other presets and steps stay. Returns their paths."""
    if not records:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    numbers, picture, page = folder / "ladder.json", folder / "ladder.png", folder / "results.md"
    presets = json.loads(numbers.read_text(encoding="utf-8"))["presets"] if numbers.is_file() else {}
    presets[preset] = with_earlier(presets.get(preset), overrides, records)
    write_text(numbers, json.dumps({"format": 1, "teacher": "simulated", "presets": presets}, indent=1) + "\n")
    text = page.read_text(encoding="utf-8") if page.is_file() else f"{INTRODUCTION}{BEGIN}\n{END}\n"
    generated = "\n".join(section(name, document, rungs) for name, document in presets.items())
    write_text(page, between_markers(text, f"![mIoU of every line](ladder.png)\n\n{generated}"))
    draw(picture, {name: document["steps"] for name, document in presets.items()}, rungs)
    return [numbers, picture, page]


def draw(path: Path, presets: Mapping[str, Records], rungs: Mapping[str, Rung]) -> None:
    """Draw the lines of every preset, a panel each: mean with spread and single seeds, on all and on seen points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    named = {line.name for records in presets.values() for line in lines_of(rungs, records)}
    lines = [line for rung in rungs.values() for line in rung.lines() if line.name in named]
    places: dict[str, float] = {}
    headings: list[tuple[float, str]] = []
    height, part = 0.0, ""
    for line in lines:
        if line.part != part:
            part = line.part
            headings.append((height, part))
            height += 1.0
        places[line.name] = height
        height += 1.0
    figure, axes = plt.subplots(
        1, len(presets), sharey=True, squeeze=False, figsize=(5.2 + 3.3 * len(presets), 1.1 + 0.27 * height)
    )
    for axis, (preset, records) in zip(axes[0], presets.items(), strict=True):
        for name, colour, shift in (("all", "#1f5fa8", -0.14), ("seen", "#d9822b", 0.14)):
            for line in lines:
                values = list(by_seed(records, line, name).values())
                spread = Spread.of(values)
                if spread is None:
                    continue
                y = places[line.name] + shift
                axis.errorbar(
                    spread.mean, y, xerr=spread.deviation or 0.0, fmt="D", color=colour, markersize=4, elinewidth=1.4
                )
                if len(values) > 1:
                    axis.plot(values, [y] * len(values), ".", color=colour, alpha=0.45, markersize=5)
            axis.plot([], [], "D", color=colour, markersize=4, label=f"{name} points")
        axis.set_title(preset, fontsize=10)
        axis.set_xlabel("mIoU in %", fontsize=9)
        axis.grid(axis="x", color="0.88")
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=8.5, left=False)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        for y, _ in headings[1:]:
            axis.axhline(y - 0.5, color="0.8", linewidth=0.8)
    rows = [(places[line.name], line.title.replace("`", "")) for line in lines] + headings
    axes[0][0].set_yticks([y for y, _ in rows], [text for _, text in rows])
    for label, (y, _) in zip(axes[0][0].get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if y in {place for place, _ in headings} else "normal")
    axes[0][0].set_ylim(height - 0.4, -0.6)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower left", fontsize=8.5, frameon=False, ncols=1)
    figure.suptitle(
        "Synthetic city, simulated teacher: mean ± standard deviation over seeds; dots are seeds", fontsize=9.5
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
