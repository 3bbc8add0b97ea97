"""Queries and rankings as files: what is written comes back, and no phrase and no file leads out of the folder."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.config import ConfigError
from manifests.query import (
    Query,
    RankedFrame,
    cleaned,
    queries_folder,
    query_files,
    rank,
    read_query,
    read_ranking,
    slug_of,
    write_query,
    write_ranking,
)
from manifests.tables.teacher import Text

VECTOR = np.array([0.6, 0.8, 0], np.float32)


def query(phrase: str = "fire hydrant") -> Query:
    return Query(phrase, VECTOR, "a1b2", {"teacher": {"name": "clip_dense"}, "templates": ["a {}."]})


@pytest.mark.parametrize(
    ("phrase", "slug"),
    [
        ("fire hydrant", "fire-hydrant"),
        ("Fire  Hydrant", "fire-hydrant"),
        ("../../etc/passwd", r"etc-passwd-[0-9a-f]{12}"),
        ("/", r"[0-9a-f]{12}"),
        ("..", r"[0-9a-f]{12}"),
        ("con\0.masks", r"con-masks-[0-9a-f]{12}"),
        ("Müllton", r"mullton-[0-9a-f]{12}"),
        ("消火栓", r"[0-9a-f]{12}"),
        ("a " * 100, r"a(-a){23}-[0-9a-f]{12}"),
    ],
)
def test_a_slug_is_a_plain_word(phrase: str, slug: str) -> None:
    import re

    assert re.fullmatch(slug, slug_of(phrase))


@given(st.text(max_size=300), st.text(max_size=300))
def test_a_slug_never_leaves_its_folder_and_tells_phrases_apart(one: str, other: str) -> None:
    folder = queries_folder("runs", "city")
    assert (folder / f"{slug_of(one)}.json").resolve().parent == folder.resolve()
    same = " ".join(one.split()).casefold() == " ".join(other.split()).casefold()
    assert same or slug_of(one) != slug_of(other)


@pytest.mark.parametrize(
    ("phrase", "sentence"), [(" \n\t", "no words"), ("?!", "no words"), ("a" * 201, "201 letters; at most 200")]
)
def test_what_is_no_phrase_is_said(phrase: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        cleaned(phrase)
    assert cleaned(" fire\n\x1b[2Jhydrant ") == "fire [2Jhydrant", "nothing that a terminal would obey"


def test_a_query_comes_back(tmp_path: Path) -> None:
    path = write_query(tmp_path, query())
    found = read_query(path)
    assert (found.phrase, found.text, dict(found.encoder)) == ("fire hydrant", "a1b2", dict(query().encoder))
    np.testing.assert_array_equal(found.vector, VECTOR)
    assert found.identity == query().identity
    write_query(tmp_path, query("../tree"))
    assert len(query_files(tmp_path)) == 2 == len(list(tmp_path.iterdir()))


def test_rivals_are_the_other_prompts() -> None:
    rows = [
        Text(prompt_id=0, prompt="Fire hydrant", vector=np.array([1, 0, 0], np.float32)),
        Text(prompt_id=1, prompt="hydrant", vector=VECTOR),
        Text(prompt_id=2, prompt="road", vector=np.array([0, 0, 1], np.float32)),
    ]
    np.testing.assert_array_equal(query().rivals(rows), [[0, 0, 1]])
    with pytest.raises(ConfigError, match="has a vector of 3 numbers, and table `text` has 2"):
        query().rivals([Text(prompt_id=0, prompt="road", vector=np.ones(2, np.float32))])


def test_a_ranking_comes_back_until_the_vector_is_another(tmp_path: Path) -> None:
    frames = [RankedFrame(name, "scene-1", row, margin, 0.5, 9) for row, (name, margin) in enumerate(
        [("a", -0.25), ("b", 0.5), ("c", 0.25), ("d", 0.5)]
    )]  # fmt: skip
    ranking = rank("masks", query(), "feed", frames, [-0.75, -0.5, -0.25, -0.5], limit=3)
    assert [frame.frame_id for frame in ranking.frames] == ["b", "d", "c"]
    assert (ranking.n_frames, ranking.low, ranking.high) == (4, -0.5, 0.5)
    write_query(tmp_path, query())
    path = write_ranking(tmp_path, query(), ranking)
    assert path.name == "fire-hydrant.masks.json" and query_files(tmp_path) == [tmp_path / "fire-hydrant.json"]
    assert read_ranking(tmp_path, query(), "masks") == ranking
    assert read_ranking(tmp_path, query(), "tmp") is None
    assert read_ranking(tmp_path, Query("fire hydrant", VECTOR[[1, 0, 2]], "a1b2", {}), "masks") is None
    with pytest.raises(ConfigError, match="no point of any frame"):
        rank("masks", query(), "feed", [], [], 3)


@pytest.mark.parametrize(
    "change",
    [
        {"vector": [1.0, 1.0]},
        {"vector": [float("nan")] * 3},
        {"vector": "x"},
        {"phrase": "../other"},
        {"phrase": 3},
        {"encoder": []},
    ],
)
def test_a_file_that_is_no_query_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    path = write_query(tmp_path, query())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=r"is not a query.*; delete it"):
        read_query(path)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "fire-hydrant.json").write_text(text)
    with pytest.raises(ConfigError, match="is not a query"):
        read_query(tmp_path / "fire-hydrant.json")
    (tmp_path / "fire-hydrant.masks.json").write_text(text)
    with pytest.raises(ConfigError, match="is not a ranking"):
        read_ranking(tmp_path, query(), "masks")
