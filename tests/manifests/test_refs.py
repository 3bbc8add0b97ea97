"""Refs are changed by several runs at once, and none takes away what another one wrote, on disk and on S3."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.records.table import AskedTable, AskedTables
from manifests.storage import conditional, refs
from manifests.storage.documents import encode
from manifests.storage.errors import StoreError
from manifests.storage.names import ref_name, ref_of, ref_path
from manifests.storage.refs import Building, Ref, TableRef, this_process
from manifests.storage.store import Store
from tests.manifests.s3_server import Line, Server, line_to, uri_of

KEY = "00aa11bb22cc"
NAME = ref_name("street", KEY)
ASKED = AskedTables({"root": "."}, {"group": AskedTable(1, {"min_points": 2}, KEY, KEY)})
EMPTY = Ref("street", {}, key=KEY, asked=ASKED)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def with_table(stage: str) -> Callable[[Ref | None], Ref]:
    """A change that adds one table, as a run does whose stage is complete."""
    table = TableRef(stage, "0123456789ab", ())
    return lambda before: replace(before or EMPTY, tables={**(before or EMPTY).tables, stage: table})


def files_of(store: Store) -> list[str]:
    assert store.local is not None
    return sorted(path.name for path in (store.local / "refs").rglob("*") if path.is_file())


def test_a_ref_comes_back_with_its_key_and_what_was_asked(store: Store) -> None:
    assert store.read_ref(NAME) is None and store.refs() == {}
    building = (Building("vote", "0a", "run1", 5.0, "boot ns 1 2"),)
    ref = replace(EMPTY, excluded=("a",), held=(TableRef("vote", "0a", ()),), building=building)
    assert store.update_ref(NAME, lambda before: ref) == ref == store.read_ref(NAME)
    assert store.refs() == {NAME: ref} and files_of(store) == [f"{KEY}.00000001.json"]


def test_a_change_that_changes_nothing_writes_nothing(store: Store) -> None:
    for _ in range(3):
        store.update_ref(NAME, with_table("points"))
    assert files_of(store) == [f"{KEY}.00000001.json"]


def test_only_the_last_generations_are_kept(store: Store) -> None:
    for number in range(10):
        store.write_ref(NAME, replace(EMPTY, excluded=(str(number),)))
    assert files_of(store) == [f"{KEY}.{number:08d}.json" for number in (7, 8, 9, 10)]
    assert store.expect_ref(NAME).excluded == ("9",)


def test_namesakes_and_overrides_do_not_move_each_other(store: Store) -> None:
    other = ref_name("street", "ffff")
    store.update_ref(NAME, with_table("points"))
    store.update_ref(other, with_table("vote"))
    assert {name: list(ref.tables) for name, ref in store.refs().items()} == {NAME: ["points"], other: ["vote"]}


def test_a_deleted_ref_stands_for_nothing_and_can_be_made_again(store: Store) -> None:
    store.update_ref(NAME, with_table("points"))
    store.delete_ref(NAME)
    assert store.read_ref(NAME) is None and store.refs() == {}
    store.update_ref(NAME, with_table("vote"))
    assert list(store.expect_ref(NAME).tables) == ["vote"]


def test_a_ref_of_an_older_store_is_read_and_goes_on(store: Store) -> None:
    assert store.local is not None
    (store.local / "refs").mkdir(parents=True)
    old = '{\n "building": [["vote", "0a"]],\n "excluded": [],\n "held": [],\n "recipe": "street",\n "tables": {}\n}'
    (store.local / "refs" / "street.json").write_text(old)
    assert store.expect_ref("street").building == (Building("vote", "0a", ""),)
    store.update_ref("street", with_table("points"))
    assert list(store.expect_ref("street").tables) == ["points"]


def test_a_ref_that_cannot_be_read_is_not_taken_for_none(store: Store) -> None:
    store.update_ref(NAME, with_table("points"))
    assert store.local is not None
    path = store.local / ref_path(NAME, 1)
    whole = path.read_bytes()
    for changed in (b"", whole[:-1], whole[:40], whole.replace(b"points", b"pointz"), b"{}", b"null"):
        path.write_bytes(changed)
        for action in (lambda: store.read_ref(NAME), store.refs, lambda: store.update_ref(NAME, with_table("vote"))):
            with pytest.raises(StoreError, match="is damaged"):
                action()


@given(st.binary(max_size=4), st.integers(0, 400), st.integers(0, 7))
@settings(max_examples=100, deadline=None)
def test_every_flip_and_cut_of_a_document_is_seen(cut: bytes, position: int, bit: int) -> None:
    from manifests.storage.documents import decode

    whole = bytearray(encode({"recipe": "street", "tables": {}, "excluded": [1.5, "ü", None]}))
    whole[position % len(whole)] ^= 1 << bit
    for content in (bytes(whole), bytes(whole[: position % len(whole)]), bytes(whole) + cut + b" "):
        with pytest.raises(StoreError, match="is damaged"):
            decode(content, "it")


@pytest.mark.parametrize(
    "path", ["street.txt", "../x.json", "a/b/c.json", "runs/a/b.json", ".tmp-1.json", "a/xyz.json"]
)
def test_foreign_files_are_no_refs(path: str) -> None:
    assert ref_of(path) is None


def test_no_recipe_takes_the_place_of_the_pins() -> None:
    with pytest.raises(StoreError, match="rename it"):
        ref_name("runs", KEY)


# -- two at once -------------------------------------------------------------------------------------------------------


def add_tables(uri: str, stages: list[str], start: Any) -> None:
    store = Store.open(uri)
    start.wait()
    for stage in stages:
        store.update_ref(NAME, with_table(stage))


def test_runs_at_once_lose_no_table(store: Store) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(4)
    stages = [[f"s{run}x{index}" for index in range(12)] for run in range(4)]
    runs = [context.Process(target=add_tables, args=(store.uri, one, start)) for one in stages]
    for run in runs:
        run.start()
    for run in runs:
        run.join(120)
        assert run.exitcode == 0
    assert set(store.expect_ref(NAME).tables) == {stage for one in stages for stage in one}
    assert len(files_of(store)) <= 4 + 1 and not [name for name in files_of(store) if name.startswith(".tmp-")]


class MadeMeanwhile:
    """A file system that looks at a folder twice while another run makes it, as Arrow's own does."""

    def __init__(self, system: Any, n_errors: int) -> None:
        self.system, self.n_errors = system, n_errors

    def get_file_info(self, selector: Any) -> Any:
        self.n_errors -= 1
        if self.n_errors >= 0:
            raise FileNotFoundError(errno.ENOENT, "Cannot list directory")
        return self.system.get_file_info(selector)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.system, name)


def test_a_folder_that_another_run_makes_meanwhile_is_listed_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update_ref(NAME, with_table("vote"))
    system = store.files.system
    monkeypatch.setattr(store.files, "system", MadeMeanwhile(system, 1))
    assert set(store.expect_ref(NAME).tables) == {"vote"}
    monkeypatch.setattr(store.files, "system", MadeMeanwhile(system, 100))  # a folder that stays away is told
    with pytest.raises(StoreError, match="cannot be listed"):
        store.expect_ref(NAME)


def test_a_writer_that_slept_for_many_generations_takes_nothing_away(store: Store) -> None:
    """Its number was given and cleared away long ago, so that nothing stands in the way of its file."""
    seen = []

    def change(before: Ref | None) -> Ref:
        seen.append(before)
        if len(seen) == 1:
            for number in range(8):
                store.update_ref(NAME, with_table(f"other{number}"))
        return with_table("mine")(before)

    store.update_ref(NAME, change)
    assert len(seen) == 2
    assert set(store.expect_ref(NAME).tables) == {"mine", *(f"other{number}" for number in range(8))}


def test_a_write_whose_answer_was_lost_counts_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A first try made the file, and the second is told that it is there already, as on a shaky network drive."""
    create, calls = store.files.create, []

    def unsure(path: str, content: bytes) -> bool:
        calls.append(create(path, content))
        return False

    monkeypatch.setattr(store.files, "create", unsure)
    store.update_ref(NAME, with_table("points"))
    assert calls == [True] and list(store.expect_ref(NAME).tables) == ["points"]


def test_a_file_system_without_links_keeps_writers_apart_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    start = threading.Barrier(3)
    run_all([threading.Thread(target=add_tables, args=(store.uri, [f"s{one}"], start)) for one in range(3)])
    assert set(store.expect_ref(NAME).tables) == {"s0", "s1", "s2"}


def run_all(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_a_run_takes_away_its_own_entries_and_no_others(store: Store) -> None:
    first = store.begin(NAME, EMPTY, [("points", "0a"), ("vote", "0b")])
    second = store.begin(NAME, EMPTY, [("points", "0a")])
    store.end(NAME, first)
    assert [(one.stage, one.run) for one in store.expect_ref(NAME).building] == [("points", second)]
    store.write_ref(NAME, EMPTY)
    assert [one.run for one in store.expect_ref(NAME).building] == [second]
    store.write_ref(NAME, EMPTY, second)
    assert store.expect_ref(NAME).building == ()


def begin_and_die(uri: str) -> None:
    Store.open(uri).begin(NAME, EMPTY, [("points", "0a"), ("vote", "0b")])
    os._exit(9)


@pytest.mark.skipif(not this_process(), reason="this system does not tell whether a process is gone")
def test_what_a_killed_run_was_at_is_taken_over_by_the_next_and_protected_until_then(store: Store) -> None:
    run = multiprocessing.get_context("fork").Process(target=begin_and_die, args=(store.uri,))
    run.start()
    run.join(60)
    dead = store.expect_ref(NAME).building
    assert [one.stage for one in dead] == ["points", "vote"] and refs.gone(dead[0].process)
    alive = store.begin(NAME, EMPTY, [("points", "0a")])
    assert not refs.gone(this_process())
    assert [(one.stage, one.run) for one in store.expect_ref(NAME).building] == [
        ("vote", dead[0].run),
        ("points", alive),
    ]


def test_protection_ends_after_a_month_by_the_clock_of_the_store(store: Store) -> None:
    """A run on another machine that was killed cannot be told from one that goes on; the time is the last resort."""
    assert store.local is not None
    now = time.time()
    store.update_ref(NAME, with_table("vote"))
    (folder := store.local / "points" / "0a1b0a1b0a1b").mkdir(parents=True)
    (folder / ".tmp-0123456789abcdef").write_bytes(b"half a shard")
    for begun_s, left in ((now - 29 * 86400, 0), (now - 31 * 86400, 1)):
        entry = Building("points", "0a1b0a1b0a1b", "run", begun_s, "elsewhere")
        store.update_ref(NAME, lambda before, entry=entry: replace(EMPTY, building=(entry,)))  # type: ignore[misc]
        assert len(store.unreferenced(0)) == left


# -- on S3 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def line(s3: Server) -> Iterator[Line]:
    with line_to(s3.port) as line:
        yield line


def test_runs_at_once_lose_no_table_on_s3(s3: Server, line: Line) -> None:
    """The line lets one conditional put through at a time: S3 decides at once, and moto between two steps."""
    bucket = s3.bucket()
    start = threading.Barrier(3)
    uri = uri_of(bucket.name, line.port)
    run_all([threading.Thread(target=add_tables, args=(uri, [f"s{one}", f"t{one}"], start)) for one in range(3)])
    assert set(Store.open(uri).expect_ref(NAME).tables) == {f"{kind}{one}" for kind in "st" for one in range(3)}
    statuses = [status for method, path, status in bucket.answered() if method == "PUT" and "refs/" in path]
    assert 412 in statuses  # a put was refused: at the latest the second one, by which a server is tried


def test_a_server_that_ignores_conditions_is_refused(s3: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(s3.bucket().uri())

    def deaf(self: conditional.Bucket, path: str, content: bytes) -> bool:
        self._client.put_object(Bucket=self._bucket, Key=f"{self._folder}/{path}", Body=content)
        return True

    monkeypatch.setattr(conditional.Bucket, "_put", deaf)
    with pytest.raises(StoreError, match=r"cannot keep apart two runs .* takes no notice of `If-None-Match") as caught:
        store.update_ref(NAME, with_table("points"))
    assert "secret" not in str(caught.value)


def test_a_kind_of_store_without_conditions_wants_a_promise(tmp_path: Path) -> None:
    import fsspec
    import pyarrow.fs as pafs

    files = pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("memory", skip_instance_cache=True)))
    with pytest.raises(StoreError) as caught:
        Store.open("/bucket", files).update_ref(NAME, with_table("points"))
    advice = re.search(r"promise by (\S+) at the end", str(caught.value))
    assert advice
    store = Store.open(f"/bucket{advice[1]}", files)
    store.update_ref(NAME, with_table("points"))
    assert list(store.expect_ref(NAME).tables) == ["points"]


def test_a_secret_does_not_stand_in_the_errors_of_a_conditional_put(s3: Server) -> None:
    store = Store.open(uri_of("nowhere", s3.port, secret="canary"))
    with pytest.raises(StoreError, match="cannot be written") as caught:
        store.update_ref(NAME, with_table("points"))
    assert "canary" not in str(caught.value)
