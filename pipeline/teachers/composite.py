"""Teacher `composite`: masks from one network, and features that name them, or fill them, from another.

Masks come from SAM 3, from Mask2Former or EoMT, or are superpixels (pipeline.teachers.mask_sources); features from a
dense CLIP (pipeline.teachers.clip_dense) or TIPSv2 (pipeline.teachers.tips). Its encode half runs both networks. SAM 3
has said for every mask what group of the class dictionary it shows, and features choose the prompt within the group;
any other mask gets the prompt whose vector is nearest to the features pooled over it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.ontology import Ontology
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.sections.teachers.composite import CompositeConfig, checked_concepts
from manifests.storage.places import root_of
from manifests.templates import templates_of
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.clip_dense import ClipDense, cells_of, softmax, unit
from pipeline.teachers.mask_sources import Proposer, Sam3, Slic
from pipeline.teachers.tips import Tips
from superpixels.pooling import strip_argmax
from superpixels.segments import Segments, compact
from superpixels.windows import Windows

if TYPE_CHECKING:
    from manifests.recipe import Recipe
    from manifests.sections.tables import SegmentConfig
    from pipeline.teachers.base import ImageEncoder


@dataclass(frozen=True, eq=False)
class Composite:
    """The loaded teacher; `masks` and `features` are None where a stage needs no network."""

    config: CompositeConfig
    ontology: Ontology
    segmentation: SegmentConfig
    masks: ImageEncoder | None
    features: ClipDense | Tips | None

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> Composite:
        """Return the teacher with what stage "text", "encode" or "segment" needs; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, CompositeConfig)
        masks = load_masks(config, recipe) if stage == "encode" else None
        features = load_features(config, recipe, stage) if stage != "segment" else None
        return cls(config, recipe.ontology, recipe.segment, masks, features)

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large the grids and the regions of six 16:9 images are, compressed."""
        config = recipe.teacher
        assert isinstance(config, CompositeConfig)
        if isinstance(config.feature_config, ClipDenseConfig):
            grids = ClipDense.kilobytes_per_frame(dataclasses.replace(recipe, teacher=config.feature_config))
        else:
            tips = config.feature_config
            height = round(tips.short_side_px / 14)
            size = [height, round(height * 16 / 9)]
            if tips.window_px:
                sides = tips.short_side_px, round(tips.short_side_px * 16 / 9)
                size = [Windows(side, tips.window_px, tips.stride_px).seen // 14 for side in sides]
            grids = 6 * size[0] * size[1] * 1024 * 2 / 1000
        regions = {"slic": 30.0, "proposer": 120.0, "sam3": 170.0}[config.masks]  # docs/teachers.md
        return grids + 6 * regions

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d)."""
        assert self.features is not None, "the teacher was loaded for another stage"
        return self.features.text(prompts)

    @property
    def encoders(self) -> tuple[ImageEncoder, ...]:
        """The networks of both halves of the encoding."""
        assert self.features is not None and self.masks is not None, "the teacher was loaded for another stage"
        return self.features, self.masks

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Return `<camera>/grid`, `<camera>/region` and `<camera>/weight`; raises FrameError on bad images."""
        from pipeline.teachers.batches import encode_frame

        features, masks = (encode_frame(one, frame) for one in self.encoders)
        return features | masks

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size."""
        return [self.segment_view(camera, encoding, text) for camera in frame.cameras]

    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view.

        A pixel goes to the region that weighs most there, the weights of the cells around it mixed bilinearly, or to
        none. With `segment.split` "components" every 4-connected part of a region is a segment, else all regions with
        one prompt are. Order, and with it every id, is by prompt and then by first pixel. A segment's vector is the sum
        of its pixels' features, scaled to length 1; its score the mean over its pixels of the region's weight where
        SAM 3 names it, and of the softmax probability of the name, times how far views agree, where features do.
        """
        cells = cells_of(encoding, camera, text.shape[1])
        if missing := [part for part in ("region", "weight") if f"{camera.name}/{part}" not in encoding]:
            raise FrameError(
                f"table encode has no {camera.name}/{missing[0]}; it was made otherwise: run `encode` again"
            )
        region, weight = (encoding[f"{camera.name}/{part}"] for part in ("region", "weight"))
        size = tuple(max(1, round(side * self.segmentation.scale)) for side in (camera.height_px, camera.width_px))
        best, winning = winners(region, weight, size)
        keep = winning >= self.config.min_probability
        part_map, region_of_part = compact(
            best, keep=keep, split="component" if self.segmentation.split == "components" else "prompt"
        )
        n = len(region_of_part)
        weights = cells.weights(part_map, n).astype(np.float32)
        total = weights @ cells.grid.reshape(-1, text.shape[1])
        prompt, probability = self.names(unit(total), region_of_part, text)
        if cells.agreement is not None:
            probability = probability * (weights @ cells.agreement.ravel()) / weights.sum(axis=1)
        area = np.bincount(part_map.ravel(), minlength=n + 1)[1:]
        mass: npt.NDArray[Any] = probability * area
        if self.config.masks == "sam3":
            mass = np.bincount(part_map.ravel(), weights=winning.ravel(), minlength=n + 1)[1:]
        segment_of_part = self.joined(part_map, prompt)
        return gathered(part_map, segment_of_part, prompt, area, mass, total, max(1, self.segmentation.min_area_px))

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return how sure each pixel is of its name, (H, W) for every view; see PixelTeacher.

        That is the weight of its region where SAM 3 names it, and else the softmax probability of the name by the
        features of the pixel itself, where the segment was named by those of all its pixels.
        """
        found: list[npt.NDArray[Any]] = []
        for camera, view in zip(frame.cameras, views, strict=True):
            cells = cells_of(encoding, camera, text.shape[1])
            if self.config.masks == "sam3":
                region, weight = (encoding[f"{camera.name}/{part}"] for part in ("region", "weight"))
                found.append(winners(region, weight, (view.height_px, view.width_px))[1])
            else:
                found.append(cells.name_scores(text, self.config.logit_scale, view))
        return found

    def names(
        self, vector: npt.NDArray[np.float32], region: npt.NDArray[np.int32], text: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the prompt of each part and its softmax probability, both (n,), from unit vectors (n, d).

        Of prompts with one vector the first wins: it alone is compared, as rounding could tell the others apart.
        """
        distinct, row = np.unique(text, axis=0, return_inverse=True)
        cosine = vector @ distinct.astype(np.float32).T
        allowed = np.ones((len(vector), len(text)), bool)
        if self.config.masks == "sam3":
            groups = [group.name for group in self.ontology.groups]
            asked = np.array([groups.index(name) for name, _ in checked_concepts(self.ontology)])
            if region.max(initial=0) >= len(asked):
                raise FrameError("table encode has regions of other concepts; run `encode` again")
            allowed = self.ontology.group_of_prompt == asked[region][:, None]
        prompt = np.where(allowed, cosine[:, row.ravel()], -np.inf).argmax(axis=1)
        probability = softmax(np.float32(self.config.logit_scale) * cosine)[np.arange(len(vector)), row.ravel()[prompt]]
        return prompt, probability

    def joined(self, part_map: npt.NDArray[np.integer[Any]], prompt: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the segment 0..m-1 of each part, in order of prompt and then of first pixel."""
        if self.segmentation.split == "class":
            segment: npt.NDArray[np.int64] = np.unique(prompt, return_inverse=True)[1].ravel()
            return segment
        flat = part_map.ravel()
        first = np.zeros(len(prompt) + 1, np.int64)
        first[flat[::-1]] = np.arange(len(flat))[::-1]  # of several writes to one place the last stays: the first pixel
        segment = np.empty(len(prompt), np.int64)
        segment[np.lexsort((first[1:], prompt))] = np.arange(len(prompt))
        return segment


def winners(
    region: npt.NDArray[np.integer[Any]], weight: npt.NDArray[np.uint8], size: tuple[int, ...]
) -> tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.float32]]:
    """Return the best region of each pixel and its weight in 0..1, both (H, W), from those kept of each cell (k, h, w).

    Where one region is kept per cell, as of superpixels, a pixel is of the cell that covers it. Otherwise the weights
    of a region are mixed bilinearly between cells, being 0 where the region is not among those kept.
    """
    k, height, width = region.shape
    if k == 1:
        row, column = (np.arange(to) * of // to for to, of in zip(size, (height, width), strict=True))
        return region[0][row[:, None], column], weight[0][row[:, None], column].astype(np.float32) / 255
    used, place = np.unique(region, return_inverse=True)
    every = np.zeros((len(used), height, width), np.float32)
    np.put_along_axis(every, place.reshape(region.shape), weight.astype(np.float32) / 255, axis=0)
    best, winning = strip_argmax(every, *size)
    return used[best], winning


def gathered(
    part_map: npt.NDArray[np.integer[Any]],
    segment_of_part: npt.NDArray[np.int64],
    prompt: npt.NDArray[np.int64],
    area: npt.NDArray[np.integer[Any]],
    mass: npt.NDArray[np.floating[Any]],
    total: npt.NDArray[np.float32],
    min_area_px: int,
) -> Segments:
    """Return segments made of parts, those of fewer than `min_area_px` pixels left out.

    `part_map` (H, W) holds 0..n; aligned with parts 1..n: their segment, prompt, pixels, score times pixels, and sum of
    features.
    """
    m = int(segment_of_part.max(initial=-1)) + 1
    area_px = np.bincount(segment_of_part, weights=area, minlength=m)
    score = np.bincount(segment_of_part, weights=mass, minlength=m) / np.maximum(area_px, 1)
    vector = np.zeros((m, total.shape[1]), np.float32)
    np.add.at(vector, segment_of_part, total)
    prompt_of_segment = np.zeros(m, np.int64)
    prompt_of_segment[segment_of_part] = prompt
    large = area_px >= min_area_px
    renamed = np.where(large, np.cumsum(large), 0)
    label_map = np.concatenate([[0], renamed[segment_of_part]])[part_map]
    return Segments.from_label_map(label_map, prompt_of_segment[large], score[large], vector[large])


def load_masks(config: CompositeConfig, recipe: Recipe) -> ImageEncoder:
    """Return the mask source of a recipe; raises ConfigError."""
    root, device = root_of(recipe.data), recipe.run.device
    if config.masks == "sam3":
        return Sam3.load(config.sam3, root, recipe.ontology, device)
    if config.masks == "proposer":
        return Proposer.load(config.proposer, root, device)
    return Slic(config.slic, root)


def load_features(config: CompositeConfig, recipe: Recipe, stage: str) -> ClipDense | Tips:
    """Return the feature source of a recipe, for stage "text" or "encode"; raises ConfigError."""
    if config.features == "clip_dense":
        return ClipDense.load(dataclasses.replace(recipe, teacher=config.clip_dense), stage)
    return Tips.load(config.tipsv2, root_of(recipe.data), templates_of(recipe.template_list), recipe.run.device)
