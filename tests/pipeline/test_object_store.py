"""A recipe whose store is a bucket: the same command line, the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from manifests.storage.store import Store
from pipeline.__main__ import app
from tests.manifests.s3_server import Server
from tests.refs import newest


def test_a_recipe_keeps_its_tables_in_a_bucket(
    shared: Path, tmp_path: Path, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "one.txt").write_text("scene-0008\n")
    recipe = tmp_path / "tiny.toml"

    def run(*words: str) -> str:
        result = CliRunner().invoke(app, [words[0], *words[1:]])
        assert result.exit_code == 0, result.output
        assert "secret" not in result.output
        return result.output

    def tables(uri: str) -> dict[str, str]:
        store = Store.open(uri)
        return {stage: table.shards[0].sha256 for stage, table in newest(store, "tiny").tables.items()}

    bucket = s3.bucket()
    for uri in (bucket.uri(), str(tmp_path / "store")):
        recipe.write_text(
            f'[data]\nroot = "{shared / "golden" / "nuscenes_tiny"}"\nsplit = "{tmp_path / "one.txt"}"\n'
            f'[run]\nstore = "{uri}"\n[teacher]\nname = "artifacts"\nfolder = "unused"\n'
        )
        assert "points: 1 of 1 shards" in run("run", "points", str(recipe))
        assert "everything is built already" in run("run", "points", str(recipe))
        assert "0 damaged" in run("verify", str(recipe))
    assert tables(bucket.uri()) == tables(str(tmp_path / "store"))
    assert {"index", "points"} == tables(bucket.uri()).keys()


def test_tables_are_exported_and_imported_by_name(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the same recipe finds the imported tables built."""
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "one.txt").write_text("scene-0008\n")
    recipe, archive = tmp_path / "tiny.toml", tmp_path / "points.tar"
    recipe.write_text(
        f'[data]\nroot = "{shared / "golden" / "nuscenes_tiny"}"\nsplit = "{tmp_path / "one.txt"}"\n'
        '[teacher]\nname = "artifacts"\nfolder = "unused"\n'
    )

    def run(*words: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        return result.exit_code, result.output

    mine, theirs = ("--set", f"run.store={tmp_path / 'mine'}"), ("--set", f"run.store={tmp_path / 'theirs'}")
    assert run("run", "points", recipe, *mine)[0] == 0
    status, text = run("store", "export", recipe, "index", "points", archive, *mine)
    assert status == 0 and "points" in text and "wrote" in text
    status, text = run("store", "import", archive, "--into", tmp_path / "theirs")
    assert status == 0 and "2 shards were new" in text and "non-commercial" in text, text
    status, text = run("run", "points", recipe, *theirs)  # files are looked at once, and turn out to be the same
    assert status == 0 and text.endswith("points: everything is built already\n")
    assert run("run", "points", recipe, *theirs) == (0, "points: everything is built already\n")
    status, text = run("store", "export", recipe, "target", tmp_path / "b.tar", *mine)
    assert status == 3 and "make target RECIPE=" in text
    status, text = run("store", "export", recipe, "points", tmp_path / "b.tar", *mine, "--set", "data.dataset=folder")
    assert status == 2 and "--licence FILE" in text
