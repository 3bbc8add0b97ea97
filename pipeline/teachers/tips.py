"""TIPSv2 as a source of dense features: a vision transformer whose patches were aligned with text by training.

Its last block, as its authors use it for zero-shot segmentation, takes values only: attention becomes W_o v of each
patch alone, and residual, layer scales and the MLP stay. Images are RGB in 0..1, of any size that is a multiple of the
patch. Sentences come from the template set "tcl9".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.sections.teachers.composite import TipsConfig
from manifests.storage.places import Root
from pipeline.frame import Camera, Frame, FrameError, read_image
from pipeline.teachers.loading.pretrained import Network, Pixels, load_network, load_pixels, load_tokenizer
from pipeline.teachers.loading.towers import Towers

if TYPE_CHECKING:
    import torch

CLASSES = {"tipsv2": "Tipsv2Model"}


@dataclass(frozen=True, eq=False)
class Tips:
    """The loaded network; an ImageEncoder for images, and an encoder of sentences."""

    config: TipsConfig
    root: Root
    templates: tuple[str, ...]
    network: Network
    pixels: Pixels
    fixed_batch: bool = False

    @classmethod
    def load(cls, config: TipsConfig, root: Root, templates: tuple[str, ...], device: str) -> Tips:
        """Return the source; raises ConfigError for weights that do not fit."""
        network = load_network(config.pinned, CLASSES, device)
        patch = int(network.model.config.vision_config.patch_size)
        if config.window_px % patch:
            raise ConfigError(
                f"teacher.tipsv2: window_px {config.window_px} must be a multiple of the patch of {patch} pixels; "
                "windows are made of whole patches"
            )
        return cls(config, root, templates, network, load_pixels(network))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    @property
    def batch(self) -> int:
        """Images at once."""
        return 16 if self.device.type == "cuda" else 6

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        return int(self.network.model.config.vision_config.patch_size)

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d)."""
        tokenizer = load_tokenizer(self.network)
        length = int(self.network.model.config.text_config.max_position_embeddings)

        def tokens(sentences: Sequence[str]) -> torch.Tensor:
            found = tokenizer(
                list(sentences), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            ids: torch.Tensor = found.input_ids.where(found.attention_mask.bool(), -1)
            return ids

        return Towers(self, tokens, self.device).text_vectors(prompts, self.templates)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the vectors (n, d) of sentences, any length; tokens (n, 64) are -1 behind the sentence's end."""
        found = self.network.model.get_text_features(tokens.clamp_min(0), attention_mask=(tokens >= 0).long())
        vectors: torch.Tensor = found.pooler_output
        return vectors

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image at the network's size, uint8 (H, W, 3)."""
        from pipeline.teachers.dense import seen_size

        image = read_image(self.root, camera)
        patch = self.patch_px, self.patch_px
        height, width = seen_size(
            image.shape[0], image.shape[1], self.config.short_side_px, patch, self.config.window_px
        )
        return self.pixels.resized(image, height, width)

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the unit features of every patch, float16 (b, h, w, d), of images uint8 (b, H, W, 3).

        Those of windows lie side by side, and `rows_px` and `columns_px` say where the windows are.
        """
        from pipeline.teachers.dense import Sliding

        pixels = self.pixels.tensor(batch)
        if not self.config.window_px:
            return {"grid": self.unit_features(pixels).half()}
        sliding = Sliding(self.config.window_px, self.config.stride_px)
        return {"grid": sliding(self.unit_features, pixels).half(), **sliding.parts(batch)}

    def unit_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features of normalised images (b, 3, H, W), scaled to length 1, (b, h, w, d)."""
        from torch.nn.functional import normalize

        with self.network.computing(self.config.precision):
            return normalize(self.features(pixels).float(), dim=-1)

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the features (b, h, w, d) of normalised images (b, 3, H, W)."""
        vision = self.network.model.vision_model
        tokens = vision.embeddings(pixels)
        *layers, last = vision.encoder.layer
        for layer in layers:
            tokens = layer(tokens)
        values = last.attention.v_proj(last.norm1(tokens))
        tokens = tokens + last.layer_scale1(last.attention.o_proj(values))
        tokens = tokens + last.layer_scale2(last.mlp(last.norm2(tokens)))
        patches: torch.Tensor = vision.layernorm(tokens)[:, 1 + vision.config.num_register_tokens :]
        height, width = (side // self.patch_px for side in pixels.shape[2:])
        return patches.reshape(len(patches), height, width, -1)

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the grid of an image; raises FrameError if it holds values that are not finite."""
        grid = np.ascontiguousarray(outputs["grid"])
        if not np.isfinite(grid).all():
            raise FrameError(f"{camera.image_path}: the features of TIPSv2 are not finite; check the weights")
        return {**outputs, "grid": grid}
