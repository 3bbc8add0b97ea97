"""Refs: what a recipe, or a training run, stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from manifests.storage.documents import expect_list
from manifests.storage.errors import StoreError
from manifests.storage.names import checked, checked_hex
from manifests.storage.shards import ShardFile, shard_from


@dataclass(frozen=True)
class TableRef:
    """One table of a ref: stage, fingerprint of its identity, and exactly the shards that it stands for."""

    stage: str
    fingerprint: str
    shards: tuple[ShardFile, ...]

    @property
    def rows(self) -> int:
        """Frames in the table, failed ones included."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class Ref:
    """What a name stands for: tables, and the frames that the recipe excludes (their rows exist, users skip them).

    `tables` are complete and hold the same frames. `held` are the recipe's other shards: of a table that is not
    complete yet, or of scenes that are not selected now. Nobody reads them by this ref, but they are not garbage.
    `building` are stage and fingerprint of tables that a run is at: nothing in their folders is garbage.
    """

    recipe: str
    tables: Mapping[str, TableRef]
    excluded: tuple[str, ...] = ()
    held: tuple[TableRef, ...] = ()
    building: tuple[tuple[str, str], ...] = ()

    def table(self, stage: str) -> TableRef:
        """Return one table; raises StoreError naming the make target that builds it."""
        if stage not in self.tables:
            raise StoreError(f"recipe {self.recipe} has no table `{stage}` yet; run: make {stage} RECIPE={self.recipe}")
        return self.tables[stage]


def table_from(document: Any, where: str) -> TableRef:
    """Return the table that a ref describes; raises StoreError if it is malformed or foreign."""
    if not isinstance(document, dict):
        raise StoreError(f"{where} is not a ref of this store; delete it and run again")
    shards = tuple(shard_from(shard, where) for shard in expect_list(document.get("shards"), where))
    return TableRef(checked(str(document.get("stage"))), checked_hex(str(document.get("fingerprint"))), shards)


def building_from(document: Any, where: str) -> tuple[str, str]:
    """Return stage and fingerprint of a table that a ref says is being built; raises StoreError for anything else."""
    match document:
        case [str(stage), str(fingerprint)]:
            return checked(stage), checked_hex(fingerprint)
    raise StoreError(f"{where} is not a ref of this store; delete it and run again")
