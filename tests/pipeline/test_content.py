"""Files are what they hold, not what they are called: what was computed from one is never taken for another's.

`Log` is a data set small enough to be built from nothing in a second, whose files can be replaced, restored, touched
and moved; `rows` is what a recipe's tables hold, to compare with those of a fresh store.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.asked import ref_of, tables_of
from manifests.console import plain_console
from manifests.fingerprint import looks_of, sha256_file
from manifests.recipe import Recipe, load_recipe
from manifests.records.evaluation import Compared
from manifests.sources import compare_files
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from manifests.tables.arrow import column_digests, to_arrow
from manifests.tables.sensors import Points
from manifests.tables.superpoints import Pairs
from pipeline.engine import planner
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.keys import digest_table
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Failure, Outcome, StagePlan, Task
from pipeline.exchange.labels import write_labels
from pipeline.exchange.review import review
from pipeline.stages.registry import STAGES
from tests.pipeline.unsteady import halve_segments
from trainer.data.samples import checked_pairs
from trainer.inference.refined_table import refine

SCENES = {"day": 3, "night": 2}
TARGETS = ("points", "pairs", "target", "label")

DESCRIPTION = """\
points = "points/{frame}.npy"
labels = "labels/{frame}.npy"

[[camera]]
name = "front"
images = "front/{frame}.png"
intrinsics = [[16, 0, 16], [0, 16, 12], [0, 0, 1]]
cam_from_lidar = [[0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
"""
FRAME = """
[[frame]]
name = "{name}"
timestamp_us = {time}
world_from_ego = {{ rotation = [0.9, 0, 0.1, {turn}], translation = [{time}e-6, 0.3, 0] }}
"""


@dataclass
class Log:
    """Logs in data set `folder`: `SCENES` with so many frames of 40 labelled points and an image of 32 x 24 pixels."""

    root: Path

    def write(self, seed: int = 0) -> Log:
        """Make all files from a seed."""
        for scene, n_frames in SCENES.items():
            lines = [DESCRIPTION]
            for number in range(n_frames):
                lines.append(FRAME.format(name=f"f{number}", time=1_000_000 + 500_000 * number, turn=0.02 * number))
                for name in self.files_of(scene, number):
                    (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                    self.replace(name, seed)
            (self.root / scene / "scene.toml").write_text("".join(lines))
        return self

    def files_of(self, scene: str, number: int) -> tuple[str, str, str]:
        """Sweep, image and labels of a frame."""
        frame = f"f{number}"
        return f"{scene}/points/{frame}.npy", f"{scene}/front/{frame}.png", f"{scene}/labels/{frame}.npy"

    def files(self) -> list[str]:
        """All files of all frames."""
        return [name for scene, n in SCENES.items() for number in range(n) for name in self.files_of(scene, number)]

    def replace(self, name: str, seed: int) -> None:
        """Put other content of the same size in the place of a file."""
        draw = np.random.default_rng([seed, *name.encode()])
        path = self.root / name
        if path.parent.name == "front":
            colours = draw.integers(0, 256, (6, 8, 3), np.uint8)
            Image.fromarray(colours.repeat(4, 0).repeat(4, 1)).save(path, compress_level=0)
        elif path.parent.name == "labels":
            np.save(path, draw.choice([17, 24, 28, 30], 40).astype(np.uint8))
        else:
            xyz = draw.uniform([4, -3, -2], [9, 3, 2], (40, 3))
            np.save(path, np.hstack([xyz, draw.uniform(0, 1, (40, 1))]).astype(np.float32))


class Recorder:
    """A watcher that remembers what was built, as stage/shard, and what was only looked at."""

    def __init__(self) -> None:
        self.built: list[str] = []
        self.looked: list[str] = []

    def stage_started(self, plan: StagePlan, n_frames: int) -> None:
        pass

    def shard_finished(self, task: Task, outcome: Outcome) -> None:
        if outcome.shard:
            (self.looked if outcome.looked else self.built).append(f"{task.stage}/{task.shard}")

    def stage_finished(self, plan: StagePlan) -> None:
        pass


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "logs").write()


@pytest.fixture
def recipe_of(log: Log, tmp_path: Path) -> Callable[..., Recipe]:
    """Makes recipes over the log; a vote of neighbours is in them, and a simulated teacher that reads labels."""
    path = tmp_path / "tiny.toml"
    path.write_text(
        f'[data]\ndataset = "folder"\nroot = "{log.root}"\n[run]\nstore = "{tmp_path / "store"}"\n'
        '[teacher]\nname = "oracle"\nsource = "points"\ndims = 8\nslic_px = 8.0\n[segment]\nscale = 1.0\n'
        '[target]\nlabels = "vote"\n[vote]\nreach = 1\nvoxel_m = 4.0\nvoxel_height_m = 4.0\nthrough_m = 50.0\n'
    )
    return lambda *overrides: load_recipe(path, overrides)


def run(recipe: Recipe, targets: Sequence[str] = TARGETS, again: Sequence[str] = ()) -> tuple[Recorder, list[Failure]]:
    recorder = Recorder()
    return recorder, Runner(recipe).run(targets, InlinePool(recipe), recorder, again)


def build(recipe: Recipe, targets: Sequence[str] = TARGETS) -> Recorder:
    recorder, failures = run(recipe, targets)
    assert failures == []
    return recorder


def rows(recipe: Recipe) -> dict[str, str]:
    """A digest of every row that a trainer would read, by table and frame."""
    store = Store.open(recipe.run.store)
    ref = Runner(recipe).read_ref()
    assert ref is not None and set(TARGETS) <= ref.tables.keys()
    found = {}
    for name in TARGETS:
        for shard in ref.tables[name].shards:
            table = store.read(name, ref.tables[name].fingerprint, shard)
            for position, frame_id in enumerate(table.column("frame_id").to_pylist()):
                if frame_id not in ref.excluded:
                    found[f"{name}/{frame_id}"] = digest_table(table.slice(position, 1))
    return found


def compared(recipe: Recipe) -> Compared:
    """What the trainer makes of the files behind the tables."""
    store = Store.open(recipe.run.store)
    ref = tables_of(store, recipe, ["points", "target", "label"])
    return compare_files(store, recipe, ref, {shard.shard for shard in ref.tables["points"].shards}, ["label"])


def fresh(recipe_of: Callable[..., Recipe], folder: Path, *overrides: str) -> dict[str, str]:
    """What the recipe's tables hold where they are built from nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    recipe = recipe_of(*overrides, f"run.store={folder}")
    build(recipe)
    return rows(recipe)


def swap_unseen(path: Path, content: bytes) -> None:
    """Put other bytes in the place of a file, in a way that no look from outside tells."""
    before = path.stat()
    assert len(content) == before.st_size
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# -- what a plan sees


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_a_replaced_file_rebuilds_what_was_made_from_it_and_restored_it_rebuilds_nothing(
    log: Log, recipe_of: Callable[..., Recipe], tmp_path: Path, kind: int
) -> None:
    recipe = recipe_of()
    build(recipe)
    before = rows(recipe)
    assert compared(recipe) == Compared(files=len(log.files()))
    name = log.files_of("night", 1)[kind]
    content = (log.root / name).read_bytes()
    log.replace(name, 1)
    with pytest.raises(StoreError, match=rf"/{name} holds something else than when .* run: make pack RECIPE="):
        compared(recipe)
    changed = build(recipe)
    assert compared(recipe).not_compared == ()
    assert changed.built and all(one.endswith("/night") for one in changed.built)
    assert ("points/night" in changed.built) == (kind == 0)
    assert rows(recipe) == fresh(recipe_of, tmp_path / "fresh") != before
    (log.root / name).write_bytes(content)
    with pytest.raises(StoreError, match=f"/{name} holds something else"):
        compared(recipe)
    restored = build(recipe)
    assert (restored.built, restored.looked) == ([], ["index/night"])
    assert rows(recipe) == before
    assert build(recipe).looked == []


def test_a_plan_is_of_one_moment_and_names_one_ref_whatever_its_split_file_says_later(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    split = tmp_path / "some.txt"
    split.write_text("day\n")
    runner = Runner(recipe_of(f"data.split={split}"))
    before = runner.ref_name
    split.write_text("day\nnight\n")
    assert runner.ref_name == before == f"tiny/{runner.inherited().key}"
    assert Runner(recipe_of(f"data.split={split}")).ref_name != before


def test_no_label_file_and_no_refined_label_is_made_of_a_sweep_that_was_replaced_since(
    log: Log, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = recipe_of("labels.of=target", "refine.of=pseudo", "refine.by=vote")
    build(recipe)
    assert write_labels(recipe, tmp_path / "labels").note == ""
    name = log.files_of("night", 1)[0]
    content = (log.root / name).read_bytes()
    log.replace(name, 1)
    with pytest.raises(StoreError, match=rf"/{name} holds something else than when .* run: make pack"):
        write_labels(recipe, tmp_path / "others")
    with pytest.raises(StoreError, match=rf"/{name} holds something else"):
        refine(recipe, plain_console())
    with pytest.raises(StoreError, match=rf"/{name} holds something else"):
        review(recipe, tmp_path / "review", 1)
    assert not (tmp_path / "others").exists() and not (tmp_path / "review").exists()
    (log.root / name).write_bytes(content)
    assert write_labels(recipe, tmp_path / "labels").kept


def test_a_data_set_that_was_moved_copied_or_touched_is_looked_at_once_and_rebuilds_nothing(
    log: Log, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    build(recipe_of())
    n_files = len(log.files())
    log.root.rename(tmp_path / "moved")
    assert compared(recipe_of()).not_compared == (f"{log.root} is not on this machine",)
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    for place in ("moved", "copied"):
        recipe = recipe_of(f"data.root={tmp_path / place}")
        assert build(recipe).built == []
        assert build(recipe).looked == []
        assert compared(recipe) == Compared(files=n_files)
    (tmp_path / "moved" / log.files()[0]).touch()
    recipe = recipe_of(f"data.root={tmp_path / 'moved'}")
    # what was noted last is how the copies look: all were read, and hold the same
    assert compared(recipe) == Compared(files=n_files, read=n_files)
    touched = build(recipe)
    assert (touched.built, touched.looked) == ([], ["index/day"])
    assert build(recipe).looked == []


def test_a_second_root_with_the_same_tables_and_other_files_has_rows_of_its_own(
    log: Log, recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    build(recipe_of())
    before = rows(recipe_of())
    other = Log(tmp_path / "other").write(seed=5)
    for name in log.files()[:3]:  # frame f0 of scene day is the same in both
        shutil.copyfile(log.root / name, other.root / name)
    there = recipe_of(f"data.root={other.root}")
    build(there)
    assert rows(there) == fresh(recipe_of, tmp_path / "fresh", f"data.root={other.root}")
    assert rows(there)["points/day/f0"] == before["points/day/f0"]
    assert rows(there)["points/day/f1"] != before["points/day/f1"]
    assert build(recipe_of()).built == []
    assert rows(recipe_of()) == before


def test_the_same_data_set_has_the_same_keys_on_every_processor(
    recipe_of: Callable[..., Recipe], tmp_path: Path
) -> None:
    program = (
        "import sys; from pipeline.engine.inline_pool import InlinePool; from pipeline.engine.runner import Runner\n"
        "from manifests.recipe import load_recipe\n"
        "recipe = load_recipe(sys.argv[1], sys.argv[2:])\n"
        "runner = Runner(recipe)\n"
        "assert runner.run(['project'], InlinePool(recipe)) == []\n"
        "print([(n, s.key, s.sha256) for n, t in runner.read_ref().tables.items() for s in t.shards])\n"
    )
    printed = []
    for kind in ("Prescott", "Haswell"):
        command = [sys.executable, "-c", program, str(tmp_path / "tiny.toml"), f"run.store={tmp_path / kind}"]
        done = subprocess.run(
            command, env=os.environ | {"OPENBLAS_CORETYPE": kind}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert len(printed[0]) > 100 and printed[0] == printed[1]


# -- what a worker sees


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_bytes_that_the_index_does_not_know_are_never_kept_and_the_advice_heals(
    log: Log, recipe_of: Callable[..., Recipe], tmp_path: Path, kind: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst case: another file of the same size and times, after the index was made and before it is used."""
    from manifests.storage import places

    monkeypatch.setattr(places, "looks_of", lambda path: (looks_of(path) or "").rpartition(",")[0] or None)
    recipe = recipe_of()
    build(recipe, ["index"])
    path = log.root / log.files_of("night", 1)[kind]
    other = Log(tmp_path / "other").write(seed=3).root / log.files_of("night", 1)[kind]
    swap_unseen(path, other.read_bytes())
    recorder, failures = run(recipe)
    assert recorder.looked == [] and not any(one.endswith("target/night") for one in recorder.built)
    [cause] = {failure.cause.partition(": ")[2] for failure in failures}
    assert f"{path.relative_to(log.root)} was replaced since it was indexed" in cause
    assert "make index RECIPE=... ARGS=--again" in cause
    _, failures = run(recipe, ["index"], again=["index"])
    assert failures == []
    build(recipe)
    assert rows(recipe) == fresh(recipe_of, tmp_path / "fresh")


def test_labels_that_appear_after_the_index_was_made_are_not_read_before_it_is_made_again(
    log: Log, recipe_of: Callable[..., Recipe]
) -> None:
    name = log.files_of("day", 0)[2]
    content = (log.root / name).read_bytes()
    (log.root / name).unlink()
    recipe = recipe_of()
    _, failures = run(recipe, ["label"])
    assert {failure.cause for failure in failures} == {f"label: {name}: No such file or directory"}
    (log.root / name).write_bytes(content)
    assert "label/day" in build(recipe).built


def test_a_file_that_is_written_while_it_is_read_is_no_content(
    log: Log, recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    from manifests.storage import places

    def growing(path: Path) -> str:
        found = sha256_file(path)
        if path.name == "f1.npy" and path.parent.name == "points":
            path.write_bytes(path.read_bytes() + b"more")
        return found

    monkeypatch.setattr(places, "sha256_file", growing)
    _, failures = run(recipe_of(), ["index"])
    assert {failure.cause.partition(" run again")[0] for failure in failures} == {
        "day/points/f1.npy changes while it is read;",
        "night/points/f1.npy changes while it is read;",
    }


# -- what is needed of a table


def test_columns_that_are_known_apart_have_digests_of_their_values(log: Log, recipe_of: Callable[..., Recipe]) -> None:
    recipe = recipe_of()
    build(recipe, ["group"])
    store, ref = Store.open(recipe.run.store), Runner(recipe).read_ref()
    assert ref is not None
    for name in ("index", "segment", "group"):
        [one, other] = ref.tables[name].shards
        stored = column_digests(store.read(name, ref.tables[name].fingerprint, one))
        assert dict(one.columns) == {column: stored[column] for column in STAGES[name].apart}
        assert one.columns["frame_id"] != other.columns["frame_id"] and one.columns["status"]


def test_other_bits_in_columns_that_nobody_needs_rebuild_nothing(
    recipe_of: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of()
    build(recipe)
    halve_segments(monkeypatch, "vector")
    assert run(recipe, ["segment"], again=["segment"])[1] == []
    built = build(recipe).built
    assert sorted(built) == ["pairs/day", "pairs/night"], "superpoints do not depend on vectors"


# -- who is excluded


def test_an_excluded_frame_has_no_say_in_the_rows_of_others_and_only_those_are_built_again(
    log: Log, recipe_of: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "FRAMES_PER_SHARD", 1)
    build(recipe_of())
    before = rows(recipe_of())
    without = recipe_of('data.exclude=["day/f0"]')
    built = build(without).built
    assert sorted(built) == ["target/day+0001", "vote/day+0001"], "its neighbour's, and not what lies beyond its reach"
    mine = {name: value for name, value in rows(without).items() if "/day/" in name}
    # where the data set does not have the frame at all, votes are the same
    shutil.rmtree(log.root / "night")
    description = log.root / "day" / "scene.toml"
    rig, _, *others = description.read_text().split("\n[[frame]]")
    description.write_text("\n[[frame]]".join([rig, *others]))
    assert mine == fresh(recipe_of, tmp_path / "fresh")
    assert any(before[name] != value for name, value in mine.items())


# -- any order of events


EVENTS = ("replace", "restore", "touch", "move", "second root", "exclude", "include")


@pytest.mark.parametrize("seed", range(2))
def test_whatever_happens_to_files_a_run_leaves_what_a_fresh_build_leaves(
    log: Log, recipe_of: Callable[..., Recipe], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "FRAMES_PER_SHARD", 2)
    draw = random.Random(seed)
    logs = [log, Log(tmp_path / "second").write(seed=9)]
    excluded: set[str] = set()
    names = log.files()
    for step in range(6):
        event = draw.choice(EVENTS)
        mine = logs[0]
        if event == "replace":
            mine.replace(draw.choice(names), draw.randrange(2))
        elif event == "restore":
            for name in names:
                mine.replace(name, 0)
        elif event == "touch":
            (mine.root / draw.choice(names)).touch()
        elif event == "move":
            elsewhere = tmp_path / f"moved-{step}"
            mine.root.rename(elsewhere)
            mine.root = elsewhere
        elif event == "second root":
            logs.reverse()
        elif event == "exclude":
            excluded.add(draw.choice(["day/f0", "day/f1", "night/f0"]))
        else:
            excluded.clear()
        listed = ", ".join(f'"{name}"' for name in sorted(excluded))
        overrides = f"data.root={logs[0].root}", f"data.exclude=[{listed}]"
        recipe = recipe_of(*overrides)
        build(recipe)
        assert rows(recipe) == fresh(recipe_of, tmp_path / "fresh", *overrides), f"step {step}: {event}"


@pytest.mark.parametrize("targets", [["pairs"], ["points", "pairs", "target"]])
def test_rows_that_no_stage_makes_are_built_again_by_what_is_advised(
    recipe_of: Callable[..., Recipe], targets: list[str]
) -> None:
    recipe = recipe_of()
    build(recipe)
    before, store = rows(recipe), Store.open(recipe.run.store)
    ref = Runner(recipe).read_ref()
    assert ref is not None
    table = ref.tables["pairs"]
    made = store.every(Pairs, table.fingerprint, table.shards[:1])
    wrong = [replace(row, point=np.full_like(row.point, -1)) for row in made]
    shard = store.write("pairs", table.fingerprint, table.shards[0].shard, table.shards[0].key, to_arrow(wrong, Pairs))
    shards = (shard, *table.shards[1:])
    store.write_ref(ref_of(recipe), replace(ref, tables={**ref.tables, "pairs": replace(table, shards=shards)}))
    sweep = store.every(Points, ref.tables["points"].fingerprint, ref.tables["points"].shards[:1])[0]
    with pytest.raises(ValueError, match=r"`point` holds -1 in row .*run: make pairs RECIPE=... ARGS=--again"):
        checked_pairs(sweep, wrong[0], None)
    assert build(recipe, targets).built == [] and rows(recipe) != before, "the shard counts: nothing is built"
    assert run(recipe, targets, again=targets)[1] == [] and rows(recipe) == before
