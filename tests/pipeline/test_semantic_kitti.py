"""SemanticKITTI: what is listed, how its calibration becomes ours, and what a damaged file gets said about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig
from pipeline.datasets.semantic_kitti import SemanticKittiDataset
from pipeline.engine.runner import Runner
from pipeline.frame import Frame, FrameError
from pipeline.stages.index import check_frame

# A camera of focal length 4 px in an image of 8 x 6, 0.5 m to the right of camera 0: P2[0, 3] = -4 * 0.5.
CALIB = """\
P0: 4 0 4 0  0 4 3 0  0 0 1 0
P1: 4 0 4 0  0 4 3 0  0 0 1 0
P2: 4 0 4 -2  0 4 3 0  0 0 1 0
P3: 4 0 4 -4  0 4 3 0  0 0 1 0
Tr: 0 -1 0 0  0 0 -1 0  1 0 0 0
"""
POSES = "1 0 0 0 0 1 0 0 0 0 1 0\n1 0 0 0 0 1 0 0 0 0 1 2\n"  # the second scan is taken 2 m ahead
SCAN = np.array([[5, 0, 0, 0.25], [8, 1, -1, 0.5], [3, 0, 0, 0.99]], "<f4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Sequence 08 with two labelled scans of three points, and 11 with one without labels."""
    write_sequence(tmp_path, "08", 2, labels=np.array([10, 7 << 16 | 252, 0], "<u4"))
    write_sequence(tmp_path, "11", 1)
    return tmp_path


def write_sequence(root: Path, name: str, n_scans: int, labels: npt.NDArray[Any] | None = None) -> None:
    folder = root / "sequences" / name
    for part in ("velodyne", "image_2", "image_3", *(("labels",) if labels is not None else ())):
        (folder / part).mkdir(parents=True)
    for number in range(n_scans):
        (folder / f"velodyne/{number:06d}.bin").write_bytes(SCAN.tobytes())
        for camera in ("image_2", "image_3"):
            Image.new("RGB", (8, 6)).save(folder / f"{camera}/{number:06d}.png")
        if labels is not None:
            (folder / f"labels/{number:06d}.label").write_bytes(labels.tobytes())
    (folder / "calib.txt").write_text(CALIB)
    (folder / "poses.txt").write_text(POSES)
    (folder / "times.txt").write_text("0.0\n1.037359e-01\n")


def data_set(root: Path, *cameras: str) -> SemanticKittiDataset:
    return SemanticKittiDataset(DataConfig(dataset="semantic_kitti", root=str(root), cameras=cameras))


def frames_of(root: Path, *cameras: str) -> list[Frame]:
    return list(data_set(root, *cameras).frames())


def why(root: Path, position: int = 0) -> str:
    """Say why `index` refuses a frame of a root."""
    with pytest.raises(FrameError) as caught:
        check_frame(data_set(root), root, frames_of(root)[position])
    return str(caught.value)


def test_scans_are_listed_by_sequence_and_number(root: Path) -> None:
    frames = frames_of(root)
    assert [frame.frame_id for frame in frames] == ["08_000000", "08_000001", "11_000000"]
    assert [frame.timestamp_us for frame in frames] == [0, 103736, 0]
    assert frames[1].lidar_path == "sequences/08/velodyne/000001.bin"
    assert [frame.label_path for frame in frames[1:]] == ["sequences/08/labels/000001.label", None]
    [camera] = frames[1].cameras
    assert (camera.name, camera.image_path) == ("image_2", "sequences/08/image_2/000001.png")


def test_points_and_labels_are_read_as_stored_without_instances(root: Path) -> None:
    data, frame = data_set(root), frames_of(root)[0]
    cloud = data.read_cloud(frame)
    xyz_m, remission = cloud.xyz_m, cloud.intensity
    np.testing.assert_array_equal(xyz_m, SCAN[:, :3])
    np.testing.assert_array_equal(remission, SCAN[:, 3])
    assert data.read_labels(frame).tolist() == [10, 252, 0]


def test_the_offset_of_a_projection_matrix_moves_the_camera(root: Path) -> None:
    two, three = frames_of(root, "image_3", "image_2")[0].cameras
    assert (two.name, three.name) == ("image_2", "image_3"), "the order of views does not depend on the recipe"
    for camera, right_m in ((two, 0.5), (three, 1.0)):
        np.testing.assert_array_equal(camera.intrinsics, [[4, 0, 4], [0, 4, 3], [0, 0, 1]])
        # 5 m ahead of the LiDAR is 5 m deep, and so far to the left of the camera as that is to the right
        np.testing.assert_allclose(camera.cam_from_lidar @ [5, 0, 0, 1], [-right_m, 0, 5, 1])


def test_the_world_is_the_first_scan_with_z_up(root: Path) -> None:
    first, second, _ = frames_of(root)
    np.testing.assert_allclose(first.world_from_lidar, np.eye(4))
    np.testing.assert_allclose(second.world_from_lidar @ [1, 0, 0, 1], [3, 0, 0, 1])
    assert first.ego_from_lidar[2, 3] == 1.73


def test_poses_of_the_odometry_benchmark_will_do_and_times_need_not_be_there(root: Path) -> None:
    (root / "poses").mkdir()
    (root / "sequences/08/poses.txt").rename(root / "poses/08.txt")
    (root / "sequences/08/times.txt").unlink()
    frame = check_frame(data_set(root), root, frames_of(root)[1])
    assert frame.world_from_lidar[0, 3] == 2 and frame.timestamp_us == 100_000


@pytest.mark.parametrize("name", ["00", "03", "08"])
def test_real_points_land_where_the_matrices_of_calib_txt_put_them_with_and_without_tr(
    shared: Path, root: Path, name: str
) -> None:
    text = (shared / "data/semantickitti-real/sequences" / name / "calib.txt").read_text()
    lines = {line.split(":")[0]: np.array(line.split()[1:], np.float64).reshape(3, 4) for line in text.splitlines()}
    assert "Tr" in lines
    (root / "sequences/08/calib.txt").write_text(text)
    [camera] = frames_of(root)[0].cameras
    points = np.array([[12.0, -3.0, 0.5, 1.0], [40.0, 8.0, -1.5, 1.0]]).T
    across, down, depth = lines["P2"] @ np.vstack([lines["Tr"], [0, 0, 0, 1]]) @ points
    ours = camera.intrinsics @ (camera.cam_from_lidar @ points)[:3]
    np.testing.assert_allclose(ours[:2] / ours[2], [across / depth, down / depth], atol=1e-9)

    without = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("Tr"))
    (root / "sequences/08/calib.txt").write_text(without)
    np.testing.assert_array_equal(frames_of(root)[0].cameras[0].cam_from_lidar, camera.cam_from_lidar)


def test_long_sequences_are_cut_into_shards_of_64_frames(root: Path, recipe_over: Callable[..., Recipe]) -> None:
    for number in range(2, 130):
        (root / f"sequences/08/velodyne/{number:06d}.bin").touch()  # listing opens no scan
    recipe = recipe_over(root, data=DataConfig(dataset="semantic_kitti", root=str(root), split="val"))
    listing = Runner(recipe).listing()
    assert {shard: len(frames) for shard, frames in listing.items()} == {"08+0000": 64, "08+0064": 64, "08+0128": 2}
    assert listing["08+0064"][0].frame_id == "08_000064"


# -- damage ----------------------------------------------------------------------------------------


def test_damaged_binary_files_are_named(root: Path) -> None:
    folder = root / "sequences/08"
    (folder / "velodyne/000000.bin").write_bytes(SCAN.tobytes()[:-3])
    assert why(root) == (
        "sequences/08/velodyne/000000.bin: it is truncated, or has other columns: 45 bytes is not a positive multiple "
        "of 16, the 4 float32 of a point (x, y, z, intensity)"
    )
    (folder / "velodyne/000000.bin").write_bytes((SCAN * [1, np.nan, 1, 1]).astype("<f4").tobytes())
    assert "velodyne/000000.bin: 3 of 3 points have a value that is not finite, the first is point 0" in why(root)
    (folder / "velodyne/000000.bin").write_bytes(SCAN.tobytes())
    (folder / "labels/000000.label").write_bytes(bytes(8))
    assert why(root) == (
        "sequences/08/labels/000000.label: 2 labels for the 3 points of sequences/08/velodyne/000000.bin"
    )
    (folder / "labels/000000.label").write_bytes(bytes(9))
    assert "sequences/08/labels/000000.label: 9 bytes is not a multiple of 4" in why(root)
    (folder / "labels/000000.label").write_bytes(bytes(12))
    (folder / "image_2/000000.png").unlink()
    assert why(root) == "sequences/08/image_2/000000.png: No such file or directory"


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("calib.txt", CALIB.replace("P2", "P9"), "calib.txt: there is no line P2, the projection of image_2"),
        (
            "calib.txt",
            CALIB.replace("Tr", "Q"),
            "calib.txt: there is no line Tr (LiDAR to camera), and P0 is of no day",
        ),
        (
            "calib.txt",
            CALIB.replace("P2: 4", "P2: x"),
            "calib.txt: line 1 is ' x 0 4 -2  0 4 3 0  0 0 1 0'; expected 12",
        ),
        ("calib.txt", "hello\n", "calib.txt: 'hello' is no line of a calibration"),
        ("calib.txt", CALIB.replace("-2  0 4 3 0", "-2  0 0 0 0"), "calib.txt: P2 is [[4.0, 0.0, 4.0, -2.0]"),
        ("calib.txt", None, "sequences/08/calib.txt: No such file or directory"),
        ("poses.txt", POSES.splitlines()[0], "poses.txt: 1 poses; scan 000001 needs line 2"),
        ("poses.txt", POSES + "1 2 3\n", "poses.txt: line 3 is '1 2 3'; expected a pose, 3 x 4 numbers"),
        ("poses.txt", "\N{SNOWMAN}", "sequences/08/poses.txt: this is no text"),
        ("times.txt", "0.0\n", "times.txt: 1 times; scan 000001 has none"),
        ("times.txt", "0.0\nsoon\n", "times.txt: line 2 is 'soon'; expected a time in seconds"),
        ("times.txt", "0.2\n0.1\n", "times.txt: the times do not ascend"),
    ],
)
def test_a_text_file_that_is_not_right_is_one_sentence_that_names_it(
    root: Path, name: str, content: str | None, sentence: str
) -> None:
    path = root / "sequences/08" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    reason = why(root, 1)
    assert sentence in reason
    assert reason.count(";") <= 1, "what follows from the fault is not reported as well"
    check_frame(data_set(root), root, frames_of(root)[2])  # other sequences are not concerned


def test_a_pose_that_is_no_rotation_is_refused(root: Path) -> None:
    (root / "sequences/08/poses.txt").write_text(POSES.replace("1 0 0 0 0 1", "2 0 0 0 0 1"))
    assert "is not a rotation and a translation" in why(root)


def test_what_concerns_the_whole_folder_is_a_config_error(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.cameras names CAM_FRONT; SemanticKITTI has image_0, image_1, image_2"):
        frames_of(root, "CAM_FRONT")
    (root / "sequences/08/velodyne/copy of 1.bin").touch()
    with pytest.raises(ConfigError, match=r"velodyne/copy of 1.bin is no scan of SemanticKITTI"):
        frames_of(root)
    empty = root / "empty"
    (empty / "sequences/00").mkdir(parents=True)
    with pytest.raises(ConfigError, match="empty/sequences has no scans; expected files like sequences/00/velodyne/0"):
        frames_of(empty)


def test_other_folder_names_jpeg_images_and_sequences_as_the_root_are_read(root: Path) -> None:
    expected = [(frame.lidar_path, frame.timestamp_us) for frame in frames_of(root)][:2]
    drive = (root / "sequences/08").rename(root / "sequences/monday morning")
    for image in (drive / "image_2").glob("*.png"):
        image.rename(image.with_suffix(".jpg"))
    frames = [frame for frame in frames_of(root / "sequences") if frame.scene == "monday morning"]
    assert [(f"sequences/08/{one.lidar_path.partition('/')[2]}", one.timestamp_us) for one in frames] == expected
    assert all(check_frame(data_set(root / "sequences"), root / "sequences", frame).n_points == 3 for frame in frames)
    assert frames[0].cameras[0].image_path == "monday morning/image_2/000000.jpg"


def test_without_poses_it_is_unknown_where_the_vehicle_was(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "sequences/08/poses.txt").unlink()
    frame = check_frame(data_set(root), root, frames_of(root)[0])
    assert np.isnan(frame.world_from_lidar).all() and not frame.posed and frame.n_points == 3
    assert "sequences/08 has no poses.txt" in caplog.text


def test_without_images_nothing_is_looked_at(root: Path) -> None:
    assert [frame.cameras for frame in frames_of(root, "none")] == [()] * 3


def test_images_without_a_scan_are_counted_and_make_no_frame(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    frames_of(root)
    assert caplog.text == ""
    (root / "sequences/08/velodyne/000001.bin").unlink()
    assert [frame.frame_id for frame in frames_of(root)] == ["08_000000", "11_000000"]
    assert "sequences/08/image_2: 1 images have no sweep and are left out, the first is 000001" in caplog.text
