"""docs/settings.md, and the recipe as it takes effect."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from afov.__main__ import app
from afov.settings import settings_document
from manifests.config import RECIPES
from manifests.effective import as_toml, effective
from manifests.recipe import SECTION_CLASSES, load_recipe
from manifests.sections.teachers.registry import TEACHER_SECTIONS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "settings.md"


def rows(text: str) -> Mapping[tuple[str, str], dict[str, str]]:
    """Return the lines of the page by heading and key, cell by cell."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    heading, columns = "", ("key", "type", "default", "range", "part of", "meaning")
    for line in text.splitlines():
        if line.startswith("## "):
            heading = line[3:]
        if line.startswith("| `"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            found[heading, cells[0].strip("`")] = dict(zip(columns, cells, strict=True))
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return settings_document()


def test_the_page_is_that_of_the_code(page: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == page, "run: make docs"


def test_every_setting_has_a_line_with_all_that_is_promised(page: str) -> None:
    found = rows(page)
    for name, kind in SECTION_CLASSES.items():
        plain = {one.name for one in dataclasses.fields(kind) if not dataclasses.is_dataclass(one.default)}
        assert {key for heading, key in found if heading == f"`[{name}]`"} == plain
    for name in TEACHER_SECTIONS:
        assert any(heading == f"`[teacher]`, teacher {name}" for heading, _ in found)
    lacking = {place: row for place, row in found.items() if not (row["type"] and row["part of"] and row["meaning"])}
    assert not lacking, "say in the docstring of the section's class what these settings mean"


def test_ranges_and_identities_are_found_by_trying(page: str) -> None:
    found = rows(page)
    assert found["`[segment]`", "scale"]["range"] == "0 < x ≤ 1"
    assert found["`[group]`", "min_points"]["range"] == "≥ 1"
    assert found["`[group]`", "policy"]["range"] == '"last_camera", "confidence", "nearest_axis"'
    assert found["`[voxels]`", "angle_deg"]["range"] == "0 < x ≤ 360"
    assert found["`[group]`", "min_points"]["part of"] == "group"
    assert found["`[target]`", "labels"]["part of"].startswith("correct, target")
    assert found["`[distill]`", "lr_head"]["part of"] == "run distill"
    assert found["`[network]`", "name"]["part of"] == "all runs"
    assert {row["part of"] for (heading, _), row in found.items() if heading == "`[run]`"} == {"nothing"}
    assert "encode" in found["`[teacher]`, teacher clip_dense", "short_side_px"]["part of"]
    assert "encode" not in found["`[teacher]`, teacher clip_dense", "logit_scale"]["part of"]


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_what_show_prints_is_the_same_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.toml"
    path.write_text(as_toml(effective(name)))
    shown, recipe = load_recipe(path), load_recipe(name)
    for section in ("teacher", *SECTION_CLASSES):
        assert getattr(shown, section) == getattr(recipe, section)


def test_show_says_where_each_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('base = "city"\n[group]\npolicy = "nearest_axis"\n')
    (tmp_path / "mine.local.toml").write_text('[run]\nstore = "s3://me:secret@place/folder"\n')
    words = ["show", str(tmp_path / "mine.toml"), "--set", "group.min_points=3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    lines = {line.split(" = ")[0]: line.split("# ")[-1] for line in done.stdout.splitlines() if " = " in line}
    assert lines["policy"] == str(tmp_path / "mine.toml") and lines["min_points"] == "--set group.min_points=3"
    assert lines["store"] == str(tmp_path / "mine.local.toml") and lines["version"] == "recipe city"
    assert lines["min_depth_m"] == "default" and "secret" not in done.output
    assert f"note: {tmp_path / 'mine.local.toml'} is laid over recipe" in done.stderr
    few: dict[str, Any] = tomllib.loads(CliRunner().invoke(app, [*words, "--changed"]).stdout)
    assert few["group"] == {"policy": "nearest_axis", "min_points": 3} and "project" not in few
