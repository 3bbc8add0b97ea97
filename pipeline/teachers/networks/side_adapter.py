"""SAN's network: a small vision transformer beside a frozen CLIP, which proposes masks and tells CLIP where to look.

Written after Xu et al., "Side Adapter Network for Open-Vocabulary Semantic Segmentation". CLIP's first blocks feed the
side network; that gives soft masks and, per query and head, a bias over the patches; CLIP's last blocks then recognise
each query with a token of its own, whose attention the bias steers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import (
    adaptive_max_pool2d,
    gelu,
    interpolate,
    layer_norm,
    normalize,
    relu,
    scaled_dot_product_attention,
)

from pipeline.teachers.dense import joined, project
from pipeline.teachers.loading.towers import build_clip

_EPS = 1e-6  # of all layer norms of the side network


@dataclass(frozen=True)
class SideShape:
    """Sizes of a side network: those of the published checkpoints, or of the tiny one.

    CLIP's grid after block `taps[i]` (0: before the first) goes into the side network before its block 1 + i. After
    `taps[-1]` blocks CLIP is cut in two. `clip_scale` is the size of CLIP's image relative to the side network's.
    """

    taps: tuple[int, ...]
    clip_scale: float
    width: int = 240
    depth: int = 8
    heads: int = 6
    patch_px: int = 16
    grid: int = 40
    queries: int = 100
    hidden: int = 256


SIDE_SHAPES: dict[str, SideShape] = {
    "ViT-B-16-quickgelu": SideShape(taps=(0, 3, 6, 9), clip_scale=0.5),
    "ViT-L-14-336-quickgelu": SideShape(taps=(0, 6, 12, 18), clip_scale=0.7),
    "tiny": SideShape(taps=(0, 1, 2), clip_scale=0.5, width=24, depth=3, heads=2, grid=4, queries=8, hidden=16),
}
"""By the name of open_clip's model that the side network stands beside."""


class Block(nn.Module):
    """A transformer block that normalises first; parameters are named as timm names them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        joint = self.attn["qkv"](self.norm1(tokens))
        query, key, value = joint.reshape(*joint.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.attn["proj"](mixed)
        output: torch.Tensor = tokens + self.mlp["fc2"](gelu(self.mlp["fc1"](self.norm2(tokens))))
        return output


class Mlp(nn.Module):
    """Three layers with ReLU between, on vectors or, by 1 x 1 convolutions, on grids."""

    def __init__(self, width: int, hidden: int, out: int, on_grid: bool) -> None:
        super().__init__()
        sizes = ((width, hidden), (hidden, hidden), (hidden, out))
        self.layers = nn.ModuleList([nn.Conv2d(*size, 1) if on_grid else nn.Linear(*size) for size in sizes])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = relu(layer(x))
        output: torch.Tensor = self.layers[-1](x)
        return output


class GridNorm(nn.LayerNorm):
    """Layer norm over the channels of a grid (b, c, h, w)."""

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        last = layer_norm(grid.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)


class SideNetwork(nn.Module):
    """The side network alone; its parameters have the names of the published checkpoints."""

    def __init__(self, shape: SideShape, clip_width: int, clip_heads: int) -> None:
        super().__init__()
        self.shape = shape
        width, hidden = shape.width, shape.hidden
        self.query_embed = nn.Parameter(torch.randn(1, shape.queries, width) * 0.02)
        self.query_pos_embed = nn.Parameter(torch.randn(1, shape.queries, width) * 0.02)
        self.vit_model: Any = nn.Module()
        self.vit_model.pos_embed = nn.Parameter(torch.randn(1, shape.grid**2, width) * 0.02)
        self.vit_model.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, shape.patch_px, shape.patch_px)})
        self.vit_model.blocks = nn.ModuleList([Block(width, shape.heads) for _ in range(shape.depth)])
        self.fusion_layers: Any = nn.ModuleDict()
        for i in range(len(shape.taps)):
            fusion: Any = nn.Module()
            fusion.input_proj = nn.Sequential(GridNorm(clip_width, eps=_EPS), nn.Conv2d(clip_width, width, 1))
            self.fusion_layers[f"layer_{i}"] = fusion
        self.mask_decoder: Any = nn.ModuleDict(
            {
                "query_mlp": Mlp(width, hidden, hidden, on_grid=False),
                "pix_mlp": Mlp(width, hidden, hidden, on_grid=True),
                "attn_mlp": Mlp(width, hidden, hidden * clip_heads, on_grid=True),
                "bias_scaling": nn.Linear(1, 1),
            }
        )

    def forward(self, pixels: torch.Tensor, clip_grids: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mask logits (b, q, h, w) and what is added to CLIP's attention (b, heads, q, h, w).

        `pixels` are normalised images (b, 3, h * patch, w * patch), `clip_grids` CLIP's (b, width, any, any) by tap.
        """
        patches = self.vit_model.patch_embed["proj"](pixels)
        size = patches.shape[2:]
        side = self.shape.grid
        trained = self.vit_model.pos_embed.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if trained.shape[2:] != size:
            trained = interpolate(trained.float(), size=size, mode="bicubic", align_corners=False)
        positions = torch.cat([self.query_pos_embed, trained.flatten(2).transpose(1, 2)], dim=1)
        n = self.shape.queries
        queries = self.query_embed.expand(len(pixels), -1, -1)
        tokens = torch.cat([queries, patches.flatten(2).transpose(1, 2)], dim=1) + positions
        for i, block in enumerate(self.vit_model.blocks):
            if i > 0:
                tokens = tokens + positions
            if i < len(clip_grids):
                tokens = torch.cat([tokens[:, :n], tokens[:, n:] + self.fused(i, clip_grids[i], size)], dim=1)
            tokens = block(tokens)
        grid = tokens[:, n:].transpose(1, 2).reshape(len(tokens), -1, *size)
        decoder = self.mask_decoder
        query = decoder["query_mlp"](tokens[:, :n])
        masks = torch.einsum("bqc,bchw->bqhw", query, decoder["pix_mlp"](grid))
        steered = decoder["attn_mlp"](grid).reshape(len(tokens), -1, self.shape.hidden, *size)
        bias = torch.einsum("bqc,bnchw->bnqhw", query, steered)
        return masks, decoder["bias_scaling"](bias[..., None])[..., 0]

    def fused(self, i: int, clip_grid: torch.Tensor, size: torch.Size) -> torch.Tensor:
        """Return what CLIP's grid at tap i adds to the patches (b, n, width)."""
        projected = self.fusion_layers[f"layer_{i}"].input_proj(clip_grid)
        return interpolate(projected, size=size, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)


class San(nn.Module):
    """CLIP cut in two with the side network between; its text tower; and a vector for "none of the prompts"."""

    def __init__(self, clip: Any, shape: SideShape) -> None:
        super().__init__()
        self.clip = clip
        width = len(clip.visual.class_embedding)
        self.side_adapter_network = SideNetwork(shape, width, clip.visual.transformer.resblocks[0].attn.num_heads)
        self.bg_embed = nn.Parameter(torch.randn(1, clip.visual.proj.shape[1]) * 0.02)

    @property
    def shape(self) -> SideShape:
        """The sizes of the side network."""
        return self.side_adapter_network.shape

    @property
    def logit_scale(self) -> torch.Tensor:
        """What cosines are multiplied by before the softmax over prompts."""
        scale: torch.Tensor = self.clip.logit_scale.exp()
        return scale

    def forward(self, pixels: torch.Tensor, clip_pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mask logits (b, q, h, w) and unit vectors (b, q, d) of the queries of normalised images.

        `pixels` (b, 3, H, W) are a multiple of the side network's patch; what exceeds CLIP's last whole patch in
        `clip_pixels` is cut off.
        """
        tokens, size = stem(self.clip.visual, clip_pixels)
        blocks = self.clip.visual.transformer.resblocks
        taps, grids = self.shape.taps, []
        for i in range(taps[-1] + 1):
            if i > 0:
                tokens = blocks[i - 1](tokens)
            if i in taps:
                grids.append(tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, *size))
        masks, bias = self.side_adapter_network(pixels, grids)
        steer = adaptive_max_pool2d(bias.flatten(1, 2), size).reshape(*bias.shape[:3], -1)
        return masks, self.recognise(tokens, steer)

    def recognise(self, tokens: torch.Tensor, steer: torch.Tensor) -> torch.Tensor:
        """Return a unit vector per query, (b, q, d), from tokens (b, 1 + n, width) and the bias (b, heads, q, n).

        Every query begins as a copy of the class token. Class token and patches do not see it.
        """
        visual = self.clip.visual
        queries = tokens[:, :1].expand(-1, steer.shape[2], -1)
        remaining = visual.transformer.resblocks[self.shape.taps[-1] :]
        for i, block in enumerate(remaining):
            queries = query_block(block, queries, tokens[:, 1:], steer)
            if i + 1 < len(remaining):
                tokens = block(tokens)
        return normalize(visual.ln_post(queries) @ visual.proj, dim=-1)


def stem(visual: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return what CLIP's first block gets, (b, 1 + h w, width), and the grid's size, for images of any size."""
    patches = visual.conv1(pixels)
    size = int(patches.shape[2]), int(patches.shape[3])
    trained = visual.positional_embedding.float()
    grid = trained[1:].T.reshape(1, -1, *visual.grid_size)
    if grid.shape[2:] != size:
        grid = interpolate(grid, size=size, mode="bicubic", align_corners=False)
    positions = torch.cat([trained[:1], grid[0].flatten(1).T])
    cls = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1) + positions.to(patches.dtype)
    return visual.ln_pre(tokens), size


def query_block(block: Any, queries: torch.Tensor, patches: torch.Tensor, steer: torch.Tensor) -> torch.Tensor:
    """Return the query tokens (b, q, width) after one of CLIP's blocks.

    Each attends to itself and to all patches (b, n, width), to these with `steer` (b, heads, q, n) added. This equals
    one attention over queries, class token and patches together, all else masked, in a fraction of its memory.
    """
    query, own_key, own_value = project(block, block.ln_1(queries))
    _, key, value = project(block, block.ln_1(patches))
    scale = query.shape[-1] ** -0.5
    own = (query * own_key).sum(dim=-1, keepdim=True) * scale
    weight = torch.cat([own, query @ key.transpose(-2, -1) * scale + steer], dim=-1).softmax(dim=-1).to(value.dtype)
    queries = queries + joined(block, weight[..., :1] * own_value + weight[..., 1:] @ value)
    output: torch.Tensor = queries + block.ls_2(block.mlp(block.ln_2(queries)))
    return output


def build_san(model: str, seed: int = 0) -> tuple[San, Any]:
    """Return the network beside a model of open_clip (or "tiny") with random weights, and the tokenizer.

    Leaves torch's global random generator as it was.
    """
    clip, tokenizer = build_clip(model, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return San(clip, SIDE_SHAPES[model]), tokenizer


UNUSED = ("criterion.empty_weight", "ov_classifier.attn_mask")
"""Names in the official files that inference does not need: the loss's class weights, and a causal mask (derivable)."""


def from_official(tensors: dict[str, torch.Tensor], shape: SideShape) -> dict[str, torch.Tensor]:
    """Return the tensors of an official checkpoint under the names of `San`; names that it does not know stay.

    The official code keeps CLIP in three parts: the blocks before the cut, those after it, and the text tower.
    """
    return {official_to_ours(name, shape): tensor for name, tensor in tensors.items()}


def official_to_ours(name: str, shape: SideShape) -> str:
    """Return our name of a tensor."""
    part, _, rest = name.partition(".")
    if name == "ov_classifier.bg_embed":
        return "bg_embed"
    if part == "ov_classifier" and name not in UNUSED:
        return f"clip.{rest}"
    if part not in ("clip_visual_extractor", "clip_rec_head"):
        return name
    if rest.startswith("resblocks."):
        _, number, rest = rest.split(".", 2)
        first = shape.taps[-1] if part == "clip_rec_head" else 0
        return f"clip.visual.transformer.resblocks.{first + int(number)}.{rest}"
    return f"clip.visual.{rest}"
