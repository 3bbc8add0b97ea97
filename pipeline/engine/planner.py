"""Tells which shards are missing and why, and what a worker needs to build one. Knows nothing of Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice, pairwise
from types import MappingProxyType
from typing import Any, TypeVar

from manifests.asked import asked, keyed_refs
from manifests.config import ConfigError
from manifests.fingerprint import Json, digest
from manifests.recipe import Recipe
from manifests.records.table import AskedTables, Identity
from manifests.sources import LOOKS_AT_ONCE
from manifests.splits import load_split
from manifests.stages import SPECS, Need, fingerprint, identity
from manifests.storage.names import ref_name, scene_of, shard_name
from manifests.storage.refs import Ref, TableRef
from manifests.storage.seen import read_seen
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store
from pipeline.datasets.registry import open_dataset
from pipeline.engine.absent import Unswept, whole_scenes
from pipeline.engine.keys import digest_listing, digest_table
from pipeline.engine.listing import ListedFrames, Spool
from pipeline.engine.tasks import ALL, ShardPlan, StagePlan, Table, Task
from pipeline.frame import Frame
from pipeline.sources import FrameFiles, key_with, stats_of
from pipeline.stages.base import Stage
from pipeline.stages.registry import STAGES, with_upstream

FRAMES_PER_SHARD = 64
NEAR_S = 0.03  # a look at the files of a shard takes a disk of this machine a fraction of that


@dataclass(frozen=True)
class Found:
    """What the store has of a stage's table, and what else its shards are planned by.

    `kept` are shards of the tables that the stage otherwise makes on its way. `again`: no built shard counts.
    """

    stage: Stage[Any]
    fingerprint: str
    identity: Identity
    committed: Mapping[tuple[str, str], ShardFile]
    kept: Mapping[str, Mapping[tuple[str, str], ShardFile]]
    again: bool


class Planner:
    """Tells which shards of a recipe's tables are missing, and why."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.store = Store.open(recipe.run.store)
        self._spool = Spool()  # frames are kept on disk: there may be many
        self._listing: dict[str, ListedFrames] | None = None
        self._index_digests: dict[tuple[str, tuple[str, ...]], str] = {}
        self._listing_digests: dict[str, str] = {}
        self._contents: dict[tuple[str, str, str], str] = {}

    def listing(self) -> dict[str, ListedFrames]:
        """Return the frames of the recipe's split by shard: one shard a scene, long scenes cut every 64 frames.

        Raises ConfigError for an unknown data set or version, an empty split, or an excluded frame that does not exist.
        """
        if self._listing is None:
            data = self.recipe.data
            scenes: dict[str, list[ListedFrames]] = {}
            unknown, unswept = set(data.exclude), Unswept(data.exclude)
            for scene, group in groupby(open_dataset(data).frames(), key=lambda frame: frame.scene):
                assert scene not in scenes, f"data set {data.dataset} lists scene {scene} in two pieces"
                frames = list(group)
                unknown.difference_update(frame.frame_id for frame in frames)
                frames = unswept.left(frames)
                scenes[scene] = []
                for first in range(0, len(frames), FRAMES_PER_SHARD):
                    scenes[scene].append(self._spool.add(frames[first : first + FRAMES_PER_SHARD]))
            unswept.tell()
            try:
                chosen = load_split(data.split, data.dataset, tuple(scenes))
            except (ValueError, OSError) as error:
                raise ConfigError(f"data.split: {error}") from None
            for frame_id in data.exclude:
                if frame_id in unknown:
                    raise ConfigError(f"data.exclude names frame {frame_id}, which the data set does not have")
            if data.incomplete == "leave out":
                chosen = whole_scenes({scene: scenes[scene] for scene in chosen}, data)
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

    def identity(self, stage: Stage[Any]) -> Identity:
        """Return the readable identity of a stage's table; its digest names the folder."""
        return identity(self.recipe, stage.name)

    def _plan_stage(self, stage: Stage[Any], upstream: Mapping[str, Table]) -> StagePlan:
        found = self.look(stage, again=False)
        if stage.name != "index":
            self._look_at_files(stage, found.fingerprint, upstream)
        shards = tuple(self.plan_shard(found, shard, upstream) for shard in self.shards_of(stage))
        changes = () if found.committed else tuple(self._changes(stage, found.identity))
        size = stage.kilobytes_per_frame(self.recipe)
        return StagePlan(stage, found.fingerprint, found.identity, shards, changes, size)

    def shards_of(self, stage: Stage[Any]) -> Mapping[str, Sequence[Frame]]:
        """Return the frames of a stage by shard."""
        return {ALL: ()} if stage.build else self.listing()

    def look(self, stage: Stage[Any], again: bool) -> Found:
        """Return what the store has of a stage's table; raises ConfigError where the data set cannot have it."""
        sentence = stage.refuse(self.recipe, (frame for frames in self.listing().values() for frame in frames))
        if sentence:
            raise ConfigError(sentence)
        identity = self.identity(stage)
        fused = [STAGES[need.table] for need in stage.needs(self.recipe) if need.how == "fused"]
        if stage.name == "index":
            self._contents.clear()
            self._look_at_files(stage, identity.fingerprint, {})
        kept = {table.name: self.store.shards(table.name, self.fingerprint(table.name)) for table in fused}
        fingerprint = identity.fingerprint
        return Found(stage, fingerprint, identity, self.store.shards(stage.name, fingerprint), kept, again)

    def _look_at_files(self, stage: Stage[Any], fingerprint: str, upstream: Mapping[str, Table]) -> None:
        """Look at the files that a stage reads, side by side: every look may cross a network."""
        files = stage.files(self.recipe)
        if files is None:
            return
        with ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="look") as threads:
            for some in batched(self.listing().items(), 16 * LOOKS_AT_ONCE):
                asked = []
                for shard, listed in some:
                    frames = tuple(listed)  # read from the list once
                    if task := self._task(stage, fingerprint, shard, frames, upstream):
                        asked.append((shard, task.key, names_in(files, frames)))
                seen = self._seen_of(files, asked, threads)
                for (shard, key, _), content in zip(asked, seen, strict=True):
                    if content is not None:
                        self._contents[stage.name, shard, key] = content

    def _seen_of(
        self, files: FrameFiles, asked: Sequence[tuple[str, str, list[str]]], threads: ThreadPoolExecutor
    ) -> Iterator[str | None]:
        """Yield what is known of the files of some shards; side by side only where the first takes long.

        On a disk of this machine threads would but wait for each other, at twice the CPU time.
        """
        for first in asked[:1]:
            begun = time.monotonic()
            yield self._seen(files, *first)
            far = time.monotonic() - begun > NEAR_S
            yield from (threads.map if far else map)(lambda one: self._seen(files, *one), asked[1:])

    def _seen(self, files: FrameFiles, shard: str, key: str, names: Sequence[str]) -> str | None:
        """Return the digest of a shard's files if it is known and they look as they did then."""
        seen = read_seen(self.store, files.place, shard, key)
        return seen.content if seen and seen.stats == stats_of(files.root, names) else None

    def _built(self, found: Found, task: Task, frames: Sequence[Frame]) -> tuple[ShardFile | None, bool]:
        """Return the shard that a task would build, if it is there, and whether that can be told without a look."""
        files = found.stage.files(self.recipe)
        if files is None:
            return found.committed.get((task.shard, task.key)), True
        place = found.stage.name, task.shard, task.key
        content = self._contents.get(place)
        if content is None and found.stage.name != "index":
            content = self._seen(files, task.shard, task.key, names_in(files, frames))
        if content is None:
            return None, False
        self._contents[place] = content
        return found.committed.get((task.shard, key_with(task.key, content))), True

    def plan_shard(self, found: Found, shard: str, upstream: Mapping[str, Table]) -> ShardPlan:
        stage, fingerprint, committed = found.stage, found.fingerprint, found.committed
        frames = self.shards_of(stage)[shard]
        task = self._task(stage, fingerprint, shard, frames, upstream)
        if task is None:
            return ShardPlan(shard, len(frames), None, None, "waits for what it needs")
        done, looked = self._built(found, task, frames)
        if not done and any(found.kept.values()):  # made from a table that was kept in an earlier run
            apart = self._task(stage, fingerprint, shard, frames, upstream, found.kept)
            done = committed.get((shard, apart.key)) if apart else None
        bad = set(done.failed) - set(self.recipe.data.exclude) if done else set()
        if done and not bad and not found.again:
            return ShardPlan(shard, len(frames), done, None, "")
        if stage.files(self.recipe):
            mine = {key: one for (name, key), one in committed.items() if name == shard}
            task = replace(task, frames=frames, committed=mine, again=found.again)
        return ShardPlan(shard, len(frames), None, task, self._reason(shard, bad, committed, found.again, looked))

    @staticmethod
    def _reason(
        shard: str, bad: set[str], committed: Mapping[tuple[str, str], ShardFile], again: bool, looked: bool
    ) -> str:
        if again:
            return "asked for again"
        if bad:
            return f"frame {sorted(bad)[0]} failed before and is no longer excluded"
        if not committed:
            return "nothing built with these settings"
        if any(name == shard for name, _ in committed):
            return "its inputs changed" if looked else "its files changed, or lie in another folder: to be looked at"
        return "new, or deleted"

    def _fused(
        self,
        name: str,
        shard: str,
        index: tuple[str, ShardFile],
        kept: Mapping[tuple[str, str], ShardFile],
    ) -> str | list[str]:
        """Return what a key says of a table that its stage makes on its way: the shard that is there, or its key."""
        table = STAGES[name]
        seen = self._index_digest(*index, table.seen_of_index(self.recipe))
        key = digest({"table": self.fingerprint(name), "index": seen})
        made = kept.get((shard, key))
        return [made.key, made.sha256] if made else key

    def _build_task(self, stage: Stage[Any], fingerprint: str, shard: str) -> Task:
        """Return the task of a stage that builds one table for all frames."""
        content = stage.content(self.recipe)
        files = {"content": digest(dict(content))} if content else {}  # the fingerprint has the rest
        settings = digest(dict(stage.depends(self.recipe)))
        return Task(stage.name, fingerprint, shard, digest({"table": fingerprint, **files}), 0, settings=settings)

    def _task(  # long: all that enters a key stands in one place
        self,
        stage: Stage[Any],
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
        depends: dict[str, Json] = {"table": fingerprint}
        if stage.build:
            return self._build_task(stage, fingerprint, shard)
        if stage.name == "index":
            depends["listing"] = self._listing_digest(shard, frames)
            return Task(stage.name, fingerprint, shard, digest(depends), len(frames), frames)
        rows: dict[str, tuple[str, ShardFile]] = {}
        broadcast: dict[str, tuple[str, ShardFile]] = {}
        halo: dict[str, dict[str, tuple[str, ShardFile]]] = {"before": {}, "after": {}}
        index = upstream["index"].done.get(shard)
        if index is None:
            return None
        rows["index"] = upstream["index"].fingerprint, index
        depends["index"] = self._index_digest(upstream["index"].fingerprint, index, stage.seen_of_index(self.recipe))
        for need in stage.needs(self.recipe):
            if need.how == "fused":
                depends[need.table] = self._fused(need.table, shard, rows["index"], kept.get(need.table, {}))
                continue
            source = upstream[need.table].done.get(ALL if need.how == "broadcast" else shard)
            if source is None:
                return None
            (broadcast if need.how == "broadcast" else rows)[need.table] = upstream[need.table].fingerprint, source
            depends[need.table] = content_of(need, source)
            if need.how != "window":
                continue
            if silent := self._silent(shard, need.reach):
                depends["excluded"] = silent
            for side, beside in self.beside[shard].items():
                for name in ("index", need.table):
                    source = upstream[name].done.get(beside)
                    if source is None:
                        return None
                    halo[side][name] = upstream[name].fingerprint, source
                    depends[f"{name} {side}"] = (
                        self._index_digest(upstream["index"].fingerprint, source, stage.seen_of_index(self.recipe))
                        if name == "index"
                        else content_of(need, source)
                    )
        return Task(
            stage.name,
            fingerprint,
            shard,
            digest(depends),
            len(frames),
            (),
            rows,
            broadcast,
            halo["before"],
            halo["after"],
        )

    @cached_property
    def beside(self) -> dict[str, dict[str, str]]:
        """For every shard, those of the same scene just "before" and "after" it, as far as there are any."""
        near: dict[str, dict[str, str]] = {shard: {} for shard in self.listing()}
        for before, after in pairwise(near):
            if scene_of(before) == scene_of(after):
                near[before]["after"], near[after]["before"] = after, before
        return near

    def _silent(self, shard: str, reach: int) -> list[str]:
        """Return the excluded frames that would have a say in rows of a shard, up to `reach` frames away from each."""
        before, after = (self.beside[shard].get(side) for side in ("before", "after"))
        n_frames = len(self.listing()[shard])
        found = []
        for frame_id, (place, position) in self._excluded.items():
            from_end = len(self.listing()[place]) - position  # 1 for the last
            if (
                (place == shard and n_frames > 1 and reach)
                or (place == before and from_end <= reach)
                or (place == after and position < reach)
            ):
                found.append(frame_id)
        return sorted(found)

    @cached_property
    def _excluded(self) -> dict[str, tuple[str, int]]:
        """Shard and position of every excluded frame."""
        names = set(self.recipe.data.exclude)
        return {
            frame.frame_id: (shard, position)
            for shard, frames in (self.listing().items() if names else ())
            for position, frame in enumerate(frames)
            if frame.frame_id in names
        }

    def _index_digest(self, fingerprint: str, shard: ShardFile, columns: tuple[str, ...]) -> str:
        """Return a digest of frame ids, status and some further columns of a shard of `index`."""
        wanted = ("frame_id", "status", *columns)
        if shard.columns.keys() >= set(wanted):
            return digest({name: shard.columns[name] for name in wanted})
        place = shard.sha256, columns
        if place not in self._index_digests:
            self._index_digests[place] = digest_table(self.store.read("index", fingerprint, shard, wanted))
        return self._index_digests[place]

    def _listing_digest(self, shard: str, frames: Sequence[Frame]) -> str:
        """Return a digest of what the data set says of the frames of a shard, before any file is opened."""
        if shard not in self._listing_digests:
            self._listing_digests[shard] = digest_listing(frames)
        return self._listing_digests[shard]

    def _changes(self, stage: Stage[Any], identity: Identity) -> list[str]:
        """Return what differs from the nearest table that the recipe stood for, else from the newest of the stage."""
        refs = [self.read_ref(), *keyed_refs(self.store).values()]
        names = {ref.tables[stage.name].fingerprint for ref in refs if ref and stage.name in ref.tables}
        made = [self.store.read_manifest(stage.name, name) for name in sorted(names)]
        changes = [manifest.identity.changes(identity) for manifest in made if manifest]
        if not changes:
            changes = [one.identity.changes(identity) for one in self.store.manifests(stage.name)[-1:]]
        return min(changes, key=len, default=[])

    @cached_property
    def asked(self) -> AskedTables:
        """All that the recipe's tables depend on, as it was when it was first asked for: a plan is of one moment."""
        return asked(self.recipe)

    @property
    def ref_name(self) -> str:
        """The name of the recipe's ref."""
        return ref_name(self.recipe.name, self.asked.key)

    def read_ref(self) -> Ref | None:
        """Return what the recipe as it is now stands for, or None if nothing was built for it.

        Raises StoreError for a ref that cannot be read; that never means that nothing was built.
        """
        return self.store.read_ref(self.ref_name)

    def inherited(self) -> Ref:
        """Return what the recipe stands for, or would if runs of its like were its own: tables of the same identities.

        Whether these still hold what the data set has is not looked at: see `unchanged`.
        """
        own = self.read_ref()
        if own is not None:
            return own
        tables: dict[str, TableRef] = {}
        for ref in keyed_refs(self.store).values():
            if ref.asked and ref.asked.data == self.asked.data:
                same = {name: table for name, table in ref.tables.items() if self._is_of(name, table.fingerprint)}
                tables = {**same, **tables}
        return Ref(self.recipe.name, tables, key=self.asked.key, asked=self.asked)

    def _is_of(self, name: str, fingerprint: str) -> bool:
        if name not in SPECS:  # a stage of newer code that works in the same store
            return False
        try:
            return self.fingerprint(name) == fingerprint
        except ConfigError:
            return False

    def fingerprint(self, name: str) -> str:
        """Return the fingerprint of a stage's table; raises ConfigError where the teacher has no such stage."""
        return fingerprint(self.recipe, name)

    def unchanged(self, ref: Ref, names: Iterable[str]) -> dict[str, TableRef]:
        """Return those of a ref's tables that a run would leave as they are; they may be named without being built."""
        kept = {}
        for name in names:
            if name not in SPECS:  # made by newer code in the same store
                continue
            try:
                plan = self.plan([name])[-1]
            except ConfigError:  # the data set no longer has what it is made from; what was made stays true
                continue
            done = [shard.name for shard in plan.done.values()]
            if plan.complete and done == [shard.name for shard in ref.tables[name].shards]:
                kept[name] = ref.tables[name]
        return kept


def content_of(need: Need, shard: ShardFile) -> Any:
    """Return what stands in a key for a shard that is needed: its content, as far as that is needed.

    The content and not only its key: a network's shard may be built again with other bits, and rows of one table are
    positions in another. Where the columns needed are known apart, what else is in the shard does not matter.
    """
    if need.read is not None and shard.columns.keys() >= set(need.read):
        return {name: shard.columns[name] for name in need.read}
    return [shard.key, shard.sha256]


T = TypeVar("T")


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`, the last of them perhaps shorter."""
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def names_in(files: FrameFiles, frames: Sequence[Frame]) -> list[str]:
    """Return the files of some frames, in order."""
    return [name for frame in frames for name in files.names(frame)]
