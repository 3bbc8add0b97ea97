"""What is not there: files after a partial download, and sweeps of frames that have images alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from manifests.sources import LOOKS_AT_ONCE
from manifests.storage.places import Root, root_of
from pipeline.frame import Frame, FrameError, inside

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Absent:
    """How many sweeps and images of a scene there should be, how many are not on disk, and the first of those."""

    n_files: int
    n_absent: int
    first: str

    def sentence(self, scene: str) -> str:
        """Return what is to be said of the scene."""
        if self.n_absent == self.n_files:
            return f"none of the {self.n_files} sweeps and images of {scene} is on disk (the first is {self.first})"
        text = f"{self.n_absent} of the {self.n_files} sweeps and images of {scene} are not on disk"
        return f"{text} (the first is {self.first})"


def absent_files(frames: Iterable[Frame], data: DataConfig, each: Callable[..., Iterable[bool]] = map) -> Absent:
    """Return what is not on disk of the frames of a scene, those that are excluded aside; labels need not be there.

    `each` is `map`, or that of some threads.
    """
    root, excluded = root_of(data), set(data.exclude)
    names = [
        name
        for frame in frames
        if frame.frame_id not in excluded
        for name in (frame.lidar_path, *(camera.image_path for camera in frame.cameras))
        if name
    ]
    missing = [name for name, there in zip(names, each(partial(is_there, root), names), strict=True) if not there]
    return Absent(len(names), len(missing), missing[0] if missing else "")


def is_there(root: Root, name: str) -> bool:
    """Return whether a file is on disk; what is wrong with a name that leaves the root, `index` says."""
    try:
        return inside(root, name).is_file()
    except (FrameError, OSError, ValueError):
        return True


def whole_scenes(scenes: Mapping[str, Sequence[Sequence[Frame]]], data: DataConfig) -> tuple[str, ...]:
    """Return the scenes of which all sweeps and images are on disk, and say in one sentence which are left out.

    Raises ConfigError where none is whole.
    """
    with ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="look") as threads:
        found = {
            scene: absent_files((frame for part in parts for frame in part), data, threads.map)
            for scene, parts in scenes.items()
        }
    broken = {scene: one for scene, one in found.items() if one.n_absent}
    if broken:
        scene, one = next(iter(broken.items()))
        text = f"{len(broken)} of {len(scenes)} scenes are left out, since files of them are not on disk: "
        text += f"{one.sentence(scene)}" + (f", and {len(broken) - 1} more" if len(broken) > 1 else "")
        if len(broken) == len(scenes):
            raise ConfigError(f"data.root {data.root}: {text}; there is no other")
        _log.warning("%s", text)
    return tuple(scene for scene in scenes if scene not in broken)


class Unswept:
    """Frames that have images and no sweep: nothing in them can be labelled, so they are left out, and that is said."""

    def __init__(self, excluded: Iterable[str]) -> None:
        """Frames that are `excluded` keep their rows, as all of these do."""
        self._excluded, self._n, self._n_listed, self._first = set(excluded), 0, 0, ""

    def left(self, frames: Iterable[Frame]) -> list[Frame]:
        """Return the frames that have a sweep, and count the others."""
        kept = []
        for frame in frames:
            self._n_listed += 1
            if frame.lidar_path or frame.frame_id in self._excluded:
                kept.append(frame)
            else:
                self._n += 1
                self._first = self._first or (frame.problems[0] if frame.problems else f"frame {frame.frame_id}")
        return kept

    def tell(self) -> None:
        """Say how many frames are left out, and which is the first; raises ConfigError where there is no other."""
        text = f"{self._n} of {self._n_listed} frames have no sweep and are left out: {self._first}"
        if self._n and self._n == self._n_listed:
            raise ConfigError(f"{text}; there is no other")
        if self._n:
            _log.warning("%s%s", text, f", and {self._n - 1} more" if self._n > 1 else "")


def only_absent(cause: str) -> bool:
    """Return whether all that is said of a frame is that files of it are not there."""
    return all(part.endswith("No such file or directory") for part in cause.split("; "))
