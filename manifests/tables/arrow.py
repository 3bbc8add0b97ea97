"""Records to Arrow and back; names, types and shapes are checked both ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from manifests.tables.base import Failed, FrameRecord, R, Record

OK, FAILED = "ok", "failed"


def to_arrow(rows: Sequence[Record | Failed], kind: type[Record]) -> pa.Table:
    """Return rows of a table as Arrow has them.

    Raises ValueError for a row of another table, and where an array's element type or shape is not what the table says.
    NaN is left to the stages: whether it is allowed depends on the column.
    """
    values: dict[str, list[Any]] = {column.name: [] for column in kind.columns}
    for row in rows:
        if isinstance(row, Failed):
            said: Mapping[str, Any] = {"frame_id": row.frame_id, "status": FAILED, "reason": row.reason}
            for name, column in values.items():
                column.append(said.get(name))
            continue
        if type(row) is not kind:
            raise ValueError(f"a row of {type(row).__name__}, expected {kind.__name__}")
        lengths: dict[str, int] = {}
        said = {"status": OK, "reason": None, **vars(row)}
        try:
            for one in kind.columns:
                values[one.name].append(one.to_arrow(said[one.name], lengths))
        except ValueError as error:
            raise ValueError(f"table `{kind.table}`, {error}") from None
    arrays = [pa.array(values[column.name], type=column.type) for column in kind.columns]
    return pa.Table.from_arrays(arrays, schema=kind.schema)


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
    return [column.name for column in kind.columns if column.signature != stored_signature(schema, column.name)]


def stored_signature(schema: pa.Schema, name: str) -> list[str] | None:
    """Return what enters identities of a stored column; None where there is none of that name."""
    position = schema.get_field_index(name)
    if position < 0:
        return None
    field = schema.field(position)
    said = metadata(field)
    return [name, str(field.type), said.get("dtype", ""), said.get("shape", "")]


def signature(schema: pa.Schema) -> list[list[str]]:
    """Return name, type, element type and shape of every column: the part of a schema that enters an identity.

    Units and descriptions do not, so rewording one rebuilds nothing.
    """
    return [found for name in schema.names if (found := stored_signature(schema, name))]


def metadata(column: pa.Field) -> dict[str, str]:
    """Return the metadata of a column as text."""
    return {key.decode(): text.decode() for key, text in (column.metadata or {}).items()}
