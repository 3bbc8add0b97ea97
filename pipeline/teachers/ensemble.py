"""Teacher `ensemble`: several teachers are asked of every image, and their probabilities averaged pixel by pixel.

Members are networks (teacher `onnx`) and at most one folder of finished maps (teacher `artifacts`). The encode half is
that of the networks, each with its parts under its name. In the segment half what every member says is brought to one
grid, that of the label map, and a pixel goes to the class that is likeliest in the mean; its name is the likeliest
prompt of that class. Where members disagree the mean is low: their agreement is in the score, and needs no number of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from manifests.sections.teachers.ensemble import EnsembleConfig, MemberConfig
from pipeline.frame import Camera, Frame, FrameError
from pipeline.teachers.artifacts import Artifacts, check_prompts
from pipeline.teachers.onnx import PARTS, Onnx, first_prompts, summed_by_class
from superpixels.pooling import mean_score, upsampled
from superpixels.segments import Segments, Split, compact

if TYPE_CHECKING:
    import torch

    from manifests.fingerprint import Settings
    from manifests.recipe import Recipe
    from manifests.sections.tables import SegmentConfig
    from pipeline.sources import FrameFiles
    from pipeline.teachers.base import ImageEncoder

Floats = npt.NDArray[np.float32]

LEAST = np.float32(0.5 / 255)
"""What a class that a member did not keep, or has no word for, counts in a geometric mean."""

_SPLITS: dict[str, Split] = {"class": "prompt", "components": "component"}


@dataclass(frozen=True, eq=False)
class Renamed:
    """A network whose parts bear its member's name."""

    name: str
    network: Onnx

    @property
    def device(self) -> torch.device:
        """Where images and classes lie."""
        return self.network.device

    @property
    def batch(self) -> int:
        """Images at once."""
        return self.network.batch

    @property
    def fixed_batch(self) -> bool:
        """Whether batches must be of one size."""
        return self.network.fixed_batch

    def prepare(self, frame: Frame, camera: Camera) -> npt.NDArray[Any]:
        """Return a camera's image at the network's size."""
        return self.network.prepare(frame, camera)

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return what the network makes of images."""
        return self.network.forward(batch)

    def pack(self, camera: Camera, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Return the parts of an image as they are cached, `<member>-<part>`; raises FrameError."""
        return {f"{self.name}-{part}": array for part, array in self.network.pack(camera, outputs).items()}


@dataclass(frozen=True, eq=False)
class Said:
    """What a member says of a view: prompts (m,), and how likely each is in the cells of a grid, (m, h, w)."""

    prompt: npt.NDArray[np.int64]
    probability: Floats


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The loaded teacher; `members` holds the loaded ones by name, in the order of the recipe."""

    config: EnsembleConfig
    segmentation: SegmentConfig
    class_of_prompt: npt.NDArray[Any]
    class_names: tuple[str, ...]
    members: Mapping[str, Onnx | Artifacts]

    @classmethod
    def load(cls, recipe: Recipe, stage: str) -> Ensemble:
        """Return the teacher with what stage "text", "encode" or "segment" needs; raises ConfigError."""
        config = recipe.teacher
        assert isinstance(config, EnsembleConfig)
        members: dict[str, Onnx | Artifacts] = {}
        for one in config.members:
            alone = replace(recipe, teacher=one.config)
            if one.artifacts is None:
                if stage != "text" or one.onnx is config.speaker:
                    members[one.name] = Onnx.load(alone, stage)
            elif stage == "segment":
                members[one.name] = Artifacts.load(alone, stage)
        ontology = recipe.ontology
        return cls(config, recipe.segment, ontology.class_of_prompt, ontology.class_names, members)

    @staticmethod
    def kilobytes_per_frame(recipe: Recipe) -> float:
        """Return about how large the likeliest classes of six 16:9 images are, of all networks."""
        assert isinstance(recipe.teacher, EnsembleConfig)
        networks = recipe.teacher.networks
        return sum(Onnx.kilobytes_per_frame(replace(recipe, teacher=one.config)) for one in networks)

    @staticmethod
    def files(recipe: Recipe) -> FrameFiles | None:
        """Return what is read of every frame beside its images: the finished maps of a member."""
        assert isinstance(recipe.teacher, EnsembleConfig)
        found = [one.artifacts for one in recipe.teacher.members if one.artifacts is not None]
        return Artifacts.files(replace(recipe, teacher=found[0])) if found else None

    @staticmethod
    def text_content(recipe: Recipe) -> Settings:
        """Return nothing: vectors are a network's. Raises ConfigError where finished maps are of other prompts."""
        assert isinstance(recipe.teacher, EnsembleConfig)
        for one in recipe.teacher.members:
            if one.artifacts is not None:
                check_prompts(one.artifacts, recipe.ontology.prompts)
        return {}

    def text(self, prompts: tuple[str, ...]) -> npt.NDArray[np.float32]:
        """Return one unit vector per prompt, float32 (p, d): those of the network that speaks for all."""
        [speaker] = self.members.values()
        return speaker.text(prompts)

    @property
    def encoders(self) -> tuple[ImageEncoder, ...]:
        """The networks of all members, by name: what is cached does not depend on their order in the recipe."""
        return tuple(Renamed(name, one) for name, one in sorted(self.members.items()) if isinstance(one, Onnx))

    def encode(self, frame: Frame) -> dict[str, npt.NDArray[Any]]:
        """Return `<camera>/<member>-class` and `<camera>/<member>-probability`; raises FrameError on bad images."""
        from pipeline.teachers.batches import encode_frame

        return {name: part for one in self.encoders for name, part in encode_frame(one, frame).items()}

    def segment(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any]) -> list[Segments]:
        """Return the segments of every view, in camera order, on label maps of `segment.scale` times the image size.

        A segment's score is the mean over its pixels of the probability of their class, in the mean of all members; its
        vector the sum over its pixels of those of all prompts, each by its probability. Class 0 has segments too.
        """
        views = []
        for camera, said in zip(frame.cameras, self.said(frame, encoding), strict=True):
            sides = (camera.height_px, camera.width_px)
            height, width = (max(1, round(side * self.segmentation.scale)) for side in sides)
            prompt, probability = self.averaged(said, height, width)
            best, score = self.named(prompt, probability)
            label_map, names = compact(
                prompt[best],
                keep=score > 0,
                split=_SPLITS[self.segmentation.split],
                min_area_px=max(1, self.segmentation.min_area_px),
            )
            flat, n = label_map.ravel(), len(names) + 1
            shares = np.stack([np.bincount(flat, weights=one.ravel(), minlength=n)[1:] for one in probability], axis=1)
            vector = (shares @ text[prompt].astype(np.float64)).astype(np.float32)
            views.append(Segments.from_label_map(label_map, names, mean_score(score, label_map, len(names)), vector))
        return views

    def pixel_scores(
        self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]], text: npt.NDArray[Any], views: Sequence[Segments]
    ) -> list[npt.NDArray[Any]]:
        """Return the probability of each pixel's class in the mean of all members, (H, W); see PixelTeacher."""
        found: list[npt.NDArray[Any]] = []
        for said, view in zip(self.said(frame, encoding), views, strict=True):
            found.append(self.named(*self.averaged(said, view.height_px, view.width_px))[1])
        return found

    def class_grids(
        self,
        frame: Frame,
        encoding: Mapping[str, npt.NDArray[Any]],
        text: npt.NDArray[Any],
        views: Sequence[Segments],
        class_of_prompt: npt.NDArray[Any],
    ) -> list[npt.NDArray[Any]]:
        """Return the mean probabilities of classes in each view, on the grid of its label map; see RankingTeacher."""
        found: list[npt.NDArray[Any]] = []
        for said, view in zip(self.said(frame, encoding), views, strict=True):
            prompt, probability = self.averaged(said, view.height_px, view.width_px)
            found.append(summed_by_class(probability, prompt.tolist(), class_of_prompt))
        return found

    def said(self, frame: Frame, encoding: Mapping[str, npt.NDArray[Any]]) -> list[list[Said]]:
        """Return what the members say of each view, in the order of the recipe; raises FrameError."""
        by_member = []
        for name, member in self.members.items():
            if isinstance(member, Onnx):
                by_member.append([self.of_network(name, member, camera, encoding) for camera in frame.cameras])
            else:
                by_member.append(self.of_files(member, frame))
        return [list(one) for one in zip(*by_member, strict=True)]

    def of_network(self, name: str, member: Onnx, camera: Camera, encoding: Mapping[str, npt.NDArray[Any]]) -> Said:
        """Return what a network says of a view; raises FrameError where the table lacks it."""
        places = {part: f"{camera.name}/{name}-{part}" for part in PARTS}
        if missing := [place for place in places.values() if place not in encoding]:
            raise FrameError(f"table encode has no {missing[0]}; it was made otherwise: run `encode` again")
        probability = member.probabilities(camera, {part: encoding[place] for part, place in places.items()})
        prompt = np.array(first_prompts(member.prompts), np.int64)
        return Said(prompt[prompt >= 0], probability[prompt >= 0])

    def of_files(self, member: Artifacts, frame: Frame) -> list[Said]:
        """Return what finished maps say of every view: of a pixel its name, by its score; raises FrameError."""
        nothing = np.zeros((len(self.class_of_prompt), 0), np.float32)  # vectors are of no use here
        views = member.segment(frame, {}, nothing)
        by_pixel = member.config.scores_pixels
        maps = member.pixel_scores(frame, {}, nothing, views) if by_pixel else [None] * len(views)
        found = []
        for view, scores in zip(views, maps, strict=True):
            label_map = view.label_map()
            score = np.append(0, view.score.astype(np.float32))[label_map] if scores is None else scores
            prompt = np.unique(view.prompt_id).astype(np.int64)
            named = np.append(-1, view.prompt_id)[label_map]
            found.append(Said(prompt, ((named == prompt[:, None, None]) * score).astype(np.float32)))
        return found

    def averaged(self, said: Sequence[Said], height: int, width: int) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return the prompts (m,) of all members and the mean of their probabilities, (m, H, W), each class's apart.

        A member weighs its weight, times that of the prompt's class. A prompt that it did not name counts nothing in
        the arithmetic mean, and `LEAST` in the geometric one, whose prompts are scaled to sum to 1.
        """
        prompts = np.unique(np.concatenate([one.prompt for one in said]))
        total = np.zeros((len(prompts), height, width), np.float32)
        weight = np.zeros(len(prompts), np.float32)
        for one, member in zip(said, self.config.members, strict=True):
            counts = self.weights(member)[self.class_of_prompt[prompts]]
            whole = np.zeros((len(prompts), *one.probability.shape[1:]), np.float32)
            np.add.at(whole, np.searchsorted(prompts, one.prompt), one.probability)
            dense = upsampled(whole, height, width)
            if self.config.mean == "geometric":
                dense = np.log(np.maximum(dense, LEAST))
            total += counts[:, None, None] * dense
            weight += counts
        mean = total / np.maximum(weight, np.float32(1e-9))[:, None, None]
        if self.config.mean == "geometric":
            mean = np.exp(mean)
            mean[weight == 0] = 0
            mean /= mean.sum(axis=0)
        return prompts, mean

    def weights(self, member: MemberConfig) -> Floats:
        """Return what a member weighs where it speaks of each class, (classes,)."""
        found = np.full(len(self.class_names), member.weight, np.float32)
        for name, factor in member.class_weights:
            found[self.class_names.index(name)] *= np.float32(factor)
        return found

    def named(self, prompt: npt.NDArray[np.int64], probability: Floats) -> tuple[npt.NDArray[np.int64], Floats]:
        """Return the place among prompts of each pixel's name, (H, W), and how likely its class is, (H, W)."""
        classes = summed_by_class(probability, prompt.tolist(), self.class_of_prompt)
        winner = classes.argmax(axis=0)
        of_winner = self.class_of_prompt[prompt][:, None, None] == winner
        best = np.where(of_winner, probability, -1).argmax(axis=0)
        return best, np.take_along_axis(classes, winner[None], axis=0)[0]
