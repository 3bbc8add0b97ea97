"""Teacher `san`: the Side Adapter Network, the best 2D teacher of the paper, from its official checkpoints.

Its encode half is the network: soft masks of 100 queries and a vector for each. Its segment half names every pixel by
the queries that cover it, R(p) = sum_q softmax(logits_q) sigmoid(m_q(p)), as the reference does; a segment's vector is
sum_p sum_q sigmoid(m_q(p)) e_q. The reference builds a map of 900 x 1600 x 768 numbers for that, 4.4 GB; here the
pixels of a segment are summed first (see superpixels.mask_queries).

With `augment` the network is asked of other views of each image too. The k-th query of one view is not the k-th of
another, so nothing is averaged query by query: the queries of all views stand side by side, their masks mirrored back
and laid onto the grid of the image bilinearly. R(p) is a sum over queries, so over those of all views it is the number
of views times the mean of what each says alone, and where views disagree on a name its probability is lower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy

from manifests.sections.teachers.masks import DIVISOR_PX
from manifests.sections.teachers.san import SanConfig
from manifests.sections.teachers.views import sizes_of
from manifests.storage.places import root_of
from manifests.templates import templates_of
from pipeline.frame import Camera, Frame, FrameError, read_at_sizes
from pipeline.teachers.loading.weights import fill, read_tensors, weights_file
from pipeline.teachers.masks import (
    HALF_MAX,
    ImageSize,
    MaskTeacher,
    keep_logits,
    logits_kept,
    named_on,
    network_pixels,
    parts_of,
)
from pipeline.teachers.views import by_scale, joined, resampled
from superpixels.mask_queries import MaskQueries, name_scores, query_shares
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
    from pipeline.teachers.loading.towers import Towers
    from pipeline.teachers.networks.side_adapter import San as Network

PARTS = ("masks", "peak", "embedding", "none", "logit_scale")
_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}
_CELL_PX = (DIVISOR_PX, DIVISOR_PX)


def image_size(config: SanConfig, height_px: int, width_px: int) -> ImageSize:
    """Return how large a camera's image goes into the side network."""
    if not config.parity:
        return ImageSize.whole(config.short_side_px, height_px, width_px)
    short = min(height_px, width_px)
    return ImageSize.padded(height_px * config.short_side_px // short, width_px * config.short_side_px // short)


@dataclass(frozen=True, eq=False)
class San(MaskTeacher):
    """The loaded teacher."""

    config: SanConfig
    network: Network | None
    segment_device: torch.device | None = None  # where pixels are named; None: by NumPy

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> San:
        """Return the teacher, with the network that stage "text" and "encode" need; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, SanConfig)
        network, towers = load_network(config, recipe.run.device) if stage != "segment" else (None, None)
        templates, device = templates_of(recipe.template_list), named_on(recipe, stage)
        return cls(config, root_of(recipe.data), templates, recipe.segment, network, towers, device)

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large masks and vectors of six 16:9 images are."""
        config = recipe.teacher
        assert isinstance(config, SanConfig)
        queries, dims = {"tiny": (8, 32), "ViT-B-16-quickgelu": (100, 512)}.get(config.model, (100, 768))
        height, width = image_size(config, 900, 1600).padded_px
        cells, queries = height * width // 16**2, queries * (1 + len(config.views))
        return 6 * queries * (cells * (1 if config.mask_format == "uint8" else 2) + 2 * dims + 4) / 1000

    def image_size(self, height_px: int, width_px: int) -> ImageSize:
        """Return how large a camera's image of this size goes into the network."""
        return image_size(self.config, height_px, width_px)

    @property
    def batch(self) -> int:
        """Images at once: the views of a frame on a CPU, where more gain nothing; enough to fill a GPU otherwise."""
        return 16 if self.device.type == "cuda" else 6

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image at the network's size without padding, RGB uint8 (H, W, 3).

        Views of other sizes lie behind it, (H, W, 3 + n): see pipeline.teachers.views.joined.
        """

        def sizes(height_px: int, width_px: int) -> Iterable[tuple[int, int]]:
            return sizes_of(self.config.views, *self.image_size(height_px, width_px).image_px, _CELL_PX).values()

        return joined(read_at_sizes(self.root, camera, sizes))

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return mask logits (b, q, h, w), unit vectors (b, q, d), the logit of "none" (b, q) and the scale (b, 1).

        With other views, for which a batch may be (b, H, W, 3 + n), q counts the queries of all.
        """
        import torch
        from torch.nn.functional import normalize

        assert self.network is not None, "the teacher was loaded for another stage"
        images = by_scale(batch, self.config.views, _CELL_PX)
        masks, embedding = self.asked(images[1.0])
        for view in self.config.views:
            other, vectors = self.asked(images[view.scale], mirrored=view.flip)
            if other.shape[2:] != masks.shape[2:]:
                other = resampled(other, (int(masks.shape[2]), int(masks.shape[3])))
            masks, embedding = torch.cat([masks, other], dim=1), torch.cat([embedding, vectors], dim=1)
        unit, scale = normalize(embedding, dim=-1), self.network.logit_scale
        none = scale * (unit @ normalize(self.network.bg_embed, dim=-1).T)[..., 0]
        return {"masks": masks, "embedding": unit, "none": none, "logit_scale": scale.expand(len(batch), 1)}

    def asked(self, images: torch.Tensor, mirrored: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the network says of RGB images, uint8 (b, H, W, 3): mask logits (b, q, h, w), vectors (b, q, d).

        `mirrored`: it sees each image from right to left, and its masks are mirrored back.
        """
        import torch
        from torch.nn.functional import interpolate

        assert self.network is not None, "the teacher was loaded for another stage"
        pixels = network_pixels(images.flip(2) if mirrored else images)
        ratio, patch = self.network.shape.clip_scale, self.network.clip.visual.patch_size[0]
        if self.config.parity:
            clip_pixels = interpolate(pixels, scale_factor=ratio, mode="bilinear", align_corners=False)
        else:
            size = [patch * max(1, round(side * ratio / patch)) for side in pixels.shape[2:]]
            clip_pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            masks, embedding = self.network(pixels, clip_pixels)
        return (masks.flip(3) if mirrored else masks).float(), embedding.float()

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the queries of an image as they are cached; raises FrameError where they hold values not finite.

        `masks` (q, h, w), their logits as float16, or as uint8 with codes below `peak` float16 (h, w), the largest of
        each cell (superpixels.mask_cache); `embedding` float16 (q, d), unit vectors; `none` float32 (q,), the logit of
        "none of the prompts"; `logit_scale` float32 (1,), what cosines with prompts are multiplied by.
        """
        self.check_finite(camera, outputs)
        peak = np.clip(outputs["masks"].max(axis=0), -HALF_MAX, HALF_MAX).astype(np.float16)
        return {
            "masks": keep_logits(outputs["masks"], peak, self.config.mask_format),
            "peak": peak,
            "embedding": outputs["embedding"].astype(np.float16),
            "none": outputs["none"],
            "logit_scale": outputs["logit_scale"],
        }

    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view: each pixel goes to the prompt of largest R(p).

        Of prompts with one vector the first takes all: it alone is compared, as rounding could tell the others apart.
        A segment's score is the probability of its prompt, averaged over the queries by their share of its pixels.
        """
        masks, probability, embedding = self.queries(camera, encoding, text)
        _, first = np.unique(text, axis=0, return_index=True)
        distinct = np.sort(first)
        label_map, row = compact(
            masks.prompt_argmax(probability[:, distinct]),
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        prompt = distinct[row]
        shares = query_shares(masks, label_map, len(row))
        score = (shares * probability.T[prompt]).sum(axis=1) / shares.sum(axis=1)
        return Segments.from_label_map(label_map, prompt, score=score, vector=shares @ embedding)

    def queries(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> tuple[MaskQueries, npt.NDArray[np.floating[Any]], npt.NDArray[np.float32]]:
        """Return a view's masks, the probability of each prompt by query, (q, p), and the embeddings, (q, d)."""
        parts = parts_of(camera, encoding, PARTS)
        logit = logits_kept(parts["masks"], parts["peak"])
        size = self.image_size(camera.height_px, camera.width_px)
        masks = size.queries(camera, self.segmentation.scale, logit, self.segment_device)
        embedding = parts["embedding"].astype(np.float32)
        if embedding.shape != (masks.n_queries, text.shape[1]):
            raise FrameError(
                f"{camera.name}/embedding has shape {embedding.shape}; expected ({masks.n_queries}, {text.shape[1]}), "
                "as the prompt vectors have"
            )
        logits = parts["logit_scale"] * (embedding @ text.T)
        probability = scipy.special.softmax(np.concatenate([logits, parts["none"][:, None]], axis=1), axis=1)[:, :-1]
        return masks, probability, embedding

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return how likely each pixel's prompt is, (H, W) for every view: queries by their share; see PixelTeacher."""
        found: list[npt.NDArray[Any]] = []
        for camera, view in zip(frame.cameras, views, strict=True):
            masks, probability, _ = self.queries(camera, encoding, text)
            found.append(name_scores(masks, probability, np.append(0, view.prompt_id)[view.label_map()]))
        return found


def load_network(config: SanConfig, device: str) -> tuple[Network, Towers]:
    """Return the network in evaluation mode on its device, and its CLIP towers; raises ConfigError for bad weights."""
    from pipeline.teachers.loading.towers import Towers, pick_device
    from pipeline.teachers.networks.side_adapter import UNUSED, build_san, from_official

    target = pick_device(device)
    network, tokenizer = build_san(config.model, config.pinned.seed or 0)
    if config.pinned.seed is None:
        path = weights_file(config.pinned)
        fill(
            network,
            from_official(read_tensors(path), network.shape),
            f"teacher.weights: {path} is not a checkpoint of SAN beside {config.model}",
            ignored=UNUSED,
        )
    network.requires_grad_(False).eval().to(target)
    return network, Towers(network.clip, tokenizer, target)
