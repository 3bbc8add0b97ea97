"""What the teachers of mask queries share: their network's images, how mask logits are kept, and views one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.masks import DIVISOR_PX
from manifests.storage.places import Root
from pipeline.frame import Camera, Frame, FrameError, read_image
from superpixels.mask_cache import coded, decoded
from superpixels.mask_queries import MaskQueries, sampling
from superpixels.segments import Segments

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
    from manifests.sections.tables import SegmentConfig
    from pipeline.teachers.loading.towers import Towers
HALF_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ImageSize:
    """How large an image goes into a network, and how much of that is image and not padding; height, width.

    `two_steps` upsamples masks as the references do: to the padded image, and what is left without padding to the final
    size. Otherwise the grid is sampled at the final pixels at once.
    """

    image_px: tuple[int, int]
    padded_px: tuple[int, int]
    two_steps: bool

    @classmethod
    def whole(cls, short_side_px: int, height_px: int, width_px: int) -> ImageSize:
        """Return sizes that need no padding, the shorter side about as asked for; the aspect ratio changes a little."""
        scale = short_side_px / min(height_px, width_px) / DIVISOR_PX
        height, width = (DIVISOR_PX * max(1, round(side * scale)) for side in (height_px, width_px))
        return cls((height, width), (height, width), two_steps=False)

    @classmethod
    def padded(cls, height_px: int, width_px: int) -> ImageSize:
        """Return the sizes of an image that is padded at its right and bottom, as the references do."""
        height, width = (-(-side // DIVISOR_PX) * DIVISOR_PX for side in (height_px, width_px))
        return cls((height_px, width_px), (height, width), two_steps=True)

    def queries(
        self, camera: Camera, scale: float, logit: npt.NDArray[np.float32], device: torch.device | None = None
    ) -> MaskQueries:
        """Return masks on a grid as they lie on a label map of `scale` times the camera's image.

        Who computes with them is NumPy, or a device.
        """
        rows, columns = (
            sampling(max(1, round(side * scale)), cells, *((padded, kept) if self.two_steps else ()))
            for side, cells, padded, kept in zip(
                (camera.height_px, camera.width_px), logit.shape[1:], self.padded_px, self.image_px, strict=True
            )
        )
        if device is None:
            return MaskQueries(logit, rows, columns)
        from pipeline.teachers.device_masks import DeviceQueries

        return DeviceQueries(logit, rows, columns, device)


def named_on(recipe: Recipe, stage: str) -> torch.device | None:
    """Return the device that names pixels, where the recipe gives stage `segment` a share of one; None for NumPy."""
    if stage != "segment" or not recipe.run.segment_gpus:
        return None
    from pipeline.teachers.loading.towers import pick_device

    return pick_device(recipe.run.device)


def resized(image: npt.NDArray[np.uint8], size_px: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return an RGB image (H, W, 3) at another size (height, width): bicubic, antialiased, on 8-bit pixels."""
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize(size_px[::-1], Image.Resampling.BICUBIC))


def normalised(images: torch.Tensor) -> torch.Tensor:
    """Return RGB images in 0..255, (b, H, W, 3), as CLIP takes them, (b, 3, H, W)."""
    import torch

    from pipeline.teachers.loading.towers import pixel_statistics

    mean, std = (torch.tensor(value, device=images.device).view(3, 1, 1) * 255 for value in pixel_statistics())
    return (images.permute(0, 3, 1, 2) - mean) / std


def network_pixels(images: torch.Tensor) -> torch.Tensor:
    """Return RGB images, uint8 (b, H, W, 3), as CLIP takes them, (b, 3, H, W), padded with zeros where they must be."""
    from torch.nn.functional import pad

    pixels = normalised(images)
    down, right = (-side % DIVISOR_PX for side in pixels.shape[2:])
    return pad(pixels, (0, right, 0, down))


def keep_logits(
    masks: npt.NDArray[np.floating[Any]], peak: npt.NDArray[np.floating[Any]], kind: str
) -> npt.NDArray[Any]:
    """Return mask logits as they are cached, as float16 or in a byte (see superpixels.mask_cache).

    `peak` float16, broadcast against them, is the largest logit of each cell.
    """
    if kind == "uint8":
        return coded(masks, peak)
    halves: npt.NDArray[np.float16] = np.clip(masks, -HALF_MAX, HALF_MAX).astype(np.float16)
    return halves


def logits_kept(masks: npt.NDArray[Any], peak: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
    """Return mask logits from how they are cached; `peak` is broadcast against them."""
    return decoded(masks, peak) if masks.dtype == np.uint8 else masks.astype(np.float32)


@dataclass(frozen=True, eq=False)
class MaskTeacher(ABC):
    """A loaded teacher of mask queries. `network` and `towers` are None where only the segment half is run."""

    config: Any
    root: Root
    templates: tuple[str, ...]
    segmentation: SegmentConfig
    network: Any
    towers: Towers | None

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d)."""
        assert self.towers is not None, "the teacher was loaded for another stage"
        return self.towers.text_vectors(prompts, self.templates)

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        assert self.towers is not None, "the teacher was loaded for another stage"
        return self.towers.device

    @property
    @abstractmethod
    def batch(self) -> int:
        """Images at once."""

    @property
    def fixed_batch(self) -> bool:
        """Whether batches must be of one size."""
        return False

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Return the queries of every camera, `<camera>/` and what `pack` names; raises FrameError."""
        from pipeline.teachers.batches import encode_frame

        return encode_frame(self, frame)

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image at the network's size without padding, RGB uint8 (H, W, 3)."""
        image = read_image(self.root, camera)
        size: tuple[int, int] = self.image_size(*image.shape[:2]).image_px
        return image if size == image.shape[:2] else resized(image, size)

    @abstractmethod
    def image_size(self, height_px: int, width_px: int) -> ImageSize:
        """Return how large a camera's image of this size goes into the network."""

    @abstractmethod
    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return what `pack` takes, for a batch of images."""

    @abstractmethod
    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the queries of an image as they are cached; raises FrameError where they hold values not finite."""

    def check_finite(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> None:
        """Raise FrameError if the network gave anything that is no number."""
        if not all(np.isfinite(part).all() for part in outputs.values()):
            raise FrameError(
                f"{camera.image_path}: masks or vectors of {self.config.model} hold values that are not finite; check "
                'the weights, and set teacher.precision = "fp32"'
            )

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size."""
        return [self.segment_view(camera, encoding, text) for camera in frame.cameras]

    @abstractmethod
    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view."""


def parts_of(
    camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], names: Sequence[str]
) -> dict[str, npt.NDArray[Any]]:
    """Return what is cached of a view, by name; raises FrameError if the table lacks any of it."""
    for name in names:
        if f"{camera.name}/{name}" not in encoding:
            raise FrameError(
                f"table encode has no {camera.name}/{name}; it was made for other cameras: run `encode` again"
            )
    return {name: encoding[f"{camera.name}/{name}"] for name in names}
