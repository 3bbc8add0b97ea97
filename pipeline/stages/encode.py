"""Stage `encode`: the teacher's expensive half, which knows no prompts, so a new class dictionary costs no GPU hour."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import tee
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.teacher import Encode
from pipeline.frame import Frame
from pipeline.stages.base import FrameFunction, FrameInput, OneByOne, Stage, StreamFunction
from pipeline.teachers.base import BatchTeacher, ComposedTeacher, ImageEncoder, Teacher
from pipeline.teachers.rectify import index_columns, shown
from pipeline.teachers.registry import TEACHERS

if TYPE_CHECKING:
    from pipeline.teachers.batches import Batches

Show = Callable[[Frame], Frame]
"""Returns a frame as a teacher is shown it."""


def load(recipe: Recipe) -> Teacher:
    """Return the recipe's teacher, ready to encode; raises ConfigError if it has no encode half."""
    kind = TEACHERS[recipe.teacher.name]
    if not recipe.teacher.has_encode:
        raise ConfigError(f"teacher {recipe.teacher.name} has nothing to encode; run `segment`, which does not need it")
    return kind.load(recipe, "encode")


def prepare(recipe: Recipe) -> FrameFunction[Encode]:
    """Return the function that encodes the images of a frame; raises ConfigError if the teacher has no encode half."""
    return one_by_one(load(recipe), partial(shown, recipe))


def one_by_one(teacher: Teacher, show: Show) -> FrameFunction[Encode]:
    """Return the function that encodes the images of a frame."""
    return lambda inputs: Encode(frame_id=inputs.frame.frame_id, encoding=teacher.encode(show(inputs.frame)))


def stream(recipe: Recipe) -> StreamFunction[Encode]:
    """Return what encodes many frames, in batches across them where the teacher can; raises ConfigError."""
    teacher, show = load(recipe), partial(shown, recipe)
    if not isinstance(teacher, BatchTeacher | ComposedTeacher):
        return OneByOne(one_by_one(teacher, show))
    from pipeline.teachers.batches import batches_of

    def batches(network: ImageEncoder) -> Batches:
        return batches_of(network, recipe.run.batch, recipe.run.decode_threads)

    if isinstance(teacher, ComposedTeacher):
        return SideBySide(tuple(map(batches, teacher.encoders)), show)
    return InBatches(batches(teacher), show)


@dataclass(frozen=True, eq=False)
class InBatches:
    """Encodes many frames at once."""

    batches: Batches
    show: Show

    @property
    def batch(self) -> int:
        """How many images go through the network at once."""
        return self.batches.size

    def __call__(self, inputs: Iterator[FrameInput]) -> Iterator[Encode | Exception]:
        """Yield the row of every frame, or why there is none."""
        frames, again = tee(self.show(one.frame) for one in inputs)
        for encoding, frame in zip(self.batches(frames), again, strict=True):
            if isinstance(encoding, Exception):
                yield encoding
            else:
                yield Encode(frame_id=frame.frame_id, encoding=encoding)


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Encodes many frames at once with several networks: while one computes, images for the others are read."""

    batches: tuple[Batches, ...]
    show: Show

    @property
    def batch(self) -> int:
        """How many images go through a network at once, the largest number of all."""
        return max(one.size for one in self.batches)

    def __call__(self, inputs: Iterator[FrameInput]) -> Iterator[Encode | Exception]:
        """Yield the row of every frame, or the first reason why there is none."""
        again, *frames = tee((self.show(one.frame) for one in inputs), 1 + len(self.batches))
        of_networks = zip(*(one(some) for one, some in zip(self.batches, frames, strict=True)), strict=True)
        for encodings, frame in zip(of_networks, again, strict=True):
            parts: dict[str, NDArray[Any]] = {}
            failed = None
            for encoding in encodings:
                if isinstance(encoding, Exception):
                    failed = failed or encoding
                else:
                    parts |= encoding
            yield failed or Encode(frame_id=frame.frame_id, encoding=parts)


STAGE = Stage(
    table=SPECS["encode"],
    prepare=prepare,
    stream=stream,
    index_columns=("camera", "image_path", "image_sha256", "width_px", "height_px"),
    more_index_columns=index_columns,
    gpus=lambda recipe: recipe.run.gpu_share,
    kilobytes_per_frame=lambda recipe: TEACHERS[recipe.teacher.name].kilobytes_per_frame(recipe),
)
