"""Section `[teacher]` of a user's own 2D network."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from manifests.config import ConfigError
from manifests.fingerprint import Json, Settings
from manifests.ontology import Ontology
from manifests.sections.data import DataConfig
from manifests.sections.teachers.base import TeacherSection
from manifests.sections.teachers.card import Card, find_card, read_card
from manifests.sections.teachers.published import pinned_by_publication
from manifests.sections.teachers.views import View, views_of
from manifests.sections.teachers.weights import Weights, check_weights, weights_identity

TEXTS = ("none", "clip", "sentence")

_OF_TEXT = {
    "none": ("dims",),
    "clip": ("text_model", "text_weights", "quick_gelu"),
    "sentence": ("text_weights",),
}


@dataclass(frozen=True)
class OnnxConfig(TeacherSection):
    """Section `[teacher]` with `name = "onnx"`: a segmentation network of your own, run by onnxruntime.

    `weights` is the path of the ONNX file or `hub:OWNER/NAME/FILE`; `weights_sha256` and, for the hub,
    `weights_revision` pin it (see teachers.loading.weights). `card` is the path of its card, or the name of one of ours
    (manifests/cards); left out, it lies beside the file and ends in .toml (see teachers.card). `top` is how many of the
    likeliest classes are kept of every cell of the network's grid, and `kept` how their probabilities are: "uint8", in
    steps of 1/255, or "float32".

    `augment` are other views of every image that the network is asked of too: "flip", mirrored, "scale:1.25", so many
    times as large, or "flip+scale:1.25". Probabilities are averaged over the image and its views, and lowered where
    these disagree; each view costs as much as the image. Networks of a fixed size take no scale.

    `text` says where the vectors of prompts come from, which pre-training learns: "clip", a text tower of CLIP,
    "sentence", a sentence encoder whose words' vectors are averaged, or "none", directions that are drawn from the
    prompts' letters and mean nothing. `dims` is how many numbers these have. `text_model` is the tower's name in
    open_clip. `text_weights` are its weights, named as those of teacher "clip_dense", or the sentence encoder's, as
    model.safetensors of a folder of transformers. `quick_gelu` must be said for a file with a tower, as it does not
    tell: true for OpenAI's, MetaCLIP's and DFN's, false for LAION's and DataComp's.
    """

    scores_pixels = True

    name: str = "onnx"
    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    card: str = ""
    top: int = 3
    kept: str = "uint8"
    augment: tuple[str, ...] = ()
    text: str = "none"
    dims: int = 64
    text_model: str = ""
    text_weights: str = ""
    text_weights_sha256: str = ""
    text_weights_revision: str = ""
    quick_gelu: bool | None = None

    def __post_init__(self) -> None:
        if self.name != "onnx":
            raise ValueError(f'name is "{self.name}"; these are the settings of "onnx"')
        weights = self.pinned
        if weights.is_tag or weights.seed is not None:
            raise ValueError(f'weights are "{self.weights}"; give the path of an ONNX file, or hub:OWNER/NAME/FILE')
        if weights.is_hub and not self.card:
            raise ValueError("card is missing; a file of the hub has none beside it: give the path of yours")
        if not 1 <= self.top <= 64 or not 8 <= self.dims <= 4096:
            raise ValueError(f"top is {self.top} and dims {self.dims}; expected 1 to 64, and 8 to 4096")
        if self.kept not in ("uint8", "float32"):
            raise ValueError(f'kept is "{self.kept}"; choose "uint8" or "float32"')
        views_of(self.augment)
        if self.text not in TEXTS:
            raise ValueError(f'text is "{self.text}"; choose "none", "clip" or "sentence"')
        given = {key for key in ("text_model", "text_weights") if getattr(self, key)}
        if given != set(_OF_TEXT[self.text]) & {"text_model", "text_weights"}:
            raise ValueError(
                f'text is "{self.text}", which takes {" and ".join(_OF_TEXT[self.text][:2])}; given are '
                f"{', '.join(sorted(given)) or 'neither text_model nor text_weights'}"
            )
        local = self.pinned_text is not None and not self.pinned_text.is_tag and self.pinned_text.seed is None
        if self.text == "clip" and local and self.quick_gelu is None:
            raise ValueError(
                "quick_gelu is missing; a file does not tell its activation, and the wrong one gives wrong vectors "
                "without any error: true for OpenAI, MetaCLIP and DFN, false for LAION and DataComp"
            )
        if self.pinned_text and self.text == "sentence":
            check_weights(self.pinned_text)

    @property
    def pinned(self) -> Weights:
        """The network's file and what pins it."""
        return Weights(self.weights, self.weights_sha256, self.weights_revision)

    @property
    def pinned_text(self) -> Weights | None:
        """The weights of the text encoder and what pins them, None where there is none."""
        if self.text == "none":
            return None
        found = Weights(self.text_weights, self.text_weights_sha256, self.text_weights_revision, "text_weights")
        return pinned_by_publication(found, self.text_model) if self.text == "clip" else found

    @cached_property
    def the_card(self) -> Card:
        """What the network's card says, read once; workers get it with the recipe. Raises ConfigError."""
        return read_card(find_card(self.card, self.weights))

    @property
    def views(self) -> tuple[View, ...]:
        """The other views of every image that the network is asked of."""
        return views_of(self.augment)

    def check_views(self) -> None:
        """Raise ConfigError for a view of another size where the network takes one size alone."""
        said = self.the_card.input
        if said.height_px and any(view.scale != 1.0 for view in self.views):
            raise ConfigError(
                f"teacher.augment asks for images of another size, but by {self.the_card.path} the network takes "
                f"{said.width_px} x {said.height_px} pixels alone; leave the scales out"
            )

    @property
    def templates(self) -> str:
        """The sentences that prompts are put into: CLIP's 80; a sentence encoder, or no encoder, takes words alone."""
        return "imagenet80" if self.text == "clip" else "single"

    @property
    def text_means(self) -> bool:
        """Whether vectors of words that are alike are alike."""
        return self.text != "none"

    def check_templates(self, templates: str) -> None:
        """Raise ValueError for sentences where no encoder reads them."""
        if self.text == "none" and templates != self.templates:
            raise ValueError(
                f'text.templates is "{templates}", but with teacher.text = "none" nothing reads sentences; leave '
                "templates out of section [text]"
            )

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: those of another encoder of texts."""
        every = {name for names in _OF_TEXT.values() for name in names}
        return frozenset(every - set(_OF_TEXT[self.text]))

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text", "encode" or "segment".

        The network by its digest, the card by what it says. Raises ConfigError for a card that cannot be used.
        """
        if stage == "text":
            return {"name": self.name, "text": self.text, **self._text_settings()}
        taught = {"supervised": True} if self.the_card.network.driving_labels else {}
        if stage == "segment":
            return {"name": self.name, **taught}
        kept = {key: value for key, value in self.counted().items() if key in ("top", "kept", "augment")}
        self.check_views()
        return {"name": self.name, "weights": self.pinned.identity, "card": self.the_card.identity, **kept, **taught}

    def _text_settings(self) -> dict[str, Json]:
        """Return what vectors of prompts depend on."""
        if self.pinned_text is None:
            return {"dims": self.dims}
        if self.text == "sentence":
            return weights_identity(self.pinned_text)
        gelu = {} if self.quick_gelu is None else {"quick_gelu": self.quick_gelu}
        return {"model": self.text_model, "weights": self.pinned_text.identity, **gelu}

    def content(self, ontology: Ontology, data: DataConfig, stage: str) -> Settings:
        """Return what segments depend on beside their tables and settings: which prompts each class stands for."""
        if stage != "segment":
            return {}
        return {"prompts_of_class": [list(rows) for rows in self.the_card.prompts_of(ontology)]}
