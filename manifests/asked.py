"""What a recipe asks for, and which tables of a store are that: no name stands for what it may have stood for once.

A recipe's ref is `<name>/<key>`, and the key is the digest of all that its tables depend on: another `--set`, an edited
file or a namesake in another folder has another ref, and moves no one else's. Whoever opens tables asks here for those
of the recipe at hand; where there are none, the error says in what the nearest differ, and what builds the right ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from manifests.config import changed_values, default_values
from manifests.fingerprint import DIGITS, differences, digest, plain
from manifests.recipe import Recipe
from manifests.records.evaluation import Contents
from manifests.records.table import AskedTable, AskedTables, Built, Columns
from manifests.sections.data import DataConfig
from manifests.splits import split_content
from manifests.stages import fingerprint, identities, with_needs
from manifests.storage.errors import StoreError
from manifests.storage.names import ref_name, scene_of
from manifests.storage.places import is_remote, place_of_root
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store

MOST_DIFFERENCES = 12  # told in one message


def asked(recipe: Recipe) -> AskedTables:
    """Return, readable, all that a recipe's tables depend on: which data, and per table its version and settings.

    A table that the recipe cannot have (`encode` of a teacher that encodes nothing) is left out.
    """
    known = ("dataset", "version", "split", "exclude", "cameras")  # from the first; others count where they are set,
    changed = changed_values(recipe.data)  # so that a new setting moves no ref
    data = {key: value for key, value in asdict(recipe.data).items() if key in known or key in changed}
    for elsewhere in ("root", "ontology", "cache", "cache_gb"):
        data.pop(elsewhere, None)
    if recipe.data.corrections:
        data["corrections"] = str(Path(recipe.data.corrections).expanduser().absolute())
    data["exclude"] = sorted(recipe.data.exclude)
    if recipe.data.split.endswith(".txt"):  # what the file says, not what it is called
        data["split"] = split_content(recipe.data.split)
    tables = {
        name: AskedTable(one.version, plain(one.settings), _columns_digest(one.columns), one.fingerprint)
        for name, one in identities(recipe).items()
    }
    return AskedTables(plain({**data, "root": place_of(recipe)}), tables)


@cache
def _columns_digest(columns: Columns) -> str:
    return digest(columns)


def place_of(recipe: Recipe) -> str:
    """Return the data root as one that means the same in every working folder."""
    return place_of_root(recipe.data.root)


def tables_key(recipe: Recipe) -> str:
    """Return the digest of what a recipe's tables depend on."""
    return asked(recipe).key


def ref_of(recipe: Recipe) -> str:
    """Return the name of a recipe's ref."""
    return ref_name(recipe.name, tables_key(recipe))


def pin(recipe: Recipe, task: str) -> str:
    """Return the name of the ref that keeps the tables of a run in the folder of a recipe, or of predictions there."""
    return f"runs/{recipe.name}-{task}-{digest(str(recipe.folder().absolute()))}"


def own_ref(store: Store, recipe: Recipe) -> Ref:
    """Return what was built for the recipe as it is now; raises StoreError, like `tables_of`, if nothing was."""
    own = store.read_ref(ref_of(recipe))
    return replace(own, words=recipe.words) if own else tables_of(store, recipe, ["index"])


def tables_of(store: Store, recipe: Recipe, stages: Iterable[str]) -> Ref:
    """Return the ref whose tables are those that the recipe at hand asks for, `stages` among them.

    That is the recipe's own ref, or any other that differs only in what `stages` do not need: `evaluate` may vote with
    other constants without a new table of points, and recipes that differ in how a student learns share all tables.
    Tables that came from elsewhere, and whose data set is not on this machine, may be of another root.

    The ref returned names no table that the recipe at hand does not ask for. Raises StoreError if there is none, with
    the differences to the nearest and the command that builds it.
    """
    wanted, stages = asked(recipe), list(stages)
    own = store.read_ref(ref_name(recipe.name, wanted.key))
    candidates, near = [own] if own else [], []
    if own is None or not own.tables.keys() >= set(stages):
        for name, ref in keyed_refs(store).items():
            changes = changes_to(ref.asked, wanted, stages, recipe)
            if not changes:
                candidates.append(ref)
            elif name.split("/")[0] == recipe.name:
                near.append(changes)
    roots = sorted({ref.asked.root for ref in candidates if ref.asked and ref.tables.keys() >= set(stages)})
    if own is None and len(roots) > 1:
        raise StoreError(
            f"store {store.place} has taken in tables of recipe {recipe.name} over several data sets, in "
            f"{', '.join(roots)}; say which of them is meant: --set data.root={roots[0]}"
        )
    found = [
        replace(
            ref,
            tables={name: table for name, table in ref.tables.items() if same_table(ref, wanted, name)},
            words=recipe.words,
        )
        for ref in candidates
        if ref.tables.keys() >= set(stages)
    ]
    packed = {"text", *with_needs(recipe, ["points", "pairs", "target"])}
    if found:  # of several recipes that share what is needed, the one that has most of the rest of this one's too
        return max(found, key=lambda ref: len(packed & ref.tables.keys()))
    command = recipe.make(*(["pack"] if packed.issuperset(stages) else stages))
    if candidates:
        lacking = next(stage for stage in stages if stage not in candidates[0].tables)
        raise StoreError(
            unfinished(store, recipe, lacking)
            or f"recipe {recipe.name} has no table `{lacking}` yet; run: {recipe.make(lacking)}"
        )
    if not near:
        raise StoreError(f"store {store.place} holds nothing of recipe {recipe.name} yet; run: {command}")
    nearest = min(near, key=len)
    listed = "".join(f"\n  {line}" for line in nearest[:MOST_DIFFERENCES])
    more = f"\n  and {len(nearest) - MOST_DIFFERENCES} more" if len(nearest) > MOST_DIFFERENCES else ""
    raise StoreError(
        f"store {store.place} holds no tables of recipe {recipe.name} as it is now; the nearest differ in:"
        f"{listed}{more}\nTake the change back, or build them: {command}"
    )


def unfinished(store: Store, recipe: Recipe, stage: str) -> str:
    """Return why a table is not finished, where the last run that made it, or what it needs, failed on some scenes."""
    own = store.read_ref(ref_of(recipe))
    for name in with_needs(recipe, [stage]):
        if own and name in own.tables:  # it is whole by now, whatever failed once
            continue
        manifest = store.read_manifest(name, fingerprint(recipe, name))
        failed = manifest.how(Built).failures if manifest else ()
        if failed:
            scenes = list(dict.fromkeys(scene_of(shard) for shard, *_ in failed))
            named = ", ".join(scenes[:3]) + (f" and {len(scenes) - 3} more" if len(scenes) > 3 else "")
            return (
                f"table `{stage}` of recipe {recipe.name} is not finished: `{name}` failed in {named} "
                f"({failed[0][2][:200]}). Mend these scenes, exclude frames with data.exclude, or take the scenes "
                f'that are whole with [data] incomplete = "leave out"; then run: {recipe.make(stage)}'
            )
    return ""


def built_otherwise(store: Store, recipe: Recipe, stage: str) -> list[str]:
    """Return in what the nearest table of a stage that there is of the recipe differs from what it asks for, readable.

    None is listed where the recipe has no such table at all.
    """
    wanted = asked(recipe)
    refs = (ref for ref in keyed_refs(store).values() if ref.recipe == recipe.name and stage in ref.tables)
    return min((changes_to(ref.asked, wanted, [stage], recipe) for ref in refs), key=len, default=[])


def contents_of(tables: Iterable[TableRef], scenes: Collection[str]) -> dict[str, dict[str, str]]:
    """Return, by table and shard, the keys and contents that some scenes have, as scores made of them record them."""
    return {
        table.stage: {
            shard.shard: f"{shard.key}.{shard.sha256[:DIGITS]}"
            for shard in table.shards
            if scene_of(shard.shard) in scenes
        }
        for table in tables
    }


def made_anew(then: Contents, tables: Mapping[str, TableRef]) -> list[str]:
    """Return, readable, which shards are others in these tables than `contents_of` once recorded.

    A table that is not among them any more is not one of them.
    """
    found = []
    for stage, before in then.items():
        if stage not in tables:
            continue
        now = contents_of([tables[stage]], {scene_of(shard) for shard in before}).get(stage, {})
        others = sorted(shard for shard in before.keys() | now.keys() if before.get(shard) != now.get(shard))
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            found.append(f"{stage}: shard {others[0]}{more}")
    return found


def same_table(ref: Ref, wanted: AskedTables, name: str) -> bool:
    """Return whether a ref's table is the one that is wanted now."""
    return ref.asked is not None and ref.asked.tables.get(name) == wanted.tables.get(name)


def keyed_refs(store: Store) -> dict[str, Ref]:
    """Return the refs of all recipes of a store by name, as they are and as they were before an edit."""
    return {name: ref for name, ref in sorted(store.refs().items()) if ref.key}


def variants(store: Store, recipe: Recipe) -> dict[str, list[str]]:
    """Return the refs of a recipe of this name under other settings or before an edit, and how they differ from now."""
    now = asked(recipe)
    others = {name: ref for name, ref in keyed_refs(store).items() if ref.recipe == recipe.name}
    others.pop(ref_name(recipe.name, now.key), None)
    names = list(now.tables)
    return {name: changes_to(ref.asked, now, names, recipe) for name, ref in others.items()}


def changes_to(before: AskedTables | None, now: AskedTables, stages: Sequence[str], recipe: Recipe) -> list[str]:
    """Return in what tables that were asked for differ from those of the recipe now, as far as `stages` go; readable.

    Another data root counts, unless the tables were handed on and the recipe's own root is not on this machine.
    """
    before = before or AskedTables({}, {})
    wanted, defaults = now.data, plain(default_values(DataConfig))
    data = {  # earlier versions wrote down what has its default too
        key: value for key, value in before.data.items() if key in wanted or value != defaults.get(key)
    }
    if before.received and not is_remote(now.root) and not Path(now.root).exists():
        data["root"] = now.root
    found = differences({"data": data}, {"data": wanted})
    then, tables = before.tables, now.tables
    lacking = [name for name in stages if name not in tables]
    if lacking:
        fingerprint(recipe, lacking[0])  # raises: the recipe cannot have it
    if all(name in then and then[name].fingerprint == tables[name].fingerprint for name in stages):
        return found
    for name in with_needs(recipe, stages):
        was, will = then.get(name), tables.get(name)
        if was == will or will is None:
            continue
        if was is None:
            found.append(f"{name}: there is no such table")
            continue
        found += was.changes(name, will)
    return found or ["the code that made them: a table that they need has another identity now"]
