"""Digests of rows, for the keys of shards."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from manifests.fingerprint import DIGITS, canonical, digest
from manifests.rows import Row, column_digests


def digest_table(table: pa.Table) -> str:
    """Return a digest of a table's values; how Arrow lays them out does not matter."""
    return digest(column_digests(table))


def digest_rows(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return a digest of some columns of some rows; arrays count by type, shape and bytes."""
    total = hashlib.sha256()
    for row in rows:
        for name in columns:
            value = row.get(name)
            if isinstance(value, np.ndarray):
                total.update(f"{name}:{value.dtype.str}{value.shape}".encode())
                total.update(np.ascontiguousarray(value).tobytes())
            else:
                total.update(f"{name}:{canonical(value)}".encode())
    return total.hexdigest()[:DIGITS]
