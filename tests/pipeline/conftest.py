"""What the pipeline's tests share: roots in nuScenes layout to damage, recipes over them, a way to run one stage."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from manifests.ontology import load_ontology
from manifests.recipe import Recipe, load_recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.tables.arrow import from_arrow, to_arrow
from manifests.tables.base import FrameRecord, Rows
from pipeline.datasets.nuscenes import CAMERAS
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame
from pipeline.stages.base import FrameInput, Stage
from tests.pipeline.building import build, stages, write_recipe

Made = Callable[[str], Path]
"""Builds a case of ../shared/cases/logs and returns its folder."""


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
def folder_layout(tmp_path: Path) -> Callable[[Path, str], Path]:
    """Makes a root for data set `folder` out of one in nuScenes layout: the same files under other names, and the
    tables' calibrations and poses, number by number, as one scene.toml for each scene.
    """

    def pose(row: Mapping[str, Any]) -> str:
        return f"{{ rotation = {row['rotation']}, translation = {row['translation']} }}"

    def make(source: Path, version: str) -> Path:
        root = tmp_path / "folder"
        rows = {path.stem: json.loads(path.read_text()) for path in (source / version).glob("*.json")}
        by_token = {name: {row["token"]: row for row in table} for name, table in rows.items()}
        channel = {row["token"]: by_token["sensor"][row["sensor_token"]] for row in rows["calibrated_sensor"]}
        labels = {row["sample_data_token"]: row["filename"] for row in rows.get("lidarseg", [])}
        for scene in rows["scene"]:
            lines = ['points = "points/{frame}.pcd.bin"', *(['labels = "labels/{frame}.bin"'] if labels else [])]
            frames: list[str] = []
            cameras: dict[str, str] = {}
            folder = root / scene["name"]
            for kind in ("points", "images", "labels"):
                (folder / kind).mkdir(parents=True)
            for sample in (row for row in rows["sample"] if row["scene_token"] == scene["token"]):
                taken = [r for r in rows["sample_data"] if r["sample_token"] == sample["token"] and r["is_key_frame"]]
                images: list[str] = []
                for row in sorted(taken, key=lambda row: str(row["filename"])):
                    sensor = channel[row["calibrated_sensor_token"]]
                    calibration = by_token["calibrated_sensor"][row["calibrated_sensor_token"]]
                    at = f"world_from_ego = {pose(by_token['ego_pose'][row['ego_pose_token']])}"
                    if sensor["modality"] == "camera":
                        (folder / "images" / f"{row['token']}.jpg").symlink_to(source / row["filename"])
                        images += [f"[frame.image.{sensor['channel']}]", f'file = "images/{row["token"]}.jpg"']
                        images += [f"timestamp_us = {row['timestamp']}", at]
                        cameras[sensor["channel"]] = "\n".join(
                            [
                                "[[camera]]",
                                f'name = "{sensor["channel"]}"',
                                'images = "images/{frame}.jpg"',
                                f"intrinsics = {calibration['camera_intrinsic']}",
                                f"ego_from_cam = {pose(calibration)}",
                            ]
                        )
                    elif sensor["channel"] == "LIDAR_TOP":
                        (folder / "points" / f"{sample['token']}.pcd.bin").symlink_to(source / row["filename"])
                        if labels:
                            link = folder / "labels" / f"{sample['token']}.bin"
                            link.symlink_to(source / labels[row["token"]])
                        mounted = f"ego_from_lidar = {pose(calibration)}"
                        frames += ["[[frame]]", f'name = "{sample["token"]}"', f"timestamp_us = {row['timestamp']}", at]
                frames += images
            ordered = [cameras[name] for name in CAMERAS if name in cameras]
            (folder / "scene.toml").write_text("\n".join([*lines, mounted, *ordered, *frames]))
        return root

    return make


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
def run_stage() -> Callable[..., Any]:
    """Runs one stage on one frame; the row has been through Arrow, so names, types and shapes were checked."""

    def run(stage: Stage[Any], recipe: Recipe, frame: Frame, *rows: FrameRecord) -> FrameRecord:
        assert stage.prepare is not None
        made = stage.prepare(recipe)(FrameInput(frame, Rows(*rows)))
        assert made.frame_id == frame.frame_id
        [row] = from_arrow(to_arrow([made], stage.table.kind), stage.table.kind)
        assert isinstance(row, FrameRecord) and stage.count(row) is not None
        return row

    return run


@pytest.fixture
def made(shared: Path, tmp_path: Path) -> Made:
    """Builds a case and returns the folder of its recipes."""

    def make(case: str) -> Path:
        script = shared / "cases" / "logs" / case / "make.py"
        if not script.is_file():
            pytest.skip(f"{script} is absent")
        subprocess.run([sys.executable, str(script), str(shared), str(tmp_path / "case")], check=True)
        return tmp_path / "case"

    return make


@pytest.fixture
def root(shared: Path, tmp_path: Path) -> Path:
    """A copy of the simulated nuScenes root (two scenes, three key frames) whose files may be replaced."""
    copy = tmp_path / "nuscenes"
    shutil.copytree(shared / "golden" / "nuscenes_tiny", copy, copy_function=os.symlink)
    return copy


@pytest.fixture
def recipe_of(shared: Path, root: Path, tmp_path: Path) -> Callable[..., Recipe]:
    """Return a function that loads the test's recipe with overrides."""
    path = write_recipe(tmp_path / "tiny.toml", root, shared / "golden" / "superpixels_tiny", tmp_path / "store")
    return lambda *overrides: load_recipe(path, overrides)


@pytest.fixture(scope="session")
def built_store(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything that the trainer reads, built once; tests work on copies."""
    folder = tmp_path_factory.mktemp("built")
    golden = shared / "golden"
    path = write_recipe(folder / "tiny.toml", golden / "nuscenes_tiny", golden / "superpixels_tiny", folder / "store")
    built = build(load_recipe(path))
    assert stages(built) == ["index", "points", "project", "text", "segment", "group", "pairs", "target"]
    return folder / "store"


@pytest.fixture
def packed(recipe_of: Callable[..., Recipe], built_store: Path, tmp_path: Path) -> Recipe:
    """The test's recipe, everything the trainer reads built (from the same files under another root)."""
    shutil.copytree(built_store, tmp_path / "store")
    return recipe_of()
