"""TIPSv2 as features: the last block takes values only, and images of any size are seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from manifests.config import ConfigError
from manifests.sections.teachers.composite import TipsConfig
from pipeline.frame import Camera, Frame
from pipeline.teachers.batches import encode_frame
from pipeline.teachers.tips import Tips
from tests.pipeline.tiny_networks import save_network


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return save_network("tipsv2", tmp_path_factory.mktemp("tips"))


@pytest.fixture
def tips(settings: dict[str, Any], tmp_path: Path) -> Tips:
    return Tips.load(TipsConfig(**settings, short_side_px=56), tmp_path, ("a {}.", "the {}."), "cpu")


def test_without_attention_it_is_the_network_itself(tips: Tips) -> None:
    """Where every patch has the same value, attention, which averages values, gives what values alone give."""
    pixels = torch.full((1, 3, 28, 42), 0.5)
    vision = tips.network.model.vision_model
    last = vision.encoder.layer[-1].attention
    with torch.inference_mode():
        last.v_proj.weight.zero_()  # values are the bias for every patch
        native = vision(pixels).last_hidden_state[:, 2:]
        torch.testing.assert_close(tips.features(pixels).flatten(1, 2), native, atol=1e-5, rtol=0)


def test_the_last_block_does_not_look_at_other_patches(tips: Tips) -> None:
    tips.network.model.vision_model.encoder.layer = tips.network.model.vision_model.encoder.layer[-1:]
    one = torch.rand(1, 3, 28, 42)
    other = one.clone()
    other[..., 28:] = 0  # the last column of patches
    with torch.inference_mode():
        before, after = tips.features(one), tips.features(other)
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2], after[:, :, 2])


def test_images_become_unit_grids_alike_in_any_batch(tips: Tips, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cameras = []
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (90, 160, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
        cameras.append(Camera(name, "t", f"{name}.png", 0, np.eye(3), np.eye(4), 0, 160, 90))
    frame = Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), tuple(cameras))
    found = encode_frame(tips, frame)
    assert found.keys() == {f"{name}/{part}" for name in "ab" for part in ("grid", "rows_px", "columns_px")}
    assert found["b/rows_px"].tolist() == [[0, 56]] and found["b/columns_px"].tolist() == [[0, 98]]
    assert found["a/grid"].shape == (4, 7, 16) and found["a/grid"].dtype == np.float16
    np.testing.assert_allclose(np.linalg.norm(found["a/grid"].astype(np.float32), axis=-1), 1, atol=2e-3)
    images = torch.from_numpy(np.stack([tips.prepare(frame, camera) for camera in cameras]))
    assert images.shape == (2, 56, 98, 3)
    with torch.inference_mode():
        alone = tips.forward(images[1:])["grid"]
    np.testing.assert_allclose(alone[0].numpy(), found["b/grid"], atol=1e-3)


def test_prompts_become_unit_vectors_and_padding_does_not_count(tips: Tips) -> None:
    vectors = tips.text(("car", "bus", "car"))
    assert vectors.shape == (3, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    tokens = torch.tensor([[3, 4, 5], [3, 4, -1]])
    with torch.inference_mode():
        short = tips.encode_text(tokens[1:, :2])
        torch.testing.assert_close(tips.encode_text(tokens)[1:], short, atol=1e-5, rtol=0)


def test_windows_cover_the_image_and_one_as_large_as_it_is_the_image(settings: dict[str, Any], tmp_path: Path) -> None:
    def grid(window_px: int, stride_px: int) -> npt.NDArray[Any]:
        config = TipsConfig(**settings, window_px=window_px, stride_px=stride_px)
        with torch.inference_mode():
            return Tips.load(config, tmp_path, ("{}",), "cpu").forward(image)["grid"].float().numpy()

    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 28, 42, 3), dtype=np.uint8))
    whole = grid(0, 14)
    np.testing.assert_allclose(grid(56, 56), whole, atol=1e-3)  # scaled to length 1 once more
    seen = grid(28, 14)
    assert whole.shape == (1, 2, 3, 16) and seen.shape == (1, 2, 2 * 2, 16)  # two windows, side by side
    np.testing.assert_allclose(np.linalg.norm(seen, axis=-1), 1, atol=2e-3)
    assert not np.array_equal(seen[:, :, :2], whole[:, :, :2])  # patches see less
    with pytest.raises(ConfigError, match="window_px 30 must be a multiple of the patch of 14 pixels"):
        grid(30, 14)
    with pytest.raises(ValueError, match="so that no gap is left"):
        grid(14, 28)


def test_bfloat16_changes_little(settings: dict[str, Any], tmp_path: Path) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 28, 42, 3), dtype=np.uint8))
    grids = []
    for precision in ("fp32", "bf16"):
        made = Tips.load(TipsConfig(**settings, precision=precision), tmp_path, ("{}",), "cpu")
        with torch.inference_mode():
            grids.append(made.forward(image)["grid"].float())
    assert 0 < (1 - (grids[0] * grids[1]).sum(dim=-1)).abs().max() < 0.01


def test_only_what_matters_to_a_stage_is_in_its_identity(settings: dict[str, Any]) -> None:
    one, other = TipsConfig(**settings), TipsConfig(**settings, short_side_px=56)
    assert one.settings("text") == other.settings("text")
    assert one.settings("encode") != other.settings("encode")
    with pytest.raises(ValueError, match="short_side_px is 4"):
        TipsConfig(**settings, short_side_px=4)
