"""What lies between key frames: the city writes it as nuScenes has it, and it is read as frames without labels."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.city.config import CityConfig
from bench.city.generate import class_map_path, write_city
from bench.city.tables import chain
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig
from manifests.tables.labels import Label
from pipeline.datasets.nuscenes import NuScenesDataset
from pipeline.frame import Frame, FrameError
from pipeline.stages import label as stage
from pipeline.stages.base import FrameInput

SMALL = CityConfig(train_scenes=1, val_scenes=0, keyframes=2, image_width_px=64, image_height_px=36, azimuths=64)
FAST = replace(SMALL, sweeps_between=3)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fast")
    write_city(root, FAST)
    return root


def frames_of(root: Path, sweeps: Any = "keyframes") -> list[Frame]:
    return list(NuScenesDataset(DataConfig(root=str(root), version=FAST.version, sweeps=sweeps)).frames())


def rows_of(root: Path, name: str) -> list[dict[str, Any]]:
    return list(json.loads((root / FAST.version / f"{name}.json").read_text()))


def test_key_frames_are_those_of_a_city_that_has_nothing_between(city: Path, tmp_path: Path) -> None:
    write_city(tmp_path, SMALL)
    fast, slow = frames_of(city), frames_of(tmp_path)
    assert [frame.frame_id for frame in fast] == [frame.frame_id for frame in slow] and len(slow) == 2
    for one, other in zip(fast, slow, strict=True):
        names: list[Any] = [one.lidar_path, str(one.label_path), *(camera.image_path for camera in one.cameras)]
        names += [class_map_path(FAST, camera.token) for camera in one.cameras]
        assert one.lidar_path == other.lidar_path
        assert [(city / name).read_bytes() for name in names] == [(tmp_path / name).read_bytes() for name in names]
    assert not (tmp_path / "sweeps").exists() and SMALL.scene_digest() != FAST.scene_digest()


def test_sweeps_between_stand_in_order_of_time_each_with_the_nearest_images(city: Path) -> None:
    key, every = frames_of(city), frames_of(city, "all")
    assert [frame.timestamp_us for frame in every] == [key[0].timestamp_us + 125_000 * step for step in range(5)]
    assert [frame.frame_id for frame in (every[0], every[-1])] == [frame.frame_id for frame in key]
    taken: dict[str, list[int]] = {}
    for row in rows_of(city, "sample_data"):
        taken.setdefault(row["filename"].split("/")[1], []).append(row["timestamp"])
    assert len(taken["CAM_FRONT"]) == 7 and len(taken["LIDAR_TOP"]) == 5
    for frame in every[1:-1]:
        assert frame.frame_id == frame.lidar_token and frame.label_path is None
        assert frame.lidar_path.startswith("sweeps/") and len(frame.cameras) == 6
        for camera in frame.cameras:
            nearest_us = min(abs(time - frame.timestamp_us) for time in taken[camera.name])
            assert abs(camera.timestamp_us - frame.timestamp_us) == nearest_us <= 41_667
            assert (city / class_map_path(FAST, camera.token)).is_file()
    # the vehicle moves on between them, at an even speed along its lane but for a slight sway
    places = np.array([frame.world_from_lidar[:3, 3] for frame in every])
    assert np.ptp(np.linalg.norm(np.diff(places, axis=0), axis=1)) < 0.02


def test_every_second_sweep_after_a_key_frame(city: Path) -> None:
    every = frames_of(city, "all")
    assert [frame.frame_id for frame in frames_of(city, 2)] == [every[number].frame_id for number in (0, 2, 4)]
    assert [frame.frame_id for frame in frames_of(city, 1)] == [frame.frame_id for frame in every]
    assert len(frames_of(city, 4)) == 2


def test_an_image_that_is_long_before_or_after_is_none_of_a_sweep(city: Path, tmp_path: Path) -> None:
    root = tmp_path / "city"
    root.symlink_to(city)
    version = tmp_path / "tables" / FAST.version
    version.mkdir(parents=True)
    for name in (city / FAST.version).iterdir():
        (version / name.name).write_bytes(name.read_bytes())
    rows = rows_of(city, "sample_data")
    kept = [row for row in rows if row["is_key_frame"] or "CAM_BACK/" not in row["filename"]]
    chain([row for row in kept if "CAM_BACK/" in row["filename"]])
    (version / "sample_data.json").write_text(json.dumps(kept))
    middle = frames_of(version.parent, "all")[2]
    assert len(middle.cameras) == 5 and "CAM_BACK" not in [camera.name for camera in middle.cameras]


def test_points_between_are_ignored_in_scores_and_a_key_frame_without_labels_is_still_bad(
    city: Path, recipe_over: Callable[..., Recipe]
) -> None:
    data = DataConfig(root=str(city), version=FAST.version, sweeps="all")
    recipe = recipe_over(city, data=data)
    read = stage.prepare(recipe)
    key, between = (replace(frame, n_points=3) for frame in frames_of(city, "all")[:2])
    row = read(FrameInput(between))
    assert isinstance(row, Label) and row.label.tolist() == row.raw.tolist() == [0, 0, 0]
    with pytest.raises(FrameError, match="names no label file"):
        read(FrameInput(replace(key, label_path=None)))
    with pytest.raises(FrameError, match="names no label file"):
        stage.prepare(recipe_over(city))(FrameInput(between))


def test_bad_choices_get_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"data.sweeps is 0; expected 1"):
        DataConfig(root="r", sweeps=0)
    with pytest.raises(ValueError, match="all of whose sweeps are frames"):
        DataConfig(root="r", dataset="folder", sweeps="all")
