"""How good pseudo-labels of real frames are, table by table: what is named and right, what a step mends and spoils.

    python -m bench.real_labels RECIPE --out labels.json

reads the tables that a recipe has built, the true labels among them, over all frames that have both. `group` is what
cameras say; `nearest` is a control, `group` with every gap filled by the nearest label; the last is what
`target.labels` asks for. Classes that do not occur are in no mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from bench.ladder_plan import write_text
from manifests.asked import tables_of
from manifests.recipe import Recipe, load_recipe
from manifests.storage.store import Store
from manifests.tables.base import Failed, Rows, UInt8
from manifests.tables.labels import Label, Target
from manifests.tables.sensors import Points
from manifests.tables.superpoints import Group
from superpixels.metrics import Confusion
from superpixels.returns import is_return
from trainer.data.tables import FrameRow, Tables

TABLES = ("points", "group", "label", "target")
SUREST = (25, 50, 75)
"""Shares of the named seen points, in percent, of which the surest are judged alone."""


@dataclass(frozen=True)
class Frames:
    """The frames of a recipe that have all tables: names of classes, and rows one by one."""

    recipe: Recipe
    tables: Tables

    @classmethod
    def of(cls, recipe: Recipe, names: Sequence[str] = TABLES) -> Frames:
        """Return the frames of some tables of a recipe; raises StoreError where one is missing."""
        store = Store.open(recipe.run.store)
        return cls(recipe, Tables(store, tables_of(store, recipe, names), names))

    def __iter__(self) -> Iterator[Rows]:
        for shard in self.tables.shards:
            for row, states in enumerate(self.tables.states(shard)):
                if not any(isinstance(state, Failed) for state in states):
                    yield self.tables.rows(FrameRow(shard, row, states[0].frame_id))


class Tally:
    """Counts over frames of one kind of labels against the truth, and against what the points were called before."""

    def __init__(self, n_classes: int) -> None:
        self.parts = {part: Confusion(n_classes) for part in ("all", "seen", "unseen")}
        self.mended = self.spoilt = 0
        self.level = np.zeros((256, 2), np.int64)  # seen points with a label by confidence: wrong, right

    def add(self, truth: UInt8, label: UInt8, confidence: UInt8, seen: NDArray[np.bool_], before: UInt8) -> None:
        """Count the points of a frame, (n,) each; those without a true class count nowhere."""
        for part, chosen in (("all", truth > 0), ("seen", (truth > 0) & seen), ("unseen", (truth > 0) & ~seen)):
            self.parts[part].add(truth[chosen], label[chosen])
        both = (truth > 0) & (before > 0)
        self.mended += int((both & (before != truth) & (label == truth)).sum())
        self.spoilt += int((both & (before == truth) & (label != truth)).sum())
        named = (truth > 0) & seen & (label > 0)
        np.add.at(self.level, (confidence[named], (label == truth)[named].astype(np.int64)), 1)

    def told(self, names: tuple[str, ...], nameable: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the scores as JSON has them; `nameable` (c,) says which classes the teacher can name."""
        return {
            "parts": {part: scores_of(one, names, nameable) for part, one in self.parts.items()},
            "mended": self.mended,
            "spoilt": self.spoilt,
            "right_among_surest": {str(share): surest(self.level, share / 100) for share in SUREST},
        }


def scores_of(counts: Confusion, names: tuple[str, ...], nameable: NDArray[np.bool_]) -> dict[str, Any]:
    """Return shares and IoU of some points: of all that are so, named, and named rightly."""
    true = counts.matrix[1:].sum(axis=1)
    hits = np.diagonal(counts.matrix[1:, 1:])
    called = counts.matrix[1:, 1:].sum(axis=0)
    occurs = true > 0
    iou = np.divide(hits, true + called - hits, out=np.full(len(hits), np.nan), where=occurs)
    total, named = int(true.sum()), int(called.sum())
    return {
        "points": total,
        "named": named / total if total else None,
        "right": int(hits.sum()) / total if total else None,
        "right_of_named": int(hits.sum()) / named if named else None,
        "mean_iou": mean_of(iou[occurs]),
        "mean_iou_nameable": mean_of(iou[occurs & nameable[1:]]),
        "classes": int(occurs.sum()),
        "iou": {name: float(one) for name, one in zip(names[1:], iou, strict=True) if np.isfinite(one)},
    }


def mean_of(values: NDArray[np.float64]) -> float | None:
    """Return the mean, None of nothing."""
    return float(values.mean()) if values.size else None


def surest(level: NDArray[np.int64], share: float) -> float | None:
    """Return which part of the surest points is right, given counts (256, 2) by confidence: wrong, right.

    Of the level that fills the share up, the part that is right counts for all of it.
    """
    most = share * level.sum()
    counted = right = 0.0
    for wrong, good in level[::-1]:
        taken = min(float(wrong + good), most - counted)
        if taken <= 0:
            continue
        right += taken * float(good) / float(wrong + good)
        counted += taken
    return right / counted if counted else None


def nearest_label(xyz_m: NDArray[np.float32], label: UInt8) -> UInt8:
    """Return labels (n,) in which every return without one has that of the nearest point that has one."""
    known, gap = np.flatnonzero(label), np.flatnonzero((label == 0) & is_return(xyz_m))
    filled = label.copy()
    if len(known) and len(gap):
        filled[gap] = label[known[cKDTree(xyz_m[known]).query(xyz_m[gap])[1]]]
    return filled


def measured(recipe: Recipe) -> dict[str, Any]:
    """Return the scores of a recipe's labels by line: `group`, `nearest`, and what `target.labels` asks for."""
    ontology = recipe.ontology
    n_classes = len(ontology.classes) - 1
    tallies: dict[str, Tally] = {}
    scenes, n_frames = set[str](), 0
    named = np.zeros(n_classes + 1, np.bool_)
    frames = Frames.of(recipe)
    for rows in frames:
        group, truth, target = rows[Group], rows[Label].label, rows[Target]
        lines: Mapping[str, tuple[UInt8, UInt8]] = {
            "group": (group.label, group.confidence),
            "nearest": (nearest_label(rows[Points].xyz_m, group.label), group.confidence),
        }
        if recipe.target.labels != "group":
            lines = {recipe.target.labels: (target.label, target.confidence)}
        for name, (label, confidence) in lines.items():
            tally = tallies.setdefault(name, Tally(n_classes))
            tally.add(truth, label, confidence, target.seen, group.label)
        named[np.unique(group.label)] = True
        n_frames += 1
    scenes = {shard.partition("+")[0] for shard in frames.tables.shards}
    named[0] = False
    return {
        "frames": n_frames,
        "scenes": sorted(scenes),
        "nameable": [name for name, one in zip(ontology.class_names, named, strict=True) if one],
        "lines": {name: one.told(ontology.class_names, named) for name, one in tallies.items()},
    }


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe whose tables are built.")],
    out: Annotated[Path, typer.Option(help="The file to write.")] = Path("labels.json"),
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
) -> None:
    """Score the pseudo-labels of a recipe against the truth."""
    found = measured(load_recipe(recipe, set_ or []))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(found, indent=1) + "\n")
    for name, line in found["lines"].items():
        seen, unseen = line["parts"]["seen"], line["parts"]["unseen"]
        print(
            f"{name}: seen {percent(seen['mean_iou'])} mIoU, {percent(seen['right'])} % right; unseen "
            f"{percent(unseen['named'])} % named, {percent(unseen['right_of_named'])} % of them right; "
            f"{line['mended']:,} mended, {line['spoilt']:,} spoilt"
        )


def percent(share: float | None) -> str:
    """Return a share in percent, a dash for none."""
    return "–" if share is None else f"{100 * share:.2f}"


if __name__ == "__main__":
    typer.run(main)
