"""Teacher `clip_dense`: dense features of a CLIP image tower, compared with the vector of every prompt.

It needs open_clip and nothing else, and is training-free. Its encode half is the image tower, its segment half the
comparison.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.config import changed_values
from pipeline.frame import Camera, Frame, FrameError, read_image
from pipeline.teachers.loading.templates import templates_of
from pipeline.teachers.loading.towers import TINY_CONFIGS, Towers, load_dino, load_towers, pick_device
from pipeline.teachers.loading.weights import Weights
from superpixels.pooling import segment_weights, strip_argmax
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    import torch

    from pipeline.recipe import Recipe, SegmentConfig
    from pipeline.teachers.dense import DenseTower

MODES = ("sc", "naclip", "clearclip", "sclip", "maskclip", "affinity", "vanilla", "convnext")
_TOWER = ("model", "weights", "quick_gelu")
_FIELDS = {
    "text": _TOWER,
    "encode": (
        *_TOWER,
        *("mode", "sigma", "calibrate_outliers", "calibrate_layers", "dino", "dino_weights"),
        *("short_side_px", "window_px", "stride_px", "precision", "compile", "unit_cells", "kept"),
    ),
    "segment": ("logit_scale",),
}
_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}


@dataclass(frozen=True)
class ClipDenseConfig:
    """Section `[teacher]` with `name = "clip_dense"`.

    `model` is a name of open_clip, or "tiny". `weights` is one of its pretrained tags, the path of a checkpoint,
    `hub:OWNER/NAME/FILE`, or `random:SEED` (tests and dry runs: the masks mean nothing). `weights_sha256` and, for the
    hub, `weights_revision` pin it (see teachers.loading.weights); the digest stands for the weights in the identity,
    so that the same file elsewhere is the same teacher. `quick_gelu` must be said for a file, as it does not tell: true
    for OpenAI's, MetaCLIP's and DFN's weights, false for LAION's and DataComp's.

    `mode` and `sigma` (in grid cells, "naclip" only): see pipeline.teachers.dense. `calibrate_outliers` and
    `calibrate_layers` are the two parts of "sc" that can be left out: filling patches out of place, and the sum of
    layers. `dino` and `dino_weights` name the second network of "affinity", a model of timm, and its file, pinned
    likewise. `short_side_px` is the image's shorter side as the tower sees it; both sides are rounded to multiples of
    the patch. With `window_px` the tower sees windows of that size every `stride_px` (default: side by side), for
    example 560, 336 and 224: better and slower. `precision` "bf16" runs the image tower in bfloat16 where torch deems
    it safe; `compile` has torch compile it, in batches of one size. `unit_cells` scales the features of each cell to
    length 1, so that all pixels of a segment count the same. `logit_scale` times the cosine is what the softmax behind
    `score` sees; it moves no segment. `kept` "int8" halves table `encode`: only the direction of a cell's vector is
    kept, in steps of 1/127 of its largest value.
    """

    name: str = "clip_dense"
    model: str = "ViT-B-16-quickgelu"
    weights: str = "openai"
    weights_sha256: str = ""
    weights_revision: str = ""
    quick_gelu: bool | None = None
    mode: str = "sc"
    sigma: float = 5.0
    calibrate_outliers: bool = True
    calibrate_layers: bool = True
    dino: str = "vit_base_patch8_224.dino"
    dino_weights: str = ""
    dino_weights_sha256: str = ""
    dino_weights_revision: str = ""
    short_side_px: int = 448
    window_px: int | None = None
    stride_px: int | None = None
    precision: str = "fp32"
    compile: bool = False
    unit_cells: bool = True
    kept: str = "float16"
    logit_scale: float = 40.0

    def __post_init__(self) -> None:
        if self.name != "clip_dense":
            raise ValueError(f'name is "{self.name}"; these are the settings of "clip_dense"')
        implied = implies_quick_gelu(self.model)
        weights = self.pinned
        if not weights.is_tag and weights.seed is None:
            if self.quick_gelu is None:
                raise ValueError(
                    "quick_gelu is missing; a file does not tell its activation, and the wrong one gives wrong "
                    "features without any error: true for OpenAI, MetaCLIP and DFN, false for LAION and DataComp"
                )
        elif weights.is_tag and self.model in TINY_CONFIGS:
            raise ValueError(
                f'weights are "{self.weights}", but the tiny model has no pretrained tags; use random:SEED'
            )
        elif self.weights == "openai" and not (implied if self.quick_gelu is None else self.quick_gelu):
            raise ValueError(
                f'weights "openai" were trained with QuickGELU, but model "{self.model}" computes GELU, which gives '
                f'wrong features without any error; use model "{self.model}-quickgelu"'
            )
        if implied and self.quick_gelu is False:
            raise ValueError(f'quick_gelu is false, but model "{self.model}" means QuickGELU; take the name without it')
        if self.mode not in MODES:
            raise ValueError(f'mode is "{self.mode}"; choose one of {", ".join(MODES)}')
        if (self.mode == "affinity") != bool(self.dino_weights):
            raise ValueError('dino_weights are given if, and only if, mode is "affinity"')
        if self.mode == "affinity" and self.pinned_dino.is_tag:
            raise ValueError(
                f'dino_weights are "{self.dino_weights}"; give a path, hub:OWNER/NAME/FILE, or random:SEED'
            )
        if self.stride_px is not None and (self.window_px is None or not 0 < self.stride_px <= self.window_px):
            raise ValueError("stride_px needs window_px, and lies between 1 and window_px, so that no gap is left")
        if self.window_px is not None and not 8 <= self.window_px <= 4096:
            raise ValueError(f"window_px is {self.window_px}; expected 8 to 4096")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision is "{self.precision}"; choose "fp32" or "bf16"')
        if self.kept not in ("float16", "int8"):
            raise ValueError(f'kept is "{self.kept}"; choose "float16" or "int8"')
        if self.kept == "int8" and not self.unit_cells:
            raise ValueError('kept = "int8" keeps directions only, so it needs unit_cells = true')
        if not (0 < self.sigma < float("inf") and 0 < self.logit_scale < float("inf")):
            raise ValueError("sigma and logit_scale must be positive and finite")
        if not 8 <= self.short_side_px <= 4096:
            raise ValueError(f"short_side_px is {self.short_side_px}; expected 8 to 4096")

    @property
    def pinned(self) -> Weights:
        """The weights and what pins them."""
        return Weights(self.weights, self.weights_sha256, self.weights_revision)

    @property
    def pinned_dino(self) -> Weights:
        """The weights of the second network and what pins them."""
        return Weights(self.dino_weights, self.dino_weights_sha256, self.dino_weights_revision, "dino_weights")

    def settings(self, stage: str) -> Mapping[str, Any]:
        """Return the values that can change the rows of "text", "encode" or "segment"; pinned weights by digest."""
        values = {key: value for key, value in changed_values(self).items() if key in _FIELDS[stage]}
        if self.quick_gelu == implies_quick_gelu(self.model):
            values.pop("quick_gelu", None)
        if self.weights_sha256 and stage != "segment":
            values["weights"] = self.pinned.identity
        if "dino_weights" in values:
            values |= {"dino": self.dino, "dino_weights": self.pinned_dino.identity}
        else:
            values.pop("dino", None)
        return {"name": self.name, **values}


def implies_quick_gelu(model: str) -> bool:
    """Return the activation that a model's name stands for."""
    return model.endswith("-quickgelu") or bool(TINY_CONFIGS.get(model, {}).get("quick_gelu"))


def grid_shape(config: ClipDenseConfig) -> tuple[int, int, int]:
    """Return about how many cells and values a 16:9 image gives, (h, w, d), for estimates made without open_clip."""
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
    if config.mode == "affinity":
        found = re.search(r"patch(\d+)", config.dino)
        patch = int(found[1]) if found else patch
    height = max(1, round(config.short_side_px / patch))
    return height, round(height * 16 / 9), dims


@dataclass(frozen=True, eq=False)
class ClipDense:
    """The loaded teacher. `towers` and `dense` are None where only the segment half is run: it needs no network."""

    config: ClipDenseConfig
    root: Path
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
        root, templates = Path(recipe.data.root), templates_of(recipe.text.templates)
        return cls(config, root, templates, recipe.segment, towers, dense, segment_device)

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large the grids of six 16:9 images are."""
        assert isinstance(recipe.teacher, ClipDenseConfig)
        height, width, dims = grid_shape(recipe.teacher)
        return 6 * height * width * dims * (1 if recipe.teacher.kept == "int8" else 2) / 1000

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
        """Return `<camera>/grid`, float16 or int8 (h, w, d), for every camera; raises FrameError on bad images."""
        from pipeline.teachers.batches import encode_frame

        return encode_frame(self, frame)

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image at the tower's size, RGB uint8 (H, W, 3): bicubic, antialiased, on 8-bit pixels.

        Rounding both sides to multiples of the patch changes the aspect ratio a little (1600 x 900 becomes 800 x 448).
        """
        from PIL import Image

        image = read_image(self.root, camera)
        scale = self.config.short_side_px / min(image.shape[:2])
        height, width = (
            patch * max(1, round(side * scale / patch))
            for side, patch in zip(image.shape[:2], self.image_tower.patch_px, strict=True)
        )
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the grids of RGB images, uint8 (b, H, W, 3), as they are kept: float16 or int8 (b, h, w, d).

        `finite` (b,) tells whether all of an image's values are numbers within float16.
        """
        grid = self.image_tower(batch)
        kept = grid.half()
        finite = kept.isfinite().flatten(1).all(dim=1)
        if self.config.kept == "int8":
            largest = grid.abs().amax(dim=-1, keepdim=True).clamp_min(1e-30)
            kept = (grid * (127 / largest)).round().char()
        return {"grid": kept, "finite": finite}

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the grid of an image; raises FrameError if it holds values that are not finite."""
        if not outputs["finite"]:
            raise FrameError(
                f"{camera.image_path}: the features of {self.config.model} hold values that are not finite or "
                "beyond float16; check the weights, and set teacher.unit_cells = true"
            )
        return {"grid": np.ascontiguousarray(outputs["grid"])}

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size.

        Of prompts with one vector the first takes all: it alone is compared, as rounding could tell the others apart.
        """
        _, first = np.unique(text, axis=0, return_index=True)
        distinct = np.sort(first)
        return [self.segment_view(camera, encoding, text[distinct], distinct) for camera in frame.cameras]

    def best_prompt(
        self, cosine: npt.NDArray[np.float32], height_px: int, width_px: int
    ) -> npt.NDArray[np.integer[Any]]:
        """Return the prompt of largest cosine for every pixel, (H, W), from cosines (T, h, w) on the grid."""
        if self.segment_device is None:
            return strip_argmax(cosine, height_px, width_px)[0]
        from pipeline.teachers.dense import upsampled_argmax

        return upsampled_argmax(cosine, height_px, width_px, self.segment_device)

    def segment_view(
        self,
        camera: Camera,
        encoding: Mapping[str, npt.NDArray[Any]],
        text: npt.NDArray[Any],
        prompt_of_row: npt.NDArray[np.integer[Any]],
    ) -> Segments:
        """Return the segments of one view: each pixel goes to the prompt of largest cosine.

        `text` are distinct vectors and `prompt_of_row` the prompts that they stand for.

        Cosines, probabilities and features live on the grid; a pixel's are the bilinear mix of the cells around it. A
        segment's vector is the sum of its pixels' features, scaled to length 1. Its score is the mean over its pixels
        of the softmax probability of its prompt among all. Both sums are exact, without upsampling (see
        superpixels.pooling).
        """
        name = f"{camera.name}/grid"
        if name not in encoding:
            raise FrameError(f"table encode has no {name}; it was made for other cameras: run `encode` again")
        grid = grid_kept(encoding[name])
        if grid.ndim != 3 or grid.shape[2] != text.shape[1]:
            raise FrameError(
                f"{name} has shape {grid.shape}; expected (h, w, {text.shape[1]}), as the prompt vectors have"
            )
        height, width, _ = grid.shape
        cosine = unit(grid) @ text.T
        prompt_map = self.best_prompt(
            cosine.transpose(2, 0, 1),
            max(1, round(camera.height_px * self.segmentation.scale)),
            max(1, round(camera.width_px * self.segmentation.scale)),
        )
        label_map, row = compact(
            prompt_map,
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        weights = segment_weights(label_map, len(row), height, width).astype(np.float32)
        probability = softmax(self.config.logit_scale * cosine).reshape(height * width, -1)
        of_winner = (weights @ probability)[np.arange(len(row)), row]
        return Segments.from_label_map(
            label_map,
            prompt_of_row[row],
            score=of_winner / weights.sum(axis=1),  # a row of weights sums to the segment's area
            vector=weights @ grid.reshape(height * width, -1),
        )


def grid_kept(grid: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the features of cells (h, w, d) from how table `encode` keeps them: int8 holds directions only."""
    cells = grid.astype(np.float32)
    return unit(cells) if grid.dtype == np.int8 else cells


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
