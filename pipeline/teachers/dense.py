"""Dense text-aligned features of a CLIP image tower, without training.

CLIP aligns only its class token with text, and its last block mixes all patches into that. What makes patches mean
themselves is to change this one block. With queries q, keys k and values v of its (normalised) input, per head of size
e, and o = W_o A v, the modes differ in the attention A:

"sc"         SC-CLIP (Bai et al., "Self-Calibrated CLIP"): patches out of place are filled from their neighbours, alike
             ones are merged, and A = 1/2 softmax(3 (S - mean S)) + 1/2 softmax(k k^T / sqrt(e)), S the cosines of a
             middle layer's patches; then the sum of several layers takes the same way and is added. The default.
"naclip"     A = softmax(k k^T / sqrt(e) + G), where G_ij = exp(-|p_i - p_j|^2 / (2 sigma^2)) for patches at grid
             positions p, and 0 for the class token (Hajimiri et al., "Pay Attention to Your Neighbours").
"clearclip"  A = softmax(q q^T / sqrt(e)) (Lan et al., "ClearCLIP").
"sclip"      A = softmax(q q^T / sqrt(e)) + softmax(k k^T / sqrt(e)), in a block that is otherwise as it was trained
             (Wang et al., "SCLIP").
"maskclip"   A = 1 (Zhou et al., "Extract Free Dense Labels from CLIP").
"affinity"   A = softmax over {s > 0} of s = 3 (S - 1.2 mean S), S the cosines of the patches of a DINO network, on
             whose grid the result lives (Lan et al., "ProxyCLIP").
"vanilla"    the block as it was trained: what open_clip itself gives for the patches.
"convnext"   for ConvNeXt towers: every cell of the last stage goes through the head as if it were an image.

Except in "sclip" and "vanilla" the block's residual and its MLP are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate, linear, normalize, pad, scaled_dot_product_attention

from manifests.config import ConfigError
from pipeline.teachers.affinity import MOST_PATCHES, anomalies, attention, filled, neighbours, similarity
from pipeline.teachers.loading.towers import ImageNetwork, Towers, pixel_statistics
from superpixels.pooling import bilinear_matrix

_WITH_RESIDUAL = ("sclip", "vanilla")
_CONVNEXT_STRIDE_PX = 32


@dataclass(frozen=True)
class Calibration:
    """Constants of mode "sc", from SC-CLIP's code for ViT-B/16.

    `layers` are, counted from 1: the one whose cosines merge and attend, the one whose cosines smooth the result, and
    the first and last of those that are summed. For another depth than 12 they are scaled. `outliers` fills patches out
    of place, and `several` adds the sum of layers.
    """

    outliers: bool = True
    several: bool = True
    layers: tuple[int, int, int, int] = (9, 4, 4, 10)
    threshold: float = 0.4
    of_class_token: float = 0.3
    gamma: float = 3.0

    def for_depth(self, depth: int) -> tuple[int, int, int, int]:
        """Return the layers of a tower of `depth` blocks; all of them come before its last block."""
        merge, smooth, first, last = (min(max(1, round(one * depth / 12)), depth - 1) for one in self.layers)
        return merge, smooth, first, last


@dataclass(frozen=True)
class Windows:
    """Where windows of `size` cells lie along an axis of `length` cells: every `stride` cells, and one at the end."""

    length: int
    size: int
    stride: int

    @property
    def starts(self) -> list[int]:
        """First cell of each; the windows cover the axis."""
        last = max(self.length - self.size, 0)
        return sorted({*range(0, last, self.stride), last})


def in_windows(
    features: Callable[[torch.Tensor], torch.Tensor],
    pixels: torch.Tensor,
    patch_px: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
) -> torch.Tensor:
    """Return the features (b, h, w, d) of images (b, c, H, W), seen in windows; where these overlap, averaged.

    `features` gives those of window-sized images, all at once; `window` and `stride` are in cells of `patch_px`.
    """
    down, across = patch_px
    size = pixels.shape[2] // down, pixels.shape[3] // across
    rows, columns = (Windows(*axis).starts for axis in zip(size, window, stride, strict=True))
    tall, wide = (min(one, whole) for one, whole in zip(window, size, strict=True))
    places = [(slice(row, row + tall), slice(column, column + wide)) for row in rows for column in columns]
    parts = [
        pixels[:, :, row.start * down : row.stop * down, column.start * across : column.stop * across]
        for row, column in places
    ]
    found = features(torch.cat(parts))
    found = found.reshape(len(places), len(pixels), *found.shape[1:])
    fine = found.shape[2] // tall, found.shape[3] // wide  # "affinity" lives on a finer grid
    total = found.new_zeros(len(pixels), size[0] * fine[0], size[1] * fine[1], found.shape[-1])
    count = found.new_zeros(size[0] * fine[0], size[1] * fine[1], 1)
    for one, (row, column) in zip(found, places, strict=True):
        row, column = (
            slice(axis.start * more, axis.stop * more) for axis, more in zip((row, column), fine, strict=True)
        )
        total[:, row, column] += one
        count[row, column] += 1
    return total / count


class DenseTower:
    """An image tower that gives a vector per patch for images of any size that is a multiple of the patch.

    `sigma` belongs to "naclip", `calibration` to "sc", and `dino` to "affinity". With `window_px` the tower sees
    windows of that size every `stride_px`; where they overlap, their features are averaged. `unit` scales features to
    length 1, those of each window before that. `compiled` has torch compile the tower, for every shape of a batch anew.
    Raises ConfigError where tower and mode do not go together.
    """

    def __init__(
        self,
        towers: Towers,
        mode: str = "sc",
        sigma: float = 5.0,
        bf16: bool = False,
        *,
        unit: bool = False,
        window_px: int | None = None,
        stride_px: int | None = None,
        calibration: Calibration = Calibration(),
        dino: ImageNetwork | None = None,
        compiled: bool = False,
    ) -> None:
        self.visual: Any = towers.model.visual
        self.device = towers.device
        self.mode = mode
        self.sigma = sigma
        self.bf16 = bf16
        self.unit = unit
        self.calibration = calibration
        self.dino = dino
        if (mode == "convnext") != (not hasattr(self.visual, "conv1")):
            raise ConfigError(
                'teacher.mode is "convnext", but teacher.model is a vision transformer; choose another mode'
                if mode == "convnext"
                else f'teacher.mode is "{mode}", which changes the last block of a vision transformer, but '
                'teacher.model is a ConvNeXt; set mode = "convnext"'
            )
        if mode == "affinity" and dino is None:
            raise ConfigError('teacher.mode "affinity" needs a second network; set dino and dino_weights')
        self.patch_px = self._patch_px()
        self.window = self._cells("window_px", window_px)
        self.stride = self._cells("stride_px", stride_px) or self.window
        mean, std = pixel_statistics()
        self._mean = torch.tensor(mean, device=self.device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=self.device).view(3, 1, 1) * 255
        self._positions: dict[tuple[int, int], torch.Tensor] = {}
        self._gaussians: dict[tuple[int, int], torch.Tensor] = {}
        self._features: Any = torch.compile(self._plain, dynamic=False) if compiled else self._plain

    def _patch_px(self) -> tuple[int, int]:
        """Return height and width of the image part that one cell stands for."""
        if self.mode == "convnext":
            return _CONVNEXT_STRIDE_PX, _CONVNEXT_STRIDE_PX
        height, width = self.visual.patch_size
        return int(height), int(width)

    def _cells(self, name: str, size_px: int | None) -> tuple[int, int] | None:
        """Return a size in cells; raises ConfigError unless it is a multiple of the patch."""
        if size_px is None:
            return None
        if any(size_px % patch for patch in self.patch_px):
            raise ConfigError(
                f"teacher.{name} is {size_px}, which is no multiple of the patch of {self.patch_px[0]} x "
                f"{self.patch_px[1]} pixels; windows must begin where patches do"
            )
        return size_px // self.patch_px[0], size_px // self.patch_px[1]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features of RGB images (b, H, W, 3), uint8: float32 (b, h, w, d), one per patch.

        H and W are multiples of the patch. Image pixels of the patch in row i and column j give the vector [i, j].
        """
        pixels = images.permute(0, 3, 1, 2)
        if self.window is None or self.stride is None:
            return self._scaled(self._whole(pixels))
        return self._scaled(
            in_windows(lambda part: self._scaled(self._whole(part)), pixels, self.patch_px, self.window, self.stride)
        )

    def _scaled(self, features: torch.Tensor) -> torch.Tensor:
        return normalize(features, dim=-1) if self.unit else features

    def _whole(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (b, h, w, d) of images (b, 3, H, W) in 0..255 that go through the tower in one piece."""
        size = pixels.shape[2] // self.patch_px[0], pixels.shape[3] // self.patch_px[1]
        if self.mode in ("sc", "affinity") and size[0] * size[1] > MOST_PATCHES:
            raise ConfigError(
                f'teacher.mode "{self.mode}" compares every patch with every other; {size[0]} x {size[1]} are too many '
                f"(at most {MOST_PATCHES}): lower short_side_px, or set window_px and stride_px"
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            positions = None if self.mode == "convnext" else self.positions(size)
            bonus = self.gaussian(size) if self.mode == "naclip" else None
            seen = self.dino(pixels) if self.dino is not None and self.mode == "affinity" else None
            found: torch.Tensor = self._features((pixels - self._mean) / self._std, positions, bonus, seen)
            return found.float()

    def _plain(
        self,
        pixels: torch.Tensor,
        positions: torch.Tensor | None,
        bonus: torch.Tensor | None,
        seen: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the features of normalised images; `bonus` and `seen` are what "naclip" and "affinity" attend by."""
        if positions is None:
            return self._convolved(pixels)
        patches = self.visual.conv1(pixels)
        size = int(patches.shape[2]), int(patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2)
        cls = self.visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        tokens = torch.cat([cls, patches], dim=1) + positions.to(patches.dtype)
        tokens = self.visual.ln_pre(self.visual.patch_dropout(tokens))
        *blocks, last = self.visual.transformer.resblocks
        merge, smooth, first, final = self.calibration.for_depth(len(blocks) + 1)
        layers: dict[int, torch.Tensor] = {}
        several: list[torch.Tensor] = []  # the sum so far, where there is one
        for number, block in enumerate(blocks, 1):
            tokens = block(tokens)
            if self.mode == "sc":
                if number in (merge, smooth):
                    layers[number] = tokens
                if self.calibration.several and first <= number <= final:
                    several = [several[0] + tokens if several else tokens]
        if self.mode == "sc":
            output = self._calibrated(last, tokens, layers[merge], layers[smooth], *several, size=size)
        elif seen is not None:
            output, size = self._by_affinity(last, tokens[:, 1:], size, seen)
        else:
            output = self._mixed(last, tokens, bonus)[:, 1:]
        features: torch.Tensor = self.visual.ln_post(output) @ self.visual.proj
        return features.reshape(len(features), *size, -1)

    def _convolved(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the projection of every cell of the last stage, as the head gives it for an image of one cell."""
        trunk = self.visual.trunk
        cells = trunk.forward_features(pixels).permute(0, 2, 3, 1)
        features: torch.Tensor = self.visual.head(trunk.head(cells.flatten(0, 2)[..., None, None]))
        return features.reshape(*cells.shape[:3], -1)

    def _mixed(self, block: Any, tokens: torch.Tensor, bonus: torch.Tensor | None) -> torch.Tensor:
        """Return the tokens (b, 1 + n, width) after the last block, the class token being a key and a value too."""
        query, key, value = project(block, block.ln_1(tokens))
        if self.mode == "naclip":
            assert bonus is not None
            mixed = scaled_dot_product_attention(key, key, value, attn_mask=bonus.to(key.dtype))
        elif self.mode == "maskclip":
            mixed = value
        elif self.mode == "vanilla":
            mixed = scaled_dot_product_attention(query, key, value)
        else:
            mixed = scaled_dot_product_attention(query, query, value)
            if self.mode == "sclip":
                mixed = mixed + scaled_dot_product_attention(key, key, value)
        output = joined(block, mixed)
        if self.mode in _WITH_RESIDUAL:
            output = tokens + output
            output = output + block.ls_2(block.mlp(block.ln_2(output)))
        return output

    def _by_affinity(
        self, block: Any, patches: torch.Tensor, size: tuple[int, int], seen: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[int, int]]:
        """Return the patches (b, n, width) mixed by how alike `seen` (b, h, w, c) is, on its grid, and its size."""
        fine = int(seen.shape[1]), int(seen.shape[2])
        _, _, value = project(block, block.ln_1(patches))
        batch, heads, _, width = value.shape
        grid = value.transpose(2, 3).reshape(batch, heads * width, *size)
        value = interpolate(grid, size=fine, mode="bilinear", align_corners=False)
        value = value.view(batch, heads, width, -1).transpose(2, 3)
        with torch.autocast(self.device.type, enabled=False):
            weights = attention(similarity(seen.flatten(1, 2)), gamma=3.0, beta=1.2)
        return joined(block, weights.to(value.dtype).unsqueeze(1) @ value), fine

    def _calibrated(
        self,
        block: Any,
        tokens: torch.Tensor,
        merge: torch.Tensor,
        smooth: torch.Tensor,
        several: torch.Tensor | None = None,
        *,
        size: tuple[int, int],
    ) -> torch.Tensor:
        """Return the patches (b, n, width) after the last block by the recipe of SC-CLIP.

        `tokens` enter that block; `merge` and `smooth` come out of earlier ones, and `several` is the sum of some.
        """
        constants = self.calibration
        patches, by_merge = tokens[:, 1:], merge[:, 1:]
        with torch.autocast(self.device.type, enabled=False):
            patches, by_merge = patches.float(), by_merge.float()
            if constants.outliers:
                bad = anomalies(patches)
                patches, by_merge = filled(patches, bad, size), filled(by_merge, bad, size)
            cosine = similarity(by_merge)
            patches = neighbours(cosine, constants.threshold) @ patches
            weights = attention(cosine, constants.gamma, beta=1.0)
            smoothing = neighbours(similarity(smooth[:, 1:]), constants.threshold)
        _, key, value = project(block, block.ln_1(patches))

        def attended(value: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
            alike = weights.to(value.dtype).unsqueeze(1) @ value
            mixed = (alike + scaled_dot_product_attention(key, key, value)) / 2
            return smoothing.to(value.dtype) @ (joined(block, mixed) + constants.of_class_token * cls)

        output = attended(value, tokens[:, :1])
        if several is not None:
            output = output + attended(project(block, block.ln_1(several[:, 1:]))[2], several[:, :1])
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


def project(block: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries, keys and values, each (b, heads, n, e), of normalised tokens (b, n, width)."""
    attn = block.attn
    made = linear(tokens, attn.in_proj_weight, attn.in_proj_bias)
    batch, count, _ = tokens.shape
    query, key, value = made.view(batch, count, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    return query, key, value


def joined(block: Any, mixed: torch.Tensor) -> torch.Tensor:
    """Return the output (b, n, width) of a block's attention for values (b, heads, n, e) that were mixed per head."""
    output: torch.Tensor = block.ls_1(block.attn.out_proj(mixed.transpose(1, 2).flatten(2)))
    return output


def upsampled_argmax(
    cosine: npt.NDArray[np.float32], height_px: int, width_px: int, device: torch.device, rows_per_strip: int = 64
) -> npt.NDArray[np.uint16]:
    """Return the best prompt of each pixel, (H, W), of scores (T, h, w) upsampled bilinearly, computed on a device.

    What superpixels.pooling.strip_argmax gives on a CPU, but for pixels whose two best prompts differ in the last bits
    only: a GPU adds in another order.
    """
    scores = torch.from_numpy(np.ascontiguousarray(cosine)).to(device)
    down, across = (
        torch.from_numpy(bilinear_matrix(size, cells)).to(device, scores.dtype)
        for size, cells in zip((height_px, width_px), cosine.shape[1:], strict=True)
    )
    wide = scores @ across.T
    strips = [
        torch.einsum("ph,thw->tpw", down[top : top + rows_per_strip], wide).argmax(dim=0)
        for top in range(0, height_px, rows_per_strip)
    ]
    best: npt.NDArray[np.uint16] = torch.cat(strips).cpu().numpy().astype(np.uint16)
    return best
