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
from typing import TypeVar

from manifests.fingerprint import digest
from manifests.records.codec import Unfit, as_document, as_record
from manifests.storage.documents import decode, put_json, read_bytes
from manifests.storage.errors import Malformed
from manifests.storage.names import SEEN, checked, checked_hex
from manifests.storage.store import Store

T = TypeVar("T")


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


@dataclass(frozen=True)
class _Note:
    """The first document of a shard; only where `by_file`, the second was written beside it."""

    place: str
    stats: str
    content: str
    by_file: bool = False


@dataclass(frozen=True)
class _FilesNote:
    """The second document of a shard: how each file looked, and its sha256."""

    place: str
    files: Mapping[str, tuple[str | None, str | None]]


def files_path(stage: str, shard: str, key: str) -> str:
    """Return the path of the note on the single files of a committed shard, relative to the store."""
    return f"{SEEN}/{checked(shard)}.{checked_hex(digest([stage, key]))}.json"


def read_files(store: Store, stage: str, shard: str, key: str) -> SeenFiles | None:
    """Return what was seen of the files of a committed shard, None if nothing was or the note is damaged.

    Raises StoreError if the store cannot be read.
    """
    note = _read(store, files_path(stage, shard, key), _FilesNote)
    if note is None:
        return None
    return SeenFiles(note.place, {name: SeenFile(*seen) for name, seen in note.files.items()})


def write_files(store: Store, stage: str, shard: str, key: str, seen: SeenFiles) -> None:
    """Note what was seen of the files of a committed shard; the last one to look is right."""
    note = _FilesNote(seen.place, {name: (file.looks, file.sha256) for name, file in seen.files.items()})
    store.claim()
    put_json(store.files, files_path(stage, shard, key), as_document(note))


def seen_path(place: str, shard: str, key: str) -> str:
    """Return the path of the note on a shard's files in a folder outside the store, relative to the store."""
    return f"{SEEN}/{checked(shard)}.{checked_hex(digest([place, key]))}.json"


def read_seen(store: Store, place: str, shard: str, key: str) -> Seen | None:
    """Return what was seen of a shard's files in a folder, None if nothing was or the note is damaged.

    Raises StoreError if the store cannot be read.
    """
    note = _read(store, seen_path(place, shard, key), _Note)
    return Seen(note.stats, note.content) if note and note.by_file else None


def _read(store: Store, path: str, kind: type[T]) -> T | None:
    """Return a note, None if there is none or it is damaged."""
    content = read_bytes(store.files, path)
    try:
        return None if content is None else as_record(kind, decode(content, store.files.show(path)))
    except (Malformed, Unfit):
        return None


def write_seen(store: Store, place: str, shard: str, key: str, seen: Seen) -> None:
    """Note what was seen of a shard's files; the last one to look is right."""
    note = _Note(place=place, stats=seen.stats, content=seen.content, by_file=True)
    store.claim()
    put_json(store.files, seen_path(place, shard, key), as_document(note))
