"""The tables by name, in the order of docs/data.md, which says what they all hold (manifests.tables.document)."""

from __future__ import annotations

from manifests.tables.answers import Calibrate, Predict, Refine, Similarity
from manifests.tables.base import FrameRecord, Record
from manifests.tables.labels import Belief, Correct, Label, Mend, Target, Vote
from manifests.tables.motion import Motion
from manifests.tables.sensors import Index, Points, Project
from manifests.tables.superpoints import Group, Pairs
from manifests.tables.teacher import Encode, Score, Segment, Text

TABLES: dict[str, type[Record]] = {
    kind.table: kind
    for kind in (
        *(Index, Points, Project, Text, Encode, Segment, Score, Group, Pairs),
        *(Target, Label, Predict, Similarity, Motion, Belief, Vote, Correct, Refine, Mend, Calibrate),
    )
}

FRAME_TABLES: dict[str, type[FrameRecord]] = {
    name: kind for name, kind in TABLES.items() if issubclass(kind, FrameRecord)
}
"""Those that hold a row for each frame."""
