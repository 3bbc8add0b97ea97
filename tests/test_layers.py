"""Who may import whom, read from the syntax trees: nothing is imported to find out."""

import ast
import graphlib
import importlib.metadata
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("manifests", "superpixels", "pipeline", "trainer", "afov")

MAY_IMPORT = {
    "manifests": {"manifests", "superpixels"},  # sections alone: an algorithm's settings live beside it
    "superpixels": {"superpixels"},
    "pipeline": {"pipeline", "manifests", "superpixels"},
    "trainer": {"trainer", "manifests", "superpixels"},
    "afov": {"afov", "pipeline", "trainer", "manifests"},  # the command over both, each in the function that needs it
}
LEAF_LIBRARIES = {"numpy", "scipy", "skimage", "sklearn", "pyarrow"}
# What the command lines of both sides share.
COMMAND_LINE = (("manifests/console.py", "manifests/pulse.py"), {"typer", "rich"})

# The one door of each heavy package: the modules that may import it, and only inside a function.
DOORS = {
    "ray": re.compile(r"manifests/ray_cluster\.py"),
    "boto3": re.compile(r"manifests/storage/conditional\.py"),
    "botocore": re.compile(r"manifests/storage/conditional\.py"),
    "nuscenes": re.compile(r"pipeline/datasets/nuscenes\.py"),
    "open_clip": re.compile(r"pipeline/teachers/(\w+/)?\w+\.py"),
    "timm": re.compile(r"pipeline/teachers/(\w+/)?\w+\.py"),
    "onnxruntime": re.compile(r"pipeline/teachers/loading/sessions\.py"),
    "cv2": re.compile(r"pipeline/teachers/onnx\.py"),
    "transformers": re.compile(r"pipeline/teachers/loading/pretrained\.py"),
    "torchvision": re.compile(r"pipeline/teachers/(\w+/)?\w+\.py"),
    "open3d": re.compile(r"superpixels/ground\.py|pipeline/look/viewer\.py|bench/city/\w+\.py"),
    "mlflow": re.compile(r"trainer/loop/tracking\.py"),
    "wandb": re.compile(r"trainer/loop/tracking\.py"),
    "mcap": re.compile(r"pipeline/exchange/imports/ros_logs\.py"),
    "mcap_ros2": re.compile(r"pipeline/exchange/imports/ros_logs\.py"),
    "rerun": re.compile(r"pipeline/look/viewer\.py"),
    "MinkowskiEngine": re.compile(r"trainer/network/sparse\.py"),
    "MinkowskiEngineBackend": re.compile(r"trainer/network/sparse\.py"),
}
ONE_MODULE = (("open_clip", "pipeline/teachers/"), ("open3d", "bench/city/"))

# What stands on top of each package, file or folder: all of it imports only from rows above its own.
ORDER = {
    "manifests": (
        ("fingerprint",),
        ("advice", "foreign", "pulse", "shown"),
        ("config",),
        ("ontology", "records", "splits", "templates"),
        ("provenance", "tables"),
        ("query", "sections"),
        ("recipe", "storage"),
        ("endings", "stages"),
        ("asked", "console", "effective", "ray_cluster"),
        ("learnt", "sources"),
        ("labels",),
        ("calibration", "rates"),
    ),
    "superpixels": (
        (
            "class_maps",
            "evidence",
            "flat_config",
            "ground",
            "image_merge",
            "instances",
            "lifting",
            "metrics",
            "places",
            "pooling",
            "reach",
            "returns",
            "similarity",
            "slic",
            "unfit",
        ),
        ("flat_levels", "mask_cache", "mask_queries", "motion", "reliability", "segments", "tracks", "windows"),
        ("calibration", "flat_gate", "voting"),
        ("flat_interaction",),
    ),
    "pipeline": (
        ("lenses",),
        ("frame", "geometry"),
        ("sources",),
        ("datasets", "teachers"),
        ("stages",),
        ("engine",),
        ("checks", "look"),
        ("exchange",),
        ("commands",),
        ("__main__",),
    ),
    "trainer": (
        ("errors",),
        ("data", "network"),
        ("checkpoints", "objectives"),
        ("records",),
        ("loop",),
        ("inference",),
        ("machine", "scoring"),
        ("__main__",),
    ),
    "afov": (
        ("files", "programs", "settings", "verbs", "watching"),
        ("autolabel", "demo"),
        ("commands",),
        ("__main__",),
    ),
}
MOST_ON_TOP = 14  # entries of pipeline and of trainer: more, and a newcomer reads a list instead of a plan
MAY_NAME_LABELS = {
    "trainer/scoring/calibrate.py",
    "trainer/scoring/evaluate.py",
    "trainer/objectives/supervised.py",
}
HOMELESS = {"utils", "util", "helpers", "helper", "common", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported name in full, `a.b.c`, and when: as the module loads, in a call, or for types only."""

    name: str
    line: int
    when: str

    @property
    def package(self) -> str:
        return self.name.split(".")[0]


def imports(path: str, source: str) -> list[Import]:
    return list(_imports(ast.parse(source, path), PurePosixPath(path).parent.parts, "load"))


def _imports(node: ast.AST, package: tuple[str, ...], when: str) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        yield from (Import(alias.name, node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else ()
        origin = ".".join((*base, *([node.module] if node.module else [])))
        yield from (Import(f"{origin}.{alias.name}", node.lineno, when) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "__import__",
        "import_module",
        "importlib.import_module",
    ):
        yield from (Import(str(one.value), node.lineno, when) for one in node.args[:1] if isinstance(one, ast.Constant))
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
        for statement in node.body:
            yield from _imports(statement, package, "types")
        for statement in node.orelse:
            yield from _imports(statement, package, when)
        return
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and when == "load":
        when = "call"
    for child in ast.iter_child_nodes(node):
        yield from _imports(child, package, when)


def violations(path: str, source: str) -> list[str]:
    """Every rule that one module breaks, as sentences with the line."""
    package = path.split("/")[0]
    found = []
    for imported in imports(path, source):
        where = f"{path}:{imported.line}"
        other = imported.package
        if other in PACKAGES and other not in MAY_IMPORT[package]:
            found.append(f"{where}: {package} may not import {other}")
        if package == "afov" and other in ("pipeline", "trainer") and imported.when == "load":
            found.append(f"{where}: {other} must be imported inside the function that needs it")
        sections = path.startswith("manifests/sections/") or path == "manifests/recipe.py"
        if package == "manifests" and other == "superpixels" and not sections:
            found.append(f"{where}: of manifests, only recipe sections may import superpixels")
        if other in DOORS and not DOORS[other].fullmatch(path):
            found.append(f"{where}: {other} may be imported only in {DOORS[other].pattern}")
        if other in DOORS and imported.when == "load":
            found.append(f"{where}: {other} must be imported inside the function that needs it")
        is_library = other not in PACKAGES and other not in sys.stdlib_module_names and other not in DOORS
        allowed = LEAF_LIBRARIES | (COMMAND_LINE[1] if path in COMMAND_LINE[0] else set())
        if package in ("manifests", "superpixels") and is_library and other not in allowed:
            found.append(f"{where}: {package} is a leaf and may not import {other}")
        is_teacher = path.startswith("pipeline/teachers/")
        if package == "pipeline" and other == "torch" and imported.when == "load" and not is_teacher:
            found.append(f"{where}: in pipeline, torch must be imported inside the function that needs it")
        if other == package and not stands_before(package, imported.name.split(".")[1], _room(path)):
            found.append(f"{where}: {_room(path)} may not import {imported.name}, which does not stand before it")
    return found + label_violations(path, source)


def _room(path: str) -> str:
    return PurePosixPath(path).with_suffix("").parts[1]


def stands_before(package: str, imported: str, importing: str) -> bool:
    """Whether a room of a package may be imported by another one of it; a room without a place may not."""
    row_of = {room: row for row, rooms in enumerate(ORDER[package]) for room in rooms}
    if imported == importing:
        return True
    return imported in row_of and importing in row_of and row_of[imported] < row_of[importing]


def cycle(sources: Mapping[str, str]) -> list[str]:
    """Return the modules of one import cycle, in a circle, for sources by path; nothing where there is none.

    An import within a call or for types only counts too: whoever reads one file of a cycle has to read them all.
    """
    paths = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in sources}
    needs: dict[str, set[str]] = {}
    for module, path in paths.items():
        named = {name for imported in imports(path, sources[path]) for name in _and_above(imported.name)}
        needs[module] = {name for name in named if name in paths} - {module}
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def _and_above(name: str) -> tuple[str, ...]:
    """Return the module of an imported name: `a.b.c` may be module a.b.c, or a name in module a.b."""
    return (name, name.rpartition(".")[0])


def label_violations(path: str, source: str) -> list[str]:
    """Places in the trainer where the label table is named although only evaluation may open it.

    `row["label"]` and `{"label": ...}` are columns, which other tables have too, and `== "label"` opens nothing. A
    module that imports nothing of ours has nothing to open a table with.
    """
    if not path.startswith("trainer/") or path in MAY_NAME_LABELS:
        return []
    if not any(imported.package in PACKAGES for imported in imports(path, source)):
        return []
    tree = ast.parse(source)
    harmless = {id(n.slice) for n in ast.walk(tree) if isinstance(n, ast.Subscript) and not _holds_tables(n.value)}
    harmless |= {id(key) for n in ast.walk(tree) if isinstance(n, ast.Dict) for key in n.keys}
    harmless |= {
        id(side)
        for n in ast.walk(tree)
        if isinstance(n, ast.Compare) and all(isinstance(sign, ast.Eq | ast.NotEq) for sign in n.ops)
        for side in (n.left, *n.comparators)
    }
    lines = [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "label" and id(node) not in harmless
    ]
    lines += [imported.line for imported in imports(path, source) if imported.name == "manifests.tables.labels.Label"]
    return [f"{path}:{line}: only evaluation may name the label table" for line in lines]


def _holds_tables(node: ast.expr) -> bool:
    return ast.unparse(node).lower().endswith(("tables", "refs", "identities", "stages"))


MODULES = {str(file.relative_to(ROOT)): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_has_modules_to_look_at(package: str) -> None:
    assert any(path.startswith(f"{package}/") and not path.endswith("__init__.py") for path in MODULES)


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_on_top_of_a_package_has_its_place(package: str) -> None:
    there = {_room(path) for path in MODULES if path.startswith(f"{package}/")} - {"__init__"}
    assert sorted(room for rooms in ORDER[package] for room in rooms) == sorted(there)


@pytest.mark.parametrize("package", ["pipeline", "trainer"])
def test_a_package_is_seen_at_one_glance(package: str) -> None:
    entries = [entry.name for entry in (ROOT / package).iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= MOST_ON_TOP, sorted(entries)


def test_no_modules_import_each_other_in_a_circle() -> None:
    measured = {str(file.relative_to(ROOT)): file for file in sorted((ROOT / "bench").rglob("*.py"))}
    assert cycle({path: file.read_text() for path, file in (MODULES | measured).items()}) == []


@pytest.mark.parametrize("path", [path for path in MODULES if path.endswith("__init__.py")])
def test_a_folder_imports_nothing_on_its_own(path: str) -> None:
    """So that importing one module of a folder imports that one, and a folder is no part of a circle."""
    body = ast.parse(MODULES[path].read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr), "only a docstring"


@pytest.mark.parametrize("path", MODULES)
def test_a_module_keeps_the_import_rules(path: str) -> None:
    assert violations(path, MODULES[path].read_text()) == []


@pytest.mark.parametrize(("library", "folder"), ONE_MODULE)
def test_one_module_of_a_folder_is_the_door(library: str, folder: str) -> None:
    inside = [path for path in MODULES if path.startswith(folder)]
    doors = [path for path in inside if any(i.package == library for i in imports(path, MODULES[path].read_text()))]
    assert len(doors) <= 1


def test_what_we_import_is_a_direct_requirement() -> None:
    requirements = "".join(file.read_text() for file in (ROOT / "install").glob("requirements*.txt"))
    named = {_normal(one) for one in re.findall(r"^\w[\w.-]*", requirements, re.MULTILINE)} | {"minkowskiengine"}
    providers = {
        "rerun": ["rerun-sdk"],
        "mlflow": ["mlflow-skinny"],
        "mcap_ros2": ["mcap-ros2-support"],
        **importlib.metadata.packages_distributions(),
    }  # an extra, often not installed
    used = {i.package for path, file in MODULES.items() for i in imports(path, file.read_text())}
    third_party = used - set(PACKAGES) - set(sys.stdlib_module_names)
    unnamed = {name for name in third_party if named.isdisjoint(map(_normal, providers.get(name, [name])))}
    assert third_party and not unnamed


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution.strip()).lower()


def test_no_module_is_a_drawer_for_leftovers() -> None:
    assert [path for path in MODULES if HOMELESS & set(PurePosixPath(path).with_suffix("").parts)] == []


def test_test_folders_are_not_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


@pytest.mark.parametrize(
    "import_b",
    [
        "import pipeline.b",
        "from pipeline import b",
        "from pipeline.b import name",
        "from .b import name",
        "def f():\n    from pipeline.b import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pipeline.b import name",
    ],
)
def test_a_circle_is_found_however_it_is_imported(import_b: str) -> None:
    sources = {"pipeline/a.py": import_b, "pipeline/b.py": "import pipeline.c", "pipeline/c.py": "import pipeline.a"}
    assert sorted(set(cycle(sources))) == ["pipeline.a", "pipeline.b", "pipeline.c"]
    assert cycle(sources | {"pipeline/c.py": "import numpy"}) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("manifests/storage/store.py", "import pipeline.engine.runner"),
        ("manifests/config.py", "from manifests.recipe import Recipe"),
        ("pipeline/datasets/folder.py", "from pipeline.teachers.base import Teacher"),
        ("pipeline/new.py", "from pipeline.frame import Frame"),
        ("pipeline/engine/runner.py", "from pipeline import new"),
        ("manifests/storage/store.py", "import superpixels"),
        ("manifests/storage/store.py", "def f():\n    import torch"),
        ("superpixels/slic.py", "import numba"),
        ("superpixels/slic.py", "from manifests import schema"),
        ("superpixels/slic.py", "def f():\n    import open3d"),
        ("superpixels/ground.py", "import open3d"),
        ("pipeline/engine/runner.py", "def f():\n    import ray"),
        ("manifests/ray_cluster.py", "import ray"),
        ("manifests/ray_cluster.py", "class Pool:\n    import ray"),
        ("manifests/ray_cluster.py", "try:\n    from ray.util import queue\nexcept ImportError:\n    pass"),
        ("pipeline/stages/index.py", "def f():\n    from nuscenes.nuscenes import NuScenes"),
        ("pipeline/stages/index.py", "import torch"),
        ("pipeline/stages/index.py", "import importlib\ndef f():\n    importlib.import_module('nuscenes')"),
        ("pipeline/stages/index.py", "from trainer import voxels"),
        ("pipeline/teachers/clip_dense.py", "import open_clip"),
        ("afov/commands.py", "from pipeline.commands import build"),
        ("pipeline/commands/build.py", "def f():\n    import afov.demo"),
        ("pipeline/frame.py", "from pipeline.stages import base"),
        ("pipeline/frame.py", "from .engine import runner"),
        ("pipeline/datasets/folder.py", "from ..engine.ray_pool import inline"),
        ("pipeline/engine/runner.py", "def f():\n    from pipeline.commands import console"),
        ("trainer/data/tables.py", "def f():\n    from pipeline.frame import Frame"),
        ("trainer/data/tables.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline"),
        ("trainer/data/tables.py", "def f():\n    import ray"),
        ("trainer/network/minkunet.py", "def f():\n    import MinkowskiEngine as ME"),
        ("trainer/network/sparse.py", "import MinkowskiEngine as ME"),
        ("trainer/objectives/losses.py", "from trainer.loop.train import step"),
        ("trainer/loop/train.py", "from manifests.storage.store import Store\ndef f(store):\n    store.table('label')"),
        (
            "trainer/loop/train.py",
            "from trainer.data import tables\nfor name in ('points', 'label'):\n    tables.read(name)",
        ),
        ("trainer/loop/train.py", "from trainer.data import loading\ndef f(tables):\n    return tables['label']"),
        ("trainer/loop/train.py", "from trainer.data import loading\ndef f(ref):\n    return 'label' in ref.tables"),
        ("trainer/data/tables.py", "from manifests.tables.labels import Label"),
    ],
)
def test_a_module_that_breaks_a_rule_is_found(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "manifests/storage/store.py",
            "import json\nimport numpy as np\nimport pyarrow.parquet as pq\nfrom manifests.tables.base import Rows",
        ),
        ("superpixels/ground.py", "def f():\n    import open3d"),
        ("manifests/ray_cluster.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import ray"),
        ("manifests/ray_cluster.py", "from manifests.recipe import Recipe\ndef f():\n    import ray"),
        ("pipeline/teachers/clip_dense.py", "import torch\ndef f():\n    import open_clip"),
        ("manifests/sections/training.py", "from superpixels.metrics import AbsentRule"),
        (
            "trainer/loop/train.py",
            "import torch\nfrom manifests import store\ndef f(row):\n    return {'label': row['label']}",
        ),
        (
            "trainer/inference/predict.py",
            "from manifests import config\ndef f(names):\n    return [n for n in names if n != 'label']",
        ),
        (
            "trainer/scoring/evaluate.py",
            "from manifests.storage.store import Store\ndef f(store):\n    store.table('label')",
        ),
        ("trainer/data/voxels.py", "import numpy\ndef f():\n    raise ValueError('label')"),
    ],
)
def test_a_module_that_keeps_the_rules_passes(path: str, source: str) -> None:
    assert violations(path, source) == []
