from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from manifests.sections.tables import ProjectConfig
from manifests.tables.sensors import Project
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Camera, Frame
from pipeline.stages.index import STAGE as INDEX
from pipeline.stages.points import STAGE as POINTS
from pipeline.stages.project import STAGE, visible_pairs

AHEAD = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])  # camera at the LiDAR, looking along x
MATRIX = np.array([[100.0, 0, 80], [0, 100, 45], [0, 0, 1]])


def frame_with(*cameras: Camera) -> Frame:
    return Frame("f", "s", 0, "t", "sweep.bin", None, np.eye(4), np.eye(4), cameras)


def camera(name: str = "CAM", turn: npt.NDArray[Any] = AHEAD) -> Camera:
    return Camera(name, "t", "p", 0, MATRIX, turn, width_px=160, height_px=90)


def pairs_of(points: list[list[float]], frame: Frame, config: ProjectConfig | None = None) -> Project:
    return visible_pairs(frame, np.array(points, np.float32).reshape(-1, 3), config or ProjectConfig())


def test_a_point_on_the_optical_axis_lands_on_the_principal_point_and_one_behind_nowhere() -> None:
    pairs = pairs_of([[-5, 0, 0], [10, 0, 0], [10, -2, 1]], frame_with(camera()))
    assert pairs.point.tolist() == [1, 2]
    assert pairs.u_px.tolist() == [80, 100] and pairs.v_px.tolist() == [45, 35]
    assert pairs.col_px.tolist() == [80, 100] and pairs.row_px.tolist() == [45, 35]
    assert pairs.depth_m.tolist() == [10, 10]


def test_pairs_are_sorted_by_view_and_then_by_point() -> None:
    back = AHEAD @ np.diag([-1.0, -1, 1, 1])
    pairs = pairs_of([[10, 0, 0], [-10, 0, 0], [10, 1, 0]], frame_with(camera("A"), camera("B", back), camera("C")))
    assert pairs.view.tolist() == [0, 0, 1, 2, 2]
    assert pairs.point.tolist() == [0, 2, 1, 0, 2]


def test_a_point_behind_a_nearer_one_in_its_image_cell_is_flagged_in_that_view_alone() -> None:
    aside = AHEAD.copy()
    aside[0, 3] = 3  # three metres to the left: the two points are far apart there
    points: list[list[float]] = [[5, 0, 0], [30, 0, 0]]
    pairs = pairs_of(points, frame_with(camera("A"), camera("B", aside)))
    assert pairs.view.tolist() == [0, 0, 1, 1] and pairs.occluded.tolist() == [False, True, False, False]
    generous = pairs_of(points, frame_with(camera()), ProjectConfig(margin_m=26))
    assert generous.occluded.tolist() == [False, False]


def test_settings_reach_the_geometry() -> None:
    points: list[list[float]] = [[0.5, 0, 0], [3, 0, 0]]
    assert pairs_of(points, frame_with(camera())).point.tolist() == [1]
    assert pairs_of(points, frame_with(camera()), ProjectConfig(min_depth_m=0.1)).point.tolist() == [0, 1]
    assert pairs_of(points, frame_with(camera()), ProjectConfig(min_depth_m=5)).point.tolist() == []


@pytest.mark.parametrize("frame", [frame_with(), frame_with(camera())], ids=["no camera", "nothing seen"])
def test_nothing_seen_gives_empty_columns_of_the_right_types(frame: Frame) -> None:
    pairs = pairs_of([[-5, 0, 0]], frame)
    seen = pairs_of([[5, 0, 0]], frame_with(camera()))
    columns = [name for name in vars(seen) if name != "frame_id"]
    assert len(columns) == 8
    for name in columns:
        assert (len(getattr(pairs, name)), getattr(pairs, name).dtype) == (0, getattr(seen, name).dtype)


@pytest.mark.parametrize(
    ("folder", "version", "size_px"),
    [("data/nuscenes-real", "v1.0-mini", (1600, 900)), ("data/tri-dgp-nuscenes", "v1.0-trainval", (1936, 1216))],
)
def test_a_row_equals_what_the_development_kit_projects_on_real_frames(
    shared: Path,
    recipe_over: Any,
    run_stage: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    version: str,
    size_px: tuple[int, int],
) -> None:
    from nuscenes import NuScenes
    from nuscenes.utils.data_classes import LidarPointCloud

    # In double precision: the kit's own float32 moves points by up to 1e-4 m on their way through the world frame.
    read = LidarPointCloud.from_file
    monkeypatch.setattr(LidarPointCloud, "from_file", lambda path: LidarPointCloud(read(path).points.astype(float)))
    nusc = NuScenes(version, str(shared / folder), verbose=False)
    recipe = recipe_over(shared / folder, version)
    for listed in open_dataset(recipe.data).frames():
        frame = Frame.of(run_stage(INDEX, recipe, listed))
        row = run_stage(STAGE, recipe, frame, run_stage(POINTS, recipe, frame))
        assert np.lexsort((row.point, row.view)).tolist() == list(range(len(row.view)))
        for view, one in enumerate(frame.cameras):
            assert (one.width_px, one.height_px) == size_px
            pixels, depth_m, image = nusc.explorer.map_pointcloud_to_image(frame.lidar_token, one.token)
            image.close()
            here = (row.view == view) & (row.u_px > 1) & (row.v_px > 1)  # the kit's margin; ours is 0
            assert here.sum() == pixels.shape[1] > 1000
            np.testing.assert_allclose(row.u_px[here], pixels[0], atol=1e-3)
            np.testing.assert_allclose(row.v_px[here], pixels[1], atol=1e-3)
            np.testing.assert_allclose(row.depth_m[here], depth_m, atol=1e-4)
            np.testing.assert_array_equal(row.row_px[here], np.rint(pixels[1]))
            np.testing.assert_array_equal(row.col_px[here], np.rint(pixels[0]))


def test_only_what_differs_from_the_defaults_is_in_the_settings(recipe_over: Any) -> None:
    assert STAGE.settings(recipe_over(Path("/r"))) == {}
    changed = recipe_over(Path("/r"), project=ProjectConfig(cell_px=16))
    assert STAGE.settings(changed) == {"cell_px": 16}
