from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.frame import FrameError
from pipeline.stages.points import STAGE


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
