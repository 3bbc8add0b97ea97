"""Records to Arrow and back; names, types and shapes are checked both ways."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from manifests.fingerprint import DIGITS, canonical
from manifests.tables.base import Failed, FrameRecord, R, Record
from manifests.tables.columns import Column

OK, FAILED = "ok", "failed"


def to_arrow(rows: Sequence[Record | Failed], kind: type[Record]) -> pa.Table:
    """Return rows of a table as Arrow has them.

    Raises ValueError for a row of another table, and where an array's element type or shape is not what the table says.
    NaN is left to the stages: whether it is allowed depends on the column.
    """
    values: dict[str, list[Any]] = {column.name: [] for column in kind.columns}
    for row in rows:
        if isinstance(row, Failed):
            for name, value in failed_row(row, kind.schema).to_pydict().items():
                values[name] += value
            continue
        if type(row) is not kind:
            raise ValueError(f"a row of {type(row).__name__}, expected {kind.__name__}")
        lengths: dict[str, int] = {}
        said: dict[str, Any] = {"status": OK, "reason": None, **vars(row)}
        try:
            for one in kind.columns:
                values[one.name].append(one.to_arrow(said[one.name], lengths))
        except ValueError as error:
            raise ValueError(f"table `{kind.table}`, {error}") from None
    arrays = [pa.array(values[column.name], type=column.type) for column in kind.columns]
    return pa.Table.from_arrays(arrays, schema=kind.schema)


def failed_row(row: Failed, schema: pa.Schema) -> pa.Table:
    """Return the row of a frame that failed, in a table of this schema: all but its name and the reason is null."""
    said = {"frame_id": row.frame_id, "status": FAILED, "reason": row.reason}
    return pa.table([pa.array([said.get(one.name)], type=one.type) for one in schema], schema=schema)


def from_arrow(table: pa.Table, kind: type[R]) -> list[R | Failed]:
    """Return the rows of a table, or the columns of them that `kind` has; raises ValueError like `record_of`."""
    return [record_of(table, number, kind) for number in range(table.num_rows)]


def record_of(table: pa.Table, number: int, kind: type[R]) -> R | Failed:
    """Return one row of a table; arrays are read-only views of its memory.

    Raises ValueError where a value is missing, or stored bytes do not fit the shape that the table says.
    """
    of_frame = issubclass(kind, FrameRecord)
    if of_frame and (status := table.column("status")[number].as_py()) != OK:
        frame_id, reason = (table.column(name)[number].as_py() for name in ("frame_id", "reason"))
        if status != FAILED or frame_id is None:
            raise ValueError(f"column status: {status!r}, expected {OK!r} or {FAILED!r}")
        return Failed(frame_id, str(reason))
    lengths: dict[str, int] = {}
    return kind(
        **{
            column.name: column.from_arrow(table.column(column.name)[number], lengths)
            for column in kind.columns
            if not of_frame or column.name not in ("status", "reason")
        }
    )


def unlike(schema: pa.Schema, kind: type[Record]) -> list[str]:
    """Return the columns that a class reads and a stored table has not, or has of another type or shape."""
    return [column.name for column in kind.columns if not alike(schema, column)]


def alike(schema: pa.Schema, column: Column) -> bool:
    """Return whether a stored table has a column, of the same type and shape; Parquet renames the items of lists."""
    position = schema.get_field_index(column.name)
    if position < 0 or schema.field(position).type != column.type:
        return False
    said = metadata(schema.field(position))
    return all(said.get(key) == column.meaning.get(key) for key in ("dtype", "shape"))


def metadata(column: pa.Field) -> dict[str, str]:
    """Return the metadata of a column as text."""
    return {key.decode(): text.decode() for key, text in (column.metadata or {}).items()}


def digest_column(column: pa.ChunkedArray, total: hashlib._Hash) -> None:
    """Add the values of a column to a digest; how Arrow lays them out does not matter."""
    if pa.types.is_large_binary(column.type):
        for value in column:
            content = value.as_buffer() if value.is_valid else b""
            total.update(f"{len(content)}:".encode() if value.is_valid else b"-:")
            total.update(content)
    else:
        for value in column:
            total.update(f"{canonical(value.as_py())}\n".encode())


def column_digests(table: pa.Table) -> dict[str, str]:
    """Return a digest of every column's values by name."""
    found = {}
    for name in table.column_names:
        digest_column(table.column(name), total := hashlib.sha256())
        found[name] = total.hexdigest()[:DIGITS]
    return found
