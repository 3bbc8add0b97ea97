"""Section `[teacher]` of dense CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.fingerprint import Settings
from manifests.sections.teachers.base import TeacherSection
from manifests.sections.teachers.masks import DECODINGS
from manifests.sections.teachers.published import pinned_by_publication
from manifests.sections.teachers.views import View, views_of
from manifests.sections.teachers.weights import Weights

TINY_MODELS = {"tiny": True, "tiny-convnext": False}
"""Models of our own for tests and dry runs, and whether they compute QuickGELU."""
MODES = ("sc", "naclip", "clearclip", "sclip", "maskclip", "values", "affinity", "vanilla", "convnext")
POSITIONS = ("official", "exact")

_TOWER = ("model", "weights", "quick_gelu")

_FIELDS = {
    "text": _TOWER,
    "encode": (
        *_TOWER,
        *("mode", "positions", "sigma", "calibrate_outliers", "calibrate_layers", "dino", "dino_weights"),
        *("short_side_px", "window_px", "stride_px", "precision", "compile", "unit_cells", "kept", "decode", "augment"),
    ),
    "segment": ("logit_scale",),
}


@dataclass(frozen=True)
class ClipDenseConfig(TeacherSection):
    """Section `[teacher]` with `name = "clip_dense"`.

    `model` is a name of open_clip, or "tiny". `weights` is one of its pretrained tags, the path of a checkpoint,
    `hub:OWNER/NAME/FILE`, or `random:SEED` (tests and dry runs: the masks mean nothing). `weights_sha256` and, for the
    hub, `weights_revision` pin it (see teachers.loading.weights), or the digest that is published for a tag
    (manifests/weights.toml); the digest stands for the weights in the identity, so that the same file elsewhere is the
    same teacher. `quick_gelu` must be said for a file, as it does not tell: true
    for OpenAI's, MetaCLIP's and DFN's weights, false for LAION's and DataComp's.

    `mode` and `sigma` (in grid cells, "naclip" only): see pipeline.teachers.dense. `positions` says how the position
    embeddings that were trained for one size reach another: "official" as the authors of the modes do, "exact" laid
    over the image without their 0.1 cells too many. `calibrate_outliers` and `calibrate_layers` are the two parts of
    "sc" that can be left out: filling patches out of place, and the sum of layers. `dino` and `dino_weights` name the
    second network of "affinity", a model of timm, and its file, pinned likewise. `short_side_px` is the image's shorter
    side as the tower sees it; a side without windows is rounded to a multiple of the patch. With `window_px` the tower
    sees windows of that size every `stride_px` (default: side by side), for example 560, 336 and 224: better and
    slower. Pixels that several windows see average what these say. `precision` "bf16" runs the image tower in bfloat16
    where torch deems it safe; `compile` has torch compile it, in batches of one size. `unit_cells` scales the features
    of each cell to length 1, so that all pixels of a segment count the same. `logit_scale` times the cosine is what the
    softmax behind `score` sees; it moves no segment. `kept` "int8" halves table `encode`: only the direction of a
    cell's vector is kept, in steps of 1/127 of its largest value. `decode` "scaled" takes a JPEG from its decoder at
    half, a quarter or an eighth of its size where that is no smaller than what the tower sees, and resizes from there;
    "full" decodes every pixel first, as the authors of the modes do.

    `augment` are other views of every image that the tower sees too: "flip", mirrored, "scale:1.25", so many times as
    large, or "flip+scale:1.25". The directions of their features are averaged cell by cell, and scores are lowered
    where they disagree; a view costs as much as the image, times the square of its scale. With windows each window is
    mirrored, and no scale is taken.
    """

    scores_pixels = True

    name: str = "clip_dense"
    model: str = "ViT-B-16-quickgelu"
    weights: str = "openai"
    weights_sha256: str = ""
    weights_revision: str = ""
    quick_gelu: bool | None = None
    mode: str = "sc"
    positions: str = "official"
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
    decode: str = "scaled"
    logit_scale: float = 40.0
    augment: tuple[str, ...] = ()

    def __post_init__(self) -> None:  # noqa: C901 (one check after another)
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
        elif weights.is_tag and self.model in TINY_MODELS:
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
        if self.positions not in POSITIONS:
            raise ValueError(f'positions is "{self.positions}"; choose "official" or "exact"')
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
        if self.decode not in DECODINGS:
            raise ValueError(f'decode is "{self.decode}"; choose "scaled" or "full"')
        if not (0 < self.sigma < float("inf") and 0 < self.logit_scale < float("inf")):
            raise ValueError("sigma and logit_scale must be positive and finite")
        if not 8 <= self.short_side_px <= 4096:
            raise ValueError(f"short_side_px is {self.short_side_px}; expected 8 to 4096")
        if any(view.scale != 1.0 for view in self.views) and self.window_px is not None:
            raise ValueError(
                "augment asks for images of another size, whose windows would show other parts of the image; leave the "
                "scales out, or window_px"
            )

    @property
    def views(self) -> tuple[View, ...]:
        """The other views of every image that the tower sees."""
        return views_of(self.augment)

    @property
    def templates(self) -> str:
        """The sentences that the authors of the mode put prompts into (see docs/teachers.md)."""
        return "maskclip85" if self.mode == "maskclip" else "imagenet80"

    @property
    def pinned(self) -> Weights:
        """The weights and what pins them: the recipe, else the digest that is published for a tag."""
        return pinned_by_publication(Weights(self.weights, self.weights_sha256, self.weights_revision), self.model)

    @property
    def pinned_dino(self) -> Weights:
        """The weights of the second network and what pins them."""
        return Weights(self.dino_weights, self.dino_weights_sha256, self.dino_weights_revision, "dino_weights")

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: those of another mode."""
        of_mode = {
            "sigma": ("naclip",),
            "calibrate_outliers": ("sc",),
            "calibrate_layers": ("sc",),
            "dino": ("affinity",),
            "positions": tuple(mode for mode in MODES if mode not in ("maskclip", "convnext")),
        }
        return frozenset(name for name, modes in of_mode.items() if self.mode not in modes)

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text", "encode" or "segment"; pinned weights by digest."""
        values = {key: value for key, value in self.counted().items() if key in _FIELDS[stage]}
        if self.quick_gelu == implies_quick_gelu(self.model):
            values.pop("quick_gelu", None)
        if self.stride_px == self.window_px:  # side by side, as without it
            values.pop("stride_px", None)
        if self.pinned.sha256 and stage != "segment":
            values["weights"] = self.pinned.identity
        if "dino_weights" in values:
            values |= {"dino": self.dino, "dino_weights": self.pinned_dino.identity}
        else:
            values.pop("dino", None)
        return {"name": self.name, **values}


def implies_quick_gelu(model: str) -> bool:
    """Return the activation that a model's name stands for."""
    return model.endswith("-quickgelu") or TINY_MODELS.get(model, False)
