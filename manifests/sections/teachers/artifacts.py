"""Section `[teacher]` of ready-made files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manifests.config import ConfigError, changed_values
from manifests.fingerprint import sha256_file

TEXT = "text_embedding.pt"


@dataclass(frozen=True)
class ArtifactsConfig:
    """Section `[teacher]` with `name = "artifacts"`.

    `layout` says who wrote the files: "san", "catseg" (one matrix per image) or "fcclip" (two); "auto" looks at each
    file and only demands that the images of a frame agree. `fcclip_feature` picks FC-CLIP's vectors: "out", pooled
    from CLIP's own features, which the official pre-training uses, or "in", of its trained decoder.
    """

    name: str = "artifacts"
    folder: str = ""
    layout: str = "auto"
    fcclip_feature: str = "out"

    def __post_init__(self) -> None:
        if self.name != "artifacts":
            raise ValueError(f'name is "{self.name}"; these are the settings of "artifacts"')
        if not self.folder:
            raise ValueError(f"folder is empty; give the folder that holds {TEXT} and the png, json and pt files")
        if self.layout not in ("auto", "san", "catseg", "fcclip"):
            raise ValueError(f'layout is "{self.layout}"; choose "auto", "san", "catseg" or "fcclip"')
        if self.fcclip_feature not in ("out", "in"):
            raise ValueError(f'fcclip_feature is "{self.fcclip_feature}"; choose "out" or "in"')
        if self.fcclip_feature == "in" and self.layout in ("san", "catseg"):
            raise ValueError(f'fcclip_feature is "in", but layout "{self.layout}" has one vector per segment')

    @property
    def templates(self) -> str:
        """Prompts have no sentences here."""
        return ""

    def settings(self, stage: str) -> Mapping[str, Any]:
        """Return the values that can change the rows of "text" or "segment"; raises ConfigError without text vectors.

        The triples are too many to digest for a plan. They are known by their folder and by the text vectors, which are
        written with them; a file changed in place goes unnoticed, so put a new export into a new folder.
        """
        try:
            digest = sha256_file(Path(self.folder) / TEXT)
        except OSError as error:
            raise ConfigError(f"teacher.folder: {Path(self.folder) / TEXT}: {error.strerror or error}") from None
        return {**changed_values(self), "name": self.name, "text_sha256": digest}
