"""Refs: what a recipe, or a training run, stands for; written so that no run takes away what another one wrote.

    refs/<name>.<generation>.json

Every change makes the next generation, a new file that must not exist yet: of two runs at once the second finds the
name taken, reads what the first wrote, and applies its change to that. The newest generation counts. The few before it
stay, so that a writer that slept cannot take an old number for the next one, and `verify --heal` has what to fall back
on. A ref that is deleted ends with a generation that says so, for the same reason.
"""

from __future__ import annotations

import os
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from manifests.advice import HEAL, command
from manifests.fingerprint import Json, Settings, canonical
from manifests.records.codec import Unfit, as_document, as_record
from manifests.records.table import AskedTables
from manifests.shown import shown_values
from manifests.storage.documents import advising, encode, expect_list, read_json
from manifests.storage.errors import Malformed, StoreError
from manifests.storage.files import Files
from manifests.storage.names import REFS, TEMPORARY, checked, checked_hex, make_target, ref_of, ref_path
from manifests.storage.shards import ShardFile, shard_from

KEPT_GENERATIONS = 4
REMEMBERED_WRITES = 64  # so many changes may be made between a write and its writer's look at what came of it
MOST_TRIES = 200
LOOKED_AT_AGAIN_AFTER_S = (0.01, 0.03, 0.1)
PROTECTED_S = 30 * 24 * 3600.0
"""So long a table that a run is building is no garbage, counted from when the run began with it, by the store's clock.

A run that ends takes its own entries away. Those of a killed run are taken over by the next run of the same ref that
builds the same tables on the same machine, where it can be seen that their process is gone."""


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
class Building:
    """A table that a run is building: stage and fingerprint, the run, and when it began by the store's clock.

    `process` tells on the same machine whether the run is still there; empty where that cannot be told.
    """

    stage: str
    fingerprint: str
    run: str
    begun_s: float = 0.0
    process: str = ""


@dataclass(frozen=True)
class Ref:
    """What a name stands for: tables, and the frames that the recipe excludes (their rows exist, users skip them).

    `tables` are complete and hold the same frames. `held` are the recipe's other shards: of a table that is not
    complete yet, or of scenes that are not selected now. Nobody reads them by this ref, but they are not garbage.
    `building` are tables that runs are at: nothing in their folders is garbage. `key` is the digest of what the recipe
    asks for, and `asked` says it readably. `words` is what `make` or `afov` is told of the recipe that it was read
    for, not kept.
    """

    recipe: str
    tables: Mapping[str, TableRef]
    excluded: tuple[str, ...] = ()
    held: tuple[TableRef, ...] = ()
    building: tuple[Building, ...] = ()
    key: str = ""
    asked: AskedTables | None = None
    words: str = field(default="", compare=False)

    def make(self, target: str) -> str:
        """Return the command that makes a target of the recipe that this was read for."""
        return command([target], self.words) if self.words else f"make {target} RECIPE=..."

    def table(self, stage: str) -> TableRef:
        """Return one table; raises StoreError naming the make target that builds it."""
        if stage not in self.tables:
            raise StoreError(f"recipe {self.recipe} has no table `{stage}` yet; run: {self.make(make_target(stage))}")
        return self.tables[stage]

    def begun(self, entries: Iterable[Building]) -> Ref:
        """Return the ref with tables that a run begins; it takes over those of runs that are seen to be gone."""
        new = tuple(entries)
        names = {(entry.stage, entry.fingerprint) for entry in new}
        kept = [one for one in self.building if (one.stage, one.fingerprint) not in names or not gone(one.process)]
        return replace(self, building=(*kept, *(entry for entry in new if entry not in kept)))

    def ended(self, run: str) -> Ref:
        """Return the ref without what a run was building; what others are at stays."""
        return replace(self, building=tuple(entry for entry in self.building if entry.run != run))


@dataclass(frozen=True)
class _Newest:
    """The newest generation of a ref: its number, what it says (None: there is none, or it was deleted), its writes."""

    number: int
    ref: Ref | None
    writes: tuple[str, ...] = ()


def read_ref(files: Files, name: str) -> Ref | None:
    """Return what a name stands for, or None if it never stood for anything, or was deleted.

    Raises StoreError for one that is damaged or cannot be read: that never means that it is not there.
    """
    return _newest(files, name).ref


def read_refs(files: Files) -> dict[str, Ref]:
    """Return every ref of a store by name; raises StoreError if any of them cannot be read."""
    found = {name: read_ref(files, name) for name in sorted(generations(files))}
    return {name: ref for name, ref in found.items() if ref is not None}


def generations(files: Files, folder: str = REFS) -> dict[str, list[int]]:
    """Return the generations of every ref in the folder of refs, or in one within it, oldest first."""
    found: dict[str, list[int]] = {}
    for entry in files.entries(folder, recursive=folder == REFS):
        path = entry.path.lstrip("/").removeprefix(f"{REFS}/")
        known = None if entry.base_name.startswith(TEMPORARY) else ref_of(path)
        if entry.type == pafs.FileType.File and known:
            found.setdefault(known[0], []).append(known[1])
    return {name: sorted(numbers) for name, numbers in found.items()}


def update_ref(files: Files, name: str, change: Callable[[Ref | None], Ref | None]) -> Ref | None:
    """Apply a change to what a name stands for, and return what it stands for then.

    `change` gets the newest state, and again a newer one each time another run was faster; it must not count on being
    called once. If it returns what it was given, nothing is written; None deletes the ref. Raises StoreError for a ref
    that is damaged, and where two writers cannot be kept apart.
    """
    for attempt in range(MOST_TRIES):
        before = _newest(files, name)
        ref = change(before.ref)
        changed = _document(ref)
        if canonical(changed) == canonical(_document(before.ref)):
            return ref
        token = secrets.token_hex(8)
        writes = (*before.writes, token)[-REMEMBERED_WRITES:]
        document = changed | {"generation": before.number + 1, "writes": writes}
        path = ref_path(name, before.number + 1)
        made = files.create(path, encode(document))
        # A write counts if the newest generation descends from it. It may be there although `create` says no (the
        # answer to a first try was lost), and it may not count although `create` says yes (the writer slept so long
        # that the number it took had been given and cleared away).
        if token in _newest(files, name).writes:
            _clear(files, name, before.number + 1)
            return ref
        if made:
            files.delete(path)
        time.sleep(random.uniform(0, min(0.5, 0.01 * (attempt + 1))))
    raise StoreError(
        f"{files.show(ref_path(name, 0))} was changed by others {MOST_TRIES} times while this run tried to; see what "
        "writes there, and run again"
    )


def _newest(files: Files, name: str) -> _Newest:
    folder = ref_path(name, 0).rpartition("/")[0]
    for _ in range(MOST_TRIES):
        numbers = generations(files, folder).get(name)
        if not numbers:
            return _Newest(0, None)
        path = ref_path(name, numbers[-1])
        document = _read(files, path)
        if document is not None:
            where = files.show(path)
            with advising(HEAL):
                writes = tuple(str(one) for one in expect_list(document.get("writes", []), where))
                ref = None if document.get("deleted") is True else ref_from(document, where)
            return _Newest(numbers[-1], ref, writes)
        # cleared away between the look at the folder and the reading: there are newer ones
    raise StoreError(f"{files.show(path)} is listed, and cannot be found; see that one store lies there, and run again")


def _read(files: Files, path: str) -> dict[str, Json] | None:
    """As `read_json`; without hard links a file can be seen while it is written, so damage is looked at again."""
    for wait_s in LOOKED_AT_AGAIN_AFTER_S:
        try:
            return read_json(files, path)
        except StoreError:
            if files.local is None:
                raise
            time.sleep(wait_s)
    return read_json(files, path)


def _clear(files: Files, name: str, newest: int) -> None:
    folder = ref_path(name, 0).rpartition("/")[0]
    for number in generations(files, folder).get(name, []):
        if number <= newest - KEPT_GENERATIONS:
            files.delete(ref_path(name, number))


def _document(ref: Ref | None) -> dict[str, Json]:
    if ref is None:
        return {"deleted": True}
    return {
        "recipe": ref.recipe,
        "key": ref.key,
        "asked": shown_asked(ref),
        "tables": {stage: _described(table) for stage, table in ref.tables.items()},
        "excluded": list(ref.excluded),
        "held": [_described(table) for table in ref.held],
        "building": [asdict(entry) for entry in ref.building],
    }


def shown_asked(ref: Ref) -> Settings:
    """Return what a ref asks for as documents hold it, without passwords; empty where it does not say."""
    asked: Settings = shown_values(as_document(ref.asked)) or {}
    return asked


def _described(table: TableRef) -> Settings:
    """Return a table as a ref holds it: by what its shards were made is in their sidecars."""
    shards = [{key: value for key, value in as_document(shard).items() if key != "origin"} for shard in table.shards]
    return {"stage": table.stage, "fingerprint": table.fingerprint, "shards": shards}


def ref_from(document: Settings, where: str) -> Ref:
    """Return the ref that a document describes; raises Malformed if it is malformed or names foreign files."""
    named = document.get("tables")
    if not isinstance(named, dict):
        raise Malformed(f"{where} is damaged: it is not a ref of this store")
    try:
        asked = as_record(AskedTables, document["asked"]) if document.get("asked") else None
    except Unfit as error:
        raise Malformed(f"{where} is damaged: it does not say what its recipe asks for: {error}") from None
    return Ref(
        str(document.get("recipe")),
        {stage: table_from(item, where) for stage, item in named.items()},
        tuple(str(frame) for frame in expect_list(document.get("excluded", []), where)),
        tuple(table_from(item, where) for item in expect_list(document.get("held", []), where)),
        tuple(building_from(item, where) for item in expect_list(document.get("building", []), where)),
        str(document.get("key", "")),
        asked,
    )


def table_from(document: Any, where: str) -> TableRef:
    """Return the table that a ref describes; raises Malformed if it is malformed or foreign."""
    if not isinstance(document, dict):
        raise Malformed(f"{where} is damaged: it is not a ref of this store")
    shards = tuple(shard_from(shard, where) for shard in expect_list(document.get("shards"), where))
    return TableRef(checked(str(document.get("stage"))), checked_hex(str(document.get("fingerprint"))), shards)


def building_from(document: Any, where: str) -> Building:
    """Return a table that a ref says is being built; raises Malformed for anything else."""
    match document:
        case [str(stage), str(fingerprint)]:  # of a store from before entries belonged to a run
            return Building(checked(stage), checked_hex(fingerprint), "")
        case {"stage": str(stage), "fingerprint": str(fingerprint), "run": str(run)}:
            begun, process = document.get("begun_s", 0.0), str(document.get("process", ""))
            if isinstance(begun, int | float):
                return Building(checked(stage), checked_hex(fingerprint), run, float(begun), process)
    raise Malformed(f"{where} is damaged: it is not a ref of this store")


def this_process() -> str:
    """Return a name for this process that no other one has had on this machine since it was started; empty elsewhere.

    Machines are told apart by the boot they run from, and containers on one by their space of process numbers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')} {os.getpid()} {_started(os.getpid())}"
    except (OSError, IndexError):
        return ""


def gone(process: str) -> bool:
    """Return whether a process of this machine, by its name of `this_process`, is seen to have ended."""
    mine, other = this_process().split(), process.split()
    if len(mine) != 4 or len(other) != 4 or mine[:2] != other[:2]:
        return False
    try:
        return _started(int(other[2])) != other[3]
    except (OSError, IndexError, ValueError):
        return True


def _started(pid: int) -> str:
    """Return when a process was started, in ticks since the boot; the program's name before it may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
