"""What the sections of teachers of mask queries share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from manifests.fingerprint import Settings
from manifests.sections.teachers.base import TeacherSection
from manifests.sections.teachers.weights import Weights

MASK_FORMATS = ("uint8", "float16")

DECODINGS = ("scaled", "full")

DIVISOR_PX = 32
"""Images that go into a network are padded, or resized, to multiples of this."""


class MaskConfig(TeacherSection):
    """What the sections of teachers of mask queries share; each is a frozen dataclass with these fields.

    `fields` names, by stage, the settings that can change the stage's rows.
    """

    name: str
    weights: str
    weights_sha256: str
    weights_revision: str
    masks: str
    parity: bool
    fields: ClassVar[Mapping[str, tuple[str, ...]]]

    @property
    def templates(self) -> str:
        """The sentences that its authors put prompts into."""
        return "vild14"

    @property
    def pinned(self) -> Weights:
        """The weights and what pins them."""
        return Weights(self.weights, self.weights_sha256, self.weights_revision)

    @property
    def files(self) -> tuple[Weights, ...]:
        """The weights of all networks."""
        return (self.pinned,)

    @property
    def mask_format(self) -> str:
        """How mask logits are kept: as `masks` says, in parity always with what float16 can tell apart."""
        return "float16" if self.parity else self.masks

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text", "encode" or "segment"; pinned weights by digest."""
        values = {key: value for key, value in self.counted().items() if key in self.fields[stage]}
        for weights in self.files:
            if values.pop(f"{weights.key}_sha256", None):
                values[weights.key] = weights.identity
        return {"name": self.name, **values}
