"""SAN and FC-CLIP against what the official code gives, from an image file to the label map, on seeded weights.

`../shared/golden/teachers` says at which commits that code was run, and rebuilds its weights from the names of tensors.
"""

import importlib.util
import json
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.fcclip import FcClipConfig
from manifests.sections.teachers.san import SanConfig
from pipeline.frame import Camera, Frame
from pipeline.teachers.fcclip import FcClip
from pipeline.teachers.fcclip_names import SEEN_NAMES
from pipeline.teachers.san import San


@dataclass(frozen=True)
class Golden:
    """One file of numbers, with the camera image that they were made from and the weights, written to a folder."""

    numbers: dict[str, npt.NDArray[Any]]
    folder: Path
    weights: dict[str, Any]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.numbers[name]

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(str(prompt) for prompt in self["prompts"])

    @property
    def frame(self) -> Frame:
        height, width = self["image"].shape[:2]
        camera = Camera("C", "C", "image.png", 0, np.eye(3), np.eye(4), 0, width, height)
        return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), (camera,))

    def recipe(self, teacher: Any) -> Recipe:
        return Recipe(
            name="test",
            data=DataConfig(root=str(self.folder)),
            run=RunConfig(device="cpu"),
            teacher=teacher,
            project=ProjectConfig(),
            text=TextConfig(templates="vild14"),
            segment=SegmentConfig(scale=1.0),
            group=GroupConfig(),
            ontology=load_ontology("nuscenes"),
        )


def weights_recipe(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_recipe", folder / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden(shared: Path, tmp_path: Path, name: str, family: str) -> Golden:
    folder = shared / "golden" / "teachers"
    with np.load(folder / f"{name}.npz") as file:
        numbers = dict(file)
    shapes = json.loads((folder / f"{family}.keys.json").read_text())
    make = weights_recipe(folder).tensor
    state = {
        key: torch.zeros(shape)
        if key.endswith("attn_mask")
        else torch.from_numpy(make(key, shape, family, int(numbers["seed"])))
        for key, shape in shapes.items()
    }
    torch.save({"model": state}, tmp_path / "weights.pth")
    Image.fromarray(numbers["image"]).save(tmp_path / "image.png")
    digest = sha256((tmp_path / "weights.pth").read_bytes()).hexdigest()
    return Golden(numbers, tmp_path, {"weights": str(tmp_path / "weights.pth"), "weights_sha256": digest})


def unit(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


# -- SAN


def test_san_in_parity_gives_the_official_masks_names_and_vectors(shared: Path, tmp_path: Path) -> None:
    file = golden(shared, tmp_path, "san_tiny", "san_tiny")
    recipe = file.recipe(SanConfig(model="tiny", short_side_px=64, parity=True, **file.weights))
    teacher = San.load(recipe, "encode")
    [camera] = file.frame.cameras
    pixels = teacher.prepare(file.frame, camera)
    np.testing.assert_array_equal(pixels, file["resized"])
    with torch.inference_mode():
        found = teacher.forward(torch.from_numpy(pixels[None].copy()))
    np.testing.assert_allclose(found["masks"][0], file["masks"], atol=1e-3)
    np.testing.assert_allclose(found["embedding"][0], file["embedding"], atol=1e-4)
    np.testing.assert_allclose(found["none"][0], file["logits"][:, -1], atol=5e-3)

    text = teacher.text(file.prompts)
    np.testing.assert_allclose(text, file["text"], atol=1e-6)
    [segments] = San.load(recipe, "segment").segment(file.frame, teacher.encode(file.frame), text)
    assert (segments.label_map() == file["label_map"]).mean() >= 0.999
    assert segments.prompt_id.tolist() == file["category_id"].tolist()
    np.testing.assert_allclose(segments.vector, file["vectors"][1:], atol=2e-3)


def test_san_s_masks_in_a_byte_name_the_official_pixels_though_all_lie_far_below_zero(
    shared: Path, tmp_path: Path
) -> None:
    file = golden(shared, tmp_path, "san_tiny", "san_tiny")
    assert file["masks"].max() < 4 and file["masks"].min() < -60
    parity = file.recipe(SanConfig(model="tiny", short_side_px=64, parity=True, **file.weights))
    teacher = San.load(parity, "encode")
    [camera] = file.frame.cameras
    bytes_kept = replace(teacher, config=replace(teacher.config, parity=False, masks="uint8"))
    with torch.inference_mode():
        outputs = teacher.forward(torch.from_numpy(teacher.prepare(file.frame, camera)[None].copy()))
    parts = bytes_kept.pack(camera, {name: part[0].numpy() for name, part in outputs.items()})
    assert parts["masks"].dtype == np.uint8
    encoding = {f"C/{name}": part for name, part in parts.items()}
    [segments] = San.load(parity, "segment").segment(file.frame, encoding, teacher.text(file.prompts))
    assert (segments.label_map() == file["label_map"]).mean() >= 0.995


# -- FC-CLIP


def fcclip(file: Golden, **settings: Any) -> FcClip:
    recipe = file.recipe(FcClipConfig(model="tiny-convnext", **file.weights, **settings))
    return replace(
        FcClip.load(recipe, "encode"),
        seen=np.array([prompt in SEEN_NAMES for prompt in file.prompts]),
        thing=np.arange(len(file.prompts)) < int(file["n_things"]),
    )


def assert_the_official_names(file: Golden, prompt_id: npt.NDArray[Any]) -> None:
    """Of prompts with one name the official code takes whichever rounding makes the larger, ours the first."""
    assert [file.prompts[p] for p in prompt_id] == [file.prompts[p] for p in file["category_id"]]
    assert prompt_id.tolist() == [file.prompts.index(file.prompts[p]) for p in file["category_id"]]


@pytest.mark.parametrize("name", ["fcclip_tiny_9", "fcclip_tiny_57"])
def test_fcclip_in_parity_gives_the_official_masks_names_and_vectors(shared: Path, tmp_path: Path, name: str) -> None:
    file = golden(shared, tmp_path, name, "fcclip_tiny")
    teacher = fcclip(file, parity=True)
    assert teacher.network is not None
    [_camera] = file.frame.cameras
    text = teacher.text(file.prompts)
    np.testing.assert_allclose(text, file["text"][:-1], atol=1e-6)
    encoding = teacher.encode(file.frame)
    masks = encoding["C/masks"].reshape(file["masks"].shape)
    np.testing.assert_allclose(masks, file["masks"], atol=1e-2)  # of which float16 takes up to 0.008
    np.testing.assert_allclose(encoding["C/inside"], unit(file["in_vocab"]), atol=1e-3)
    np.testing.assert_allclose(encoding["C/outside"], unit(file["out_vocab"]), atol=1e-3)

    [segments] = teacher.segment(file.frame, encoding, text)
    np.testing.assert_array_equal(segments.label_map(), file["label_map"])
    assert_the_official_names(file, segments.prompt_id)
    np.testing.assert_allclose(segments.vector, unit(file["fout"][1:]), atol=2e-3)


@pytest.mark.parametrize("name", ["fcclip_tiny_9", "fcclip_tiny_57"])
def test_what_fcclip_keeps_by_default_names_the_official_pixels_too(shared: Path, tmp_path: Path, name: str) -> None:
    file = golden(shared, tmp_path, name, "fcclip_tiny")
    teacher = fcclip(file, parity=True)
    cut = replace(teacher, config=replace(teacher.config, parity=False))
    [camera] = file.frame.cameras
    with torch.inference_mode():
        outputs = cut.forward(torch.from_numpy(teacher.prepare(file.frame, camera)[None].copy()))
    parts = cut.pack(camera, {part: array[0].numpy() for part, array in outputs.items()})
    assert len(parts["masks"]) < file["masks"].size
    encoding = {f"C/{part}": array for part, array in parts.items()}
    [segments] = teacher.segment(file.frame, encoding, teacher.text(file.prompts))
    labelled = file["label_map"] > 0
    assert (segments.label_map() == file["label_map"])[labelled].mean() >= 0.995
    assert_the_official_names(file, segments.prompt_id)
