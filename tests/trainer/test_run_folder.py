"""A run's folder and what it learns from: what it goes on from, and what it refuses."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from manifests.asked import pin, tables_of
from manifests.config import ConfigError
from manifests.recipe import load_recipe
from manifests.storage.errors import StoreError
from manifests.storage.refs import TableRef
from manifests.tables.sensors import Points
from tests.refs import put_ref
from trainer.checkpoints import checkpoint
from trainer.errors import TrainerError
from trainer.loop.run_folder import locked
from trainer.loop.train import train


def test_a_finished_run_is_left_as_it_is(fleet: Any, console: Console, capsys: Any) -> None:
    path = train(fleet.recipe(), "distill", console)
    before = path.stat().st_mtime_ns
    assert train(fleet.recipe(), "distill", console) == path
    assert path.stat().st_mtime_ns == before
    assert "is finished (2 epochs)" in capsys.readouterr().out


def test_another_configuration_is_not_mixed_in(fleet: Any, console: Console) -> None:
    path = train(fleet.recipe(), "distill", console)
    changed = fleet.recipe("distill.lr_head=0.3", "voxels.size_m=0.5", "run.batch_size=7", "distill.keep_every=1")
    with pytest.raises(TrainerError) as caught:
        train(changed, "distill", console)
    lines = str(caught.value).splitlines()
    assert lines[1:-1] == ["  distill.lr_head: 0.2 -> 0.3", "  voxels.size_m: 0.4 -> 0.5"]
    assert "--fresh" in lines[-1]
    assert path.is_file()


def test_other_frames_are_another_configuration(fleet: Any, console: Console) -> None:
    train(fleet.recipe(), "distill", console)
    with pytest.raises(TrainerError, match=r"frames.number: 5 -> 4"):
        train(fleet.packed("data.exclude=['a1']"), "distill", console)


def test_fresh_moves_the_old_run_aside_with_its_tables(fleet: Any, console: Console) -> None:
    old = train(fleet.recipe(), "distill", console)
    tables = fleet.store.expect_ref(pin(fleet.recipe(), "distill")).tables
    digest = checkpoint.read_document(old).weights
    new = train(fleet.recipe("distill.seed=1"), "distill", console, fresh=True)
    aside = fleet.folder / "runs/street/distill.old-1" / old.name
    assert checkpoint.read_document(aside).weights == digest != checkpoint.read_document(new).weights
    assert fleet.store.expect_ref(pin(fleet.recipe(), "distill.old-1")).tables == tables
    train(fleet.recipe("distill.seed=2"), "distill", console, fresh=True)
    assert (fleet.folder / "runs/street/distill.old-2").is_dir()


def test_resume_never_refuses_a_folder_in_use(fleet: Any, console: Console) -> None:
    train(fleet.recipe(), "distill", console, resume="never")
    with pytest.raises(TrainerError, match=r"epoch-0002.safetensors already"):
        train(fleet.recipe(), "distill", console, resume="never")


def test_two_runs_do_not_share_a_folder(fleet: Any, console: Console) -> None:
    with (
        locked(fleet.folder / "runs/street/distill"),
        pytest.raises(TrainerError, match=f"another run is writing.*process {os.getpid()} on"),
    ):
        train(fleet.recipe(), "distill", console)
    train(fleet.recipe(), "distill", console)


@pytest.mark.parametrize("error", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_sentence(
    fleet: Any, console: Console, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lustre mounted without -o flock, NFS without lockd."""

    def refused(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(TrainerError, match=r"distill.lock cannot be locked: .*set run.runs to a folder that lies else"):
        train(fleet.recipe(), "distill", console)


def test_a_loss_that_is_not_finite_names_the_frames(fleet: Any, console: Console) -> None:
    def broken(name: str) -> Points:
        row: Points = fleet.points_row(name)
        return replace(row, intensity=np.full_like(row.intensity, np.nan)) if name == "b0" else row

    fleet.put("points", broken)
    with pytest.raises(TrainerError, match=r"not finite in epoch 1 \(total nan.*on frames b0\.") as caught:
        train(fleet.recipe("distill.batch_size=1"), "distill", console)
    assert "data.exclude" in str(caught.value)


@pytest.mark.parametrize(("task", "table"), [("pretrain", "pairs"), ("pretrain", "text"), ("distill", "target")])
def test_a_missing_table_names_its_make_target(fleet: Any, console: Console, task: Any, table: str) -> None:
    fleet.drop_table(table)
    with pytest.raises(StoreError, match=rf"make {table} RECIPE=\S*street"):
        train(fleet.recipe(), task, console)


def test_an_empty_store_and_an_empty_split_are_sentences(fleet: Any, console: Console, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"make pack RECIPE=\S*street"):
        train(fleet.recipe(f"run.store={tmp_path}/other"), "distill", console)
    with pytest.raises(ConfigError, match="split 'verify' of nuscenes is empty here"):
        train(fleet.recipe("distill.split=verify"), "distill", console)


def test_another_dictionary_than_the_tables_is_refused(fleet: Any, console: Console) -> None:
    for task in ("pretrain", "distill"):
        with pytest.raises(StoreError, match=r"(?s)no tables of recipe street as it is.*ontology.classes.*make pack"):
            train(fleet.recipe("data.ontology=nuscenes"), task, console)


def test_tables_of_other_settings_are_refused_with_the_difference_and_the_command(fleet: Any, console: Console) -> None:
    other = fleet.recipe("target.labels=vote+correct", "group.policy=last_camera")
    with pytest.raises(StoreError) as told:
        train(other, "distill", console)
    for words in (
        'group.policy: (default) -> "last_camera"',
        'target.labels: (default) -> "vote+correct"',
        "make pack RECIPE=",
        "--set target.labels=vote+correct --set group.policy=last_camera",
    ):
        assert words in str(told.value)
    assert not (fleet.folder / "runs" / "street" / "distill").exists(), "and nothing was trained"
    # which points belong together does not depend on what they are called, so TMP is not asked for again
    assert tables_of(fleet.store, fleet.recipe("group.policy=last_camera"), ["points", "pairs", "text"])


def test_of_recipes_that_share_what_is_needed_the_one_counts_that_has_most_of_the_rest(fleet: Any) -> None:
    shared_tables = {name: fleet.ref().table(name) for name in ("index", "points") if name in fleet.ref().tables}
    for labels in ("vote", "correct", "vote+correct"):
        more = {name: TableRef(name, "0123456789ab", ()) for name in ("vote", "correct", "group")}
        put_ref(fleet.store, fleet.recipe(f"target.labels={labels}"), shared_tables | more)
    found = tables_of(fleet.store, fleet.recipe("vote.reach=3"), ["points"])
    assert found.table("target") == fleet.ref().table("target"), "by which seen points are told from others"


def test_a_namesake_in_another_folder_neither_reads_nor_moves_what_is_not_its_own(fleet: Any, console: Console) -> None:
    before = fleet.store.refs()
    there = fleet.folder / "b" / "street.toml"
    there.parent.mkdir()
    there.write_text(fleet.recipe_path.read_text() + "\n[group]\nmin_points = 3\n")
    with pytest.raises(StoreError, match=r"(?s)group.min_points: \(default\) -> 3.*make pack RECIPE=\S*/b/street.toml"):
        train(load_recipe(there), "distill", console)
    assert fleet.store.refs() == before


def test_a_student_starts_from_no_pre_training_of_another_recipe(fleet: Any, console: Console) -> None:
    train(fleet.recipe("pretrain.epochs=1"), "pretrain", console)
    with pytest.raises(TrainerError, match=r"(?s)is of another recipe.*pretrain.epochs: 1 -> 2.*make pretrain"):
        train(fleet.recipe("distill.init=pretrain"), "distill", console)
    assert train(fleet.recipe("distill.init=pretrain", "pretrain.epochs=1"), "distill", console)
