"""What was asked is shown: in the report as rankings and heat maps, in the viewer as a layer of points."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from manifests.query import queries_folder, read_query, write_ranking
from manifests.recipe import Recipe, load_recipe
from manifests.storage.store import Store
from manifests.tables.answers import Similarity
from manifests.tables.sensors import Points
from pipeline.engine.pools import make_pool
from pipeline.engine.runner import Runner
from pipeline.look.browse import Browser
from pipeline.look.pictures import heat, heat_scale
from pipeline.look.query import ask, asked_of
from pipeline.look.report import write_report
from pipeline.look.viewer import log_heat
from tests.answers import put_similarities

ALL_HOT = 0.5


def recipe_in(folder: Path, golden: Path) -> Recipe:
    """Return a recipe of one simulated key frame whose masks are read from files."""
    (folder / "one.txt").write_text("scene-0008\n")
    (folder / "tiny.toml").write_text(
        f'[data]\nroot = "{golden / "nuscenes_tiny"}"\nsplit = "{folder / "one.txt"}"\n'
        f'[teacher]\nname = "artifacts"\nvoid = true\nfolder = "{golden / "superpixels_tiny"}"\n'
        f'[run]\nstore = "{folder / "store"}"\nruns = "{folder / "runs"}"\n'
    )
    return load_recipe(folder / "tiny.toml")


@pytest.fixture(scope="module")
def built(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that recipe, built once; tests work on copies."""
    folder = tmp_path_factory.mktemp("built")
    recipe = recipe_in(folder, shared / "golden")
    with make_pool(recipe) as pool:
        assert Runner(recipe).run(["points", "pairs", "target"], pool) == []
    return folder / "store"


@pytest.fixture
def asked_tiny(shared: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """That recipe, built, and asked for a car."""
    shutil.copytree(built, tmp_path / "store")
    recipe = recipe_in(tmp_path, shared / "golden")
    monkeypatch.setattr("pipeline.look.figures.IMAGE_PX", 160)
    monkeypatch.setattr("pipeline.look.figures.PANEL_PX", 100)
    ask(recipe, "car", 5)
    return recipe


def add_features(recipe: Recipe) -> None:
    """What the trainer writes for a query: a table in which every point is as similar, and a ranking."""
    folder = queries_folder(recipe.run.runs, recipe.name)
    query, masks = ask(recipe, "car", 5)

    def answer(row: Points) -> Similarity:
        value = np.full(row.n_points, ALL_HOT, np.float16)
        return Similarity(frame_id=row.frame_id, cosine=value, margin=value)

    table = put_similarities(recipe, query, answer)
    frame = replace(masks.frames[0], margin=ALL_HOT)
    ranking = replace(masks, by="tmp", table=table.fingerprint, low=0.0, high=ALL_HOT, frames=(frame,))
    write_ranking(folder, query, ranking)


def test_heat_runs_from_an_ordinary_point_to_the_best_frame() -> None:
    rgb, shown = heat(np.array([-1, 0, 0.25, 0.5, 9, np.nan], np.float32), 0.0, 0.5)
    assert shown.tolist() == [False, False, True, True, True, False]
    brightness = rgb.sum(axis=1)
    assert brightness[0] == brightness[1] == brightness[5] < brightness[2] < brightness[3] == brightness[4]
    assert len(heat_scale()) == 6 and all(len(colour) == 7 for colour in heat_scale())


def test_the_page_shows_ranking_and_heat_by_masks_and_by_features(asked_tiny: Recipe, tmp_path: Path) -> None:
    (frame,) = read_masks(asked_tiny)["frames"]
    page = write_report(asked_tiny, tmp_path / "out", 1).read_text()
    assert '<h2 id="asked">' in page and "“car”" in page and "by mask vectors" in page
    assert f"<td>{frame['margin']:+.3f}</td>" in page and "by TMP features" not in page
    assert len(list((tmp_path / "out/pictures").glob("asked-0-0-masks-*"))) == 6 + 1

    add_features(asked_tiny)
    page = write_report(asked_tiny, tmp_path / "out", 1).read_text()
    assert "by TMP features" in page and "<td>+0.500</td>" in page
    assert len(list((tmp_path / "out/pictures").glob("asked-*"))) == 2 * (6 + 1), "the best frame of both is the same"
    assert page.count("asked-0-0-tmp-view-0.jpg") == 2


def read_masks(recipe: Recipe) -> Any:
    return json.loads((queries_folder(recipe.run.runs, recipe.name) / "car.masks.json").read_text())


def test_what_cannot_be_shown_is_said(asked_tiny: Recipe, tmp_path: Path) -> None:
    folder = queries_folder(asked_tiny.run.runs, "tiny")
    document = read_masks(asked_tiny) | {"table": "0ld"}
    (folder / "car.masks.json").write_text(json.dumps(document))
    (folder / "broken.json").write_text("<script>")
    browser = Browser.open(Store.open(asked_tiny.run.store), asked_tiny)
    found, sentences = asked_of(browser, asked_tiny.run.runs)
    assert found == [] and len(sentences) == 2
    assert "broken.json is not a query" in sentences[0]
    assert "are not those of the recipe any more: it is not shown. Run: make query RECIPE=" in (sentences[1])


def test_what_another_pretraining_found_is_not_shown_and_the_reason_is(asked_tiny: Recipe) -> None:
    add_features(asked_tiny)
    store = Store.open(asked_tiny.run.store)
    for word, reason in (("pretrain.epochs=3", "pretrain.epochs"), ("voxels.size_m=0.2", "are of other settings")):
        recipe = load_recipe(str(asked_tiny.typed), [word])
        (asked,), (sentence,) = asked_of(Browser.open(store, recipe), recipe.run.runs)
        assert set(asked.rankings) == {"masks"}
        assert "“car” is not shown by TMP features" in sentence and reason in sentence and "make query" in sentence


def test_the_viewer_has_a_layer_per_query(asked_tiny: Recipe) -> None:
    add_features(asked_tiny)
    browser = Browser.open(Store.open(asked_tiny.run.store), asked_tiny)
    asked, _ = asked_of(browser, asked_tiny.run.runs)
    (place,) = browser.places()
    logged: dict[str, Any] = {}
    rerun = SimpleNamespace(Points3D=lambda xyz_m, colors, radii: (xyz_m, colors))  # Rerun is an extra
    item = browser.read(place)
    log_heat(rerun, SimpleNamespace(log=logged.__setitem__), item, place, asked)
    assert list(logged) == ["world/vehicle/lidar/asked_car_masks/points", "world/vehicle/lidar/asked_car_tmp/points"]
    xyz_m, colours = logged["world/vehicle/lidar/asked_car_tmp/points"]
    assert len(xyz_m) == len(colours) == len(item.rows[Points].xyz_m) and colours.dtype == np.uint8
    hot = logged["world/vehicle/lidar/asked_car_masks/points"][0]
    assert 0 < len(hot) < len(xyz_m)
    assert read_query(queries_folder(asked_tiny.run.runs, "tiny") / "car.json").slug == "car"
