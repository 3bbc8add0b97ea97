import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from manifests.config import ConfigError, parse_section
from manifests.fingerprint import canonical
from manifests.recipe import Recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from pipeline.frame import Frame, FrameError
from pipeline.teachers.clip_dense import ClipDense, grid_shape
from superpixels.segments import Segments
from tests.pipeline.frames import camera_of, frame_of
from tests.pipeline.street import SHA, recipe_with, street_in


def recipe_at(root: Path, segment: SegmentConfig | None = None, **teacher: Any) -> Recipe:
    settings = {"model": "tiny", "weights": "random:0", "short_side_px": 32, **teacher}
    return recipe_with(root, ClipDenseConfig(**settings), segment)


@pytest.fixture
def street(tmp_path: Path) -> Frame:
    """Three images, the second of another size than the others."""
    return street_in(tmp_path, FRONT=(96, 64), SIDE=(64, 96), BACK=(96, 64))


def encode(recipe: Recipe, frame: Frame) -> dict[str, npt.NDArray[Any]]:
    return ClipDense.load(recipe, "encode").encode(frame)


def segment(
    recipe: Recipe, frame: Frame, encoding: dict[str, npt.NDArray[Any]], text: npt.NDArray[Any]
) -> list[Segments]:
    return ClipDense.load(recipe, "segment").segment(frame, encoding, text)


# -- the section of the recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "san"}, 'these are the settings of "clip_dense"'),
        ({"mode": "mask"}, "choose one of sc, naclip, clearclip, sclip, maskclip, values, affinity, vanilla, convnext"),
        ({"positions": "native"}, 'choose "official" or "exact"'),
        ({"mode": "affinity"}, "dino_weights are given if, and only if"),
        ({"dino_weights": "random:0"}, "dino_weights are given if, and only if"),
        ({"mode": "affinity", "dino_weights": "dino"}, "give a path, hub:OWNER/NAME/FILE, or random:SEED"),
        ({"stride_px": 112}, "stride_px needs window_px"),
        ({"window_px": 224, "stride_px": 336}, "so that no gap is left"),
        ({"window_px": 4}, "window_px is 4; expected 8 to 4096"),
        ({"precision": "fp16"}, 'choose "fp32" or "bf16"'),
        ({"sigma": 0.0}, "must be positive"),
        ({"kept": "uint4"}, 'choose "float16" or "int8"'),
        ({"kept": "int8", "unit_cells": False}, "needs unit_cells = true"),
        ({"logit_scale": float("inf")}, "expected a finite number"),
        ({"short_side_px": 4}, "expected 8 to 4096"),
        ({"weights_sha256": "abc"}, "64 hexadecimal digits"),
        ({"weights": "w.pt", "weights_sha256": SHA}, "quick_gelu is missing"),
        ({"weights": "random:x"}, "random:SEED"),
        ({"weights": "random:0", "weights_sha256": SHA}, "random weights have no file"),
        ({"model": "tiny"}, "no pretrained tags"),
        ({"model": "ViT-B-16"}, 'use model "ViT-B-16-quickgelu"'),
        ({"quick_gelu": False}, "trained with QuickGELU"),
        ({"weights": "dfn2b", "quick_gelu": False}, "take the name without it"),
        ({"sigma": "5"}, "expected float"),
        ({"weight": "openai"}, "did you mean `weights`"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("teacher", values, ClipDenseConfig)


def test_openai_weights_need_quick_gelu_by_name_or_by_word() -> None:
    assert ClipDenseConfig(model="ViT-B-16", quick_gelu=True).weights == "openai"


def test_each_stage_depends_on_its_own_settings_only() -> None:
    config = ClipDenseConfig(weights="random:3", mode="maskclip", logit_scale=100.0)
    assert config.settings("text") == {"name": "clip_dense", "weights": "random:3"}
    assert config.settings("encode") == {"name": "clip_dense", "weights": "random:3", "mode": "maskclip"}
    assert config.settings("segment") == {"name": "clip_dense", "logit_scale": 100.0}


def test_every_setting_takes_part_in_an_identity() -> None:
    other: dict[str, Any] = {
        "model": "ViT-L-14-quickgelu",
        "weights": "random:1",
        "weights_sha256": SHA,
        "quick_gelu": True,
        "mode": "vanilla",
        "positions": "exact",
        "sigma": 4.0,
        "calibrate_outliers": False,
        "calibrate_layers": False,
        "short_side_px": 560,
        "window_px": 336,
        "compile": True,
        "precision": "bf16",
        "unit_cells": False,
        "kept": "int8",
        "decode": "full",
        "logit_scale": 100.0,
        "augment": ("flip",),
    }
    assert other.keys() == {field.name for field in fields(ClipDenseConfig)} - {
        "name",
        *TOLD_BELOW,
    }
    plain = ClipDenseConfig(model="ViT-B-16", weights="laion2b_s34b_b88k")
    for name, value in other.items():
        base = replace(plain, mode="naclip") if name == "sigma" else plain  # it is that mode's
        after = replace(base, **{name: value})
        assert any(after.settings(stage) != base.settings(stage) for stage in ("text", "encode", "segment")), name


TOLD_BELOW = {"weights_revision", "stride_px", "dino", *(f"dino_weights{end}" for end in ("", "_sha256", "_revision"))}


def test_settings_that_need_others_take_part_too() -> None:
    windows = ClipDenseConfig(weights="random:0", window_px=336)
    assert replace(windows, stride_px=224).settings("encode") != windows.settings("encode")
    affinity = ClipDenseConfig(weights="random:0", mode="affinity", dino="tiny", dino_weights="random:1")
    assert affinity.settings("encode").items() >= {"dino": "tiny", "dino_weights": "random:1"}.items()
    assert replace(affinity, dino="vit_small_patch8_224.dino").settings("encode") != affinity.settings("encode")
    pinned = replace(affinity, dino_weights="a/dino.pt", dino_weights_sha256=SHA)
    assert pinned.settings("encode")["dino_weights"] == f"sha256:{SHA}"
    assert "dino" not in replace(windows, dino="tiny").settings("encode")  # not used by this mode


def test_pinned_weights_are_known_by_their_digest_wherever_they_lie() -> None:
    one = ClipDenseConfig(weights="a/openai.pt", weights_sha256=SHA, quick_gelu=True)
    other = ClipDenseConfig(weights="/b/tower.pt", weights_sha256=SHA, quick_gelu=True)
    tag = ClipDenseConfig(weights="openai", weights_sha256=SHA)
    assert one.settings("text") == other.settings("text") == tag.settings("text")
    assert one.settings("text")["weights"] == f"sha256:{SHA}"
    gelu = ClipDenseConfig(model="ViT-B-16", weights="a/laion.pt", weights_sha256=SHA, quick_gelu=False)
    forced = ClipDenseConfig(model="ViT-B-16", weights="a/laion.pt", weights_sha256=SHA, quick_gelu=True)
    assert gelu.settings("encode") != forced.settings("encode")
    assert json.loads(canonical(dict(gelu.settings("encode"))))["weights"] == f"sha256:{SHA}"


@pytest.mark.parametrize(
    ("model", "short_side_px", "shape"),
    [
        ("ViT-B-16-quickgelu", 448, (28, 50, 512)),
        ("ViT-L-14-336-quickgelu", 448, (32, 57, 768)),
        ("tiny", 224, (28, 50, 32)),
        ("convnext_large_d_320", 896, (28, 50, 768)),
    ],
)
def test_the_size_of_a_grid_is_known_without_loading_a_tower(
    model: str, short_side_px: int, shape: tuple[int, int, int]
) -> None:
    assert grid_shape(ClipDenseConfig(model=model, weights="random:0", short_side_px=short_side_px)) == shape


def test_cells_of_windows_are_counted_for_each_of_them() -> None:
    windows = ClipDenseConfig(weights="random:0", short_side_px=560, window_px=336, stride_px=224)
    assert grid_shape(windows) == (2 * 21, 4 * 21, 512)
    assert grid_shape(replace(windows, stride_px=None)) == (2 * 21, 3 * 21, 512)


# -- encode


def test_every_view_gets_a_grid_of_unit_vectors(tmp_path: Path, street: Frame) -> None:
    encoding = encode(recipe_at(tmp_path), street)
    assert {name: grid.shape for name, grid in encoding.items()} == {
        "FRONT/grid": (4, 6, 32),
        "SIDE/grid": (6, 4, 32),
        "BACK/grid": (4, 6, 32),
    }
    for grid in encoding.values():
        assert grid.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(grid.astype(np.float32), axis=2), 1, atol=1e-3)


def test_views_of_one_frame_are_encoded_as_if_each_were_alone(tmp_path: Path, street: Frame) -> None:
    together = encode(recipe_at(tmp_path), street)
    for one in street.cameras:
        alone = encode(recipe_at(tmp_path), frame_of(one))
        np.testing.assert_allclose(alone[f"{one.name}/grid"], together[f"{one.name}/grid"], atol=2e-3)


def test_a_frame_without_cameras_has_nothing_to_encode(tmp_path: Path) -> None:
    assert encode(recipe_at(tmp_path), frame_of()) == {}


def test_raw_cells_keep_their_length(tmp_path: Path, street: Frame) -> None:
    raw = encode(recipe_at(tmp_path, unit_cells=False), street)["FRONT/grid"].astype(np.float32)
    length = np.linalg.norm(raw, axis=2, keepdims=True)
    assert length.std() > 0.01
    unit = encode(recipe_at(tmp_path), street)["FRONT/grid"]
    np.testing.assert_allclose(raw / length, unit, atol=2e-3)


@pytest.mark.parametrize(
    ("break_file", "message"),
    [
        (lambda path: path.unlink(), "SIDE.png: No such file"),
        (lambda path: path.write_bytes(b""), "cannot be decoded"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be decoded"),
        (lambda path: Image.new("RGB", (10, 10)).save(path), "10 x 10 pixels now"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, street: Frame, break_file: Callable[[Path], None], message: str) -> None:
    break_file(tmp_path / "SIDE.png")
    with pytest.raises(FrameError, match=message):
        encode(recipe_at(tmp_path), street)


def test_features_that_are_not_finite_are_refused(tmp_path: Path, street: Frame) -> None:
    teacher = ClipDense.load(recipe_at(tmp_path), "encode")
    assert teacher.dense is not None
    teacher.dense.visual.proj[0, 0] = float("nan")
    with pytest.raises(FrameError, match=r"FRONT.png: the features of tiny hold values that are not finite"):
        teacher.encode(street)


# -- segment

EAST, NORTH, UP = np.eye(3, dtype=np.float32)


def two_halves(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """A grid of 2 x 4 cells whose left and right halves hold one vector each."""
    return {"C/grid": np.stack([left, left, right, right])[None].repeat(2, axis=0).astype(np.float16)}


def test_each_pixel_goes_to_the_prompt_of_largest_cosine(tmp_path: Path) -> None:
    frame = frame_of(camera_of("C", 16, 8))
    [found] = segment(recipe_at(tmp_path), frame, two_halves(UP, EAST), np.stack([EAST, NORTH, UP]))
    assert found.label_map().tolist() == [[2, 2, 2, 2, 1, 1, 1, 1]] * 4  # half the image's size
    assert found.prompt_id.tolist() == [0, 2]
    assert found.area_px.tolist() == [16, 16]
    # the bilinear mix reaches one cell across the border, so a segment's vector leans a little to its neighbour
    assert found.vector[0] @ EAST > 0.98 and found.vector[1] @ UP > 0.98


def test_the_length_of_a_cell_does_not_name_it(tmp_path: Path) -> None:
    frame, text = frame_of(camera_of("C", 16, 8)), np.stack([EAST, NORTH, UP])
    [unit] = segment(recipe_at(tmp_path), frame, two_halves(UP, EAST), text)
    [raw] = segment(recipe_at(tmp_path, unit_cells=False), frame, two_halves(9 * UP, EAST), text)
    assert raw.label_map().tolist() == unit.label_map().tolist()
    assert raw.vector[0] @ UP > unit.vector[0] @ UP  # but long cells weigh more in the vectors


def test_the_score_is_the_mean_probability_of_the_prompt(tmp_path: Path) -> None:
    frame, text = frame_of(camera_of("C", 16, 8)), np.stack([EAST, NORTH, UP])
    everywhere = two_halves(EAST, EAST)
    for logit_scale in (1.0, 40.0):
        [found] = segment(recipe_at(tmp_path, logit_scale=logit_scale), frame, everywhere, text)
        probability = np.exp(logit_scale) / (np.exp(logit_scale) + 2)
        assert found.score.tolist() == pytest.approx([probability], abs=1e-3)


def test_score_and_vector_equal_what_upsampled_maps_would_give(tmp_path: Path) -> None:
    import torch
    from torch.nn.functional import interpolate

    rng = np.random.default_rng(2)
    grid = rng.normal(size=(3, 5, 8)).astype(np.float16)
    text = rng.normal(size=(6, 8)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    frame = frame_of(camera_of("C", 40, 24))
    [found] = segment(recipe_at(tmp_path, SegmentConfig(scale=1.0)), frame, {"C/grid": grid}, text)

    cells = torch.tensor(grid.astype(np.float32)).permute(2, 0, 1)[None]
    cosine = torch.einsum("td,bdhw->bthw", torch.tensor(text), cells / cells.norm(dim=1, keepdim=True))

    def upsampled(maps: torch.Tensor) -> npt.NDArray[Any]:
        return interpolate(maps, size=(24, 40), mode="bilinear", align_corners=False)[0].numpy()

    best = upsampled(cosine).argmax(axis=0)
    probability, features = upsampled((40 * cosine).softmax(dim=1)), upsampled(cells)
    np.testing.assert_array_equal(found.prompt_id[found.label_map() - 1], best)
    for k, prompt in enumerate(found.prompt_id):
        inside = best == prompt
        assert found.score[k] == pytest.approx(probability[prompt][inside].mean(), abs=1e-3)
        pooled = features[:, inside].sum(axis=1)
        np.testing.assert_allclose(found.vector[k], pooled / np.linalg.norm(pooled), atol=1e-3)


def test_permuting_the_prompts_permutes_the_names(tmp_path: Path, street: Frame) -> None:
    recipe = recipe_at(tmp_path)
    encoding = encode(recipe, street)
    text = np.random.default_rng(3).normal(size=(7, 32)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    for before, after in zip(
        segment(recipe, street, encoding, text), segment(recipe, street, encoding, text[order]), strict=True
    ):
        named = np.concatenate(([-1], before.prompt_id))[before.label_map()]
        renamed = np.concatenate(([-1], order[after.prompt_id]))[after.label_map()]
        np.testing.assert_array_equal(named, renamed)


def test_of_equal_prompts_only_the_first_is_ever_found(tmp_path: Path, street: Frame) -> None:
    recipe = recipe_at(tmp_path)
    encoding = encode(recipe, street)
    text = np.random.default_rng(3).normal(size=(40, 32)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    alone = segment(recipe, street, encoding, text)
    twice = segment(recipe, street, encoding, np.concatenate([text, text, text[:3]]))
    for one, other in zip(alone, twice, strict=True):
        np.testing.assert_array_equal(one.prompt_id, other.prompt_id)
        np.testing.assert_array_equal(one.label_map(), other.label_map())
        np.testing.assert_array_equal(one.score, other.score)


def test_components_are_split_and_small_ones_dropped(tmp_path: Path) -> None:
    frame, text = frame_of(camera_of("C", 16, 8)), np.stack([EAST, NORTH, UP])
    grid = {"C/grid": np.stack([UP, EAST, EAST, UP])[None].astype(np.float16)}

    def found(**settings: Any) -> Segments:
        return segment(recipe_at(tmp_path, SegmentConfig(scale=1.0, **settings)), frame, grid, text)[0]

    assert found().prompt_id.tolist() == [0, 2]
    assert found(split="components").prompt_id.tolist() == [0, 2, 2]
    assert found(split="components", min_area_px=40).prompt_id.tolist() == [0]
    assert found(split="components", min_area_px=40).label_map()[0].tolist() == [0] * 4 + [1] * 8 + [0] * 4


def test_the_segment_half_needs_no_tower(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, model="ViT-B-16-quickgelu", weights="openai")  # not on this disk
    teacher = ClipDense.load(recipe, "segment")
    assert teacher.towers is None and teacher.dense is None


def test_an_encoding_that_does_not_fit_is_named(tmp_path: Path) -> None:
    frame, recipe = frame_of(camera_of("C", 16, 8)), recipe_at(tmp_path)
    with pytest.raises(FrameError, match="table encode has no C/grid; it was made for other cameras"):
        segment(recipe, frame, {}, np.eye(3, dtype=np.float32))
    with pytest.raises(FrameError, match=r"shape \(2, 4, 3\); expected \(h, w, 5\)"):
        segment(recipe, frame, two_halves(UP, EAST), np.eye(5, dtype=np.float32))


def test_directions_kept_as_bytes_name_nearly_every_pixel_alike(tmp_path: Path, street: Frame) -> None:
    exact, rough = recipe_at(tmp_path), recipe_at(tmp_path, kept="int8")
    text = np.random.default_rng(0).normal(size=(175, 32)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    halves, bytes_ = encode(exact, street), encode(rough, street)
    assert bytes_["FRONT/grid"].dtype == np.int8 and np.abs(bytes_["FRONT/grid"]).max() == 127
    assert ClipDense.kilobytes_per_frame(rough) == ClipDense.kilobytes_per_frame(exact) / 2
    pairs = zip(segment(exact, street, halves, text), segment(rough, street, bytes_, text), strict=True)
    same = [one.prompt_id[one.label_map() - 1] == other.prompt_id[other.label_map() - 1] for one, other in pairs]
    assert np.concatenate([one.ravel() for one in same]).mean() > 0.95


def test_pixels_in_several_windows_average_what_these_say_as_the_authors_of_the_modes_do(
    tmp_path: Path, street: Frame
) -> None:
    """Window after window at the tower's size, then averaged, then resized: written once more, pixel by pixel."""
    import torch
    from torch.nn.functional import interpolate, normalize

    recipe = recipe_at(tmp_path, SegmentConfig(scale=1.0), mode="naclip", short_side_px=40, window_px=24, stride_px=16)
    text = np.random.default_rng(3).normal(size=(9, 32)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    teacher = ClipDense.load(recipe, "encode")
    found = segment(recipe, street, teacher.encode(street), text)
    alone = ClipDense.load(recipe_at(tmp_path, mode="naclip", short_side_px=40), "encode").image_tower
    for one, view in zip(street.cameras, found, strict=True):
        pixels = torch.tensor(teacher.prepare(street, one))
        height, width, _ = pixels.shape
        assert sorted((height, width)) == [40, 60]
        starts = {40: (0, 16), 60: (0, 16, 32, 36)}
        score, count, vector = (torch.zeros(n, height, width) for n in (9, 1, 32))
        for top in starts[height]:
            for left in starts[width]:
                place = slice(None), slice(top, top + 24), slice(left, left + 24)
                with torch.inference_mode():
                    features = normalize(alone(pixels[place[1:]][None])[0], dim=-1)
                for total, values in ((score, features @ torch.from_numpy(text).T), (vector, features)):
                    cells = values.permute(2, 0, 1)[None]
                    total[place] += interpolate(cells, size=(24, 24), mode="bilinear", align_corners=False)[0]
                count[place] += 1
        size = one.height_px, one.width_px
        scores, vectors = (
            interpolate((total / count)[None], size=size, mode="bilinear", align_corners=False)[0].numpy()
            for total in (score, vector)
        )
        expected = scores.argmax(axis=0)
        named = view.prompt_id[view.label_map() - 1]
        second, first = np.sort(scores, axis=0)[-2:]
        assert (named == expected)[first - second > 1e-3].all() and (named == expected).mean() > 0.99
        for k, prompt in enumerate(view.prompt_id):
            pooled = vectors[:, named == prompt].sum(axis=1)
            np.testing.assert_allclose(view.vector[k], pooled / np.linalg.norm(pooled), atol=3e-3)


def test_pixels_are_named_on_a_device_as_by_numpy(tmp_path: Path, street: Frame) -> None:
    recipe = recipe_at(tmp_path)
    on_device = replace(recipe, run=replace(recipe.run, segment_gpus=0.5))
    text = np.random.default_rng(0).normal(size=(175, 32)).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    encoding = encode(recipe, street)
    assert ClipDense.load(on_device, "segment").segment_device is not None
    views = segment(recipe, street, encoding, text), segment(on_device, street, encoding, text)
    for one, other in zip(*views, strict=True):
        named = [view.prompt_id[view.label_map() - 1] for view in (one, other)]
        assert (named[0] == named[1]).mean() > 0.999
