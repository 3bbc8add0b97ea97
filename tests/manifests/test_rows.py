"""Rows and schemas: every table takes its rows and gives them back, and says what its columns mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.fingerprint import digest
from manifests.rows import from_table, to_table
from manifests.schema import ENCODE, INDEX, TABLES, TENSORS, described, metadata, scalar, signature, table


def example_row(schema: pa.Schema, lengths: dict[str, int], random: np.random.Generator) -> dict[str, Any]:
    """A row of any table, its arrays filled with noise and its named lengths as given (2 where not)."""
    row: dict[str, Any] = {}
    for column in schema:
        meaning = metadata(column)
        shape = [
            int(word) if word.isdigit() else lengths.get(word, 2)
            for word in meaning.get("shape", "").split(",")
            if word
        ]
        if "dtype" in meaning:
            row[column.name] = (random.random(shape) * 100).astype(meaning["dtype"])
        elif column.type == TENSORS:
            row[column.name] = {
                "CAM/grid": random.random((3, 4)).astype(np.float16),
                "CAM/empty": np.zeros((0, 5), np.int8),
            }
        elif "shape" in meaning:
            row[column.name] = [f"s{index}" for index in range(shape[0])]
        elif column.name == "status":
            row[column.name] = "ok"
        elif column.name.startswith("n_"):
            row[column.name] = lengths.get(column.name, 2)
        elif column.type == pa.string():
            row[column.name] = None if column.name == "reason" else "text"
        else:
            row[column.name] = 7
    return row


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("length", [0, 1, 5])
def test_every_table_gives_its_rows_back(name: str, length: int) -> None:
    schema = TABLES[name]
    words = {
        word for column in schema for word in metadata(column).get("shape", "").split(",") if word.startswith("n_")
    }
    lengths = {word: length for word in words}
    row = example_row(schema, lengths, np.random.default_rng(0))
    (back,) = from_table(to_table([row], schema))
    assert back.keys() == row.keys()
    for key, value in row.items():
        if isinstance(value, np.ndarray):
            assert back[key].dtype == value.dtype
            if value.size:
                np.testing.assert_array_equal(back[key], value)
        elif isinstance(value, dict):
            assert {name: item.shape for name, item in back[key].items()} == {"CAM/grid": (3, 4), "CAM/empty": (0, 5)}
            np.testing.assert_array_equal(back[key]["CAM/grid"], value["CAM/grid"])
        else:
            assert back[key] == value


@pytest.mark.parametrize("name", TABLES)
def test_every_column_says_what_it_means(name: str) -> None:
    for column in TABLES[name]:
        assert len(metadata(column)["doc"]) > 5, column.name


def test_stored_bytes_that_do_not_fit_their_shape_are_refused() -> None:
    schema = TABLES["points"]
    row = example_row(schema, {"n_points": 4}, np.random.default_rng(0))
    stored = to_table([row], schema)
    position = schema.get_field_index("intensity")
    broken = stored.set_column(position, schema.field("intensity"), pa.array([b"12345678"], pa.large_binary()))
    with pytest.raises(ValueError, match="column intensity"):
        from_table(broken)


def test_rewording_a_unit_does_not_change_what_a_table_is() -> None:
    old = table(scalar("n_points", pa.int64(), "points", unit="1"))
    new = table(scalar("n_points", pa.int64(), "number of points in the sweep", unit="points"))
    other = table(scalar("n_points", pa.int32(), "points", unit="1"))
    assert digest(signature(old)) == digest(signature(new)) != digest(signature(other))


def test_another_element_type_is_another_table() -> None:
    column = INDEX.field("width_px")
    changed = described("width_px", column.type, metadata(column) | {"dtype": "<i8"})
    assert signature(pa.schema([column])) != signature(pa.schema([changed]))


@given(st.lists(st.integers(0, 5), min_size=0, max_size=4))
def test_named_arrays_of_any_shape_come_back(shape: list[int]) -> None:
    item = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
    row = {"frame_id": "f", "status": "ok", "reason": None, "encoding": {"a/b": item}}
    (back,) = from_table(to_table([row], ENCODE))
    np.testing.assert_array_equal(back["encoding"]["a/b"], item)
