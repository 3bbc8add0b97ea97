"""How far a run is, read from the store alone: after a part of it, after a failure, and after it was mended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from manifests.recipe import Recipe, load_recipe
from pipeline.__main__ import app
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.progress import Progress, progress_of
from pipeline.engine.runner import Runner
from pipeline.stages.registry import PACKED


@pytest.fixture
def recipe(shared: Path, tiny: Any, tmp_path: Path) -> Recipe:
    path = tmp_path / "tiny.toml"
    masks = shared / "golden" / "superpixels_tiny"
    path.write_text(
        f'[data]\nroot = "{tiny.path}"\n[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{masks}"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\n'
    )
    return load_recipe(path)


@pytest.fixture
def ask(recipe: Recipe) -> Callable[[], dict[str, Progress]]:
    return lambda: {item.stage: item for item in progress_of(Runner(recipe), PACKED)}


def test_status_follows_a_run_through_a_failure(
    recipe: Recipe, tiny: Any, ask: Callable[[], dict[str, Progress]], tmp_path: Path
) -> None:
    nothing = ask()
    assert {item.n_done for item in nothing.values()} == {0} and nothing["index"].n_shards == 2
    assert nothing["index"].last_written is None

    frame = tiny.frames()[0]
    image = (tiny.path / frame.cameras[0].image_path).resolve()
    tiny.write_file(frame.cameras[0].image_path, b"no image")
    assert len(Runner(recipe).run(PACKED, InlinePool(recipe))) == 1
    index, points = (ask()[name] for name in ("index", "points"))
    assert (index.n_done, index.n_frames, len(index.failures)) == (1, 1, 1)
    assert index.failures[0].frame_id == frame.frame_id and "cannot be decoded" in index.failures[0].cause
    assert (points.n_done, points.n_shards, points.failures) == (1, 2, ()) and points.n_bytes > 10_000
    assert points.last_written is not None
    done = CliRunner().invoke(app, ["status", str(tmp_path / "tiny.toml")], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "1 of 2" in done.output and f"index scene-0001 {frame.frame_id}" in done.output

    tiny.write_file(frame.cameras[0].image_path, image.read_bytes())
    assert Runner(recipe).run(PACKED, InlinePool(recipe)) == []
    assert all(item.n_done == item.n_shards and not item.failures for item in ask().values())


def test_status_needs_neither_the_data_nor_the_files_of_the_teacher(
    recipe: Recipe, tiny: Any, ask: Callable[[], dict[str, Progress]], tmp_path: Path
) -> None:
    tiny.write_file(tiny.frames()[0].cameras[0].image_path, b"no image")
    assert len(Runner(recipe).run(PACKED, InlinePool(recipe))) == 1
    here = ask()
    path = tmp_path / "tiny.toml"
    elsewhere = path.read_text().replace(str(tiny.path), "/data/elsewhere").replace("superpixels_tiny", "not_here")
    path.write_text(elsewhere)
    there = {item.stage: item for item in progress_of(Runner(load_recipe(path)), PACKED)}
    assert there == here
    done = CliRunner().invoke(app, ["status", str(path)], env={"COLUMNS": "200"})
    assert done.exit_code == 0 and "1 of 2" in done.output and "cannot be decoded" in done.output
    assert "/data/elsewhere is not on this machine" in done.output
