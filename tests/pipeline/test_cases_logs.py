"""Logs that were once taken for something else, built from real frames by ../shared/cases/logs; others like them."""

from __future__ import annotations

import codecs
import itertools
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from manifests.asked import tables_of
from manifests.config import ConfigError
from manifests.ontology import load_ontology
from manifests.recipe import load_recipe
from manifests.sections.data import DataConfig
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from manifests.tables.labels import Correct, Label
from manifests.tables.sensors import Points
from pipeline.commands.build import without_absent
from pipeline.datasets.nuscenes import NuScenesDataset
from pipeline.datasets.registry import open_dataset
from pipeline.engine.absent import whole_scenes
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.frame import Camera, Frame, FrameError, read_image
from pipeline.geometry import chained, inverse_pose, pose_matrix
from pipeline.lenses import Lens
from pipeline.look.frames import draw_frames
from pipeline.look.pictures import from_above
from pipeline.stages.index import check_frame
from pipeline.stages.registry import STAGES
from superpixels.returns import is_return
from tests.pipeline.conftest import Made, Root
from tests.refs import newest
from trainer.__main__ import app as trainer


def causes(recipe_path: Path, *targets: str, settings: Sequence[str] = ()) -> list[str]:
    """Build tables of a recipe and return why frames failed."""
    recipe = load_recipe(recipe_path, settings)
    return [failure.cause for failure in Runner(recipe).run(targets, InlinePool(recipe))]


def labels_of(recipe_path: Path) -> list[dict[int, int]]:
    """Build table `label` and return how many points have each class, frame by frame."""
    assert causes(recipe_path, "label") == []
    recipe = load_recipe(recipe_path)
    store = Store.open(recipe.run.store)
    table = newest(store, recipe.name).tables["label"]
    rows = store.every(Label, table.fingerprint, table.shards)
    counts = [np.unique(row.label, return_counts=True) for row in rows]
    return [dict(zip(labels.tolist(), many.tolist(), strict=True)) for labels, many in counts]


@given(st.permutations(range(32)))
def test_classes_are_brought_to_the_dictionary_by_name_however_they_are_numbered(order: list[int]) -> None:
    ontology = load_ontology("nuscenes")
    table = ontology.renumbering({number: ontology.fine[fine].name for number, fine in enumerate(order)})
    if order == sorted(order):
        assert table is None
    else:
        assert table is not None and [ontology.fine[order[number]].raw for number in range(32)] == [
            (int(table[number]),) for number in range(32)
        ]
    assert ontology.renumbering({7: "of another data set", 9: "altogether"}) is None


def test_c01_labels_are_named_by_the_category_table_of_the_version(made: Made) -> None:
    case = made("c01_category_index")
    expected = {0: 21323, 1: 288, 2: 1, 3: 3, 4: 79, 5: 4, 7: 109, 8: 13, 10: 502, 11: 12366}
    assert expected in labels_of(case / "r.toml")
    table = case / "data/v1.0-semireal/category.json"
    table.write_text(table.read_text().replace('"vehicle.car"', '"vehicle.flying"'))  # no row of before is taken again
    with pytest.raises(ConfigError, match=r"category.json: classes are numbered otherwise .* know 'vehicle.flying'"):
        causes(case / "r.toml", "label")


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


def test_c27_of_a_partial_download_the_whole_scenes_are_used_and_the_others_told(
    made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    path = made("c27_one_blob_part") / "r.toml"
    recipe = load_recipe(path)
    runner = Runner(recipe)
    failures = runner.run(["points"], InlinePool(recipe))
    [line], n_partial = without_absent(failures, recipe, runner.listing())
    assert n_partial == 1 and line.frame_id is None
    assert line.cause.startswith("none of the 7 sweeps and images of scene-0003 is on disk (the first is samples/LIDAR")
    with pytest.raises(
        StoreError, match=r"table `points` .* is not finished: `index` failed in scene-0003 .*leave out"
    ):
        tables_of(runner.store, recipe, ["points"])
    whole = load_recipe(path, ["data.incomplete=leave out"])
    runner = Runner(whole)
    assert runner.run(["points"], InlinePool(whole)) == []
    assert "1 of 2 scenes are left out, since files of them are not on disk: none of the 7 sweeps" in caplog.text
    assert [shard.shard for shard in tables_of(runner.store, whole, ["points"]).tables["points"].shards] == [
        "scene-0061"
    ]


@given(gone=st.sets(st.integers(0, 5)))
def test_scenes_that_lack_a_file_are_left_out_whichever_it_is(gone: set[int]) -> None:
    """Three scenes of two frames of one sweep each."""
    with tempfile.TemporaryDirectory() as folder:
        for number in set(range(6)) - gone:
            Path(folder, f"{number}.bin").touch()
        pose = np.eye(4)
        scenes = {
            f"s{scene}": [[Frame(f"f{i}", f"s{scene}", i, f"t{i}", f"{i}.bin", None, pose, pose, ()) for i in part]]
            for scene, part in enumerate(((0, 1), (2, 3), (4, 5)))
        }
        whole = [f"s{scene}" for scene in range(3) if not {2 * scene, 2 * scene + 1} & gone]
        if whole:
            assert list(whole_scenes(scenes, DataConfig(root=folder))) == whole
        else:
            with pytest.raises(ConfigError, match=r"3 of 3 scenes are left out, .*; there is no other"):
                whole_scenes(scenes, DataConfig(root=folder))


def test_c15_returns_from_nothing_get_no_label_and_change_none(made: Made) -> None:
    case = made("c15_zero_returns")
    assert causes(case / "r.toml", "correct", "label") == []
    recipe = load_recipe(case / "r.toml")
    store = Store.open(recipe.run.store)
    tables = newest(store, recipe.name).tables
    rows: list[list[Any]] = [
        store.every(kind, tables[name].fingerprint, tables[name].shards)
        for name, kind in (("correct", Correct), ("points", Points), ("label", Label))
    ]
    for row, sweep, truth in zip(*rows, strict=True):
        there = is_return(sweep.xyz_m)
        assert 0.33 < 1 - there.mean() < 0.34 and not row.label[~there].any() and not truth.label[~there].any()


def test_c19_every_frame_has_a_picture_of_its_own(made: Made, tmp_path: Path) -> None:
    recipe = load_recipe(made("c19_pictures_overwritten") / "r.toml")
    assert Runner(recipe).run(["pairs", "target"], InlinePool(recipe)) == []
    paths = draw_frames(recipe, tmp_path, 4, False, print)
    assert len(set(paths)) == 2 and all(path.is_file() for path in paths)


@given(turn_deg=st.floats(-180, 180), range_m=st.floats(1, 50), bearing_deg=st.floats(-180, 180))
def test_c23_ahead_is_up_however_the_lidar_stands(turn_deg: float, range_m: float, bearing_deg: float) -> None:
    ego_from_lidar = np.eye(4)
    ego_from_lidar[:3, :3] = Rotation.from_euler("z", turn_deg, degrees=True).as_matrix()
    bearing = np.radians(bearing_deg)  # to the left of where the vehicle drives
    in_ego = range_m * np.array([np.cos(bearing), np.sin(bearing), 0])
    frame = Frame("f", "s", 0, "t", "p", None, ego_from_lidar, np.eye(4), ())
    [[right, ahead]] = from_above(frame, (ego_from_lidar[:3, :3].T @ in_ego)[None].astype(np.float32))
    np.testing.assert_allclose([right, ahead], [-in_ego[1], in_ego[0]], atol=1e-4)


def test_c23_the_way_that_the_vehicle_drives_is_drawn_upwards(made: Made) -> None:
    first, second = open_dataset(load_recipe(made("c23_forward_is_up") / "r.toml").data).frames()
    step_m = (inverse_pose(first.world_from_lidar) @ second.world_from_lidar)[:3, 3]
    [[right, ahead]] = from_above(first, step_m[None].astype(np.float32))
    assert ahead > 0.3 and abs(right) < 0.1 * ahead


def test_c14_a_log_without_cameras_teaches_nothing_and_is_refused(made: Made) -> None:
    case = made("c14_train_on_nothing")
    assert causes(case / "r.toml", "pairs", "target") == []
    for words, why in (
        (["pretrain"], "has a pair of a point and a superpoint, so pretrain has nothing to learn"),
        (["distill", "--set", "distill.init="], "has a pseudo-label, so distill has nothing to learn"),
        (["predict"], "checkpoint"),
    ):
        done = CliRunner().invoke(trainer, [words[0], str(case / "r.toml"), *words[1:]])
        assert done.exit_code != 0 and why in " ".join(done.output.split()), done.output
    assert not list((case / "runs").rglob("*.safetensors"))


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
    with pytest.raises(
        ConfigError, match=r"has 2 LiDARs and no LIDAR_TOP; .* lidar = .\"LIDAR_LEFT\", \"LIDAR_RIGHT\""
    ):
        frames_of(tiny)
    assert [frame.lidar_path for frame in frames_of(tiny, lidar=("LIDAR_LEFT",))] == expected
    dataset = NuScenesDataset(DataConfig(root=str(tiny.path), lidar=("LIDAR_RIGHT",)))
    with pytest.raises(FrameError, match=r"^sample \S+ has no LIDAR_RIGHT sweep in v1.0-trainval/sample_data.json$"):
        check_frame(dataset, tiny.path, next(dataset.frames()))
    tiny.change("sensor", lambda row: row["modality"] == "lidar", modality="radar")
    with pytest.raises(ConfigError, match="there is no LiDAR; LiDARs there are: none"):
        frames_of(tiny)


def test_several_lidars_are_joined_by_calibration_and_it_is_kept_which_point_is_of_which(tiny: Root) -> None:
    """The second LiDAR has the same sweep, is mounted 2 m further left and turned by a quarter."""
    with_second_lidar(tiny)
    rows, calibrations = tiny.table("sample_data"), tiny.table("calibrated_sensor")
    left = next(row for row in calibrations if row["sensor_token"] != "right" and not row["camera_intrinsic"])
    ego_from_left = pose_matrix(left["rotation"], left["translation"])
    left_from_right = pose_matrix([np.sqrt(0.5), 0, 0, np.sqrt(0.5)], [0, 2, 0])
    ego_from_right = chained(ego_from_left, left_from_right)
    quaternion = Rotation.from_matrix(ego_from_right[:3, :3]).as_quat(scalar_first=True).tolist()
    right = left | {"token": "right", "sensor_token": "right", "rotation": quaternion}
    tiny.write_table("calibrated_sensor", [*calibrations, right | {"translation": ego_from_right[:3, 3].tolist()}])
    again = [row for row in rows if row["calibrated_sensor_token"] == left["token"]]
    copies = [row | {"token": f"right {row['token']}", "calibrated_sensor_token": "right"} for row in again]
    tiny.write_table("sample_data", [*rows, *copies])
    data = DataConfig(root=str(tiny.path), lidar=("LIDAR_LEFT", "LIDAR_RIGHT"))
    dataset = NuScenesDataset(data)
    frame = Frame.of(check_frame(dataset, tiny.path, next(dataset.frames())).index())
    alone = NuScenesDataset(DataConfig(root=str(tiny.path), lidar=("LIDAR_LEFT",)))
    cloud = alone.read_cloud(next(alone.frames()))
    xyz_m, intensity = cloud.xyz_m, cloud.intensity
    cloud = dataset.read_cloud(frame)
    both, light = cloud.xyz_m, cloud.intensity
    assert [one.n_points for one in frame.sweeps] == [len(xyz_m)] * 2 and frame.n_points == 2 * len(xyz_m)
    assert [one.name for one in frame.sweeps] == ["LIDAR_LEFT", "LIDAR_RIGHT"] and frame.label_path is None
    np.testing.assert_array_equal(both[: len(xyz_m)], xyz_m)
    np.testing.assert_allclose(both[len(xyz_m) :], xyz_m[:, [1, 0, 2]] * [-1, 1, 1] + [0, 2, 0], atol=1e-4)
    np.testing.assert_array_equal(light, np.tile(intensity, 2))


def test_distortion_of_the_tables_is_the_lens_of_a_camera(tiny: Root) -> None:
    tiny.change("calibrated_sensor", lambda row: bool(row["camera_intrinsic"]), camera_distortion=[-0.3, 0.1, 0, 0, 0])
    assert {camera.lens for camera in tiny.frames()[0].cameras} == {Lens("brown", (-0.3, 0.1, 0, 0, 0))}
    tiny.change("calibrated_sensor", lambda row: bool(row["camera_intrinsic"]), camera_distortion=[0.1, 0.2])
    [first, *_] = tiny.frames()[0].problems
    assert first == (
        "CAM_FRONT: camera_distortion in v1.0-trainval/calibrated_sensor.json: 2 coefficients of distortion; "
        "expected 4, 5 or 8 as OpenCV orders them"
    )


def test_no_point_is_seen_where_a_mask_shows_the_vehicle(tiny: Root, recipe_over: Any, run_stage: Any) -> None:
    (tiny.path / "masks").mkdir()
    mask = np.zeros((900, 1600), np.uint8)
    mask[500:] = 255
    Image.fromarray(mask).save(tiny.path / "masks/CAM_BACK.png")
    pairs = []
    for masks in ("", "masks"):
        data = DataConfig(root=str(tiny.path), masks=masks)
        recipe, dataset = recipe_over(tiny.path, data=data), NuScenesDataset(data)
        frame = Frame.of(check_frame(dataset, tiny.path, next(dataset.frames())).index())
        points = run_stage(STAGES["points"], recipe, frame)
        pairs.append(run_stage(STAGES["project"], recipe, frame, points))
    view = [camera.name for camera in frame.cameras].index("CAM_BACK")
    plain, masked = pairs
    kept = (plain.view != view) | (plain.row_px < 500)
    np.testing.assert_array_equal(masked.point, plain.point[kept])
    assert 0 < (~kept).sum() < len(kept)
    Image.fromarray(mask[:100]).save(tiny.path / "masks/CAM_BACK.png")
    with pytest.raises(FrameError, match=r"masks/CAM_BACK.png: 1600 x 100 pixels, but .* has 1600 x 900"):
        check_frame(dataset, tiny.path, next(dataset.frames()))
    with pytest.raises(ConfigError, match=r"has no file shades/CAMERA.png for any of the cameras CAM_BACK, "):
        frames_of(tiny, masks="shades")


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
    cloud = dataset.read_cloud(frame)
    xyz_m, intensity = cloud.xyz_m, cloud.intensity
    name = frame.lidar_path.removesuffix(".pcd.bin") + ending
    tiny.change("sample_data", lambda row: row["filename"] == frame.lidar_path, filename=name)
    table = np.column_stack([xyz_m, intensity])
    if ending == ".npy":
        np.save(tiny.path / name, table)
    else:
        header = f"FIELDS x y z i\nSIZE 4 4 4 4\nTYPE F F F F\nPOINTS {len(table)}\nDATA binary\n"
        (tiny.path / name).write_bytes(header.encode() + table.astype("<f4").tobytes())
    other = dataset.read_cloud(tiny.frames()[0])
    np.testing.assert_array_equal(other.xyz_m, xyz_m)
    np.testing.assert_array_equal(other.intensity, intensity)
    assert other.notes == (() if ending == ".npy" else ("intensity is its column `i`",))
