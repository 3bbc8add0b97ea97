"""JSON documents of a store, sidecars, manifests and refs: each bears a digest of its own bytes, checked on every read.

    {"digest": "<sha256 of every byte after the comma>",
     "bytes": 2626, ...

One changed bit, one missing byte, is an error and never another document, nor none at all: a document appears whole
(locally by a rename, remotely when it is closed), so that one which cannot be read is damaged and not half written.
Versions up to 0.9 wrote plain JSON, which is told by its first line, a brace alone; it is read as it stands.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from manifests.advice import HEAL
from manifests.fingerprint import Json, Settings
from manifests.storage.errors import Malformed, StoreError
from manifests.storage.files import Files
from manifests.storage.remote import whole

MOST_JSON_BYTES = 32 << 20  # of a sidecar, manifest or ref; a shard takes about 400, so 80 000 of them
_HEAD = re.compile(rb'\{"digest": "([0-9a-f]{64})",')
_PLAIN = b"{\n"


def encode(document: Settings) -> bytes:
    """Return a document as the bytes that lie in a store."""
    if not document:
        raise ValueError("an empty document says nothing; a store has none")
    return seal(json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode())


def seal(text: bytes) -> bytes:
    """Return the text of a JSON object with the digest of it as its first entry."""
    return b'{"digest": "' + hashlib.sha256(text[1:]).hexdigest().encode() + b'",' + text[1:]


def decode(content: bytes, where: str) -> dict[str, Json]:
    """Return the document that `encode` made these bytes of; raises Malformed if a single bit of them has changed."""
    head = _HEAD.match(content)
    if head and hashlib.sha256(content[head.end() :]).hexdigest().encode() != head[1]:
        raise Malformed(f"{where} is damaged: its bytes have changed since it was written")
    try:
        document = json.loads(content) if head or content.startswith(_PLAIN) else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Malformed(f"{where} is damaged: it is no document of a store")
    document.pop("digest", None)
    return document


def has_digest(content: bytes) -> bool:
    """Return whether bytes are a document that can tell damage, and not one of a version up to 0.9."""
    return _HEAD.match(content) is not None


@contextmanager
def advising(advice: str) -> Iterator[None]:
    """Within the block, what is malformed is told with what to do about it."""
    try:
        yield
    except Malformed as error:
        raise StoreError(f"{error}; {advice}") from None


def read_bytes(files: Files, path: str) -> bytes | None:
    """Return the bytes of a document, or None if there is none; raises StoreError where that cannot be told.

    That is Malformed for one that is too long, or that a disk cannot read any more.
    """

    def read() -> bytes:
        with files.system.open_input_file(path) as source:
            size = int(source.size())
            if size > MOST_JSON_BYTES:
                raise Malformed(f"{files.show(path)} is damaged: {size} bytes are no document of a store")
            return whole(bytes(source.read(size)), size)

    try:
        return files.patiently(read)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        kind = Malformed if getattr(error, "errno", None) == errno.EIO else StoreError  # EIO: the disk itself
        raise kind(f"{files.show(path)} cannot be read: {error}") from None


def read_json(files: Files, path: str) -> dict[str, Json] | None:
    """Return a document, or None if there is none; raises StoreError for one that is damaged or cannot be read."""
    with advising(HEAL):
        content = read_bytes(files, path)
        return None if content is None else decode(content, files.show(path))


def put_json(files: Files, path: str, document: Settings) -> None:
    """Write a document, which appears whole or not at all."""
    content = encode(document)
    with files.scratch(path) as (stream, publish):
        stream.write(content)
        publish()


def expect_list(value: Any, where: str) -> list[Any]:
    """Return a JSON list; raises Malformed for anything else."""
    if not isinstance(value, list):
        raise Malformed(f"{where} is damaged: it lacks a list that it should hold")
    return value
