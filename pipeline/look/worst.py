"""Which frames to look at first: those whose labels are most doubtful, and some that nobody picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from manifests.storage.names import scene_of
from pipeline.look.browse import Place
from pipeline.look.quality import Doubt

APART = 5  # rows of a shard, of which only one frame is among the worst while there are others: neighbours look alike


@dataclass(frozen=True)
class Ranked:
    """A frame, how doubtful its labels are, and its rank among the frames that were counted, 1 for the worst."""

    place: Place
    doubt: Doubt
    rank: int

    @property
    def scene(self) -> str:
        """The scene it belongs to."""
        return scene_of(self.place.shard)

    @property
    def about(self) -> str:
        """What is doubtful in words."""
        doubt = self.doubt
        told = {
            "cameras disagree on {} of what several name": doubt.cameras,
            "teacher and student on {} of what both name": doubt.student,
            "vote or flat interaction changed {}": doubt.changed,
            "{} unsure on average": doubt.unsure,
        }
        return ", ".join(text.format(f"{100 * share:.1f} %") for text, share in told.items() if share is not None)


def ranked(places: Sequence[Place], doubts: Sequence[Doubt]) -> list[Ranked]:
    """Return frames by doubt, the most doubtful first; of equal ones those that come first."""
    order = sorted(range(len(places)), key=lambda one: (-doubts[one].total, one))
    return [Ranked(places[one], doubts[one], rank) for rank, one in enumerate(order, 1)]


def to_draw(found: Sequence[Ranked], evenly: Sequence[Place], n_frames: int) -> list[Ranked]:
    """Return at most `n_frames` of some ranked frames, the worst first.

    Half of them, one more of an odd number, are the worst, no two of them near each other; the others are those of
    `evenly` that are left, which show what is usual.
    """
    worst: list[Ranked] = []
    for one in found:
        near = any(one.place.shard == it.place.shard and abs(one.place.row - it.place.row) < APART for it in worst)
        if not near and len(worst) < (n_frames + 1) // 2:
            worst.append(one)
    chosen = {one.place: one for one in worst}
    of_place = {one.place: one for one in found}
    for place in [*evenly, *of_place]:
        if len(chosen) < n_frames and place in of_place:
            chosen.setdefault(place, of_place[place])
    return sorted(chosen.values(), key=lambda one: one.rank)
