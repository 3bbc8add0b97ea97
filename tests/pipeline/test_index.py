from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.recipe import Recipe
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Camera, Frame, FrameError, read_image
from pipeline.stages.base import FrameInput
from pipeline.stages.index import STAGE, camera_problems, pose_problems

POSE = np.array([[0.0, -1, 0, 2], [1, 0, 0, 3], [0, 0, 1, 4], [0, 0, 0, 1]])
MATRIX = np.array([[1000.0, 0, 800], [0, 1000, 450], [0, 0, 1]])


@pytest.fixture
def index(recipe_over: Callable[..., Recipe], run_stage: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Runs `index` on a frame of a root, the first unless another is given."""

    def run(root: Any, frame: Frame | None = None) -> dict[str, Any]:
        return run_stage(STAGE, recipe_over(root.path), frame or root.frames()[0])

    return run


@pytest.fixture
def why(recipe_over: Callable[..., Recipe]) -> Callable[..., str]:
    """Says why `index` refuses a frame of a root, the first unless another is given."""

    def run(root: Any, frame: Frame | None = None) -> str:
        assert STAGE.prepare is not None
        with pytest.raises(FrameError) as caught:
            STAGE.prepare(recipe_over(root.path))(FrameInput(frame or root.frames()[0]))
        return str(caught.value)

    return run


def test_a_good_frame_gets_its_sizes_and_keeps_what_was_listed(tiny: Any, index: Any) -> None:
    listed = tiny.frames()[0]
    row = index(tiny)
    assert row.n_points == 34688
    assert row.lidar_bytes == 34688 * 20
    assert row.width_px.tolist() == [1600] * 6 and row.height_px.tolist() == [900] * 6
    assert row.image_bytes.tolist() == [(tiny.path / path).stat().st_size for path in row.image_path]
    frame = Frame.of(row)
    unsized = [replace(one, width_px=0, height_px=0, image_bytes=0, image_sha256="") for one in frame.cameras]
    for camera, before in zip(unsized, listed.cameras, strict=True):
        np.testing.assert_equal(vars(camera), vars(before))
    assert (frame.lidar_token, frame.label_path, frame.scene) == (listed.lidar_token, listed.label_path, "scene-0001")


def test_images_of_another_size_are_measured(shared: Path, mirror: Any, index: Any) -> None:
    row = index(mirror(shared / "data" / "tri-dgp-nuscenes", "v1.0-mini"))
    assert row.width_px.tolist() == [1936] * 6 and row.height_px.tolist() == [1216] * 6


def test_a_frame_that_misses_a_camera_has_one_view_less(tiny: Any, index: Any) -> None:
    token = tiny.frames()[0].cameras[2].token
    tiny.write_table("sample_data", [row for row in tiny.table("sample_data") if row["token"] != token])
    row = index(tiny)
    assert row.camera == ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
    assert row.intrinsics.shape == (5, 3, 3)


def test_a_frame_without_cameras_is_fine(tiny: Any, index: Any) -> None:
    row = index(tiny, replace(tiny.frames()[0], cameras=()))
    assert row.camera == () and row.cam_from_lidar.shape == (0, 4, 4)


def test_the_place_of_the_data_is_no_setting_but_the_version_is(recipe_over: Callable[..., Recipe]) -> None:
    here, there = recipe_over(Path("/here")), recipe_over(Path("/there"))
    assert STAGE.settings(here) == STAGE.settings(there) == {"dataset": "nuscenes", "version": "v1.0-trainval"}


# -- sweeps ----------------------------------------------------------------------------------------


def test_a_truncated_sweep_is_refused(tiny: Any, why: Any) -> None:
    path = tiny.frames()[0].lidar_path
    tiny.write_file(path, (tiny.path / path).read_bytes()[:-7])
    assert why(tiny) == (
        f"{path}: it is truncated, or has other columns: 693753 bytes is not a positive multiple of 20, "
        "the 5 float32 of a point (x, y, z, intensity, ring)"
    )


def test_a_missing_sweep_is_refused(tiny: Any, why: Any) -> None:
    path = tiny.frames()[0].lidar_path
    (tiny.path / path).unlink()
    assert why(tiny) == f"{path}: No such file or directory"


def test_a_sample_without_a_sweep_is_refused(tiny: Any, why: Any) -> None:
    token = tiny.frames()[0].lidar_token
    tiny.write_table("sample_data", [row for row in tiny.table("sample_data") if row["token"] != token])
    assert "has no LIDAR_TOP sweep in v1.0-trainval/sample_data.json" in why(tiny)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1, 2, 3])
def test_points_that_are_not_finite_are_counted_and_the_first_is_named(
    tiny: Any, why: Any, column: int, value: float
) -> None:
    path = tiny.frames()[0].lidar_path
    points = np.fromfile(tiny.path / path, "<f4").reshape(-1, 5)
    points[[1234, 1235, 30000], column] = value
    tiny.write_file(path, points.tobytes())
    assert f"{path}: 3 of 34688 points have a value that is not finite, the first is point 1234" in why(tiny)


def test_the_ring_index_may_be_unknown(tiny: Any, index: Any) -> None:
    path = tiny.frames()[0].lidar_path
    points = np.fromfile(tiny.path / path, "<f4").reshape(-1, 5)
    points[:, 4] = np.nan
    tiny.write_file(path, points.tobytes())
    assert index(tiny).n_points == 34688


# -- images ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda jpeg: b"", "cannot be decoded as an image"),
        (lambda jpeg: jpeg[: len(jpeg) // 2], "cannot be decoded as an image"),
        (lambda jpeg: jpeg[:-1000], "cannot be decoded as an image"),
        (lambda jpeg: b"\0" * len(jpeg), "cannot be decoded as an image"),
        (lambda jpeg: b"<html>502 Bad Gateway</html>", "cannot be decoded as an image"),
    ],
    ids=["empty", "half", "end cut off", "zeros", "web page"],
)
def test_a_damaged_image_is_refused_by_name(tiny: Any, why: Any, damage: Callable[[bytes], bytes], cause: str) -> None:
    path = tiny.frames()[0].cameras[3].image_path
    tiny.write_file(path, damage((tiny.path / path).read_bytes()))
    reason = why(tiny)
    assert path in reason and cause in reason and reason.count("; ") == 0


@given(share=st.floats(0, 0.99))
def test_an_image_cut_anywhere_is_a_frame_error_and_never_a_picture(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    import io

    from PIL import Image

    picture = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(picture, "JPEG")
    content = picture.getvalue()
    root = tmp_path_factory.getbasetemp()
    (root / "cut.jpg").write_bytes(content[: int(share * (len(content) - 2))])
    with pytest.raises(FrameError, match=r"cut\.jpg: cannot be decoded"):
        read_image(root, Camera("CAM", "t", "cut.jpg", 0, MATRIX, POSE))


def test_a_missing_image_is_refused_by_name(tiny: Any, why: Any) -> None:
    path = tiny.frames()[0].cameras[5].image_path
    (tiny.path / path).unlink()
    assert why(tiny) == f"{path}: No such file or directory"


def test_an_image_outside_the_root_is_refused(tiny: Any, why: Any) -> None:
    token = tiny.frames()[0].cameras[0].token
    tiny.change("sample_data", lambda row: row["token"] == token, filename="../../outside.jpg")
    assert "'../../outside.jpg' leaves the data root" in why(tiny)


# -- calibration -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "cause"),
    [
        ([[0, 0, 800], [0, 1000, 450], [0, 0, 1]], "singular"),
        ([[1000, 0, 800], [0, 0, 450], [0, 0, 1]], "singular"),
        ([[1000, 0, 800], [0, 1000, 450], [0, 0, 0]], r"last row"),
        ([[-1000, 0, 800], [0, 1000, 450], [0, 0, 1]], "focal lengths are -1000.0 and 1000.0 px"),
        ([[1000, 0, 800], [0, -1000, 450], [0, 0, 1]], "focal lengths are 1000.0 and -1000.0 px"),
        ([[1000, 0, float("nan")], [0, 1000, 450], [0, 0, 1]], "finite"),
        ([], "finite"),
    ],
)
def test_an_unusable_camera_matrix_is_refused_by_camera(tiny: Any, why: Any, matrix: Any, cause: str) -> None:
    image = tiny.frames()[0].cameras[1].token
    [token] = [row["calibrated_sensor_token"] for row in tiny.table("sample_data") if row["token"] == image]
    tiny.change("calibrated_sensor", lambda row: row["token"] == token, camera_intrinsic=matrix)
    reason = why(tiny)
    assert reason.startswith("CAM_FRONT_RIGHT: ") and cause in reason


def test_a_rotation_of_zero_is_refused_for_the_camera_that_has_it(tiny: Any, why: Any) -> None:
    image = tiny.frames()[0].cameras[1].token
    [token] = [row["ego_pose_token"] for row in tiny.table("sample_data") if row["token"] == image]
    tiny.change("ego_pose", lambda row: row["token"] == token, rotation=[0, 0, 0, 0])
    assert why(tiny).startswith("CAM_FRONT_RIGHT: the pose is not finite")


def test_a_broken_pose_of_the_sweep_is_refused(tiny: Any, why: Any) -> None:
    sweep = tiny.frames()[0].lidar_token
    [token] = [row["ego_pose_token"] for row in tiny.table("sample_data") if row["token"] == sweep]
    tiny.change("ego_pose", lambda row: row["token"] == token, translation=[1, 2])
    assert why(tiny).startswith("world_from_lidar: the pose is not finite")


def test_a_pose_is_good_if_it_is_rigid_within_the_rounding_of_tables() -> None:
    assert pose_problems(POSE) == []
    assert pose_problems(POSE + 1e-5 * (POSE != 0) * (np.arange(4) < 3)[:, None]) == []


@pytest.mark.parametrize(
    "pose",
    [
        POSE * [[1.01], [1], [1], [1]],
        np.diag([1.0, 1, -1, 1]),
        np.diag([1.0, 1, 1, 2]),
        np.zeros((4, 4)),
    ],
    ids=["stretched", "mirrored", "scaled", "zero"],
)
def test_a_matrix_that_is_no_rotation_and_translation_is_a_problem(pose: npt.NDArray[Any]) -> None:
    [problem] = pose_problems(pose)
    assert problem.endswith("is not a rotation and a translation")


def test_a_camera_with_a_bad_pose_and_a_bad_matrix_has_two_problems() -> None:
    camera = Camera("CAM_X", "t", "p", 0, np.zeros((3, 3)), np.full((4, 4), np.nan))
    assert [problem.split(":")[0] for problem in camera_problems(camera)] == ["CAM_X", "CAM_X"]
    assert camera_problems(replace(camera, intrinsics=MATRIX, cam_from_lidar=POSE)) == []


# -- labels ----------------------------------------------------------------------------------------


def test_labels_of_another_length_are_refused(tiny: Any, why: Any) -> None:
    frame = tiny.frames()[0]
    tiny.write_file(frame.label_path, b"\x11" * 34687)
    assert why(tiny) == f"{frame.label_path}: 34687 labels for the 34688 points of {frame.lidar_path}"


def test_labels_that_are_not_on_disk_are_no_problem(tiny: Any, index: Any) -> None:
    (tiny.path / "lidarseg").rename(tiny.path.parent / "elsewhere")
    assert index(tiny).label_path.startswith("lidarseg/v1.0-trainval/")


# -- several problems ------------------------------------------------------------------------------


def test_everything_wrong_with_a_frame_is_said_at_once(tiny: Any, why: Any) -> None:
    frame = tiny.frames()[0]
    tiny.write_file(frame.lidar_path, b"123")
    tiny.write_file(frame.cameras[0].image_path, b"")
    (tiny.path / frame.cameras[4].image_path).unlink()
    broken = replace(frame, cameras=(*frame.cameras[:5], replace(frame.cameras[5], intrinsics=np.zeros((3, 3)))))
    reason = why(tiny, broken)
    problems = [
        f"{frame.lidar_path}: it is truncated, or has other columns: 3 bytes",
        f"{frame.cameras[0].image_path}: cannot be decoded",
        f"{frame.cameras[4].image_path}: No such file",
        "; CAM_FRONT_LEFT: the last row of the intrinsics",
    ]
    places = [reason.find(problem) for problem in problems]
    assert -1 not in places and places == sorted(places), reason


def test_one_bad_frame_leaves_the_others_alone(tiny: Any, why: Any, index: Any) -> None:
    first, second, third = tiny.frames()
    tiny.write_file(first.lidar_path, b"")
    assert "truncated" in why(tiny, first)
    assert [index(tiny, frame).frame_id for frame in (second, third)] == [second.frame_id, third.frame_id]


def test_a_file_replaced_after_indexing_is_noticed(tiny: Any, index: Any, recipe_over: Any) -> None:
    frame = Frame.of(index(tiny))
    tiny.write_file(frame.lidar_path, b"\0" * 40)
    with pytest.raises(FrameError, match="was replaced since it was indexed: run again"):
        open_dataset(recipe_over(tiny.path).data).read_cloud(frame)
