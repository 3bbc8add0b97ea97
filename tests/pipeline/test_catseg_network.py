"""CAT-Seg's network apart from any teacher: each step on tensors small enough to follow."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import elu, gelu

from pipeline.teachers.networks import aggregator as aggregator_module
from pipeline.teachers.networks.aggregator import (
    MOST_PROMPTS,
    SHAPES,
    Aggregator,
    Guides,
    cosines,
    foremost,
)
from pipeline.teachers.networks.catseg import (
    build_aggregator,
    build_catseg,
    likeliest,
    on_canvas,
    patch_tokens,
    window_corners,
)
from tests.pipeline.street import unit_rows
from tests.pipeline.test_catseg import BASE


def noise(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size).astype(np.float32))


@pytest.fixture(scope="module")
def tiny() -> Aggregator:
    return build_aggregator("tiny", 3).requires_grad_(False).eval()


def some_guides(seed: int = 0) -> Guides:
    """What one view of the tiny network may look like."""
    return Guides(
        noise(12, 12, 32, seed=seed),
        noise(12, 12, 32, seed=seed + 1).relu(),
        noise(24, 24, 16, seed=seed + 2).relu(),
        noise(48, 48, 8, seed=seed + 3).relu(),
    )


def test_the_last_block_adds_the_class_token_to_every_patch() -> None:
    network, _ = build_catseg("tiny", 1)
    visual = network.clip.visual
    with torch.inference_mode():
        tokens, [before] = patch_tokens(visual, noise(1, 3, 96, 96), (3,))
        last = visual.transformer.resblocks[-1]
        value = last.ln_1(before) @ last.attn.in_proj_weight[128:].T + last.attn.in_proj_bias[128:]
        output = last.attn.out_proj(value) + before[:, :1]
        expected = visual.ln_post(output + last.mlp(last.ln_2(output))) @ visual.proj
    torch.testing.assert_close(tokens, expected, rtol=0, atol=1e-5)


def test_fewer_prompts_count_as_if_256_were_there(tmp_path: Path, tiny: Aggregator) -> None:
    """The class axis filled up with copies of the learnt token, and every linear layer on [x | guide] in full."""
    block = tiny.layers[0].attention
    cells, guide = noise(5, 7, 32), noise(5, 32, seed=1)
    tokens = torch.cat([cells, block.padding_tokens[0].expand(251, 7, 32)])
    guides = torch.cat([guide, block.padding_guidance[0].expand(251, 32)])
    y = block.norm1(tokens)
    seen = torch.cat([y, guides[:, None].expand(-1, 7, -1)], dim=-1)
    query, key, value = (
        block.attention[name](y if name == "v" else seen).view(256, 7, 4, 8).double() for name in ("q", "k", "v")
    )
    weight = torch.einsum("snhd,tnhd->nhst", elu(query) + 1, elu(key) + 1)
    mixed = torch.einsum("nhst,tnhd->snhd", weight, value) / (weight.sum(-1).permute(2, 0, 1)[..., None] + 1e-6)
    expected = tokens + mixed.flatten(2).float()
    expected = (expected + block.MLP(block.norm2(expected)))[:5]
    torch.testing.assert_close(block.mixed(cells, guide), expected, rtol=0, atol=1e-5)


def test_windows_attend_within_themselves_and_not_over_the_edge_of_the_map(tiny: Aggregator) -> None:
    """Compared with one attention over all cells of the map, in which only pairs of one window and region count."""
    side = torch.arange(12)
    for name, shift in (("block_1", 0), ("block_2", 3)):
        block = tiny.layers[0].swin_block[name]
        x, guide = noise(2, 12, 12, 32), noise(12, 12, 32, seed=1)
        moved = (side - shift) % 12
        window = moved // 6
        beyond = (side < shift).long()  # cells that the shift brought to the other end
        region = (window[:, None] * 2 + window) * 4 + beyond[:, None] * 2 + beyond
        alike = region.flatten()[:, None] == region.flatten()
        y = block.norm1(x).flatten(1, 2)
        seen = torch.cat([y, guide.flatten(0, 1).expand(2, -1, -1)], dim=-1)
        query, key, value = (
            block.attn[part](y if part == "v" else seen).view(2, 144, 4, 8).transpose(1, 2) for part in ("q", "k", "v")
        )
        weight = (query @ key.transpose(-2, -1) / 8**0.5).masked_fill(~alike, -torch.inf).softmax(dim=-1)
        expected = x + block.attn["proj"]((weight @ value).transpose(1, 2).flatten(2)).view_as(x)
        expected = expected + block.mlp["fc2"](gelu(block.mlp["fc1"](block.norm2(expected))))
        torch.testing.assert_close(block(x, guide), expected, rtol=0, atol=1e-5)


def test_a_decoder_step_sees_maps_and_guide_side_by_side(tiny: Aggregator) -> None:
    x, guide = noise(3, 32, 12, 12), noise(1, 16, 24, 24, seed=1)
    double: Any = tiny.decoder1.conv["double_conv"]
    joint = torch.cat([tiny.decoder1.up(x), guide.expand(3, -1, -1, -1)], dim=1)
    expected = double["4"](double["3"](double["1"](double["0"](joint)).relu())).relu()
    torch.testing.assert_close(tiny.decoder1(x, guide), expected, rtol=0, atol=1e-5)


def test_of_more_than_256_prompts_the_foremost_go_in_and_no_other_is_ever_likeliest(tiny: Aggregator) -> None:
    guides, text = some_guides(), torch.from_numpy(unit_rows(4, 300))
    chosen = foremost(cosines(guides.grid, text))
    assert chosen is not None and len(chosen) == MOST_PROMPTS and chosen.diff().min() > 0
    largest = cosines(guides.grid, text).flatten(1).amax(dim=1)
    out = np.setdiff1d(np.arange(300), chosen)
    assert largest[chosen].min() >= largest[out].max()
    logits = tiny(guides, text, 1)
    assert (logits[out] == -100).all()
    torch.testing.assert_close(logits[chosen], tiny(guides, text[chosen], 1), rtol=0, atol=1e-5)
    assert foremost(cosines(guides.grid, text[:256])) is None


def test_cells_are_averaged_before_prompts_are_compared_only_where_asked_for(tiny: Aggregator) -> None:
    block, guide = tiny.layers[1].attention, noise(4, 32)
    x = noise(4, 12, 12, 32, seed=1)
    alone = block.mixed(x.flatten(1, 2), guide).view_as(x)
    torch.testing.assert_close(block(x, guide, 1), x + alone, rtol=0, atol=1e-5)
    pooled = x.view(4, 6, 2, 6, 2, 32).mean(dim=(2, 4))
    coarse = block.mixed(pooled.flatten(1, 2), guide).view(4, 6, 6, 32)
    corners = block(x, guide, 2)[:, ::11, ::11] - x[:, ::11, ::11]  # aligned corners: the ends stay what they are
    torch.testing.assert_close(corners, coarse[:, ::5, ::5], rtol=0, atol=1e-5)


def test_windows_of_the_authors_evaluation_lie_two_by_two() -> None:
    shape = SHAPES[BASE]
    assert (shape.canvas_px, shape.stride_px) == (640, 256)
    corners = [(0, 0), (0, 256), (256, 0), (256, 256)]
    assert window_corners(shape.canvas_px, shape.kernel_px, shape.stride_px) == corners


def test_windows_are_averaged_where_they_overlap() -> None:
    windows = torch.stack([torch.full((1, 3, 3), float(value)) for value in (1, 2, 3, 4)])
    assert on_canvas(windows, side=5, stride=2)[0].tolist() == [
        [1, 1, 1.5, 2, 2],
        [1, 1, 1.5, 2, 2],
        [2, 2, 2.5, 3, 3],
        [3, 3, 3.5, 4, 4],
        [3, 3, 3.5, 4, 4],
    ]


@pytest.mark.parametrize("views", [1, 5])
def test_portions_change_nothing(views: int, tiny: Aggregator, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers.networks import catseg as network_module

    text = torch.from_numpy(unit_rows(6, 20))
    logits = torch.stack([tiny(some_guides(10 * view), text, 1) for view in range(views)])
    best, probability = likeliest(logits, (40, 60), SHAPES["tiny"])
    monkeypatch.setattr(aggregator_module, "_PROMPTS_AT_ONCE", 3)
    monkeypatch.setattr(aggregator_module, "_CELLS_AT_ONCE", 50)
    monkeypatch.setattr(network_module, "_PIXELS_AT_ONCE", 3 * 40 * 60)
    again = torch.stack([tiny(some_guides(10 * view), text, 1) for view in range(views)])
    torch.testing.assert_close(again, logits, rtol=0, atol=1e-5)
    best_again, probability_again = likeliest(logits, (40, 60), SHAPES["tiny"])
    assert (best_again == best).float().mean() > 0.999
    torch.testing.assert_close(probability_again, probability, rtol=0, atol=1e-6)


def test_of_equal_probabilities_the_first_prompt_wins_across_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.teachers.networks import catseg as network_module

    monkeypatch.setattr(network_module, "_PIXELS_AT_ONCE", 16)
    logits = torch.zeros(1, 3, 4, 4)
    logits[0, 1, :2] = logits[0, 2, :2] = 1
    best, _ = likeliest(logits, (4, 4), SHAPES["tiny"])
    assert best.tolist() == [[1] * 4] * 2 + [[0] * 4] * 2
