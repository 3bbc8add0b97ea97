"""The training sample: what the pipeline packs and the trainer reads, one frame each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Sweep:
    """One LiDAR sweep, order of the file: xyz_m float32 (n, 3) in the LiDAR frame, intensity float32 (n,) as stored."""

    frame_id: str
    xyz_m: NDArray[Any]
    intensity: NDArray[Any]


@dataclass(frozen=True)
class SuperpointPairs:
    """Points and the superpoints they belong to, once per camera that sees them: the input of contrastive pre-training.

    Aligned with pairs (p): point int32, superpoint int32, row_px and col_px uint16.
    Aligned with superpoints (s): view uint8, prompt_id int32, vector float16 (s, d) of unit length.
    Aligned with views: height_px, width_px int32.
    """

    point: NDArray[Any]
    superpoint: NDArray[Any]
    row_px: NDArray[Any]
    col_px: NDArray[Any]
    view: NDArray[Any]
    prompt_id: NDArray[Any]
    vector: NDArray[Any]
    height_px: NDArray[Any]
    width_px: NDArray[Any]


@dataclass(frozen=True)
class PointTargets:
    """Aligned with the sweep (n): label uint8, 0 none; confidence uint8 in 1/255; seen bool, by some camera."""

    label: NDArray[Any]
    confidence: NDArray[Any]
    seen: NDArray[Any]


def sweep_of(points: Mapping[str, Any]) -> Sweep:
    """Return the sweep in a row of table `points`."""
    return Sweep(points["frame_id"], points["xyz_m"], points["intensity"])


def pairs_of(pairs: Mapping[str, Any]) -> SuperpointPairs:
    """Return the pairs in a row of table `pairs`."""
    return SuperpointPairs(
        point=pairs["point"],
        superpoint=pairs["superpoint"],
        row_px=pairs["row_px"],
        col_px=pairs["col_px"],
        view=pairs["superpoint_view"],
        prompt_id=pairs["superpoint_prompt"],
        vector=pairs["vector"],
        height_px=pairs["height_px"],
        width_px=pairs["width_px"],
    )


def targets_of(target: Mapping[str, Any]) -> PointTargets:
    """Return the targets in a row of table `target`."""
    return PointTargets(target["label"], target["confidence"], target["seen"])
