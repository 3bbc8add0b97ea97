"""The notebooks of the docs run from their first cell to their last, in an empty folder, and find what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> str:
    """Return the code cells, one after the other; the last line of each, if it is a value, is printed."""
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells), "outputs are not kept: they would be of another version"
    return "\n\n".join("".join(cell["source"]) for cell in cells)


@pytest.mark.parametrize(
    ("name", "left"),
    [("tables", ["labels/labels.json", "above.png"]), ("teacher", ["net/own.onnx", "own.local.toml"])],
)
def test_a_notebook_runs_in_an_empty_folder(tmp_path: Path, name: str, left: list[str]) -> None:
    if name == "teacher":
        pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    else:
        pytest.importorskip("duckdb", reason="the extra `dev` is not installed")
    [path] = [one for one in NOTEBOOKS if one.stem == name]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", code_of(path)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [one for one in left if not (tmp_path / one).exists()] == []
    if name == "teacher":
        share = float(done.stdout.split("% of these are right")[0].split()[-1])
        assert share > 45, done.stdout


def test_every_notebook_is_run_here() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["tables", "teacher"]
