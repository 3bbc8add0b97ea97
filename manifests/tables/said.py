"""What the points of a frame are called, by the best of the tables of labels whose rows are there."""

from __future__ import annotations

from manifests.tables.answers import Predict, Refine
from manifests.tables.base import Rows, UInt8
from manifests.tables.labels import Correct, Target, Vote
from manifests.tables.superpoints import Group


def labels_said(rows: Rows) -> tuple[UInt8, UInt8]:
    """Return class and confidence in 1/255 of every point, (n,) both."""
    if correct := rows.get(Correct):
        return correct.label, correct.confidence_over((rows.get(Vote) or rows[Group]).confidence)
    said = rows.get(Refine) or rows.get(Predict) or rows.get(Target) or rows.get(Vote) or rows[Group]
    return said.label, said.confidence
