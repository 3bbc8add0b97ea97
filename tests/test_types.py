"""How many annotations say nothing of what they hold: `dict[str, Any]` and its like, read from the syntax trees."""

import ast
from collections.abc import Collection, Iterator

import pytest

from tests.test_layers import PACKAGES, ROOT

MOST_LOOSE = 29
"""Of all packages together. A document is a dataclass in manifests/records, a row one in manifests/tables; values whose
names are those of a recipe or of packages are `manifests.fingerprint.Settings`, which hold nothing that JSON does not.
"""

MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping", "defaultdict", "OrderedDict"}


def name_of(node: ast.expr) -> str:
    """Return the last word of a name, dotted or not; empty for any other expression."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def is_loose(node: ast.AST, aliases: frozenset[str] = frozenset()) -> bool:
    """Return whether a node is a mapping from strings to anything whatever, spelt out or by a name given to it."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in aliases:
        return True
    if not (isinstance(node, ast.Subscript) and name_of(node.value) in MAPPINGS and isinstance(node.slice, ast.Tuple)):
        return False
    key, value = node.slice.elts
    return name_of(key) == "str" and name_of(value) in ("Any", "object")


def loose(tree: ast.Module, given: Collection[tuple[str, str]] = ()) -> list[int]:
    """Return the lines of every such annotation; `given` are the names that other modules give to one."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if (node.module, alias.name) in given
    }
    aliases = frozenset({*aliases_in(tree), *imported})
    return [node.lineno for node in ast.walk(tree) if isinstance(node, ast.expr) and is_loose(node, aliases)]


def aliases_in(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a module gives to such a mapping."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.value is not None and is_loose(node.value):
            yield name_of(node.target)
        elif isinstance(node, ast.Assign) and is_loose(node.value):
            yield from map(name_of, node.targets)


def test_few_annotations_say_nothing_of_what_they_hold() -> None:
    sources = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    trees = {path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8")) for path in sources}
    given = {(".".join(path.with_suffix("").parts), name) for path, tree in trees.items() for name in aliases_in(tree)}
    found = [f"{path}:{line}" for path, tree in trees.items() for line in loose(tree, given)]
    assert len(found) <= MOST_LOOSE, "\n".join([f"{len(found)} annotations, at most {MOST_LOOSE}:", *found])
    assert len(found) > MOST_LOOSE - 10, f"there are {len(found)} by now: lower MOST_LOOSE"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(row: dict[str, Any]) -> None: ...", 1),
        ("def f() -> list[typing.Mapping[str, object]]: ...", 1),
        ("Row = dict[str, Any]\ndef f(row: Row) -> Row: ...", 3),
        ("x: dict[str, dict[str, Any]] = {}", 1),
        ("def f(counts: dict[str, int], by: dict[int, Any]) -> dict[str, list[Any]]: ...", 0),
    ],
)
def test_every_spelling_is_counted(source: str, count: int) -> None:
    assert len(loose(ast.parse(source))) == count


def test_a_name_that_another_module_gives_is_counted() -> None:
    source = "from a.b import Row as R, Column\ndef f(row: R, column: Column) -> None: ..."
    assert len(loose(ast.parse(source), {("a.b", "Row")})) == 1
