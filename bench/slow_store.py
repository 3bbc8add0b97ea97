"""A store on this machine that answers as late as an object store far away would; for benchmarks and tests."""

from __future__ import annotations

import time
from typing import Any

import pyarrow.fs as pafs
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from manifests.storage.store import Store


class Late(AbstractFileSystem):  # type: ignore[misc]
    """The files of this machine for reading, every request `latency_s` late; those asked side by side wait together.

    `requests` counts them.
    """

    cachable = False

    def __init__(self, latency_s: float) -> None:
        super().__init__()
        self.latency_s, self.requests = latency_s, 0
        self._here = LocalFileSystem()

    def _wait(self) -> None:
        self.requests += 1
        time.sleep(self.latency_s)

    def info(self, path: str, **named: Any) -> Any:
        """Return what one request tells of a file."""
        self._wait()
        return self._here.info(path, **named)

    def find(self, path: str, **named: Any) -> Any:
        """Return what lies below a folder, as one request lists it."""
        self._wait()
        return self._here.find(path, **named)

    def isfile(self, path: str) -> bool:
        """Return whether there is a file; the request that opens it would tell."""
        return bool(self._here.isfile(path))

    def open(self, path: str, mode: str = "rb", **named: Any) -> Any:
        """Return a file that is open for reading."""
        self._wait()
        return self._here.open(path, mode, **named)


def far_away(path: str, latency_s: float) -> Store:
    """Return the store in a folder of this machine, as one that answers `latency_s` later; for reading."""
    return Store(path, pafs.PyFileSystem(pafs.FSSpecHandler(Late(latency_s))))
