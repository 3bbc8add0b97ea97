"""Reading all of it again: which files of a store are not what was written; dropping those, which are built again then.

Documents (the mark, refs with the generations they may fall back on, manifests, notes on files of data sets) are read
of the whole store: they are small. Sidecars and shards are read of every table that a recipe's refs name, complete or
not, held or being built, its training runs' tables too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import pyarrow.fs as pafs

from manifests.advice import HEAL
from manifests.fingerprint import Settings
from manifests.storage import marker
from manifests.storage.documents import decode, has_digest, read_bytes
from manifests.storage.errors import Malformed, StoreError
from manifests.storage.grammar import MARKER, kind_of
from manifests.storage.manifest import manifest_from
from manifests.storage.names import HEX, MANIFEST, SEEN, make_target, ref_path, sidecar_name, table_folder
from manifests.storage.refs import Ref, TableRef, generations, ref_from
from manifests.storage.shards import ShardFile, sidecar_from
from manifests.storage.store import Store
from manifests.tables.registry import TABLES


@dataclass(frozen=True)
class Damage:
    """A file that is not what was written: its path in the store (or its place in a run folder), and what is wrong.

    `shard` is told of the table `stage`, `fingerprint` where it is a shard, or the sidecar of one.
    """

    path: str
    what: str
    stage: str = ""
    fingerprint: str = ""
    shard: ShardFile | None = None


class RunFolder(Protocol):
    """A folder of a training run that can tell what in it is not what was written: checkpoints, records, logs."""

    def damages(self) -> Iterable[Damage]:
        """Return every damaged file of the folder, by its place, after reading every byte."""
        ...


@dataclass
class Found:
    """What a look over the documents of a store found, and what is to be read byte by byte.

    `refs` are those of the recipe. `undigested` documents are of a version that wrote no digests: they are read as they
    stand, and tell no damage.
    """

    damages: list[Damage] = field(default_factory=list)
    shards: dict[tuple[str, str], tuple[str, str, ShardFile]] = field(default_factory=dict)
    refs: int = 0
    documents: int = 0
    undigested: int = 0

    @property
    def n_bytes(self) -> int:
        """The bytes of all shards."""
        return sum(shard.bytes for _, _, shard in self.shards.values())


def look_over(store: Store, recipe: str | None = None) -> Found:
    """Return what is wrong with the documents of a store, and the shards of a recipe (without one: of the whole store).

    Raises StoreError where that cannot be told, because the store cannot be reached or may not be read.
    """
    found = Found()
    wrong = marker.is_whole(store.files)
    if wrong:
        found.damages.append(Damage(MARKER, wrong))
    refs = list(_refs(store, found))
    mine = [ref for name, ref in refs if recipe is None or recipe in (ref.recipe, name.split("/")[0])]
    found.refs = len(mine)
    named: dict[tuple[str, str], list[ShardFile]] = {}
    complete = set()
    for ref in mine:
        for table in (*ref.tables.values(), *ref.held):
            named.setdefault((table.stage, table.fingerprint), []).extend(table.shards)
        complete |= {(table.stage, table.fingerprint) for table in ref.tables.values()}
        for one in ref.building:
            named.setdefault((one.stage, one.fingerprint), [])
    for entry in store.files.entries(SEEN):
        if kind_of(f"{SEEN}/{entry.base_name}") == "note":
            _document(store, f"{SEEN}/{entry.base_name}", found)
    for place in _folders(store):
        _look_at_manifest(store, *place, place in complete, found)
        if place in named or recipe is None:
            _look_at_table(store, *place, named.pop(place, []), found)
    for place, shards in named.items():  # whose folders are gone
        if shards:
            _look_at_table(store, *place, shards, found)
            _look_at_manifest(store, *place, place in complete, found)
    return found


def damaged_shards(store: Store, found: Found, progress: Callable[[int], None]) -> list[Damage]:
    """Return every damaged shard, after reading every byte; `progress` gets the bytes of each shard read."""
    damages = []
    for stage, fingerprint, shard in found.shards.values():
        what = store.damage(stage, fingerprint, shard)
        if what:
            path = f"{table_folder(stage, fingerprint)}/{shard.name}"
            damages.append(Damage(path, what, stage, fingerprint, shard))
        progress(shard.bytes)
    return damages


def _refs(store: Store, found: Found) -> Iterator[tuple[str, Ref]]:
    """Yield every ref as its newest whole generation says it; one that is damaged is noted, whichever it is."""
    for name, numbers in sorted(generations(store.files).items()):
        newest: Ref | None = None
        for number in numbers:
            path = ref_path(name, number)
            document = _document(store, path, found)
            if document is None:
                continue
            try:
                newest = None if document.get("deleted") is True else ref_from(document, path)
            except StoreError as error:
                found.damages.append(Damage(path, _words(error, path)))
        if newest:
            yield name, newest


def _folders(store: Store) -> Iterator[tuple[str, str]]:
    """Yield stage and fingerprint of every table."""
    for stage in TABLES:
        for entry in store.files.entries(stage):
            if entry.type == pafs.FileType.Directory and HEX.fullmatch(entry.base_name):
                yield stage, entry.base_name


def _look_at_manifest(store: Store, stage: str, fingerprint: str, expected: bool, found: Found) -> None:
    path = f"{table_folder(stage, fingerprint)}/{MANIFEST}"
    damages = len(found.damages)
    document = _document(store, path, found)
    if document is None:
        if expected and len(found.damages) == damages:
            found.damages.append(Damage(path, "is missing", stage, fingerprint))
        return
    try:
        manifest = manifest_from(document, stage, fingerprint, path)
    except StoreError as error:
        found.damages.append(Damage(path, _words(error, path), stage, fingerprint))
        return
    if (digest := manifest.identity.fingerprint) != fingerprint:
        what = f"the digest of its identity is {digest}, and its folder {fingerprint}"
        found.damages.append(Damage(path, what, stage, fingerprint))


def _look_at_table(store: Store, stage: str, fingerprint: str, named: Iterable[ShardFile], found: Found) -> None:
    folder = table_folder(stage, fingerprint)
    sizes = store.files.sizes(folder)
    shards: dict[str, ShardFile] = {}
    for name in sorted(sizes):
        path = f"{folder}/{name}"
        if not name.endswith(".json") or kind_of(path) != "sidecar":
            continue
        document = _document(store, path, found)
        if document is None:
            continue
        try:
            shard = sidecar_from(document, stage, fingerprint, name, path)
        except StoreError as error:
            found.damages.append(Damage(path, _words(error, path), stage, fingerprint))
            continue
        if shard.name in sizes:
            shards[shard.name] = shard
    for shard in named:
        sidecar = sidecar_name(shard.shard, shard.key)
        if sidecar not in sizes and shard.name in sizes:
            found.damages.append(Damage(f"{folder}/{sidecar}", "is missing", stage, fingerprint, shard))
        shards[shard.name] = shard
    for shard in shards.values():
        found.shards[folder, shard.name] = stage, fingerprint, shard


def _document(store: Store, path: str, found: Found) -> Settings | None:
    """Return a document, or None, having noted what is wrong with it, if anything is."""
    found.documents += 1
    try:
        content = read_bytes(store.files, path)
        if content is None:
            found.documents -= 1
            return None
        document = decode(content, path)
    except Malformed as error:
        stage, _, rest = path.partition("/")
        of_table = stage in TABLES
        found.damages.append(
            Damage(path, _words(error, path), stage if of_table else "", rest.split("/")[0] if of_table else "")
        )
        return None
    found.undigested += not has_digest(content)
    return document


def _words(error: StoreError, path: str) -> str:
    """Return what is wrong, without the name of the file before it and the advice behind it."""
    text = str(error).removesuffix(f"; {HEAL}")
    return text.split(path, 1)[-1].removeprefix(" is damaged:").strip()


# -- healing -----------------------------------------------------------------------------------------------------------


def heal(store: Store, damages: Iterable[Damage], asked: Mapping[str, str] = MappingProxyType({})) -> list[str]:
    """Drop what is damaged, and return a sentence for each that says what was done and what makes it again.

    `asked` are the tables that the recipe at hand asks for, fingerprints by stage: a run of it makes no others.
    Refs that name a shard which is dropped name it no longer: who reads them is told what to build. Raises StoreError
    where the store is not marked as ours; a damaged mark is written anew if nothing else than a store lies there.
    """
    found = list(damages)
    done = []
    if any(damage.path == MARKER for damage in found):
        marker.mark(store.files)
        done.append(f"{MARKER}: written anew")
    marker.expect(store.files)
    refs: Mapping[str, Ref] = {}
    for damage in found:  # refs first: those that are left can be read then
        kind = kind_of(damage.path)
        again = f"make {make_target(damage.stage)} RECIPE=..."
        if damage.stage and asked.get(damage.stage, damage.fingerprint) != damage.fingerprint:
            refs = refs or store.refs()
            names = [name for name, ref in refs.items() if _names(ref, damage)]
            again = f"a run that asks for it, as {' and '.join(names)} did" if names else "nothing that is known"
        if kind == "ref":
            store.files.delete(damage.path)
            done.append(f"{damage.path}: dropped; what was before it counts, if anything, and the next run goes on")
        elif kind == "note":
            shard = Path(damage.path).name.rpartition(".")[0].rpartition(".")[0]
            for name in store.files.sizes(SEEN):  # all of the shard: each says something for the others
                if name.rpartition(".")[0].rpartition(".")[0] == shard:
                    store.files.delete(f"{SEEN}/{name}")
            done.append(f"{damage.path}: dropped; the next run looks at the files that it was about")
        elif kind == "manifest":
            store.files.delete(damage.path)
            done.append(f"{damage.path}: dropped; written again by: {again}")
        elif kind in ("sidecar", "shard") and damage.shard:
            drop(store, damage.stage, damage.fingerprint, damage.shard)
            done.append(f"{damage.path}: dropped; built again by: {again}")
        elif kind == "sidecar":
            _drop_sidecar(store, damage)
            done.append(f"{damage.path}: dropped; its shard is built again by: {again}")
    return done


def _names(ref: Ref, damage: Damage) -> bool:
    """Return whether a ref names the table of what is damaged."""
    tables = (*ref.tables.values(), *ref.held)
    return any((one.stage, one.fingerprint) == (damage.stage, damage.fingerprint) for one in tables)


def _drop_sidecar(store: Store, damage: Damage) -> None:
    """Drop a sidecar that does not say of which shard it is, and what refs know of that shard by its name."""
    shard, _, key = Path(damage.path).name.removesuffix(".json").rpartition(".")
    store.files.delete(damage.path)
    _unname(store, damage.stage, damage.fingerprint, lambda one: (one.shard, one.key) == (shard, key))


def drop(store: Store, stage: str, fingerprint: str, shard: ShardFile) -> None:
    """Remove a shard, and its name from every ref, so that the next run builds it again."""
    store.forget(stage, fingerprint, shard)
    _unname(store, stage, fingerprint, lambda one: one.name == shard.name)


def _unname(store: Store, stage: str, fingerprint: str, lost: Callable[[ShardFile], bool]) -> None:
    """Take shards out of all refs; a table that lacks one is complete no more, and its others are held."""

    def touched(table: TableRef) -> bool:
        return (table.stage, table.fingerprint) == (stage, fingerprint) and any(map(lost, table.shards))

    def rest(table: TableRef) -> TableRef:
        return replace(table, shards=tuple(one for one in table.shards if not lost(one)))

    def change(before: Ref | None) -> Ref:
        assert before is not None, "a ref that was read is there"
        tables = {name: table for name, table in before.tables.items() if not touched(table)}
        left = [rest(table) for table in (*before.tables.values(), *before.held) if touched(table)]
        held = [table for table in before.held if not touched(table)]
        return replace(before, tables=tables, held=(*held, *(table for table in left if table.shards)))

    for name, ref in store.refs().items():
        if any(touched(table) for table in (*ref.tables.values(), *ref.held)):
            store.update_ref(name, change)
