"""Files behind the tables: compared where they are at hand, and what was not compared is said."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from manifests import sources, stages
from manifests.asked import tables_of
from manifests.fingerprint import looks_of, sha256_file
from manifests.records.evaluation import Compared
from manifests.sources import compare_files
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.storage.seen import SeenFile, SeenFiles, write_files
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Failed
from manifests.tables.sensors import Index
from tests.refs import put_ref
from trainer.loop.train import train

SCENES = {"scene-0061", "scene-0655", "scene-0103"}


@pytest.fixture
def noted(fleet: Any) -> Any:
    """The fleet with a file a scene in its data root, and notes on how they look."""
    fleet.put("index", lambda name: Failed(name, "never looked at"))
    root = Path(fleet.recipe().data.root)
    root.mkdir(parents=True, exist_ok=True)
    for shard in fleet.ref().tables["index"].shards:
        path = root / f"{shard.shard}.bin"
        path.write_bytes(shard.shard.encode())
        files = {path.name: SeenFile(looks_of(path), sha256_file(path)), "../out": SeenFile(None, "0" * 64)}
        write_files(fleet.store, "index", shard.shard, shard.key, SeenFiles(str(root), files))
    return fleet


def compared(fleet: Any, *shards: str) -> Compared:
    return compare_files(fleet.store, fleet.recipe(), fleet.ref(), set(shards) or SCENES, ["points"])


def test_a_replaced_file_stops_whoever_reads_its_shard(noted: Any, console: Console) -> None:
    root = Path(noted.recipe().data.root)
    assert compared(noted) == Compared(files=3)
    (root / "scene-0061.bin").write_bytes(b"another one")
    assert compared(noted, "scene-0103") == Compared(files=1)
    with pytest.raises(StoreError, match=r"scene-0061.bin holds something else .* run: make pack RECIPE=\S*street"):
        compared(noted)
    with pytest.raises(StoreError, match=r"scene-0061.bin holds something else"):
        train(noted.recipe("distill.epochs=1"), "distill", console)


def test_a_touched_file_is_read_and_of_many_so_many(noted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in Path(noted.recipe().data.root).glob("*.bin"):
        os.utime(path, ns=(1, 1))
    assert compared(noted) == Compared(files=3, read=3)
    monkeypatch.setattr(sources, "MOST_READ", 2)
    found = compared(noted)
    assert (found.files, found.read) == (2, 2) and "3 files look otherwise" in found.not_compared[0]


def test_what_could_not_be_compared_is_said_and_written_down(noted: Any, console: Console, capsys: Any) -> None:
    root = Path(noted.recipe().data.root)
    (root / "scene-0061.bin").unlink()
    note = next(noted.store.local.glob("seen/scene-0655.*"))
    note.write_bytes(note.read_bytes()[:-1])
    train(noted.recipe("distill.epochs=1"), "distill", console)
    record = json.loads((noted.folder / "runs/street/distill/run.json").read_text())
    said = [
        f"1 files are not there any more, such as {root}/scene-0061.bin",
        "how the files of 1 shards of `index` looked",
    ]
    assert record["sources"]["files"] == 0
    shown = " ".join(capsys.readouterr().out.split())
    for sentence in said:
        assert sentence in shown
        assert any(one.startswith(sentence) for one in record["sources"]["not_compared"])
    root.rename(root.with_name("gone"))
    assert compared(noted).not_compared == (f"{root} is not on this machine",)


def test_an_index_of_an_earlier_version_is_not_said_to_be_missing(noted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = stages.SPECS["index"]
    monkeypatch.setitem(stages.SPECS, "index", replace(spec, version=spec.version + 1))
    recipe = noted.recipe()
    (sentence,) = compare_files(
        noted.store, recipe, tables_of(noted.store, recipe, ["points"]), SCENES, ["points"]
    ).not_compared
    assert f"index: made by version {spec.version} of the stage, which is {spec.version + 1} now" in sentence
    assert "was built otherwise" in sentence and "make pack RECIPE=" in sentence
    made = stages.fingerprint(recipe, "index")
    rows = {shard: [Failed(name, "never looked at") for name in names] for shard, names in noted.frames.items()}
    shards = tuple(noted.store.write("index", made, one, "0" * 12, to_arrow(rows[one], Index)) for one in rows)
    put_ref(noted.store, recipe, {"index": TableRef("index", made, shards)})
    (sentence,) = compare_files(
        noted.store, recipe, tables_of(noted.store, recipe, ["points"]), SCENES, ["points"]
    ).not_compared
    assert "table `index` was built anew since the others" in sentence and "make pack RECIPE=" in sentence
