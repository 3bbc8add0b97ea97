"""Teachers that are shown rectified images: what they find is back in the raw image, where points land."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests.config import ConfigError
from manifests.sections.data import DataConfig
from manifests.stages import fingerprint
from manifests.tables.base import Rows
from manifests.tables.sensors import PixelOfPair
from manifests.tables.teacher import SegmentMaps
from pipeline.frame import Camera, read_image, read_image_for
from pipeline.lenses import Lens, pinhole_places, raw_places, rectified
from pipeline.stages import encode, score, segment
from pipeline.stages.base import FrameInput
from pipeline.stages.score import at_pairs, raw
from pipeline.stages.segment import views_of
from pipeline.teachers.base import PixelTeacher
from pipeline.teachers.rectify import in_raw_image, in_rectified_image, places, shown, values_in_raw_image
from pipeline.teachers.registry import TEACHERS
from superpixels.segments import Segments
from tests.pipeline.test_lenses import LENSES, MATRIX
from tests.pipeline.test_segment_stage import clip, files, frame_of, recipe_at, stored, text_rows

BROWN, WIDE = Lens("brown", (-0.25, 0.06, 0.001, -0.002)), Lens("fisheye", (0.02, -0.01, 0, 0))
SIZE = (720, 1311)  # rows, columns, as MATRIX has it
_ = files  # a fixture


def camera_of(lens: Lens, name: str = "front") -> Camera:
    return Camera(
        name, name, f"{name}.png", 0, MATRIX, np.eye(4), width_px=SIZE[1], height_px=SIZE[0], lens=lens, rectify=True
    )


def halves(shape: tuple[int, int], column: int) -> Segments:
    """Two segments, left and right of a column."""
    label_map = np.where(np.arange(shape[1]) < column, 1, 2) * np.ones((shape[0], 1), np.int64)
    return Segments.from_label_map(label_map.astype(np.uint16), [0, 1], [0.5, 0.75], np.eye(2))


@settings(max_examples=30)
@given(lens=LENSES, seed=st.integers(0, 99))
def test_there_and_back_is_the_same_pixel_in_the_valid_field(lens: Lens, seed: int) -> None:
    rng = np.random.default_rng(seed)
    u_px, v_px = rng.uniform(0, SIZE[1], 500), rng.uniform(0, SIZE[0], 500)
    there_u, there_v, valid = pinhole_places(lens, MATRIX, u_px, v_px)
    assert valid[np.hypot(u_px - MATRIX[0, 2], v_px - MATRIX[1, 2]) < 100].all()
    back_u, back_v, seen = raw_places(lens, MATRIX, there_u[valid], there_v[valid])
    assert seen.all()
    np.testing.assert_allclose(back_u, u_px[valid], atol=0.02)
    np.testing.assert_allclose(back_v, v_px[valid], atol=0.02)


@pytest.mark.parametrize("lens", [BROWN, WIDE])
def test_pixels_are_undistorted_as_opencv_does(lens: Lens) -> None:
    u_px, v_px = (
        one.ravel().astype(np.float64) for one in np.meshgrid(np.arange(50, 1250, 60), np.arange(50, 700, 60))
    )
    points = np.stack([u_px, v_px], axis=1)[:, None]
    if lens.model == "fisheye":
        found = cv2.fisheye.undistortPoints(points, MATRIX, np.array(lens.coefficients), P=MATRIX)
    else:
        end = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)
        found = cv2.undistortPointsIter(points, MATRIX, np.array(lens.coefficients), np.eye(3), MATRIX, end)
    ours_u, ours_v, valid = pinhole_places(lens, MATRIX, u_px, v_px)
    assert valid.all()
    np.testing.assert_allclose(np.stack([ours_u, ours_v], axis=1), np.asarray(found)[:, 0], atol=0.05)


@pytest.mark.parametrize("lens", [BROWN, WIDE])
def test_a_straight_line_is_bent_in_the_raw_image_and_straight_in_the_rectified_one(lens: Lens, tmp_path: Path) -> None:
    """The line is painted into the raw image where the lens shows it."""
    u_px, v_px = np.meshgrid(np.arange(SIZE[1], dtype=np.float64), np.arange(SIZE[0], dtype=np.float64))
    plain_u, plain_v, valid = pinhole_places(lens, MATRIX, u_px.ravel(), v_px.ravel())
    away = (0.2 * (plain_u - 600) + (plain_v - 120)) / np.hypot(0.2, 1)  # px from a line of the pinhole's image
    painted = np.where(valid, 255 * np.exp(-(away**2) / 8), 0).reshape(SIZE).astype(np.uint8)
    Image.fromarray(np.repeat(painted[:, :, None], 3, axis=2)).save(tmp_path / "front.png")
    one = camera_of(lens)

    def off_px(image: npt.NDArray[Any]) -> float:
        """How far the line is from the straight one that fits it best, at most."""
        columns = np.arange(150, 1150, 20)
        weight = image[:, columns, 0].astype(np.float64)
        rows = (np.arange(SIZE[0])[:, None] * weight).sum(axis=0) / weight.sum(axis=0)
        return float(np.abs(rows - np.polyval(np.polyfit(columns, rows, 1), columns)).max())

    assert off_px(read_image(tmp_path, replace(one, rectify=False))) > 5
    assert off_px(read_image(tmp_path, one)) < 0.5
    half, size = read_image_for(tmp_path, one, lambda height_px, width_px: (height_px // 2, width_px // 2), scaled=True)
    assert half.shape[:2] == SIZE and size == (360, 655)  # no half of a JPEG: its pixels would have other places


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("lens", [BROWN, WIDE])
def test_segments_of_the_rectified_image_are_looked_up_in_the_raw_one(lens: Lens, scale: int) -> None:
    one, shape = camera_of(lens), (SIZE[0] // scale, SIZE[1] // scale)
    found = in_raw_image(halves(shape, shape[1] // 3), one)
    rng = np.random.default_rng(scale)
    u_px, v_px = rng.uniform(0, SIZE[1] - 1, 4000), rng.uniform(0, SIZE[0] - 1, 4000)
    plain_u, plain_v, valid = pinhole_places(lens, MATRIX, u_px, v_px)
    column = (plain_u + 0.5) * shape[1] / SIZE[1]
    row = (plain_v + 0.5) * shape[0] / SIZE[0]
    label = found.lookup((v_px * shape[0] / SIZE[0]).astype(int), (u_px * shape[1] / SIZE[1]).astype(int))
    sure = valid & (np.abs(column - shape[1] // 3) > 2)
    inside = sure & (column > 2) & (column < shape[1] - 2) & (row > 2) & (row < shape[0] - 2)
    outside = ~valid | (column < -2) | (column > shape[1] + 2) | (row < -2) | (row > shape[0] + 2)
    np.testing.assert_array_equal(label[inside], np.where(column[inside] < shape[1] // 3, 1, 2))
    assert not label[outside].any() and inside.sum() > 2000
    assert found.area_px.tolist() == np.bincount(found.label_map().ravel(), minlength=3)[1:].tolist()


def test_a_segment_that_the_raw_image_does_not_show_is_left_empty() -> None:
    barrel = Lens("brown", (0.3, 0.1, 0, 0))  # pincushion: edges of the pinhole's image lie outside the raw one
    view = halves(SIZE, 8)
    found = in_raw_image(view, camera_of(barrel))
    assert found.area_px[0] == 0 and not found.vector[0].any() and found.vector[1].tolist() == [0, 1]
    found.check()
    same = camera_of(Lens())
    assert in_raw_image(view, same) is view and in_rectified_image(view, same) is view


@pytest.mark.parametrize("lens", [BROWN, WIDE])
def test_scores_of_any_resolution_come_back_to_the_pixels_they_are_of(lens: Lens) -> None:
    one = camera_of(lens)
    u_px, v_px = np.meshgrid(np.arange(SIZE[1], dtype=np.float64), np.arange(SIZE[0], dtype=np.float64))
    [back] = raw([u_px / SIZE[1]], (one,))  # a score that says its own column
    plain_u, _, _ = pinhole_places(lens, MATRIX, u_px.ravel(), v_px.ravel())
    inside = places(one, *SIZE, back=True)[2]
    np.testing.assert_allclose(back[inside] * SIZE[1], plain_u.reshape(SIZE)[inside].clip(0, SIZE[1] - 1), atol=0.01)
    assert not back[~inside].any()
    grid = values_in_raw_image(np.stack([u_px[::8, ::8], v_px[::8, ::8]]), one)
    assert grid.shape == (2, 90, 164)
    there = in_rectified_image(in_raw_image(halves(SIZE, 500), one), one).label_map()
    truth = halves(SIZE, 500).label_map()
    away = np.abs(np.arange(SIZE[1]) - 499.5) > 2
    assert (there == truth)[:, away][there[:, away] > 0].all() and (there > 0).mean() > 0.6


def test_with_it_what_a_teacher_makes_is_another_table(tmp_path: Path, files: Any) -> None:
    plain = recipe_at(tmp_path, clip())
    with_it = replace(plain, data=DataConfig(root=str(tmp_path), rectify=True))
    for name, same in (("text", True), ("project", True), ("encode", False), ("segment", False)):
        assert (fingerprint(plain, name) == fingerprint(with_it, name)) is same, name
    assert {"intrinsics", "lens", "distortion"} <= set(encode.STAGE.more_index_columns(with_it))
    assert encode.STAGE.more_index_columns(plain) == ()
    with pytest.raises(ConfigError, match=r"data.rectify shows .* and teacher artifacts looks at none"):
        fingerprint(replace(with_it, teacher=files), "segment")


def test_stages_show_the_rectified_image_and_store_segments_of_the_raw_one(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.asarray(Image.fromarray(rng.integers(0, 256, (12, 22, 3), dtype=np.uint8)).resize(SIZE[::-1]))
    Image.fromarray(pixels).save(tmp_path / "front.png")
    Image.fromarray(rectified(pixels, BROWN, MATRIX)).save(tmp_path / "flat.png")
    bent, flat = replace(camera_of(BROWN), rectify=False), replace(camera_of(Lens()), image_path="flat.png")
    plain = recipe_at(tmp_path, clip())
    with_it = replace(plain, data=DataConfig(root=str(tmp_path), rectify=True))
    prompts, rows = text_rows(plain), []
    for recipe, one in ((with_it, bent), (plain, flat)):
        inputs = FrameInput(frame_of(one))
        encoded = stored(encode.prepare(recipe)(inputs))
        [streamed] = encode.stream(recipe)(iter([inputs]))
        assert not isinstance(streamed, Exception)
        np.testing.assert_array_equal(streamed.encoding["front/grid"], encoded.encoding["front/grid"])
        rows.append((encoded, stored(segment.prepare(recipe)(replace(inputs, rows=Rows(encoded), text=prompts)))))
    (shown_to, found), (seen, expected) = rows
    np.testing.assert_array_equal(shown_to.encoding["front/grid"], seen.encoding["front/grid"])
    [view], [truth] = views_of(found), views_of(expected)
    assert len(view) == len(truth) > 0
    np.testing.assert_array_equal(view.label_map(), in_raw_image(truth, camera_of(BROWN)).label_map())
    assert (view.label_map() != truth.label_map()).mean() > 0.01
    assert shown(plain, frame_of(bent)).cameras[0] is bent

    # scores: the same pixels of the same image, asked for by their places in the raw one
    row_px, col_px = rng.integers(0, SIZE[0], 300).astype(np.uint16), rng.integers(0, SIZE[1], 300).astype(np.uint16)
    pairs = PixelOfPair(frame_id="f", view=np.zeros(300, np.uint8), row_px=row_px, col_px=col_px)
    maps = SegmentMaps(**{one.name: getattr(found, one.name) for one in fields(SegmentMaps)})
    inputs = FrameInput(frame_of(bent), Rows(pairs, maps, shown_to), prompts)
    scored = stored(score.prepare(with_it)(inputs))
    teacher = TEACHERS["clip_dense"].load(plain, "segment")
    assert isinstance(teacher, PixelTeacher)
    one = camera_of(BROWN)
    vectors = np.stack([prompt.vector for prompt in prompts])
    there = teacher.pixel_scores(frame_of(flat), seen.encoding, vectors, [in_rectified_image(view, one)])
    np.testing.assert_array_equal(scored.score, at_pairs(pairs, (one,), [view], raw(there, (one,))))
    assert (scored.score > 0).sum() > 100
