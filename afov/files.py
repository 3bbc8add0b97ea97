"""docs/files.md: every module of the code with the first line of its docstring, folder by folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("afov", "manifests", "superpixels", "pipeline", "trainer", "bench")

HEAD = """# Files

Every module of the code, and what it says of itself in its first line. `make docs` writes this page;
[architecture.md](architecture.md) has the plan behind it.
"""


def files_document(root: Path) -> str:
    """Return the page, of the checkout in a folder."""
    return "\n".join([HEAD, *(line for package in PACKAGES for line in lines_of(root, root / package))])


def lines_of(root: Path, folder: Path) -> Iterator[str]:
    """Yield the lines of a folder and of those in it."""
    name = folder.relative_to(root).as_posix()
    about = first_line(folder / "__init__.py")
    yield f"{'#' * min(2 + name.count('/'), 4)} `{name}/`\n"
    yield from [f"{about}\n"] if about else []
    modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
    yield from (f"- `{path.name}` {first_line(path)}".rstrip() for path in modules)
    yield ""
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and any(path.glob("*.py"))):
        yield from lines_of(root, inner)


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring, empty without one."""
    if not path.is_file():
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0]
