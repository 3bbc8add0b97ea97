"""Teacher `san`: the Side Adapter Network, the best 2D teacher of the paper, from its official checkpoints.

Its encode half is the network: soft masks of 100 queries and a vector for each. Its segment half names every pixel by
the queries that cover it, R(p) = sum_q softmax(logits_q) sigmoid(m_q(p)), as the reference does; a segment's vector is
sum_p sum_q sigmoid(m_q(p)) e_q. The reference builds a map of 900 x 1600 x 768 numbers for that, 4.4 GB; here the
pixels of a segment are summed first (see superpixels.mask_queries).
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from manifests.config import changed_values
from pipeline.frame import Camera, Frame, FrameError, read_image
from pipeline.teachers.templates import templates_of
from pipeline.teachers.weights import Weights, fill, read_tensors
from superpixels.mask_queries import MaskQueries, prompt_argmax, query_shares, sampling
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    from pipeline.recipe import Recipe, SegmentConfig
    from pipeline.teachers.side_adapter import San as Network
    from pipeline.teachers.towers import Towers

MODELS = ("ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "tiny")
MASK_FORMATS = ("uint8", "float16")
MASK_STEP = 0.1
"""Mask logits kept as uint8 are whole multiples of this, from -12.8 to 12.7: the sigmoid is off by 0.0125 at most."""

_DIVISOR_PX = 32  # the reference pads its images to multiples of this
_WEIGHTS = ("model", "weights", "weights_sha256")
_FIELDS = {
    "text": _WEIGHTS,
    "encode": (*_WEIGHTS, "short_side_px", "precision", "masks", "parity"),
    "segment": ("short_side_px", "parity"),
}
_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}


@dataclass(frozen=True)
class SanConfig:
    """Section `[teacher]` with `name = "san"`.

    `model` is the CLIP that the side network stands beside: "ViT-L-14-336-quickgelu" for san_vit_large_14.pth,
    "ViT-B-16-quickgelu" for san_vit_b_16.pth, or "tiny". `weights` is the path of such a file, `hub:OWNER/NAME/FILE`
    or `random:SEED` (tests and dry runs: the masks mean nothing); `weights_sha256` and, for the hub,
    `weights_revision` pin it (see pipeline.teachers.weights). The file holds CLIP as well; nothing else is fetched.

    `short_side_px` is the image's shorter side as the side network sees it. `precision` "bf16" runs the network in
    bfloat16 where torch deems it safe. `masks` is how mask logits are kept: "uint8" in steps of 0.1, or "float16".

    `parity` prepares images as the reference does: the longer side is cut to a whole pixel and padded with black to a
    multiple of 32, and CLIP's image is 0.7 (B/16: 0.5) times that, of which its patches leave a rest. So CLIP's grid
    is taken for wider than it is, and what it says of an object sits up to 1 % of the width too far to the right. By
    default both images are resized so that their grids cover the whole view exactly, which changes the aspect ratio by
    less than 3 %.
    """

    name: str = "san"
    model: str = "ViT-L-14-336-quickgelu"
    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    short_side_px: int = 640
    precision: str = "fp32"
    masks: str = "uint8"
    parity: bool = False

    def __post_init__(self) -> None:
        if self.name != "san":
            raise ValueError(f'name is "{self.name}"; these are the settings of "san"')
        if self.model not in MODELS:
            raise ValueError(f'model is "{self.model}"; SAN was published beside {" and ".join(MODELS[:2])}')
        if self.pinned.is_tag:
            raise ValueError(
                f'weights are "{self.weights}"; give the path of an official checkpoint such as san_vit_large_14.pth, '
                "hub:OWNER/NAME/FILE, or random:SEED for a dry run"
            )
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision is "{self.precision}"; choose "fp32" or "bf16"')
        if self.masks not in MASK_FORMATS:
            raise ValueError(f'masks is "{self.masks}"; choose "uint8" or "float16"')
        if not _DIVISOR_PX <= self.short_side_px <= 4096:
            raise ValueError(f"short_side_px is {self.short_side_px}; expected {_DIVISOR_PX} to 4096")

    @property
    def pinned(self) -> Weights:
        """The weights and what pins them."""
        return Weights(self.weights, self.weights_sha256, self.weights_revision)

    def settings(self, stage: str) -> Mapping[str, Any]:
        """Return the values that can change the rows of "text", "encode" or "segment"; pinned weights by digest."""
        values = {key: value for key, value in changed_values(self).items() if key in _FIELDS[stage]}
        if values.pop("weights_sha256", None):
            values["weights"] = self.pinned.identity
        return {"name": self.name, **values}


@dataclass(frozen=True)
class ImageSize:
    """How large an image goes into the side network, and how much of that is image and not padding; height, width."""

    image_px: tuple[int, int]
    padded_px: tuple[int, int]

    @classmethod
    def of(cls, config: SanConfig, height_px: int, width_px: int) -> ImageSize:
        """Return the sizes for a camera's image."""
        short = min(height_px, width_px)
        if config.parity:
            height, width = (int(side * config.short_side_px / short) for side in (height_px, width_px))
            padded_height, padded_width = (-(-side // _DIVISOR_PX) * _DIVISOR_PX for side in (height, width))
            return cls((height, width), (padded_height, padded_width))
        scale = config.short_side_px / short / _DIVISOR_PX
        height, width = (_DIVISOR_PX * max(1, round(side * scale)) for side in (height_px, width_px))
        return cls((height, width), (height, width))


@dataclass(frozen=True, eq=False)
class San:
    """The loaded teacher. `network` and `towers` are None where only the segment half is run: it needs neither."""

    config: SanConfig
    root: Path
    templates: tuple[str, ...]
    segmentation: SegmentConfig
    network: Network | None
    towers: Towers | None

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> San:
        """Return the teacher, with the network that stage "text" and "encode" need; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, SanConfig)
        network, towers = load_network(config, recipe.run.device) if stage != "segment" else (None, None)
        return cls(config, Path(recipe.data.root), templates_of(recipe.text.templates), recipe.segment, network, towers)

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large masks and vectors of six 16:9 images are."""
        config = recipe.teacher
        assert isinstance(config, SanConfig)
        queries, dims = {"tiny": (8, 32), "ViT-B-16-quickgelu": (100, 512)}.get(config.model, (100, 768))
        height, width = ImageSize.of(config, 900, 1600).padded_px
        cells = height * width // 16**2
        return 6 * queries * (cells * (1 if config.masks == "uint8" else 2) + 2 * dims + 4) / 1000

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d)."""
        assert self.towers is not None, "the teacher was loaded for another stage"
        return self.towers.text_vectors(prompts, self.templates)

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Return the queries of every camera; raises FrameError on bad images or masks.

        Named `<camera>/...`: `masks` (q, h, w), their logits as float16, or as uint8 with code c for (c - 128) times
        MASK_STEP; `embedding` float16 (q, d), unit vectors; `none` float32 (q,), the logit of "none of the prompts";
        `logit_scale` float32 (1,), what cosines with prompts are multiplied by.

        Images are decoded side by side, and those of equal size go through the network together.
        """
        assert self.network is not None, "the teacher was loaded for another stage"
        with ThreadPoolExecutor(max_workers=max(len(frame.cameras), 1)) as threads:
            images = list(threads.map(self.read, frame.cameras))
        views: dict[tuple[int, ...], list[int]] = {}
        for view, image in enumerate(images):
            views.setdefault(image.shape, []).append(view)
        encoding: dict[str, npt.NDArray[Any]] = {}
        parts: dict[int, dict[str, npt.NDArray[Any]]] = {}
        for alike in views.values():
            masks, embedding, none, logit_scale = run_network(
                self.network, self.towers, np.stack([images[view] for view in alike]), self.config
            )
            for i, view in enumerate(alike):
                if not (np.isfinite(masks[i]).all() and np.isfinite(embedding[i]).all()):
                    raise FrameError(
                        f"{frame.cameras[view].image_path}: masks or vectors of {self.config.model} hold values that "
                        'are not finite; check the weights, and set teacher.precision = "fp32"'
                    )
                parts[view] = {
                    "masks": keep_logits(masks[i], self.config.masks),
                    "embedding": embedding[i].astype(np.float16),
                    "none": none[i],
                    "logit_scale": logit_scale,
                }
        for view, camera in enumerate(frame.cameras):
            encoding |= {f"{camera.name}/{part}": value for part, value in parts[view].items()}
        return encoding

    def read(self, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image at the side network's size without padding, RGB uint8 (H, W, 3), bicubic."""
        from PIL import Image

        image = read_image(self.root, camera)
        height, width = ImageSize.of(self.config, *image.shape[:2]).image_px
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size."""
        return [self.segment_view(camera, encoding, text) for camera in frame.cameras]

    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view: each pixel goes to the prompt of largest R(p).

        Of prompts with one vector the first takes all: it alone is compared, as rounding could tell the others apart.
        A segment's score is the probability of its prompt, averaged over the queries by their share of its pixels.
        """
        masks = self.masks_of(camera, encoding)
        embedding = encoding[f"{camera.name}/embedding"].astype(np.float32)
        if embedding.shape != (masks.n_queries, text.shape[1]):
            raise FrameError(
                f"{camera.name}/embedding has shape {embedding.shape}; expected ({masks.n_queries}, {text.shape[1]}), "
                "as the prompt vectors have"
            )
        logits = encoding[f"{camera.name}/logit_scale"] * (embedding @ text.T)
        probability = softmax(np.concatenate([logits, encoding[f"{camera.name}/none"][:, None]], axis=1), axis=1)[
            :, :-1
        ]
        _, first = np.unique(text, axis=0, return_index=True)
        distinct = np.sort(first)
        label_map, row = compact(
            prompt_argmax(masks, probability[:, distinct]),
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        prompt = distinct[row]
        shares = query_shares(masks, label_map, len(row))
        score = (shares * probability.T[prompt]).sum(axis=1) / shares.sum(axis=1)
        return Segments.from_label_map(label_map, prompt, score=score, vector=shares @ embedding)

    def masks_of(self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]]) -> MaskQueries:
        """Return the masks of a view as they lie on its label map; raises FrameError if the table lacks them."""
        for part in ("masks", "embedding", "none", "logit_scale"):
            if f"{camera.name}/{part}" not in encoding:
                raise FrameError(
                    f"table encode has no {camera.name}/{part}; it was made for other cameras: run `encode` again"
                )
        logit = logits_kept(encoding[f"{camera.name}/masks"])
        size = ImageSize.of(self.config, camera.height_px, camera.width_px)
        rows, columns = (
            sampling(max(1, round(side * self.segmentation.scale)), cells, *((pad, kept) if self.config.parity else ()))
            for side, cells, pad, kept in zip(
                (camera.height_px, camera.width_px), logit.shape[1:], size.padded_px, size.image_px, strict=True
            )
        )
        return MaskQueries(logit, None, len(logit), rows, columns)


def load_network(config: SanConfig, device: str) -> tuple[Network, Towers]:
    """Return the network in evaluation mode on its device, and its CLIP towers; raises ConfigError for bad weights."""
    from pipeline.teachers.side_adapter import UNUSED, build_san, from_official
    from pipeline.teachers.towers import Towers, pick_device

    target = pick_device(device)
    network, tokenizer = build_san(config.model, config.pinned.seed or 0)
    if config.pinned.seed is None:
        path = config.pinned.file()
        fill(
            network,
            from_official(read_tensors(path), network.shape),
            f"teacher.weights: {path} is not a checkpoint of SAN beside {config.model}",
            ignored=UNUSED,
        )
    network.requires_grad_(False).eval().to(target)
    return network, Towers(network.clip, tokenizer, target)


def run_network(
    network: Network, towers: Towers | None, images: npt.NDArray[np.uint8], config: SanConfig
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mask logits (b, q, h, w), unit vectors (b, q, d), logits of "none" (b, q) and the logit scale (1,).

    `images` are RGB (b, H, W, 3), alike in size and not padded.
    """
    import torch
    from torch.nn.functional import interpolate, normalize, pad

    from pipeline.teachers.towers import pixel_statistics

    assert towers is not None
    device = towers.device
    mean, std = (torch.tensor(value, device=device).view(3, 1, 1) * 255 for value in pixel_statistics())
    pixels = (torch.from_numpy(images).to(device).permute(0, 3, 1, 2) - mean) / std
    ratio, patch = network.shape.clip_scale, network.clip.visual.patch_size[0]
    if config.parity:
        down, right = (-side % _DIVISOR_PX for side in pixels.shape[2:])
        pixels = pad(pixels, (0, right, 0, down))
        clip_pixels = interpolate(pixels, scale_factor=ratio, mode="bilinear", align_corners=False)
    else:
        size = [patch * max(1, round(side * ratio / patch)) for side in pixels.shape[2:]]
        clip_pixels = interpolate(pixels, size=size, mode="bilinear", align_corners=False)
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        masks, embedding = network(pixels, clip_pixels)
    with torch.inference_mode():
        unit = normalize(embedding.float(), dim=-1)
        none = network.logit_scale * (unit @ normalize(network.bg_embed, dim=-1).T)[..., 0]
        scale = network.logit_scale.reshape(1)
    return masks.float().cpu().numpy(), unit.cpu().numpy(), none.cpu().numpy(), scale.cpu().numpy()


def keep_logits(masks: npt.NDArray[np.float32], kind: str) -> npt.NDArray[Any]:
    """Return mask logits as they are cached; what is beyond the range becomes its end, where the sigmoid is 0 or 1."""
    if kind == "float16":
        limit = float(np.finfo(np.float16).max)
        halves: npt.NDArray[np.float16] = np.clip(masks, -limit, limit).astype(np.float16)
        return halves
    codes: npt.NDArray[np.uint8] = np.clip(np.rint(masks / MASK_STEP) + 128, 0, 255).astype(np.uint8)
    return codes


def logits_kept(masks: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return mask logits from how they are cached."""
    logits = masks.astype(np.float32)
    return (logits - 128) * np.float32(MASK_STEP) if masks.dtype == np.uint8 else logits
