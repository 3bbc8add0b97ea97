"""Reuse must never lie: whatever happens to recipes, files and stores, a reader gets what a fresh build holds.

A state machine does what people do, in any order: edit a recipe, override a setting, lay a local file over it and take
it away, replace and restore files, exclude a frame, work with a namesake over another data root in the same store and
the same folder of runs, build, kill a build, train, kill a training and go on, predict, refine, write label files,
collect garbage, flip a bit and heal, hand tables on. After every step each recipe is asked for the rows that a trainer
would read, for its student's predictions and for its refined labels. They must be those of a fresh build, or training,
in an empty store from the files as they were when the tables were made, or there must be a reason why there are none.
(A file replaced since then is the next build's to notice: a trainer needs no data set.)
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from rich.console import Console

from manifests.asked import ref_of, tables_of
from manifests.config import ConfigError
from manifests.fingerprint import digest
from manifests.labels import refined_of, students_predictions
from manifests.recipe import Recipe, load_recipe
from manifests.sections.labels import LabelsConfig, LabelTable
from manifests.storage.archive import pack, unpack
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.store import Store
from manifests.storage.verify import damaged_shards, heal, look_over
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Failed
from manifests.tables.registry import FRAME_TABLES
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.keys import digest_table
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import Outcome, Queue, Task
from pipeline.exchange.labels import write_labels
from tests.pipeline.test_content import Log
from trainer.data.tables import FrameRow, Tables
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.inference.refined_table import refine
from trainer.loop import train as training
from trainer.objectives.registry import READS

TARGETS = ("points", "pairs", "target", "label")
TASKS = ("pretrain", "distill", "supervised")
OVERRIDE = "group.min_points=2"
LOCAL = ("", "[group]\nmin_points = 3\n", "[vote]\nown = 0.25\n", "[distill]\nseed = 5\n")
REFUSED = (StoreError, ConfigError, TrainerError)
QUIET = Console(quiet=True)

LEARNT = """
[voxels]
size_m = 0.8
angle_deg = 8
[network]
name = "minkunet_small"
[distill]
init = ""
split = "all"
epochs = 2
batch_size = 2
[predict]
split = "all"
[refine]
of = "pseudo"
"""
"""How the smallest student learns within a second."""

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


def rows_of_table(store: Store, table: TableRef) -> dict[str, str]:
    """Return a digest of every row of a table of the trainer, by frame."""
    kind = FRAME_TABLES[table.stage]
    rows = (row for shard in table.shards for row in store.records(kind, table.fingerprint, shard))
    return {
        row.frame_id: f"failed: {row.reason}" if isinstance(row, Failed) else digest_table(to_arrow([row], kind))
        for row in rows
    }


def predictions(recipe: Recipe) -> dict[str, str]:
    """Return what the student that a recipe asks for predicted; raises what whoever shows it would."""
    store = Store.open(recipe.run.store)
    points = tables_of(store, recipe, ["points"]).table("points")
    return rows_of_table(store, students_predictions(store, recipe, points)[0])


def refined(recipe: Recipe) -> dict[str, str]:
    """Return the refined labels that a recipe asks for; raises what whoever writes them as files would."""
    store = Store.open(recipe.run.store)
    return rows_of_table(store, refined_of(store, recipe, tables_of(store, recipe, ["index", "points"]))[0])


ANSWERS: dict[str, Callable[[Recipe], dict[str, str]]] = {"predictions": predictions, "refined": refined}


def label_files(recipe: Recipe, of: LabelTable, folder: Path) -> dict[str, bytes]:
    """Write labels as files, and return what is in them by name; raises what `make labels` would."""
    write_labels(replace(recipe, labels=LabelsConfig(of=of)), folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.npy"))}


class Fresh:
    """What a recipe gives that is built from nothing in a store of its own; taught and refined where that is asked."""

    def __init__(self, recipe: Recipe) -> None:
        assert Runner(recipe).run(TARGETS, InlinePool(recipe)) == []
        self.recipe = recipe
        self.rows = {task: rows_to_train_on(recipe, task) for task in TASKS}

    @cached_property
    def predictions(self) -> dict[str, str]:
        training.train(self.recipe, "distill", QUIET)
        predict(self.recipe, QUIET)
        return predictions(self.recipe)

    @cached_property
    def refined(self) -> dict[str, str]:
        refine(self.recipe, QUIET)
        return refined(self.recipe)

    def label_files(self, of: LabelTable) -> dict[str, bytes]:
        assert {"refine": lambda: self.refined, "predict": lambda: self.predictions}.get(of, lambda: True)()
        return label_files(self.recipe, of, Path(self.recipe.run.store).parent / of)


@contextlib.contextmanager
def killed_after_an_epoch(killed: bool) -> Iterator[None]:
    """Interrupt a training when its first epoch has ended, or do not."""

    def end(*words: object) -> None:
        finish(*words)  # type: ignore[arg-type]
        if killed:
            raise KeyboardInterrupt

    finish = training.finish_epoch
    with mock.patch.object(training, "finish_epoch", end):
        yield


class Reuse(RuleBasedStateMachine):
    """One store, two recipes of one name over two data roots, and everything that may happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="reuse-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT")))
        self.logs = {"a": Log(self.folder / "logs").write(), "b": Log(self.folder / "second").write(seed=9)}
        self.disk = {"a": dict.fromkeys(self.logs["a"].files(), 0), "b": dict.fromkeys(self.logs["b"].files(), 9)}
        self.values = {name: {"labels": "group", "own": 1.0, "min_points": 1, "exclude": ""} for name in "ab"}
        self.made: dict[str, list[tuple[str, Disk]]] = {}  # by ref: what its tables may have been made from
        self.built: dict[tuple[str, Disk], Fresh] = {}
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
            f'[run]\nstore = "{self.folder / "store"}"\nruns = "{self.folder / "runs"}"\ndevice = "cpu"\n'
            f"loader_workers = 0\nprogress = false\n[group]\nmin_points = {values['min_points']}\n"
            '[teacher]\nname = "oracle"\nsource = "points"\ndims = 8\nslic_px = 8.0\n[segment]\nscale = 1.0\n'
            f'[target]\nlabels = "{values["labels"]}"\n[vote]\nreach = 1\nvoxel_m = 4.0\nvoxel_height_m = 4.0\n'
            f"through_m = 50.0\nown = {values['own']}\n{LEARNT}"
        )

    def recipe(self, name: str, *overrides: str) -> Recipe:
        return load_recipe(self.folder / name / "tiny.toml", overrides)

    def snapshot(self, name: str) -> Disk:
        return tuple(sorted(self.disk[name].items()))

    def fresh(self, recipe: Recipe, name: str, disk: Disk) -> Fresh:
        """Return what a build of a recipe from nothing, over the files of a data root as they were, gives."""
        local = self.folder / name / "tiny.local.toml"
        text = (self.folder / name / "tiny.toml").read_text() + (local.read_text() if local.exists() else "")
        key = text + repr(recipe.overrides), disk
        if key not in self.built:
            place = self.folder / f"fresh-{len(self.built)}"
            log = Log(place / "logs").write()
            for file, seed in disk:
                log.replace(file, seed)
            elsewhere = (f"data.root={log.root}", f"run.store={place / 'store'}", f"run.runs={place / 'runs'}")
            self.built[key] = Fresh(self.recipe(name, *recipe.overrides, *elsewhere))
        return self.built[key]

    def possible(self, recipe: Recipe, stages: list[str]) -> list[Fresh]:
        """Return what builds from nothing give of the files that a recipe's tables may have been made from."""
        ref = tables_of(Store.open(recipe.run.store), recipe, stages)
        return [self.fresh(recipe, name, disk) for name, disk in self.made[f"{ref.recipe}/{ref.key}"]]

    # -- what people do

    @initialize()
    def begin(self) -> None:
        self.build("a", override=False)
        self.teach("a", killed=False, fresh=False)
        self.refine_labels("a")

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

    @rule(name=st.sampled_from("ab"), text=st.sampled_from(LOCAL))
    def lay_a_local_file_over_it(self, name: str, text: str) -> None:
        path = self.folder / name / "tiny.local.toml"
        path.unlink(missing_ok=True)
        if text:
            path.write_text(text)

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

    @precondition(lambda self: self.made)
    @rule(name=st.sampled_from("ab"), killed=st.booleans(), fresh=st.booleans())
    def teach(self, name: str, killed: bool, fresh: bool) -> None:
        recipe = self.recipe(name)
        try:
            with killed_after_an_epoch(killed):
                training.train(recipe, "distill", QUIET, fresh=fresh)
            predict(recipe, QUIET)
        except REFUSED as error:
            assert str(error).strip(), "a refusal gives a reason"
        except KeyboardInterrupt:
            assert killed
        else:
            assert predictions(recipe), "what was just predicted is there to be shown"

    @precondition(lambda self: self.made)
    @rule(name=st.sampled_from("ab"))
    def refine_labels(self, name: str) -> None:
        recipe = self.recipe(name)
        try:
            refine(recipe, QUIET)
        except REFUSED as error:
            assert str(error).strip(), "a refusal gives a reason"
        else:
            assert refined(recipe), "what was just refined is there to be read"

    @precondition(lambda self: self.made)
    @rule(name=st.sampled_from("ab"), of=st.sampled_from(["refine", "target", "predict"]))
    def write_label_files(self, name: str, of: LabelTable) -> None:
        recipe = self.recipe(name)
        try:
            written = label_files(recipe, of, self.folder / "labels" / of)
        except REFUSED as error:
            assert str(error).strip(), "a refusal gives a reason"
        else:
            assert written and any(written == one.label_files(of) for one in self.possible(recipe, ["index", "points"]))

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
        found = look_over(store, None)  # a manifest that was dropped is missing until the next run writes it
        left = [*found.damages, *damaged_shards(store, found, lambda size: None)]
        assert [one for one in left if one.what != "is missing"] == []

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
        """Return the refs of the recipes whose rows can all be read now, and the answers that can be shown."""
        found = set()
        for name in "ab":
            for overrides in ([], [OVERRIDE]):
                recipe = self.recipe(name, *overrides)
                for what, read in ANSWERS.items():
                    with contextlib.suppress(*REFUSED):
                        found.add(f"{what} of {ref_of(recipe)}: {digest(read(recipe))}")
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
                    except REFUSED as error:
                        assert str(error).strip(), "a refusal gives a reason"
                        continue
                    builds = self.possible(recipe, list(READS[task]))  # type: ignore[index]
                    assert any(rows == one.rows[task] for one in builds), (
                        f"recipe {name} {overrides}: {task} reads rows that no build of it gives"
                    )
                for what, read in ANSWERS.items():
                    try:
                        answers = read(recipe)
                    except REFUSED as error:
                        assert str(error).strip(), "a refusal gives a reason"
                        continue
                    assert any(answers == getattr(one, what) for one in self.possible(recipe, ["index", "points"])), (
                        f"recipe {name} {overrides}: {what} are shown that no run of it gives"
                    )


Reuse.TestCase.settings = settings(
    max_examples=2,
    stateful_step_count=9,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestReuse = Reuse.TestCase
