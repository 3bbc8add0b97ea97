"""Stage `segment`: named 2D segments of every view, and how a row of table `segment` holds them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.recipe import Recipe
from manifests.stages import SPECS, fused
from manifests.tables.base import Float16
from manifests.tables.teacher import Encode, Segment, SegmentMaps
from pipeline.frame import FrameError
from pipeline.stages import encode
from pipeline.stages.base import FrameFunction, FrameInput, Stage, StreamFunction
from pipeline.teachers.base import RowTeacher
from pipeline.teachers.rectify import in_raw_image, index_columns, shown
from pipeline.teachers.registry import TEACHERS
from superpixels.segments import Segments
from superpixels.unfit import Unfit


def prepare(recipe: Recipe) -> FrameFunction[Segment]:
    """Return the function that finds the segments of a frame."""
    teacher = TEACHERS[recipe.teacher.name].load(recipe, "segment")
    reads_rows = bool(recipe.teacher.needs())

    def segment(inputs: FrameInput) -> Segment:
        text = np.stack([prompt.vector for prompt in inputs.text])
        frame = shown(recipe, inputs.frame)
        try:
            if reads_rows:
                assert isinstance(teacher, RowTeacher), f"teacher {recipe.teacher.name} needs rows and takes none"
                views = teacher.segment_rows(frame, inputs.rows, text)
            else:
                encoding = inputs.rows[Encode].encoding if recipe.teacher.has_encode else {}
                views = teacher.segment(frame, encoding, text)
        except Unfit as error:
            raise FrameError(str(error)) from error
        if len(views) != len(inputs.frame.cameras) or any(view.prompt_id.max(initial=0) >= len(text) for view in views):
            raise FrameError(
                f"teacher {recipe.teacher.name} gave {len(views)} views; expected {len(inputs.frame.cameras)}, "
                f"with prompt ids below {len(text)}"
            )
        raw = [in_raw_image(view, camera) for view, camera in zip(views, frame.cameras, strict=True)]
        return segment_row(frame.frame_id, raw)

    return segment


def stream(recipe: Recipe) -> StreamFunction[Segment] | None:
    """Return what encodes and segments many frames, where both halves are fused."""
    if not fused(recipe):
        return None
    return Fused(encode.stream(recipe), prepare(recipe), recipe.run.decode_threads)


@dataclass(frozen=True, eq=False)
class Fused:
    """Both halves in one go: while the network encodes later frames, threads find the segments of earlier ones."""

    encode: StreamFunction[Encode]
    segment: FrameFunction[Segment]
    threads: int

    @property
    def batch(self) -> int | None:
        """How many images go through the network at once."""
        return self.encode.batch

    def __call__(self, inputs: Iterator[FrameInput]) -> Iterator[Segment | Exception]:
        """Yield the row of every frame, or why there is none."""
        reading: deque[FrameInput] = deque()
        under_way: deque[Future[Segment | Exception]] = deque()

        def remembered() -> Iterator[FrameInput]:
            for one in inputs:
                reading.append(one)
                yield one

        with ThreadPoolExecutor(self.threads, thread_name_prefix="segment") as threads:
            for encoded in self.encode(remembered()):
                under_way.append(threads.submit(self._finish, reading.popleft(), encoded))
                while under_way[0].done() or len(under_way) > 2 * self.threads:
                    yield under_way.popleft().result()
                    if not under_way:
                        break
            for future in under_way:
                yield future.result()

    def _finish(self, one: FrameInput, encoded: Encode | Exception) -> Segment | Exception:
        if isinstance(encoded, Exception):
            return encoded
        try:
            return self.segment(replace(one, rows=one.rows.also(encoded)))
        except Exception as error:  # a fault on one frame must not hide the others
            return error


def gpus(recipe: Recipe) -> float | None:
    """Return what a worker takes of a GPU: for the network where both halves are fused, else what the recipe gives."""
    return recipe.run.gpu_share if fused(recipe) else recipe.run.segment_gpus or None


def segment_row(frame_id: str, views: Sequence[Segments]) -> Segment:
    """Return the row of table `segment`: the segments of all views of a frame, one view after the other."""
    dims = {one.vector.shape[1] for one in views if len(one)} or {0}
    if len(dims) > 1:
        raise ValueError(f"vectors of one frame have {sorted(dims)} values; expected one length for all views")
    vectors = [one.vector for one in views if len(one)]
    return Segment(
        frame_id=frame_id,
        height_px=np.array([one.height_px for one in views], np.int32),
        width_px=np.array([one.width_px for one in views], np.int32),
        run_value=joined([one.run_value for one in views], np.uint16),
        run_length=joined([one.run_length for one in views], np.uint32),
        runs_in_view=np.array([len(one.run_value) for one in views], np.int32),
        segments_in_view=np.array([len(one) for one in views], np.int32),
        prompt_id=joined([one.prompt_id for one in views], np.int32),
        score=joined([one.score for one in views], np.float16),
        area_px=joined([one.area_px for one in views], np.int32),
        vector=np.concatenate(vectors) if vectors else np.empty((0, 0), np.float16),
    )


def joined(parts: Sequence[npt.NDArray[Any]], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return arrays end to end; none at all give an empty one."""
    return np.concatenate([np.empty(0, dtype), *parts])


def views_of(row: Segment | SegmentMaps) -> list[Segments]:
    """Return the segments of every view, as views into a row of table `segment`.

    Where the row was read without its vectors, the segments have vectors of length 0.
    """
    vector: Float16 = row.vector if isinstance(row, Segment) else np.empty((len(row.prompt_id), 0), np.float16)
    run_end, segment_end = np.cumsum(row.runs_in_view), np.cumsum(row.segments_in_view)
    views = []
    for view in range(len(run_end)):
        runs = slice(run_end[view] - row.runs_in_view[view], run_end[view])
        segments = slice(segment_end[view] - row.segments_in_view[view], segment_end[view])
        views.append(
            Segments(
                height_px=int(row.height_px[view]),
                width_px=int(row.width_px[view]),
                run_value=row.run_value[runs],
                run_length=row.run_length[runs],
                prompt_id=row.prompt_id[segments],
                score=row.score[segments],
                area_px=row.area_px[segments],
                vector=vector[segments],
            )
        )
    return views


def kilobytes_per_frame(recipe: Recipe) -> float:
    """Return about how large a row is: six label maps as run lengths, and 20 segments in each."""
    return 60.0 + 6 * 20 * 768 * 2 / 1000  # 768 values: SAN, FC-CLIP and CLIP L/14


STAGE = Stage(
    table=SPECS["segment"],
    prepare=prepare,
    stream=stream,
    gpus=gpus,
    apart=tuple(name for name in Segment.schema.names if name != "vector"),
    files=lambda recipe: TEACHERS[recipe.teacher.name].files(recipe),
    index_columns=("camera", "camera_token", "image_path", "image_sha256", "width_px", "height_px"),
    more_index_columns=lambda recipe: (*recipe.teacher.index_columns, *index_columns(recipe)),
    count=lambda row: {"segments": len(row.prompt_id)},
    kilobytes_per_frame=kilobytes_per_frame,
)
