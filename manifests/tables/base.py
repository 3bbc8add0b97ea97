"""What a table is: one frozen dataclass, of which each instance is a row, and every field a column.

A field's annotation says what type checkers, NumPy and Arrow have to know of it, once:

    xyz_m: Annotated[Float32, About("points in the LiDAR frame, order of the file", "m", shape=("n_points", 3))]

The Arrow schema, the part of it that enters identities, the way to Arrow and back, and docs/data.md are derived from
that. A class `of` another one reads some of its columns alone; it repeats their names and types, which are compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.tables.columns import Array, Column, Scalar, Strings, Tensors

Bool: TypeAlias = NDArray[np.bool_]
UInt8: TypeAlias = NDArray[np.uint8]
UInt16: TypeAlias = NDArray[np.uint16]
UInt32: TypeAlias = NDArray[np.uint32]
Int32: TypeAlias = NDArray[np.int32]
Int64: TypeAlias = NDArray[np.int64]
Float16: TypeAlias = NDArray[np.float16]
Float32: TypeAlias = NDArray[np.float32]
Float64: TypeAlias = NDArray[np.float64]

EVERY_ROW = ("frame_id", "status", "reason")
"""The columns of every table of frames."""

NAMED_ARRAYS = Mapping[str, NDArray[Any]]
SCALARS = {int: pa.int64(), str: pa.string()}


@dataclass(frozen=True)
class About:
    """What the annotation of a field says beside its type; `kind` only where Arrow's type is not the usual one."""

    doc: str
    unit: str = ""
    shape: tuple[str | int, ...] = ()
    kind: pa.DataType | None = None


def own_columns(cls: type[Record]) -> tuple[Column, ...]:
    """Return the columns that a class declares itself; raises TypeError for one that says nothing of itself."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(column_of(cls, name, hints[name]) for name in inspect.get_annotations(cls))


def column_of(cls: type[Record], name: str, hint: Any) -> Column:
    """Return the column that an annotated field stands for; raises TypeError for a type that no column has."""
    kind, *said = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    about = next((one for one in said if isinstance(one, About)), None)
    if about is None:
        raise TypeError(f"{cls.__name__}.{name} does not say what it means: Annotated[type, About(...)]")
    nullable = type(None) in get_args(kind)
    if nullable:
        [kind] = [one for one in get_args(kind) if one is not type(None)]
    words = name, about.doc, about.unit, nullable
    if get_origin(kind) is np.ndarray:
        [element] = get_args(get_args(kind)[1])
        return Array(*words, np.dtype(element).str, about.shape)
    if kind == tuple[str, ...] and len(about.shape) == 1:
        return Strings(*words, str(about.shape[0]))
    if kind == NAMED_ARRAYS:
        return Tensors(*words)
    if about.kind is not None or kind in SCALARS:
        return Scalar(*words, about.kind or SCALARS[kind])
    raise TypeError(f"{cls.__name__}.{name} is {kind}, which no column holds")


def part_columns(cls: type[Record], of: type[Record]) -> tuple[Column, ...]:
    """Return some columns of another table; raises TypeError unless that has them, and of the same types."""
    hints, whole = get_type_hints(cls), get_type_hints(of)
    by_name = {column.name: column for column in of.columns}
    names = tuple(inspect.get_annotations(cls))
    for name in names:
        if name not in by_name or hints[name] != whole[name]:
            raise TypeError(f"{cls.__name__}.{name} is not {of.__name__}.{name}, of which it is to be a part")
    return tuple(by_name[name] for name in names)


@dataclass(frozen=True, eq=False, kw_only=True)
class Record:
    """A row of any table.

    `table` is the table's name, `columns` those that are read and written, `whole` whether they are all it has.
    """

    table: ClassVar[str] = ""
    columns: ClassVar[tuple[Column, ...]] = ()
    whole: ClassVar[bool] = False
    schema: ClassVar[pa.Schema]

    def __init_subclass__(
        cls, *, table: str = "", of: type[Record] | None = None, also: tuple[Column, ...] = ()
    ) -> None:
        """Derive the columns of a class that is a `table`, or reads some of those `of` another one.

        `also` are columns that no field stands for. Raises TypeError where the declarations do not make sense: a field
        that says nothing of itself, or one of a part that the whole table does not have so.
        """
        super().__init_subclass__()
        cls.columns = (*cls.columns, *(own_columns(cls) if of is None else part_columns(cls, of)), *also)
        cls.table, cls.whole = (table, True) if of is None else (of.table, False)
        cls.schema = pa.schema([column.field for column in cls.columns])

    @classmethod
    def signature(cls) -> tuple[tuple[str, str, str, str], ...]:
        """Return the signatures of all columns: the part of a table that enters an identity."""
        return tuple(column.signature for column in cls.columns)


@dataclass(frozen=True, eq=False, kw_only=True)
class FrameRecord(
    Record,
    also=(
        Scalar("status", '"ok", or "failed" where the stage could not handle the frame', "", False, pa.string()),
        Scalar("reason", 'why the frame failed; null where status is "ok"', "", True, pa.string()),
    ),
):
    """What a stage made of one frame; read as it stands here, that the frame did not fail in a table."""

    frame_id: Annotated[str, About("the frame's name; nuScenes: token of the sample")]


@dataclass(frozen=True)
class Failed:
    """A frame that a stage could not handle, or an earlier one: it keeps its row, with the reason and nothing else."""

    frame_id: str
    reason: str


R = TypeVar("R", bound=Record)
F = TypeVar("F", bound=FrameRecord)


class Rows:
    """The rows that one frame has in some tables, each under its class: `rows[Points].xyz_m`.

    A row of a whole table also stands for each of the classes that read some of its columns.
    """

    def __init__(self, *rows: FrameRecord) -> None:
        self._rows = {type(row): row for row in rows}

    def __getitem__(self, kind: type[F]) -> F:
        """Return the frame's row; raises KeyError where its table was not read."""
        row = self.get(kind)
        if row is None:
            raise KeyError(f"no row of {kind.__name__}, only of {', '.join(one.__name__ for one in self._rows)}")
        return row

    def __iter__(self) -> Iterator[FrameRecord]:
        return iter(self._rows.values())

    def get(self, kind: type[F]) -> F | None:
        """Return the frame's row, or None where its table was not read."""
        row = self._rows.get(kind)
        if isinstance(row, kind):
            return row
        for other in self._rows.values():
            if other.table == kind.table and other.whole:
                return kind(**{name: getattr(other, name) for name in fields_of(kind)})
        return None

    def also(self, *rows: FrameRecord) -> Rows:
        """Return these rows and some more."""
        return Rows(*self, *rows)


def fields_of(kind: type[Record]) -> tuple[str, ...]:
    """Return the names of the columns that fields stand for: all but those that tell of failures."""
    return tuple(item.name for item in fields(kind))
