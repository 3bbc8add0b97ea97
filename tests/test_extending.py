"""docs/extending.md: what it says to add is added to a copy of the code, and runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from manifests.storage.store import Store
from tests.pipeline.test_content import Log

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PACKAGES = ("manifests", "superpixels", "pipeline", "trainer")
EDIT = re.compile(r"^(New file|In) `([^`]+)`:\n\n```(?:python|diff)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MOST_EXISTING = 4


def sections() -> dict[str, list[tuple[str, str, str]]]:
    """Return what each section of the page says to do: new file or in one, its path, the block."""
    parts = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return {name: EDIT.findall(text) for name, text in zip(parts[::2], parts[1::2], strict=True)}


def patched(text: str, diff: str) -> str:
    """Return a text with the hunks of a diff applied, each of which fits in one place only."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] in " -")
        after = "".join(line[1:] for line in lines if line[0] in " +")
        assert f"\n{text}".count(f"\n{before}") == 1, f"does not fit in one place:\n{before}"
        text = f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:]
    return text


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with all examples of the page in place."""
    folder = tmp_path_factory.mktemp("code")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for edits in sections().values():
        for kind, path, block in edits:
            file = folder / path
            assert file.exists() == (kind == "In"), path
            file.write_text(patched(file.read_text(), block) if kind == "In" else block)
    return folder


def run(code: Path, *words: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(code)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=code, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_examples_touch_few_files_that_are_there() -> None:
    touched = {name: [path for kind, path, _ in edits if kind == "In"] for name, edits in sections().items()}
    assert touched.keys() == {"A stage", "A teacher", "An objective", "A data set"}
    for name, paths in touched.items():
        assert 1 <= len(paths) == len(set(paths)) <= MOST_EXISTING, (name, paths)


def test_the_examples_keep_the_rules_of_style(code: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), *PACKAGES],
        cwd=code,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_the_new_stage_builds_its_table_from_the_new_data_set(code: Path, tmp_path: Path) -> None:
    sweep = np.array([[3, 4, 0, 0.5], [0, 0, 2, 0.1]], np.float32)
    (tmp_path / "logs" / "day").mkdir(parents=True)
    np.save(tmp_path / "logs" / "day" / "0.npy", sweep)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'[data]\ndataset = "arrays"\nroot = "{tmp_path / "logs"}"\nsplit = "all"\n[ranges]\nmax_m = 4.5\n'
        f'[teacher]\nname = "brightness"\n[run]\nstore = "{tmp_path / "store"}"\npool = "inline"\n'
    )
    run(code, "pipeline", "run", "ranges", str(recipe))
    store = Store.open(str(tmp_path / "store"))
    (shard,) = (tmp_path / "store" / "ranges").rglob("*.parquet")
    import pyarrow.parquet as pq

    assert store and np.frombuffer(pq.read_table(shard).column("range_m")[0].as_py(), np.float32).tolist() == [4.5, 2]
    assert "everything is built already" in run(code, "pipeline", "run", "ranges", str(recipe))


def test_the_new_objective_learns_from_what_the_new_teacher_named(code: Path, tmp_path: Path) -> None:
    Log(tmp_path / "logs").write()
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'[data]\ndataset = "folder"\nroot = "{tmp_path / "logs"}"\nsplit = "all"\n[teacher]\nname = "brightness"\n'
        f'[visibility]\nsplit = "all"\nepochs = 1\nbatch_size = 2\n[network]\nengine = "torch"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\nruns = "{tmp_path / "runs"}"\npool = "inline"\nloader_workers = 0\n'
    )
    run(code, "pipeline", "run", "pack", str(recipe))
    assert "epoch 1/1: loss" in run(code, "trainer", "visibility", str(recipe))
    assert (tmp_path / "runs" / "mine" / "visibility" / "epoch-0001.safetensors").is_file()
