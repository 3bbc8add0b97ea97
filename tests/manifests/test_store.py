"""The store keeps shards whole: killed writers, full disks, flipped bits and foreign names never pass for a table."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.storage.documents import decode, encode
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.names import checked, make_target, scene_of, shard_name
from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Failed, FrameRecord
from manifests.tables.labels import Label, Target
from manifests.tables.registry import TABLES
from tests.refs import identity

FINGERPRINT = "0123456789ab"
KEY = "00aa11bb22cc"


def target_row(frame_id: str, n_points: int = 100, seed: int = 0) -> Target:
    random = np.random.default_rng(seed)
    return Target(
        frame_id=frame_id,
        label=random.integers(0, 17, n_points, dtype=np.uint8),
        confidence=random.integers(0, 256, n_points, dtype=np.uint8),
        seen=random.random(n_points) < 0.5,
    )


def write(store: Store, shard: str = "scene-1", n_rows: int = 3, key: str = KEY) -> ShardFile:
    rows = [target_row(f"{shard}/{index}", seed=index) for index in range(n_rows)]
    return store.write("target", FINGERPRINT, shard, key, to_arrow(rows, Target))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def folder(store: Store) -> Path:
    assert store.local is not None
    return store.local / "target" / FINGERPRINT


def test_rows_come_back_as_they_were_written(store: Store) -> None:
    shard = write(store)
    reader = store.open_shard("target", FINGERPRINT, shard)
    assert reader.n_rows == 3
    expected = target_row("scene-1/2", seed=2)
    row = reader.record(2, Target)
    assert isinstance(row, Target) and row.frame_id == "scene-1/2"
    np.testing.assert_array_equal(row.label, expected.label)
    np.testing.assert_array_equal(row.seen, expected.seen)
    assert isinstance(reader.record(1, FrameRecord), FrameRecord), "columns that are not asked for are not read"


def test_a_shard_counts_once_its_sidecar_exists(store: Store) -> None:
    shard = write(store)
    assert store.shards("target", FINGERPRINT) == {("scene-1", KEY): shard}
    (folder(store) / f"scene-1.{KEY}.json").unlink()
    assert store.shards("target", FINGERPRINT) == {}


def test_a_sidecar_without_its_file_does_not_count(store: Store) -> None:
    shard = write(store)
    (folder(store) / shard.name).unlink()
    assert store.shards("target", FINGERPRINT) == {}


def test_a_sidecar_that_was_cut_off_stops_and_is_not_taken_for_none(store: Store) -> None:
    write(store)
    sidecar = folder(store) / f"scene-1.{KEY}.json"
    sidecar.write_bytes(sidecar.read_bytes()[:120])
    with pytest.raises(StoreError, match="is damaged: its bytes have changed"):
        store.shards("target", FINGERPRINT)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write(Store.open(tmp_path / name)) for name in ("a", "b"))
    assert first == second


def test_every_flipped_bit_is_noticed_by_reading_or_by_verifying(store: Store) -> None:
    shard = write(store)
    path = folder(store) / shard.name
    intact = path.read_bytes()
    random = np.random.default_rng(7)
    for position in random.integers(0, len(intact), 100):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        assert store.damage("target", FINGERPRINT, shard) is not None
    path.write_bytes(intact)
    assert store.damage("target", FINGERPRINT, shard) is None


def test_a_flipped_bit_in_a_page_or_the_footer_raises_when_the_row_is_read(store: Store) -> None:
    shard = write(store, n_rows=1)
    path = folder(store) / shard.name
    intact = path.read_bytes()
    silent = 0
    for position in range(4, len(intact), 37):  # the first four bytes are a magic word that readers ignore
        damaged = bytearray(intact)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            store.open_shard("target", FINGERPRINT, shard).record(0, Target)
        except StoreError as error:
            assert "damaged" in str(error)
        else:
            silent += 1
    # only the few bytes of page headers that carry no data can go unseen; verify finds those
    assert silent <= 2


def test_a_truncated_shard_is_damaged(store: Store) -> None:
    shard = write(store)
    path = folder(store) / shard.name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match="damaged"):
        store.read("target", FINGERPRINT, shard)
    assert store.shards("target", FINGERPRINT) == {}


def test_a_shard_of_another_identity_is_refused(store: Store) -> None:
    shard = write(store)
    other = folder(store).parent / "ffffffffffff"
    folder(store).rename(other)
    with pytest.raises(StoreError, match="another identity"):
        store.open_shard("target", "ffffffffffff", shard)
    with pytest.raises(StoreError, match="belongs to another table"):
        store.shards("target", "ffffffffffff")


@pytest.mark.parametrize(
    "name", ["../../secret.parquet", "/etc/passwd", "a/b.parquet", "..", "", "scene-2.00.11.parquet"]
)
def test_a_sidecar_that_names_a_file_outside_its_folder_is_refused(store: Store, name: str) -> None:
    write(store)
    sidecar = folder(store) / f"scene-1.{KEY}.json"
    document = decode(sidecar.read_bytes(), "it")
    sidecar.write_bytes(encode(document | {"name": name}))
    with pytest.raises(StoreError, match="outside its folder"):
        store.shards("target", FINGERPRINT)


@pytest.mark.parametrize("shard", ["../x", "/x", "a b", ".hidden", ""])
def test_a_manifest_or_ref_that_leaves_its_folder_is_refused(store: Store, shard: str) -> None:
    good = write(store)
    made = Manifest("target", FINGERPRINT, identity("target"), (good,), {"finished": "now"})
    store.write_manifest(made)
    store.write_ref("recipe", Ref("recipe", {"target": TableRef("target", FINGERPRINT, (good,))}))
    assert store.read_manifest("target", FINGERPRINT) == made
    evil = {"shard": shard, "name": f"{shard}.{KEY}.{good.sha256[:12]}.parquet"}
    for path in (folder(store) / "manifest.json", folder(store).parent.parent / "refs" / "recipe.00000001.json"):
        document: Any = decode(path.read_bytes(), "it")
        shards = document["shards"] if "shards" in document else document["tables"]["target"]["shards"]
        shards[0] |= evil
        path.write_bytes(encode(document))
    with pytest.raises(StoreError):
        store.read_manifest("target", FINGERPRINT)
    with pytest.raises(StoreError):
        store.expect_ref("recipe")


@pytest.mark.parametrize("name", ["../x", "a/x", "runs", "x.00000001", "runs/../x", "runs/a/b", "", "/x"])
def test_names_of_refs_stay_in_their_folder(store: Store, name: str) -> None:
    with pytest.raises(StoreError):
        store.write_ref(name, Ref("x", {}))


def test_a_missing_ref_names_the_make_target(store: Store) -> None:
    with pytest.raises(StoreError, match=r"make pack RECIPE=..."):
        store.expect_ref("mine")
    with pytest.raises(StoreError, match=r"make target RECIPE=..."):
        Ref("mine", {}).table("target")


def test_every_table_is_made_by_a_target_that_make_has() -> None:
    targets = re.findall(r"^([a-z]+):", (Path(__file__).resolve().parents[2] / "Makefile").read_text(), re.MULTILINE)
    assert {make_target(stage) for stage in TABLES} <= set(targets)


def test_a_shard_of_another_identity_is_built_again_once_it_is_deleted_as_is_said(store: Store) -> None:
    shard = write(store)
    other = store.write("target", "ffffffffffff", "scene-1", KEY, to_arrow([target_row("a")], Target))
    alien = folder(store).parent / "ffffffffffff" / other.name
    (folder(store) / shard.name).write_bytes(alien.read_bytes())
    wrong = replace(shard, bytes=other.bytes, footer_sha256=other.footer_sha256)
    with pytest.raises(StoreError, match="another identity; delete it and run: make target"):
        store.open_shard("target", FINGERPRINT, wrong)
    (folder(store) / shard.name).unlink()
    assert store.shards("target", FINGERPRINT) == {}
    assert write(store) == shard and store.open_shard("target", FINGERPRINT, shard).n_rows == 3


def test_leaving_a_writer_without_commit_leaves_no_trace(store: Store) -> None:
    with store.writer("target", FINGERPRINT, "scene-1", KEY, Target.schema) as writer:
        writer.append(target_row("a"))
    assert list(folder(store).iterdir()) == []
    with pytest.raises(KeyError), store.writer("target", FINGERPRINT, "scene-1", KEY, Target.schema) as writer:
        writer.append(target_row("a"))
        raise KeyError("interrupted")
    assert list(folder(store).iterdir()) == []


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
from manifests.storage import shards
from manifests.storage.store import Store
import tests_rows
count, stop = 0, -1
def kill_at(function):
    def wrapped(*args, **kwargs):
        global count
        if count == stop:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        return function(*args, **kwargs)
    return wrapped
os.replace = kill_at(os.replace)
os.fsync = kill_at(os.fsync)
shards.ShardWriter.append_table = kill_at(shards.ShardWriter.append_table)
shards.pq.ParquetWriter.close = kill_at(shards.pq.ParquetWriter.close)
shards.put_json = kill_at(shards.put_json)
for stop in range(20):
    run = os.fork()  # of a process that has loaded everything and done nothing: no thread, no lock
    if run == 0:
        tests_rows.write(Store.open(sys.argv[1] + str(stop)))
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(run, 0)[1])
    print(code, flush=True)
    if code != -signal.SIGKILL:
        break
"""


def test_kill_between_any_two_steps_leaves_a_whole_shard_or_none(tmp_path: Path) -> None:
    root = str(Path(__file__).resolve().parents[2])
    (tmp_path / "tests_rows.py").write_text(Path(__file__).read_text())
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED.format(root=root)))
    for stop in range(20):
        Store.open(tmp_path / f"store{stop}")
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "store")], capture_output=True, text=True)
    outcomes = []
    for stop, code in enumerate(map(int, done.stdout.split())):
        store = Store.open(tmp_path / f"store{stop}")
        found = store.shards("target", FINGERPRINT)
        for shard in found.values():
            assert store.damage("target", FINGERPRINT, shard) is None
        outcomes.append((code, len(found)))
        if code == 0:
            break
        assert code == -signal.SIGKILL, done.stderr
        assert (
            write(store) in store.shards("target", FINGERPRINT).values()
        )  # the next run goes on as if nothing had been
        if store.local:
            assert all(path.startswith(("target/", ".tmp-")) for path, _ in store.unreferenced(0))
    assert done.returncode == 0, done.stderr
    assert outcomes[0] == (-signal.SIGKILL, 0) and outcomes[-1] == (0, 1) and len(outcomes) >= 8


def write_many(uri: str, start: Any) -> None:
    start.wait()
    store = Store.open(uri)
    for index in range(10):
        write(store, f"scene-{index}")


def test_two_runs_on_one_store_at_once_give_the_same_whole_shards(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(2)
    store = Store.open(tmp_path / "store")
    runs = [context.Process(target=write_many, args=(store.uri, start)) for _ in range(2)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
        assert run.exitcode == 0
    shards = store.shards("target", FINGERPRINT)
    assert len(shards) == 10
    assert all(store.damage("target", FINGERPRINT, shard) is None for shard in shards.values())
    assert not [name for name in os.listdir(folder(store)) if name.startswith(".tmp-")]


def test_a_full_disk_is_named_and_loses_nothing(small_disk: Path) -> None:
    store = Store.open(small_disk)
    first = write(store)
    rows = [target_row(f"big/{index}", 30_000, index) for index in range(3)]
    with pytest.raises(StoreError, match=r"the disk is full. Finished shards are safe"):
        store.write("target", FINGERPRINT, "big", KEY, to_arrow(rows, Target))
    assert store.shards("target", FINGERPRINT) == {("scene-1", KEY): first}
    assert not [name for name in os.listdir(folder(store)) if name.startswith(".tmp-")]
    assert store.damage("target", FINGERPRINT, first) is None


def test_writing_where_one_must_not_gives_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write(Store.open(tmp_path / "file"))


def test_collection_takes_only_what_no_ref_names(store: Store) -> None:
    kept, loose = write(store, "scene-1"), write(store, "scene-2")
    store.write_ref("recipe", Ref("recipe", {"target": TableRef("target", FINGERPRINT, (kept,))}))
    (folder(store) / ".tmp-00000000000000de").write_bytes(b"left by a killed writer")
    (folder(store).parent.parent / "notes.txt").write_text("not ours")
    assert store.unreferenced(3600) == []  # young files may belong to a run in progress
    garbage = [path.rsplit("/", 1)[1] for path, _ in store.unreferenced(0)]
    assert garbage == [f"scene-2.{KEY}.json", ".tmp-00000000000000de", loose.name]  # sidecars first
    store.delete(path for path, _ in store.unreferenced(0))
    assert list(store.shards("target", FINGERPRINT)) == [("scene-1", KEY)]
    assert (folder(store).parent.parent / "notes.txt").exists()


def test_what_is_being_built_is_no_garbage_however_old_it_looks(store: Store) -> None:
    empty = Ref("recipe", {})
    run = store.begin("recipe", empty, [("target", FINGERPRINT), ("points", FINGERPRINT)])
    shard = write(store)
    (folder(store) / ".tmp-00000000000000aa").write_bytes(b"half a shard")
    for path in folder(store).iterdir():
        os.utime(path, (time.time() - 30 * 3600,) * 2)  # as by a machine whose clock is 30 hours late
    assert store.unreferenced(0) == []
    ref = store.expect_ref("recipe")
    assert [(one.stage, one.run) for one in ref.building] == [("target", run), ("points", run)]
    store.end("recipe", run)
    assert len(store.unreferenced(24 * 3600)) == 3
    store.write_ref("recipe", Ref("recipe", {"target": TableRef("target", FINGERPRINT, (shard,))}))
    assert [path.rsplit("/", 1)[1] for path, _ in store.unreferenced(24 * 3600)] == [".tmp-00000000000000aa"]
    store.begin("recipe", empty, [("target", FINGERPRINT)])
    assert store.expect_ref("recipe").table("target").shards == (shard,) and store.unreferenced(0) == []


@pytest.mark.parametrize("hours", [48, -48])
def test_age_is_told_by_the_clock_that_dates_the_files(
    store: Store, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    write(store)
    (folder(store) / ".tmp-00000000000000de").write_bytes(b"left by a killed writer")
    os.utime(folder(store) / ".tmp-00000000000000de", (time.time() - 25 * 3600,) * 2)
    right = time.time
    monkeypatch.setattr("manifests.storage.garbage.time.time", lambda: right() + hours * 3600)
    assert [path.rsplit("/", 1)[1] for path, _ in store.unreferenced(24 * 3600)] == [".tmp-00000000000000de"]
    assert list((folder(store).parent.parent / "refs").iterdir()) == []


def test_the_pin_of_a_training_run_keeps_its_tables(store: Store) -> None:
    shard = write(store)
    store.write_ref("runs/recipe-distill", Ref("recipe", {"target": TableRef("target", FINGERPRINT, (shard,))}))
    assert store.unreferenced(0) == []
    store.delete_ref("runs/recipe-distill")
    assert len(store.unreferenced(0)) == 2


def test_a_store_works_on_a_file_system_named_by_uri(tmp_path: Path) -> None:
    shard = write(Store.open(f"file://{tmp_path}/store"))
    assert Store.open(tmp_path / "store").shards("target", FINGERPRINT) == {("scene-1", KEY): shard}


def test_a_store_needs_no_rename(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An object store has no rename: a shard is uploaded, then its sidecar."""
    store = Store.open(tmp_path)
    monkeypatch.setattr(store.files, "system", pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    monkeypatch.setattr(store.files, "local", None)

    def refuse(*_: Any) -> None:
        raise AssertionError("rename was used")

    monkeypatch.setattr(os, "replace", refuse)
    shard = write(store)
    assert store.shards("target", FINGERPRINT) == {("scene-1", KEY): shard}
    assert store.damage("target", FINGERPRINT, shard) is None


def test_an_unknown_kind_of_store_gives_a_sentence() -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open("nowhere://bucket/store")


def test_rows_that_do_not_fit_the_schema_are_refused(store: Store) -> None:
    with store.writer("target", FINGERPRINT, "scene-1", KEY, Target.schema) as writer:
        wrong_type = replace(target_row("a"), label=np.zeros(100, np.int32))
        with pytest.raises(ValueError, match=r"element type <i4, expected |u1"):
            writer.append(wrong_type)
        with pytest.raises(ValueError, match="shape"):
            writer.append(replace(target_row("a"), seen=np.zeros(7, bool)))
        with pytest.raises(ValueError, match="column label: no value"):
            writer.append(replace(target_row("a"), **dict[str, Any](label=None)))
        with pytest.raises(ValueError, match="schema"):
            writer.append(Label(frame_id="a", label=np.zeros(7, np.uint8), raw=np.zeros(7, np.uint16)))


def test_a_failed_frame_keeps_its_row(store: Store) -> None:
    with store.writer("target", FINGERPRINT, "scene-1", KEY, Target.schema) as writer:
        writer.append(target_row("a"), {"points": 100})
        writer.append(Failed("b", "index: truncated"))
        writer.append(target_row("c"), {"points": 100})
        shard = writer.commit()
    assert shard.failed == ("b",) and shard.rows == 3 and shard.counts == {"points": 200}
    assert store.open_shard("target", FINGERPRINT, shard).record(1, Target) == Failed("b", "index: truncated")
    assert store.states("target", FINGERPRINT, shard)[1] == Failed("b", "index: truncated")


def test_a_shard_of_other_columns_says_what_to_run(store: Store) -> None:
    reader = store.open_shard("target", FINGERPRINT, write(store))
    with pytest.raises(StoreError, match=r"has no raw of the type that is read: another version .* run: make target"):
        reader.record(0, Label)
    with pytest.raises(StoreError, match=r"has no raw of the type"):
        reader.records(Label)


def test_bytes_that_are_no_row_of_the_table_are_damage(store: Store) -> None:
    table = to_arrow([target_row("a")], Target)
    position = table.schema.get_field_index("seen")
    short = table.set_column(position, Target.schema.field("seen"), pa.array([b"1"], pa.large_binary()))
    shard = store.write("target", FINGERPRINT, "scene-1", KEY, short)
    with pytest.raises(StoreError, match=r"is damaged: column seen: 1 stored elements, expected shape \(n_points\)"):
        store.records(Target, FINGERPRINT, shard)


def test_a_store_travels_to_other_processes(store: Store) -> None:
    import pickle

    shard = write(store)
    assert pickle.loads(pickle.dumps(store)).shards("target", FINGERPRINT) == {("scene-1", KEY): shard}


def test_a_table_read_whole_holds_every_row(store: Store) -> None:
    shard = write(store)
    table = store.read("target", FINGERPRINT, shard, ["frame_id"])
    assert isinstance(table, pa.Table) and table.column("frame_id").to_pylist() == [
        f"scene-1/{index}" for index in range(3)
    ]


@given(st.text(min_size=1), st.none() | st.integers(0, 5000))
def test_any_scene_can_be_told_from_the_name_of_its_shard(scene: str, start: int | None) -> None:
    name = shard_name(scene, start)
    assert scene_of(name) == scene
    assert len(name) > 200 or checked(name) == name


def test_plain_scenes_keep_their_name() -> None:
    assert shard_name("scene-0061") == "scene-0061" and shard_name("a+b", 64) == "a%2Bb+0064"
