"""JSON documents as frozen dataclasses: the class says all that its document holds; reading and writing follow from it.

A field without a default must be there. One with a default need not: it does not apply everywhere, or versions before
did not write it; None of such a field is not written, unless it is marked NULL. Whatever else a document holds makes it
none of its kind, so that no entry is read by half, or misspelt and passed over.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Hashable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")

REST = {"rest": True}
"""Metadata of the one field, a mapping, that takes the entries that no other field is named after."""

NULL = {"null": True}
"""Metadata of a field that may lack in what other versions wrote, and of which None is written as null."""


LEAVES = (str, int, float, bool)


class Unfit(ValueError):
    """A document that is none of its kind, as a sentence that goes on after the name of its file."""


def as_document(record: Any) -> Any:
    """Return a record, or any value within one, as JSON has it."""
    if record is None or type(record) in LEAVES:  # most of all values, and cheaper to tell than what else they may be
        return record
    if is_dataclass(record) and not isinstance(record, type):
        document: dict[str, object] = {}
        for name, rest, always in _entries(type(record)):
            value = getattr(record, name)
            if rest:
                document |= as_document(value)
            elif value is not None or always:
                document[name] = value if type(value) in LEAVES else as_document(value)
        return document
    if isinstance(record, Mapping):
        return {str(name): value if type(value) in LEAVES else as_document(value) for name, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [value if type(value) in LEAVES else as_document(value) for value in record]
    return record


@cache
def _entries(kind: Any) -> tuple[tuple[str, bool, bool], ...]:
    """Return of each field its name, whether it takes the entries of no other, and whether None of it is written."""
    return tuple((one.name, one.metadata == REST, not _may_lack(one) or one.metadata == NULL) for one in fields(kind))


def as_record(kind: type[T], document: object) -> T:
    """Return a document as the record of its kind; raises Unfit for an entry that is missing, unknown or no such value.

    Numbers are finite; a whole number may stand where any number may.
    """
    record: T = _reader(typing.cast(Hashable, kind))(document, "")
    return record


@dataclass(frozen=True)
class _Record:
    """How documents of a dataclass are read: its annotations, what must be there, and the field for other entries."""

    kind: type[Any]
    hints: Mapping[str, Any]
    needed: frozenset[str]
    rest: str | None

    def __call__(self, value: object, where: str) -> Any:
        if not isinstance(value, Mapping):
            raise _refusal(value, where, "an object")
        named = {name: item for name, item in value.items() if name in self.hints and name != self.rest}
        others = {name: item for name, item in value.items() if name not in named}
        if others and self.rest is None:
            raise Unfit(f"it holds {_at(where, min(map(str, others)))}, which no such document does")
        if missing := self.needed - named.keys():
            raise Unfit(f"it lacks {_at(where, min(missing))}")
        if self.rest is not None:
            named[self.rest] = others
        # readers are found here and not before: a record may hold one of its own kind
        read = {name: _reader(self.hints[name])(item, _dotted(where, name)) for name, item in named.items()}
        return self.kind(**read)


@cache
def _reader(kind: Any) -> Callable[[object, str], Any]:
    """Return what makes a value of JSON, found at a place of its document, one of an annotated type."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if is_dataclass(kind) and isinstance(kind, type):
        return _record_of(kind)
    if origin in (Union, types.UnionType):
        return _reader_of_any(options)
    if origin is tuple and len(options) == 2 and options[1] is Ellipsis:
        item = _reader(options[0])
        return lambda value, where: tuple(item(one, f"{where}[{n}]") for n, one in enumerate(_list(value, where)))
    if origin is tuple:
        return _reader_of_tuple(options)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        entry = _reader(options[1])
        return lambda value, where: {name: entry(one, _dotted(where, name)) for name, one in _object(value, where)}
    return _reader_of_scalar(kind, options if origin is Literal else ())


def _record_of(kind: type[Any]) -> _Record:
    hints = typing.get_type_hints(kind)
    rest = [item.name for item in fields(kind) if item.metadata == REST]
    needed = frozenset(item.name for item in fields(kind) if not _may_lack(item)) - {*rest}
    return _Record(kind, hints, needed, rest[0] if rest else None)


def _reader_of_tuple(options: tuple[Any, ...]) -> Callable[[object, str], Any]:
    readers = [_reader(option) for option in options]

    def read(value: object, where: str) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(readers):
            raise _refusal(value, where, f"a list of {len(readers)}")
        return tuple(reader(one, f"{where}[{n}]") for n, (reader, one) in enumerate(zip(readers, value, strict=True)))

    return read


def _reader_of_any(options: tuple[Any, ...]) -> Callable[[object, str], Any]:
    readers = [_reader(option) for option in options if option is not type(None)]
    nothing = type(None) in options

    def read(value: object, where: str) -> Any:
        if value is None and nothing:
            return None
        for reader in readers[:-1]:
            try:
                return reader(value, where)
            except Unfit:
                continue
        return readers[-1](value, where)  # what it says of the last kind is the reason

    return read


def _reader_of_scalar(kind: Any, words: tuple[object, ...]) -> Callable[[object, str], Any]:
    def read(value: object, where: str) -> Any:
        if kind is object or (words and value in words):
            return value
        if kind is float and type(value) in (int, float) and math.isfinite(typing.cast(float, value)):
            return float(typing.cast(float, value))
        if kind in (bool, int, str) and type(value) is kind:
            return value
        raise _refusal(value, where, " or ".join(map(repr, words)) or getattr(kind, "__name__", str(kind)))

    return read


def _may_lack(item: Any) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list | tuple):
        raise _refusal(value, where, "a list")
    return list(value)


def _object(value: object, where: str) -> list[tuple[str, object]]:
    if not isinstance(value, Mapping):
        raise _refusal(value, where, "an object")
    return list(value.items())


def _refusal(value: object, where: str, expected: str) -> Unfit:
    said = repr(value)
    shown = f"{said[:60]}..." if said[60:] else said
    return Unfit(f"{f'its `{where}`' if where else 'it'} is {shown}; expected {expected}")


def _dotted(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _at(where: str, name: str) -> str:
    return f"`{_dotted(where, name)}`"
