"""Images of raw cameras as a pinhole would have taken them, for networks that were taught by such; and the way back.

What a network finds in the rectified image is looked up pixel by pixel of the raw one, where points land: no pair
moves. Pixels of the raw image that the pinhole's image of the same size and camera matrix does not show get no label.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

from manifests.recipe import Recipe
from pipeline.frame import Camera, Frame
from pipeline.lenses import Float64, Lens, grid, pinhole_places, raw_places
from superpixels.segments import Segments

INDEX_COLUMNS = ("intrinsics", "lens", "distortion")
"""What rectified images depend on beside the raw ones."""


def index_columns(recipe: Recipe) -> tuple[str, ...]:
    """Return what rows that a teacher makes depend on of table `index`, where it is shown rectified images."""
    return INDEX_COLUMNS if recipe.data.rectify else ()


def shown(recipe: Recipe, frame: Frame) -> Frame:
    """Return the frame as the recipe's teacher is shown it."""
    if not recipe.data.rectify:
        return frame
    return replace(frame, cameras=tuple(replace(camera, rectify=True) for camera in frame.cameras))


def in_raw_image(view: Segments, camera: Camera) -> Segments:
    """Return the segments of a rectified image in the raw one, with no label where the rectified one shows nothing."""
    return moved(view, places(camera, view.height_px, view.width_px, back=True)) if camera.bends else view


def in_rectified_image(view: Segments, camera: Camera) -> Segments:
    """Return the segments of a raw image in the rectified one."""
    return moved(view, places(camera, view.height_px, view.width_px, back=False)) if camera.bends else view


def values_in_raw_image(values: npt.NDArray[Any], camera: Camera) -> npt.NDArray[Any]:
    """Return numbers of a rectified image, (..., h, w) at any resolution, at the places of the raw one.

    They are mixed bilinearly, and 0 where the rectified image shows nothing.
    """
    if not camera.bends:
        return values
    height, width = values.shape[-2:]
    row, column, inside = places(camera, height, width, back=True)
    layers = values.reshape(-1, height, width).astype(np.float32)
    found = [scipy.ndimage.map_coordinates(one, np.stack([row, column]), order=1, mode="nearest") for one in layers]
    return np.where(inside, np.stack(found), 0).reshape(values.shape)


Places = tuple[Float64, Float64, npt.NDArray[np.bool_]]


def moved(view: Segments, where: Places) -> Segments:
    """Return segments whose label map has at every pixel what it had at another place, and nothing where there is
    none.
    """
    row, column, inside = where
    height, width = view.height_px, view.width_px
    found = view.label_map()[
        np.clip(np.rint(row), 0, height - 1).astype(np.int64), np.clip(np.rint(column), 0, width - 1).astype(np.int64)
    ]
    label_map = np.where(inside, found, 0)
    left = np.bincount(label_map.ravel(), minlength=len(view) + 1)[1:] > 0
    plain = Segments.from_label_map(label_map, view.prompt_id, view.score, left[:, None].astype(np.float32))
    return replace(plain, vector=np.where(left[:, None], view.vector, np.float16(0)))  # rows read without have none


def places(camera: Camera, height: int, width: int, back: bool) -> Places:
    """Return rows and columns (h, w) of a map over one image of a camera, by pixel of the other one's, and whether they
    are inside: those of the rectified by the raw one's with `back`, of the raw by the rectified one's without.
    """
    size = camera.height_px, camera.width_px
    return _places(camera.lens, camera.intrinsics.tobytes(), size, (height, width), back)


@lru_cache(maxsize=16)  # cameras of a vehicle; 2 million pixels take 34 MB
def _places(lens: Lens, intrinsics: bytes, image: tuple[int, int], size: tuple[int, int], back: bool) -> Places:
    across, down = image[1] / size[1], image[0] / size[0]  # image pixels in a pixel of the map
    column, row = grid(*size)
    matrix = np.frombuffer(intrinsics, np.float64).reshape(3, 3)
    way = pinhole_places if back else raw_places
    u_px, v_px, valid = way(lens, matrix, (column + 0.5) * across - 0.5, (row + 0.5) * down - 0.5)
    with np.errstate(invalid="ignore"):
        inside = valid & (u_px > -0.5) & (u_px < image[1] - 0.5) & (v_px > -0.5) & (v_px < image[0] - 0.5)
    found = (np.where(inside, (px + 0.5) / scale - 0.5, 0) for px, scale in ((v_px, down), (u_px, across)))
    there_row, there_column = (one.reshape(size) for one in found)
    return there_row, there_column, inside.reshape(size)
