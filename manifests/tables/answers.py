"""What the trainer says of points: predictions, labels made better at the end, and similarity to a phrase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pyarrow as pa

from manifests.tables.base import About, Float16, FrameRecord, Int64, Record, UInt8


@dataclass(frozen=True, eq=False, kw_only=True)
class Predict(FrameRecord, table="predict"):
    """What a network says of every point."""

    label: Annotated[UInt8, About("predicted class, never 0", shape=("n_points",))]
    confidence: Annotated[
        UInt8, About("softmax probability of the predicted class in 1/255", "1/255", shape=("n_points",))
    ]
    runner_up: Annotated[
        UInt8, About("the second and the third likeliest class; 0: less likely than 1/510", shape=("n_points", 2))
    ]
    runner_up_confidence: Annotated[UInt8, About("their probabilities", "1/255", shape=("n_points", 2))]


@dataclass(frozen=True, eq=False, kw_only=True)
class Refine(FrameRecord, table="refine"):
    """Labels of the student or of the teacher after a vote over time and flat interaction."""

    label: Annotated[UInt8, About("class after refinement, 0 none", shape=("n_points",))]
    confidence: Annotated[
        UInt8,
        About(
            "share of the votes, or of the evidence of flat interaction, that the class has; what it was where neither "
            "was asked",
            "1/255",
            shape=("n_points",),
        ),
    ]
    runner_up: Annotated[
        UInt8,
        About(
            "second choice: next in the vote, or what the point was called before flat interaction; 0 none",
            shape=("n_points",),
        ),
    ]
    runner_up_confidence: Annotated[UInt8, About("its confidence", "1/255", shape=("n_points",))]
    origin: Annotated[
        UInt8,
        About(
            "where the label comes from: 0 none, 1 a camera (a teacher's segment), 2 a neighbour (a sweep before or "
            "after), 3 flat interaction, 4 the student",
            shape=("n_points",),
        ),
    ]
    note: Annotated[str | None, About("which step was left out, and why; null if none was")]


@dataclass(frozen=True, eq=False, kw_only=True)
class Similarity(FrameRecord, table="similarity"):
    """How like a phrase a network finds every point."""

    cosine: Annotated[
        Float16, About("cosine of the network's feature at the point with the vector of a phrase", shape=("n_points",))
    ]
    margin: Annotated[
        Float16, About("that cosine less the largest one with any other prompt of the dictionary", shape=("n_points",))
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibrate(Record, table="calibrate"):
    """What the confidence of a table of labels is worth, and what it is to say instead: one row for all frames."""

    confidence: Annotated[
        UInt8,
        About("confidence after calibration of each confidence 0..255; never falls", "1/255", shape=("n_levels",)),
    ]
    compared: Annotated[Int64, About("labels that were compared, by confidence 0..255", shape=("n_levels",))]
    right: Annotated[
        Int64, About("those that the truth, or a sweep that had no say, calls the same", shape=("n_levels",))
    ]
    error_before: Annotated[
        float,
        About("expected calibration error over these labels, 0..1, as they were", kind=pa.float64()),
    ]
    error_after: Annotated[float, About("the same after calibration", kind=pa.float64())]
    augrc_before: Annotated[
        float,
        About("area under risk against coverage over these labels, 0..1: superpixels.reliability", kind=pa.float64()),
    ]
    augrc_after: Annotated[float, About("the same after calibration", kind=pa.float64())]
