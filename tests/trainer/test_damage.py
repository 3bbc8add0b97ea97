"""Damaged files of a run: every changed byte is noticed, and a run goes on from what is whole."""

import json
import os
import random
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from manifests.records.checkpoint import CheckpointRecord
from manifests.records.codec import as_document, as_record
from manifests.storage import sealed
from manifests.storage.sealed import damage_of, damaged_files, read_lines
from trainer.checkpoints import checkpoint
from trainer.checkpoints.checkpoint import DamagedCheckpoint
from trainer.errors import TrainerError
from trainer.inference.predict import predict
from trainer.loop.train import train

N_DAMAGES = 300


class Tiny(torch.nn.Module):
    """A network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = torch.nn.Linear(2, 4)
        self.final = torch.nn.Linear(4, 3)


def saved(path: Path, **document: Any) -> Path:
    """Write a checkpoint of a tiny network after a step, so that it holds optimiser and random states too."""
    network = Tiny()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network.final(network.trunk(torch.randn(8, 2))).square().mean().backward()
    optimiser.step()
    config = {"voxels": {"size_m": 0.1}}
    said = {"epoch": 1, "epochs": 2, "step": 3, "config": config, **document}
    checkpoint.save(path, network, optimiser, as_record(CheckpointRecord, said))
    return path


def damaged(data: bytes, n: int = N_DAMAGES) -> Iterator[bytes]:
    """Yield so many versions of a file with a bit flipped, or cut off, anywhere in it."""
    rng = random.Random(0)
    for number in range(n):
        place = rng.randrange(len(data))
        if number % 3 == 0:
            yield data[:place]
        else:
            yield data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_every_flip_and_every_cut_of_a_checkpoint_is_noticed_when_it_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.safetensors")
    data, missed = path.read_bytes(), []
    for number, changed in enumerate(damaged(data)):
        path.write_bytes(changed)
        try:
            checkpoint.load(path)
            missed.append(number)
        except DamagedCheckpoint:
            assert damaged_files(tmp_path) != []
    assert missed == []
    path.write_bytes(data)
    assert checkpoint.load(path).document.step == 3
    assert damaged_files(tmp_path) == []


def test_a_checkpoint_whose_digest_goes_by_another_name_is_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.safetensors")
    data = path.read_bytes()
    assert data.count(b'"seal":') == 1
    path.write_bytes(data.replace(b'"seal":', b'"real":'))
    with pytest.raises(DamagedCheckpoint, match="the digest of its bytes is not there"):
        checkpoint.load(path)


def test_a_flip_in_what_a_checkpoint_says_of_itself_is_noticed_without_reading_its_tensors(tmp_path: Path) -> None:
    path = saved(tmp_path / "one.safetensors")
    data = path.read_bytes()
    assert data.count(b'\\"step\\": 3') == 1
    path.write_bytes(data.replace(b'\\"step\\": 3', b'\\"step\\": 7'))
    with pytest.raises(DamagedCheckpoint, match="what it says of itself has changed"):
        checkpoint.read_document(path)


def forged(path: Path, text: str, version: int = 1) -> Path:
    """Write a file of the format before seals that says this of itself."""
    document = text.replace("FORMAT", str(version))
    save_file({"model.final.kernel": torch.zeros(2, 3)}, path, metadata={"checkpoint": document})
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"format": FORMAT, "weights": "x", "step": Infinity}', "holds Infinity, which is no number"),
        ('{"format": FORMAT, "weights": "x", "step": 1e999}', "holds 1e999, which is no number"),
        ('{"format": FORMAT, "weights": "x", "step": NaN}', "holds NaN"),
        ('{"format": FORMAT, "weights": "x", "step": -1}', "its `step` is -1"),
        ('{"format": FORMAT, "weights": "x", "step": "3"}', "its `step` is '3'; expected int"),
        ('{"format": FORMAT, "weights": "x", "step": true}', "its `step` is True; expected int"),
        ('{"format": FORMAT, "weights": "x", "epoch": 1.5}', "its `epoch` is 1.5"),
        ('{"format": FORMAT, "weights": "x", "config": []}', r"its `config` is \[\]; expected an object"),
        ('{"format": FORMAT, "weights": 7}', "its `weights` is 7; expected str"),
        ('{"format": FORMAT}', "does not say which weights"),
        ('{"format": 99}', r"no checkpoint of this trainer \(format 1 or 2\)"),
        ("[" * 100_000, "nested too deep"),
        ('{"format": FORMAT, "weights": "x", "step": ' + "9" * 5000 + "}", "is no checkpoint"),
        ("nonsense", "is no JSON"),
    ],
)
def test_a_document_of_another_kind_is_a_sentence(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DamagedCheckpoint, match=words):
        checkpoint.read_document(forged(tmp_path / "epoch-0001.safetensors", text))


def test_a_file_that_had_a_seal_is_not_taken_for_one_from_before(tmp_path: Path) -> None:
    path = forged(tmp_path / "one.safetensors", '{"format": FORMAT, "weights": "x"}', version=2)
    with pytest.raises(DamagedCheckpoint, match="is damaged"):
        checkpoint.load(path)
    assert [what for _, what in damaged_files(tmp_path)] == ["its seal is missing"]


def as_before_seals(path: Path) -> None:
    """Write a checkpoint anew in format 1, as commit 9af4202 wrote it: no digest but that of the weights."""
    document = as_document(checkpoint.read_document(path)) | {"format": 1}
    document.pop("taught", None)
    save_file(load_file(path), path, metadata={"checkpoint": json.dumps(document)})


def test_a_checkpoint_from_before_seals_is_continued_and_predicts_the_same_bytes(
    fleet: Any, console: Console, tmp_path: Path
) -> None:
    whole = train(fleet.recipe(f"run.runs={tmp_path}/whole"), "distill", console)
    settings = (f"run.runs={tmp_path}/old", "distill.keep_every=1")
    last = train(fleet.recipe(*settings), "distill", console)
    first = checkpoint.epoch_path(last.parent, 1)
    last.unlink()
    as_before_seals(first)
    assert damaged_files(first.parent) == []
    again = checkpoint.load(train(fleet.recipe(*settings), "distill", console))
    assert all(torch.equal(value, again.tensors[name]) for name, value in checkpoint.load(whole).tensors.items())

    before = predict(fleet.recipe(f"predict.checkpoint={whole}"), console)
    as_before_seals(whole)
    files = [fleet.store.local / "predict" / before.fingerprint / shard.name for shard in before.shards]
    content = [file.read_bytes() for file in files]
    for shard in before.shards:
        fleet.store.forget("predict", before.fingerprint, shard)
    after = predict(fleet.recipe(f"predict.checkpoint={whole}"), console)
    assert after == before
    assert [file.read_bytes() for file in files] == content

    data = bytearray(whole.read_bytes())
    (length,) = struct.unpack("<Q", data[:8])
    offset = json.loads(data[8 : 8 + length])["model.final.bias"]["data_offsets"][0]
    data[8 + length + offset] ^= 1
    whole.write_bytes(bytes(data))
    with pytest.raises(DamagedCheckpoint, match="its weights have changed"):
        checkpoint.load(whole)


def test_files_have_the_rights_that_the_umask_leaves(fleet: Any, console: Console) -> None:
    before = os.umask(0o027)
    try:
        train(fleet.recipe("run.checkpoint_steps=1"), "distill", console)
        predict(fleet.recipe(), console)
    finally:
        os.umask(before)
    files = [path for path in (fleet.folder / "runs").rglob("*") if path.is_file()]
    files += [path for path in (fleet.folder / "store" / "predict").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".safetensors", ".json", ".jsonl", ".lock", ".parquet"}
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {
        path.name: "0o640" for path in files
    }


# -- going on ----------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    """Change a bit in the last third of a file."""
    data = bytearray(path.read_bytes())
    data[2 * len(data) // 3] ^= 4
    path.write_bytes(bytes(data))


def test_a_run_goes_on_from_the_newest_whole_state_and_names_the_damaged_one(
    fleet: Any, console: Console, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("distill.epochs=3", "distill.batch_size=5")
    whole = train(fleet.recipe(*settings, f"run.runs={tmp_path}/whole"), "distill", console)
    last = train(fleet.recipe(*settings), "distill", console)
    assert checkpoint.finished_epochs(last.parent) == [2, 3], "keep_every is 0, and there is one to go on from"
    flip(last)
    capsys.readouterr()
    again = train(fleet.recipe(*settings), "distill", console)
    shown = capsys.readouterr().out
    assert f"{last} is damaged: its bytes have changed since it was written" in shown
    assert "It is kept as epoch-0003.safetensors.damaged; going on from epoch-0002.safetensors" in shown
    assert "going on after epoch 2 of 3" in shown
    found, expected = checkpoint.load(again).tensors, checkpoint.load(whole).tensors
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert damaged_files(last.parent) == []
    assert (last.parent / "epoch-0003.safetensors.damaged").is_file(), "nothing is deleted"


def test_who_predicts_with_a_damaged_state_is_told_what_makes_a_whole_one(fleet: Any, console: Console) -> None:
    recipe = fleet.recipe("distill.epochs=2")
    last = train(recipe, "distill", console)
    last.write_bytes(last.read_bytes()[:-1] + b"?")
    with pytest.raises(
        DamagedCheckpoint, match=r"is damaged: .*newest whole state with: make distill RECIPE=\S*street"
    ):
        predict(recipe, console)
    train(recipe, "distill", console)
    assert predict(recipe, console).shards, "what was advised does it"


def test_a_run_without_a_whole_state_is_not_started_over_by_itself(fleet: Any, console: Console) -> None:
    last = train(fleet.recipe("distill.epochs=1", "distill.batch_size=5"), "distill", console)
    flip(last)
    with pytest.raises(TrainerError, match=r"holds no state that is whole: .*epoch-0001.*Pass --fresh"):
        train(fleet.recipe("distill.epochs=1", "distill.batch_size=5"), "distill", console)
    assert last.is_file()


def test_two_states_are_kept_in_the_first_epochs_too(tmp_path: Path) -> None:
    running, before = checkpoint.running_path(tmp_path), checkpoint.running_before_path(tmp_path)
    for step in (1, 2):
        checkpoint.before_running(tmp_path)
        saved(running, step=step, epoch=0)
    assert [checkpoint.read_document(path).step for path in (before, running)] == [1, 2]
    saved(checkpoint.epoch_path(tmp_path, 1), step=3)
    checkpoint.prune(tmp_path, 0)
    flip(checkpoint.epoch_path(tmp_path, 1))
    assert checkpoint.newest(tmp_path).path == running
    saved(checkpoint.epoch_path(tmp_path, 2), step=4)
    checkpoint.prune(tmp_path, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001.safetensors", "epoch-0002.safetensors"]


# -- documents and the log ---------------------------------------------------------------------------------------------


def test_every_flip_and_cut_in_a_folder_of_runs_is_noticed(fleet: Any, console: Console) -> None:
    train(fleet.recipe("distill.epochs=1", "distill.batch_size=5"), "distill", console)
    folder = fleet.folder / "runs" / "street" / "distill"
    assert damaged_files(folder) == []
    for name in ("run.json", "log.jsonl"):
        path, missed = folder / name, []
        data = path.read_bytes()
        for number, changed in enumerate(damaged(data)):
            path.write_bytes(changed)
            if not damage_of(path):
                missed.append(number)
        assert missed == [], name
        path.write_bytes(data)


def lines_of(fleet: Any) -> list[dict[str, Any]]:
    return list(read_lines((fleet.folder / "runs/street/distill/log.jsonl").read_bytes()).documents)


def test_no_line_of_the_log_comes_twice_after_a_run_went_on(fleet: Any, console: Console) -> None:
    settings = ("distill.epochs=3", "distill.batch_size=5", "distill.keep_every=1")
    last = train(fleet.recipe(*settings), "distill", console)
    last.unlink()
    checkpoint.epoch_path(last.parent, 2).unlink()  # as if it had been killed after the first epoch was saved
    train(fleet.recipe(*settings), "distill", console)
    assert [line["event"] for line in lines_of(fleet)] == ["start", "epoch", "start", "epoch", "epoch"]
    assert [line["epoch"] for line in lines_of(fleet) if line["event"] == "epoch"] == [1, 2, 3]
    assert damaged_files(last.parent) == []


def test_half_a_line_is_told_as_what_a_crash_leaves(
    fleet: Any, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("distill.epochs=1", "distill.batch_size=5")
    last = train(fleet.recipe(*settings), "distill", console)
    log = last.with_name("log.jsonl")
    data = log.read_bytes()
    log.write_bytes(data + data.splitlines()[0][:40])
    assert [what for _, what in damaged_files(last.parent)] == [
        "its last line is half: a run was killed while it wrote, or the file was cut off"
    ]
    last.unlink()
    train(fleet.recipe(*settings), "distill", console)
    assert "its last line is half" in capsys.readouterr().out
    assert damaged_files(last.parent) == []


def test_a_damaged_log_is_kept_beside_and_never_sealed_anew(
    fleet: Any, console: Console, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("distill.epochs=2", "distill.batch_size=5", "distill.keep_every=1")
    last = train(fleet.recipe(*settings), "distill", console)
    log = last.with_name("log.jsonl")
    changed = log.read_bytes().replace(b'"epoch": 1, "step"', b'"epoch": 9, "step"')
    log.write_bytes(changed)
    last.unlink()
    train(fleet.recipe(*settings), "distill", console)
    assert "was damaged (line 2: it, or one before it, has changed" in capsys.readouterr().out
    assert log.with_name("log.jsonl.damaged").read_bytes() == changed
    assert [line["epoch"] for line in lines_of(fleet) if line["event"] == "epoch"] == [2]


def test_lines_that_are_gone_are_missed() -> None:
    chain, lines = sealed.NO_CHAIN, []
    for number in range(4):
        text, chain = sealed.chained({"event": "step", "step": number}, chain)
        lines.append(text)
    assert read_lines("".join(f"{line}\n" for line in lines).encode()).damage == ""
    without = read_lines("".join(f"{line}\n" for line in (*lines[:1], *lines[2:])).encode())
    assert without.damage.startswith("line 2: it, or one before it, has changed")
    assert len(without.documents) == 1, "nothing after it can be believed either"
