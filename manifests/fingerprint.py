"""Identities: canonical JSON of what a result depends on, its digest, and a readable difference of two of them."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    Json: TypeAlias = bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"] | None
else:
    Json = object  # what reads documents by their annotations takes any value here
"""A value that JSON has; sets, bytes and objects are none."""

Settings: TypeAlias = Mapping[str, Json]
"""Values by name that no class spells out, since their keys are those of a recipe, of a teacher, of packages."""

DIGITS = 12  # of a hex digest in names: 48 bits, ample for the tables and shards of one store


def canonical(value: Json) -> str:
    """Return JSON with one spelling per value: sorted keys, no spaces, tuples as lists, shortest round-trip floats.

    Raises TypeError for anything without a stable form (sets, objects, bytes, non-string keys) and ValueError for NaN
    and infinities, so that an identity never hides a difference.
    """
    if type(value) is str:  # what most of the values of a long list of frames are
        return encode_basestring(value)
    if type(value) is tuple and all(type(item) is str for item in value):
        return f"[{','.join(map(encode_basestring, value))}]"
    return ENCODER.encode(plain(value))


ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
PLAIN = frozenset((str, int, bool, type(None)))


def plain(value: Any) -> Any:
    """Return the value built of dicts, lists, strings, numbers, booleans and None only; see `canonical` for errors."""
    if type(value) in PLAIN or isinstance(value, (str, int)):  # most values are told by their very type
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no JSON form; an identity holds finite numbers only")
        return value
    if isinstance(value, (list, tuple)):
        return [item if type(item) in PLAIN else plain(item) for item in value]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} of an identity is not a string")
        return {key: item if type(item) in PLAIN else plain(item) for key, item in value.items()}
    raise TypeError(f"{value!r} ({type(value).__name__}) has no stable form; an identity holds plain values only")


def digest(value: Json) -> str:
    """Return the first 12 hex digits of the sha256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:DIGITS]


def sha256_file(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(old: Json, new: Json, absent: str = "(default)") -> list[str]:
    """Return one line per value that differs, for example `settings.min_points: 2 -> 3`, in sorted order of paths.

    `absent` stands for what one of them does not hold: in an identity that is the default.
    """
    before, after = dict(leaves(plain(old))), dict(leaves(plain(new)))
    lines = []
    filled = {path[:at] for path in before.keys() | after.keys() for at, sign in enumerate(path) if sign == "."}
    for path in sorted((before.keys() | after.keys()) - filled):  # what is empty on one side has its lines by then
        ends = before.get(path, _ABSENT), after.get(path, _ABSENT)
        if ends[0] != ends[1]:
            lines.append(f"{path}: {' -> '.join(absent if one is _ABSENT else show(one) for one in ends)}")
    return lines


_ABSENT = object()


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of every scalar, list and empty mapping in `value`; lists stay whole."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path, value


def show(value: Any) -> str:
    """Return a value as short text."""
    text = canonical(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def looks_of(path: Path | str) -> str | None:
    """Return how a file looks from outside, without opening it: size and times of change; None if it is not there.

    Beside the time of modification, which copying tools restore, it is the time of the last change of the entry, which
    nobody can set.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a zero byte in it
        return None
    return f"[{status.st_size},{status.st_mtime_ns},{status.st_ctime_ns}]"


def sha256_as_it_looks(path: Path) -> str:
    """Return the hex sha256 of a file, which is read once as long as it looks the same; raises OSError."""
    return _sha256_of(path, looks_of(path))


@lru_cache(maxsize=4096)
def _sha256_of(path: Path, looks: str | None) -> str:
    return sha256_file(path)
