"""Identities: one spelling per value, nothing hidden, differences a person can read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.fingerprint import Json, canonical, differences, digest, sha256_file

plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain_values)
def test_canonical_json_reads_back_as_the_same_value(value: Any) -> None:
    assert json.loads(canonical(value)) == value
    assert canonical(json.loads(canonical(value))) == canonical(value)


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_matter(value: dict[str, int]) -> None:
    assert digest(dict(reversed(value.items()))) == digest(value)


def test_tuples_and_lists_are_the_same_but_numbers_keep_their_type() -> None:
    assert digest({"a": (1, 2)}) == digest({"a": [1, 2]})
    assert digest(1) != digest(1.0) and digest(1) != digest("1") and digest(True) != digest(1)


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), {1: 2}, Path("x"), [1, {"a": b""}]])
def test_what_has_no_stable_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, {"a": [-math.inf]}])
def test_numbers_that_are_not_finite_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="finite"):
        canonical(value)


def test_a_difference_reads_like_a_sentence() -> None:
    old: Json = {"settings": {"policy": "confidence", "min_points": 2}, "version": 1}
    new: Json = {"settings": {"policy": "confidence", "min_points": 3, "occluded": True}, "version": 1}
    assert differences(old, new) == ["settings.min_points: 2 -> 3", "settings.occluded: (default) -> true"]
    assert differences(old, old) == []
    assert differences({"target": {}}, {"target": {"labels": "vote"}}) == ['target.labels: (default) -> "vote"']


def test_the_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea")
