"""Garbage: files that no ref names any more."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.storage.documents import put_json
from manifests.storage.errors import StoreError
from manifests.storage.files import Files
from manifests.storage.names import MANIFEST, REFS, TEMPORARY, sidecar_name, table_folder
from manifests.storage.refs import PROTECTED_S, Ref


def unreferenced(files: Files, refs: Callable[[], Mapping[str, Ref]], min_age_s: float) -> list[tuple[str, int]]:
    """Return (relative path, bytes) of every file that no ref names and that is older than `min_age_s` seconds.

    Tables being built are left alone, however old they look. The age is for what has begun since the refs were
    read; it is told by the clock that dates the files, and not by that of this machine.
    """
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
        temporary = entry.base_name.startswith(TEMPORARY)
        if path.startswith(f"{REFS}/") and not temporary:
            continue
        table_file = path.count("/") == 2 and entry.base_name.endswith((".parquet", ".json"))
        aged = entry.mtime is None or now - entry.mtime.timestamp() >= min_age_s
        if (temporary or table_file) and aged:
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
