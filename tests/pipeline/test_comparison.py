"""Several recipes on one page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from manifests.config import ConfigError
from manifests.recipe import Recipe, load_recipe
from pipeline.engine.pools import make_pool
from pipeline.engine.runner import Runner
from pipeline.look.comparison import write_comparison
from tests.records import epoch_line, evaluation, part, start_line


@pytest.fixture
def recipe_path(tiny: Any, tmp_path: Path) -> Path:
    """A recipe with its first tables, enough to be opened."""
    path = tmp_path / "street.toml"
    path.write_text(
        f'[data]\nroot = "{tiny.path}"\nversion = "{tiny.version}"\n[teacher]\nname = "oracle"\nsource = "points"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\nruns = "{tmp_path / "runs"}"\n'
    )
    recipe = load_recipe(path)
    with make_pool(recipe) as pool:
        assert Runner(recipe).run(["target"], pool) == []
    return path


def with_run(path: Path, name: str, iou: float, *overrides: str) -> Recipe:
    """Return the recipe under a name, with a run and an evaluation as the trainer leaves them."""
    recipe = load_recipe(path, [f"run.name={name}", *overrides])
    folder = recipe.folder()
    (folder / "distill").mkdir(parents=True)
    lines = [start_line(), *(epoch_line(number, 2.5 / number) for number in (1, 2))]
    (folder / "distill" / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    classes = recipe.ontology.class_names[1:]
    scores = part(iou, len(classes), iou=[iou] * len(classes))
    document = evaluation(classes=classes, scores={"all": scores, "seen": scores})
    (folder / "evaluate.json").write_text(json.dumps(document, indent=1))
    return recipe


def test_scores_classes_settings_and_curves_stand_side_by_side(recipe_path: Path, tmp_path: Path) -> None:
    recipes = [
        with_run(recipe_path, "plain", 0.25),
        with_run(recipe_path, "voted", 0.305, "distill.lr_head=0.5"),
    ]
    page = write_comparison(recipes, tmp_path / "out")
    text = page.read_text()
    assert "is left out" not in text, re.findall("<p>.*</p>", text)
    assert "plain, voted" in text and "25.00" in text and "30.50" in text and "(+5.50)" in text
    assert (
        "distill.lr_head" in text and '<td class="start">2.0</td>' in text and '<td class="start">run.name' not in text
    )
    assert text.count("data:image/png;base64,") == 1 and "is simulated" in text
    assert 'src="http' not in text and "href" not in text
    write_comparison(recipes, tmp_path / "out")  # its own page is replaced
    page.write_text("something else")
    with pytest.raises(ConfigError, match="is there already and is no comparison"):
        write_comparison(recipes, tmp_path / "out")


def test_recipes_of_other_classes_are_refused(recipe_path: Path, tmp_path: Path) -> None:
    other = load_recipe(recipe_path, ["data.ontology=semantic_kitti"])
    with pytest.raises(ConfigError, match="other classes"):
        write_comparison([load_recipe(recipe_path), other], tmp_path / "out")
