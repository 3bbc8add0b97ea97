import hashlib
import importlib
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from manifests.config import ConfigError
from manifests.ontology import load_ontology
from manifests.sections.teachers.published import pinned_by_publication
from manifests.sections.teachers.weights import Weights
from manifests.templates import TEMPLATES, templates_of
from pipeline.teachers.loading import towers
from pipeline.teachers.loading.towers import TINY, ensure_torchvision, load_towers, pick_device


@pytest.fixture(scope="module")
def tiny() -> towers.Towers:
    return load_towers(TINY, Weights("random:0"), device="cpu")


def save(model: object, path: Path) -> str:
    """Write an object as torch does and return the digest of the file."""
    torch.save(model, path)
    return digest(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_template_set_is_known_by_name() -> None:
    assert templates_of("single") == ("a photo of a {}.",)
    assert len(templates_of("vild14")) == 14 == len(set(templates_of("vild14")))
    assert all(sentence.count("{}") == 1 for sentences in TEMPLATES.values() for sentence in sentences)
    with pytest.raises(ConfigError, match=r'"vild" *; there are catseg, imagenet80, maskclip85, single, tcl9, vild14'):
        templates_of("vild")


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(
    tiny: towers.Towers, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again, other = (load_towers(TINY, Weights(weights), device="cpu").model for weights in ("random:0", "random:1"))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(again.visual.proj, tiny.model.visual.proj)
    assert not torch.equal(other.visual.proj, tiny.model.visual.proj)
    assert "random weights (seed 1)" in caplog.text
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert not again.training


def test_a_text_vector_is_the_normalised_mean_of_normalised_sentences(tiny: towers.Towers) -> None:
    prompts, templates = ("car", "traffic light"), ("a photo of a {}.", "There is a {} in the scene")
    vectors = tiny.text_vectors(prompts, templates)
    assert vectors.dtype == np.float32
    for prompt, vector in zip(prompts, vectors, strict=True):
        with torch.no_grad():
            sentences = [
                tiny.model.encode_text(tiny.tokenizer([t.replace("{}", prompt)]))[0].numpy() for t in templates
            ]
        mean = np.mean([sentence / np.linalg.norm(sentence) for sentence in sentences], axis=0)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)


def test_the_number_of_sentences_at_once_does_not_matter(tiny: towers.Towers, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = ("car", "bus", "tree")
    whole = tiny.text_vectors(prompts, TEMPLATES["vild14"])
    monkeypatch.setattr(towers, "_TEXT_BATCH", 5)
    np.testing.assert_allclose(tiny.text_vectors(prompts, TEMPLATES["vild14"]), whole, atol=1e-6)


def test_blanks_around_a_prompt_do_not_change_its_vector(tiny: towers.Towers) -> None:
    vectors = tiny.text_vectors((" rolling hills", "rolling hills", "Rolling  Hills"), ("{}",))
    np.testing.assert_array_equal(vectors[1:], vectors[:1].repeat(2, axis=0))


def test_prompts_that_occur_twice_in_the_dictionary_get_one_vector(tiny: towers.Towers) -> None:
    ontology = load_ontology("nuscenes")
    vectors = tiny.text_vectors(ontology.prompts, TEMPLATES["vild14"])
    pairs = [duplicate.prompt_ids for duplicate in ontology.duplicates()]
    assert pairs == [(28, 74), (149, 161)]
    for first, second in pairs:
        np.testing.assert_array_equal(vectors[first], vectors[second])
    assert len(np.unique(vectors, axis=0)) == 173


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path, suffix: str) -> None:
    source = load_towers(TINY, Weights("random:7"), device="cpu")
    path = tmp_path / f"tower.{suffix}"
    if suffix == "pt":  # as open_clip's training script and DistributedDataParallel leave it
        state = {f"module.{name}": tensor for name, tensor in source.model.state_dict().items()}
        torch.save({"epoch": 3, "state_dict": state}, path)
    else:
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous() for name, tensor in source.model.state_dict().items()}, path)
    loaded = load_towers(TINY, Weights(str(path), digest(path)), quick_gelu=True, device="cpu")
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_the_activation_is_the_one_asked_for(tmp_path: Path, tiny: towers.Towers) -> None:
    path = tmp_path / "tower.pt"
    pinned = save(tiny.model.state_dict(), path)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = {
        quick: load_towers(TINY, Weights(str(path), pinned), quick_gelu=quick, device="cpu").model.visual(image)
        for quick in (True, False)
    }
    assert torch.equal(features[True], tiny.model.visual(image))
    assert not torch.allclose(features[False], features[True], atol=1e-4)


def test_a_file_of_another_digest_is_refused(tmp_path: Path, tiny: towers.Towers) -> None:
    path = tmp_path / "tower.pt"
    pinned = save(tiny.model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=f"teacher.weights_sha256 is {pinned}; the file is damaged or another one"):
        load_towers(TINY, Weights(str(path), pinned), quick_gelu=True, device="cpu")


@pytest.mark.filterwarnings("ignore")  # the tracer speaks of what it cannot follow, and torch of its own future
def test_an_archive_such_as_openai_publishes_is_loaded(tmp_path: Path, tiny: towers.Towers) -> None:
    """TorchScript, traced, in half precision, with three sizes beside the weights (openai/CLIP, clip/model.py)."""
    clip, _ = towers.build_clip(TINY, seed=0)
    for name, size in (("input_resolution", 32), ("context_length", 77), ("vocab_size", 49408)):
        clip.__dict__.pop(name, None)
        clip.register_buffer(name, torch.tensor(size))
    inputs = torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)
    archive = torch.jit.trace_module(clip.eval(), {"forward": inputs}, check_trace=False)
    torch.jit.save(archive.half(), tmp_path / "tiny.pt")
    pinned = Weights(str(tmp_path / "tiny.pt"), digest(tmp_path / "tiny.pt"))
    loaded = load_towers(TINY, pinned, quick_gelu=True, device="cpu").model
    for name, tensor in tiny.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor.half().float()), name


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, tiny: towers.Towers, suffix: str) -> None:
    from safetensors.torch import save_file

    path = tmp_path / f"tower.{suffix}"
    if suffix == "pt":
        torch.save(tiny.model.state_dict(), path)
    else:
        save_file(dict(tiny.model.state_dict()), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=rf"tower.{suffix} is cut off after [\d,]+ .*; fetch it again"):
        load_towers(TINY, Weights(str(path), digest(path)), quick_gelu=True, device="cpu")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tower.pt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"teacher.weights: .*tower.pt"):
        load_towers(TINY, Weights(str(path), digest(path)), quick_gelu=True, device="cpu")


class Intruder:
    """Unpickled without care, this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.write_text, (self.path, "gotcha")


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for path, write in ((tmp_path / "a.pt", save), (tmp_path / "b.pt", pickle_to)):
        write({"state_dict": Intruder(trace)}, path)
        with pytest.raises(ConfigError, match=r"holds more than tensors|is a plain pickle"):
            load_towers(TINY, Weights(str(path), digest(path)), quick_gelu=True, device="cpu")
    assert not trace.exists()


def pickle_to(model: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(model, protocol=2))


def test_a_checkpoint_of_another_architecture_is_refused(tmp_path: Path, tiny: towers.Towers) -> None:
    import open_clip

    vision = {**towers.TINY_CONFIGS["tiny"]["vision_cfg"], "layers": 3, "image_size": 64}
    path = tmp_path / "tower.pt"
    pinned = save(open_clip.CLIP(**{**towers.TINY_CONFIGS["tiny"], "vision_cfg": vision}).state_dict(), path)
    with pytest.raises(ConfigError, match="is not a checkpoint of tiny") as caught:
        load_towers(TINY, Weights(str(path), pinned), quick_gelu=True, device="cpu")
    # one block fewer, and a larger grid, which open_clip's own loader would have resized without a word
    assert "12 missing, such as visual.transformer.resblocks.3" in str(caught.value)
    assert "visual.positional_embedding (65, 64) instead of (17, 64)" in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"there is no file nowhere/tower.pt"):
        load_towers(TINY, Weights("nowhere/tower.pt", "0" * 64), quick_gelu=True, device="cpu")


@pytest.mark.parametrize(
    "model",
    [
        "RN50",
        "ViT-B-16-SigLIP",
        "EVA02-B-16",
        "ViT-L-14-CLIPA",
        "coca_ViT-B-32",
        "xlm-roberta-base-ViT-B-32",
    ],
)
def test_a_model_that_is_no_plain_vision_transformer_is_refused(model: str) -> None:
    with pytest.raises(ConfigError, match=f"{model} is not built of CLIP's own towers"):
        load_towers(model, Weights("random:0"), device="cpu")


def test_a_template_set_of_clip_is_the_one_that_open_clip_ships() -> None:
    ensure_torchvision()
    import open_clip

    assert templates_of("imagenet80") == tuple(make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES)
    assert len(templates_of("tcl9")) == 9
    assert templates_of("maskclip85")[:80] == templates_of("imagenet80") and len(templates_of("maskclip85")) == 85
    assert set(templates_of("tcl9")) - set(templates_of("imagenet80")) == {"a photo of {}s."}


def test_the_models_that_the_recipes_name_are_known() -> None:
    for model in ("ViT-B-16", "ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "ViT-H-14-quickgelu"):
        assert towers.clip_config(model)["vision_cfg"]["patch_size"] in (14, 16)
    assert towers.clip_config("convnext_large_d_320")["vision_cfg"]["timm_model_name"] == "convnext_large"


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'"ViT-B-17", which open_clip .* does not know'):
        load_towers("ViT-B-17", Weights("openai"), device="cpu")


def test_an_unknown_tag_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match='"opneai"; ViT-B-16-quickgelu has the tags openai, '):
        load_towers("ViT-B-16-quickgelu", Weights("opneai"), device="cpu")


@pytest.mark.parametrize(
    ("model", "tag", "advice"),
    [
        ("ViT-B-16", "openai", "QuickGELU, but ViT-B-16 is set up with GELU.*ends in -quickgelu"),
        ("ViT-B-16-quickgelu", "dfn2b", None),
        ("ViT-L-14", "metaclip_400m", "QuickGELU, but ViT-L-14 is set up with GELU"),
        ("ViT-B-16", "laion2b_s34b_b88k", None),
    ],
)
def test_weights_and_model_must_agree_on_the_activation(model: str, tag: str, advice: str | None) -> None:
    # No network here: a tag that suits its model gets as far as the download.
    with pytest.raises(ConfigError, match=advice or f"{tag} for {model} could not be fetched"):
        load_towers(model, Weights(tag), device="cpu")


def test_a_device_is_checked() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ConfigError, match=r'run.device is "gpu"; choose'):
        pick_device("gpu")
    with pytest.raises(ConfigError, match=r'run.device is "cuda:99", but torch sees'):
        pick_device("cuda:99")


def test_torchvision_can_be_imported_afterwards() -> None:
    ensure_torchvision()
    import torchvision.transforms

    assert torchvision.transforms.Compose([])(3) == 3
    assert ensure_torchvision() is False


def test_the_shim_does_nothing_where_torchvision_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    before = list(towers._torchvision_schemas)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    assert ensure_torchvision() is False
    assert towers._torchvision_schemas == before


def test_any_other_failure_of_torchvision_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("torch and torchvision were compiled for different CUDA versions")

    before = list(towers._torchvision_schemas)
    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="different CUDA versions"):
        ensure_torchvision()
    assert towers._torchvision_schemas == before


def test_the_file_of_a_published_digest_is_fetched_from_its_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the form of it that open_clip prefers, which has another digest; and verified by ours."""
    ensure_torchvision()
    import open_clip

    asked: list[tuple[str, ...]] = []

    def fetch(*arguments: str) -> str:
        asked.append(arguments)
        (tmp_path / "ViT-B-16.pt").write_bytes(b"not the one")
        return str(tmp_path / "ViT-B-16.pt")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_url", fetch)
    pinned = pinned_by_publication(Weights("openai"), "ViT-B-16-quickgelu")
    with pytest.raises(
        ConfigError, match=r"but teacher.weights_sha256 is 5806e77c.*the file is damaged or another one"
    ):
        towers.fetch_tag("ViT-B-16-quickgelu", pinned, quick_gelu=True)
    monkeypatch.setattr(open_clip.pretrained, "download_pretrained_from_url", lambda *_: 1 / 0)
    with pytest.raises(
        ConfigError, match=r"machine with network access: fetch https://openaipublic.* into .*cache/clip"
    ):
        towers.fetch_tag("ViT-B-16-quickgelu", pinned, quick_gelu=True)
    [(link, folder)] = asked
    assert link.endswith("/ViT-B-16.pt") and pinned.sha256 in link and folder.endswith(".cache/clip")
