"""What a check says: one sentence, and how much it matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "note", "problem"]

FRAMES = 8  # frames that are opened; six cameras' worth takes about a second each on one core, with decoding


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine, worth knowing, or to be mended before a run."""

    level: Level
    about: str
    text: str
