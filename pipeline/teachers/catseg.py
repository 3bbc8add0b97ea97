"""Teacher `catseg`: CAT-Seg, second generation (v2), from its official checkpoints.

Its encode half is CLIP's tower, and what of it guides the other half. Its segment half is the aggregator, a network
too: it refines the cosines of cells and prompts to a probability of each prompt at each pixel, and the likeliest names
the pixel. As in the reference of AFOV a segment's vector is the sum over its pixels of CLIP's grid, interpolated; the
aggregator draws masks and leaves no trace in vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.catseg import CatSegConfig
from manifests.storage.places import root_of
from manifests.templates import templates_of
from pipeline.frame import Camera, Frame, FrameError, read_image_for
from pipeline.teachers.loading.weights import fill, read_tensors, weights_file
from pipeline.teachers.masks import ImageSize, MaskTeacher, network_pixels, normalised, parts_of, resized
from superpixels.pooling import segment_weights
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
    from pipeline.teachers.loading.towers import Towers
    from pipeline.teachers.networks.aggregator import Aggregator, CostShape
    from pipeline.teachers.networks.catseg import CatSeg as Network

PARTS = ("grid", "coarse", "middle", "fine")
_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}


@dataclass(frozen=True, eq=False)
class CatSeg(MaskTeacher):
    """The loaded teacher. `aggregator` is there for stage "segment", on the device where pixels are named."""

    config: CatSegConfig
    network: Network | None
    aggregator: Aggregator | None = None
    segment_device: torch.device | None = None

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> CatSeg:
        """Return the teacher with what a stage needs: for "segment", the aggregator alone; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, CatSegConfig)
        root, templates = root_of(recipe.data), templates_of(recipe.template_list)
        if stage == "segment":
            # float32 numbers of the CPU are the yardstick: a GPU takes part only where the recipe gives it a share.
            aggregator, device = load_aggregator(config, recipe.run.device if recipe.run.segment_gpus else "cpu")
            return cls(config, root, templates, recipe.segment, None, None, aggregator, device)
        network, towers = load_network(config, recipe.run.device)
        return cls(config, root, templates, recipe.segment, network, towers)

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large grid and guides of six images are, before compression."""
        config = recipe.teacher
        assert isinstance(config, CatSegConfig)
        cells, dims, width, guides = {
            "tiny": (12**2, 32, 32, (16, 8)),
            "ViT-B-16-quickgelu": (24**2, 512, 128, (32, 16)),
        }.get(config.model, (24**2, 768, 128, (32, 16)))
        values = cells * (dims + width + 4 * guides[0] + 16 * guides[1])
        return 6 * config.views * values * (2 if config.kept == "float16" else 4) / 1000

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d)."""
        if self.config.parity:
            prompts = tuple(prompt.partition(", ")[0] for prompt in prompts)
        return super().text(prompts)

    @property
    def batch(self) -> int:
        """Images at once: the views of a frame on a CPU, where more gain nothing; enough to fill a GPU otherwise."""
        if self.device.type != "cuda":
            return 6
        return 8 if self.config.windows else 32

    @property
    def shape(self) -> CostShape:
        """The network's sizes."""
        loaded = self.aggregator or self.network
        assert loaded is not None, "the teacher was loaded for another stage"
        return loaded.shape

    def image_size(self, height_px: int, width_px: int) -> ImageSize:
        """Return how large a whole view goes into the network: a square, but for the reference, which pads it first."""
        if self.config.parity:
            return ImageSize.padded(height_px, width_px)
        side = self.shape.input_px
        return ImageSize((side, side), (side, side), two_steps=False)

    def largest_px(self, height_px: int, width_px: int) -> tuple[int, int]:
        """Return the size of the largest picture that is made of an image, height and width."""
        if self.config.windows and not self.config.parity:
            return (self.shape.input_px * 5 // 3,) * 2
        return self.image_size(height_px, width_px).image_px

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image as the network sees it, RGB uint8 (views, s, s, 3); the whole image is the last view.

        With `parity`, return it at its own size, (H, W, 3); `forward` does the rest.
        """
        image, largest = read_image_for(self.root, camera, self.largest_px, scaled=self.config.decode == "scaled")
        if self.config.parity:
            return image
        side = self.shape.input_px
        whole = resized(image, (side, side))[None]
        if not self.config.windows:
            return whole
        from pipeline.teachers.networks.catseg import window_corners

        canvas = resized(image, largest)
        corners = window_corners(len(canvas), side, side * 2 // 3)
        cut = [canvas[row : row + side, column : column + side] for row, column in corners]
        return np.concatenate([np.stack(cut), whole])

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return CLIP's grids and what guides the aggregator, PARTS, each (b, views, h, w, c) as it is kept."""
        import torch

        assert self.network is not None, "the teacher was loaded for another stage"
        pixels = self.as_reference(batch) if self.config.parity else normalised(batch.flatten(0, 1))
        with torch.autocast(batch.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            found = self.network(pixels)
        kept = torch.float16 if self.config.kept == "float16" else torch.float32
        return {
            name: part.to(kept).unflatten(0, (len(batch), -1)).contiguous()
            for name, part in zip(PARTS, found, strict=True)
        }

    def as_reference(self, images: torch.Tensor) -> torch.Tensor:
        """Return normalised views (b * views, 3, s, s) of images (b, H, W, 3), as the official code makes them."""
        import torch
        from torch.nn.functional import interpolate

        from pipeline.teachers.networks.catseg import window_corners

        def to_side(pixels: torch.Tensor, side: int) -> torch.Tensor:
            return interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False)

        shape = self.shape
        if not self.config.windows:
            return to_side(network_pixels(images), shape.input_px)
        pixels, kernel = normalised(images), shape.kernel_px
        canvas = to_side(pixels, shape.canvas_px)
        views = [
            canvas[:, :, row : row + kernel, column : column + kernel]
            for row, column in window_corners(shape.canvas_px, kernel, shape.stride_px)
        ]
        return to_side(torch.stack([*views, to_side(pixels, kernel)], dim=1).flatten(0, 1), shape.input_px)

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return an image's parts as they are cached; raises FrameError where they hold values not finite.

        `grid` (views, h, w, d), CLIP's vectors, not normalised; `coarse`, `middle`, `fine` (views, h, w, c), at once,
        twice and four times the grid: what guides the aggregator.
        """
        self.check_finite(camera, outputs)
        return dict(outputs)

    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view: each pixel goes to the likeliest prompt.

        Of prompts with one vector the first takes all: it alone is compared, as rounding could tell the others apart.
        All of them take part in the aggregator, as in the reference. A segment's score is the mean probability of its
        prompt over its pixels, its vector the sum of its pixels' features; with windows these are the mean of what the
        windows and the whole give, as probabilities are.
        """
        parts = parts_of(camera, encoding, PARTS)
        best, probability, distinct = self.likeliest(camera, parts, text)
        label_map, row = compact(
            best,
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        area = np.bincount(label_map.ravel(), minlength=len(row) + 1)
        total = np.bincount(label_map.ravel(), probability.ravel(), minlength=len(row) + 1)
        return Segments.from_label_map(
            label_map,
            distinct[row],
            score=total[1:] / area[1:],
            vector=self.vectors(label_map, len(row), parts["grid"].astype(np.float32)),
        )

    def likeliest(
        self, camera: Camera, parts: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the likeliest of the distinct prompts by pixel of a view, how likely it is, and which they are."""
        import torch

        from pipeline.teachers.networks.catseg import likeliest

        assert self.aggregator is not None, "the teacher was loaded for another stage"
        self.check_shapes(camera, parts, text)
        size_px = tuple(max(1, round(side * self.segmentation.scale)) for side in (camera.height_px, camera.width_px))
        _, first = np.unique(text, axis=0, return_index=True)
        distinct = np.sort(first)
        with torch.inference_mode():
            logits = self.logits(parts, text)
            rows = torch.from_numpy(distinct).to(logits.device)
            best, probability = likeliest(logits[:, rows], (size_px[0], size_px[1]), self.shape)
        return best.cpu().numpy(), probability.cpu().numpy(), distinct

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return the probability of each pixel's prompt, (H, W) for every view; see PixelTeacher."""
        return [self.likeliest(one, parts_of(one, encoding, PARTS), text)[1] for one in frame.cameras]

    def check_shapes(self, camera: Camera, parts: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> None:
        """Raise FrameError unless a view's cached parts are of this network, and of the size of the prompt vectors."""
        shape, views = self.shape, self.config.views
        channels = (text.shape[1], shape.width, *shape.guides)
        for name, finer, depth in zip(PARTS, (1, 1, 2, 4), channels, strict=True):
            expected = (views, finer * shape.grid, finer * shape.grid, depth)
            if parts[name].shape != expected:
                raise FrameError(
                    f"{camera.name}/{name} has shape {parts[name].shape}; expected {expected}, "
                    "from this network, these windows and prompt vectors"
                )

    def logits(self, parts: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> torch.Tensor:
        """Return the logits of prompts on an image's views, (views, t, 4h, 4w), in inference mode."""
        import torch

        from pipeline.teachers.networks.aggregator import Guides

        assert self.aggregator is not None and self.segment_device is not None
        vectors = torch.from_numpy(np.array(text, np.float32)).to(self.segment_device)
        on_device = [torch.from_numpy(np.array(parts[name], np.float32)).to(self.segment_device) for name in PARTS]
        return torch.stack(
            [self.aggregator(Guides(*view), vectors, self.config.pooling) for view in zip(*on_device, strict=True)]
        )

    def vectors(
        self, label_map: npt.NDArray[Any], n: int, grids: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.floating[Any]]:
        """Return of n segments the sum over their pixels of CLIP's grids (views, h, w, d), interpolated: (n, d)."""
        side, dims = grids.shape[1], grids.shape[-1]
        whole: npt.NDArray[Any] = segment_weights(label_map, n, side, side) @ grids[-1].reshape(-1, dims)
        if len(grids) == 1:
            return whole
        import torch

        from pipeline.teachers.networks.catseg import on_canvas

        windows = torch.from_numpy(grids[:-1]).permute(0, 3, 1, 2)
        canvas = on_canvas(windows, side * 5 // 3, side * 2 // 3).permute(1, 2, 0).numpy()
        total: npt.NDArray[Any] = whole + segment_weights(label_map, n, *canvas.shape[:2]) @ canvas.reshape(-1, dims)
        return total / 2


def load_network(config: CatSegConfig, device: str) -> tuple[Network, Towers]:
    """Return the network in evaluation mode on its device, and its CLIP towers; raises ConfigError for bad weights."""
    from pipeline.teachers.loading.towers import Towers, pick_device
    from pipeline.teachers.networks.catseg import UNUSED, build_catseg, from_official

    target = pick_device(device)
    network, tokenizer = build_catseg(config.model, config.pinned.seed or 0)
    if config.pinned.seed is None:
        path = weights_file(config.pinned)
        what = f"teacher.weights: {path} is not a checkpoint of CAT-Seg on {config.model}"
        fill(network, from_official(read_tensors(path)), what, ignored=UNUSED)
    network.requires_grad_(False).eval().to(target)
    return network, Towers(network.clip, tokenizer, target)


def load_aggregator(config: CatSegConfig, device: str) -> tuple[Aggregator, torch.device]:
    """Return the half that knows prompts, in evaluation mode on its device; raises ConfigError for bad weights."""
    import torch

    from pipeline.teachers.loading.towers import pick_device
    from pipeline.teachers.networks.catseg import build_aggregator, from_official, of_aggregator

    target = pick_device(device)
    if target.type == "cuda":
        # float32 is to mean float32: by default, torch lets convolutions of a GPU round to ten bits (TF32). It is set
        # for good, as this half runs on several threads, and a setting that each of them puts back would not hold.
        torch.backends.cudnn.allow_tf32 = False
    aggregator = build_aggregator(config.model, config.pinned.seed or 0)
    if config.pinned.seed is None:
        path = weights_file(config.pinned)
        what = f"teacher.weights: {path} is not a checkpoint of CAT-Seg on {config.model}"
        fill(aggregator, of_aggregator(from_official(read_tensors(path))), what)
    return aggregator.requires_grad_(False).eval().to(target), target
