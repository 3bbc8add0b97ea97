"""Section `[teacher]` of composite teachers: where masks come from, and what names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from manifests.config import ConfigError, changed_values
from manifests.fingerprint import Json, Settings
from manifests.ontology import Ontology
from manifests.sections.data import DataConfig
from manifests.sections.teachers.base import TeacherSection
from manifests.sections.teachers.clip_dense import ClipDenseConfig
from manifests.sections.teachers.weights import Weights, check_precision, check_weights, weights_identity


@dataclass(frozen=True)
class TipsConfig:
    """Section `[teacher.tipsv2]`.

    `weights`, `weights_sha256` and `weights_revision` name and pin `model.safetensors` of a folder of transformers,
    such as hub:google/tipsv2-b14/model.safetensors. `precision` "bf16" computes images in bfloat16 where torch deems it
    safe. `short_side_px` is the image's shorter side as the network sees it; a side without windows is rounded to a
    multiple of the patch. It is seen in square windows of `window_px` every `stride_px`; pixels that several see
    average what these say; 0 shows the image whole.
    """

    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    precision: str = "fp32"
    short_side_px: int = 448
    window_px: int = 448
    stride_px: int = 336

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.window_px < 0 or (self.window_px and not 0 < self.stride_px <= self.window_px):
            raise ValueError(
                "window_px is 0 or more, and stride_px lies between 1 and window_px, so that no gap is left"
            )
        if not 8 <= self.short_side_px <= 4096:
            raise ValueError(f"short_side_px is {self.short_side_px}; expected 8 to 4096")

    @property
    def templates(self) -> str:
        """The sentences that its authors put prompts into."""
        return "tcl9"

    @property
    def pinned(self) -> Weights:
        """The weights and what pins them."""
        return Weights(self.weights, self.weights_sha256, self.weights_revision, key="tipsv2.weights")

    def check(self) -> None:
        """Raise ValueError unless the weights are named and pinned."""
        check_weights(self.pinned)

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text" or "encode"."""
        changed = changed_values(self)
        seen = ("precision", "short_side_px", "window_px", "stride_px") if stage == "encode" else ()
        if not self.window_px:
            changed.pop("stride_px", None)
        return {key: changed[key] for key in seen if key in changed} | weights_identity(self.pinned)


TRAINED_ON = {"coco": False, "ade20k": False, "cityscapes": True, "mapillary": True, "bdd100k": True}
"""Label sets that proposers learnt their masks from, and whether those are labels of driving scenes."""


@dataclass(frozen=True)
class Sam3Config:
    """Section `[teacher.sam3]`: SAM 3 asked for the concepts of the class dictionary.

    `weights`, `weights_sha256` and `weights_revision` name and pin `model.safetensors` of a folder of transformers,
    such as hub:facebook/sam3/model.safetensors. `precision` "bf16" computes in bfloat16 where torch deems it safe.
    `min_score` is what an object must reach to count, `min_probability` what a pixel's best concept must reach to be a
    segment at all. `concepts_at_once` go through the network together; it changes no result but in the last bits, and
    is no part of an identity.
    """

    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    precision: str = "fp32"
    min_score: float = 0.3
    min_probability: float = 0.25
    concepts_at_once: int = 8

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not (0 <= self.min_score <= 1 and 0 < self.min_probability <= 1 and self.concepts_at_once >= 1):
            raise ValueError("min_score in 0..1, min_probability above 0 and up to 1, concepts_at_once >= 1 are needed")

    @property
    def pinned(self) -> Weights:
        """The weights and what pins them."""
        return Weights(self.weights, self.weights_sha256, self.weights_revision, key="sam3.weights")

    def check(self) -> None:
        """Raise ValueError unless the weights are named and pinned."""
        check_weights(self.pinned)

    def settings(self) -> dict[str, Json]:
        """Return what can change the regions."""
        changed = changed_values(self)
        return {key: changed[key] for key in ("precision", "min_score") if key in changed} | weights_identity(
            self.pinned
        )


@dataclass(frozen=True)
class ProposerConfig:
    """Section `[teacher.proposer]`: Mask2Former or EoMT, whose masks count and whose own classes do not.

    `weights`, `weights_sha256`, `weights_revision` and `precision` as for SAM 3. `trained_on` names the labels that the
    masks were learnt from, which the file does not tell: "coco", "ade20k", or those of driving scenes, "cityscapes",
    "mapillary" and "bdd100k", with which the teacher counts as supervised. A query counts if it shows some object with
    at least `min_objectness`; `min_probability` is what a pixel's best mask must reach, objectness times mask.
    """

    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    precision: str = "fp32"
    trained_on: str = ""
    min_objectness: float = 0.5
    min_probability: float = 0.25

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if not (0 <= self.min_objectness <= 1 and 0 < self.min_probability <= 1):
            raise ValueError("min_objectness in 0..1 and min_probability above 0 and up to 1 are needed")

    @property
    def pinned(self) -> Weights:
        """The weights and what pins them."""
        return Weights(self.weights, self.weights_sha256, self.weights_revision, key="proposer.weights")

    @property
    def supervised(self) -> bool:
        """Whether labels of driving scenes taught the masks."""
        return TRAINED_ON.get(self.trained_on, False)

    def check(self) -> None:
        """Raise ValueError unless the weights are named and pinned, and it is said what they learnt from."""
        check_weights(self.pinned)
        if self.trained_on not in TRAINED_ON:
            raise ValueError(
                f'proposer.trained_on is "{self.trained_on}"; say which labels taught the masks, one of '
                f"{', '.join(TRAINED_ON)}: those of driving scenes make the teacher a supervised one"
            )
        told = [name for name in TRAINED_ON if name in self.weights.lower() and name != self.trained_on]
        if self.pinned.is_hub and told:
            raise ValueError(f'proposer.trained_on is "{self.trained_on}", but {self.weights} speaks of {told[0]}')

    def settings(self) -> dict[str, Json]:
        """Return what can change the regions, and what they were learnt from."""
        changed = changed_values(self)
        return (
            {key: changed[key] for key in ("precision", "min_objectness") if key in changed}
            | {"trained_on": self.trained_on}
            | weights_identity(self.pinned)
        )


@dataclass(frozen=True)
class SlicConfig:
    """Section `[teacher.slic]`: superpixels from colour alone, the baseline of masks that nothing was learnt for.

    `side_px` is the size of a superpixel in an image whose shorter side is 450 px; a larger `compactness` follows
    colour less and the grid more (see superpixels.slic).
    """

    side_px: float = 24.0
    compactness: float = 10.0

    def __post_init__(self) -> None:
        if not (self.side_px >= 4 and self.compactness > 0):
            raise ValueError("side_px of at least 4 and compactness above 0 are needed")

    def check(self) -> None:
        """Nothing can be missing."""

    def settings(self) -> dict[str, Json]:
        """Return what can change the regions."""
        return changed_values(self)


MASKS = ("sam3", "proposer", "slic")

FEATURES = ("clip_dense", "tipsv2")


@dataclass(frozen=True)
class CompositeConfig(TeacherSection):
    """Section `[teacher]` with `name = "composite"`.

    `masks` picks "sam3", "proposer" (Mask2Former, EoMT) or "slic", and `features` "clip_dense" or "tipsv2"; the
    settings of each are in a table of its name, `[teacher.sam3]` and so on, and only of what is picked. `logit_scale`
    times the cosine is what the softmax behind `score` sees where features name the masks.
    """

    scores_pixels = True

    name: str = "composite"
    masks: str = "sam3"
    features: str = "clip_dense"
    logit_scale: float = 40.0
    sam3: Sam3Config = Sam3Config()
    proposer: ProposerConfig = ProposerConfig()
    slic: SlicConfig = SlicConfig()
    clip_dense: ClipDenseConfig = ClipDenseConfig()
    tipsv2: TipsConfig = TipsConfig()

    def __post_init__(self) -> None:
        if self.name != "composite":
            raise ValueError(f'name is "{self.name}"; these are the settings of "composite"')
        if self.masks not in MASKS or self.features not in FEATURES:
            raise ValueError(
                f'masks is "{self.masks}" and features "{self.features}"; choose of {", ".join(MASKS)} and of '
                f"{', '.join(FEATURES)}"
            )
        if not 0 < self.logit_scale < float("inf"):
            raise ValueError("logit_scale must be positive and finite")
        for key in changed_values(self):
            if key in MASKS + FEATURES and key not in (self.masks, self.features):
                raise ValueError(
                    f'[teacher.{key}] is given, but masks are "{self.masks}" and features "{self.features}"; remove it'
                )
        if "logit_scale" in changed_values(self.clip_dense):
            raise ValueError("clip_dense.logit_scale does nothing here; set teacher.logit_scale")
        self.mask_config.check()
        if self.features == "tipsv2":
            self.tipsv2.check()

    @property
    def mask_config(self) -> Sam3Config | ProposerConfig | SlicConfig:
        """The settings of the mask source that is picked."""
        config: Sam3Config | ProposerConfig | SlicConfig = getattr(self, self.masks)
        return config

    @property
    def feature_config(self) -> ClipDenseConfig | TipsConfig:
        """The settings of the feature source that is picked."""
        config: ClipDenseConfig | TipsConfig = getattr(self, self.features)
        return config

    @property
    def templates(self) -> str:
        """The sentences that the features' authors put prompts into."""
        return self.feature_config.templates

    @property
    def min_probability(self) -> float:
        """What the best region of a pixel must weigh; superpixels weigh 1."""
        return 0.0 if isinstance(self.mask_config, SlicConfig) else self.mask_config.min_probability

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: SAM 3's scores are its own."""
        return frozenset({"logit_scale"}) if self.masks == "sam3" else frozenset()

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text", "encode" or "segment"; weights by digest.

        Where labels of driving scenes taught the masks, it says `supervised`, for whoever shows results.
        """
        found: dict[str, Json] = {"name": self.name}
        if stage != "segment":
            found |= {"features": self.features, self.features: dict(self.feature_config.settings(stage))}
        if stage == "encode":
            found |= {"masks": self.masks, self.masks: self.mask_config.settings()}
        if stage == "segment":
            found |= {"masks": self.masks, "features": self.features, "min_probability": self.min_probability}
            found |= {key: value for key, value in self.counted().items() if key == "logit_scale"}
        if stage != "text" and isinstance(self.mask_config, ProposerConfig):
            found["trained_on"] = self.mask_config.trained_on
            if self.mask_config.supervised:
                found["supervised"] = True
        return found

    def content(self, ontology: Ontology, data: DataConfig, stage: str) -> Settings:
        """Return what "encode" and "segment" depend on beside the section: what SAM 3 is asked for, and who owns it."""
        if self.masks != "sam3" or stage == "text":
            return {}
        concepts = checked_concepts(ontology)
        if stage == "encode":
            return {"concepts": [phrases for _, phrases in concepts]}
        return {
            "concept_groups": [group for group, _ in concepts],
            "groups": [[group.name, list(group.prompts)] for group in ontology.groups],
        }


def checked_concepts(ontology: Ontology) -> list[list[Any]]:
    """Return the groups with concepts and theirs; raises ConfigError if there are none."""
    content = ontology.concept_content()
    if not content:
        raise ConfigError(
            f"data.ontology: class dictionary {ontology.name} has no concepts, which SAM 3 is asked for; give every "
            '[[group]] a few, such as concepts = ["car", "van"]'
        )
    return content
