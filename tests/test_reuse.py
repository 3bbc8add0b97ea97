"""Reuse must never lie: whatever happens to recipes, files and stores, a trainer reads what a fresh build holds.

A state machine does what people do, in any order: edit a recipe, override a setting, replace and restore files, exclude
a frame, work with a namesake over another data root in the same store, build, kill a build, collect garbage, flip a bit
and heal, hand tables on. After every step each recipe is asked for the rows that a trainer would read. They must be
those of a fresh build in an empty store from the files as they were when the tables were made, or there must be a
reason why there are none. (A file replaced since then is the next build's to notice: a trainer needs no data set.)
"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from manifests.asked import ref_of, tables_of
from manifests.config import ConfigError
from manifests.fingerprint import digest
from manifests.recipe import Recipe, load_recipe
from manifests.storage.archive import pack, unpack
from manifests.storage.errors import StoreError
from manifests.storage.store import Store
from manifests.storage.verify import damaged_shards, heal, look_over
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Failed
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.keys import digest_table
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, Queue, Task
from tests.pipeline.test_content import Log
from trainer.data.tables import FrameRow, Tables
from trainer.objectives.registry import READS

TARGETS = ("points", "pairs", "target", "label")
TASKS = ("pretrain", "distill", "supervised")
OVERRIDE = "group.min_points=2"

Disk = tuple[tuple[str, int], ...]
"""Which content every file of a data root has."""


class Killed(InlinePool):
    """A pool that is killed after some shards."""

    def __init__(self, recipe: Recipe, after: int) -> None:
        super().__init__(recipe)
        self._after = after

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        for number, done in enumerate(super().run(queue)):
            if number == self._after:
                raise KeyboardInterrupt
            yield done


def rows_to_train_on(recipe: Recipe, task: str) -> dict[str, str]:
    """Return a digest of every row that a task would read, by frame; raises what the trainer would."""
    store = Store.open(recipe.run.store)
    stages = [stage for stage in READS[task] if stage != "text"]  # type: ignore[index]
    ref = tables_of(store, recipe, READS[task])  # type: ignore[index]
    tables = Tables(store, ref, stages)
    found = {}
    for shard in tables.shards:
        for number, states in enumerate(tables.states(shard)):
            name = states[0].frame_id
            if name not in ref.excluded and not any(isinstance(state, Failed) for state in states):
                rows = tables.rows(FrameRow(shard, number, name))
                found[name] = digest([digest_table(to_arrow([row], type(row))) for row in rows])
    return found


class Reuse(RuleBasedStateMachine):
    """One store, two recipes of one name over two data roots, and everything that may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="reuse-"))
        self.logs = {"a": Log(self.folder / "logs").write(), "b": Log(self.folder / "second").write(seed=9)}
        self.disk = {"a": dict.fromkeys(self.logs["a"].files(), 0), "b": dict.fromkeys(self.logs["b"].files(), 9)}
        self.values = {name: {"labels": "group", "own": 1.0, "min_points": 1, "exclude": ""} for name in "ab"}
        self.made: dict[str, list[tuple[str, Disk]]] = {}  # by ref: what its tables may have been made from
        self.fresh_rows: dict[tuple[str, Disk, str], dict[str, str]] = {}
        for name in "ab":
            self.write_recipe(name)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write_recipe(self, name: str) -> None:
        values = self.values[name]
        path = self.folder / name / "tiny.toml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'[data]\ndataset = "folder"\nroot = "{self.logs[name].root}"\nexclude = [{values["exclude"]}]\n'
            f'[run]\nstore = "{self.folder / "store"}"\n[group]\nmin_points = {values["min_points"]}\n'
            '[teacher]\nname = "oracle"\nsource = "points"\ndims = 8\nslic_px = 8.0\n[segment]\nscale = 1.0\n'
            f'[target]\nlabels = "{values["labels"]}"\n[vote]\nreach = 1\nvoxel_m = 4.0\nvoxel_height_m = 4.0\n'
            f"through_m = 50.0\nown = {values['own']}\n"
        )

    def recipe(self, name: str, *overrides: str) -> Recipe:
        return load_recipe(self.folder / name / "tiny.toml", overrides)

    def snapshot(self, name: str) -> Disk:
        return tuple(sorted(self.disk[name].items()))

    def fresh(self, recipe: Recipe, name: str, disk: Disk, task: str) -> dict[str, str]:
        """Return what a build of a recipe from nothing gives a task to read."""
        text = (self.folder / name / "tiny.toml").read_text() + repr(recipe.overrides)
        if (text, disk, task) not in self.fresh_rows:
            place = self.folder / "fresh"
            shutil.rmtree(place, ignore_errors=True)
            log = Log(place / "logs").write()
            for file, seed in disk:
                log.replace(file, seed)
            alone = self.recipe(name, *recipe.overrides, f"data.root={log.root}", f"run.store={place / 'store'}")
            assert Runner(alone).run(TARGETS, InlinePool(alone)) == []
            for each in TASKS:
                self.fresh_rows[text, disk, each] = rows_to_train_on(alone, each)
        return self.fresh_rows[text, disk, task]

    # -- what people do

    @rule(
        name=st.sampled_from("ab"),
        change=st.sampled_from(
            [("labels", "vote"), ("labels", "group"), ("own", 0.5), ("own", 1.0), ("min_points", 2), ("min_points", 1)]
        ),
    )
    def edit(self, name: str, change: tuple[str, object]) -> None:
        self.values[name][change[0]] = change[1]
        self.write_recipe(name)

    @rule(name=st.sampled_from("ab"), frame=st.sampled_from(["", '"day/f0"', '"night/f1"']))
    def exclude(self, name: str, frame: str) -> None:
        self.values[name]["exclude"] = frame
        self.write_recipe(name)

    @rule(name=st.sampled_from("ab"), number=st.integers(0, 14), seed=st.sampled_from([0, 9, 3]))
    def replace_or_restore(self, name: str, number: int, seed: int) -> None:
        file = self.logs[name].files()[number]
        self.logs[name].replace(file, seed)
        self.disk[name][file] = seed

    @rule(name=st.sampled_from("ab"), override=st.booleans())
    def build(self, name: str, override: bool) -> None:
        recipe = self.recipe(name, *([OVERRIDE] if override else []))
        assert Runner(recipe).run(TARGETS, InlinePool(recipe)) == []
        self.made[ref_of(recipe)] = [(name, self.snapshot(name))]
        for task in TASKS:
            assert rows_to_train_on(recipe, task), "what was just built is there to be read"

    @rule(name=st.sampled_from("ab"), after=st.integers(0, 12))
    def build_and_be_killed(self, name: str, after: int) -> None:
        recipe = self.recipe(name)
        with contextlib.suppress(KeyboardInterrupt):
            Runner(recipe).run(TARGETS, Killed(recipe, after))
        self.made.setdefault(ref_of(recipe), []).append((name, self.snapshot(name)))

    @precondition(lambda self: (self.folder / "store").exists())
    @rule()
    def collect_garbage(self) -> None:
        before = self.readable()
        store = Store.open(self.folder / "store")
        store.delete(path for path, _ in store.unreferenced(0))
        assert self.readable() == before, "garbage is what nobody could read"

    @precondition(lambda self: self.made)
    @rule(seed=st.integers(0, 1 << 30))
    def flip_a_bit_and_heal(self, seed: int) -> None:
        draw, store = random.Random(seed), Store.open(self.folder / "store")
        files = [path for path in sorted((self.folder / "store").rglob("*")) if path.is_file() and path.stat().st_size]
        garbage = {path for path, _ in store.unreferenced(0)}
        kept = [path for path in files if str(path.relative_to(self.folder / "store")) not in garbage]
        path = draw.choice([path for path in kept if "seen" not in path.parts])
        content = bytearray(path.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        self.what_is_read_is_right()
        found = look_over(store, None)
        damages = [*found.damages, *damaged_shards(store, found, lambda size: None)]
        assert damages, f"{path} was changed, and nobody noticed"
        heal(store, damages)
        found = look_over(store, None)
        assert [*found.damages, *damaged_shards(store, found, lambda size: None)] == []

    @precondition(lambda self: self.made)
    @rule(name=st.sampled_from("ab"))
    def hand_tables_on(self, name: str) -> None:
        recipe = self.recipe(name)
        if ref_of(recipe) not in self.readable():
            return
        there = self.folder / "there"
        shutil.rmtree(there, ignore_errors=True)
        (self.folder / "out.tar").unlink(missing_ok=True)
        pack(Store.open(recipe.run.store), ref_of(recipe), TARGETS, "For tests only.\n", self.folder / "out.tar")
        unpack(self.folder / "out.tar", Store.open(there))
        received = self.recipe(name, f"run.store={there}")
        for task in TASKS:
            assert rows_to_train_on(received, task) == rows_to_train_on(recipe, task)

    # -- what must hold after each of it

    def readable(self) -> set[str]:
        """Return the refs of the recipes whose rows can all be read now."""
        found = set()
        for name in "ab":
            for overrides in ([], [OVERRIDE]):
                recipe = self.recipe(name, *overrides)
                try:
                    for task in TASKS:
                        rows_to_train_on(recipe, task)
                except (StoreError, ConfigError):
                    continue
                if Store.open(recipe.run.store).read_ref(ref_of(recipe)):
                    found.add(ref_of(recipe))
        return found

    @invariant()
    def what_is_read_is_right(self) -> None:
        for name in "ab":
            for overrides in ([], [OVERRIDE]):
                recipe = self.recipe(name, *overrides)
                for task in TASKS:
                    try:
                        rows = rows_to_train_on(recipe, task)
                        ref = tables_of(Store.open(recipe.run.store), recipe, READS[task])  # type: ignore[index]
                    except (StoreError, ConfigError) as error:
                        assert str(error).strip(), "a refusal gives a reason"
                        continue
                    possible = self.made[f"{ref.recipe}/{ref.key}"]
                    assert any(rows == self.fresh(recipe, where, disk, task) for where, disk in possible), (
                        f"recipe {name} {overrides}: {task} reads rows that no build of it gives"
                    )


Reuse.TestCase.settings = settings(
    max_examples=3,
    stateful_step_count=9,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestReuse = Reuse.TestCase
