"""Several shards at once where a network has a device of its own: the same bytes, committed in order, and resumed."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench import feed
from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.stages import fingerprint
from manifests.storage.shards import ShardWriter
from manifests.storage.store import Store
from pipeline.engine.ahead import ahead
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, Task
from pipeline.teachers.batches import Batches
from pipeline.teachers.turns import Turns
from tests.pipeline.test_batches import Adder, frames, sums

SCENES, FRAMES = 5, 3


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("feed")
    feed.write_logs(root, SCENES, FRAMES, (160, 90))
    indexed = feed.recipe_over(root, root / "indexed", 2)
    assert Runner(indexed).run(["index"], InlinePool(indexed)) == []
    return root


@pytest.fixture
def recipe(logs: Path, tmp_path: Path) -> Recipe:
    import shutil

    shutil.copytree(logs / "indexed", tmp_path / "store")
    return feed.recipe_over(logs, tmp_path / "store", 2)


def pool_of(recipe: Recipe, worker: feed.FeedWorker | None = None) -> InlinePool:
    pool = InlinePool(recipe)
    pool._worker = worker or feed.FeedWorker(recipe, 0, new=True)
    return pool


def encoded(recipe: Recipe) -> dict[str, str]:
    store = Store.open(recipe.run.store)
    return {one.shard: one.sha256 for one in store.shards("encode", fingerprint(recipe, "encode")).values()}


def test_a_device_of_its_own_changes_no_byte(logs: Path) -> None:
    runs = [feed.feed(logs, logs / "indexed", rate, new, 2) for rate, new in ((0, False), (0, True), (400, True))]
    assert runs[0].shards == runs[1].shards == runs[2].shards
    assert len(runs[0].shards) == SCENES and len(set(runs[0].shards.values())) == SCENES
    assert 0 < runs[2].busy <= 1


def test_shards_are_under_way_together_and_committed_in_order(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    running: list[int] = []
    later = threading.Event()
    commit, append = ShardWriter.commit, ShardWriter.append

    def slow_first(self: ShardWriter, *arguments: Any) -> None:
        if self._shard == "drive-0":
            assert later.wait(60), "no other shard was written while the first one was"
        elif self._shard == "drive-1":
            later.set()
        append(self, *arguments)

    def noted(self: ShardWriter) -> Any:
        order.append(self._shard)
        running.append(worker._n_running)
        return commit(self)

    monkeypatch.setattr(ShardWriter, "append", slow_first)
    monkeypatch.setattr(ShardWriter, "commit", noted)
    worker = feed.FeedWorker(recipe, 0, new=True)
    assert Runner(recipe).run(["encode"], pool_of(recipe, worker)) == []
    assert order == [f"drive-{number}" for number in range(SCENES)]
    assert max(running) > 1 and worker._n_running == 0


def test_a_run_that_is_cut_short_has_a_row_of_whole_shards_and_goes_on_to_the_same_bytes(
    recipe: Recipe, logs: Path
) -> None:
    class Cut(Exception):
        pass

    class Cutter:
        n_done = 0

        def stage_started(self, plan: Any, n_frames: int) -> None:
            pass

        def stage_finished(self, plan: Any) -> None:
            pass

        def shard_finished(self, task: Task, outcome: Outcome) -> None:
            self.n_done += 1
            if self.n_done == 2:
                raise Cut

    before = threading.active_count()
    pool = pool_of(recipe, feed.FeedWorker(recipe, 20, new=True))
    with pytest.raises(Cut):
        Runner(recipe).run(["encode"], pool, Cutter())
    half = encoded(recipe)
    assert 2 <= len(half) < SCENES and sorted(half) == [f"drive-{number}" for number in range(len(half))]
    network = 1  # its thread stays
    assert threading.active_count() <= before + network
    assert Runner(recipe).run(["encode"], pool) == []
    assert encoded(recipe) == feed.feed(logs, logs / "indexed", 0, False, 2).shards


def test_a_fault_of_one_shard_is_its_own_and_a_fault_of_the_recipe_ends_all(recipe: Recipe) -> None:
    class Faulty(feed.FeedWorker):
        fault: Exception = OSError(5, "no such luck")

        def _build_frames(self, task: Task, *rest: Any) -> Outcome:
            if task.shard == "drive-1":
                raise self.fault
            return super()._build_frames(task, *rest)

    worker = Faulty(recipe, 0, new=True)
    failures = Runner(recipe).run(["encode"], pool_of(recipe, worker))
    assert [failure.shard for failure in failures] == ["drive-1"] and "no such luck" in failures[0].cause
    assert sorted(encoded(recipe)) == ["drive-0", "drive-2", "drive-3", "drive-4"]
    worker.fault = ConfigError("wrong weights")
    with pytest.raises(ConfigError, match="wrong weights"):
        Runner(recipe).run(["encode"], pool_of(recipe, worker))


def test_calls_at_once_get_the_batches_that_they_get_alone_one_call_after_the_other() -> None:
    class Named(Adder):
        def __init__(self) -> None:
            super().__init__()
            self.first: list[int] = []

        def forward(self, batch: Any) -> Any:
            assert threading.current_thread().name.startswith("network")
            self.first.append(int(batch[0, 0, 0]))
            return super().forward(batch)

    teacher = Named()
    batches = Batches(teacher, 4, 2, apart=True)
    started = threading.Event()

    def early() -> Iterator[Any]:
        for number, frame in enumerate(frames(9, "A")):
            if number == 5:
                assert started.wait(30)
            yield frame

    def late() -> Iterator[Any]:
        started.set()
        yield from frames(18, "A")[10:]

    with ThreadPoolExecutor(2) as threads:
        one = threads.submit(lambda: list(batches(early())))
        while not batches._calls:
            pass
        other = threads.submit(lambda: list(batches(late())))
        assert sums(one.result(60)) == [{"A/sum": 8 * i} for i in range(9)]
        assert sums(other.result(60)) == [{"A/sum": 8 * i} for i in range(10, 18)]
    assert teacher.sizes == [4, 4, 1, 4, 4] and teacher.first == [0, 4, 8, 10, 14]


def test_items_are_made_ahead_in_order_and_errors_and_closing_reach_who_makes_them() -> None:
    made: list[int] = []
    closed: list[str] = []

    def numbers(stop: int) -> Any:
        try:
            for number in range(stop):
                made.append(number)
                yield number
            raise OSError("the end")
        finally:
            closed.append(threading.current_thread().name)

    taken = []
    with pytest.raises(OSError, match="the end"):
        for number in ahead(numbers(20), 3):
            taken.append(number)
            assert len(made) <= number + 5
    assert taken == list(range(20))
    early: Any = ahead(numbers(100), 2)
    assert next(early) == 0
    early.close()
    assert closed == ["ahead", "ahead"] and len(made) < 30


def test_turns_are_those_of_the_beginning_whoever_ends_first() -> None:
    turns, passed = Turns(), []
    with turns.taken() as first:
        with turns.taken():
            pass  # over before the one ahead of it is

        def third(begun: threading.Event) -> None:
            with turns.taken() as turn:
                begun.set()
                turn.wait()
                passed.append("third")

        begun = threading.Event()
        thread = threading.Thread(target=third, args=(begun,))
        thread.start()
        assert begun.wait(30)
        first.wait()
        passed.append("first")
    thread.join(30)
    assert passed == ["first", "third"]
