"""What was seen of files outside the store: two small documents a shard.

    <store>/seen/<shard>.<digest of place and of all else that the shard depends on>.json
    <store>/seen/<shard>.<digest of its stage and key>.json

The first spares a plan from reading files: it says how they looked from outside, and the digest of what was in them
then. The second says the same file by file, of those that a shard is made from: who reads the shard, and has the files
at hand, can see whether they are still those. Both are notes and no more: where one is missing or damaged, a worker
looks again, or who reads says that it could not compare; `verify` tells of one that is damaged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class SeenFile:
    """How a file looked, None if it was not there, when its content was digested (hex sha256)."""

    looks: str | None
    sha256: str | None


@dataclass(frozen=True)
class SeenFiles:
    """The files of a shard by their names in the folder `place`."""

    place: str
    files: Mapping[str, SeenFile]


def files_path(stage: str, shard: str, key: str) -> str:
    """Return the path of the note on the single files of a committed shard, relative to the store."""
    return f"{SEEN}/{checked(shard)}.{checked_hex(digest([stage, key]))}.json"


def read_files(store: Store, stage: str, shard: str, key: str) -> SeenFiles | None:
    """Return what was seen of the files of a committed shard, None if nothing was or the note is damaged.

    Raises StoreError if the store cannot be read.
    """
    document = _read(store, files_path(stage, shard, key))
    try:
        files = {str(name): SeenFile(*map(_text, seen)) for name, seen in document["files"].items()}
        return SeenFiles(str(document["place"]), files)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def write_files(store: Store, stage: str, shard: str, key: str, seen: SeenFiles) -> None:
    """Note what was seen of the files of a committed shard; the last one to look is right."""
    files = {name: [file.looks, file.sha256] for name, file in seen.files.items()}
    store.claim()
    put_json(store.files, files_path(stage, shard, key), {"place": seen.place, "files": files})


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(value)
    return value


def seen_path(place: str, shard: str, key: str) -> str:
    """Return the path of the note on a shard's files in a folder outside the store, relative to the store."""
    return f"{SEEN}/{checked(shard)}.{checked_hex(digest([place, key]))}.json"


def read_seen(store: Store, place: str, shard: str, key: str) -> Seen | None:
    """Return what was seen of a shard's files in a folder, None if nothing was or the note is damaged.

    Raises StoreError if the store cannot be read.
    """
    match _read(store, seen_path(place, shard, key)):
        case {"stats": str(stats), "content": str(found), "by_file": True}:  # older ones have no note by file beside
            return Seen(stats, found)
    return None


def _read(store: Store, path: str) -> dict[str, Any]:
    """Return a note, empty if there is none or it is damaged."""
    content = read_bytes(store.files, path)
    try:
        return {} if content is None else decode(content, store.files.show(path))
    except Malformed:
        return {}


def write_seen(store: Store, place: str, shard: str, key: str, seen: Seen) -> None:
    """Note what was seen of a shard's files; the last one to look is right."""
    document = {"place": place, "stats": seen.stats, "content": seen.content, "by_file": True}
    store.claim()
    put_json(store.files, seen_path(place, shard, key), document)
