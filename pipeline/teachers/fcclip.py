"""Teacher `fcclip`: FC-CLIP, whose masks are single objects where things can be counted, from its official checkpoint.

Its encode half is the network: masks of 250 queries, kept where they could win whatever the class dictionary, and two
vectors per query. Its segment half names the queries by a geometric mean of what the two vectors say, and gives pixels
to queries by panoptic merging. A segment's vector is CLIP's own of the pixels ("outside"), as in the AFOV paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy

from manifests.config import ConfigError
from manifests.sections.teachers.fcclip import CLIP_REPOSITORY, CLIP_TAG, FcClipConfig
from manifests.storage.places import root_of
from manifests.templates import templates_of
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.fcclip_names import SEEN_NAMES
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
from superpixels.mask_cache import COARSE_CELLS, restored
from superpixels.mask_queries import owner_scores, panoptic_merge
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
    from pipeline.teachers.loading.towers import Towers
    from pipeline.teachers.networks.fcclip import FcClip as Network

PARTS = ("near", "masks", "peak", "coarse", "coarse_peak", "bound", "inside", "outside", "void", "logit_scale")

_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}
_KEEPS_ALL = 100.0  # a sigmoid lower than another by that factor of e hardly occurs
_NEAR_PER_CELL = 20  # a guess for trained weights: synthetic scenes had 13 to 25 (docs/teachers.md)
_LEAST_PROBABILITY = 1e-8  # added to every probability, as in the reference


def image_size(config: FcClipConfig, height_px: int, width_px: int) -> ImageSize:
    """Return how large a camera's image goes into the network."""
    if config.parity:
        return ImageSize.padded(height_px, width_px)
    return ImageSize.whole(config.short_side_px, height_px, width_px)


@dataclass(frozen=True, eq=False)
class FcClip(MaskTeacher):
    """The loaded teacher.

    `known` float32 (n, d) are the text vectors of the names that FC-CLIP was trained with, for stage "encode".

    `seen` and `thing` bool (p,) tell of each prompt whether FC-CLIP was trained with it, and whether it is countable.
    """

    config: FcClipConfig
    network: Network | None
    seen: npt.NDArray[np.bool_]
    thing: npt.NDArray[np.bool_]
    known: torch.Tensor | None
    segment_device: torch.device | None = None  # where pixels are given to queries; None: by NumPy

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> FcClip:
        """Return the teacher, with the network that stage "text" and "encode" need; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, FcClipConfig)
        network, towers = load_network(config, recipe.run.device) if stage != "segment" else (None, None)
        known = None
        if towers and stage == "encode":
            import torch

            known = torch.from_numpy(towers.text_vectors(sorted(SEEN_NAMES), templates_of("single")))
            known = known.to(towers.device)
        return cls(
            config=config,
            root=root_of(recipe.data),
            templates=templates_of(recipe.template_list),
            segmentation=recipe.segment,
            seen=np.array([prompt in SEEN_NAMES for prompt in recipe.ontology.prompts], np.bool_),
            thing=recipe.ontology.thing_of_prompt,
            network=network,
            towers=towers,
            known=known,
            segment_device=named_on(recipe, stage),
        )

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large masks and vectors of six 16:9 images are, before compression."""
        config = recipe.teacher
        assert isinstance(config, FcClipConfig)
        queries, dims = (12, 32) if config.model == "tiny-convnext" else (250, 768)
        height, width = image_size(config, 900, 1600).padded_px
        cells = (height // 4) * (width // 4)
        near = queries if config.parity or config.reach >= _KEEPS_ALL else min(queries, _NEAR_PER_CELL)
        per_cell = near * (1 if config.mask_format == "uint8" else 2) + queries / 8 + queries / COARSE_CELLS**2 + 4
        return 6 * (cells * per_cell + queries * (2 * config.vector_bytes * dims + 4)) / 1000

    def image_size(self, height_px: int, width_px: int) -> ImageSize:
        """Return how large a camera's image of this size goes into the network."""
        return image_size(self.config, height_px, width_px)

    @property
    def batch(self) -> int:
        """Images at once."""
        return 6 if self.device.type == "cuda" else 1

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return what `pack` takes for a batch of images.

        Which cells of a mask are kept must not depend on the class dictionary. The best query of a cell is that of
        largest sigmoid(m) times the probability that it shows anything, judged by the names that FC-CLIP was trained
        with; a mask is kept where its query could win against that one if its own score were as high as can be (see
        superpixels.mask_cache).
        """
        import torch
        from torch.nn.functional import avg_pool2d, logsigmoid, normalize

        assert self.network is not None and self.known is not None, "the teacher was loaded for another stage"
        masks, inside, outside = self.network(network_pixels(batch), bf16=self.config.precision == "bf16")
        scales = self.network.scales()
        void = scales[0] * (inside @ normalize(self.network.void_embedding.weight, dim=-1).T)[..., 0]
        anything = logsigmoid((scales[0] * (inside @ self.known.T)).logsumexp(dim=-1) - void)
        strength = logsigmoid(masks)
        reach = float("inf") if self.config.parity else self.config.reach
        bound = (strength + anything[..., None, None]).amax(dim=1) - reach
        return {
            "near": strength >= bound[:, None],
            "masks": masks.clamp(-HALF_MAX, HALF_MAX).to(torch.float16),
            "peak": masks.amax(dim=1),
            "coarse": avg_pool2d(masks, COARSE_CELLS),
            "bound": bound.clamp(min=-HALF_MAX),
            "inside": inside,
            "outside": outside,
            "void": void,
            "logit_scale": scales.expand(len(batch), 2),
        }

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the queries of an image as they are cached; raises FrameError where they hold values not finite.

        `near` uint8 (q, h w / 8), a bit per cell of a mask: whether its query could win there. `masks` (n,), the logits
        of these cells, query by query, as float16, or as uint8 with codes below `peak` float16 (h, w), the largest
        logit of each cell. `coarse` uint8 (q, h / 8, w / 8), codes below `coarse_peak` float16: masks averaged over
        cells, for what is not near. `bound` float16 (h, w): where a query is not near, its log sigmoid(m) is less.
        `inside` and `outside` (q, d), unit vectors, float16 or in parity float32: two queries may differ by so little
        in their scores that rounded vectors give a pixel to the other. `void` float32 (q,), the logit of "no object".
        `logit_scale` float32 (2,), of cosines inside and outside.
        """
        self.check_finite(camera, outputs)
        near, masks = outputs["near"], outputs["masks"]
        peak, coarse_peak = (
            np.clip(grid, -HALF_MAX, HALF_MAX).astype(np.float16)
            for grid in (outputs["peak"], outputs["coarse"].max(axis=0))
        )
        peaks = np.broadcast_to(peak, masks.shape)[near]
        inside, outside = (outputs[name].astype(f"f{self.config.vector_bytes}") for name in ("inside", "outside"))
        return {
            "near": np.packbits(near.reshape(len(near), -1), axis=1),
            "masks": keep_logits(masks[near], peaks, self.config.mask_format),
            "peak": peak,
            "coarse": keep_logits(outputs["coarse"], coarse_peak, "uint8"),
            "coarse_peak": coarse_peak,
            "bound": outputs["bound"].astype(np.float16),
            "inside": inside,
            "outside": outside,
            "void": outputs["void"],
            "logit_scale": outputs["logit_scale"],
        }

    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view, in the order of their first query; see superpixels.mask_queries.

        Their vectors and scores are those of their queries, see `parity`; a score is the probability of the prompt.
        """
        parts = parts_of(camera, encoding, PARTS)
        outside = parts["outside"].astype(np.float32)
        if outside.shape[1] != text.shape[1] or len(text) != len(self.seen):
            raise FrameError(
                f"{camera.name}/outside has shape {outside.shape} and the prompt vectors {text.shape}; expected "
                f"{len(self.seen)} prompts, and vectors of one length"
            )
        score, prompt, is_void = self.named(parts, text)
        shows = np.flatnonzero(~is_void)
        size = self.image_size(camera.height_px, camera.width_px)
        masks = size.queries(camera, self.segmentation.scale, masks_of(parts, shows), self.segment_device)
        found = panoptic_merge(masks, score[shows], prompt[shows], self.thing[prompt[shows]], self.config.overlap)
        # From here on, queries are those that are part of a segment.
        part = np.flatnonzero(found.segment)
        queries, segment = shows[part], found.segment[part] - 1
        n = int(found.segment.max(initial=0))
        weights = np.zeros((n, len(queries)), np.float32)
        weights[segment, np.arange(len(queries))] = found.area_px[part]
        _, first = np.unique(segment, return_index=True)
        if self.config.parity:
            weights = np.zeros_like(weights)
            weights[np.arange(n), first] = 1
        # Of panoptic segments each becomes one, or one per connected component.
        label_map, parent = compact(
            np.maximum(found.label_map.astype(np.int32) - 1, 0),
            keep=found.label_map > 0,
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        return Segments.from_label_map(
            label_map,
            prompt[queries[first]][parent],
            score=((weights @ score[queries]) / np.maximum(weights.sum(axis=1), 1))[parent],
            vector=(weights @ outside[queries])[parent],
        )

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return how sure each pixel is of its query's prompt, (H, W) for every view; see PixelTeacher.

        That is the probability of the prompt times the sigmoid of the query's mask, by which queries win pixels.
        """
        found: list[npt.NDArray[Any]] = []
        for camera in frame.cameras:
            parts = parts_of(camera, encoding, PARTS)
            score, _, is_void = self.named(parts, text)
            shows = np.flatnonzero(~is_void)
            size = self.image_size(camera.height_px, camera.width_px)
            masks = size.queries(camera, self.segmentation.scale, masks_of(parts, shows), self.segment_device)
            found.append(owner_scores(masks, score[shows]))
        return found

    def named(
        self, parts: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return of each query the probability of its best prompt, the prompt, and whether it shows no object.

        Of prompts with one vector the first is named, as rounding could tell the others apart.
        """
        inside, outside = (
            scale * (parts[part].astype(np.float64) @ text.T.astype(np.float64))
            for part, scale in zip(("inside", "outside"), parts["logit_scale"], strict=True)
        )
        void = scipy.special.softmax(np.concatenate([inside, parts["void"][:, None]], axis=1), axis=1)[:, -1:]
        share = np.where(self.seen, self.config.alpha, self.config.beta)
        joint = scipy.special.softmax(
            (1 - share) * scipy.special.log_softmax(inside, axis=1)
            + share * scipy.special.log_softmax(outside, axis=1),
            axis=1,
        )
        probability = np.concatenate([joint * (1 - void), void], axis=1) + _LEAST_PROBABILITY
        probability /= probability.sum(axis=1, keepdims=True)
        _, first = np.unique(text, axis=0, return_index=True)
        distinct = np.sort(first)
        prompt = distinct[probability[:, distinct].argmax(axis=1)]
        score = probability[np.arange(len(prompt)), prompt]
        return score, prompt, probability[:, -1] > score


def masks_of(parts: Mapping[str, npt.NDArray[Any]], queries: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """Return the mask logits of some queries, float32 (k, h, w), from what is cached of a view."""
    peak = parts["peak"]
    bits = np.unpackbits(parts["near"], axis=1, count=peak.size)
    near = bits.reshape(-1, *peak.shape).view(np.bool_)
    peaks = np.broadcast_to(peak, near.shape)[near] if parts["masks"].dtype == np.uint8 else peak
    logit = logits_kept(parts["masks"], peaks)
    return restored(near, logit, logits_kept(parts["coarse"], parts["coarse_peak"]), parts["bound"], queries)


def load_network(config: FcClipConfig, device: str) -> tuple[Network, Towers]:
    """Return the network in evaluation mode on its device, and its CLIP towers; raises ConfigError for bad weights."""
    from pipeline.teachers.loading.towers import Towers, pick_device
    from pipeline.teachers.networks.fcclip import build_fcclip

    target = pick_device(device)
    network, tokenizer = build_fcclip(config.model, config.pinned.seed or 0)
    if config.pinned.seed is None:
        fill_from_files(network, config)
    network.requires_grad_(False).eval().to(target)
    return network, Towers(network.clip, tokenizer, target)


def fill_from_files(network: Network, config: FcClipConfig) -> None:
    """Put the tensors of the file of `weights` into a network, and those of CLIP that it lacks from `clip_weights`.

    Raises ConfigError that names the file which something is wrong with.
    """
    from pipeline.teachers.loading.towers import NOT_WEIGHTS
    from pipeline.teachers.networks.fcclip import UNUSED, from_official

    path = weights_file(config.pinned)
    head = from_official(read_tensors(path))
    names = network.state_dict().keys()
    missing = [name for name in names if name not in head]
    of_clip = [name for name in missing if name.startswith("clip.")]
    if config.clip_weights:
        clip_path, clip = clip_tensors(config)
        left_out = [name for name in clip if name in head or name.rpartition(".")[2] in NOT_WEIGHTS]
        what = f"teacher.clip_weights: {clip_path} is not a checkpoint of {config.model}"
        fill(network, clip, what, ignored=left_out, names=of_clip)
    elif missing and missing == of_clip:
        raise ConfigError(
            f"teacher.weights: {path} holds FC-CLIP's decoders, but {len(missing)} tensors of the CLIP under them are "
            "not in it; FC-CLIP takes CLIP from LAION's own file: give that as clip_weights, "
            f'"{CLIP_TAG}", hub:{CLIP_REPOSITORY}/FILE or a path, with its sha256'
        )
    what = f"teacher.weights: {path} is not a checkpoint of FC-CLIP on {config.model}"
    of_head = [name for name in names if name not in of_clip] if config.clip_weights else None
    fill(network, head, what, ignored=UNUSED, names=of_head)


def clip_tensors(config: FcClipConfig) -> tuple[Path, dict[str, torch.Tensor]]:
    """Return the file of `clip_weights` and its tensors under our names; raises ConfigError."""
    from pipeline.teachers.loading.towers import clip_activation, fetch_tag

    weights = config.pinned_clip
    assert weights is not None
    if weights.is_tag:
        path = fetch_tag(config.model, weights, clip_activation(config.model, None))
    else:
        path = weights_file(weights)
    found = read_tensors(path, "teacher.clip_weights")
    return path, {f"clip.{name}": tensor for name, tensor in found.items()}
