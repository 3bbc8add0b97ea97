"""docs/files.md and the plan in docs/architecture.md: of the modules and folders that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from afov.files import PACKAGES, files_document, first_line

ROOT = Path(__file__).resolve().parent.parent


def test_the_page_of_files_is_made_of_their_first_lines() -> None:
    page = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
    assert page == files_document(ROOT), "run: make docs"


def test_every_module_says_what_it_is_in_one_line() -> None:
    modules = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    silent = [path for path in modules if not first_line(path) and path.read_text(encoding="utf-8").strip()]
    assert modules and silent == []


@pytest.mark.parametrize("package", ["manifests", "pipeline", "trainer"])
def test_the_plan_names_every_folder(package: str) -> None:
    plan = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("```")[1]
    named = set(re.findall(r"(\w+)/", plan))
    folders = {path.name for path in (ROOT / package).iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert folders <= named
