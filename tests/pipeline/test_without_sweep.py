"""Frames that have images and no sweep, whichever data set they are of: left out, counted, and nothing else stops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.tables.sensors import Points
from pipeline.datasets.folder import FolderDataset
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from tests.pipeline.conftest import Root
from tests.refs import newest


def without_sweeps(tiny: Root, tokens: set[str]) -> None:
    tiny.write_table("sample_data", [row for row in tiny.table("sample_data") if row["token"] not in tokens])


def recipe_of(recipe_over: Callable[..., Recipe], root: Path, store: Path, **data: Any) -> Recipe:
    return recipe_over(root, data=DataConfig(root=str(root), **data), run=RunConfig(store=str(store)))


def test_a_sample_without_a_sweep_is_counted_and_its_scene_goes_on(
    tiny: Root, recipe_over: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = tiny.frames()
    assert others[0].scene == first.scene
    without_sweeps(tiny, {first.lidar_token})
    runner = Runner(recipe_of(recipe_over, tiny.path, tmp_path / "store"))
    assert runner.run(["points"], InlinePool(runner.recipe)) == []
    text = f"1 of 3 frames have no sweep and are left out: sample {first.frame_id} has no LIDAR_TOP sweep in "
    assert text in caplog.text and "more" not in caplog.text
    table = newest(runner.store, runner.recipe.name).tables["points"]
    kept = [row.frame_id for row in runner.store.every(Points, table.fingerprint, table.shards)]
    assert sorted(kept) == sorted(frame.frame_id for frame in others)


def test_an_excluded_frame_without_a_sweep_keeps_its_row_and_is_not_counted(
    tiny: Root, recipe_over: Callable[..., Recipe], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = tiny.frames()[0]
    without_sweeps(tiny, {first.lidar_token})
    runner = Runner(recipe_of(recipe_over, tiny.path, tmp_path / "store", exclude=(first.frame_id,)))
    assert sum(map(len, runner.listing().values())) == 3 and caplog.text == ""


def test_where_no_frame_has_a_sweep_there_is_nothing_to_do(
    tiny: Root, recipe_over: Callable[..., Recipe], tmp_path: Path
) -> None:
    without_sweeps(tiny, {frame.lidar_token for frame in tiny.frames()})
    runner = Runner(recipe_of(recipe_over, tiny.path, tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"3 of 3 frames have no sweep and are left out: .*; there is no other"):
        runner.listing()


def test_a_frame_of_a_plain_log_may_say_that_it_has_no_sweep(
    shared: Path, folder_layout: Callable[[Path, str], Path], recipe_over: Callable[..., Recipe], tmp_path: Path
) -> None:
    root = folder_layout(shared / "golden" / "nuscenes_tiny", "v1.0-trainval")
    data = DataConfig(dataset="folder", root=str(root))
    first, *others = FolderDataset(data).frames()
    path = root / first.scene / "scene.toml"
    named = f'name = "{first.frame_id.partition("/")[2]}"\n'
    path.write_text(path.read_text().replace(named, f"{named}sweep = false\n"))
    (root / first.lidar_path).unlink()
    bare = FolderDataset(data)
    assert next(bare.frames()).problems == (f"{first.scene}/scene.toml: frame {named.split(chr(34))[1]} has no sweep",)
    runner = Runner(recipe_over(root, data=data, run=RunConfig(store=str(tmp_path / "store"))))
    listed = [frame.frame_id for part in runner.listing().values() for frame in part]
    assert listed == [frame.frame_id for frame in others]
    assert runner.run(["points"], InlinePool(runner.recipe)) == []
    path.write_text(path.read_text().replace("sweep = false", "sweep = 0"))
    with pytest.raises(ConfigError, match="sweep is 0; expected false where there is none"):
        list(bare.frames())
