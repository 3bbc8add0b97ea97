"""How good labels are: how much is named, how far cameras and frames agree, how much is right if truth is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from manifests.labels import ORIGINS
from manifests.ontology import Ontology
from manifests.tables.answers import Predict, Refine
from manifests.tables.base import Bool, UInt8
from manifests.tables.labels import Label, Target
from manifests.tables.sensors import PointOfPair, Points
from manifests.tables.superpoints import Group, NamedPoints
from pipeline.look.browse import LABELLED, FrameRows
from pipeline.stages.group import agreement
from superpixels.metrics import Confusion, Scores, scores
from superpixels.reliability import Reliability, Trust, trust
from superpixels.voting import Ballot, seen_twice

Counts = NDArray[np.int64]

BEST_FIRST = (Refine.table, Predict.table, Target.table)
"""Tables that say how sure their labels are, the best labels first."""


@dataclass(frozen=True)
class Quality:
    """Counts of points over `n_frames` frames.

    `n_seen` lie in some image, `n_labelled` have a pseudo-label. `n_shared` belong to superpoints of more than one
    camera, and for `n_agreed` of these all such superpoints are of one class. Arrays have an entry per class, (c,), 0
    first: `shared_of_class` and `agreed_of_class` count these points by pseudo-label, `points_of_class` all points by
    pseudo-label ("target"), by truth ("label") and by prediction ("predict"), as far as these exist. `taught_of_class`
    are points that the student names too, by pseudo-label, and `as_taught_of_class` those that it names the same.
    `doubts` says of each frame, in their order, how doubtful its labels are.
    """

    n_frames: int
    n_points: int
    n_seen: int
    n_labelled: int
    n_shared: int
    n_agreed: int
    shared_of_class: Counts
    agreed_of_class: Counts
    points_of_class: dict[str, Counts] = field(default_factory=dict)
    taught_of_class: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    as_taught_of_class: Counts = field(default_factory=lambda: np.zeros(0, np.int64))
    doubts: tuple[Doubt, ...] = ()


@dataclass(frozen=True)
class Doubt:
    """How doubtful the labels of a frame are, by what is known without truth: shares of points, None where not known.

    `cameras` is how many of the points that several cameras name are named otherwise by some; `student` how many that
    teacher and student name they name otherwise; `changed` how many labels a vote or flat interaction changed; `unsure`
    the mean of 1 - confidence of the best labels that there are, 1 for a point without any.
    """

    cameras: float | None = None
    student: float | None = None
    changed: float | None = None
    unsure: float | None = None

    @property
    def total(self) -> float:
        """Their mean, as far as they are known."""
        known = [one for one in (self.cameras, self.student, self.changed, self.unsure) if one is not None]
        return sum(known) / len(known) if known else 0.0


@dataclass(frozen=True)
class LabelQuality:
    """The labels of one table over `n_frames` frames.

    `n_seen`, `n_unseen` points are in sight of a camera or not; `labelled_seen`, `labelled_unseen` of them have one.
    Between a frame and the next, `met` voxels have a label in both and `same` of these the same one, by class (c,), 0
    first. `confusion` counts labels against the truth on "seen", "unseen" and "all" points; empty without truth.
    `reliability` counts all points by confidence too; None without truth, or where the table has no confidence.
    """

    table: str
    n_frames: int
    n_seen: int
    n_unseen: int
    labelled_seen: int
    labelled_unseen: int
    met: Counts
    same: Counts
    confusion: dict[str, Confusion]
    reliability: Reliability | None = None

    def worth(self, level: UInt8 | None = None) -> Trust | None:
        """Return what the confidence of the labels is worth; None where nothing tells.

        With `level` (256,), in place of each confidence, it is that of calibrated ones.
        """
        found = self.reliability
        if found is None or not found.n_points:
            return None
        return trust(found if level is None else found.mapped(level))

    def scores(self) -> dict[str, Scores]:
        """Return the scores by part of the points; empty without truth."""
        return {part: scores(one) for part, one in self.confusion.items()}

    def precision_and_recall(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both by class 1..n on all points, (n,); NaN where nothing is named so, or nothing is so in truth."""
        matrix = self.confusion["all"].matrix[1:]
        hits = np.diagonal(matrix[:, 1:]).astype(np.float64)
        named, true = matrix[:, 1:].sum(axis=0), matrix.sum(axis=1)
        nothing = np.full(len(hits), np.nan)
        return (
            np.divide(hits, named, out=nothing.copy(), where=named > 0),
            np.divide(hits, true, out=nothing.copy(), where=true > 0),
        )


def label_quality(frames: Iterable[tuple[FrameRows, FrameRows | None]], ontology: Ontology) -> list[LabelQuality]:
    """Return the quality of every table of labels, over frames that each come with the next of their scene, or None.

    `group` is left out where `target` holds the same labels. Nothing but the confusion needs truth.
    """
    n_classes = len(ontology.classes) - 1
    found: dict[str, LabelQuality] = {}
    differs = False
    for item, follower in frames:
        seen, labels = item.rows[Target].seen, item.labels
        truth = labels.pop(Label.table, None)
        differs |= not np.array_equal(item.rows[Group].label, item.rows[Target].label)
        for name, label in labels.items():
            before = found.get(name) or empty_quality(name, n_classes, truth is not None)
            met, same = before.met, before.same
            if follower is not None and (then := follower.labels.get(name)) is not None:
                ballots = as_ballot(item, item, label), as_ballot(follower, item, then)
                now_met, now_same = seen_twice(*ballots, n_classes)
                met, same = met + now_met, same + now_same
            if truth is not None:
                for part, points in (("seen", seen), ("unseen", ~seen), ("all", np.ones_like(seen))):
                    counts = before.confusion.setdefault(part, Confusion(n_classes))
                    counts.add(truth[points], label[points])
                if name in item.confidences and before.reliability:
                    before.reliability.add(truth, label, item.confidences[name])
            found[name] = LabelQuality(
                name,
                before.n_frames + 1,
                before.n_seen + int(seen.sum()),
                before.n_unseen + int((~seen).sum()),
                before.labelled_seen + int(np.count_nonzero(label[seen])),
                before.labelled_unseen + int(np.count_nonzero(label[~seen])),
                met,
                same,
                before.confusion,
                before.reliability,
            )
    order = (kind.table for kind in LABELLED)
    return [found[name] for name in order if name in found and (name != Group.table or differs)]


def empty_quality(table: str, n_classes: int, has_truth: bool) -> LabelQuality:
    """Return the quality of no frames at all."""
    nothing = np.zeros(n_classes + 1, np.int64)
    confusion = {part: Confusion(n_classes) for part in ("seen", "unseen", "all")} if has_truth else {}
    reliability = Reliability(n_classes) if has_truth else None
    return LabelQuality(table, 0, 0, 0, 0, 0, nothing, nothing, confusion, reliability)


def as_ballot(item: FrameRows, here: FrameRows, label: UInt8) -> Ballot:
    """Return what labels of a frame's points, (n,), say, in the LiDAR frame of another frame."""
    return Ballot.cast(item.rows[Points].xyz_m, label, np.ones(len(label)), item.frame, here.frame)


def measure(frames: Iterable[FrameRows], ontology: Ontology) -> Quality:
    """Return the counts over some frames, read one at a time."""
    n_classes = len(ontology.classes)
    n_frames = n_points = n_seen = 0
    shared_of_class, agreed_of_class, taught_of_class, as_taught_of_class = np.zeros((4, n_classes), np.int64)
    points_of_class: dict[str, Counts] = {}
    doubts: list[Doubt] = []
    for item in frames:
        target = item.rows[Target]
        n_frames += 1
        n_points += len(target.seen)
        n_seen += int(target.seen.sum())
        shared, agreed = agreement(item.rows[PointOfPair], item.rows[NamedPoints], ontology)
        shared_of_class += np.bincount(target.label[shared], minlength=n_classes)
        agreed_of_class += np.bincount(target.label[agreed], minlength=n_classes)
        taught, as_taught = both_named(item)
        taught_of_class += np.bincount(target.label[taught], minlength=n_classes)
        as_taught_of_class += np.bincount(target.label[as_taught], minlength=n_classes)
        doubts.append(
            Doubt(
                cameras=share_of(shared & ~agreed, shared),
                student=share_of(taught & ~as_taught, taught),
                changed=share_changed(item),
                unsure=unsure(item),
            )
        )
        for name, label in item.labels.items():
            if name in (Target.table, Label.table, Predict.table):
                points_of_class[name] = points_of_class.get(name, 0) + np.bincount(label, minlength=n_classes)
    return Quality(
        n_frames=n_frames,
        n_points=n_points,
        n_seen=n_seen,
        n_labelled=int(points_of_class["target"][1:].sum()) if n_frames else 0,
        n_shared=int(shared_of_class.sum()),
        n_agreed=int(agreed_of_class.sum()),
        shared_of_class=shared_of_class,
        agreed_of_class=agreed_of_class,
        points_of_class=points_of_class,
        taught_of_class=taught_of_class,
        as_taught_of_class=as_taught_of_class,
        doubts=tuple(doubts),
    )


def both_named(item: FrameRows) -> tuple[Bool, Bool]:
    """Return which points of a frame teacher and student both name, and which of them the same, (n,) each."""
    taught = item.rows[Target].label
    answer = item.labels.get(Predict.table, np.zeros_like(taught))
    both = (taught > 0) & (answer > 0)
    return both, both & (taught == answer)


def share_of(some: Bool, points: Bool) -> float | None:
    """Return which share of some points others are; None of no points."""
    whole = np.count_nonzero(points)
    return np.count_nonzero(some) / whole if whole else None


def share_changed(item: FrameRows) -> float | None:
    """Return how many of a frame's refined labels are not as they were given; None where nothing was refined."""
    row = item.rows.get(Refine)
    if row is None or not len(row.origin):
        return None
    by_others = [ORIGINS.index(name) for name in ("neighbour", "flat interaction")]
    return float(np.isin(row.origin, by_others).mean())


def unsure(item: FrameRows) -> float | None:
    """Return the mean of 1 - confidence of a frame's best labels; None of no points."""
    confidence = next(item.confidences[name] for name in BEST_FIRST if name in item.confidences)
    return 1 - float(confidence.mean()) / 255 if len(confidence) else None
