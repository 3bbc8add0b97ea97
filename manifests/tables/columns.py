"""The kinds of column that a table has: how each lies in Arrow, and how values are checked on the way there and back.

Numeric arrays travel as raw little-endian bytes in `large_binary` columns. The element type and the shape stand in the
metadata of the field. A name in a shape (`n_points`) is a length that all columns of a row agree on; `lengths` collects
these while the columns of one row are gone through in order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

TENSORS = pa.list_(
    pa.struct(
        [
            pa.field("name", pa.string()),
            pa.field("dtype", pa.string()),
            pa.field("shape", pa.list_(pa.int64())),
            pa.field("data", pa.large_binary()),
        ]
    )
)


@dataclass(frozen=True)
class Column(ABC):
    """A column of a table: its name, what it means, and whether a frame that did not fail may lack a value."""

    name: str
    doc: str
    unit: str
    nullable: bool

    @property
    @abstractmethod
    def type(self) -> pa.DataType:
        """How the values lie in Arrow."""

    @abstractmethod
    def encode(self, value: Any, lengths: dict[str, int]) -> Any:
        """Return a value as Arrow takes it; raises ValueError where it is of another kind than the column's."""

    @abstractmethod
    def decode(self, value: pa.Scalar, lengths: dict[str, int]) -> Any:
        """Return a stored value, arrays as read-only views of Arrow's memory; raises ValueError where it is damaged."""

    @property
    def meaning(self) -> dict[str, str]:
        """What the field's metadata say of its values beside words: element type and shape, as far as it has them."""
        return {}

    @cached_property
    def field(self) -> pa.Field:
        """The column in an Arrow schema; null is what a frame that failed has."""
        said = {"doc": self.doc, "unit": self.unit, **self.meaning}
        return pa.field(self.name, self.type, metadata={key: text for key, text in said.items() if text})

    @cached_property
    def signature(self) -> tuple[str, str, str, str]:
        """Name, type, element type and shape, which enter an identity; rewording a unit rebuilds nothing."""
        return self.name, str(self.type), self.meaning.get("dtype", ""), self.meaning.get("shape", "")

    def to_arrow(self, value: Any, lengths: dict[str, int]) -> Any:
        """Return a value of a row as Arrow takes it; raises ValueError for one that is missing or does not fit."""
        if value is None and not self.nullable:
            raise ValueError(f"column {self.name}: no value")
        return None if value is None else self.encode(value, lengths)

    def from_arrow(self, value: pa.Scalar, lengths: dict[str, int]) -> Any:
        """Return a stored value of a row; raises ValueError for one that is missing or does not fit."""
        if value.is_valid:
            return self.decode(value, lengths)
        if not self.nullable:
            raise ValueError(f"column {self.name}: no value")
        return None


@dataclass(frozen=True)
class Scalar(Column):
    """One number or one string a row. A whole number `n_...` is the length of that name."""

    kind: pa.DataType

    @property
    def type(self) -> pa.DataType:
        """How the values lie in Arrow."""
        return self.kind

    def encode(self, value: Any, lengths: dict[str, int]) -> Any:
        """Return the value as it is."""
        return self._checked(value, lengths)

    def decode(self, value: pa.Scalar, lengths: dict[str, int]) -> Any:
        """Return the value as a number or string of Python's own."""
        return self._checked(value.as_py(), lengths)

    def _checked(self, value: Any, lengths: dict[str, int]) -> Any:
        if self.name.startswith("n_"):
            check_shape(self.name, (int(value),), (self.name,), lengths)
        return value


@dataclass(frozen=True)
class Array(Column):
    """One array a row: `dtype` as NumPy spells it (`<f4`), `shape` of numbers and names of lengths."""

    dtype: str
    shape: tuple[str | int, ...]

    @property
    def type(self) -> pa.DataType:
        """How the values lie in Arrow."""
        return pa.large_binary()

    @property
    def meaning(self) -> dict[str, str]:
        """Element type and shape."""
        return {"dtype": self.dtype, "shape": ",".join(map(str, self.shape))}

    def encode(self, value: Any, lengths: dict[str, int]) -> bytes:
        """Return the elements as bytes."""
        item = np.asarray(value)
        if item.dtype != np.dtype(self.dtype):
            raise ValueError(f"column {self.name}: element type {item.dtype.str}, expected {self.dtype}")
        check_shape(self.name, item.shape, self.shape, lengths)
        return contiguous_bytes(item)

    def decode(self, value: pa.Scalar, lengths: dict[str, int]) -> NDArray[Any]:
        """Return the stored bytes as an array."""
        flat: NDArray[Any] = np.frombuffer(value.as_buffer(), dtype=self.dtype)
        return flat.reshape(solve_shape(self.name, flat.size, self.shape, lengths))


@dataclass(frozen=True)
class Strings(Column):
    """One list of strings a row, as long as its one length says."""

    length: str

    @property
    def type(self) -> pa.DataType:
        """How the values lie in Arrow."""
        return pa.list_(pa.string())

    @property
    def meaning(self) -> dict[str, str]:
        """The shape."""
        return {"shape": self.length}

    def encode(self, value: Any, lengths: dict[str, int]) -> list[str]:
        """Return the strings as a list."""
        check_shape(self.name, (len(value),), (self.length,), lengths)
        return list(value)

    def decode(self, value: pa.Scalar, lengths: dict[str, int]) -> tuple[str, ...]:
        """Return the strings."""
        found = tuple(value.as_py())
        check_shape(self.name, (len(found),), (self.length,), lengths)
        return found


@dataclass(frozen=True)
class Tensors(Column):
    """Named arrays of free type and shape a row: what a teacher chooses to cache."""

    @property
    def type(self) -> pa.DataType:
        """How the values lie in Arrow."""
        return TENSORS

    def encode(self, value: Any, lengths: dict[str, int]) -> list[dict[str, Any]]:
        """Return every array with its name, type and shape."""
        return [
            {"name": name, "dtype": item.dtype.str, "shape": list(item.shape), "data": contiguous_bytes(item)}
            for name, item in value.items()
        ]

    def decode(self, value: pa.Scalar, lengths: dict[str, int]) -> dict[str, NDArray[Any]]:
        """Return the arrays by name."""
        return {
            item["name"].as_py(): np.frombuffer(item["data"].as_buffer(), dtype=item["dtype"].as_py()).reshape(
                item["shape"].as_py()
            )
            for item in value
        }


def contiguous_bytes(item: NDArray[Any]) -> bytes:
    """Return the elements of an array in C order, little endian."""
    return np.ascontiguousarray(item, dtype=item.dtype.newbyteorder("<")).tobytes()


def check_shape(name: str, shape: tuple[int, ...], expected: tuple[str | int, ...], lengths: dict[str, int]) -> None:
    """Raise ValueError unless `shape` fits `expected`, whose named lengths must agree within the row."""
    fits = len(shape) == len(expected)
    for length, word in zip(shape, expected, strict=False):
        fits &= length == (word if isinstance(word, int) else lengths.setdefault(word, length))
        if not fits:
            break
    if not fits:
        known = {word: lengths[word] for word in expected if isinstance(word, str) and word in lengths}
        raise ValueError(f"column {name}: shape {shape}, expected ({written(expected)}) with {known}")


def solve_shape(name: str, size: int, expected: tuple[str | int, ...], lengths: dict[str, int]) -> tuple[int, ...]:
    """Return the shape of `size` stored elements; at most one of its lengths may still be unknown.

    A table with no rows of an array cannot tell its inner length (0 segments of d values); it is taken as 0.
    """
    known = [word if isinstance(word, int) else lengths.get(word) for word in expected]
    unknown = [word for word, length in zip(expected, known, strict=True) if length is None]
    if len(unknown) > 1:
        raise ValueError(f"column {name}: lengths {unknown} cannot both be found from {size} elements")
    volume = 1
    for length in known:
        volume *= 1 if length is None else length
    if unknown:
        if volume and size % volume:
            raise ValueError(
                f"column {name}: {size} stored elements do not fit shape ({written(expected)}) with {lengths}"
            )
        lengths[str(unknown[0])] = size // volume if volume else 0
    elif volume != size:
        raise ValueError(f"column {name}: {size} stored elements, expected shape ({written(expected)}) with {lengths}")
    return tuple(word if isinstance(word, int) else lengths[word] for word in expected)


def written(shape: tuple[str | int, ...]) -> str:
    """Return a shape as metadata have it."""
    return ",".join(map(str, shape))
