"""Whether the files that tables were made from are still those.

The trainer, and whoever writes labels, need no data set: they read what was packed. Where the files are at hand all the
same, they are compared with what was noted of them when they were digested (manifests.storage.seen), as a plan of the
pipeline does: one that was replaced stops the run, since it would learn from, be scored on, or label what is not there
any more. What could not be compared is said, and stands in what a run of the trainer writes down.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from manifests.asked import built_otherwise, place_of, ref_of
from manifests.recipe import Recipe
from manifests.records.evaluation import Compared
from manifests.stages import SPECS, with_needs
from manifests.storage.errors import StoreError
from manifests.storage.places import RemotePath, Root, digest_of, looks_at, root_of
from manifests.storage.refs import Ref
from manifests.storage.seen import SeenFile, read_files
from manifests.storage.store import Store

MOST_READ = 256  # files that look otherwise, as after a copy, are read to be sure; of more, so many
LOOKS_AT_ONCE = 32  # threads that ask a file system, perhaps behind a network, how files look


@dataclass(frozen=True)
class _Source:
    """A file of a shard: where it lies, its name there, and what was noted of it."""

    root: Root
    name: str
    seen: SeenFile

    @property
    def looks(self) -> str | None:
        """How it looks now."""
        return looks_at(self.root, self.name)


def compare_files(store: Store, recipe: Recipe, ref: Ref, shards: Collection[str], stages: Collection[str]) -> Compared:
    """Compare the files that some shards were made from with what was noted of them.

    `stages` are the tables that are read, for the advice. Raises StoreError, which names a file, if one holds something
    else now.
    """
    unknown: list[str] = []
    noted = ["index", *(["segment"] if recipe.teacher.reads_files else [])]
    if recipe.data.corrections and not {"mend", "target"}.isdisjoint(stages):
        noted.append("mend")
    sources = list(_sources(store, recipe, ref, shards, noted, unknown))
    with ThreadPoolExecutor(LOOKS_AT_ONCE, thread_name_prefix="look") as threads:
        looks = list(threads.map(lambda source: source.looks, sources))
    gone = [one for one, look in zip(sources, looks, strict=True) if look is None and one.seen.looks is not None]
    other = [one for one, look in zip(sources, looks, strict=True) if look not in (None, one.seen.looks)]
    chosen = other[:: -(-len(other) // MOST_READ)] if other else []
    replaced = [one for one in chosen if _digest(one) != one.seen.sha256]
    if replaced:
        more = f", and {len(replaced) - 1} more of {len(chosen)} that were read," if len(replaced) > 1 else ""
        packed = {"text", *with_needs(recipe, ["points", "pairs", "target"])}
        again = recipe.make("pack", *(stage for stage in SPECS if stage in stages and stage not in packed))
        raise StoreError(
            f"{replaced[0].root / replaced[0].name}{more} holds something else than when the tables were made; restore "
            f"it, or run: {again}"
        )
    if gone:
        unknown.append(f"{len(gone)} files are not there any more, such as {gone[0].root / gone[0].name}")
    if len(chosen) < len(other):
        unknown.append(
            f"{len(other)} files look otherwise than when they were digested, as after a copy; {len(chosen)} of them "
            f"were read and hold the same. To look at all: {recipe.make('pack')}"
        )
    return Compared(len(sources) - len(gone) - len(other) + len(chosen), len(chosen), tuple(unknown))


def _sources(
    store: Store, recipe: Recipe, ref: Ref, shards: Collection[str], noted: Sequence[str], unknown: list[str]
) -> Iterator[_Source]:
    """Yield the files of some shards, as stages `noted` them, that may be here; what is not goes to `unknown`."""
    for stage in noted:
        table = ref.tables.get(stage)
        without = 0
        here: dict[Root, bool] = {}
        for shard in table.shards if table else ():
            if shard.shard not in shards:
                continue
            seen = read_files(store, stage, shard.shard, shard.key)
            without += seen is None
            of_data = seen is None or stage == "index" or seen.place == place_of(recipe)
            root = _data_root(recipe) if of_data or seen is None else Path(seen.place)
            if root not in here:
                here[root] = _is_here(root)
            if here[root] and seen is not None:
                yield from (_Source(root, name, file) for name, file in seen.files.items() if _stays(name))
        unknown += [
            f"{root} cannot be read from here" if isinstance(root, RemotePath) else f"{root} is not on this machine"
            for root, there in here.items()
            if not there
        ]
        if table is None:
            unknown.append(_why_unknown(store, recipe, stage))
        elif without and any(here.values()):
            unknown.append(
                f"how the files of {without} shards of `{stage}` looked is not noted, or the note is damaged"
            )
    if any("is not noted" in one for one in unknown):
        unknown.append(f"to have them looked at: {recipe.make('pack')}")


def _why_unknown(store: Store, recipe: Recipe, stage: str) -> str:
    """Return why there is no table that says from which files the others were made: never built, or built otherwise."""
    own = store.read_ref(ref_of(recipe))
    if own and stage in own.tables:  # new notes say nothing of tables from before
        return f"table `{stage}` was built anew since the others; to have these compared, run: {recipe.make('pack')}"
    if changes := built_otherwise(store, recipe, stage):
        return (
            f"table `{stage}`, which says from which files the others were made, was built otherwise "
            f"({'; '.join(changes)}); to have it built as it is asked for now: {recipe.make('pack')}"
        )
    return f"table `{stage}` is not there, which says from which files the others were made"


def _stays(name: str) -> bool:
    """Return whether the name of a file leads to one below its folder."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts


def _data_root(recipe: Recipe) -> Root:
    """Return the data root, that of this machine by its full name."""
    root = root_of(recipe.data)
    return root if isinstance(root, RemotePath) else Path(place_of(recipe))


def _is_here(root: Root) -> bool:
    """Return whether a folder can be read from this machine."""
    try:
        return root.is_dir()
    except StoreError:
        return False


def _digest(source: _Source) -> str | None:
    try:
        return digest_of(source.root / source.name)
    except OSError:
        return None
