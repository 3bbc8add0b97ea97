"""CLIP towers: the one door to open_clip; and DINO, from timm.

Models and checkpoints are checked here, before they can be quietly wrong.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.sections.teachers.weights import Weights
from pipeline.teachers.loading.weights import cache_of_links, fill, first_line, read_tensors, verified, weights_file

if TYPE_CHECKING:
    import torch

TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "layers": 4, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
    "tiny-convnext": {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "convnext_atto",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "mlp",
            "timm_drop": 0.0,
            "timm_drop_path": 0.0,
            "image_size": 64,
        },
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    },
}
"""Models of our own with two small towers, for tests and dry runs of the whole chain without weights."""

TINY = "tiny"

# What open_clip's configurations of plain CLIP models hold; any other key stands for another network, or a changed one.
_CLIP_KEYS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
_TRANSFORMER_KEYS = {"image_size", "patch_size", "layers", "width", "head_width", "mlp_ratio", "ls_init_value"}
_CONVNEXT_KEYS = {
    "image_size",
    "timm_model_name",
    "timm_model_pretrained",
    "timm_pool",
    "timm_proj",
    "timm_drop",
    "timm_drop_path",
}

# What OpenAI's archives hold beside weights: sizes that the model name tells too, and the mask of a sentence's words,
# which follows from its length (openai/CLIP, clip/model.py).
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")

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


def load_towers(model: str, weights: Weights, quick_gelu: bool | None = None, device: str = "auto") -> Towers:
    """Return the towers of a model of open_clip (or "tiny"), with the weights of a tag, a file or `random:SEED`.

    `quick_gelu` None takes the activation that the model name implies. Raises ConfigError, with a sentence that says
    what to change, for: an unknown model or tag, an image tower that is neither a plain vision transformer nor a
    ConvNeXt, weights trained with the other activation or with other pixel statistics, and a file that is missing,
    damaged, not pinned, of another architecture, or that holds anything but tensors.
    """
    clip, tokenizer = build_clip(model, quick_gelu, weights.seed or 0)
    if weights.seed is None:
        path = (
            fetch_tag(model, weights, clip_activation(model, quick_gelu)) if weights.is_tag else weights_file(weights)
        )
        tensors = read_tensors(path, f"teacher.{weights.key}")
        ignored = [name for name in tensors if name.rpartition(".")[2] in NOT_WEIGHTS]
        fill(clip, tensors, f"teacher.{weights.key}: {path} is not a checkpoint of {model}", ignored)
    else:
        _log.warning("%s has random weights (seed %d): what it finds in images means nothing", model, weights.seed)
    target = pick_device(device)
    return Towers(clip.requires_grad_(False).eval().to(target), tokenizer, target)


def clip_tokenizer(model: str) -> Any | None:
    """Return the tokenizer of a model of open_clip (or "tiny"); None where that is unknown or would have to be fetched.

    It makes of a list of texts a tensor with a row of tokens each.
    """
    ensure_torchvision()
    import open_clip

    config = {} if model in TINY_CONFIGS else open_clip.get_model_config(model)
    known = config is not None and "hf_tokenizer_name" not in config.get("text_cfg", {})
    return _tokenizer(model) if known else None


@cache
def _tokenizer(model: str) -> Any:
    """Return a model's tokenizer, made once a process: most of its making is reading 49,000 words."""
    import open_clip

    return open_clip.SimpleTokenizer() if model in TINY_CONFIGS else open_clip.get_tokenizer(model)


def build_clip(model: str, quick_gelu: bool | None = None, seed: int = 0) -> tuple[Any, Any]:
    """Return a CLIP model of open_clip (or "tiny") with random weights on the CPU, and its tokenizer.

    Raises ConfigError for an unknown model, and for towers that are not CLIP's own kind. Leaves torch's global random
    generator as it was.
    """
    import torch

    ensure_torchvision()
    import open_clip

    config = {**clip_config(model), "quick_gelu": clip_activation(model, quick_gelu)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**config)
    return clip, _tokenizer(model)


def clip_activation(model: str, quick_gelu: bool | None) -> bool:
    """Return whether a model computes QuickGELU: as asked for, else as its name implies."""
    return bool(clip_config(model).get("quick_gelu", False)) if quick_gelu is None else quick_gelu


def clip_config(model: str) -> dict[str, Any]:
    """Return open_clip's configuration of a model; raises ConfigError unless both its towers are CLIP's own kind."""
    if model in TINY_CONFIGS:
        return TINY_CONFIGS[model]
    ensure_torchvision()
    import open_clip

    if model not in open_clip.list_models():
        raise ConfigError(
            f'teacher.model is "{model}", which open_clip {open_clip.__version__} does not know; '
            f'take one of open_clip.list_models(), for example "ViT-B-16-quickgelu", or "{TINY}"'
        )
    config: dict[str, Any] = open_clip.get_model_config(model)
    vision = config["vision_cfg"]
    convolutional = str(vision.get("timm_model_name", "")).startswith("convnext")
    foreign = sorted(
        (config.keys() - _CLIP_KEYS) | (vision.keys() - (_CONVNEXT_KEYS if convolutional else _TRANSFORMER_KEYS))
    )
    resnet = not convolutional and not isinstance(vision.get("layers"), int)
    if foreign or resnet or "hf_model_name" in config["text_cfg"]:
        raise ConfigError(
            f"teacher.model {model} is not built of CLIP's own towers ({', '.join(foreign) or 'another network'}). "
            "Dense features are read from the last block of a plain vision transformer with a class token, such as "
            '"ViT-B-16-quickgelu" or "ViT-L-14", or from the last stage of a ConvNeXt, such as "convnext_large_d_320"'
        )
    return config


def fetch_tag(model: str, weights: Weights, quick_gelu: bool) -> Path:
    """Return the verified file of a pretrained tag, downloaded if not in the cache; first, it must suit the model."""
    import open_clip

    tag = weights.source
    known = open_clip.get_pretrained_cfg(model, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ConfigError(
            f'teacher.{weights.key} is "{tag}"; {model} has the tags {", ".join(tags) or "(none)"}. A local file is '
            "given by its path, a file of the hub as hub:OWNER/NAME/FILE, and a dry run by random:SEED"
        )
    trained = bool(known.get("quick_gelu", False))
    if trained != quick_gelu:
        raise ConfigError(
            f"teacher.{weights.key} {tag} was trained with {activation_name(trained)}, but {model} is set up with "
            f"{activation_name(quick_gelu)}: features would be wrong without any error. "
            f"{'Use the model name that ends in -quickgelu' if trained else 'Use the model name without -quickgelu'}"
        )
    mean, std = (tuple(known.get(key, ())) for key in ("mean", "std"))
    if (mean, std) != pixel_statistics():
        raise ConfigError(
            f"teacher.{weights.key} {tag} expects pixels scaled by {mean} and {std}; only CLIP's own are supported"
        )
    try:
        repository, _, name = str(known.get("hf_hub", "")).rpartition("/")
        if weights.link:  # the file whose digest is published; open_clip would take another form of it from the hub
            found = open_clip.pretrained.download_pretrained_from_url(weights.link, str(cache_of_links()))
        elif repository and weights.revision:
            found = open_clip.pretrained.download_pretrained_from_hf(repository, name or None, weights.revision)
        else:
            found = open_clip.download_pretrained(known)
    except Exception as error:  # whatever the network, the hub or the disk may raise
        how = (
            f"fetch {weights.link} and put it into {cache_of_links()}"
            if weights.link
            else "give the file's path and sha256, or copy the cache of huggingface_hub"
        )
        raise ConfigError(
            f"teacher.{weights.key} {tag} for {model} could not be fetched ({first_line(error)}). Download it once on "
            f"a machine with network access: {how}"
        ) from None
    return verified(weights, Path(found))


@dataclass(frozen=True, eq=False)
class ImageNetwork:
    """A frozen vision transformer of timm, without text: what it makes of patches says which of them are alike."""

    network: Any
    patch_px: tuple[int, int]
    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the patch features (b, h, w, c) of images (b, 3, H, W) in 0..255, resized to whole patches."""
        from torch.nn.functional import interpolate

        size = [max(1, round(side / patch)) for side, patch in zip(pixels.shape[2:], self.patch_px, strict=True)]
        wanted = [cells * patch for cells, patch in zip(size, self.patch_px, strict=True)]
        pixels = pixels.to(self.mean.dtype)
        if list(pixels.shape[2:]) != wanted:
            pixels = interpolate(pixels, size=wanted, mode="bilinear", align_corners=False, antialias=True)
        tokens = self.network.forward_features((pixels - self.mean) / self.std)
        patches: torch.Tensor = tokens[:, self.network.num_prefix_tokens :]
        return patches.reshape(len(patches), *size, -1)


def load_dino(model: str, weights: Weights, device: str = "auto") -> ImageNetwork:
    """Return a vision transformer of timm (or "tiny") with the weights of a file or `random:SEED`; raises ConfigError.

    Meant for networks that learnt without labels, such as "vit_base_patch8_224.dino", in timm's own key names.
    """
    import torch

    ensure_torchvision()
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(weights.seed or 0)
        if model == TINY:
            network: Any = timm.models.vision_transformer.VisionTransformer(
                img_size=32, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0, dynamic_img_size=True
            )
        else:
            name = model.partition(".")[0]
            if name not in timm.list_models() or not name.startswith("vit_"):
                raise ConfigError(
                    f'teacher.dino is "{model}"; expected a vision transformer of timm {timm.__version__}, for example '
                    '"vit_base_patch8_224.dino"'
                )
            network = timm.create_model(model, pretrained=False, num_classes=0, dynamic_img_size=True)
    if weights.seed is None:
        path = weights_file(weights)
        fill(network, read_tensors(path, "teacher.dino_weights"), f"teacher.dino_weights: {path} is not of {model}")
    target = pick_device(device)
    scale = {"mean": (0.5,) * 3, "std": (0.5,) * 3} if model == TINY else network.pretrained_cfg
    mean, std = (torch.tensor(scale[key]) for key in ("mean", "std"))
    height, width = network.patch_embed.patch_size
    return ImageNetwork(
        network.requires_grad_(False).eval().to(target),
        (int(height), int(width)),
        mean.view(3, 1, 1).to(target) * 255,
        std.view(3, 1, 1).to(target) * 255,
    )


def activation_name(quick_gelu: bool) -> str:
    """Return how the literature calls the activation."""
    return "QuickGELU" if quick_gelu else "GELU"


def pixel_statistics() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of CLIP's training images, RGB in 0..1."""
    ensure_torchvision()
    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    return tuple(OPENAI_DATASET_MEAN), tuple(OPENAI_DATASET_STD)


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
    library: Any = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _torchvision_schemas.append(library)
    importlib.import_module("torchvision")
    return True
