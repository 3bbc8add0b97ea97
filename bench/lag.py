"""Why students lag behind their labels: what two of them say of points that the vote mends, spoils or leaves wrong.

    python -m trainer predict PLAIN --set predict.split=drives.txt     and the same of VOTED
    python -m bench.lag PLAIN VOTED

PLAIN is a recipe whose student learnt labels as cameras give them, VOTED one whose student learnt labels after the vote
(and correction); both have predicted the same drives last, such as some that they learnt on. Named points with a true
class are told apart by the two kinds of labels, and of each kind it is printed how many points there are and which part
each student names rightly; then what labels and students come to, by class too. A student that only repeats its labels
is right nowhere that they are wrong. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from manifests.asked import tables_of
from manifests.labels import students_predictions
from manifests.recipe import Recipe, load_recipe
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from manifests.tables.answers import Predict
from manifests.tables.base import Failed, UInt8
from manifests.tables.labels import Label, Target
from manifests.tables.superpoints import Group
from superpixels.metrics import Confusion, scores
from trainer.data.tables import FrameRow, Tables

LABELS = ("group", "label", "target")
KINDS = (
    "right in both",
    "mended by the vote",
    "spoilt by the vote",
    "wrong in both, the same class",
    "wrong in both, another class",
)


@dataclass
class Share:
    """Points of a kind, and how many of them each of two students names rightly."""

    points: int = 0
    plain: int = 0
    voted: int = 0


def kinds_of(truth: UInt8, plain: UInt8, voted: UInt8) -> npt.NDArray[np.int64]:
    """Return the kind of every point, (n,) an index of `KINDS`; -1 where a label or the truth is missing."""
    good, better = plain == truth, voted == truth
    kind = np.select([good & better, ~good & better, good & ~better, plain == voted], [0, 1, 2, 3], 4)
    return np.asarray(np.where((truth > 0) & (plain > 0) & (voted > 0), kind, -1))


SAID = ("labels as cameras give them", "labels after the vote", "student of the former", "student of the latter")


def told(plain: Recipe, voted: Recipe) -> tuple[Mapping[str, Share], Mapping[str, Confusion]]:
    """Return what both students say of each kind of points, over the frames that both have predicted, and counts of
    what labels and students call all points that both kinds of labels name.

    Raises StoreError where predictions or tables are missing or old.
    """
    store = Store.open(voted.run.store)
    ref = tables_of(store, voted, ["points", *LABELS])
    first, second = (students_predictions(store, one, ref.table("points"))[0] for one in (plain, voted))
    of_plain = Tables(store, Ref(plain.name, {**ref.tables, "predict": first}, words=plain.words), ["predict", *LABELS])
    of_voted = Tables(store, Ref(voted.name, {"predict": second}, words=voted.words), ["predict"])
    found = {name: Share() for name in KINDS}
    counts = {name: Confusion(len(voted.ontology.classes) - 1) for name in SAID}
    for shard in of_plain.shards:
        for row, states in enumerate(of_plain.states(shard)):
            if any(isinstance(state, Failed) for state in states):
                continue
            frame = FrameRow(shard, row, states[0].frame_id)
            rows, theirs = of_plain.rows(frame), of_voted.rows(frame)[Predict].label
            truth = rows[Label].label
            said = rows[Group].label, rows[Target].label, rows[Predict].label, theirs
            kind = kinds_of(truth, *said[:2])
            for count, label in zip(counts.values(), said, strict=True):
                count.add(truth[kind >= 0], label[kind >= 0])
            for number, share in enumerate(found.values()):
                some = kind == number
                share.points += int(some.sum())
                share.plain += int((rows[Predict].label == truth)[some].sum())
                share.voted += int((theirs == truth)[some].sum())
    return found, counts


def main(
    plain: Annotated[str, typer.Argument(help="A recipe whose student learnt labels as cameras give them.")],
    voted: Annotated[str, typer.Argument(help="A recipe whose student learnt labels after the vote.")],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
) -> None:
    """Print what two students say of points that the vote mends, spoils or leaves wrong."""
    recipes = [load_recipe(one, set_ or []) for one in (plain, voted)]
    found, counts = told(*recipes)
    every = sum(share.points for share in found.values())
    for name, share in found.items():
        of_plain, of_voted = (100 * right / max(share.points, 1) for right in (share.plain, share.voted))
        print(
            f"{name}: {100 * share.points / max(every, 1):.2f} % of {every:,} points; rightly named by the student of "
            f"plain labels {of_plain:.1f} %, of voted ones {of_voted:.1f} %"
        )
    for name, count in counts.items():
        right = np.diagonal(count.matrix)[1:].sum() / max(count.matrix[1:].sum(), 1)
        found_of = scores(count, "exclude")
        by_class = " ".join(
            f"{kind} {100 * iou:.1f}"
            for kind, iou in zip(recipes[1].ontology.class_names[1:], found_of.iou, strict=True)
            if np.isfinite(iou)
        )
        print(f"{name}: {100 * right:.1f} % right, mIoU {100 * found_of.mean_iou:.2f}; {by_class}")


if __name__ == "__main__":
    typer.run(main)
