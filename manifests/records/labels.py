"""Labels that are handed on: `labels.json` of a folder of label files, `export.json` of the official layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from manifests.fingerprint import Json, Settings
from manifests.records.codec import REST
from manifests.records.evaluation import CalibratedBy


@dataclass(frozen=True)
class LabelsIdentity:
    """All that the files of a folder of labels depend on: where it changes, they are written anew.

    `tables` are the fingerprints of those that are read, `contents` digests of their shards; `classes` are name, colour
    and whether it is a thing, `raw` what the data set's own numbers mean. `only` names frames where not all are asked
    for, `instance_gap_m` how far apart points of one object are where objects are numbered, `calibration` which
    calibration of confidences was used, if one was.
    """

    format: int
    of: str
    tables: Mapping[str, str]
    contents: Mapping[str, str]
    excluded: tuple[str, ...]
    dictionary: str
    classes: tuple[tuple[str, str, bool], ...]
    raw: Settings
    formats: tuple[str, ...]
    min_confidence: float
    below: str
    only: tuple[str, ...] | None = None
    instance_gap_m: float | None = None
    calibration: str | None = None


@dataclass(frozen=True)
class NamedClass:
    """A class of label files: its number, its colour (#rrggbb), and whether its objects can be counted."""

    number: int
    name: str
    colour: str
    thing: bool


@dataclass(frozen=True)
class Layout:
    """What stands in the files of a layout: the number of every class, and what instances are, where it has any."""

    values: Mapping[str, int]
    instances: str | None = None


@dataclass(frozen=True)
class RefinedBy:
    """What labels were refined, and by what."""

    of: str
    by: str


@dataclass(frozen=True)
class LabelCounts:
    """How many frames and points there are, how many of these have a label, and how many were not sure enough.

    `by_origin` tells where refined labels come from; other tables do not know it.
    """

    frames: int
    points: int
    labelled: int
    not_sure_enough: int
    by_class: Mapping[str, int]
    by_origin: Mapping[str, int] = field(default_factory=dict)

    @property
    def labelled_percent(self) -> float:
        """How many points have a label, in %; 0 where there are no points."""
        return 100 * self.labelled / max(self.points, 1)


@dataclass(frozen=True)
class DoubtfulFrame:
    """A frame to look at first, and how sure its labels are on average, 0..1."""

    frame_id: str
    mean_confidence: float


@dataclass(frozen=True, kw_only=True)
class LabelsRecord:
    """`labels.json`: what a folder of label files holds and where it comes from.

    `weights` are those of the student that answered, None where none did. `identity` is a `LabelsIdentity`, as the
    version wrote it that wrote the folder; `calibrated` says how confidences were calibrated, if they were, and `more`
    is what other versions wrote.
    """

    recipe: str
    dataset: str
    version: str
    dictionary: str
    of: str
    refined: RefinedBy | None
    weights: str | None
    min_confidence: float
    below: str
    classes: tuple[NamedClass, ...]
    layouts: Mapping[str, Layout]
    counts: LabelCounts
    calibrated: CalibratedBy | None = None
    look_first: tuple[DoubtfulFrame, ...] = ()
    without_labels: Mapping[str, str]
    identity: Json
    more: Settings = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True)
class ExportIdentity:
    """What the files of an export depend on, beside the content of each shard."""

    recipe: str
    layout: str
    sixteen_bit: bool
    tables: Mapping[str, str]


@dataclass(frozen=True)
class ExportedShard:
    """A shard that an export holds as a whole: sha256 of its tables' files, and the most segments of an image."""

    content: Mapping[str, str]
    most_segments: int


@dataclass(frozen=True)
class ExportRecord:
    """`export.json`: which tables an export is of, and which shards are whole."""

    export: ExportIdentity
    shards: Mapping[str, ExportedShard]
