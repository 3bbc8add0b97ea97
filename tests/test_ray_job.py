"""What `ray job submit --working-dir .` sends to a cluster."""

from __future__ import annotations

import logging
import shutil
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

TRAVEL = {
    "Makefile",
    "install/constraints.txt",
    "manifests/ontologies/nuscenes.toml",
    "manifests/storage/store.py",
    "mine.local.toml",
    "mine.toml",
    "recipes/other.local.toml",
    "pipeline/__main__.py",
    "tests/golden/metrics_iou.npz",
}
STAY = (
    ".git/objects/ab/cdef",
    ".hypothesis/examples/0",
    ".mypy_cache/3.11/pipeline/runner.data.json",
    ".setup.lock",
    "data/city/samples/CAM_FRONT/a.jpg",
    "export/city/labels/a.npy",
    "handed_on.tar",
    "pictures/a.png",
    "pipeline/__pycache__/runner.cpython-311.pyc",
    "reports/city/index.html",
    "runs/city/distill/state.safetensors",
    "store/points/00/scene.parquet",
    "weights/tower.pt",
    "weights/tower.safetensors",
)


def test_nothing_heavy_travels_with_a_job(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    checkout, elsewhere = tmp_path / "checkout", tmp_path / "elsewhere"
    for name in (*(f"checkout/{name}" for name in (*TRAVEL, *STAY)), "elsewhere/bin/python", "elsewhere/lib/torch.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (checkout / ".venv").symlink_to(elsewhere)  # Ray would follow it
    (checkout / "data" / "nuscenes").symlink_to(elsewhere)
    for name in (".gitignore", ".rayignore"):
        shutil.copyfile(ROOT / name, checkout / name)
    create_package(str(checkout), tmp_path / "sent.zip", include_gitignore=True, logger=logging.getLogger("ray"))
    with zipfile.ZipFile(tmp_path / "sent.zip") as sent:
        files = {name for name in sent.namelist() if not name.endswith("/")}
    assert files == TRAVEL | {".gitignore", ".rayignore"}


def test_what_is_laid_over_a_recipe_is_no_secret_of_git_s_list() -> None:
    """A job would be of another recipe, and nobody told: what `make setup` gives git to ignore must not be here."""
    for name in (".gitignore", ".rayignore", ".dockerignore"):
        assert "local" not in "".join(line for line in (ROOT / name).read_text().splitlines() if line[:1] != "#"), name


def test_folders_that_git_ignores_are_not_even_walked_through() -> None:
    # Ray looks at a folder without the slash at its end: a line such as /data/ holds back one by one what lies in it
    ignored = {line for line in (ROOT / ".gitignore").read_text().splitlines() if line and not line.startswith("#")}
    folders = {line.strip("/") for line in ignored if line.endswith("/")}
    lines = {line.strip("/") for line in (ROOT / ".rayignore").read_text().splitlines() if not line.endswith("/")}
    assert folders and folders <= lines
