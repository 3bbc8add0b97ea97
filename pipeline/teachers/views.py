"""What a network says of an image and of other views of it, brought onto one grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.views import View, sizes_of
from superpixels.pooling import upsampled

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]


def over_views(
    look: Callable[[Pixels], Floats],
    image: Pixels,
    views: Sequence[View],
    scaled: Callable[[Pixels, float], Pixels],
) -> Floats:
    """Return the probabilities (c, h, w) of an RGB image (H, W, 3), from itself and from other views of it.

    `look` gives those of an image, on the grid of its size; `scaled` makes an image so many times as large. Views are
    brought back onto the grid of the image, mirrored and bilinearly, and averaged. Where some name a cell otherwise
    than the average does, its probabilities are multiplied by the share of views that agree: what is left is not known.
    Values that are not finite stay so.
    """
    first = look(image)
    if not views:
        return first
    maps = [first]
    for view in views:
        seen = image if view.scale == 1.0 else scaled(image, view.scale)
        found = look(np.ascontiguousarray(seen[:, ::-1]) if view.flip else seen)
        back = found[:, :, ::-1] if view.flip else found
        maps.append(back if back.shape == first.shape else upsampled(back, *first.shape[1:]))
    mean = np.mean(maps, axis=0, dtype=np.float32)
    winner = mean.argmax(axis=0)
    agree = np.sum([one.argmax(axis=0) == winner for one in maps], axis=0)
    return np.asarray(mean * (np.maximum(agree, 1) / len(maps)), np.float32)  # the average may be what none says alone


def joined(images: Sequence[Pixels]) -> Pixels:
    """Return RGB images of several sizes as one array, uint8 (H, W, 3 + n), of the first one's height and width.

    Its first three planes are the first image. The bytes of all others lie behind, one after the other, filled up with
    zeros to whole planes; `by_scale` takes them apart. A single image stays as it is.
    """
    if len(images) == 1:
        return images[0]
    height, width, _ = images[0].shape
    others = np.concatenate([image.ravel() for image in images[1:]])
    filled = np.pad(others, (0, -len(others) % (height * width)))
    return np.concatenate([images[0], filled.reshape(height, width, -1)], axis=2)


def by_scale(batch: torch.Tensor, views: Sequence[View], cell_px: tuple[int, int]) -> dict[float, torch.Tensor]:
    """Return RGB images, uint8 (b, H, W, 3), by their scale, of a batch (b, H, W, 3 + n) that `joined` made.

    The sizes are those that `sizes_of` gives for its height and width, the views and the cells of the network.
    """
    plain, behind = batch[..., :3], batch[..., 3:].flatten(1)
    found, at = {1.0: plain}, 0
    sizes = sizes_of(views, int(batch.shape[1]), int(batch.shape[2]), cell_px)
    for scale, (height, width) in sizes.items():
        if scale != 1.0:
            found[scale] = behind[:, at : at + 3 * height * width].reshape(-1, height, width, 3)
            at += 3 * height * width
    return found


def mean_direction(maps: Iterable[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean direction (b, h, w, d) of features of an image and its views, and how far they agree, (b, h, w).

    Features f_v (b, h_v, w_v, d) may be of any length; the first are those of the image, and all others are laid onto
    its grid bilinearly. With u_v = f_v / |f_v| and m the mean of all u_v, a direction is m / |m|, and the agreement |m|
    is 1 where all views say the same and 0 where they cancel out. Vectors that are not finite stay so.
    """
    from torch.nn.functional import normalize

    every = iter(maps)
    total, number = normalize(next(every), dim=-1), 1
    for found in every:
        unit = normalize(found, dim=-1)
        if unit.shape != total.shape:
            laid = resampled(unit.permute(0, 3, 1, 2), (int(total.shape[1]), int(total.shape[2])))
            unit = normalize(laid.permute(0, 2, 3, 1), dim=-1)
        total, number = total + unit, number + 1
    mean = total / number
    return normalize(mean, dim=-1), mean.norm(dim=-1)


def resampled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return maps (b, c, h, w) on a grid of another size (height, width), bilinearly; see superpixels.pooling."""
    from torch.nn.functional import interpolate

    return interpolate(maps, size=size, mode="bilinear", align_corners=False)
