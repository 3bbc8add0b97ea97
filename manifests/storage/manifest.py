"""The manifest of a table: what its folder holds and from what it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manifests.storage.shards import ShardFile


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: the readable identity that was hashed, the shards, and how they were made."""

    stage: str
    fingerprint: str
    identity: Mapping[str, Any]
    shards: tuple[ShardFile, ...]
    made: Mapping[str, Any] = field(default_factory=dict)
