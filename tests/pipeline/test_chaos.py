"""A cluster that falls apart under a run: the tables are those of an undisturbed run, or the list says what is missing.

Three Ray nodes on this machine, one without a GPU and two with a fake one each, started once for all tests. The GPU's
work is simulated: it sleeps, and its rows are sums. Everything else is the code that runs in production.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from manifests.recipe import Recipe, load_recipe
from manifests.stages import fingerprint
from manifests.storage.store import Store
from manifests.tables.teacher import Encode
from pipeline.engine import refs, scheduler, worker
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.progress import progress_of
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import FULL_DISKS, Outcome, Queue, Task
from pipeline.engine.worker import Worker
from pipeline.stages.base import FrameInput, OneByOne
from pipeline.stages.registry import STAGES

SCENES = 6
SCENE = """points = "points/{{frame}}.npy"
ego_from_lidar = {{ rotation = [1.0, 0.0, 0.0, 0.0], translation = [0.0, 0.0, 0.0] }}
[[camera]]
name = "ahead"
images = "images/{{frame}}.png"
intrinsics = [[20.0, 0.0, 16.0], [0.0, 20.0, 12.0], [0.0, 0.0, 1.0]]
ego_from_cam = {{ rotation = [0.5, -0.5, 0.5, -0.5], translation = [0.0, 0.0, 0.0] }}
[[frame]]
name = "{name}"
timestamp_us = 1000
world_from_ego = {{ rotation = [1.0, 0.0, 0.0, 0.0], translation = [0.0, 0.0, 0.0] }}
"""


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes of one small frame each, as plain files."""
    root = tmp_path_factory.mktemp("logs")
    rng = np.random.default_rng(0)
    for number in range(SCENES):
        folder, name = root / f"drive-{number}", f"f{number}"
        for kind in ("points", "images"):
            (folder / kind).mkdir(parents=True)
        sweep = np.column_stack([rng.normal(0, 9, (40, 3)), rng.uniform(0, 255, 40)]).astype(np.float32)
        np.save(folder / "points" / f"{name}.npy", sweep)
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(folder / "images" / f"{name}.png")
        (folder / "scene.toml").write_text(SCENE.format(name=name))
    return root


@pytest.fixture
def recipe_of(logs: Path, tmp_path: Path) -> Callable[..., Recipe]:
    path = tmp_path / "chaos.toml"
    path.write_text(
        f'[data]\ndataset = "folder"\nroot = "{logs}"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\n'
        f'weights = "random:0"\n[run]\nworkers = 2\nstore = "{tmp_path / "store"}"\ndevice = "cpu"\n'
    )
    return lambda *overrides: load_recipe(path, overrides)


def fake_gpu(seconds: float = 0.2, before: Callable[[Task], None] = lambda task: None) -> type[Worker]:
    """A worker whose GPU sleeps, after whatever `before` does to it. Defined here, so that Ray sends it by value."""

    class FakeGpu(Worker):
        def __init__(self, recipe: Recipe) -> None:
            import pipeline.engine.worker

            pipeline.engine.worker.device_name = lambda recipe: "a fake GPU"  # the real one would import torch
            super().__init__(recipe)

        def run(self, task: Task) -> Outcome:
            before(task)
            if task.stage == "encode":
                self._stage = STAGES["encode"]
                self._function = OneByOne(self.encode)
            outcome: Outcome = super().run(task)
            return outcome

        @staticmethod
        def encode(inputs: FrameInput) -> Encode:
            time.sleep(seconds)
            place = np.frombuffer(inputs.frame.cameras[0].image_sha256.encode(), np.uint8)
            encoding = {"ahead/sum": np.array([place.sum()], np.float32)}
            return Encode(frame_id=inputs.frame.frame_id, encoding=encoding)

    return FakeGpu


@pytest.fixture(scope="module", autouse=True)
def device_name_as_it_was() -> Iterator[None]:
    """Take back what a fake worker in this very process does to the name of its device."""
    before = worker.device_name
    yield
    worker.device_name = before


class InlineFake(InlinePool):
    """The pool of an undisturbed run: the same work in this process."""

    def __init__(self, recipe: Recipe) -> None:
        self._worker = fake_gpu(0)(recipe)


@pytest.fixture(scope="module")
def expected(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of every shard after a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    path = folder / "chaos.toml"
    path.write_text(
        f'[data]\ndataset = "folder"\nroot = "{logs}"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\n'
        f'weights = "random:0"\n[run]\nstore = "{folder / "store"}"\ndevice = "cpu"\n'
    )
    recipe = load_recipe(path)
    assert Runner(recipe).run(["encode"], InlineFake(recipe)) == []
    found = shards_of(recipe)
    assert len(found) == 2 * SCENES
    return found


def shards_of(recipe: Recipe) -> dict[str, str]:
    """The sha256 of every committed shard, read from the store and not from what the run says."""
    store = Store.open(recipe.run.store)
    found = {}
    for name in ("index", "encode"):
        table = fingerprint(recipe, name)
        for shard in store.shards(name, table).values():
            assert store.damage(name, table, shard) is None
            found[f"{name}/{shard.shard}"] = shard.sha256
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    ray.shutdown()  # a local one that another test of this process has started
    cluster: Any = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 2, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False},
    )
    cluster.gpu_nodes = [add_node(cluster), add_node(cluster)]
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=80 * 2**20)


@pytest.fixture
def on_cluster(cluster: Any, recipe_of: Callable[..., Recipe]) -> Callable[..., Recipe]:
    own = ("run.pool=ray", f"run.ray_address={cluster.address}", "run.gpus_per_worker=1")
    return lambda *overrides: recipe_of(*own, *overrides)


def node_here() -> str:
    import ray

    return str(ray.get_runtime_context().get_node_id())


def test_a_killed_worker_a_node_that_goes_away_and_clocks_that_differ(
    cluster: Any, on_cluster: Callable[..., Recipe], expected: dict[str, str], tmp_path: Path
) -> None:
    doomed = cluster.gpu_nodes[1]
    marks = tmp_path / "marks"
    marks.mkdir()
    doomed_id = doomed.node_id

    def before(task: Task) -> None:
        if task.stage != "encode":
            return
        if node_here() == doomed_id:
            (marks / "aboard").touch()
            time.sleep(60)  # its node goes away under it
        if not (marks / "killed").exists():
            (marks / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    class Skewed(fake_gpu(0.8, before)):  # type: ignore[misc]
        def run(self, task: Task) -> Outcome:
            outcome: Outcome = super().run(task)
            if outcome.shard and task.shard == "drive-0":  # as if written by a machine that is a day ahead
                folder = self._store.local / task.stage / task.fingerprint
                os.utime(folder / outcome.shard.name, (time.time() + 86400,) * 2)
            return outcome

    class Remover:
        removed = False

        def stage_started(self, plan: Any, n_frames: int) -> None:
            pass

        def stage_finished(self, plan: Any) -> None:
            pass

        def shard_finished(self, task: Task, outcome: Outcome) -> None:
            if (marks / "aboard").exists() and not self.removed:
                cluster.remove_node(doomed, allow_graceful=False)
                self.removed = True

    recipe, remover = on_cluster(), Remover()
    with RayPool(recipe, Skewed) as pool:
        assert Runner(recipe).run(["encode"], pool, remover) == []
    assert remover.removed and (marks / "killed").exists()
    assert shards_of(recipe) == expected
    assert Store.open(recipe.run.store).unreferenced(0) == []
    cluster.gpu_nodes[1] = add_node(cluster)


def test_clocks_that_are_late_or_jump_back_while_garbage_is_collected(  # long: a story of two machines
    cluster: Any, on_cluster: Callable[..., Recipe], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One node is 30 hours late, the clocks of the other and of the driver jump back by six, the collector is 48 ahead.

    A machine's clock is simulated: what its process asks for the time, and the dates of the files that it writes.
    """
    late_id = cluster.gpu_nodes[0].node_id

    class WrongClock(fake_gpu(0.3)):  # type: ignore[misc]
        def run(self, task: Task) -> Outcome:
            self._task, self._n_tasks = task, getattr(self, "_n_tasks", 0) + 1
            jumps = task.stage == "encode" and self._n_tasks > 1
            self._late_s = 30 * 3600 if node_here() == late_id else 6 * 3600 if jumps else 0
            right = getattr(time, "right", time.time)
            time.right, time.time = right, lambda: right() - self._late_s  # type: ignore[attr-defined]
            outcome: Outcome = super().run(task)
            self.date(f"{task.shard}.*")
            return outcome

        def encode(self, inputs: FrameInput) -> Encode:
            self.date(".tmp-*")  # what is being written now
            row: Encode = super().encode(inputs)
            return row

        def date(self, names: str) -> None:
            for path in (self._store.local / self._task.stage / self._task.fingerprint).glob(names):
                with suppress(FileNotFoundError):  # another worker's, finished by now
                    os.utime(path, (time.time(),) * 2)

    class Collector:
        """Runs what `gc --delete` runs, from a machine of its own, whenever a shard is finished."""

        found: ClassVar[list[str]] = []
        started: ClassVar[list[float]] = []

        def __init__(self, recipe: Recipe) -> None:
            self.store = Store.open(recipe.run.store)

        def stage_started(self, plan: Any, n_frames: int) -> None:
            pass

        def stage_finished(self, plan: Any) -> None:
            pass

        def shard_finished(self, task: Task, outcome: Outcome) -> None:
            with monkeypatch.context() as patch:
                right = time.time
                patch.setattr("manifests.storage.garbage.time.time", lambda: right() + 48 * 3600)
                garbage = self.store.unreferenced(24 * 3600)
                self.store.delete(path for path, _ in garbage)
                self.found.extend(path for path, _ in garbage)
            monkeypatch.setattr(scheduler, "datetime", JumpedBack)
            monkeypatch.setattr(refs, "datetime", JumpedBack)

    recipe = on_cluster()
    collector = Collector(recipe)
    with RayPool(recipe, WrongClock) as pool:
        assert Runner(recipe).run(["encode"], pool, collector) == []
    assert collector.found == []
    assert shards_of(recipe) == expected
    [manifest] = collector.store.manifests("encode")
    made: Any = manifest.made
    assert made["finished"] < made["started"] and made["work"]["seconds"] > 0
    assert [(item.n_done, item.failures) for item in progress_of(Runner(recipe), ["encode"])] == [(SCENES, ())] * 2
    dates = [path.stat().st_mtime for path in Path(recipe.run.store).glob("encode/*/*.parquet")]
    assert min(dates) < time.time() - 29 * 3600 and len(dates) == SCENES
    assert collector.store.unreferenced(0) == []


class JumpedBack(datetime):
    """The driver's clock after it was set back."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        return datetime.now(tz) - timedelta(hours=6)


def test_a_driver_that_is_killed_and_started_again(
    cluster: Any, on_cluster: Callable[..., Recipe], expected: dict[str, str], tmp_path: Path
) -> None:
    recipe = on_cluster()
    script = tmp_path / "driver.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport cloudpickle, test_chaos\n"
        "cloudpickle.register_pickle_by_value(test_chaos)\nfrom ray import cloudpickle as ours\n"
        "ours.register_pickle_by_value(test_chaos)\n"
        f"recipe = test_chaos.load_recipe({str(tmp_path / 'chaos.toml')!r}, ['run.pool=ray', "
        f"'run.ray_address={cluster.address}', 'run.gpus_per_worker=1'])\n"
        "with test_chaos.RayPool(recipe, test_chaos.fake_gpu(0.6)) as pool:\n"
        "    test_chaos.Runner(recipe).run(['encode'], pool)\n"
    )
    root = Path(__file__).parent.parent.parent
    driver = subprocess.Popen([sys.executable, str(script)], cwd=root, env=os.environ | {"PYTHONPATH": str(root)})
    try:
        until = time.monotonic() + 120
        while driver.poll() is None and time.monotonic() < until and not list(tmp_path.glob("store/encode/*/*.json")):
            time.sleep(0.05)
        assert driver.poll() is None
    finally:
        driver.kill()
        driver.wait()
    half = shards_of(recipe)
    assert 0 < sum(name.startswith("encode/") for name in half) < SCENES
    with RayPool(recipe, fake_gpu(0)) as pool:
        assert Runner(recipe).run(["encode"], pool) == []
    assert shards_of(recipe) == expected


def small_disks(nodes: set[str], marks: Path) -> type[Worker]:
    """A fake GPU on whose node, where that is one of these, `encode` finds a disk of one page; it marks its tries.

    Workers of other nodes wait until there have been as many tries as a node has, so that the order of events is one.
    """

    class FullDisk(fake_gpu(0.15)):  # type: ignore[misc]
        def run(self, task: Task) -> Outcome:
            until = time.monotonic() + 60
            while task.stage == "encode" and node_here() not in nodes and time.monotonic() < until:
                if len(list(marks.iterdir())) >= FULL_DISKS:
                    break
                time.sleep(0.05)
            if task.stage == "encode" and node_here() in nodes:
                (marks / f"{node_here()}-{time.monotonic_ns()}").touch()
                folder = self._store.local / task.stage / task.fingerprint
                if not os.path.ismount(folder):
                    folder.mkdir(parents=True, exist_ok=True)
                    libc = ctypes.CDLL(None, use_errno=True)
                    assert libc.unshare(0x20000) == 0  # CLONE_NEWNS: this process alone sees the small disk
                    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
                    assert libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=4k") == 0
            outcome: Outcome = super().run(task)
            return outcome

    return FullDisk


@pytest.fixture
def may_mount() -> None:
    if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")


def test_a_node_whose_disk_is_full_is_left_out_and_others_do_its_work(
    may_mount: None,
    cluster: Any,
    on_cluster: Callable[..., Recipe],
    expected: dict[str, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe, marks, full = on_cluster(), tmp_path / "marks", cluster.gpu_nodes[0].node_id
    marks.mkdir()
    with RayPool(recipe, small_disks({full}, marks)) as pool:
        assert Runner(recipe).run(["encode"], pool) == []
    assert shards_of(recipe) == expected
    assert len(list(marks.iterdir())) == FULL_DISKS
    assert f"{full[:8]} in Ray) gets no more shards in this run: its disk is full. Free space there" in caplog.text
    assert Store.open(recipe.run.store).unreferenced(0) == []


def test_full_disks_on_all_nodes_and_a_store_out_of_reach_leave_a_list_and_nothing_half_written(
    may_mount: None, cluster: Any, on_cluster: Callable[..., Recipe], expected: dict[str, str], tmp_path: Path
) -> None:
    recipe, marks = on_cluster(), tmp_path / "marks"
    store, away = tmp_path / "store", tmp_path / "away"
    marks.mkdir()
    full = {node.node_id for node in cluster.gpu_nodes}
    with RayPool(recipe, small_disks(full, marks)) as pool:
        failures = Runner(recipe).run(["encode"], pool)
    told = [failure.cause for failure in failures]
    assert any("in Ray): store" in cause and "the disk is full" in cause for cause in told)
    assert any("the disks of all nodes with room for a worker are full; free space" in cause for cause in told)
    assert len(list(marks.iterdir())) <= FULL_DISKS * len(full)
    written = shards_of(recipe)
    assert {f"encode/{failure.shard}" for failure in failures} == expected.keys() - written.keys()
    assert written.items() <= expected.items() and len(failures) == SCENES

    class Outage(fake_gpu(0.1)):  # type: ignore[misc]
        def run(self, task: Task) -> Outcome:
            if store.exists() and not (tmp_path / "over").exists():
                store.rename(away)
                store.write_text("")  # what was a folder cannot be used as one
                outcome: Outcome = super().run(task)
                store.unlink()
                away.rename(store)
                (tmp_path / "over").touch()
                return outcome
            later: Outcome = super().run(task)
            return later

    with RayPool(on_cluster("run.workers=1"), Outage) as pool:
        again = Runner(recipe).run(["encode"], pool)
    assert [failure.shard for failure in again] == [sorted(failure.shard for failure in failures)[0]]
    assert shards_of(recipe).items() < expected.items()
    with RayPool(recipe, fake_gpu(0)) as pool:
        assert Runner(recipe).run(["encode"], pool) == []
    assert shards_of(recipe) == expected


def test_gpus_encode_some_shards_while_cpus_list_others(
    on_cluster: Callable[..., Recipe], expected: dict[str, str], tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    def before(task: Task) -> None:
        (marks / f"{task.stage} {task.shard}").touch()
        if (task.stage, task.shard) == ("index", f"drive-{SCENES - 1}"):
            until = time.monotonic() + 60  # one stage after the other, this would be in vain
            while time.monotonic() < until and not (marks / "encode drive-0").exists():
                time.sleep(0.05)
            assert (marks / "encode drive-0").exists(), "no GPU had anything to do"

    recipe = on_cluster()
    with RayPool(recipe, fake_gpu(0, before)) as pool:
        assert Runner(recipe).run(["encode"], pool) == []
    assert shards_of(recipe) == expected


def test_a_stage_without_gpus_ends_the_run_with_a_sentence_and_the_others_keep_their_tables(
    on_cluster: Callable[..., Recipe], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = on_cluster("run.gpus_per_worker=2")
    with RayPool(recipe, fake_gpu(0)) as pool:
        assert Runner(recipe).run(["index"], pool) == []
        monkeypatch.setattr("pipeline.engine.ray_pool.PATIENCE_S", 2.0)  # an autoscaler would be given its time
        with pytest.raises(RuntimeError, match=r"encode wants 2.0 GPUs a worker, .* nor had one in 2 s"):
            Runner(recipe).run(["encode"], pool)
    written = shards_of(recipe)
    assert len(written) == SCENES and written.items() < expected.items()
    [manifest] = Store.open(recipe.run.store).manifests("index")
    assert len(manifest.shards) == len(written)


def test_stages_that_want_other_shares_of_the_same_gpus_get_them_in_turn(on_cluster: Callable[..., Recipe]) -> None:
    class Idler(Worker):
        def run(self, task: Task) -> Outcome:
            return Outcome(None, device=task.stage)

    tasks = [Task(stage, "00", f"s{number}", "00", 1) for stage in ("encode", "segment") for number in range(3)]
    with RayPool(on_cluster("run.segment_gpus=0.5"), Idler) as pool:  # two whole GPUs are all there is
        done = [outcome.device for _, outcome in pool.run(Queue(tasks))]
    assert Counter(done) == {"encode": 3, "segment": 3}


def test_two_nodes_share_work_that_waits(
    cluster: Any, on_cluster: Callable[..., Recipe], capsys: pytest.CaptureFixture[str]
) -> None:
    class Sleeper(Worker):
        def run(self, task: Task) -> Outcome:
            time.sleep(0.5)
            return Outcome(None, device=node_here())

    tasks = [Task("encode", "00", f"s{number}", "00", 1) for number in range(8)]
    rates, used = {}, {}
    for workers in (1, 2):
        with RayPool(on_cluster(f"run.workers={workers}"), Sleeper) as pool:
            warm = list(pool.run(Queue(tasks[: 2 * workers])))  # actors are started and placed here
            assert len(warm) == 2 * workers
            started = time.perf_counter()
            done = [outcome.device for _, outcome in pool.run(Queue(tasks))]
            rates[workers] = len(done) / (time.perf_counter() - started)
            used[workers] = Counter(done)
    with capsys.disabled():
        print(f"\none node {rates[1]:.2f} shards/s, two {rates[2]:.2f}: {rates[2] / rates[1]:.2f} times as many")
    assert len(used[1]) == 1 and len(used[2]) == 2
    assert sum(used[2].values()) == len(tasks)
