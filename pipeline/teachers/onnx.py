"""Teacher `onnx`: a 2D segmentation network of your own, with a card that says what it takes and what it tells apart.

Its classes are closed, and each stands for prompts of the class dictionary. The encode half is the network: the
likeliest classes of every cell of its grid. The segment half gives every pixel to a class and its name to the class's
first prompt; a segment's vector is that of the prompts of all classes, each as likely as its pixels say.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.onnx import OnnxConfig
from manifests.sections.teachers.views import View
from manifests.storage.places import Root, root_of
from manifests.templates import templates_of
from pipeline.frame import Camera, Frame, FrameError, read_image
from pipeline.teachers.loading.sentences import Sentences, load_sentences
from pipeline.teachers.loading.sessions import Session, open_session
from pipeline.teachers.loading.towers import Towers, load_towers
from pipeline.teachers.masks import parts_of, resized
from pipeline.teachers.oracle import direction
from pipeline.teachers.views import over_views
from superpixels.class_maps import likeliest, restored
from superpixels.pooling import mean_score, segment_weights, strip_argmax
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    import torch

    from manifests.recipe import Recipe
    from manifests.sections.tables import SegmentConfig

PARTS = ("class", "probability")

_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}
_FOCAL_TOLERANCE = 1.25  # objects that much larger or smaller than in training are within what augmentation covers

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Onnx:
    """The loaded teacher. `session` is there for stage "encode", `encoder` for stage "text" where there is one.

    `prompts` are those that each class of the network stands for; none for a class that is ignored.
    """

    config: OnnxConfig
    root: Root
    templates: tuple[str, ...]
    segmentation: SegmentConfig
    prompts: tuple[tuple[int, ...], ...]
    session: Session | None = None
    encoder: Towers | Sentences | None = None
    told: set[str] = field(default_factory=set)  # cameras whose focal length was told of

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> Onnx:
        """Return the teacher with what a stage needs; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, OnnxConfig)
        device = recipe.run.device
        return cls(
            config=config,
            root=root_of(recipe.data),
            templates=templates_of(recipe.template_list),
            segmentation=recipe.segment,
            prompts=config.the_card.prompts_of(recipe.ontology),
            session=open_session(config.pinned, config.the_card, device) if stage == "encode" else None,
            encoder=load_encoder(config, device) if stage == "text" else None,
        )

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large the likeliest classes of six 16:9 images are, before compression."""
        assert isinstance(recipe.teacher, OnnxConfig)
        card = recipe.teacher.the_card
        height, width = card.input.height_px or 900, card.input.width_px or 1600
        cells = -(-height // card.output.stride) * -(-width // card.output.stride)
        top = min(recipe.teacher.top, len(card.classes.names))
        width_bytes = (1 if len(card.classes.names) <= 256 else 2) + (1 if recipe.teacher.kept == "uint8" else 4)
        return 6 * cells * top * width_bytes / 1000

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d)."""
        if self.config.text == "none":
            return np.stack([direction(prompt, self.config.dims) for prompt in prompts]).astype(np.float32)
        assert self.encoder is not None, "the teacher was loaded for another stage"
        return self.encoder.text_vectors(prompts, self.templates)

    @property
    def network(self) -> Session:
        """The network, where the teacher was loaded with it."""
        assert self.session is not None, "the teacher was loaded for another stage"
        return self.session

    @property
    def device(self) -> torch.device:
        """Where images and classes lie: what runs on a GPU copies them itself."""
        import torch

        return torch.device("cpu")

    @property
    def batch(self) -> int:
        """Images at once; the network gets one by one, as most files are made for one."""
        return 2

    @property
    def fixed_batch(self) -> bool:
        """Whether batches must be of one size."""
        return False

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Return `<camera>/class` and `<camera>/probability`, (top, h, w), for every camera; raises FrameError."""
        from pipeline.teachers.batches import encode_frame

        return encode_frame(self, frame)

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[np.uint8]:
        """Return a camera's image at the network's size, RGB uint8 (H, W, 3)."""
        image = read_image(self.root, camera)
        focal_px = float(camera.intrinsics[0, 0])
        size = self.network.size_px(image.shape[0], image.shape[1], focal_px)
        self.tell_focal(camera, focal_px * size[1] / image.shape[1])
        return resampled(image, size, self.config.the_card.input.resample)

    def scaled(self, image: npt.NDArray[np.uint8], scale: float) -> npt.NDArray[np.uint8]:
        """Return an RGB image (H, W, 3) about so many times as large, of a size that the network takes."""
        said = self.config.the_card.input
        size = View(scale=scale).size_px(image.shape[0], image.shape[1], (said.divisor_px, said.divisor_px))
        return resampled(image, size, said.resample)

    def tell_focal(self, camera: Camera, seen_px: float) -> None:
        """Log, once a camera, that the network sees things much larger or smaller than those it was taught with."""
        made_for = self.config.the_card.input.focal_px
        if not made_for or camera.name in self.told:
            return
        if max(seen_px / made_for, made_for / max(seen_px, 1e-9)) > _FOCAL_TOLERANCE:
            self.told.add(camera.name)
            _log.warning(
                "%s: at the network's size its focal length is %.0f px, and the network was made for %.0f: things look "
                "%.1f times as large as it knows them",
                *(camera.name, seen_px, made_for, seen_px / made_for),
            )

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the likeliest classes of RGB images, uint8 (b, H, W, 3), and their probabilities, (b, top, h, w).

        `finite` (b,) tells whether all that came out were numbers.
        """
        import torch

        rows: list[tuple[npt.NDArray[Any], ...]] = []
        images = batch.numpy()
        for number, image in enumerate(images):
            if number and np.array_equal(image, images[number - 1]):  # that a batch was filled up with
                rows.append(rows[-1])
                continue
            probability = over_views(self.network, image, self.config.views, self.scaled)
            finite = bool(np.isfinite(probability).all())
            numbers = probability if finite else np.zeros_like(probability)
            rows.append((*likeliest(numbers, self.config.top, self.config.kept == "float32"), np.asarray(finite)))
        stacked = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return dict(zip((*PARTS, "finite"), stacked, strict=True))

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the classes of an image as they are cached; raises FrameError where the network gave no numbers."""
        if not outputs["finite"]:
            raise FrameError(
                f"{camera.image_path}: what {self.config.the_card.network.name} gives holds values that are not "
                "finite; check white, mean and std of its card"
            )
        return {name: np.ascontiguousarray(outputs[name]) for name in PARTS}

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size."""
        return [self.segment_view(camera, encoding, text) for camera in frame.cameras]

    def segment_view(
        self, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]
    ) -> Segments:
        """Return the segments of one view: each pixel goes to the likeliest class, mixed bilinearly from cells.

        Pixels of an ignored class are in no segment, and unused ones win none. A segment's score is the mean over its
        pixels of the probability of their class; its vector the sum over its pixels of those of all classes' prompts,
        each by the probability of its class.
        """
        parts = parts_of(camera, encoding, PARTS)
        probability = self.probabilities(camera, parts)
        size = (max(1, round(side * self.segmentation.scale)) for side in (camera.height_px, camera.width_px))
        best, score = strip_argmax(probability, *size)
        first = np.array(first_prompts(self.prompts))
        prompt_map = first[best]
        named = prompt_map >= 0
        label_map, prompt = compact(
            np.maximum(prompt_map, 0),
            keep=named & (score > 0),
            split=_SPLITS[self.segmentation.split],
            min_area_px=max(1, self.segmentation.min_area_px),
        )
        _, height, width = probability.shape
        shares = segment_weights(label_map, len(prompt), height, width) @ probability.reshape(len(probability), -1).T
        return Segments.from_label_map(
            label_map,
            prompt,
            score=mean_score(score, label_map, len(prompt)),
            vector=(shares @ self.class_vectors(text)).astype(np.float32),
        )

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return the probability of each pixel's class, (H, W) for every view; see PixelTeacher."""
        grids = (self.probabilities(one, parts_of(one, encoding, PARTS)) for one in frame.cameras)
        return [strip_argmax(grid, view.height_px, view.width_px)[1] for grid, view in zip(grids, views, strict=True)]

    def class_grids(
        self,
        frame: Frame,
        encoding: Mapping[str, npt.NDArray[Any]],
        text: npt.NDArray[Any],
        views: Sequence[Segments],
        class_of_prompt: npt.NDArray[Any],
    ) -> list[npt.NDArray[Any]]:
        """Return the probabilities of the dictionary's classes in each view, (classes, h, w); see RankingTeacher."""
        grids = (self.probabilities(one, parts_of(one, encoding, PARTS)) for one in frame.cameras)
        first = first_prompts(self.prompts)
        return [summed_by_class(grid, first, class_of_prompt) for grid in grids]

    def probabilities(self, camera: Camera, parts: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.float32]:
        """Return the probabilities of a view's cells, (c, h, w), 0 for unused classes; raises FrameError."""
        try:
            whole = restored(parts["class"], parts["probability"], len(self.prompts))
        except ValueError as error:
            raise FrameError(
                f"table encode has {camera.name} of another network ({error}); run `encode` again"
            ) from None
        classes = self.config.the_card.classes
        whole[[classes.names.index(name) for name in classes.unused]] = 0
        return whole

    def class_vectors(self, text: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return a vector for each class, (c, d): the mean of its prompts', of length 1; zeros for an ignored one."""
        found = np.zeros((len(self.prompts), text.shape[1]), np.float32)
        for row, prompts in enumerate(self.prompts):
            if prompts:
                mean = text[list(prompts)].astype(np.float32).mean(axis=0)
                found[row] = mean / max(float(np.linalg.norm(mean)), 1e-9)
        return found


def first_prompts(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Return the prompt that names each class of a network, -1 for one that is ignored."""
    return [rows[0] if rows else -1 for rows in prompts]


def summed_by_class(
    probability: npt.NDArray[np.floating[Any]], prompt: Sequence[int], class_of_prompt: npt.NDArray[Any]
) -> npt.NDArray[np.float32]:
    """Return the probabilities of classes (classes, h, w) from those of what prompts stand for, (m, h, w).

    `prompt` names each of them, -1 for one that has no name.
    """
    found = np.zeros((int(class_of_prompt.max()) + 1, *probability.shape[1:]), np.float32)
    for one, grid in zip(prompt, probability, strict=True):
        if one >= 0:
            found[class_of_prompt[one]] += grid
    return found


def resampled(image: npt.NDArray[np.uint8], size_px: tuple[int, int], how: str) -> npt.NDArray[np.uint8]:
    """Return an RGB image (H, W, 3) at another size (height, width); see CardInput."""
    if image.shape[:2] == size_px:
        return image
    if how == "bicubic":
        return resized(image, size_px)
    if how == "bilinear":
        from PIL import Image

        return np.asarray(Image.fromarray(image).resize(size_px[::-1], Image.Resampling.BILINEAR))
    import cv2

    larger = size_px[1] >= image.shape[1]
    return np.asarray(cv2.resize(image, size_px[::-1], interpolation=cv2.INTER_LINEAR if larger else cv2.INTER_AREA))


def load_encoder(config: OnnxConfig, device: str) -> Towers | Sentences | None:
    """Return what makes vectors of prompts, None where nothing does; raises ConfigError."""
    weights = config.pinned_text
    if weights is None:
        return None
    if config.text == "sentence":
        return load_sentences(weights, device)
    return load_towers(config.text_model, weights, config.quick_gelu, device)
