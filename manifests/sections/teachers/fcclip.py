"""Section `[teacher]` of FC-CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.fingerprint import Settings
from manifests.ontology import Ontology
from manifests.sections.data import DataConfig
from manifests.sections.teachers.masks import MASK_FORMATS, MaskConfig
from manifests.sections.teachers.weights import Weights

MODELS = ("convnext_large_d_320", "tiny-convnext")

CLIP_TAG = "laion2b_s29b_b131k_ft_soup"
"""open_clip's name of the weights that FC-CLIP was trained on: LAION's ConvNeXt-L."""

CLIP_REPOSITORY = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"
"""Where the hub has them."""

_WEIGHTS = ("model", "weights", "weights_sha256", "clip_weights", "clip_weights_sha256")

_FIELDS = {
    "text": _WEIGHTS,
    "encode": (*_WEIGHTS, "short_side_px", "precision", "masks", "reach", "parity"),
    "segment": ("short_side_px", "parity", "alpha", "beta", "overlap"),
}


@dataclass(frozen=True)
class FcClipConfig(MaskConfig):
    """Section `[teacher]` with `name = "fcclip"`.

    `model` is the CLIP under the decoders: "convnext_large_d_320" for the official fcclip_cocopan.pth, or
    "tiny-convnext". `weights` is the path of the file, `hub:OWNER/NAME/FILE` or `random:SEED` (tests and dry runs: the
    masks mean nothing); `weights_sha256` and, for the hub, `weights_revision` pin it (see teachers.loading.weights).
    The official file holds the decoders; CLIP is the file of `clip_weights`, a pretrained tag of open_clip, a path or
    `hub:OWNER/NAME/FILE`, pinned in the same way. Where the file of `weights` holds tensors of CLIP too, they are taken
    from there, as the reference does; where it holds all of them, `clip_weights` may be left out.

    `short_side_px` is the image's shorter side as the network sees it; both are rounded to multiples of 32. `precision`
    "bf16" runs CLIP in bfloat16, never the decoders. Masks are kept in full in the cells where a query could win: where
    log sigmoid(m) lies within `reach` of the best of all queries, each less likely by what it shows of the names that
    FC-CLIP was trained with. Two queries that show something differ by less than log(1 + prompts) in their scores, 5.2
    for 180 prompts; 1e6 keeps all. `masks` is how logits are kept: "float16", or in half the bytes "uint8". The
    probability of a prompt is p_inside^(1-g) p_outside^g, with g = `alpha` for names that FC-CLIP was trained with,
    else `beta`. A query counts if it owns the share `overlap` of its mask.

    `parity` takes images at their own size, padded with black to multiples of 32, instead of `short_side_px`; keeps all
    masks in full, as float16, whatever `reach` and `masks` say, and the vectors as float32; and where several queries
    make up one stuff segment, their first gives it its vector and score, though the others may hold most of its pixels.
    By default each weighs as much as it has pixels.
    """

    scores_pixels = True
    fields = _FIELDS
    version = 2

    name: str = "fcclip"
    model: str = "convnext_large_d_320"
    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    clip_weights: str = ""
    clip_weights_sha256: str = ""
    clip_weights_revision: str = ""
    short_side_px: int = 896
    precision: str = "fp32"
    masks: str = "float16"
    reach: float = 5.2
    alpha: float = 0.4
    beta: float = 0.8
    overlap: float = 0.8
    parity: bool = False

    def __post_init__(self) -> None:
        if self.name != "fcclip":
            raise ValueError(f'name is "{self.name}"; these are the settings of "fcclip"')
        if self.model not in MODELS:
            raise ValueError(f'model is "{self.model}"; FC-CLIP\'s checkpoint stands on "{MODELS[0]}"')
        if self.pinned.is_tag:
            raise ValueError(
                f'weights are "{self.weights}"; give the path of the official checkpoint fcclip_cocopan.pth, '
                "hub:OWNER/NAME/FILE, or random:SEED for a dry run"
            )
        if self.clip_weights and self.pinned.seed is not None:
            raise ValueError("clip_weights are given, but weights are random, CLIP's too; remove clip_weights")
        if self.pinned_clip and self.pinned_clip.seed is not None:
            raise ValueError(f'clip_weights is "{self.clip_weights}"; expected a tag, a path or hub:OWNER/NAME/FILE')
        if not self.clip_weights and (self.clip_weights_sha256 or self.clip_weights_revision):
            raise ValueError("clip_weights_sha256 or clip_weights_revision is given, but no clip_weights")
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision is "{self.precision}"; choose "fp32" or "bf16"')
        if self.masks not in MASK_FORMATS:
            raise ValueError(f'masks is "{self.masks}"; choose "uint8" or "float16"')
        if not 32 <= self.short_side_px <= 4096 or not self.reach >= 0:
            raise ValueError("32 <= short_side_px <= 4096 and reach >= 0 are required")
        if not all(0 <= value <= 1 for value in (self.alpha, self.beta, self.overlap)):
            raise ValueError("alpha, beta and overlap are shares; expected 0 to 1")

    @property
    def pinned_clip(self) -> Weights | None:
        """The weights of CLIP and what pins them, None where they are in the file of `weights`."""
        if not self.clip_weights:
            return None
        return Weights(self.clip_weights, self.clip_weights_sha256, self.clip_weights_revision, "clip_weights")

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: parity has a size and a cache of its own."""
        return frozenset({"short_side_px", "masks", "reach"}) if self.parity else frozenset()

    @property
    def vector_bytes(self) -> int:
        """How many bytes a value of a query's vectors is kept in."""
        return 4 if self.parity else 2

    def settings(self, stage: str) -> Settings:
        """Return the values that can change the rows of "text", "encode" or "segment"; see MaskConfig."""
        wide = {"vector_bytes": self.vector_bytes} if self.parity and stage == "encode" else {}
        return {**super().settings(stage), **wide}

    @property
    def files(self) -> tuple[Weights, ...]:
        """The weights of all networks."""
        return (self.pinned, self.pinned_clip) if self.pinned_clip else (self.pinned,)

    def content(self, ontology: Ontology, data: DataConfig, stage: str) -> Settings:
        """Return what segments depend on beside their tables and settings: which prompts are countable."""
        return {"thing_of_prompt": ontology.thing_of_prompt.tolist()} if stage == "segment" else {}
