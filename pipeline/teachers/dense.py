"""Dense text-aligned features from the last block of a CLIP vision transformer, without training.

CLIP aligns only its class token with text, and its last block mixes all patches into that. What makes patches mean
themselves is to change this one block: with keys k and values v of its (normalised) input, per head of size e,

"naclip"    o = W_o softmax(k k^T / sqrt(e) + G) v, where G_ij = exp(-|p_i - p_j|^2 / (2 sigma^2)) for patches at grid
            positions p, and 0 for the class token (Hajimiri et al., "Pay Attention to Your Neighbours"); the residual
            and the block's MLP are left out.
"maskclip"  o = W_o v, likewise without residual and MLP (Zhou et al., "Extract Free Dense Labels from CLIP").
"vanilla"   the block as it was trained: what open_clip itself gives for the patches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import interpolate, linear, pad, scaled_dot_product_attention

from manifests.config import ConfigError
from pipeline.teachers.towers import Towers, pixel_statistics

MODES = ("naclip", "maskclip", "vanilla")


class DenseTower:
    """An image tower that gives a vector per patch for images of any size that is a multiple of the patch."""

    def __init__(self, towers: Towers, mode: str = "naclip", sigma: float = 5.0, bf16: bool = False) -> None:
        self.visual: Any = towers.model.visual
        if not hasattr(self.visual, "conv1"):
            raise ConfigError("teacher.model is no vision transformer, and has no last block to read patches from")
        self.device = towers.device
        self.mode = mode
        self.sigma = sigma
        self.bf16 = bf16
        mean, std = pixel_statistics()
        self._mean = torch.tensor(mean, device=self.device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=self.device).view(3, 1, 1) * 255
        self._positions: dict[tuple[int, int], torch.Tensor] = {}
        self._gaussians: dict[tuple[int, int], torch.Tensor] = {}

    @property
    def patch_px(self) -> tuple[int, int]:
        """Height and width of a patch."""
        height, width = self.visual.patch_size
        return int(height), int(width)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of RGB images (b, H, W, 3), uint8: float32 (b, h, w, d), one per patch, of any length.

        H and W are multiples of the patch. Image pixels of the patch in row i and column j give the vector [i, j].
        """
        pixels = images.permute(0, 3, 1, 2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.features((pixels - self._mean) / self._std).float()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (b, h, w, d) of normalised images (b, 3, H, W)."""
        patches = self.visual.conv1(pixels)
        size = int(patches.shape[2]), int(patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        cls = self.visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([cls, patches], dim=1) + self.positions(size).to(patches.dtype)
        tokens = self.visual.ln_pre(self.visual.patch_dropout(tokens))
        *blocks, last = self.visual.transformer.resblocks
        for block in blocks:
            tokens = block(tokens)
        tokens = self.visual.ln_post(self.last_block(last, tokens, size))
        features: torch.Tensor = tokens[:, 1:] @ self.visual.proj
        return features.reshape(len(features), *size, -1)

    def last_block(self, block: Any, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Return the tokens (b, 1 + h w, width) after the last block in the chosen mode."""
        attention = block.attn
        projected = linear(block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias)
        batch, count, _ = tokens.shape
        query, key, value = projected.view(batch, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.mode == "naclip":
            mixed = scaled_dot_product_attention(key, key, value, attn_mask=self.gaussian(size).to(key.dtype))
        elif self.mode == "maskclip":
            mixed = value
        else:
            mixed = scaled_dot_product_attention(query, key, value)
        output: torch.Tensor = block.ls_1(attention.out_proj(mixed.transpose(1, 2).flatten(2)))
        if self.mode == "vanilla":
            output = tokens + output
            output = output + block.ls_2(block.mlp(block.ln_2(output)))
        return output

    def positions(self, size: tuple[int, int]) -> torch.Tensor:
        """Return the position embedding (1 + h w, width) for a grid of that size: the trained one, bicubic."""
        if size not in self._positions:
            trained = self.visual.positional_embedding.float()
            grid = trained[1:].reshape(1, *self.visual.grid_size, -1).permute(0, 3, 1, 2)
            with torch.autocast(self.device.type, enabled=False):
                grid = interpolate(grid, size=size, mode="bicubic", align_corners=False)
            self._positions[size] = torch.cat([trained[:1], grid[0].flatten(1).T])
        return self._positions[size]

    def gaussian(self, size: tuple[int, int]) -> torch.Tensor:
        """Return what is added to the logits, (1 + h w, 1 + h w): 1 from a patch to itself, 0 for the class token."""
        if size not in self._gaussians:
            down, across = (torch.arange(length, device=self.device, dtype=torch.float32) for length in size)
            falloff = [torch.exp(-((axis[:, None] - axis) ** 2) / (2 * self.sigma**2)) for axis in (down, across)]
            self._gaussians[size] = pad(torch.kron(falloff[0], falloff[1]), (1, 0, 1, 0))
        return self._gaussians[size]
