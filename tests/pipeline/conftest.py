"""What the pipeline's tests share: roots in nuScenes layout to damage, recipes over them, a way to run one stage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from manifests.config import DataConfig, RunConfig
from manifests.ontology import load_ontology
from manifests.rows import from_table, to_table
from pipeline.datasets import open_dataset
from pipeline.frame import Frame
from pipeline.recipe import GroupConfig, ProjectConfig, Recipe, SegmentConfig, TextConfig
from pipeline.stages.base import FrameInput, Stage
from pipeline.teachers.artifacts import ArtifactsConfig


@dataclass(frozen=True)
class Root:
    """A root that a test may damage: its tables are its own, every other file is a link to the original."""

    path: Path
    version: str

    def table(self, name: str) -> list[dict[str, Any]]:
        return list(json.loads((self.path / self.version / f"{name}.json").read_text()))

    def write_table(self, name: str, rows: Any) -> None:
        (self.path / self.version / f"{name}.json").write_text(json.dumps(rows))

    def change(self, name: str, where: Callable[[dict[str, Any]], bool], /, **values: Any) -> None:
        """Overwrite columns of the rows that `where` picks; at least one must be picked."""
        rows = self.table(name)
        picked = [row for row in rows if where(row)]
        assert picked
        for row in picked:
            row.update(values)
        self.write_table(name, rows)

    def write_file(self, relative: str, content: bytes) -> None:
        """Put a file of our own in the place of a link."""
        path = self.path / relative
        path.unlink()
        path.write_bytes(content)

    def frames(self) -> list[Frame]:
        return list(open_dataset(DataConfig(root=str(self.path), version=self.version)).frames())


@pytest.fixture
def mirror(tmp_path: Path) -> Callable[..., Root]:
    """Makes a Root from a folder in nuScenes layout."""

    def make(source: Path, version: str = "v1.0-trainval") -> Root:
        assert source.is_dir()
        target = tmp_path / "root"
        for folder, _, names in os.walk(source):
            here = target / Path(folder).relative_to(source)
            here.mkdir(parents=True)
            for name in names:
                original = Path(folder) / name
                if here.name == version and original.suffix == ".json":
                    shutil.copyfile(original, here / name)
                else:
                    (here / name).symlink_to(original)
        return Root(target, version)

    return make


@pytest.fixture
def tiny(shared: Path, mirror: Callable[..., Root]) -> Root:
    """The simulated root: scene-0001 with two key frames and scene-0008 with one, labels, 1600 x 900 images."""
    return mirror(shared / "golden" / "nuscenes_tiny")


@pytest.fixture
def recipe_over() -> Callable[..., Recipe]:
    """Makes a recipe over a root; sections may be given by name."""

    def make(root: Path, version: str = "v1.0-trainval", **sections: Any) -> Recipe:
        parts: dict[str, Any] = {
            "data": DataConfig(root=str(root), version=version),
            "run": RunConfig(),
            "teacher": ArtifactsConfig(folder="unused"),
            "project": ProjectConfig(),
            "text": TextConfig(),
            "segment": SegmentConfig(),
            "group": GroupConfig(),
            "ontology": load_ontology("nuscenes"),
        }
        return Recipe(name="test", **{**parts, **sections})

    return make


@pytest.fixture
def run_stage() -> Callable[..., dict[str, Any]]:
    """Runs one stage on one frame; the row has been through Arrow, so names, types and shapes were checked."""

    def run(stage: Stage, recipe: Recipe, frame: Frame, **rows: Mapping[str, Any]) -> dict[str, Any]:
        assert stage.prepare is not None
        made = stage.prepare(recipe)(FrameInput(frame, rows))
        table = to_table([{"frame_id": frame.frame_id, "status": "ok", "reason": None, **made}], stage.schema)
        [row] = from_table(table)
        assert stage.count(row) is not None
        return row

    return run
