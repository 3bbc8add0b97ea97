"""Sweeps, images and times as other tools write them: read right, told, or refused; never taken for something else."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial.transform import Rotation

from manifests.config import ConfigError
from manifests.sections.data import INTENSITY, DataConfig
from pipeline.datasets.clouds import Cloud, read_cloud
from pipeline.datasets.times import IN_US, in_microseconds, microseconds
from pipeline.frame import Camera, FrameError, read_image
from pipeline.geometry import inverse_pose, pose_matrix, project
from superpixels.flat_interaction import refine
from superpixels.returns import is_return
from superpixels.unfit import Unfit
from superpixels.voting import Ballot, vote

PLAIN = DataConfig(root="-")


def street(n: int = 900, seed: int = 0) -> npt.NDArray[Any]:
    """x, y, z, intensity, ring of a road and a wall, float32 (n, 5)."""
    rng = np.random.default_rng(seed)
    xyz = np.column_stack([rng.uniform(-30, 30, n), rng.uniform(-6, 6, n), rng.normal(-1.8, 0.02, n)])
    return np.column_stack([xyz, rng.uniform(0, 255, n).round(), np.arange(n) % 32]).astype(np.float32)


def npz(**arrays: npt.NDArray[Any]) -> bytes:
    np.savez(file := io.BytesIO(), **arrays)
    return file.getvalue()


def npy(array: npt.NDArray[Any]) -> bytes:
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


def with_names(values: npt.NDArray[Any], names: str) -> npt.NDArray[Any]:
    """A structured array of the columns of a table of float32."""
    rows = np.ascontiguousarray(values, np.float32)
    return rows.view([(name, np.float32) for name in names.split(",")])[:, 0]


def pcd(names: Sequence[str], values: npt.NDArray[Any]) -> bytes:
    n = len(names)
    header = f"VERSION 0.7\r\nFIELDS {' '.join(names)}\r\nSIZE {'4 ' * n}\r\nTYPE {'F ' * n}\r\n"
    return f"{header}WIDTH {len(values)}\r\nHEIGHT 1\r\nPOINTS {len(values)}\r\nDATA binary\r\n".encode() + (
        values.astype("<f4").tobytes()
    )


# -- columns ---------------------------------------------------------------------------------------


@given(columns=st.permutations(["x", "y", "z", "intensity", "ring", "time"]), light=st.sampled_from(INTENSITY))
def test_columns_in_any_order_are_read_by_their_declared_names(columns: list[str], light: str) -> None:
    values = np.column_stack([street(50), np.linspace(0, 0.1, 50)])
    names = ["x", "y", "z", light, "ring", "time"]
    order = [["x", "y", "z", "intensity", "ring", "time"].index(name) for name in columns]
    content = values[:, order].astype("<f4").tobytes()
    cloud = read_cloud("a.bin", content, None, DataConfig(root="-", columns=tuple(names[i] for i in order)))
    np.testing.assert_array_equal(cloud.xyz_m, values[:, :3].astype(np.float32))
    np.testing.assert_array_equal(cloud.intensity, values[:, 3].astype(np.float32))
    assert cloud.notes == (() if light == "intensity" else (f"intensity is its column `{light}`",))


@given(are=st.integers(3, 6), seed=st.integers(0, 5), name=st.sampled_from(["a.bin", "a.pcd.bin"]))
def test_another_number_of_columns_is_an_error_and_no_other_sweep(are: int, seed: int, name: str) -> None:
    values = np.column_stack([street(900, seed), np.linspace(0, 0.1, 900)])[:, :are].astype("<f4")
    read_as = 5 if name == "a.pcd.bin" else 4
    whole = values[: len(values) // read_as * read_as].tobytes()
    if are == read_as:
        assert len(read_cloud(name, whole, None, PLAIN).xyz_m) == 900
        return
    with pytest.raises(ValueError, match=r"light is not: .*\[data\] columns|no ring index: .*\[data\] columns"):
        read_cloud(name, whole, None, PLAIN)


def test_a_size_that_fits_other_columns_says_so() -> None:
    content = street(7)[:, :4].astype("<f4").tobytes()
    with pytest.raises(ValueError, match=r"were it 4, \[data\] columns would name them"):
        read_cloud("a.pcd.bin", content, None, PLAIN)
    with pytest.raises(ValueError, match=r"it has 5 columns, but data.columns names 4"):
        read_cloud("a.npy", npy(street()), None, DataConfig(root="-", columns=("x", "y", "z", "i")))
    with pytest.raises(ValueError, match=r"it has no column remission, which data.columns names; it has x, y, z, i"):
        declared = DataConfig(root="-", columns=("x", "y", "z", "remission"))
        read_cloud("a.pcd", pcd(["x", "y", "z", "i"], street()[:, :4]), None, declared)


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (("x", "y", "intensity"), "has 0 columns z; expected one of x, y, z"),
        (("x", "y", "z", "i", "signal"), "names more than one of intensity, i, "),
        (("x", "y", "z", "_", "_"), "names a column twice"),
    ],
)
def test_columns_that_make_no_sense_are_refused(columns: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DataConfig(root="-", columns=columns)


@given(light=st.sampled_from(INTENSITY), case=st.sampled_from([str.lower, str.upper, str.title]))
def test_intensity_of_any_vendor_is_found_and_told(light: str, case: Any) -> None:
    values = street(60)
    files = {
        "a.pcd": pcd(["X", "y", "z", case(light)], values[:, :4]),
        "a.npz": npz(xyz=values[:, :3], **{case(light): values[:, 3]}),
        "a.npy": npy(with_names(values[:, :4], f"x,y,z,{case(light)}")),
    }
    for name, content in files.items():
        cloud = read_cloud(name, content, None, PLAIN)
        np.testing.assert_array_equal(cloud.intensity, values[:, 3])
        assert cloud.notes == (() if light == "intensity" else (f"intensity is its column `{light}`",))


def test_of_several_intensities_one_is_taken_and_told_and_another_can_be_chosen() -> None:
    values = street(60)
    content = npz(x=values[:, 0], y=values[:, 1], z=values[:, 2], signal=values[:, 3], reflectivity=values[:, 4])
    cloud = read_cloud("a.npz", content, None, PLAIN)
    assert cloud.notes == (
        "intensity is its column `reflectivity`; it also has signal, of which [data] columns would choose one",
    )
    chosen = read_cloud("a.npz", content, None, DataConfig(root="-", columns=("x", "y", "z", "signal")))
    np.testing.assert_array_equal(chosen.intensity, values[:, 3])
    assert (
        "no column of intensity (only x, y, z, gps)"
        in read_cloud("a.pcd", pcd(["x", "y", "z", "gps"], values[:, :4]), None, PLAIN).notes[0]
    )


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"xyz": np.zeros((4, 3)), "i": np.zeros(5)}, r"others \(n,\) were expected; it has xyz \(4, 3\), i \(5,\)"),
        ({"a": np.zeros(4), "b": np.zeros(4)}, "fields x, y, z of numbers were expected; it has a, b"),
        ({"a": np.array([None])}, "this is no whole .npz file of numbers"),
    ],
)
def test_an_npz_of_something_else_is_one_sentence(arrays: dict[str, npt.NDArray[Any]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_cloud("a.npz", npz(**arrays), None, PLAIN)
    with pytest.raises(ValueError, match=r"this is no whole .npz file"):
        read_cloud("a.npz", npz(xyz=street()[:, :3])[:-40], None, PLAIN)
    np.testing.assert_array_equal(read_cloud("a.npz", npz(anything=street()), None, PLAIN).intensity, street()[:, 3])


# -- frames of points ------------------------------------------------------------------------------


@given(rotation=st.integers(0, 2**32 - 1), east_m=st.floats(2e5, 8e5), north_m=st.floats(1e6, 9e6))
def test_points_of_a_map_keep_their_millimetres(rotation: int, east_m: float, north_m: float) -> None:
    """UTM in float64: with the pose of the LiDAR in the same map they are metres around it, to a tenth of a mm."""
    quaternion = Rotation.random(rng=np.random.default_rng(rotation)).as_quat(scalar_first=True)
    world_from_lidar = pose_matrix(quaternion, [east_m, north_m, 100.0])
    here = street(200)[:, :3].astype(np.float64)
    there = here @ world_from_lidar[:3, :3].T + world_from_lidar[:3, 3]
    data = DataConfig(root="-", points_in="world")
    cloud = read_cloud("a.npy", npy(there), None, data, inverse_pose(world_from_lidar))
    np.testing.assert_allclose(cloud.xyz_m, here, atol=1e-4)
    with pytest.raises(ValueError, match=r"half of its points are more than .* m from the origin.*points_in"):
        read_cloud("a.npy", npy(there), None, PLAIN)
    with pytest.raises(ValueError, match="millimetres"):
        read_cloud("a.npy", npy(here * 1000), None, PLAIN)


# -- returns from nothing --------------------------------------------------------------------------


def with_nothing(cloud: npt.NDArray[Any], places: Sequence[int]) -> npt.NDArray[Any]:
    """Points with rows of zeros put in before the given ones."""
    return np.insert(cloud, sorted(places), 0, axis=0)


def test_nan_of_a_pcd_and_points_out_of_range_are_returns_from_nothing() -> None:
    values = street(100)[:, :4]
    values[3, :3] = np.nan
    cloud = read_cloud("a.pcd", pcd(["x", "y", "z", "intensity"], values), None, PLAIN)
    assert cloud.notes == ("1 of its points are NaN: nothing came back there",)
    assert is_return(cloud.xyz_m).tolist() == [i != 3 for i in range(100)] and cloud.intensity[3] == 0
    assert np.isnan(read_cloud("a.bin", values.tobytes(), None, PLAIN).xyz_m[3]).all()  # which index refuses
    near = read_cloud("a.bin", street(100)[:, :4].tobytes(), None, DataConfig(root="-", min_range_m=5, max_range_m=20))
    range_m = np.linalg.norm(street(100)[:, :3], axis=1)
    assert (is_return(near.xyz_m) == ((range_m >= 5) & (range_m <= 20))).all() and len(near.xyz_m) == 100
    with pytest.raises(ValueError, match="none of its 100 points came back from anything within range"):
        read_cloud("a.bin", street(100)[:, :4].tobytes(), None, DataConfig(root="-", max_range_m=0.1))


@given(places=st.lists(st.integers(0, 300), min_size=1, max_size=80), seed=st.integers(0, 3))
def test_returns_from_nothing_change_no_label_of_a_real_point(places: list[int], seed: int) -> None:
    xyz = street(300, seed)[:, :3]
    label = np.where(xyz[:, 1] > 0, 1, 2).astype(np.uint8)
    label[::3] = 0
    both, there = with_nothing(xyz, places), is_return(with_nothing(xyz, places))
    names = with_nothing(label[:, None], places)[:, 0]
    assert there.sum() == 300
    plain, padded = refine(xyz, label, n_classes=2), refine(both, names, n_classes=2)
    np.testing.assert_array_equal(padded.labels[there], plain.labels)
    assert not padded.labels[~there].any()

    pose = np.eye(4)
    pose[0, 3] = 0.4
    weight = np.ones(300)
    voted = [
        vote(Ballot(p, n, w, np.eye(4)), [Ballot(p, n, w, pose, 0.1)], 2)
        for p, n, w in ((xyz, label, weight), (both, names, np.ones(len(both))))
    ]
    np.testing.assert_array_equal(voted[1].label[there], voted[0].label)
    np.testing.assert_array_equal(voted[1].confidence[there], voted[0].confidence)
    assert not voted[1].label[~there].any() and not voted[1].changed[~there].any()


def test_a_camera_behind_the_sensor_does_not_see_returns_from_nothing() -> None:
    pose = np.array([[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 3.0], [0, 0, 0, 1]])  # 3 m behind, looking ahead
    xyz = np.array([[5, 0, 0], [0, 0, 0], [1, 0.1, 0]], np.float32)
    assert project(xyz, pose, [[50, 0, 50], [0, 50, 50], [0, 0, 1]], 100, 100).point.tolist() == [0, 2]


def test_sweeps_without_poses_are_not_put_to_the_vote() -> None:
    own = Ballot(street()[:, :3], np.zeros(900, np.uint8), np.zeros(900), np.full((4, 4), np.nan))
    with pytest.raises(Unfit, match="the data set has no pose of the vehicle"):
        vote(own, [], 2)


# -- images ----------------------------------------------------------------------------------------


def stored(image: Image.Image, path: Path, **how: Any) -> npt.NDArray[Any]:
    image.save(path, **how)
    return read_image(path.parent, Camera("c", "t", path.name, 0, np.eye(3), np.eye(4)))


@given(seed=st.integers(0, 9), kind=st.sampled_from(["PNG", "TIFF"]))
def test_of_16_bits_the_upper_8_are_taken(tmp_path_factory: pytest.TempPathFactory, seed: int, kind: str) -> None:
    values = np.random.default_rng(seed).integers(0, 65536, (6, 8)).astype(np.uint16)
    pixels = stored(Image.fromarray(values), tmp_path_factory.mktemp("images") / "a.img", format=kind)
    np.testing.assert_array_equal(pixels, np.repeat((values // 256)[:, :, None], 3, axis=2))


def test_images_whose_scale_nothing_tells_are_refused(tmp_path: Path) -> None:
    dark = np.arange(48, dtype=np.uint16).reshape(6, 8) * 80
    with pytest.raises(
        FrameError, match=r"a.png: the largest value of this 16-bit image is 3760, as if it had 10 or 1"
    ):
        stored(Image.fromarray(dark), tmp_path / "a.png")
    with pytest.raises(FrameError, match=r"b.tif: nothing tells the scale of a 32-bit float image"):
        stored(Image.fromarray(dark.astype(np.float32)), tmp_path / "b.tif")
    with pytest.raises(FrameError, match=r"c.tif: nothing tells the scale of a 32-bit whole-number image"):
        stored(Image.fromarray(dark.astype(np.int32)), tmp_path / "c.tif")


def test_exif_turns_no_image(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = image.getexif()
    exif[0x0112] = 6  # a viewer turns it by a quarter
    np.testing.assert_array_equal(stored(image, tmp_path / "a.png", exif=exif)[:, :, 0], np.asarray(image))


# -- times -----------------------------------------------------------------------------------------


@given(
    unit=st.sampled_from(["ms", "us", "ns"]),
    start_us=st.integers(0, 2_000_000_000_000_000),
    step_us=st.integers(22_000, 3_000_000),
)
def test_units_of_times_are_found_by_their_steps(unit: str, start_us: int, step_us: int) -> None:
    times_us = [(start_us + i * step_us) // 1000 * 1000 for i in range(5)]
    stored = [round(time / IN_US[unit]) if unit == "ms" else time * (1000 if unit == "ns" else 1) for time in times_us]
    found = microseconds([stored], "", "times")
    assert [in_microseconds(time, found) for time in stored] == times_us


def test_a_guessed_unit_is_told_and_a_declared_one_is_not(caplog: pytest.LogCaptureFixture) -> None:
    nanoseconds = [15_616_458_250_027_900_000 + i * 100_000_000 for i in range(3)]  # in the year 2464
    with caplog.at_level(logging.WARNING):
        assert microseconds([nanoseconds], "", "timestamps of sample_data.json") == 1e-3
        assert "timestamps of sample_data.json go up to 15616458250227900000: taken for ns" in caplog.text
        caplog.clear()
        assert microseconds([nanoseconds], "ns", "times") == 1e-3 and microseconds([[7]], "", "times") == 1
        assert not caplog.text
    with pytest.raises(ConfigError, match=r"times go up to 15616458250227900000, which are too many us; name their"):
        microseconds([nanoseconds], "us", "times")


def test_a_cloud_is_plain_float32() -> None:
    cloud = read_cloud("a.npy", npy(street().astype(np.float64)), None, PLAIN)
    assert isinstance(cloud, Cloud) and cloud.xyz_m.dtype == cloud.intensity.dtype == np.float32
    assert cloud.xyz_m.flags.c_contiguous
