"""The manifest of a table: what its folder holds and from what it was made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from manifests.storage.documents import expect_list
from manifests.storage.errors import Malformed
from manifests.storage.shards import ShardFile, shard_from


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: the readable identity that was hashed, the shards, and how they were made."""

    stage: str
    fingerprint: str
    identity: Mapping[str, Any]
    shards: tuple[ShardFile, ...]
    made: Mapping[str, Any] = field(default_factory=dict)


def manifest_from(document: Mapping[str, Any], stage: str, fingerprint: str, where: str) -> Manifest:
    """Return the manifest that a document in the folder of a table is; raises Malformed if it is none of it."""
    if document.get("stage") != stage or document.get("fingerprint") != fingerprint:
        raise Malformed(f"{where} belongs to another table")
    shards = tuple(shard_from(item, where) for item in expect_list(document.get("shards"), where))
    identity, made = document.get("identity", {}), document.get("made", {})
    if not isinstance(identity, dict) or not isinstance(made, dict):
        raise Malformed(f"{where} is damaged: it does not say what the table was made from")
    return Manifest(stage, fingerprint, identity, shards, made)
