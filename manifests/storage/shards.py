"""Shards: a scene (at most 64 frames) of a table as a Parquet file with a sidecar, written and read frame by frame.

Pages carry checksums, which are off by default in Arrow, and are verified on every read; the footer has its own digest
in the sidecar.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.advice import HEAL
from manifests.fingerprint import DIGITS, Settings
from manifests.records.codec import as_document, as_record
from manifests.records.table import Provenance
from manifests.storage.documents import put_json
from manifests.storage.errors import Malformed, StoreError
from manifests.storage.files import Files
from manifests.storage.names import checked, checked_hex, is_word, make_target, sidecar_name, table_folder
from manifests.storage.remote import RangeFile, Unreachable
from manifests.tables.arrow import digest_column, failed_row, record_of, to_arrow, unlike
from manifests.tables.base import Failed, R, Record

UNKNOWN = Provenance()


@dataclass(frozen=True)
class ShardFile:
    """A committed shard: the scene (or chunk of one), the key of its inputs, and the file that holds it.

    `failed` names the frames whose row is only a status and a reason. `counts` are sums over the rows that tell how
    good they are (points seen, points labelled, ...). `columns` are digests of the values of some columns, for tables
    that are made from these alone. `origin` says by what code, packages and device it was made; it is in the sidecar
    alone and tells shards of other origin apart within a table, though their rows count the same.
    """

    shard: str
    key: str
    name: str
    rows: int
    bytes: int
    sha256: str
    footer_sha256: str
    failed: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    origin: Provenance = field(default=UNKNOWN, compare=False)


class ShardWriter:
    """Takes the rows of one shard in order and commits them; leaving the block without `commit` leaves no trace."""

    def __init__(
        self,
        files: Files,
        folder: str,
        shard: str,
        key: str,
        schema: pa.Schema,
        apart: Iterable[str] = (),
        origin: Provenance = UNKNOWN,
    ) -> None:
        """`apart` are the columns that get digests of their own, `origin` what the sidecar says of how it was made."""
        self._origin = origin
        self._files, self._folder, self._shard, self._key = files, folder, shard, key
        stage, fingerprint = folder.split("/")
        self._about = {"stage": stage, "fingerprint": fingerprint}
        self._schema = schema.with_metadata({**self._about, "shard": shard, "key": key})
        self._rows = 0
        self._failed: list[str] = []
        self._counts: dict[str, int] = {}
        self._columns = {name: hashlib.sha256() for name in apart}

    def __enter__(self) -> ShardWriter:
        self._scratch = self._files.scratch(f"{self._folder}/{self._shard}.{self._key}")
        self._stream, self._publish = self._scratch.__enter__()
        try:
            self._parquet = pq.ParquetWriter(
                self._stream,
                self._schema,
                compression="zstd",
                compression_level=1,
                use_dictionary=False,
                write_statistics=False,
                write_page_checksum=True,
                store_schema=True,
            )
        except (OSError, pa.ArrowException) as error:
            self._scratch.__exit__(None, None, None)
            raise self._scratch.refused(error) from None
        return self

    def append(self, row: Record | Failed, counts: Mapping[str, int] | None = None) -> None:
        """Add the next frame and its `counts`; raises ValueError if the row does not fit its table."""
        if isinstance(row, Failed):
            self._failed.append(row.frame_id)
            return self.append_table(failed_row(row, self._schema))
        for name, count in (counts or {}).items():
            self._counts[name] = self._counts.get(name, 0) + int(count)
        return self.append_table(to_arrow([row], type(row)))

    def append_table(self, table: pa.Table) -> None:
        """Add the next frame, given as a table of one row."""
        self._parquet.write_table(table.replace_schema_metadata(self._schema.metadata), row_group_size=1)
        self._rows += table.num_rows
        for name, total in self._columns.items():
            digest_column(table.column(name), total)

    def commit(self) -> ShardFile:
        """Publish file and sidecar, and return what was committed."""
        self._parquet.close()
        self._stream.flush()
        size = self._stream.tell()
        self._stream.seek(0)
        sha256 = hashlib.file_digest(self._stream, "sha256").hexdigest()  # type: ignore[arg-type]
        footer = read_footer(self._stream, size)
        name = f"{self._shard}.{self._key}.{sha256[:DIGITS]}.parquet"
        shard = ShardFile(
            self._shard, self._key, name, self._rows, size, sha256, hashlib.sha256(footer).hexdigest(),
            tuple(self._failed), self._counts,
            {column: total.hexdigest()[:DIGITS] for column, total in self._columns.items()}, self._origin,
        )  # fmt: skip
        self._publish(f"{self._folder}/{name}")
        put_sidecar(self._files, self._about["stage"], self._about["fingerprint"], shard)
        return shard

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._parquet.is_open:
            with suppress(OSError, pa.ArrowException):  # the file is discarded; the error under way is the one to tell
                self._parquet.close()
        self._scratch.__exit__(kind, error, None)


class ShardReader:
    """Single rows of a committed shard, page checksums verified. Open one per process."""

    def __init__(self, files: Files, folder: str, shard: ShardFile) -> None:
        self._where = files.show(folder, checked(shard.name))
        self._shard = shard
        self._alike: set[type[Record]] = set()
        self._stage, fingerprint = folder.split("/")
        try:
            path = f"{folder}/{shard.name}"
            self._source = files.system.open_input_file(path) if files.local else RangeFile(files.system, path)
            size = self._source.size()
            if size != shard.bytes:
                raise self._damaged(f"{size} bytes, {shard.bytes} when it was committed")
            if hashlib.sha256(read_footer(self._source, size)).hexdigest() != shard.footer_sha256:
                raise self._damaged("its footer has changed since it was committed")
            # behind a network, neighbouring columns come in one request
            self._parquet = pq.ParquetFile(self._source, page_checksum_verification=True, pre_buffer=not files.local)
        except FileNotFoundError:
            raise StoreError(f"{self._where} is missing; run: make {make_target(self._stage)} RECIPE=...") from None
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        self.schema: pa.Schema = self._parquet.schema_arrow
        about = {key.decode(): text.decode() for key, text in (self.schema.metadata or {}).items()}
        if [about.get(name) for name in ("stage", "fingerprint", "key")] != [self._stage, fingerprint, shard.key]:
            raise StoreError(
                f"{self._where} holds a shard of another identity; delete it and run: make {make_target(self._stage)} "
                "RECIPE=..."
            )

    @property
    def n_rows(self) -> int:
        """Frames in the shard."""
        return int(self._parquet.num_row_groups)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the whole shard as an Arrow table; raises StoreError if a page is damaged."""
        try:
            return self._parquet.read(columns=None if columns is None else list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None

    def record(self, index: int, kind: type[R]) -> R | Failed:
        """Return frame `index` as a row of its table, or of a part of it; raises StoreError if a page is damaged.

        Also where the shard has not the columns that are read, because another version of this program made it.
        """
        self._check(kind)
        try:
            table = self._parquet.read_row_group(index, columns=kind.schema.names, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        return self._record_of(table, 0, kind)

    def records(self, kind: type[R]) -> list[R | Failed]:
        """Return all frames as `record` does."""
        self._check(kind)
        table = self.table(kind.schema.names)
        return [self._record_of(table, number, kind) for number in range(table.num_rows)]

    def _record_of(self, table: pa.Table, number: int, kind: type[R]) -> R | Failed:
        try:
            return record_of(table, number, kind)
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def unlike(self, kind: type[Record]) -> list[str]:
        """Return the columns that are to be read and that the shard has not, or has of another type or shape."""
        lacking = [] if kind in self._alike else unlike(self.schema, kind)
        if not lacking:
            self._alike.add(kind)
        return lacking

    def _check(self, kind: type[Record]) -> None:
        if lacking := self.unlike(kind):
            raise StoreError(
                f"{self._where} has no {', '.join(lacking)} of the type that is read: another version of this program "
                f"made it; run: make {make_target(self._stage)} RECIPE=..."
            )

    def _unreadable(self, error: Exception) -> StoreError:
        if isinstance(error, Unreachable):
            return StoreError(f"{self._where} cannot be read: {error}")
        return self._damaged(str(error))

    def _damaged(self, what: str) -> StoreError:
        return StoreError(f"{self._where} is damaged: {what}; {HEAL}")


def shard_from(document: Any, where: str) -> ShardFile:
    """Return the shard that a sidecar, manifest or ref describes; raises Malformed if it is malformed or foreign."""
    try:
        shard = ShardFile(
            shard=str(document["shard"]),
            key=str(document["key"]),
            name=str(document["name"]),
            rows=int(document["rows"]),
            bytes=int(document["bytes"]),
            sha256=str(document["sha256"]),
            footer_sha256=str(document["footer_sha256"]),
            failed=tuple(str(frame) for frame in document.get("failed", ())),
            counts={str(name): int(count) for name, count in document.get("counts", {}).items()},
            columns={str(name): checked_hex(str(value)) for name, value in document.get("columns", {}).items()},
            origin=as_record(Provenance, document.get("origin", {})),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise Malformed(f"{where} is damaged: it does not describe a shard") from None
    if shard.name != f"{shard.shard}.{shard.key}.{shard.sha256[:DIGITS]}.parquet" or not is_word(shard.name):
        raise Malformed(f"{where} names a file outside its folder or of another shard ({shard.name!r})")
    return shard


def sidecar_from(document: Settings, stage: str, fingerprint: str, name: str, where: str) -> ShardFile:
    """Return the shard that a sidecar of this name in the folder of a table describes; raises Malformed if it is not.

    A sidecar of another table or shard has come to its place by hand.
    """
    if document.get("stage") != stage or document.get("fingerprint") != fingerprint:
        raise Malformed(f"{where} belongs to another table")
    shard = shard_from(document, where)
    if name != sidecar_name(shard.shard, shard.key):
        raise Malformed(f"{where} describes {shard.shard}.{shard.key}")
    return shard


def put_sidecar(files: Files, stage: str, fingerprint: str, shard: ShardFile) -> None:
    """Make a shard count whose file lies in its place."""
    path = f"{table_folder(stage, fingerprint)}/{sidecar_name(shard.shard, shard.key)}"
    put_json(files, path, sidecar_document(stage, fingerprint, shard))


def sidecar_document(stage: str, fingerprint: str, shard: ShardFile) -> Settings:
    """Return what the sidecar of a shard says: all of it, and the table that it belongs to."""
    return {**as_document(shard), "stage": stage, "fingerprint": fingerprint}


def read_footer(source: Any, size: int) -> bytes:
    """Return the footer of a Parquet file with its length word, the part that page checksums do not cover."""
    source.seek(max(size - 8, 0))
    length = int.from_bytes(source.read(8)[:4], "little") + 8
    start = max(size - length, 0)
    source.seek(start)
    return bytes(source.read(size - start))


def damage(files: Files, stage: str, fingerprint: str, shard: ShardFile) -> str | None:
    """Return what is wrong with a shard after reading every byte of it, or None.

    Raises StoreError if that cannot be told, because the store cannot be reached or may not be read.
    """
    folder = table_folder(stage, fingerprint)
    path = f"{folder}/{checked(shard.name)}"

    def read() -> tuple[str, int]:
        with files.system.open_input_stream(path) as stream:
            digest, size = hashlib.sha256(), 0
            while block := stream.read(1 << 22):
                digest.update(block)
                size += len(block)
            return digest.hexdigest(), size

    try:
        sha256, size = files.patiently(read)
    except FileNotFoundError:
        return "is missing"
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None) == errno.EIO:  # the disk itself cannot read it any more
            return f"cannot be read: {error}"
        raise StoreError(f"{files.show(path)} cannot be read: {error}") from None
    if size != shard.bytes:
        return f"{size} bytes, {shard.bytes} when it was committed"
    if sha256 != shard.sha256:
        return "its bytes have changed since it was committed (sha256 differs)"
    return None
