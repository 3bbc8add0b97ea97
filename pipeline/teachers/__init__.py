"""2D open-vocabulary teachers: what each one gives, and the dict that names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

from pipeline.teachers.artifacts import Artifacts
from pipeline.teachers.catseg import CatSeg
from pipeline.teachers.clip_dense import ClipDense
from pipeline.teachers.composite import Composite
from pipeline.teachers.fcclip import FcClip
from pipeline.teachers.oracle import Oracle
from pipeline.teachers.san import San

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
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

        `encoding` holds what `encode` returned, and the columns of the tables that the kind `needs`, named
        `<table>/<column>`; it is empty where there is neither.
        """


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


@dataclass(frozen=True)
class TeacherKind:
    """How a teacher is set up: how a worker loads it for stage "text", "encode" or "segment".

    Loading for "segment" should leave out what only the encode half needs. `ready_made` teachers read finished
    segments and text vectors, so that sections `[text]` and `[segment]` do not apply. `simulated` ones know the truth
    and look at no image: whoever shows results has to say so; section `[text]` does not apply. `kilobytes_per_frame`
    estimates a row of table `encode`.

    `needs` names further tables, whose columns of the frame `segment` is handed. `content` returns what rows of "text",
    "encode" or "segment" depend on beside section `[teacher]` and the tables they are made from, for their identity.
    `files` are what `segment` reads of a frame beside its images; they come with their digests in `frame.files`.
    """

    load: Callable[[Recipe, str], Teacher]
    has_encode: bool
    ready_made: bool = False
    simulated: bool = False
    needs: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    content: Callable[[Recipe, str], Mapping[str, Any]] = lambda recipe, stage: {}
    files: Callable[[Recipe], FrameFiles | None] = lambda recipe: None
    kilobytes_per_frame: Callable[[Recipe], float] = lambda recipe: 0.0


TEACHERS: dict[str, TeacherKind] = {
    "artifacts": TeacherKind(
        Artifacts.load, has_encode=False, ready_made=True, content=Artifacts.content, files=Artifacts.files
    ),
    "catseg": TeacherKind(
        CatSeg.load, has_encode=True, content=CatSeg.content, kilobytes_per_frame=CatSeg.kilobytes_per_frame
    ),
    "clip_dense": TeacherKind(ClipDense.load, has_encode=True, kilobytes_per_frame=ClipDense.kilobytes_per_frame),
    "composite": TeacherKind(
        Composite.load,
        has_encode=True,
        content=Composite.content,
        kilobytes_per_frame=Composite.kilobytes_per_frame,
    ),
    "fcclip": TeacherKind(
        FcClip.load,
        has_encode=True,
        content=FcClip.content,
        kilobytes_per_frame=FcClip.kilobytes_per_frame,
    ),
    "oracle": TeacherKind(
        Oracle.load, has_encode=False, simulated=True, needs=Oracle.needs, content=Oracle.content, files=Oracle.files
    ),
    "san": TeacherKind(San.load, has_encode=True, kilobytes_per_frame=San.kilobytes_per_frame),
}
