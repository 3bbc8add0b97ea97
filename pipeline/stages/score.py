"""Stage `score`: how sure the teacher is of each pixel in which a camera sees a point."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.base import UInt8
from manifests.tables.sensors import PixelOfPair
from manifests.tables.teacher import Encode, Score, SegmentMaps
from pipeline.frame import Camera
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from pipeline.stages.segment import views_of
from pipeline.teachers.base import PixelTeacher
from pipeline.teachers.registry import TEACHERS
from superpixels.segments import Segments


def prepare(recipe: Recipe) -> FrameFunction[Score]:
    """Return the function that scores the pixels of a frame's pairs."""
    teacher = TEACHERS[recipe.teacher.name].load(recipe, "segment")
    assert isinstance(teacher, PixelTeacher), f"teacher {recipe.teacher.name} says that it scores pixels"

    def score(inputs: FrameInput) -> Score:
        text = np.stack([prompt.vector for prompt in inputs.text])
        encoding = inputs.rows[Encode].encoding if recipe.teacher.has_encode else {}
        views = views_of(inputs.rows[SegmentMaps])
        maps = teacher.pixel_scores(inputs.frame, encoding, text, views)
        found = at_pairs(inputs.rows[PixelOfPair], inputs.frame.cameras, views, maps)
        return Score(frame_id=inputs.frame.frame_id, score=found)

    return score


def at_pairs(
    pairs: PixelOfPair,
    cameras: Sequence[Camera],
    views: Sequence[Segments],
    maps: Sequence[npt.NDArray[Any]],
) -> UInt8:
    """Return the score at the pixel of each pair in 1/255, (p,): 0 in no segment, else 1 or more; maps hold 0..1."""
    found = np.zeros(len(pairs.view), np.uint8)
    for number, (camera, view, scores) in enumerate(zip(cameras, views, maps, strict=True)):
        some = np.flatnonzero(pairs.view == number)
        # a map of lower resolution than its image is read at the map pixel that covers the image pixel, as in `group`
        row = pairs.row_px[some].astype(np.int64) * view.height_px // camera.height_px
        col = pairs.col_px[some].astype(np.int64) * view.width_px // camera.width_px
        code = np.rint(255 * np.clip(scores[row, col], 0, 1))
        found[some] = np.where(view.lookup(row, col) > 0, np.maximum(code, 1), 0)
    return found


STAGE = Stage(
    table=SPECS["score"],
    prepare=prepare,
    files=lambda recipe: TEACHERS[recipe.teacher.name].files(recipe),
    index_columns=("width_px", "height_px"),
    kilobytes_per_frame=lambda recipe: 20.0,
)
