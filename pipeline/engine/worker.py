"""Builds shards: reads the rows that a stage needs, calls it frame by frame, commits what it made."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from threadpoolctl import threadpool_limits

from manifests.config import ConfigError
from manifests.endings import Bug, RunError, is_bug, summary, trace_of
from manifests.fingerprint import digest
from manifests.provenance import origin_of
from manifests.recipe import Recipe
from manifests.stages import fingerprint
from manifests.storage.errors import StoreError, is_full
from manifests.storage.seen import Seen, write_files, write_seen
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from manifests.tables.base import Failed, FrameRecord, Rows
from manifests.tables.sensors import Index
from manifests.tables.teacher import Text
from pipeline.datasets.sweeps import KeptSweeps
from pipeline.engine.ahead import ahead
from pipeline.engine.tasks import Failure, Outcome, Task
from pipeline.frame import Frame, FrameError
from pipeline.sources import Digests, FrameFiles, Looked, key_with, look
from pipeline.stages.base import FrameInput, Stage, StreamFunction
from pipeline.stages.registry import STAGES
from pipeline.teachers.turns import Turn, Turns

AT_ONCE = 3  # shards under way where a network has a device of its own: one begins, one computes, one is written
ROWS_AHEAD = 8  # rows that wait to be written there; one of dense CLIP B/16 has 9 MB
MOST_TRACES = 3  # of a shard's failures, for the log


class Worker:
    """Builds shards one after the other; loads what a stage needs once, and lets go of it when the stage changes.

    `run` may be called by `at_once` threads at a time, for shards of one stage: where a network has a device of its
    own, that then has work while one shard ends and the next begins. Shards are committed in the order in which they
    began, and each has the bytes that it has alone.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._stage: Stage[Any] | None = None
        self._store = Store.open(recipe.run.store)
        self._stopped = threading.Event()
        self._lock, self._commits = threading.RLock(), Turns()
        self._n_running, self._blas, self._last_end = 0, None, 0.0
        self._excluded = frozenset(recipe.data.exclude)
        self._function: StreamFunction[FrameRecord] | None = None
        self._text: tuple[str, Sequence[Text]] | None = None  # the shard's key, and its rows
        self._sweeps = KeptSweeps()

    def run(self, task: Task) -> Outcome:
        """Build and commit one shard; failures become part of the outcome.

        Raises ConfigError, since weights that are not there would fail every shard alike, and Bug, since a fault of
        our own code is no bad frame; nothing else. All frames are tried even after one has failed, so that a run lists
        every bad frame at once.
        """
        begun = time.monotonic()
        traces: list[str] = []
        try:
            with self._commits.taken() as turn, self._one_thread():
                stage = self._turn_to(task.stage)
                outcome = (
                    self._build_table(task, stage) if stage.build else self._build_frames(task, stage, turn, traces)
                )
        except ConfigError:
            raise
        except Exception as error:  # a worker must outlive any shard; the cause is shown in the table of failures
            if is_bug(error):
                raise Bug.of(error, f"in stage {task.stage}, shard {task.shard}") from None
            traces.append(trace_of(error))
            failure = Failure(task.stage, task.shard, None, summary(error))
            outcome = Outcome(None, (failure,), disk_full=is_full(error))
        with self._lock:  # of shards built at once, each counts from the end of the one before
            begun, self._last_end = max(begun, self._last_end), time.monotonic()
            return replace(outcome, seconds=self._last_end - begun, traces=tuple(traces[:MOST_TRACES]))

    def at_once(self, stage: str) -> int:
        """Return how many shards of a stage to have under way at once."""
        recipe = self._recipe
        if STAGES[stage].gpus(recipe) is None or recipe.run.device == "cpu":
            return 1
        from pipeline.teachers.loading.towers import pick_device

        return 1 if pick_device(recipe.run.device).type == "cpu" else AT_ONCE

    def stop(self, stopped: bool = True) -> None:
        """Have the shards that are under way end without a commit, from the next row on; or no longer."""
        (self._stopped.set if stopped else self._stopped.clear)()

    def _turn_to(self, name: str) -> Stage[Any]:
        """Return a stage, having let go of what another one needed."""
        with self._lock:
            if self._stage is None or self._stage.name != name:
                self._stage, self._function, self._text = STAGES[name], None, None
                if name not in ("index", "points"):
                    self._sweeps.clear()
            return self._stage

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        """Compute with one BLAS thread: workers are what runs in parallel, and the bits must not depend on the machine.

        OpenMP's number is each thread's own, that of BLAS the process's: the last to leave gives it back.
        """
        with self._lock:
            self._blas = self._blas or threadpool_limits(1, user_api="blas")
            self._n_running += 1
        try:
            with threadpool_limits(1, user_api="openmp"):
                yield
        finally:
            with self._lock:
                self._n_running -= 1
                if not self._n_running and self._blas:
                    self._blas.restore_original_limits()
                    self._blas = None

    def _build_table(self, task: Task, stage: Stage[Any]) -> Outcome:
        assert stage.build is not None
        rows = stage.build(self._recipe)
        if digest(dict(stage.depends(self._recipe))) != task.settings:
            raise StoreError(f"a file that `{stage.name}` is made from was replaced since the run began; run again")
        origin = origin_of(self._device(stage), None)
        place = task.stage, task.fingerprint, task.shard, task.key
        with self._store.writer(*place, stage.table.kind.schema, origin=origin) as writer:
            for row in rows:
                writer.append(row)
            return Outcome(writer.commit(), device=self._device(stage))

    def _device(self, stage: Stage[Any]) -> str:
        return "cpu" if stage.gpus(self._recipe) is None else device_name(self._recipe)

    def _build_frames(self, task: Task, stage: Stage[Any], turn: Turn, traces: list[str]) -> Outcome:
        files, looked, key = stage.files(self._recipe), None, task.key
        if files:
            looked = look(files, task.frames)
            key = key_with(task.key, looked.content)
            done = task.committed.get(key)
            if done and not task.again and self._excluded.issuperset(done.failed):
                self._note(task, files, looked, done)
                return Outcome(done, looked=True)
        function = self._load(task, stage)
        failures: list[Failure] = []
        origin = origin_of(self._device(stage), function.batch)
        place = task.stage, task.fingerprint, task.shard, key
        with self._store.writer(*place, stage.table.kind.schema, stage.apart, origin) as writer:
            rows = self._rows(task, stage, function, looked.digests if looked else (), traces)
            for row in ahead(rows, ROWS_AHEAD) if self.at_once(stage.name) > 1 else rows:
                if self._stopped.is_set():
                    raise RunError("the run was stopped")
                if isinstance(row, Failed):
                    if row.frame_id not in self._excluded:
                        failures.append(Failure(task.stage, task.shard, row.frame_id, row.reason))
                        continue
                    writer.append(row)
                else:
                    writer.append(row, stage.count(row))
            if failures:
                return Outcome(None, tuple(failures))
            turn.wait()
            shard = writer.commit()
        if files and looked:
            self._note(task, files, looked, shard)
        return Outcome(shard, device=self._device(stage), batch=function.batch)

    def _load(self, task: Task, stage: Stage[Any]) -> StreamFunction[FrameRecord]:
        """Return what makes the rows of a stage, loaded once."""
        with self._lock:
            if self._function is None:
                function = stage.open(self._recipe)
                check_loaded(self._recipe, task)
                self._function = function
            return self._function

    def _note(self, task: Task, files: FrameFiles, looked: Looked, shard: ShardFile) -> None:
        """Spare the next plan a look at the files, and let readers compare; only after the shard of them is there."""
        write_files(self._store, task.stage, shard.shard, shard.key, looked.by_file(files.place))
        write_seen(self._store, files.place, task.shard, task.key, Seen(looked.stats, looked.content))

    def one_row(self, task: Task, position: int) -> FrameRecord:
        """Return the row of one frame of a task; commits nothing, and raises whatever goes wrong."""
        stage = STAGES[task.stage]
        files = stage.files(self._recipe)
        digests = look(files, task.frames).digests if files else ()
        for one in self._inputs(task, stage, [position], digests):
            if not isinstance(one, FrameInput):
                raise FrameError(f"an earlier stage failed on this frame: {one.reason}")
            function: StreamFunction[FrameRecord] = stage.open(self._recipe)
            [made] = function(iter([one]))
            if isinstance(made, Exception):
                raise made
            return made
        raise AssertionError("one position gives one frame")

    def _rows(
        self,
        task: Task,
        stage: Stage[Any],
        function: StreamFunction[FrameRecord],
        digests: Sequence[Digests],
        traces: list[str],
    ) -> Generator[FrameRecord | Failed, None, None]:
        """Yield the rows of a task in order; those of frames that failed before, and of those that fail now, say so.

        `digests` are those of the files that the stage reads, frame by frame; empty where it reads none. `traces` gets
        those of the first failures, which tell enough.
        """
        waiting: deque[Failed | str] = deque()  # rows of frames that failed before, ids of those under way

        def noted() -> Iterator[FrameInput]:
            for one in self._inputs(task, stage, range(task.n_frames), digests):
                if isinstance(one, FrameInput):
                    waiting.append(one.frame.frame_id)
                    yield one
                else:
                    waiting.append(one)

        for made in function(noted()):
            while not isinstance(row := waiting.popleft(), str):
                yield row
            if isinstance(made, ConfigError | StoreError):
                raise made
            if isinstance(made, Exception):
                if is_bug(made):
                    raise Bug.of(made, f"in stage {task.stage}, shard {task.shard}, frame {row}") from None
                if len(traces) < MOST_TRACES:
                    traces.append(trace_of(made))
                yield Failed(row, f"{task.stage}: {summary(made)}")
            else:
                assert made.frame_id == row, f"stage {task.stage} made a row of {made.frame_id} for frame {row}"
                yield made
        for row in waiting:
            assert not isinstance(row, str), "a stage made fewer rows than there are frames"
            yield row

    def _inputs(
        self, task: Task, stage: Stage[Any], positions: Iterable[int], digests: Sequence[Digests]
    ) -> Iterator[FrameInput | Failed]:
        """Yield what the stage gets for frames of a task, by position, ascending; where one failed before, its row."""
        text = self._text_rows(*task.broadcast["text"]) if "text" in task.broadcast else ()
        needs = stage.needs(self._recipe)
        kinds = {need.table: need.kind for need in needs if issubclass(need.kind, FrameRecord)}
        reach = max((need.reach for need in needs if need.how == "window"), default=0)
        listed = () if task.rows else task.frames
        here = ShardInputs(self._store, task.rows, kinds, listed, text, digests)
        before, after = (ShardInputs(self._store, tables, kinds, (), text) for tables in (task.before, task.after))
        near: dict[int, FrameInput | Failed] = {}  # by position in this shard, below 0 in the one before
        first, stop = -min(reach, before.n_frames), task.n_frames + min(reach, after.n_frames)
        for position in positions:
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
            if reach and isinstance(one, FrameInput):
                others = sorted(other for other in near if other != position)
                around = (item for other in others if isinstance(item := near[other], FrameInput))
                # who is excluded has no say in the rows of others either
                heard = tuple(item for item in around if item.frame.frame_id not in self._excluded)
                one = replace(one, around=heard)
            yield replace(one, sweeps=self._sweeps) if isinstance(one, FrameInput) else one

    def _text_rows(self, fingerprint: str, shard: ShardFile) -> Sequence[Text]:
        with self._lock:
            if self._text is None or self._text[0] != shard.key:
                self._text = shard.key, self._store.every(Text, fingerprint, [shard])
            return self._text[1]


def check_loaded(recipe: Recipe, task: Task) -> None:
    """Raise StoreError if what a teacher was just loaded from is no longer what the table is known by.

    Weights are checked as they are read; the small files beside them (a tokenizer, a configuration) stand in the
    table's identity, which was digested when the run was planned.
    """
    loaded = task.stage in ("encode", "segment") and not (recipe.teacher.ready_made or recipe.teacher.simulated)
    if loaded and fingerprint(recipe, task.stage) != task.fingerprint:
        raise StoreError(f"a file beside the weights of `{task.stage}` was replaced since the run began; run again")


class ShardInputs:
    """The rows that one shard of a scene has in some tables, frame by frame; without tables it has no frames."""

    def __init__(
        self,
        store: Store,
        tables: Mapping[str, tuple[str, ShardFile]],
        kinds: Mapping[str, type[FrameRecord]],
        frames: Sequence[Frame],
        text: Sequence[Text],
        digests: Sequence[Digests] = (),
    ) -> None:
        """`kinds` say what to read of a table; `frames` stand for table `index` while that is being made.

        `digests` are those of the files that the stage reads, frame by frame, if it reads some.
        """
        self._readers = {name: store.open_shard(name, *source) for name, source in tables.items()}
        self._kinds = {name: kinds.get(name, Index) for name in tables}
        self._frames, self._text = tuple(frames), text
        self._digests = digests
        self.n_frames = tables["index"][1].rows if tables else len(frames)

    def read(self, position: int) -> FrameInput | Failed:
        """Return a frame with its rows, or why it failed before.

        Raises StoreError if a shard is damaged, or if its rows are those of other frames.
        """
        rows = {name: reader.record(position, self._kinds[name]) for name, reader in self._readers.items()}
        frame_id = self._frames[position].frame_id if self._frames else rows["index"].frame_id
        for name, row in rows.items():
            if row.frame_id != frame_id:
                raise StoreError(f"row {position} of `{name}` is frame {row.frame_id}, expected {frame_id}")
        for row in rows.values():
            if isinstance(row, Failed):
                return row
        found = Rows(*(row for row in rows.values() if isinstance(row, FrameRecord)))
        frame = self._frames[position] if self._frames else Frame.of(found[Index])
        if self._digests:
            frame = replace(frame, files=self._digests[position])
        return FrameInput(frame, found, self._text)


def device_name(recipe: Recipe) -> str:
    """Return the name of the device that networks run on in this process."""
    from pipeline.teachers.loading.towers import pick_device

    device = pick_device(recipe.run.device)
    if device.type != "cuda":
        return str(device)
    import torch

    return str(torch.cuda.get_device_name(device))
