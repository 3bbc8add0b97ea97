"""Voxels of a sweep, and labels of voxels."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from manifests.sections.network import Coordinates, LabelRule, VoxelConfig
from trainer.data.voxels import Voxels, voxel_confidences, voxel_labels, voxel_shares, voxelise

CARTESIAN = VoxelConfig(coordinates="cartesian")


def _sweep(*points: tuple[float, float, float]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return np.array(points, np.float32).reshape(-1, 3), np.arange(len(points), dtype=np.float32)


def _sorted_rows(voxels: Voxels) -> npt.NDArray[Any]:
    return np.asarray(voxels.coords[np.lexsort(voxels.coords.T)])


clouds = arrays(np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(-3, 3, width=32))


def test_cells_are_floors_also_below_zero() -> None:
    voxels = voxelise(*_sweep((0.05, 0.05, 0.05), (-0.05, 0.15, -0.25)), CARTESIAN)
    assert voxels.coords[voxels.inverse].tolist() == [[0, 0, 0], [-1, 1, -3]]


def test_cylindrical_cells_are_radius_azimuth_and_height() -> None:
    voxels = voxelise(*_sweep((3.05, 0.001, 0), (0, 4.05, 0.15), (-1.05, -0.01, -0.05)), VoxelConfig())
    assert voxels.coords[voxels.inverse].tolist() == [[30, 0, 0], [40, 90, 1], [10, -180, -1]]


def test_the_first_point_of_a_cell_represents_it() -> None:
    xyz, _ = _sweep((9, 9, 9), (0.01, 0, 0), (0.02, 0, 0))
    config = VoxelConfig("cartesian", intensity_scale=0.5, intensity_offset=1.0)
    voxels = voxelise(xyz, np.array([4, 8, 100], np.float32), config)
    assert voxels.first_point[voxels.inverse].tolist() == [0, 1, 1]
    assert voxels.features[voxels.inverse].tolist() == [[3.0], [5.0], [5.0]]
    assert voxels.features.dtype == np.float32


@pytest.mark.parametrize("coordinates", ["cylindrical", "cartesian"])
@given(cloud=clouds)
def test_every_point_finds_its_own_cell_and_cells_are_distinct(
    coordinates: Coordinates, cloud: npt.NDArray[Any]
) -> None:
    config = VoxelConfig(coordinates=coordinates)
    voxels = voxelise(cloud, np.zeros(len(cloud), np.float32), config)
    alone = np.concatenate([voxelise(point[None], np.zeros(1, np.float32), config).coords for point in cloud])
    np.testing.assert_array_equal(voxels.coords[voxels.inverse], alone)
    assert len(np.unique(voxels.coords, axis=0)) == len(voxels.coords)
    lowest = [np.flatnonzero(voxels.inverse == voxel)[0] for voxel in range(len(voxels.coords))]
    assert voxels.first_point.tolist() == lowest


@given(cloud=clouds, seed=st.integers(0, 99))
def test_the_order_of_points_does_not_move_voxels(cloud: npt.NDArray[Any], seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(cloud)
    intensity = np.zeros(len(cloud), np.float32)
    first, second = voxelise(cloud, intensity, VoxelConfig()), voxelise(shuffled, intensity, VoxelConfig())
    np.testing.assert_array_equal(first.coords, second.coords)


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_quarter_turns_permute_cylindrical_voxels(quarter_turns: int) -> None:
    rng = np.random.default_rng(0)
    azimuth = np.deg2rad(rng.integers(-180, 180, 500) + 0.5)
    radius = rng.integers(1, 500, 500) / 10 + 0.05
    xyz = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), rng.uniform(-2, 2, 500)], 1).astype(np.float32)
    turned = xyz.copy()
    for _ in range(quarter_turns):
        turned = np.stack([-turned[:, 1], turned[:, 0], turned[:, 2]], 1)
    before = voxelise(xyz, np.zeros(500, np.float32), VoxelConfig())
    after = voxelise(turned, np.zeros(500, np.float32), VoxelConfig())
    moved = before.coords.copy()
    moved[:, 1] = (moved[:, 1] + 90 * quarter_turns + 180) % 360 - 180
    np.testing.assert_array_equal(moved[np.lexsort(moved.T)], _sorted_rows(after))


def test_clouds_wider_than_32_bits_of_cells_still_group() -> None:
    rng = np.random.default_rng(0)
    xyz = rng.choice(rng.uniform(-9e4, 9e4, 30), (400, 3)).astype(np.float32)
    voxels = voxelise(xyz, np.zeros(400, np.float32), CARTESIAN)
    expected, inverse = np.unique(np.floor(xyz / np.float32(0.1)).astype(np.int32), axis=0, return_inverse=True)
    np.testing.assert_array_equal(voxels.coords, expected)
    np.testing.assert_array_equal(voxels.inverse, inverse)


def test_an_empty_sweep_has_no_voxels() -> None:
    voxels = voxelise(*_sweep(), VoxelConfig())
    assert voxels.coords.shape == (0, 3) and voxels.features.shape == (0, 1) and len(voxels.inverse) == 0
    assert len(voxel_labels(np.zeros(0, np.uint8), voxels.inverse, 0, "majority")) == 0


@pytest.mark.parametrize(
    ("xyz", "message"),
    [
        ([[np.nan, 0, 0]], "not finite"),
        ([[np.inf, 0, 0]], "not finite"),
        ([[1e12, 0, 0]], "metres"),
        ([[1e8, 1e8, 1e8], [-1e8, -1e8, -1e8]], "metres"),
        ([[0, 0]], r"xyz \(n, 3\)"),
    ],
)
def test_a_sweep_that_cannot_be_right_is_refused(xyz: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        voxelise(np.array(xyz, np.float32), np.zeros(len(xyz), np.float32), CARTESIAN)


def test_labelled_points_vote_and_a_tie_goes_to_the_lowest_label() -> None:
    inverse = np.array([0, 0, 0, 1, 1, 2, 2, 3, 3, 3])
    labels = np.array([0, 0, 5, 7, 3, 0, 0, 2, 9, 9], np.uint8)
    assert voxel_labels(labels, inverse, 4, "majority").tolist() == [5, 3, 0, 9]
    assert voxel_labels(labels, inverse, 4, "first").tolist() == [0, 7, 0, 2]


def test_a_voxel_is_as_sure_as_its_points_of_that_label() -> None:
    labels = np.array([0, 5, 5, 2, 7, 3, 0, 0, 3, 0], np.uint8)
    confidence = np.array([0, 100, 51, 255, 40, 30, 0, 0, 255, 0], np.uint8)
    inverse = np.array([0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    first_point = np.array([0, 4, 6, 8])
    grid = Voxels(np.zeros((4, 3), np.int32), np.zeros((4, 1), np.float32), inverse, first_point)

    def sure(mode: LabelRule) -> list[int]:
        return [*map(int, voxel_confidences(confidence, labels, grid, voxel_labels(labels, inverse, 4, mode), mode))]

    # (100 + 51) / 2, of a tie the lower label, no label at all, one point of two
    assert sure("majority") == [76, 30, 0, 255]
    assert sure("first") == [0, 40, 0, 255]


def test_a_voxel_may_be_what_its_labelled_points_may_be_on_average() -> None:
    inverse, labels = np.array([0, 0, 0, 1, 2]), np.array([1, 2, 0, 0, 2], np.uint8)
    shares = np.array([[0, 0.75, 0.25], [0, 0.25, 0.75], [1, 0, 0], [1, 0, 0], [0, 0, 1]], np.float32)
    grid = Voxels(np.zeros((3, 3), np.int32), np.zeros((3, 1), np.float32), inverse, np.array([0, 3, 4]))

    def mean(mode: LabelRule) -> list[list[float]]:
        return voxel_shares(shares, labels, grid, voxel_labels(labels, inverse, 3, mode), mode).tolist()  # type: ignore[no-any-return]

    # of two labelled points and one without, of none at all, of one
    assert mean("majority") == [[0, 0.5, 0.5], [0, 0, 0], [0, 0, 1]]
    assert mean("first") == [[0, 0.75, 0.25], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(ValueError, match="4 rows of shares do not fit 5 labels of points"):
        voxel_shares(shares[:4], labels, grid, np.zeros(3, np.int64), "majority")


@given(
    cells=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), min_size=1, max_size=8),
    seed=st.integers(0, 99),
)
def test_a_voxel_is_unlabelled_only_if_all_its_points_are(cells: list[list[int]], seed: int) -> None:
    inverse = np.repeat(np.arange(len(cells)), [len(cell) for cell in cells])
    order = np.random.default_rng(seed).permutation(len(inverse))
    labels = np.concatenate(cells).astype(np.uint8)
    got = voxel_labels(labels[order], inverse[order], len(cells), "majority")
    for cell, label in zip(cells, got, strict=True):
        votes = [vote for vote in cell if vote]
        assert label == (min(sorted(set(votes)), key=lambda vote: -votes.count(vote)) if votes else 0)


def test_labels_that_fit_another_sweep_are_refused() -> None:
    with pytest.raises(ValueError, match="3 labels do not fit 2 points"):
        voxel_labels(np.zeros(3, np.uint8), np.zeros(2, np.int64), 1, "majority")


@pytest.mark.parametrize(
    "fields",
    [
        {"coordinates": "polar"},
        {"label": "last"},
        {"size_m": 0.0},
        {"size_m": float("nan")},
        {"angle_deg": 0.0},
        {"angle_deg": 361.0},
        {"intensity_scale": 0.0},
        {"intensity_offset": float("inf")},
    ],
)
def test_config_values_out_of_range_are_named(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"voxels.{name} is"):
        VoxelConfig(**fields)


@pytest.mark.parametrize(
    ("golden", "root"),
    [
        ("pretrain_none_parametrizing_0", "nuscenes_tiny"),
        ("pretrain_none_parametrizing_1", "nuscenes_tiny"),
        ("pretrain_none_verifying_0", "nuscenes_tiny"),
        ("real_nuscenes/pretrain_none_parametrizing_0", "real_nuscenes/root"),
    ],
)
def test_voxels_equal_the_reference_implementation(shared: Path, golden: str, root: str) -> None:
    expected = np.load(shared / "golden" / f"{golden}.npz")
    sweep = np.fromfile(shared / "golden" / root / str(expected["lidar_file"]), np.float32).reshape(-1, 5)
    voxels = voxelise(sweep[:, :3], sweep[:, 3], VoxelConfig())
    assert len(voxels.coords) == len(expected["coords"])
    inverse = expected["inverse_indexes"]
    np.testing.assert_array_equal(voxels.coords[voxels.inverse], expected["coords"][inverse, 1:])
    np.testing.assert_array_equal(voxels.features[voxels.inverse], expected["feats"][inverse])
