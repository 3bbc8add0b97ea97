from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.recipe import load_recipe
from pipeline.datasets import sweeps
from pipeline.datasets.clouds import Cloud, read_cloud
from pipeline.datasets.sweeps import KeptSweeps
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.frame import Frame, FrameError, Sweep
from pipeline.stages.points import STAGE
from tests.pipeline.test_content import Log


def test_the_sweep_is_stored_as_it_is_in_the_order_of_the_file(tiny: Any, recipe_over: Any, run_stage: Any) -> None:
    frame = tiny.frames()[1]
    row = run_stage(STAGE, recipe_over(tiny.path), frame)
    stored = np.fromfile(tiny.path / frame.lidar_path, "<f4").reshape(-1, 5)
    assert row.n_points == len(stored) == 34720
    np.testing.assert_array_equal(row.xyz_m, stored[:, :3])
    np.testing.assert_array_equal(row.intensity, stored[:, 3])


def test_a_sweep_that_is_gone_is_a_frame_error(tiny: Any, recipe_over: Any, run_stage: Any) -> None:
    frame = tiny.frames()[0]
    (tiny.path / frame.lidar_path).unlink()
    with pytest.raises(FrameError, match="No such file"):
        run_stage(STAGE, recipe_over(tiny.path), frame)


def test_no_true_labels_are_needed_or_read(tiny: Any, recipe_over: Any, run_stage: Any) -> None:
    (tiny.path / "lidarseg").rename(tiny.path.parent / "elsewhere")
    assert run_stage(STAGE, recipe_over(tiny.path), tiny.frames()[0]).n_points == 34688
    assert not any("label" in column for column in STAGE.index_columns)


def test_a_run_decodes_every_sweep_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "logs").write()
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\ndataset = "folder"\nroot = "{log.root}"\n[run]\nstore = "{tmp_path / "store"}"\n'
        '[teacher]\nname = "oracle"\nsource = "points"\ndims = 8\nslic_px = 8.0\n'
    )
    recipe, decoded = load_recipe(path), Counter[str]()

    def counted(name: str, *rest: Any) -> Any:
        decoded[name] += 1
        return read_cloud(name, *rest)

    monkeypatch.setattr(sweeps, "read_cloud", counted)
    assert Runner(recipe).run(("points", "project", "label", "pairs", "target"), InlinePool(recipe)) == []
    assert decoded == {name: 1 for name in log.files() if "/points/" in name} and len(decoded) > 2


def kept(name: str, n_points: int) -> tuple[Frame, Cloud]:
    frame = Frame(name, "s", 0, "t", f"{name}.bin", None, np.eye(4), np.eye(4), (), lidar_sha256=f"of {name}")
    return frame, Cloud(np.zeros((n_points, 3), np.float32), np.zeros(n_points, np.float32))


def test_a_sweep_is_kept_until_it_is_taken_and_never_for_other_bytes_or_poses() -> None:
    memory = KeptSweeps()
    frame, sweep = kept("a", 10)
    memory.keep(frame, sweep)
    moved = np.eye(4)
    moved[0, 3] = 1
    assert memory.take(replace(frame, lidar_sha256="of another file")) is None
    assert memory.take(replace(frame, world_from_lidar=moved)) is None
    assert memory.take(replace(frame, sweeps=(Sweep("LEFT", "left.bin", np.eye(4)),))) is None
    taken = memory.take(frame)
    assert taken is sweep and memory.take(frame) is None


def test_no_more_sweeps_are_kept_than_there_is_room_for() -> None:
    memory = KeptSweeps(most_bytes=350)  # two of ten points, 160 bytes each
    frames = [kept(name, 10) for name in "abc"]
    for frame, sweep in frames:
        memory.keep(frame, sweep)
    assert [memory.take(frame) is not None for frame, _ in frames] == [False, True, True]
    memory.keep(frames[0][0], kept("a", 100)[1])
    assert memory.take(frames[0][0]) is None, "one that is larger than all room"
