"""The store: tables as folders of shards that appear whole or not at all, local or on any pyarrow file system.

    <store>/<stage>/<fingerprint>/<shard>.<key>.<content>.parquet   one scene (at most 64 frames), one frame a row group
    <store>/<stage>/<fingerprint>/<shard>.<key>.json                sidecar: a shard counts once this exists
    <store>/<stage>/<fingerprint>/manifest.json                     what the folder holds and from what it was made
    <store>/refs/<name>.json                                        a recipe's (or a training run's) tables by name

File names hold the digest of the content, so two writers of one shard never touch each other's bytes. The sidecar is
written last and names the file with its size and sha256; nothing relies on a rename (locally one is used so that a
killed writer leaves only a `.tmp-` file). On a file system behind a network, what fails for a moment is tried again,
and a shard is read by ranges. Pages carry checksums, which are off by default in Arrow, and are verified on
every read; the footer has its own digest in the sidecar. Names read from the store never leave their folder.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from manifests.fingerprint import DIGITS
from manifests.rows import Row, decode_row, from_table, to_table
from manifests.storage.remote import RangeFile, Unreachable, patiently, whole

T = TypeVar("T")

REFS = "refs"
MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"
MOST_JSON_BYTES = 32 << 20  # of a sidecar, manifest or ref; a shard takes about 400, so 80 000 of them
_WORD = re.compile(r"[A-Za-z0-9_%][A-Za-z0-9_.+%=-]*")
_HEX = re.compile(r"[0-9a-f]+")


class StoreError(RuntimeError):
    """A table that is missing, incomplete or damaged, or a store that cannot be written; it says what to do."""


class DiskFull(StoreError):
    """A disk of this machine that has no room for a shard; another machine may have some."""


@dataclass(frozen=True)
class ShardFile:
    """A committed shard: the scene (or chunk of one), the key of its inputs, and the file that holds it.

    `failed` names the frames whose row is only a status and a reason. `counts` are sums over the rows that tell how
    good they are (points seen, points labelled, ...).
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


@dataclass(frozen=True)
class TableRef:
    """One table of a ref: stage, fingerprint of its identity, and exactly the shards that it stands for."""

    stage: str
    fingerprint: str
    shards: tuple[ShardFile, ...]

    @property
    def rows(self) -> int:
        """Frames in the table, failed ones included."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class Ref:
    """What a name stands for: tables, and the frames that the recipe excludes (their rows exist, users skip them).

    `tables` are complete and hold the same frames. `held` are the recipe's other shards: of a table that is not
    complete yet, or of scenes that are not selected now. Nobody reads them by this ref, but they are not garbage.
    `building` are stage and fingerprint of tables that a run is at: nothing in their folders is garbage.
    """

    recipe: str
    tables: Mapping[str, TableRef]
    excluded: tuple[str, ...] = ()
    held: tuple[TableRef, ...] = ()
    building: tuple[tuple[str, str], ...] = ()

    def table(self, stage: str) -> TableRef:
        """Return one table; raises StoreError naming the make target that builds it."""
        if stage not in self.tables:
            raise StoreError(f"recipe {self.recipe} has no table `{stage}` yet; run: make {stage} RECIPE={self.recipe}")
        return self.tables[stage]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds: the readable identity that was hashed, the shards, and how they were made."""

    stage: str
    fingerprint: str
    identity: Mapping[str, Any]
    shards: tuple[ShardFile, ...]
    made: Mapping[str, Any] = field(default_factory=dict)


class Store:
    """A folder of tables. Picklable; opens its file system anew in every process.

    `place` names it for people: the URI without what may follow its path or hold a password.
    """

    def __init__(self, uri: str, files: pafs.FileSystem | None = None) -> None:
        self.uri = uri
        self._given = files
        self._folders: set[str] = set()  # those made already
        self._connect()

    @classmethod
    def open(cls, uri: str | Path, files: pafs.FileSystem | None = None) -> Store:
        """Return the store at a local path or a URI of any pyarrow file system (`s3://bucket/folder`, `gs://`, ...).

        What else an object store needs stands in the URI, as pyarrow takes it:
        `s3://bucket/folder?endpoint_override=host:9000&scheme=http&region=us-east-1`. `files` is a file system that no
        URI leads to; the URI is then the path in it.
        """
        text = str(uri)
        return cls(text if "://" in text or files else str(Path(text).expanduser().absolute()), files)

    def _connect(self) -> None:
        self.place = shown_uri(self.uri)
        try:
            if self._given is not None:
                base, path = self._given, self.uri
                self.local = None
            elif "://" in self.uri:
                base, path = patiently(lambda: pafs.FileSystem.from_uri(self.uri))
                self.local = Path(path) if isinstance(base, pafs.LocalFileSystem) else None
            else:
                base, path = pafs.LocalFileSystem(), self.uri
                self.local = Path(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            told = str(error).replace(self.uri, self.place)
            raise StoreError(f"store {self.place} cannot be opened: {told}") from None
        self._files = pafs.SubTreeFileSystem(path, base)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.uri, self._given)

    def reopened(self) -> Store:
        """Return this store over connections of its own; a forked process must not talk over those of its parent."""
        return Store(self.uri, self._given)

    # -- shards -------------------------------------------------------------------------------------------------------

    def write(self, stage: str, fingerprint: str, shard: str, key: str, table: pa.Table) -> ShardFile:
        """Commit a whole table as one shard; see `writer` for errors."""
        with self.writer(stage, fingerprint, shard, key, table.schema) as writer:
            for start in range(table.num_rows):
                writer.append_table(table.slice(start, 1))
            return writer.commit()

    def writer(self, stage: str, fingerprint: str, shard: str, key: str, schema: pa.Schema) -> ShardWriter:
        """Return a writer that takes one frame after the other and commits the shard at the end.

        Raises StoreError where the store cannot be written (no rights, disk full); nothing half written ever counts.
        """
        return ShardWriter(self, table_folder(stage, fingerprint), checked(shard), checked_hex(key), schema)

    def shards(self, stage: str, fingerprint: str) -> dict[tuple[str, str], ShardFile]:
        """Return every committed shard of a table by (shard, key).

        Committed means: the sidecar is whole, and the file that it names lies beside it with the size it gives. Raises
        StoreError if a sidecar names a file outside its folder or of another identity.
        """
        folder = table_folder(stage, fingerprint)
        sizes = self._list(folder)
        found = {}
        for name in sorted(sizes):
            if name.endswith(".json") and name != MANIFEST and not name.startswith(_TEMPORARY):
                document = self._read_json(f"{folder}/{name}", missing_ok=True)
                if document is None:
                    continue
                if document.get("stage") != stage or document.get("fingerprint") != fingerprint:
                    raise StoreError(f"{self._show(folder, name)} belongs to another table; delete it and run again")
                shard = shard_from(document, self._show(folder, name))
                if name != sidecar_name(shard.shard, shard.key):
                    raise StoreError(f"{self._show(folder, name)} describes {shard.shard}.{shard.key}; delete it")
                if sizes.get(shard.name) == shard.bytes:
                    found[shard.shard, shard.key] = shard
        return found

    def read(self, stage: str, fingerprint: str, shard: ShardFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a shard as an Arrow table, checksums verified; raises StoreError if it is missing or damaged."""
        reader = self.open_shard(stage, fingerprint, shard)
        return reader.table(columns)

    def rows(
        self, stage: str, fingerprint: str, shard: ShardFile, columns: Sequence[str] | None = None
    ) -> list[dict[str, Any]]:
        """Return a shard's rows as NumPy values, in frame order; see `read`."""
        return from_table(self.read(stage, fingerprint, shard, columns))

    def open_shard(self, stage: str, fingerprint: str, shard: ShardFile) -> ShardReader:
        """Return a reader of single rows; raises StoreError if the shard is missing, damaged or of another table."""
        return ShardReader(self, table_folder(stage, fingerprint), shard)

    def forget(self, stage: str, fingerprint: str, shard: ShardFile) -> None:
        """Remove a shard, sidecar first, so that the next run builds it again."""
        folder = table_folder(stage, fingerprint)
        for name in (sidecar_name(shard.shard, shard.key), checked(shard.name)):
            self._delete(f"{folder}/{name}")

    def open_bytes(self, stage: str, fingerprint: str, shard: ShardFile) -> BinaryIO:
        """Return a shard's file as bytes, to be copied; raises StoreError if it is missing."""
        path = f"{table_folder(stage, fingerprint)}/{checked(shard.name)}"
        try:
            if self.local is not None:
                return (self.local / path).open("rb")
            return io.BufferedReader(pa.PythonFile(RangeFile(self._files, path), mode="r"))
        except OSError as error:
            raise StoreError(f"{self._show(path)} cannot be read: {error}") from None

    def put_bytes(self, stage: str, fingerprint: str, shard: ShardFile, pieces: Iterable[bytes]) -> None:
        """Place the file of a shard that was made elsewhere; it does not count before `put_sidecar`.

        Whatever `pieces` raises leaves no file.
        """
        path = f"{table_folder(stage, fingerprint)}/{checked(shard.name)}"
        with self._scratch(path) as (stream, publish):
            for piece in pieces:
                stream.write(piece)
            publish()

    def put_sidecar(self, stage: str, fingerprint: str, shard: ShardFile) -> None:
        """Make a shard count whose file lies in its place."""
        path = f"{table_folder(stage, fingerprint)}/{sidecar_name(shard.shard, shard.key)}"
        self._put_json(path, asdict(shard) | {"stage": stage, "fingerprint": fingerprint})

    def damage(self, stage: str, fingerprint: str, shard: ShardFile) -> str | None:
        """Return what is wrong with a shard after reading every byte of it, or None.

        Raises StoreError if that cannot be told, because the store cannot be reached or may not be read.
        """
        folder = table_folder(stage, fingerprint)
        path = f"{folder}/{checked(shard.name)}"

        def read() -> tuple[str, int]:
            with self._files.open_input_stream(path) as stream:
                digest, size = hashlib.sha256(), 0
                while block := stream.read(1 << 22):
                    digest.update(block)
                    size += len(block)
                return digest.hexdigest(), size

        try:
            sha256, size = self._patiently(read)
        except FileNotFoundError:
            return "is missing"
        except (OSError, pa.ArrowException) as error:
            if getattr(error, "errno", None) == errno.EIO:  # the disk itself cannot read it any more
                return f"cannot be read: {error}"
            raise StoreError(f"{self._show(path)} cannot be read: {error}") from None
        if size != shard.bytes:
            return f"{size} bytes, {shard.bytes} when it was committed"
        if sha256 != shard.sha256:
            return "its bytes have changed since it was committed (sha256 differs)"
        return None

    # -- manifests and refs -------------------------------------------------------------------------------------------

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest of a table; the last writer wins, and every writer lists what is committed by then."""
        document = asdict(manifest) | {"shards": [asdict(shard) for shard in manifest.shards]}
        self._put_json(f"{table_folder(manifest.stage, manifest.fingerprint)}/{MANIFEST}", document)

    def read_manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        """Return the manifest of a table, or None if there is none; raises StoreError if it names foreign files."""
        folder = table_folder(stage, fingerprint)
        document = self._read_json(f"{folder}/{MANIFEST}", missing_ok=True)
        if document is None:
            return None
        where = self._show(folder, MANIFEST)
        if document.get("stage") != stage or document.get("fingerprint") != fingerprint:
            raise StoreError(f"{where} belongs to another table; delete it and run again")
        shards = tuple(shard_from(item, where) for item in expect_list(document.get("shards"), where))
        identity, made = document.get("identity", {}), document.get("made", {})
        if not isinstance(identity, dict) or not isinstance(made, dict):
            raise StoreError(f"{where} does not say what the table was made from; delete it and run again")
        return Manifest(stage, fingerprint, identity, shards, made)

    def manifests(self, stage: str) -> list[Manifest]:
        """Return the manifests of all tables of a stage, newest last."""
        found = []
        for entry in self._entries(checked(stage)):
            if entry.type == pafs.FileType.Directory and _HEX.fullmatch(entry.base_name):
                manifest = self.read_manifest(stage, entry.base_name)
                if manifest is not None:
                    found.append(manifest)
        return sorted(found, key=lambda manifest: str(manifest.made.get("finished", "")))

    def write_ref(self, name: str, ref: Ref) -> None:
        """Make `name` stand for a set of tables. Names are words, or `runs/<word>` for the pin of a training run."""
        document = {
            "recipe": ref.recipe,
            "tables": {stage: asdict(table) for stage, table in ref.tables.items()},
            "excluded": list(ref.excluded),
            "held": [asdict(table) for table in ref.held],
            "building": ref.building,
        }
        self._put_json(ref_path(name), document)

    def read_ref(self, name: str) -> Ref:
        """Return what a name stands for; raises StoreError if nothing was built under it or it names foreign files."""
        path = ref_path(name)
        document = self._read_json(path, missing_ok=True)
        if document is None:
            raise StoreError(f"store {self.place} holds nothing of recipe {name} yet; run: make pack RECIPE={name}")
        where = self._show(path)
        named = document.get("tables")
        if not isinstance(named, dict):
            raise StoreError(f"{where} is not a ref of this store; delete it and run again")
        tables = {stage: table_from(item, where) for stage, item in named.items()}
        held = tuple(table_from(item, where) for item in expect_list(document.get("held", []), where))
        excluded = tuple(str(frame) for frame in expect_list(document.get("excluded", []), where))
        building = tuple(building_from(item, where) for item in expect_list(document.get("building", []), where))
        return Ref(str(document.get("recipe")), tables, excluded, held, building)

    def begin(self, name: str, recipe: str, tables: Iterable[tuple[str, str]]) -> None:
        """Say by a ref that tables (stage, fingerprint) are being built, until the ref is written without that.

        It keeps their files from being collected, whatever the clocks say that date them; it outlives a run that was
        killed, whose work the next one takes up.
        """
        known = self._read_json(ref_path(name), missing_ok=True) is not None
        before = self.read_ref(name) if known else Ref(recipe, {})
        now = replace(before, building=tuple(dict.fromkeys((*before.building, *tables))))
        if now != before:
            self.write_ref(name, now)

    def refs(self) -> dict[str, Ref]:
        """Return every ref of the store by name."""
        names = []
        for entry in self._entries(REFS, recursive=True):
            if entry.type == pafs.FileType.File and entry.base_name.endswith(".json"):
                name = entry.path.split(f"{REFS}/", 1)[1].removesuffix(".json")
                if not entry.base_name.startswith(_TEMPORARY):
                    names.append(name)
        return {name: self.read_ref(name) for name in sorted(names)}

    def delete_ref(self, name: str) -> None:
        """Remove a ref; its tables stay until they are collected."""
        self._delete(ref_path(name))

    def unreferenced(self, min_age_s: float) -> list[tuple[str, int]]:
        """Return (relative path, bytes) of every file that no ref names and that is older than `min_age_s` seconds.

        Tables being built are left alone, however old they look. The age is for what has begun since the refs were
        read; it is told by the clock that dates the files, and not by that of this machine.
        """
        now = self._clock_s()
        keep, building = set(), set()
        for ref in self.refs().values():
            building |= {table_folder(*table) for table in ref.building}
            for table in (*ref.tables.values(), *ref.held):
                folder = table_folder(table.stage, table.fingerprint)
                keep.add(f"{folder}/{MANIFEST}")
                for shard in table.shards:
                    keep |= {f"{folder}/{shard.name}", f"{folder}/{sidecar_name(shard.shard, shard.key)}"}
        garbage = []
        for entry in self._entries("", recursive=True):
            path = entry.path.lstrip("/")
            if entry.type != pafs.FileType.File or path in keep or path.rpartition("/")[0] in building:
                continue
            temporary = entry.base_name.startswith(_TEMPORARY)
            if path.startswith(f"{REFS}/") and not temporary:
                continue
            table_file = path.count("/") == 2 and entry.base_name.endswith((".parquet", ".json"))
            aged = entry.mtime is None or now - entry.mtime.timestamp() >= min_age_s
            if (temporary or table_file) and aged:
                garbage.append((path, int(entry.size or 0)))
        # sidecars go first: a shard without one does not count, so an interrupted collection leaves nothing half there
        return sorted(garbage, key=lambda item: (not item[0].endswith(".json"), item[0]))

    def _clock_s(self) -> float:
        """Return the time by the clock that dates the files of this store: that of a file which is written for it.

        Where none can be written, or files have no dates, it is the time of this machine.
        """
        path = f"{REFS}/{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            self._put_json(path, {})
            try:
                written = self._patiently(lambda: self._files.get_file_info(path).mtime)
            finally:
                self._delete(path)
        except (StoreError, OSError, pa.ArrowException):
            written = None
        return time.time() if written is None else float(written.timestamp())

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files by the relative paths that `unreferenced` returned."""
        for path in paths:
            self._delete(path)

    def free_bytes(self) -> int | None:
        """Return the free space of a local store, or None where it cannot be told."""
        if self.local is None:
            return None
        folder = self.local
        while not folder.exists():
            folder = folder.parent
        state = os.statvfs(folder)
        return state.f_bavail * state.f_frsize

    def last_written(self, stage: str, fingerprint: str) -> datetime | None:
        """Return when a file of a table was last written, by the clock of where it lies; None if there is none."""
        times = [entry.mtime for entry in self._entries(table_folder(stage, fingerprint)) if entry.mtime is not None]
        return max(times, default=None)

    # -- files --------------------------------------------------------------------------------------------------------

    def _entries(self, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
        try:
            selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
            return list(self._patiently(lambda: self._files.get_file_info(selector)))
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"store {self.place}: {folder or 'its folder'} cannot be listed: {error}") from None

    def _list(self, folder: str) -> dict[str, int]:
        entries = self._entries(folder)
        return {entry.base_name: int(entry.size or 0) for entry in entries if entry.type == pafs.FileType.File}

    def _show(self, *parts: str) -> str:
        return "/".join([self.place.rstrip("/"), *parts])

    def _patiently(self, action: Callable[[], T]) -> T:
        """Return what `action` returns; on a file system behind a network it is tried again after errors that pass."""
        return action() if self.local is not None else patiently(action)

    def _read_json(self, path: str, missing_ok: bool = False) -> dict[str, Any] | None:
        """Return a JSON document; a half-written one counts as missing, since its writer never finished."""

        def read() -> bytes:
            with self._files.open_input_file(path) as source:
                size = int(source.size())
                if size > MOST_JSON_BYTES:
                    raise StoreError(f"{self._show(path)} is {size} bytes long: no document of a store; delete it")
                return whole(bytes(source.read(size)), size)

        try:
            content = self._patiently(read)
        except FileNotFoundError:
            if missing_ok:
                return None
            raise StoreError(f"{self._show(path)} is missing") from None
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self._show(path)} cannot be read: {error}") from None
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            return None
        if not isinstance(document, dict):
            raise StoreError(f"{self._show(path)} is not a document of this store; delete it and run again")
        return document

    def _put_json(self, path: str, document: Mapping[str, Any]) -> None:
        content = json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()
        with self._scratch(path) as (stream, publish):
            stream.write(content)
            publish()

    def _scratch(self, path: str) -> _Scratch:
        return _Scratch(self, path)

    def _delete(self, path: str) -> None:
        try:
            self._patiently(lambda: self._files.delete_file(path))
        except FileNotFoundError:
            return
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self._show(path)} cannot be deleted: {error}") from None

    def _upload(self, source: BinaryIO, path: str) -> None:
        """Copy a finished local file to a remote file system, where an object appears when its stream is closed.

        One that broke off may have left its beginning there; it does not count, and the next try writes over it.
        """
        folder = path.rsplit("/", 1)[0]
        size = source.seek(0, os.SEEK_END)

        def copy() -> None:
            if folder not in self._folders:
                self._files.create_dir(folder, recursive=True)
                self._folders.add(folder)
            source.seek(0)
            with self._files.open_output_stream(path) as target:
                while block := source.read(1 << 22):
                    target.write(block)
            arrived = self._files.get_file_info(path).size
            if arrived != size:
                raise ConnectionError(f"{arrived} of {size} bytes arrived")

        patiently(copy)


class _Scratch:
    """A file that becomes visible under its final name by `publish`, and leaves nothing behind without it."""

    def __init__(self, store: Store, path: str) -> None:
        self._store, self._path = store, path
        self._scratch: Path | None = None

    def __enter__(self) -> tuple[BinaryIO, Any]:
        try:
            if self._store.local is None:
                self._stream: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
            else:
                folder = (self._store.local / self._path).parent
                folder.mkdir(parents=True, exist_ok=True)
                self._scratch = folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
                self._stream = self._scratch.open("xb+")
        except OSError as error:
            raise self.refused(error) from None
        return self._stream, self.publish

    def publish(self, path: str | None = None) -> None:
        """Make the content visible as `path` (default: the one given at the start)."""
        path = path or self._path
        self._stream.flush()
        if self._store.local is None:
            self._store._upload(self._stream, path)
            return
        os.fsync(self._stream.fileno())
        assert self._scratch is not None
        os.replace(self._scratch, self._store.local / path)
        self._scratch = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            self._stream.close()
        except OSError:  # a full disk shows once more here; the first error is the one to tell
            pass
        if self._scratch is not None:
            self._scratch.unlink(missing_ok=True)
        if isinstance(error, OSError | pa.ArrowException) and not isinstance(error, StoreError):
            raise self.refused(error) from None

    def refused(self, error: BaseException) -> StoreError:
        """Return the error for a write that failed, here or on the way to where the store lies."""
        place = self._store.place
        if self._store.local is None and is_full(error):
            place += f", whose shards wait for their upload in {tempfile.gettempdir()}"
        return unwritable(place, error)


class ShardWriter:
    """Takes the rows of one shard in order and commits them; leaving the block without `commit` leaves no trace."""

    def __init__(self, store: Store, folder: str, shard: str, key: str, schema: pa.Schema) -> None:
        self._store, self._folder, self._shard, self._key = store, folder, shard, key
        stage, fingerprint = folder.split("/")
        self._about = {"stage": stage, "fingerprint": fingerprint}
        self._schema = schema.with_metadata({**self._about, "shard": shard, "key": key})
        self._rows = 0
        self._failed: list[str] = []
        self._counts: dict[str, int] = {}

    def __enter__(self) -> ShardWriter:
        self._scratch = self._store._scratch(f"{self._folder}/{self._shard}.{self._key}")
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

    def append(self, row: Row, counts: Mapping[str, int] | None = None) -> None:
        """Add the next frame and its `counts`; raises ValueError if the row does not fit the schema."""
        if row.get("status") == "failed":
            self._failed.append(str(row["frame_id"]))
        for name, count in (counts or {}).items():
            self._counts[name] = self._counts.get(name, 0) + int(count)
        self.append_table(to_table([row], self._schema))

    def append_table(self, table: pa.Table) -> None:
        """Add the next frame, given as a table of one row."""
        self._parquet.write_table(table.replace_schema_metadata(self._schema.metadata), row_group_size=1)
        self._rows += table.num_rows

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
        )  # fmt: skip
        self._publish(f"{self._folder}/{name}")
        self._store.put_sidecar(self._about["stage"], self._about["fingerprint"], shard)
        return shard

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._parquet.is_open:
            try:
                self._parquet.close()
            except (OSError, pa.ArrowException):  # the file is discarded; the error under way is the one to tell
                pass
        self._scratch.__exit__(kind, error, None)


class ShardReader:
    """Single rows of a committed shard, page checksums verified. Open one per process."""

    def __init__(self, store: Store, folder: str, shard: ShardFile) -> None:
        self._where = store._show(folder, checked(shard.name))
        self._shard = shard
        stage, fingerprint = folder.split("/")
        try:
            path = f"{folder}/{shard.name}"
            self._source = store._files.open_input_file(path) if store.local else RangeFile(store._files, path)
            size = self._source.size()
            if size != shard.bytes:
                raise self._damaged(f"{size} bytes, {shard.bytes} when it was committed")
            if hashlib.sha256(read_footer(self._source, size)).hexdigest() != shard.footer_sha256:
                raise self._damaged("its footer has changed since it was committed")
            # behind a network, neighbouring columns come in one request
            self._parquet = pq.ParquetFile(self._source, page_checksum_verification=True, pre_buffer=not store.local)
        except FileNotFoundError:
            raise StoreError(f"{self._where} is missing; run: make {stage}") from None
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        self.schema: pa.Schema = self._parquet.schema_arrow
        about = {key.decode(): text.decode() for key, text in (self.schema.metadata or {}).items()}
        if about.get("stage") != stage or about.get("fingerprint") != fingerprint or about.get("key") != shard.key:
            raise StoreError(f"{self._where} holds a shard of another identity; delete it and run: make {stage}")

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

    def row(self, index: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return frame `index` as NumPy values; raises StoreError if a page is damaged."""
        try:
            table = self._parquet.read_row_group(
                index, columns=None if columns is None else list(columns), use_threads=False
            )
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        return decode_row({name: table.column(name)[0] for name in table.column_names}, table.schema)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in range(self.n_rows):
            yield self.row(index)

    def _unreadable(self, error: Exception) -> StoreError:
        if isinstance(error, Unreachable):
            return StoreError(f"{self._where} cannot be read: {error}")
        return self._damaged(str(error))

    def _damaged(self, what: str) -> StoreError:
        advice = "Drop it with `python -m pipeline verify RECIPE --drop`, then run again"
        return StoreError(f"{self._where} is damaged: {what}. {advice}")


def shard_from(document: Any, where: str) -> ShardFile:
    """Return the shard that a sidecar, manifest or ref describes; raises StoreError if it is malformed or foreign."""
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
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise StoreError(f"{where} does not describe a shard; delete it and run again") from None
    if shard.name != f"{shard.shard}.{shard.key}.{shard.sha256[:DIGITS]}.parquet" or not is_word(shard.name):
        raise StoreError(f"{where} names a file outside its folder or of another shard ({shard.name!r}); delete it")
    return shard


def table_from(document: Any, where: str) -> TableRef:
    """Return the table that a ref describes; raises StoreError if it is malformed or foreign."""
    if not isinstance(document, dict):
        raise StoreError(f"{where} is not a ref of this store; delete it and run again")
    shards = tuple(shard_from(shard, where) for shard in expect_list(document.get("shards"), where))
    return TableRef(checked(str(document.get("stage"))), checked_hex(str(document.get("fingerprint"))), shards)


def building_from(document: Any, where: str) -> tuple[str, str]:
    """Return stage and fingerprint of a table that a ref says is being built; raises StoreError for anything else."""
    match document:
        case [str(stage), str(fingerprint)]:
            return checked(stage), checked_hex(fingerprint)
    raise StoreError(f"{where} is not a ref of this store; delete it and run again")


def shard_name(scene: str, start: int | None = None) -> str:
    """Return the name of a scene's shard, or of its part from frame `start` on; any scene name can be told from it."""
    name = quote(scene, safe="-_").replace(".", "%2E").replace("~", "%7E")
    return name if start is None else f"{name}+{start:04d}"


def scene_of(shard: str) -> str:
    """Return the scene that a shard is (a part of)."""
    return unquote(shard.partition("+")[0])


def expect_list(value: Any, where: str) -> list[Any]:
    """Return a JSON list; raises StoreError for anything else."""
    if not isinstance(value, list):
        raise StoreError(f"{where} does not list shards; delete it and run again")
    return value


def table_folder(stage: str, fingerprint: str) -> str:
    """Return the folder of a table, relative to the store."""
    return f"{checked(stage)}/{checked_hex(fingerprint)}"


def sidecar_name(shard: str, key: str) -> str:
    """Return the name of a shard's sidecar."""
    return f"{checked(shard)}.{checked_hex(key)}.json"


def ref_path(name: str) -> str:
    """Return the path of a ref, relative to the store."""
    parts = name.split("/")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "runs"):
        raise StoreError(f"{name!r} is not the name of a ref; use a word, or runs/<word>")
    return "/".join([REFS, *(checked(part) for part in parts)]) + ".json"


def is_word(name: str) -> bool:
    """Return whether a name can be a file name that stays in its folder."""
    return _WORD.fullmatch(name) is not None and ".." not in name


def checked(name: str) -> str:
    """Return a name that stays in its folder; raises StoreError for any other."""
    if not is_word(name):
        raise StoreError(f"{name!r} is not a name within the store: letters, digits and _ . + % = - only")
    return name


def checked_hex(text: str) -> str:
    """Return a hexadecimal digest; raises StoreError for anything else."""
    if not _HEX.fullmatch(text):
        raise StoreError(f"{text!r} is not a digest")
    return text


def read_footer(source: Any, size: int) -> bytes:
    """Return the footer of a Parquet file with its length word, the part that page checksums do not cover."""
    source.seek(max(size - 8, 0))
    length = int.from_bytes(source.read(8)[:4], "little") + 8
    start = max(size - length, 0)
    source.seek(start)
    return bytes(source.read(size - start))


def shown_uri(uri: str) -> str:
    """Return a path or URI as it may be shown: without user, password and whatever follows the path."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def unwritable(place: str, error: BaseException) -> StoreError:
    """Return the error for a failed write; a full disk is named as such."""
    if is_full(error):
        return DiskFull(f"store {place}: the disk is full. Finished shards are safe; free space and run again")
    return StoreError(f"store {place} cannot be written: {error}")


def is_full(error: BaseException) -> bool:
    """Return whether it was for want of space, or of quota, on a disk."""
    full = isinstance(error, DiskFull) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error)
