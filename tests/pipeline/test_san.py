import json
import pickle
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from manifests.config import ConfigError, parse_section
from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.san import SanConfig
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.loading.weights import fill
from pipeline.teachers.masks import ImageSize, keep_logits, logits_kept
from pipeline.teachers.networks.side_adapter import SIDE_SHAPES, UNUSED, build_san, from_official, query_block
from pipeline.teachers.san import San, image_size
from superpixels.mask_queries import MaskQueries, sampling
from tests.calls import count_calls
from tests.pipeline.frames import frame_of
from tests.pipeline.street import SHA, Foreign, assert_equal_segments, cut_off, recipe_with, street_in, unit_rows

LARGE, BASE = "ViT-L-14-336-quickgelu", "ViT-B-16-quickgelu"


def recipe_at(root: Path, segment: SegmentConfig | None = None, **teacher: Any) -> Recipe:
    settings = {"model": "tiny", "weights": "random:0", "short_side_px": 64, **teacher}
    return recipe_with(root, SanConfig(**settings), segment)


@pytest.fixture
def street(tmp_path: Path) -> Frame:
    """Three images, the second of another size than the others."""
    return street_in(tmp_path, FRONT=(128, 72), SIDE=(64, 96), BACK=(128, 72))


# -- the section of the recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "clip_dense"}, 'these are the settings of "san"'),
        ({"model": "ViT-B-16"}, "SAN was published beside"),
        ({}, "give the path of an official checkpoint"),
        ({"weights": "openai"}, "give the path of an official checkpoint"),
        ({"weights": "hub:Mendel192/san/san_vit_large_14.pth", "weights_sha256": SHA}, "weights_revision is missing"),
        ({"weights": "random:0", "precision": "fp16"}, 'choose "fp32" or "bf16"'),
        ({"weights": "random:0", "masks": "int8"}, 'choose "uint8" or "float16"'),
        ({"weights": "random:0", "short_side_px": 16}, "expected 32 to 4096"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("teacher", values, SanConfig)


def test_the_built_in_recipe_names_a_file_that_nobody_has_pinned() -> None:
    teacher = load_recipe("nuscenes_san_native").teacher
    assert isinstance(teacher, SanConfig) and not teacher.weights_sha256


def test_each_stage_depends_on_its_own_settings_only() -> None:
    config = SanConfig(weights="a/b.pth", weights_sha256=SHA, masks="float16", parity=True, precision="bf16")
    assert config.settings("text") == {"name": "san", "weights": f"sha256:{SHA}"}
    assert config.settings("segment") == {"name": "san", "parity": True}
    assert config.settings("encode") == {
        "name": "san",
        "weights": f"sha256:{SHA}",
        "parity": True,
        "precision": "bf16",
    }
    assert config.settings("encode") == SanConfig(
        weights="elsewhere.pth", weights_sha256=SHA, masks="float16", parity=True, precision="bf16"
    ).settings("encode")


def test_both_grids_cover_the_view_unless_parity_is_asked_for() -> None:
    ours = SanConfig(weights="random:0")
    assert image_size(ours, 900, 1600) == ImageSize((640, 1152), (640, 1152), two_steps=False)
    reference = SanConfig(weights="random:0", parity=True)
    assert image_size(reference, 900, 1600) == ImageSize((640, 1137), (640, 1152), two_steps=True)


# -- the network


def meta_network(model: str) -> Any:
    with torch.device("meta"):
        return build_san(model)[0]


def test_the_official_checkpoint_fits_name_by_name(shared: Path) -> None:
    keys = json.loads((shared / "design" / "checkpoints" / "san_vit_large_14.keys.json").read_text())
    official = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    network = meta_network(LARGE)
    renamed = from_official(official, network.shape)
    assert len(renamed) == len(official) == 586
    fill(network, renamed, "test", ignored=UNUSED)
    assert (
        renamed["clip.visual.transformer.resblocks.18.ln_1.weight"] is official["clip_rec_head.resblocks.0.ln_1.weight"]
    )
    assert renamed["clip.text_projection"] is official["ov_classifier.text_projection"]


def test_every_tensor_that_is_missing_or_not_expected_is_told(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = json.loads((shared / "design" / "checkpoints" / "san_vit_large_14.keys.json").read_text())
    official = {name: torch.empty(shape, device="meta") for name, shape in keys.items()}
    for i in range(5):
        del official[f"clip_rec_head.resblocks.{i}.ln_1.bias"]
    official["optimizer.state"] = torch.empty(1, device="meta")
    network = meta_network(LARGE)
    with pytest.raises(ConfigError, match=r"5 missing, such as .*; 1 not expected, such as optimizer.state"):
        fill(network, from_official(official, network.shape), "test", ignored=UNUSED)
    assert all(f"clip.visual.transformer.resblocks.{18 + i}.ln_1.bias" in caplog.text for i in range(5))


def test_a_base_file_in_a_large_recipe_is_refused() -> None:
    base = dict(meta_network(BASE).state_dict())
    network = meta_network(LARGE)
    with pytest.raises(ConfigError, match=r"missing, such as .*of another shape, such as"):
        fill(network, from_official(base, network.shape), "san.pth is not a checkpoint of SAN beside " + LARGE)


def test_query_attention_equals_one_masked_attention_over_all_tokens() -> None:
    """The official way: queries, class token and patches in one sequence, and a mask that says who sees whom."""
    torch.manual_seed(0)
    network, _ = build_san("tiny")
    network = network.double()
    block: Any = network.clip.visual.transformer.resblocks[-1]
    heads, n_queries, n_patches = block.attn.num_heads, 5, 12
    queries, rest = torch.randn(2, n_queries, 64).double(), torch.randn(2, 1 + n_patches, 64).double()
    steer = torch.randn(2, heads, n_queries, n_patches).double()

    n = n_queries + 1 + n_patches
    mask = torch.zeros(2, heads, n, n).double()
    mask[:, :, :, :n_queries] = -torch.inf  # nobody sees a query
    mask[:, :, range(n_queries), range(n_queries)] = 0  # but itself
    mask[:, :, :n_queries, n_queries] = -torch.inf  # queries do not see the class token
    mask[:, :, :n_queries, n_queries + 1 :] = steer
    whole = block(torch.cat([queries, rest], dim=1), attn_mask=mask.flatten(0, 1))
    found = query_block(block, queries, rest[:, 1:], steer)
    torch.testing.assert_close(found, whole[:, :n_queries], rtol=0, atol=1e-12)
    torch.testing.assert_close(block(rest), whole[:, n_queries:], rtol=0, atol=1e-12)


def test_the_side_network_is_given_clips_grids_at_the_published_places() -> None:
    assert SIDE_SHAPES[LARGE].taps == (0, 6, 12, 18)
    assert SIDE_SHAPES[BASE].taps == (0, 3, 6, 9)
    network, _ = build_san("tiny")
    seen: list[torch.Tensor] = []
    network.side_adapter_network.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[1]))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        network.eval()(pixels, pixels[:, :, ::2, ::2])
        native = network.clip.visual.forward_intermediates(pixels[:, :, ::2, ::2], indices=[0, 1])
    assert len(seen) == 3
    for grid, same in zip(seen[1:], native["image_intermediates"], strict=True):
        torch.testing.assert_close(grid, same, atol=1e-5, rtol=1e-4)


# -- files


def official_names(state: dict[str, torch.Tensor], cut: int) -> dict[str, torch.Tensor]:
    """Our tensors under the official names, with what the official files hold beside."""
    official = {"criterion.empty_weight": torch.ones(3), "ov_classifier.attn_mask": torch.zeros(77, 77)}
    for name, tensor in state.items():
        if name.startswith("clip.visual.transformer.resblocks."):
            number, rest = name.removeprefix("clip.visual.transformer.resblocks.").split(".", 1)
            back = int(number) >= cut
            name = (
                f"clip_rec_head.resblocks.{int(number) - cut}."
                if back
                else f"clip_visual_extractor.resblocks.{number}."
            )
            name += rest
        elif name.startswith(("clip.visual.ln_post", "clip.visual.proj")):
            name = name.replace("clip.visual", "clip_rec_head")
        elif name.startswith("clip.visual."):
            name = name.replace("clip.visual", "clip_visual_extractor")
        elif name.startswith("clip."):
            name = name.replace("clip", "ov_classifier", 1)
        elif name == "bg_embed":
            name = "ov_classifier.bg_embed"
        official[name] = tensor
    return official


def pinned(path: Path) -> dict[str, Any]:
    return {"weights": str(path), "weights_sha256": sha256(path.read_bytes()).hexdigest()}


def test_a_base_checkpoint_in_the_official_layout_fits_too() -> None:
    """There is no list of its names, so it is made from our network, cut after block 9 of 12 with 12 heads."""
    network = meta_network(BASE)
    official = official_names(network.state_dict(), 9)
    assert (
        "clip_rec_head.resblocks.2.ln_1.weight" in official and "clip_rec_head.resblocks.3.ln_1.weight" not in official
    )
    assert official["side_adapter_network.mask_decoder.attn_mlp.layers.2.weight"].shape == (256 * 12, 256, 1, 1)
    fill(network, from_official(official, network.shape), "test", ignored=UNUSED)


def test_a_file_in_the_official_layout_gives_the_network_it_was_saved_from(tmp_path: Path, street: Frame) -> None:
    network, _ = build_san("tiny", seed=7)
    path = tmp_path / "san_tiny.pth"
    torch.save({"model": official_names(network.state_dict(), 2), "iteration": 60000}, path)
    from_file = San.load(recipe_at(tmp_path, **pinned(path)), "encode").encode(street)
    from_seed = San.load(recipe_at(tmp_path, weights="random:7"), "encode").encode(street)
    for name, part in from_seed.items():
        np.testing.assert_array_equal(part, from_file[name])


@pytest.mark.parametrize("model", [BASE, LARGE])
def test_the_published_sizes_load_by_recipe(tmp_path: Path, model: str) -> None:
    """The file's tensors are one number each, spread out, so that a network of a gigabyte has a small file."""
    state = meta_network(model).state_dict()
    spread = {name: torch.tensor(0.25).expand(tensor.shape) for name, tensor in state.items()}
    torch.save({"model": official_names(spread, SIDE_SHAPES[model].taps[-1])}, tmp_path / "w.pth")
    teacher = San.load(recipe_at(tmp_path, model=model, **pinned(tmp_path / "w.pth")), "text")
    assert teacher.network is not None and len(state) == len(teacher.network.state_dict())
    assert all((tensor.view(-1)[-1] == 0.25).item() for tensor in teacher.network.state_dict().values())


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: torch.save({"model": {"a": torch.ones(2)}}, path), "is not a checkpoint of SAN beside tiny"),
        (lambda path: cut_off(path), r"w\.pth is cut off after"),
        (lambda path: path.write_bytes(pickle.dumps(Foreign(), protocol=2)), r"w\.pth is a plain pickle"),
        (lambda path: torch.save({"model": Foreign()}, path), "holds more than tensors"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    path = tmp_path / "w.pth"
    write(path)
    with pytest.raises(ConfigError, match=message):
        San.load(recipe_at(tmp_path, **pinned(path)), "encode")


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"other")
    with pytest.raises(ConfigError, match="the file is damaged or another one"):
        San.load(recipe_at(tmp_path, weights=str(tmp_path / "w.pth"), weights_sha256=SHA), "encode")


# -- encode


def test_every_view_gets_masks_and_unit_vectors(tmp_path: Path, street: Frame) -> None:
    encoding = San.load(recipe_at(tmp_path), "encode").encode(street)
    assert {name: (part.dtype.name, part.shape) for name, part in encoding.items() if name.startswith("FRONT/")} == {
        "FRONT/masks": ("uint8", (8, 4, 8)),  # 64 x 128 px in patches of 16
        "FRONT/peak": ("float16", (4, 8)),
        "FRONT/embedding": ("float16", (8, 32)),
        "FRONT/none": ("float32", (8,)),
        "FRONT/logit_scale": ("float32", (1,)),
    }
    assert encoding["SIDE/masks"].shape == (8, 6, 4)
    length = np.linalg.norm(encoding["BACK/embedding"].astype(np.float32), axis=1)
    np.testing.assert_allclose(length, 1, atol=1e-3)


@pytest.mark.parametrize("parity", [False, True])
def test_views_of_one_frame_are_encoded_as_if_each_were_alone(tmp_path: Path, street: Frame, parity: bool) -> None:
    teacher = San.load(recipe_at(tmp_path, masks="float16", parity=parity), "encode")
    together = teacher.encode(street)
    again = teacher.encode(street)
    for camera in street.cameras:
        for name, part in teacher.encode(frame_of(camera)).items():
            np.testing.assert_allclose(part, together[name], atol=2e-3)
    for name, part in together.items():
        np.testing.assert_array_equal(part, again[name])


def test_bfloat16_gives_nearly_the_same(tmp_path: Path, street: Frame) -> None:
    exact = San.load(recipe_at(tmp_path, masks="float16"), "encode").encode(street)
    fast = San.load(recipe_at(tmp_path, masks="float16", precision="bf16"), "encode").encode(street)
    assert any(not np.array_equal(exact[name], fast[name]) for name in exact)
    for camera in street.cameras:
        np.testing.assert_allclose(fast[f"{camera.name}/masks"], exact[f"{camera.name}/masks"], atol=0.05)
        one, other = (found[f"{camera.name}/embedding"].astype(np.float32) for found in (exact, fast))
        assert (one * other).sum(axis=1).min() > 0.99


def test_masks_kept_in_a_byte_name_nearly_every_pixel_alike_however_far_their_logits_lie() -> None:
    """Random masks and prompts; with logits cut off at -12.8 the last scene would lose nearly all of its names."""
    for scale, shift in ((3, 0), (10, -10), (8, -40)):
        rng = np.random.default_rng(scale)
        logit = (rng.normal(0, scale, (40, 5, 9)).repeat(2, axis=1).repeat(2, axis=2) + shift).astype(np.float32)
        logit = (logit + np.roll(logit, 1, axis=1) + np.roll(logit, 1, axis=2)) / 3
        probability = rng.dirichlet(np.full(30, 0.05), 40)
        peak = logit.max(axis=0).astype(np.float16)
        exact, kept = (
            MaskQueries(some, sampling(160, 10), sampling(288, 18)).prompt_argmax(probability)
            for some in (logit, logits_kept(keep_logits(logit, peak, "uint8"), peak))
        )
        assert (kept == exact).mean() > 0.99


def test_float16_keeps_what_is_beyond_its_range_as_its_end() -> None:
    peak = np.zeros(1, np.float16)
    assert logits_kept(keep_logits(np.array([1e9], np.float32), peak, "float16"), peak).tolist() == [65504]


def test_parity_keeps_logits_as_float16(tmp_path: Path, street: Frame) -> None:
    assert San.load(recipe_at(tmp_path, parity=True), "encode").encode(street)["FRONT/masks"].dtype == np.float16


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path, street: Frame) -> None:
    teacher = San.load(recipe_at(tmp_path), "encode")
    assert teacher.network is not None
    teacher.network.clip.visual.proj[0, 0] = float("nan")
    with pytest.raises(FrameError, match=r"FRONT.png: masks or vectors of tiny hold values that\s+are not finite"):
        teacher.encode(street)


# -- segment


def two_halves() -> dict[str, npt.NDArray[Any]]:
    """Query 0 covers the left half of a view, query 1 the right; query 2 covers everything, and shows nothing."""
    left = np.where(np.arange(4) < 2, 8, -8).astype(np.float32)
    masks = np.stack([left, -left, np.full(4, 8, np.float32)])[:, None].repeat(2, axis=1)
    embedding = np.eye(4, dtype=np.float16)[:3]
    none = np.array([0, 0, 200], np.float32)
    return {
        "C/masks": masks,
        "C/peak": masks.max(axis=0).astype(np.float16),
        "C/embedding": embedding,
        "C/none": none,
        "C/logit_scale": np.full(1, 100, np.float32),
    }


def test_a_pixel_goes_to_the_prompt_of_the_queries_that_cover_it(tmp_path: Path) -> None:
    frame = frame_of(Camera("C", "C", "C.png", 0, np.eye(3), np.eye(4), 0, 16, 8))
    text = np.eye(4, dtype=np.float32)[[3, 1, 0]]
    [found] = San.load(recipe_at(tmp_path), "segment").segment(frame, two_halves(), text)
    assert found.label_map().tolist() == [[2] * 4 + [1] * 4] * 4  # half the image's size
    assert found.prompt_id.tolist() == [1, 2]
    # Query 2 covers as much as query 0, so a segment's vector lies between the two; and half of it shows no prompt.
    np.testing.assert_allclose(found.vector[1], [0.7, 0, 0.7, 0], atol=0.02)
    np.testing.assert_allclose(found.score, 0.5, atol=0.02)


def test_of_equal_prompts_only_the_first_is_ever_found(tmp_path: Path, street: Frame) -> None:
    recipe = recipe_at(tmp_path)
    encoding = San.load(recipe, "encode").encode(street)
    text = unit_rows(3, 20)
    for found in San.load(recipe, "segment").segment(street, encoding, np.concatenate([text, text])):
        assert found.prompt_id.max() < 20


def test_more_than_255_segments_fit_in_one_image(tmp_path: Path) -> None:
    checks = np.where(np.indices((20, 20)).sum(axis=0) % 2, 8, -8).astype(np.float16)
    encoding = {
        "C/masks": np.stack([checks, -checks]),
        "C/peak": np.abs(checks),
        "C/embedding": np.eye(2, dtype=np.float16),
        "C/none": np.zeros(2, np.float32),
        "C/logit_scale": np.full(1, 100, np.float32),
    }
    frame = frame_of(Camera("C", "C", "C.png", 0, np.eye(3), np.eye(4), 0, 100, 100))
    recipe = recipe_at(tmp_path, SegmentConfig(split="components", scale=1.0))
    [found] = San.load(recipe, "segment").segment(frame, encoding, np.eye(2, dtype=np.float32))
    found.check()
    assert len(found) > 255


def test_a_new_dictionary_calls_no_network(tmp_path: Path, street: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers.networks import side_adapter

    calls = count_calls(monkeypatch, side_adapter.San, "forward")
    recipe = recipe_at(tmp_path)
    encoding = San.load(recipe, "encode").encode(street)
    assert len(calls) == 2  # two sizes of images
    first = San.load(recipe, "segment").segment(street, encoding, unit_rows(1, 7))
    second = San.load(recipe, "segment").segment(street, encoding, unit_rows(2, 9))
    assert len(calls) == 2
    scratch = San.load(recipe, "segment").segment(street, San.load(recipe, "encode").encode(street), unit_rows(2, 9))
    assert_equal_segments(second, scratch)
    assert any(a.prompt_id.tolist() != b.prompt_id.tolist() for a, b in zip(first, second, strict=True))


def test_the_segment_half_needs_no_weights(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, model=LARGE, weights="not/on/this/disk.pth", weights_sha256=SHA)
    assert San.load(recipe, "segment").network is None


def test_an_encoding_that_does_not_fit_is_named(tmp_path: Path) -> None:
    frame = frame_of(Camera("C", "C", "C.png", 0, np.eye(3), np.eye(4), 0, 16, 8))
    teacher = San.load(recipe_at(tmp_path), "segment")
    with pytest.raises(FrameError, match="table encode has no C/masks"):
        teacher.segment(frame, {}, np.eye(4, dtype=np.float32))
    with pytest.raises(FrameError, match=r"shape \(3, 4\); expected \(3, 5\)"):
        teacher.segment(frame, two_halves(), np.eye(5, dtype=np.float32))
