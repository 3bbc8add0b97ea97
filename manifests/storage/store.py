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

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.rows import from_table
from manifests.storage.documents import expect_list, put_json, read_json
from manifests.storage.errors import StoreError
from manifests.storage.files import Files
from manifests.storage.garbage import unreferenced
from manifests.storage.manifest import Manifest
from manifests.storage.names import (
    HEX,
    MANIFEST,
    REFS,
    TEMPORARY,
    checked,
    checked_hex,
    ref_path,
    sidecar_name,
    table_folder,
)
from manifests.storage.refs import Ref, building_from, table_from
from manifests.storage.remote import RangeFile
from manifests.storage.shards import ShardFile, ShardReader, ShardWriter, damage, put_sidecar, shard_from


class Store:
    """A folder of tables. Picklable; opens its file system anew in every process.

    `place` names it for people: the URI without what may follow its path or hold a password.
    """

    def __init__(self, uri: str, files: pafs.FileSystem | None = None) -> None:
        self.uri = uri
        self._given = files
        self.files = Files(uri, files)

    @property
    def place(self) -> str:
        """The store's name for people."""
        return self.files.place

    @property
    def local(self) -> Path | None:
        """The folder of a store on this machine."""
        return self.files.local

    @classmethod
    def open(cls, uri: str | Path, files: pafs.FileSystem | None = None) -> Store:
        """Return the store at a local path or a URI of any pyarrow file system (`s3://bucket/folder`, `gs://`, ...).

        What else an object store needs stands in the URI, as pyarrow takes it:
        `s3://bucket/folder?endpoint_override=host:9000&scheme=http&region=us-east-1`. `files` is a file system that no
        URI leads to; the URI is then the path in it.
        """
        text = str(uri)
        return cls(text if "://" in text or files else str(Path(text).expanduser().absolute()), files)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.uri, self._given)

    def reopened(self) -> Store:
        """Return this store over connections of its own; a forked process must not talk over those of its parent."""
        return Store(self.uri, self._given)

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
        return ShardWriter(self.files, table_folder(stage, fingerprint), checked(shard), checked_hex(key), schema)

    def shards(self, stage: str, fingerprint: str) -> dict[tuple[str, str], ShardFile]:
        """Return every committed shard of a table by (shard, key).

        Committed means: the sidecar is whole, and the file that it names lies beside it with the size it gives. Raises
        StoreError if a sidecar names a file outside its folder or of another identity.
        """
        folder = table_folder(stage, fingerprint)
        sizes = self.files.sizes(folder)
        found = {}
        for name in sorted(sizes):
            if name.endswith(".json") and name != MANIFEST and not name.startswith(TEMPORARY):
                document = read_json(self.files, f"{folder}/{name}", missing_ok=True)
                if document is None:
                    continue
                if document.get("stage") != stage or document.get("fingerprint") != fingerprint:
                    raise StoreError(
                        f"{self.files.show(folder, name)} belongs to another table; delete it and run again"
                    )
                shard = shard_from(document, self.files.show(folder, name))
                if name != sidecar_name(shard.shard, shard.key):
                    raise StoreError(f"{self.files.show(folder, name)} describes {shard.shard}.{shard.key}; delete it")
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
        return ShardReader(self.files, table_folder(stage, fingerprint), shard)

    def forget(self, stage: str, fingerprint: str, shard: ShardFile) -> None:
        """Remove a shard, sidecar first, so that the next run builds it again."""
        folder = table_folder(stage, fingerprint)
        for name in (sidecar_name(shard.shard, shard.key), checked(shard.name)):
            self.files.delete(f"{folder}/{name}")

    def open_bytes(self, stage: str, fingerprint: str, shard: ShardFile) -> BinaryIO:
        """Return a shard's file as bytes, to be copied; raises StoreError if it is missing."""
        path = f"{table_folder(stage, fingerprint)}/{checked(shard.name)}"
        try:
            if self.local is not None:
                return (self.local / path).open("rb")
            return io.BufferedReader(pa.PythonFile(RangeFile(self.files.system, path), mode="r"))
        except OSError as error:
            raise StoreError(f"{self.files.show(path)} cannot be read: {error}") from None

    def put_bytes(self, stage: str, fingerprint: str, shard: ShardFile, pieces: Iterable[bytes]) -> None:
        """Place the file of a shard that was made elsewhere; it does not count before `put_sidecar`.

        Whatever `pieces` raises leaves no file.
        """
        path = f"{table_folder(stage, fingerprint)}/{checked(shard.name)}"
        with self.files.scratch(path) as (stream, publish):
            for piece in pieces:
                stream.write(piece)
            publish()

    def put_sidecar(self, stage: str, fingerprint: str, shard: ShardFile) -> None:
        """Make a shard count whose file lies in its place."""
        put_sidecar(self.files, stage, fingerprint, shard)

    def damage(self, stage: str, fingerprint: str, shard: ShardFile) -> str | None:
        """Return what is wrong with a shard after reading every byte of it, or None.

        Raises StoreError if that cannot be told, because the store cannot be reached or may not be read.
        """
        return damage(self.files, stage, fingerprint, shard)

    def write_manifest(self, manifest: Manifest) -> None:
        """Write the manifest of a table; the last writer wins, and every writer lists what is committed by then."""
        document = asdict(manifest) | {"shards": [asdict(shard) for shard in manifest.shards]}
        put_json(self.files, f"{table_folder(manifest.stage, manifest.fingerprint)}/{MANIFEST}", document)

    def read_manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        """Return the manifest of a table, or None if there is none; raises StoreError if it names foreign files."""
        folder = table_folder(stage, fingerprint)
        document = read_json(self.files, f"{folder}/{MANIFEST}", missing_ok=True)
        if document is None:
            return None
        where = self.files.show(folder, MANIFEST)
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
        for entry in self.files.entries(checked(stage)):
            if entry.type == pafs.FileType.Directory and HEX.fullmatch(entry.base_name):
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
        put_json(self.files, ref_path(name), document)

    def read_ref(self, name: str) -> Ref:
        """Return what a name stands for; raises StoreError if nothing was built under it or it names foreign files."""
        path = ref_path(name)
        document = read_json(self.files, path, missing_ok=True)
        if document is None:
            raise StoreError(f"store {self.place} holds nothing of recipe {name} yet; run: make pack RECIPE={name}")
        where = self.files.show(path)
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
        known = read_json(self.files, ref_path(name), missing_ok=True) is not None
        before = self.read_ref(name) if known else Ref(recipe, {})
        now = replace(before, building=tuple(dict.fromkeys((*before.building, *tables))))
        if now != before:
            self.write_ref(name, now)

    def refs(self) -> dict[str, Ref]:
        """Return every ref of the store by name."""
        names = []
        for entry in self.files.entries(REFS, recursive=True):
            if entry.type == pafs.FileType.File and entry.base_name.endswith(".json"):
                name = entry.path.split(f"{REFS}/", 1)[1].removesuffix(".json")
                if not entry.base_name.startswith(TEMPORARY):
                    names.append(name)
        return {name: self.read_ref(name) for name in sorted(names)}

    def delete_ref(self, name: str) -> None:
        """Remove a ref; its tables stay until they are collected."""
        self.files.delete(ref_path(name))

    def unreferenced(self, min_age_s: float) -> list[tuple[str, int]]:
        """Return (relative path, bytes) of every file that no ref names and that is older than `min_age_s` seconds.

        Tables being built are left alone, however old they look. The age is for what has begun since the refs were
        read; it is told by the clock that dates the files, and not by that of this machine.
        """
        return unreferenced(self.files, self.refs, min_age_s)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files by the relative paths that `unreferenced` returned."""
        for path in paths:
            self.files.delete(path)

    def free_bytes(self) -> int | None:
        """Return the free space of a local store, or None where it cannot be told."""
        return self.files.free_bytes()

    def last_written(self, stage: str, fingerprint: str) -> datetime | None:
        """Return when a file of a table was last written, by the clock of where it lies; None if there is none."""
        times = [
            entry.mtime for entry in self.files.entries(table_folder(stage, fingerprint)) if entry.mtime is not None
        ]
        return max(times, default=None)
