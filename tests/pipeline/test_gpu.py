"""What teachers compute on a GPU is what they compute on a CPU. Skipped where torch sees none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.teachers.clip_dense import MODES, ClipDenseConfig
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from pipeline.engine.worker import device_name
from pipeline.frame import Frame
from pipeline.teachers.batches import Batches
from pipeline.teachers.clip_dense import ClipDense
from pipeline.teachers.dense import device_argmax
from pipeline.teachers.registry import TEACHERS
from superpixels.pooling import bilinear_matrix, strip_argmax
from tests.pipeline.test_teachers import EXAMPLES, SIZES, frame_of, recipe_of, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")
GPU = "cuda"

NETWORKS = sorted(name for name in EXAMPLES if TEACHER_SECTIONS[name.partition(":")[0]].has_encode)


def on_gpu(recipe: Recipe, **teacher: Any) -> Recipe:
    """Return the recipe on the GPU, with other settings of its teacher."""
    return replace(recipe, run=replace(recipe.run, device=GPU), teacher=replace(recipe.teacher, **teacher))


def steady(recipe: Recipe) -> Recipe:
    """Return the recipe with an encoding that rounding can move only a little.

    Mode "sc" fills the patches that are most out of place. In a network of random weights many are so nearly equally:
    weights changed by a millionth choose others, on a CPU too, and its vectors turn as far as to cosine 0.96.
    """
    teacher: Any = recipe.teacher
    if isinstance(teacher, ClipDenseConfig):
        teacher = replace(teacher, calibrate_outliers=False)
    elif getattr(teacher, "features", "") == "clip_dense":
        teacher = replace(teacher, clip_dense=replace(teacher.clip_dense, calibrate_outliers=False))
    return replace(recipe, teacher=teacher)


def cosines(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return how like each other the vectors (..., d) of two arrays are."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    one, other = (part / np.linalg.norm(part, axis=-1, keepdims=True) for part in (one, other))
    return np.asarray((one * other).sum(axis=-1))


def grids(recipe: Recipe, frame: Frame) -> dict[str, npt.NDArray[Any]]:
    return ClipDense.load(recipe, "encode").encode(frame)


@pytest.mark.parametrize("example", NETWORKS)
def test_vectors_and_segments_are_those_of_the_cpu(tmp_path: Path, example: str) -> None:
    recipe, frame = steady(recipe_of(example, tmp_path)), frame_of(*SIZES)
    text, encoding, views = run(recipe, frame)
    there, found, segments = run(on_gpu(recipe), frame)
    np.testing.assert_allclose(there, text, atol=1e-4)
    assert found.keys() == encoding.keys()
    for name, part in encoding.items():
        assert found[name].dtype == part.dtype and found[name].shape == part.shape, name
        off = np.abs(found[name].astype(np.float64) - part.astype(np.float64))
        # bytes, and which region it is: now and then another one
        codes = part.dtype.kind in "iu"
        assert (off > (1 if codes else 2e-2)).mean() < 0.02, name
    for one, other in zip(views, segments, strict=True):
        same = one.label_map() == other.label_map()
        assert same.mean() > 0.95


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "convnext"])
@pytest.mark.parametrize(("precision", "least"), [("fp32", 0.99999), ("bf16", 0.98)])
def test_every_mode_of_dense_clip_gives_the_features_of_the_cpu(
    tmp_path: Path, mode: str, precision: str, least: float
) -> None:
    dino = {"dino": "tiny", "dino_weights": "random:1"} if mode == "affinity" else {}
    recipe, frame = recipe_of("clip_dense", tmp_path), frame_of(*SIZES)
    recipe = steady(replace(recipe, teacher=replace(recipe.teacher, mode=mode, **dino)))
    found = grids(on_gpu(recipe, precision=precision), frame)
    for name, part in grids(recipe, frame).items():
        assert cosines(found[name], part).min() > least


def test_features_of_windows_and_of_a_convolutional_tower_are_those_of_the_cpu(tmp_path: Path) -> None:
    recipe, frame = recipe_of("clip_dense", tmp_path), frame_of(*SIZES)
    windows = replace(recipe, teacher=replace(recipe.teacher, window_px=24, stride_px=16))
    convolved = replace(recipe, teacher=replace(recipe.teacher, model="tiny-convnext", mode="convnext"))
    for one in (windows, convolved):
        found = grids(on_gpu(one), frame)
        for name, part in grids(one, frame).items():
            assert cosines(found[name], part).min() > 0.9999


@pytest.mark.filterwarnings("ignore:.*TensorFloat32:UserWarning", "ignore:.*deprecated:DeprecationWarning")
def test_a_compiled_tower_gives_the_same_and_fills_up_its_batches(tmp_path: Path) -> None:
    recipe, frame = recipe_of("clip_dense", tmp_path), frame_of(*SIZES)
    recipe = replace(recipe, run=replace(recipe.run, batch=4), teacher=replace(recipe.teacher, mode="naclip"))
    found = grids(on_gpu(recipe, compile=True), frame)
    for name, part in grids(recipe, frame).items():
        assert cosines(found[name], part).min() > 0.9999


@pytest.mark.parametrize("example", ["fcclip", "san"])
def test_bfloat16_gives_nearly_the_same(tmp_path: Path, example: str) -> None:
    recipe, frame = recipe_of(example, tmp_path), frame_of(*SIZES)
    exact, fast = run(on_gpu(recipe), frame)[1], run(on_gpu(recipe, precision="bf16"), frame)[1]
    part = "embedding" if example == "san" else "outside"
    for camera in SIZES:
        assert np.median(cosines(fast[f"{camera}/{part}"], exact[f"{camera}/{part}"])) > 0.99
    assert any(not np.array_equal(exact[name], fast[name]) for name in exact)


def test_catseg_names_pixels_on_a_gpu_as_on_a_cpu(tmp_path: Path) -> None:
    recipe, frame = recipe_of("catseg", tmp_path), frame_of(*SIZES)
    text, encoding, views = run(recipe, frame)
    shared = replace(recipe, run=replace(recipe.run, device=GPU, segment_gpus=0.5))
    for one, other in zip(
        views, TEACHERS["catseg"].load(shared, "segment").segment(frame, encoding, text), strict=True
    ):
        assert (one.label_map() == other.label_map()).mean() > 0.99


def test_batches_across_frames_give_what_each_frame_gives_alone(tmp_path: Path) -> None:
    recipe = on_gpu(recipe_of("clip_dense", tmp_path))
    teacher = ClipDense.load(recipe, "encode")
    frames = [frame_of(*SIZES)] * 7
    together = list(Batches(teacher, 4, 3)(frames))
    alone = teacher.encode(frames[0])
    assert len(together) == 7
    for found in together:
        assert isinstance(found, dict)
        for name, part in alone.items():
            assert cosines(found[name], part).min() > 0.99999


def test_a_batch_that_the_gpu_has_no_room_for_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network asks for 0.4 of the GPU's memory for each image, on top of what it needs."""
    recipe = on_gpu(recipe_of("clip_dense", tmp_path))
    teacher = ClipDense.load(recipe, "encode")
    expected = teacher.encode(frame_of("FRONT", "BACK"))
    tower, total = ClipDense.forward, torch.cuda.get_device_properties(0).total_memory

    def hungry(self: ClipDense, batch: torch.Tensor) -> Any:
        taken = torch.empty(int(0.4 * total) * len(batch), dtype=torch.uint8, device=GPU)
        del taken
        return tower(self, batch)

    monkeypatch.setattr(ClipDense, "forward", hungry)
    batches = Batches(teacher, 4, 2)
    found = list(batches([frame_of("FRONT", "BACK")] * 2))
    assert batches.size == 2
    for one in found:
        assert isinstance(one, dict)
        assert all(cosines(one[name], part).min() > 0.99999 for name, part in expected.items())
    total *= 4
    with pytest.raises(ConfigError, match=r"one image of .* needs more memory than cuda has"):
        list(Batches(teacher, 2, 2)([frame_of("FRONT")]))


def test_pixels_are_named_on_the_gpu_as_on_the_cpu() -> None:
    cosine = np.random.default_rng(0).normal(size=(175, 28, 50)).astype(np.float32)
    down, across = (bilinear_matrix(*axis) for axis in zip((450, 800), cosine.shape[1:], strict=True))
    here, there = strip_argmax(cosine, 450, 800)[0], device_argmax(cosine, down, across, torch.device(GPU))
    assert (here == there).mean() > 0.9999


def test_a_table_names_the_gpu_that_made_it(tmp_path: Path) -> None:
    assert device_name(on_gpu(recipe_of("clip_dense", tmp_path))) == torch.cuda.get_device_name(0)
