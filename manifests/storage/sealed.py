"""The files of a run, which carry digests of themselves, so that no changed byte goes unnoticed.

A checkpoint holds `"seal": "<64 hex digits>"` among the metadata in its header: the sha256 of the whole file with these
digits set to 0. A log is sealed line by line: `"chain"` is a digest of the line and of the chain before it, so that no
line can change, go or come unnoticed. JSON documents are those of `manifests.storage.documents`.

What was written before there were seals has none, and is read as it is; `format` (2 from the seals on) keeps a
checkpoint or a line whose seal was hit from passing for one of these.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeVar

from manifests.fingerprint import Json, Settings
from manifests.records.checkpoint import CheckpointRecord
from manifests.records.codec import Unfit, as_record
from manifests.storage import documents
from manifests.storage.errors import Malformed

T = TypeVar("T")

SEALED_SINCE = 2
"""The `format` of the first checkpoints and logs that have seals."""

UNSEALED = "0" * 64
_SEAL = re.compile(rb'(?<!\\)"seal": ?"([0-9a-f]{64})"')
_CHAIN = re.compile(r', "chain": "([0-9a-f]{16})"\}\Z')
NO_CHAIN = "0" * 16
"""The chain before the first line of a log."""
_SEALED = "sealed "  # before the chain of a line that has one: after it, none may come without
_BLOCK = 1 << 22
MOST_HEADER_BYTES = 100 << 20  # what the safetensors library reads


class Damaged(ValueError):
    """A file that is not what was written, with the reason; the path is for whoever tells it."""


# -- checkpoints -------------------------------------------------------------------------------------------------------


def seal_file(path: Path) -> None:
    """Put the digest of a checkpoint into the place that it keeps for it; raises Damaged if it keeps none, OSError."""
    with path.open("rb+") as file:
        place = _place(_head(file))
        if place is None:
            raise Damaged("it keeps no place for a seal")
        file.seek(place)
        digest = _digest(file, place)
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())


def check_file(path: Path) -> bool:
    """Return whether a checkpoint has a seal, which then fits its bytes; raises Damaged if it does not, and OSError."""
    with path.open("rb") as file:
        place = _place(_head(file))
        if place is None:
            return False
        file.seek(place)
        told = file.read(64).decode()
        if _digest(file, place) != told:
            raise Damaged("its bytes have changed since it was written (its sha256 differs)")
    return True


def newest_checkpoint(folder: Path) -> CheckpointRecord | None:
    """Return what the newest checkpoint of a run's epochs says of itself, or None without one.

    Raises Damaged if that is not what was written, and OSError.
    """
    paths = [path for path in folder.glob("epoch-*.safetensors") if path.stem.removeprefix("epoch-").isdigit()]
    if not paths:
        return None
    with max(paths, key=lambda path: int(path.stem.removeprefix("epoch-"))).open("rb") as file:
        header = strict_json(_head(file)[8:])
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    text = metadata.get("checkpoint") if isinstance(metadata, dict) else None
    document = strict_json(text) if isinstance(text, str) else None
    if not isinstance(document, dict):
        raise Damaged("it does not say what it is")
    digest = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest() if isinstance(text, str) else ""
    told = metadata.get("document_sha256") if isinstance(metadata, dict) else None
    if is_sealed_format(document.get("format")) and told != digest:
        raise Damaged("what it says of itself has changed since it was written")
    try:
        return as_record(CheckpointRecord, document)
    except Unfit as error:
        raise Damaged(str(error)) from None


def _head(file: BinaryIO) -> bytes:
    """Return the header of a safetensors file, its length before it: there stands the seal."""
    start = file.read(8)
    length = int.from_bytes(start, "little") if len(start) == 8 else 0
    if length > MOST_HEADER_BYTES:
        raise Damaged("its header is longer than any that is written")
    return start + file.read(length)


def _place(head: bytes) -> int | None:
    found = [match.start(1) for match in _SEAL.finditer(head)]
    if len(found) > 1:
        raise Damaged("it has several seals")
    return found[0] if found else None


def _digest(file: BinaryIO, place: int) -> str:
    """Return the sha256 of a file with the 64 bytes from `place` on as 0."""
    digest, at = hashlib.sha256(), 0
    file.seek(0)
    while block := bytearray(file.read(_BLOCK)):
        start, end = max(place - at, 0), min(place + 64 - at, len(block))
        if start < end:
            block[start:end] = b"0" * (end - start)
        digest.update(block)
        at += len(block)
    return digest.hexdigest()


# -- JSON documents ----------------------------------------------------------------------------------------------------


def sealed_text(document: Settings) -> bytes:
    """Return a document as the bytes of a file; raises ValueError for numbers that JSON does not have."""
    return documents.seal(json.dumps(document, indent=1, allow_nan=False).encode() + b"\n")


def parsed(data: bytes) -> dict[str, Json]:
    """Return the document in the bytes of a file; raises Damaged if they are not what was written.

    A document without a digest is taken as it is.
    """
    try:
        return documents.decode(data, "it")
    except Malformed as error:
        raise Damaged(str(error).removeprefix("it is damaged: ")) from None


def strict_json(data: bytes | str) -> Any:
    """Return what JSON says, with finite numbers only; raises Damaged for anything else."""

    def refused(word: str) -> NoReturn:
        raise Damaged(f"it holds {word}, which is no number")

    def finite(text: str) -> float:
        number = float(text)
        return number if abs(number) != float("inf") else refused(text)

    try:
        return json.loads(data, parse_constant=refused, parse_float=finite)
    except Damaged:
        raise
    except RecursionError:
        raise Damaged("it is nested too deep to be read") from None
    except ValueError as error:  # of bytes that are no text too, and of numbers without an end
        raise Damaged(f"it is no JSON: {error}") from None


def is_sealed_format(number: Any) -> bool:
    """Return whether what says that it is of this format was written with a seal."""
    return number is not None and not (type(number) is int and number < SEALED_SINCE)


def write_sealed(path: Path, document: Settings) -> None:
    """Write a document, sealed; it is there whole or not at all. Raises OSError, and ValueError like `sealed_text`."""
    write_whole(path, sealed_text(document))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all, with the rights that the umask leaves; raises OSError."""
    scratch = path.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read_sealed(path: Path) -> dict[str, Json]:
    """Return a document; raises Damaged if it is not what was written, and OSError if it cannot be read."""
    return parsed(path.read_bytes())


def read_as(kind: type[T], path: Path) -> T:
    """Return a document as the record of its kind; raises like `read_sealed`, and Damaged for another kind."""
    try:
        return as_record(kind, read_sealed(path))
    except Unfit as error:
        raise Damaged(str(error)) from None


# -- logs --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lines:
    """The lines of a log that are whole, each as text and as a document, with the chain after the last.

    `damage` says what is wrong, empty where nothing is; `half` is whether that is only the end of a last line, as it is
    left by a writer that was killed.
    """

    texts: tuple[str, ...]
    documents: tuple[dict[str, Json], ...]
    chain: str
    damage: str = ""
    half: bool = False


def chained(document: Settings, chain: str) -> tuple[str, str]:
    """Return a line of a log, sealed, without its end, and the chain after it; raises ValueError like `sealed_text`."""
    text = json.dumps({**document, "chain": NO_CHAIN}, allow_nan=False)
    link = _link(chain, text)
    return f'{text[: -len(NO_CHAIN) - 2]}{link}"}}', _SEALED + link


def _link(chain: str, text: str) -> str:
    return hashlib.sha256(f"{chain}\n{text}".encode(errors="surrogateescape")).hexdigest()[: len(NO_CHAIN)]


def read_lines(data: bytes) -> Lines:
    """Return what a log holds, given all of its bytes.

    Lines before the first that has a chain were written before there were any. In a log without a single chain, lines
    that cannot be read are left out: so they were when a run was killed.
    """
    texts: list[str] = []
    found: list[dict[str, Json]] = []
    chain, damage, unsealed = NO_CHAIN, "", b'"chain"' not in data
    *whole, rest = data.decode("utf-8", errors="surrogateescape").split("\n")
    for number, text in enumerate(whole, start=1):
        try:
            document = strict_json(text)
        except Damaged as error:
            damage = damage or ("" if unsealed else f"line {number}: {error}")
            continue
        try:
            chain = _chain_after(text, document, chain)
        except Damaged as error:
            damage = damage or f"line {number}: {error}"
            continue
        texts.append(text)
        found.append({name: value for name, value in document.items() if name != "chain"})
    half = bool(rest) and not damage
    if half:
        damage = "its last line is half: a run was killed while it wrote, or the file was cut off"
    return Lines(tuple(texts), tuple(found), chain, damage, half)


def _chain_after(text: str, document: Any, before: str) -> str:
    """Return the chain after a line, given that before it; raises Damaged if the line is not what was written."""
    if not isinstance(document, dict):
        raise Damaged("it is no document")
    match = _CHAIN.search(text)
    if match is None:
        if "chain" in document or is_sealed_format(document.get("format")) or before.startswith(_SEALED):
            raise Damaged("its seal is missing")
        return _link(before, text)
    if match[1] != _link(before, text[: match.start(1)] + NO_CHAIN + text[match.end(1) :]):
        raise Damaged("it, or one before it, has changed since it was written, or lines are missing before it")
    return _SEALED + match[1]


# -- the folder of a run -----------------------------------------------------------------------------------------------


def damaged_files(folder: Path) -> list[tuple[Path, str]]:
    """Return the files of a run, or of all of a recipe, that are not what was written, and what is wrong with each.

    `folder` and the folders in it are looked at: checkpoints, logs and JSON documents, to their last byte. Files from
    before there were seals pass where they can be read. Not looked at: TensorBoard's copy of the log.
    """
    return [(path, what) for path in sorted(_files(folder)) if (what := damage_of(path))]


def damage_of(path: Path) -> str:
    """Return what is wrong with one file of a run, empty where nothing is."""
    try:
        if path.suffix == ".jsonl":
            return read_lines(path.read_bytes()).damage or _log_shorter_than_told(path)
        if path.suffix == ".json":
            read_sealed(path)
            return ""
        return "" if check_file(path) else _unsealed_checkpoint(path)
    except Damaged as error:
        return str(error)
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.suffix in (".safetensors", ".json", ".jsonl") and path.is_file() and not path.name.startswith("."):
            yield path


def _log_shorter_than_told(path: Path) -> str:
    """Return what is wrong with a whole log that ends before the report of its run does."""
    try:
        told = read_sealed(path.with_name("run.json")).get("log")
    except (OSError, Damaged):
        return ""
    n_lines = path.read_bytes().count(b"\n")
    if isinstance(told, dict) and isinstance(told.get("lines"), int) and n_lines < told["lines"]:
        return f"it has {n_lines} lines, and had {told['lines']} when run.json was written: its end is missing"
    return ""


def _unsealed_checkpoint(path: Path) -> str:
    """Return what can be seen of a checkpoint without a seal: whether its header can be read and its length fits."""
    with path.open("rb") as file:
        head = _head(file)
        header = strict_json(head[8:])
        if not isinstance(header, dict):
            return "its header is no document"
        metadata = header.pop("__metadata__", {})
        document = strict_json(metadata.get("checkpoint", "{}")) if isinstance(metadata, dict) else {}
        if isinstance(document, dict) and is_sealed_format(document.get("format")):
            return "its seal is missing"
        try:
            ends = [int(tensor["data_offsets"][1]) for tensor in header.values()]
        except (TypeError, LookupError, ValueError):
            return "its header does not say where its tensors lie"
        expected = len(head) + max(ends, default=0)
        size = os.fstat(file.fileno()).st_size
    return "" if size == expected else f"it has {size} bytes; its header tells of {expected}"
