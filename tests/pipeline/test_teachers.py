"""The contract that every teacher in the dict keeps; one that has no example here fails."""

import dataclasses
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from manifests.config import ConfigError
from manifests.fingerprint import canonical
from manifests.ontology import parse_ontology
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig, RunConfig
from manifests.sections.tables import GroupConfig, ProjectConfig, SegmentConfig, TextConfig
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.sections.teachers.composite import ProposerConfig, Sam3Config, TipsConfig
from manifests.sections.teachers.ensemble import MemberConfig
from manifests.sections.teachers.onnx import OnnxConfig
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.templates import templates_of
from pipeline.checks.teacher import look
from pipeline.engine.ray_pool import RayPool
from pipeline.engine.tasks import Outcome, Queue, Task
from pipeline.engine.worker import Worker
from pipeline.frame import Camera, Frame, FrameError
from pipeline.stages.base import FrameInput
from pipeline.stages.registry import STAGES
from pipeline.teachers.registry import TEACHERS
from superpixels.segments import Segments
from tests.pipeline.tiny_networks import save_network, save_onnx, segmenter

ONTOLOGY = parse_ontology(
    {
        "name": "street",
        "version": 1,
        "class": [{"name": "ignore", "colour": "#000000"}, {"name": "car", "colour": "#ff0000"}],
        "fine": [{"name": "none", "class": "ignore", "raw": [0]}, {"name": "car", "class": "car", "raw": [1]}],
        "group": [
            {"name": "cars", "fine": "car", "thing": True, "prompts": ["car", "van", "bus"], "concepts": ["car"]}
        ],
    }
)
SIZES = {"FRONT": (64, 48), "SIDE": (48, 64), "BACK": (64, 48)}  # width, height


def frame_of(*names: str) -> Frame:
    cameras = tuple(
        Camera(name, f"token-{name}", f"{name}.png", 0, np.eye(3), np.eye(4), 0, *SIZES[name]) for name in names
    )
    return Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), cameras)


def tiny_clip(root: Path) -> dict[str, Any]:
    return {"name": "clip_dense", "model": "tiny", "weights": "random:0", "short_side_px": 32}


def tiny_clip_of_other_views(root: Path) -> dict[str, Any]:
    return {**tiny_clip(root), "mode": "naclip", "augment": ("flip", "scale:1.5")}


def tiny_san(root: Path) -> dict[str, Any]:
    return {"name": "san", "model": "tiny", "weights": "random:0", "short_side_px": 64}


def tiny_san_of_other_views(root: Path) -> dict[str, Any]:
    return {**tiny_san(root), "augment": ("flip", "flip+scale:1.5")}


def tiny_catseg(root: Path) -> dict[str, Any]:
    return {"name": "catseg", "model": "tiny", "weights": "random:0"}


def tiny_catseg_in_windows(root: Path) -> dict[str, Any]:
    return {**tiny_catseg(root), "windows": True, "parity": True, "kept": "float32"}


def tiny_fcclip(root: Path) -> dict[str, Any]:
    return {"name": "fcclip", "model": "tiny-convnext", "weights": "random:0", "short_side_px": 64, "overlap": 0.0}


def tiny_onnx(root: Path) -> dict[str, Any]:
    return {"name": "onnx", **save_onnx(root / "onnx"), "dims": 16}


def two_networks(root: Path) -> dict[str, Any]:
    networks = [OnnxConfig(**save_onnx(root / f"onnx{seed}", segmenter(seed)), dims=16) for seed in (0, 1)]
    return {"name": "ensemble", "members": tuple(MemberConfig(f"net{i}", onnx=one) for i, one in enumerate(networks))}


def official_files(root: Path) -> dict[str, Any]:
    for name, (width, height) in SIZES.items():
        ids = np.ones((height, width), np.uint8)
        ids[: height // 2] = 0
        Image.fromarray(ids).save(root / f"token-{name}.png")
        (root / f"token-{name}.json").write_text(json.dumps([{"id": 1, "category_id": 2, "area": int(ids.sum())}]))
        torch.save(torch.tensor([[0.0, 0, 0], [0, 3, 4]]), root / f"token-{name}.pt")
    torch.save(torch.eye(3), root / "text_embedding.pt")
    (root / "prompts.txt").write_text("\n".join(ONTOLOGY.prompts))
    return {"name": "artifacts", "folder": str(root)}


def class_maps(root: Path) -> dict[str, Any]:
    folder = root / "classmaps" / DataConfig(root=str(root)).version
    folder.mkdir(parents=True)
    for name, (width, height) in SIZES.items():
        raw = np.ones((height, width), np.uint8)
        raw[: height // 2] = 0
        Image.fromarray(raw).save(folder / f"token-{name}.png")
    return {"name": "oracle", "boundary_shift_px": 2.0, "synonyms": 0.5, "vector_noise": 0.5, "score_noise": 0.5}


def superpixels_with_clip(root: Path) -> dict[str, Any]:
    clip = ClipDenseConfig(model="tiny", weights="random:0", short_side_px=32)
    return {"name": "composite", "masks": "slic", "clip_dense": clip}


def sam3_with_tips(root: Path) -> dict[str, Any]:
    sam3 = Sam3Config(**save_network("sam3", root / "sam3"), min_score=0.0, min_probability=0.1)
    tips = TipsConfig(**save_network("tipsv2", root / "tips"), short_side_px=56)
    return {"name": "composite", "masks": "sam3", "features": "tipsv2", "sam3": sam3, "tipsv2": tips}


def proposals_with_clip(root: Path) -> dict[str, Any]:
    settings: dict[str, Any] = {"trained_on": "mapillary", "min_objectness": 0.0, "min_probability": 0.1}
    proposer = ProposerConfig(**save_network("mask2former", root / "mask2former"), **settings)
    return {**superpixels_with_clip(root), "masks": "proposer", "proposer": proposer}


BLANK = Recipe(
    name="blank",
    data=DataConfig(root="data"),
    run=RunConfig(device="cpu"),
    teacher=ClipDenseConfig(),
    project=ProjectConfig(),
    text=TextConfig(),
    segment=SegmentConfig(),
    group=GroupConfig(),
    ontology=ONTOLOGY,
)

EXAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "artifacts": official_files,
    "catseg": tiny_catseg,
    "catseg: windows as the reference": tiny_catseg_in_windows,
    "clip_dense": tiny_clip,
    "clip_dense: other views": tiny_clip_of_other_views,
    "composite": superpixels_with_clip,
    "composite: sam3, tipsv2": sam3_with_tips,
    "composite: proposer": proposals_with_clip,
    "ensemble": two_networks,
    "fcclip": tiny_fcclip,
    "onnx": tiny_onnx,
    "oracle": class_maps,
    "san": tiny_san,
    "san: other views": tiny_san_of_other_views,
}
"""Per teacher, and after a colon which of its settings, its recipe section for the frame above, after writing what it
needs into the data root."""


@pytest.fixture(params=sorted({*TEACHERS, *EXAMPLES}))
def recipe(request: pytest.FixtureRequest, tmp_path: Path) -> Recipe:
    example = request.param
    name = example.partition(":")[0]
    assert name in EXAMPLES, f"teacher {name} has no example: add one to this file, and the contract is tested with it"
    return recipe_of(example, tmp_path)


def recipe_of(example: str, tmp_path: Path, **run: Any) -> Recipe:
    """Write the images of all cameras and what an example needs, and return its recipe."""
    name = example.partition(":")[0]
    rng = np.random.default_rng(0)
    for camera, (width, height) in SIZES.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(tmp_path / f"{camera}.png")
    return Recipe(
        name="test",
        data=DataConfig(root=str(tmp_path)),
        run=RunConfig(device="cpu", **run),
        teacher=TEACHER_SECTIONS[name](**EXAMPLES[example](tmp_path)),
        project=ProjectConfig(),
        text=TextConfig(),
        segment=SegmentConfig(),
        group=GroupConfig(),
        ontology=ONTOLOGY,
    )


def stages(recipe: Recipe) -> list[str]:
    return ["text", "encode", "segment"] if recipe.teacher.has_encode else ["text", "segment"]


def run(recipe: Recipe, frame: Frame) -> tuple[npt.NDArray[Any], dict[str, npt.NDArray[Any]], list[Segments]]:
    kind = TEACHERS[recipe.teacher.name]
    text = kind.load(recipe, "text").text(ONTOLOGY.prompts)
    encoding = kind.load(recipe, "encode").encode(frame) if recipe.teacher.has_encode else {}
    return text, encoding, kind.load(recipe, "segment").segment(frame, encoding, text)


def test_a_device_names_pixels_as_numpy_does(recipe: Recipe) -> None:
    """On a CPU's tensors: the same code runs on a GPU. Sums are in another order there, so ties may go another way."""
    frame = frame_of("FRONT", "SIDE")
    shared = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, segment_gpus=0.5))
    (text, encoding, views), kind = run(recipe, frame), TEACHERS[recipe.teacher.name]
    teacher = kind.load(shared, "segment")
    if recipe.teacher.name in ("catseg", "clip_dense", "fcclip", "san"):
        assert getattr(teacher, "segment_device", None) is not None
    for one, other in zip(views, teacher.segment(frame, encoding, text), strict=True):
        named = [np.append(-1, view.prompt_id)[view.label_map()] for view in (one, other)]
        assert (named[0] == named[1]).mean() > 0.999
        if len(one) == len(other):
            np.testing.assert_allclose(one.score, other.score, atol=2e-3)
            np.testing.assert_allclose(one.vector, other.vector, atol=2e-3)


def test_the_section_is_a_frozen_dataclass_that_names_its_teacher(recipe: Recipe) -> None:
    config: Any = recipe.teacher
    name = {field.name: field.default for field in dataclasses.fields(config)}["name"]
    assert isinstance(name, str) and TEACHER_SECTIONS[name] is type(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"


def test_a_recipe_that_names_no_sentences_gets_those_of_its_teachers_authors() -> None:
    def sentences(**teacher: Any) -> int:
        section = TEACHER_SECTIONS[teacher["name"]](**teacher)
        return len(templates_of(dataclasses.replace(BLANK, teacher=section).template_list))

    assert sentences(name="clip_dense", weights="random:0") == 80
    assert sentences(name="clip_dense", weights="random:0", mode="maskclip") == 85
    assert sentences(name="san", weights="random:0") == sentences(name="fcclip", weights="random:0") == 14
    tips = TipsConfig("hub:a/b/model.safetensors", "0" * 64, "0" * 40)
    assert sentences(name="composite", masks="slic", features="tipsv2", tipsv2=tips) == 9
    assert sentences(name="composite", masks="slic") == 80
    named = dataclasses.replace(BLANK, text=TextConfig(templates="single"))
    assert named.template_list == "single"


def test_settings_are_an_identity(recipe: Recipe) -> None:
    for stage in stages(recipe):
        settings = dict(recipe.teacher.settings(stage))
        assert settings["name"] == recipe.teacher.name
        assert canonical(settings) == canonical(dict(recipe.teacher.settings(stage)))
        assert settings.get("simulated", False) is recipe.teacher.simulated


def test_a_recipe_can_be_sent_to_a_worker(recipe: Recipe) -> None:
    sent: Recipe = pickle.loads(pickle.dumps(recipe))
    assert sent.teacher == recipe.teacher


def test_text_vectors_are_unit_vectors_one_per_prompt(recipe: Recipe) -> None:
    text, _, _ = run(recipe, frame_of())
    assert text.dtype == np.float32
    assert text.shape[0] == len(ONTOLOGY.prompts)
    np.testing.assert_allclose(np.linalg.norm(text, axis=1), 1, atol=1e-5)


def test_encodings_are_named_by_camera_and_estimated(recipe: Recipe) -> None:
    frame = frame_of("FRONT", "SIDE")
    _, encoding, _ = run(recipe, frame)
    kind = TEACHERS[recipe.teacher.name]
    assert {name.split("/")[0] for name in encoding} == ({"FRONT", "SIDE"} if recipe.teacher.has_encode else set())
    assert all(isinstance(part, np.ndarray) for part in encoding.values())
    assert (kind.kilobytes_per_frame(recipe) > 0) == recipe.teacher.has_encode


@pytest.mark.parametrize("names", [("FRONT", "SIDE", "BACK"), ("BACK",), ()])
def test_every_view_has_segments_in_the_text_space(recipe: Recipe, names: tuple[str, ...]) -> None:
    frame = frame_of(*names)
    text, _, views = run(recipe, frame)
    assert len(views) == len(names)
    for camera, segments in zip(frame.cameras, views, strict=True):
        segments.check()
        assert len(segments) > 0
        assert segments.prompt_id.max() < len(text)
        assert segments.vector.shape[1] == text.shape[1]
        assert ((segments.score > 0) & (segments.score <= 1)).all()
        assert segments.width_px / segments.height_px == pytest.approx(camera.width_px / camera.height_px, rel=0.05)


def test_the_same_frame_gives_the_same_segments(recipe: Recipe) -> None:
    frame = frame_of("FRONT", "SIDE", "BACK")
    for one, other in zip(run(recipe, frame)[2], run(recipe, frame)[2], strict=True):
        for field in dataclasses.fields(Segments):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_an_image_is_encoded_alike_whatever_goes_with_it(recipe: Recipe) -> None:
    """Batches of other sizes may round otherwise: by little, and in few places where the result is a whole number."""
    _, together, _ = run(recipe, frame_of("FRONT", "SIDE", "BACK"))
    _, alone, _ = run(recipe, frame_of("BACK"))
    assert {name for name in together if name.startswith("BACK/")} == alone.keys()
    for name, array in alone.items():
        if np.issubdtype(array.dtype, np.floating):
            np.testing.assert_allclose(together[name].astype(np.float32), array.astype(np.float32), atol=2e-3)
        else:
            assert (together[name] == array).mean() > 0.98


def test_encoding_many_frames_in_one_go_is_encoding_each(recipe: Recipe, tmp_path: Path) -> None:
    """A bad image costs its own frame and no other; last bits may differ, as batches hold images of several frames."""
    if not recipe.teacher.has_encode:
        pytest.skip("there is nothing to encode")
    (tmp_path / "broken.png").write_bytes(b"no image")
    good, broken = frame_of("FRONT", "SIDE"), frame_of("BACK")
    bad = dataclasses.replace(broken, cameras=(dataclasses.replace(broken.cameras[0], image_path="broken.png"),))
    stage = STAGES["encode"]
    assert stage.stream is not None and stage.prepare is not None
    many = stage.stream(recipe)
    assert many is not None
    found = list(many(iter([FrameInput(frame) for frame in (good, bad, good)])))
    assert isinstance(found[1], FrameError) and "broken.png" in str(found[1])
    alone = stage.prepare(recipe)(FrameInput(good)).encoding
    for one in (found[0], found[2]):
        assert not isinstance(one, Exception) and one.encoding.keys() == alone.keys()
        for name, array in alone.items():
            if np.issubdtype(array.dtype, np.floating):
                got = one.encoding[name].astype(np.float32)
                np.testing.assert_allclose(got, array.astype(np.float32), atol=2e-3)
            else:
                assert (one.encoding[name] == array).mean() > 0.98


def test_every_network_can_be_checked_and_random_weights_look_so(recipe: Recipe) -> None:
    if recipe.teacher.ready_made or recipe.teacher.simulated:
        with pytest.raises(ConfigError, match=f"teacher {recipe.teacher.name} runs no network"):
            look(recipe)
        return
    found = look(dataclasses.replace(recipe, segment=SegmentConfig(scale=0.1)))
    assert found.numbers["segments"] > 0 and {"text"} < found.digests.keys() and found.weights
    assert any("nearer to their synonyms" in warning for warning in found.warnings) == recipe.teacher.text_means
    json.dumps(found.document)


def test_naming_the_teachers_loads_none_of_their_libraries() -> None:
    heavy = ["torch", "open_clip", "torchvision", "timm", "transformers", "ray", "jinja2"]
    heavy += ["scipy.ndimage", "scipy.spatial", "scipy.special", "skimage.measure", "skimage.segmentation"]
    code = f"import sys, pipeline.__main__, manifests.recipe; print([name for name in {heavy} if name in sys.modules])"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dataclasses.dataclass(frozen=True)
class Example(Task):
    """A recipe of which a worker is to run every half of the teacher, on one frame."""

    recipe: Any = None


@dataclasses.dataclass(frozen=True)
class Ran(Outcome):
    """What came of it: every array by a name."""

    arrays: Any = None


class TeacherWorker(Worker):
    """Runs teachers instead of stages."""

    def run(self, task: Task) -> Ran:
        assert isinstance(task, Example)
        return Ran(None, arrays=arrays_of(task.recipe, task.frames[0]))


def arrays_of(recipe: Recipe, frame: Frame) -> dict[str, npt.NDArray[Any]]:
    text, encoding, views = run(recipe, frame)
    segments = {
        f"{view}/{field.name}": np.asarray(getattr(one, field.name))
        for view, one in enumerate(views)
        for field in dataclasses.fields(one)
    }
    return {"text": text, **encoding, **segments}


def test_on_ray_every_teacher_gives_what_it_gives_here_to_the_last_bit(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    frame = frame_of("FRONT", "SIDE")
    recipes = {}
    for number, example in enumerate(sorted(EXAMPLES)):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipes[example] = recipe_of(example, folder, pool="ray", workers=1, store=str(tmp_path / "store"))
    tasks = [Example("segment", "", example, "", 1, (frame,), recipe=one) for example, one in recipes.items()]
    try:
        with RayPool(next(iter(recipes.values())), TeacherWorker) as pool:
            found = {task.shard: outcome for task, outcome in pool.run(Queue(tasks))}
    finally:
        ray.shutdown()
    assert found.keys() == EXAMPLES.keys()
    for example, outcome in found.items():
        assert isinstance(outcome, Ran), outcome.failures
        here = arrays_of(recipes[example], frame)
        assert outcome.arrays.keys() == here.keys()
        for name, array in here.items():
            np.testing.assert_array_equal(outcome.arrays[name], array, err_msg=f"{example}: {name}")
            assert outcome.arrays[name].dtype == array.dtype
