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
from pipeline.teachers.base import PixelTeacher, RankingTeacher, RowPixelTeacher
from pipeline.teachers.rectify import in_rectified_image, index_columns, shown, values_in_raw_image
from pipeline.teachers.registry import TEACHERS
from superpixels.pooling import at_pixels
from superpixels.segments import Segments

RUNNERS_UP = 2  # classes beside the pixel's own, as table `score` has columns for


def prepare(recipe: Recipe) -> FrameFunction[Score]:
    """Return the function that scores the pixels of a frame's pairs."""
    teacher = TEACHERS[recipe.teacher.name].load(recipe, "segment")
    assert isinstance(teacher, PixelTeacher), f"teacher {recipe.teacher.name} says that it scores pixels"

    def score(inputs: FrameInput) -> Score:
        text = np.stack([prompt.vector for prompt in inputs.text])
        encoding = inputs.rows[Encode].encoding if recipe.teacher.has_encode else {}
        views = views_of(inputs.rows[SegmentMaps])
        frame = shown(recipe, inputs.frame)
        seen = [in_rectified_image(view, camera) for view, camera in zip(views, frame.cameras, strict=True)]
        if recipe.teacher.scores_from_rows:
            assert isinstance(teacher, RowPixelTeacher), f"teacher {recipe.teacher.name} says that it scores rows"
            maps = teacher.pixel_scores_of_rows(frame, inputs.rows, text, seen)
        else:
            maps = teacher.pixel_scores(frame, encoding, text, seen)
        pairs, cameras = inputs.rows[PixelOfPair], frame.cameras
        found = at_pairs(pairs, cameras, views, raw(maps, cameras))
        others = np.zeros((2, len(found), RUNNERS_UP), np.uint8)
        if isinstance(teacher, RankingTeacher):
            class_of_prompt = recipe.ontology.class_of_prompt
            grids = teacher.class_grids(frame, encoding, text, seen, class_of_prompt)
            others = runners_up(pairs, cameras, views, raw(grids, cameras), class_of_prompt)
        return Score(frame_id=inputs.frame.frame_id, score=found, runner_up=others[0], runner_up_score=others[1])

    return score


def raw(values: Sequence[npt.NDArray[Any]], cameras: Sequence[Camera]) -> list[npt.NDArray[Any]]:
    """Return numbers of images that a teacher was shown, (..., h, w) a view, at the places of the raw images."""
    return [values_in_raw_image(one, camera) for one, camera in zip(values, cameras, strict=True)]


def at_pairs(
    pairs: PixelOfPair,
    cameras: Sequence[Camera],
    views: Sequence[Segments],
    maps: Sequence[npt.NDArray[Any]],
) -> UInt8:
    """Return the score at the pixel of each pair in 1/255, (p,): 0 in no segment, else 1 or more; maps hold 0..1."""
    found = np.zeros(len(pairs.view), np.uint8)
    for number, (camera, view, scores) in enumerate(zip(cameras, views, maps, strict=True)):
        some, row, col = pixels_of(pairs, number, camera, view)
        code = np.rint(255 * np.clip(scores[row, col], 0, 1))
        found[some] = np.where(view.lookup(row, col) > 0, np.maximum(code, 1), 0)
    return found


def runners_up(
    pairs: PixelOfPair,
    cameras: Sequence[Camera],
    views: Sequence[Segments],
    grids: Sequence[npt.NDArray[Any]],
    class_of_prompt: npt.NDArray[Any],
) -> UInt8:
    """Return the likeliest classes at the pixel of each pair beside that of its segment, and how likely they are.

    Both stand in one array, (2, p, 2), scores in 1/255, the likelier class first; 0 where there is none, where it is
    less likely than 1/510, and in no segment. Of equally likely ones the lower class comes first, and class 0 does not
    count.
    """
    found = np.zeros((2, len(pairs.view), RUNNERS_UP), np.uint8)
    for number, (camera, view, grid) in enumerate(zip(cameras, views, grids, strict=True)):
        some, row, col = pixels_of(pairs, number, camera, view)
        segment = view.lookup(row, col).astype(np.int64)
        own = np.append(0, class_of_prompt[view.prompt_id])[segment]
        likely = at_pixels(grid, row, col, view.height_px, view.width_px)
        every = np.arange(len(some))
        likely[:, 0] = likely[every, own] = 0
        for rank in range(min(RUNNERS_UP, likely.shape[1])):
            best = likely.argmax(axis=1)
            code = np.rint(255 * np.clip(likely[every, best], 0, 1)).astype(np.uint8)
            code[segment == 0] = 0
            found[0, some, rank], found[1, some, rank] = np.where(code > 0, best, 0), code
            likely[every, best] = 0
    return found


def pixels_of(
    pairs: PixelOfPair, number: int, camera: Camera, view: Segments
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return which pairs are of a view, and in which row and column of its label map each lies, (q,).

    A map of lower resolution than its image is read at the map pixel that covers the image pixel, as in `group`.
    """
    some = np.flatnonzero(pairs.view == number)
    row = pairs.row_px[some].astype(np.int64) * view.height_px // camera.height_px
    col = pairs.col_px[some].astype(np.int64) * view.width_px // camera.width_px
    return some, row, col


STAGE = Stage(
    table=SPECS["score"],
    prepare=prepare,
    files=lambda recipe: TEACHERS[recipe.teacher.name].files(recipe),
    index_columns=("width_px", "height_px"),
    more_index_columns=index_columns,
    kilobytes_per_frame=lambda recipe: 20.0,
)
