"""The store on object storage: moto's S3 server, a file system without renames, and what goes wrong there."""

from __future__ import annotations

import errno
import json
import multiprocessing
import pickle
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest

from manifests.storage import remote
from manifests.storage.errors import DiskFull, StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import Ref, TableRef
from manifests.storage.remote import RangeFile, Unreachable, patiently
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Bool, FrameRecord
from manifests.tables.labels import Target
from tests.manifests.s3_server import Bucket, Line, Server, line_to, uri_of
from tests.refs import identity

FINGERPRINT, KEY = "0123456789ab", "00aa11bb22cc"


@dataclass(frozen=True, eq=False, kw_only=True)
class Seen(FrameRecord, of=Target):
    """One column of a table."""

    seen: Bool


def write(store: Store, shard: str = "scene-1", n_rows: int = 3, n_points: int = 100, seed: int = 0) -> ShardFile:
    random = np.random.default_rng(seed)
    rows = [
        Target(
            frame_id=f"{shard}/{index}",
            label=random.integers(0, 17, n_points, dtype=np.uint8),
            confidence=random.integers(0, 256, n_points, dtype=np.uint8),
            seen=random.random(n_points) < 0.5,
        )
        for index in range(n_rows)
    ]
    return store.write("target", FINGERPRINT, shard, KEY, to_arrow(rows, Target))


@pytest.fixture
def bucket(s3: Server) -> Bucket:
    """An empty bucket on moto's server."""
    return s3.bucket()


@pytest.fixture
def line(s3: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """A line to the server that fails on demand; a store waits no longer than a hundredth of a second between tries."""
    monkeypatch.setattr(remote, "WAITS_S", (0.01, 0.01))
    with line_to(s3.port) as line:
        yield line


@pytest.fixture
def over_line(bucket: Bucket, line: Line) -> Store:
    """A store in the bucket, over the line."""
    return Store.open(uri_of(bucket.name, line.port))


class NoMove(pafs.FSSpecHandler):  # type: ignore[misc]
    """A file system that has no rename, as object stores have none, and counts what it is asked to read."""

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError("this file system cannot move a file")


@pytest.fixture
def no_move(tmp_path: Path) -> Store:
    import fsspec

    files = pafs.PyFileSystem(NoMove(fsspec.filesystem("memory", skip_instance_cache=True)))
    return Store.open(f"{tmp_path}?one_writer=true", files)


def check_everything(store: Store, reopened: Store) -> None:
    """Write, list, read, name, verify, collect and delete; the second store sees what the first one did."""
    shard = write(store)
    store.write_manifest(made := Manifest("target", FINGERPRINT, identity("target"), (shard,), {"finished": "now"}))
    store.write_ref("recipe", ref := Ref("recipe", {"target": TableRef("target", FINGERPRINT, (shard,))}))
    loose = write(store, "scene-2")
    assert reopened.shards("target", FINGERPRINT) == {("scene-1", KEY): shard, ("scene-2", KEY): loose}
    assert reopened.manifests("target") == [made] and reopened.refs() == {"recipe": ref}
    assert reopened.damage("target", FINGERPRINT, shard) is None
    assert [row.frame_id for row in reopened.records(Target, FINGERPRINT, shard)] == [f"scene-1/{i}" for i in (0, 1, 2)]
    garbage = [path.rsplit("/", 1)[1] for path, _ in reopened.unreferenced(0)]
    assert garbage == [f"scene-2.{KEY}.json", loose.name]
    store.delete(path for path, _ in store.unreferenced(0))
    store.delete_ref("recipe")
    assert list(reopened.shards("target", FINGERPRINT)) == [("scene-1", KEY)] and reopened.refs() == {}
    store.forget("target", FINGERPRINT, shard)
    assert reopened.shards("target", FINGERPRINT) == {}
    assert reopened.damage("target", FINGERPRINT, shard) == "is missing"
    with pytest.raises(StoreError, match="is missing; run: make target"):
        reopened.open_shard("target", FINGERPRINT, shard)


def test_all_that_a_store_does_it_does_on_s3(bucket: Bucket) -> None:
    store = Store.open(bucket.uri())
    check_everything(store, pickle.loads(pickle.dumps(store)))
    assert store.free_bytes() is None and store.local is None


def test_all_that_a_store_does_it_does_without_a_rename(no_move: Store) -> None:
    check_everything(no_move, no_move)


def test_a_shard_has_the_same_bytes_on_s3_as_on_disk(bucket: Bucket, tmp_path: Path) -> None:
    there, here = write(Store.open(bucket.uri())), write(Store.open(tmp_path))
    assert there == here
    path = f"target/{FINGERPRINT}/{here.name}"
    assert bucket.read(f"store/{path}") == (tmp_path / path).read_bytes()


def test_a_row_is_read_by_ranges_and_not_with_the_whole_file(bucket: Bucket, line: Line, over_line: Store) -> None:
    shard = write(over_line, n_rows=16, n_points=500_000)
    uploads = [method for method, path, _ in bucket.answered() if ".parquet?" in path and "upload" in path]
    assert shard.bytes > 12_000_000 and uploads.count("PUT") > 1  # it went up in parts
    n_bytes_before, n_before = line.sent_bytes, len(bucket.answered())
    row = over_line.open_shard("target", FINGERPRINT, shard).record(5, Seen)
    assert isinstance(row, Seen) and row.frame_id == "scene-1/5" and len(row.seen) == 500_000
    reads = [status for method, _, status in bucket.answered()[n_before:] if method == "GET"]
    assert reads and set(reads) == {206}  # partial content
    assert line.sent_bytes - n_bytes_before < 0.1 * shard.bytes


def test_the_name_of_a_store_shows_no_password() -> None:
    uri = uri_of("bucket", 9)
    assert "secret" in uri and Store.open(uri).place == "s3://bucket/store"
    with pytest.raises(StoreError) as caught:
        Store.open("s3://key:secret@bucket/store?nonsense=1")
    assert "secret" not in str(caught.value) and "cannot be opened" in str(caught.value)


def read_all(store: Store, shard: ShardFile, out: Any) -> None:
    own = store.reopened()
    for _ in range(3):
        out.put([int(row.label.sum()) for row in own.every(Target, FINGERPRINT, [shard])])


def test_forked_processes_read_over_connections_of_their_own(bucket: Bucket) -> None:
    store = Store.open(bucket.uri())
    shard = write(store, n_points=5_000)
    expected = [int(row.label.sum()) for row in store.every(Target, FINGERPRINT, [shard])]
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    readers = [context.Process(target=read_all, args=(store, shard, out)) for _ in range(3)]
    for reader in readers:
        reader.start()
    assert [out.get(timeout=60) for _ in range(9)] == [expected] * 9
    for reader in readers:
        reader.join(60)
        assert reader.exitcode == 0


# -- what passes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["SlowDown", "InternalError", "cut"])
def test_reading_outlives_an_error_that_passes(line: Line, over_line: Store, fault: str) -> None:
    shard = write(over_line)
    expected = over_line.read("target", FINGERPRINT, shard)
    line.fails(1, fault, "GET")
    assert over_line.open_shard("target", FINGERPRINT, shard).table().equals(expected)
    line.fails(1, fault, "GET")
    assert over_line.damage("target", FINGERPRINT, shard) is None
    line.fails(1, fault, "GET")
    assert over_line.shards("target", FINGERPRINT) == {("scene-1", KEY): shard}
    assert line.left == 0


@pytest.mark.parametrize("fault", ["SlowDown", "InternalError", "cut upload"])
def test_writing_outlives_an_error_that_passes(line: Line, over_line: Store, fault: str) -> None:
    line.fails(2, fault, "PUT", ".parquet")
    shard = write(over_line)
    assert line.left == 0
    assert over_line.shards("target", FINGERPRINT) == {("scene-1", KEY): shard}
    assert over_line.damage("target", FINGERPRINT, shard) is None


def test_an_answer_that_comes_too_late_is_asked_for_again(line: Line, over_line: Store) -> None:
    shard = write(over_line)
    line.fails(1, "late", "GET", ".parquet")
    assert over_line.damage("target", FINGERPRINT, shard) is None and line.left == 0


@pytest.mark.parametrize("hours", [-30, -1, 5])
def test_a_store_whose_clock_differs_from_ours_takes_our_requests(line: Line, over_line: Store, hours: int) -> None:
    """The client corrects its stamps by the dates of the answers, also when a clock jumps in the middle of a run."""
    first = write(over_line)
    line.clock_ahead_s = hours * 3600
    second = write(over_line, "scene-2")
    assert over_line.damage("target", FINGERPRINT, first) is None
    line.clock_ahead_s = 0
    assert over_line.shards("target", FINGERPRINT) == {("scene-1", KEY): first, ("scene-2", KEY): second}


def test_a_clock_that_the_client_cannot_correct_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    told = "AWS Error REQUEST_TIME_TOO_SKEWED (HTTP status 403) during PutObject operation"
    with pytest.raises(Unreachable, match="the clock of this machine and that of the store differ too much; set"):
        patiently(lambda: exec("raise OSError(told)", {"told": told}))


def test_waits_grow_and_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    with pytest.raises(Unreachable, match="tried 6 times"):
        patiently(lambda: (_ for _ in ()).throw(ConnectionError("gone")))
    assert [round(wait / usual, 1) >= 0.5 for wait, usual in zip(slept, remote.WAITS_S, strict=True)] == [True] * 5
    assert all(wait <= 1.5 * usual for wait, usual in zip(slept, remote.WAITS_S, strict=True))
    left = [ConnectionError("gone"), TimeoutError("late"), OSError("AWS Error SLOW_DOWN during GetObject")]
    assert patiently(lambda: exec("raise left.pop()", {"left": left}) if left else "there") == "there"


@pytest.mark.parametrize("error", [FileNotFoundError("x"), OSError(errno.ENOSPC, "full"), pa.ArrowInvalid("no")])
def test_what_does_not_pass_is_raised_at_once(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waited"))
    with pytest.raises(type(error)):
        patiently(lambda: (_ for _ in ()).throw(error))


class Stingy:
    """A file system whose files give fewer bytes than they have, some times."""

    def __init__(self, content: bytes, short: int) -> None:
        self.content, self.short = content, short

    def open_input_file(self, path: str) -> Stingy:
        return self

    def size(self) -> int:
        return len(self.content)

    def read_at(self, length: int, start: int) -> bytes:
        self.short -= 1
        return self.content[start : start + length][: -1 if self.short >= 0 else None]


def test_a_range_that_comes_short_is_read_again_and_never_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS_S", (0.0, 0.0))
    file = RangeFile(Stingy(b"0123456789", short=2), "x")
    assert (file.seek(-4, 2), file.read(3), file.read(), file.read()) == (6, b"678", b"9", b"")
    with pytest.raises(Unreachable, match="9 of 10 bytes came before the connection was lost"):
        RangeFile(Stingy(b"0123456789", short=9), "x").read()


# -- what does not -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["ExpiredToken", "AccessDenied"])
def test_credentials_that_are_refused_are_named_and_nothing_is_called_damaged(
    bucket: Bucket, line: Line, over_line: Store, code: str
) -> None:
    store = over_line
    shard = write(store)
    before = bucket.objects()
    line.fails(10**6, code)
    for action in (
        lambda: store.read("target", FINGERPRINT, shard),
        lambda: store.damage("target", FINGERPRINT, shard),
        lambda: store.shards("target", FINGERPRINT),
        lambda: store.expect_ref("recipe"),
        lambda: store.forget("target", FINGERPRINT, shard),
        lambda: write(store, "scene-2"),
    ):
        with pytest.raises(StoreError, match="credentials are refused or have expired; renew them") as caught:
            action()
        assert "damaged" not in str(caught.value)
    assert before and bucket.objects() == before


def test_a_server_that_checks_signatures_takes_ours_and_a_wrong_key_or_secret_is_a_sentence(bucket: Bucket) -> None:
    iam = bucket.server.client("iam")
    iam.create_user(UserName="us")
    rights = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [rights]})
    iam.put_user_policy(UserName="us", PolicyName="all", PolicyDocument=document)
    known = iam.create_access_key(UserName="us")["AccessKey"]
    key, secret = known["AccessKeyId"], known["SecretAccessKey"]
    with bucket.server.checking_signatures():
        store = Store.open(bucket.uri(key, quote(secret, safe="")))
        shard = write(store)
        assert store.shards("target", FINGERPRINT) == {("scene-1", KEY): shard}
        for uri in (bucket.uri("stranger", "secret"), bucket.uri(key, "wrong")):
            for action in (
                lambda store: store.shards("target", FINGERPRINT),
                lambda store: store.read("target", FINGERPRINT, shard),
                lambda store: write(store, "scene-2"),
            ):
                with pytest.raises(StoreError, match="credentials are refused or have expired; renew them"):
                    action(Store.open(uri))
    assert {key.rsplit("/", 1)[1] for key in bucket.objects()} - {""} == {
        "afov-store.json",
        shard.name,
        f"scene-1.{KEY}.json",
    }


def test_a_server_that_stays_away_is_a_sentence(line: Line, over_line: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write(over_line)
    monkeypatch.setattr(remote, "WAITS_S", ())  # Arrow's own tries take some seconds each
    line.fails(10**6, "SlowDown", "GET", ".parquet")
    with pytest.raises(StoreError, match="cannot be read: it was tried 1 times; see that it is up"):
        over_line.read("target", FINGERPRINT, shard)


def test_a_connection_lost_for_good_in_a_write_leaves_nothing_that_counts(
    line: Line, over_line: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = over_line
    first = write(store)
    monkeypatch.setattr(remote, "WAITS_S", ())
    line.fails(10**6, "cut upload", "PUT", ".parquet")
    with pytest.raises(StoreError, match="cannot be written: it was tried 1 times"):
        write(store, "scene-2")
    line.fails(0, "")
    assert store.shards("target", FINGERPRINT) == {("scene-1", KEY): first}
    second = write(store, "scene-2")
    assert store.shards("target", FINGERPRINT) == {("scene-1", KEY): first, ("scene-2", KEY): second}


def test_a_full_disk_of_the_machine_that_uploads_is_named(
    bucket: Bucket, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    with pytest.raises(DiskFull, match=f"wait for their upload in {small_disk}: the disk is full"):
        write(Store.open(bucket.uri()), n_points=300_000)
    assert not any(key.endswith(".parquet") or "/target/" in key for key in bucket.objects())


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_half_a_file_does_not_count_whatever_lies_beside_it(bucket: Bucket, share: float) -> None:
    store = Store.open(bucket.uri())
    shard = write(store)
    key = f"store/target/{FINGERPRINT}/{shard.name}"
    bucket.put(key, bucket.read(key)[: int(share * shard.bytes)])
    assert store.shards("target", FINGERPRINT) == {}
    with pytest.raises(StoreError, match="is damaged"):
        store.read("target", FINGERPRINT, shard)


def test_two_writers_of_one_shard_leave_a_whole_one(bucket: Bucket) -> None:
    """With the same content, and with the other bits that a network may give the second time."""
    start = threading.Barrier(4)
    errors: list[BaseException] = []

    def run(seed: int) -> None:
        store = Store.open(bucket.uri())
        start.wait()
        try:
            for index in range(4):
                write(store, f"scene-{index}", seed=seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 0, 1, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    store = Store.open(bucket.uri())
    shards = store.shards("target", FINGERPRINT)
    assert len(shards) == 4
    assert all(store.damage("target", FINGERPRINT, shard) is None for shard in shards.values())


def test_a_bucket_that_is_not_there_is_a_sentence(bucket: Bucket) -> None:
    with pytest.raises(StoreError, match="cannot be written"):
        write(Store.open(uri_of("nowhere", bucket.server.port)))


def test_a_document_larger_than_any_of_a_store_is_not_read(bucket: Bucket, tmp_path: Path) -> None:
    for store in (Store.open(bucket.uri()), Store.open(tmp_path)):
        write(store)
    sidecar = f"target/{FINGERPRINT}/scene-1.{KEY}.json"
    bucket.put(f"store/{sidecar}", b" " * (33 << 20))
    with (tmp_path / sidecar).open("wb") as file:
        file.truncate(1 << 40)
    for store in (Store.open(bucket.uri()), Store.open(tmp_path)):
        with pytest.raises(StoreError, match="are no document of a store"):
            store.shards("target", FINGERPRINT)


def test_verifying_drops_nothing_that_may_not_be_read(line: Line, over_line: Store) -> None:
    """Once, what could not be read counted as damaged, and `verify --drop` would have removed it."""
    from manifests.storage.verify import Found, damaged_shards, look_over

    found = Found(shards={("", ""): ("target", FINGERPRINT, write(over_line))})
    line.fails(10**6, "ExpiredToken", "GET")
    for action in (lambda: look_over(over_line), lambda: damaged_shards(over_line, found, lambda _: None)):
        with pytest.raises(StoreError, match="credentials"):
            action()


def test_a_sidecar_is_whole_json(bucket: Bucket) -> None:
    shard = write(Store.open(bucket.uri()))
    document: Any = json.loads(bucket.read(f"store/target/{FINGERPRINT}/scene-1.{KEY}.json"))
    assert document["sha256"] == shard.sha256 and document["bytes"] == shard.bytes
