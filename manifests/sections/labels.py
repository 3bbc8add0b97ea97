"""Sections `[labels]` and `[calibrate]`: labels as files for other programs, and what their confidence means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

LabelTable = Literal["refine", "predict", "target", "correct", "vote", "group"]
"""Tables with a class and a confidence for every point, the best first."""

Calibration = Literal["", "agreement", "truth"]
"""How often labels are right, by a sweep that had no say in them, or by the truth; "": nothing is calibrated."""

LabelFormat = Literal["npy", "kitti", "lidarseg", "pcd", "ply", "parquet"]


@dataclass(frozen=True)
class LabelsConfig:
    """Section ``[labels]``: which labels are written as files, and how.

    ``of``
        The table that they are read from.
    ``formats``
        Layouts to write, a folder each.
    ``min_confidence``, ``below``
        A label that is less sure, 0..1, becomes "none" (0), or the class "unsure" behind those of the dictionary.
    ``instance_gap_m``
        Layout "kitti" numbers single objects too, in the upper 16 bits: points of a class that can be counted which lie
        no farther apart than this along the ground are of one; 0 numbers none.
    """

    of: LabelTable = "refine"
    formats: tuple[LabelFormat, ...] = ("npy",)
    min_confidence: float = 0.0
    below: Literal["none", "unsure"] = "none"
    instance_gap_m: float = 0.0

    def __post_init__(self) -> None:
        if self.of not in get_args(LabelTable):
            raise ValueError(f'of is "{self.of}"; choose one of {", ".join(get_args(LabelTable))}')
        unknown = [name for name in self.formats if name not in get_args(LabelFormat)]
        if unknown or not self.formats or len(set(self.formats)) < len(self.formats):
            raise ValueError(
                f"formats is {list(self.formats)}; name each wanted one of {', '.join(get_args(LabelFormat))} once"
            )
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence is {self.min_confidence}; expected 0..1")
        if self.below not in ("none", "unsure"):
            raise ValueError(f'below is "{self.below}"; choose "none" or "unsure"')
        if not 0 <= self.instance_gap_m <= 10:
            raise ValueError(f"instance_gap_m is {self.instance_gap_m}; expected 0 (no objects) to 10, in metres")


@dataclass(frozen=True)
class CalibrateConfig:
    """Section ``[calibrate]``: confidences of labels are made to say how often such labels are right.

    ``by``
        "" leaves them as they are. "agreement" fits them without any true label, by how often a sweep that is left out
        of the vote says the same: for pseudo-labels alone, refined or not. "truth" fits them on a split with true
        labels, those of students too.
    ``split``
        The scenes to fit on; "truth" needs it named, and "agreement" takes all that have labels where it is left out.
    ``frames``
        At most so many frames of the split, evenly spread.
    """

    by: Calibration = ""
    split: str = ""
    frames: int = 200

    def __post_init__(self) -> None:
        if self.by not in get_args(Calibration):
            raise ValueError(f'by is "{self.by}"; choose "" (none), "agreement" or "truth"')
        if self.by == "truth" and not self.split:
            raise ValueError('by is "truth"; name the scenes whose true labels are read: split = "train", say')
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; expected 1 or more")
