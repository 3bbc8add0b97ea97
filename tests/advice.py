"""Every command that a message of ours advises, as the sources have it.

`python -m tests.advice --write` lists them anew in tests/golden/advice.json.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parent.parent
LISTED = ROOT / "tests" / "golden" / "advice.json"
ROOMS = ("afov", "manifests", "superpixels", "pipeline", "trainer")
ANY = "ANY"
"""A target that is only known when the message is made."""

_MAKE = re.compile(
    r"\b[Mm]ake ((?:[a-z]+|ANY)(?: (?:[a-z]+|ANY))*?)(?= RECIPE| ARGS|[^a-zA-Z ]| [A-Z]|$)( RECIPE=\.\.\.)?"
    r"( ARGS=(--[a-z-]+))?"
)
_NO_RECIPE = {"setup", "docs", "bench", "ladder", "city", "demo", "check", "recipes"}


@dataclass(frozen=True, order=True)
class Advised:
    """A command: the file and line that advise it, its targets and its option; `named` whether it names its recipe."""

    path: str
    line: int
    targets: tuple[str, ...]
    option: str = ""
    named: bool = True

    @property
    def form(self) -> str:
        """The command without the recipe."""
        return " ".join(["make", *self.targets, *([self.option] if self.option else [])])


def makefile_targets() -> set[str]:
    """Return all targets of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", text, re.MULTILINE))


def advised() -> list[Advised]:
    """Return every command that is advised, in order."""
    found: list[Advised] = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += commands_of(tree, str(path.relative_to(ROOT)))
    return sorted(found)


def commands_of(tree: ast.Module, path: str) -> Iterator[Advised]:
    """Yield the commands in the messages of a module: those made of a recipe's words, and those written out."""
    told = docstrings(tree)
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "make":
            more = next((one.value for one in node.keywords if one.arg == "more"), None)
            option = str(ast.literal_eval(more)[0]) if isinstance(more, ast.List) else ""
            yield Advised(path, node.lineno, tuple(map(word_of, node.args)), option)
        elif is_text(node) and id(node) not in told and id(node) not in inner:
            yield from written_out(text_of(node), path, node.lineno)


def is_text(node: ast.AST) -> TypeGuard[ast.JoinedStr | ast.Constant]:
    """Return whether a part of a program is a text."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def written_out(text: str, path: str, line: int) -> Iterator[Advised]:
    """Yield the commands in a text that begin with a target."""
    targets = makefile_targets() | {ANY}
    for found in _MAKE.finditer(text):
        words = tuple(found[1].split())
        if words[0] in targets and (found[2] or set(words) <= targets):
            named = bool(found[2]) or set(words) <= _NO_RECIPE
            yield Advised(path, line, words, found[4] or "", named)


def docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of the texts that tell about code, and are told to nobody else; of a command they are its help."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, kinds)]
    return {id(one.value) for body in bodies for one in body if isinstance(one, ast.Expr)}


def word_of(node: ast.expr) -> str:
    """Return an argument of `make`, ANY where it is computed."""
    return str(node.value) if isinstance(node, ast.Constant) else ANY


def text_of(node: ast.JoinedStr | ast.Constant) -> str:
    """Return a text, with ANY in the place of what is computed."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    return "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values)


def listed() -> dict[str, int]:
    """Return how often a module advises a command."""
    found = Counter((one.path, one.form) for one in advised())
    return {f"{path}: {form}": number for (path, form), number in sorted(found.items())}


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    LISTED.write_text(json.dumps(listed(), indent=1) + "\n", encoding="utf-8")
