"""What every section `[teacher]` tells of its teacher beside its settings."""

from __future__ import annotations

from typing import Any, ClassVar

from manifests.config import changed_values
from manifests.fingerprint import Json, Settings
from manifests.ontology import Ontology
from manifests.sections.data import DataConfig
from manifests.tables.base import FrameRecord


class TeacherSection:
    """The part of a teacher that planning and identities need; what computes is in pipeline.teachers.

    `version` is raised when the teacher's code changes what its rows mean: its tables are then built anew, and no other
    teacher's. `has_encode`: there is a heavy half that knows no prompts. `ready_made` teachers read finished segments
    and text vectors, so that sections `[text]` and `[segment]` do not apply. `simulated` ones know the truth and look
    at no image: whoever shows results has to say so; section `[text]` does not apply. Those with `scores_pixels` tell
    of every pixel how sure they are of its name; where `scores_from_rows`, from the rows that `needs` names.
    """

    version: ClassVar[int] = 1
    has_encode: ClassVar[bool] = True
    ready_made: ClassVar[bool] = False
    simulated: ClassVar[bool] = False
    scores_pixels: Any = False  # a bool; a property where settings decide
    scores_from_rows: Any = False  # as before

    @property
    def text_means(self) -> bool:
        """Whether vectors of words that are alike are alike: not where they only tell prompts apart."""
        return not self.simulated

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: they are in no identity."""
        return frozenset()

    def counted(self) -> dict[str, Json]:
        """Return the settings that differ from their default and can change a row."""
        return {key: value for key, value in changed_values(self).items() if key not in self.idle()}

    @property
    def reads_files(self) -> bool:
        """Whether segments are made from files beside the images."""
        return False

    @property
    def index_columns(self) -> tuple[str, ...]:
        """Return further columns of table `index` that segments depend on."""
        return ()

    def needs(self) -> tuple[type[FrameRecord], ...]:
        """Return further tables, whose rows of the frame stage `segment` hands to the teacher."""
        return ()

    def content(self, ontology: Ontology, data: DataConfig, stage: str) -> Settings:
        """Return what rows of "text", "encode" or "segment" depend on beside this section and the tables they need."""
        return {}

    def check_templates(self, templates: str) -> None:
        """Raise ValueError unless prompts may be put into this list of sentences (manifests.templates)."""
