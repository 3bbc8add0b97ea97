"""The files of an archive, read from its raw blocks: plain ones alone, each where it is expected; none is trusted."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from manifests.fingerprint import Json
from manifests.storage.errors import StoreError
from manifests.storage.names import is_word

LICENCE = "LICENCE.txt"
_LONGEST_NAME = 100  # of the oldest tar format, which every program reads
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


@dataclass(frozen=True)
class Member:
    """A file of an archive: its name in the tar, in the store, its length and digest, and where its content starts."""

    name: str
    path: str
    bytes: int
    sha256: str
    start: int = 0


def tar_name(path: str, place: int) -> str:
    """Return the name of a file in the tar: its path, or a short one where the format has no room for that."""
    return path if len(path) <= _LONGEST_NAME else f"{'/'.join(path.split('/')[:2])}/{place}"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Append a file; it bears no time and no owner, so that the same tables give the same archive."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))


def header(file: BinaryIO, position: int, size: int, name: str, where: str) -> tuple[int, int, int]:
    """Return (position of the next header, start, length) of the file at a position, which must bear a name."""
    file.seek(position)
    block = file.read(tarfile.BLOCKSIZE)
    try:
        entry = tarfile.TarInfo.frombuf(block, "ascii", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        raise StoreError(f"{where}: {name} was expected at byte {position}, and there is no file; it is cut off or no "
                         "archive of tables") from None  # fmt: skip
    shown = entry.name[:80]
    if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind = _KINDS.get(entry.type, f"an entry of kind {entry.type!r}")
        raise StoreError(f"{where}: {shown!r} is {kind}; an archive of tables holds plain files only")
    if entry.name.startswith("/") or ".." in entry.name.split("/"):
        raise StoreError(f"{where}: {shown!r} leaves the folder of the tables; it was not written by us")
    if entry.name != name:
        raise StoreError(f"{where}: {shown!r} stands where {name} was expected; it was not written by us")
    start = position + tarfile.BLOCKSIZE
    if not 0 <= entry.size <= size - start:
        raise StoreError(f"{where}: {name} says that it has {entry.size} bytes, and {size - start} are left; cut off?")
    blocks = -(-entry.size // tarfile.BLOCKSIZE)
    return start + blocks * tarfile.BLOCKSIZE, start, entry.size


def member_from(item: Any, where: str) -> Member:
    """Return a file as the table of contents describes it; raises StoreError if a name leads anywhere else."""
    try:
        member = Member(str(item["name"]), str(item["path"]), int(item["bytes"]), str(item["sha256"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise StoreError(f"{where} does not describe its files; it was not written by us") from None
    for name in (member.name, member.path):
        words = name.split("/")
        if name != LICENCE and not (len(words) == 3 and all(is_word(word) for word in words)):
            raise StoreError(f"{where} lists {name[:80]!r}, which is no file of a table; it was not written by us")
    if member.bytes < 0:
        raise StoreError(f"{where} lists {member.path!r} with {member.bytes} bytes")
    return member


def expected(rest: Iterator[Member], path: str, where: str) -> Member:
    """Return the next member, which must be a certain file."""
    member = next(rest, None)
    if member is None or member.path != path:
        raise StoreError(f"{where}: {path} is missing, or not where it was expected")
    return member


def pieces(file: BinaryIO, member: Member, where: str) -> Iterator[bytes]:
    """Yield the content of a member piece by piece; raises StoreError at the end if it is not what was listed."""
    sha256 = hashlib.sha256()
    file.seek(member.start)
    left = member.bytes
    while left:
        block = file.read(min(left, 1 << 22))
        if not block:
            raise StoreError(f"{where}: {member.name} is cut off")
        sha256.update(block)
        left -= len(block)
        yield block
    if sha256.hexdigest() != member.sha256:
        raise StoreError(f"{where}: {member.name} is damaged (sha256 differs); fetch the archive again")


def content_of(file: BinaryIO, start: int, length: int, most: int, where: str) -> bytes:
    """Return a small member; raises StoreError for one that is larger than it can be."""
    if length > most:
        raise StoreError(f"{where} has {length} bytes; at most {most} were expected")
    file.seek(start)
    return file.read(length)


def parsed(content: bytes, where: str) -> dict[str, Json]:
    """Return a JSON document; raises StoreError for anything else."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise StoreError(f"{where} is no JSON document")
    return document
