"""How much of the points is named, and how far cameras agree, counted over frames."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from manifests.ontology import Ontology
from pipeline.browse import FrameRows
from pipeline.stages.group import agreement

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """Counts of points over `n_frames` frames.

    `n_seen` lie in some image, `n_labelled` have a pseudo-label. `n_shared` belong to superpoints of more than one
    camera, and for `n_agreed` of these all such superpoints are of one class. Arrays have an entry per class, (c,), 0
    first: `shared_of_class` and `agreed_of_class` count these points by pseudo-label, `points_of_class` all points by
    pseudo-label ("target"), by truth ("label") and by prediction ("predict"), as far as these exist.
    """

    n_frames: int
    n_points: int
    n_seen: int
    n_labelled: int
    n_shared: int
    n_agreed: int
    shared_of_class: Counts
    agreed_of_class: Counts
    points_of_class: dict[str, Counts] = field(default_factory=dict)


def measure(frames: Iterable[FrameRows], ontology: Ontology) -> Quality:
    """Return the counts over some frames, read one at a time."""
    n_classes = len(ontology.classes)
    n_frames = n_points = n_seen = 0
    shared_of_class, agreed_of_class = np.zeros((2, n_classes), np.int64)
    points_of_class: dict[str, Counts] = {}
    for item in frames:
        rows = item.rows
        n_frames += 1
        n_points += len(rows["target"]["seen"])
        n_seen += int(rows["target"]["seen"].sum())
        shared, agreed = agreement(rows["project"], rows["group"], ontology)
        shared_of_class += np.bincount(rows["target"]["label"][shared], minlength=n_classes)
        agreed_of_class += np.bincount(rows["target"]["label"][agreed], minlength=n_classes)
        for name in ("target", "label", "predict"):
            if name in rows:
                count = np.bincount(rows[name]["label"], minlength=n_classes)
                points_of_class[name] = points_of_class.get(name, 0) + count
    return Quality(
        n_frames=n_frames,
        n_points=n_points,
        n_seen=n_seen,
        n_labelled=int(points_of_class["target"][1:].sum()) if n_frames else 0,
        n_shared=int(shared_of_class.sum()),
        n_agreed=int(agreed_of_class.sum()),
        shared_of_class=shared_of_class,
        agreed_of_class=agreed_of_class,
        points_of_class=points_of_class,
    )
