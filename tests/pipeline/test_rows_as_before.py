"""Real frames of three cars give the points, pairs and labels of commit 9af4202, byte for byte.

Lenses, shutters, columns, ranges and units came later: none of them may change what needs none of them. Digests were
taken of the tables that this commit wrote (`tests/golden/rows_9af4202.json`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig
from manifests.tables.base import FrameRecord
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame
from pipeline.stages.registry import STAGES

EXPECTED = json.loads((Path(__file__).parent.parent / "golden" / "rows_9af4202.json").read_text(encoding="utf-8"))
COLUMNS = {
    "points": ("xyz_m", "intensity"),
    "project": ("point", "view", "u_px", "v_px", "row_px", "col_px", "depth_m", "occluded"),
    "label": ("label",),
}


def digest(row: FrameRecord, stage: str) -> str:
    return hashlib.sha256(b"".join(getattr(row, column).tobytes() for column in COLUMNS[stage])).hexdigest()


def digests(recipe: Recipe, run_stage: Any, stages: set[str]) -> Iterator[tuple[str, dict[str, str]]]:
    for listed in open_dataset(recipe.data).frames():
        index = run_stage(STAGES["index"], recipe, listed)
        frame = Frame.of(index)
        rows = {"points": run_stage(STAGES["points"], recipe, frame, index)}
        rows["project"] = run_stage(STAGES["project"], recipe, frame, index, rows["points"])
        if "label" in stages:
            rows["label"] = run_stage(STAGES["label"], recipe, frame, index, rows["points"])
        yield listed.frame_id, {stage: digest(row, stage) for stage, row in rows.items()}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_rows_are_those_of_9af4202(name: str, shared: Path, recipe_over: Any, run_stage: Any) -> None:
    folder, _, version = name.partition(" ")
    words = "nuscenes" if version else "semantic_kitti"
    data = DataConfig(dataset=words, root=str(shared / "data" / folder), version=version or "-", ontology=words)
    recipe = recipe_over(shared, data=data, ontology=load_ontology(words))
    expected = EXPECTED[name]
    stages = set(next(iter(expected.values())))
    assert dict(digests(recipe, run_stage, stages)) == expected
