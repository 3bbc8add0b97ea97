"""Several teachers asked together: pixel by pixel the mean of what each says, weighed by member and class."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manifests.config import ConfigError, parse_section
from manifests.fingerprint import Json
from manifests.ontology import parse_ontology
from manifests.recipe import Recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.ensemble import EnsembleConfig, MemberConfig
from manifests.sections.teachers.onnx import OnnxConfig
from manifests.stages import fingerprint
from pipeline.frame import FrameError
from pipeline.teachers.ensemble import LEAST, Ensemble
from pipeline.teachers.onnx import Onnx
from superpixels.pooling import upsampled
from tests.pipeline.test_teachers import frame_of, recipe_of
from tests.pipeline.tiny_networks import write_card

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
FRAME = frame_of("FRONT")
ONTOLOGY = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [{"name": name, "colour": "#000000"} for name in ("ignore", "car", "bus")],
        "fine": [{"name": name, "class": name, "raw": [n]} for n, name in enumerate(("ignore", "car", "bus"))],
        "group": [
            {"name": "cars", "fine": "car", "thing": True, "prompts": ["car", "van"]},
            {"name": "buses", "fine": "bus", "thing": True, "prompts": ["bus"]},
        ],
    }
)
CLASSES = np.array([1, 1, 2])  # of car, van and bus


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Two networks that call a class car, b bus and c van, the second with prompts "bus" and "van" trading places."""
    found = replace(recipe_of("ensemble", tmp_path), ontology=ONTOLOGY, segment=SegmentConfig(scale=1.0))
    write_card(tmp_path / "onnx1" / "own.toml", words='a = ["car"]\nb = ["van"]\nc = ["bus"]')
    return found


def ensemble(recipe: Recipe) -> EnsembleConfig:
    assert isinstance(recipe.teacher, EnsembleConfig)
    return recipe.teacher


def of_members(recipe: Recipe, **settings: Mapping[str, Any]) -> Recipe:
    """The recipe with other settings of some members."""
    members = tuple(replace(one, **settings.get(one.name, {})) for one in ensemble(recipe).members)
    return replace(recipe, teacher=replace(ensemble(recipe), members=members))


def by_prompt(recipe: Recipe, number: int) -> Any:
    """What one network says by itself of each pixel of the image: (car, van, bus; 48; 64)."""
    alone = replace(recipe, teacher=ensemble(recipe).members[number].config)
    teacher = Onnx.load(alone, "segment")
    encoding = Onnx.load(alone, "encode").encode(FRAME)
    parts = {part: encoding[f"FRONT/{part}"] for part in ("class", "probability")}
    order = [0, 2, 1] if number == 0 else [0, 1, 2]
    return upsampled(teacher.probabilities(FRAME.cameras[0], parts)[order], 48, 64)


def answered(recipe: Recipe) -> tuple[Any, Any, Any]:
    """Prompt of each pixel (48, 64), its score, and likelihood of each class (3, 48, 64), as the ensemble says."""
    text = Ensemble.load(recipe, "text").text(ONTOLOGY.prompts)
    encoding = Ensemble.load(recipe, "encode").encode(FRAME)
    teacher = Ensemble.load(recipe, "segment")
    views = teacher.segment(FRAME, encoding, text)
    [score] = teacher.pixel_scores(FRAME, encoding, text, views)
    [grid] = teacher.class_grids(FRAME, encoding, text, views, CLASSES)
    return np.append(-1, views[0].prompt_id)[views[0].label_map()], score, grid


def by_class(probability: Any) -> Any:
    return np.stack([0 * probability[0], probability[0] + probability[1], probability[2]])


def test_a_pixel_is_called_by_the_class_that_is_likeliest_in_the_mean(recipe: Recipe) -> None:
    mean = (by_prompt(recipe, 0) + by_prompt(recipe, 1)) / 2
    prompt, score, grid = answered(recipe)
    expected = by_class(mean)
    np.testing.assert_allclose(grid, expected, atol=1e-6)
    np.testing.assert_allclose(score, expected.max(axis=0), atol=1e-6)
    clear = np.abs(expected[1] - expected[2]) > 1e-5
    np.testing.assert_array_equal(CLASSES[prompt][clear], expected.argmax(axis=0)[clear])
    car = clear & (CLASSES[prompt] == 1) & (np.abs(mean[0] - mean[1]) > 1e-5)
    np.testing.assert_array_equal(prompt[car], np.where(mean[0] >= mean[1], 0, 1)[car])
    assert len(np.unique(prompt)) > 1 and (mean.argmax(axis=0) != prompt).any(), "two prompts of a class stand together"


def test_members_weigh_as_the_recipe_says_and_in_single_classes_too(recipe: Recipe) -> None:
    one, other = by_prompt(recipe, 0), by_prompt(recipe, 1)
    heavy = of_members(recipe, net0={"weight": 3.0})
    np.testing.assert_allclose(answered(heavy)[2], by_class(0.75 * one + 0.25 * other), atol=1e-6)
    silent = of_members(recipe, net1={"class_weights": (("bus", 0.0),)})
    expected = by_class((one + other) / 2)
    expected[2] = one[2]
    np.testing.assert_allclose(answered(silent)[2], expected, atol=1e-6)
    assert fingerprint(heavy, "encode") == fingerprint(recipe, "encode") == fingerprint(silent, "encode")
    assert len({fingerprint(some, "segment") for some in (recipe, heavy, silent)}) == 3


def test_in_a_geometric_mean_a_class_needs_the_consent_of_all(recipe: Recipe) -> None:
    geometric = replace(recipe, teacher=replace(ensemble(recipe), mean="geometric"))
    product = np.prod([np.maximum(by_prompt(recipe, n), LEAST) for n in (0, 1)], axis=0) ** 0.5
    np.testing.assert_allclose(answered(geometric)[2], by_class(product / product.sum(axis=0)), atol=1e-5)
    assert fingerprint(geometric, "segment") != fingerprint(recipe, "segment")


@pytest.mark.parametrize("scores", ["none", "image"])
def test_finished_maps_are_a_member_too(recipe: Recipe, tmp_path: Path, scores: str) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    ids = np.zeros((48, 64), np.uint8)
    ids[:, 32:], ids[:, 48:] = 1, 2
    Image.fromarray(ids).save(folder / "token-FRONT.png")
    Image.fromarray(np.full((48, 64), 51, np.uint8)).save(folder / "token-FRONT_score.png")
    (folder / "token-FRONT.json").write_text(json.dumps([{"id": 1, "category_id": 2}, {"id": 2, "category_id": 0}]))
    torch.save(torch.tensor([[0.0, 0], [3, 4], [1, 0]]), folder / "token-FRONT.pt")
    (folder / "prompts.txt").write_text("\n".join(ONTOLOGY.prompts))
    maps = MemberConfig("maps", artifacts=ArtifactsConfig(folder=str(folder), scores=scores))
    both = replace(recipe, teacher=replace(ensemble(recipe), members=(ensemble(recipe).members[0], maps)))
    said = by_prompt(recipe, 0)
    sure = 1.0 if scores == "none" else 0.2
    said[2, :, 32:48] += sure
    said[0, :, 48:] += sure
    np.testing.assert_allclose(answered(both)[2], by_class(said / 2), atol=1e-6)
    files = Ensemble.files(both)
    assert files is not None and "token-FRONT.png" in files.names(FRAME) and Ensemble.files(recipe) is None
    (folder / "prompts.txt").write_text("others")
    with pytest.raises(ConfigError, match="name the dictionary that the files were made with"):
        Ensemble.text_content(both)


def test_a_vector_is_that_of_the_prompts_mixed_by_the_mean(recipe: Recipe) -> None:
    text = np.eye(3, 16, dtype=np.float32)
    encoding = Ensemble.load(recipe, "encode").encode(FRAME)
    [view] = Ensemble.load(recipe, "segment").segment(FRAME, encoding, text)
    mean = (by_prompt(recipe, 0) + by_prompt(recipe, 1)) / 2
    for number, vector in enumerate(view.vector, 1):
        total = mean[:, view.label_map() == number].sum(axis=1)
        np.testing.assert_allclose(vector[:3], total / np.linalg.norm(total), atol=2e-3)


def test_an_encoding_of_other_members_is_told(recipe: Recipe) -> None:
    encoding = Ensemble.load(recipe, "encode").encode(FRAME)
    assert set(encoding) == {f"FRONT/net{n}-{part}" for n in (0, 1) for part in ("class", "probability")}
    del encoding["FRONT/net1-class"]
    with pytest.raises(FrameError, match="table encode has no FRONT/net1-class; it was made otherwise"):
        Ensemble.load(recipe, "segment").segment(FRAME, encoding, np.eye(3, dtype=np.float32))


def test_members_are_tables_of_a_recipe(recipe: Recipe) -> None:
    networks: list[dict[str, Any]] = [
        {"weights": one.weights, "weights_sha256": one.weights_sha256} for one in of_onnx(recipe)
    ]
    members: list[Json] = [
        {"name": "first", "onnx": networks[0], "weight": 2},
        {"name": "second", "onnx": networks[1], "class_weights": [["bus", 0.5]]},
    ]
    found = parse_section("teacher", {"name": "ensemble", "members": members}, EnsembleConfig)
    assert [one.weight for one in found.members] == [2.0, 1.0] and found.members[1].class_weights == (("bus", 0.5),)
    assert found.members[0].config == OnnxConfig(**networks[0])


def of_onnx(recipe: Recipe) -> list[OnnxConfig]:
    return [one.onnx for one in ensemble(recipe).members if one.onnx is not None]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([{"name": "a"}, {"name": "b"}], "member a needs one table"),
        ([{"name": "a b", "artifacts": {"folder": "x"}}], 'a member has name "a b"'),
        ([{"name": "a", "artifacts": {"folder": "x"}}], "members are two or more"),
        ([{"name": name, "artifacts": {"folder": "x"}} for name in "ab"], "one at the most has finished maps"),
        ([{"name": "a", "onnx": {"tops": 3}}], r"\[teacher.members.onnx\] has no setting `tops` \(did you mean `top`"),
        ([{"name": "a", "onnx": {"weights": "a.onnx"}}], "member a lacks weights_sha256; pin the file"),
        ([{"name": "a", "weight": 0, "artifacts": {"folder": "x"}}], "weight is above 0"),
    ],
)
def test_a_wrong_member_is_refused_with_a_sentence(members: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_section("teacher", {"name": "ensemble", "members": members}, EnsembleConfig)


def test_an_ensemble_without_members_or_with_a_weight_of_no_class_makes_no_tables(recipe: Recipe) -> None:
    with pytest.raises(ConfigError, match=r"teacher.members is empty; name two teachers or more"):
        fingerprint(replace(recipe, teacher=EnsembleConfig()), "segment")
    odd = of_members(recipe, net1={"class_weights": (("tram", 2.0),)})
    with pytest.raises(ConfigError, match="member net1 has a weight of class 'tram', which dictionary street does not"):
        fingerprint(odd, "segment")
