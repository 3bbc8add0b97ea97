from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from pipeline.datasets.nuscenes import CAMERAS, NuScenesDataset
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame, FrameError

ROOT = Path(__file__).resolve().parents[2]


def frames_of(root: Path, version: str) -> list[Frame]:
    return list(NuScenesDataset(DataConfig(root=str(root), version=version)).frames())


def of_channel(root: Any, channel: str) -> Callable[[dict[str, Any]], bool]:
    """Picks the sample_data rows of a channel, whose files are in the folder of that name."""
    return lambda row: row["filename"].split("/")[1] == channel


# -- what is listed --------------------------------------------------------------------------------


def test_frames_come_scene_by_scene_in_the_order_of_the_table_and_by_time_within_a_scene(tiny: Any) -> None:
    tiny.write_table("scene", tiny.table("scene")[::-1])
    tiny.write_table("sample", sorted(tiny.table("sample"), key=lambda row: -row["timestamp"]))
    frames = tiny.frames()
    assert [frame.scene for frame in frames] == ["scene-0008", "scene-0001", "scene-0001"]
    assert frames[1].timestamp_us < frames[2].timestamp_us


@pytest.mark.parametrize(
    ("folder", "version", "scenes", "labelled"),
    [
        ("data/nuscenes-real", "v1.0-mini", ["scene-0061", "scene-0003"], False),
        ("data/nuscenes-real", "v1.0-trainval", ["scene-0061", "scene-0003"], False),
        ("data/nuscenes-real", "v1.0-semireal", ["scene-0061", "scene-0003"], True),
        ("data/tri-dgp-nuscenes", "v1.0-mini", ["scene-0061"] * 3, False),
        ("golden/real_nuscenes/root", "v1.0-trainval", ["scene-0061", "scene-0003"], True),
    ],
)
def test_every_version_of_the_real_frames_can_be_listed_and_read(
    shared: Path, folder: str, version: str, scenes: list[str], labelled: bool
) -> None:
    data = NuScenesDataset(DataConfig(root=str(shared / folder), version=version))
    frames = list(data.frames())
    assert [frame.scene for frame in frames] == scenes
    for frame in frames:
        assert tuple(camera.name for camera in frame.cameras) == CAMERAS
        cloud = data.read_cloud(frame)
        xyz_m, intensity = cloud.xyz_m, cloud.intensity
        stored = np.fromfile(shared / folder / frame.lidar_path, "<f4").reshape(-1, 5)
        np.testing.assert_array_equal(np.column_stack([xyz_m, intensity]), stored[:, :4])
        assert (frame.label_path is not None) == labelled
        if labelled:
            stored_labels = np.fromfile(shared / folder / str(frame.label_path), np.uint8)
            np.testing.assert_array_equal(data.read_labels(frame), stored_labels)
            assert len(stored_labels) == len(xyz_m)


def test_poses_equal_the_chain_of_the_tables_step_by_step(shared: Path) -> None:
    from pyquaternion import Quaternion

    folder = shared / "data" / "tri-dgp-nuscenes" / "v1.0-mini"
    tables = {
        name: {row["token"]: row for row in json.loads((folder / f"{name}.json").read_text())}
        for name in ("sample_data", "ego_pose", "calibrated_sensor")
    }
    point = np.array([12.0, -3.0, 0.5])
    for frame in frames_of(folder.parent, "v1.0-mini"):
        sweep = tables["sample_data"][frame.lidar_token]
        steps = [tables["calibrated_sensor"][sweep["calibrated_sensor_token"]]]
        steps += [tables["ego_pose"][sweep["ego_pose_token"]]]
        in_world = point
        for step in steps:
            in_world = Quaternion(step["rotation"]).rotation_matrix @ in_world + step["translation"]
        np.testing.assert_allclose((frame.world_from_lidar @ [*point, 1])[:3], in_world, atol=1e-9)
        for camera in frame.cameras:
            image = tables["sample_data"][camera.token]
            assert camera.timestamp_us == image["timestamp"] and camera.image_path == image["filename"]
            calibration = tables["calibrated_sensor"][image["calibrated_sensor_token"]]
            in_camera = in_world
            for step in (tables["ego_pose"][image["ego_pose_token"]], calibration):
                in_camera = Quaternion(step["rotation"]).rotation_matrix.T @ (in_camera - step["translation"])
            np.testing.assert_allclose((camera.cam_from_lidar @ [*point, 1])[:3], in_camera, atol=1e-9)
            np.testing.assert_array_equal(camera.intrinsics, calibration["camera_intrinsic"])


def test_a_camera_of_another_name_follows_the_six_and_a_sample_may_lack_one(tiny: Any) -> None:
    tiny.change("sensor", lambda row: row["channel"] == "CAM_FRONT", channel="CAM_ZOOM")
    tiny.change("sensor", lambda row: row["channel"] == "CAM_BACK", channel="CAM_LOWER")
    rows = tiny.table("sample_data")
    sample = tiny.frames()[0].frame_id
    missing = next(row for row in rows if row["sample_token"] == sample and "CAM_BACK_LEFT" in row["filename"])
    tiny.write_table("sample_data", [row for row in rows if row is not missing])
    with_five, with_six, _ = tiny.frames()
    names = ["CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK_LEFT", "CAM_FRONT_LEFT", "CAM_LOWER", "CAM_ZOOM"]
    assert [camera.name for camera in with_six.cameras] == names
    names.remove("CAM_BACK_LEFT")
    assert [camera.name for camera in with_five.cameras] == names


def test_cameras_that_are_named_are_the_only_ones_in_the_usual_order(tiny: Any) -> None:
    def listed(*names: str) -> list[Frame]:
        return list(NuScenesDataset(DataConfig(root=str(tiny.path), cameras=names)).frames())

    two = listed("CAM_BACK", "CAM_FRONT")
    assert [[camera.name for camera in frame.cameras] for frame in two] == [["CAM_FRONT", "CAM_BACK"]] * 3
    with pytest.raises(ConfigError, match=r"data.cameras names LIDAR_TOP, which is no camera in .*sensor.json"):
        listed("CAM_FRONT", "LIDAR_TOP")


def test_radar_and_what_lies_between_key_frames_are_left_out(tiny: Any) -> None:
    before = tiny.frames()
    rows = tiny.table("sample_data")
    sensors = [*tiny.table("sensor"), {"token": "r", "channel": "RADAR_FRONT", "modality": "radar"}]
    calibration = {"token": "rc", "sensor_token": "r", "rotation": [1, 0, 0, 0], "translation": [0, 0, 0]}
    tiny.write_table("sensor", sensors)
    tiny.write_table("calibrated_sensor", [*tiny.table("calibrated_sensor"), {**calibration, "camera_intrinsic": []}])
    radar = {**rows[0], "token": "echo", "calibrated_sensor_token": "rc", "filename": "samples/RADAR_FRONT/echo.pcd"}
    between = {**rows[0], "token": "between", "is_key_frame": False, "filename": "sweeps/LIDAR_TOP/between.pcd.bin"}
    tiny.write_table("sample_data", [radar, between, *rows, {**between, "token": "later", "ego_pose_token": "gone"}])
    after = tiny.frames()
    assert [frame.lidar_token for frame in after] == [frame.lidar_token for frame in before]
    assert [[camera.token for camera in frame.cameras] for frame in after] == [
        [camera.token for camera in frame.cameras] for frame in before
    ]


def test_six_tables_are_enough_so_maps_boxes_and_lidarseg_need_not_be_there(tiny: Any) -> None:
    labelled = tiny.frames()
    for name in ("map", "log", "instance", "sample_annotation", "category", "attribute", "visibility", "lidarseg"):
        (tiny.path / tiny.version / f"{name}.json").unlink()
    for folder in ("maps", "lidarseg"):
        (tiny.path / folder).rename(tiny.path.parent / folder)
    frames = tiny.frames()
    assert [frame.label_path for frame in frames] == [None, None, None]
    assert [frame.frame_id for frame in frames] == [frame.frame_id for frame in labelled]
    np.testing.assert_array_equal(frames[2].cameras[5].cam_from_lidar, labelled[2].cameras[5].cam_from_lidar)


def test_label_paths_are_those_of_the_table_whether_or_not_the_folder_is_there(tiny: Any) -> None:
    rows = tiny.table("lidarseg")
    tiny.write_table("lidarseg", rows[1:])
    (tiny.path / "lidarseg").rename(tiny.path.parent / "elsewhere")
    paths = {frame.lidar_token: frame.label_path for frame in tiny.frames()}
    assert paths == {rows[0]["sample_data_token"]: None} | {
        row["sample_data_token"]: row["filename"] for row in rows[1:]
    }


def test_listing_prints_nothing(tiny: Any, capfd: pytest.CaptureFixture[str]) -> None:
    tiny.frames()
    assert capfd.readouterr() == ("", "")


# -- what a frame may lack is left for the index to report -----------------------------------------


def test_a_sample_without_a_sweep_is_listed_with_an_empty_path(tiny: Any) -> None:
    first, *others = tiny.frames()
    tiny.write_table("sample_data", [row for row in tiny.table("sample_data") if row["token"] != first.lidar_token])
    data = NuScenesDataset(DataConfig(root=str(tiny.path)))
    frames = list(data.frames())
    assert [frame.frame_id for frame in frames] == [frame.frame_id for frame in (first, *others)]
    assert frames[0].lidar_path == "" and frames[0].cameras == ()
    with pytest.raises(FrameError, match=f"sample {first.frame_id} has no LIDAR_TOP sweep"):
        data.read_cloud(frames[0])


@pytest.mark.parametrize(
    "values",
    [
        {"rotation": [0, 0, 0, 0]},
        {"rotation": [1, 0, 0]},
        {"rotation": None},
        {"translation": [float("nan"), 0, 0]},
        {"translation": "here"},
    ],
)
def test_a_calibration_that_makes_no_sense_becomes_a_pose_of_nan(tiny: Any, values: dict[str, Any]) -> None:
    first = tiny.frames()[0]
    token = next(r for r in tiny.table("sample_data") if r["token"] == first.cameras[2].token)[
        "calibrated_sensor_token"
    ]
    tiny.change("calibrated_sensor", lambda row: row["token"] == token, **values)
    broken = tiny.frames()[0].cameras
    assert np.isnan(broken[2].cam_from_lidar).any()
    assert all(np.isfinite(camera.cam_from_lidar).all() for camera in (*broken[:2], *broken[3:]))


@pytest.mark.parametrize("matrix", [[], [[1, 2], [3, 4]], [[1, 2, 3], [4, 5], [6]], "none"])
def test_a_camera_matrix_that_is_not_three_by_three_becomes_nan(tiny: Any, matrix: Any) -> None:
    tiny.change("calibrated_sensor", lambda row: bool(row["camera_intrinsic"]), camera_intrinsic=matrix)
    assert np.isnan(tiny.frames()[0].cameras[0].intrinsics).all()


# -- broken data sets ------------------------------------------------------------------------------


def test_an_unknown_version_is_an_error_that_names_the_versions_there_are(shared: Path) -> None:
    with pytest.raises(
        ConfigError, match=r'"v1.0-full" is not in .*; there are v1.0-mini, v1.0-semireal, v1.0-trainval'
    ):
        frames_of(shared / "data" / "nuscenes-real", "v1.0-full")


def test_a_root_that_is_no_folder_or_holds_no_version_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        frames_of(tmp_path / "nowhere", "v1.0-mini")
    with pytest.raises(ConfigError, match="there are no version folders"):
        frames_of(tmp_path, "v1.0-mini")
    with pytest.raises(ConfigError, match="there are no version folders"):
        frames_of(tmp_path, "..")


@pytest.mark.parametrize("name", ["scene", "sample_data", "ego_pose", "calibrated_sensor", "sensor"])
def test_a_missing_table_is_an_error_that_names_it(tiny: Any, name: str) -> None:
    (tiny.path / tiny.version / f"{name}.json").unlink()
    with pytest.raises(ConfigError, match=rf"{name}\.json: No such file"):
        tiny.frames()


@pytest.mark.parametrize("text", ["", "[{", "not json", '[{"token": "a"', "\xff\xfe"])
def test_a_table_that_is_not_json_is_an_error_that_names_it(tiny: Any, text: str) -> None:
    (tiny.path / tiny.version / "ego_pose.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"ego_pose\.json: not valid JSON"):
        tiny.frames()


@pytest.mark.parametrize("content", [{"a": 1}, 3, ["row"]])
def test_a_table_that_is_no_list_of_rows_is_an_error(tiny: Any, content: Any) -> None:
    tiny.write_table("sensor", content)
    with pytest.raises(ConfigError, match=r"sensor\.json: expected a list of rows"):
        tiny.frames()


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("sample_data", "ego_pose_token"),
        ("sample_data", "calibrated_sensor_token"),
        ("sample_data", "sample_token"),
        ("calibrated_sensor", "sensor_token"),
        ("sample", "scene_token"),
    ],
)
def test_a_row_that_refers_to_none_is_an_error_that_names_the_token(tiny: Any, name: str, column: str) -> None:
    rows = tiny.table(name)
    rows[0][column] = "nowhere-to-be-found"
    tiny.write_table(name, rows)
    with pytest.raises(ConfigError, match="the tables do not fit together: 'nowhere-to-be-found'"):
        tiny.frames()


@pytest.mark.parametrize(
    ("name", "column"),
    [("sample_data", "is_key_frame"), ("scene", "name"), ("sample", "timestamp"), ("sensor", "token")],
)
def test_a_row_that_lacks_a_column_is_an_error_that_names_the_column(tiny: Any, name: str, column: str) -> None:
    tiny.write_table(name, [{key: value for key, value in row.items() if key != column} for row in tiny.table(name)])
    with pytest.raises(ConfigError, match=f"'{column}' is a column that a row lacks"):
        tiny.frames()


def test_a_value_of_another_type_is_an_error(tiny: Any) -> None:
    tiny.change("sample_data", of_channel(tiny, "LIDAR_TOP"), timestamp="noon")
    with pytest.raises(ConfigError, match=r"sample_data.json: a timestamp is 'noon'; expected a number"):
        tiny.frames()


def test_two_scenes_of_one_name_are_an_error(tiny: Any) -> None:
    tiny.change("scene", lambda row: True, name="scene-0001")
    with pytest.raises(ConfigError, match=r"scene names \['scene-0001'\] occur more than once"):
        tiny.frames()


# -- reading files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [0, 19, 21, 693_759])
def test_a_truncated_sweep_is_an_error_that_gives_its_size(tiny: Any, n_bytes: int) -> None:
    frame = tiny.frames()[0]
    tiny.write_file(frame.lidar_path, b"\0" * n_bytes)
    data = open_dataset(DataConfig(root=str(tiny.path)))
    with pytest.raises(
        FrameError, match=f"it is truncated, or has other columns: {n_bytes} bytes is not a positive multiple of 20"
    ):
        data.read_cloud(frame)


@pytest.mark.parametrize("name", ["../outside.pcd.bin", "/etc/passwd", "samples/../../outside.pcd.bin", "a\\..\\b"])
def test_a_file_name_that_leaves_the_root_is_refused(tiny: Any, name: str) -> None:
    (tiny.path.parent / "outside.pcd.bin").write_bytes(b"\0" * 20)
    tiny.change("sample_data", of_channel(tiny, "LIDAR_TOP"), filename=name)
    tiny.change("lidarseg", lambda row: True, filename=name)
    data = open_dataset(DataConfig(root=str(tiny.path)))
    frame = next(iter(data.frames()))
    with pytest.raises(FrameError, match="leaves the data root"):
        data.read_cloud(frame)
    with pytest.raises(FrameError, match="leaves the data root"):
        data.read_labels(frame)


def test_reading_labels_of_a_frame_without_any_is_an_error(shared: Path) -> None:
    data = NuScenesDataset(DataConfig(root=str(shared / "data" / "nuscenes-real"), version="v1.0-mini"))
    with pytest.raises(FrameError, match=r"no table `lidarseg` of v1.0-mini names a label file for sweep"):
        data.read_labels(next(iter(data.frames())))


def test_a_worker_reads_files_without_the_development_kit(shared: Path, tmp_path: Path) -> None:
    program = """
import sys
from manifests.sections.data import DataConfig
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame
import numpy as np
data = open_dataset(DataConfig(root=sys.argv[1]))
frame = Frame("f", "s", 0, "t", sys.argv[2], None, np.eye(4), np.eye(4), ())
assert data.read_cloud(frame).xyz_m.shape == (34688, 3)
assert not {"nuscenes", "torch", "matplotlib", "cv2", "ray"} & set(sys.modules), sys.modules
"""
    root = shared / "golden" / "nuscenes_tiny"
    sweep = "samples/LIDAR_TOP/n000__LIDAR_TOP__1532402927000000.pcd.bin"
    checkout = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program, str(root), sweep], check=True, cwd=checkout)


def test_what_the_development_kit_draws_with_is_loaded_when_it_draws() -> None:
    program = """
        import sys
        from pipeline.datasets.nuscenes import loaded_when_used
        with loaded_when_used("sklearn", "sklearn.metrics", "matplotlib.pyplot"):
            from nuscenes import nuscenes
        assert {"sklearn", "sklearn.metrics", "matplotlib.pyplot"}.isdisjoint(sys.modules)
        assert nuscenes.sklearn.metrics.jaccard_score([1], [1]) == 1.0
        assert nuscenes.plt.figure is __import__("matplotlib.pyplot").pyplot.figure
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
