"""Section `[teacher]` of CAT-Seg, second generation."""

from __future__ import annotations

from dataclasses import dataclass

from manifests.sections.teachers.masks import DECODINGS, MaskConfig
from manifests.templates import templates_of

MODELS = ("ViT-B-16-quickgelu", "ViT-L-14-336-quickgelu", "tiny")
TEMPLATES = "catseg"
"""The one set of sentences that the network was trained with."""

_WEIGHTS = ("model", "weights", "weights_sha256")
_FIELDS = {
    "text": (*_WEIGHTS, "parity"),
    "encode": (*_WEIGHTS, "windows", "precision", "kept", "decode", "parity"),
    "segment": (*_WEIGHTS, "windows", "pooling"),
}


@dataclass(frozen=True)
class CatSegConfig(MaskConfig):
    """Section `[teacher]` with `name = "catseg"`; section `[text]` may name no other `templates` than "catseg".

    `model` is the CLIP inside: "ViT-L-14-336-quickgelu" for model_large.pth, "ViT-B-16-quickgelu" for model_base.pth,
    or "tiny". `weights` is the path of such a file, `hub:OWNER/NAME/FILE` or `random:SEED` (tests and dry runs: the
    masks mean nothing); `weights_sha256` and, for the hub, `weights_revision` pin it (see teachers.loading.weights).
    The file holds CLIP as well, retrained; nothing else is fetched.

    The network sees every view squashed to a square, once. With `windows` it sees it five times, four windows of it
    and the whole, as in the authors' evaluation: finer, at five times the cost and the cache. `pooling` averages so
    many cells along each axis before prompts are compared; the authors' evaluation has 1, their training 2. `precision`
    "bf16" runs CLIP in bfloat16, never the aggregator. `kept` is how table `encode` holds numbers: "float16" or
    "float32". `decode` "scaled" takes a JPEG from its decoder at half, a quarter or an eighth of its size where that is
    no smaller than what the network sees, and resizes from there; "full" decodes every pixel first, as `parity` does.

    `parity` takes images as the reference does: resized without antialiasing, and, where there are no windows, padded
    to multiples of 32, with which they are then stretched over the view: what the network sees at the lower edge is
    named up to 28 of 928 parts, 27 pixels of 900, too high. It also cuts a prompt at the first ", ", so that "truck,
    lorry" is "truck". The reference's maps need `pooling = 2` (whole images), `kept = "float32"` and
    `[segment] scale = 1.0` beside it.
    """

    scores_pixels = True
    fields = _FIELDS

    name: str = "catseg"
    model: str = "ViT-L-14-336-quickgelu"
    weights: str = ""
    weights_sha256: str = ""
    weights_revision: str = ""
    windows: bool = False
    pooling: int = 1
    precision: str = "fp32"
    kept: str = "float16"
    decode: str = "scaled"
    parity: bool = False

    def __post_init__(self) -> None:
        if self.name != "catseg":
            raise ValueError(f'name is "{self.name}"; these are the settings of "catseg"')
        if self.model not in MODELS:
            raise ValueError(f'model is "{self.model}"; CAT-Seg was published on {" and ".join(MODELS[:2])}')
        if self.pinned.is_tag:
            raise ValueError(
                f'weights are "{self.weights}"; give the path of an official checkpoint such as model_large.pth, '
                "hub:OWNER/NAME/FILE, or random:SEED for a dry run"
            )
        if self.precision not in ("fp32", "bf16"):
            raise ValueError(f'precision is "{self.precision}"; choose "fp32" or "bf16"')
        if self.kept not in ("float16", "float32"):
            raise ValueError(f'kept is "{self.kept}"; choose "float16" or "float32"')
        if self.decode not in DECODINGS:
            raise ValueError(f'decode is "{self.decode}"; choose "scaled" or "full"')
        if self.pooling not in (1, 2):
            raise ValueError(f"pooling is {self.pooling}; choose 1 (the authors' evaluation) or 2 (their training)")

    @property
    def templates(self) -> str:
        """The one set of sentences that the network was trained with."""
        return TEMPLATES

    @property
    def views(self) -> int:
        """How many times the network sees an image."""
        return 5 if self.windows else 1

    def idle(self) -> frozenset[str]:
        """Return the settings that change no row, as the others are set: parity decodes every pixel."""
        return frozenset({"decode"}) if self.parity else frozenset()

    def check_templates(self, templates: str) -> None:
        """Raise ValueError unless prompts are put into the sentence that the network was trained with."""
        if templates != TEMPLATES:
            raise ValueError(
                f'text.templates is "{templates}", but CAT-Seg learnt to compare images with one sentence, '
                f'"{templates_of(TEMPLATES)[0]}"; leave templates out of section [text]'
            )
