"""Whether images belong to the sweeps that they stand beside, or to those of other frames of the scene.

Images that are numbered from another start than sweeps, one that was lost at the start, a clock that is off: every file
is there, and each sweep stands beside the image of another moment. Then marks of the sweep fit the images of the frames
some places before or after better than its own. Where the vehicle stands, all fit alike, and nothing is said; nor is it
where only part of a drive is shifted, since the frames that were opened are judged together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from manifests.storage.places import Root
from pipeline.checks.alignment import ALIGNED, Fit, correlate, judge
from pipeline.checks.calibration import ALONE, BETTER, Views, by_camera
from pipeline.checks.findings import Finding
from pipeline.checks.looks import Look, straight
from pipeline.checks.signals import Array, Picture, find_layers
from pipeline.frame import Camera, Frame, FrameError

LEAST_S = 0.2  # images that are nearer in time than this are hardly others
MOST_S, MOST_PLACES = 1.2, 12  # how far other images are sought
UNTIMED_PLACES = 3  # and where frames have no times
_SLOW_M_S = 1.0  # slower, images are all the same
_LOOKS = 4  # of those that were opened, the fastest


class Around(Protocol):
    """The frames around a frame in its scene."""

    def picture(self, frame: Frame, camera: str, places: int) -> Picture | None:
        """Return the image that a camera has in the frame so many places later; None where there is none."""
        ...

    def image_path(self, frame: Frame, camera: str, places: int) -> str:
        """Return the file of that image, nothing where there is none."""
        ...

    def step_s(self, frame: Frame) -> float:
        """Return how far its scene's frames are apart, in seconds; 0 where they have no times."""
        ...


class Scenes:
    """The frames of a data set by scene, in order; images are read when they are asked for."""

    def __init__(self, frames: Sequence[Frame], root: Root) -> None:
        self._root = root
        self._scenes: dict[str, list[Frame]] = {}
        self._place: dict[str, int] = {}
        for frame in frames:
            scene = self._scenes.setdefault(frame.scene, [])
            self._place[frame.frame_id] = len(scene)
            scene.append(frame)

    def picture(self, frame: Frame, camera: str, places: int) -> Picture | None:
        """Return the image that a camera has in the frame so many places later; None where there is none."""
        other = self._camera(frame, camera, places)
        try:
            return find_layers(straight(self._root, other)) if other else None
        except FrameError:
            return None  # `index` tells of it

    def image_path(self, frame: Frame, camera: str, places: int) -> str:
        """Return the file of that image, nothing where there is none."""
        other = self._camera(frame, camera, places)
        return other.image_path if other else ""

    def _camera(self, frame: Frame, camera: str, places: int) -> Camera | None:
        scene, place = self._scenes[frame.scene], self._place[frame.frame_id] + places
        there = scene[place].cameras if 0 <= place < len(scene) else ()
        return next((one for one in there if one.name == camera), None)

    def step_s(self, frame: Frame) -> float:
        """Return how far its scene's frames are apart, in seconds; 0 where they have no times."""
        times_us = [one.timestamp_us for one in self._scenes[frame.scene]]
        return max(float(np.median(np.diff(times_us))) / 1e6, 0.0) if len(times_us) > 1 else 0.0


@dataclass(frozen=True, eq=False)
class Shift:
    """Images so many `places` later fit better than a camera's own: `other` and `own` by the same frames, of which
    `example` is one.
    """

    camera: str
    places: int
    other: Fit
    own: Fit
    n_frames: int
    example: Frame

    @property
    def gain(self) -> float:
        """Return by how many deviations they fit better."""
        return self.other.score - self.own.score

    @property
    def sure(self) -> bool:
        """Whether that is more than chance."""
        return self.other.score >= (ALONE if self.n_frames == 1 else ALIGNED) and self.gain >= BETTER


def check_belonging(looks: Sequence[Look], around: Around) -> Iterator[Finding]:
    """Yield whose images belong to other frames, and to which."""
    alike: dict[int, list[Shift]] = {}
    for name, views in by_camera(looks).items():
        shift = best_shift(name, views, around)
        if shift is not None:
            alike.setdefault(shift.places, []).append(shift)
    for places, shifts in alike.items():
        first = shifts[0]
        n, way = abs(places), "later" if places > 0 else "earlier"
        step_s = around.step_s(first.example)
        apart = f", {n * step_s:.2g} s," if step_s else ""
        text = (
            f"{', '.join(one.camera for one in shifts)}: sweeps fit the images of the frames {n} {way}{apart} better "
        )
        text += f"than their own ({first.other.score:.1f} deviations instead of {first.own.score:.1f}): that of "
        text += f"{first.example.frame_id} fits {around.image_path(first.example, first.camera, places)}. Are images "
        text += "numbered from another start than sweeps, is one of them lost, or is a clock off?"
        yield Finding("problem", "calibration", text)


def best_shift(camera: str, views: Views, around: Around) -> Shift | None:
    """Return by how many places the images of a camera seem to be shifted; None where its own fit as well as any.

    Where its own fit, only those next to them are looked at first, and all others where these are any better.
    """
    chosen = fastest(views)
    if not chosen:
        return None
    step_s = float(np.median([around.step_s(look.frame) for look, _ in chosen]))
    near = max(1, math.ceil(LEAST_S / step_s - 1e-6)) if step_s else 1
    most = max(near, min(MOST_PLACES, int(MOST_S / step_s))) if step_s else UNTIMED_PLACES
    own = [correlate(view) for _, view in chosen]
    there = judge(own, chosen[0][1].picture.cell_px, chosen[0][1].camera.intrinsics)
    found = shifts_of(camera, chosen, own, around, (-near, near))
    if not there.aligned or any(one.gain > 0 for one in found.values()):
        others = [sign * n for n in range(1, most + 1) for sign in (-1, 1) if n != near]
        found |= shifts_of(camera, chosen, own, around, others)
    return max((one for one in found.values() if one.sure), key=lambda one: one.gain, default=None)


def fastest(views: Views) -> Views:
    """Return a few of the frames, those in which the vehicle drives fastest; none where it is known to stand."""
    speeds = [look.motion.speed_m_s if look.motion else math.inf for look, _ in views]
    order = np.argsort([-speed for speed in speeds], kind="stable")[:_LOOKS]
    return [views[place] for place in sorted(order) if speeds[place] >= _SLOW_M_S]


def shifts_of(
    camera: str, views: Views, own: Sequence[Array], around: Around, places: Sequence[int]
) -> dict[int, Shift]:
    """Return how well images fit that stand so many places later, for those of `places` at which there are any."""
    found = {}
    for n in places:
        there, moved = [], []
        for i, (look, view) in enumerate(views):
            picture = around.picture(look.frame, camera, n)
            if picture is not None:
                there.append(i)
                moved.append(correlate(replace(view, picture=picture)))
        if there:
            cell_px, matrix = views[there[0]][1].picture.cell_px, views[there[0]][1].camera.intrinsics
            other, plain = (judge(maps, cell_px, matrix) for maps in (moved, [own[i] for i in there]))
            found[n] = Shift(camera, n, other, plain, len(there), views[there[0]][0].frame)
    return found
