"""Tables as one file to hand on: a plain tar of shards, sidecars, manifests and a note on the licence.

    afov.json                                  what follows, in this order: name, size and sha256 of every file; and
                                               the ref that names the tables, so that they are found there by it
    LICENCE.txt                                whose data the tables were made from
    <stage>/<fingerprint>/manifest.json        as in a store, for the shards that follow
    <stage>/<fingerprint>/<shard>....parquet   a shard, then its sidecar

Nothing in an archive is trusted. It is read from its raw blocks, in the one order that `pack` writes, so that links,
devices, members twice and names outside the tables have no place in it. All of it is checked before anything is
written: sizes and digests, the identity, whose digest is the folder's name, and the columns, which are part of it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.advice import HEAL
from manifests.fingerprint import Settings, digest
from manifests.records.codec import as_document
from manifests.storage.documents import MOST_JSON_BYTES, advising, expect_list
from manifests.storage.errors import Malformed, StoreError, unwritable
from manifests.storage.manifest import Manifest, identity_from
from manifests.storage.names import MANIFEST, RUNS, checked, checked_hex, ref_path, sidecar_name, table_folder
from manifests.storage.refs import Ref, TableRef, ref_from, shown_asked
from manifests.storage.shards import ShardFile, shard_from, sidecar_document
from manifests.storage.store import Store
from manifests.storage.tar import (
    LICENCE,
    Member,
    add,
    content_of,
    expected,
    header,
    member_from,
    parsed,
    pieces,
    tar_name,
)
from manifests.tables.arrow import metadata
from manifests.tables.registry import TABLES

CONTENTS = "afov.json"
FORMAT = 2
READABLE = (1, FORMAT)  # 1 had no ref
MOST_LICENCE_BYTES = 1 << 20
MOST_FOOTER_BYTES = 16 << 20


@dataclass(frozen=True)
class Contents:
    """What an archive says of all its tables: the name of their ref, that ref without any table yet, and the note."""

    name: str
    ref: Ref
    licence: str


@dataclass(frozen=True)
class Packed:
    """A table in an archive that has been checked: what it is and which members hold its shards."""

    manifest: Manifest
    shards: tuple[tuple[ShardFile, Member], ...]


@dataclass(frozen=True)
class Imported:
    """What came of an archive: its tables, how many shards were new, the name of the ref that keeps them, the note."""

    tables: tuple[TableRef, ...]
    n_new: int
    ref: str
    licence: str


# -- writing -----------------------------------------------------------------------------------------------------------


def pack(  # long: one file is written from its first byte to its last
    store: Store, name: str, stages: Sequence[str], licence: str, out: Path, alone: bool = False
) -> list[TableRef]:
    """Write tables of a recipe's ref as one archive, which appears whole or not at all; return the tables.

    All that they were made from goes with them, as far as the ref names it, and the prompt vectors that training reads:
    whoever takes them in builds nothing of it again. `alone` leaves that out.

    Raises StoreError for a table that is not built or damaged, or a file that exists or cannot be written.
    """
    ref = store.expect_ref(name)
    tables = [ref.table(stage) for stage in dict.fromkeys(stages)]
    if not alone:
        tables = with_upstream(store, ref, tables)
    documents = {table.stage: manifest_of(store, table) for table in tables}
    members = [(LICENCE, LICENCE, len(text := licence.encode()), hashlib.sha256(text).hexdigest())]
    members += [
        (tar_name(path, place), path, size, sha256)
        for place, (path, size, sha256) in enumerate(listed(tables, documents))
    ]
    about: Settings = {
        "name": name,
        "recipe": ref.recipe,
        "key": ref.key,
        "asked": shown_asked(ref),
        "excluded": list(ref.excluded),
        "tables": {},
    }
    fields = ("name", "path", "bytes", "sha256")
    contents = {
        "format": FORMAT,
        "recipe": ref.recipe,
        "ref": about,
        "ref_digest": digest(about),
        "tables": [[table.stage, table.fingerprint] for table in tables],
        "files": [dict(zip(fields, member, strict=True)) for member in members],
    }
    if out.exists():
        raise StoreError(f"{out} exists already; give another name, or remove it")
    scratch = out.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("xb") as file, tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
            add(tar, CONTENTS, json.dumps(contents, indent=1, sort_keys=True).encode())
            add(tar, LICENCE, text)
            rest = iter(members[1:])
            for table in tables:
                add(tar, next(rest)[0], documents[table.stage])
                for shard in table.shards:
                    what = store.damage(table.stage, table.fingerprint, shard)
                    if what:
                        raise StoreError(f"{table.stage}/{table.fingerprint}/{shard.name} is damaged: {what}; {HEAL}")
                    entry = tarfile.TarInfo(next(rest)[0])
                    entry.size = shard.bytes
                    with store.open_bytes(table.stage, table.fingerprint, shard) as source:
                        tar.addfile(entry, source)
                    add(tar, next(rest)[0], sidecar_of(table, shard))
            tar.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, out)
    except OSError as error:
        raise unwritable(str(out), error) from None
    finally:
        scratch.unlink(missing_ok=True)
    return tables


def with_upstream(store: Store, ref: Ref, tables: Sequence[TableRef]) -> list[TableRef]:
    """Return tables with all of the ref that they were made from, what is needed first."""
    found: dict[str, TableRef] = {}

    def add_with_needs(table: TableRef) -> None:
        manifest = store.read_manifest(table.stage, table.fingerprint)
        for stage in ("index", *(manifest.identity.needs if manifest else ())):
            if stage in ref.tables and stage != table.stage and stage not in found:
                add_with_needs(ref.tables[stage])
        found[table.stage] = table

    for table in (*tables, *(ref.tables[stage] for stage in ("text",) if stage in ref.tables)):
        add_with_needs(table)
    return list(found.values())


def manifest_of(store: Store, table: TableRef) -> bytes:
    """Return the manifest of a table as it travels: of exactly the shards that the ref names."""
    manifest = store.read_manifest(table.stage, table.fingerprint)
    if manifest is None or manifest.identity.fingerprint != table.fingerprint:
        raise StoreError(
            f"table {table.stage}/{table.fingerprint} has no manifest that says what it is; build it again"
        )
    document = as_document(replace(manifest, shards=table.shards))
    return json.dumps(document, indent=1, sort_keys=True).encode()


def sidecar_of(table: TableRef, shard: ShardFile) -> bytes:
    """Return the sidecar of a shard."""
    return json.dumps(sidecar_document(table.stage, table.fingerprint, shard), indent=1, sort_keys=True).encode()


def listed(tables: Sequence[TableRef], documents: Mapping[str, bytes]) -> Iterator[tuple[str, int, str]]:
    """Yield path, size and sha256 of every file after the licence, in the order of the archive."""
    for table in tables:
        folder = table_folder(table.stage, table.fingerprint)
        document = documents[table.stage]
        yield f"{folder}/{MANIFEST}", len(document), hashlib.sha256(document).hexdigest()
        for shard in table.shards:
            sidecar = sidecar_of(table, shard)
            yield f"{folder}/{shard.name}", shard.bytes, shard.sha256
            yield f"{folder}/{sidecar_name(shard.shard, shard.key)}", len(sidecar), hashlib.sha256(sidecar).hexdigest()


# -- reading -----------------------------------------------------------------------------------------------------------


def unpack(path: Path, store: Store) -> Imported:
    """Check an archive to its last byte, then put its tables into a store; shards that are there already stay.

    They are named by the same ref as where they come from, so that a run of the same recipe finds them, and they are no
    garbage. Raises StoreError for an
    archive that is not exactly what `pack` writes; then, and when the store cannot be written, no table has appeared.
    """
    try:
        with path.open("rb") as file:
            with advising("the archive was not written by us; fetch it again"):
                about, tables = read_archive(file, str(path))
            return put(file, store, about, tables, str(path))
    except StoreError:
        raise
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror or error}") from None


def put(file: BinaryIO, store: Store, about: Contents, tables: Sequence[Packed], where: str) -> Imported:
    """Write checked tables: all shards, then their sidecars, by which they count, then manifests and the ref."""
    there = {id(one): store.shards(one.manifest.stage, one.manifest.fingerprint) for one in tables}
    new = [
        (one.manifest, shard, member)
        for one in tables
        for shard, member in one.shards
        if (shard.shard, shard.key) not in there[id(one)]
    ]
    need, free = sum(shard.bytes for _, shard, _ in new), store.free_bytes()
    if free is not None and need > free:
        raise StoreError(f"{where} needs {need / 1e9:.3f} GB, and store {store.place} has {free / 1e9:.3f} GB free")
    done: list[tuple[Manifest, ShardFile]] = []
    name = about.name
    run = store.begin(name, about.ref, [(one.manifest.stage, one.manifest.fingerprint) for one in tables])
    try:
        for manifest, shard, member in new:
            done.append((manifest, shard))
            store.put_bytes(manifest.stage, manifest.fingerprint, shard, pieces(file, member, where))
        for manifest, shard, _ in new:
            store.put_sidecar(manifest.stage, manifest.fingerprint, shard)
    except BaseException:
        for manifest, shard in done:
            store.forget(manifest.stage, manifest.fingerprint, shard)
        store.end(name, run)
        raise
    refs = []
    for one in tables:
        stage, fingerprint = one.manifest.stage, one.manifest.fingerprint
        committed = store.shards(stage, fingerprint)
        before = store.read_manifest(stage, fingerprint)
        made = before.made if before else one.manifest.made
        store.write_manifest(Manifest(stage, fingerprint, one.manifest.identity, tuple(committed.values()), made))
        refs.append(TableRef(stage, fingerprint, tuple(committed[shard.shard, shard.key] for shard, _ in one.shards)))

    store.update_ref(name, lambda before: with_arrived((before or about.ref).ended(run), refs))
    return Imported(tuple(refs), len(new), name, about.licence)


def with_arrived(ref: Ref, arrived: Sequence[TableRef]) -> Ref:
    """Return a ref with tables that were taken in.

    They are its tables if it has none and they come with their index, by which tables belong together. Else they are
    held: a run of the recipe finds them, and puts in their place what it selects.
    """
    if not ref.tables and any(table.stage == "index" for table in arrived):
        return replace(ref, tables={table.stage: table for table in arrived})
    known = (*ref.tables.values(), *ref.held)
    return replace(ref, held=(*ref.held, *(table for table in arrived if table not in known)))


def contents_from(document: Settings, licence: str, where: str) -> Contents:
    """Return what an archive says of its tables; raises StoreError if its ref is none that a recipe has."""
    recipe = checked(str(document.get("recipe")))
    if document.get("format") == 1:
        return Contents(f"imported-{recipe}", Ref(recipe, {}), licence)
    described = document.get("ref")
    if not isinstance(described, dict):
        raise Malformed(f"{where} does not say which ref names its tables")
    if document.get("ref_digest") != digest(described):
        raise Malformed(f"{where} is damaged: the ref of its tables was changed")
    ref = ref_from(described, where)
    name = str(described.get("name"))
    ref_path(name, 0)
    if name.split("/")[0] == RUNS or ref.recipe != recipe or ref.tables or ref.held or ref.building:
        raise Malformed(f"{where} has a ref, {name[:80]!r}, that no recipe has")
    if ref.key:
        checked_hex(ref.key)
    return Contents(name, replace(ref, asked=ref.asked and replace(ref.asked, received=True)), licence)


def read_archive(file: BinaryIO, where: str) -> tuple[Contents, list[Packed]]:
    """Return what an archive says, and its tables, after checking every byte of it; raises StoreError."""
    size = file.seek(0, os.SEEK_END)
    position, start, length = header(file, 0, size, CONTENTS, where)
    document = parsed(content_of(file, start, length, MOST_JSON_BYTES, f"{where}: {CONTENTS}"), f"{where}: {CONTENTS}")
    if document.get("format") not in READABLE:
        known = " and ".join(map(str, READABLE))
        raise StoreError(f"{where}: {CONTENTS} is of format {document.get('format')!r}; this version reads {known}")
    contents_from(document, "", f"{where}: {CONTENTS}")
    named = expect_list(document.get("tables"), f"{where}: {CONTENTS}")
    members: list[Member] = []
    for item in expect_list(document.get("files"), f"{where}: {CONTENTS}"):
        member = member_from(item, f"{where}: {CONTENTS}")
        members.append(member)
    if len({member.name for member in members} | {CONTENTS}) <= len(members) or len(
        {member.path for member in members}
    ) < len(members):
        raise StoreError(f"{where}: {CONTENTS} lists a file twice")
    placed: list[Member] = []
    for member in members:
        position, start, length = header(file, position, size, member.name, where)
        if length != member.bytes:
            raise StoreError(f"{where}: {member.name} has {length} bytes; {CONTENTS} says {member.bytes}")
        member = Member(member.name, member.path, member.bytes, member.sha256, start)
        for _ in pieces(file, member, where):
            pass
        placed.append(member)
    file.seek(position)
    while block := file.read(1 << 20):
        if block.strip(b"\0"):
            raise StoreError(f"{where} goes on after the last file that {CONTENTS} lists; it was not written by us")
    if not placed or placed[0].path != LICENCE:
        raise StoreError(f"{where} has no {LICENCE}; it was not written by us")
    note = content_of(file, placed[0].start, placed[0].bytes, MOST_LICENCE_BYTES, f"{where}: {LICENCE}")
    rest = iter(placed[1:])
    tables = [read_table(file, item, rest, where) for item in named]
    extra = next(rest, None)
    if extra is not None:
        raise StoreError(f"{where}: {extra.name} belongs to none of its tables")
    return contents_from(document, note.decode("utf-8", "replace"), f"{where}: {CONTENTS}"), tables


def read_table(file: BinaryIO, named: Any, rest: Iterator[Member], where: str) -> Packed:
    """Return the next table of an archive, checked against its identity and the columns that its stage has here."""
    if not (isinstance(named, list) and len(named) == 2):
        raise StoreError(f"{where}: {CONTENTS} names a table as {str(named)[:60]!r}; expected stage and fingerprint")
    stage, fingerprint = checked(str(named[0])), checked_hex(str(named[1]))
    folder = table_folder(stage, fingerprint)
    member = expected(rest, f"{folder}/{MANIFEST}", where)
    here = f"{where}: {member.name}"
    document = parsed(content_of(file, member.start, member.bytes, MOST_JSON_BYTES, here), here)
    identity, made = identity_from(document.get("identity"), here), document.get("made", {})
    try:
        found = identity.fingerprint
    except (TypeError, ValueError, RecursionError):
        found = ""
    if found != fingerprint or identity.stage != stage:
        raise StoreError(
            f"{here}: the digest of its identity is {found or 'none'}, and its folder {fingerprint}; it was changed"
        )
    if stage not in TABLES or identity.columns != TABLES[stage].signature():
        raise StoreError(f"{here}: table `{stage}` has other columns in this version; it cannot be used here")
    shards = []
    for item in expect_list(document.get("shards"), here):
        shard = shard_from(item, here)
        content = expected(rest, f"{folder}/{shard.name}", where)
        sidecar = expected(rest, f"{folder}/{sidecar_name(shard.shard, shard.key)}", where)
        raw = content_of(file, sidecar.start, sidecar.bytes, MOST_JSON_BYTES, f"{where}: {sidecar.name}")
        about = parsed(raw, f"{where}: {sidecar.name}")
        if (shard_from(about, f"{where}: {sidecar.name}"), about.get("stage"), about.get("fingerprint")) != (
            shard, stage, fingerprint,
        ):  # fmt: skip
            raise StoreError(f"{where}: {sidecar.name} does not say what the manifest says of its shard")
        check_shard(file, shard, content, stage, fingerprint, f"{where}: {content.name}")
        shards.append((shard, content))
    return Packed(
        Manifest(
            stage, fingerprint, identity, tuple(shard for shard, _ in shards), made if isinstance(made, dict) else {}
        ),
        tuple(shards),
    )


def check_shard(file: BinaryIO, shard: ShardFile, member: Member, stage: str, fingerprint: str, where: str) -> None:
    """Raise StoreError unless a shard is the file that its manifest describes, with the columns of its table."""
    if (member.sha256, member.bytes) != (shard.sha256, shard.bytes):
        raise StoreError(f"{where}: it is not the file that the manifest describes (sha256 differs)")
    file.seek(member.start + max(member.bytes - 8, 0))
    length = int.from_bytes(file.read(8)[:4], "little") + 8
    if length > min(member.bytes, MOST_FOOTER_BYTES):
        raise StoreError(f"{where}: its footer says that it is {length} bytes long; this is no shard")
    file.seek(member.start + member.bytes - length)
    footer = file.read(length)
    if hashlib.sha256(footer).hexdigest() != shard.footer_sha256:
        raise StoreError(f"{where}: its footer is not the one that the manifest describes (sha256 differs)")
    try:
        parquet = pq.ParquetFile(io.BytesIO(b"PAR1" + footer))
        schema = parquet.schema_arrow
        about = {key.decode(): text.decode() for key, text in (schema.metadata or {}).items()}
        fits = columns_of(schema) == columns_of(TABLES[stage].schema) and parquet.num_row_groups == shard.rows
    except (OSError, pa.ArrowException, ValueError) as error:
        raise StoreError(f"{where}: it is no Parquet file ({error})") from None
    if not fits:
        raise StoreError(f"{where}: its columns or the number of its rows are not those of table `{stage}`")
    if {"stage": stage, "fingerprint": fingerprint, "shard": shard.shard, "key": shard.key}.items() - about.items():
        raise StoreError(f"{where}: it is a shard of another table")


def columns_of(schema: pa.Schema) -> list[tuple[Any, ...]]:
    """Return what makes the columns of a table; Parquet calls the items of lists by another name than Arrow."""
    about = [metadata(column) for column in schema]
    return [(one.name, one.type, a.get("dtype"), a.get("shape")) for one, a in zip(schema, about, strict=True)]
