"""A network that is asked of other views of an image, too: what views agree on stays, what they do not is less sure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.views import View, views_of
from manifests.stages import fingerprint
from pipeline.teachers.onnx import Onnx
from pipeline.teachers.views import over_views
from tests.pipeline.test_teachers import frame_of, recipe_of
from tests.pipeline.tiny_networks import save_onnx, write_card

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


class Mirrored(torch.nn.Module):
    """A network that knows neither left nor right: each cell is named by the largest values of its four pixels."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        most = torch.nn.functional.max_pool2d(pixels, 2)
        found: torch.Tensor = 8 * torch.cat([most, 1 - most[:, :1]], dim=1)
        return found


class Sided(torch.nn.Module):
    """A network that looks to the right of a cell for two of its four classes."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        most = torch.nn.functional.max_pool2d(pixels, 2)
        right = torch.cat([most[..., 2:], most[..., -2:]], dim=3)
        found: torch.Tensor = 8 * torch.cat([most[:, :1], right[:, :2], 1 - most[:, :1]], dim=1)
        return found


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return replace(recipe_of("onnx", tmp_path), segment=SegmentConfig(scale=1.0))


def asked(recipe: Recipe, network: torch.nn.Module | None, *augment: str) -> Recipe:
    teacher: Any = recipe.teacher
    settings = save_onnx(Path(teacher.weights).parent, network)
    return replace(recipe, teacher=replace(teacher, **settings, kept="float32", top=4, augment=augment))


def encoded(recipe: Recipe) -> tuple[Any, Any]:
    found = Onnx.load(recipe, "encode").encode(frame_of("FRONT"))
    return found["FRONT/class"], found["FRONT/probability"]


def test_views_that_agree_leave_the_map_as_it_is(recipe: Recipe) -> None:
    plain, mirrored = (encoded(asked(recipe, Mirrored(), *augment)) for augment in ((), ("flip",)))
    for one, other in zip(plain, mirrored, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(np.unique(plain[0][0])) > 1


def test_views_that_disagree_are_averaged_and_less_sure(recipe: Recipe) -> None:
    network = Sided()
    one, both = (encoded(asked(recipe, network, *augment)) for augment in ((), ("flip",)))
    teacher = Onnx.load(asked(recipe, network), "encode")
    pixels = teacher.prepare(frame_of("FRONT"), frame_of("FRONT").cameras[0])
    with torch.inference_mode():
        values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        maps = [network(values)[0].softmax(0), network(values.flip(3))[0].softmax(0).flip(2)]
    mean = (maps[0] + maps[1]) / 2
    split = (maps[0].argmax(0) != maps[1].argmax(0)).numpy()
    assert split.any() and not split.all()
    best = mean.max(0).values.numpy()
    # of equals, which comes first is up to the last bits, and who agrees is too
    ahead = [one.topk(2, dim=0).values for one in (mean, *maps)]
    clear = np.logical_and.reduce([(one[0] - one[1] > 1e-5).numpy() for one in ahead])
    np.testing.assert_array_equal(both[0][0][clear], mean.argmax(0).numpy()[clear])
    sure = np.where(split, 0.5, 1.0) * best
    np.testing.assert_allclose(both[1][0][clear], sure[clear], atol=1e-5)
    assert not np.array_equal(one[1], both[1])
    assert (both[1].sum(axis=0)[split & clear] < 0.51).all(), "what is left is not known"


def test_a_larger_view_comes_back_onto_the_grid(recipe: Recipe) -> None:
    one, both = (encoded(asked(recipe, Mirrored(), *augment)) for augment in ((), ("scale:2", "flip+scale:2")))
    assert both[1].shape == one[1].shape
    assert (both[0][0] == one[0][0]).mean() > 0.75


def test_views_are_asked_as_they_are_named() -> None:
    seen: list[Any] = []

    def look(image: Any) -> Any:
        seen.append(image)
        return np.stack([image[..., 0] / 255, 1 - image[..., 0] / 255]).astype(np.float32)

    image = np.arange(2 * 4 * 3).reshape(2, 4, 3).astype(np.uint8)
    larger = lambda pixels, scale: np.repeat(np.repeat(pixels, int(scale), axis=0), int(scale), axis=1)  # noqa: E731
    found = over_views(look, image, views_of(["flip", "scale:2"]), larger)
    assert [one.shape for one in seen] == [(2, 4, 3), (2, 4, 3), (4, 8, 3)]
    np.testing.assert_array_equal(seen[1], image[:, ::-1])
    np.testing.assert_allclose(found, look(image), atol=1e-6)
    bad = over_views(lambda pixels: look(pixels) * np.nan, image, (View(flip=True),), larger)
    assert np.isnan(bad).all()


def test_a_view_is_in_the_identity_of_what_it_changes(recipe: Recipe) -> None:
    plain, mirrored = asked(recipe, None), asked(recipe, None, "flip")
    assert fingerprint(plain, "encode") != fingerprint(mirrored, "encode")
    assert fingerprint(plain, "text") == fingerprint(mirrored, "text")
    assert "augment" not in str(plain.teacher.settings("encode"))


@pytest.mark.parametrize(
    "augment", [("mirror",), ("scale:1",), ("scale:9",), ("scale:",), ("flip", "flip"), ("flip+",)]
)
def test_other_words_are_refused(augment: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match=r"augment has \""):
        views_of(augment)


def test_a_network_of_one_size_takes_no_other(recipe: Recipe) -> None:
    wrong = asked(recipe, None, "scale:1.25")
    teacher: Any = wrong.teacher
    write_card(Path(teacher.weights).with_suffix(".toml"), input="height_px = 64\nwidth_px = 64")
    with pytest.raises(ConfigError, match=r"takes 64 x 64 pixels alone; leave the scales out"):
        fingerprint(replace(wrong, teacher=replace(teacher)), "encode")
