"""Masks of SAM 3, of proposers and of SLIC: the rule that joins SAM 3's heads, sizes, and what is kept of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from manifests.config import ConfigError
from manifests.fingerprint import Json
from manifests.ontology import load_ontology, parse_ontology
from manifests.sections.teachers.composite import ProposerConfig, Sam3Config, SlicConfig, checked_concepts
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.batches import encode_frame
from pipeline.teachers.mask_sources import Proposer, Sam3, Slic, best_regions, fused
from tests.pipeline.tiny_networks import save_network

ONTOLOGY = load_ontology("nuscenes")
NAMES = ("sam3", "mask2former", "eomt")


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Per tiny network, the settings that name it."""
    root = tmp_path_factory.mktemp("networks")
    return {name: save_network(name, root / name) for name in NAMES}


@pytest.fixture
def frame(tmp_path: Path) -> Frame:
    """Three images, two of one size."""
    rng = np.random.default_rng(0)
    cameras = []
    for number, size in enumerate([(160, 90), (160, 90), (90, 120)]):
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
        cameras.append(Camera(f"C{number}", "t", f"{number}.png", 0, np.eye(3), np.eye(4), 0, *size))
    return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), tuple(cameras))


def source(name: str, networks: dict[str, dict[str, Any]], root: Path, **settings: Any) -> Sam3 | Proposer:
    """Return a loaded source that keeps everything, since nothing that random weights find is sure."""
    if name == "sam3":
        config = Sam3Config(**networks[name], **{"min_score": 0.0, **settings})
        return Sam3.load(config, root, ONTOLOGY, "cpu")
    proposer = ProposerConfig(**networks[name], trained_on="coco", **{"min_objectness": 0.0, **settings})
    return Proposer.load(proposer, root, "cpu")


def two(name: str, networks: dict[str, dict[str, Any]], frame: Frame, root: Path) -> tuple[Any, torch.Tensor]:
    made = source(name, networks, root)
    images = [made.prepare(frame, camera) for camera in frame.cameras[:2]]
    return made, torch.from_numpy(np.stack(images))


# -- every source


@pytest.mark.parametrize("name", NAMES)
def test_regions_and_weights_are_kept_per_cell_best_first(
    networks: dict[str, dict[str, Any]], frame: Frame, tmp_path: Path, name: str
) -> None:
    kept = encode_frame(source(name, networks, tmp_path), frame)
    assert kept.keys() == {f"C{view}/{part}" for view in range(3) for part in ("region", "weight")}
    for view in range(3):
        region, weight = kept[f"C{view}/region"], kept[f"C{view}/weight"]
        assert region.dtype == np.uint16 and weight.dtype == np.uint8
        assert region.shape == weight.shape and len(region) == 3
        assert (np.diff(weight.astype(int), axis=0) <= 0).all()
        assert (region[0] != region[1]).all()
        assert region.max() < (len(checked_concepts(ONTOLOGY)) if name == "sam3" else 5)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_what_single_images_give_every_time(
    networks: dict[str, dict[str, Any]], frame: Frame, tmp_path: Path, name: str
) -> None:
    made, images = two(name, networks, frame, tmp_path)
    with torch.inference_mode():
        together, again = made.forward(images), made.forward(images)
        single = [made.forward(image[None]) for image in images]
    for part in ("region", "weight"):
        torch.testing.assert_close(together[part], again[part], atol=0, rtol=0)
    one_by_one = torch.cat([one["weight"] for one in single]).int()
    assert (together["weight"].int() - one_by_one).abs().max() <= 1
    assert (together["region"] == torch.cat([one["region"] for one in single])).float().mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_changes_little(networks: dict[str, dict[str, Any]], frame: Frame, tmp_path: Path, name: str) -> None:
    exact, fast = (source(name, networks, tmp_path, precision=precision) for precision in ("fp32", "bf16"))
    images = torch.from_numpy(exact.prepare(frame, frame.cameras[0])[None])
    with torch.inference_mode():
        one, other = exact.forward(images)["weight"].int(), fast.forward(images)["weight"].int()
    assert 0 < (one - other).abs().max() <= 12  # of 255
    with pytest.raises(ValueError, match='precision is "fp8"'):
        source(name, networks, tmp_path, precision="fp8")


# -- SAM 3


def logits(*probability: float) -> torch.Tensor:
    return torch.tensor(probability).logit()


def test_heads_are_joined_by_the_rule() -> None:
    """One concept, two objects, a picture of two pixels."""
    mask = logits(0.9, 0.2, 0.5, 0.8).view(1, 2, 1, 2)
    score, presence = logits(0.5, 0.9).view(1, 2), logits(0.8).view(1, 1)
    nothing, something = logits(0.01, 0.01).view(1, 1, 1, 2), logits(0.9, 0.1).view(1, 1, 1, 2)
    # objects weigh 0.5 * 0.8 = 0.4 and 0.9 * 0.8 = 0.72
    both = fused(mask, score, presence, nothing, 0.3)
    torch.testing.assert_close(both, torch.tensor([[[0.36, 0.576]]]))
    second_only = fused(mask, score, presence, nothing, 0.5)
    torch.testing.assert_close(second_only, torch.tensor([[[0.36, 0.576]]]))
    torch.testing.assert_close(fused(mask, score, presence, nothing, 0.73), torch.full((1, 1, 2), 0.008))
    torch.testing.assert_close(fused(mask, score, presence, something, 0.3), torch.tensor([[[0.72, 0.576]]]))


def test_concepts_in_chunks_are_what_concepts_one_by_one_are(
    networks: dict[str, dict[str, Any]], frame: Frame, tmp_path: Path
) -> None:
    made = [source("sam3", networks, tmp_path, concepts_at_once=n) for n in (1, 16)]
    image = torch.from_numpy(made[0].prepare(frame, frame.cameras[0]))
    with torch.inference_mode():
        one, many = (each.probability(image) for each in made if isinstance(each, Sam3))
    assert one.shape == (24, 32, 32)
    torch.testing.assert_close(one, many, atol=1e-5, rtol=0)


def test_synonyms_of_a_group_count_as_the_best_of_them(
    networks: dict[str, dict[str, Any]], frame: Frame, tmp_path: Path
) -> None:
    def asked(*concepts: list[str]) -> Sam3:
        groups: list[Json] = [
            {"name": f"g{i}", "fine": "car", "thing": True, "prompts": [f"p{i}"], "concepts": some}
            for i, some in enumerate(concepts)
        ]
        classes = [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}]
        dictionary = parse_ontology({"name": "d", "version": 1, "class": classes, "group": groups})
        return Sam3.load(Sam3Config(**networks["sam3"], min_score=0.0), tmp_path, dictionary, "cpu")

    apart, joined = asked(["car"], ["van"], ["bus"]), asked(["car", "van"], ["bus"])
    image = torch.from_numpy(apart.prepare(frame, frame.cameras[0]))
    with torch.inference_mode():
        three, groups = apart.probability(image), joined.probability(image)
    torch.testing.assert_close(groups, torch.stack([three[:2].amax(0), three[2]]), atol=1e-5, rtol=0)


def test_both_dictionaries_have_concepts_and_one_without_is_told_how() -> None:
    for name in ("nuscenes", "semantic_kitti"):
        content = checked_concepts(load_ontology(name))
        assert 20 <= sum(len(phrases) for _, phrases in content) <= 50
        assert len({phrase for _, phrases in content for phrase in phrases}) == sum(len(some) for _, some in content)
        assert max(len(phrases) for _, phrases in content) <= 10
    classes = {load_ontology("nuscenes").groups[i].fine for i in range(31)}
    asked = {group.fine for group in ONTOLOGY.groups if group.concepts}
    named = {fine.coarse for fine in ONTOLOGY.fine if fine.name in asked}
    assert named >= {fine.coarse for fine in ONTOLOGY.fine if fine.name in classes}  # no class is forgotten
    with pytest.raises(ConfigError, match=r"dictionary bare has no concepts, .* such as concepts ="):
        checked_concepts(
            parse_ontology(
                {
                    "name": "bare",
                    "version": 1,
                    "class": [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}],
                    "group": [{"name": "cars", "fine": "car", "thing": True, "prompts": ["car"]}],
                }
            )
        )


# -- proposers


def test_mask_cells_are_whole_and_the_aspect_ratio_stays(networks: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    eomt, mask2former = source("eomt", networks, tmp_path), source("mask2former", networks, tmp_path)
    assert isinstance(eomt, Proposer) and isinstance(mask2former, Proposer)
    assert eomt.size(900, 1600) == (36, 64) and eomt.size(1600, 900) == (64, 36)
    assert mask2former.size(900, 1600) == (64, 128)
    big = Proposer(mask2former.config, tmp_path, mask2former.network, official(mask2former))
    assert big.size(900, 1600) == (736, 1312)


def official(proposer: Proposer) -> Any:
    """How the published weights want their images."""
    import dataclasses

    return dataclasses.replace(proposer.pixels, size={"shortest_edge": 800, "longest_edge": 1333})


def test_what_eomt_sees_below_the_image_is_cut_off(
    networks: dict[str, dict[str, Any]], frame: Frame, tmp_path: Path
) -> None:
    made, images = two("eomt", networks, frame, tmp_path)
    assert images.shape == (2, 36, 64, 3)
    with torch.inference_mode():
        out = made.forward(images)
    assert out["region"].shape == (2, 3, 9, 16)  # of 16 x 16 cells


def test_queries_that_show_nothing_weigh_nothing(
    networks: dict[str, dict[str, Any]], frame: Frame, tmp_path: Path
) -> None:
    kept = encode_frame(source("mask2former", networks, tmp_path, min_objectness=1.0), frame)
    assert not any(kept[f"C{view}/weight"].any() for view in range(3))


def test_what_proposers_learnt_from_has_to_be_said() -> None:
    hub: dict[str, Any] = {"weights_sha256": "0" * 64, "weights_revision": "1" * 40}
    name = "hub:facebook/mask2former-swin-large-cityscapes-panoptic/model.safetensors"
    config = ProposerConfig(weights=name, **hub, trained_on="cityscapes")
    config.check()
    assert config.supervised
    assert not ProposerConfig(weights=name, trained_on="coco", **hub).supervised
    with pytest.raises(ValueError, match=r'trained_on is "coco", but .* speaks of cityscapes'):
        ProposerConfig(weights=name, trained_on="coco", **hub).check()
    with pytest.raises(ValueError, match=r'trained_on is ""; say which labels taught the masks'):
        ProposerConfig(weights=name, **hub).check()
    with pytest.raises(ValueError, match=r"expected FOLDER/model.safetensors"):
        ProposerConfig(trained_on="coco").check()


def test_a_network_of_another_kind_is_refused(networks: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'proposer.weights: .* of kind "sam3"; expected mask2former, eomt'):
        source("mask2former", {"mask2former": networks["sam3"]}, tmp_path)
    with pytest.raises(ConfigError, match=r'sam3.weights: .* of kind "eomt"; expected sam3'):
        source("sam3", {"sam3": networks["eomt"]}, tmp_path)


# -- SLIC, and all


def test_superpixels_follow_colour(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[:, 37:] = 200
    Image.fromarray(image).save(tmp_path / "i.png")
    camera = Camera("C", "t", "i.png", 0, np.eye(3), np.eye(4), 0, 60, 40)
    frame = Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), (camera,))
    kept = encode_frame(Slic(SlicConfig(side_px=10), tmp_path), frame)
    region = kept["C/region"]
    assert region.shape == (1, 40, 60) and (kept["C/weight"] == 255).all()
    assert not set(np.unique(region[0, :, :37])) & set(np.unique(region[0, :, 37:]))
    assert 10 <= len(np.unique(region)) <= 40


def test_a_bad_image_is_a_sentence(frame: Frame, tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(FrameError, match=r"1.png: cannot be decoded"):
        encode_frame(Slic(SlicConfig(), tmp_path), frame)


def test_the_best_regions_come_first() -> None:
    weight = torch.tensor([0.1, 1.0, 0.5, 0.2]).view(1, 4, 1, 1)
    kept = best_regions(weight)
    assert kept["region"].flatten().tolist() == [1, 2, 3]
    assert kept["weight"].flatten().tolist() == [255, 128, 51]
    assert best_regions(weight[:, :2])["region"].shape == (1, 2, 1, 1)
