"""CLIP towers: the one door to open_clip. Models and checkpoints are checked here, before they can be quietly wrong."""

from __future__ import annotations

import importlib
import logging
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.fingerprint import sha256_file

if TYPE_CHECKING:
    import torch

TINY = "tiny"
"""A model of our own with two towers of a few layers, for tests and dry runs of the whole chain without weights."""

TINY_CONFIG: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}

# What open_clip's configurations of plain CLIP models hold; any other key stands for another network, or a changed one.
_CLIP_KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
_VISION_KEYS = {"image_size", "patch_size", "layers", "width", "head_width", "mlp_ratio", "ls_init_value"}

_CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_TEXT_BATCH = 256  # sentences at once: enough to fill a GPU, small enough for a laptop

_log = logging.getLogger(__name__)
_torchvision_schemas: list[Any] = []  # torch forgets an operator schema when its Library object is collected


@dataclass(frozen=True, eq=False)
class Towers:
    """A frozen CLIP model on a device, in evaluation mode, and its tokenizer; float32 weights."""

    model: Any
    tokenizer: Any
    device: torch.device

    def text_vectors(self, prompts: Sequence[str], templates: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d), computed in float32.

        Each prompt goes into every template. Each sentence's vector is scaled to length 1, and so is their mean.
        Prompts that the tokenizer reads alike get the same vector to the last bit: their sentences are computed once.
        """
        import torch
        from torch.nn.functional import normalize

        tokens = self.tokenizer([template.format(prompt) for prompt in prompts for template in templates])
        distinct, position = torch.unique(tokens, dim=0, return_inverse=True)
        with torch.inference_mode():
            parts = [normalize(self.model.encode_text(some.to(self.device))) for some in distinct.split(_TEXT_BATCH)]
            sentences = torch.cat(parts)[position.to(self.device)]
            mean = sentences.view(len(prompts), len(templates), -1).mean(dim=1)
            vectors: npt.NDArray[np.float32] = normalize(mean).float().cpu().numpy()
        return vectors


def is_local(weights: str) -> bool:
    """Return whether `weights` is the path of a file, rather than a pretrained tag or `random:SEED`."""
    return "/" in weights or "\\" in weights or weights.endswith(_CHECKPOINT_SUFFIXES)


def random_seed(weights: str) -> int | None:
    """Return the seed of `random:SEED`, None for anything else; raises ValueError if the seed is not a whole number."""
    kind, colon, seed = weights.partition(":")
    if kind != "random":
        return None
    if not colon or not seed.isdecimal():
        raise ValueError(f'weights are "{weights}"; random weights are written random:SEED, for example random:0')
    return int(seed)


def load_towers(
    model: str, weights: str, weights_sha256: str = "", quick_gelu: bool | None = None, device: str = "auto"
) -> Towers:
    """Return the towers of a model of open_clip (or "tiny"), with the weights of a tag, a local file or `random:SEED`.

    `quick_gelu` None takes the activation that the model name implies. Raises ConfigError, with a sentence that says
    what to change, for: an unknown model or tag, an image tower that is not a plain vision transformer, weights
    trained with the other activation or with other pixel statistics, a file that is missing, damaged, of another
    architecture, that holds anything but tensors, or whose sha256 is not `weights_sha256`.
    """
    import torch

    ensure_torchvision()
    import open_clip

    config = TINY_CONFIG if model == TINY else built_in_config(open_clip, model)
    activation = bool(config.get("quick_gelu", False)) if quick_gelu is None else quick_gelu
    target = pick_device(device)
    seed = random_seed(weights)
    if seed is None:
        path = Path(weights) if is_local(weights) else fetch_tag(open_clip, model, weights, activation)
        check_digest(path, weights_sha256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0 if seed is None else seed)
        clip = open_clip.CLIP(**{**config, "quick_gelu": activation})
    assert isinstance(clip.visual, open_clip.transformer.VisionTransformer)
    if seed is None:
        load_checkpoint(open_clip, clip, path, model)
    else:
        _log.warning("%s has random weights (seed %d): what it finds in images means nothing", model, seed)
    tokenizer = open_clip.SimpleTokenizer() if model == TINY else open_clip.get_tokenizer(model)
    return Towers(clip.requires_grad_(False).eval().to(target), tokenizer, target)


def built_in_config(open_clip: Any, model: str) -> dict[str, Any]:
    """Return open_clip's configuration of a model; raises ConfigError unless both its towers are CLIP's own kind."""
    if model not in open_clip.list_models():
        raise ConfigError(
            f'teacher.model is "{model}", which open_clip {open_clip.__version__} does not know; '
            f'take one of open_clip.list_models(), for example "ViT-B-16-quickgelu", or "{TINY}"'
        )
    config: dict[str, Any] = open_clip.get_model_config(model)
    foreign = sorted(config.keys() - _CLIP_KEYS | config["vision_cfg"].keys() - _VISION_KEYS)
    if foreign or "hf_model_name" in config["text_cfg"] or not isinstance(config["vision_cfg"]["layers"], int):
        raise ConfigError(
            f"teacher.model {model} is not built of CLIP's own towers ({', '.join(foreign) or 'another network'}). "
            "Dense features are read from the last block of a plain vision transformer with a class token, such as "
            '"ViT-B-16-quickgelu" or "ViT-L-14"'
        )
    return config


def fetch_tag(open_clip: Any, model: str, tag: str, quick_gelu: bool) -> Path:
    """Return the file of a pretrained tag, downloaded if not in the cache; first, it must suit the model."""
    known = open_clip.get_pretrained_cfg(model, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ConfigError(
            f'teacher.weights is "{tag}"; {model} has the tags {", ".join(tags) or "(none)"}. '
            "A local file is given by its path, and a dry run by random:SEED"
        )
    trained = bool(known.get("quick_gelu", False))
    if trained != quick_gelu:
        raise ConfigError(
            f"teacher.weights {tag} was trained with {activation_name(trained)}, but {model} is set up with "
            f"{activation_name(quick_gelu)}: features would be wrong without any error. "
            f"{'Use the model name that ends in -quickgelu' if trained else 'Use the model name without -quickgelu'}"
        )
    mean, std = (tuple(known.get(key, ())) for key in ("mean", "std"))
    if (mean, std) != pixel_statistics():
        raise ConfigError(
            f"teacher.weights {tag} expects pixels scaled by {mean} and {std}; only CLIP's own are supported"
        )
    try:
        return Path(open_clip.download_pretrained(known))
    except Exception as error:  # whatever the network, the hub or the disk may raise
        raise ConfigError(
            f"teacher.weights {tag} for {model} could not be fetched ({first_line(error)}). Download it once on a "
            "machine with network access and give the file's path and sha256, or copy the cache of huggingface_hub"
        ) from None


def activation_name(quick_gelu: bool) -> str:
    """Return how the literature calls the activation."""
    return "QuickGELU" if quick_gelu else "GELU"


def pixel_statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of CLIP's training images, RGB in 0..1."""
    ensure_torchvision()
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD)


def check_digest(path: Path, weights_sha256: str) -> None:
    """Raise ConfigError unless the file is there and, where a digest is pinned, has it."""
    if not path.is_file():
        raise ConfigError(f"teacher.weights: there is no file {path}")
    if weights_sha256 and (found := sha256_file(path)) != weights_sha256:
        raise ConfigError(
            f"teacher.weights: {path} has sha256 {found}, but teacher.weights_sha256 is {weights_sha256}; "
            "the file is damaged or another one"
        )


def load_checkpoint(open_clip: Any, clip: Any, path: Path, model: str) -> None:
    """Put the tensors of a checkpoint file into the towers: every tensor, of exactly the right shape.

    A file may only hold tensors: nothing it contains is executed. open_clip's own loader would resize position
    embeddings of another model quietly, and is not used.
    """
    try:
        state = open_clip.factory.load_state_dict(str(path), device="cpu", weights_only=True)
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"teacher.weights: {path} holds more than tensors, or is no checkpoint, and is not opened "
            f"({first_line(error)}); save its state_dict with torch.save, or as .safetensors"
        ) from None
    except Exception as error:  # zip, safetensors, tensor and file errors of a damaged file share no base class
        raise ConfigError(
            f"teacher.weights: {path} cannot be read as a checkpoint ({first_line(error)}); it is damaged, or not a "
            "state_dict"
        ) from None
    expected = {name: tuple(tensor.shape) for name, tensor in clip.state_dict().items()}
    if found != expected:
        names = sorted(expected.keys() & found.keys())
        differ = [
            f"{name} {found[name]} instead of {expected[name]}" for name in names if found[name] != expected[name]
        ]
        parts = {
            "missing": sorted(expected.keys() - found.keys()),
            "not expected": sorted(found.keys() - expected.keys()),
            "of another shape": differ,
        }
        told = "; ".join(f"{len(some)} {what}, such as {some[0]}" for what, some in parts.items() if some)
        raise ConfigError(f"teacher.weights: {path} is not a checkpoint of {model}: of {len(expected)} tensors, {told}")
    clip.load_state_dict(state)


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {error}".splitlines()[0]


def pick_device(name: str) -> torch.device:
    """Return the torch device of `run.device`, "auto" being a GPU if there is one; raises ConfigError without it."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f'run.device is "{name}"; choose "auto", "cpu", "cuda" or "cuda:NUMBER"') from None
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ConfigError(f'run.device is "{name}", but torch sees {torch.cuda.device_count()} CUDA devices here')
    return device


def ensure_torchvision() -> bool:
    """Make `import torchvision`, which open_clip needs, work on a torch without CUDA; return whether it took the shim.

    The registry's torchvision is a CUDA build. On a torch without CUDA its library of operators does not load, and
    the import then fails where it describes two of them. Only after that failure are their schemas declared; they
    compute nothing, and nothing here calls them. On a matching install, declaring them would abort the process, so
    the import is tried first.
    """
    import torch

    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "operator torchvision::" not in str(error) or "does not exist" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    library: Any = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_schemas.append(library)
    importlib.import_module("torchvision")
    return True
