"""Tables keep the bytes that version 0.1.0 (commit 9af4202) gave them: what got faster since has changed no value.

tests/golden/tables.json holds its digests, column by column; `python -m bench.same_tables --write` made them, and also
compares networks, whose bits are those of a processor, by running both versions on one.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.same_tables import GOLDEN, MEANT, cases, columns_of, differences
from manifests.recipe import load_recipe
from pipeline.stages.registry import PACKED
from tests.pipeline.building import build


@pytest.mark.parametrize("name", ["simulated", "real"])
def test_every_column_of_the_first_version_has_its_bytes(name: str, shared: Path, tmp_path: Path) -> None:
    case = next(one for one in cases(shared / "golden") if one.name == name)
    path = tmp_path / "same.toml"
    path.write_text(case.recipe(tmp_path / "store", new=True))
    build(load_recipe(path), [*PACKED, "correct", "label"])
    then, now = json.loads(GOLDEN.read_text())[name], columns_of(tmp_path / "store")
    tables = {column.split(".")[0] for column in then}
    assert {"index", "points", "project", "segment", "group", "vote", "correct", "pairs", "target", "label"} <= tables
    assert set(differences(then, now)) == set(MEANT)


def test_a_column_that_is_gone_or_other_is_told() -> None:
    assert differences({"a.x": "1", "a.y": "2", "b.x": "3"}, {"a.x": "1", "a.y": "0", "c.x": "4"}) == ["a.y", "b.x"]
