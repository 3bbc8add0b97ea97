"""CAT-Seg's network, second generation (v2): CLIP's tower and what guides, beside the aggregator that knows prompts.

Written after Cho et al., "CAT-Seg: Cost Aggregation for Open-Vocabulary Semantic Segmentation" (CVPR 2024), and after
what the official code computes on known weights. CLIP sees a square image and gives a vector per cell; the patches of
two earlier blocks, upsampled, guide the decoder. Prompts meet that in the aggregator only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate

from manifests.config import ConfigError
from pipeline.teachers.dense import joined, project
from pipeline.teachers.loading.towers import build_clip, clip_config
from pipeline.teachers.networks.aggregator import SHAPES, Aggregator, CostShape, portions
from pipeline.teachers.networks.side_adapter import stem
from superpixels.windows import Windows

_PIXELS_AT_ONCE = 2**23  # of maps in full resolution, 34 MB


class CatSeg(nn.Module):
    """CLIP and the aggregator, with what upsamples CLIP's patches to guide the decoder."""

    def __init__(self, clip: Any, aggregator: Aggregator) -> None:
        super().__init__()
        self.clip = clip
        self.transformer = aggregator
        width, (middle, fine) = len(clip.visual.class_embedding), aggregator.shape.upsampled
        self.upsample1 = nn.ConvTranspose2d(width, middle, 2, 2)
        self.upsample2 = nn.ConvTranspose2d(width, fine, 4, 4)

    @property
    def shape(self) -> CostShape:
        """The network's sizes."""
        return self.transformer.shape

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the parts of `Guides` for normalised square images (b, 3, s, s), each (b, h, w, channels)."""
        tokens, taps = patch_tokens(self.clip.visual, pixels, self.shape.taps)
        size = (self.shape.grid, self.shape.grid)
        grid, *tapped = (one[:, 1:].transpose(1, 2).reshape(len(one), -1, *size) for one in (tokens, *taps))
        first, second = self.transformer.decoder_guidance_projection
        parts = (
            grid,
            self.transformer.guidance_projection(grid),
            first(self.upsample1(tapped[0])),
            second(self.upsample2(tapped[1])),
        )
        return tuple(part.permute(0, 2, 3, 1) for part in parts)


def patch_tokens(visual: Any, pixels: torch.Tensor, taps: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the projected tokens (b, 1 + n, e) of normalised images, and those after the blocks of `taps`.

    The last block's attention looks at nothing but each token itself. What v2 adds to that is the class token, to all
    of them (the first generation: each token's own residual).
    """
    tokens, _ = stem(visual, pixels)
    *blocks, last = visual.transformer.resblocks
    tapped = []
    for number, block in enumerate(blocks, 1):
        tokens = block(tokens)
        if number in taps:
            tapped.append(tokens)
    _, _, value = project(last, last.ln_1(tokens))
    output = joined(last, value) + tokens[:, :1]
    output = output + last.ls_2(last.mlp(last.ln_2(output)))
    return visual.ln_post(output) @ visual.proj, tapped


def build_aggregator(model: str, seed: int = 0) -> Aggregator:
    """Return the half that knows prompts, for a model of open_clip (or "tiny"), with random weights on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Aggregator(SHAPES[model], clip_config(model)["embed_dim"])


def build_catseg(model: str, seed: int = 0) -> tuple[CatSeg, Any]:
    """Return the whole network with random weights, its aggregator being that of `build_aggregator`; and the tokenizer.

    Leaves torch's global random generator as it was.
    """
    clip, tokenizer = build_clip(model, seed=seed)
    aggregator = build_aggregator(model, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CatSeg(clip, aggregator), tokenizer


_PREFIX = "sem_seg_head.predictor."
_SPLIT = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
UNUSED = tuple(f"transformer.layers.{layer}.swin_block.block_2.attn_mask" for layer in range(2))
"""Names that inference does not need: the mask of shifted windows is derivable."""


def from_official(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of an official file under the names of `CatSeg`; names that it does not know stay.

    The files keep three matrices where open_clip has the joint one, though one joint bias. Raises ConfigError for a
    file of the first generation.
    """
    conv = tensors.get(f"{_PREFIX}transformer.conv1.weight")
    if conv is not None and conv.ndim == 4 and conv.shape[1] > 1:
        raise ConfigError(
            f"teacher.weights: the file is of CAT-Seg's first generation ({conv.shape[1]} sentences per prompt, guided "
            "by a Swin transformer), which is not run here. Take a file of the second (model_base.pth, "
            'model_large.pth), or read the masks that the official script writes, with teacher "artifacts"'
        )
    ours: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix(_PREFIX)
        if name.startswith("clip_model."):
            name = f"clip.{name.removeprefix('clip_model.')}"
        ours[name] = tensor
    for name in [name for name in ours if name.endswith(_SPLIT[0])]:
        stem_of = name.removesuffix(_SPLIT[0])
        parts = [stem_of + part for part in _SPLIT]
        if all(part in ours for part in parts):
            ours[f"{stem_of}in_proj_weight"] = torch.cat([ours[part] for part in parts])
            for part in parts:
                del ours[part]
    return ours


def of_aggregator(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of `Aggregator` among those of `CatSeg`."""
    prefix = "transformer."
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix) and name not in UNUSED
    }


def window_corners(side: int, window: int, stride: int) -> list[tuple[int, int]]:
    """Return the upper left corner (row, column) of every window of a square, row by row."""
    starts = Windows(side, window, stride).starts
    return [(row, column) for row in starts for column in starts]


def on_canvas(windows: torch.Tensor, side: int, stride: int) -> torch.Tensor:
    """Return windows (n, c, s, s), in the order of `window_corners`, laid on a square (c, side, side) and averaged."""
    size = windows.shape[-1]
    total = windows.new_zeros(windows.shape[1], side, side)
    count = windows.new_zeros(side, side)
    for window, (row, column) in zip(windows, window_corners(side, size, stride), strict=True):
        place = slice(row, row + size), slice(column, column + size)
        total[:, *place] += window
        count[place] += 1
    return total / count


def probability_maps(logits: torch.Tensor, size_px: tuple[int, int], shape: CostShape) -> torch.Tensor:
    """Return the probability of prompts at every pixel, (t, H, W), from logits (views, t, 4h, 4w).

    One view is the whole image. Of several, the last is that, and the others are windows of it: these are averaged
    where they overlap, and the mean of both is taken, as in the authors' sliding evaluation. Probabilities are what is
    interpolated to pixels, not logits.
    """
    if len(logits) == 1:
        return interpolate(logits.sigmoid(), size=size_px, mode="bilinear", align_corners=False)[0]
    kernel, canvas = shape.kernel_px, shape.canvas_px
    maps = interpolate(logits, size=(kernel, kernel), mode="bilinear", align_corners=False).sigmoid()
    whole = interpolate(maps[-1:], size=(canvas, canvas), mode="bilinear", align_corners=False)
    both = (on_canvas(maps[:-1], canvas, shape.stride_px)[None] + whole) / 2
    return interpolate(both, size=size_px, mode="bilinear", align_corners=False)[0]


def likeliest(logits: torch.Tensor, size_px: tuple[int, int], shape: CostShape) -> tuple[torch.Tensor, torch.Tensor]:
    """Return of every pixel the likeliest prompt and its probability, each (H, W), from logits (views, t, 4h, 4w).

    Of equals the first wins. Prompts are compared a few at a time, so that memory does not grow with their number.
    """
    pixels = max(size_px[0] * size_px[1], len(logits) * shape.kernel_px**2 if len(logits) > 1 else 0)
    best = torch.zeros(size_px, dtype=torch.long, device=logits.device)
    probability = torch.full(size_px, -1.0, device=logits.device)
    first = 0
    for some in portions(logits, max(1, _PIXELS_AT_ONCE // pixels), dim=1):
        value, winner = probability_maps(some, size_px, shape).max(dim=0)
        better = value > probability
        best = torch.where(better, winner + first, best)
        probability = torch.where(better, value, probability)
        first += some.shape[1]
    return best, probability
