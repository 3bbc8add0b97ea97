"""Teacher `clip_dense`: dense features of a CLIP image tower, compared with the vector of every prompt.

It needs open_clip and nothing else, and is training-free. Its encode half is the image tower, its segment half the
comparison.

With `augment` the tower sees other views of each image too. A view's features are brought back onto the grid of the
image, mirrored and bilinearly, and the cell keeps the direction of the mean m of unit vectors f_v / |f_v| over the
image and its views: names go by the cosine, so the length of a view's vector must not count. Features are averaged and
not what prompts make of them, so that table `encode` knows no prompt: another dictionary needs no tower. How far views
agree, |m|, is kept beside the grid and multiplies all probabilities: what is left is not known.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import scipy

from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.sections.teachers.views import sizes_of
from manifests.storage.places import Root, root_of
from manifests.templates import templates_of
from pipeline.frame import Camera, Frame, FrameError, read_at_sizes
from pipeline.teachers.loading.towers import TINY_CONFIGS, Towers, load_dino, load_towers, pick_device
from pipeline.teachers.views import by_scale, joined, mean_direction
from superpixels.pooling import bilinear_matrix, segment_weights, strip_argmax
from superpixels.segments import Segments, Split, compact
from superpixels.windows import Windows, mixed_argmax, mixed_weights, window_matrix

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
    from manifests.sections.tables import SegmentConfig
    from pipeline.teachers.dense import DenseTower

_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}


def grid_shape(config: ClipDenseConfig) -> tuple[int, int, int]:
    """Return about how many cells and values a 16:9 image gives, (h, w, d), for estimates made without open_clip.

    Cells that several windows see count for each of them.
    """
    convolutional = "convnext" in config.model
    if config.model in TINY_CONFIGS:
        tiny = TINY_CONFIGS[config.model]
        patch, dims = tiny["vision_cfg"].get("patch_size", 32), tiny["embed_dim"]
    elif convolutional:
        patch, dims = 32, next((dims for size, dims in (("xx", 1024), ("large", 768)) if size in config.model), 640)
    else:
        found = re.match(r"ViT-(bigG|[SMBLHgG])-(\d+)", config.model)
        size, patch = (found[1], int(found[2])) if found else ("L", 16)
        dims = {"S": 384, "M": 512, "B": 512, "L": 768, "H": 1024, "g": 1024}.get(size, 1280)
    height = max(1, round(config.short_side_px / patch))
    size = [height, round(height * 16 / 9)]
    if config.window_px is not None:
        short, window = config.short_side_px, config.window_px
        size = [
            Windows(length, window, config.stride_px or window).seen // patch
            for length in (short, round(short * 16 / 9))
        ]
    if config.mode == "affinity":
        found = re.search(r"patch(\d+)", config.dino)
        size = [length * patch // int(found[1]) if found else length for length in size]
    return size[0], size[1], dims


@dataclass(frozen=True, eq=False)
class ClipDense:
    """The loaded teacher. `towers` and `dense` are None where only the segment half is run: it needs no network."""

    config: ClipDenseConfig
    root: Root
    templates: tuple[str, ...]
    segmentation: SegmentConfig
    towers: Towers | None
    dense: DenseTower | None
    segment_device: torch.device | None = None  # where pixels are named; None: by NumPy

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> ClipDense:
        """Return the teacher, with the towers that stage "text", "encode" or "segment" needs; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, ClipDenseConfig)
        towers, dense = None, None
        if stage != "segment":
            towers = load_towers(config.model, config.pinned, config.quick_gelu, recipe.run.device)
        if towers and stage == "encode":
            from pipeline.teachers.dense import Calibration, DenseTower

            affinity = config.mode == "affinity"
            dense = DenseTower(
                towers,
                config.mode,
                config.sigma,
                bf16=config.precision == "bf16",
                positions=config.positions,
                unit=config.unit_cells,
                window_px=config.window_px,
                stride_px=config.stride_px,
                calibration=Calibration(config.calibrate_outliers, config.calibrate_layers),
                dino=load_dino(config.dino, config.pinned_dino, recipe.run.device) if affinity else None,
                compiled=config.compile,
            )
        segment_device = None
        if stage == "segment" and recipe.run.segment_gpus:
            segment_device = pick_device(recipe.run.device)
        return cls(
            config,
            root_of(recipe.data),
            templates_of(recipe.template_list),
            recipe.segment,
            towers,
            dense,
            segment_device,
        )

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large the grids of six 16:9 images are."""
        assert isinstance(recipe.teacher, ClipDenseConfig)
        height, width, dims = grid_shape(recipe.teacher)
        cell = dims * (1 if recipe.teacher.kept == "int8" else 2) + (2 if recipe.teacher.views else 0)
        return 6 * height * width * cell / 1000

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d)."""
        assert self.towers is not None, "the teacher was loaded for another stage"
        return self.towers.text_vectors(prompts, self.templates)

    @property
    def device(self) -> torch.device:
        """The device of the image tower."""
        return self.image_tower.device

    @property
    def batch(self) -> int:
        """Images at once: the views of a frame on a CPU, where more gain nothing; enough to fill a GPU otherwise."""
        if self.device.type != "cuda":
            return 6
        return 32 if self.config.window_px is None else 8

    @property
    def fixed_batch(self) -> bool:
        """Whether batches must be of one size: a compiled tower is compiled anew for every other."""
        return self.config.compile

    @property
    def image_tower(self) -> DenseTower:
        """The image tower, where the teacher was loaded with it."""
        assert self.dense is not None, "the teacher was loaded for another stage"
        return self.dense

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Return `<camera>/grid`, float16 or int8 (h, w, d), for every camera; raises FrameError on bad images.

        With other views `<camera>/agreement` too, float16 (h, w), from 0 to 1.
        """
        from pipeline.teachers.batches import encode_frame

        return encode_frame(self, frame)

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image at the tower's size, RGB uint8 (H, W, 3): bicubic, antialiased, on 8-bit pixels.

        Views of other sizes lie behind it, (H, W, 3 + n), each resized from the file as the image is: see
        pipeline.teachers.views.joined.
        """
        from pipeline.teachers.dense import seen_size

        def sizes(height_px: int, width_px: int) -> Iterable[tuple[int, int]]:
            patch_px, config = self.image_tower.patch_px, self.config
            size = seen_size(height_px, width_px, config.short_side_px, patch_px, config.window_px)
            return sizes_of(config.views, *size, patch_px).values()

        return joined(read_at_sizes(self.root, camera, sizes, scaled=self.config.decode == "scaled"))

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the grids of RGB images, uint8 (b, H, W, 3), as they are kept: float16 or int8 (b, h, w, d).

        `finite` (b,) tells whether all of an image's values are numbers within float16. With windows, `rows_px` and
        `columns_px` (b, n, 2) say where they lie. With other views, for which a batch may be (b, H, W, 3 + n), there is
        `agreement`, float16 (b, h, w).
        """
        grid, agreement = self.features(batch)
        kept = grid.half()
        finite = kept.isfinite().flatten(1).all(dim=1)
        if self.config.kept == "int8":
            largest = grid.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30)
            kept = (grid * (127 / largest)).round().char()
        sliding = self.image_tower.sliding
        found = {"grid": kept, "finite": finite, **(sliding.parts(batch) if sliding else {})}
        return found if agreement is None else {**found, "agreement": agreement.half()}

    def features(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the features (b, h, w, d) of a batch of images, and how far views agree, (b, h, w), where there are.

        With other views they are the mean direction of all, as long as those of the image itself.
        """
        tower, views = self.image_tower, self.config.views
        if not views:
            return tower(batch), None
        images = by_scale(batch, views, tower.patch_px)
        plain = tower(images[1.0])
        others = (tower(images[view.scale], mirrored=view.flip) for view in views)
        direction, agreement = mean_direction(chain([plain], others))
        grid = direction if self.config.unit_cells else direction * plain.norm(dim=-1, keepdim=True)
        return grid, agreement

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the grid of an image; raises FrameError if it holds values that are not finite."""
        if not outputs["finite"]:
            raise FrameError(
                f"{camera.image_path}: the features of {self.config.model} hold values that are not finite or "
                "beyond float16; check the weights, and set teacher.unit_cells = true"
            )
        return {name: np.ascontiguousarray(part) for name, part in outputs.items() if name != "finite"}

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size.

        Of prompts with one vector the first takes all: it alone is compared, as rounding could tell the others apart.
        """
        _, first = np.unique(text, axis=0, return_index=True)
        distinct = np.sort(first)
        return [self.segment_view(camera, encoding, text[distinct], distinct) for camera in frame.cameras]

    def segment_view(
        self,
        camera: Camera,
        encoding: Mapping[str, npt.NDArray[Any]],
        text: npt.NDArray[Any],
        prompt_of_row: npt.NDArray[np.integer[Any]],
    ) -> Segments:
        """Return the segments of one view: each pixel goes to the prompt of largest cosine.

        `text` are distinct vectors and `prompt_of_row` the prompts that they stand for.

        Cosines, probabilities and features live on the grid; a pixel's are the bilinear mix of the cells around it,
        averaged over the windows that see it. A
        segment's vector is the sum of its pixels' features, scaled to length 1. Its score is the mean over its pixels
        of the softmax probability of its prompt among all, times how far views agree. Both sums are exact, without
        upsampling (see superpixels.pooling and superpixels.windows).
        """
        cells = cells_of(encoding, camera, text.shape[1])
        height, width, _ = cells.grid.shape
        cosine = unit(cells.grid) @ text.T
        prompt_map = cells.best(
            cosine.transpose(2, 0, 1),
            max(1, round(camera.height_px * self.segmentation.scale)),
            max(1, round(camera.width_px * self.segmentation.scale)),
            self.segment_device,
        )
        label_map, row = compact(
            prompt_map,
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        weights = cells.weights(label_map, len(row)).astype(np.float32)
        probability = cells.agreed(softmax(self.config.logit_scale * cosine)).reshape(height * width, -1)
        of_winner = (weights @ probability)[np.arange(len(row)), row]
        return Segments.from_label_map(
            label_map,
            prompt_of_row[row],
            score=of_winner / weights.sum(axis=1),  # a row of weights sums to the segment's area
            vector=weights @ cells.grid.reshape(height * width, -1),
        )

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return the softmax probability of each pixel's prompt, (H, W) for every view; see PixelTeacher.

        Its mean over the pixels of a segment is the segment's score.
        """
        every = (cells_of(encoding, camera, text.shape[1]) for camera in frame.cameras)
        return [
            cells.name_scores(text, self.config.logit_scale, view) for cells, view in zip(every, views, strict=True)
        ]

    def class_grids(
        self,
        frame: Frame,
        encoding: Mapping[str, npt.NDArray[Any]],
        text: npt.NDArray[Any],
        views: Sequence[Segments],
        class_of_prompt: npt.NDArray[Any],
    ) -> list[npt.NDArray[Any]]:
        """Return the softmax probabilities of classes on the label map's grid of each view; see RankingTeacher."""
        every = (cells_of(encoding, camera, text.shape[1]) for camera in frame.cameras)
        return [
            cells.class_scores(text, self.config.logit_scale, view, class_of_prompt)
            for cells, view in zip(every, views, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Cells:
    """The features of a view's cells, float32 (h, w, d), and how its pixels mix them.

    Bilinearly, as of one image; or, where the spans of windows are given (first pixel and end of each, in the image as
    the tower saw it), each window's cells bilinearly and averaged where windows overlap. `agreement`, float32 (h, w),
    is how far the image and other views of it agree, from 0 to 1, where there were others.
    """

    grid: npt.NDArray[np.float32]
    spans_px: tuple[list[tuple[int, int]], list[tuple[int, int]]] | None = None
    agreement: npt.NDArray[np.float32] | None = None

    def agreed(self, probability: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return probabilities (h, w, t) times how far views agree: what is left is not known."""
        return probability if self.agreement is None else probability * self.agreement[..., None]

    def mixing(self, height_px: int, width_px: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Return how pixels mix cells along either axis, (H, h) and (W, w)."""
        height, width, _ = self.grid.shape
        if self.spans_px is None:
            return bilinear_matrix(height_px, height), bilinear_matrix(width_px, width)
        rows, columns = self.spans_px
        return window_matrix(height_px, rows, height), window_matrix(width_px, columns, width)

    def name_scores(self, text: npt.NDArray[Any], scale: float, view: Segments) -> npt.NDArray[np.float32]:
        """Return the softmax probability of each pixel's prompt, (H, W), by `scale` times the cosine with its cells.

        Of prompts with one vector all count as one; in no segment it is 0.
        """
        _, first, same = np.unique(text, axis=0, return_index=True, return_inverse=True)
        probability = self.agreed(softmax(np.float32(scale) * (unit(self.grid) @ text[first].T)))
        rows, columns = self.mixing(view.height_px, view.width_px)
        label_map = view.label_map()
        scores = np.zeros(label_map.shape, np.float32)
        for prompt in np.unique(view.prompt_id):
            named = np.append(False, view.prompt_id == prompt)[label_map]
            scores[named] = (rows @ probability[..., same.ravel()[prompt]] @ columns.T)[named]
        return scores

    def class_scores(
        self, text: npt.NDArray[Any], scale: float, view: Segments, class_of_prompt: npt.NDArray[Any]
    ) -> npt.NDArray[np.float32]:
        """Return the softmax probability of each class in each pixel of a label map, (classes, H, W).

        Of prompts with one vector the first says which class they are.
        """
        _, first = np.unique(text, axis=0, return_index=True)
        probability = self.agreed(softmax(np.float32(scale) * (unit(self.grid) @ text[first].T)))
        rows, columns = self.mixing(view.height_px, view.width_px)
        found = np.zeros((int(class_of_prompt.max()) + 1, len(rows), len(columns)), np.float32)
        for number in np.unique(class_of_prompt[first]):
            found[number] = rows @ probability[..., class_of_prompt[first] == number].sum(axis=-1) @ columns.T
        return found

    def best(
        self, scores: npt.NDArray[np.float32], height_px: int, width_px: int, device: torch.device | None = None
    ) -> npt.NDArray[np.integer[Any]]:
        """Return the prompt of largest score for every pixel, (H, W), from scores (T, h, w) of the cells.

        By NumPy, or on a device.
        """
        if device is not None:
            from pipeline.teachers.dense import device_argmax

            return device_argmax(scores, *self.mixing(height_px, width_px), device)
        if self.spans_px is None:
            return strip_argmax(scores, height_px, width_px)[0]
        return mixed_argmax(scores, *self.mixing(height_px, width_px))

    def weights(self, label_map: npt.NDArray[np.integer[Any]], n: int) -> scipy.sparse.csr_array:
        """Return how much of each cell the pixels of each of `n` segments hold, sparse (n, h w)."""
        if self.spans_px is None:
            return segment_weights(label_map, n, *self.grid.shape[:2])
        return mixed_weights(label_map, n, *self.mixing(*label_map.shape))


def cells_of(encoding: Mapping[str, npt.NDArray[Any]], camera: Camera, dims: int) -> Cells:
    """Return a view's cells from table `encode`; raises FrameError unless they are there and have `dims` values."""
    name = f"{camera.name}/grid"
    if name not in encoding:
        raise FrameError(f"table encode has no {name}; it was made for other cameras or otherwise: run `encode` again")
    grid = encoding[name]
    if grid.ndim != 3 or grid.shape[2] != dims:
        raise FrameError(f"{name} has shape {grid.shape}; expected (h, w, {dims}), as the prompt vectors have")
    values = grid.astype(np.float32)
    kept = unit(values) if grid.dtype == np.int8 else values  # bytes hold directions only
    agreement = encoding.get(f"{camera.name}/agreement")
    sure = None if agreement is None else agreement.astype(np.float32)
    spans = [encoding.get(f"{camera.name}/{axis}_px") for axis in ("rows", "columns")]
    if spans[0] is None or spans[1] is None:
        return Cells(kept, agreement=sure)
    rows, columns = ([(int(start), int(end)) for start, end in axis] for axis in spans if axis is not None)
    return Cells(kept, (rows, columns), sure)


def unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return vectors (..., d) scaled to length 1; one of length 0 stays as it is."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    scaled: npt.NDArray[np.float32] = vectors / np.maximum(length, np.finfo(np.float32).tiny)
    return scaled


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return probabilities over the last axis."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: npt.NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return result
