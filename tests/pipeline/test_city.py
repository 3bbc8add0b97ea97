"""The synthetic city as a whole: a valid nuScenes root whose truth fits its pictures, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from bench.city.canvas import KEYFRAME_S
from bench.city.config import SIZES, CityConfig, city_config
from bench.city.generate import class_map_path, place_map_path, write_city, write_scene
from bench.city.layout import LEAD_S, lay_out
from bench.city.render import Stage
from bench.city.sensors import RIG
from bench.city.things import FINE
from manifests.config import ConfigError
from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig
from manifests.splits import load_split
from manifests.tables.sensors import Index
from pipeline.datasets.registry import open_dataset
from pipeline.geometry import project
from pipeline.stages.index import STAGE as INDEX

TINY = SIZES["tiny"]
SMALL = CityConfig(train_scenes=1, val_scenes=1, keyframes=1, image_width_px=64, image_height_px=36, azimuths=64)


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("city")
    write_city(root, TINY)
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coarse city to copy and damage."""
    root = tmp_path_factory.mktemp("small")
    write_city(root, SMALL)
    return root


@pytest.fixture(scope="module")
def devkit(city: Path) -> Any:
    from nuscenes.nuscenes import NuScenes

    return NuScenes(version=TINY.version, dataroot=str(city), verbose=False)


def table(root: Path, name: str, version: str = TINY.version) -> list[dict[str, Any]]:
    return list(json.loads((root / version / f"{name}.json").read_text()))


def contents(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def sweeps(root: Path) -> list[tuple[dict[str, Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """Row, points (n, 5) and labels (n,) of every sweep."""
    labels = {row["sample_data_token"]: row["filename"] for row in table(root, "lidarseg")}
    return [
        (
            row,
            np.fromfile(root / row["filename"], "<f4").reshape(-1, 5),
            np.fromfile(root / labels[row["token"]], np.uint8),
        )
        for row in table(root, "sample_data")
        if row["fileformat"] == "pcd"
    ]


def test_the_official_development_kit_loads_all_tables_and_they_refer_to_each_other(devkit: Any) -> None:
    assert len(devkit.scene) == 3 and len(devkit.sample) == 6 and len(devkit.sample_data) == 6 * 7
    assert len(devkit.category) == 32 and len(devkit.lidarseg) == 6 and len(devkit.map) == 3
    assert [row["index"] for row in devkit.category] == list(range(32))
    for scene in devkit.scene:
        sample = devkit.get("sample", scene["first_sample_token"])
        assert not sample["prev"] and sample["next"] == scene["last_sample_token"]
        assert set(sample["data"]) == {sensor.channel for sensor in RIG}
        following = devkit.get("sample", sample["next"])
        assert following["timestamp"] - sample["timestamp"] == KEYFRAME_S * 1e6
        for channel, token in sample["data"].items():
            later = devkit.get("sample_data", devkit.get("sample_data", token)["next"])
            assert (later["channel"], later["sample_token"]) == (channel, following["token"])
    for instance in devkit.instance:
        box = devkit.get("sample_annotation", instance["first_annotation_token"])
        for _ in range(instance["nbr_annotations"] - 1):
            box = devkit.get("sample_annotation", box["next"])
        assert box["token"] == instance["last_annotation_token"] and not box["next"]


# the kit leaves the image files that it draws open
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_development_kit_draws_images_sweeps_and_labels(devkit: Any, tmp_path: Path) -> None:
    import matplotlib.pyplot as plt

    sample = devkit.sample[0]
    for channel in ("CAM_FRONT", "LIDAR_TOP"):
        picture = tmp_path / f"{channel}.png"
        devkit.render_sample_data(
            sample["data"][channel], out_path=str(picture), verbose=False, show_lidarseg=channel == "LIDAR_TOP",
            underlay_map=False,
        )  # fmt: skip
        assert picture.stat().st_size > 10_000
    points, _, image = devkit.explorer.map_pointcloud_to_image(
        sample["data"]["LIDAR_TOP"], sample["data"]["CAM_FRONT"], render_intensity=True
    )
    assert points.shape[1] > 300 and image.size == (400, 225)
    plt.close("all")


def test_the_development_kit_counts_the_labels_of_a_sweep(devkit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    devkit.get_sample_lidarseg_stats(devkit.sample[0]["token"], sort_by="count")
    assert "flat.driveable_surface" in capsys.readouterr().out


def test_the_car_is_on_the_driveable_part_of_its_map(devkit: Any) -> None:
    for scene in devkit.scene:
        log = devkit.get("log", scene["log_token"])
        mask = devkit.get("map", log["map_token"])["mask"]
        sample = devkit.get("sample", scene["first_sample_token"])
        pose = devkit.get("ego_pose", devkit.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        x, y, _ = pose["translation"]
        assert mask.is_on_mask([x], [y]).all()
        assert not mask.is_on_mask([x + 2000.0], [y]).any()


def test_our_reader_and_stage_index_accept_every_frame(
    city: Path, recipe_over: Callable[..., Recipe], run_stage: Callable[..., Index]
) -> None:
    frames = list(open_dataset(DataConfig(root=str(city), version=TINY.version)).frames())
    assert [frame.scene for frame in frames] == [scene for scene in TINY.scenes for _ in range(2)]
    for frame in frames:
        row = run_stage(INDEX, recipe_over(city, TINY.version), frame)
        assert row.n_points > 25_000
        assert list(row.camera[:2]) == ["CAM_FRONT", "CAM_FRONT_RIGHT"] and len(row.camera) == 6
        assert set(row.width_px.tolist()) == {400} and set(row.height_px.tolist()) == {225}


def test_the_lists_of_drives_are_splits_that_a_recipe_can_name(city: Path) -> None:
    scenes = [row["name"] for row in table(city, "scene")]
    train = load_split(str(city / "train.txt"), "nuscenes", scenes)
    val = load_split(str(city / "val.txt"), "nuscenes", scenes)
    assert (train, val) == (TINY.train, TINY.val) and not set(train) & set(val)


def test_points_projected_into_the_class_maps_agree_with_their_labels(city: Path) -> None:
    """The promise of the truth: of static points in sight and away from boundaries, 97 of 100 agree or more."""
    dataset = open_dataset(DataConfig(root=str(city), version=TINY.version))
    moving = [FINE[name] for name in FINE if name.startswith(("vehicle", "human", "movable", "noise"))]
    agreed = total = 0
    scene = stage = None
    for position, frame in enumerate(dataset.frames()):
        if scene is None or scene.name != frame.scene:
            scene = lay_out(TINY, frame.scene)
            stage = Stage(scene.static)
        assert stage is not None
        time_s = LEAD_S + position % 2 * KEYFRAME_S
        xyz_m, labels = dataset.read_cloud(frame).xyz_m, dataset.read_labels(frame)
        for camera in frame.cameras:
            classes = np.asarray(Image.open(city / class_map_path(TINY, camera.token)))
            inner = minimum_filter(classes, 5) == maximum_filter(classes, 5)
            shot = project(xyz_m, camera.cam_from_lidar, camera.intrinsics, 400, 225)
            # whether a point is in sight is asked of the scene itself: the way from the camera to it must be free
            [sensor] = [sensor for sensor in RIG if sensor.channel == camera.name]
            pose = scene.ego_pose(time_s + sensor.delay_s) @ sensor.ego_from_sensor
            xyz_cam = xyz_m[shot.point] @ camera.cam_from_lidar[:3, :3].T + camera.cam_from_lidar[:3, 3]
            met = stage.at([]).cast(pose[:3, 3], (xyz_cam @ pose[:3, :3].T).astype(np.float32))
            own, seen = labels[shot.point], met.distance > 0.98
            used = seen & inner[shot.row_px, shot.col_px] & ~np.isin(own, moving)
            # what moves may stand in the way of what does not
            used &= ~np.isin(classes[shot.row_px, shot.col_px], moving)
            agreed += int((classes[shot.row_px, shot.col_px] == own)[used].sum())
            total += int(used.sum())
    assert total > 20_000
    assert agreed / total > 0.97


def test_the_true_class_of_the_sky_is_static_other_and_all_others_are_fine_classes(city: Path) -> None:
    front = next(row for row in table(city, "sample_data") if "CAM_FRONT/" in row["filename"])
    classes = np.asarray(Image.open(city / class_map_path(TINY, front["token"])))
    assert classes.shape == (225, 400) and classes.dtype == np.uint8
    assert (classes[0] == FINE["static.other"]).any()
    assert set(np.unique(classes)) <= set(FINE.values()) - {FINE["noise"], FINE["vehicle.ego"]}


def test_a_thing_has_one_number_in_all_images_of_a_drive_and_a_class(city: Path) -> None:
    classes_of: dict[tuple[str, int], set[int]] = {}
    images_of: dict[tuple[str, int], int] = {}
    for frame in open_dataset(DataConfig(root=str(city), version=TINY.version)).frames():
        for camera in frame.cameras:
            place = np.asarray(Image.open(city / place_map_path(TINY, camera.token)))
            classes = np.asarray(Image.open(city / class_map_path(TINY, camera.token)))
            assert place.shape == classes.shape and place.dtype == np.uint16
            np.testing.assert_array_equal(place[classes == FINE["vehicle.car"]] < 1000, True)
            np.testing.assert_array_equal(place[classes == FINE["flat.driveable_surface"]] >= 1000, True)
            for number in np.unique(place[(place > 0) & (place < 1000)]).tolist():
                thing = frame.scene, number
                images_of[thing] = images_of.get(thing, 0) + 1
                classes_of.setdefault(thing, set()).update(np.unique(classes[place == number]).tolist())
    assert max(images_of.values()) > 1
    one_class = [len(found) == 1 for found in classes_of.values()]
    assert len(one_class) > 20 and np.mean(one_class) > 0.9  # a bicycle may have a rider


def test_a_late_clock_changes_images_and_not_what_the_tables_tell(small: Path, tmp_path: Path) -> None:
    write_city(tmp_path, replace(SMALL, clock_error_s=0.1, val_scenes=0))
    for name in ("ego_pose", "sample_data", "calibrated_sensor", "sample_annotation"):
        ours = {row["token"]: row for row in table(tmp_path, name)}
        theirs = {row["token"]: row for row in table(small, name)}
        for token, row in ours.items():
            unlike = {key for key in row if row[key] != theirs[token][key]}
            assert unlike <= {"visibility_token"}, (name, unlike)
    front = [row for row in table(tmp_path, "sample_data") if row["filename"].startswith("samples/LIDAR")]
    assert all((tmp_path / row["filename"]).read_bytes() == (small / row["filename"]).read_bytes() for row in front)
    images = [row["token"] for row in table(tmp_path, "sample_data") if row["filename"].endswith(".jpg")]
    moved = [
        np.mean(
            np.asarray(Image.open(tmp_path / class_map_path(SMALL, token)))
            != np.asarray(Image.open(small / class_map_path(SMALL, token)))
        )
        for token in images
    ]
    assert min(moved) > 0 and np.median(moved) < 0.5


def test_names_of_fine_classes_are_those_of_the_class_dictionary() -> None:
    names = [kind.name for kind in load_ontology("nuscenes").fine]
    assert all(names[index] == name for name, index in FINE.items())


def test_a_sweep_has_nearly_as_many_points_as_the_real_sensor_and_all_classes_appear(city: Path) -> None:
    counts = np.zeros(32, np.int64)
    for _, points, labels in sweeps(city):
        assert 27_000 < len(points) == len(labels) <= 32 * TINY.azimuths
        counts += np.bincount(labels, minlength=32)
    classes = load_ontology("nuscenes").class_of_raw_labels(np.arange(32))
    shares = np.bincount(classes, counts, minlength=17)[1:] / counts.sum()
    assert (shares > 0).all()
    road, sidewalk, terrain, manmade, vegetation = shares[[10, 12, 13, 14, 15]]
    assert 0.12 < road < 0.40 and 0.03 < sidewalk < 0.15 and 0.02 < terrain < 0.15
    assert 0.08 < manmade < 0.35 and 0.05 < vegetation < 0.25
    assert 0.15 < counts[FINE["vehicle.ego"]] / counts.sum() < 0.40


def test_points_lie_on_their_beams_within_the_noise(city: Path) -> None:
    from bench.city.sensors import ELEVATIONS_DEG

    for _, points, _ in sweeps(city):
        xyz, intensity, ring = points[:, :3], points[:, 3], points[:, 4]
        assert np.isfinite(points).all() and intensity.min() >= 0 and intensity.max() <= 255
        range_m = np.linalg.norm(xyz, axis=1)
        elevation = np.degrees(np.arcsin(xyz[:, 2] / range_m))
        np.testing.assert_allclose(elevation, ELEVATIONS_DEG[ring.astype(int)], atol=1e-3)
        assert range_m.max() < TINY.max_range_m + 0.5


def test_no_class_can_be_told_by_its_intensity(city: Path) -> None:
    names = ("vehicle.car", "flat.driveable_surface", "flat.sidewalk", "static.manmade")
    found: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in names}
    for _, points, labels in sweeps(city):
        for name, values in found.items():
            values.append(points[labels == FINE[name], 3])
    spans = [np.percentile(np.concatenate(values), (5, 95)) for values in found.values()]
    assert max(low for low, _ in spans) < min(high for _, high in spans)


def test_boxes_hold_the_points_that_they_count(devkit: Any) -> None:
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    counted = held = 0
    for sample in devkit.sample:
        path, boxes, _ = devkit.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            counted += devkit.get("sample_annotation", box.token)["num_lidar_pts"]
            held += int(points_in_box(box, points, wlh_factor=1.02).sum())
    # ground below a box and branches above it lie in the box too, and range noise puts a few points outside
    assert counted > 1000 and 0.9 < held / counted < 1.2


def test_sensors_of_one_frame_see_the_moving_car_at_different_places_and_times(devkit: Any) -> None:
    moved = []
    for sample in devkit.sample:
        rows = [devkit.get("sample_data", token) for token in sample["data"].values()]
        delays = {row["channel"]: row["timestamp"] - sample["timestamp"] for row in rows}
        assert delays["LIDAR_TOP"] == 0 and delays["CAM_FRONT"] == -35_500 and len(set(delays.values())) == 7
        places = np.array([devkit.get("ego_pose", row["ego_pose_token"])["translation"] for row in rows])
        moved.append(np.ptp(places, axis=0).max())
    assert max(moved) > 0.1


def test_the_same_settings_give_the_same_bytes_with_any_number_of_workers(small: Path, tmp_path: Path) -> None:
    write_city(tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(small)


def test_another_seed_gives_another_city(small: Path, tmp_path: Path) -> None:
    other = replace(SMALL, seed=1)
    write_scene(tmp_path, other, "city-0001")
    names = {path.name for path in (small / "lidarseg" / SMALL.version).iterdir()}
    assert not names & {path.name for path in (tmp_path / "lidarseg" / SMALL.version).iterdir()}
    [mine] = [path for path in (small / "samples" / "LIDAR_TOP").iterdir() if "city-0001" in path.name]
    assert (tmp_path / "samples" / "LIDAR_TOP" / mine.name).read_bytes() != mine.read_bytes()


def test_a_run_goes_on_from_the_drives_that_are_complete(small: Path, tmp_path: Path) -> None:
    root = tmp_path / "city"
    shutil.copytree(small, root)
    before = contents(root)
    kept = root / "scenes" / SMALL.version / "city-0001.json"
    untouched = kept.stat().st_mtime_ns
    (root / "scenes" / SMALL.version / "city-9001.json").unlink()
    next((root / "samples" / "CAM_BACK").glob("city-9001*")).write_bytes(b"half a file")
    told: list[str] = []
    write_city(root, SMALL, finished=told.append)
    assert sorted(told) == ["city-0001", "city-9001"]
    assert kept.stat().st_mtime_ns == untouched and contents(root) == before


def test_a_smaller_city_in_the_same_folder_leaves_no_files_without_rows(small: Path, tmp_path: Path) -> None:
    root = tmp_path / "city"
    shutil.copytree(small, root)
    fewer = replace(SMALL, val_scenes=0)
    write_city(root, fewer)
    assert not [name for name in contents(root) if "9001" in name]
    assert [row["name"] for row in table(root, "scene")] == ["city-0001"]
    named = {row["filename"] for row in (*table(root, "sample_data"), *table(root, "lidarseg"), *table(root, "map"))}
    files = {name for name in contents(root) if name.startswith(("samples", "lidarseg", "maps"))}
    assert files == named
    for maps in ("classmaps", "placemaps"):
        assert len(list((root / maps / SMALL.version).iterdir())) == 6


def test_tables_of_something_else_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / SMALL.version).mkdir()
    with pytest.raises(ConfigError, match="no city was written with"):
        write_city(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"keyframes": 0}, "keyframes is 0; it must be between 1 and"),
        ({"seed": -1}, "seed is -1"),
        ({"image_width_px": 10}, "image_width_px is 10"),
        ({"version": "a/b"}, "plain name of a folder"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CityConfig(**wrong)


def test_a_larger_city_keeps_the_drives_of_a_smaller_one() -> None:
    larger = replace(SMALL, train_scenes=5)
    assert larger.scene_digest() == SMALL.scene_digest() != replace(SMALL, seed=1).scene_digest()
    assert set(SMALL.scenes) < set(larger.scenes)


def test_a_city_is_asked_for_by_size_seed_and_image_size() -> None:
    assert city_config("tiny") == TINY
    assert city_config("bench", 3).seed == 3 and len(city_config("bench").val) == 10
    wide = city_config("demo", image_size="1600x900")
    assert (wide.image_width_px, wide.image_height_px) == (1600, 900)
    with pytest.raises(ConfigError, match="there are tiny, demo, bench"):
        city_config("huge")
    with pytest.raises(ConfigError, match="such as 800x450"):
        city_config("demo", image_size="big")
