"""A network of one's own: what PyTorch computes is what its ONNX file gives here, and a card that is wrong is told."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from manifests.config import ConfigError
from manifests.fingerprint import sha256_file
from manifests.ontology import load_ontology
from manifests.recipe import Recipe
from manifests.sections.tables import SegmentConfig
from manifests.sections.teachers.card import CARDS, read_card
from manifests.sections.teachers.onnx import OnnxConfig
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.onnx import Onnx
from tests.pipeline.test_teachers import ONTOLOGY, frame_of, recipe_of
from tests.pipeline.tiny_networks import Segmenter, save_network, save_onnx, segmenter, write_card

pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
WIDTH, HEIGHT = 64, 48


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return replace(recipe_of("onnx", tmp_path), segment=SegmentConfig(scale=1.0))


def with_teacher(recipe: Recipe, **settings: Any) -> Recipe:
    teacher: Any = recipe.teacher
    return replace(recipe, teacher=replace(teacher, **settings))


def by_torch(recipe: Recipe, network: Segmenter, mean: float = 0.0, std: float = 1.0, bgr: bool = False) -> Any:
    """What PyTorch gives for the image of camera FRONT, which takes the network's size: probabilities (4, h, w)."""
    pixels = np.asarray(Image.open(Path(recipe.data.root) / "FRONT.png").resize((64, 64), Image.Resampling.BILINEAR))
    pixels = pixels[..., ::-1].copy() if bgr else pixels
    with torch.inference_mode():
        values = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - mean) / std
        return network(values)[0].softmax(dim=0).numpy()


def encoded(recipe: Recipe) -> dict[str, npt.NDArray[Any]]:
    return Onnx.load(recipe, "encode").encode(frame_of("FRONT"))


def test_the_grid_s_classes_are_those_of_pytorch_and_their_probabilities_within_a_255th(recipe: Recipe) -> None:
    found, expected = encoded(recipe), by_torch(recipe, segmenter())
    assert found["FRONT/class"].shape == (3, 32, 32)  # 64 x 48 pixels, as multiples of 32, at a stride of 2
    np.testing.assert_array_equal(found["FRONT/class"][0], expected.argmax(axis=0))
    np.testing.assert_allclose(found["FRONT/probability"][0] / 255, expected.max(axis=0), atol=0.5 / 255 + 1e-5)


@pytest.mark.parametrize(("kept", "top", "equal"), [("float32", 4, 1.0), ("uint8", 3, 0.99)])
def test_the_image_s_segments_are_those_of_pytorch(recipe: Recipe, kept: str, top: int, equal: float) -> None:
    recipe = with_teacher(recipe, kept=kept, top=top)
    probability = torch.from_numpy(by_torch(recipe, segmenter()))[None]
    expected = interpolate(probability, size=(HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0, :3].numpy()
    text = Onnx.load(recipe, "text").text(ONTOLOGY.prompts)
    [found] = Onnx.load(recipe, "segment").segment(frame_of("FRONT"), encoded(recipe), text)
    prompt = np.array([0, 2, 1])[expected.argmax(axis=0)]  # a is the car, b the bus, c the van: by the card
    assert (found.prompt_id[found.label_map() - 1] == prompt).mean() >= equal
    for segment, score in enumerate(found.score, 1):
        assert score == pytest.approx(expected.max(axis=0)[found.label_map() == segment].mean(), abs=0.01)


VARIANTS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "scaled by mean and spread": (
        {"input": "mean = [0.5, 0.5, 0.5]\nstd = [0.25, 0.25, 0.25]"},
        {"mean": 0.5, "std": 0.25},
    ),
    "of another range": ({"input": "white = 255.0\nstd = [255.0, 255.0, 255.0]"}, {}),
    "blue first": ({"input": 'order = "bgr"'}, {"bgr": True}),
    "of a fixed size": ({"input": "height_px = 64\nwidth_px = 64"}, {}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_pixels_go_in_as_the_card_says(recipe: Recipe, tmp_path: Path, variant: str) -> None:
    card, how = VARIANTS[variant]
    write_card(tmp_path / "onnx" / "own.toml", **card)
    found = encoded(with_teacher(recipe))
    np.testing.assert_array_equal(found["FRONT/class"][0], by_torch(recipe, segmenter(), **how).argmax(axis=0))


class ChannelsLast(torch.nn.Module):
    """The network as TensorFlow's exporters write it: bytes in, channels last, in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = segmenter()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(pixels.permute(0, 3, 1, 2).float() / 255).permute(0, 2, 3, 1)
        return found


class Answers(torch.nn.Module):
    """The network with something else than logits at its end."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = segmenter(), kind

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = self.inner(pixels)
        if self.kind == "classes":
            return torch.argmax(logits, dim=1)
        if self.kind == "nan":
            return torch.sqrt(-1 - logits.abs())
        return torch.softmax(logits, dim=1) if self.kind == "probabilities" else logits


def exported(recipe: Recipe, network: torch.nn.Module, example: torch.Tensor, **card: str) -> Recipe:
    """The recipe with another network, exported at the size of an example."""
    folder = Path(recipe.data.root) / "other"
    settings = save_onnx(folder, None, **card)
    torch.onnx.export(network, (example,), str(folder / "own.onnx"), input_names=["image"], dynamo=False)
    return with_teacher(recipe, **{**settings, "weights_sha256": sha256_file(folder / "own.onnx")})


SIZE = "height_px = 64\nwidth_px = 64\n"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_with_channels_last_that_takes_bytes_gives_the_same(recipe: Recipe) -> None:
    card = {"input": f'{SIZE}layout = "nhwc"\nwhite = 255.0', "output": 'layout = "nhwc"'}
    other = exported(recipe, ChannelsLast(), torch.zeros(1, 64, 64, 3, dtype=torch.uint8), **card)
    for name, part in encoded(recipe).items():
        np.testing.assert_array_equal(encoded(other)[name], part)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_probabilities_and_maps_of_classes_are_taken_too(recipe: Recipe) -> None:
    expected = by_torch(recipe, segmenter())
    for kind in ("probabilities", "classes"):
        other = exported(recipe, Answers(kind), torch.zeros(1, 3, 64, 64), input=SIZE)
        path = Path(recipe.data.root) / "other" / "own.toml"
        path.write_text(path.read_text().replace('kind = "logits"', f'kind = "{kind}"'))
        found = encoded(with_teacher(other))
        np.testing.assert_array_equal(found["FRONT/class"][0], expected.argmax(axis=0))
        if kind == "classes":
            assert (found["FRONT/probability"][0] == 255).all() and not found["FRONT/probability"][1:].any()


# -- what a segment holds


def one_view(recipe: Recipe, classes: list[list[int]], kept: list[list[int]]) -> tuple[Any, npt.NDArray[Any]]:
    """The segments of a view of one row of cells, and the vectors of prompts."""
    camera = Camera("C", "c", "c.png", 0, np.eye(3), np.eye(4), 0, len(classes[0]), 1)
    frame = Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), (camera,))
    encoding = {
        "C/class": np.array(classes, np.uint8)[:, None],
        "C/probability": np.array(kept, np.uint8)[:, None],
    }
    text = Onnx.load(recipe, "text").text(ONTOLOGY.prompts)
    [found] = Onnx.load(recipe, "segment").segment(frame, encoding, text)
    return found, text


def test_a_vector_is_that_of_the_prompts_mixed_by_how_likely_they_are(recipe: Recipe, tmp_path: Path) -> None:
    write_card(tmp_path / "onnx" / "own.toml", words='a = ["car", "van"]\nb = ["bus"]\nc = []')
    found, text = one_view(with_teacher(recipe), [[0, 0], [1, 1]], [[204, 153], [51, 102]])
    assert found.prompt_id.tolist() == [0] and found.score[0] == pytest.approx((0.8 + 0.6) / 2, abs=1e-3)
    of_a = (text[0] + text[1]) / np.linalg.norm(text[0] + text[1])
    mixed = 1.4 * of_a + 0.6 * text[2]
    np.testing.assert_allclose(found.vector[0], mixed / np.linalg.norm(mixed), atol=2e-3)


def test_an_ignored_class_wins_pixels_that_no_segment_gets_and_an_unused_one_wins_none(
    recipe: Recipe, tmp_path: Path
) -> None:
    write_card(tmp_path / "onnx" / "own.toml", words='a = { class = "car" }\nb = ["bus"]\nc = []')
    found, _ = one_view(with_teacher(recipe), [[0, 2, 3], [1, 1, 1]], [[200, 200, 200], [50, 50, 50]])
    assert found.label_map().tolist() == [[1, 0, 2]] and found.prompt_id.tolist() == [0, 2]
    nothing, _ = one_view(with_teacher(recipe), [[3, 3]], [[255, 255]])
    assert len(nothing) == 0


def test_a_new_dictionary_calls_no_network(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = encoded(recipe)
    monkeypatch.setattr("pipeline.teachers.onnx.open_session", lambda *_: pytest.fail("the network was opened"))
    write_card(tmp_path / "onnx" / "own.toml", words='a = ["bus"]\nb = ["car"]\nc = ["van"]')
    other = with_teacher(recipe)
    assert recipe.teacher.settings("encode") == other.teacher.settings("encode")
    assert other.teacher.content(ONTOLOGY, recipe.data, "segment") != recipe.teacher.content(
        ONTOLOGY, recipe.data, "segment"
    )
    text = Onnx.load(other, "text").text(ONTOLOGY.prompts)
    [here] = Onnx.load(other, "segment").segment(frame_of("FRONT"), encoding, text)
    [before] = Onnx.load(recipe, "segment").segment(frame_of("FRONT"), encoding, text)
    swapped = np.array([2, 1, 0])[before.prompt_id[before.label_map() - 1]]
    np.testing.assert_array_equal(here.prompt_id[here.label_map() - 1], swapped)


# -- vectors of prompts


@pytest.mark.parametrize("text", ["none", "clip", "sentence"])
def test_vectors_of_prompts_come_from_any_encoder_or_none(recipe: Recipe, tmp_path: Path, text: str) -> None:
    settings: dict[str, Any] = {
        "none": {},
        "clip": {"text_model": "tiny", "text_weights": "random:0"},
        "sentence": {f"text_{key}": value for key, value in save_network("bert", tmp_path / "bert").items()}
        if text == "sentence"
        else {},
    }[text]
    teacher = Onnx.load(with_teacher(recipe, text=text, **settings), "text")
    found = teacher.text(("car", "bus", "car"))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])
    assert teacher.config.text_means == (text != "none")


# -- what is refused

CARD_FAULTS: dict[str, tuple[Callable[[str], str], str]] = {
    "no licence": (lambda card: card.replace('licence = "none"', ""), r"\[network\]: licence is missing"),
    "not said what taught it": (
        lambda card: card.replace("driving_labels = false", ""),
        "driving_labels is missing; tr",
    ),
    "a slip": (
        lambda card: card.replace("[input]", "[input]\nmeans = [1, 1, 1]"),
        r"no setting `means` \(did you mean",
    ),
    "another section": (lambda card: f"{card}\n[more]\na = 1", r"no section \[more\]; a card has network, input"),
    "no kind": (lambda card: card.replace('kind = "logits"', ""), r'\[output\]: kind is ""; choose "logits", "prob'),
    "no stride": (lambda card: card.replace("stride = 2", ""), "stride is 0; expected 1 to 64"),
    "a width alone": (
        lambda card: card.replace("[input]", "[input]\nwidth_px = 64"),
        "or 0 for both where the network",
    ),
    "not TOML": (lambda card: card.replace("[input]", "[input"), "own.toml: not valid TOML"),
    "an unused class of no name": (
        lambda card: card.replace('unused = ["void"]', 'unused = ["vod"]'),
        "did you mean `void`",
    ),
    "another dictionary": (
        lambda card: card.replace("street", "road"),
        r"\[dictionaries.street\] is missing; .* for road",
    ),
    "a class left out": (
        lambda card: card.replace('b = ["bus"]', ""),
        r"\[dictionaries.street\] lacks 'b'; give its p",
    ),
    "a class too many": (
        lambda card: card.replace('b = ["bus"]', 'b = ["bus"]\nd = ["car"]'),
        "has 'd', which is no cl",
    ),
    "an unknown prompt": (
        lambda card: card.replace('"bus"', '"buss"'),
        r'street has no prompt "buss" \(did you mean `bus`',
    ),
    "an unknown class": (lambda card: card.replace('["bus"]', '{ class = "bus" }'), 'street has no class "bus"'),
    "no words": (lambda card: card.replace('["bus"]', "3"), r"b is 3; expected prompts, or { class = "),
    "nothing named": (
        lambda card: card.replace('["bus"]', "[]").replace('["car"]', "[]").replace('["van"]', "[]"),
        "ignores every class",
    ),
    "three names too few": (
        lambda card: card.replace('"a", "b", ', "").replace("a = ", "#").replace("b = ", "#"),
        "shape",
    ),
    "another stride": (
        lambda card: card.replace("stride = 2", "stride = 4"),
        r"has shape \(1, 4, 32, 32\); by .* 16, 16",
    ),
    "another layout": (lambda card: card.replace("[input]", '[input]\nlayout = "nhwc"'), "image has shape .* it is"),
    "another output": (
        lambda card: card.replace("[output]", '[output]\nname = "x"'),
        "and the network has logits; name",
    ),
    "probabilities": (
        lambda card: card.replace('"logits"', '"probabilities"'),
        r'sum to .* in a cell; is it "logits"\?',
    ),
    "classes": (lambda card: card.replace('"logits"', '"classes"'), r"expected a map of \(32, 32\) classes"),
}


@pytest.mark.parametrize("fault", CARD_FAULTS)
def test_a_card_that_does_not_fit_is_a_sentence(recipe: Recipe, tmp_path: Path, fault: str) -> None:
    spoil, message = CARD_FAULTS[fault]
    path = tmp_path / "onnx" / "own.toml"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ConfigError, match=message):
        encoded(with_teacher(recipe))


def test_a_network_without_a_card_is_refused_with_where_it_should_lie(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "onnx" / "own.toml").unlink()
    with pytest.raises(ConfigError, match=r"own.toml cannot be read .* a network needs a card .* \(ours: espnetv2"):
        with_teacher(recipe).teacher.settings("encode")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_outputs_that_are_not_what_the_card_says_or_no_numbers_are_told(recipe: Recipe) -> None:
    shares = exported(recipe, Answers("probabilities"), torch.zeros(1, 3, 64, 64), input=SIZE)
    with pytest.raises(ConfigError, match='kind is "logits", but they sum to 1 in every cell; is it "probabilities"'):
        encoded(shares)
    with pytest.raises(FrameError, match=r"FRONT.png: what three convolutions gives holds values that are not finite"):
        encoded(exported(recipe, Answers("nan"), torch.zeros(1, 3, 64, 64), input=SIZE))
    with pytest.raises(ConfigError, match=r"\[input\]: image has shape \[1, 3, 64, 64\], but .* 'any', 'any'"):
        encoded(exported(recipe, segmenter(), torch.zeros(1, 3, 64, 64)))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"<html>", "is a web page"), (b"\x08\x07\xff\x01 no network", "cannot be opened as an ONNX")],
)
def test_a_file_that_is_no_network_is_refused(recipe: Recipe, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "onnx" / "own.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        encoded(with_teacher(recipe, weights_sha256=sha256_file(path)))
    with pytest.raises(ConfigError, match=r"has sha256 .* the file is damaged or another one"):
        encoded(recipe)


def test_tensors_in_another_file_are_refused_as_no_digest_holds_them(recipe: Recipe, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "onnx" / "own.onnx"
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="rest.data", size_threshold=0)
    with pytest.raises(ConfigError, match="keeps its tensors in other files"):
        encoded(with_teacher(recipe, weights_sha256=sha256_file(path)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "openai"}, "give the path of an ONNX file"),
        ({"weights": "random:0", "weights_sha256": ""}, "give the path of an ONNX file"),
        ({"text": "words"}, 'choose "none", "clip" or "sentence"'),
        ({"text": "clip"}, "takes text_model and text_weights; given are neither"),
        ({"text_weights": "a.pt"}, 'text is "none", which takes dims; given are text_weights'),
        ({"text": "sentence", "text_weights": "a.pt"}, "expected FOLDER/model.safetensors"),
        ({"text": "clip", "text_model": "ViT-B-16", "text_weights": "a.pt"}, "quick_gelu is missing"),
        ({"top": 0}, "top is 0"),
        ({"kept": "float16"}, 'choose "uint8" or "float32"'),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(recipe: Recipe, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_teacher(recipe, **settings)


def test_a_camera_of_another_focal_length_is_told_of_once(recipe: Recipe, tmp_path: Path, caplog: Any) -> None:
    write_card(tmp_path / "onnx" / "own.toml", input=f"{SIZE}focal_px = 100.0")
    [camera] = frame_of("FRONT").cameras
    frame = replace(frame_of("FRONT"), cameras=(replace(camera, intrinsics=np.diag([50.0, 50.0, 1.0])),))
    teacher = Onnx.load(with_teacher(recipe), "encode")
    for _ in range(2):
        teacher.encode(frame)
    told = [one.message for one in caplog.records if "focal length" in one.message]
    assert told == [
        "FRONT: at the network's size its focal length is 50 px, and the network was made for 100: things look 0.5 "
        "times as large as it knows them"
    ]


def test_where_sizes_are_free_images_are_scaled_to_the_focal_length(recipe: Recipe, tmp_path: Path) -> None:
    write_card(tmp_path / "onnx" / "own.toml", input="focal_px = 100.0")
    session = Onnx.load(with_teacher(recipe), "encode").network
    assert session.size_px(480, 640, focal_px=200.0) == (256, 320)  # 240 and 320, to multiples of 32


# -- a real network on a real frame


@pytest.mark.parametrize("card", sorted(path.stem for path in CARDS.glob("*.toml")))
def test_our_cards_fit_our_dictionaries(card: str) -> None:
    found = read_card(CARDS / f"{card}.toml")
    for name in found.stands_for:
        assert any(found.prompts_of(load_ontology(name)))


def test_espnetv2_s_maps_are_those_of_the_code_that_it_came_with(shared: Path) -> None:
    """`real_teacher.py` runs the same file by itself: equal in every pixel; with what is kept by default, nearly."""
    folder, root = shared / "data" / "teachers-real", shared / "data" / "semantickitti-real"
    pytest.importorskip("cv2")
    weights = folder / "models" / "espnetv2_s2.0_cityscapes_1248x384.onnx"
    spec = importlib.util.spec_from_file_location("real_teacher", folder / "real_teacher.py")
    assert spec and spec.loader
    theirs: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(theirs)
    theirs.MODELS = weights.parent
    path = "sequences/08/image_2/000000.png"
    rgb = np.asarray(Image.open(root / path).convert("RGB"))
    probability = theirs.EspNet().probabilities(rgb, theirs.SIZES["kitti"][1])
    height, width = rgb.shape[:2]
    large = [theirs.cv2.resize(np.ascontiguousarray(one), (width, height)) for one in probability]

    camera = Camera("C", "C", path, 0, np.diag([707.0, 707.0, 1.0]), np.eye(4), 0, width, height)
    frame = Frame("f", "s", 0, "l", "l.bin", None, np.eye(4), np.eye(4), (camera,))
    config = OnnxConfig(weights=str(weights), weights_sha256=sha256_file(weights), card="espnetv2_cityscapes_1248x384")
    blank = recipe_like(config, root)
    exact = replace(blank, teacher=replace(config, top=20, kept="float32"))
    encoding = Onnx.load(exact, "encode").encode(frame)
    np.testing.assert_array_equal(encoding["C/class"][0], probability.argmax(axis=0))
    text = Onnx.load(exact, "text").text(exact.ontology.prompts)
    first = np.array([rows[0] if rows else -1 for rows in config.the_card.prompts_of(exact.ontology)])
    expected = first[np.argmax(large, axis=0)]
    [found] = Onnx.load(exact, "segment").segment(frame, encoding, text)
    np.testing.assert_array_equal(found.prompt_id[found.label_map() - 1], expected)
    by_default = {
        "C/class": encoding["C/class"][:3],
        "C/probability": np.rint(255 * encoding["C/probability"][:3]).astype(np.uint8),
    }
    [found] = Onnx.load(blank, "segment").segment(frame, by_default, text)
    assert (found.prompt_id[found.label_map() - 1] == expected).mean() > 0.999
    assert config.settings("encode")["supervised"] is True


def recipe_like(config: OnnxConfig, root: Path) -> Recipe:
    """A recipe over SemanticKITTI at full size."""
    from tests.pipeline.test_teachers import BLANK

    return replace(
        BLANK,
        data=replace(BLANK.data, root=str(root)),
        teacher=config,
        segment=SegmentConfig(scale=1.0),
        ontology=load_ontology("semantic_kitti"),
    )
