"""Garbage: files that no ref names any more."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.storage.documents import put_json
from manifests.storage.errors import StoreError
from manifests.storage.files import Files
from manifests.storage.grammar import kind_of
from manifests.storage.marker import expect
from manifests.storage.names import MANIFEST, REFS, TEMPORARY, sidecar_name, table_folder
from manifests.storage.refs import PROTECTED_S, Ref

COLLECTED = ("shard", "sidecar", "manifest", "temporary")


def unreferenced(files: Files, refs: Callable[[], Mapping[str, Ref]], min_age_s: float) -> list[tuple[str, int]]:
    """Return (relative path, bytes) of every file that no ref names and that is older than `min_age_s` seconds.

    Only what is known to be ours is looked at: see `grammar`. Tables being built are left alone, however old they look.
    The age is for what has begun since the refs were read; it is told by the clock that dates the files, and not by
    that of this machine. Raises StoreError where the store is not marked as ours, and for any ref that cannot be read.
    """
    expect(files)
    now = clock_s(files)
    keep, building = set(), set()
    for ref in refs().values():
        protected = [one for one in ref.building if now - one.begun_s < PROTECTED_S]
        building |= {table_folder(one.stage, one.fingerprint) for one in protected}
        for table in (*ref.tables.values(), *ref.held):
            folder = table_folder(table.stage, table.fingerprint)
            keep.add(f"{folder}/{MANIFEST}")
            for shard in table.shards:
                keep |= {f"{folder}/{shard.name}", f"{folder}/{sidecar_name(shard.shard, shard.key)}"}
    garbage = []
    for entry in files.entries("", recursive=True):
        path = entry.path.lstrip("/")
        if entry.type != pafs.FileType.File or path in keep or path.rpartition("/")[0] in building:
            continue
        aged = entry.mtime is None or now - entry.mtime.timestamp() >= min_age_s
        if kind_of(path) in COLLECTED and aged:
            garbage.append((path, int(entry.size or 0)))
    # sidecars go first: a shard without one does not count, so an interrupted collection leaves nothing half there
    return sorted(garbage, key=lambda item: (not item[0].endswith(".json"), item[0]))


def clock_s(files: Files) -> float:
    """Return the time by the clock that dates the files of this store: that of a file which is written for it.

    Where none can be written, or files have no dates, it is the time of this machine.
    """
    path = f"{REFS}/{TEMPORARY}{secrets.token_hex(8)}"
    try:
        put_json(files, path, {"clock": "this file is dated by it"})
        try:
            written = files.patiently(lambda: files.system.get_file_info(path).mtime)
        finally:
            files.delete(path)
    except (StoreError, OSError, pa.ArrowException):
        written = None
    return time.time() if written is None else float(written.timestamp())


def delete(files: Files, paths: Iterable[str]) -> None:
    """Delete files by the relative paths that `unreferenced` returned; raises StoreError for any that is none of them.

    And where the store is not marked as ours.
    """
    expect(files)
    for path in paths:
        if kind_of(path) not in COLLECTED:
            raise StoreError(f"{files.show(path)} is no file that a store collects; it stays")
        files.delete(path)
