"""Files outside the store that stages read: what they look like from outside, and digests of what is in them.

Opening every file for every plan would take hours, and trusting names would take one file for another. So a file is
known by its digest, and by how it looked (size, times) when that was taken: as long as it looks the same, a plan goes
by the digest that is known; where it looks otherwise, a worker digests it again. Whoever computes from a file digests
the very bytes it computes from, so a file that changed without looking otherwise is found out before anything is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from manifests.fingerprint import digest
from manifests.storage.places import RemotePath, Root, digest_of, each_of, looks_at, place_of_root
from manifests.storage.seen import SeenFile, SeenFiles
from pipeline.frame import Frame, FrameError, inside, stays_inside

Digests = Mapping[str, str | None]
"""Hex sha256 of files by their name below a folder; None for those that are not there."""

TRIES = 3  # at a file that is being written while it is read


@dataclass(frozen=True)
class FrameFiles:
    """The files that a stage reads of a frame beside the store: their names below a folder, in a fixed order."""

    root: Root
    names: Callable[[Frame], tuple[str, ...]]

    @property
    def place(self) -> str:
        """The folder by its full name, by which what was seen there is remembered."""
        return place_of_root(self.root.uri if isinstance(self.root, RemotePath) else str(self.root))


@dataclass(frozen=True)
class Looked:
    """How the files of some frames look, by name and in one digest (`stats`), and their digests, frame by frame.

    The look of a file that is not there is None.
    """

    stats: str
    looks: Mapping[str, str | None]
    digests: tuple[Digests, ...]

    def by_file(self, place: str) -> SeenFiles:
        """Return looks and digests file by file."""
        digests = {name: sha256 for one in self.digests for name, sha256 in one.items()}
        return SeenFiles(place, {name: SeenFile(self.looks[name], sha256) for name, sha256 in digests.items()})

    @property
    def content(self) -> str:
        """A digest of names and contents; where the folder lies and when files were written does not matter."""
        return digest([dict(one) for one in self.digests])


def key_with(key: str, content: str) -> str:
    """Return the key of a shard that depends on the content of files beside all that `key` stands for."""
    return digest({"key": key, "files": content})


def stats_of(root: Root, names: Sequence[str]) -> str:
    """Return a digest of how files look from outside, without opening them."""
    return stats_digest((name, _looks(root, name)) for name in names)


def stats_digest(looks: Iterable[tuple[str, str | None]]) -> str:
    """Return a digest of files, by name, and of how they look."""
    total = hashlib.sha256()
    for name, look in looks:
        total.update(f"{name}:{look}\n".encode())
    return total.hexdigest()


def look(files: FrameFiles, frames: Sequence[Frame]) -> Looked:
    """Return what the files of some frames look like and hold; every file is read.

    Raises FrameError for a file that keeps changing while it is read.
    """
    names = [files.names(frame) for frame in frames]
    every = [name for some in names for name in some]
    once = list(dict.fromkeys(every))  # a file may be of many frames
    before = dict(zip(once, each_of(files.root, partial(_looks, files.root), once), strict=True))
    digests = dict(zip(once, each_of(files.root, partial(sha256_of, files.root), once), strict=True))
    found = tuple({name: digests[name] for name in some} for some in names)
    return Looked(stats_digest((name, before[name]) for name in every), before, found)


def sha256_of(root: Root, name: str) -> str | None:
    """Return the hex sha256 of a file, None if it is missing, cannot be read or lies outside of the root.

    What is wrong with such a file is said by whoever needs it. Raises FrameError if it keeps changing meanwhile.
    """
    for _ in range(TRIES):
        before = _looks(root, name)
        if before is None:
            return None
        try:
            found = digest_of(inside(root, name))
        except OSError:
            return None
        if _looks(root, name) == before:
            return found
    raise FrameError(f"{name} changes while it is read; run again when it is written to its end")


def _looks(root: Root, name: str) -> str | None:
    return looks_at(root, name) if name and stays_inside(name) else None
