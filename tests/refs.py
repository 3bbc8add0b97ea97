"""Refs and identities in tests: what was written last for a recipe, and what a run would write."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow.fs as pafs

from manifests.asked import asked
from manifests.fingerprint import Settings
from manifests.recipe import Recipe
from manifests.records.table import Identity
from manifests.storage.names import ref_name
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.registry import TABLES


def newest(store: Store, name: str) -> Ref:
    """Return the ref of a recipe of this name that was written last."""
    entries = store.files.entries(f"refs/{name}")
    written = {entry.base_name.split(".")[0]: entry.mtime_ns for entry in entries if entry.type == pafs.FileType.File}
    refs = {ref.key: ref for ref in store.refs().values() if ref.recipe == name and ref.key}
    return refs[max(refs, key=lambda key: written[key])]


NOTHING: Settings = {}


def identity(stage: str, settings: Settings = NOTHING, version: int = 1, **needs: str) -> Identity:
    """Return the identity of a table of a stage, with the columns that it has now."""
    return Identity(stage, version, TABLES[stage].signature(), settings, needs)


def put_ref(store: Store, recipe: Recipe, tables: Mapping[str, TableRef], excluded: Sequence[str] = ()) -> Ref:
    """Write the ref of a recipe as it is now, with these tables, and return it."""
    now = asked(recipe)
    ref = Ref(recipe.name, tables, tuple(excluded), key=now.key, asked=now)
    store.write_ref(ref_name(recipe.name, ref.key), ref)
    return ref
