"""A password in the URI of a store is in no file and on no screen, whatever the commands are, failed ones too."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import pipeline.__main__
import trainer.__main__
from manifests.shown import shown_text
from tests.manifests.s3_server import Server
from tests.trainer.conftest import fleet  # noqa: F401 (a fixture)

CANARY = "CANARY0canary"


def leaks(folder: Path) -> list[str]:
    """The files that hold the canary."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if CANARY.encode() in path.read_bytes()]


def run(app: Any, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run a command with the words that it would see, and look at what it prints."""
    monkeypatch.setattr(sys, "argv", ["afov", *map(str, words)])  # the log file tells the command line
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert CANARY not in result.output + result.stderr, words
    return result.exit_code


def test_commands_of_the_pipeline_keep_the_secret(
    shared: Path, tmp_path: Path, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bucket = s3.bucket()
    (tmp_path / "one.txt").write_text("scene-0008\n")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        f'[data]\nroot = "{shared / "golden" / "nuscenes_tiny"}"\nsplit = "{tmp_path / "one.txt"}"\n'
        f'[run]\nruns = "{tmp_path / "runs"}"\n[teacher]\nname = "artifacts"\nfolder = "unused"\n'
    )
    given = ("--set", f"run.store={bucket.uri('key', CANARY)}")
    app = pipeline.__main__.app
    for words in (
        ("plan", recipe, "points", "--debug"),
        ("run", "points", recipe, "--debug"),
        ("why", recipe, "points"),
        ("status", recipe, "points"),
        ("doctor", recipe),
        ("verify", recipe),
        ("gc", recipe, "--min-age-hours", "0"),
        ("store", "export", recipe, "index", "points", tmp_path / "points.tar"),
        ("store", "mark", recipe),
        ("report", recipe, "--out", tmp_path / "page"),
        ("pictures", recipe),
        ("query", recipe, "car", "--debug"),
        ("run", "target", recipe, "--debug"),
    ):
        run(app, monkeypatch, *words, *given)
    assert run(app, monkeypatch, "verify", recipe, *given) == 0
    wrong = f"s3://key:{CANARY}@nowhere/x?endpoint_override=127.0.0.1:{s3.port}&scheme=http&region=us-east-1"
    for bad in (
        f"run.store={wrong}",
        f"run.stor=s3://k:{CANARY}@b",
        f"run.workers=s3://k:{CANARY}@b",
        f"run.store=s3://k:{CANARY}@ b",
    ):
        assert run(app, monkeypatch, "run", "points", recipe, "--debug", "--set", bad) != 0
    assert leaks(tmp_path) == [] and not any(CANARY.encode() in content for content in bucket.objects().values())
    assert re.search(rb"s3://", b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("afov.log*")))


def test_commands_of_the_trainer_keep_the_secret(
    fleet: Any,  # noqa: F811
    tmp_path: Path,
    s3: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket = s3.bucket()
    for path in fleet.store.local.rglob("*"):
        if path.is_file():
            bucket.put(f"store/{path.relative_to(fleet.store.local)}", path.read_bytes())
    given = ("--set", f"run.store={bucket.uri('key', CANARY)}")
    app = trainer.__main__.app
    for words in (
        ("distill", fleet.recipe_path, "--debug"),
        ("predict", fleet.recipe_path),
        ("evaluate", fleet.recipe_path),
        ("pretrain", fleet.recipe_path, "--set", "pretrain.epochs=0"),
        ("check", fleet.recipe_path, "--json"),
    ):
        run(app, monkeypatch, *words, *given)
    assert (fleet.folder / "runs" / "street" / "distill" / "run.json").exists()
    assert leaks(fleet.folder) == [] and not any(CANARY.encode() in content for content in bucket.objects().values())


def test_a_uri_that_was_taken_for_a_path_is_shown_without_its_password() -> None:
    assert shown_text(f"s3:/KEY:{CANARY}@bucket/p holds nothing") == "s3:/bucket/p holds nothing"
    assert shown_text(f"s3://KEY:{CANARY}@bucket/p") == "s3://bucket/p"
