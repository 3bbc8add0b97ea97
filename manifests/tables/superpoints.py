"""Superpoints: points that fall into one segment of one view."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from manifests.tables.base import About, Float16, FrameRecord, Int32, UInt8, UInt16


@dataclass(frozen=True, eq=False, kw_only=True)
class Group(FrameRecord, table="group"):
    """Superpoints in every camera that sees them, and at most one pseudo-label per point."""

    superpoint_view: Annotated[UInt8, About("view of each superpoint, ascending", shape=("n_superpoints",))]
    superpoint_segment: Annotated[UInt16, About("segment number in that view, ascending", shape=("n_superpoints",))]
    superpoint_prompt: Annotated[Int32, About("prompt that names the segment", shape=("n_superpoints",))]
    superpoint_fine: Annotated[UInt8, About("fine class of that prompt", shape=("n_superpoints",))]
    superpoint_score: Annotated[Float16, About("the teacher's score of the segment", shape=("n_superpoints",))]
    pair: Annotated[Int32, About("index into the frame's `project` pairs, ascending", shape=("n_pairs",))]
    pair_superpoint: Annotated[Int32, About("superpoint of that pair", shape=("n_pairs",))]
    point_superpoint: Annotated[
        Int32, About("superpoint that gives the point its label; -1: none", shape=("n_points",))
    ]
    label: Annotated[UInt8, About("pseudo-label: class of the dictionary, 0 none", shape=("n_points",))]
    confidence: Annotated[UInt8, About("confidence of the pseudo-label in 1/255", "1/255", shape=("n_points",))]


@dataclass(frozen=True, eq=False, kw_only=True)
class Superpoints(FrameRecord, of=Group):
    """Which points belong together, whatever these are called in the end."""

    superpoint_view: UInt8
    superpoint_segment: UInt16
    superpoint_prompt: Int32
    superpoint_fine: UInt8
    superpoint_score: Float16
    pair: Int32
    pair_superpoint: Int32


@dataclass(frozen=True, eq=False, kw_only=True)
class NamedPoints(FrameRecord, of=Group):
    """Pseudo-labels, and what else cameras say of the same points."""

    superpoint_prompt: Int32
    pair: Int32
    pair_superpoint: Int32
    label: UInt8
    confidence: UInt8


@dataclass(frozen=True, eq=False, kw_only=True)
class Pairs(FrameRecord, table="pairs"):
    """What contrastive pre-training reads: points and their superpoints, once per camera that sees them."""

    point: Annotated[Int32, About("index of the point", shape=("n_pairs",))]
    superpoint: Annotated[Int32, About("superpoint it belongs to in one view", shape=("n_pairs",))]
    row_px: Annotated[UInt16, About("pixel row in that view", "px", shape=("n_pairs",))]
    col_px: Annotated[UInt16, About("pixel column in that view", "px", shape=("n_pairs",))]
    superpoint_view: Annotated[UInt8, About("view of each superpoint, ascending", shape=("n_superpoints",))]
    superpoint_prompt: Annotated[Int32, About("prompt that names the superpoint", shape=("n_superpoints",))]
    vector: Annotated[Float16, About("unit vector of its segment in the text space", shape=("n_superpoints", "n_dims"))]
    height_px: Annotated[Int32, About("image heights", "px", shape=("n_views",))]
    width_px: Annotated[Int32, About("image widths", "px", shape=("n_views",))]


@dataclass(frozen=True, eq=False, kw_only=True)
class PairVectors(FrameRecord, of=Pairs):
    """What it takes to compare points with a phrase."""

    point: Int32
    superpoint: Int32
    superpoint_prompt: Int32
    vector: Float16
