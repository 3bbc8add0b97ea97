"""Dense text-aligned features of a CLIP image tower, without training.

CLIP aligns only its class token with text, and its last block mixes all patches into that. What makes patches mean
themselves is to change this one block. With queries q, keys k and values v of its (normalised) input, per head of size
e, and o = W_o A v, the modes differ in the attention A:

"sc"         SC-CLIP (Bai et al., "Self-Calibrated CLIP"): patches out of place are filled from their neighbours, alike
             ones are merged, and A = 1/2 softmax(3 (S - mean S)) + 1/2 softmax(k k^T / sqrt(e)), S the cosines of a
             middle layer's patches; then the sum of several layers takes the same way, with keys and values of its
             own, and is added. The default.
"naclip"     A = softmax(k k^T / sqrt(e) + G), where G_ij = exp(-|p_i - p_j|^2 / (2 sigma^2)) for patches at grid
             positions p, and 0 for the class token (Hajimiri et al., "Pay Attention to Your Neighbours").
"clearclip"  A = softmax(q q^T / sqrt(e)) (Lan et al., "ClearCLIP").
"sclip"      A = softmax(q q^T / sqrt(e)) + softmax(k k^T / sqrt(e)), in a block that is otherwise as it was trained
             (Wang et al., "SCLIP").
"maskclip"   A = 1, in a block that is otherwise as it was trained (Zhou et al., "Extract Free Dense Labels from CLIP").
"values"     A = 1 and nothing else of the block: what ClearCLIP's tables and code call MaskCLIP.
"affinity"   A = softmax over {s > 0} of s = 3 (S - 1.2 mean S), S the cosines of the patches of a DINO network, on
             whose grid the result lives (Lan et al., "ProxyCLIP").
"vanilla"    the block as it was trained: what open_clip itself gives for the patches.
"convnext"   for ConvNeXt towers: every cell of the last stage goes through the head as if it were an image.

Except in "sclip", "maskclip" and "vanilla" the block's residual and its MLP are left out.

Tests hold each of them against what its authors' own code gives (tests/pipeline/test_dense_golden.py).
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
from superpixels.windows import Windows

_WITH_RESIDUAL = ("sclip", "maskclip", "vanilla")
_CONVNEXT_STRIDE_PX = 32

_RESIZED_EXACTLY = ("maskclip",)  # by mmsegmentation, which its authors build on; all others share one piece of code


@dataclass(frozen=True)
class Layers:
    """Which blocks of a tower mode "sc" looks at, counted from 1, and how much of the class token it adds.

    Cosines of `merge` merge patches and attend, those of `smooth` smooth the result; `first` to `last` are summed.
    """

    merge: int
    smooth: int
    first: int
    last: int
    of_class_token: float


_PUBLISHED_LAYERS = {
    12: Layers(9, 4, 4, 10, of_class_token=0.3),  # ViT-B/16: SC-CLIP's code at 0417ba9, configs/base_config.py
    24: Layers(17, 7, 9, 19, of_class_token=0.1),  # ViT-L/14: its author in issue 5 of SuleBai/SC-CLIP
}


@dataclass(frozen=True)
class Calibration:
    """Constants of mode "sc", from SC-CLIP's code.

    `outliers` fills patches out of place, and `several` adds the sum of layers; both can be left out.
    """

    outliers: bool = True
    several: bool = True
    threshold: float = 0.4
    gamma: float = 3.0

    @staticmethod
    def layers_of(depth: int) -> Layers:
        """Return the layers of a tower of `depth` blocks; all of them come before its last block.

        Published are those of 12 and 24 blocks. For any other depth the ones of the nearer are scaled, which nobody
        has tried.
        """
        of = min(_PUBLISHED_LAYERS, key=lambda published: abs(published - depth))
        known = _PUBLISHED_LAYERS[of]
        merge, smooth, first, last = (
            min(max(1, round(one * depth / of)), depth - 1)
            for one in (known.merge, known.smooth, known.first, known.last)
        )
        return Layers(merge, smooth, first, last, known.of_class_token)


@dataclass(frozen=True)
class Sliding:
    """Square windows of `window_px` every `stride_px` over an image, and one at the end of each axis."""

    window_px: int
    stride_px: int

    def spans_px(self, height_px: int, width_px: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return first pixel and end of every row and of every column of windows; all that a shorter axis has."""
        rows, columns = (Windows(side, self.window_px, self.stride_px).spans for side in (height_px, width_px))
        return rows, columns

    def __call__(self, features: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of the windows of images (b, c, H, W), laid side by side: (b, rows h, columns w, d).

        `features` gives those of window-sized images, all at once, on any grid (h, w). How pixels mix them:
        superpixels.windows.
        """
        rows, columns = self.spans_px(int(pixels.shape[2]), int(pixels.shape[3]))
        found = features(torch.cat([pixels[:, :, slice(*row), slice(*column)] for row in rows for column in columns]))
        _, height, width, dims = found.shape
        found = found.reshape(len(rows), len(columns), len(pixels), height, width, dims)
        return found.permute(2, 0, 3, 1, 4, 5).reshape(len(pixels), len(rows) * height, len(columns) * width, dims)

    def parts(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return, for each image (b, H, W, 3), what `cells_of` needs to know: `rows_px` and `columns_px`, (b, n, 2)."""
        spans = self.spans_px(int(pixels.shape[1]), int(pixels.shape[2]))
        rows, columns = (
            torch.tensor(axis, dtype=torch.int32, device=pixels.device).expand(len(pixels), -1, -1) for axis in spans
        )
        return {"rows_px": rows, "columns_px": columns}


class DenseTower:
    """An image tower that gives a vector per patch for images of any size that is a multiple of the patch.

    `sigma` belongs to "naclip", `calibration` to "sc", and `dino` to "affinity". With `window_px` the tower sees
    windows of that size every `stride_px`, and the features of all windows lie side by side (see `Sliding`).
    `positions` says how position embeddings reach other sizes (see `positions` below). `unit` scales features to
    length 1. `compiled` has torch compile the tower, for every shape of a batch anew. Raises ConfigError where tower
    and mode do not go together.
    """

    def __init__(
        self,
        towers: Towers,
        mode: str = "sc",
        sigma: float = 5.0,
        bf16: bool = False,
        *,
        positions: str = "official",
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
        self.exact_positions = positions == "exact" or mode in _RESIZED_EXACTLY
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
        self.layers = calibration.layers_of(0 if mode == "convnext" else len(self.visual.transformer.resblocks))
        self.patch_px = self._patch_px()
        if window_px is not None and any(window_px % patch for patch in self.patch_px):
            raise ConfigError(
                f"teacher.window_px is {window_px}, which is no multiple of the patch of {self.patch_px[0]} x "
                f"{self.patch_px[1]} pixels; windows are made of whole patches"
            )
        self.sliding = Sliding(window_px, stride_px or window_px) if window_px else None
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

    def __call__(self, images: torch.Tensor, mirrored: bool = False) -> torch.Tensor:
        """Return the features of RGB images (b, H, W, 3), uint8: float32 (b, h, w, d), one per patch.

        H and W are as `seen_size` gives them. Image pixels of the patch in row i and column j give the vector [i, j];
        with windows, those of every window lie side by side. `mirrored`: the tower sees each image, or each window,
        from right to left, and its features are mirrored back, so that they lie as without it.
        """
        pixels = images.permute(0, 3, 1, 2)
        look = self._mirrored if mirrored else self._whole
        features = look(pixels) if self.sliding is None else self.sliding(look, pixels)
        return normalize(features, dim=-1) if self.unit else features

    def _mirrored(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what `_whole` gives for the mirror images, mirrored back."""
        return self._whole(pixels.flip(3)).flip(2)

    def _whole(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (b, h, w, d) of images (b, 3, H, W) in 0..255 that go through the tower in one piece."""
        size = pixels.shape[2] // self.patch_px[0], pixels.shape[3] // self.patch_px[1]
        if self.mode in ("sc", "affinity") and size[0] * size[1] > MOST_PATCHES:
            raise ConfigError(
                f'teacher.mode "{self.mode}" compares every patch with every other; {size[0]} x {size[1]} are too many '
                f"(at most {MOST_PATCHES}): lower short_side_px, or the scales of augment where it has any, or set "
                "window_px and stride_px"
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
        layers = self.layers
        after: dict[int, torch.Tensor] = {}
        several: torch.Tensor | None = None  # the sum so far, where there is one
        for number, block in enumerate(blocks, 1):
            tokens = block(tokens)
            if self.mode == "sc":
                if number in (layers.merge, layers.smooth):
                    after[number] = tokens
                if self.calibration.several and layers.first <= number <= layers.last:
                    several = tokens if several is None else several + tokens
        if self.mode == "sc":
            merge, smooth = after[layers.merge], after[layers.smooth]
            output = self._calibrated(last, layers, tokens, merge, smooth, several, size)
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
        elif self.mode in ("maskclip", "values"):
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
        layers: Layers,
        tokens: torch.Tensor,
        merge: torch.Tensor,
        smooth: torch.Tensor,
        several: torch.Tensor | None,
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

        def attended(patches: torch.Tensor, cls: torch.Tensor) -> torch.Tensor:
            # Keys are those of the very patches that are mixed: the summed layers attend by their own.
            _, key, value = project(block, block.ln_1(patches))
            alike = weights.to(value.dtype).unsqueeze(1) @ value
            mixed = (alike + scaled_dot_product_attention(key, key, value)) / 2
            return smoothing.to(value.dtype) @ (joined(block, mixed) + layers.of_class_token * cls)

        output = attended(patches, tokens[:, :1])
        if several is not None:
            output = output + attended(several[:, 1:], several[:, :1])
        return output

    def positions(self, size: tuple[int, int]) -> torch.Tensor:
        """Return the position embedding (1 + h w, width) for a grid of that size: the trained one, bicubic.

        "exact" lays the trained grid over the image. "official" does as the code that the authors share: it asks for
        0.1 cells more on either axis (meant to keep rounding from losing a cell), so that the k-th of h cells looks at
        (k + 0.5) g / (h + 0.1) - 0.5 of the g trained ones.
        """
        if size not in self._positions:
            trained = self.visual.positional_embedding.float()
            grid = trained[1:].reshape(1, *self.visual.grid_size, -1).permute(0, 3, 1, 2)
            if size != tuple(self.visual.grid_size):
                with torch.autocast(self.device.type, enabled=False):
                    if self.exact_positions:
                        grid = interpolate(grid, size=size, mode="bicubic", align_corners=False)
                    else:
                        scale = [(to + 0.1) / of for to, of in zip(size, self.visual.grid_size, strict=True)]
                        grid = interpolate(grid, scale_factor=scale, mode="bicubic", align_corners=False)
            self._positions[size] = torch.cat([trained[:1], grid[0].flatten(1).T])
        return self._positions[size]

    def gaussian(self, size: tuple[int, int]) -> torch.Tensor:
        """Return what is added to the logits, (1 + h w, 1 + h w): 1 from a patch to itself, 0 for the class token."""
        if size not in self._gaussians:
            down, across = (torch.arange(length, device=self.device, dtype=torch.float32) for length in size)
            falloff = [torch.exp(-((axis[:, None] - axis) ** 2) / (2 * self.sigma**2)) for axis in (down, across)]
            self._gaussians[size] = pad(torch.kron(falloff[0], falloff[1]), (1, 0, 1, 0))
        return self._gaussians[size]


def seen_size(
    height_px: int, width_px: int, short_side_px: int, patch_px: tuple[int, int], window_px: int | None = None
) -> tuple[int, int]:
    """Return the height and width at which a tower sees an image whose shorter side becomes `short_side_px`.

    What goes through in one piece is rounded to whole patches, which changes the aspect ratio a little (1600 x 900
    becomes 800 x 448). An axis along which windows move keeps its length, as with the authors of the modes.
    """
    scale = short_side_px / min(height_px, width_px)
    height, width = (
        int(side * scale + 0.5)
        if window_px and int(side * scale + 0.5) >= window_px
        else patch * max(1, round(side * scale / patch))
        for side, patch in zip((height_px, width_px), patch_px, strict=True)
    )
    return height, width


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


def device_argmax(
    cosine: npt.NDArray[np.float32],
    down: npt.NDArray[np.float64],
    across: npt.NDArray[np.float64],
    device: torch.device,
    rows_per_strip: int = 64,
) -> npt.NDArray[np.uint16]:
    """Return the best prompt of each pixel, (H, W), of scores (T, h, w) mixed by (H, h) and (W, w), on a device.

    What superpixels.pooling.strip_argmax and superpixels.windows.mixed_argmax give on a CPU, but for pixels whose two
    best prompts differ in the last bits only: a GPU adds in another order.
    """
    scores = torch.from_numpy(np.ascontiguousarray(cosine)).to(device)
    by_row, by_column = (torch.from_numpy(one).to(device, scores.dtype) for one in (down, across))
    wide = scores @ by_column.T
    strips = [
        torch.einsum("ph,thw->tpw", by_row[top : top + rows_per_strip], wide).argmax(dim=0)
        for top in range(0, len(down), rows_per_strip)
    ]
    best: npt.NDArray[np.uint16] = torch.cat(strips).cpu().numpy().astype(np.uint16)
    return best
