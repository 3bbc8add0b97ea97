import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import layer_norm

from manifests.config import ConfigError
from manifests.sections.teachers.clip_dense import MODES
from manifests.sections.teachers.weights import Weights
from pipeline.teachers.affinity import anomalies, attention, filled, neighbours, similarity
from pipeline.teachers.dense import Calibration, DenseTower, Layers, seen_size
from pipeline.teachers.loading.towers import (
    TINY,
    TINY_CONFIGS,
    ImageNetwork,
    Towers,
    clip_config,
    ensure_torchvision,
    load_dino,
    load_towers,
)

PATCH_MODES = tuple(mode for mode in MODES if mode not in ("affinity", "convnext"))
SIZES = [(32, 32), (24, 40), (8, 8)]


@pytest.fixture(scope="module")
def towers() -> Towers:
    return load_towers(TINY, Weights("random:0"), device="cpu")


def images(height: int, width: int, n: int = 2) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


@torch.inference_mode()
def run(tower: DenseTower, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return tower(torch.from_numpy(pixels)).numpy()


def normalised(pixels: npt.NDArray[Any]) -> torch.Tensor:
    """CLIP's normalisation, written from its published constants."""
    scaled = (pixels / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
    return torch.tensor(scaled.transpose(0, 3, 1, 2), dtype=torch.float32)


def open_clip_model(**config: Any) -> Any:
    ensure_torchvision()
    import open_clip

    return open_clip.CLIP(**config).eval()


def before_last_block(visual: Any, pixels: npt.NDArray[Any]) -> torch.Tensor:
    """Tokens (b, 1 + n, width) that enter the last block, at the tower's native size, by open_clip's own code."""
    tokens = visual._embeds(normalised(pixels))
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
    return torch.as_tensor(tokens)


def heads(visual: Any, tokens: torch.Tensor, part: int) -> torch.Tensor:
    """Queries (0), keys (1) or values (2) of the last block, (b, heads, 1 + n, e), slice by slice."""
    block = visual.transformer.resblocks[-1]
    width = tokens.shape[2]
    rows = slice(part * width, (part + 1) * width)
    normed = layer_norm(tokens, (width,), block.ln_1.weight, block.ln_1.bias)
    made = normed @ block.attn.in_proj_weight[rows].T + block.attn.in_proj_bias[rows]
    e = width // block.attn.num_heads
    return torch.stack([made[..., h * e : (h + 1) * e] for h in range(block.attn.num_heads)], dim=1)


def finish(visual: Any, mixed: torch.Tensor) -> npt.NDArray[Any]:
    """Output projection, final norm and text projection of patch tokens mixed per head: (b, n, d)."""
    block = visual.transformer.resblocks[-1]
    joined = torch.cat(list(mixed.unbind(1)), dim=-1)[:, 1:]
    return np.asarray(visual.ln_post(block.attn.out_proj(joined)) @ visual.proj)


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
def test_values_is_the_value_path_alone(towers: Towers) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    values = heads(visual, before_last_block(visual, pixels), part=2)
    expected = finish(visual, values).reshape(2, 4, 4, 32)
    np.testing.assert_allclose(run(DenseTower(towers, "values"), pixels), expected, atol=3e-5)


@torch.no_grad()
def test_maskclip_is_the_value_path_in_a_block_that_is_otherwise_whole(towers: Towers) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    block, tokens = visual.transformer.resblocks[-1], before_last_block(visual, pixels)
    values = torch.cat(list(heads(visual, tokens, part=2).unbind(1)), dim=-1)
    after = tokens + block.attn.out_proj(values)
    after = after + block.mlp(block.ln_2(after))
    expected = (visual.ln_post(after)[:, 1:] @ visual.proj).numpy().reshape(2, 4, 4, 32)
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


@pytest.mark.parametrize("positions", ["official", "exact"])
def test_positions_are_interpolated_at_other_sizes_and_the_class_position_is_kept(
    towers: Towers, positions: str
) -> None:
    trained = towers.model.visual.positional_embedding
    tower = DenseTower(towers, positions=positions)
    found = tower.positions((3, 7))
    assert torch.equal(found[0], trained[0])
    more = 0.1 if positions == "official" else 0.0
    for channel in (0, 63):
        grid = trained[1:, channel].reshape(1, 1, 4, 4)
        # the same samples, taken one by one at the places where either choice looks
        rows, columns = (torch.tensor([(k + 0.5) * 4 / (n + more) - 0.5 for k in range(n)]) for n in (3, 7))
        expected = torch.stack([torch.stack([cubic(grid[0, 0], row, column) for column in columns]) for row in rows])
        torch.testing.assert_close(found[1:, channel], expected.flatten(), atol=1e-6, rtol=1e-5)
    assert torch.equal(tower.positions((4, 4)), trained)


def cubic(grid: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
    """The bicubic sample (a = -0.75, borders repeated) of a grid (h, w) at a place counted in cells."""

    def taps(at: torch.Tensor, length: int) -> list[tuple[int, float]]:
        first, a = math.floor(at), -0.75
        found = []
        for cell in range(first - 1, first + 3):
            t = abs(float(at) - cell)
            near, far = ((a + 2) * t - (a + 3)) * t * t + 1, ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
            found.append((min(max(cell, 0), length - 1), near if t <= 1 else far))
        return found

    height, width = grid.shape
    return torch.stack(
        [grid[i, j] * (down * across) for i, down in taps(row, height) for j, across in taps(column, width)]
    ).sum()


@pytest.mark.parametrize("mode", PATCH_MODES)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_every_patch_of_an_image_of_any_size_gets_a_vector(towers: Towers, mode: str, height: int, width: int) -> None:
    features = run(DenseTower(towers, mode), images(height, width))
    assert features.shape == (2, height // 8, width // 8, 32)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()


@pytest.mark.parametrize("mode", PATCH_MODES)
def test_an_image_is_the_same_alone_and_in_a_batch(towers: Towers, mode: str) -> None:
    dense, pixels = DenseTower(towers, mode), images(24, 40, n=3)
    together = run(dense, pixels)
    for image, features in zip(pixels, together, strict=True):
        np.testing.assert_allclose(run(dense, image[None])[0], features, atol=1e-5)


def test_bfloat16_stays_close(towers: Towers) -> None:
    pixels = images(32, 32)
    exact, rough = run(DenseTower(towers, "naclip"), pixels), run(DenseTower(towers, "naclip", bf16=True), pixels)
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    cosine = (exact * rough).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(rough, axis=-1)
    assert cosine.min() > 0.99


# -- one mode after the other


@torch.no_grad()
def test_clearclip_is_query_query_attention(towers: Towers) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    tokens = before_last_block(visual, pixels)
    queries, values = heads(visual, tokens, part=0), heads(visual, tokens, part=2)
    weights = torch.softmax(queries @ queries.transpose(2, 3) / math.sqrt(queries.shape[-1]), dim=-1)
    expected = finish(visual, weights @ values).reshape(2, 4, 4, 32)
    np.testing.assert_allclose(run(DenseTower(towers, "clearclip"), pixels), expected, atol=3e-5)


@torch.no_grad()
def test_sclip_adds_two_attentions_in_a_block_that_is_otherwise_whole(towers: Towers) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    block, tokens = visual.transformer.resblocks[-1], before_last_block(visual, pixels)
    queries, keys, values = (heads(visual, tokens, part) for part in range(3))
    of_queries, of_keys = (
        torch.softmax(one @ one.transpose(2, 3) / math.sqrt(one.shape[-1]), dim=-1) for one in (queries, keys)
    )
    weights = of_queries + of_keys
    after = tokens + block.attn.out_proj(torch.cat(list((weights @ values).unbind(1)), dim=-1))
    after = after + block.mlp(block.ln_2(after))
    expected = (visual.ln_post(after)[:, 1:] @ visual.proj).numpy().reshape(2, 4, 4, 32)
    np.testing.assert_allclose(run(DenseTower(towers, "sclip"), pixels), expected, atol=3e-5)


@torch.no_grad()
def test_sc_follows_its_recipe() -> None:
    """The recipe once more, image by image and head by head, for a tower of four blocks: layers 3, 1, and 1 to 3."""
    tiny = TINY_CONFIGS[TINY]
    torch.manual_seed(0)
    clip = open_clip_model(**{**tiny, "vision_cfg": {**tiny["vision_cfg"], "image_size": 64}})
    towers, pixels = Towers(clip, None, torch.device("cpu")), images(64, 64)
    visual = clip.visual
    tokens, layers = visual._embeds(normalised(pixels)), []
    for block in visual.transformer.resblocks[:-1]:
        tokens = block(tokens)
        layers.append(tokens)
    block, expected = visual.transformer.resblocks[-1], []
    for image in range(2):
        third, first = layers[2][image], layers[0][image]
        bad = anomalies(third[None, 1:])
        patches = filled(third[None, 1:], bad, (8, 8))[0]
        cosine = similarity(patches[None])[0]  # layer 3 is both the one before the last and the one that merges
        near = torch.where(cosine >= 0.4, cosine, torch.zeros(()))
        patches = near / near.sum(dim=1, keepdim=True) @ patches
        shifted = 3 * (cosine - cosine.mean())
        alike = torch.softmax(shifted.masked_fill(shifted <= 0, float("-inf")), dim=1)
        smooth = similarity(first[None, 1:])[0]
        smooth = torch.where(smooth >= 0.4, smooth, torch.zeros(()))
        smooth = smooth / smooth.sum(dim=1, keepdim=True)
        total = sum(layer[image] for layer in layers)
        output = torch.zeros(64, 64)
        for values_of, cls in ((patches, third[0]), (total[1:], total[0])):
            keys, values = (heads(visual, values_of[None], part)[0] for part in (1, 2))
            mixed = []
            for key, value in zip(keys, values, strict=True):
                own = torch.softmax(key @ key.T / math.sqrt(key.shape[1]), dim=1)
                mixed.append((alike / 2 + own / 2) @ value)
            output += smooth @ (block.attn.out_proj(torch.cat(mixed, dim=1)) + 0.3 * cls)
        expected.append((visual.ln_post(output) @ visual.proj).numpy().reshape(8, 8, 32))
    np.testing.assert_allclose(run(DenseTower(towers, "sc"), pixels), np.stack(expected), atol=5e-5)


def test_the_layers_of_sc_are_the_published_ones_and_scaled_for_other_depths() -> None:
    assert Calibration.layers_of(12) == Layers(9, 4, 4, 10, of_class_token=0.3)
    assert Calibration.layers_of(24) == Layers(17, 7, 9, 19, of_class_token=0.1)
    assert Calibration.layers_of(32) == Layers(23, 9, 12, 25, of_class_token=0.1)
    assert Calibration.layers_of(4) == Layers(3, 1, 1, 3, of_class_token=0.3)


def test_the_parts_of_sc_can_be_left_out(towers: Towers) -> None:
    pixels = images(64, 64)
    full, one, other = (
        run(DenseTower(towers, calibration=Calibration(*parts)), pixels)
        for parts in ((True, True), (False, True), (True, False))
    )
    assert not np.allclose(full, one, atol=1e-4) and not np.allclose(full, other, atol=1e-4)


# -- what the similarity of patches says


def test_a_patch_out_of_place_is_found_and_filled_from_good_neighbours() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(1, 100, 8, generator=generator) * 0.1
    tokens[0, 44] += 9  # row 4, column 4
    tokens[0, 45] += 9
    bad = anomalies(tokens, nearest=10)
    assert bad[0, [44, 45]].all() and bad.sum() == 5
    bad = torch.zeros(1, 100, dtype=torch.bool)
    bad[0, [44, 45]] = True
    repaired = filled(tokens, bad, (10, 10))
    around = [33, 34, 35, 43, 53, 54, 55]
    torch.testing.assert_close(repaired[0, 44], tokens[0, around].mean(dim=0))
    assert torch.equal(repaired[0, around], tokens[0, around])
    assert torch.equal(filled(tokens, torch.ones_like(bad), (10, 10)), tokens)  # no good neighbour anywhere


def test_the_outlier_factor_compares_distances_to_the_kth_neighbour() -> None:
    tokens = torch.tensor([[[0.0], [1.0], [3.0], [7.0]]])  # on a line
    # squared distances to the second neighbour: 9, 4, 9, 36; factor: mean density of the two neighbours over one's own
    factor = torch.tensor([(1 / 4 + 1 / 9) / 2 * 9, (1 / 9 + 1 / 9) / 2 * 4, (1 / 4 + 1 / 9) / 2 * 9, 36 * 13 / 72])
    assert factor.argmax() == 3
    assert anomalies(tokens, nearest=2, share=0.25).tolist() == [[False, False, False, True]]


def test_equal_patches_attend_to_all_alike() -> None:
    cosine = similarity(torch.ones(1, 6, 4))
    torch.testing.assert_close(attention(cosine, gamma=3.0, beta=1.2), torch.full((1, 6, 6), 1 / 6))
    torch.testing.assert_close(neighbours(cosine, 0.4), torch.full((1, 6, 6), 1 / 6))


def test_patches_that_are_unlike_leave_each_other_alone() -> None:
    cosine = similarity(torch.eye(3)[None])
    assert torch.equal(attention(cosine, gamma=3.0, beta=1.0), torch.eye(3)[None])
    assert torch.equal(neighbours(cosine, 0.4), torch.eye(3)[None])


# -- with a second network


@pytest.fixture(scope="module")
def dino() -> ImageNetwork:
    return load_dino(TINY, Weights("random:0"), device="cpu")


def test_affinity_lives_on_the_grid_of_the_second_network(towers: Towers, dino: ImageNetwork) -> None:
    tower = DenseTower(towers, "affinity", dino=dino)
    pixels = images(24, 40, n=3)
    features = run(tower, pixels)
    assert features.shape == (3, 6, 10, 32)  # patches of 4 pixels, those of the tower have 8
    np.testing.assert_allclose(run(tower, pixels[1:2])[0], features[1], atol=1e-5)


@torch.no_grad()
def test_affinity_to_a_network_that_sees_no_difference_is_the_mean_over_the_image(towers: Towers) -> None:
    visual, pixels = towers.model.visual, images(32, 32)
    tower = DenseTower(towers, "affinity", dino=lambda pixels: torch.ones(len(pixels), 4, 4, 3))  # type: ignore[arg-type]
    mean = heads(visual, before_last_block(visual, pixels), part=2)[:, :, 1:].mean(dim=2, keepdim=True)
    expected = finish(visual, mean.expand(-1, -1, 17, -1)).reshape(2, 4, 4, 32)
    np.testing.assert_allclose(run(tower, pixels), expected, atol=3e-5)


def test_affinity_needs_a_second_network(towers: Towers) -> None:
    with pytest.raises(ConfigError, match="needs a second network; set dino and dino_weights"):
        DenseTower(towers, "affinity")
    with pytest.raises(ConfigError, match=r'teacher.dino is "resnet50"; expected a vision transformer of timm'):
        load_dino("resnet50", Weights("random:0"), device="cpu")


def test_a_network_of_timm_comes_back_as_it_was_saved(tmp_path: Path, dino: ImageNetwork) -> None:
    torch.save(dino.network.state_dict(), tmp_path / "dino.pt")
    pinned = hashlib.sha256((tmp_path / "dino.pt").read_bytes()).hexdigest()
    loaded = load_dino(TINY, Weights(str(tmp_path / "dino.pt"), pinned, key="dino_weights"), device="cpu")
    pixels = torch.from_numpy(images(24, 40)).permute(0, 3, 1, 2)
    assert torch.equal(loaded(pixels), dino(pixels))


def test_too_many_patches_are_refused_before_they_fill_the_memory(towers: Towers) -> None:
    with pytest.raises(ConfigError, match=r"100 x 100 are too many .*set window_px and stride_px"):
        run(DenseTower(towers, "sc"), images(800, 800, n=1))


# -- windows


def test_the_features_of_windows_lie_side_by_side(towers: Towers) -> None:
    pixels = images(32, 48)
    tower = DenseTower(towers, "naclip", unit=True, window_px=32, stride_px=16)
    found = run(tower, pixels)
    left, right = (run(DenseTower(towers, "naclip", unit=True), pixels[:, :, at : at + 32]) for at in (0, 16))
    np.testing.assert_allclose(found, np.concatenate([left, right], axis=2), atol=1e-5)
    assert tower.sliding is not None
    told = tower.sliding.parts(torch.from_numpy(pixels))
    assert told["rows_px"].tolist() == [[[0, 32]]] * 2 and told["columns_px"].tolist() == [[[0, 32], [16, 48]]] * 2


def test_rows_of_windows_lie_below_each_other(towers: Towers) -> None:
    pixels = images(48, 48, n=1)
    found = run(DenseTower(towers, "naclip", window_px=32, stride_px=16), pixels)
    assert found.shape == (1, 8, 8, 32)
    lower_left = run(DenseTower(towers, "naclip"), pixels[:, 16:, :32])
    np.testing.assert_allclose(found[:, 4:, :4], lower_left, atol=1e-5)


def test_one_window_is_the_whole_image(towers: Towers) -> None:
    pixels = images(24, 32)
    windowed, whole = (run(DenseTower(towers, unit=True, window_px=size), pixels) for size in (32, None))
    np.testing.assert_allclose(windowed, whole, atol=1e-6)


def test_windows_of_affinity_have_the_finer_grid(towers: Towers, dino: ImageNetwork) -> None:
    assert run(DenseTower(towers, "affinity", dino=dino, window_px=16), images(32, 48)).shape == (2, 8, 12, 32)


def test_windows_are_made_of_whole_patches(towers: Towers) -> None:
    with pytest.raises(
        ConfigError, match=r"teacher.window_px is 28, which is no multiple of the patch of 8 x 8 pixels"
    ):
        DenseTower(towers, window_px=28, stride_px=8)


@pytest.mark.parametrize(
    ("short_side_px", "window_px", "size"),
    [(448, None, (448, 800)), (560, 224, (560, 996)), (200, 224, (192, 356)), (100, 224, (96, 176))],
)
def test_only_what_windows_move_over_keeps_its_length(
    short_side_px: int, window_px: int | None, size: tuple[int, int]
) -> None:
    assert seen_size(900, 1600, short_side_px, (16, 16), window_px) == size


def test_windows_begin_anywhere_and_the_last_ends_with_the_image(towers: Towers) -> None:
    pixels = images(32, 45, n=1)
    tower = DenseTower(towers, "naclip", window_px=32, stride_px=10)
    found = run(tower, pixels)
    parts = [run(DenseTower(towers, "naclip"), pixels[:, :, at : at + 32]) for at in (0, 10, 13)]
    np.testing.assert_allclose(found, np.concatenate(parts, axis=2), atol=1e-5)


# -- ConvNeXt


@pytest.fixture(scope="module")
def convnext() -> Towers:
    return load_towers("tiny-convnext", Weights("random:0"), device="cpu")


@torch.no_grad()
def test_a_convnext_cell_is_what_the_head_gives_for_an_image_of_that_cell(convnext: Towers) -> None:
    visual, pixels = convnext.model.visual, images(64, 96)
    found = run(DenseTower(convnext, "convnext"), pixels)
    assert found.shape == (2, 2, 3, 32)
    one_cell = run(DenseTower(convnext, "convnext"), images(32, 32))
    np.testing.assert_allclose(one_cell[:, 0, 0], visual(normalised(images(32, 32))).numpy(), atol=3e-5)
    mean = visual.trunk.forward_features(normalised(pixels)).mean(dim=(2, 3), keepdim=True)
    pooled = visual.head(visual.trunk.head(mean)).numpy()  # the mean of the map, not of what the head makes of it
    np.testing.assert_allclose(visual(normalised(pixels)).numpy(), pooled, atol=3e-5)


def test_a_mode_that_the_tower_cannot_do_is_refused(towers: Towers, convnext: Towers) -> None:
    with pytest.raises(ConfigError, match=r'teacher.model is a ConvNeXt; set mode = "convnext"'):
        DenseTower(convnext, "sc")
    with pytest.raises(ConfigError, match=r"teacher.model is a vision transformer; choose another mode"):
        DenseTower(towers, "convnext")


# -- compiled


@pytest.mark.parametrize("mode", ["sc", "naclip", "clearclip"])
def test_the_tower_is_one_graph_for_the_compiler(towers: Towers, mode: str) -> None:
    tower, pixels = DenseTower(towers, mode), images(64, 72)
    plain = run(tower, pixels)
    tower._features = torch.compile(tower._plain, fullgraph=True, dynamic=False, backend="aot_eager")
    np.testing.assert_allclose(run(tower, pixels), plain, atol=1e-5)


# -- the towers of real recipes, with two blocks instead of all


@pytest.mark.parametrize(
    ("model", "size", "dims"),
    [
        ("ViT-B-16-quickgelu", (32, 64), 512),
        ("ViT-L-14", (28, 56), 768),
        ("ViT-L-14-336-quickgelu", (28, 56), 768),
        ("ViT-H-14", (28, 56), 1024),
    ],
)
def test_towers_of_every_width_give_grids_of_sizes_they_were_not_trained_at(
    model: str, size: tuple[int, int], dims: int
) -> None:
    config = clip_config(model)
    vision = {**config["vision_cfg"], "layers": 2}
    clip = open_clip_model(**{**config, "vision_cfg": vision, "text_cfg": TINY_CONFIGS[TINY]["text_cfg"]})
    found = run(DenseTower(Towers(clip, None, torch.device("cpu")), "sc"), images(*size, n=1))
    assert found.shape == (1, 2, 4, dims)
    assert np.isfinite(found).all()
