"""What a run builds and what it leaves alone: only what depends on a change is built again, and nothing is lost."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from manifests.asked import keyed_refs, variants
from manifests.config import ConfigError
from manifests.recipe import Recipe, load_recipe
from manifests.sections.tables import GroupConfig
from manifests.stages import SPECS
from manifests.storage.store import Store
from manifests.tables.base import Failed
from manifests.tables.labels import Target
from manifests.tables.sensors import Project
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, Queue, StagePlan, Task
from pipeline.engine.worker import Worker
from pipeline.stages.registry import PACKED
from tests.pipeline.building import Recorder, build, garbage_of, shards_of, stages
from tests.pipeline.unsteady import halve_segments
from tests.refs import newest


def test_a_second_run_builds_nothing(packed: Recipe) -> None:
    assert build(packed) == []
    assert all(plan.complete for plan in Runner(packed).plan(PACKED))


def test_a_setting_of_group_rebuilds_group_and_what_follows(packed: Recipe, recipe_of: Callable[..., Recipe]) -> None:
    changed = recipe_of("group.policy=last_camera")
    (group,) = [plan for plan in Runner(changed).plan(PACKED) if plan.stage.name == "group"]
    assert group.changes == ('settings.policy: (default) -> "last_camera"',)
    assert stages(build(changed)) == ["group", "target"], "what points belong together is as it was"
    assert build(packed) == []  # the first variant is still there


def test_a_setting_of_project_leaves_the_teacher_alone(packed: Recipe, recipe_of: Callable[..., Recipe]) -> None:
    assert stages(build(recipe_of("project.cell_px=16"))) == ["project", "group", "pairs", "target"]


def test_nothing_in_run_rebuilds_anything(packed: Recipe, recipe_of: Callable[..., Recipe]) -> None:
    assert build(recipe_of("run.workers=3", "run.batch_size=1", "run.device=cpu", "run.progress=false")) == []


def test_a_moved_data_set_rebuilds_nothing(packed: Recipe, recipe_of: Callable[..., Recipe], root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    root.rename(elsewhere)
    assert build(recipe_of(f"data.root={elsewhere}")) == []


def test_newer_code_may_keep_tables_of_its_own_in_the_same_store(
    packed: Recipe, recipe_of: Callable[..., Recipe]
) -> None:
    assert build(packed) == []  # under a ref of its own
    store = Runner(packed).store
    for name, ref in keyed_refs(store).items():
        newer = dataclasses.replace(ref.table("group"), stage="hologram")
        store.write_ref(name, dataclasses.replace(ref, tables={**ref.tables, "hologram": newer}))
    changed = recipe_of("group.policy=last_camera")
    assert stages(build(changed)) == ["group", "target"]
    assert build(packed) == []
    assert garbage_of(packed) == [], "what newer code has made is not thrown away"


def test_choosing_another_split_builds_nothing_and_the_ref_follows(
    packed: Recipe, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    split = tmp_path / "half.txt"
    split.write_text("scene-0008\n")
    half = recipe_of(f"data.split={split}")
    assert build(half) == []
    ref = newest(Runner(half).store, "tiny")
    assert [shard.shard for shard in ref.table("target").shards] == ["scene-0008"]


def test_excluding_a_frame_rebuilds_nothing_and_the_ref_says_so(
    packed: Recipe, recipe_of: Callable[..., Recipe]
) -> None:
    runner = Runner(packed)
    frame_id = runner.listing()["scene-0001"][0].frame_id
    assert build(recipe_of(f'data.exclude=["{frame_id}"]')) == []
    assert newest(runner.store, "tiny").excluded == (frame_id,)


def test_an_excluded_frame_that_does_not_exist_is_an_error(recipe_of: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError, match=r"data.exclude names frame nobody"):
        Runner(recipe_of('data.exclude=["nobody"]')).plan(PACKED)


def test_rewording_a_unit_rebuilds_nothing(packed: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = tuple(dataclasses.replace(column, doc="reworded", unit="?") for column in Project.columns)
    monkeypatch.setattr(Project, "columns", columns)
    monkeypatch.setattr(Project, "schema", pa.schema([column.field for column in columns]))
    assert build(packed) == []


def test_adding_a_setting_with_a_default_rebuilds_nothing(packed: Recipe) -> None:
    wider = dataclasses.make_dataclass("Wider", [("colour", str, "red")], bases=(GroupConfig,), frozen=True)
    assert build(dataclasses.replace(packed, group=wider())) == []
    assert stages(build(dataclasses.replace(packed, group=wider(colour="blue")))) == ["group", "pairs", "target"]


def test_raising_a_version_rebuilds_the_stage_and_what_follows(packed: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = SPECS["pairs"]
    monkeypatch.setitem(SPECS, "pairs", dataclasses.replace(spec, version=spec.version + 1))
    assert stages(build(packed)) == ["pairs"]


def test_adding_a_scene_builds_that_scene(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    split = tmp_path / "half.txt"
    split.write_text("scene-0008\n")
    build(recipe_of(f"data.split={split}"))
    added = build(recipe_of())
    assert "text/all" not in added and added and all(name.endswith("/scene-0001") for name in added)


@pytest.mark.parametrize("stage", ["index", "segment", "group", "target"])
def test_deleting_one_shard_rebuilds_that_shard_and_no_other(packed: Recipe, stage: str) -> None:
    runner = Runner(packed)
    table = newest(runner.store, "tiny").table(stage)
    before = shards_of(packed)
    shard = table.shards[0]
    assert runner.store.local is not None
    (runner.store.local / stage / table.fingerprint / shard.name).unlink()
    assert build(packed) == [f"{stage}/{shard.shard}"]
    assert shards_of(packed) == before


def test_another_class_dictionary_leaves_the_expensive_half_alone(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    from manifests import ontology

    source = Path(ontology.__file__).parent / "ontologies" / "nuscenes.toml"
    changed = tmp_path / "changed.toml"
    text = source.read_text()
    assert '"hatch-back"' in text
    changed.write_text(text.replace('"hatch-back"', '"hatchback"'))
    split = tmp_path / "half.txt"
    split.write_text("scene-0008\n")
    dense = ["teacher.name=clip_dense", "teacher.model=tiny", "teacher.weights=random:0", "teacher.short_side_px=64"]
    dense += ["segment.scale=0.05", "text.templates=single", f"data.split={split}"]
    # the folder belongs to the other teacher's section: write the recipe anew
    recipe = tmp_path / "dense.toml"
    recipe.write_text(f'[data]\nroot = "{tmp_path / "nuscenes"}"\n[run]\nstore = "{tmp_path / "store"}"\n')
    first = build(load_recipe(recipe, dense))
    assert "encode" in stages(first)
    second = build(load_recipe(recipe, [*dense, f"data.ontology={changed}"]))
    assert stages(second) == ["text", "segment", "group", "pairs", "target"]


def test_a_bad_frame_holds_up_its_scene_only_and_is_named(
    packed: Recipe, recipe_of: Callable[..., Recipe], root: Path, tmp_path: Path
) -> None:
    runner = Runner(packed)
    frame = runner.listing()["scene-0001"][1]
    image = root / frame.cameras[0].image_path
    content = image.read_bytes()
    image.unlink()
    image.write_bytes(content[: len(content) // 2])
    fresh = f"run.store={tmp_path / 'store2'}"
    recorder = Recorder()
    failures = Runner(recipe_of(fresh)).run(PACKED, InlinePool(recipe_of(fresh)), recorder)
    assert [(failure.stage, failure.shard, failure.frame_id) for failure in failures] == [
        ("index", "scene-0001", frame.frame_id)
    ]
    assert "target/scene-0008" in recorder.built and "points/scene-0001" not in recorder.built
    assert "target" not in newest(Runner(recipe_of(fresh)).store, "tiny").tables

    # left out by name it keeps its row, with status and reason, and everything else is built
    excluded = recipe_of(fresh, f'data.exclude=["{frame.frame_id}"]')
    assert "target/scene-0001" in build(excluded)
    runner = Runner(excluded)
    table = newest(runner.store, "tiny").table("target")
    good, bad = runner.store.records(Target, table.fingerprint, table.shards[0])
    assert isinstance(good, Target) and isinstance(bad, Failed) and bad.frame_id == frame.frame_id
    assert image.name in bad.reason

    # repaired and no longer excluded, its scene is built again and equals the undisturbed run
    image.write_bytes(content)
    assert all(name.endswith("scene-0001") for name in build(recipe_of(fresh)))
    assert shards_of(recipe_of(fresh)) == shards_of(packed)


def test_changed_inputs_never_leave_a_stale_table_in_the_ref(packed: Recipe, recipe_of: Callable[..., Recipe]) -> None:
    build(recipe_of("group.min_points=2"), ["group"])
    tables = newest(Runner(packed).store, "tiny").tables
    assert "group" in tables and "pairs" not in tables and "target" not in tables


def test_an_empty_split_and_an_unknown_one_are_errors(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "none.txt").write_text("scene-9999\n")
    for split in ("mini_val", "nonsense", str(tmp_path / "none.txt")):
        with pytest.raises(ConfigError, match=r"data.split"):
            Runner(recipe_of(f"data.split={split}")).plan(PACKED)


def test_packing_opens_no_labels(recipe_of: Callable[..., Recipe], root: Path) -> None:
    shutil.rmtree(root / "lidarseg")
    assert "target" in stages(build(recipe_of()))


@pytest.fixture(scope="module")
def ray_stopped_afterwards() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


@pytest.mark.usefixtures("ray_stopped_afterwards")
def test_ray_and_inline_give_the_same_bytes(packed: Recipe, recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    on_ray = recipe_of(f"run.store={tmp_path / 'store2'}", "run.pool=ray", "run.workers=2")
    with RayPool(on_ray) as pool:
        assert Runner(on_ray).run([*PACKED, "label"], pool) == []
    build(packed, [*PACKED, "label"])
    assert shards_of(on_ray) == shards_of(packed)


class Hasty(InlinePool):
    """Takes a shard through all stages before it begins with the next: the opposite of one stage after the other."""

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        while stages := queue.stages():
            task = queue.take(stages[-1])
            yield task, self._worker.run(task)


def test_the_order_in_which_shards_are_built_changes_no_byte_and_no_name(
    packed: Recipe, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    other, recorder = recipe_of(f"run.store={tmp_path / 'store2'}"), Recorder()
    assert Runner(other).run(PACKED, Hasty(other), recorder) == []
    assert recorder.built.index("target/scene-0001") < recorder.built.index("index/scene-0008")
    assert shards_of(other) == shards_of(packed)
    assert build(packed) == []  # it was built over another root
    before, after = Runner(packed).read_ref(), Runner(other).read_ref()
    assert before and after and before.tables == after.tables


def test_a_shard_goes_on_when_what_it_waited_for_turns_out_to_be_built(packed: Recipe) -> None:
    recorder = Recorder()
    assert Runner(packed).run(PACKED, InlinePool(packed), recorder, again=["index"]) == []
    assert stages(recorder.built) == ["index"]  # the same bytes again: what follows is planned only then, and is there
    assert all(plan.complete for plan in Runner(packed).plan(PACKED))


def interrupted(pool: InlinePool, at: str, fault: BaseException) -> None:
    """Have a pool's worker raise where it comes to a stage."""
    build = pool._worker.run

    def run(task: Task) -> Outcome:
        if task.stage == at:
            raise fault
        return build(task)

    pool._worker.run = run  # type: ignore[method-assign]


@pytest.mark.parametrize("fault", [ConfigError("group cannot be had"), KeyboardInterrupt()])
def test_a_run_that_is_cut_short_leaves_lists_of_what_was_built_before(
    recipe_of: Callable[..., Recipe], fault: BaseException
) -> None:
    recipe = recipe_of()
    pool = Hasty(recipe)
    interrupted(pool, "group", fault)
    with pytest.raises(type(fault)):
        Runner(recipe).run(PACKED, pool)
    store = Runner(recipe).store
    assert [len(store.manifests(name)) for name in ("index", "project", "segment", "group")] == [1, 1, 1, 0]
    assert garbage_of(recipe) == []  # the ref holds them


def test_a_machine_whose_disk_is_full_tries_twice_and_lists_the_rest(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, tried = recipe_of(), []

    def write(self: Store, *_: object) -> Any:
        tried.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Store, "writer", write)
    failures = Runner(recipe).run(PACKED, InlinePool(recipe))
    assert len(tried) == 2 and {failure.stage for failure in failures} == {"index", "text"}
    assert [failure.cause.split(";")[0] for failure in failures[2:]] == ["not tried, since the disk is full"]


def test_nothing_of_a_run_is_garbage_while_it_goes_on_nor_afterwards(recipe_of: Callable[..., Recipe]) -> None:
    recipe, garbage = recipe_of(), []

    class Collector(Recorder):
        def shard_finished(self, task: Task, outcome: Outcome) -> None:
            garbage.append(garbage_of(recipe))

    assert Runner(recipe).run(PACKED, Hasty(recipe), Collector()) == []
    assert len(garbage) == 15 and not any(garbage)  # two scenes through seven stages, and the prompts
    ref = Runner(recipe).read_ref()
    assert garbage_of(recipe) == [] and ref and ref.building == ()


class Bars(Recorder):
    """A watcher that remembers when stages begin and end, and how many frames were announced."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[str] = []

    def stage_started(self, plan: StagePlan, n_frames: int) -> None:
        self.told.append(f"{plan.stage.name} of {n_frames}")

    def stage_finished(self, plan: StagePlan) -> None:
        self.told.append(f"{plan.stage.name} ends")


def test_one_stage_after_the_other_and_side_by_side_each_is_announced_with_the_frames_it_may_build(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    here, beside = Bars(), Bars()
    recipe, other = recipe_of(), recipe_of(f"run.store={tmp_path / 'store2'}")
    assert Runner(recipe).run(["points", "project"], InlinePool(recipe), here) == []
    assert here.told == ["index of 3", "index ends", "points of 3", "points ends", "project of 3", "project ends"]
    assert Runner(other).run(["points", "project"], Hasty(other), beside) == []
    assert beside.told[:3] == ["index of 3", "points of 3", "project of 3"]
    assert beside.told[3:] == ["index ends", "points ends", "project ends"]


@pytest.mark.usefixtures("ray_stopped_afterwards")
def test_a_killed_worker_is_replaced_and_a_deadly_shard_set_aside(
    packed: Recipe, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    class Mortal(Worker):  # dies once on every shard, and each time on scene-0008
        def run(self, task: Task) -> Outcome:
            mark = marks / task.shard
            if not mark.exists() or task.shard == "scene-0008":
                mark.write_text(mark.read_text() + "x" if mark.exists() else "x")
                os.kill(os.getpid(), signal.SIGKILL)
            return super().run(task)

    recipe = recipe_of(f"run.store={tmp_path / 'store3'}", "run.pool=ray", "run.workers=2")
    recorder = Recorder()
    with RayPool(recipe, Mortal) as pool:
        failures = Runner(recipe).run(["index"], pool, recorder)
    assert recorder.built == ["index/scene-0001"]
    assert [(failure.shard, failure.frame_id) for failure in failures] == [("scene-0008", None)]
    assert "died 2 times" in failures[0].cause
    assert (marks / "scene-0008").read_text() == "xx" and (marks / "scene-0001").read_text() == "x"


def test_nothing_that_a_recipe_may_still_use_is_garbage(
    packed: Recipe, recipe_of: Callable[..., Recipe], root: Path, tmp_path: Path
) -> None:
    assert garbage_of(packed) == []
    split = tmp_path / "half.txt"
    split.write_text("scene-0008\n")
    build(recipe_of(f"data.split={split}"), ["index"])  # another split, and only its first stage
    assert garbage_of(packed) == []
    assert build(packed) == []

    # a new scene comes in and its image is broken: the tables of the other scene stay
    fresh = f"run.store={tmp_path / 'store2'}"
    build(recipe_of(fresh, f"data.split={split}"))
    image = root / Runner(packed).listing()["scene-0001"][0].cameras[0].image_path
    image.unlink()
    image.write_bytes(b"")
    both = recipe_of(fresh)
    assert len(Runner(both).run(PACKED, InlinePool(both))) == 1
    assert garbage_of(both) == []
    ref = newest(Runner(both).store, "tiny")
    assert "target" not in ref.tables and "target" in {table.stage for table in ref.held}


def test_a_variant_of_a_recipe_is_garbage_once_it_is_forgotten(
    packed: Recipe, recipe_of: Callable[..., Recipe]
) -> None:
    build(packed)
    build(recipe_of("group.min_points=2"))
    assert garbage_of(packed) == [], "it is the recipe's own, with an override"
    store = Runner(packed).store
    told = variants(store, packed)
    assert ["group.min_points: 2 -> (default)"] in [changes[:1] for changes in told.values()]
    for name in told:
        store.delete_ref(name)
    assert garbage_of(packed) == ["group", "pairs", "target"]


def test_a_shard_that_comes_out_otherwise_the_second_time_rebuilds_what_follows(
    packed: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network on a GPU may give other bits; positions in its old rows must not be used with its new ones."""
    halve_segments(monkeypatch, "score")
    assert Runner(packed).run(["segment"], InlinePool(packed), again=["segment"]) == []
    assert stages(build(packed)) == ["group", "pairs", "target"]


def test_a_teacher_that_cannot_be_loaded_ends_the_run_once(recipe_of: Callable[..., Recipe], tmp_path: Path) -> None:
    from manifests.sections.teachers.clip_dense import ClipDenseConfig

    recipe = recipe_of(f"data.split={tmp_path / 'half.txt'}")
    (tmp_path / "half.txt").write_text("scene-0008\n")
    broken = dataclasses.replace(recipe, teacher=ClipDenseConfig(model="no-such-tower", weights="random:0"))
    with pytest.raises(ConfigError, match="no-such-tower"):
        Runner(broken).run(["encode"], InlinePool(broken))


@pytest.mark.usefixtures("ray_stopped_afterwards")
def test_more_workers_than_gpus_is_a_sentence_and_no_endless_wait(recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of("run.pool=ray", "run.workers=2", "run.gpus_per_worker=64")
    with RayPool(recipe) as pool, pytest.raises(RuntimeError, match=r"wants 64.0 GPUs a worker"):
        list(pool.run(Queue([Task("encode", "00", "scene", "00", 0)])))


def test_a_store_that_workers_of_a_cluster_would_look_for_elsewhere_is_refused(
    recipe_of: Callable[..., Recipe],
) -> None:
    recipe = recipe_of("run.pool=ray", "run.ray_address=auto", "run.store=tables")
    with pytest.raises(ConfigError, match="each worker of a cluster would look for it in a folder of its own"):
        RayPool(recipe).__enter__()


# -- encoding and segmenting in one go
