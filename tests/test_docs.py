"""Pages: every link leads somewhere, every command is one that exists, the site builds, the README's own path runs."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from afov.__main__ import app
from afov.verbs import JOBS
from manifests.config import RECIPES
from pipeline.stages.registry import STAGES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
# Without those that are generated, and the page that the addresses stand on.
WRITTEN = [page for page in PAGES if page.name not in ("settings.md", "files.md", "data.md", "glossary.md")]
VERBS = {verb for verbs in JOBS.values() for verb in verbs}
README_LINES = 120


def anchor_of(heading: str) -> str:
    """Return a heading's anchor, as GitHub and the site have it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain))


def prose(path: Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        assert page.exists(), f"{path.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
            assert anchor in map(anchor_of, headings), f"{path.name} links to {target}"


def homes() -> dict[str, str]:
    """Return the address of each data set, model and tool of the glossary's second table."""
    _, _, table = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").partition("## Data sets")
    return dict(re.findall(r"^\| ([^|]+) \| <(\S+)> \|$", table, re.MULTILINE))


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_what_a_page_names_it_links_once(path: Path) -> None:
    text = re.sub(r"<!--.*?-->|`[^`\n]*`|^#.*?$|https?://[^\s)]+", "", prose(path), flags=re.MULTILINE | re.DOTALL)
    linked = " ".join(re.findall(r"\[([^\]]*)\]\(", text))
    assert len(homes()) > 30
    for name in homes():
        named = re.compile(rf"(?<![\w/.-]){re.escape(name)}(?![\w/-]|\.\w)")
        assert named.search(linked) or not named.search(text), f"{path.name} names {name} and never links it"


def test_every_page_is_on_the_site_and_within_reach_of_the_readme() -> None:
    site = (ROOT / "mkdocs.yml").read_text()
    reached, waiting = set[Path](), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.is_file():
            reached.add(page)
            found = re.findall(r"\]\(([^)#\s]+\.md)[^)]*\)", page.read_text(encoding="utf-8"))
            waiting += [(page.parent / name).resolve() for name in found]
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in site and page in reached, page.name


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


def commands(path: Path) -> Iterator[list[str]]:
    """Yield the words of every command of make or `afov` in a page's blocks of code."""
    for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        text = re.sub(r"\\\n\s*", "", block.replace("…", "name"))
        for line in re.findall(r'^((?:make|afov) (?:[^"\n]|"[^"]*")*)', text, re.MULTILINE):
            if kind in ("", "sh", "bash"):
                yield shlex.split(line, comments=True)


def targets() -> set[str]:
    """Return the targets of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    lists = re.findall(r"^(?:STAGES|QUESTIONS|VIEWS|TRAINER) := (.*)$", text, re.MULTILINE)
    return {*re.findall(r"^([a-z]+):", text, re.MULTILINE), *" ".join(lists).split()}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_of_the_pages_exist(path: Path) -> None:
    variables = set(re.findall(r"^(?:override )?([A-Z_]+) [?:]?=", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in commands(path):
        if program == "afov":
            assert words[0] in VERBS or words[0].startswith("--"), words
            continue
        named = [word for word in words if "=" not in word]
        assert set(named) <= targets(), words
        for word in (word for word in words if "=" in word):
            name, _, value = word.partition("=")
            assert name in variables, words
            if name == "RECIPE" and not value.endswith(".toml") and value not in ("name", "...", "NAME"):
                assert (RECIPES / f"{value}.toml").is_file(), words


@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: extra `docs`")
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "load_recipe" in (tmp_path / "site" / "api.html").read_text()


def test_the_readmes_three_commands_make_label_files_of_logs_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As typed, but for the teacher, which has random weights here, and the student, which is small and brief."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # as the command sets it
    example = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8")
    exec(compile(example.split("```python\n")[1].split("```")[0], "own-data.md", "exec"), {})  # writes data/mine
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(readme.split("```toml\n# mine.toml")[1].split("```")[0].partition("\n")[2])
    (tmp_path / "mine.local.toml").write_text(
        """
        [teacher]
        model = "tiny"
        weights = "random:0"
        short_side_px = 64
        [text]
        templates = "single"
        [voxels]
        size_m = 0.4
        [network]
        name = "minkunet_small"
        engine = "torch"
        [pretrain]
        epochs = 1
        batch_size = 1
        [distill]
        epochs = 1
        batch_size = 1
        [run]
        pool = "inline"
        loader_workers = 0
        progress = false
        """
    )
    lines = [words for words in commands(ROOT / "README.md") if "RECIPE=mine.toml" in words]
    assert len(lines) == 3
    of_page = [words for words in commands(ROOT / "docs" / "own-data.md") if words not in lines]
    assert [words[1] for words in of_page] == ["project", "pictures"], "those of the README, and two more"
    for _, *words in (lines[0], *of_page, *lines[1:]):
        for target in (word for word in words if "=" not in word):
            asked = ["run", "mine.toml", target] if target in STAGES else [target, "mine.toml"]  # as make has it
            done = CliRunner().invoke(app, asked)
            assert done.exit_code == 0 or target == "doctor", f"{target}: {done.output}"
    assert len(list((tmp_path / "pictures" / "mine" / "drive-07").glob("*-depth.png"))) == 2
    written = {path.suffix for path in (tmp_path / "labels" / "mine").rglob("*") if path.is_file()}
    assert {".json", ".npy"} <= written
