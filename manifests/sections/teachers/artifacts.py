"""Section `[teacher]` of ready-made files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from manifests.config import changed_values
from manifests.fingerprint import Settings, canonical
from manifests.sections.teachers.base import TeacherSection

TEXT = "text_embedding.pt"

SCORES = ("none", "segment", "image")

OFFICIAL_PROMPTS = "9a31aab24abf73ed0e0b666ee820535ca560ce1b65f136b002eb611b49d6cdf1"
"""Digest of the 175 prompts of AFOV for nuScenes, in order: those of the files that its authors published."""


@dataclass(frozen=True)
class ArtifactsConfig(TeacherSection):
    """Section `[teacher]` with `name = "artifacts"`.

    `folder` holds the files. `layout` says who wrote them: "san", "catseg" (one matrix per image) or "fcclip" (two);
    "auto" looks at each file and only demands that the images of a frame agree. `fcclip_feature` picks FC-CLIP's
    vectors: "out", pooled from CLIP's own features, which the official pre-training uses, or "in", of its trained
    decoder.

    Segments and text vectors name prompts by their position, so the prompts must be those that the files were made
    with. The files do not say which; where there is no `prompts.txt` beside them (one prompt a line), `prompts_sha256`
    does: the digest of the prompts in order (`prompts_digest`), by default those of the published files. `void` says
    whether one more text vector stands for "void", as in FC-CLIP's files; left out, it goes by the layout.

    `scores` says how sure the teacher was: "none", as the official files do, so that every segment has the score 1;
    "segment", by a number `score` above 0 and up to 1 in each record of the JSON file; or "image", by a grey PNG of 8
    bits beside each image's map, `<token>_score.png`, whose 0..255 are the probability of the name of each pixel.
    """

    has_encode = False
    ready_made = True

    name: str = "artifacts"
    folder: str = ""
    layout: str = "auto"
    fcclip_feature: str = "out"
    prompts_sha256: str = OFFICIAL_PROMPTS
    void: bool | None = None
    scores: str = "none"

    def __post_init__(self) -> None:
        if self.name != "artifacts":
            raise ValueError(f'name is "{self.name}"; these are the settings of "artifacts"')
        if not self.folder:
            raise ValueError(f"folder is empty; give the folder that holds {TEXT} and the png, json and pt files")
        if self.layout not in ("auto", "san", "catseg", "fcclip"):
            raise ValueError(f'layout is "{self.layout}"; choose "auto", "san", "catseg" or "fcclip"')
        if self.scores not in SCORES:
            raise ValueError(f'scores is "{self.scores}"; choose "none", "segment" or "image"')
        if self.fcclip_feature not in ("out", "in"):
            raise ValueError(f'fcclip_feature is "{self.fcclip_feature}"; choose "out" or "in"')
        if self.fcclip_feature == "in" and self.layout in ("san", "catseg"):
            raise ValueError(f'fcclip_feature is "in", but layout "{self.layout}" has one vector per segment')

    @property
    def reads_files(self) -> bool:
        """Segments are files."""
        return True

    @property
    def scores_pixels(self) -> bool:
        """Whether there are images of scores."""
        return self.scores == "image"

    @property
    def templates(self) -> str:
        """Prompts have no sentences here."""
        return ""

    @property
    def has_void(self) -> bool:
        """Whether the last text vector stands for no prompt."""
        return self.layout == "fcclip" if self.void is None else self.void

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text" or "segment".

        Where the files lie is not among them, and nothing is read: digests of the text vectors and of the files of
        images are in the keys of the shards that are made from them.
        """
        left_out = ("folder", "prompts_sha256", *(("scores",) if stage == "text" else ()))
        values = {key: value for key, value in changed_values(self).items() if key not in left_out}
        return {**values, "name": self.name}


def prompts_digest(prompts: Sequence[str]) -> str:
    """Return the hex sha256 of prompts in order, as `prompts_sha256` has it."""
    return hashlib.sha256(canonical(list(prompts)).encode()).hexdigest()
