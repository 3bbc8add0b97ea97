import importlib.util
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from manifests.config import ConfigError, parse_section
from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.catseg import CatSegConfig
from manifests.templates import templates_of
from pipeline.frame import Frame, FrameError
from pipeline.stages.registry import STAGES
from pipeline.teachers.catseg import PARTS, CatSeg
from pipeline.teachers.loading.towers import Towers
from pipeline.teachers.loading.weights import fill
from pipeline.teachers.networks.aggregator import (
    SHAPES,
    Aggregator,
    Guides,
    cosines,
)
from pipeline.teachers.networks.catseg import (
    UNUSED,
    build_aggregator,
    build_catseg,
    from_official,
    likeliest,
    of_aggregator,
    patch_tokens,
    probability_maps,
)
from tests.calls import count_calls
from tests.pipeline.frames import camera_of, frame_of
from tests.pipeline.street import SHA, assert_equal_segments, recipe_with, street_in, unit_rows

LARGE, BASE = "ViT-L-14-336-quickgelu", "ViT-B-16-quickgelu"


def recipe_at(root: Path, segment: SegmentConfig | None = None, templates: str = "", **teacher: Any) -> Recipe:
    return recipe_with(root, CatSegConfig(**{"model": "tiny", "weights": "random:0", **teacher}), segment, templates)


@pytest.fixture
def street(tmp_path: Path) -> Frame:
    """Two images, of two sizes."""
    return street_in(tmp_path, FRONT=(128, 72), SIDE=(64, 96))


# -- the section of the recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "san"}, 'these are the settings of "catseg"'),
        ({"model": "ViT-B-16"}, "CAT-Seg was published on"),
        ({}, "give the path of an official checkpoint"),
        ({"weights": "openai"}, "give the path of an official checkpoint"),
        ({"weights": "random:0", "precision": "fp16"}, 'choose "fp32" or "bf16"'),
        ({"weights": "random:0", "kept": "uint8"}, 'choose "float16" or "float32"'),
        ({"weights": "random:0", "pooling": 3}, "choose 1"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("teacher", values, CatSegConfig)


def test_each_stage_depends_on_its_own_settings_only() -> None:
    config = CatSegConfig(
        weights="a/b.pth", weights_sha256=SHA, windows=True, pooling=2, kept="float32", precision="bf16"
    )
    weights = {"name": "catseg", "weights": f"sha256:{SHA}"}
    assert config.settings("text") == weights
    assert config.settings("encode") == {**weights, "windows": True, "kept": "float32", "precision": "bf16"}
    assert config.settings("segment") == {**weights, "windows": True, "pooling": 2}
    assert replace(config, parity=True).settings("segment") == config.settings("segment")
    assert replace(config, parity=True).settings("text") == {**weights, "parity": True}


def test_the_built_in_recipe_has_the_sentence_of_the_network() -> None:
    recipe = load_recipe("nuscenes_catseg")
    assert isinstance(recipe.teacher, CatSegConfig) and not recipe.teacher.weights_sha256
    assert STAGES["text"].settings(recipe)["templates"] == ["A photo of a {} in the scene"]  # capital, no full stop


def test_other_sentences_than_the_networks_own_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'text.templates is "vild14", but CAT-Seg learnt .* leave templates out'):
        STAGES["text"].settings(recipe_at(tmp_path, templates="vild14"))


# -- official files


def official_keys(shared: Path, name: str) -> dict[str, torch.Tensor]:
    keys = json.loads((shared / "design" / "checkpoints" / f"{name}.keys.json").read_text())
    return {key: torch.empty(shape, device="meta") for key, shape in keys.items()}


def meta_network(model: str) -> Any:
    with torch.device("meta"):
        return build_catseg(model)[0]


@pytest.mark.parametrize(
    ("name", "model", "count"), [("catseg_v2_vitb_384", BASE, 484), ("catseg_v2_vitl_336", LARGE, 652)]
)
def test_an_official_checkpoint_fits_name_by_name(shared: Path, name: str, model: str, count: int) -> None:
    official = official_keys(shared, name)
    assert len(official) == count
    renamed = from_official(official)
    fill(meta_network(model), renamed, "test", ignored=UNUSED)
    with torch.device("meta"):
        fill(build_aggregator(model), of_aggregator(renamed), "test")
    other = BASE if model == LARGE else LARGE
    with pytest.raises(ConfigError, match=r"of another shape|missing|not expected"):
        fill(meta_network(other), renamed, "test", ignored=UNUSED)


def test_a_file_of_the_first_generation_is_refused_by_name(shared: Path) -> None:
    with pytest.raises(ConfigError, match=r'first generation \(80 sentences per prompt.* with teacher "artifacts"'):
        from_official(official_keys(shared, "catseg_v1_vitl_swinb"))


def official_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A network's tensors under the official names: attention matrices in three, and what the files hold beside."""
    official = {f"sem_seg_head.predictor.{name}": torch.zeros(4, 144, 144) for name in UNUSED}
    for name, tensor in state.items():
        if not name.startswith("upsample"):
            name = f"sem_seg_head.predictor.{name.replace('clip.', 'clip_model.', 1)}"
        if name.endswith("in_proj_weight"):
            for part, rows in zip("qkv", tensor.chunk(3), strict=True):
                official[name.replace("in_proj_weight", f"{part}_proj_weight")] = rows
        else:
            official[name] = tensor
    return official


def test_a_file_in_the_official_layout_gives_the_network_it_was_saved_from(tmp_path: Path, street: Frame) -> None:
    path = tmp_path / "model_tiny.pth"
    torch.save({"model": official_names(build_catseg("tiny", seed=7)[0].state_dict()), "iteration": 80000}, path)
    pinned: dict[str, Any] = {"weights": str(path), "weights_sha256": sha256(path.read_bytes()).hexdigest()}
    from_file, from_seed = recipe_at(tmp_path, **pinned), recipe_at(tmp_path, weights="random:7")
    text = CatSeg.load(from_seed, "text").text(("car", "van", "sky"))
    np.testing.assert_array_equal(CatSeg.load(from_file, "text").text(("car", "van", "sky")), text)
    one, other = (CatSeg.load(recipe, "encode").encode(street) for recipe in (from_file, from_seed))
    for name, part in one.items():
        np.testing.assert_array_equal(part, other[name])
    assert_equal_segments(
        *(CatSeg.load(recipe, "segment").segment(street, one, text) for recipe in (from_file, from_seed))
    )
    torch.save({"model": {"a": torch.ones(2)}}, path)
    damaged = recipe_at(tmp_path, **{**pinned, "weights_sha256": sha256(path.read_bytes()).hexdigest()})
    for stage in ("encode", "segment"):
        with pytest.raises(ConfigError, match="is not a checkpoint of CAT-Seg on tiny"):
            CatSeg.load(damaged, stage)


# -- golden numbers of the official code


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, npt.NDArray[Any]]:
    with np.load(shared / "golden" / "teachers" / "catseg_v2_b16.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def base(shared: Path) -> tuple[Any, Towers]:
    """ViT-B/16 with the weights that the golden numbers were made with: each tensor from its official name."""
    folder = shared / "golden" / "teachers"
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    assert spec and spec.loader
    weights = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(weights)
    keys = json.loads((folder / "catseg_v2_vitb_384.keys.json").read_text())
    official = {
        key: torch.zeros(shape) if key.endswith("attn_mask") else torch.from_numpy(weights.tensor(key, shape, "catseg"))
        for key, shape in keys.items()
    }
    network, tokenizer = build_catseg(BASE)
    fill(network, from_official(official), "golden", ignored=UNUSED)
    network.requires_grad_(False).eval()
    return network, Towers(network.clip, tokenizer, torch.device("cpu"))


def teacher_on(base: tuple[Any, Towers], root: Path, **settings: Any) -> CatSeg:
    network, towers = base
    config = CatSegConfig(**{"model": BASE, "weights": "random:0", "kept": "float32", **settings})
    sentence = templates_of("catseg")
    segmentation = SegmentConfig(scale=1.0)
    return CatSeg(config, root, sentence, segmentation, network, towers, network.transformer, towers.device)


def assert_close(found: Any, expected: npt.NDArray[Any], relative: float = 1e-4) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=relative * np.abs(expected).max())


def test_every_step_gives_the_numbers_of_the_official_code(
    base: tuple[Any, Towers], golden: dict[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    network, _ = base
    teacher = teacher_on(base, tmp_path, parity=True, pooling=2)
    text = teacher.text(tuple(golden["classes"].tolist()))
    assert_close(text, golden["text"], 1e-5)
    aggregator: Aggregator = network.transformer
    with torch.inference_mode():
        pixels = teacher.as_reference(torch.from_numpy(golden["image"])[None])
        assert_close(pixels[0, :, ::16, ::16], golden["clip_in"], 1e-5)
        assert_close(patch_tokens(network.clip.visual, pixels, ())[0][0, ::8], golden["clip"])
        guides = Guides(*(part[0] for part in network(pixels)))
        cost = cosines(guides.grid, torch.from_numpy(text))
        assert_close(cost, golden["corr"])
        x = aggregator.embedded(cost)
        assert_close(x.permute(0, 3, 1, 2)[:, ::16], golden["conv1"])
        of_prompt = aggregator.text_guidance_projection(torch.from_numpy(text))
        for number, layer in enumerate(aggregator.layers):
            x = layer.over_space(x, guides.coarse)
            if number == 0:
                assert_close(x.permute(3, 0, 1, 2)[::16], golden["swin0"])
            x = layer.attention(x, of_prompt, 2)
            assert_close(x.permute(3, 0, 1, 2)[::16], golden[f"layer{number}"])
        for pooling, name in ((2, "head"), (1, "head_pool1")):
            logits = aggregator(guides, torch.from_numpy(text), pooling)
            assert_close(logits, golden[name])
            if pooling == 2:
                assert_close(probability_maps(logits[None], (225, 400), SHAPES[BASE])[:, ::5, ::5], golden["sem_seg"])
    Image.fromarray(golden["image"]).save(tmp_path / "C.png")
    frame = frame_of(camera_of("C", 400, 225))
    encoding = teacher.encode(frame)
    for kept in (np.float32, np.float16):
        [found] = teacher.segment(frame, {name: part.astype(kept) for name, part in encoding.items()}, text)
        prompt_map = found.prompt_id[found.label_map() - 1]
        assert np.mean(prompt_map == golden["argmax"]) >= 0.999


def test_windows_give_the_numbers_of_the_official_code(
    base: tuple[Any, Towers], golden: dict[str, npt.NDArray[Any]], tmp_path: Path
) -> None:
    teacher = teacher_on(base, tmp_path, parity=True, windows=True)
    with torch.inference_mode():
        parts = teacher.forward(torch.from_numpy(golden["image"])[None])
        logits = teacher.logits({name: part[0].numpy() for name, part in parts.items()}, golden["text"])
        assert_close(probability_maps(logits, (225, 400), SHAPES[BASE])[:, ::5, ::5], golden["slide"])
        best, _ = likeliest(logits, (225, 400), SHAPES[BASE])
    assert np.mean(best.numpy() == golden["slide_argmax"]) >= 0.999


# -- traps, each by itself


def test_a_comma_cuts_a_prompt_only_as_the_reference_does(tmp_path: Path) -> None:
    prompts = ("truck, lorry", "truck", "truck, pickup")
    ours = CatSeg.load(recipe_at(tmp_path), "text").text(prompts)
    assert len(np.unique(ours, axis=0)) == 3
    reference = CatSeg.load(recipe_at(tmp_path, parity=True), "text").text(prompts)
    assert len(np.unique(reference, axis=0)) == 1
    np.testing.assert_allclose(reference[0], ours[1], atol=1e-5)


def test_prompt_ids_beyond_255_are_found(tmp_path: Path, street: Frame) -> None:
    recipe = recipe_at(tmp_path)
    encoding = CatSeg.load(recipe, "encode").encode(street)
    teacher = CatSeg.load(recipe, "segment")
    front, text = frame_of(street.cameras[0]), unit_rows(5, 300)
    [one], [other] = (teacher.segment(front, encoding, rows) for rows in (text, text[::-1].copy()))
    assert max(one.prompt_id.max(), other.prompt_id.max()) > 255
    prompt, mirrored = one.prompt_id[one.label_map() - 1], other.prompt_id[other.label_map() - 1]
    assert (prompt == 299 - mirrored).mean() > 0.99  # prompts are added in another order: last bits differ


def stripe_row(teacher: CatSeg, height: int) -> float:
    """Where the lower edge of a view, a bright stripe of 40 pixel rows, ends up, in pixels of the view."""
    image = np.zeros((height, 160, 3), np.uint8)
    image[-40:] = 255
    Image.fromarray(image).save(str(teacher.root / "C.png"))
    pixels = torch.from_numpy(teacher.prepare(frame_of(), camera_of("C", 160, height)).copy())[None]
    seen = teacher.as_reference(pixels) if teacher.config.parity else pixels.flatten(0, 1).permute(0, 3, 1, 2).float()
    of_row = seen[0, 0].mean(dim=1)
    bright = (of_row > of_row.max() / 2).nonzero()
    return float(bright.max() + 1) / len(of_row) * height


def test_labels_lie_where_things_are_but_in_parity_up_to_27_pixels_too_high(tmp_path: Path) -> None:
    assert stripe_row(CatSeg.load(recipe_at(tmp_path), "encode"), 900) == 900
    assert stripe_row(CatSeg.load(recipe_at(tmp_path, parity=True), "encode"), 900) == pytest.approx(
        900 - 27, abs=900 / 96
    )


# -- windows


def test_a_teacher_with_windows_cuts_them_from_one_image(tmp_path: Path, street: Frame) -> None:
    teacher = CatSeg.load(recipe_at(tmp_path, windows=True), "encode")
    views = teacher.prepare(street, street.cameras[0])
    assert views.shape == (5, 96, 96, 3)
    np.testing.assert_array_equal(views[0][:, 64:], views[1][:, :32])
    np.testing.assert_array_equal(views[0][64:], views[2][:32])
    whole = CatSeg.load(recipe_at(tmp_path), "encode").prepare(street, street.cameras[0])
    np.testing.assert_array_equal(views[-1], whole[0])


# -- memory and portions


# -- the two halves


@pytest.mark.parametrize("settings", [{}, {"windows": True}, {"kept": "float32"}])
def test_every_view_gets_a_grid_and_three_guides(tmp_path: Path, street: Frame, settings: dict[str, Any]) -> None:
    recipe = recipe_at(tmp_path, **settings)
    encoding = CatSeg.load(recipe, "encode").encode(street)
    views, dtype = 5 if "windows" in settings else 1, settings.get("kept", "float16")
    assert {name: (part.dtype.name, part.shape) for name, part in encoding.items() if name.startswith("FRONT/")} == {
        "FRONT/grid": (dtype, (views, 12, 12, 32)),
        "FRONT/coarse": (dtype, (views, 12, 12, 32)),
        "FRONT/middle": (dtype, (views, 24, 24, 16)),
        "FRONT/fine": (dtype, (views, 48, 48, 8)),
    }
    size = sum(part.nbytes for name, part in encoding.items() if name.startswith("FRONT/"))
    assert CatSeg.kilobytes_per_frame(recipe) == pytest.approx(6 * size / 1000)


def test_bfloat16_gives_nearly_the_same(tmp_path: Path, street: Frame) -> None:
    exact, fast = (
        CatSeg.load(recipe_at(tmp_path, kept="float32", precision=precision), "encode").encode(street)
        for precision in ("fp32", "bf16")
    )
    assert any(not np.array_equal(exact[name], fast[name]) for name in exact)
    for name, part in exact.items():
        one, other = part.ravel(), fast[name].ravel()
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.999


def test_a_new_dictionary_calls_no_image_tower(tmp_path: Path, street: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers.networks import catseg as network_module

    calls = count_calls(monkeypatch, network_module, "patch_tokens")
    recipe = recipe_at(tmp_path)
    encoding = CatSeg.load(recipe, "encode").encode(street)
    assert len(calls) == 1  # both images in one batch: the network sees squares
    scratch = CatSeg.load(recipe, "segment").segment(
        street, CatSeg.load(recipe, "encode").encode(street), unit_rows(2, 9)
    )
    monkeypatch.setattr(network_module, "build_clip", lambda *a, **k: pytest.fail("CLIP was built for a vocabulary"))
    first = CatSeg.load(recipe, "segment").segment(street, encoding, unit_rows(1, 7))
    second = CatSeg.load(recipe, "segment").segment(street, encoding, unit_rows(2, 9))
    assert len(calls) == 2
    assert_equal_segments(second, scratch)
    assert any(a.prompt_id.tolist() != b.prompt_id.tolist() for a, b in zip(first, second, strict=True))


def test_a_share_of_a_gpu_moves_the_aggregator_to_the_device_of_the_run(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path)
    on_cpu = CatSeg.load(replace(recipe, run=replace(recipe.run, device="meta")), "segment")
    assert on_cpu.segment_device == torch.device("cpu")
    shared_gpu = replace(recipe, run=replace(recipe.run, device="meta", segment_gpus=0.5))
    elsewhere = CatSeg.load(shared_gpu, "segment")
    assert elsewhere.aggregator is not None
    assert {one.device.type for one in elsewhere.aggregator.parameters()} == {"meta"}


def test_of_equal_prompts_only_the_first_is_ever_found(tmp_path: Path, street: Frame) -> None:
    recipe = recipe_at(tmp_path)
    encoding = CatSeg.load(recipe, "encode").encode(street)
    text = unit_rows(3, 20)
    for found in CatSeg.load(recipe, "segment").segment(street, encoding, np.concatenate([text, text])):
        assert found.prompt_id.max() < 20


@pytest.mark.parametrize("windows", [False, True])
def test_a_segments_vector_is_the_sum_of_clips_grid_over_its_pixels(
    tmp_path: Path, street: Frame, windows: bool
) -> None:
    recipe = recipe_at(tmp_path, SegmentConfig(scale=1.0), windows=windows, kept="float32")
    encoding = CatSeg.load(recipe, "encode").encode(street)
    [found, _] = CatSeg.load(recipe, "segment").segment(street, encoding, unit_rows(1, 7))
    grids = torch.from_numpy(encoding["FRONT/grid"]).permute(0, 3, 1, 2)

    def at_pixels(grid: torch.Tensor) -> npt.NDArray[Any]:
        return interpolate(grid[None], size=(72, 128), mode="bilinear", align_corners=False)[0].numpy()

    dense = at_pixels(grids[-1])
    if windows:
        canvas, count = np.zeros((32, 20, 20), np.float32), np.zeros((20, 20), np.float32)
        for grid, (row, column) in zip(grids[:-1], ((0, 0), (0, 8), (8, 0), (8, 8)), strict=True):
            canvas[:, row : row + 12, column : column + 12] += grid.numpy()
            count[row : row + 12, column : column + 12] += 1
        dense = (dense + at_pixels(torch.from_numpy(canvas / count))) / 2
    for segment in range(len(found)):
        total = dense[:, found.label_map() == segment + 1].sum(axis=1)
        np.testing.assert_allclose(found.vector[segment], total / np.linalg.norm(total), atol=1e-3)


def test_a_segments_score_is_the_mean_probability_of_its_prompt(tmp_path: Path, street: Frame) -> None:
    recipe = recipe_at(tmp_path, SegmentConfig(scale=1.0))
    encoding = CatSeg.load(recipe, "encode").encode(street)
    teacher = CatSeg.load(recipe, "segment")
    text = unit_rows(1, 7)
    found = teacher.segment(street, encoding, text)[1]
    with torch.inference_mode():
        parts = {name: encoding[f"SIDE/{name}"] for name in PARTS}
        probability = probability_maps(teacher.logits(parts, text), (96, 64), teacher.shape).numpy()
    assert (found.prompt_id[found.label_map() - 1] == probability.argmax(axis=0)).all()
    for segment, prompt in enumerate(found.prompt_id):
        inside = found.label_map() == segment + 1
        assert found.score[segment] == pytest.approx(probability[prompt][inside].mean(), abs=1e-3)


def test_values_that_are_not_finite_are_refused(tmp_path: Path, street: Frame) -> None:
    teacher = CatSeg.load(recipe_at(tmp_path), "encode")
    assert teacher.network is not None
    teacher.network.clip.visual.proj *= 1e9  # beyond float16
    with pytest.raises(FrameError, match=r"FRONT.png: .* not\s+finite"):
        teacher.encode(street)


def test_an_encoding_that_does_not_fit_is_named(tmp_path: Path, street: Frame) -> None:
    teacher = CatSeg.load(recipe_at(tmp_path), "segment")
    with pytest.raises(FrameError, match="table encode has no FRONT/grid"):
        teacher.segment(street, {}, unit_rows(0, 4))
    encoding = CatSeg.load(recipe_at(tmp_path), "encode").encode(street)
    with pytest.raises(FrameError, match=r"FRONT/grid has shape \(1, 12, 12, 32\); expected \(1, 12, 12, 5\)"):
        teacher.segment(street, encoding, unit_rows(0, 4, dims=5))
    with pytest.raises(FrameError, match=r"FRONT/grid has shape \(1, 12, 12, 32\); expected \(5, 12, 12, 32\)"):
        CatSeg.load(recipe_at(tmp_path, windows=True), "segment").segment(street, encoding, unit_rows(0, 4))
