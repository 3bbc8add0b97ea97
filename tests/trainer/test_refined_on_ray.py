"""Shards that Ray's workers refine: the bytes of one process, and what becomes of a worker that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manifests.config import ConfigError
from manifests.storage.errors import StoreError
from tests.trainer.test_refine import MIDDLE_ERRS, fill
from tests.trainer.test_refined_table import names_of
from trainer.errors import TrainerError
from trainer.inference.refined_table import refine
from trainer.inference.shard_pool import each_shard

ON_RAY = ("run.pool=ray", "run.workers=2")


@pytest.fixture(autouse=True, scope="module")
def ray_stopped_afterwards() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


def test_ray_writes_the_bytes_of_one_process_and_goes_on_where_it_was_stopped(
    fleet: Any, console: Console, capsys: Any
) -> None:
    fill(fleet, MIDDLE_ERRS)
    alone = refine(fleet.recipe(), console)
    for shard in alone.shards:
        fleet.store.forget("refine", alone.fingerprint, shard)
    capsys.readouterr()
    on_ray = refine(fleet.recipe(*ON_RAY), console)
    assert names_of(on_ray) == names_of(alone) and len(alone.shards) == 3
    assert all(fleet.store.damage("refine", on_ray.fingerprint, shard) is None for shard in on_ray.shards)
    assert "3 shards computed, 0 were there" in capsys.readouterr().out
    fleet.store.forget("refine", on_ray.fingerprint, on_ray.shards[1])
    assert names_of(refine(fleet.recipe(*ON_RAY), console)) == names_of(alone)
    assert "1 shards computed, 2 were there" in capsys.readouterr().out


def test_a_shard_whose_worker_died_is_made_by_another_one(fleet: Any, tmp_path: Path) -> None:
    def make(name: str, given: int) -> int:
        mark = tmp_path / name
        if given == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return 10 * given

    found = dict(each_shard(make, {"a": 1, "b": 2, "c": 3}, fleet.recipe(*ON_RAY)))
    assert found == {"a": 10, "b": 20, "c": 30} and (tmp_path / "b").exists()


def test_what_goes_wrong_in_a_worker_is_told_as_it_is_here(fleet: Any) -> None:
    def make(name: str, given: int) -> int:
        if given == 2:
            raise StoreError(f"shard {name} is damaged")
        os.kill(os.getpid(), signal.SIGKILL)
        return given

    with pytest.raises(StoreError, match=r"^shard b is damaged$"):
        list(each_shard(make, {"b": 2}, fleet.recipe(*ON_RAY)))
    with pytest.raises(TrainerError, match=r"lost the workers of a shard 3 times.* Finished shards are kept"):
        list(each_shard(make, {"a": 1}, fleet.recipe(*ON_RAY)))
    with pytest.raises(ConfigError, match="each worker of a cluster would look for it in a folder of its own"):
        list(each_shard(make, {"a": 1}, fleet.recipe(*ON_RAY, "run.ray_address=auto", "run.store=store")))
