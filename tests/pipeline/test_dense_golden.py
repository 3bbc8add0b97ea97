"""Dense CLIP against what its authors' own code gives, on seeded weights: ../shared/golden/teachers says which commits.

An error counts in parts of the spread between patches: features have a large common part that names nothing.
"""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pipeline.teachers.dense import DenseTower
from pipeline.teachers.loading.towers import Towers, ensure_torchvision

SMALL_B16 = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "patch_size": 16, "width": 128, "layers": 12, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
MODE_OF = {
    "sc": "sc",
    "naclip": "naclip",
    "sclip": "sclip",
    "clearclip": "clearclip",
    "maskclip-zhou": "maskclip",
    "maskclip-cc": "values",
    "proxy": "affinity",
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "teachers"


@pytest.fixture(scope="module")
def towers(golden: Path) -> Towers:
    spec = importlib.util.spec_from_file_location("golden_teachers", golden / "recipe.py")
    assert spec is not None and spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    ensure_torchvision()
    import open_clip

    shapes = json.loads((golden / "clip_small.keys.json").read_text())
    tensors = {key: torch.from_numpy(recipe.tensor(key, shape, "clip", 0)) for key, shape in shapes.items()}
    clip: Any = open_clip.CLIP(**SMALL_B16)
    missing, unexpected = clip.load_state_dict(tensors, strict=False)
    assert not unexpected and all("attn_mask" in name for name in missing)
    return Towers(clip.requires_grad_(False).eval(), None, torch.device("cpu"))


def read(path: Path) -> dict[str, Any]:
    with np.load(path) as file:
        return dict(file)


def of_spread(found: npt.NDArray[Any], official: npt.NDArray[Any]) -> float:
    """How far features (n, d) are from the official ones, in parts of the spread between the patches of these."""
    centred = official - official.mean(axis=0)
    return float(np.linalg.norm(found - found.mean(axis=0) - centred) / np.linalg.norm(centred))


def features(towers: Towers, file: dict[str, Any], method: str, size: str, **settings: Any) -> npt.NDArray[Any]:
    def seen(pixels: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(file[f"seen_{size}"].astype(np.float32))

    tower = DenseTower(towers, MODE_OF[method], dino=seen if method == "proxy" else None, **settings)  # type: ignore[arg-type]
    with torch.inference_mode():
        return tower(torch.from_numpy(file[f"image_{size}"])[None])[0].flatten(0, 1).numpy()


@pytest.mark.parametrize("method", MODE_OF)
def test_a_mode_gives_what_the_code_of_its_authors_gives(golden: Path, towers: Towers, method: str) -> None:
    file = read(golden / f"dense_{method}.npz")
    sizes = [name.removeprefix("features_") for name in file if name.startswith("features_")]
    assert "native" in sizes and int(file["seed"]) == 0
    for size in sizes:
        found = features(towers, file, method, size)
        assert of_spread(found, file[f"features_{size}"]) < TOLERANCE, (method, size)


def test_exact_positions_are_another_choice_at_sizes_that_the_tower_was_not_trained_at(
    golden: Path, towers: Towers
) -> None:
    file = read(golden / "dense_naclip.npz")
    official = file["features_wide"]
    assert 0.2 < of_spread(features(towers, file, "naclip", "wide", positions="exact"), official) < 0.7
    native = file["features_native"]
    assert of_spread(features(towers, file, "naclip", "native", positions="exact"), native) < TOLERANCE


def test_the_two_that_are_called_maskclip_are_two(golden: Path, towers: Towers) -> None:
    file = read(golden / "dense_maskclip-zhou.npz")
    assert of_spread(features(towers, file, "maskclip-cc", "native"), file["features_native"]) > 0.5
