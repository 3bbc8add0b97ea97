"""What keeps Ray from starting is told soon, with its cause, and every wait for it can be ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from manifests import ray_cluster
from manifests.endings import Ending, RunError
from manifests.ray_cluster import ended_workers, shortened
from manifests.recipe import Recipe, load_recipe
from pipeline.engine.lanes import Lane, RayWorker
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Queue, Task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipe(shared: Path, tmp_path: Path) -> Path:
    """A recipe of three simulated frames on Ray."""
    ray.shutdown()  # a local one that another test of this process has started
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\nroot = "{shared / "golden" / "nuscenes_tiny"}"\n[run]\nstore = "{tmp_path / "store"}"\npool = "ray"\n'
        f'runs = "{tmp_path / "runs"}"\n'
        f'[teacher]\nname = "artifacts"\nfolder = "{shared / "golden" / "superpixels_tiny"}"\nvoid = true\n'
    )
    return path


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of something that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("", 0))  # Ray turns 127.0.0.1 into this machine's address
        listening.listen(64)
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_machine_too_busy_to_start_ray_is_no_bug_of_ours(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"The current node {ray_cluster.SLOW_START}. This could happen because some of the raylet failed to startup"
    assert ray_cluster.SLOW_START in Path(ray._private.node.__file__).read_text()  # as Ray itself says it

    def init(**_: object) -> None:
        raise Exception(words)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RunError, match=r"run\.pool=inline"):
        ray_cluster.connect(load_recipe(recipe))


@pytest.mark.parametrize(
    ("address", "cause"),
    [
        ("127.0.0.1:1", "nothing answers at "),
        ("nowhere.invalid:6379", "nowhere.invalid"),
        ("ray://127.0.0.1:10001", "the Ray client is not supported"),
        ("no address", "no address"),
    ],
)
def test_an_address_where_no_cluster_is_ends_the_run_within_seconds(recipe: Path, address: str, cause: str) -> None:
    started = time.monotonic()
    loaded = load_recipe(recipe, [f"run.ray_address={address}"])
    with pytest.raises(RunError, match="cannot be used") as told, RayPool(loaded):
        pass
    assert cause in str(told.value) and time.monotonic() - started < 30


def test_a_port_that_answers_nothing_is_no_cluster(recipe: Path, deaf: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "JOIN_S", 3.0)
    with pytest.raises(RunError, match="lets nobody in"), RayPool(load_recipe(recipe, [f"run.ray_address={deaf}"])):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_wait_for_a_cluster_can_be_ended(recipe: Path, deaf: str, tmp_path: Path, number: signal.Signals) -> None:
    words = [sys.executable, "-m", "pipeline", "run", "points", str(recipe), "--set", f"run.ray_address={deaf}"]
    with (tmp_path / "told").open("w+") as told:
        heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 (a shell's background job ignores it)
        driver = subprocess.Popen(words, cwd=ROOT, stdout=told, stderr=told, preexec_fn=heard)
        asking = waited_for_child(driver.pid)
        time.sleep(1)
        driver.send_signal(number)
        assert driver.wait(timeout=30) == Ending.INTERRUPTED
        told.seek(0)
        assert "interrupted; finished shards are kept" in told.read()
    assert not Path("/proc", str(asking)).exists(), "the process that asked is gone too"


def test_workers_look_for_relative_paths_where_the_driver_is_now(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may go to another folder between two runs; workers of the first would write into the first store."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        loaded = load_recipe(recipe, ["run.store=store"])
        with RayPool(loaded) as pool:
            assert Runner(loaded).run(["index"], pool) == []
        assert list((tmp_path / name / "store" / "index").glob("*/*.parquet"))
    ray.shutdown()


def waited_for_child(pid: int) -> int:
    """Wait until a process has a child, and return that."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        children = Path("/proc", str(pid), "task", str(pid), "children").read_text().split()
        if children:
            return int(children[0])
        time.sleep(0.1)
    raise AssertionError("the driver asked nobody")


def test_under_uv_and_without_a_home_workers_start_and_leave_no_token(recipe: Path, tmp_path: Path) -> None:
    """An ancestor that is `uv run` makes Ray start its workers by it, and HOME is where it would keep a token."""
    home = tmp_path / "home"
    home.write_text("a file: nothing can be written below it")
    words = [sys.executable, "-m", "pipeline", "run", "index", str(recipe)]
    (tmp_path / "run").write_text(
        f"import subprocess, sys\nsys.exit(subprocess.run({words!r}, cwd={str(ROOT)!r}).returncode)\n"
    )
    free = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        ["uv", "run"],  # what Ray looks for; Python runs the file of that name
        executable=os.path.realpath(sys.executable),
        cwd=tmp_path,
        env={**free, "HOME": str(home), "RAY_BACKEND_LOG_LEVEL": "fatal"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert "index: 2 of 2 shards" in done.stdout


KILLED = """
import sys, threading, time
import psutil
from manifests.recipe import load_recipe
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.runner import Runner
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, Task
from pipeline.engine.worker import Worker

class Kills(Worker):
    def run(self, task: Task) -> Outcome:
        for parent in psutil.Process().parents():
            if parent.name() == "raylet":
                parent.kill()
        time.sleep(300)
        raise AssertionError

recipe = load_recipe(sys.argv[1])
with RayPool(recipe, Kills) as pool:
    Runner(recipe).run(["index"], pool)
"""


def test_a_raylet_that_died_ends_the_run_long_before_its_task(recipe: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(recipe)], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 1 and "RunError: the raylet of this machine" in done.stderr, done.stderr


class Silent:
    """A Ray in which nothing ever happens."""

    exceptions = type("exceptions", (), {"RayError": RuntimeError})

    def nodes(self) -> list[dict[str, object]]:
        return [{"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0}}]

    def wait(self, references: list[object], **_: object) -> tuple[list[object], list[object]]:
        return [], references

    def kill(self, actor: object) -> None:
        pass


@pytest.fixture
def waiting(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> RayPool:
    """A pool whose Ray starts no worker, at a clock that goes 10 s a look."""
    pool = RayPool(load_recipe(recipe))
    pool._ray, pool._here, pool._cpus = Silent(), "here", 1.0
    clock = iter(range(0, 10**6, 10))
    monkeypatch.setattr("pipeline.engine.ray_pool.time.monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("pipeline.engine.ray_pool.last_words", lambda: "")

    def start(lane: Lane) -> None:
        lane.asked = lane.asked or 1.0
        lane.starting[object()] = RayWorker(None)

    monkeypatch.setattr(pool, "_start", start)
    return pool


def tasks(recipe: Recipe) -> Queue:
    return Queue([Task("points", "00", "s", "00", 1)])


def test_a_run_without_workers_says_so_every_half_minute_and_gives_a_lone_machine_up(
    waiting: RayPool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(RunError, match="started no worker on this machine in 120 s"):
        list(waiting.run(tasks(waiting._recipe)))
    said = [record.getMessage() for record in caplog.records]
    assert 2 <= len(said) <= 4 and all("1 asked for, for points; Ray has 1 nodes with 2 CPUs" in line for line in said)


def test_workers_that_end_as_they_start_end_the_run_with_what_they_said(
    waiting: RayPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.engine.ray_pool.last_words", lambda: "error: No module named `ray`")
    with pytest.raises(RunError, match="the last one said: error: No module named `ray`"):
        list(waiting.run(tasks(waiting._recipe)))


def test_the_last_words_are_those_of_workers_that_have_ended(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert ended_workers(tmp_path) == ""
    (tmp_path / f"worker-ab-01-{os.getpid()}.err").write_text("a warning of one that lives")
    (tmp_path / f"worker-ab-02-{ended.pid}.err").write_text("")
    assert ended_workers(tmp_path) == ""
    (tmp_path / f"worker-ab-03-{ended.pid}.err").write_text("\x1b[31merror:\x1b[0m no such\n  module\n")
    assert ended_workers(tmp_path) == "error: no such module"


def test_of_a_long_cause_both_ends_are_told() -> None:
    told = shortened("The actor died. " + "x" * 5000 + " ModuleNotFoundError: no module named lz4")
    assert told.startswith("The actor died.") and told.endswith("no module named lz4") and len(told) < 1000
