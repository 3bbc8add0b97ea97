"""Logs that were once taken for something else, built from real frames by ../shared/cases/logs; others like them."""

from __future__ import annotations

import codecs
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.config import ConfigError
from manifests.recipe import load_recipe
from manifests.sections.data import DataConfig
from pipeline.datasets.nuscenes import NuScenesDataset
from pipeline.datasets.registry import open_dataset
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.frame import Camera, FrameError, read_image
from pipeline.stages.index import check_frame
from tests.pipeline.conftest import Made, Root


def causes(recipe_path: Path, *targets: str, settings: Sequence[str] = ()) -> list[str]:
    """Build tables of a recipe and return why frames failed."""
    recipe = load_recipe(recipe_path, settings)
    return [failure.cause for failure in Runner(recipe).run(targets, InlinePool(recipe))]


def test_c03_four_columns_in_nuscenes_layout_are_refused_or_declared(made: Made) -> None:
    case = made("c03_four_columns")
    found = causes(case / "r.toml", "points")
    assert len(found) == 2 and all("pcd.bin: its column `ring` is no ring index: point" in cause for cause in found)
    assert causes(case / "r.toml", "points", settings=['data.columns=["x","y","z","intensity"]']) == []


def test_c06_a_lidar_of_another_name_is_found_where_it_is_the_only_one(made: Made) -> None:
    data = load_recipe(made("c06_lidar_channel") / "r.toml").data
    dataset = open_dataset(data)
    assert [check_frame(dataset, Path(data.root), frame).n_points for frame in dataset.frames()] == [34688, 34720]
    with pytest.raises(ConfigError, match=r"sensor.json: data.lidar names LIDAR_TOP, which .* are: LIDAR_CONCAT"):
        list(NuScenesDataset(DataConfig(root=data.root, version=data.version, lidar=("LIDAR_TOP",))).frames())


def test_c07_logs_without_images_are_read_without_them(made: Made) -> None:
    case = made("c07_lidar_only")
    for name in ("r", "k"):
        assert causes(case / f"{name}.toml", "points", settings=['data.cameras=["none"]']) == []


def test_c12_of_16_bits_the_upper_8_are_taken(made: Made) -> None:
    path = next((made("c12_gray16") / "data/samples/CAM_FRONT").glob("*"))
    pixels = read_image(path.parent, Camera("c", "t", path.name, 0, np.eye(3), np.eye(4)))
    assert pixels.mean() == pytest.approx(104.5, abs=0.5)


def test_c20_values_and_names_with_brackets_are_told_as_they_are(made: Made) -> None:
    case = made("c20_markup_eats_messages")
    assert "(x, y, z, intensity = [nan, nan, nan, nan])" in causes(case / "r.toml", "index")[0]
    assert all("seq08/x [/b]/00000" in cause for cause in causes(case / "crash.toml", "index"))


def test_c22_backslashes_and_byte_order_marks_are_read(made: Made) -> None:
    case = made("c22_windows")
    for name in ("r", "bom"):
        assert causes(case / f"{name}.toml", "index") == []


def test_c26_timestamps_in_nanoseconds_are_told_by_name(made: Made, caplog: pytest.LogCaptureFixture) -> None:
    recipe = made("c26_timestamp_overflow") / "r.toml"
    with caplog.at_level(logging.WARNING):
        frames = list(open_dataset(load_recipe(recipe).data).frames())
    assert "sample_data.json go up to" in caplog.text and "taken for ns" in caplog.text
    assert [round((b.timestamp_us - a.timestamp_us) / 1e6) for a, b in itertools.pairwise(frames)] == [1, 1]
    with pytest.raises(ConfigError, match=r"sample_data.json go up to .*, which are too many us"):
        list(open_dataset(load_recipe(recipe, ["data.time_unit=us"]).data).frames())


# -- more of nuScenes layout -----------------------------------------------------------------------


def with_second_lidar(tiny: Root) -> None:
    sensors = tiny.table("sensor")
    lidar = next(row for row in sensors if row["modality"] == "lidar")
    lidar["channel"] = "LIDAR_LEFT"
    tiny.write_table("sensor", [*sensors, lidar | {"token": "right", "channel": "LIDAR_RIGHT"}])


def frames_of(tiny: Root, **data: Any) -> list[Any]:
    return list(NuScenesDataset(DataConfig(root=str(tiny.path), **data)).frames())


def test_of_several_lidars_one_has_to_be_named(tiny: Root) -> None:
    expected = [frame.lidar_path for frame in tiny.frames()]
    with_second_lidar(tiny)
    with pytest.raises(ConfigError, match=r"has 2 LiDARs and no LIDAR_TOP; .* there are LIDAR_LEFT, LIDAR_RIGHT"):
        frames_of(tiny)
    assert [frame.lidar_path for frame in frames_of(tiny, lidar=("LIDAR_LEFT",))] == expected
    dataset = NuScenesDataset(DataConfig(root=str(tiny.path), lidar=("LIDAR_RIGHT",)))
    with pytest.raises(FrameError, match=r"^sample \S+ has no LIDAR_RIGHT sweep in v1.0-trainval/sample_data.json$"):
        check_frame(dataset, tiny.path, next(dataset.frames()))
    tiny.change("sensor", lambda row: row["modality"] == "lidar", modality="radar")
    with pytest.raises(ConfigError, match="there is no LiDAR; LiDARs there are: none"):
        frames_of(tiny)


def test_tables_that_mark_no_key_frame_give_the_rows_that_are_nearest_in_time(
    tiny: Root, caplog: pytest.LogCaptureFixture
) -> None:
    expected = [(frame.lidar_path, [one.image_path for one in frame.cameras]) for frame in tiny.frames()]
    rows = tiny.table("sample_data")
    later = [row | {"token": f"later {row['token']}", "timestamp": row["timestamp"] + 90_000} for row in rows]
    tiny.write_table("sample_data", [one | {"is_key_frame": False} for one in (*later, *rows)])
    with caplog.at_level(logging.WARNING):
        assert [(frame.lidar_path, [one.image_path for one in frame.cameras]) for frame in tiny.frames()] == expected
    assert "marks no row as key frame" in caplog.text


def test_tables_with_byte_order_marks_and_lines_of_windows_are_read(tiny: Root) -> None:
    expected = [frame.lidar_path for frame in tiny.frames()]
    for path in (tiny.path / tiny.version).glob("*.json"):
        text = path.read_text().replace("}, ", "},\r\n")
        path.unlink()
        path.write_bytes(codecs.BOM_UTF8 + text.encode())
    assert [frame.lidar_path for frame in tiny.frames()] == expected


@pytest.mark.parametrize("ending", [".npy", ".pcd"])
def test_any_kind_of_file_may_stand_behind_a_table(tiny: Root, ending: str) -> None:
    frame = tiny.frames()[0]
    dataset = NuScenesDataset(DataConfig(root=str(tiny.path)))
    xyz_m, intensity = dataset.read_points(frame)
    name = frame.lidar_path.removesuffix(".pcd.bin") + ending
    tiny.change("sample_data", lambda row: row["filename"] == frame.lidar_path, filename=name)
    table = np.column_stack([xyz_m, intensity])
    if ending == ".npy":
        np.save(tiny.path / name, table)
    else:
        header = f"FIELDS x y z i\nSIZE 4 4 4 4\nTYPE F F F F\nPOINTS {len(table)}\nDATA binary\n"
        (tiny.path / name).write_bytes(header.encode() + table.astype("<f4").tobytes())
    other = dataset.read_points(tiny.frames()[0])
    np.testing.assert_array_equal(other[0], xyz_m)
    np.testing.assert_array_equal(other[1], intensity)
    assert dataset.notes(tiny.frames()[0]) == (() if ending == ".npy" else ("intensity is its column `i`",))
