"""Digests of rows, for the keys of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

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
        for name in (*Index.schema.names, "problems"):
            value = said[name]
            if isinstance(value, np.ndarray):
                total.update(f"{name}:{value.dtype.str}{value.shape}".encode())
                total.update(np.ascontiguousarray(value).tobytes())
            else:
                total.update(f"{name}:{canonical(value)}".encode())
    return total.hexdigest()[:DIGITS]
