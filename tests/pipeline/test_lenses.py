"""Lenses land rays where OpenCV does, and nowhere where their polynomials turn back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bench.city.config import FISHEYE, CityConfig
from bench.city.generate import class_map_path, write_city
from manifests.sections.data import DataConfig
from pipeline.datasets.nuscenes import NuScenesDataset
from pipeline.frame import Frame
from pipeline.geometry import project
from pipeline.lenses import MODELS, PINHOLE, Lens, bend, lens_of, rectified, unbent_radius, valid_radius
from pipeline.stages.index import check_frame

MATRIX = np.array([[620.0, 0, 655.5], [0, 610, 360.25], [0, 0, 1]])
AXES = np.array([[0, -1, 0, 0.1], [0, 0, -1, -0.2], [1, 0, 0, 0.3], [0, 0, 0, 1.0]])
SMALL = st.floats(-0.3, 0.3)
TANGENT = st.floats(-0.01, 0.01)
LENSES = st.one_of(
    st.tuples(SMALL, SMALL, TANGENT, TANGENT).map(lambda c: Lens("brown", c)),
    st.tuples(SMALL, SMALL, TANGENT, TANGENT, SMALL).map(lambda c: Lens("brown", c)),
    st.tuples(SMALL, SMALL, TANGENT, TANGENT, SMALL, SMALL, SMALL, SMALL).map(lambda c: Lens("rational", c)),
    st.tuples(*[st.floats(-0.05, 0.05)] * 4).map(lambda c: Lens("fisheye", c)),
)


def opencv(lens: Lens, xyz_cam: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """OpenCV's own projection of points in the camera's frame, (n, 2)."""
    zero, points = np.zeros(3), np.ascontiguousarray(xyz_cam[:, None])
    if lens.model == "fisheye":
        found, _ = cv2.fisheye.projectPoints(points, zero, zero, MATRIX, np.array(lens.coefficients))
    else:
        found, _ = cv2.projectPoints(points, zero, zero, MATRIX, np.array(lens.coefficients))
    return np.asarray(found)[:, 0]


@given(lens=LENSES, seed=st.integers(0, 99))
def test_pairs_lie_where_opencv_projects_them(lens: Lens, seed: int) -> None:
    rng = np.random.default_rng(seed)
    xyz_m = np.column_stack([rng.uniform(2, 40, 500), rng.uniform(-40, 40, 500), rng.uniform(-10, 10, 500)])
    seen = project(xyz_m, AXES, MATRIX, 1311, 720, lens=lens)
    xyz_cam = (xyz_m @ AXES[:3, :3].T + AXES[:3, 3])[seen.point]
    np.testing.assert_allclose(np.column_stack([seen.u_px, seen.v_px]), opencv(lens, xyz_cam), atol=1e-6)
    radius = np.hypot(xyz_cam[:, 0], xyz_cam[:, 1]) / xyz_cam[:, 2]
    assert (radius <= valid_radius(lens)).all()


@given(lens=LENSES)
def test_the_valid_field_ends_where_radii_turn_back(lens: Lens) -> None:
    most = min(valid_radius(lens), 5.0)
    coefficients = tuple(0.0 if i in (2, 3) and lens.model != "fisheye" else c for i, c in enumerate(lens.coefficients))
    radius = np.linspace(0, 0.999 * most, 2000)
    landed, _, valid = bend(Lens(lens.model, coefficients), radius, np.zeros(2000))
    assert valid.all() and (np.diff(landed) > -1e-9).all()
    if most < 5 and not lens.straight:
        assert not bend(Lens(lens.model, coefficients), np.array([most * 1.001]), np.zeros(1))[2].any()


def test_a_ray_beyond_the_valid_field_would_land_in_the_image_again_and_is_not_seen() -> None:
    lens = Lens("brown", (-0.3, 0.03, 0, 0))
    xyz_m = np.array([[10, 0, 0], [10, -18, 0]], np.float64)  # straight ahead; 61 degrees to the right
    both = opencv(lens, xyz_m @ AXES[:3, :3].T + AXES[:3, 3])
    assert 0 < both[1, 0] < 1310, "OpenCV puts it into the image"
    assert project(xyz_m, AXES, MATRIX, 1311, 720, lens=lens).point.tolist() == [0]


@given(lens=LENSES, share=st.floats(0.01, 0.95))
def test_radii_are_found_again(lens: Lens, share: float) -> None:
    radius = np.array([share * min(valid_radius(lens), 3.0)])
    coefficients = tuple(0.0 if i in (2, 3) and lens.model != "fisheye" else c for i, c in enumerate(lens.coefficients))
    plain = Lens(lens.model, coefficients)
    np.testing.assert_allclose(unbent_radius(plain, bend(plain, radius, np.zeros(1))[0]), radius, rtol=2e-3)


@pytest.mark.parametrize(
    ("coefficients", "model", "expected"),
    [
        ([], "", PINHOLE),
        ([0, 0, 0, 0, 0], "", PINHOLE),
        ([0.1, 0, 0, 0], "", Lens("brown", (0.1, 0, 0, 0))),
        ([0.1, 0, 0, 0, 0.2, 0, 0, 0], "", Lens("brown", (0.1, 0, 0, 0, 0.2))),
        ([0.1, 0, 0, 0, 0.2, 0.3, 0, 0, 0, 0, 0, 0], "", Lens("rational", (0.1, 0, 0, 0, 0.2, 0.3, 0, 0))),
        ([0.1, 0, 0, 0], "fisheye", Lens("fisheye", (0.1, 0, 0, 0))),
    ],
)
def test_a_list_of_coefficients_tells_its_model(coefficients: Sequence[float], model: str, expected: Lens) -> None:
    assert lens_of(coefficients, model) == expected


@pytest.mark.parametrize(
    ("coefficients", "model", "sentence"),
    [
        ([0.1, 0.2], "", "2 coefficients of distortion; expected 4, 5 or 8"),
        ([0.1] * 5, "fisheye", "5 coefficients of model fisheye; it has 4"),
        ([0.1] * 4, "wide", "the lens model is 'wide'; there are pinhole, brown, rational, fisheye"),
        ([math.nan] * 4, "brown", "coefficients of model brown are"),
    ],
)
def test_a_lens_that_is_none_is_one_sentence(coefficients: Sequence[float], model: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        lens_of(coefficients, model)


@pytest.mark.parametrize("lens", [Lens("brown", (-0.25, 0.06, 0.001, -0.002)), Lens("fisheye", (0.02, -0.01, 0, 0))])
def test_a_rectified_image_shows_things_where_the_pinhole_has_them(lens: Lens) -> None:
    """A spot at the pixel where the lens shows a point is, after rectification, where the pinhole shows it."""
    xyz_m = np.array([[10.0, 3.0, 1.0]])
    raw, plain = (project(xyz_m, AXES, MATRIX, 1311, 720, lens=one) for one in (lens, PINHOLE))
    v_px, u_px = np.mgrid[:720, :1311]
    spot = np.exp(-((u_px - raw.u_px[0]) ** 2 + (v_px - raw.v_px[0]) ** 2) / 50)
    image = rectified(np.repeat((spot * 255).astype(np.uint8)[:, :, None], 3, axis=2), lens, MATRIX)[:, :, 0]
    weight = image.astype(np.float64)
    assert abs((u_px * weight).sum() / weight.sum() - plain.u_px[0]) < 1
    assert abs((v_px * weight).sum() / weight.sum() - plain.v_px[0]) < 1
    assert set(MODELS) == {"pinhole", "brown", "rational", "fisheye"}


def test_a_fisheye_of_the_city_shows_every_point_where_it_is(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its images are ray-traced through the lens, its points projected: within a pixel of the same fine class, and by
    OpenCV's own projection within 0.1 px.
    """
    root = tmp_path_factory.mktemp("fisheye")
    config = CityConfig(
        train_scenes=1, val_scenes=1, keyframes=1, image_width_px=400, image_height_px=225, fisheye=True, stray_share=0
    )
    write_city(root, config, 1, lambda scene: None)
    data = DataConfig(root=str(root), version=config.version)
    dataset = NuScenesDataset(data)
    frame = Frame.of(check_frame(dataset, root, next(dataset.frames())).index())
    xyz_m, fine = dataset.read_cloud(frame).xyz_m, dataset.read_labels(frame)
    right, total = {"with": 0, "without": 0}, {"with": 0, "without": 0}
    for camera in frame.cameras:
        assert camera.lens == Lens("fisheye", FISHEYE)
        seen = project(xyz_m, camera.cam_from_lidar, camera.intrinsics, 400, 225, lens=camera.lens)
        xyz_cam = (xyz_m.astype(np.float64) @ camera.cam_from_lidar[:3, :3].T + camera.cam_from_lidar[:3, 3])[
            seen.point
        ]
        found, _ = cv2.fisheye.projectPoints(
            np.ascontiguousarray(xyz_cam[:, None]), np.zeros(3), np.zeros(3), camera.intrinsics, np.array(FISHEYE)
        )
        assert len(seen.point) > 500
        assert np.abs(found[:, 0] - np.column_stack([seen.u_px, seen.v_px])).max() < 0.1
        classes = np.asarray(Image.open(root / class_map_path(config, camera.token)))
        plain = project(xyz_m, camera.cam_from_lidar, camera.intrinsics, 400, 225)
        for name, one in (("with", seen), ("without", plain)):
            right[name] += int((classes[one.row_px, one.col_px] == fine[one.point]).sum())
            total[name] += len(one.point)
    # what is left is seen past what stands before it, from another place and at another time
    assert right["with"] > 0.87 * total["with"] and right["without"] < 0.82 * total["without"], (right, total)
