"""Points of a frame as the large view of the report draws them: a few bytes a point, in the page itself."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.fingerprint import Settings
from manifests.tables.answers import Predict, Refine
from manifests.tables.base import FrameRecord
from manifests.tables.labels import Label, Target
from manifests.tables.sensors import Points
from pipeline.look.browse import FrameRows
from pipeline.look.pictures import from_above

MOST_POINTS = 40_000  # of a frame: some 14 bytes each, and a third more as text
CENTIMETRES = 100
LAYERS: Mapping[type[FrameRecord], str] = {
    Target: "Pseudo-labels",
    Predict: "Predictions",
    Refine: "Refined labels",
    Label: "Truth",
}
COMPARISONS: tuple[tuple[type[FrameRecord], type[FrameRecord], str], ...] = (
    (Predict, Label, "Errors of the predictions"),
    (Refine, Label, "Errors of the refined labels"),
    (Target, Label, "Errors of the pseudo-labels"),
    (Predict, Target, "Predictions against pseudo-labels"),
    (Refine, Predict, "Refined labels against predictions"),
)
"""An answer and what it is held against, where both are there."""


def cloud(item: FrameRows) -> Settings:
    """Return what the large view needs of a frame, as JSON has it.

    `xyz` are centimetres to the right of the LiDAR, ahead of it and above it, int16 (3, n), `seen` (n,) bytes 0 and 1,
    each as base64 with the least significant byte first; `layers` hold a class (n,) and a confidence (n,) in 1/255,
    bytes too. Of a frame with more than `MOST_POINTS` only every second, third, ... is taken.
    """
    xyz_m = item.rows[Points].xyz_m
    step = max(1, -(-len(xyz_m) // MOST_POINTS))
    kept = slice(None, None, step)
    above = xyz_m[kept] @ item.frame.ego_from_lidar[2, :3]
    places = np.column_stack([from_above(item.frame, xyz_m[kept]), above])
    labels, sure = item.labels, item.confidences
    layers = [
        {
            "table": kind.table,
            "title": title,
            "label": text_of(labels[kind.table][kept]),
            "confidence": text_of(sure[kind.table][kept]) if kind.table in sure else "",
        }
        for kind, title in LAYERS.items()
        if kind.table in labels
    ]
    return {
        "scene": item.frame.scene,
        "frame": item.frame.frame_id,
        "every": step,
        "points": len(places),
        "xyz": text_of(np.clip(np.rint(places.T * CENTIMETRES), -32768, 32767).astype("<i2")),
        "seen": text_of(item.rows[Target].seen[kept].astype(np.uint8)),
        "layers": layers,
        "comparisons": [
            {"title": title, "answer": answer.table, "reference": reference.table}
            for answer, reference, title in COMPARISONS
            if answer.table in labels and reference.table in labels
        ],
    }


def text_of(values: NDArray[Any]) -> str:
    """Return the bytes of an array as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
