"""Reading all of it again: which shards are not what was committed."""

from __future__ import annotations

from collections.abc import Callable

from manifests.storage.refs import Ref, TableRef
from manifests.storage.shards import ShardFile
from manifests.storage.store import Store


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
