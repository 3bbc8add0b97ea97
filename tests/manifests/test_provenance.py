"""What made a result."""

import subprocess
from pathlib import Path

import pytest

from manifests import provenance


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@example.com")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_commit_is_marked_where_files_were_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "manifests").mkdir()
    module = tmp_path / "manifests" / "provenance.py"
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    assert provenance.git_commit() is None, "there is no checkout"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag is no commit")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert provenance.git_commit() == commit
    module.write_text("changed")
    assert provenance.git_commit() == f"{commit}+"


def test_only_packages_that_are_installed_have_versions() -> None:
    found = provenance.package_versions(("numpy", "no-such-package"))
    assert found.keys() == {"python", "numpy"}
