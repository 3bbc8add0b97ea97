"""What a 2D open-vocabulary teacher gives, and how a worker loads one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    from manifests.fingerprint import Settings
    from manifests.recipe import Recipe
    from manifests.tables.base import Rows
    from pipeline.frame import Camera, Frame
    from pipeline.sources import FrameFiles
    from superpixels.segments import Segments


class Teacher(Protocol):
    """A loaded teacher. NumPy at its border; vectors have whatever size it has, unit length, float32."""

    def text(self, prompts: tuple[str, ...]) -> NDArray[Any]:
        """Return one unit vector per prompt, float32 (p, d), using the recipe's templates."""

    def encode(self, frame: Frame) -> dict[str, NDArray[Any]]:
        """Return the vocabulary-free half of every view, named `<camera>/<part>`; raises FrameError on bad images."""

    def segment(self, frame: Frame, encoding: Mapping[str, NDArray[Any]], text: NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order.

        `encoding` holds what `encode` returned; it is empty where the teacher has no such half.
        """


@runtime_checkable
class RowTeacher(Teacher, Protocol):
    """A teacher that can make segments from rows of earlier tables: those that its section `needs`, if it needs any."""

    def segment_rows(self, frame: Frame, rows: Rows, text: NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, from the frame's rows."""


class ImageEncoder(Protocol):
    """What makes the parts of an encoding from images, in three steps that overlap: see pipeline.teachers.batches.

    `batch` images at once suit its `device`. `fixed_batch` asks for batches of one size only, as a compiled network
    does.
    """

    @property
    def device(self) -> torch.device: ...

    @property
    def batch(self) -> int: ...

    @property
    def fixed_batch(self) -> bool: ...

    def prepare(self, frame: Frame, camera: Camera) -> NDArray[Any]:
        """Return what the network takes for one image, often uint8 (H, W, 3); on a CPU thread; raises FrameError."""

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return what the network makes of a batch on the device: by name, row i belongs to image i.

        Data types must be NumPy's (no bfloat16). It is called in inference mode, by one thread.
        """

    def pack(self, camera: Camera, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the parts of an image's encoding, by name without camera; on a CPU thread; raises FrameError."""


@runtime_checkable
class BatchTeacher(Teacher, ImageEncoder, Protocol):
    """A teacher whose encode half is one network, so that images of many frames share a batch.

    Stage `encode` uses the three steps where a teacher has them, and `encode` otherwise.
    """


@runtime_checkable
class ComposedTeacher(Teacher, Protocol):
    """A teacher whose encode half is several networks, each with batches of its own; their parts are put together."""

    @property
    def encoders(self) -> tuple[ImageEncoder, ...]: ...


@runtime_checkable
class PixelTeacher(Teacher, Protocol):
    """A teacher that can tell of every pixel how sure it is of the pixel's own name."""

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, NDArray[Any]], text: NDArray[Any], views: Sequence[Segments]
    ) -> list[NDArray[Any]]:
        """Return a score 0..1 of every pixel of each view's label map, (H, W), in camera order.

        `views` are the segments that it gave of the frame, perhaps without vectors. Where there is no segment, any
        number will do. Raises FrameError.
        """
        ...


@runtime_checkable
class RowPixelTeacher(PixelTeacher, Protocol):
    """A teacher that scores pixels from the rows that its segments were made from."""

    def pixel_scores_of_rows(
        self, frame: Frame, rows: Rows, text: NDArray[Any], views: Sequence[Segments]
    ) -> list[NDArray[Any]]:
        """Return what `pixel_scores` does, from rows of the tables that the teacher's section `needs`."""
        ...


@runtime_checkable
class RankingTeacher(PixelTeacher, Protocol):
    """A teacher that can tell of every pixel how likely each class is."""

    def class_grids(
        self,
        frame: Frame,
        encoding: Mapping[str, NDArray[Any]],
        text: NDArray[Any],
        views: Sequence[Segments],
        class_of_prompt: NDArray[Any],
    ) -> list[NDArray[Any]]:
        """Return how likely the classes of the dictionary are in each view, 0..1, (classes, h, w), in camera order.

        The grid may be any: its cells are mixed bilinearly for pixels. `class_of_prompt` (p,) has the class of every
        prompt. Raises FrameError.
        """
        ...


@dataclass(frozen=True)
class TeacherKind:
    """How a worker loads a teacher for stage "text", "encode" or "segment"; its section tells the rest.

    Loading for "segment" should leave out what only the encode half needs. `files` are what `segment` reads of a frame
    beside its images; they come with their digests in `frame.files`. `text_content` is what its text vectors depend on
    beside settings: files. `kilobytes_per_frame` estimates a row of table `encode`.
    """

    load: Callable[[Recipe, str], Teacher]
    files: Callable[[Recipe], FrameFiles | None] = lambda recipe: None
    text_content: Callable[[Recipe], Settings] = lambda recipe: {}
    kilobytes_per_frame: Callable[[Recipe], float] = lambda recipe: 0.0
