"""Asking the map by mask vectors: rankings that can be checked by eye, and phrases that a teacher does not know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from manifests.config import ConfigError
from manifests.query import queries_folder, read_query, read_ranking
from manifests.recipe import Recipe, load_recipe
from manifests.storage.errors import StoreError
from manifests.storage.manifest import Manifest
from manifests.storage.refs import TableRef
from manifests.storage.store import Store
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Failed, FrameRecord, Rows
from manifests.tables.registry import TABLES
from manifests.tables.superpoints import Pairs, PairVectors
from manifests.tables.teacher import Text
from pipeline.__main__ import app
from pipeline.look.query import ask, similarity_of_points
from pipeline.stages import text as text_stage
from tests.filled import record
from tests.refs import identity, put_ref

CAR, VAN, ROAD, WALL = np.eye(4, dtype=np.float32)
PROMPTS = {"car": CAR, "van": VAN, "road": ROAD, "street wall": WALL}


def pairs_row(name: str, vectors: Sequence[Any], point: Sequence[int], superpoint: Sequence[int]) -> Pairs:
    """Return a row of table `pairs`: superpoints with these vectors, and the points that belong to them."""
    n = len(vectors)
    return record(
        Pairs,
        frame_id=name,
        point=np.array(point, np.int32),
        superpoint=np.array(superpoint, np.int32),
        vector=np.array(vectors, np.float16).reshape(n, len(vectors[0]) if n else 0),
        height_px=np.ones(1, np.int32),
    )


FRAMES = [
    pairs_row("road", [ROAD, WALL], [0, 1, 2], [0, 0, 1]),
    pairs_row("half a car", [0.8 * CAR + 0.6 * ROAD, ROAD], [0, 1, 1], [0, 0, 1]),
    Failed("failed", "no image"),
    pairs_row("car", [CAR, ROAD], [0, 1], [0, 0]),
    pairs_row("left out", [CAR], [0], [0]),
    pairs_row("empty", [], [], []),
]


def put(store: Store, recipe: Recipe, text: dict[str, Any], pairs: Sequence[Any], needs: str = "7e") -> None:
    """Write tables `text` and `pairs` of recipe `street`, with manifests that say what each was made from."""
    rows = [Text(prompt_id=i, prompt=prompt, vector=text[prompt]) for i, prompt in enumerate(text)]
    chain: dict[str, Any] = {"text": {}, "segment": {"text": needs}, "pairs": {"segment": "5e"}}
    tables = {}
    for name, key, content in (("text", "7e", rows), ("segment", "5e", []), ("pairs", "9a", pairs)):
        shards = (store.write(name, key, "scene-1", "c0", to_arrow(content, TABLES[name])),) if content else ()
        store.write_manifest(Manifest(name, key, identity(name, **chain[name]), shards))
        tables[name] = TableRef(name, key, shards)
    tables["index"] = TableRef("index", "1d", ())
    put_ref(store, recipe, tables, ("left out",))


@pytest.fixture
def street(tmp_path: Path) -> Callable[..., Recipe]:
    """Returns the recipe of a hand-made street; its teacher is simulated, so it knows its prompts only."""
    (tmp_path / "street.toml").write_text(
        f'[data]\nroot = "{tmp_path}"\n[teacher]\nname = "oracle"\n'
        f'[run]\nstore = "{tmp_path / "store"}"\nruns = "{tmp_path / "runs"}"\n'
    )
    put(Store.open(tmp_path / "store"), load_recipe(tmp_path / "street.toml"), PROMPTS, FRAMES)
    return lambda *words: load_recipe(tmp_path / "street.toml", words)


def test_frames_are_ranked_by_their_most_similar_points(street: Callable[..., Recipe]) -> None:
    recipe = street()
    query, ranking = ask(recipe, " Car ", n_frames=10)
    assert query.phrase == "Car" and query.slug == "car"
    assert [frame.frame_id for frame in ranking.frames] == ["car", "half a car", "road"]
    # a point of a car: 1 and nothing else; of half a car: 0.8, and 0.6 of road; of road: 0, and 1 of road
    np.testing.assert_allclose([frame.margin for frame in ranking.frames], [1, 0.2, -1], atol=2e-3)
    np.testing.assert_allclose([frame.cosine for frame in ranking.frames], [1, 0.8, 0], atol=2e-3)
    assert [(frame.row, frame.points) for frame in ranking.frames] == [(3, 2), (1, 2), (0, 3)]
    assert ranking.n_frames == 3 and ranking.low == pytest.approx(0.2, abs=2e-3)

    folder = queries_folder(recipe.run.runs, "street")
    assert read_ranking(folder, read_query(folder / "car.json"), "masks") == ranking
    assert [frame.frame_id for frame in ask(recipe, "street wall", 1)[1].frames] == ["road"]
    excluding = street("data.exclude=['car']")
    put(Store.open(recipe.run.store), excluding, PROMPTS, FRAMES)
    _, without = ask(excluding, "car", 10)
    assert [frame.frame_id for frame in without.frames] == ["half a car", "road"]


def test_a_point_takes_the_best_of_its_superpoints(street: Callable[..., Recipe]) -> None:
    query, _ = ask(street(), "car", 1)
    half_a_car = FRAMES[1]
    assert isinstance(half_a_car, FrameRecord)
    found = similarity_of_points(query, np.stack([ROAD, WALL]), Rows(half_a_car)[PairVectors], n_points=3)
    np.testing.assert_allclose(found.cosine, [0.8, 0.8, np.nan], atol=1e-3)


def test_a_teacher_without_an_encoder_says_which_prompts_are_near(street: Callable[..., Recipe]) -> None:
    with pytest.raises(ConfigError) as said:
        ask(street(), "wall of a house", 1)
    for part in ("oracle has no text encoder", "the 4 prompts", "near are “street wall”.", "clip_dense", "san"):
        assert part in str(said.value)
    assert "artifacts" not in str(said.value)
    with pytest.raises(ConfigError, match=r"not “zebra”. Any phrase"):
        ask(street(), "zebra", 1)


def test_vectors_of_different_encoders_are_not_compared(street: Callable[..., Recipe], tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    put(store, street(), PROMPTS, FRAMES, needs="0ld")
    with pytest.raises(StoreError, match=r"named with other text vectors .* run: make pairs RECIPE=\S*street"):
        ask(street(), "car", 1)
    put(store, street(), {"car": np.eye(8, dtype=np.float32)[0]}, FRAMES)
    with pytest.raises(ConfigError, match="vector of 8 numbers, and table `pairs` has 4"):
        ask(street(), "car", 1)


def test_any_phrase_goes_through_a_text_encoder_as_prompts_do(street: Callable[..., Recipe], tmp_path: Path) -> None:
    tiny = ("teacher.name=clip_dense", "teacher.model=tiny", "teacher.weights=random:3", "text.templates=vild14")
    recipe = street(*tiny)
    store, rows = Store.open(recipe.run.store), text_stage.build(recipe)
    shard = store.write("text", "7f", "all", "c0", to_arrow(rows, Text))
    store.write_manifest(Manifest("text", "7f", identity("text", text_stage.STAGE.settings(recipe)), (shard,)))
    text = TableRef("text", "7f", (shard,))
    frames = [pairs_row("bus", [rows[3].vector], [0], [0])]
    shard = store.write("pairs", "9b", "scene-1", "c0", to_arrow(frames, Pairs))
    index = TableRef("index", "1d", ())
    put_ref(store, recipe, {"index": index, "text": text, "pairs": TableRef("pairs", "9b", (shard,))})

    known, _ = ask(recipe, rows[3].prompt.upper(), 1)
    np.testing.assert_array_equal(known.vector, rows[3].vector)
    free, ranking = ask(recipe, f"{rows[3].prompt} on a wire", 1)
    assert np.linalg.norm(free.vector) == pytest.approx(1, abs=1e-5) and ranking.frames[0].margin < 0
    encoder: Any = free.encoder
    assert encoder["teacher"]["model"] == "tiny" and len(encoder["templates"]) == 14
    with pytest.raises(StoreError, match=r'(?s)text.teacher.weights: "random:3" -> "random:4".*make pack'):
        ask(street(*tiny[:2], "teacher.weights=random:4"), "a cat on a wire", 1)


def test_the_command_prints_a_ranking_and_writes_into_its_folder_only(
    street: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    street()
    result = CliRunner().invoke(app, ["query", str(tmp_path / "street.toml"), "car", "--frames", "2"])
    assert result.exit_code == 0
    assert "half a car" in result.output and "+1.000" in result.output and "3 frames were looked at" in result.output
    assert {path.name for path in (tmp_path / "runs").rglob("*.json")} == {"car.json", "car.masks.json"}

    put(Store.open(tmp_path / "store"), street(), {**PROMPTS, "../../[red]x": CAR}, FRAMES)
    result = CliRunner().invoke(app, ["query", str(tmp_path / "street.toml"), "../../[red]x"])
    assert result.exit_code == 0 and "“../../[red]x”" in result.output
    (_path,) = (tmp_path / "runs/street/queries").glob("red-x-*.masks.json")
    result = CliRunner().invoke(app, ["query", str(tmp_path / "street.toml"), "?"])
    assert result.exit_code == 2 and "there are no words" in result.output
