"""Networks of Hugging Face transformers: the one door to that package.

A network there is a folder: `model.safetensors` with every tensor, `config.json` that says which architecture, and
small files for its pixels and words. A recipe names the first by path or as `hub:OWNER/NAME/model.safetensors`, with
its sha256 (see teachers.loading.weights), and the others are those beside it. Nothing but safetensors is read, and no
code that a folder brings is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.sections.teachers.weights import SMALL_FILES, Weights
from pipeline.teachers.loading.towers import ensure_torchvision, pick_device
from pipeline.teachers.loading.weights import first_line, hub_folder, weights_file

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Network:
    """A frozen network on a device, in evaluation mode, float32, and the folder that it came from."""

    model: Any
    folder: Path
    device: torch.device

    def computing(self, precision: str) -> torch.autocast:
        """Return the context that runs the network in "fp32", or where torch deems it safe in "bf16"."""
        import torch

        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Pixels:
    """How a network wants its images: the size to resize to, if it has one, and the statistics to scale by.

    `size` holds what the folder's `preprocessor_config.json` says: "height" and "width", or "shortest_edge" and
    "longest_edge". `mean` and `std` are of RGB values times `factor`; `resample` is a filter of PIL.
    """

    size: Mapping[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    factor: float
    resample: int

    def resized(self, image: npt.NDArray[np.uint8], height: int, width: int) -> npt.NDArray[np.uint8]:
        """Return an RGB image (H, W, 3) at another size."""
        from PIL import Image

        filtered = Image.fromarray(image).resize((width, height), Image.Resampling(self.resample))
        return np.array(filtered)

    def tensor(self, images: torch.Tensor) -> torch.Tensor:
        """Return RGB images, uint8 (b, H, W, 3), as the network sees them, float32 (b, 3, H, W)."""
        import torch

        mean, std = (torch.tensor(values, device=images.device) for values in (self.mean, self.std))
        return ((images * self.factor - mean) / std).permute(0, 3, 1, 2)


def load_network(weights: Weights, classes: Mapping[str, str], device: str) -> Network:
    """Return the network of a folder, strictly loaded; `classes` are names of transformers by `model_type`.

    Raises ConfigError, with a sentence, for a folder or file that is missing, damaged or not the pinned one, for
    another kind of network, and for tensors that are missing, too many or of another shape.
    """
    import torch

    setting = f"teacher.{weights.key}"
    path = weights_file(weights)
    folder = path.parent
    if weights.is_hub:
        owner, name, _ = weights.source.removeprefix("hub:").split("/", 2)
        folder = hub_folder(f"{owner}/{name}", weights.revision, SMALL_FILES, setting)
    ensure_torchvision()
    import transformers

    logging: Any = transformers.utils.logging
    logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a missing file, broken JSON and unknown kinds share no base class
        raise ConfigError(f"{setting}: {folder}/config.json cannot be used ({first_line(error)})") from None
    if config.model_type not in classes:
        raise ConfigError(
            f'{setting}: {folder} holds a network of kind "{config.model_type}"; expected {", ".join(classes)}'
        )
    kind = getattr(transformers, classes[config.model_type])
    try:
        model, told = kind.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # damaged files and wrong shapes share no base class
        raise ConfigError(
            f"{setting}: {path} does not fit {folder}/config.json, or is damaged ({first_line(error)})"
        ) from None
    problems = {
        what: sorted(map(str, told.get(key) or ()))
        for what, key in (
            ("missing", "missing_keys"),
            ("not expected", "unexpected_keys"),
            ("of another shape", "mismatched_keys"),
        )
    }
    state = model.state_dict()
    problems["with values that are not finite"] = [name for name, one in state.items() if not one.isfinite().all()]
    if any(problems.values()):
        sentence = "; ".join(f"{len(names)} {what}, such as {names[0]}" for what, names in problems.items() if names)
        raise ConfigError(f"{setting}: {path} is not a checkpoint of {kind.__name__}: tensors {sentence}")
    target = pick_device(device)
    return Network(model.requires_grad_(False).eval().to(target), folder, target)


def load_pixels(network: Network) -> Pixels:
    """Return how the network wants its images, from the folder's `preprocessor_config.json`; raises ConfigError."""
    import transformers

    try:
        kind: Any = transformers.AutoImageProcessor
        found = kind.from_pretrained(network.folder, local_files_only=True, trust_remote_code=False)
        normal = bool(found.do_normalize)
        return Pixels(
            size={name: int(value) for name, value in dict(found.size).items() if value},
            mean=tuple(map(float, found.image_mean)) if normal else (0.0, 0.0, 0.0),
            std=tuple(map(float, found.image_std)) if normal else (1.0, 1.0, 1.0),
            factor=float(found.rescale_factor) if found.do_rescale else 1.0,
            resample=int(found.resample),
        )
    except Exception as error:
        raise ConfigError(
            f"{network.folder}/preprocessor_config.json cannot be used ({first_line(error)}); it belongs to the weights"
        ) from None


def load_tokenizer(network: Network) -> Any:
    """Return the tokenizer of a network's folder; raises ConfigError."""
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(
            network.folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:
        raise ConfigError(
            f"{network.folder} has no tokenizer that can be used ({first_line(error)}); its files belong to the weights"
        ) from None


def mask2former_decoders(
    channels: Sequence[int], width: int, heads: int, queries: int, encoder_layers: int, decoder_layers: int, hidden: int
) -> tuple[Any, Any]:
    """Return Mask2Former's pixel decoder and transformer decoder for a backbone of ours, with random weights.

    `channels` are those of the backbone's grids at strides 4, 8, 16 and 32; `hidden` is the width of the decoder's
    feed-forward layers. The deformable attention is transformers' own in plain PyTorch. Both classes are internal to
    transformers and unchanged from 4.57 to 5.23.
    """
    import torch

    ensure_torchvision()
    from transformers import Mask2FormerConfig
    from transformers.models.mask2former import modeling_mask2former as mask2former

    config = Mask2FormerConfig(
        feature_size=width,
        mask_feature_size=width,
        hidden_dim=width,
        num_attention_heads=heads,
        num_queries=queries,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers + 1,  # there it counts the prediction before the first layer
        dim_feedforward=hidden,
        encoder_feedforward_dim=hidden // 2,
        feature_strides=[4, 8, 16, 32],
        common_stride=4,
        dropout=0.0,
        pre_norm=False,
        enforce_input_projection=False,
    )
    pixel_decoder: Any = mask2former.Mask2FormerPixelDecoder(config, feature_channels=list(channels))
    levels = torch.randn_like(pixel_decoder.input_projections[0][1].weight.expand(3, -1))
    pixel_decoder.level_embed = torch.nn.Parameter(levels)  # transformers leaves memory as it found it
    return pixel_decoder, mask2former.Mask2FormerTransformerModule(in_features=width, config=config)
