"""Tables: every one takes its rows and gives them back, and says what its columns mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.tables.arrow import from_arrow, to_arrow, unlike
from manifests.tables.base import About, Failed, Float16, Float32, FrameRecord, Record, Rows, fields_of
from manifests.tables.columns import Array, Scalar, Strings, Tensors
from manifests.tables.labels import Correct, Target
from manifests.tables.registry import TABLES
from manifests.tables.sensors import Points
from manifests.tables.teacher import Encode, Segment, Text
from tests.filled import record

FRAMES = [kind for kind in TABLES.values() if issubclass(kind, FrameRecord)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Places(FrameRecord, of=Points):
    """The sweep without its intensity."""

    xyz_m: Float32


def example(kind: type[Record], length: int) -> Record:
    """A row of any table, its arrays filled with noise and its named lengths as given."""
    random = np.random.default_rng(0)
    values: dict[str, Any] = {}
    for column in kind.columns:
        if isinstance(column, Array):
            shape = [word if isinstance(word, int) else length for word in column.shape]
            values[column.name] = (random.random(shape) * 100).astype(column.dtype)
        elif isinstance(column, Tensors):
            values[column.name] = {
                "CAM/grid": random.random((3, 4)).astype(np.float16),
                "CAM/empty": np.zeros((0, 5), np.int8),
            }
        elif isinstance(column, Strings):
            values[column.name] = tuple(f"s{index}" for index in range(length))
        elif isinstance(column, Scalar):
            whole = length if column.name.startswith("n_") else 7
            values[column.name] = "text" if column.type == pa.string() else whole
    return kind(**{name: values[name] for name in fields_of(kind)})


def points(**other: Any) -> Points:
    two = {"n_points": 2, "xyz_m": np.zeros((2, 3), np.float32), "intensity": np.ones(2, np.float32)}
    return record(Points, **(two | other))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("length", [0, 1, 5])
def test_every_table_gives_its_rows_back(name: str, length: int) -> None:
    row = example(TABLES[name], length)
    stored = to_arrow([row], TABLES[name])
    (back,) = from_arrow(stored, TABLES[name])
    assert type(back) is TABLES[name] and stored.schema.equals(TABLES[name].schema, check_metadata=True)
    for key, value in vars(row).items():
        found = getattr(back, key)
        if isinstance(value, np.ndarray):
            assert found.dtype == value.dtype
            if value.size:
                np.testing.assert_array_equal(found, value)
        elif isinstance(value, dict):
            assert {name: item.shape for name, item in found.items()} == {"CAM/grid": (3, 4), "CAM/empty": (0, 5)}
            np.testing.assert_array_equal(found["CAM/grid"], value["CAM/grid"])
        else:
            assert found == value


@pytest.mark.parametrize("kind", FRAMES)
def test_a_frame_that_failed_keeps_its_row(kind: type[FrameRecord]) -> None:
    rows: list[Record | Failed] = [example(kind, 2), Failed("bad", "no sweep"), example(kind, 3)]
    stored = to_arrow(rows, kind)
    assert from_arrow(stored, kind)[1] == Failed("bad", "no sweep")
    assert stored.column("status").to_pylist() == ["ok", "failed", "ok"]
    own = [name for name in stored.column_names if name not in ("frame_id", "status", "reason")]
    assert all(stored.column(name)[1].as_py() is None for name in own)
    states = from_arrow(stored.select(["frame_id", "status", "reason"]), FrameRecord)
    assert [type(state) for state in states] == [FrameRecord, Failed, FrameRecord]


@pytest.mark.parametrize("name", TABLES)
def test_every_column_says_what_it_means(name: str) -> None:
    assert all(len(column.doc) > 5 for column in TABLES[name].columns)


def test_what_does_not_fit_its_column_is_refused() -> None:
    for row, what in (
        (points(intensity=np.ones(3, np.float32)), r"`points`, column intensity: shape \(3,\), expected \(n_points\)"),
        (points(n_points=3), r"column xyz_m: shape \(2, 3\), expected \(n_points,3\) with {'n_points': 3}"),
        (points(intensity=np.ones(2)), "column intensity: element type <f8, expected <f4"),
        (points(xyz_m=None), "column xyz_m: no value"),
        (record(Target, label=np.zeros(2, np.uint8)), "a row of Target, expected Po"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            to_arrow([row], Points)


def test_only_columns_that_are_declared_so_may_lack_a_value() -> None:
    [back] = from_arrow(to_arrow([record(Correct, note=None)], Correct), Correct)
    assert isinstance(back, Correct) and back.note is None
    stored = to_arrow([points()], Points)
    broken = stored.set_column(3, Points.schema.field("n_points"), pa.array([None], pa.int64()))
    with pytest.raises(ValueError, match="column n_points: no value"):
        from_arrow(broken, Points)


def test_stored_bytes_that_do_not_fit_their_shape_are_refused() -> None:
    stored = to_arrow([points()], Points)
    position = Points.schema.get_field_index("intensity")
    broken = stored.set_column(position, Points.schema.field("intensity"), pa.array([b"123456"], pa.large_binary()))
    with pytest.raises(ValueError, match="multiple of element size"):
        from_arrow(broken, Points)
    broken = stored.set_column(position, Points.schema.field("intensity"), pa.array([b"1234"], pa.large_binary()))
    with pytest.raises(ValueError, match="column intensity: 1 stored"):
        from_arrow(broken, Points)


def test_another_status_than_ok_or_failed_is_damage() -> None:
    stored = to_arrow([points()], Points)
    broken = stored.set_column(1, Points.schema.field("status"), pa.array(["fine"]))
    with pytest.raises(ValueError, match="column status: 'fine'"):
        from_arrow(broken, Points)


def test_the_signature_of_a_column_is_name_type_element_type_and_shape() -> None:
    assert Points.signature()[3:5] == (("n_points", "int64", "", ""), ("xyz_m", "large_binary", "<f4", "n_points,3"))
    assert Text.signature()[1] == ("prompt", "string", "", "")


def test_rewording_a_unit_changes_no_signature_and_another_type_does() -> None:
    class Old(FrameRecord, table="old"):
        width: Annotated[Float32, About("width", "m", shape=("n",))]

    class New(FrameRecord, table="old"):
        width: Annotated[Float32, About("how wide it is", "metres", shape=("n",))]

    class Other(FrameRecord, table="old"):
        width: Annotated[Float16, About("width", "m", shape=("n",))]

    assert Old.signature() == New.signature() != Other.signature()
    assert unlike(Old.schema, New) == [] and unlike(Old.schema, Other) == ["width"]
    assert unlike(Old.schema, Points) == ["n_points", "xyz_m", "intensity"]


def test_a_part_of_a_table_is_read_alone() -> None:
    assert Places.schema.names == ["frame_id", "status", "reason", "xyz_m"] and Places.table == "points"
    stored = to_arrow([points()], Points).select(Places.schema.names)
    [back] = from_arrow(stored, Places)
    assert isinstance(back, Places) and back.xyz_m.shape == (2, 3)
    assert unlike(Points.schema, Places) == []


def test_a_part_of_a_table_has_columns_of_that_table() -> None:
    with pytest.raises(TypeError, match=r"Wrong.xyz is not Points.xyz"):

        class Wrong(FrameRecord, of=Points):
            xyz: Float32

    with pytest.raises(TypeError, match=r"Half\.xyz_m is not Points\.xyz_m"):

        class Half(FrameRecord, of=Points):
            xyz_m: Float16


def test_a_column_says_what_it_is() -> None:
    with pytest.raises(TypeError, match=r"Silent\.width does not say"):

        class Silent(FrameRecord, table="silent"):
            width: Float32

    with pytest.raises(TypeError, match=r"Odd\.width is .*complex.*, which no column holds"):

        class Odd(FrameRecord, table="odd"):
            width: Annotated[complex, About("width")]


def test_rows_of_a_frame_go_by_their_class() -> None:
    rows = Rows(points())
    assert rows[Points] is rows.get(Points) and rows.get(Segment) is None
    assert rows[Places].xyz_m is rows[Points].xyz_m and rows[Places].frame_id == "f"
    with pytest.raises(KeyError, match="no row of Segment, only of Points"):
        rows[Segment]
    part = Places(frame_id="f", xyz_m=np.zeros((2, 3), np.float32))
    assert Rows(part)[Places] is part and Rows(part).get(Points) is None
    assert [type(row) for row in rows.also(Encode(frame_id="f", encoding={}))] == [Points, Encode]


@given(st.lists(st.integers(0, 5), min_size=0, max_size=4))
def test_named_arrays_of_any_shape_come_back(shape: list[int]) -> None:
    item = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    [back] = from_arrow(to_arrow([Encode(frame_id="f", encoding={"a/b": item})], Encode), Encode)
    assert isinstance(back, Encode)
    np.testing.assert_array_equal(back.encoding["a/b"], item)
