"""Your own logs as plain files: the tables are those of another reader, and every slip of the pen gets a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests.config import ConfigError
from manifests.recipe import Recipe, load_recipe
from manifests.sections.data import DataConfig
from manifests.storage.store import Store
from manifests.tables.registry import TABLES
from pipeline.datasets.clouds import read_cloud
from pipeline.datasets.folder import FolderDataset
from pipeline.datasets.formats import unpack_lzf
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.frame import Frame, FrameError
from pipeline.stages.index import check_frame, pose_problems
from tests.pipeline.scenes import SCENE
from tests.refs import newest

POINTS = np.array([[5, 0, 0, 0.5], [8, 1, -1, 1], [3, 0, 0, 0]], np.float32)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Scene `drive`: frame a with both cameras, frame b without the front one, three labelled points each."""
    folder = tmp_path / "logs" / "drive"
    for name in ("points", "labels", "front", "rear", "elsewhere"):
        (folder / name).mkdir(parents=True)
    for frame in "ab":
        np.save(folder / f"points/{frame}.npy", POINTS)
        np.save(folder / f"labels/{frame}.npy", np.array([3, 0, 1]))
        Image.new("RGB", (8, 6)).save(folder / f"rear/{frame}.png")
    Image.new("RGB", (8, 6)).save(folder / "elsewhere/1.png")
    (folder / "scene.toml").write_text(SCENE)
    return tmp_path / "logs"


def data_set(root: Path, *cameras: str) -> FolderDataset:
    return FolderDataset(DataConfig(dataset="folder", root=str(root), cameras=cameras))


def frames_of(root: Path, *cameras: str) -> list[Frame]:
    return list(data_set(root, *cameras).frames())


def test_a_scene_is_what_its_toml_says(root: Path) -> None:
    a, b = frames_of(root)
    assert [frame.frame_id for frame in (a, b)] == ["drive/a", "drive/b"], "by time, not as written"
    assert (a.lidar_path, a.label_path) == ("drive/points/a.npy", "drive/labels/a.npy")
    assert [(camera.name, camera.image_path) for camera in a.cameras] == [
        ("front", "drive/elsewhere/1.png"),
        ("rear", "drive/rear/a.png"),
    ]
    assert [camera.name for camera in b.cameras] == ["rear"]
    assert [camera.timestamp_us for camera in a.cameras] == [1000050, 1000000]
    np.testing.assert_array_equal(b.world_from_lidar @ [0, 0, 0, 1], [7, 0, 1.8, 1])
    assert all(check_frame(data_set(root), root, frame).n_points == 3 for frame in (a, b))
    assert [camera.name for camera in frames_of(root, "front")[0].cameras] == ["front"]


def test_calibrations_are_chained_and_the_motion_up_to_the_image_is_accounted_for(root: Path) -> None:
    front, rear = frames_of(root)[0].cameras
    # 5 m ahead of the LiDAR; the vehicle moves 0.25 m towards it before the image is taken
    np.testing.assert_allclose(front.cam_from_lidar @ [5, 0, 0, 1], [0.5, 0, 4.75, 1], atol=1e-12)
    # looking back from 1 m behind the LiDAR: right is the vehicle's left, 5 m behind the LiDAR is 4 m deep
    np.testing.assert_allclose(rear.cam_from_lidar @ [-5, 2, 0, 1], [2, 0, 4, 1], atol=1e-12)


def test_two_images_never_go_by_one_name(root: Path) -> None:
    assert [camera.token for camera in frames_of(root)[0].cameras] == ["drive_a_front", "drive_a_rear"]
    assert frames_of(root)[0].lidar_token == "drive_a", "a name that files can have: masks are exported under it"
    other = root / "drive_a"  # its frame a, seen by "rear", is drive_a_a_rear, and so is the frame a_a of drive
    other.mkdir()
    (other / "scene.toml").write_text(SCENE)
    assert len(frames_of(root)) == 4
    (root / "drive" / "scene.toml").write_text(SCENE.replace('name = "b"', 'name = "a_a"'))
    with pytest.raises(
        ConfigError, match=r"frames drive/a_a and drive_a/a both have a sweep called drive_a_a, .* rename"
    ):
        frames_of(root)


# -- the same tables as through another reader -----------------------------------------------------


def built(recipe: Recipe, targets: tuple[str, ...]) -> dict[str, list[Any]]:
    """Build the targets and return the rows of every table."""
    assert Runner(recipe).run(targets, InlinePool(recipe)) == []
    store = Store.open(recipe.run.store)
    tables = newest(store, recipe.name).tables
    return {name: store.every(TABLES[name], table.fingerprint, table.shards) for name, table in tables.items()}


def test_the_tri_frames_give_the_same_tables_as_through_the_nuscenes_reader(
    shared: Path, tmp_path: Path, folder_layout: Callable[[Path, str], Path]
) -> None:
    source = shared / "data" / "tri-dgp-nuscenes"
    rows = {}
    for name, root in (("nuscenes", source), ("folder", folder_layout(source, "v1.0-trainval"))):
        recipe = tmp_path / f"{name}.toml"
        recipe.write_text(
            f"""
            [data]
            dataset = "{name}"
            root = "{root}"
            [teacher]
            name = "clip_dense"
            model = "tiny"
            weights = "random:0"
            short_side_px = 56
            [text]
            templates = "single"
            [segment]
            scale = 0.1
            [run]
            store = "{tmp_path / name}"
            """
        )
        rows[name] = built(load_recipe(recipe), ("points", "pairs", "target"))
    assert rows["folder"].keys() == rows["nuscenes"].keys() > {"index", "points", "project", "encode", "segment"}
    named_differently = {"frame_id", "lidar_token", "lidar_path", "camera_token", "image_path"}
    for table, expected in rows["nuscenes"].items():
        assert len(rows["folder"][table]) == len(expected) > 0
        for ours, theirs in zip(rows["folder"][table], expected, strict=True):
            for column in vars(theirs).keys() - named_differently:
                np.testing.assert_equal(getattr(ours, column), getattr(theirs, column), err_msg=f"{table}.{column}")


# -- kinds of files --------------------------------------------------------------------------------


def read(root: Path, name: str, content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Put a file in the place of the points and read it."""
    (root / "drive" / name).write_bytes(content)
    scene = SCENE.replace("points/{frame}.npy", name.replace("points/a", "points/{frame}"))
    (root / "drive/scene.toml").write_text(scene)
    cloud = data_set(root).read_cloud(frames_of(root)[0])
    return cloud.xyz_m, cloud.intensity


def npy(array: npt.NDArray[Any]) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


PCD = """\
# .PCD v0.7
VERSION 0.7
FIELDS x y z intensity ring
SIZE 4 4 4 4 2
TYPE F F F F U
COUNT 1 1 1 1 1
WIDTH 3
HEIGHT 1
VIEWPOINT 0 0 0 1 0 0 0
POINTS 3
DATA {kind}
"""
PLY = """\
ply
format {kind} 1.0
element vertex 3
property float x
property float y
property float z
property uchar {intensity}
element face 1
property list uchar int vertex_indices
end_header
"""
ROWS = [*map(tuple, POINTS.tolist())]
PCD_BODY = np.array([(*row, 7) for row in ROWS], "<f4,<f4,<f4,<f4,<u2").tobytes()
PLY_ROWS = [(*row[:3], int(2 * row[3])) for row in ROWS]
PLY_BODY = np.array(PLY_ROWS, "<f4,<f4,<f4,u1").tobytes() + bytes([3]) + np.arange(3, dtype="<i4").tobytes()
TEXT = "".join("{} {} {} {} 7\n".format(*row) for row in ROWS)
PLY_TEXT = "".join("{} {} {} {}\n".format(*row) for row in PLY_ROWS) + "3 0 1 2\n"
STRUCTURED = np.array([row[::-1] for row in ROWS], [("intensity", "f8"), ("z", "f8"), ("y", "f8"), ("x", "f8")])

FILES = {
    "array": ("points/a.npy", npy(POINTS), 1),
    "float64, more columns": ("points/a.npy", npy(np.column_stack([POINTS, POINTS]).astype(np.float64)), 1),
    "structured": ("points/a.npy", npy(STRUCTURED), 1),
    "no intensity": ("points/a.npy", npy(POINTS[:, :3]), 0),
    "kitti": ("points/a.bin", POINTS.astype("<f4").tobytes(), 1),
    "nuscenes": ("points/a.pcd.bin", np.column_stack([POINTS, [0, 1, 2]]).astype("<f4").tobytes(), 1),
    "pcd": ("points/a.pcd", PCD.format(kind="binary").encode() + PCD_BODY, 1),
    "pcd as text": ("points/a.pcd", (PCD.format(kind="ascii") + TEXT).encode(), 1),
    "ply": ("points/a.ply", PLY.format(kind="binary_little_endian", intensity="intensity").encode() + PLY_BODY, 2),
    "ply as text": ("points/a.ply", (PLY.format(kind="ascii", intensity="scalar_Intensity") + PLY_TEXT).encode(), 2),
    "ply from afar": (
        "points/a.ply",
        PLY.format(kind="binary_big_endian", intensity="intensity").encode()
        + np.array(PLY_ROWS, ">f4,>f4,>f4,u1").tobytes(),
        2,
    ),
    "padded pcd": (
        "points/a.pcd",
        PCD.format(kind="binary").replace("ring", "_").replace("COUNT 1 1 1 1 1", "COUNT 1 1 1 1 3").encode()
        + np.array([(*row, (1, 2, 3)) for row in ROWS], [*((n, "<f4") for n in "xyzi"), ("_", "<u2", (3,))]).tobytes(),
        1,
    ),
    "ply of something else": (
        "points/a.ply",
        PLY.format(kind="binary_little_endian", intensity="age").encode() + PLY_BODY,
        0,
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_points_are_read_from_every_kind_of_file_in_its_order(root: Path, kind: str) -> None:
    name, content, scale = FILES[kind]
    xyz_m, intensity = read(root, name, content)
    assert xyz_m.dtype == intensity.dtype == np.float32 and xyz_m.flags.c_contiguous and intensity.flags.c_contiguous
    np.testing.assert_array_equal(xyz_m, POINTS[:, :3])
    np.testing.assert_array_equal(intensity, scale * POINTS[:, 3])


@pytest.mark.parametrize("flavour", ["pcd", "pcd compressed", "pcd ascii", "ply", "ply ascii"])
def test_what_open3d_writes_is_read_nan_included(root: Path, tmp_path: Path, flavour: str) -> None:
    import open3d

    o3d: Any = open3d
    points = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    points[7], points[20:400, 1] = np.nan, 2.5  # what repeats is packed
    ring = np.arange(500, dtype=np.uint16) % 32
    cloud = o3d.t.geometry.PointCloud(o3d.core.Tensor(points))
    cloud.point["intensity"] = o3d.core.Tensor(np.linspace(0, 1, 500, dtype=np.float32)[:, None])
    cloud.point["ring"] = o3d.core.Tensor(ring[:, None])
    kind, _, how = flavour.partition(" ")
    path = tmp_path / f"a.{kind}"
    o3d.t.io.write_point_cloud(str(path), cloud, write_ascii=how == "ascii", compressed=how == "compressed")
    content = path.read_bytes()
    xyz_m, intensity = read(root, f"points/a.{kind}", content)
    tolerance = 1e-5 if how == "ascii" else 0
    points[7] = 0 if kind == "pcd" else np.nan  # where nothing came back, a .pcd has NaN
    np.testing.assert_allclose(xyz_m, points, rtol=0, atol=tolerance)
    light = np.linspace(0, 1, 500)
    light[7] *= kind == "ply"
    np.testing.assert_allclose(intensity, light, rtol=0, atol=tolerance + 1e-7)
    with pytest.raises(FrameError, match=f"points/a.{kind}: it is truncated: its header promises 500 points"):
        read(root, f"points/a.{kind}", content[: len(content) * 9 // 10])


def test_lzf_repeats_patterns_and_names_damage() -> None:
    # two literals; then 4 bytes from 2 back, which overlap what they write; then 7 + 1 + 2 bytes of the last one
    packed = bytes([1, 65, 66, 2 << 5, 1, 7 << 5, 1, 0])
    assert unpack_lzf(packed, 16) == b"ABABAB" + b"B" * 10
    for damaged, size in ((packed, 17), (packed[:-1], 16), (bytes([1 << 5, 0]), 3), (b"", 1)):
        with pytest.raises(ValueError, match="its compressed part is damaged"):
            unpack_lzf(damaged, size)


@settings(max_examples=60)
@given(st.data())
def test_any_damage_is_a_sentence_or_other_points(data: st.DataObject) -> None:
    name, content, _ = data.draw(st.sampled_from([*FILES.values()]))
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        damaged[at : at + data.draw(st.integers(0, 4))] = data.draw(
            st.sampled_from([b"", b"\n", b"9999999999", b"-1", b"x"])
        )
    try:
        cloud = read_cloud(name, bytes(damaged), None, DataConfig(root="-"))
    except ValueError as error:
        assert str(error)
    else:
        assert cloud.xyz_m.shape == (len(cloud.intensity), 3)
        assert cloud.xyz_m.dtype == cloud.intensity.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("points/a.npy", npy(POINTS)[:-5], "this is no whole .npy file of numbers"),
        ("points/a.npy", b"", "this is no whole .npy file"),
        ("points/a.npy", npy(POINTS[:, :2]), "expected; it is (3, 2) of float32"),
        ("points/a.npy", npy(POINTS[:0]), "there is no point in it"),
        ("points/a.npy", npy(np.zeros(3, [("x", "f4"), ("y", "f4")])), "fields x, y, z of numbers were expected"),
        ("points/a.npy", npy(np.array([["a", "b", "c"]])), "of numbers was expected"),
        ("points/a.npy", npy(np.array([POINTS, None], object)), "Object arrays cannot be loaded"),
        ("points/a.bin", bytes(47), "47 bytes is not a positive multiple of 16, the 4 float32 of a point"),
        ("points/a.pcd.bin", bytes(48), "48 bytes is not a positive multiple of 20, the 5 float32 of a point"),
        ("points/a.pcd", PCD.format(kind="binary").encode() + PCD_BODY[:-1], "truncated: its header promises 3 points"),
        ("points/a.pcd", (PCD.format(kind="ascii") + TEXT[:20]).encode(), "truncated: its header promises 3 points"),
        ("points/a.pcd", b"hello", "its header has no line DATA"),
        (
            "points/a.pcd",
            PCD.replace("POINTS 3", "POINTS many").encode(),
            "its header lacks FIELDS, TYPE, SIZE, POINTS",
        ),
        ("points/a.ply", FILES["ply"][1][:-20], "truncated: its header promises 3 points"),
        ("points/a.ply", FILES["ply as text"][1][:-30], "truncated: its header promises 3 points"),
        ("points/a.ply", b"ply\nformat ascii 1.0\nend_header\n", "its first element is not `vertex`"),
        ("points/a.ply", FILES["ply"][1].replace(b"vertex 3", b"vertex 9999999999"), "promises 9999999999 points"),
        ("points/a.pcd", (PCD.format(kind="ascii") + TEXT.replace("5.0", "five")).encode(), "a word that is no number"),
        ("points/a.pcd", PCD.format(kind="zipped").encode(), "its DATA is 'zipped'; expected ascii, binary"),
        ("points/a.pcd", PCD.format(kind="ascii").replace("FIELDS x", "FIELDS w").encode() + TEXT.encode(), "no x, y"),
        ("points/a.ply", PLY.format(kind="morse", intensity="i").encode(), "its format is 'morse'; expected ascii"),
        ("points/a.ply", FILES["ply"][1].replace(b"property float x", b"property list uchar int x"), "no number of a"),
        ("points/a.las", b"", "points are read from files that end in .npy, .npz, .pcd, .ply, .feather, .bin"),
    ],
)
def test_a_damaged_file_is_one_sentence_that_names_it(
    root: Path, name: str, content: bytes, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(FrameError, match=f"^drive/{name}: .*{re.escape(sentence)}"):
        read(root, name, content)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("ending", "content", "labels"),
    [
        ("npy", npy(np.array([3, 0, 300])), [3, 0, 300]),
        ("bin", bytes([3, 0, 255]), [3, 0, 255]),
        ("label", np.array([3, 7 << 16 | 300, 0], "<u4").tobytes(), [3, 300, 0]),
        ("npy", npy(np.array([0.5, 1, 2])), "an array (n,) of whole numbers was expected; it is (3,) of float64"),
        ("npy", npy(np.array([-1, 1, 2])), "labels run from -1 to 2; expected 0..65535"),
        ("label", bytes(7), "7 bytes is not a multiple of 4"),
        ("txt", b"1 2 3", "labels are read from files that end in .npy, .bin or .label"),
    ],
)
def test_labels_are_read_from_every_kind_of_file(root: Path, ending: str, content: bytes, labels: Any) -> None:
    (root / f"drive/labels/a.{ending}").write_bytes(content)
    (root / "drive/scene.toml").write_text(SCENE.replace("labels/{frame}.npy", f"labels/{{frame}}.{ending}"))
    frame = frames_of(root)[0]
    if isinstance(labels, str):
        with pytest.raises(FrameError, match=f"^drive/labels/a.{ending}: {re.escape(labels)}"):
            data_set(root).read_labels(frame)
    else:
        assert data_set(root).read_labels(frame).tolist() == labels


# -- slips of the pen ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("points =", "point =", r"scene.toml has an unknown key `point` \(did you mean `points`\?\)"),
        ('points = "points/{frame}.npy"', "", "scene.toml lacks `points`"),
        ("points/{frame}.npy", "points.npy", "scene.toml: points is 'points.npy'; expected a file name with {frame}"),
        ("points/{frame}.npy", "../{frame}.npy", "expected a file name within the folder of the scene"),
        ("elsewhere/1.png", "/etc/passwd", "expected a file name within the folder of the scene"),
        ('name = "a"', 'name = "../a"', "the name of a frame is '../a'; expected a string of letters"),
        ('name = "a"', 'name = "b"', "two frames are named b; names must differ"),
        ('name = "rear"', 'name = "front"', "camera front is there twice"),
        ("timestamp_us = 2000000", "timestamp_us = 2.5", "frame b: timestamp_us is 2.5; expected microseconds"),
        ("timestamp_us = 2000000", "", r"\[\[frame\]\] lacks `timestamp_us`"),
        ('without = ["front"]', 'without = ["frnt"]', r"there is no camera 'frnt' \(did you mean `front`\?\)"),
        ("cam_from_lidar =", "ego_from_cam = [[1]]\ncam_from_lidar =", "camera front: give either ego_from_cam or"),
        ("[[frame]]", "[frame]", "not valid TOML|not an array of tables"),
        ("points =", "points", "not valid TOML"),
    ],
)
def test_a_description_that_cannot_be_followed_is_a_config_error(root: Path, old: str, new: str, sentence: str) -> None:
    assert old in SCENE
    (root / "drive/scene.toml").write_text(SCENE.replace(old, new))
    with pytest.raises(ConfigError, match=sentence) as caught:
        frames_of(root)
    assert "drive/scene.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "rotation = [0.5, -0.5, -0.5, 0.5]",
            "rotation = [0, 0, 0, 0]",
            "camera rear: ego_from_cam: rotation is [0.0,",
        ),
        ("[[0, -1, 0, 0.5]", "[[0, -1, 0]", "camera front: cam_from_lidar: "),
        ("[[0, -1, 0, 0.5]", "[[0, nan, 0, 0.5]", "camera front: cam_from_lidar: it is [[0, nan"),
        ("[[0, -1, 0, 0.5]", "[[0, -2, 0, 0.5]", "front: the pose"),
        ("intrinsics = [[4, 0, 4], ", "intrinsics = [", "camera front: intrinsics: it is [[0, 4, 3], [0, 0, 1]]"),
        ("translation = [0.25, 0, 0]", "translation = [0.25, 0]", "frame a: image.front: translation is"),
        ("translation = [0, 0, 1.8]", "position = [0, 0, 1.8]", "ego_from_lidar: it has rotation, position; expected"),
    ],
)
def test_a_calibration_that_makes_no_sense_fails_the_frames_it_concerns(
    root: Path, old: str, new: str, sentence: str
) -> None:
    assert old in SCENE
    (root / "drive/scene.toml").write_text(SCENE.replace(old, new, 1))
    with pytest.raises(FrameError, match=re.escape(sentence)):
        check_frame(data_set(root), root, frames_of(root)[0])


def test_a_camera_or_a_scene_that_is_not_there_is_said(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.cameras names left; the scenes of .* have front, rear"):
        frames_of(root, "left")
    (root / "drive/scene.toml").unlink()
    with pytest.raises(ConfigError, match=r"holds no scene; expected a folder for each, with a file scene.toml in it"):
        frames_of(root)


# -- docs/own-data.md ------------------------------------------------------------------------------


def blocks(kind: str) -> list[str]:
    """Return the code blocks of a kind in the page."""
    return blocks_of("docs/own-data.md", kind)


def blocks_of(page: str, kind: str) -> list[str]:
    text = (Path(__file__).resolve().parents[2] / page).read_text()
    return re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL)


def test_the_worked_example_runs_and_its_wall_is_seen_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [script] = blocks("python")
    exec(compile(script, "own-data.md", "exec"), {"__name__": "example"})
    [recipe] = blocks_of("README.md", "toml")
    Path("mine.toml").write_text(recipe)
    loaded = load_recipe("mine.toml", ["run.progress=false"])
    rows = built(loaded, ("points", "project", "label"))
    for project, label, points in zip(rows["project"], rows["label"], rows["points"], strict=True):
        wall = label.raw[project.point] == 28
        np.testing.assert_allclose(project.depth_m[wall], 11.5, atol=1e-5)
        ground = points.xyz_m[project.point[~wall]]
        assert wall.sum() > 500 and len(ground) > 500 and (ground[:, 0] > 1.5).all()
    assert set(rows["label"][0].label) == {11, 15}, "driveable surface and manmade"


def test_the_description_in_the_page_is_one_that_is_read(tmp_path: Path) -> None:
    [described] = blocks("toml")
    (tmp_path / "drive-07").mkdir()
    (tmp_path / "drive-07/scene.toml").write_text(described)
    first, second = frames_of(tmp_path)
    assert [camera.name for camera in first.cameras] == ["front", "rear"]
    assert [camera.image_path for camera in second.cameras] == ["drive-07/front/late_000001.jpg"]
    assert first.problems == second.problems == ()
    assert all(pose_problems(camera.cam_from_lidar) == [] for camera in (*first.cameras, *second.cameras))
    ahead, behind = np.array([20.0, 0, 0, 1]), np.array([-20.0, 0, 0, 1])
    assert (first.cameras[0].cam_from_lidar @ ahead)[2] > 15 < (first.cameras[1].cam_from_lidar @ behind)[2]


def test_times_of_any_unit_and_scenes_without_poses_from_windows(root: Path) -> None:
    scene = SCENE.replace("timestamp_us = 1000000", "timestamp_ns = 1000000999").replace("points/{", "points\\\\{")
    scene = scene.replace("timestamp_us = 2000000", "timestamp_s = 2.0").replace("us = 1000050", "ms = 1001")
    (root / "drive/scene.toml").write_bytes(b"\xef\xbb\xbf" + scene.replace("\n", "\r\n").encode())
    a, b = frames_of(root)
    assert (a.timestamp_us, b.timestamp_us, a.cameras[0].timestamp_us) == (1_000_000, 2_000_000, 1_001_000)
    assert all(check_frame(data_set(root), root, frame).n_points == 3 for frame in (a, b))
    unposed = re.sub("world_from_ego = .*translation = .7.*", "", SCENE)
    (root / "drive/scene.toml").write_text(unposed)
    b = frames_of(root)[1]
    assert not b.posed and np.isnan(check_frame(data_set(root), root, b).world_from_lidar).all()
    for slip, sentence in (
        (SCENE.replace("timestamp_us = 2", "timestamp_ms = 1\ntimestamp_us = 2"), "has timestamp_us and timestamp_ms"),
        (SCENE.replace("timestamp_us = 2000000", "timestamp_ms = 2.5"), "timestamp_ms is 2.5; expected milliseconds"),
        (re.sub("world_from_ego = .*translation = .0, 0.*", "", SCENE), "has a world_from_ego, but the frame has none"),
    ):
        (root / "drive/scene.toml").write_text(slip)
        with pytest.raises(ConfigError, match=sentence):
            frames_of(root)
