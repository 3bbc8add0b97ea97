"""The store: tables as folders of shards that appear whole or not at all, local or on any pyarrow file system.

    <store>/<stage>/<fingerprint>/<shard>.<key>.<content>.parquet   one scene (at most 64 frames), one frame a row group
    <store>/<stage>/<fingerprint>/<shard>.<key>.json                sidecar: a shard counts once this exists
    <store>/<stage>/<fingerprint>/manifest.json                     what the folder holds and from what it was made
    <store>/afov-store.json                                         the mark by which it is known to be a store
    <store>/refs/<name>.<generation>.json                           a recipe's (or a training run's) tables by name

File names hold the digest of the content, so two writers of one shard never touch each other's bytes. The sidecar is
written last and names the file with its size and sha256; nothing relies on a rename (locally one is used so that a
killed writer leaves only a `.tmp-` file). On a file system behind a network, what fails for a moment is tried again,
and a shard is read by ranges. Pages carry checksums, which are off by default in Arrow, and are verified on
every read; the footer has its own digest in the sidecar. Names read from the store never leave their folder.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.advice import HEAL
from manifests.records.codec import as_document
from manifests.records.table import Built, Provenance
from manifests.storage.documents import advising, put_json, read_json
from manifests.storage.errors import StoreError
from manifests.storage.files import Files
from manifests.storage.garbage import clock_s, delete, unreferenced
from manifests.storage.manifest import Manifest, manifest_from
from manifests.storage.marker import claim
from manifests.storage.names import (
    HEX,
    MANIFEST,
    RUNS,
    TEMPORARY,
    checked,
    checked_hex,
    sidecar_name,
    table_folder,
)
from manifests.storage.refs import Building, Ref, read_ref, read_refs, this_process, update_ref
from manifests.storage.remote import RangeFile
from manifests.storage.shards import UNKNOWN, ShardFile, ShardReader, ShardWriter, damage, put_sidecar, sidecar_from
from manifests.tables.base import F, Failed, FrameRecord, R


class Store:
    """A folder of tables. Picklable; opens its file system anew in every process.

    `place` names it for people: the URI without what may follow its path or hold a password.
    """

    def __init__(self, uri: str, files: pafs.FileSystem | None = None) -> None:
        self.uri = uri
        self._given = files
        self.files = Files(uri, files)
        self._claimed = False

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

    def claim(self) -> None:
        """Mark the store as ours before the first write, if it is new."""
        if not self._claimed:
            claim(self.files)
            self._claimed = True

    def write(self, stage: str, fingerprint: str, shard: str, key: str, table: pa.Table) -> ShardFile:
        """Commit a whole table as one shard; see `writer` for errors."""
        with self.writer(stage, fingerprint, shard, key, table.schema) as writer:
            for start in range(table.num_rows):
                writer.append_table(table.slice(start, 1))
            return writer.commit()

    def writer(
        self,
        stage: str,
        fingerprint: str,
        shard: str,
        key: str,
        schema: pa.Schema,
        apart: Iterable[str] = (),
        origin: Provenance = UNKNOWN,
    ) -> ShardWriter:
        """Return a writer that takes one frame after the other and commits the shard at the end.

        Columns that are to be known `apart` get digests of their own; `origin` says by what the shard was made.

        Raises StoreError where the store cannot be written (no rights, disk full); nothing half written ever counts.
        """
        self.claim()
        return ShardWriter(
            self.files, table_folder(stage, fingerprint), checked(shard), checked_hex(key), schema, apart, origin
        )

    def shards(self, stage: str, fingerprint: str) -> dict[tuple[str, str], ShardFile]:
        """Return every committed shard of a table by (shard, key).

        Committed means: there is a sidecar, and the file that it names lies beside it with the size it gives. Raises
        StoreError for a sidecar that is damaged, names a file outside its folder, or is of another identity.
        """
        folder = table_folder(stage, fingerprint)
        sizes = self.files.sizes(folder)
        names = sorted(
            name for name in sizes if name.endswith(".json") and name != MANIFEST and not name.startswith(TEMPORARY)
        )
        found = {}
        for name, document in zip(
            names, self.files.side_by_side(lambda name: read_json(self.files, f"{folder}/{name}"), names), strict=True
        ):
            if document is None:  # dropped since the folder was listed
                continue
            with advising(HEAL):
                shard = sidecar_from(document, stage, fingerprint, name, self.files.show(folder, name))
            if sizes.get(shard.name) == shard.bytes:
                found[shard.shard, shard.key] = shard
        return found

    def read(self, stage: str, fingerprint: str, shard: ShardFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a shard as an Arrow table, checksums verified; raises StoreError if it is missing or damaged."""
        reader = self.open_shard(stage, fingerprint, shard)
        return reader.table(columns)

    def records(self, kind: type[F], fingerprint: str, shard: ShardFile) -> list[F | Failed]:
        """Return a shard's rows in frame order, as those of its table or of a part of it; see `ShardReader.record`."""
        return self.open_shard(kind.table, fingerprint, shard).records(kind)

    def every(self, kind: type[R], fingerprint: str, shards: Iterable[ShardFile]) -> list[R]:
        """Return the rows of a table that is not one of frames; raises StoreError if a shard is missing or damaged."""
        rows = (row for shard in shards for row in self.open_shard(kind.table, fingerprint, shard).records(kind))
        return [row for row in rows if isinstance(row, kind)]

    def states(self, stage: str, fingerprint: str, shard: ShardFile) -> list[FrameRecord | Failed]:
        """Return, frame by frame, whether it failed in a table, and why."""
        return self.open_shard(stage, fingerprint, shard).records(FrameRecord)

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
        self.claim()
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
        self.claim()
        document = as_document(manifest)
        put_json(self.files, f"{table_folder(manifest.stage, manifest.fingerprint)}/{MANIFEST}", document)

    def read_manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        """Return the manifest of a table, or None if there is none; raises StoreError if it names foreign files."""
        folder = table_folder(stage, fingerprint)
        document = read_json(self.files, f"{folder}/{MANIFEST}")
        if document is None:
            return None
        with advising(HEAL):
            return manifest_from(document, stage, fingerprint, self.files.show(folder, MANIFEST))

    def manifests(self, stage: str) -> list[Manifest]:
        """Return the manifests of all tables of a stage, newest last."""
        found = []
        for entry in self.files.entries(checked(stage)):
            if entry.type == pafs.FileType.Directory and HEX.fullmatch(entry.base_name):
                manifest = self.read_manifest(stage, entry.base_name)
                if manifest is not None:
                    found.append(manifest)
        return sorted(found, key=lambda manifest: manifest.how(Built).finished or "")

    def read_ref(self, name: str) -> Ref | None:
        """Return what a name stands for, or None if it truly stands for nothing.

        Raises StoreError for a ref that is damaged or cannot be read, which never means that nothing was built.
        """
        return read_ref(self.files, name)

    def expect_ref(self, name: str) -> Ref:
        """Return what a name stands for; raises StoreError, which names the make target, if it stands for nothing."""
        ref = self.read_ref(name)
        if ref is None:
            of_run = name.startswith(f"{RUNS}/")
            what = f"`{name}`, which a run of the trainer writes" if of_run else f"recipe {name.split('/')[0]} yet"
            raise StoreError(f"store {self.place} holds nothing of {what}; run: make pack RECIPE=...")
        return ref

    def update_ref(self, name: str, change: Callable[[Ref | None], Ref]) -> Ref:
        """Apply a change to what a name stands for, and return what it stands for then; no other run's change is lost.

        `change` gets the newest state, and again a newer one each time another run was faster. Names are those of
        `ref_name`, or `runs/<word>` for the pin of a training run. Raises StoreError for a ref that cannot be read, and
        where the store cannot keep two writers apart.
        """
        self.claim()
        ref = update_ref(self.files, name, change)
        assert ref is not None
        return ref

    def write_ref(self, name: str, ref: Ref, run: str = "") -> None:
        """Make `name` stand for this, whatever it stood for; what others than `run` are building stays named."""

        def change(before: Ref | None) -> Ref:
            others = () if before is None else before.ended(run).building
            return replace(ref, building=(*(one for one in others if one not in ref.building), *ref.building))

        self.update_ref(name, change)

    def delete_ref(self, name: str) -> None:
        """Make a name stand for nothing; its tables stay until they are collected."""
        update_ref(self.files, name, lambda _: None)

    def refs(self) -> dict[str, Ref]:
        """Return every ref of the store by name; raises StoreError if any of them cannot be read."""
        return read_refs(self.files)

    def begin(self, name: str, ref: Ref, tables: Iterable[tuple[str, str]]) -> str:
        """Say by a ref that tables (stage, fingerprint) are being built; return the id of the run that does, for `end`.

        It keeps their files from being collected, whatever the clocks say that date them; it outlives a run that was
        killed, whose work the next one takes up (`refs.PROTECTED_S` says how long). `ref` is what the name stands for
        if it stands for nothing yet.
        """
        self.claim()
        run, now, process = secrets.token_hex(6), clock_s(self.files), this_process()
        entries = [Building(checked(stage), checked_hex(one), run, now, process) for stage, one in tables]
        self.update_ref(name, lambda before: (before or ref).begun(entries))
        return run

    def end(self, name: str, run: str) -> None:
        """Say by a ref that a run builds nothing any more; what other runs are at stays named."""
        update_ref(self.files, name, lambda before: before and before.ended(run))

    def unreferenced(self, min_age_s: float) -> list[tuple[str, int]]:
        """Return (relative path, bytes) of every file that no ref names and that is older than `min_age_s` seconds.

        Tables being built are left alone, however old they look. The age is for what has begun since the refs were
        read; it is told by the clock that dates the files, and not by that of this machine.
        """
        return unreferenced(self.files, self.refs, min_age_s)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files by the relative paths that `unreferenced` returned."""
        delete(self.files, paths)

    def free_bytes(self) -> int | None:
        """Return the free space of a local store, or None where it cannot be told."""
        return self.files.free_bytes()

    def last_written(self, stage: str, fingerprint: str) -> datetime | None:
        """Return when a file of a table was last written, by the clock of where it lies; None if there is none."""
        times = [
            entry.mtime for entry in self.files.entries(table_folder(stage, fingerprint)) if entry.mtime is not None
        ]
        return max(times, default=None)
