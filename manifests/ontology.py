"""Class dictionaries: coarse and fine classes, prompts in groups, raw labels, colours.

A dictionary is data, a TOML file of three kinds of tables. The chain is prompt -> group -> fine class -> coarse class:

``[[class]]``  coarse classes, what is trained and evaluated; the first is named "ignore". Keys: ``name``, ``colour``
               ("#rrggbb"), ``ground`` (may a ground plane carry it; default false).
``[[fine]]``   fine classes, what data sets label. Keys: ``name``, ``class``, ``raw`` (labels as stored; default none).
               Without any such table every class is its own fine class.
``[[group]]``  prompts that name one fine class. Keys: ``name``, ``fine``, ``thing`` (countable or not), ``prompts``,
               ``concepts`` (noun phrases for models that search for one thing at a time; default none).
"""

from __future__ import annotations

import html
import re
import tomllib
import unicodedata
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.fingerprint import Json, Settings

IGNORE = "ignore"
"""Name of class 0: no class. It is never predicted, trained or counted."""

FOLDER = Path(__file__).with_name("ontologies")

_MOST_CLASSES = 256  # class ids are stored as uint8
_MOST_FINE = 99  # official point labels are 100 * superpoint + fine class, and 99 is what -1 leaves modulo 100
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True)
class CoarseClass:
    """A class that is trained and evaluated; its id is its position in the dictionary.

    ``rgb`` is its colour in pictures, 0..255; ``ground`` says whether a ground plane may carry it.
    """

    name: str
    rgb: tuple[int, int, int]
    ground: bool


@dataclass(frozen=True)
class FineClass:
    """A class that a data set labels, the coarse class it counts as, and the raw labels that stand for it."""

    name: str
    coarse: str
    raw: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Prompts that name the same fine class; ``thing`` groups hold countable objects.

    ``concepts`` are a few short noun phrases, chosen so that together they find all of it. Models such as SAM 3, whose
    cost grows with every phrase, are asked for these instead of the prompts; a group without any is not asked for.
    """

    name: str
    fine: str
    thing: bool
    prompts: tuple[str, ...]
    concepts: tuple[str, ...] = ()


MOST_TOKENS = 75
"""Tokens of a text that CLIP reads: 77 with the two that mark its ends. Source: openai/CLIP, `context_length`."""

_PIECE = re.compile(r"'(?:s|t|re|ve|m|ll|d)|[^\W\d_]+|\d|(?:[^\s\w]|_)+")
_STRAIGHT = {ord(c): "'" for c in "\u2018\u2019\u201a\u201b"} | {ord(c): '"' for c in "\u201c\u201d\u201e\u201f"}


def as_tokenized(text: str) -> str:
    """Return what CLIP's tokenizer makes of a text before it looks pieces up; texts of one result have one vector.

    HTML entities, ligatures, full width, curly quotes, composition, case and blanks are gone, and so is all beyond the
    75th piece: a piece has at least one token. (Some texts of fewer pieces agree in their first 75 tokens as well.)
    Source: open_clip's `SimpleTokenizer`, its pattern, and its `basic_clean`, which is ftfy and two `html.unescape`.
    """
    plain = html.unescape(html.unescape(text)).translate(_STRAIGHT)
    narrow = (unicodedata.normalize("NFKC", c) if "\ufb00" <= c <= "\ufb06" or c >= "\uff01" else c for c in plain)
    composed = " ".join(unicodedata.normalize("NFC", "".join(narrow)).lower().split())
    return " ".join(_PIECE.findall(composed)[:MOST_TOKENS])


@dataclass(frozen=True)
class Duplicate:
    """One text that occurs as several prompts: equal scores, so an argmax never picks any but the first."""

    prompt: str
    prompt_ids: tuple[int, ...]
    groups: tuple[str, ...]

    def __str__(self) -> str:
        places = ", ".join(f"{i} ({group})" for i, group in zip(self.prompt_ids, self.groups, strict=True))
        return f"prompt {self.prompt!r} occurs at {places}; only the first can win"


@dataclass(frozen=True)
class Ontology:
    """A class dictionary. Ids are positions: class 0 is "ignore", prompt ids count through the groups in order.

    The arrays below are read-only and aligned with ``classes``, ``fine``, ``groups`` or ``prompts``, as named.
    ``raw_mask`` selects the bits of a stored label that are the class (the others are an instance id), or is None.
    """

    name: str
    version: int
    classes: tuple[CoarseClass, ...]
    fine: tuple[FineClass, ...]
    groups: tuple[Group, ...]
    raw_mask: int | None = None

    def __post_init__(self) -> None:  # noqa: C901 (one check after another)
        what = f"ontology {self.name!r}"
        class_names = _unique([c.name for c in self.classes], f"{what}: class")
        fine_names = _unique([f.name for f in self.fine], f"{what}: fine class")
        _unique([g.name for g in self.groups], f"{what}: group")
        if class_names[:1] != [IGNORE]:
            raise ValueError(f"{what}: the first class must be named {IGNORE!r}, it has id 0 and means no class")
        if not 2 <= len(class_names) <= _MOST_CLASSES:
            raise ValueError(f"{what}: {len(class_names)} classes; expected 2 to {_MOST_CLASSES}, 'ignore' included")
        if len(fine_names) > _MOST_FINE:
            raise ValueError(f"{what}: {len(fine_names)} fine classes; at most {_MOST_FINE} fit the point label format")
        if not self.groups:
            raise ValueError(f"{what}: there is no [[group]], so there is no prompt to look for")
        for fine in self.fine:
            if fine.coarse not in class_names:
                raise ValueError(f"{what}: fine class {fine.name!r} names class {fine.coarse!r}; known: {class_names}")
        for group in self.groups:
            if group.fine not in fine_names:
                raise ValueError(f"{what}: group {group.name!r} names fine class {group.fine!r}; known: {fine_names}")
            if not group.prompts:
                raise ValueError(f"{what}: group {group.name!r} has no prompts; give it one or remove it")
            for prompt in group.prompts:
                if not prompt.strip():
                    raise ValueError(f"{what}: group {group.name!r} has an empty prompt; write a word or remove it")
            for concept in group.concepts:
                if not concept.strip():
                    raise ValueError(f"{what}: group {group.name!r} has an empty concept; write a word or remove it")
        owner: dict[int, str] = {}
        for fine in self.fine:
            for raw in fine.raw:
                if raw in owner:
                    raise ValueError(f"{what}: raw label {raw} stands for {owner[raw]!r} and for {fine.name!r}")
                if not 0 <= raw <= 0xFFFF or (self.raw_mask is not None and raw & ~self.raw_mask):
                    raise ValueError(
                        f"{what}: raw label {raw} of {fine.name!r} is not in 0..65535 or has bits outside raw_mask"
                    )
                owner[raw] = fine.name

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the coarse classes, (n_classes,)."""
        return tuple(c.name for c in self.classes)

    @cached_property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt in order, verbatim, duplicates kept."""
        return tuple(prompt for group in self.groups for prompt in group.prompts)

    @cached_property
    def class_of_fine(self) -> npt.NDArray[np.uint8]:
        """Coarse class id of each fine class, (n_fine,)."""
        return _fixed([self.class_names.index(f.coarse) for f in self.fine], np.uint8)

    @cached_property
    def fine_of_group(self) -> npt.NDArray[np.int32]:
        """Fine class id of each group, (n_groups,)."""
        position = {f.name: i for i, f in enumerate(self.fine)}
        return _fixed([position[g.fine] for g in self.groups], np.int32)

    @cached_property
    def group_of_prompt(self) -> npt.NDArray[np.int32]:
        """Group id of each prompt, (n_prompts,)."""
        return _fixed([i for i, group in enumerate(self.groups) for _ in group.prompts], np.int32)

    @cached_property
    def fine_of_prompt(self) -> npt.NDArray[np.int32]:
        """Fine class id of each prompt, (n_prompts,)."""
        return _fixed(self.fine_of_group[self.group_of_prompt], np.int32)

    @cached_property
    def class_of_prompt(self) -> npt.NDArray[np.uint8]:
        """Coarse class id of each prompt, (n_prompts,); 0 for prompts that only catch what is no class."""
        return _fixed(self.class_of_fine[self.fine_of_prompt], np.uint8)

    @cached_property
    def thing_of_prompt(self) -> npt.NDArray[np.bool_]:
        """Whether each prompt names countable objects, (n_prompts,)."""
        return _fixed([self.groups[g].thing for g in self.group_of_prompt], np.bool_)

    @cached_property
    def thing_of_class(self) -> npt.NDArray[np.bool_]:
        """Whether each coarse class has a group of countable objects, (n_classes,); False for class 0."""
        things = np.zeros(len(self.classes), dtype=np.bool_)
        things[self.class_of_prompt[self.thing_of_prompt]] = True
        things[0] = False
        return _fixed(things, np.bool_)

    @cached_property
    def ground_class_ids(self) -> tuple[int, ...]:
        """Ids of the classes that a ground plane may carry, ascending."""
        return tuple(i for i, c in enumerate(self.classes) if c.ground)

    @cached_property
    def rgb_of_class(self) -> npt.NDArray[np.uint8]:
        """Colour of each coarse class, (n_classes, 3)."""
        return _fixed([c.rgb for c in self.classes], np.uint8)

    @cached_property
    def _fine_of_raw(self) -> npt.NDArray[np.int32]:
        """Fine class of each raw label; -1 where unknown, as is the last entry, which stands for all larger labels."""
        table = np.full(max((raw for f in self.fine for raw in f.raw), default=-1) + 2, -1)
        for i, fine in enumerate(self.fine):
            table[list(fine.raw)] = i
        return _fixed(table, np.int32)

    def fine_of_raw_labels(self, raw: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
        """Fine class id of each stored label, same shape as ``raw`` (any integer type).

        Raises ValueError naming the labels that the dictionary does not list: a label file of another data set, or
        damage.
        """
        if not np.issubdtype(raw.dtype, np.integer):
            raise ValueError(f"raw labels have dtype {raw.dtype}; expected whole numbers")
        label = raw.astype(np.int64)
        if self.raw_mask is not None:
            label &= self.raw_mask
        table = self._fine_of_raw
        fine: npt.NDArray[np.int32] = table[np.where(label < 0, len(table) - 1, np.minimum(label, len(table) - 1))]
        if (fine < 0).any():
            unknown = np.unique(label[fine < 0])[:10].tolist()
            raise ValueError(f"raw labels {unknown} are not in ontology {self.name!r}; is this its label file?")
        return fine

    def class_of_raw_labels(self, raw: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Coarse class id of each stored label, same shape as ``raw``; raises like ``fine_of_raw_labels``."""
        return self.class_of_fine[self.fine_of_raw_labels(raw)]

    def class_of_fine_labels(self, fine: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
        """Coarse class id of each fine label, same shape as ``fine``; no label becomes 0.

        No label is -1, or 99: what an official point label of -1 leaves modulo 100 where modulo rounds down (it
        leaves -1 where modulo truncates, so both are taken). Raises ValueError for any other label outside the
        dictionary.
        """
        none = (fine == -1) | (fine == 99)
        unknown = fine[~none & ((fine < 0) | (fine >= len(self.fine)))]
        if unknown.size:
            raise ValueError(
                f"fine labels {np.unique(unknown)[:10].tolist()} are not in ontology {self.name!r}, "
                f"which has 0..{len(self.fine) - 1} and -1 or 99 for none"
            )
        return np.where(none, np.uint8(0), self.class_of_fine[np.where(none, 0, fine)])

    def renumbering(self, names: Mapping[int, str]) -> npt.NDArray[np.uint16] | None:
        """Return the dictionary's raw label of each number that a data set gives a class, by that number.

        ``names`` are its fine classes by number; numbers without a name stay. None where the numbers are the
        dictionary's already, or the names are of other classes altogether. Raises ValueError for a class that it does
        not know beside others that it does.
        """
        known = {fine.name: fine.raw[0] for fine in self.fine if len(fine.raw) == 1}
        if all(known.get(name, number) == number for number, name in names.items()):
            return None
        unknown = sorted(set(names.values()) - known.keys())
        if unknown:
            raise ValueError(
                f"classes are numbered otherwise than in dictionary {self.name}, which does not know {unknown[0]!r}, "
                "so they cannot be brought to it; use a dictionary of these classes"
            )
        table = np.arange(max(0xFF, *names) + 1, dtype=np.uint16)
        for number, name in names.items():
            table[number] = known[name]
        return table

    def raw_of_class(self) -> npt.NDArray[np.uint32]:
        """Return the label that stands for each class in files, (n_classes,); 0 for class 0.

        It is the one raw label of the fine class that bears the class's own name. Raises ValueError where there is
        none.
        """
        raw = {fine.name: fine.raw for fine in self.fine}
        for name in self.class_names[1:]:
            if len(raw.get(name, ())) != 1:
                raise ValueError(
                    f"class {name!r} of dictionary {self.name} has no fine class of that name with one raw label, so "
                    "predictions of it cannot be written"
                )
        return np.array([0, *(raw[name][0] for name in self.class_names[1:])], np.uint32)

    def duplicates(self, read: Callable[[str], Hashable] = as_tokenized) -> tuple[Duplicate, ...]:
        """Return the texts that occur more than once, in order of their first prompt id.

        Texts are equal if the tokenizer reads them alike and so gives them one vector: only the first can ever win.
        `read` is what a tokenizer makes of a text, CLIP's as far as it can be told without it.
        """
        found: dict[Hashable, list[int]] = {}
        for i, prompt in enumerate(self.prompts):
            found.setdefault(read(prompt), []).append(i)
        return tuple(
            Duplicate(self.prompts[ids[0]], tuple(ids), tuple(self.groups[self.group_of_prompt[i]].name for i in ids))
            for ids in found.values()
            if len(ids) > 1
        )

    def prompt_content(self) -> list[str]:
        """Return what prompt vectors depend on, as plain JSON: the ordered prompts."""
        return list(self.prompts)

    def concept_content(self) -> list[list[Any]]:
        """Return what masks made from concepts depend on, as plain JSON: the groups that have any, in order."""
        return [[g.name, list(g.concepts)] for g in self.groups if g.concepts]

    def label_content(self) -> dict[str, Json]:
        """Return what labels made from prompts depend on, as plain JSON: classes, fine classes, maps to them."""
        return {
            "classes": list(self.class_names),
            "fine": [f.name for f in self.fine],
            "class_of_fine": self.class_of_fine.tolist(),
            "fine_of_group": self.fine_of_group.tolist(),
            "thing_of_group": [g.thing for g in self.groups],
            "group_of_prompt": self.group_of_prompt.tolist(),
        }

    def raw_content(self) -> dict[str, Json]:
        """Return what labels read from a data set depend on, as plain JSON: names and the map from raw labels."""
        return {
            "classes": list(self.class_names),
            "fine": [[f.name, f.coarse, sorted(f.raw)] for f in self.fine],
            "raw_mask": self.raw_mask,
        }


def load_ontology(name_or_path: str | Path) -> Ontology:
    """Return the class dictionary of that name ("nuscenes", "semantic_kitti"), or of a user's own ``.toml`` file.

    Raises ValueError for an unknown name or a file that is no valid dictionary (which, where, and what was expected),
    FileNotFoundError for a path that is not there.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        built_in = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
        if str(name_or_path) not in built_in:
            raise ValueError(f"unknown ontology {str(name_or_path)!r}; expected {', '.join(built_in)} or a .toml file")
        path = built_in[str(name_or_path)]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such ontology file")
    try:
        return parse_ontology(tomllib.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:  # tomllib and utf-8 errors are ValueErrors too
        raise ValueError(f"{path}: {error}") from error


def parse_ontology(table: Settings) -> Ontology:
    """Return the class dictionary held in a parsed TOML document; raises ValueError naming the key that is wrong."""
    top = _Reader(table, "the file", {"name", "version", "raw_mask", "class", "fine", "group"})
    classes = []
    for entry in top.tables("class", {"name", "colour", "ground"}):
        colour = entry.get("colour", str)
        if not _COLOUR.fullmatch(colour):
            raise ValueError(f"{entry.where}: colour is {colour!r}; expected six hexadecimal digits like '#ff7a1a'")
        red, green, blue = bytes.fromhex(colour[1:])
        classes.append(CoarseClass(entry.get("name", str), (red, green, blue), entry.get("ground", bool, False)))
    fine = [
        FineClass(entry.get("name", str), entry.get("class", str), tuple(entry.items("raw", int, [])))
        for entry in top.tables("fine", {"name", "class", "raw"})
    ]
    groups = [
        Group(
            entry.get("name", str),
            entry.get("fine", str),
            entry.get("thing", bool),
            tuple(entry.items("prompts", str)),
            tuple(entry.items("concepts", str, [])),
        )
        for entry in top.tables("group", {"name", "fine", "thing", "prompts", "concepts"})
    ]
    return Ontology(
        name=top.get("name", str),
        version=top.get("version", int),
        classes=tuple(classes),
        fine=tuple(fine) or tuple(FineClass(c.name, c.name, ()) for c in classes),
        groups=tuple(groups),
        raw_mask=top.get("raw_mask", int) if "raw_mask" in table else None,
    )


class _Reader:
    """Reads typed values out of one TOML table; its errors say where."""

    def __init__(self, table: Settings, where: str, known: set[str]) -> None:
        self._table = table
        self.where = where
        unknown = sorted(set(table) - known)
        if unknown:
            raise ValueError(f"{where} has unknown keys {unknown}; expected {sorted(known)}")

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        value = self._table.get(key, default)
        if value is None:
            raise ValueError(f"{self.where} has no {key!r}; expected a value of type {kind.__name__}")
        if type(value) is not kind:  # not isinstance: true is an int in Python, and no number here
            raise ValueError(f"{self.where}: {key} is {value!r}; expected a value of type {kind.__name__}")
        return value

    def items(self, key: str, kind: type, default: list[Any] | None = None) -> list[Any]:
        values = self.get(key, list, default)
        for value in values:
            if type(value) is not kind:
                raise ValueError(f"{self.where}: {key} holds {value!r}; expected only values of type {kind.__name__}")
        return list(values)

    def tables(self, key: str, known: set[str]) -> list[_Reader]:
        return [
            _Reader(table, f"[[{key}]] number {i} ({table.get('name', 'no name')})", known)
            for i, table in enumerate(self.items(key, dict, []))
        ]


def _unique(names: list[str], what: str) -> list[str]:
    for name in names:
        if not name or names.count(name) > 1:
            raise ValueError(f"{what} {name!r} is empty or defined more than once; names must differ")
    return names


def _fixed(values: npt.ArrayLike, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    array = np.array(values, dtype=dtype)
    array.setflags(write=False)
    return array
