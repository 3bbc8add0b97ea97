"""Archives on the hub, with a stand-in of its API: files in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from afov.__main__ import app
from manifests.endings import RunError
from manifests.storage.store import Store
from pipeline.exchange import hub


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hub that takes and gives files of dataset repositories; private ones are noted."""
    folder = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
            assert repo_type == "dataset" and exist_ok
            (folder / repo_id).mkdir(parents=True, exist_ok=True)
            (folder / repo_id / "private").write_text(str(private))

        def upload_file(self, *, path_or_fileobj: str, path_in_repo: str, repo_id: str, **more: Any) -> SimpleNamespace:
            assert more["repo_type"] == "dataset"
            shutil.copy(path_or_fileobj, folder / repo_id / path_in_repo)
            return SimpleNamespace(oid="c0ffee")

    def download(repo_id: str, filename: str, *, repo_type: str, revision: str | None) -> str:
        path = folder / repo_id / filename
        if repo_type != "dataset" or not path.is_file():
            raise FileNotFoundError(f"404: {repo_id}/{filename}")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder


def test_a_recipes_tables_go_to_the_hub_and_come_back_elsewhere(
    stand_in: Path, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(
        f"""
        [data]
        root = "{tiny.path}"
        version = "{tiny.version}"
        [teacher]
        name = "clip_dense"
        model = "tiny"
        weights = "random:0"
        short_side_px = 64
        [text]
        templates = "single"
        [segment]
        scale = 0.1
        """
    )

    def afov(*words: str) -> str:
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, done.output
        return done.output

    afov("run", "mine.toml", "pack")
    assert "me/tables: mine.tar is there, commit c0ffee" in afov("publish", "mine.toml", "me/tables")
    assert (stand_in / "me/tables/private").read_text() == "True"
    assert "shards were new" in afov("fetch", "mine.toml", "me/tables", "--set", "run.store=there")
    here, there = (Store.open(name).refs() for name in ("store", "there"))
    ours, theirs = ({name: ref.tables for name, ref in refs.items()} for refs in (here, there))
    assert any({"points", "pairs", "target", "text"} <= tables.keys() for tables in theirs.values())
    assert all(ours[name][table] == one for name, tables in theirs.items() for table, one in tables.items())
    assert CliRunner().invoke(app, ["publish", "mine.toml", "no repository"]).exit_code == 2
    missing = CliRunner().invoke(app, ["fetch", "mine.toml", "me/others"])
    assert missing.exit_code == 1 and "mine.tar of me/others could not be fetched (FileNotFoundError" in missing.stderr


def test_what_the_hub_refuses_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: Any, **more: Any) -> None:
        raise ConnectionError("no route")

    api: Callable[[], Any] = lambda: SimpleNamespace(create_repo=refuse)  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    with pytest.raises(RunError, match=r"could not be put into me/tables \(ConnectionError: no route\)"):
        hub.publish(tmp_path / "a.tar", "a", hub.Place("me/tables"), public=False)
