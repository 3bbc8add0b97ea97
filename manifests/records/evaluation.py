"""`evaluate*.json`: how labels compare with the true ones, point by point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manifests.fingerprint import Settings

Contents = Mapping[str, Mapping[str, str]]
"""The keys and contents of shards, by table and shard, as `manifests.asked.contents_of` has them."""


@dataclass(frozen=True)
class Compared:
    """How far the files behind tables were compared with what they were when these were made.

    `files` are those that were compared, `read` those of them that had to be read for it, and `not_compared` says, in
    sentences, what was not.
    """

    files: int = 0
    read: int = 0
    not_compared: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A sentence for the user on what was not compared; empty where all was."""
        told = "; ".join(self.not_compared)
        return f"not compared with the files behind the tables: {told}" if told else ""


@dataclass(frozen=True, kw_only=True)
class CalibratedBy:
    """How confidences were calibrated (section `[calibrate]`), and what they were worth before and after.

    `table` is the identity of the calibration, `compared` the labels that it was fitted on, and the errors and AUGRC,
    in 0..1, are those of these very labels. `scored_too` counts scenes that were both fitted on, by their true labels,
    and scored.
    """

    by: str
    split: str
    table: str
    compared: int
    error_before: float
    error_after: float
    augrc_before: float
    augrc_after: float
    scored_too: int = 0


@dataclass(frozen=True)
class PartScores:
    """IoU in 0..1 over some of the points, by class (class 1 first) and in summary; None is a score of nothing.

    `points` counts those with a true label. What the confidence of the labels is worth (superpixels.reliability) stands
    in `calibration_error`, `augrc` and `risk`, pairs of coverage and risk; None and empty where they have none. Of
    confidences that are calibrated, the first two stand in `calibrated_error` and `calibrated_augrc` too.
    """

    mean_iou: float | None
    micro_iou: float | None
    frequency_weighted_iou: float | None
    points: int
    iou: tuple[float | None, ...]
    calibration_error: float | None = None
    augrc: float | None = None
    risk: tuple[tuple[float, float], ...] = ()
    calibrated_error: float | None = None
    calibrated_augrc: float | None = None


@dataclass(frozen=True)
class MergedFrom:
    """The table whose things were put into predictions before flat interaction, and the seed of the draws."""

    table: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Refined:
    """What was done to labels before they were scored, and how many it changed, by part of the points.

    `settings` are those of flat interaction, `voting` those of the vote, other than defaults; `notes` counts frames by
    what a refinement had to say of them.
    """

    name: str
    settings: Settings | None = None
    voting: Settings | None = None
    merge: MergedFrom | None
    changed: Mapping[str, int]
    notes: Mapping[str, int]


@dataclass(frozen=True)
class LearntFrom:
    """What a yardstick without a network learnt from: the pseudo-labels of a split.

    `target` is the identity of their table, `contents` and `split_content` are as those of an EvaluationRecord.
    """

    split: str
    target: str
    split_content: str | None = None
    contents: Contents | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where labels that are scored come from.

    Only predictions have a `student` (the task that taught it), its `checkpoint` and `weights`, and only yardsticks
    what they were `learnt_from`.
    """

    checkpoint: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    device: str | None = None
    student: str | None = None
    weights: str | None = None
    predicted_by_commit: str | None = None
    learnt_from: LearntFrom | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationRecord(Origin):
    """Scores of predictions, of pseudo-labels or of a yardstick, by part of the points ("all", "seen", "unseen").

    `shards` are the scenes and `left_out` the frames that were not scored, by the reason; `tables` the identities of
    all that was read, and `contents` its very shards, which versions up to 0.9 did not write. `split_content` is a
    digest of what a split says that is a file, `sources` how far the files behind the tables were compared. `confusion`
    counts points by truth (rows) and answer, class 0 first.
    Only refined labels have scores from before. `calibrated` says how confidences of what is scored were calibrated.
    """

    of: str
    recipe: str
    split: str
    split_content: str | None = None
    absent: str
    frames: int
    shards: tuple[str, ...] = ()
    left_out: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    commit: str | None = None
    tables: Mapping[str, str]
    contents: Contents | None = None
    sources: Compared | None = None
    classes: tuple[str, ...]
    scores: Mapping[str, PartScores]
    confusion: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    refine: Refined | None = None
    scores_before: Mapping[str, PartScores] | None = None
    confusion_before: Mapping[str, tuple[tuple[int, ...], ...]] | None = None
    calibrated: CalibratedBy | None = None

    @property
    def every_content(self) -> tuple[Contents | None, ...]:
        """The shards it was made from, and those that a yardstick learnt from; None where that is not known."""
        return (self.contents, *([self.learnt_from.contents] if self.learnt_from else []))

    @property
    def refinement(self) -> str:
        """The name of the refinement, such as "vote+afi"; empty without one."""
        return self.refine.name if self.refine else ""

    @property
    def learnt_by(self) -> str:
        """The run whose student predicted."""
        return self.student or "distill"

    @property
    def is_of_unfinished_run(self) -> bool:
        """Whether the student was scored before its run had ended."""
        ends = self.of == "prediction" and self.epoch is not None and self.epochs is not None
        return ends and (self.epoch or 0) < (self.epochs or 0)


@dataclass(frozen=True)
class Expected:
    """What the paper got in the same place, what was obtained, both mIoU in %, and the row and table that say so."""

    mean_iou_percent: float
    obtained_percent: float
    difference: float
    row: str
    source: str


@dataclass(frozen=True)
class TestTime:
    """What was done when the student was asked: views of a sweep, what class 0 and absent classes count, refinement."""

    views: int
    augmentation: str
    class_0: str
    points: str
    absent_class: str
    refine: str
    sweeps: str


@dataclass(frozen=True, kw_only=True)
class JudgedEvaluation(EvaluationRecord):
    """An evaluation as the record of its run has it: beside what the paper got, and what its labels were used for."""

    departures: tuple[str, ...] = ()
    test_time: TestTime | None = None
    labels: str | None = None
    also_trained_on: tuple[str, ...] = ()
    expected: Expected | None = None
