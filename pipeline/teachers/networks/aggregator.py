"""CAT-Seg's aggregator, second generation (v2): cosines between patches and prompts, refined.

Written after Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation" (CVPR 2024), and after
what the official code computes on known weights. The cosines of CLIP's cells with the prompts are one map per prompt.
Two layers refine these maps, over space in windows and over prompts by linear attention, and a decoder draws them four
times as fine. CLIP's own grids guide all of that; they know no prompt.

Two equalities save work and memory. What guides is the same for all prompts (over space) or for all cells (over
prompts), so a linear map or a convolution of [x | guide] is that of x plus that of the guide, which is made once. And
where there are fewer than 256 prompts, the class axis is filled up with copies of one learnt token, whose share of the
attention is a multiple of one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import (
    avg_pool2d,
    conv2d,
    elu,
    gelu,
    interpolate,
    linear,
    normalize,
    relu,
    scaled_dot_product_attention,
)

MOST_PROMPTS = 256
"""The class axis is filled up to this; of more prompts, those whose cosine is largest anywhere in the image go in."""

_NO_LOGIT = -100.0  # of a prompt that does not go in, as in the reference: its sigmoid is 0
_OTHER_REGION = -100.0  # what the reference adds to the attention between parts that a shifted window brings together
_EPS = 1e-6  # of the linear attention
_PROMPTS_AT_ONCE = 16  # so that an image of 175 prompts takes some 430 MB
_PROMPTS_AT_ONCE_ON_A_GPU = 64
_CELLS_AT_ONCE = 144  # of the attention over prompts: a quarter of the grid


@dataclass(frozen=True)
class CostShape:
    """Sizes of the network: those of the published configurations, or of the tiny one.

    CLIP's image is a square of `input_px`. The decoder is guided by the patches after block `taps[0]` (counted from 1),
    at twice the grid, and by those after `taps[1]`, at four times. `kernel_px` is the side of a window in the authors'
    sliding evaluation, in which the whole image is 5/3 of that.
    """

    input_px: int
    taps: tuple[int, int]
    grid: int = 24
    window: int = 12
    width: int = 128
    heads: int = 4
    upsampled: tuple[int, int] = (256, 128)
    guides: tuple[int, int] = (32, 16)
    decoded: tuple[int, int] = (64, 32)
    kernel_px: int = 384

    @property
    def canvas_px(self) -> int:
        """Side of the image that windows lie on, at the reference's size: 640."""
        return self.kernel_px * 5 // 3

    @property
    def stride_px(self) -> int:
        """Step from one window to the next, at the reference's size: 256."""
        return self.kernel_px * 2 // 3


SHAPES: dict[str, CostShape] = {
    "ViT-B-16-quickgelu": CostShape(input_px=384, taps=(4, 8)),
    "ViT-L-14-336-quickgelu": CostShape(input_px=336, taps=(8, 16)),
    "tiny": CostShape(
        input_px=96,
        taps=(1, 2),
        grid=12,
        window=6,
        width=32,
        upsampled=(16, 16),
        guides=(16, 8),
        decoded=(32, 16),
        kernel_px=96,
    ),
}
"""By the name of open_clip's model."""


@dataclass(frozen=True)
class Guides:
    """What the vocabulary does not touch, of one view: floats on the device.

    `grid` (h, w, e) are CLIP's vectors per cell, not normalised; `coarse` (h, w, c), `middle` (2h, 2w, c) and `fine`
    (4h, 4w, c) are at least 0.
    """

    grid: torch.Tensor
    coarse: torch.Tensor
    middle: torch.Tensor
    fine: torch.Tensor


def portions(x: torch.Tensor, at_once: int, dim: int = 0) -> list[torch.Tensor]:
    """Return parts of a tensor along an axis, `at_once` long but for the last."""
    length = x.shape[dim]
    return [x.narrow(dim, first, min(at_once, length - first)) for first in range(0, length, at_once)]


def guided(layer: Any, x: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
    """Return a linear layer's output for [x | guide], the guide being spread over the axes of x that it has not."""
    own = x.shape[-1]
    mapped: torch.Tensor = linear(x, layer.weight[:, :own], layer.bias) + linear(guide, layer.weight[:, own:])
    return mapped


class WindowBlock(nn.Module):
    """Attention in windows of one prompt's map, and an MLP; parameters are named as in the published files.

    Windows lie side by side, moved by `shift` cells, on a map that is closed to a ring for that.
    """

    def __init__(self, shape: CostShape, shift: int) -> None:
        super().__init__()
        width = shape.width
        self.shape, self.shift = shape, shift
        self.norm1 = nn.LayerNorm(width)
        self.attn = nn.ModuleDict({name: nn.Linear(2 * width, width) for name in ("q", "k")})
        self.attn.update({name: nn.Linear(width, width) for name in ("v", "proj")})
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Return maps (t, h, w, c) of t prompts, which one guide (h, w, c) steers."""
        y = self.norm1(x)
        mixed = scaled_dot_product_attention(
            self.windows(guided(self.attn["q"], y, guide)),
            self.windows(guided(self.attn["k"], y, guide)),
            self.windows(self.attn["v"](y)),
            attn_mask=self.mask(x) if self.shift else None,
        )
        x = x + self.attn["proj"](self.whole(mixed, x.shape))
        output: torch.Tensor = x + self.mlp["fc2"](gelu(self.mlp["fc1"](self.norm2(x))))
        return output

    def windows(self, x: torch.Tensor) -> torch.Tensor:
        """Return maps (t, h, w, c) cut into windows and heads, (t * windows, heads, cells, c / heads)."""
        n, side, heads = self.shape.grid // self.shape.window, self.shape.window, self.shape.heads
        x = x.roll((-self.shift, -self.shift), dims=(1, 2)) if self.shift else x
        cut = x.reshape(len(x), n, side, n, side, heads, -1).permute(0, 1, 3, 5, 2, 4, 6)
        return cut.reshape(len(x) * n * n, heads, side * side, -1)

    def whole(self, cut: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Return what `windows` cut, put together again."""
        n, side, heads = self.shape.grid // self.shape.window, self.shape.window, self.shape.heads
        x = cut.reshape(-1, n, n, heads, side, side, size[-1] // heads).permute(0, 1, 4, 2, 5, 3, 6).reshape(size)
        return x.roll((self.shift, self.shift), dims=(1, 2)) if self.shift else x

    def mask(self, x: torch.Tensor) -> torch.Tensor:
        """Return what is added to the attention logits of the windows of maps x, (t * windows, 1, cells, cells).

        Along each axis, the last window holds two parts that were not neighbours before the shift.
        """
        axis = torch.arange(self.shape.grid, device=x.device)
        part = (axis >= self.shape.grid - self.shape.window).long() + (axis >= self.shape.grid - self.shift).long()
        region = (3 * part[:, None] + part)[None, ..., None].expand(1, -1, -1, self.shape.heads)
        # `windows` would roll; regions are numbered on the rolled map already.
        region = region.roll((self.shift, self.shift), dims=(1, 2))
        cut = self.windows(region)[:, :1, :, 0]
        apart = (cut[..., :, None] != cut[..., None, :]).to(x.dtype) * _OTHER_REGION
        return apart.repeat(len(x), 1, 1, 1)


class PromptBlock(nn.Module):
    """Linear attention over the prompts of each cell, and an MLP; parameters are named as in the published files."""

    def __init__(self, shape: CostShape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.padding_tokens = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.padding_guidance = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.attention = nn.ModuleDict({name: nn.Linear(2 * width, width) for name in ("q", "k")})
        self.attention["v"] = nn.Linear(width, width)
        self.MLP = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor, guide: torch.Tensor, pooling: int) -> torch.Tensor:
        """Return maps (t, h, w, c) of t prompts, each with its guide (t, c); cells are averaged by `pooling` before."""
        pooled = x
        if pooling > 1:
            pooled = avg_pool2d(x.permute(0, 3, 1, 2), pooling).permute(0, 2, 3, 1)
        cells = pooled.flatten(1, 2)
        cells = torch.cat([self.mixed(some, guide) for some in portions(cells, _CELLS_AT_ONCE, dim=1)], dim=1)
        added = cells.view(pooled.shape)
        if pooling > 1:
            fine = interpolate(added.permute(0, 3, 1, 2), size=x.shape[1:3], mode="bilinear", align_corners=True)
            added = fine.permute(0, 2, 3, 1)
        return x + added

    def mixed(self, cells: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Return cells (t, n, c) after attention over t and the MLP."""
        query, key, value = self.projected(cells, guide)
        products = torch.einsum("tnhd,tnhe->nhde", key, value)
        total = key.sum(dim=0)
        if (missing := MOST_PROMPTS - len(cells)) > 0:
            _, pad_key, pad_value = self.projected(self.padding_tokens, self.padding_guidance[0])
            products = products + missing * pad_key[0, 0, :, :, None] * pad_value[0, 0, :, None, :]
            total = total + missing * pad_key[0, 0]
        share = torch.einsum("tnhd,nhd->tnh", query, total) + _EPS
        attended = torch.einsum("tnhd,nhde->tnhe", query, products) / share[..., None]
        cells = cells + attended.flatten(2)
        output: torch.Tensor = cells + self.MLP(self.norm2(cells))
        return output

    def projected(self, cells: torch.Tensor, guide: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return queries and keys, all positive, and values, each float32 (t, n, heads, c / heads)."""
        y = self.norm1(cells)
        query, key = (elu(guided(self.attention[name], y, guide[:, None]).float()) + 1 for name in ("q", "k"))
        size = (*query.shape[:2], self.heads, -1)
        return query.view(size), key.view(size), self.attention["v"](y).float().view(size)


class Layer(nn.Module):
    """One layer of the aggregator: over space, then over prompts."""

    def __init__(self, shape: CostShape) -> None:
        super().__init__()
        self.swin_block = nn.ModuleDict(
            {
                "block_1": WindowBlock(shape, 0),
                "block_2": WindowBlock(shape, shape.window // 2),
                "guidance_norm": nn.LayerNorm(shape.width),
            }
        )
        self.attention = PromptBlock(shape)

    def over_space(self, x: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Return maps (t, h, w, c) after both blocks of windows; the guide is (h, w, c)."""
        guide = self.swin_block["guidance_norm"](guide)
        refined: torch.Tensor = self.swin_block["block_2"](self.swin_block["block_1"](x, guide), guide)
        return refined


class Finer(nn.Module):
    """Maps at twice the size, with a guide beside them, through two convolutions."""

    def __init__(self, width: int, out: int, guide: int) -> None:
        super().__init__()
        self.own = width - guide
        self.groups = max(1, out // 16)
        self.up = nn.ConvTranspose2d(width, self.own, 2, 2)
        self.conv = nn.ModuleDict(
            {
                "double_conv": nn.ModuleDict(
                    {
                        "0": nn.Conv2d(width, out, 3, padding=1, bias=False),
                        "1": nn.GroupNorm(self.groups, out),
                        "3": nn.Conv2d(out, out, 3, padding=1, bias=False),
                        "4": nn.GroupNorm(self.groups, out),
                    }
                )
            }
        )

    def forward(self, x: torch.Tensor, guide: torch.Tensor) -> torch.Tensor:
        """Return maps (t, out, 2h, 2w) of maps (t, width, h, w) and one guide (1, c, 2h, 2w)."""
        double: Any = self.conv["double_conv"]
        first = double["0"].weight
        x = conv2d(self.up(x), first[:, : self.own], padding=1) + conv2d(guide, first[:, self.own :], padding=1)
        x = double["3"](relu(double["1"](x)))
        return relu(double["4"](x))


class Aggregator(nn.Module):
    """The half of the network that knows prompts; its parameters have the names of the published files."""

    def __init__(self, shape: CostShape, dims: int) -> None:
        super().__init__()
        self.shape = shape
        width, (near, far) = shape.width, shape.decoded
        self.layers: Any = nn.ModuleList([Layer(shape) for _ in range(2)])
        self.conv1 = nn.Conv2d(1, width, 7, padding=3)
        self.guidance_projection = nn.Sequential(nn.Conv2d(dims, width, 3, padding=1), nn.ReLU())
        self.text_guidance_projection = nn.Sequential(nn.Linear(dims, width), nn.ReLU())
        self.decoder_guidance_projection = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(channels, guide, 3, padding=1), nn.ReLU())
                for channels, guide in zip(shape.upsampled, shape.guides, strict=True)
            ]
        )
        self.decoder1 = Finer(width, near, shape.guides[0])
        self.decoder2 = Finer(near, far, shape.guides[1])
        self.head = nn.Conv2d(far, 1, 3, padding=1)

    def forward(self, guides: Guides, text: torch.Tensor, pooling: int) -> torch.Tensor:
        """Return the logits of prompts on a view, (t, 4h, 4w), of unit vectors (t, e).

        Prompts go through in portions, so that memory is bounded; only the maps on the grid are there at once, 295 kB a
        prompt.
        """
        cost = cosines(guides.grid, text)
        chosen = foremost(cost)
        if chosen is None:
            return self.refined(guides, cost, text, pooling)
        logits = cost.new_full((len(text), *guides.fine.shape[:2]), _NO_LOGIT)
        logits[chosen] = self.refined(guides, cost[chosen], text[chosen], pooling)
        return logits

    def refined(self, guides: Guides, cost: torch.Tensor, text: torch.Tensor, pooling: int) -> torch.Tensor:
        """Return logits (t, 4h, 4w) of at most MOST_PROMPTS maps of cosines (t, h, w)."""
        at_once = _PROMPTS_AT_ONCE_ON_A_GPU if cost.device.type == "cuda" else _PROMPTS_AT_ONCE
        x = torch.cat([self.embedded(some) for some in portions(cost, at_once)])
        of_prompt = self.text_guidance_projection(text)
        for layer in self.layers:
            x = torch.cat([layer.over_space(some, guides.coarse) for some in portions(x, at_once)])
            x = layer.attention(x, of_prompt, pooling)
        return torch.cat([self.decoded(some, guides) for some in portions(x, at_once)]).float()

    def embedded(self, cost: torch.Tensor) -> torch.Tensor:
        """Return maps (t, h, w, c) of cosines (t, h, w)."""
        maps: torch.Tensor = self.conv1(cost[:, None]).permute(0, 2, 3, 1).contiguous()
        return maps

    def decoded(self, x: torch.Tensor, guides: Guides) -> torch.Tensor:
        """Return logits (t, 4h, 4w) of maps (t, h, w, c)."""
        middle, fine = (guide.permute(2, 0, 1)[None] for guide in (guides.middle, guides.fine))
        x = self.decoder2(self.decoder1(x.permute(0, 3, 1, 2), middle), fine)
        logits: torch.Tensor = self.head(x)[:, 0]
        return logits


def cosines(grid: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Return the cosine of every prompt with every cell, (t, h, w), of vectors (h, w, e) and unit vectors (t, e)."""
    return (normalize(grid, dim=-1) @ text.T).permute(2, 0, 1)


def foremost(cost: torch.Tensor) -> torch.Tensor | None:
    """Return which of too many prompts go in, in order; None where all do."""
    if len(cost) <= MOST_PROMPTS:
        return None
    return cost.flatten(1).amax(dim=1).topk(MOST_PROMPTS).indices.sort().values
