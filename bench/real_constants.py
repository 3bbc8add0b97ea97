"""Constants of vote and correction on real labels: chosen on some drives, reported on the others.

    python -m bench.real_constants RECIPE

tries values of `[vote]` and `[correct]` one at a time on the pseudo-labels of a recipe with a real teacher (tables
index, points, project, group, label), one name a point, and prints mIoU over the classes that occur of the points that
a camera sees, and what part of the others is named, and of these rightly: first of the drives to choose on, then of the
others. Nothing is written. Of the city, docs/voting.md has the same for drives of training.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from bench.real_fit import Sweep, sweeps_of, voted
from bench.real_labels import scores_of
from manifests.recipe import Recipe, load_recipe
from manifests.tables.base import UInt8
from manifests.tables.sensors import Points, Project
from pipeline.stages.correct import correct_frame
from superpixels.ground import height_of_sensor_m
from superpixels.metrics import Confusion

CHOSEN_ON = ("00", "01", "02", "03", "04")
VOTES: tuple[tuple[str, ...], ...] = (
    ("vote.reach=2",),
    ("vote.reach=4",),
    (),
    ("vote.voxel_m=0.3",),
    ("vote.voxel_m=1.2",),
)
CORRECTIONS: tuple[tuple[str, ...], ...] = (
    (),
    ("correct.fill_reach_m=0.75",),
    ("correct.fill_reach_m=3.0",),
    ("correct.fill_certainty=0.3",),
    ("correct.fill_certainty=0.7",),
    ("correct.fill_agreement=0.4",),
    ("correct.fill_agreement=0.8",),
    ("correct.fill_reach_m=0.0", "correct.fill_certainty=0.0", "correct.fill_agreement=0.0"),
)


@dataclass(frozen=True)
class Worth:
    """What labels come to: mIoU of seen points, and which part of the others is named, and named rightly of these."""

    seen_iou: float
    unseen_named: float
    unseen_right: float

    def told(self) -> str:
        """Return it in percent."""
        return " / ".join(f"{100 * one:.2f}" for one in (self.seen_iou, self.unseen_named, self.unseen_right))


def worth(sweeps: Sequence[Sweep], labels: Sequence[UInt8], n_classes: int) -> Worth:
    """Return what the labels of some sweeps come to."""
    counts = {seen: Confusion(n_classes) for seen in (True, False)}
    for one, label in zip(sweeps, labels, strict=True):
        seen = np.zeros(len(label), np.bool_)
        seen[one.rows[Project].point] = True
        for part, count in counts.items():
            some = (one.truth > 0) & (seen == part)
            count.add(one.truth[some], label[some])
    every = np.ones(n_classes + 1, np.bool_)
    seen_scores, others = (scores_of(counts[part], ("",) * (n_classes + 1), every) for part in (True, False))
    return Worth(seen_scores["mean_iou"], others["named"], others["right_of_named"])


def corrected(sweeps: Sequence[Sweep], labels: Sequence[UInt8], recipe: Recipe) -> Iterator[UInt8]:
    """Yield the labels of each sweep after flat interaction."""
    for one, label in zip(sweeps, labels, strict=True):
        height_m = height_of_sensor_m(one.frame.ego_from_lidar)
        yield correct_frame(one.rows[Points], label, height_m, recipe.correct, recipe.ontology).label


def tried(sweeps: Sequence[Sweep], name: str) -> Iterator[tuple[str, Mapping[str, Worth]]]:
    """Yield a name for each setting of the constants, and what its labels come to on the two kinds of drives."""
    chosen: NDArray[np.bool_] = np.array([one.frame.scene in CHOSEN_ON for one in sweeps])
    usual: list[UInt8] = []

    def both(labels: Sequence[UInt8], n_classes: int) -> dict[str, Worth]:
        found = {}
        for part, some in (("chosen on", chosen), ("others", ~chosen)):
            at = np.flatnonzero(some)
            found[part] = worth([sweeps[place] for place in at], [labels[place] for place in at], n_classes)
        return found

    for changes in VOTES:
        recipe = load_recipe(name, ["vote.names=1", *changes])
        labels = list(voted(sweeps, recipe))
        usual = usual if changes else labels
        yield f"vote {', '.join(changes) or 'as it is'}", both(labels, len(recipe.ontology.classes) - 1)
    for changes in CORRECTIONS:
        recipe = load_recipe(name, list(changes))
        labels = list(corrected(sweeps, usual, recipe))
        yield f"vote, then correct {', '.join(changes) or 'as it is'}", both(labels, len(recipe.ontology.classes) - 1)


def main(recipe: Annotated[str, typer.Argument(help="A recipe with a real teacher, whose tables are built.")]) -> None:
    """Print what the constants come to."""
    for name, found in tried(list(sweeps_of(load_recipe(recipe, []))), recipe):
        parts = "; ".join(f"{part} {one.told()}" for part, one in found.items())
        print(f"{name}: {parts}", flush=True)


if __name__ == "__main__":
    typer.run(main)
