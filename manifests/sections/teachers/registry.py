"""Section `[teacher]` of every teacher by its name. Adding one is one file here and one line below."""

from __future__ import annotations

from dataclasses import Field
from typing import Any, ClassVar, Protocol

from manifests.fingerprint import Settings
from manifests.ontology import Ontology
from manifests.sections.data import DataConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.catseg import CatSegConfig
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.sections.teachers.composite import CompositeConfig
from manifests.sections.teachers.ensemble import EnsembleConfig
from manifests.sections.teachers.fcclip import FcClipConfig
from manifests.sections.teachers.onnx import OnnxConfig
from manifests.sections.teachers.oracle import OracleConfig
from manifests.sections.teachers.san import SanConfig
from manifests.tables.base import FrameRecord


class TeacherConfig(Protocol):
    """Section `[teacher]` of a recipe, one frozen dataclass per teacher; `name` picks it."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...

    @property
    def templates(self) -> str:
        """Which list of sentences its authors put prompts into; "" where prompts have no sentences."""

    @property
    def version(self) -> int: ...

    @property
    def has_encode(self) -> bool: ...

    @property
    def ready_made(self) -> bool: ...

    @property
    def simulated(self) -> bool: ...

    @property
    def reads_files(self) -> bool:
        """Whether segments are made from files beside the images."""
        ...

    @property
    def scores_pixels(self) -> bool:
        """See TeacherSection."""
        ...

    @property
    def scores_from_rows(self) -> bool:
        """See TeacherSection."""
        ...

    @property
    def index_columns(self) -> tuple[str, ...]:
        """See TeacherSection."""
        ...

    @property
    def text_means(self) -> bool:
        """See TeacherSection."""
        ...

    def needs(self) -> tuple[type[FrameRecord], ...]:
        """See TeacherSection."""

    def idle(self) -> frozenset[str]:
        """See TeacherSection."""

    def content(self, ontology: Ontology, data: DataConfig, stage: str) -> Settings:
        """See TeacherSection."""

    def check_templates(self, templates: str) -> None:
        """See TeacherSection."""

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of stage "encode", "text" or "segment", for its identity.

        `supervised` is True among them where weights learnt from labels of driving scenes: whoever shows results has
        to say so. Planning calls it: it may digest small local files and must never download. Weights enter as their
        sha256.
        """


TEACHER_SECTIONS: dict[str, type[Any]] = {
    "artifacts": ArtifactsConfig,
    "catseg": CatSegConfig,
    "clip_dense": ClipDenseConfig,
    "composite": CompositeConfig,
    "ensemble": EnsembleConfig,
    "fcclip": FcClipConfig,
    "onnx": OnnxConfig,
    "oracle": OracleConfig,
    "san": SanConfig,
}
