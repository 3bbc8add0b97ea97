"""Tables as one file: they arrive whole, on S3 too, and an archive that was tampered with is a sentence."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.fingerprint import digest
from manifests.records.codec import as_document
from manifests.records.table import AskedTable, AskedTables
from manifests.storage import archive
from manifests.storage.archive import pack, unpack
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.arrow import failed_row, to_arrow
from manifests.tables.base import Failed
from manifests.tables.labels import Target
from tests.manifests.s3_server import Server
from tests.refs import identity

IDENTITY = identity("target")
FINGERPRINT, KEY = IDENTITY.fingerprint, "00aa11bb22cc"


def made(place: Path, *shards: str) -> Store:
    """A store with a table of these shards and the ref `recipe`."""
    store = Store.open(place)
    table = []
    for shard in shards:
        number = np.arange(9, dtype=np.uint8)
        row = Target(frame_id=shard, label=number, confidence=number, seen=number > 4)
        table.append(store.write("target", FINGERPRINT, shard, KEY, to_arrow([row], Target)))
    store.write_manifest(Manifest("target", FINGERPRINT, IDENTITY, tuple(table), {"recipe": "recipe"}))
    store.write_ref("recipe", Ref("recipe", {"target": TableRef("target", FINGERPRINT, tuple(table))}))
    return store


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """An archive of one table with two shards, one of them with a name that the tar format has no room for."""
    store = made(tmp_path / "from", "scene-1", "scene-" + "2" * 90)
    pack(store, "recipe", ["target"], "For tests only.\n", tmp_path / "tables.tar")
    return tmp_path / "tables.tar"


def files(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())


def test_a_table_arrives_as_it_was_with_its_manifest_and_the_note(packed: Path, tmp_path: Path) -> None:
    here, there = Store.open(tmp_path / "from"), Store.open(tmp_path / "to")
    done = unpack(packed, there)
    [table] = done.tables
    assert (done.n_new, done.ref, done.licence) == (2, "recipe", "For tests only.\n")
    assert there.shards("target", FINGERPRINT) == here.shards("target", FINGERPRINT)
    assert there.read_manifest("target", FINGERPRINT) == here.read_manifest("target", FINGERPRINT)
    assert all(there.damage("target", FINGERPRINT, shard) is None for shard in table.shards)
    assert there.unreferenced(0) == []
    assert files(tmp_path / "to" / "target") == files(tmp_path / "from" / "target")
    again = unpack(packed, there)
    assert again.n_new == 0 and again.tables == done.tables and len(there.expect_ref("recipe").held) == 1


def test_the_same_tables_give_the_same_archive_and_any_tar_program_reads_it(packed: Path, tmp_path: Path) -> None:
    pack(Store.open(tmp_path / "from"), "recipe", ["target", "target"], "For tests only.\n", tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_bytes() == packed.read_bytes()
    with tarfile.open(packed) as tar:
        assert tar.getnames()[:3] == ["afov.json", "LICENCE.txt", f"target/{FINGERPRINT}/manifest.json"]
        assert all(member.isreg() for member in tar) and len(tar.getnames()) == 7


def test_tables_travel_from_a_bucket_and_into_one(packed: Path, tmp_path: Path, s3: Server) -> None:
    there = Store.open(s3.bucket().uri())
    assert unpack(packed, there).n_new == 2
    there.write_ref("recipe", Store.open(tmp_path / "from").expect_ref("recipe"))
    pack(there, "recipe", ["target"], "For tests only.\n", tmp_path / "back.tar")
    with tarfile.open(packed) as one, tarfile.open(tmp_path / "back.tar") as other:
        assert one.getnames() == other.getnames()
        assert [file.size for file in one if file.name.endswith("t")] == [f.size for f in other if f.name.endswith("t")]


def test_a_ref_travels_with_its_key_and_what_was_asked(tmp_path: Path) -> None:
    store, name = made(tmp_path / "from", "scene-1"), "street/0a1b2c3d4e5f"
    asked = AskedTables({"root": "s3://K:CANARY@b"}, {"group": AskedTable(1, {"min_points": 3}, KEY, KEY)})
    tables = store.expect_ref("recipe").tables
    store.write_ref(name, Ref("street", tables, ("a",), key="0a1b2c3d4e5f", asked=asked))
    pack(store, name, ["target"], "x", tmp_path / "tables.tar")
    done = unpack(tmp_path / "tables.tar", there := Store.open(tmp_path / "to"))
    ref = there.expect_ref(name)
    assert done.ref == name and (ref.key, ref.excluded, ref.building) == ("0a1b2c3d4e5f", ("a",), ())
    assert ref.asked == replace(asked, data={"root": "s3://b"}, received=True)
    assert b"CANARY" not in (tmp_path / "tables.tar").read_bytes()


def test_what_cannot_be_exported_is_a_sentence_and_leaves_no_file(packed: Path, tmp_path: Path) -> None:
    store = Store.open(tmp_path / "from")
    with pytest.raises(StoreError, match="exists already"):
        pack(store, "recipe", ["target"], "", packed)
    with pytest.raises(StoreError, match=r"make points RECIPE=..."):
        pack(store, "recipe", ["points"], "", tmp_path / "b.tar")
    shard = next(iter(store.shards("target", FINGERPRINT).values()))
    path = tmp_path / "from" / "target" / FINGERPRINT / shard.name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreError, match="is damaged: its bytes have changed"):
        pack(store, "recipe", ["target"], "", tmp_path / "b.tar")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["tables.tar"]


# -- hostile archives --------------------------------------------------------------------------------------------------


def members_of(path: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(path) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def write_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content))
    return path


def with_entry(**values: Any) -> Callable[[list[Any]], list[Any]]:
    """Put an entry of another kind or name in the place of the first shard."""

    def change(members: list[Any]) -> list[Any]:
        entry = tarfile.TarInfo(members[3][0].name)
        for name, value in values.items():
            setattr(entry, name, value)
        return [*members[:3], (entry, members[3][1]), *members[4:]]

    return change


def with_document(place: int, **values: Any) -> Callable[[list[Any]], list[Any]]:
    """Change values of a JSON document of the archive, and the size and digest that are listed of it."""

    def change(members: list[Any]) -> list[Any]:
        import hashlib

        entry, content = members[place]
        changed = json.dumps(json.loads(content) | values).encode()
        members[place] = entry, changed
        if place:
            contents = json.loads(members[0][1])
            about = {"bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
            contents["files"][place - 1] |= about
            members[0] = members[0][0], json.dumps(contents).encode()
        return members

    return change


def with_listed(place: int, **values: Any) -> Callable[[list[Any]], list[Any]]:
    """Change what the table of contents says of a file."""

    def change(members: list[Any]) -> list[Any]:
        contents = json.loads(members[0][1])
        contents["files"][place] |= values
        return [(members[0][0], json.dumps(contents).encode()), *members[1:]]

    return change


def with_ref(signed: bool = False, **values: Any) -> Callable[[list[Any]], list[Any]]:
    """Change the ref that the archive describes, and its digest where it is `signed`."""

    def change(members: list[Any]) -> list[Any]:
        contents = json.loads(members[0][1])
        contents["ref"] |= values
        if signed:
            contents["ref_digest"] = digest(contents["ref"])
        return [(members[0][0], json.dumps(contents).encode()), *members[1:]]

    return change


HOSTILE: dict[str, tuple[Callable[[list[Any]], list[Any]], str]] = {
    "an absolute name": (with_entry(name="/etc/cron.d/x"), "leaves the folder of the tables"),
    "a name that climbs out": (with_entry(name="target/../../x"), "leaves the folder of the tables"),
    "a symbolic link": (with_entry(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a symbolic link"),
    "a hard link": (with_entry(type=tarfile.LNKTYPE, linkname="../x"), "is a hard link"),
    "a device": (with_entry(type=tarfile.CHRTYPE), "is a device"),
    "a pipe": (with_entry(type=tarfile.FIFOTYPE), "is a pipe"),
    "a folder": (with_entry(type=tarfile.DIRTYPE), "is a folder"),
    "an extended header": (with_entry(type=tarfile.XHDTYPE), "holds plain files only"),
    "a member twice": (lambda members: [*members[:4], *members[3:]], "stands where"),
    "a member too many": (lambda members: [*members, members[-1]], "goes on after the last file"),
    "a member too few": (lambda members: members[:-1], "there is no file"),
    "members in another order": (lambda members: [*members[:3], members[4], members[3], *members[5:]], "stands where"),
    "no table of contents": (lambda members: members[1:], "stands where afov.json was expected"),
    "content that was changed": (
        lambda members: [*members[:3], (members[3][0], members[3][1][:-9] + b"changed!!"), *members[4:]],
        "is damaged (sha256 differs)",
    ),
    "another format": (with_document(0, format=3), "is of format 3"),
    "no ref": (with_document(0, ref=None), "does not say which ref"),
    "a ref that was changed": (with_ref(excluded=["a"]), "the ref of its tables was changed"),
    "a ref of a training run": (with_ref(True, name="runs/x"), "that no recipe has"),
    "a ref that is a path": (with_ref(True, name="../x"), "is not a name within the store"),
    "a ref with tables": (with_ref(True, building=[["target", "0a"]]), "that no recipe has"),
    "contents that are a list": (lambda members: [(members[0][0], b"[1]"), *members[1:]], "is no JSON document"),
    "a recipe that is a path": (with_document(0, recipe="../x"), "is not a name within the store"),
    "a file listed twice": (with_listed(2, path=f"target/{FINGERPRINT}/manifest.json"), "lists a file twice"),
    "a listed name that climbs out": (with_listed(2, name="target/../x"), "is no file of a table"),
    "a listed name in no table": (with_listed(2, path="x"), "is no file of a table"),
    "another size listed": (with_listed(2, bytes=7), "says 7"),
    "an endless size listed": (with_listed(2, bytes=1e400), "does not describe its files"),
    "another digest listed": (with_listed(2, sha256="0" * 64), "is damaged (sha256 differs)"),
    "an identity of another table": (
        with_document(2, identity=as_document(replace(IDENTITY, version=2))),
        "the digest of its identity",
    ),
    "an identity that is a word": (with_document(2, identity="target"), "does not say what the table was made from"),
    "a manifest without shards": (
        with_document(2, shards=None),
        "lacks a list that it should hold; the archive was not",
    ),
    "a manifest of fewer shards": (with_document(2, shards=[]), "belongs to none of its tables"),
    "a sidecar of another shard": (with_document(4, rows=2), "does not say what the manifest says"),
    "no table of that kind": (with_document(0, tables=[]), "belongs to none of its tables"),
    "a table that is a number": (with_document(0, tables=[7]), "expected stage and fingerprint"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_a_sentence_and_nothing_appears(packed: Path, tmp_path: Path, kind: str) -> None:
    change, sentence = HOSTILE[kind]
    evil = write_tar(tmp_path / "evil.tar", change(members_of(packed)))
    with pytest.raises(StoreError) as caught:
        unpack(evil, Store.open(tmp_path / "to"))
    assert sentence in str(caught.value), caught.value
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(("field", "text"), [((124, 136), b"77777777777\0"), ((124, 136), b"\x80" + b"\x7f" * 11)])
def test_a_size_that_no_disk_holds_is_a_sentence(
    packed: Path, tmp_path: Path, field: tuple[int, int], text: bytes
) -> None:
    content = bytearray(packed.read_bytes())
    content[slice(*field)] = text
    content[148:156] = b"%06o\0 " % (sum(content[:148]) + 8 * 32 + sum(content[156:512]))
    (tmp_path / "evil.tar").write_bytes(content)
    with pytest.raises(StoreError, match="are left; cut off"):
        unpack(tmp_path / "evil.tar", Store.open(tmp_path / "to"))


def test_a_shard_with_other_columns_or_of_another_table_is_refused(tmp_path: Path) -> None:
    """Everything that the archive says of itself fits together; only the Parquet file is another one."""
    store = made(tmp_path / "from", "scene-1")
    [shard] = store.shards("target", FINGERPRINT).values()
    for fingerprint, schema, sentence in (
        ("0" * 12, Target.schema, "a shard of another table"),
        (FINGERPRINT, Target.schema.remove(3), "its columns or the number of its rows"),
    ):
        row = failed_row(Failed("scene-1", "x"), schema)
        other = store.write("target", fingerprint, "scene-1", "ff" * 6, row)
        forged = replace(other, key=KEY, name=f"scene-1.{KEY}.{other.sha256[:12]}.parquet")
        folder = tmp_path / "from" / "target"
        (folder / fingerprint / other.name).rename(folder / FINGERPRINT / forged.name)
        store.write_ref("recipe", Ref("recipe", {"target": TableRef("target", FINGERPRINT, (forged,))}))
        out = tmp_path / f"{sentence[:3]}.tar"
        pack(store, "recipe", ["target"], "", out)
        with pytest.raises(StoreError, match=sentence):
            unpack(out, Store.open(tmp_path / "to"))
    assert shard.rows == 1 and not (tmp_path / "to").exists()


@given(data=st.data())
@settings(max_examples=60)
def test_an_archive_damaged_anywhere_is_a_sentence_or_the_same_tables(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.getbasetemp() / "damaged"
    if not (place / "good.tar").exists():
        pack(made(place / "from", "scene-1"), "recipe", ["target"], "x", place / "good.tar")
    content = bytearray((place / "good.tar").read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:position]
    else:
        content[position] ^= 1 << data.draw(st.integers(0, 7))
    (place / "bad.tar").write_bytes(content)
    with (place / "bad.tar").open("rb") as file:
        try:
            _, [table] = archive.read_archive(file, "bad.tar")
        except StoreError:
            return
    assert table.manifest.identity.fingerprint == FINGERPRINT and len(table.shards) == 1


def test_a_store_that_cannot_be_written_gets_nothing(packed: Path, tmp_path: Path, small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (56 << 10))
    with pytest.raises(StoreError, match=r"GB free|disk is full"):
        unpack(packed, Store.open(small_disk / "to"))
    assert not list((small_disk / "to").rglob("*.parquet")) and os.path.exists(packed)
