"""The door to transformers: a folder is loaded whole and strictly, or a sentence says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests import fingerprint
from manifests.config import ConfigError
from manifests.fingerprint import sha256_file
from manifests.recipe import Recipe
from manifests.sections.teachers.composite import CompositeConfig, TipsConfig
from manifests.sections.teachers.weights import Weights, check_weights, weights_identity
from manifests.stages import fingerprint as table_fingerprint
from manifests.storage.errors import StoreError
from pipeline.engine.tasks import Task
from pipeline.engine.worker import check_loaded
from pipeline.teachers.loading.pretrained import load_network, load_pixels, load_tokenizer
from pipeline.teachers.mask_sources import SAM3_CLASSES
from tests.calls import count_calls
from tests.pipeline.tiny_networks import save_network

CLASSES = {"tipsv2": "Tipsv2Model"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny network."""
    folder = tmp_path_factory.mktemp("tips")
    save_network("tipsv2", folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def pinned(folder: Path) -> Weights:
    path = folder / "model.safetensors"
    return Weights(str(path), sha256_file(path), key="tipsv2.weights")


def test_a_folder_is_loaded_frozen_and_says_how_it_wants_its_images(saved: Path) -> None:
    network = load_network(pinned(saved), CLASSES, "cpu")
    assert not network.model.training
    assert not any(parameter.requires_grad for parameter in network.model.parameters())
    pixels = load_pixels(network)
    assert pixels.size == {"height": 448, "width": 448}
    image = np.full((2, 3, 3), 255, np.uint8)
    torch.testing.assert_close(pixels.tensor(torch.from_numpy(image[None])), torch.ones(1, 3, 2, 3))  # TIPS wants 0..1
    assert pixels.resized(image, 4, 6).shape == (4, 6, 3)


def test_the_layout_in_which_sam3_is_published_is_taken_apart(tmp_path: Path) -> None:
    """Its file holds a tracker for videos too, and names our part `detector_model`."""
    from safetensors.torch import load_file, save_file
    from transformers import Sam3VideoConfig

    save_network("sam3", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    video = {f"detector_model.{name}": tensor for name, tensor in tensors.items()}
    save_file({**video, "tracker_model.a": torch.ones(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    detector = json.loads((tmp_path / "config.json").read_text())
    Sam3VideoConfig(detector_config=detector).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam3_video"
    network = load_network(pinned(tmp_path), SAM3_CLASSES, "cpu")
    state = network.model.state_dict()
    assert state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in tensors)


def test_the_files_beside_the_weights_are_part_of_the_identity(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = count_calls(monkeypatch, fingerprint, "sha256_file")
    before = weights_identity(pinned(folder))
    assert weights_identity(pinned(folder)) == before and len(read) == len(set(read)) > 2, "each is read once"
    assert isinstance(before["files"], dict) and before["files"].keys() >= {
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
    }
    assert str(folder) not in str(before)
    (folder / "preprocessor_config.json").write_text("{}")
    assert weights_identity(pinned(folder)) != before and read[-1][0].name == "preprocessor_config.json"
    assert len(read) == len(set(read)) + 1, "and again only if it looks otherwise"
    (folder / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config.json"):
        weights_identity(pinned(folder))
    hub = Weights("hub:google/tipsv2-b14/model.safetensors", "0" * 64, "1" * 40)
    assert weights_identity(hub) == {"weights": f"sha256:{'0' * 64}", "revision": "1" * 40}


def test_a_shard_fails_where_a_file_beside_the_weights_was_replaced_since_the_plan(
    folder: Path, recipe_over: Callable[..., Recipe]
) -> None:
    section = TipsConfig(weights=str(folder / "model.safetensors"), weights_sha256="0" * 64)
    recipe = recipe_over(folder, teacher=CompositeConfig(masks="slic", features="tipsv2", tipsv2=section))
    task = Task("encode", table_fingerprint(recipe, "encode"), "scene", "0" * 12, 1)
    check_loaded(recipe, task)
    (folder / "preprocessor_config.json").write_text("{}")
    with pytest.raises(StoreError, match="beside the weights of `encode` was replaced since the run began; run again"):
        check_loaded(recipe, task)


@pytest.mark.parametrize("source", ["random:0", "some_tag", "folder/pytorch_model.bin"])
def test_weights_that_are_no_folder_of_transformers_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"expected FOLDER/model.safetensors"):
        check_weights(Weights(source, "0" * 64 if "/" in source else ""))


def drop_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop(max(name for name in tensors if "layer_norm" in name or "norm1" in name))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def add_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "foreign": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def widen(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = config["vision_config"]["hidden_size"] = 32
    (folder / "config.json").write_text(json.dumps(config))


def another_kind(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "bert"}')


def break_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def bring_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}')


def put_a_pickle(folder: Path) -> None:
    torch.save({"a": torch.ones(1)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (
            drop_a_tensor,
            r"is not a checkpoint of Tipsv2Model: tensors 1 missing, such as .*norm",
        ),
        (add_a_tensor, r"tensors 1 not expected, such as foreign"),
        (truncate, r"does not fit .*config.json, or is damaged"),
        (widen, r"does not fit .*config.json, or is damaged"),
        (another_kind, r'a network of kind "bert"; expected tipsv2'),
        (break_json, r"config.json cannot be used"),
        (bring_code, r"config.json cannot be used"),
        (put_a_pickle, r"does not fit .*config.json, or is damaged"),
    ],
)
def test_what_does_not_fit_is_told_in_a_sentence(folder: Path, damage: Callable[[Path], None], sentence: str) -> None:
    damage(folder)
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_network(pinned(folder), CLASSES, "cpu")
    assert str(caught.value).startswith("teacher.tipsv2.weights: ")


def test_another_file_than_the_pinned_one_is_not_opened(folder: Path) -> None:
    weights = pinned(folder)
    add_a_tensor(folder)
    with pytest.raises(ConfigError, match="the file is damaged or another one"):
        load_network(weights, CLASSES, "cpu")


def test_missing_helpers_are_told_too(folder: Path) -> None:
    network = load_network(pinned(folder), CLASSES, "cpu")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config.json cannot be used"):
        load_pixels(network)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ConfigError, match="has no tokenizer that can be used"):
        load_tokenizer(network)
