"""Rows as dictionaries of NumPy arrays, strings and numbers, to and from Arrow; names, types and shapes are checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.fingerprint import DIGITS, canonical
from manifests.tables.arrow import metadata
from manifests.tables.columns import TENSORS

Row = Mapping[str, Any]


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


def failed_row(frame_id: str, reason: str) -> dict[str, Any]:
    """Return the row of a frame that a stage could not handle; every column of the stage is null."""
    return {"frame_id": frame_id, "status": "failed", "reason": reason}


def to_table(rows: Sequence[Row], schema: pa.Schema) -> pa.Table:
    """Return rows as an Arrow table.

    Raises ValueError where a row of status "ok" lacks a column, has one too many, or where an array's element type or
    shape is not what the schema says. NaN is left to the stages: whether it is allowed depends on the column.
    """
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for row in rows:
        check_names(row, schema)
        lengths: dict[str, int] = {}
        for field in schema:
            columns[field.name].append(encode_value(row.get(field.name), field, lengths))
    arrays = [pa.array(columns[field.name], type=field.type) for field in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def from_table(table: pa.Table) -> list[dict[str, Any]]:
    """Return the rows of a table; arrays are read-only views of the table's memory.

    Raises ValueError where stored bytes do not fit the shape that the schema gives.
    """
    rows: list[dict[str, Any]] = [{} for _ in range(table.num_rows)]
    for field in table.schema:
        values = table.column(field.name)
        for row, value in zip(rows, values, strict=True):
            row[field.name] = value
    return [decode_row(row, table.schema) for row in rows]


def decode_row(row: Mapping[str, pa.Scalar], schema: pa.Schema) -> dict[str, Any]:
    """Return one row of Arrow scalars as NumPy values, its shapes checked against each other."""
    lengths: dict[str, int] = {}
    return {field.name: decode_value(row[field.name], field, lengths) for field in schema}


def check_names(row: Row, schema: pa.Schema) -> None:
    """Raise ValueError unless the row has exactly the columns of the schema (a failed row may leave its own out)."""
    unknown = sorted(row.keys() - set(schema.names))
    missing = [name for name in schema.names if name not in row]
    if row.get("status", "ok") == "failed":
        missing = []
    elif row.get("status") == "ok":
        missing = [name for name in missing if name != "reason"]
    if unknown or missing:
        raise ValueError(f"row {row.get('frame_id')}: missing columns {missing}, unknown columns {unknown}")


def encode_value(value: Any, field: pa.Field, lengths: dict[str, int]) -> Any:
    """Return a row's value as Arrow takes it; `lengths` collects the named lengths of the row."""
    if value is None:
        return None
    if field.type == TENSORS:
        return [
            {"name": name, "dtype": item.dtype.str, "shape": list(item.shape), "data": contiguous_bytes(item)}
            for name, item in value.items()
        ]
    meaning = metadata(field)
    if "dtype" in meaning:
        item = np.asarray(value)
        if item.dtype != np.dtype(meaning["dtype"]):
            raise ValueError(f"column {field.name}: element type {item.dtype.str}, expected {meaning['dtype']}")
        check_shape(field.name, item.shape, meaning["shape"], lengths)
        return contiguous_bytes(item)
    if "shape" in meaning:
        check_shape(field.name, (len(value),), meaning["shape"], lengths)
        return list(value)
    if field.name.startswith("n_"):
        check_shape(field.name, (int(value),), field.name, lengths)
    return value


def decode_value(value: pa.Scalar, field: pa.Field, lengths: dict[str, int]) -> Any:
    """Return a stored value as NumPy array, dict of arrays, list of strings, number or string; null is None."""
    if not value.is_valid:
        return None
    if field.type == TENSORS:
        return {
            item["name"].as_py(): np.frombuffer(item["data"].as_buffer(), dtype=item["dtype"].as_py()).reshape(
                item["shape"].as_py()
            )
            for item in value
        }
    meaning = metadata(field)
    if "dtype" in meaning:
        flat = np.frombuffer(value.as_buffer(), dtype=meaning["dtype"])
        return flat.reshape(solve_shape(field.name, flat.size, meaning["shape"], lengths))
    result = value.as_py()
    if "shape" in meaning:
        check_shape(field.name, (len(result),), meaning["shape"], lengths)
    elif field.name.startswith("n_"):
        check_shape(field.name, (int(result),), field.name, lengths)
    return result


def contiguous_bytes(item: NDArray[Any]) -> bytes:
    """Return the elements of an array in C order, little endian."""
    return np.ascontiguousarray(item, dtype=item.dtype.newbyteorder("<")).tobytes()


def check_shape(name: str, shape: tuple[int, ...], expected: str, lengths: dict[str, int]) -> None:
    """Raise ValueError unless `shape` fits `expected`, whose named lengths must agree within the row."""
    words = expected.split(",")
    fits = len(shape) == len(words) and all(
        length == (int(word) if word.isdigit() else lengths.setdefault(word, length))
        for length, word in zip(shape, words, strict=True)
    )
    if not fits:
        known = {word: lengths[word] for word in words if word in lengths}
        raise ValueError(f"column {name}: shape {shape}, expected ({expected}) with {known}")


def solve_shape(name: str, size: int, expected: str, lengths: dict[str, int]) -> tuple[int, ...]:
    """Return the shape of `size` stored elements; at most one of its lengths may still be unknown.

    A table with no rows of an array cannot tell its inner length (0 segments of d values); it is taken as 0.
    """
    words = expected.split(",")
    known = [int(word) if word.isdigit() else lengths.get(word) for word in words]
    unknown = [word for word, length in zip(words, known, strict=True) if length is None]
    if len(unknown) > 1:
        raise ValueError(f"column {name}: lengths {unknown} cannot both be found from {size} elements")
    volume = int(np.prod([length for length in known if length is not None], dtype=np.int64))
    if unknown:
        if volume and size % volume:
            raise ValueError(f"column {name}: {size} stored elements do not fit shape ({expected}) with {lengths}")
        lengths[unknown[0]] = size // volume if volume else 0
    elif volume != size:
        raise ValueError(f"column {name}: {size} stored elements, expected shape ({expected}) with {lengths}")
    return tuple(int(word) if word.isdigit() else lengths[word] for word in words)
