"""What the teachers of mask queries share: how large their images are, and how mask logits are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.frame import Camera
from superpixels.mask_queries import MaskQueries, sampling

if TYPE_CHECKING:
    import torch

MASK_FORMATS = ("uint8", "float16")
MASK_STEP = 0.1
"""Mask logits kept as uint8 are whole multiples of this, from -12.8 to 12.7: the sigmoid is off by 0.0125 at most."""

DIVISOR_PX = 32
"""Images that go into a network are padded, or resized, to multiples of this."""


@dataclass(frozen=True)
class ImageSize:
    """How large an image goes into a network, and how much of that is image and not padding; height, width.

    `two_steps` upsamples masks as the references do: to the padded image, and what is left without padding to the final
    size. Otherwise the grid is sampled at the final pixels at once.
    """

    image_px: tuple[int, int]
    padded_px: tuple[int, int]
    two_steps: bool

    @classmethod
    def whole(cls, short_side_px: int, height_px: int, width_px: int) -> ImageSize:
        """Return sizes that need no padding, the shorter side about as asked for; the aspect ratio changes a little."""
        scale = short_side_px / min(height_px, width_px) / DIVISOR_PX
        height, width = (DIVISOR_PX * max(1, round(side * scale)) for side in (height_px, width_px))
        return cls((height, width), (height, width), two_steps=False)

    @classmethod
    def padded(cls, height_px: int, width_px: int) -> ImageSize:
        """Return the sizes of an image that is padded at its right and bottom, as the references do."""
        height, width = (-(-side // DIVISOR_PX) * DIVISOR_PX for side in (height_px, width_px))
        return cls((height_px, width_px), (height, width), two_steps=True)

    def queries(
        self,
        camera: Camera,
        scale: float,
        logit: npt.NDArray[np.float32],
        query: npt.NDArray[np.integer[Any]] | None,
        n_queries: int,
    ) -> MaskQueries:
        """Return masks on a grid as they lie on a label map of `scale` times the camera's image."""
        rows, columns = (
            sampling(max(1, round(side * scale)), cells, *((padded, kept) if self.two_steps else ()))
            for side, cells, padded, kept in zip(
                (camera.height_px, camera.width_px), logit.shape[1:], self.padded_px, self.image_px, strict=True
            )
        )
        return MaskQueries(logit, query, n_queries, rows, columns)


def resized(image: npt.NDArray[np.uint8], size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return an RGB image (H, W, 3) at another size (height, width): bicubic, antialiased, on 8-bit pixels."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size_px[::-1], Image.Resampling.BICUBIC))


def network_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return RGB images, uint8 (b, H, W, 3), as CLIP takes them, (b, 3, H, W), padded with zeros where they must be."""
    import torch
    from torch.nn.functional import pad

    from pipeline.teachers.towers import pixel_statistics

    mean, std = (torch.tensor(value, device=images.device).view(3, 1, 1) * 255 for value in pixel_statistics())
    pixels = (images.permute(0, 3, 1, 2) - mean) / std
    down, right = (-side % DIVISOR_PX for side in pixels.shape[2:])
    return pad(pixels, (0, right, 0, down))


def keep_logits(masks: npt.NDArray[np.floating[Any]], kind: str) -> npt.NDArray[Any]:
    """Return mask logits as they are cached; what is beyond the range becomes its end, where the sigmoid is 0 or 1."""
    if kind == "float16":
        limit = float(np.finfo(np.float16).max)
        halves: npt.NDArray[np.float16] = np.clip(masks, -limit, limit).astype(np.float16)
        return halves
    codes: npt.NDArray[np.uint8] = np.clip(np.rint(masks / MASK_STEP) + 128, 0, 255).astype(np.uint8)
    return codes


def logits_kept(masks: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return mask logits from how they are cached."""
    logits = masks.astype(np.float32)
    return (logits - 128) * np.float32(MASK_STEP) if masks.dtype == np.uint8 else logits
