"""Other views of an image that a teacher is asked of too: mirrored, larger or smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MOST_VIEWS = 8
SCALES = (0.25, 4.0)


@dataclass(frozen=True)
class View:
    """A view of an image: mirrored from left to right or not, and how many times as large."""

    flip: bool = False
    scale: float = 1.0

    def size_px(self, height_px: int, width_px: int, cell_px: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the view of an image in pixels: whole cells of `cell_px`, one at least."""
        height, width = (
            max(1, round(side * self.scale / cell)) * cell
            for side, cell in zip((height_px, width_px), cell_px, strict=True)
        )
        return height, width


def sizes_of(
    views: Sequence[View], height_px: int, width_px: int, cell_px: tuple[int, int]
) -> dict[float, tuple[int, int]]:
    """Return height and width in pixels, by scale, of an image that a network sees and of its views of other sizes.

    The image itself, of scale 1, comes first and stays as it is.
    """
    others = {view.scale: view.size_px(height_px, width_px, cell_px) for view in views if view.scale != 1.0}
    return {1.0: (height_px, width_px), **others}


def cost_of(views: Sequence[View]) -> float:
    """Return how many times the pixels of an image a network sees with these views; 1 without any."""
    return 1.0 + sum(view.scale**2 for view in views)


def views_of(augment: Sequence[str]) -> tuple[View, ...]:
    """Return the views that "flip", "scale:1.25" or "flip+scale:1.25" stand for; raises ValueError for other words."""
    if len(augment) > MOST_VIEWS:
        raise ValueError(f"augment has {len(augment)} views; {MOST_VIEWS} at most")
    found: list[View] = []
    for word in augment:
        flip, rest = (True, word[5:]) if word.startswith("flip+") else (word == "flip", word)
        kind, _, number = rest.partition(":")
        scale = 1.0
        if not (flip and rest == "flip"):
            try:
                scale = float(number) if kind == "scale" else math.nan
            except ValueError:
                scale = math.nan
            if not SCALES[0] <= scale <= SCALES[1] or scale == 1.0:
                raise ValueError(
                    f'augment has "{word}"; expected "flip", "scale:S" or "flip+scale:S" with S from {SCALES[0]} to '
                    f"{SCALES[1]}, not 1"
                )
        view = View(flip, scale)
        if view in found:
            raise ValueError(f'augment has "{word}" twice')
        found.append(view)
    return tuple(found)
