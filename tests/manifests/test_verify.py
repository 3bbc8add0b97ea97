"""A store tells what in it is not what was written, drops that alone, and touches nothing that is not ours."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from manifests.fingerprint import digest
from manifests.storage import marker, refs
from manifests.storage.documents import decode, encode
from manifests.storage.errors import StoreError
from manifests.storage.grammar import MARKER, kind_of
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.seen import Seen, write_seen
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.storage.verify import Damage, damaged_shards, heal, look_over
from manifests.tables.arrow import to_arrow
from manifests.tables.labels import Target
from tests.manifests.test_store import KEY, target_row
from tests.refs import identity

IDENTITY = identity("target", {"labels": "group"})
FINGERPRINT = IDENTITY.fingerprint
HELD = identity("target", {"labels": "vote"}).fingerprint
NAME = "street/0a1b2c3d4e5f"
PREDICTED = identity("predict").fingerprint
FILES = [
    "marker",
    "ref",
    "old ref",
    "pin",
    "manifest",
    "sidecar",
    "shard",
    "held sidecar",
    "held shard",
    "prediction",
    "note",
]


def write(store: Store, fingerprint: str, shard: str = "scene-1", stage: str = "target", seed: int = 0) -> ShardFile:
    rows = [target_row(f"{shard}/{index}", 40, seed + index) for index in range(2)]
    return store.write(stage, fingerprint, shard, KEY, to_arrow(rows, Target))


def build(place: Path) -> Store:
    """A store with a complete table, one that is not, and predictions of a training run."""
    store = Store.open(place)
    whole = tuple(write(store, FINGERPRINT, shard) for shard in ("scene-1", "scene-2"))
    store.write_manifest(Manifest("target", FINGERPRINT, IDENTITY, whole, {"finished": "now"}))
    held = TableRef("target", HELD, (write(store, HELD, seed=7),))
    store.write_ref(NAME, Ref("street", {}, key="0a1b2c3d4e5f"))
    store.write_ref(NAME, Ref("street", {"target": TableRef("target", FINGERPRINT, whole)}, ("a",), (held,)))
    predicted = write(store, PREDICTED, stage="predict")
    store.write_manifest(Manifest("predict", PREDICTED, identity("predict"), (predicted,)))
    store.write_ref("runs/street-predict", Ref("street", {"predict": TableRef("predict", PREDICTED, (predicted,))}))
    write_seen(store, "/data", "scene-1", KEY, Seen("ab" * 32, "cd" * 6))
    return store


def files_of(store: Store) -> dict[str, Path]:
    """One file of each kind."""
    place = store.local
    assert place is not None

    def one(pattern: str) -> Path:
        return sorted(place.glob(pattern))[0]

    target, held = f"target/{FINGERPRINT}", f"target/{HELD}"
    return {
        "marker": place / MARKER,
        "ref": place / f"refs/{NAME}.00000002.json",
        "old ref": place / f"refs/{NAME}.00000001.json",
        "pin": place / "refs/runs/street-predict.00000001.json",
        "manifest": place / target / "manifest.json",
        "sidecar": one(f"{target}/scene-1.*.json"),
        "shard": one(f"{target}/scene-1.*.parquet"),
        "held sidecar": one(f"{held}/scene-1.*.json"),
        "held shard": one(f"{held}/scene-1.*.parquet"),
        "prediction": one(f"predict/{PREDICTED}/scene-1.*.parquet"),
        "note": one("seen/scene-1.*.json"),
    }


def verify(store: Store, recipe: str | None = "street") -> list[Damage]:
    found = look_over(store, recipe)
    return [*found.damages, *damaged_shards(store, found, lambda _: None)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build(place := tmp_path_factory.mktemp("verify"))
    return place


def read_all(store: Store) -> list[Any]:
    """What a run, a training and an evaluation take from a store."""
    refs = store.refs()
    tables = [table for ref in refs.values() for table in (*ref.tables.values(), *ref.held)]
    read: list[Any] = [refs, store.read_manifest("target", FINGERPRINT), store.shards("target", FINGERPRINT)]
    for table in tables:
        for shard in table.shards:
            rows = store.read(table.stage, table.fingerprint, shard)
            read.append(rows.to_pylist())
    return read


@pytest.mark.parametrize("kind", FILES)
def test_300_flips_and_cuts_of_every_kind_of_file_are_all_noticed_and_change_nothing_silently(
    place: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refs, "LOOKED_AT_AGAIN_AFTER_S", (0.0,))  # nobody is writing it
    store, chance = Store.open(place), random.Random(kind)
    path = files_of(store)[kind]
    whole, before = path.read_bytes(), read_all(store)
    assert verify(store) == []
    try:
        for number in range(300):
            position = chance.randrange(len(whole))
            flipped = bytes([whole[position] ^ 1 << chance.randrange(8)])
            path.write_bytes(whole[:position] + (flipped + whole[position + 1 :] if number % 3 else b""))
            damaged = [damage.path for damage in verify(store)]
            assert damaged == [str(path.relative_to(place))], (number, position)
            if number % 10 == 0:  # one in ten is read as well: that is what takes the time
                with contextlib.suppress(StoreError):
                    assert read_all(store) == before
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "marker"])
@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "gone"])
def test_what_is_healed_is_whole_again_once_it_is_built_again(tmp_path: Path, kind: str, harm: str) -> None:
    store = build(tmp_path / "store")
    path = files_of(store)[kind]
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
        if kind in (
            "old ref",
            "ref",
            "pin",
            "note",
        ):  # then it was deleted by somebody, and there is nothing to tell it
            return
    else:
        path.write_bytes({"flip": b"?" + whole[1:], "cut": whole[:-3], "empty": b""}[harm])
    damages = verify(store)
    assert [damage.path for damage in damages] == [str(path.relative_to(tmp_path / "store"))]
    done = heal(store, damages)
    assert len(done) == 1 and damages[0].path in done[0] and ("again by: make" in done[0] or "next run" in done[0])
    assert [damage.path for damage in verify(store) if damage.what != "is missing"] == []
    build(tmp_path / "store")  # what the commands that were named do
    assert verify(store) == [] and read_all(store)


def test_a_damaged_mark_is_written_anew_where_nothing_foreign_lies(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    (tmp_path / "store" / MARKER).write_bytes(b"?")
    with pytest.raises(StoreError, match=r"make verify RECIPE=... ARGS=--heal"):
        store.unreferenced(0)
    damages = verify(store)
    assert heal(store, damages) and verify(store) == [] and store.unreferenced(0) == []


def test_a_healed_ref_falls_back_on_the_state_before(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    files_of(store)["ref"].write_bytes(b"?")
    with pytest.raises(StoreError, match="is damaged"):
        store.read_ref(NAME)
    heal(store, verify(store))
    assert store.expect_ref(NAME).tables == {} and store.expect_ref(NAME).key == "0a1b2c3d4e5f"


def test_who_reads_a_ref_whose_shard_was_dropped_is_told_what_to_build(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    files_of(store)["shard"].write_bytes(b"?")
    heal(store, verify(store))
    ref = store.expect_ref(NAME)
    with pytest.raises(StoreError, match=r"make target RECIPE=..."):
        ref.table("target")
    assert [shard.shard for table in ref.held for shard in table.shards] == ["scene-1", "scene-2"]
    assert store.unreferenced(0) == []


def test_what_the_recipe_at_hand_does_not_ask_for_is_said_to_be_built_by_who_does(tmp_path: Path) -> None:
    """A command that builds nothing of it would be no advice."""
    store = build(tmp_path / "store")
    files_of(store)["shard"].write_bytes(b"?")
    (damage,) = verify(store)
    (sentence,) = heal(store, [damage], {"target": HELD})
    assert f"built again by: a run that asks for it, as {NAME} did" in sentence and "make" not in sentence


def test_a_manifest_that_says_another_identity_is_damaged_though_its_digest_is_right(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    path = files_of(store)["manifest"]
    document: Any = decode(path.read_bytes(), "it")
    path.write_bytes(encode(document | {"identity": document["identity"] | {"version": 2}}))
    assert [damage.what.split(" is ")[0] for damage in verify(store)] == ["the digest of its identity"]


def test_the_tables_of_other_recipes_are_read_when_asked_for(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    files_of(store)["held shard"].write_bytes(b"?")
    assert verify(store, "other") == [] and len(verify(store)) == 1 and len(verify(store, None)) == 1


def test_documents_of_an_earlier_version_are_counted(tmp_path: Path) -> None:
    import json

    store = build(tmp_path / "store")
    path = files_of(store)["manifest"]
    path.write_text(json.dumps(decode(path.read_bytes(), "it"), indent=1, sort_keys=True))
    found = look_over(store, "street")
    assert found.damages == [] and found.undigested == 1 and store.read_manifest("target", FINGERPRINT)


# -- what is not ours --------------------------------------------------------------------------------------------------

FOREIGN = ["sales/2024/part-0000.parquet", "runs/city/evaluate.json", "target/2024/a.parquet", "notes.txt",
           f"target/{FINGERPRINT}/notes.json", f"target/{FINGERPRINT}/part-0000.parquet", "refs/notes.txt",
           f"target/{FINGERPRINT}/old/manifest.json", f"unknown/{FINGERPRINT}/manifest.json", ".tmp-mine",
           "refs/a/b/c.json"]  # fmt: skip


def test_foreign_files_are_never_listed(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    write(store, digest("loose"))
    for name in FOREIGN:
        (tmp_path / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "store" / name).write_bytes(b"foreign")
    garbage = [path for path, _ in store.unreferenced(0)]
    assert len(garbage) == 2 and all(path.startswith(f"target/{digest('loose')}/scene-1.") for path in garbage)
    for name in FOREIGN:
        assert kind_of(name) is None
        with pytest.raises(StoreError, match="it stays"):
            store.delete([name])


@pytest.mark.parametrize("path", [MARKER, f"refs/{NAME}.00000001.json", "refs/runs/a.json"])
def test_neither_refs_nor_the_mark_are_collected(tmp_path: Path, path: str) -> None:
    store = build(tmp_path / "store")
    with pytest.raises(StoreError, match="it stays"):
        store.delete([path])


def without_mark(place: Path) -> Store:
    store = build(place)
    (place / MARKER).unlink()
    return store


@pytest.mark.parametrize(
    "action", [lambda store: store.unreferenced(0), lambda store: store.delete([]), lambda store: heal(store, [])]
)
def test_nothing_is_deleted_in_a_folder_that_is_not_marked(tmp_path: Path, action: Callable[[Store], Any]) -> None:
    store = without_mark(tmp_path / "store")
    with pytest.raises(StoreError, match=r"store mark RECIPE=..."):
        action(store)
    marker.mark(store.files)
    action(store)


def test_a_folder_with_foreign_files_gets_no_mark(tmp_path: Path) -> None:
    (tmp_path / "store" / "sales").mkdir(parents=True)
    (tmp_path / "store" / "sales" / "2024.parquet").write_bytes(b"")
    store = build(tmp_path / "store")  # it is written all the same
    with pytest.raises(StoreError, match="store mark"):
        store.unreferenced(0)
    with pytest.raises(StoreError, match=r"1 files .*sales/2024.parquet.* move them away"):
        marker.mark(store.files)
    (tmp_path / "store" / "sales" / "2024.parquet").unlink()
    assert marker.mark(store.files) > 0 and store.unreferenced(0) == []


def test_a_mark_of_a_later_version_is_respected(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    (tmp_path / "store" / MARKER).write_bytes(encode({"format": 3}))
    with pytest.raises(StoreError, match="of format 3"):
        store.unreferenced(0)


def test_a_ref_that_cannot_be_read_stops_the_collection(tmp_path: Path) -> None:
    store = build(tmp_path / "store")
    files_of(store)["pin"].write_bytes(b"")
    with pytest.raises(StoreError, match="is damaged"):
        store.unreferenced(0)
    assert replace(store.expect_ref(NAME), excluded=()).recipe == "street"
