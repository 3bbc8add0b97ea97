"""Digests of rows, for the keys of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.fingerprint import DIGITS, canonical, digest
from manifests.tables.arrow import column_digests
from manifests.tables.sensors import Index
from pipeline.frame import Frame


def digest_table(table: pa.Table) -> str:
    """Return a digest of a table's values; how Arrow lays them out does not matter."""
    return digest(column_digests(table))


def digest_listing(frames: Iterable[Frame]) -> str:
    """Return a digest of what a data set says of frames; arrays count by type, shape and bytes."""
    total = hashlib.sha256()
    for frame in frames:
        said = {**vars(frame.index()), "status": "ok", "reason": None, "problems": frame.problems}
        pieces: list[bytes] = []
        for name in SAID:
            value = said[name]
            if isinstance(value, np.ndarray):
                pieces += heading(name, value.dtype, value.shape), value.tobytes()
            else:
                pieces.append(spelt(name, value))
        total.update(b"".join(pieces))
    return total.hexdigest()[:DIGITS]


SAID = (*Index.schema.names, "problems")


@lru_cache(maxsize=256)
def heading(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what stands before the bytes of an array."""
    return f"{name}:{dtype.str}{shape}".encode()


@lru_cache(maxsize=64, typed=True)  # of a frame and of what it shares with the one before
def spelt(name: str, value: Any) -> bytes:
    """Return a value that is no array as bytes; many are those of the frame before."""
    return f"{name}:{canonical(value)}".encode()
