"""Where the masks of teacher `composite` come from: SAM 3, proposers such as Mask2Former and EoMT, or SLIC.

A source is an ImageEncoder (see pipeline.teachers) that cuts an image into regions. What it keeps of an image is the
same for all: on a grid of its own, for every cell the few regions that want it most and how much, `region` uint16
(k, h, w) and `weight` uint8 (k, h, w) in 1/255. What a region is, the source says: for SAM 3 a group of the class
dictionary, found by its concepts; for all others a number without a meaning, which features have to name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.composite import ProposerConfig, Sam3Config, SlicConfig, checked_concepts
from manifests.storage.places import Root
from pipeline.frame import Camera, Frame, read_image
from pipeline.teachers.loading.pretrained import Network, Pixels, load_network, load_pixels, load_tokenizer
from superpixels.slic import slic_superpixels

if TYPE_CHECKING:
    import torch

    from manifests.ontology import Ontology

KEPT_PER_CELL = 3
"""Regions kept of each cell: the winner between cells is nearly always one of the best few of the cells around."""

SAM3_CLASSES = {"sam3": "Sam3Model", "sam3_video": "Sam3Model"}
PROPOSER_CLASSES = {
    "mask2former": "Mask2FormerForUniversalSegmentation",
    "eomt": "EomtForUniversalSegmentation",
    "eomt_dinov3": "EomtDinov3ForUniversalSegmentation",
}

_SAM3_OBJECTS = 30  # per concept; more than that many objects of one kind in an image are beyond the rule's source
_MASK2FORMER_STEP_PX = 32
_SLIC_SIDE_PX = 450  # shorter side of the image that SLIC sees: half a nuScenes image


def packed(outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """Return what is kept of an image."""
    return {"region": outputs["region"].astype(np.uint16), "weight": np.ascontiguousarray(outputs["weight"])}


def best_regions(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the few regions of largest weight in every cell, from weights (b, n, h, w) in 0..1."""
    import torch

    top = weight.topk(min(KEPT_PER_CELL, weight.shape[1]), dim=1)
    return {"region": top.indices.to(torch.int32), "weight": (top.values * 255).round().to(torch.uint8)}


# -- SAM 3


@dataclass(frozen=True, eq=False)
class Sam3:
    """SAM 3, and the embeddings of all concepts. Region g is group g of those that have concepts, in order.

    How its heads are put together per concept t is the rule that ConceptBank reports without any target data: with
    s_i = sigmoid(object logit) x sigmoid(presence), over the best 30 objects with s_i above `min_score`,
    P_t(p) = max(max_i s_i sigmoid(mask_i(p)), sigmoid(semantic_t(p)) sigmoid(presence)); and concepts of one group are
    synonyms, of which the largest counts.
    """

    config: Sam3Config
    root: Root
    network: Network
    pixels: Pixels
    concepts: tuple[tuple[Any, Any], ...]  # text features and token mask of up to `concepts_at_once` concepts
    group_of_concept: torch.Tensor
    fixed_batch: bool = False
    batch: int = 1

    @classmethod
    def load(cls, config: Sam3Config, root: Root, ontology: Ontology, device: str) -> Sam3:
        """Return the source; raises ConfigError for weights that do not fit, and a dictionary without concepts."""
        import torch

        content = checked_concepts(ontology)
        network = load_network(config.pinned, SAM3_CLASSES, device)
        tokenizer = load_tokenizer(network)
        length = int(network.model.config.text_config.max_position_embeddings)
        phrases = [phrase for _, phrases in content for phrase in phrases]
        group = [number for number, (_, phrases) in enumerate(content) for _ in phrases]
        parts = []
        for start in range(0, len(phrases), config.concepts_at_once):
            tokens = tokenizer(
                phrases[start : start + config.concepts_at_once],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(network.device)
            with torch.inference_mode(), network.computing(config.precision):
                features = network.model.get_text_features(tokens.input_ids, tokens.attention_mask)
            parts.append((features, tokens.attention_mask))
        groups = torch.tensor(group, device=network.device)
        return cls(config, root, network, load_pixels(network), tuple(parts), groups)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return an image at the one size that SAM 3 sees; the aspect ratio is lost, as it was in training."""
        return self.pixels.resized(read_image(self.root, camera), self.pixels.size["height"], self.pixels.size["width"])

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the best groups of every cell; the image half runs once per image, the rest once per concept."""
        import torch

        with self.network.computing(self.config.precision):
            return best_regions(torch.stack([self.probability(image) for image in batch]))

    def probability(self, image: torch.Tensor) -> torch.Tensor:
        """Return P (groups, h, w) of one image, uint8 (H, W, 3)."""
        import torch

        model = self.network.model
        seen = model.get_vision_features(self.pixels.tensor(image[None]))
        found = []
        for features, mask in self.concepts:
            n = len(mask)
            repeated = type(seen)(
                fpn_hidden_states=tuple(one.expand(n, -1, -1, -1) for one in seen.fpn_hidden_states),
                fpn_position_encoding=tuple(one.expand(n, -1, -1, -1) for one in seen.fpn_position_encoding),
            )
            out = model(vision_embeds=repeated, text_embeds=features, attention_mask=mask)
            found.append(
                fused(out.pred_masks, out.pred_logits, out.presence_logits, out.semantic_seg, self.config.min_score)
            )
        every = torch.cat(found)
        grouped = every.new_zeros((int(self.group_of_concept.max()) + 1, *every.shape[1:]))
        index = self.group_of_concept.view(-1, 1, 1).expand_as(every)
        return grouped.scatter_reduce(0, index, every, "amax")

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return what is kept of an image."""
        return packed(outputs)


def fused(
    mask: torch.Tensor, logit: torch.Tensor, presence: torch.Tensor, semantic: torch.Tensor, min_score: float
) -> torch.Tensor:
    """Return P (n, h, w) from SAM 3's outputs for n concepts: masks (n, q, h, w), object logits (n, q), presence (n, 1)
    and semantic masks (n, 1, h, w), all as logits; see Sam3.
    """
    mask, logit, presence, semantic = (one.float() for one in (mask, logit, presence, semantic))
    there = presence.sigmoid()
    score, best = (logit.sigmoid() * there).topk(min(_SAM3_OBJECTS, logit.shape[1]), dim=1)
    score = score * (score > min_score)
    chosen = mask.gather(1, best[..., None, None].expand(-1, -1, *mask.shape[2:]))
    objects = (chosen.sigmoid() * score[..., None, None]).amax(dim=1)
    return objects.maximum(semantic[:, 0].sigmoid() * there[..., None])


# -- proposers


@dataclass(frozen=True, eq=False)
class Proposer:
    """A network of mask queries. Region q is query q, and weighs objectness times sigmoid(mask); no class is used.

    Objectness is the probability of any class, 1 minus that of none.
    """

    config: ProposerConfig
    root: Root
    network: Network
    pixels: Pixels
    fixed_batch: bool = False

    @classmethod
    def load(cls, config: ProposerConfig, root: Root, device: str) -> Proposer:
        """Return the source; raises ConfigError for weights that do not fit."""
        network = load_network(config.pinned, PROPOSER_CLASSES, device)
        return cls(config, root, network, load_pixels(network))

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.device

    @property
    def batch(self) -> int:
        """Images at once: masks of 200 queries take far more memory than the image."""
        return 4 if self.device.type == "cuda" else 1

    @property
    def square_px(self) -> int:
        """The side of the square that EoMT sees, 0 for Mask2Former, which takes any multiple of 32."""
        config = self.network.model.config
        return int(config.image_size) if config.model_type.startswith("eomt") else 0

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size to resize an image to: multiples of a step, which makes mask cells whole.

        One side is chosen, and the other follows it, so that the aspect ratio changes by half a step at most.
        """
        if self.square_px:
            config = self.network.model.config
            step = max(1, int(config.patch_size) // 2 ** int(config.num_upscale_blocks))
            scale = self.square_px / max(height, width)
        else:
            size, step = self.pixels.size, _MASK2FORMER_STEP_PX
            scale = size.get("shortest_edge", size.get("height", 0)) / min(height, width)
            scale = min(scale, size.get("longest_edge", np.inf) / max(height, width))
            scale = step * max(1, round(min(height, width) * scale / step)) / min(height, width)
        down, across = (step * max(1, round(side * scale / step)) for side in (height, width))
        return down, across

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return an image at the network's size."""
        image = read_image(self.root, camera)
        return self.pixels.resized(image, *self.size(*image.shape[:2]))

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the best queries of every cell. EoMT's square is filled with black, which is cut off again."""
        from torch.nn.functional import pad

        height, width = batch.shape[1:3]
        square = self.square_px
        padded = pad(batch, (0, 0, 0, square - width, 0, square - height)) if square else batch
        with self.network.computing(self.config.precision):
            out = self.network.model(pixel_values=self.pixels.tensor(padded))
        objectness = 1 - out.class_queries_logits.float().softmax(dim=-1)[..., -1]
        objectness = objectness * (objectness >= self.config.min_objectness)
        masks = out.masks_queries_logits.float()
        rows, columns = (
            round(cells * side / whole)
            for cells, side, whole in zip(masks.shape[2:], (height, width), padded.shape[1:3], strict=True)
        )
        return best_regions(masks[..., :rows, :columns].sigmoid() * objectness[..., None, None])

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return what is kept of an image."""
        return packed(outputs)


# -- SLIC


@dataclass(frozen=True, eq=False)
class Slic:
    """Superpixels. Region s is superpixel s; it runs where images are decoded, and there is no network."""

    config: SlicConfig
    root: Root
    fixed_batch: bool = False
    batch: int = 6

    @property
    def device(self) -> torch.device:
        """The CPU."""
        import torch

        return torch.device("cpu")

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.int32]:
        """Return the superpixel of every pixel of the reduced image."""
        from PIL import Image

        image = Image.fromarray(read_image(self.root, camera))
        scale = min(1.0, _SLIC_SIDE_PX / min(image.size))
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        reduced = np.asarray(image.resize(size, Image.Resampling.BOX))
        return slic_superpixels(reduced, self.config.side_px, compactness=self.config.compactness)

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the superpixels, each with all the weight of its cells."""
        import torch

        return {"region": batch[:, None], "weight": torch.full_like(batch[:, None], 255, dtype=torch.uint8)}

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return what is kept of an image."""
        return packed(outputs)
