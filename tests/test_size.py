"""What is too long to be seen at once: no file above 500 lines, and no function above 60 that does not say why."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("afov", "bench", "install", "manifests", "pipeline", "superpixels", "tests", "trainer")
FILES = [str(file.relative_to(ROOT)) for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 500, 60


def too_long(source: str) -> list[str]:
    """Return the functions that are too long, and do not say why in a comment on the line of their `def`."""
    lines, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            head = " ".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
            if (node.end_lineno or 0) - node.lineno >= MOST_LINES_OF_A_FUNCTION and "# long: " not in head:
                found.append(f"{node.name}, {(node.end_lineno or 0) - node.lineno + 1} lines")
    return found


def test_files_are_read_to_their_end() -> None:
    lengths = {path: len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES_OF_A_FILE} == {}


@pytest.mark.parametrize("folder", FOLDERS)
def test_functions_are_seen_at_once_or_say_why_not(folder: str) -> None:
    paths = [path for path in FILES if path.startswith(f"{folder}/")]
    found = {path: too_long((ROOT / path).read_text(encoding="utf-8")) for path in paths}
    assert paths and {path: names for path, names in found.items() if names} == {}


def test_a_long_function_is_found() -> None:
    long = "def f():\n" + "    pass\n" * 60
    assert too_long(long) == ["f, 61 lines"] and too_long(long.replace("():", "():  # long: a table")) == []
    assert too_long("def f():\n" + "    pass\n" * 59) == []
