"""Dense CLIP and SAN asked of other views: features meet on the grid of the image, masks stand side by side."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from manifests.config import ConfigError, parse_section
from manifests.rates import encoded_per_s
from manifests.recipe import Recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.clip_dense import MODES, ClipDenseConfig
from manifests.sections.teachers.composite import CompositeConfig
from manifests.sections.teachers.registry import TeacherConfig
from manifests.sections.teachers.san import SanConfig
from manifests.sections.teachers.views import View, cost_of, sizes_of, views_of
from manifests.stages import fingerprint
from pipeline.frame import Frame, FrameError
from pipeline.teachers.clip_dense import ClipDense, cells_of
from pipeline.teachers.composite import Composite
from pipeline.teachers.loading.towers import TINY_CONFIGS
from pipeline.teachers.san import San
from pipeline.teachers.views import by_scale, joined, mean_direction
from tests.pipeline.frames import camera_of, frame_of
from tests.pipeline.street import assert_equal_segments, recipe_with, street_in, unit_rows

PATCH_PX = TINY_CONFIGS["tiny"]["vision_cfg"]["patch_size"]
EAST, NORTH, UP = np.eye(3, dtype=np.float32)
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def street(tmp_path: Path) -> Frame:
    return street_in(tmp_path, FRONT=(96, 64), SIDE=(64, 96))


def clip(**settings: Any) -> ClipDenseConfig:
    return ClipDenseConfig(**{"model": "tiny", "weights": "random:0", "short_side_px": 32, **settings})


def san(**settings: Any) -> SanConfig:
    return SanConfig(**{"model": "tiny", "weights": "random:0", "short_side_px": 64, **settings})


def recipe_at(root: Path, teacher: TeacherConfig) -> Recipe:
    return recipe_with(root, teacher, SegmentConfig(scale=1.0))


def by_eye(pixels: torch.Tensor) -> torch.Tensor:
    """A tower that knows neither left nor right: the mean colour of each patch of images (b, 3, H, W)."""
    return torch.nn.functional.avg_pool2d(pixels.float(), PATCH_PX).permute(0, 2, 3, 1)


def looking_right(pixels: torch.Tensor) -> torch.Tensor:
    """A tower that knows left from right: of each patch the mean colour of the right half."""
    return by_eye(pixels.roll(-PATCH_PX // 2, dims=3))


def teacher_with(root: Path, look: Any, **settings: Any) -> ClipDense:
    """Return dense CLIP whose tower is a stand-in of known features."""
    teacher = ClipDense.load(recipe_at(root, clip(**settings)), "encode")
    teacher.image_tower._whole = look  # type: ignore[method-assign]
    return teacher


# -- views, sizes, and images of several sizes in one array


def test_sizes_are_whole_cells_and_the_image_keeps_its_own() -> None:
    views = views_of(["flip", "scale:1.25", "flip+scale:1.25", "scale:0.25"])
    assert sizes_of(views, 450, 800, (16, 16)) == {1.0: (450, 800), 1.25: (560, 992), 0.25: (112, 192)}
    assert View(scale=0.25).size_px(16, 64, (16, 16)) == (16, 16)
    assert cost_of(views) == 1 + 1 + 2 * 1.25**2 + 0.25**2 and cost_of(()) == 1


def test_images_of_several_sizes_travel_as_one_array() -> None:
    rng = np.random.default_rng(0)
    views = views_of(["scale:2", "flip", "scale:0.5", "flip+scale:2"])
    sizes = sizes_of(views, 8, 24, (8, 8))
    images = [rng.integers(0, 256, (2, *size, 3), dtype=np.uint8) for size in sizes.values()]
    batch = torch.from_numpy(np.stack([joined([one[row] for one in images]) for row in range(2)]))
    assert batch.shape[:3] == (2, 8, 24)
    for image, (scale, found) in zip(images, by_scale(batch, views, (8, 8)).items(), strict=True):
        assert tuple(found.shape[1:3]) == sizes[scale]
        np.testing.assert_array_equal(found.numpy(), image)
    alone = joined([images[0][0]])
    np.testing.assert_array_equal(alone, images[0][0])
    assert list(by_scale(batch[..., :3], views_of(["flip"]), (8, 8))) == [1.0]


# -- the mean direction


def grid_of(*rows: list[npt.NDArray[Any]]) -> torch.Tensor:
    return torch.from_numpy(np.array([rows], np.float32))


def test_directions_are_averaged_whatever_their_lengths() -> None:
    image, view = grid_of([EAST, 5 * EAST, UP]), grid_of([3 * EAST, NORTH, -UP])
    direction, agreement = mean_direction([image, view])
    half = sqrt(0.5)
    expected = np.stack([EAST, half * (EAST + NORTH), 0 * UP])
    np.testing.assert_allclose(direction[0, 0].numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(agreement[0, 0].numpy(), [1, half, 0], atol=1e-6)


def test_a_finer_grid_is_laid_onto_that_of_the_image_bilinearly() -> None:
    fine = grid_of([EAST, EAST, NORTH, NORTH], [EAST, 9 * EAST, UP, UP])
    direction, agreement = mean_direction([grid_of([EAST, NORTH]), fine])
    assert direction.shape == (1, 1, 2, 3)
    slanted = (NORTH + UP) / sqrt(2)  # the mean of its four cells, each as long as the others
    np.testing.assert_allclose(direction[0, 0, 0].numpy(), EAST, atol=1e-6)
    np.testing.assert_allclose(direction[0, 0, 1].numpy(), unit(NORTH + slanted), atol=1e-6)
    np.testing.assert_allclose(agreement[0, 0].numpy(), [1, float(np.linalg.norm(NORTH + slanted)) / 2], atol=1e-6)


def unit(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(vector / np.linalg.norm(vector))


def test_what_is_not_finite_stays_so() -> None:
    direction, agreement = mean_direction([grid_of([EAST, np.nan * UP]), grid_of([EAST, UP])])
    assert direction[0, 0, 0].isfinite().all() and direction[0, 0, 1].isnan().all()
    assert agreement[0, 0].isnan().tolist() == [False, True]


# -- dense CLIP


@pytest.mark.parametrize("windows", [{}, {"window_px": 24, "stride_px": 16, "short_side_px": 40}])
def test_a_tower_that_knows_no_left_from_right_gives_the_same_grid(
    tmp_path: Path, street: Frame, windows: dict[str, Any]
) -> None:
    plain, mirrored = (
        teacher_with(tmp_path, by_eye, augment=augment, **windows).encode(street) for augment in ((), ("flip",))
    )
    assert {name for name in mirrored if name not in plain} == {"FRONT/agreement", "SIDE/agreement"}
    for name, found in plain.items():
        np.testing.assert_allclose(mirrored[name], found, atol=1e-3)
    for camera in ("FRONT", "SIDE"):
        agreement = mirrored[f"{camera}/agreement"]
        assert agreement.shape == plain[f"{camera}/grid"].shape[:2] and agreement.dtype == np.float16
        np.testing.assert_allclose(agreement, 1, atol=1e-3)


@pytest.mark.parametrize("windows", [{}, {"window_px": 16, "short_side_px": 32}])
def test_to_mirror_twice_is_to_mirror_not_at_all(tmp_path: Path, street: Frame, windows: dict[str, Any]) -> None:
    """The mirror image, seen from right to left, is the image: its features lie from right to left, bit by bit."""
    teacher = ClipDense.load(recipe_at(tmp_path, clip(mode="naclip", **windows)), "encode")
    pixels = torch.from_numpy(teacher.prepare(street, street.cameras[0]).copy())[None]
    with torch.inference_mode():
        plain = teacher.image_tower(pixels)
        twice = teacher.image_tower(pixels.flip(2), mirrored=True)
    if windows:  # side by side, each mirrored in its place, and in turn
        plain, twice = (one.unflatten(2, (3, 2)) for one in (plain, twice))
        assert torch.equal(twice, plain.flip(2).flip(3))
    else:
        assert torch.equal(twice, plain.flip(2))


def test_one_that_does_is_averaged_cell_by_cell(tmp_path: Path, street: Frame) -> None:
    teacher = teacher_with(tmp_path, looking_right, augment=("flip",))
    pixels = torch.from_numpy(teacher.prepare(street, street.cameras[0]).copy())[None].permute(0, 3, 1, 2)
    views = [torch.nn.functional.normalize(one, dim=-1) for one in (looking_right(pixels), looking_left(pixels))]
    mean = (views[0] + views[1])[0].numpy() / 2
    length = np.linalg.norm(mean, axis=-1)
    assert length.min() < 0.999
    found = teacher.encode(street)
    np.testing.assert_allclose(found["FRONT/grid"], mean / length[..., None], atol=1e-3)
    np.testing.assert_allclose(found["FRONT/agreement"], length, atol=1e-3)


def looking_left(pixels: torch.Tensor) -> torch.Tensor:
    return by_eye(pixels.roll(PATCH_PX // 2, dims=3))


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in ("affinity", "convnext")])
def test_a_mirror_image_with_its_mirror_is_the_mirrored_grid(tmp_path: Path, mode: str) -> None:
    """Real towers know left from right; image and mirror image together do not, whichever of them comes first."""
    grids = mirrored_pair(tmp_path, clip(mode=mode, augment=("flip",)))
    np.testing.assert_allclose(grids[1][:, ::-1], grids[0], atol=2e-3)
    alone = mirrored_pair(tmp_path, clip(mode=mode))
    assert np.abs(alone[1][:, ::-1] - alone[0]).max() > 2e-3


def test_so_it_is_where_cells_are_those_of_another_network_or_of_convolutions(tmp_path: Path) -> None:
    dino = {"mode": "affinity", "dino": "tiny", "dino_weights": "random:1"}
    convnext = {"mode": "convnext", "model": "tiny-convnext", "short_side_px": 64}
    for settings in (dino, convnext):
        grids = mirrored_pair(tmp_path, clip(augment=("flip", "scale:1.5", "flip+scale:1.5"), **settings))
        np.testing.assert_allclose(grids[1][:, ::-1], grids[0], atol=2e-3)


def mirrored_pair(root: Path, config: ClipDenseConfig) -> list[npt.NDArray[Any]]:
    """Return the grids of an image and of its mirror image."""
    blocks = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    Image.fromarray(blocks).save(root / "A.png")
    Image.fromarray(np.ascontiguousarray(blocks[:, ::-1])).save(root / "B.png")
    frame = frame_of(camera_of("A", 96, 64), camera_of("B", 96, 64))
    found = ClipDense.load(recipe_at(root, config), "encode").encode(frame)
    return [found[f"{name}/grid"].astype(np.float32) for name in "AB"]


def test_a_view_of_another_size_is_seen_as_a_recipe_of_that_size_sees_it(tmp_path: Path) -> None:
    """From a JPEG, decoded at a size that is enough for the largest of them."""
    street_in(tmp_path, A=(384, 256))
    with Image.open(tmp_path / "A.png") as image:
        image.save(tmp_path / "A.jpg", quality=95)
    camera = replace(camera_of("A", 384, 256), image_path="A.jpg")
    seen: dict[tuple[int, ...], torch.Tensor] = {}

    def look(pixels: torch.Tensor) -> torch.Tensor:
        seen[tuple(pixels.shape[2:])] = pixels[0].permute(1, 2, 0)
        return by_eye(pixels)

    found = teacher_with(tmp_path, look, augment=("scale:4", "scale:0.5")).encode(frame_of(camera))
    assert found["A/grid"].shape[:2] == (4, 6)
    assert list(seen) == [(32, 48), (128, 192), (16, 24)]
    alone = teacher_with(tmp_path, by_eye, short_side_px=128).prepare(frame_of(camera), camera)
    np.testing.assert_array_equal(seen[128, 192].numpy(), alone)
    halved = np.asarray(Image.fromarray(alone).resize((48, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(seen[32, 48].numpy().astype(int) - halved).mean() < 3


def test_rough_directions_and_raw_lengths_are_kept_as_without_views(tmp_path: Path, street: Frame) -> None:
    unit_cells, bytes_, raw, plain = (
        ClipDense.load(recipe_at(tmp_path, clip(mode="naclip", **settings)), "encode").encode(street)["FRONT/grid"]
        for settings in (
            {"augment": ("flip",)},
            {"augment": ("flip",), "kept": "int8"},
            {"augment": ("flip",), "unit_cells": False},
            {"unit_cells": False},
        )
    )
    assert bytes_.dtype == np.int8
    lengths = [np.linalg.norm(one.astype(np.float32), axis=-1) for one in (unit_cells, raw, plain)]
    np.testing.assert_allclose(lengths[0], 1, atol=1e-3)
    np.testing.assert_allclose(lengths[1], lengths[2], rtol=2e-3)
    for other in (bytes_, raw):
        values = other.astype(np.float32)
        cosine = (values * unit_cells).sum(axis=-1) / np.linalg.norm(values, axis=-1)
        assert cosine.min() > 0.999


def test_features_that_are_not_finite_in_one_view_are_refused(tmp_path: Path, street: Frame) -> None:
    calls: list[int] = []

    def look(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return by_eye(pixels) * (torch.nan if len(calls) % 2 == 0 else 1.0)

    with pytest.raises(FrameError, match="hold values that are not finite"):
        teacher_with(tmp_path, look, augment=("flip",)).encode(street)


def encoding_of(agreement: float | None) -> Arrays:
    """A grid of 2 x 4 cells, its left half UP and its right half EAST, of which views agree on the right alone."""
    grid = np.stack([UP, UP, EAST, EAST])[None].repeat(2, axis=0).astype(np.float16)
    if agreement is None:
        return {"C/grid": grid}
    return {"C/grid": grid, "C/agreement": np.array([[agreement] * 2 + [1] * 2] * 2, np.float16)}


def test_views_that_disagree_lower_scores_and_move_no_segment(tmp_path: Path) -> None:
    teacher, text = ClipDense.load(recipe_at(tmp_path, clip()), "segment"), np.stack([EAST, NORTH, UP])
    frame = frame_of(camera_of("C", 16, 8))
    agreed, split = encoding_of(1.0), encoding_of(0.25)
    one, other = teacher.segment(frame, encoding_of(None), text), teacher.segment(frame, split, text)
    assert_equal_segments(one, teacher.segment(frame, agreed, text))
    np.testing.assert_array_equal(one[0].label_map(), other[0].label_map())
    np.testing.assert_array_equal(one[0].vector, other[0].vector)
    assert other[0].prompt_id.tolist() == [0, 2]
    np.testing.assert_allclose(other[0].score / one[0].score, [1, 0.25], atol=1e-3)
    pixels, classes = (
        method(frame, split, text, other, *more)[0]
        for method, more in ((teacher.pixel_scores, ()), (teacher.class_grids, (np.array([0, 0, 1]),)))
    )
    assert pixels[0, 0] == pytest.approx(0.25, abs=1e-3) and pixels[0, 15] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(classes[:, 0, 0], [0, 0.25], atol=1e-3)
    means = [pixels[other[0].label_map() == k + 1].mean() for k in range(len(other[0]))]
    np.testing.assert_allclose(means, other[0].score, atol=1e-3)
    assert cells_of(split, frame.cameras[0], 3).agreement is not None


def test_names_of_superpixels_are_less_sure_too(tmp_path: Path, street: Frame) -> None:
    settings: dict[str, Any] = {"masks": "slic", "clip_dense": clip(augment=("flip",))}
    recipe = recipe_at(tmp_path, CompositeConfig(**settings))
    encoding = Composite.load(recipe, "encode").encode(street)
    assert "FRONT/agreement" in encoding
    teacher = Composite.load(recipe, "segment")
    text = unit_rows(0, 5)
    halved = {name: part / 2 if name.endswith("/agreement") else part for name, part in encoding.items()}
    for one, other in zip(*(teacher.segment(street, found, text) for found in (encoding, halved)), strict=True):
        np.testing.assert_allclose(other.score, one.score / 2, rtol=2e-3)
        np.testing.assert_array_equal(one.prompt_id, other.prompt_id)


# -- SAN


def test_queries_of_all_views_stand_side_by_side(tmp_path: Path, street: Frame) -> None:
    plain, asked = (
        San.load(recipe_at(tmp_path, san(masks="float16", augment=augment)), "encode").encode(street)
        for augment in ((), ("flip", "flip+scale:1.5"))
    )
    for camera in ("FRONT", "SIDE"):
        alone, every = plain[f"{camera}/masks"], asked[f"{camera}/masks"]
        n = len(alone)
        assert every.shape == (3 * n, *alone.shape[1:])
        np.testing.assert_allclose(every[:n].astype(np.float32), alone.astype(np.float32), atol=1e-2)
        assert asked[f"{camera}/embedding"].shape[0] == len(asked[f"{camera}/none"]) == 3 * n
    assert San.kilobytes_per_frame(recipe_at(tmp_path, san(augment=("flip",)))) == 2 * San.kilobytes_per_frame(
        recipe_at(tmp_path, san())
    )


class Brightness:
    """A stand-in for the side network: one query, whose mask says how red a cell of 16 pixels is."""

    def __init__(self, network: Any) -> None:
        self.shape, self.clip = network.shape, network.clip
        self.bg_embed, self.logit_scale = network.bg_embed, network.logit_scale

    def __call__(self, pixels: torch.Tensor, clip_pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        masks = torch.nn.functional.avg_pool2d(pixels[:, :1], 16)
        return masks, torch.ones(len(pixels), 1, self.bg_embed.shape[-1])


def test_masks_of_a_network_that_knows_no_left_from_right_are_the_same(tmp_path: Path, street: Frame) -> None:
    teacher = San.load(recipe_at(tmp_path, san(masks="float16", augment=("flip", "scale:2"))), "encode")
    alike = replace(teacher, network=Brightness(teacher.network))  # type: ignore[arg-type]
    for name in ("FRONT", "SIDE"):
        masks = alike.encode(street)[f"{name}/masks"].astype(np.float32)
        np.testing.assert_allclose(masks[1], masks[0], atol=1e-2)
        assert np.corrcoef(masks[2].ravel(), masks[0].ravel())[0, 1] > 0.95


def said_by(*names: npt.NDArray[Any]) -> Arrays:
    """Views of an image of 2 x 2 cells, each with a query that covers all and calls it by one prompt."""
    n = len(names)
    return {
        "C/masks": np.full((n, 2, 2), 8, np.float16),
        "C/peak": np.full((2, 2), 8, np.float16),
        "C/embedding": np.stack(names).astype(np.float16),
        "C/none": np.full(n, -100, np.float32),
        "C/logit_scale": np.array([100], np.float32),
    }


def test_pixels_are_named_by_the_mean_of_what_views_say(tmp_path: Path) -> None:
    teacher, text = San.load(recipe_at(tmp_path, san()), "segment"), np.stack([EAST, NORTH, UP])
    frame = frame_of(camera_of("C", 8, 8))

    for names, prompt, score in (((EAST,), 0, 1), ((EAST, EAST), 0, 1), ((EAST, UP, UP), 2, 2 / 3)):
        [found] = teacher.segment(frame, said_by(*names), text)
        assert found.prompt_id.tolist() == [prompt]
        np.testing.assert_allclose(found.score, [score], atol=1e-3)


# -- settings


def test_views_are_in_the_identity_of_encode_alone_and_off_by_default(tmp_path: Path) -> None:
    for make in (clip, san):
        plain, mirrored = (recipe_at(tmp_path, make(augment=augment)) for augment in ((), ("flip",)))
        assert fingerprint(plain, "encode") != fingerprint(mirrored, "encode")
        assert fingerprint(plain, "text") == fingerprint(mirrored, "text")
        assert "augment" not in plain.teacher.settings("encode") and make().augment == ()
        assert plain.teacher.settings("segment") == mirrored.teacher.settings("segment")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (ClipDenseConfig, {"augment": ["mirror"]}, 'augment has "mirror"; expected "flip"'),
        (ClipDenseConfig, {"augment": ["scale:9"]}, 'augment has "scale:9"'),
        (ClipDenseConfig, {"augment": ["flip", "flip"]}, 'augment has "flip" twice'),
        (ClipDenseConfig, {"augment": ["scale:1.25"], "window_px": 336}, "leave the scales out, or window_px"),
        (SanConfig, {"augment": ["turn"]}, 'augment has "turn"'),
        (SanConfig, {"augment": ["flip"], "parity": True}, "parity does as the reference"),
    ],
)
def test_other_words_and_ways_are_refused(kind: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("teacher", {"weights": "random:0", **values}, kind)


def test_views_are_in_what_the_work_is_thought_to_take(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, ClipDenseConfig())
    recipe = replace(recipe, run=replace(recipe.run, device="cuda"))
    alone = encoded_per_s(recipe)
    assert alone is not None
    views = replace(recipe, teacher=ClipDenseConfig(augment=("flip", "scale:2")))
    assert encoded_per_s(views) == pytest.approx(alone / 6)
    plain, mirrored = (ClipDense.kilobytes_per_frame(recipe_at(tmp_path, clip(augment=one))) for one in ((), ("flip",)))
    assert 1 < mirrored / plain < 1.05
