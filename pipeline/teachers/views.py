"""What a network says of an image and of other views of it, as one map of probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.views import View
from superpixels.pooling import upsampled

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
