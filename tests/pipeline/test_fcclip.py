import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from manifests.config import ConfigError, parse_section
from manifests.fingerprint import canonical
from manifests.ontology import load_ontology, parse_ontology
from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.fcclip import FcClipConfig
from pipeline.frame import Frame, FrameError
from pipeline.teachers.fcclip import FcClip, masks_of
from pipeline.teachers.fcclip_names import SEEN_NAMES
from pipeline.teachers.loading.weights import fill
from pipeline.teachers.masks import network_pixels
from pipeline.teachers.networks.fcclip import UNUSED, build_fcclip, from_official
from superpixels.segments import Segments
from tests.calls import count_calls
from tests.pipeline.frames import camera_of, frame_of
from tests.pipeline.street import SHA, recipe_with, street_in

ONTOLOGY = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}],
        "fine": [{"name": "none", "class": "ignore"}, {"name": "car", "class": "car"}],
        "group": [
            {"name": "cars", "fine": "car", "thing": True, "prompts": ["car", "van"]},
            {"name": "rest", "fine": "none", "thing": False, "prompts": ["road", "pavilion"]},
        ],
    }
)
KEEPS_ALL = 1e6
SIZES = {"FRONT": (128, 72), "SIDE": (64, 96), "BACK": (128, 72)}
NAMES = "fcclip_cocopan.keys.json"


def recipe_at(root: Path, segment: SegmentConfig | None = None, **teacher: Any) -> Recipe:
    settings = {"model": "tiny-convnext", "weights": "random:0", "short_side_px": 64, **teacher}
    return recipe_with(root, FcClipConfig(**settings), segment or SegmentConfig(scale=1.0), ontology=ONTOLOGY)


@pytest.fixture
def street(tmp_path: Path) -> Frame:
    """Three images, the second of another size than the others."""
    return street_in(tmp_path, **SIZES)


# -- the section of the recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "san"}, 'these are the settings of "fcclip"'),
        ({"model": "ViT-B-16", "weights": "random:0"}, "checkpoint stands on"),
        ({}, "give the path of the official checkpoint"),
        ({"weights": "random:0", "precision": "fp16"}, 'choose "fp32" or "bf16"'),
        ({"weights": "random:0", "masks": "int8"}, 'choose "uint8" or "float16"'),
        ({"weights": "random:0", "reach": -1.0}, "reach >= 0"),
        (
            {"weights": "random:0", "clip_weights": "a.pth", "clip_weights_sha256": SHA},
            "weights are random, CLIP's too",
        ),
        ({"weights": "a.pth", "weights_sha256": SHA, "clip_weights": "random:0"}, "expected a tag, a path or hub"),
        ({"weights": "a.pth", "weights_sha256": SHA, "clip_weights_sha256": SHA}, "but no clip_weights"),
        ({"weights": "random:0", "alpha": 1.5}, "expected 0 to 1"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("teacher", values, FcClipConfig)


def test_the_built_in_recipe_names_a_file_that_nobody_has_pinned() -> None:
    teacher = load_recipe("nuscenes_fcclip").teacher
    assert isinstance(teacher, FcClipConfig) and not teacher.weights_sha256


def test_each_stage_depends_on_its_own_settings_only() -> None:
    config = FcClipConfig(weights="a/b.pth", weights_sha256=SHA, reach=8.0, beta=0.7)
    assert config.settings("text") == {"name": "fcclip", "weights": f"sha256:{SHA}"}
    assert config.settings("encode") == {"name": "fcclip", "weights": f"sha256:{SHA}", "reach": 8.0}
    assert config.settings("segment") == {"name": "fcclip", "beta": 0.7}


def test_a_reach_that_keeps_all_has_an_identity() -> None:
    config = parse_section("teacher", {"name": "fcclip", "weights": "random:0", "reach": KEEPS_ALL}, FcClipConfig)
    assert '"reach":1000000' in canonical(dict(config.settings("encode"))).replace(" ", "")
    with pytest.raises(ConfigError, match=r"teacher.reach is inf; expected a finite number"):
        parse_section("teacher", {"name": "fcclip", "weights": "random:0", "reach": float("inf")}, FcClipConfig)


def test_a_separate_clip_is_part_of_the_identity_by_its_digest_wherever_it_lies() -> None:
    head: dict[str, Any] = {"weights": "a/b.pth", "weights_sha256": SHA}
    one = FcClipConfig(**head, clip_weights="clip.bin", clip_weights_sha256=SHA[::-1])
    other = FcClipConfig(**head, clip_weights="elsewhere/clip.bin", clip_weights_sha256=SHA[::-1])
    for stage in ("text", "encode"):
        assert one.settings(stage) == other.settings(stage) != FcClipConfig(**head).settings(stage)
        assert one.settings(stage)["clip_weights"] == f"sha256:{SHA[::-1]}"
    assert one.settings("segment") == FcClipConfig(**head).settings("segment")


def test_the_names_it_was_trained_with_are_those_of_the_reference(shared: Path) -> None:
    maps = json.loads((shared / "design" / "checkpoints" / "afov_dictionary_maps.json").read_text())
    ontology = load_ontology("nuscenes")
    assert [i for i, prompt in enumerate(ontology.prompts) if prompt in SEEN_NAMES] == maps["fcclip_seen"]
    assert ontology.thing_of_prompt.sum() == maps["n_thing_prompts"]


# -- the network and its files


def test_the_official_checkpoint_fits_name_by_name(shared: Path) -> None:
    keys = json.loads((shared / "design" / "checkpoints" / NAMES).read_text())
    official = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    with torch.device("meta"):
        network, _ = build_fcclip("convnext_large_d_320")
    ours = from_official(official)
    fill(network, ours, "test", ignored=UNUSED)
    assert len(ours) == len(official) + 9 * 2 * 2  # nine self-attentions in three parts, weight and bias
    assert ours["decoder.decoder.layers.8.self_attn.v_proj.weight"].shape == (256, 256)

    del official["sem_seg_head.predictor.query_feat.weight"]
    official["optimizer"] = torch.empty(1, device="meta")
    with pytest.raises(ConfigError, match=r"1 missing, such as decoder.queries_features.weight; 1 not expected"):
        fill(network, from_official(official), "test", ignored=UNUSED)


def test_a_vector_of_the_whole_image_is_that_of_open_clip() -> None:
    network, _ = build_fcclip("tiny-convnext")
    network.eval()
    pixels = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        last = network.clip.visual.trunk.forward_features(pixels)
        found = network.as_image(last.mean(dim=(2, 3))[:, None])[:, 0]
        torch.testing.assert_close(found, network.clip.encode_image(pixels), atol=1e-5, rtol=1e-4)


# -- encode


@pytest.mark.parametrize("parity", [False, True])
def test_views_of_one_frame_are_encoded_as_if_each_were_alone(tmp_path: Path, street: Frame, parity: bool) -> None:
    teacher = FcClip.load(recipe_at(tmp_path, masks="float16", parity=parity), "encode")
    assert teacher.network is not None
    pixels = network_pixels(torch.from_numpy(np.stack([teacher.prepare(street, street.cameras[i]) for i in (0, 2)])))
    assert pixels.shape == ((2, 3, 96, 128) if parity else (2, 3, 64, 128))
    with torch.inference_mode():
        together, first, second = (teacher.network(some) for some in (pixels, pixels[:1], pixels[1:]))
        for part, *alone in zip(together, first, second, strict=True):
            torch.testing.assert_close(part, torch.cat(alone), atol=1e-4, rtol=1e-4)
    once, again = teacher.encode(street), teacher.encode(street)
    for name, part in once.items():
        np.testing.assert_array_equal(part, again[name])
    assert once["FRONT/peak"].shape == ((24, 32) if parity else (16, 32))
    assert len(once["FRONT/masks"]) == np.unpackbits(once["FRONT/near"]).sum()


def test_bfloat16_gives_nearly_the_same(tmp_path: Path, street: Frame) -> None:
    exact = FcClip.load(recipe_at(tmp_path), "encode")
    assert exact.network is not None
    pixels = network_pixels(torch.from_numpy(np.stack([exact.prepare(street, street.cameras[0])])))
    with torch.inference_mode():
        masks, inside, _ = exact.network(pixels)
        fast_masks, fast_inside, _ = exact.network(pixels, bf16=True)
    assert masks.dtype == fast_masks.dtype == torch.float32 and not torch.equal(masks, fast_masks)
    torch.testing.assert_close(fast_masks, masks, atol=0.1, rtol=0.1)
    assert (inside * fast_inside).sum(dim=-1).min() > 0.99


def spread_out(recipe: Recipe) -> FcClip:
    """The teacher, its masks a hundred times as far apart: random weights alone give logits about 0 everywhere."""
    teacher = FcClip.load(recipe, "encode")
    assert teacher.network is not None
    for part in ("weight", "bias"):
        teacher.network.state_dict()[f"decoder.decoder.mask_predictor.mask_embedder.2.0.{part}"].mul_(100)
    return teacher


def side(encoding: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("SIDE/"): part for name, part in encoding.items() if name.startswith("SIDE/")}


@pytest.mark.parametrize("format", ["float16", "uint8"])
def test_a_mask_is_kept_in_full_where_its_query_could_win(tmp_path: Path, street: Frame, format: str) -> None:
    every = side(spread_out(recipe_at(tmp_path, reach=KEEPS_ALL)).encode(street))
    some = side(spread_out(recipe_at(tmp_path, reach=0.5, masks=format)).encode(street))
    whole, found = (masks_of(parts, np.arange(12)) for parts in (every, some))
    near = np.unpackbits(some["near"], axis=1).reshape(whole.shape).astype(np.bool_)
    bound = some["bound"].astype(np.float32)
    assert 0.05 < near.mean() < 0.5
    assert (-np.logaddexp(0, -whole) >= bound - 0.01)[near].all()
    assert (-np.logaddexp(0, -whole) <= bound + 0.01)[~near].all()
    np.testing.assert_allclose(found[near], whole[near], atol=0 if format == "float16" else 0.4)
    assert (-np.logaddexp(0, -found) <= bound + 0.01)[~near].all()


def test_parity_and_a_reach_beyond_all_logits_keep_all_masks_in_full(tmp_path: Path, street: Frame) -> None:
    for settings in ({"parity": True, "masks": "uint8"}, {"reach": KEEPS_ALL}):
        parts = side(spread_out(recipe_at(tmp_path, **settings)).encode(street))
        assert (parts["near"] == 255).all() and parts["masks"].dtype == np.float16


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, street: Frame) -> None:
    teacher = FcClip.load(recipe_at(tmp_path), "encode")
    assert teacher.network is not None
    teacher.network.void_embedding.weight[0, 0] = float("nan")
    with pytest.raises(FrameError, match=r"FRONT.png: masks or vectors of tiny-convnext hold values that are not"):
        teacher.encode(street)


# -- segment


def one_view(
    *vectors: npt.NDArray[Any], none: tuple[int, ...] = (), owner: npt.NDArray[Any] | None = None
) -> dict[str, npt.NDArray[Any]]:
    """A view of 8 x 8 cells in as many columns as there are queries, each of which has a vector and fills a column."""
    n = len(vectors)
    if owner is None:
        owner = np.arange(n).repeat(8 // n)[None].repeat(8, axis=0)
    cells = owner.size
    masks = np.where(owner == np.arange(n)[:, None, None], 9, -9).astype(np.float16)
    return {
        "C/near": np.full((n, cells // 8), 255, np.uint8),
        "C/masks": masks.ravel(),
        "C/peak": np.full(owner.shape, 9, np.float16),
        "C/coarse": np.zeros((n, 1, 1), np.uint8),
        "C/coarse_peak": np.zeros((1, 1), np.float16),
        "C/bound": np.full(owner.shape, -9, np.float16),
        "C/inside": np.stack(vectors).astype(np.float16),
        "C/outside": np.stack(vectors).astype(np.float16),
        "C/void": np.array([200 if q in none else 0 for q in range(n)], np.float32),
        "C/logit_scale": np.full(2, 100, np.float32),
    }


CAR, VAN, ROAD, PAVILION = np.eye(4, dtype=np.float32)
TEXT = np.eye(4, dtype=np.float32)


def test_things_stay_single_and_stuff_is_merged(tmp_path: Path) -> None:
    frame = frame_of(camera_of("C", 32, 16))
    teacher = FcClip.load(recipe_at(tmp_path), "segment")
    [found] = teacher.segment(frame, one_view(CAR, CAR, ROAD, ROAD), TEXT)
    assert found.prompt_id.tolist() == [0, 0, 2]
    assert found.label_map()[0, [0, 4, 12, 20, 28]].tolist() == [1, 1, 2, 3, 3]
    assert found.area_px.tolist() == [128, 128, 256]


def test_queries_that_show_nothing_own_no_pixels(tmp_path: Path) -> None:
    frame = frame_of(camera_of("C", 32, 16))
    teacher = FcClip.load(recipe_at(tmp_path), "segment")
    [found] = teacher.segment(frame, one_view(CAR, ROAD, CAR, ROAD, none=(0, 1)), TEXT)
    assert found.prompt_id.tolist() == [0, 2]
    [nothing] = teacher.segment(frame, one_view(CAR, ROAD, none=(0, 1)), TEXT)
    assert len(nothing) == 0 and not nothing.label_map().any()


def test_merged_stuff_has_the_vector_of_its_pixels_or_in_parity_of_its_first_query(tmp_path: Path) -> None:
    frame = frame_of(camera_of("C", 32, 16))
    encoding = one_view(ROAD, ROAD, ROAD, ROAD)
    encoding["C/outside"][1:] = (ROAD + 0.5 * VAN) / np.linalg.norm(ROAD + 0.5 * VAN)
    [ours] = FcClip.load(recipe_at(tmp_path), "segment").segment(frame, encoding, TEXT)
    pooled = encoding["C/outside"].astype(np.float32).mean(axis=0)
    np.testing.assert_allclose(ours.vector[0], pooled / np.linalg.norm(pooled), atol=1e-3)
    reference = recipe_at(tmp_path, parity=True)
    [theirs] = FcClip.load(reference, "segment").segment(frame_of(camera_of("C", 32, 16)), encoding, TEXT)
    assert theirs.vector[0].tolist() == [0, 0, 1, 0]


def test_a_name_weighs_what_clip_sees_by_whether_it_was_trained_with(tmp_path: Path) -> None:
    teacher = FcClip.load(recipe_at(tmp_path), "segment")
    assert teacher.seen.tolist() == [True, False, True, False]
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(2, 5, 4)) / 20
    parts = {"inside": inside, "outside": outside, "void": np.zeros(5), "logit_scale": np.array([30.0, 50.0])}
    score, prompt, is_void = teacher.named(parts, TEXT)
    for q in range(5):
        p_in, p_out = np.exp(30 * inside[q]), np.exp(50 * outside[q])
        void = 1 / (1 + p_in.sum())
        p_in, p_out = p_in / p_in.sum(), p_out / p_out.sum()
        share = np.array([0.4, 0.8, 0.4, 0.8])
        joint = p_in ** (1 - share) * p_out**share
        joint = joint / joint.sum() * (1 - void)
        assert prompt[q] == joint.argmax()
        assert score[q] == pytest.approx(joint.max(), abs=1e-6)
        assert is_void[q] == (void > joint.max())


def test_more_than_255_segments_fit_in_one_image(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, SegmentConfig(split="components", scale=1.0), overlap=0.0)
    encoding = one_view(CAR, ROAD, owner=np.indices((40, 40)).sum(axis=0) % 2)
    [found] = FcClip.load(recipe, "segment").segment(frame_of(camera_of("C", 200, 200)), encoding, TEXT)
    found.check()
    assert len(found) > 255


def test_a_new_dictionary_calls_no_network(tmp_path: Path, street: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers.networks import fcclip as fcclip_network

    calls = count_calls(monkeypatch, fcclip_network.FcClip, "forward")
    recipe = recipe_at(tmp_path, overlap=0.0)
    encoding = FcClip.load(recipe, "encode").encode(street)
    assert calls
    count = len(calls)
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 4, 32)).astype(np.float32) / 6
    teacher = FcClip.load(recipe, "segment")
    assert teacher.network is None
    first, second = teacher.segment(street, encoding, one), teacher.segment(street, encoding, other)
    assert len(calls) == count
    scratch = teacher.segment(street, FcClip.load(recipe, "encode").encode(street), other)
    for cached, again in zip(second, scratch, strict=True):
        for field in fields(Segments):
            np.testing.assert_array_equal(getattr(cached, field.name), getattr(again, field.name))
    assert any(a.prompt_id.tolist() != b.prompt_id.tolist() for a, b in zip(first, second, strict=True))


def test_an_encoding_that_does_not_fit_is_named(tmp_path: Path) -> None:
    teacher = FcClip.load(recipe_at(tmp_path), "segment")
    frame = frame_of(camera_of("C", 32, 16))
    with pytest.raises(FrameError, match="table encode has no C/near"):
        teacher.segment(frame, {}, TEXT)
    with pytest.raises(FrameError, match="expected 4 prompts, and vectors of one length"):
        teacher.segment(frame, one_view(CAR, ROAD), np.eye(5, dtype=np.float32))
