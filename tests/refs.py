"""Refs in tests: what was written last for a recipe of some name, and a ref as a run would write it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow.fs as pafs

from manifests.asked import ref_of, ref_with
from manifests.recipe import Recipe
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store


def newest(store: Store, name: str) -> Ref:
    """Return the ref of a recipe of this name that was written last."""
    entries = store.files.entries(f"refs/{name}")
    written = {entry.base_name.split(".")[0]: entry.mtime_ns for entry in entries if entry.type == pafs.FileType.File}
    refs = {ref.key: ref for ref in store.refs().values() if ref.recipe == name and ref.key}
    return refs[max(refs, key=lambda key: written[key])]


def put_ref(store: Store, recipe: Recipe, tables: Mapping[str, TableRef], excluded: Sequence[str] = ()) -> Ref:
    """Write the ref of a recipe as it is now, with these tables, and return it."""
    ref = ref_with(recipe, tables, excluded)
    store.write_ref(ref_of(recipe), ref)
    return ref
