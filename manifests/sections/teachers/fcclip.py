"""Section `[teacher]` of FC-CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.sections.teachers.masks import MASK_FORMATS, MaskConfig

MODELS = ("convnext_large_d_320", "tiny-convnext")

_WEIGHTS = ("model", "weights", "weights_sha256")

_FIELDS = {
    "text": _WEIGHTS,
    "encode": (*_WEIGHTS, "short_side_px", "precision", "masks", "top", "parity"),
    "segment": ("short_side_px", "parity", "alpha", "beta", "overlap"),
}


@dataclass(frozen=True)
class FcClipConfig(MaskConfig):
    """Section `[teacher]` with `name = "fcclip"`.

    `model` is the CLIP under the decoders: "convnext_large_d_320" for the official fcclip_cocopan.pth, or
    "tiny-convnext". `weights` is the path of the file, `hub:OWNER/NAME/FILE` or `random:SEED` (tests and dry runs: the
    masks mean nothing); `weights_sha256` and, for the hub, `weights_revision` pin it (see teachers.loading.weights).
    The file holds CLIP as well; nothing else is fetched.

    `short_side_px` is the image's shorter side as the network sees it; both are rounded to multiples of 32. `precision`
    "bf16" runs CLIP in bfloat16, never the decoders. Of the masks each cell keeps the `top` foremost, their logits as
    `masks` says: "uint8" in steps of 0.1, or "float16". The probability of a prompt is p_inside^(1-g) p_outside^g, with
    g = `alpha` for names that FC-CLIP was trained with, else `beta`. A query counts if it owns the share `overlap` of
    its mask.

    `parity` takes images at their own size, padded with black to multiples of 32, instead of `short_side_px`; and where
    several queries make up one stuff segment, their first gives it its vector and score, though the others may hold
    most of its pixels. By default each weighs as much as it has pixels.
    """

    fields = _FIELDS

    name: str = "fcclip"
    model: str = "convnext_large_d_320"
    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    short_side_px: int = 896
    precision: str = "fp32"
    masks: str = "uint8"
    top: int = 4
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
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision is "{self.precision}"; choose "fp32" or "bf16"')
        if self.masks not in MASK_FORMATS:
            raise ValueError(f'masks is "{self.masks}"; choose "uint8" or "float16"')
        if not 32 <= self.short_side_px <= 4096 or self.top < 1:
            raise ValueError("32 <= short_side_px <= 4096 and top >= 1 are required")
        if not all(0 <= value <= 1 for value in (self.alpha, self.beta, self.overlap)):
            raise ValueError("alpha, beta and overlap are shares; expected 0 to 1")
