"""What the confidence of votes is worth, hard and soft: on drives to choose on, and on the others.

    python -m bench.soft_votes RECIPE [--chosen-on SCENE ...]

holds stage `vote` in several ways on the pseudo-labels of a recipe (tables index, points, project, group, label, and
score where points have several names) and prints mIoU, AUGRC and calibration error of the points that a camera sees, in
percent: of the drives to choose on, then of the others. Classes that neither occur nor are called count in no mean;
AUGRC stands a second time with 0 for them, as `evaluate.absent = "zero"` counts. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Annotated, Literal

import numpy as np
import typer

from bench.real_constants import CHOSEN_ON
from bench.real_labels import Frames
from manifests.recipe import Recipe, load_recipe
from manifests.tables.base import UInt8
from manifests.tables.labels import Label
from manifests.tables.sensors import Index, Project
from manifests.tables.superpoints import Group
from pipeline.frame import Frame
from pipeline.stages.base import FrameInput
from pipeline.stages.vote import held, told
from superpixels.metrics import Confusion, scores
from superpixels.reliability import Reliability, trust
from superpixels.voting import VotingConfig

Sure = Literal["share", "margin"]


@dataclass
class Worth:
    """Counts of seen points of some drives, and what the votes took."""

    n_classes: int
    called: Confusion = field(init=False)
    sure: Reliability = field(init=False)
    cpu_s: float = 0.0

    def __post_init__(self) -> None:
        self.called, self.sure = Confusion(self.n_classes), Reliability(self.n_classes)

    def add(self, truth: UInt8, label: UInt8, confidence: UInt8) -> None:
        """Count the seen points of a frame, (n,) each; those without a true class count nowhere."""
        self.called.add(truth[truth > 0], label[truth > 0])
        self.sure.add(truth, label, confidence)

    def __str__(self) -> str:
        """Return what they come to, in percent."""
        if not self.sure.n_points:
            return "no points"
        plain, strict = trust(self.sure), trust(self.sure, "zero")
        return (
            f"mIoU {100 * scores(self.called, 'exclude').mean_iou:.2f} AUGRC {100 * plain.augrc:.2f} "
            f"({100 * strict.augrc:.2f}) calibration error {100 * plain.calibration_error:.1f}"
        )


def ways(recipe: Recipe) -> Mapping[str, tuple[VotingConfig, Sure]]:
    """Return votes by name, and what confidence is told of each."""
    usual = replace(recipe.vote, belief=False, evidence="share")
    names = 3 if recipe.group.scores == "pixel" else 1
    log = replace(usual, names=names, evidence="log")
    found: dict[str, tuple[VotingConfig, Sure]] = {"hard, one name": (replace(usual, names=1), "share")}
    if names > 1:
        found |= {"three names": (replace(usual, names=names), "share")}
    found |= {"shares, margin": (replace(usual, names=names), "margin")}
    return found | {"logarithms": (log, "share"), "logarithms, margin": (log, "margin")}


def scenes_of(recipe: Recipe) -> Iterator[tuple[str, list[FrameInput]]]:
    """Yield the frames of each drive with their rows; raises StoreError where a table is missing."""
    scores_too = ("score",) if recipe.group.scores == "pixel" else ()
    frames = Frames.of(recipe, ("index", "points", "project", "group", "label", *scores_too))
    inputs = (FrameInput(Frame.of(rows[Index]), rows) for rows in frames)
    for scene, some in groupby(inputs, key=lambda one: one.frame.scene):
        yield scene, list(some)


def around(frames: Sequence[FrameInput], position: int, reach: int) -> tuple[FrameInput, ...]:
    """Return the frames of a drive within reach of one of them."""
    return (*frames[max(0, position - reach) : position], *frames[position + 1 : position + 1 + reach])


def tried(recipe: Recipe, chosen_on: tuple[str, ...]) -> Mapping[tuple[str, bool], Worth]:
    """Return what each way comes to, on drives to choose on and on the others."""
    n_classes = len(recipe.ontology.classes) - 1
    found = {(name, part): Worth(n_classes) for part in (True, False) for name in ways(recipe)}
    for scene, frames in scenes_of(recipe):
        for position, one in enumerate(frames):
            seen = np.unique(one.rows[Project].point)
            truth, before = one.rows[Label].label[seen], one.rows[Group]
            for name, (config, sure) in ways(recipe).items():
                window = replace(one, around=around(frames, position, config.window))
                begun = time.process_time()
                voted = held(window, replace(recipe, vote=config))
                worth = found[name, scene in chosen_on]
                worth.cpu_s += time.process_time() - begun
                confidence = told(voted.label, voted.confidence)
                if sure == "margin":
                    ahead = confidence.astype(np.int64) - told(voted.runner_up, voted.runner_up_confidence)
                    confidence = np.where(voted.label > 0, np.maximum(ahead, 1), 0).astype(np.uint8)
                worth.add(truth, voted.label[seen], confidence[seen])
            worth = found.setdefault(("group", scene in chosen_on), Worth(n_classes))
            worth.add(truth, before.label[seen], before.confidence[seen])
    return found


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe whose tables are built, true labels among them.")],
    chosen_on: Annotated[list[str] | None, typer.Option(help="Drives to choose on.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
) -> None:
    """Print what the confidence of votes is worth."""
    found = tried(load_recipe(recipe, set_ or []), tuple(chosen_on or CHOSEN_ON))
    for (name, part), worth in found.items():
        print(f"{'chosen on' if part else 'others'}: {name}: {worth}; {worth.cpu_s:.1f} CPU s", flush=True)


if __name__ == "__main__":
    typer.run(main)
