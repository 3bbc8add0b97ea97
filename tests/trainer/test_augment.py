"""Random views of a training frame."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from manifests.sections.network import AugmentConfig, VoxelConfig
from manifests.tables.superpoints import Pairs
from trainer.data.augment import Box, augment, flipped, in_box, outside_cuboid, resize_pixels, rotated, view_of
from trainer.data.voxels import voxelise

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")


def _pairs(point: ArrayLike, view: ArrayLike, row: ArrayLike, col: ArrayLike, n_views: int = 2) -> Pairs:
    """Pairs on images of 90 x 160 pixels; superpoint i lies in view i."""
    return Pairs(
        frame_id="f",
        point=np.array(point, np.int32),
        superpoint=np.array(view, np.int32),
        row_px=np.array(row, np.uint16),
        col_px=np.array(col, np.uint16),
        superpoint_view=np.arange(n_views, dtype=np.uint8),
        superpoint_prompt=np.zeros(n_views, np.int32),
        vector=np.zeros((n_views, 4), np.float16),
        height_px=np.full(n_views, 90, np.int32),
        width_px=np.full(n_views, 160, np.int32),
    )


def _random_frame(seed: int, n_points: int = 200, n_pairs: int = 150) -> tuple[npt.NDArray[Any], Pairs]:
    rng = np.random.default_rng(seed)
    xyz = rng.normal(size=(n_points, 3)).astype(np.float32)
    point = np.sort(rng.integers(n_points, size=n_pairs))
    view = rng.integers(2, size=n_pairs)
    return xyz, _pairs(point, view, rng.integers(90, size=n_pairs), rng.integers(160, size=n_pairs), n_views=3)


def test_a_quarter_turn_takes_x_to_y() -> None:
    turned = rotated(np.array([[1, 0, 5], [0, 2, 5]], np.float32), np.pi / 2)
    np.testing.assert_allclose(turned, [[0, 1, 5], [-2, 0, 5]], atol=1e-6)
    assert turned.dtype == np.float32


def test_flips_change_the_sign_of_their_axis_only() -> None:
    xyz = np.array([[1, 2, 3]], np.float32)
    assert flipped(xyz, True, False).tolist() == [[-1, 2, 3]]
    assert flipped(xyz, False, True).tolist() == [[1, -2, 3]]
    assert flipped(xyz, False, False).dtype == np.float32


def test_fixed_views_are_the_sweep_and_turned_and_mirrored_ones() -> None:
    xyz = np.array([[1, 0, 5], [0, 2, -1]], np.float32)
    assert view_of(xyz, 0) is xyz
    golden = np.radians(137.50776)  # 360 degrees in the golden ratio
    assert view_of(xyz, 1)[0] == pytest.approx([np.cos(golden), -np.sin(golden), 5], abs=1e-6), "turned, then mirrored"
    assert view_of(xyz, 2)[1] == pytest.approx([-2 * np.sin(2 * golden), 2 * np.cos(2 * golden), -1], abs=1e-5)
    assert view_of(xyz, 3).dtype == np.float32


def test_a_cuboid_drops_only_points_strictly_inside() -> None:
    xyz = np.array([[0, 0, 0], [1, 1, 1], [2, 2, 2], [5, 5, 5], [10, 10, 10]], np.float32)
    assert outside_cuboid(xyz, 2, 0.2).tolist() == [True, True, False, True, True]
    assert outside_cuboid(xyz, 2, 0.4).tolist() == [True, False, False, True, True]
    assert outside_cuboid(xyz, 2, 0.41).tolist() == [False, False, False, True, True]
    # No extent along an axis: nothing lies strictly inside.
    assert outside_cuboid(xyz * [1, 1, 0], 2, 0.2).all()


def _with_cuboids(min_pairs: int) -> AugmentConfig:
    return AugmentConfig(
        rotate=False, flip=False, crop=False, cuboids=True, cuboid_max_share=1.0, cuboid_min_pairs=min_pairs
    )


def test_cuboids_take_points_and_their_pairs_and_renumber_the_rest() -> None:
    xyz, pairs = _random_frame(0)
    result = augment(xyz, pairs, _with_cuboids(1), np.random.default_rng(4))
    assert result.pairs is not None
    assert 0 < len(result.xyz_m) < len(xyz)
    np.testing.assert_array_equal(result.xyz_m, xyz[result.kept_point])
    survives = np.isin(pairs.point, result.kept_point)
    assert 0 < survives.sum() < len(pairs.point)
    np.testing.assert_array_equal(result.kept_point[result.pairs.point], pairs.point[survives])
    np.testing.assert_array_equal(result.pairs.col_px, pairs.col_px[survives])


def test_a_cuboid_is_undone_where_a_camera_would_keep_too_few_pairs() -> None:
    xyz, pairs = _random_frame(0)
    few = int(np.bincount(pairs.superpoint_view[pairs.superpoint]).min())
    result = augment(xyz, pairs, _with_cuboids(few), np.random.default_rng(4))
    assert len(result.xyz_m) == len(xyz) and result.pairs is pairs


def test_a_camera_without_pairs_forbids_no_cuboid() -> None:
    xyz, pairs = _random_frame(0)
    assert np.bincount(pairs.superpoint_view[pairs.superpoint], minlength=3)[2] == 0
    assert len(augment(xyz, pairs, _with_cuboids(1), np.random.default_rng(4)).xyz_m) < len(xyz)


CROP_ONLY = AugmentConfig(rotate=False, flip=False, cuboids=False, crop_min_pairs=20)


@given(st.integers(0, 500))
def test_a_crop_only_removes_pairs_and_keeps_enough_of_each_camera(seed: int) -> None:
    xyz, pairs = _random_frame(seed)
    cropped = augment(xyz, pairs, CROP_ONLY, np.random.default_rng(seed)).pairs
    assert cropped is not None
    before = list(zip(pairs.point, pairs.superpoint, pairs.row_px, pairs.col_px, strict=True))
    after = list(zip(cropped.point, cropped.superpoint, cropped.row_px, cropped.col_px, strict=True))
    remaining = iter(before)
    assert all(pair in remaining for pair in after)  # a subsequence
    for view in range(2):
        n_before, n_after = (np.count_nonzero(p.superpoint_view[p.superpoint] == view) for p in (pairs, cropped))
        assert n_after > 20 or n_after > 0.75 * n_before


def test_a_camera_for_which_no_box_fits_keeps_its_pairs_and_one_without_pairs_ends() -> None:
    corners = _pairs([0, 1, 2, 3], [0] * 4, [0, 0, 89, 89], [0, 159, 0, 159], n_views=2)
    config = replace(CROP_ONLY, crop_area=(0.3, 0.3))
    cropped = augment(np.zeros((4, 3), np.float32), corners, config, np.random.default_rng(0)).pairs
    assert cropped is not None and len(cropped.point) == 4
    none = _pairs([], [], [], [])
    cropped = augment(np.zeros((4, 3), np.float32), none, AugmentConfig(), np.random.default_rng(0)).pairs
    assert cropped is not None and len(cropped.point) == 0


def test_a_box_that_never_fits_the_image_leaves_it_whole() -> None:
    xyz, pairs = _random_frame(0)
    config = replace(CROP_ONLY, crop_area=(1.0, 1.0), crop_aspect=(9.0, 9.0))
    cropped = augment(xyz, pairs, config, np.random.default_rng(0)).pairs
    assert cropped is not None and len(cropped.point) == len(pairs.point)


def test_pixels_left_of_and_above_the_box_are_outside() -> None:
    # Unsigned pixels would wrap around to large positions.
    row, col = np.array([0, 50, 899], np.uint16), np.array([0, 50, 1599], np.uint16)
    assert in_box(row, col, Box(40, 40, 100, 200)).tolist() == [False, True, False]
    assert in_box(row, col, Box(0, 0, 900, 1600)).tolist() == [True, True, False]  # 899 rounds to 224, off the end


def test_resized_pixels_round_half_to_even_and_stay_inside() -> None:
    row, col = resize_pixels(np.array([0, 449, 899]), np.array([25, 75, 1599]), 900, 1600)
    assert row.tolist() == [0, 112, 223]
    assert col.tolist() == [6, 20, 415]  # 6.5 and 19.5


def test_equal_seeds_give_equal_views_and_others_differ() -> None:
    xyz, pairs = _random_frame(1)
    config = AugmentConfig(cuboid_min_pairs=1, crop_min_pairs=1)
    first, again, other = (augment(xyz, pairs, config, np.random.default_rng(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first.xyz_m, again.xyz_m)
    assert first.pairs is not None and again.pairs is not None
    np.testing.assert_array_equal(first.pairs.point, again.pairs.point)
    assert first.xyz_m.shape != other.xyz_m.shape or not np.allclose(first.xyz_m, other.xyz_m)


def test_without_pairs_the_cloud_only_turns_and_mirrors() -> None:
    xyz, _ = _random_frame(2)
    result = augment(xyz, None, AugmentConfig(cuboid_min_pairs=0), np.random.default_rng(0))
    assert result.pairs is None
    assert result.kept_point.tolist() == list(range(len(xyz)))
    np.testing.assert_allclose(np.linalg.norm(result.xyz_m, axis=1), np.linalg.norm(xyz, axis=1), rtol=1e-5)
    np.testing.assert_array_equal(result.xyz_m[:, 2], xyz[:, 2])


def test_nothing_switched_on_changes_nothing() -> None:
    xyz, pairs = _random_frame(3)
    off = AugmentConfig(rotate=False, flip=False, cuboids=False, crop=False)
    result = augment(xyz, pairs, off, np.random.default_rng(0))
    np.testing.assert_array_equal(result.xyz_m, xyz)
    assert result.pairs is pairs


def test_half_of_the_clouds_are_mirrored_along_each_axis() -> None:
    config = AugmentConfig(rotate=False)
    rng = np.random.default_rng(0)
    signs = np.concatenate([augment(np.ones((1, 3), np.float32), None, config, rng).xyz_m for _ in range(400)])
    assert (np.abs(signs[:, :2].mean(axis=0)) < 0.15).all() and (signs[:, 2] == 1).all()


@pytest.mark.parametrize(
    "fields",
    [
        {"cuboid_max_share": 0.0},
        {"cuboid_max_share": 1.5},
        {"cuboid_min_pairs": -1},
        {"crop_min_pairs": -1},
        {"crop_area": (0.0, 1.0)},
        {"crop_area": (0.5, 0.4)},
        {"crop_aspect": (2.0, 1.0)},
    ],
)
def test_config_values_out_of_range_are_named(fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=f"augment.{name} is"):
        AugmentConfig(**fields)


# --- Against the reference implementation, on a real frame and its recorded draws ---


def _pose(record: dict[str, list[float]]) -> npt.NDArray[Any]:
    w, x, y, z = record["rotation"]
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = record["translation"]
    return pose


def _projected(golden: Path, lidar_token: str, xyz_m: npt.NDArray[Any]) -> Pairs:
    """The frame's pairs, in the golden files' order; only the view of a superpoint matters here."""

    def table(name: str) -> dict[str, dict[str, Any]]:
        rows = json.loads((golden / "root" / "v1.0-trainval" / f"{name}.json").read_text())
        return {row["token"]: row for row in rows}

    images, mounts, poses, sensors = map(table, ("sample_data", "calibrated_sensor", "ego_pose", "sensor"))
    lidar = images[lidar_token]
    world_from_lidar = _pose(poses[lidar["ego_pose_token"]]) @ _pose(mounts[lidar["calibrated_sensor_token"]])
    views = {
        sensors[mounts[image["calibrated_sensor_token"]]["sensor_token"]]["channel"]: image
        for image in images.values()
        if image["sample_token"] == lidar["sample_token"] and image["is_key_frame"]
    }
    point, view, row, col = [], [], [], []
    for index, name in enumerate(CAMERAS):
        mount = mounts[views[name]["calibrated_sensor_token"]]
        cam_from_world = np.linalg.inv(_pose(poses[views[name]["ego_pose_token"]]) @ _pose(mount))
        cam_from_lidar = cam_from_world @ world_from_lidar
        x, y, depth = (xyz_m @ cam_from_lidar[:3, :3].T + cam_from_lidar[:3, 3]).T
        u, v, _ = np.array(mount["camera_intrinsic"]) @ np.stack([x, y, depth]) / np.where(depth > 1, depth, np.inf)
        visible = np.flatnonzero((depth > 1) & (u > 0) & (u < 1599) & (v > 0) & (v < 899))
        point.append(visible)
        view.append(np.full(len(visible), index))
        row.append(np.rint(v[visible]))
        col.append(np.rint(u[visible]))
    joined = [np.concatenate(one) for one in (point, view, row, col)]
    pairs = _pairs(joined[0], joined[1], joined[2], joined[3], n_views=len(CAMERAS))
    return replace(pairs, height_px=np.full(6, 900, np.int32), width_px=np.full(6, 1600, np.int32))


def test_recorded_draws_give_the_reference_implementations_points_and_pairs(shared: Path) -> None:
    golden = shared / "golden" / "real_nuscenes"
    plain = np.load(golden / "pretrain_none_parametrizing_0.npz")
    expected = np.load(golden / "pretrain_train_parametrizing_0.npz")
    draws = json.loads((golden / "pretrain_train_parametrizing_0_draws.json").read_text())["draws"]
    sweep = np.fromfile(golden / "root" / str(plain["lidar_file"]), np.float32).reshape(-1, 5)
    pairs = _projected(golden, str(plain["lidar_token"]), sweep[:, :3].astype(np.float64))

    turn, flip_x, flip_y, share, centre = (value for _, value in draws[:5])
    xyz = flipped(rotated(sweep[:, :3], turn * 2 * np.pi), flip_x < 0.5, flip_y < 0.5)
    kept = outside_cuboid(xyz, centre, share * 0.2)
    voxels = voxelise(xyz[kept], sweep[kept, 3], VoxelConfig())
    np.testing.assert_array_equal(
        voxels.coords[voxels.inverse], expected["coords"][expected["inverse_indexes"], 1:], strict=True
    )

    boxes = [Box(*value) for kind, value in draws if kind.startswith("crop")]
    new_index = np.cumsum(kept) - 1
    for view in range(6):
        mine = np.flatnonzero((pairs.superpoint == view) & kept[pairs.point])
        while True:  # a box that keeps too few pairs is drawn again
            box = boxes.pop(0)
            inside = in_box(pairs.row_px[mine], pairs.col_px[mine], box)
            if inside.sum() > 1024 or inside.sum() > 0.75 * len(mine):
                break
        theirs = expected["pairing_images"][:, 0] == view
        survivors = mine[inside]
        np.testing.assert_array_equal(
            expected["inverse_indexes"][new_index[pairs.point[survivors]]], expected["pairing_points"][theirs]
        )
    assert not boxes


@pytest.mark.parametrize("frame", ["pretrain_{}_parametrizing_0", "real_nuscenes/pretrain_{}_parametrizing_0"])
def test_pixels_of_resized_images_equal_the_reference_implementation(shared: Path, frame: str) -> None:
    full = np.load(shared / "golden" / f"{frame.format('none')}.npz")["pairing_images"]
    resized = np.load(shared / "golden" / f"{frame.format('val')}.npz")["pairing_images"]
    row, col = resize_pixels(full[:, 1], full[:, 2], 900, 1600)
    np.testing.assert_array_equal(np.stack([full[:, 0], row, col], axis=1), resized)
