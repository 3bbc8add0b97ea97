"""The card of a user's own 2D network: a TOML file beside it that says what goes in, what comes out, and what it means.

A network's file tells shapes and nothing of this; every line that is wrong here gives wrong labels without any error.
So nothing is guessed: what has no default has to be said, and what does not fit is refused.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from manifests.config import ConfigError, changed_values, nearest, parse_section
from manifests.fingerprint import Json
from manifests.ontology import Ontology

CARDS = Path(__file__).parents[2] / "cards"
"""The cards that come with AFOV."""

RESAMPLINGS = ("bilinear", "bicubic", "opencv")


@dataclass(frozen=True)
class CardNetwork:
    """Section `[network]`: what it is and where it is from. `driving_labels`: labels of driving scenes taught it."""

    name: str = ""
    source: str = ""
    licence: str = ""
    trained_on: str = ""
    driving_labels: bool | None = None

    def __post_init__(self) -> None:
        for key in ("name", "licence", "trained_on"):
            if not getattr(self, key):
                raise ValueError(f"{key} is missing")
        if self.driving_labels is None:
            raise ValueError(
                "driving_labels is missing; true where labels of driving scenes taught it, as Cityscapes': results "
                "then say that the teacher is a supervised one"
            )


@dataclass(frozen=True)
class CardInput:
    """Section `[input]`: a value that goes in is (pixel / 255 * `white` - `mean`) / `std`, channel by channel.

    `name` is the input's, needed where there are several. `layout` is "nchw" or "nhwc", `order` "rgb" or "bgr", of
    which `mean` and `std` have the order too. `height_px` and `width_px` are 0 where the network takes any size that is
    a multiple of `divisor_px`. `focal_px` is the focal length of the images that it was made for, at the size at which
    it saw them: where sizes are free, images are scaled to it; where they are not, others are told. `resample` is how
    images get to size: "bilinear" or "bicubic" (Pillow, antialiased), or "opencv" (linear up, by area down).
    """

    name: str = ""
    layout: str = "nchw"
    order: str = "rgb"
    white: float = 1.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    height_px: int = 0
    width_px: int = 0
    divisor_px: int = 32
    focal_px: float = 0.0
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        check_layout(self.layout)
        if self.order not in ("rgb", "bgr"):
            raise ValueError(f'order is "{self.order}"; choose "rgb" or "bgr"')
        if self.resample not in RESAMPLINGS:
            raise ValueError(f'resample is "{self.resample}"; choose one of {", ".join(RESAMPLINGS)}')
        if not (self.white > 0 and min(self.std) > 0):
            raise ValueError(f"white is {self.white} and std {self.std}; expected numbers above 0")
        if (self.height_px == 0) != (self.width_px == 0) or not all(
            side == 0 or 8 <= side <= 8192 for side in (self.height_px, self.width_px)
        ):
            raise ValueError(
                f"height_px is {self.height_px} and width_px {self.width_px}; expected 8 to 8192, or 0 for both where "
                "the network takes any size"
            )
        if not 1 <= self.divisor_px <= 1024 or not 0 <= self.focal_px < math.inf:
            raise ValueError(
                f"divisor_px is {self.divisor_px} and focal_px {self.focal_px}; expected 1 to 1024, and 0 or more"
            )


@dataclass(frozen=True)
class CardOutput:
    """Section `[output]`: `kind` is "logits", "probabilities" or "classes" (one whole number a cell).

    `name` is the output's, needed where there are several. `layout` is "nchw" or "nhwc", of what has a channel for each
    class. `stride` is how many pixels of the input a cell is wide.
    """

    name: str = ""
    kind: str = ""
    layout: str = "nchw"
    stride: int = 0

    def __post_init__(self) -> None:
        check_layout(self.layout)
        if self.kind not in ("logits", "probabilities", "classes"):
            raise ValueError(f'kind is "{self.kind}"; choose "logits", "probabilities" or "classes"')
        if not 1 <= self.stride <= 64:
            raise ValueError(f"stride is {self.stride}; expected 1 to 64, the pixels of the input that a cell is wide")


def check_layout(layout: str) -> None:
    """Raise ValueError unless it is a layout of tensors."""
    if layout not in ("nchw", "nhwc"):
        raise ValueError(f'layout is "{layout}"; choose "nchw" or "nhwc"')


@dataclass(frozen=True)
class CardClasses:
    """Section `[classes]`: their `names` in the order of channels or numbers.

    Those in `unused` were never taught, such as a "void" that training left out: they count in a softmax and win no
    pixel.
    """

    names: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= 65535 or len(set(self.names)) < len(self.names):
            raise ValueError(f"names has {len(self.names)} entries; expected 2 or more, each once")
        if odd := sorted(set(self.unused) - set(self.names)):
            raise ValueError(f"unused has {odd[0]!r}, which is not among names{nearest(odd[0], self.names)}")


@dataclass(frozen=True)
class Card:
    """All that a card says.

    `stands_for` has for each class dictionary, by its name, the words that each class stands for: prompts, and classes
    of the dictionary as ("class", name).
    """

    path: Path
    network: CardNetwork
    input: CardInput
    output: CardOutput
    classes: CardClasses
    stands_for: Mapping[str, Mapping[str, tuple[str | tuple[str, str], ...]]] = field(default_factory=dict)

    @property
    def identity(self) -> dict[str, Json]:
        """What of the card can change what the network gives; where it lies and what it is called cannot."""
        return {
            "input": changed_values(self.input),
            "output": changed_values(self.output),
            "classes": list(self.classes.names),
            "unused": sorted(self.classes.unused),
        }

    def prompts_of(self, ontology: Ontology) -> tuple[tuple[int, ...], ...]:
        """Return the prompts that each class stands for, by position; none for one that is ignored.

        Raises ConfigError where the card does not say it for every class, or names what the dictionary does not have.
        """
        where = f"{self.path}: [dictionaries.{ontology.name}]"
        said = self.stands_for.get(ontology.name)
        if said is None:
            raise ConfigError(
                f"{where} is missing; for data.ontology {ontology.name}, say of every class what it stands for there, "
                f'such as {self.classes.names[0]} = ["{ontology.prompts[0]}"] (the card has it for '
                f"{', '.join(sorted(self.stands_for)) or 'no dictionary'})"
            )
        if odd := sorted(set(said) - set(self.classes.names)):
            raise ConfigError(f"{where} has {odd[0]!r}, which is no class of the network{_near(odd[0], self)}")
        found = []
        for name in self.classes.names:
            if name not in said and name not in self.classes.unused:
                raise ConfigError(f"{where} lacks {name!r}; give its prompts, or [] where it is to be ignored")
            rows: list[int] = []
            for word in said.get(name, ()):
                rows += [row for row in prompts_named(word, ontology, f"{where} {name}") if row not in rows]
            found.append(tuple(rows))
        if not any(found):
            raise ConfigError(f"{where} ignores every class; nothing would be named")
        return tuple(found)


def _near(name: str, card: Card) -> str:
    return nearest(name, card.classes.names)


def prompts_named(word: str | tuple[str, str], ontology: Ontology, where: str) -> list[int]:
    """Return the positions of a prompt, or of all prompts of a class; raises ConfigError if there are none."""
    if isinstance(word, str):
        rows = [row for row, prompt in enumerate(ontology.prompts) if prompt == word]
        known, what = ontology.prompts, f'prompt "{word}"'
    else:
        names = [ontology.class_names[one] for one in ontology.class_of_prompt]
        rows = [row for row, name in enumerate(names) if name == word[1]]
        known, what = ontology.class_names, f'class "{word[1]}"'
    if not rows:
        near = nearest(word if isinstance(word, str) else word[1], known)
        raise ConfigError(f"{where}: class dictionary {ontology.name} has no {what}{near}")
    return rows


def find_card(card: str, weights: str) -> Path:
    """Return the file of a card: given by path or by the name of one of ours, else the one beside the weights."""
    if not card:
        return Path(weights).with_suffix(".toml")
    path, ours = Path(card), CARDS / f"{card}.toml"
    return ours if not path.is_file() and path.name == card and ours.is_file() else path


def read_card(path: Path) -> Card:
    """Return a card; raises ConfigError that says what is wrong with it, or that it is not there."""
    try:
        document = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        ours = ", ".join(sorted(one.stem for one in CARDS.glob("*.toml")))
        raise ConfigError(
            f"teacher.card: {path} cannot be read ({error.strerror}); a network needs a card that says what goes in "
            f"and what comes out (docs/teachers.md shows one), at that place or named by teacher.card (ours: {ours})"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    parts = ("network", "input", "output", "classes")
    for name, values in document.items():
        if name not in (*parts, "dictionaries") or not isinstance(values, dict):
            raise ConfigError(f"{path}: there is no section [{name}]; a card has {', '.join(parts)}, dictionaries.NAME")
    network, into, out, classes = (document.get(name, {}) for name in parts)
    try:
        return Card(
            path,
            parse_section("network", network, CardNetwork),
            parse_section("input", into, CardInput),
            parse_section("output", out, CardOutput),
            parse_section("classes", classes, CardClasses),
            {name: _words(name, values) for name, values in document.get("dictionaries", {}).items()},
        )
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _words(dictionary: str, values: Any) -> dict[str, tuple[str | tuple[str, str], ...]]:
    """Return what classes stand for in a dictionary, as written; raises ConfigError for anything but words."""
    where = f"[dictionaries.{dictionary}]"
    if not isinstance(values, dict):
        raise ConfigError(f'{where} is no table; write lines such as road = ["road"] below it')
    found = {}
    for name, words in values.items():
        listed = words if isinstance(words, list) else [words]
        taken: list[str | tuple[str, str]] = []
        for word in listed:
            if isinstance(word, str):
                taken.append(word)
            elif isinstance(word, dict) and list(word) == ["class"] and isinstance(word["class"], str):
                taken.append(("class", word["class"]))
            else:
                raise ConfigError(f'{where} {name} is {words!r}; expected prompts, or {{ class = "NAME" }}')
        found[name] = tuple(taken)
    return found
