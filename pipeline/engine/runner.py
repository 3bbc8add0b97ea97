"""Plans which shards are missing and why, has them built, and gathers what failed. Knows nothing of Ray."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from itertools import groupby, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_limits

from manifests.config import ConfigError
from manifests.fingerprint import DIGITS, canonical, differences, digest
from manifests.rows import Row, failed_row
from manifests.schema import signature
from manifests.splits import load_split
from manifests.storage.store import Manifest, Ref, ShardFile, Store, StoreError, TableRef, is_full, scene_of, shard_name
from pipeline.datasets import open_dataset
from pipeline.engine.listing import ListedFrames, Spool
from pipeline.frame import Frame, FrameError, frame_of, frame_row
from pipeline.recipe import Recipe
from pipeline.stages import STAGES, with_upstream
from pipeline.stages.base import FrameInput, Stage, StreamFunction

FRAMES_PER_SHARD = 64
MANY_FAILURES = 200  # how many are kept in a manifest, and told at the end of a run
ALL = "all"  # the one shard of a table that all frames share


@dataclass(frozen=True)
class Task:
    """One shard to build: what a worker needs to know. `frames` is the data set's own listing, for `index` only.

    `before` and `after` are the shards next to it in its scene, of the tables that a window is needed of.
    """

    stage: str
    fingerprint: str
    shard: str
    key: str
    n_frames: int
    frames: Sequence[Frame] = ()
    rows: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)
    broadcast: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)
    before: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)
    after: Mapping[str, tuple[str, ShardFile]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Something that could not be built. `frame_id` is None where the whole shard failed."""

    stage: str
    shard: str
    frame_id: str | None
    cause: str


@dataclass(frozen=True)
class Outcome:
    """What came of a task: the committed shard or why there is none; the device and batch that networks ran with.

    `seconds` is how long its worker was at it. `disk_full`: for want of space, which another machine may have.
    """

    shard: ShardFile | None
    failures: tuple[Failure, ...] = ()
    device: str = "cpu"
    batch: int | None = None
    seconds: float = 0.0
    disk_full: bool = False


@dataclass(frozen=True)
class Work:
    """What a run did for one stage: how many frames, and how long each worker was at it if all had the same share."""

    frames: int
    seconds: float
    workers: int


@dataclass(frozen=True)
class ShardPlan:
    """One shard of a stage: built already (`done`), to be built (`task`), or not to be planned yet (neither)."""

    shard: str
    n_frames: int
    done: ShardFile | None
    task: Task | None
    reason: str


@dataclass(frozen=True)
class StagePlan:
    """What a run would do for one stage."""

    stage: Stage
    fingerprint: str
    identity: Mapping[str, Any]
    shards: tuple[ShardPlan, ...]
    changes: tuple[str, ...]
    kilobytes_per_frame: float

    @cached_property
    def done(self) -> dict[str, ShardFile]:
        """The built shards by name."""
        return {shard.shard: shard.done for shard in self.shards if shard.done}

    @property
    def complete(self) -> bool:
        """Whether every shard is built."""
        return all(shard.done for shard in self.shards)

    @property
    def gigabytes_to_write(self) -> float:
        """Estimated size of what is missing, in GB."""
        return sum(shard.n_frames for shard in self.shards if not shard.done) * self.kilobytes_per_frame / 1e6


class Table(Protocol):
    """What is built of a stage, as far as stages that need it want to know."""

    @property
    def fingerprint(self) -> str:
        """The name of its folder."""

    @property
    def done(self) -> Mapping[str, ShardFile]:
        """The built shards by name."""


class Queue:
    """Tasks that can be built now, by stage; more are put in while others are under way.

    `taken` is told of every task that somebody takes.
    """

    def __init__(self, tasks: Iterable[Task] = (), taken: Callable[[Task], None] = lambda task: None) -> None:
        self._tasks: dict[str, deque[Task]] = {}
        self._taken = taken
        for task in tasks:
            self.put(task)

    def __len__(self) -> int:
        return sum(map(len, self._tasks.values()))

    def put(self, task: Task) -> None:
        """Add a task behind the others of its stage."""
        self._tasks.setdefault(task.stage, deque()).append(task)

    def stages(self) -> list[str]:
        """Return the stages that have tasks here, in the order data flows."""
        return [name for name in STAGES if self._tasks.get(name)]

    def count(self, stages: Iterable[str]) -> int:
        """Return how many tasks of these stages are here."""
        return sum(len(self._tasks.get(name, ())) for name in stages)

    def take(self, stage: str) -> Task:
        """Remove and return the first task of a stage that has some."""
        task = self._tasks[stage].popleft()
        self._taken(task)
        return task


class Pool(Protocol):
    """A way to have tasks done by workers, those of several stages side by side if it can."""

    def run(self, queue: Queue) -> Iterator[tuple[Task, Outcome]]:
        """Yield every task with its outcome, as they come, until the queue is empty and nothing is under way.

        The caller may put tasks in until it asks for the next outcome. Raises ConfigError where a worker finds the
        recipe at fault, after the outcomes of what was under way.
        """


class Watcher(Protocol):
    """Whoever wants to follow a run: the progress display, or a test."""

    def stage_started(self, plan: StagePlan, n_frames: int) -> None:
        """A stage begins to build shards with `n_frames` frames in all."""

    def shard_finished(self, task: Task, outcome: Outcome) -> None:
        """One shard was built or failed."""

    def stage_finished(self, plan: StagePlan) -> None:
        """A stage is done."""


@dataclass(frozen=True)
class Found:
    """What the store has of a stage's table, and what else its shards are planned by.

    `kept` are shards of the tables that the stage otherwise makes on its way. `again`: no built shard counts.
    """

    stage: Stage
    fingerprint: str
    identity: Mapping[str, Any]
    committed: Mapping[tuple[str, str], ShardFile]
    kept: Mapping[str, Mapping[tuple[str, str], ShardFile]]
    again: bool


class Worker:
    """Builds shards one after the other; loads what a stage needs once, and lets go of it when the stage changes."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._stage: Stage | None = None
        self._store = Store.open(recipe.run.store)
        self._excluded = frozenset(recipe.data.exclude)
        self._function: StreamFunction | None = None
        self._broadcast: dict[str, tuple[str, list[dict[str, Any]]]] = {}

    def run(self, task: Task) -> Outcome:
        """Build and commit one shard; failures become part of the outcome.

        Raises ConfigError alone: weights that are not there would fail every shard alike. All frames are tried even
        after one has failed, so that a run lists every bad frame at once.
        """
        if self._stage is None or self._stage.name != task.stage:
            self._stage, self._function, self._broadcast = STAGES[task.stage], None, {}
        begun = time.monotonic()
        try:
            # one BLAS thread: workers are what runs in parallel, and the bits must not depend on the machine
            with threadpool_limits(1):
                build = self._build_table if self._stage.build else self._build_frames
                outcome = build(task, self._stage)
        except ConfigError:
            raise
        except Exception as error:  # a worker must outlive any shard; the cause is shown in the table of failures
            failure = Failure(task.stage, task.shard, None, cause_of(error))
            outcome = Outcome(None, (failure,), disk_full=is_full(error))
        return replace(outcome, seconds=time.monotonic() - begun)

    def _build_table(self, task: Task, stage: Stage) -> Outcome:
        assert stage.build is not None
        rows = stage.build(self._recipe)
        with self._store.writer(task.stage, task.fingerprint, task.shard, task.key, stage.schema) as writer:
            for row in rows:
                writer.append(row)
            return Outcome(writer.commit(), device=self._device(stage))

    def _device(self, stage: Stage) -> str:
        return "cpu" if stage.gpus(self._recipe) is None else device_name(self._recipe)

    def _build_frames(self, task: Task, stage: Stage) -> Outcome:
        if self._function is None:
            self._function = stage.open(self._recipe)
        failures: list[Failure] = []
        with self._store.writer(task.stage, task.fingerprint, task.shard, task.key, stage.schema) as writer:
            for row in self._rows(task, stage, self._function):
                if row["status"] == "failed":
                    if row["frame_id"] not in self._excluded:
                        failures.append(Failure(task.stage, task.shard, row["frame_id"], row["reason"]))
                        continue
                    writer.append(row)
                else:
                    writer.append(row, stage.count(row))
            if failures:
                return Outcome(None, tuple(failures))
            return Outcome(writer.commit(), device=self._device(stage), batch=self._function.batch)

    def _rows(self, task: Task, stage: Stage, function: StreamFunction) -> Iterator[dict[str, Any]]:
        """Yield the rows of a task in order; those of frames that failed before, and of those that fail now, say so."""
        broadcast = {name: self._broadcast_rows(name, *source) for name, source in task.broadcast.items()}
        needs = stage.needs(self._recipe)
        columns = {need.table: need.read for need in needs}
        reach = max((need.reach for need in needs if need.how == "window"), default=0)
        here = ShardInputs(self._store, task.rows, columns, task.frames, broadcast)
        before, after = (
            ShardInputs(self._store, tables, columns, (), broadcast) for tables in (task.before, task.after)
        )
        waiting: deque[dict[str, Any] | str] = deque()  # rows of frames that failed before, ids of those under way

        def inputs() -> Iterator[FrameInput]:
            near: dict[int, FrameInput | dict[str, Any]] = {}  # by position in this shard, below 0 in the one before
            first, stop = -min(reach, before.n_frames), task.n_frames + min(reach, after.n_frames)
            for position in range(task.n_frames):
                for other in range(max(position - reach, first), min(position + reach + 1, stop)):
                    if other in near:
                        continue
                    if other < 0:
                        near[other] = before.read(before.n_frames + other)
                    elif other < task.n_frames:
                        near[other] = here.read(other)
                    else:
                        near[other] = after.read(other - task.n_frames)
                near.pop(position - reach - 1, None)
                one = near[position]
                if isinstance(one, dict):
                    waiting.append(one)
                    continue
                waiting.append(one.frame.frame_id)
                others = sorted(other for other in near if other != position)
                around = tuple(item for other in others if isinstance(item := near[other], FrameInput))
                yield replace(one, around=around) if reach else one

        for made in function(inputs()):
            while isinstance(row := waiting.popleft(), dict):
                yield row
            if isinstance(made, Exception):
                yield failed_row(row, f"{task.stage}: {cause_of(made)}")
            else:
                yield {"frame_id": row, "status": "ok", "reason": None, **made}
        for row in waiting:
            assert isinstance(row, dict), "a stage made fewer rows than there are frames"
            yield row

    def _broadcast_rows(self, name: str, fingerprint: str, shard: ShardFile) -> list[Row]:
        if name not in self._broadcast or self._broadcast[name][0] != shard.key:
            self._broadcast[name] = shard.key, self._store.rows(name, fingerprint, shard)
        return list(self._broadcast[name][1])


class ShardInputs:
    """The rows that one shard of a scene has in some tables, frame by frame; without tables it has no frames."""

    def __init__(
        self,
        store: Store,
        tables: Mapping[str, tuple[str, ShardFile]],
        columns: Mapping[str, tuple[str, ...] | None],
        frames: Sequence[Frame],
        broadcast: Mapping[str, list[Row]],
    ) -> None:
        """`columns` are those to read of a table; `frames` stand for table `index` while that is being made."""
        self._readers = {name: store.open_shard(name, *source) for name, source in tables.items()}
        self._columns, self._frames, self._broadcast = columns, tuple(frames), broadcast
        self.n_frames = tables["index"][1].rows if tables else len(frames)

    def read(self, position: int) -> FrameInput | dict[str, Any]:
        """Return a frame with its rows, or the failed row of one that failed before.

        Raises StoreError if a shard is damaged, or if its rows are those of other frames.
        """
        rows = {name: reader.row(position, self._columns.get(name)) for name, reader in self._readers.items()}
        frame_id = self._frames[position].frame_id if self._frames else str(rows["index"]["frame_id"])
        failed = None
        for name, row in rows.items():
            if row["frame_id"] != frame_id:
                raise StoreError(f"row {position} of `{name}` is frame {row['frame_id']}, expected {frame_id}")
            failed = failed or (row["reason"] if row["status"] == "failed" else None)
        if failed is not None:
            return failed_row(frame_id, failed)
        frame = self._frames[position] if self._frames else frame_of(rows["index"])
        return FrameInput(frame, rows, self._broadcast)


class Runner:
    """Plans and builds the tables of one recipe."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.store = Store.open(recipe.run.store)
        self._spool = Spool()  # frames are kept on disk: there may be many
        self._listing: dict[str, ListedFrames] | None = None
        self._index_digests: dict[tuple[str, tuple[str, ...]], str] = {}

    # -- planning -----------------------------------------------------------------------------------------------------

    def listing(self) -> dict[str, ListedFrames]:
        """Return the frames of the recipe's split by shard: one shard a scene, long scenes cut every 64 frames.

        Raises ConfigError for an unknown data set or version, an empty split, or an excluded frame that does not exist.
        """
        if self._listing is None:
            data = self.recipe.data
            scenes: dict[str, list[ListedFrames]] = {}
            unknown = set(data.exclude)
            for scene, group in groupby(open_dataset(data).frames(), key=lambda frame: frame.scene):
                assert scene not in scenes, f"data set {data.dataset} lists scene {scene} in two pieces"
                frames = list(group)
                unknown.difference_update(frame.frame_id for frame in frames)
                starts = range(0, len(frames), FRAMES_PER_SHARD)
                scenes[scene] = [self._spool.add(frames[start : start + FRAMES_PER_SHARD]) for start in starts]
            try:
                chosen = load_split(data.split, data.dataset, tuple(scenes))
            except (ValueError, OSError) as error:
                raise ConfigError(f"data.split: {error}") from None
            for frame_id in data.exclude:
                if frame_id in unknown:
                    raise ConfigError(f"data.exclude names frame {frame_id}, which the data set does not have")
            self._listing = {}
            for scene in chosen:
                for number, part in enumerate(scenes[scene]):
                    start = number * FRAMES_PER_SHARD if len(scenes[scene]) > 1 else None
                    self._listing[shard_name(scene, start)] = part
        return self._listing

    def plan(self, targets: Sequence[str]) -> list[StagePlan]:
        """Return what a run would do, stage by stage, for the named stages and all that they need."""
        plans: dict[str, StagePlan] = {}
        for stage in with_upstream(tuple(targets), self.recipe):
            plans[stage.name] = self._plan_stage(stage, plans)
        return list(plans.values())

    def identity(self, stage: Stage) -> dict[str, Any]:
        """Return the readable identity of a stage's table; its digest names the folder."""
        needs = stage.needs(self.recipe)
        return {
            "stage": stage.name,
            "version": stage.version,
            "columns": signature(stage.schema),
            "settings": dict(stage.settings(self.recipe)),
            "needs": {need.table: digest(self.identity(STAGES[need.table])) for need in needs},
        }

    def _plan_stage(self, stage: Stage, upstream: Mapping[str, Table]) -> StagePlan:
        found = self._look(stage, again=False)
        shards = tuple(self._plan_shard(found, shard, upstream) for shard in self._shards_of(stage))
        changes = () if found.committed else tuple(self._changes(stage, found.identity))
        size = stage.kilobytes_per_frame(self.recipe)
        return StagePlan(stage, found.fingerprint, found.identity, shards, changes, size)

    def _shards_of(self, stage: Stage) -> Mapping[str, Sequence[Frame]]:
        """Return the frames of a stage by shard."""
        return {ALL: ()} if stage.build else self.listing()

    def _look(self, stage: Stage, again: bool) -> Found:
        """Return what the store has of a stage's table; raises ConfigError where the data set cannot have it."""
        sentence = stage.refuse(self.recipe, (frame for frames in self.listing().values() for frame in frames))
        if sentence:
            raise ConfigError(sentence)
        identity = self.identity(stage)
        fused = [STAGES[need.table] for need in stage.needs(self.recipe) if need.how == "fused"]
        kept = {table.name: self.store.shards(table.name, digest(self.identity(table))) for table in fused}
        fingerprint = digest(identity)
        return Found(stage, fingerprint, identity, self.store.shards(stage.name, fingerprint), kept, again)

    def _plan_shard(self, found: Found, shard: str, upstream: Mapping[str, Table]) -> ShardPlan:
        stage, fingerprint, committed = found.stage, found.fingerprint, found.committed
        frames = self._shards_of(stage)[shard]
        task = self._task(stage, fingerprint, shard, frames, upstream)
        if task is None:
            return ShardPlan(shard, len(frames), None, None, "waits for what it needs")
        done = committed.get((shard, task.key))
        if not done and any(found.kept.values()):  # made from a table that was kept in an earlier run
            apart = self._task(stage, fingerprint, shard, frames, upstream, found.kept)
            done = committed.get((shard, apart.key)) if apart else None
        bad = set(done.failed) - set(self.recipe.data.exclude) if done else set()
        if done and not bad and not found.again:
            return ShardPlan(shard, len(frames), done, None, "")
        return ShardPlan(shard, len(frames), None, task, self._reason(shard, bad, committed, found.again))

    @staticmethod
    def _reason(shard: str, bad: set[str], committed: Mapping[tuple[str, str], ShardFile], again: bool) -> str:
        if again:
            return "asked for again"
        if bad:
            return f"frame {sorted(bad)[0]} failed before and is no longer excluded"
        if not committed:
            return "nothing built with these settings"
        if any(name == shard for name, _ in committed):
            return "its inputs changed"
        return "new, or deleted"

    def _task(
        self,
        stage: Stage,
        fingerprint: str,
        shard: str,
        frames: Sequence[Frame],
        upstream: Mapping[str, Table],
        kept: Mapping[str, Mapping[tuple[str, str], ShardFile]] = MappingProxyType({}),
    ) -> Task | None:
        """Return the task that builds a shard, or None while something that it needs is not built.

        `kept` are shards of tables that the stage makes on its way: with them, the key is that of a shard made from
        them.
        """
        depends: dict[str, Any] = {"table": fingerprint}
        if stage.build:
            return Task(stage.name, fingerprint, shard, digest(depends), 0)
        if stage.name == "index":
            depends["listing"] = digest_rows([frame_row(frame) for frame in frames], list(stage.schema.names))
            return Task(stage.name, fingerprint, shard, digest(depends), len(frames), frames)
        rows: dict[str, tuple[str, ShardFile]] = {}
        broadcast: dict[str, tuple[str, ShardFile]] = {}
        halo: dict[str, dict[str, tuple[str, ShardFile]]] = {"before": {}, "after": {}}
        index = upstream["index"].done.get(shard)
        if index is None:
            return None
        rows["index"] = upstream["index"].fingerprint, index
        depends["index"] = self._index_digest(upstream["index"].fingerprint, index, stage.index_columns)
        for need in stage.needs(self.recipe):
            if need.how == "fused":  # the key that its shard would have
                table = STAGES[need.table]
                seen = self._index_digest(upstream["index"].fingerprint, index, table.index_columns)
                key = digest({"table": digest(self.identity(table)), "index": seen})
                made = kept.get(need.table, {}).get((shard, key))
                depends[need.table] = [made.key, made.sha256] if made else key
                continue
            source = upstream[need.table].done.get(ALL if need.how == "broadcast" else shard)
            if source is None:
                return None
            (broadcast if need.how == "broadcast" else rows)[need.table] = upstream[need.table].fingerprint, source
            # the content and not only the key: a network's shard may be built again with other bits, and rows of
            # one table are positions in another
            depends[need.table] = [source.key, source.sha256]
            if need.how != "window":
                continue
            for side, beside in self._beside[shard].items():
                for name in ("index", need.table):
                    source = upstream[name].done.get(beside)
                    if source is None:
                        return None
                    halo[side][name] = upstream[name].fingerprint, source
                    depends[f"{name} {side}"] = (
                        self._index_digest(upstream["index"].fingerprint, source, stage.index_columns)
                        if name == "index"
                        else [source.key, source.sha256]
                    )
        return Task(stage.name, fingerprint, shard, digest(depends), len(frames), (), rows, broadcast, **halo)

    @cached_property
    def _beside(self) -> dict[str, dict[str, str]]:
        """For every shard, those of the same scene just "before" and "after" it, as far as there are any."""
        near: dict[str, dict[str, str]] = {shard: {} for shard in self.listing()}
        for before, after in pairwise(near):
            if scene_of(before) == scene_of(after):
                near[before]["after"], near[after]["before"] = after, before
        return near

    def _index_digest(self, fingerprint: str, shard: ShardFile, columns: tuple[str, ...]) -> str:
        """Return a digest of frame ids, status and some further columns of a shard of `index`."""
        place = shard.sha256, columns
        if place not in self._index_digests:
            table = self.store.read("index", fingerprint, shard, ["frame_id", "status", *columns])
            self._index_digests[place] = digest_table(table)
        return self._index_digests[place]

    def _changes(self, stage: Stage, identity: Mapping[str, Any]) -> list[str]:
        """Return what differs from the table that this recipe's ref stands for, else from the newest of the stage."""
        before: Manifest | None = None
        ref = self.read_ref()
        if ref and stage.name in ref.tables:
            before = self.store.read_manifest(stage.name, ref.tables[stage.name].fingerprint)
        if before is None:
            before = next(iter(reversed(self.store.manifests(stage.name))), None)
        return differences(before.identity, identity) if before else []

    def read_ref(self) -> Ref | None:
        """Return what the recipe's name stands for now, or None if nothing was built under it."""
        try:
            return self.store.read_ref(self.recipe.name)
        except StoreError:
            return None

    # -- running ------------------------------------------------------------------------------------------------------

    def run(
        self,
        targets: Sequence[str],
        pool: Pool,
        watcher: Watcher | None = None,
        again: Sequence[str] = (),
    ) -> list[Failure]:
        """Build what is missing of the named stages and all that they need; return what failed.

        A shard is built as soon as what it needs is, whatever other shards and stages are at; a failed one holds up
        what needs it and nothing else. After every stage that is complete, the recipe's ref is moved to it; tables of
        the ref that no longer belong to the recipe are taken out. `again` names stages whose shards are built even if
        they exist. A run that is cut short, by a fault of the recipe or by whoever started it, names what it built.
        """
        under_way = Run(self, targets, pool, watcher, again)
        try:
            for task, outcome in pool.run(under_way.queue):
                under_way.take(task, outcome)
        finally:
            under_way.stop()
        return under_way.failures

    def _write_manifest(
        self,
        plan: StagePlan,
        started: datetime,
        pool: Pool,
        devices: list[str],
        batches: list[int],
        failures: Sequence[Failure],
        work: Work,
    ) -> None:
        """List everything committed in the table's folder, whichever run made it, and what failed in this run."""
        shards = tuple(self.store.shards(plan.stage.name, plan.fingerprint).values())
        totals: dict[str, int] = {}
        for shard in shards:
            for name, count in shard.counts.items():
                totals[name] = totals.get(name, 0) + count
        made = {
            "recipe": self.recipe.name,
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "pool": type(pool).__name__,
            "devices": devices,
            "batches": batches,
            "git_commit": git_commit(),
            "packages": package_versions(),
            "excluded": list(self.recipe.data.exclude),
            "failed": [frame for shard in shards for frame in shard.failed],
            "counts": totals,
            "work": asdict(work),
            "failures": [[one.shard, one.frame_id, one.cause] for one in failures[:MANY_FAILURES]],
        }
        self.store.write_manifest(Manifest(plan.stage.name, plan.fingerprint, plan.identity, shards, made))

    def _move_ref(self, plans: Mapping[str, StagePlan], under_way: Mapping[str, Table] = MappingProxyType({})) -> None:
        """Point the recipe's name at the complete tables that belong to it.

        Its other shards, of tables still incomplete or `under_way` and of scenes not selected now, are held: a run that
        was stopped, a bad frame in a new scene or another split makes no garbage of finished work. Nor is anything
        garbage that lies beside shards being built, as long as a table is `under_way`.
        """
        before = self.read_ref()
        named = (*before.tables.values(), *before.held) if before else ()
        tables: dict[str, TableRef] = {}
        held: list[TableRef] = []
        for name, stage in STAGES.items():
            plan = plans.get(name)
            found = plan or under_way.get(name)
            if not found and not any(table.stage == name for table in named):
                continue
            fingerprint = found.fingerprint if found else self._fingerprint(stage)
            earlier = [table for table in named if table.stage == name and table.fingerprint == fingerprint]
            now = dict(found.done) if found else {}
            if plan and plan.complete:
                tables[name] = TableRef(name, plan.fingerprint, tuple(now.values()))
            elif not plan and before and before.tables.get(name) in earlier:
                tables[name] = before.tables[name]
            known = {shard.shard: shard for table in reversed(earlier) for shard in table.shards} | now
            used = {shard.name for shard in tables[name].shards} if name in tables else set()
            rest = tuple(shard for _, shard in sorted(known.items()) if shard.name not in used)
            if rest and fingerprint:
                held.append(TableRef(name, fingerprint, rest))
        usable = consistent(tables)
        held += [table for name, table in tables.items() if name not in usable]
        building = before.building if before and under_way else ()
        ref = Ref(self.recipe.name, usable, self.recipe.data.exclude, tuple(held), building)
        if ref != before:
            self.store.write_ref(self.recipe.name, ref)

    def _fingerprint(self, stage: Stage) -> str:
        """Return the fingerprint of a stage that this run does not plan; empty where the teacher has no such stage."""
        try:
            return digest(self.identity(stage))
        except ConfigError:
            return ""


@dataclass
class StageRun:
    """A stage while a run goes on. `upstream` are the stages that it needs tables of.

    A shard is in `done`, in `waiting` for what it needs, `under_way` (in the queue or with a worker), or it failed.
    `begun`: a worker has had one of them. `n_frames` were built in this run, in so many `seconds` of its workers.
    """

    found: Found
    upstream: frozenset[str]
    shards: dict[str, ShardPlan] = field(default_factory=dict)
    done: dict[str, ShardFile] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    under_way: set[str] = field(default_factory=set)
    begun: bool = False
    failures: list[Failure] = field(default_factory=list)
    devices: set[str] = field(default_factory=set)
    batches: set[int] = field(default_factory=set)
    n_frames: int = 0
    seconds: float = 0.0

    @property
    def fingerprint(self) -> str:
        """The name of the table's folder."""
        return self.found.fingerprint


class Run:
    """A run while it goes on: `queue` has the shards that can be built now; every one that is built may add others."""

    def __init__(
        self, runner: Runner, targets: Sequence[str], pool: Pool, watcher: Watcher | None, again: Sequence[str]
    ) -> None:
        """Plan all stages, as far as what they need is built; raises ConfigError where a table cannot be had."""
        self._runner, self._pool, self._watcher = runner, pool, watcher
        self._started = datetime.now(UTC)
        self.queue = Queue(taken=self._begin)
        self._finished: dict[str, StagePlan] = {}
        self._open: dict[str, StageRun] = {}
        for stage in with_upstream(tuple(targets), runner.recipe):
            needs = {need.table for need in stage.needs(runner.recipe) if need.how != "fused"}
            upstream = frozenset(needs if stage.build or stage.name == "index" else {"index", *needs})
            self._open[stage.name] = StageRun(runner._look(stage, stage.name in again), upstream)
        self._stages = dict(self._open)
        for one in self._stages.values():
            for shard in runner._shards_of(one.found.stage):
                self._plan(one, shard)
        self._finish_stages()

    def take(self, task: Task, outcome: Outcome) -> None:
        """Note what came of a task, and put into the queue what can be built now."""
        one = self._stages[task.stage]
        one.under_way.remove(task.shard)
        one.failures += outcome.failures
        one.seconds += outcome.seconds
        one.shards[task.shard] = replace(one.shards[task.shard], done=outcome.shard, task=None)
        if outcome.shard:
            one.n_frames += task.n_frames
            one.devices.add(outcome.device)
            one.batches |= {outcome.batch} if outcome.batch else set()
            one.done[task.shard] = outcome.shard
            self._release(task.stage, task.shard)
        if self._watcher:
            self._watcher.shard_finished(task, outcome)
        self._finish_stages()

    @property
    def failures(self) -> list[Failure]:
        """What failed, stage by stage."""
        return [failure for one in self._stages.values() for failure in one.failures]

    def stop(self) -> None:
        """Write the manifests of stages that are not through, as far as they got."""
        for name, one in list(self._open.items()):
            if one.n_frames or one.failures:
                self._finish(name, one)

    def _plan(self, one: StageRun, shard: str) -> bool:
        """Put a shard where it belongs now; return whether it turned out to be built already."""
        planned = self._runner._plan_shard(one.found, shard, self._stages)
        one.shards[shard] = planned
        one.waiting.discard(shard)
        if planned.done:
            one.done[shard] = planned.done
        elif planned.task:
            one.under_way.add(shard)
            self.queue.put(planned.task)
        else:
            one.waiting.add(shard)
        return planned.done is not None

    def _release(self, stage: str, shard: str) -> None:
        """Plan again what waits for a shard that is built now, and what waits for that if it was built before."""
        built = [(stage, shard)]
        while built:
            stage, shard = built.pop()
            everywhere = STAGES[stage].build is not None
            near = () if everywhere else (shard, *self._runner._beside[shard].values())
            for name, one in self._open.items():
                if stage in one.upstream:
                    others = one.shards if everywhere else near
                    built += [(name, other) for other in others if other in one.waiting and self._plan(one, other)]

    def _begin(self, task: Task) -> None:
        """Say that a stage begins when the first of its shards goes to a worker, and in the store that a run does."""
        one = self._stages[task.stage]
        if one.begun:
            return
        if not any(other.begun for other in self._stages.values()):
            tables = [(name, other.found.fingerprint) for name, other in self._stages.items()]
            name = self._runner.recipe.name
            self._runner.store.begin(name, name, tables)
        one.begun = True
        if self._watcher:
            hope = () if self._open.keys().isdisjoint(one.upstream) else one.waiting
            n_frames = sum(one.shards[shard].n_frames for shard in (*one.under_way, *hope))
            self._watcher.stage_started(self._plan_of(one), n_frames)

    def _plan_of(self, one: StageRun) -> StagePlan:
        stage, found = one.found.stage, one.found
        size = stage.kilobytes_per_frame(self._runner.recipe)
        return StagePlan(stage, found.fingerprint, found.identity, tuple(one.shards.values()), (), size)

    def _finish_stages(self) -> None:
        """Finish the stages of which nothing more can come."""
        for name, one in list(self._open.items()):
            if not one.under_way and self._open.keys().isdisjoint(one.upstream):
                self._finish(name, one)

    def _finish(self, name: str, one: StageRun) -> None:
        """Write a stage's manifest if this run did something for it, and move the recipe's ref."""
        del self._open[name]
        plan = self._finished[name] = self._plan_of(one)
        if one.begun:
            if self._watcher:
                self._watcher.stage_finished(plan)
            workers = self._runner.recipe.run.workers
            work = Work(one.n_frames, one.seconds / workers, workers)
            self._runner._write_manifest(
                plan, self._started, self._pool, sorted(one.devices), sorted(one.batches), one.failures, work
            )
        self._runner._move_ref(self._finished, self._open)


def consistent(tables: Mapping[str, TableRef]) -> dict[str, TableRef]:
    """Return the tables that hold the same shards as `index`, so that rows of any two of them are the same frames."""
    if "index" not in tables:
        return {}
    names = [shard.shard for shard in tables["index"].shards]
    return {
        name: table
        for name, table in tables.items()
        if STAGES[name].build or [shard.shard for shard in table.shards] == names
    }


def digest_table(table: pa.Table) -> str:
    """Return a digest of a table's values, column by column; how Arrow lays them out does not matter."""
    total = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name)
        total.update(name.encode())
        if pa.types.is_large_binary(column.type):
            for value in column:
                content = value.as_buffer() if value.is_valid else b""
                total.update(f"{len(content)}:".encode())
                total.update(content)
        else:
            total.update(canonical(column.to_pylist()).encode())
    return total.hexdigest()[:DIGITS]


def digest_rows(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Return a digest of some columns of some rows; arrays count by type, shape and bytes."""
    total = hashlib.sha256()
    for row in rows:
        for name in columns:
            value = row.get(name)
            if isinstance(value, np.ndarray):
                total.update(f"{name}:{value.dtype.str}{value.shape}".encode())
                total.update(np.ascontiguousarray(value).tobytes())
            else:
                total.update(f"{name}:{canonical(value)}".encode())
    return total.hexdigest()[:DIGITS]


def cause_of(error: BaseException) -> str:
    """Return an error as one line: our own sentences as they are, anything else with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FrameError | StoreError | ConfigError) else f"{type(error).__name__}: {text}"


def device_name(recipe: Recipe) -> str:
    """Return the name of the device that networks run on in this process."""
    from pipeline.teachers.loading.towers import pick_device

    device = pick_device(recipe.run.device)
    if device.type != "cuda":
        return str(device)
    import torch

    return str(torch.cuda.get_device_name(device))


def git_commit() -> str | None:
    """Return the commit of the checkout this code runs from, or None outside one."""
    root = Path(__file__).parent.parent.parent
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except OSError:
        return None
    return done.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results may depend on."""
    found = {}
    for name in (
        "numpy",
        "scipy",
        "pyarrow",
        "pillow",
        "scikit-image",
        "torch",
        "open_clip_torch",
        "timm",
        "transformers",
        "ray",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def damaged_shards(store: Store, ref: Ref, progress: Callable[[int], None]) -> list[tuple[TableRef, ShardFile, str]]:
    """Return every damaged shard of a ref, after reading every byte; `progress` gets the bytes of each shard read."""
    found = []
    for table in ref.tables.values():
        for shard in table.shards:
            what = store.damage(table.stage, table.fingerprint, shard)
            if what:
                found.append((table, shard, what))
            progress(shard.bytes)
    return found
