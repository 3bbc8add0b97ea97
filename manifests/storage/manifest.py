"""The manifest of a table: what its folder holds and from what it was made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar

from manifests.fingerprint import Json, Settings
from manifests.records.codec import Unfit, as_record
from manifests.records.table import Built, Computed, Identity, Predicted
from manifests.storage.documents import expect_list
from manifests.storage.errors import Malformed
from manifests.storage.shards import ShardFile, shard_from

Made = TypeVar("Made", Built, Computed, Predicted)


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: the readable identity that was hashed, the shards, and how they were made.

    `made` is a record of `Built`, of `Computed` or of `Predicted`, whoever made the table.
    """

    stage: str
    fingerprint: str
    identity: Identity
    shards: tuple[ShardFile, ...]
    made: Settings = field(default_factory=dict)

    def how(self, kind: type[Made]) -> Made:
        """Return how the table was made; nothing is known where somebody else made it, or another version."""
        try:
            return as_record(kind, self.made)
        except Unfit:
            return kind()


def manifest_from(document: Settings, stage: str, fingerprint: str, where: str) -> Manifest:
    """Return the manifest that a document in the folder of a table is; raises Malformed if it is none of it."""
    if document.get("stage") != stage or document.get("fingerprint") != fingerprint:
        raise Malformed(f"{where} belongs to another table")
    shards = tuple(shard_from(item, where) for item in expect_list(document.get("shards"), where))
    identity, made = identity_from(document.get("identity"), where), document.get("made", {})
    if not isinstance(made, dict):
        raise Malformed(f"{where} is damaged: it does not say how the table was made")
    return Manifest(stage, fingerprint, identity, shards, made)


def identity_from(document: Json, where: str) -> Identity:
    """Return the identity that a manifest holds; raises Malformed if it is none."""
    try:
        return as_record(Identity, document)
    except Unfit as error:
        raise Malformed(f"{where} is damaged: it does not say what the table was made from: {error}") from None
