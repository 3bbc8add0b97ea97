"""FC-CLIP's network: a frozen convolutional CLIP, and Mask2Former's decoders that propose masks on its features.

Written after Yu et al., "Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional CLIP".
The decoders are those of transformers. Every query gets two vectors in the space of CLIP's text: one the decoder has
learnt ("inside" the vocabulary of its training), and CLIP's own of the pixels under its mask ("outside").
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate, normalize, relu

from pipeline.teachers.loading.pretrained import mask2former_decoders
from pipeline.teachers.loading.towers import build_clip

MAX_LOGIT_SCALE = 100.0
_LEAST_AREA = 1e-8  # added to areas, as in the reference: an empty mask has vectors of the empty sum


@dataclass(frozen=True)
class HeadShape:
    """Sizes of the decoders, and the channels of CLIP's grids at strides 4, 8, 16 and 32."""

    channels: tuple[int, ...]
    width: int = 256
    heads: int = 8
    queries: int = 250
    encoder_layers: int = 6
    decoder_layers: int = 9
    hidden: int = 2048


HEAD_SHAPES: dict[str, HeadShape] = {
    "convnext_large_d_320": HeadShape((192, 384, 768, 1536)),
    "tiny-convnext": HeadShape(
        (40, 80, 160, 320), width=32, heads=2, queries=12, encoder_layers=1, decoder_layers=3, hidden=64
    ),
}
"""By the name of open_clip's model: that of the published checkpoint, and a small one of random weights."""


class FcClip(nn.Module):
    """CLIP, the decoders on its image tower, and a vector for "no object"."""

    def __init__(self, clip: Any, shape: HeadShape) -> None:
        super().__init__()
        self.clip = clip
        self.shape = shape
        width, dims = shape.width, clip.text_projection.shape[1]
        self.pixel_decoder, self.decoder = mask2former_decoders(
            shape.channels,
            width,
            shape.heads,
            shape.queries,
            shape.encoder_layers,
            shape.decoder_layers,
            shape.hidden,
        )
        self.pooled_proj = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.class_embed = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, dims)])
        self.logit_scale = nn.Parameter(torch.tensor(MAX_LOGIT_SCALE).log())
        self.void_embedding = nn.Embedding(1, dims)

    def forward(self, pixels: torch.Tensor, bf16: bool = False) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return mask logits (b, q, h/4, w/4) and unit vectors inside and outside (b, q, d) of images (b, 3, h, w).

        Sizes are multiples of 32. `bf16` runs CLIP in bfloat16 where torch deems it safe; the decoders, whose offsets
        need the precision, always run in float32.
        """
        grids = []
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=bf16):
            grid = self.clip.visual.trunk.stem(pixels)
            for stage in self.clip.visual.trunk.stages:
                grid = stage(grid)
                grids.append(grid)
        grids = [grid.float() for grid in grids]
        decoded = self.pixel_decoder(grids)
        found = self.decoder(decoded.multi_scale_features, decoded.mask_features)
        masks: torch.Tensor = found.masks_queries_logits[-1]
        queries = found.intermediate_hidden_states[-1].transpose(0, 1)
        inside = self.pooled_proj(pooled(decoded.mask_features, masks)) + queries
        for i, layer in enumerate(self.class_embed):
            inside = layer(relu(inside) if i else inside)
        last = self.clip.visual.trunk.norm_pre(grids[-1])
        coarse = interpolate(masks, size=last.shape[2:], mode="bilinear", align_corners=False)
        return masks, normalize(inside, dim=-1), normalize(self.as_image(pooled(last, coarse)), dim=-1)

    def as_image(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return what CLIP makes of vectors (b, q, c) of its last grid, (b, q, d): each as an image of one cell."""
        visual = self.clip.visual
        cells = vectors.flatten(0, 1)[..., None, None]
        output: torch.Tensor = visual.head(visual.trunk.head(cells)).reshape(*vectors.shape[:2], -1)
        return output

    def scales(self) -> torch.Tensor:
        """Return what cosines are multiplied by before the softmax over prompts: inside, outside."""
        return torch.stack([self.logit_scale, self.clip.logit_scale]).exp().clamp(max=MAX_LOGIT_SCALE)


def pooled(grid: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the mean of a grid (b, c, h, w) over the cells where each mask's logit (b, q, h, w) is positive."""
    inside = (masks > 0).to(grid.dtype)
    total = torch.einsum("bqhw,bchw->bqc", inside, grid)
    return total / (inside.sum(dim=(2, 3))[..., None] + _LEAST_AREA)


def build_fcclip(model: str, seed: int = 0) -> tuple[FcClip, Any]:
    """Return the network on a model of open_clip (or "tiny-convnext") with random weights, and the tokenizer.

    Leaves torch's global random generator as it was.
    """
    clip, tokenizer = build_clip(model, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FcClip(clip, HEAD_SHAPES[model]), tokenizer


UNUSED = ("criterion.empty_weight", "pixel_mean", "pixel_std")
"""Names in the official files that inference does not need: the loss's class weights, and CLIP's known statistics."""

_PARTS = (  # the official name of a part of the network, and ours; the first that fits holds
    ("backbone.clip_model.", "clip."),
    ("sem_seg_head.pixel_decoder.transformer.level_embed", "pixel_decoder.level_embed"),
    ("sem_seg_head.pixel_decoder.transformer.encoder.", "pixel_decoder.encoder."),
    ("sem_seg_head.pixel_decoder.input_proj.", "pixel_decoder.input_projections."),
    ("sem_seg_head.pixel_decoder.mask_features.", "pixel_decoder.mask_projection."),
    ("sem_seg_head.pixel_decoder.", "pixel_decoder."),
    ("sem_seg_head.predictor._mask_pooling_proj.", "pooled_proj."),
    ("sem_seg_head.predictor.class_embed.layers.", "class_embed."),
    ("sem_seg_head.predictor.logit_scale", "logit_scale"),
    ("sem_seg_head.predictor.decoder_norm.", "decoder.decoder.layernorm."),
    ("sem_seg_head.predictor.query_feat.", "decoder.queries_features."),
    ("sem_seg_head.predictor.query_embed.", "decoder.queries_embedder."),
    ("sem_seg_head.predictor.level_embed.", "decoder.level_embed."),
)
_RULES = (  # within a part, whose name the first column matches: a pattern and its replacement
    (r"pixel_decoder\.encoder", r"\.norm1\.", ".self_attn_layer_norm."),
    (r"pixel_decoder\.encoder", r"\.norm2\.", ".final_layer_norm."),
    (r"pixel_decoder\.encoder", r"\.linear([12])\.", r".fc\1."),
    (r"pixel_decoder\.(adapter|layer)_1", r"_1\.weight$", "_1.0.weight"),
    (r"pixel_decoder\.(adapter|layer)_1", r"_1\.norm\.", "_1.1."),
)
_LAYER = re.compile(r"sem_seg_head\.predictor\.transformer_(self_attention|cross_attention|ffn)_layers\.(\d+)\.(.+)")
_MASK_EMBED = re.compile(r"sem_seg_head\.predictor\.mask_embed\.layers\.(\d)\.(.+)")
_OF_LAYER = {
    "self_attention": {"self_attn": "self_attn", "norm": "self_attn_layer_norm"},
    "cross_attention": {"multihead_attn": "cross_attn", "norm": "cross_attn_layer_norm"},
    "ffn": {"linear1": "fc1", "linear2": "fc2", "norm": "final_layer_norm"},
}


def from_official(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of an official checkpoint under the names of `FcClip`; names that it does not know stay.

    Query, key and value of the decoder's self-attention lie in one tensor there, and in three in transformers.
    """
    ours: dict[str, torch.Tensor] = {}
    for official, tensor in tensors.items():
        name = official_to_ours(official)
        found = re.fullmatch(r"(decoder\.decoder\.layers\.\d+\.self_attn)\.in_proj_(weight|bias)", name)
        if found and len(tensor) % 3 == 0:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                ours[f"{found[1]}.{part}_proj.{found[2]}"] = third
        else:
            ours[name] = tensor
    return ours


def official_to_ours(name: str) -> str:
    """Return our name of a tensor; that of a joint projection of a self-attention is still to be split."""
    if layer := _LAYER.fullmatch(name):
        part, _, rest = layer[3].partition(".")
        known = _OF_LAYER[layer[1]]
        return f"decoder.decoder.layers.{layer[2]}.{known[part]}.{rest}" if part in known else name
    if embed := _MASK_EMBED.fullmatch(name):
        return f"decoder.decoder.mask_predictor.mask_embedder.{embed[1]}.0.{embed[2]}"
    for official, ours in _PARTS:
        if name.startswith(official):
            name = ours + name.removeprefix(official)
            break
    for part, pattern, replacement in _RULES:
        if re.match(part, name):
            name = re.sub(pattern, replacement, name)
    return name
