import math

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate, layer_norm

from pipeline.teachers.dense import MODES, DenseTower
from pipeline.teachers.towers import TINY, Towers, load_towers
from pipeline.teachers.weights import Weights

SIZES = [(32, 32), (24, 40), (8, 8)]


@pytest.fixture(scope="module")
def towers() -> Towers:
    return load_towers(TINY, Weights("random:0"), device="cpu")


def images(height: int, width: int, n: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def run(tower: DenseTower, pixels: np.ndarray) -> np.ndarray:
    return tower(torch.from_numpy(pixels)).numpy()


def normalised(pixels: np.ndarray) -> torch.Tensor:
    """CLIP's normalisation, written from its published constants."""
    scaled = (pixels / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    return torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)


def before_last_block(visual: torch.nn.Module, pixels: np.ndarray) -> torch.Tensor:
    """Tokens (b, 1 + n, width) that enter the last block, at the tower's native size, by open_clip's own code."""
    tokens = visual._embeds(normalised(pixels))
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return tokens


def heads(visual: torch.nn.Module, tokens: torch.Tensor, part: int) -> torch.Tensor:
    """Queries (0), keys (1) or values (2) of the last block, (b, heads, 1 + n, e), slice by slice."""
    block = visual.transformer.resblocks[-1]
    width = tokens.shape[2]
    rows = slice(part * width, (part + 1) * width)
    normed = layer_norm(tokens, (width,), block.ln_1.weight, block.ln_1.bias)
    made = normed @ block.attn.in_proj_weight[rows].T + block.attn.in_proj_bias[rows]
    e = width // block.attn.num_heads
    return torch.stack([made[..., h * e : (h + 1) * e] for h in range(block.attn.num_heads)], dim=1)


def finish(visual: torch.nn.Module, mixed: torch.Tensor) -> np.ndarray:
    """Output projection, final norm and text projection of patch tokens mixed per head: (b, n, d)."""
    block = visual.transformer.resblocks[-1]
    joined = torch.cat(list(mixed.unbind(1)), dim=-1)[:, 1:]
    return (visual.ln_post(block.attn.out_proj(joined)) @ visual.proj).numpy()


@torch.no_grad()
def test_vanilla_is_what_open_clip_gives_for_the_patches(towers: Towers) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    visual.output_tokens = True
    try:
        _, tokens = visual(normalised(pixels))
    finally:
        visual.output_tokens = False
    expected = (tokens @ visual.proj).numpy().reshape(2, 4, 4, 32)
    np.testing.assert_allclose(run(DenseTower(towers, "vanilla"), pixels), expected, atol=3e-5)


@torch.no_grad()
def test_maskclip_is_the_value_path_alone(towers: Towers) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    values = heads(visual, before_last_block(visual, pixels), part=2)
    expected = finish(visual, values).reshape(2, 4, 4, 32)
    np.testing.assert_allclose(run(DenseTower(towers, "maskclip"), pixels), expected, atol=3e-5)


@torch.no_grad()
@pytest.mark.parametrize("sigma", [0.01, 1.0, 5.0, 1e6])
def test_naclip_is_key_key_attention_with_a_bonus_for_near_patches(towers: Towers, sigma: float) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    tokens = before_last_block(visual, pixels)
    keys, values = heads(visual, tokens, part=1), heads(visual, tokens, part=2)
    bonus = torch.zeros(17, 17)  # entry 0 is the class token
    for i in range(16):
        for j in range(16):
            squared = (i // 4 - j // 4) ** 2 + (i % 4 - j % 4) ** 2
            bonus[1 + i, 1 + j] = math.exp(-squared / (2 * sigma**2))
    weights = torch.softmax(keys @ keys.transpose(2, 3) / math.sqrt(keys.shape[-1]) + bonus, dim=-1)
    expected = finish(visual, weights @ values).reshape(2, 4, 4, 32)
    np.testing.assert_allclose(run(DenseTower(towers, "naclip", sigma), pixels), expected, atol=3e-5)


def test_the_bonus_of_a_narrow_gaussian_is_for_the_patch_itself_only(towers: Towers) -> None:
    bonus = DenseTower(towers, "naclip", sigma=0.01).gaussian((2, 3))
    assert torch.equal(bonus[1:, 1:], torch.eye(6))
    assert not bonus[0].any() and not bonus[:, 0].any()


def test_the_bonus_falls_with_the_distance_on_the_grid(towers: Towers) -> None:
    bonus = DenseTower(towers, "naclip", sigma=1.0).gaussian((2, 3))[1:, 1:]
    from_corner = bonus[0].reshape(2, 3)
    expected = [[1, math.exp(-0.5), math.exp(-2)], [math.exp(-0.5), math.exp(-1), math.exp(-2.5)]]
    np.testing.assert_allclose(from_corner, expected, atol=1e-7)
    assert torch.equal(bonus, bonus.T)


def test_positions_are_the_trained_ones_at_the_trained_size(towers: Towers) -> None:
    trained = towers.model.visual.positional_embedding
    assert torch.equal(DenseTower(towers).positions((4, 4)), trained)


def test_positions_are_interpolated_at_other_sizes_and_the_class_position_is_kept(towers: Towers) -> None:
    trained = towers.model.visual.positional_embedding
    found = DenseTower(towers).positions((3, 7))
    assert torch.equal(found[0], trained[0])
    for channel in (0, 63):
        grid = trained[1:, channel].reshape(1, 1, 4, 4)
        expected = interpolate(grid, size=(3, 7), mode="bicubic", align_corners=False).flatten()
        torch.testing.assert_close(found[1:, channel], expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_patch_of_an_image_of_any_size_gets_a_vector(towers: Towers, mode: str, height: int, width: int) -> None:
    features = run(DenseTower(towers, mode), images(height, width))
    assert features.shape == (2, height // 8, width // 8, 32)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


@pytest.mark.parametrize("mode", MODES)
def test_an_image_is_the_same_alone_and_in_a_batch(towers: Towers, mode: str) -> None:
    dense, pixels = DenseTower(towers, mode), images(24, 40, n=3)
    together = run(dense, pixels)
    for image, features in zip(pixels, together, strict=True):
        np.testing.assert_allclose(run(dense, image[None])[0], features, atol=1e-5)


def test_bfloat16_stays_close(towers: Towers) -> None:
    pixels = images(32, 32)
    exact, rough = run(DenseTower(towers), pixels), run(DenseTower(towers, bf16=True), pixels)
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    cosine = (exact * rough).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rough, axis=-1)
    assert cosine.min() > 0.99
