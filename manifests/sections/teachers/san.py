"""Section `[teacher]` of SAN."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.sections.teachers.masks import DIVISOR_PX, MASK_FORMATS, MaskConfig
from manifests.sections.teachers.views import View, views_of

MODELS = ("ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "tiny")

_WEIGHTS = ("model", "weights", "weights_sha256")

_FIELDS = {
    "text": _WEIGHTS,
    "encode": (*_WEIGHTS, "short_side_px", "precision", "masks", "parity", "augment"),
    "segment": ("short_side_px", "parity"),
}


@dataclass(frozen=True)
class SanConfig(MaskConfig):
    """Section `[teacher]` with `name = "san"`.

    `model` is the CLIP that the side network stands beside: "ViT-L-14-336-quickgelu" for san_vit_large_14.pth,
    "ViT-B-16-quickgelu" for san_vit_b_16.pth, or "tiny". `weights` is the path of such a file, `hub:OWNER/NAME/FILE`
    or `random:SEED` (tests and dry runs: the masks mean nothing); `weights_sha256` and, for the hub,
    `weights_revision` pin it (see teachers.loading.weights). The file holds CLIP as well; nothing else is fetched.

    `short_side_px` is the image's shorter side as the side network sees it. `precision` "bf16" runs the network in
    bfloat16 where torch deems it safe. `masks` is how mask logits are kept: "uint8", how far below the strongest of
    its cell each lies, in steps of 0.05 and, further down, 1.4 % of that; or "float16".

    `parity` prepares images as the reference does: the longer side is cut to a whole pixel and padded with black to a
    multiple of 32, and CLIP's image is 0.7 (B/16: 0.5) times that, of which its patches leave a rest. So CLIP's grid
    is taken for wider than it is, and what it says of an object sits up to 1 % of the width too far to the right. By
    default both images are resized so that their grids cover the whole view exactly, which changes the aspect ratio by
    less than 3 %. Parity also keeps mask logits as float16, whatever `masks` says.

    `augment` are other views of every image that the network is asked of too: "flip", mirrored, "scale:1.25", so many
    times as large, or "flip+scale:1.25". The queries of all views stand side by side, so that pixels are named by the
    mean of what the views say; table `encode` grows by its size for each view. Parity takes none.
    """

    scores_pixels = True
    fields = _FIELDS
    version = 2

    name: str = "san"
    model: str = "ViT-L-14-336-quickgelu"
    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    short_side_px: int = 640
    precision: str = "fp32"
    masks: str = "uint8"
    parity: bool = False
    augment: tuple[str, ...] = ()

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
        if not DIVISOR_PX <= self.short_side_px <= 4096:
            raise ValueError(f"short_side_px is {self.short_side_px}; expected {DIVISOR_PX} to 4096")
        if self.views and self.parity:
            raise ValueError("parity does as the reference, which asks of no other views; leave augment out")

    @property
    def views(self) -> tuple[View, ...]:
        """The other views of every image that the network is asked of."""
        return views_of(self.augment)

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: parity keeps logits as float16."""
        return frozenset({"masks"}) if self.parity else frozenset()
