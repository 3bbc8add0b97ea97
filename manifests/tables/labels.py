"""Classes of points: pseudo-labels in the order they are refined, what is learnt, and the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from manifests.tables.base import About, Bool, FrameRecord, UInt8, UInt16


@dataclass(frozen=True, eq=False, kw_only=True)
class Vote(FrameRecord, table="vote"):
    """Pseudo-labels made consistent over time."""

    label: Annotated[
        UInt8, About("pseudo-label after the vote of the sweeps before and after, 0 none", shape=("n_points",))
    ]
    confidence: Annotated[UInt8, About("share of the votes, lower where there are few", "1/255", shape=("n_points",))]
    changed: Annotated[Bool, About("the label is not the one it was before, or there was none", shape=("n_points",))]


@dataclass(frozen=True, eq=False, kw_only=True)
class Belief(FrameRecord, table="belief"):
    """What a point may be after the vote over time: the three likeliest classes, with their shares."""

    label: Annotated[
        UInt8, About("classes, that of table `vote` first, then by their share; 0 none", shape=("n_points", 3))
    ]
    share: Annotated[
        UInt8,
        About("share of the votes, lower where there are few; at least 1 of the first", "1/255", shape=("n_points", 3)),
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Correct(FrameRecord, table="correct"):
    """Pseudo-labels after flat interaction."""

    label: Annotated[UInt8, About("pseudo-label after flat interaction, 0 none", shape=("n_points",))]
    score: Annotated[
        UInt8, About("share of the evidence at the point that speaks for the label", "1/255", shape=("n_points",))
    ]
    changed: Annotated[Bool, About("the label is not the one it was before, or there was none", shape=("n_points",))]
    note: Annotated[str | None, About("which step was left out, and why; null if none was")]

    def confidence_over(self, before: UInt8) -> UInt8:
        """Return the confidence of the labels in 1/255, (n,), from that of those before.

        A label that was not touched keeps it; one that is new has its share of the evidence, at least 1. Where there is
        no label, it is 0.
        """
        sure = np.where(self.changed, np.maximum(self.score, 1), before)
        return np.where(self.label > 0, sure, 0).astype(np.uint8)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mend(FrameRecord, table="mend"):
    """Labels that people corrected; of frames that nobody touched nothing is given."""

    label: Annotated[UInt8, About("class that a person gave the point, 0 none", shape=("n_points",))]
    given: Annotated[Bool, About("a person had the point at hand, also where it got no class", shape=("n_points",))]


@dataclass(frozen=True, eq=False, kw_only=True)
class Target(FrameRecord, table="target"):
    """What distillation learns from."""

    label: Annotated[UInt8, About("class to learn, 0 none", shape=("n_points",))]
    confidence: Annotated[UInt8, About("confidence in 1/255", "1/255", shape=("n_points",))]
    seen: Annotated[Bool, About("some camera sees the point, occluded or not", shape=("n_points",))]


@dataclass(frozen=True, eq=False, kw_only=True)
class Label(FrameRecord, table="label"):
    """True labels of points, where a data set has them."""

    label: Annotated[UInt8, About("true class of the dictionary, 0 ignored", shape=("n_points",))]
    raw: Annotated[UInt16, About("true label as the data set stores it (nuScenes lidarseg index)", shape=("n_points",))]
