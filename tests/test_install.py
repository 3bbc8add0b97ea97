"""The package as others get it: a wheel, in an environment that is not the checkout's, used outside of the checkout."""

from __future__ import annotations

import os
import re
import site
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from install import setup

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("afov", "manifests", "superpixels", "pipeline", "trainer", "bench/city")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout's tracked files, built in a copy."""
    place = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = listed.stdout.splitlines() if listed.returncode == 0 else everything()
    for name in files:
        if (ROOT / name).is_file():
            (place / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "checkout" / name).write_bytes((ROOT / name).read_bytes())
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", place, place / "checkout"]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
    return next(place.glob("*.whl"))


def everything() -> list[str]:
    """Return the files of a checkout that git does not know."""
    parts = ["install", "pyproject.toml", "README.md", "LICENSE", *(name.split("/")[0] for name in PACKAGES)]
    found = [path for part in parts for path in (ROOT / part, *(ROOT / part).rglob("*"))]
    return [str(path.relative_to(ROOT)) for path in found if path.is_file() and "__pycache__" not in path.parts]


@pytest.fixture(scope="module")
def second(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel, which finds other packages where the tests' own are."""
    folder = tmp_path_factory.mktemp("second")
    subprocess.run([os.path.realpath(sys.executable), "-m", "venv", "--without-pip", folder], check=True)
    place = next(folder.glob("lib/python*/site-packages"))
    (place / "first.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    words = ["--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, "-m", "pip", *map(str, words)], check=True)
    return folder / "bin"


def test_the_wheel_holds_every_module_and_data_file_and_nothing_else_of_the_checkout(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc"
    }
    assert inside == wanted


def test_what_is_needed_is_what_install_lists_and_all_of_it_is_pinned() -> None:
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    lists = {document["dependencies"]["file"], *(one["file"] for one in document["optional-dependencies"].values())}
    assert lists == {str(path.relative_to(ROOT)) for path in (ROOT / "install").glob("requirements*.txt")}
    pinned = {normal(name) for name in names((ROOT / "install" / "constraints.txt").read_text())}
    for path in lists - {"install/requirements-logging.txt"}:
        assert {normal(name) for name in names((ROOT / path).read_text())} <= pinned, path


def test_the_image_installs_the_system_packages_that_set_up_names() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert set(setup.RUNTIME_PACKAGES) <= set(text.split())
    copied = {words[1] for words in map(str.split, text.splitlines()) if words[:1] == ["COPY"]}
    assert set(PACKAGES) <= copied and all((ROOT / name).exists() for name in copied)


def test_the_version_is_the_same_wherever_it_is_told() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"version: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text()


def names(text: str) -> list[str]:
    """Return the packages that a list of requirements names."""
    return re.findall(r"^\w[\w.-]*", text, re.MULTILINE)


def normal(name: str) -> str:
    """Return a package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def test_a_stranger_installs_the_wheel_runs_the_tiny_demo_and_hands_tables_on(second: Path, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AFOV", "COV"))}
    kept["COLUMNS"] = "200"
    (tmp_path / "pipeline").mkdir()  # what lies in the working folder is not taken for ours
    (tmp_path / "pipeline" / "__init__.py").write_text("raise SystemExit('this is not the pipeline')")

    def afov(*words: str, at: Path = tmp_path) -> str:
        done = subprocess.run([second / "afov", *words], cwd=at, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "nuscenes_mini" in afov("recipes")
    short = ("run.progress=false", "run.pool=inline", "pretrain.epochs=1", "distill.epochs=1")
    as_told = [word for one in short for word in ("--set", one)]
    told = afov("demo", "--size", "tiny", *as_told)
    assert "[9/9]" in told and "pseudo-labels + AFI" in told and "city_scratch" in told
    assert (tmp_path / "reports" / "city" / "index.html").is_file()
    assert "everything is built already" in afov("run", "city", "pack", "--set", "run.pool=inline")
    assert "labels: " in afov("labels", "city", "--of", "predict", "--as", "npy,ply", *as_told)
    written = {path.suffix for path in (tmp_path / "labels" / "city").rglob("*") if path.is_file()}
    assert {".npy", ".ply", ".json", ".csv"} <= written

    afov("share", "city", str(tmp_path / "city.tar"))
    other = tmp_path / "elsewhere"  # without any raw data
    other.mkdir()
    assert "shards were new" in afov("receive", str(tmp_path / "city.tar"), at=other)
    on_all = ("pretrain.split=all", "distill.split=all", "network.engine=torch", *short)
    for task in ("pretrain", "distill"):
        afov(task, "city", *(word for one in on_all for word in ("--set", one)), at=other)
    assert "city/distill" in afov("runs", at=other)
