"""A street scene drawn by arithmetic: the same pixels on every machine, to compare what networks make of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

HEIGHT_PX, WIDTH_PX = 900, 1600
HORIZON_PX = 420

PARTS = ("sky", "building", "road", "sidewalk", "tree", "car", "pedestrian", "bus")
"""What is drawn; part k of the map is PARTS[k]."""


@dataclass(frozen=True)
class Picture:
    """An image, uint8 RGB (H, W, 3), and what each pixel shows, (H, W), as a number of PARTS."""

    rgb: npt.NDArray[np.uint8]
    part: npt.NDArray[np.uint8]


class _Canvas:
    """Whole numbers only, so that no machine rounds otherwise."""

    def __init__(self) -> None:
        self.y, self.x = np.mgrid[:HEIGHT_PX, :WIDTH_PX].astype(np.int64)
        self.grain = (self.x * 7919 + self.y * 104729 + self.x * self.y * 31) >> 3
        self.rgb = np.zeros((HEIGHT_PX, WIDTH_PX, 3), np.int64)
        self.part = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)

    def paint(
        self, where: npt.NDArray[np.bool_], colour: tuple[int, int, int], name: str | None, grain: int = 6
    ) -> None:
        """Give pixels a colour with some grain, and a name unless they keep theirs."""
        noise = self.grain[where] % (2 * grain + 1) - grain
        self.rgb[where] = np.array(colour) + noise[:, None]
        if name is not None:
            self.part[where] = PARTS.index(name)

    def box(self, left: int, top: int, right: int, bottom: int) -> npt.NDArray[np.bool_]:
        """Return the pixels of a rectangle."""
        found: npt.NDArray[np.bool_] = (self.x >= left) & (self.x < right) & (self.y >= top) & (self.y < bottom)
        return found

    def disc(self, column: int, row: int, radius: int) -> npt.NDArray[np.bool_]:
        """Return the pixels of a disc."""
        found: npt.NDArray[np.bool_] = (self.x - column) ** 2 + (self.y - row) ** 2 < radius**2
        return found


@cache
def street() -> Picture:
    """Return the picture: houses along a road with a car, a bus, trees and two people, under a sky."""
    canvas = _Canvas()
    y, x = canvas.y, canvas.x
    sky = y < HORIZON_PX + 40
    canvas.paint(sky, (128, 170, 220), "sky", grain=3)
    canvas.rgb[sky] += (y[sky] // 8)[:, None]  # paler towards the horizon
    for left, width, height, colour in (
        (0, 260, 330, (150, 96, 74)),
        (250, 210, 230, (188, 172, 140)),
        (1090, 230, 260, (164, 150, 150)),
        (1310, 290, 360, (140, 110, 90)),
    ):
        _house(canvas, left, width, height, colour)
    ground = y >= HORIZON_PX
    canvas.paint(ground, (150, 146, 140), "sidewalk")
    depth = np.maximum(y - HORIZON_PX, 0)
    canvas.paint(ground & (np.abs(x - 800) < 60 + depth * 5 // 4), (84, 84, 90), "road")
    middle = ground & (np.abs(x - 800) < 2 + depth // 60) & ((2400 * 100 // (depth + 20)) % 240 < 120)
    canvas.paint(middle, (226, 226, 220), None, grain=3)
    for column, row, size in ((420, 360, 92), (1180, 352, 84)):
        canvas.paint(canvas.box(column - size // 8, row, column + size // 8, row + size * 2), (92, 66, 44), "tree")
        for across, down, radius in ((0, 0, size), (-size // 2, size // 3, size * 2 // 3), (size // 2, size // 3, 50)):
            canvas.paint(canvas.disc(column + across, row + down, radius), (58, 112, 48), "tree", grain=22)
    _car(canvas, 520, 640)
    canvas.paint(canvas.box(880, 330, 1040, 520), (206, 164, 40), "bus")
    canvas.paint(canvas.box(896, 352, 1024, 420), (52, 66, 82), "bus")
    for column in (912, 1008):
        canvas.paint(canvas.disc(column, 520, 18), (24, 24, 26), "bus")
    for column, size, colour in ((1270, 60, (180, 40, 50)), (300, 48, (40, 60, 150))):
        _person(canvas, column, 560, size, colour)
    return Picture(np.clip(canvas.rgb, 0, 255).astype(np.uint8), canvas.part)


def _house(canvas: _Canvas, left: int, width: int, height: int, colour: tuple[int, int, int]) -> None:
    top = HORIZON_PX + 30 - height
    canvas.paint(canvas.box(left, top, left + width, HORIZON_PX + 40), colour, "building", grain=10)
    for row in range(top + 24, HORIZON_PX - 40, 64):
        for column in range(left + 20, left + width - 40, 58):
            canvas.paint(canvas.box(column, row, column + 30, row + 40), (46, 58, 74), "building")


def _car(canvas: _Canvas, left: int, top: int) -> None:
    canvas.paint(canvas.box(left + 60, top - 70, left + 250, top), (150, 24, 28), "car")
    canvas.paint(canvas.box(left + 76, top - 58, left + 234, top - 6), (70, 90, 110), "car")
    canvas.paint(canvas.box(left, top, left + 320, top + 84), (176, 28, 32), "car")
    for column in (left + 66, left + 254):
        canvas.paint(canvas.disc(column, top + 84, 36), (22, 22, 24), "car")
        canvas.paint(canvas.disc(column, top + 84, 16), (150, 150, 154), "car")
    canvas.paint(canvas.box(left + 296, top + 16, left + 320, top + 40), (240, 236, 190), "car")


def _person(canvas: _Canvas, column: int, foot: int, size: int, colour: tuple[int, int, int]) -> None:
    canvas.paint(canvas.box(column - size // 3, foot - size * 3, column + size // 3, foot - size), colour, "pedestrian")
    for side in (-1, 1):
        leg = column + side * size // 6
        canvas.paint(canvas.box(leg - size // 8, foot - size, leg + size // 8, foot + size), (36, 38, 52), "pedestrian")
    canvas.paint(canvas.disc(column, foot - size * 7 // 2, size // 2), (206, 160, 130), "pedestrian")
