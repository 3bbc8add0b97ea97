"""Files of a data set behind a network, kept on this machine by the digest of what is in them.

    <folder>/<first two digits>/<hex sha256>

A name says what a file holds, so one that was damaged is found out when it is read, and processes that share a folder
cannot disagree. What was not asked for longest goes first. Where the folder cannot be written there is no cache, and
all is fetched anew: it is said once, and slower, but no less right.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from manifests.storage.names import HEX, TEMPORARY

_log = logging.getLogger(__name__)
SPARE = 0.1  # of the room, that is made at once: looking through the folder for every file would take longer than it


@dataclass(frozen=True)
class KeptFiles:
    """A folder that keeps at most so many bytes of files, but for what processes write between two looks at it."""

    folder: Path
    most_bytes: int

    def read(self, sha256: str) -> bytes | None:
        """Return the content of that digest, whole; None where it is not kept."""
        path = self._path(sha256)
        if path is None:
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(content).hexdigest() != sha256:
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)  # it was asked for now
        return content

    def size(self, sha256: str) -> int | None:
        """Return how many bytes the file of that digest has; None where it is not kept."""
        path = self._path(sha256)
        try:
            return None if path is None else path.stat().st_size
        except OSError:
            return None

    def keep(self, sha256: str, content: bytes) -> None:
        """Keep a content of that digest, if there is room for it."""
        path = self._path(sha256)
        if path is None or len(content) > self.most_bytes or path.exists():
            return
        scratch = path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                scratch.write_bytes(content)
                os.replace(scratch, path)
            finally:
                scratch.unlink(missing_ok=True)
            _written(self).add(len(content))
        except OSError as error:
            _say_once(str(self.folder), str(error.strerror or error))

    def _path(self, sha256: str) -> Path | None:
        return self.folder / sha256[:2] / sha256 if len(sha256) == 64 and HEX.fullmatch(sha256) else None


class _Written:
    """How much there is in a folder, as far as this process knows; it looks again after writing a tenth of its room."""

    def __init__(self, kept: KeptFiles) -> None:
        self._kept = kept
        self._since_look: int | None = None

    def add(self, n_bytes: int) -> None:
        """Count a file that was written, and make room where there is too much."""
        self._since_look = None if self._since_look is None else self._since_look + n_bytes
        if self._since_look is not None and self._since_look <= SPARE * self._kept.most_bytes:
            return
        self._since_look = 0
        files = []
        for path in self._kept.folder.glob("*/*"):
            with suppress(OSError):  # another process may have made room meanwhile
                status = path.stat()
                files.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in files)
        if total <= (1 - SPARE) * self._kept.most_bytes:
            return
        for _, size, path in sorted(files):
            with suppress(OSError):
                path.unlink()
            total -= size
            if total <= (1 - 2 * SPARE) * self._kept.most_bytes:
                break


@lru_cache(maxsize=64)
def _written(kept: KeptFiles) -> _Written:
    return _Written(kept)


@lru_cache(maxsize=64)
def _say_once(folder: str, why: str) -> None:
    _log.warning("data.cache: %s cannot be written (%s): files are fetched anew whenever they are read", folder, why)
