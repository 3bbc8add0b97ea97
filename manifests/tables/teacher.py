"""What a 2D teacher gives: vectors of prompts, its vocabulary-free half, and named segments."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import pyarrow as pa
from numpy.typing import NDArray

from manifests.tables.base import About, Float16, Float32, FrameRecord, Int32, Record, UInt8, UInt16, UInt32


@dataclass(frozen=True, eq=False, kw_only=True)
class Text(Record, table="text"):
    """The vector of one prompt of the class dictionary."""

    prompt_id: Annotated[int, About("position of the prompt in the class dictionary", kind=pa.int32())]
    prompt: Annotated[str, About("the prompt")]
    vector: Annotated[
        Float32, About("unit text vector: mean over templates of unit vectors, normalised again", shape=("n_dims",))
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Encode(FrameRecord, table="encode"):
    """The teacher's half that needs no vocabulary."""

    encoding: Annotated[
        Mapping[str, NDArray[Any]],
        About("the teacher's vocabulary-free half of each view; names are `<camera>/<part>`"),
    ]


@dataclass(frozen=True, eq=False, kw_only=True)
class Segment(FrameRecord, table="segment"):
    """Named segments of every view, views one after the other."""

    height_px: Annotated[Int32, About("height of the label maps", "px", shape=("n_views",))]
    width_px: Annotated[Int32, About("width of the label maps", "px", shape=("n_views",))]
    run_value: Annotated[
        UInt16, About("label maps as run lengths, row by row, views one after the other: values", shape=("n_runs",))
    ]
    run_length: Annotated[UInt32, About("label maps as run lengths: lengths", "px", shape=("n_runs",))]
    runs_in_view: Annotated[Int32, About("how many runs each view has", shape=("n_views",))]
    segments_in_view: Annotated[
        Int32, About("how many segments each view has; they are numbered from 1", shape=("n_views",))
    ]
    prompt_id: Annotated[
        Int32, About("prompt that names each segment, views one after the other", shape=("n_segments",))
    ]
    score: Annotated[Float16, About("how sure the teacher is of the name, 0..1", shape=("n_segments",))]
    area_px: Annotated[Int32, About("pixels of each segment", "px", shape=("n_segments",))]
    vector: Annotated[Float16, About("unit vectors of the segments in the text space", shape=("n_segments", "n_dims"))]


@dataclass(frozen=True, eq=False, kw_only=True)
class Score(FrameRecord, table="score"):
    """How sure the teacher is of each pixel in which a camera sees a point."""

    score: Annotated[
        UInt8,
        About(
            "how sure the teacher is of the name of the pixel, in 1/255: at least 1 in a segment, 0 in none; aligned "
            "with `project`",
            "1/255",
            shape=("n_pairs",),
        ),
    ]
    runner_up: Annotated[
        UInt8,
        About(
            "the two classes that are likeliest at the pixel beside that of its name, the likelier first, 0 none: of "
            "teachers that tell",
            shape=("n_pairs", 2),
        ),
    ]
    runner_up_score: Annotated[UInt8, About("how likely they are", "1/255", shape=("n_pairs", 2))]


@dataclass(frozen=True, eq=False, kw_only=True)
class SegmentMaps(FrameRecord, of=Segment):
    """Segments without their vectors, which are three quarters of a row, and grouping needs none."""

    height_px: Int32
    width_px: Int32
    run_value: UInt16
    run_length: UInt32
    runs_in_view: Int32
    segments_in_view: Int32
    prompt_id: Int32
    score: Float16
    area_px: Int32
