"""What was seen of files outside the store, so that a plan need not read them: a small document a shard and place.

    <store>/seen/<shard>.<digest of place and of all else that the shard depends on>.json

It says how files looked from outside, and the digest of what was in them then. It is a note and no more: one that is
missing or damaged has a worker look again; `verify` tells of one that is damaged.
"""

from __future__ import annotations

from dataclasses import dataclass

from manifests.fingerprint import digest
from manifests.storage.documents import decode, put_json, read_bytes
from manifests.storage.errors import Malformed
from manifests.storage.names import SEEN, checked, checked_hex
from manifests.storage.store import Store


@dataclass(frozen=True)
class Seen:
    """How the files of a shard looked (`stats`) when their content was digested (`content`)."""

    stats: str
    content: str


def seen_path(place: str, shard: str, key: str) -> str:
    """Return the path of the note on a shard's files in a folder outside the store, relative to the store."""
    return f"{SEEN}/{checked(shard)}.{checked_hex(digest([place, key]))}.json"


def read_seen(store: Store, place: str, shard: str, key: str) -> Seen | None:
    """Return what was seen of a shard's files in a folder, None if nothing was or the note is damaged.

    Raises StoreError if the store cannot be read.
    """
    path = seen_path(place, shard, key)
    content = read_bytes(store.files, path)
    try:
        document = {} if content is None else decode(content, store.files.show(path))
    except Malformed:
        return None
    match document:
        case {"stats": str(stats), "content": str(found)}:
            return Seen(stats, found)
    return None


def write_seen(store: Store, place: str, shard: str, key: str, seen: Seen) -> None:
    """Note what was seen of a shard's files; the last one to look is right."""
    document = {"place": place, "stats": seen.stats, "content": seen.content}
    store.claim()
    put_json(store.files, seen_path(place, shard, key), document)
