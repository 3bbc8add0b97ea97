"""Rows of tables for tests in which only some columns matter."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from manifests.tables.base import Record, fields_of
from manifests.tables.columns import Array, Scalar, Strings

R = TypeVar("R", bound=Record)


def record(kind: type[R], **columns: Any) -> R:
    """Return a row with these columns; all others are zeros, empty or "f", as long as the given ones say."""
    lengths: dict[str, int] = {}
    for column in kind.columns:
        given = columns.get(column.name)
        if isinstance(column, Array) and given is not None:
            lengths |= {word: n for word, n in zip(column.shape, given.shape, strict=True) if isinstance(word, str)}
        elif isinstance(column, Strings) and given is not None:
            lengths[column.length] = len(given)
    for column in kind.columns:
        if column.name in columns or column.name not in fields_of(kind):
            continue
        if isinstance(column, Array):
            shape = [word if isinstance(word, int) else lengths.get(word, 0) for word in column.shape]
            columns[column.name] = np.zeros(shape, column.dtype)
        elif isinstance(column, Scalar):
            text = "f" if str(column.type) == "string" else lengths.get(column.name, 0)
            columns[column.name] = None if column.nullable else text
        else:
            columns[column.name] = ("",) * lengths.get(column.length, 0) if isinstance(column, Strings) else {}
    return kind(**columns)
