"""Point cloud files that name their columns, by their ending: .npy, .npz, .pcd and .ply; which are read, `clouds` says.

All are decoded here and not by Open3D, because damage must be seen: from a .ply that was cut off Open3D 0.20 returns as
many points as the header promises, the last ones made up, and a .pcd without the line WIDTH ends the process.
"""

from __future__ import annotations

import codecs
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
"""Columns of a point cloud by name, (n,) each, in the order of the file; """

_PCD_TYPES = {(kind.upper(), str(size)): f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {
    ("F", "4"): "f4",
    ("F", "8"): "f8",
}
_PLY_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
_PLY_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">"}
_HEADER_LINE = re.compile(rb"[^\n]*\n")
_MOST_BYTES = 2**32  # of arrays that were packed
_MOST = 10**12  # points, or values of one: more than any file holds
_LONGEST_HEADER = 100  # lines; point clouds have a dozen


@dataclass(frozen=True)
class Column:
    """A column of a point cloud: its name, its type as NumPy has it but for the byte order, and values per point."""

    name: str
    type: str
    count: int = 1


def read_npy(content: bytes) -> Columns | npt.NDArray[Any]:
    """Return the array (n, k) in a .npy file, or the columns of a structured one (n,); raises ValueError."""
    array = load_npy(content)
    if array.dtype.names:
        if array.ndim != 1:
            raise ValueError(f"a structured array (n,) was expected; it is {array.shape} of {array.dtype}")
        return checked_numbers({name: array[name] for name in array.dtype.names})
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"an array (n, 3 or more) of numbers was expected; it is {array.shape} of {array.dtype}")
    return array


def read_npz(content: bytes) -> Columns | npt.NDArray[Any]:
    """Return what a .npz file holds: one array as in .npy; arrays x, y, z and others (n,); or xyz (n, 3 or more) and
    others (n,). Raises ValueError.
    """
    arrays = load_npz(content)
    tables = [name for name, array in arrays.items() if array.ndim == 2]
    if len(arrays) == 1 and not tables:
        [array] = arrays.values()
        return checked_numbers({name: array[name] for name in array.dtype.names or ()})
    if len(arrays) == 1:
        return arrays[tables[0]]
    columns = {name: array for name, array in arrays.items() if array.ndim == 1}
    if len(tables) == 1 and arrays[tables[0]].shape[1] == 3:
        columns = {name: arrays[tables[0]][:, i] for i, name in enumerate("xyz")} | columns
    if len({len(column) for column in columns.values()}) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"arrays x, y, z (n,), or one (n, 3), and others (n,) were expected; it has {shapes}")
    return checked_numbers(columns)


def checked_numbers(columns: Columns) -> Columns:
    """Return those columns that are numbers, one a point; raises ValueError where x, y or z is none of them."""
    kept = {name: column for name, column in columns.items() if column.dtype.kind in "fiu" and column.ndim == 1}
    if not {name.lower() for name in kept} >= {"x", "y", "z"}:
        raise ValueError(f"fields x, y, z of numbers were expected; it has {', '.join(columns) or 'none'}")
    return kept


def load_npz(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays in a .npz file by name; raises ValueError unless all are whole, and no more than files hold."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            if sum(entry.file_size for entry in file.infolist()) > _MOST_BYTES:
                raise ValueError(f"it holds more than {_MOST_BYTES} bytes")
            return {
                entry.filename.removesuffix(".npy"): load_npy(file.read(entry))
                for entry in file.infolist()
                if entry.filename.endswith(".npy")
            }
    except Exception as error:  # zip files are damaged in as many ways
        raise ValueError(f"this is no whole .npz file of numbers ({error})") from None


def load_npy(content: bytes) -> npt.NDArray[Any]:
    """Return the array in a .npy file; raises ValueError unless it is one of numbers, whole."""
    try:
        if not content.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("it does not start as one")
        loaded: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # the header is parsed as Python, and fails in as many ways
        raise ValueError(f"this is no whole .npy file of numbers ({error})") from None
    return loaded


def read_pcd(content: bytes) -> Columns:
    """Return the columns of a .pcd file: text, binary or compressed. Source: the format's page at pointclouds.org."""
    header, body = header_and_body(content, b"DATA")
    entries = {words[0]: words[1:] for words in header if words}
    try:
        n_points, kind = int(entries["POINTS"][0]), entries["DATA"][0]
        counts = [int(count) for count in entries.get("COUNT", ["1"] * len(entries["FIELDS"]))]
        parts = zip(entries["FIELDS"], entries["TYPE"], entries["SIZE"], counts, strict=True)
        columns = [Column(name, _PCD_TYPES[type_, size], count) for name, type_, size, count in parts]
        if not (0 <= n_points <= _MOST and all(0 <= count <= _MOST for count in counts)):
            raise ValueError
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            "its header lacks FIELDS, TYPE, SIZE, POINTS or DATA, or they make no sense together; this is no .pcd file"
        ) from None
    if kind == "ascii":
        return text_columns(columns, n_points, body)
    if kind == "binary":
        return binary_columns(columns, n_points, body, "<")
    if kind == "binary_compressed":
        return unpacked_columns(columns, n_points, body)
    raise ValueError(f"its DATA is {kind!r}; expected ascii, binary or binary_compressed")


def unpacked_columns(columns: Sequence[Column], n_points: int, body: bytes) -> Columns:
    """Return the columns of a compressed body: its two sizes, then all of one column after all of the other, as LZF."""
    packed, unpacked = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    sizes = [n_points * np.dtype(one.type).itemsize * one.count for one in columns]
    check_whole(n_points, len(body) - 8 >= packed and unpacked == sum(sizes))
    values = unpack_lzf(body[8 : 8 + packed], unpacked)
    starts = np.cumsum([0, *sizes]).tolist()
    return by_name(
        (one.name, np.frombuffer(values, f"<{one.type}", n_points * one.count, start).reshape(n_points, -1)[:, 0])
        for one, start in zip(columns, starts, strict=False)
        if one.count and n_points
    )


def unpack_lzf(packed: bytes, size: int) -> bytes:
    """Return `size` bytes out of an LZF stream; raises ValueError if it does not hold them. Source: liblzf's format.

    A byte below 32 is followed by one more literal bytes than it says. Any other repeats what was unpacked before: its
    upper 3 bits (and one more byte where these are all set) say how long, the lower 5 and the next byte how far back.
    """
    out = bytearray()
    position = 0
    try:
        while position < len(packed) and len(out) < size:
            control = packed[position]
            position += 1
            if control < 32:
                out += packed[position : position + control + 1]
                position += control + 1
                continue
            length = control >> 5
            if length == 7:
                length += packed[position]
                position += 1
            back = ((control & 31) << 8 | packed[position]) + 1
            position += 1
            length += 2
            if back > len(out):
                raise IndexError
            start = len(out) - back
            # what it repeats may reach into what it writes: then it is a pattern of `back` bytes
            out += out[start : start + length] if back >= length else (out[start:] * (length // back + 1))[:length]
    except IndexError:
        raise ValueError("its compressed part is damaged") from None
    if len(out) != size:
        raise ValueError(f"its compressed part is damaged: it holds {len(out)} bytes, not {size}")
    return bytes(out)


def read_ply(content: bytes) -> Columns:
    """Return the columns of the vertices of a .ply file, text or binary, which must be its first element."""
    header, body = header_and_body(content, b"end_header")
    elements = [words for words in header if words[:1] == ["element"]]
    kind = next((words[1] for words in header if words[:1] == ["format"] and len(words) > 1), "")
    if not content.removeprefix(codecs.BOM_UTF8).startswith(b"ply") or not elements or elements[0][1:2] != ["vertex"]:
        raise ValueError("its first element is not `vertex`; this is no .ply file of points")
    start = header.index(elements[0])
    stop = header.index(elements[1]) if len(elements) > 1 else len(header)
    try:
        n_points = min(int(elements[0][2]), _MOST)
        columns = [Column(words[2], _PLY_TYPES[words[1]]) for words in header[start:stop] if words[:1] == ["property"]]
    except (KeyError, IndexError, ValueError):
        raise ValueError("its points have a property that is no number of a known type") from None
    if kind == "ascii":
        return text_columns(columns, n_points, body)
    if kind in _PLY_ORDERS:
        return binary_columns(columns, n_points, body, _PLY_ORDERS[kind])
    raise ValueError(f"its format is {kind!r}; expected ascii, {' or '.join(_PLY_ORDERS)}")


def binary_columns(columns: Sequence[Column], n_points: int, body: bytes, order: str) -> Columns:
    """Return the columns of records one after the other."""
    record = np.dtype([(f"{i}", f"{order}{one.type}", (one.count,)) for i, one in enumerate(columns)])
    check_whole(n_points, len(body) >= n_points * record.itemsize)
    records = np.frombuffer(body, record, n_points) if record.itemsize else np.empty(n_points, record)
    return by_name((one.name, records[f"{i}"][:, 0]) for i, one in enumerate(columns) if one.count)


def text_columns(columns: Sequence[Column], n_points: int, body: bytes) -> Columns:
    """Return the columns of numbers written as text, as float64."""
    starts = np.cumsum([0, *(one.count for one in columns)])
    n_words = n_points * sum(one.count for one in columns)
    check_whole(n_points, n_words <= len(body))
    words = body.split(maxsplit=n_words)[:n_words]
    check_whole(n_points, len(words) == n_words)
    try:
        numbers = np.fromiter(map(float, words), np.float64, n_words).reshape(n_points, -1)
    except ValueError as error:
        raise ValueError(f"it holds a word that is no number ({error})") from None
    return by_name((one.name, numbers[:, starts[i]]) for i, one in enumerate(columns) if one.count)


def by_name(columns: Iterable[tuple[str, npt.NDArray[Any]]]) -> Columns:
    """Return columns by name; of those of one name, the first."""
    found: dict[str, npt.NDArray[Any]] = {}
    for name, column in columns:
        found.setdefault(name, column)
    return found


def check_whole(n_points: int, whole: bool) -> None:
    """Raise ValueError unless the file is whole."""
    if n_points < 0 or not whole:
        raise ValueError(f"it is truncated: its header promises {n_points} points, and the rest does not hold them")


def header_and_body(content: bytes, last: bytes) -> tuple[list[list[str]], bytes]:
    """Return the words of every line up to the one that starts with `last`, and what follows; raises ValueError."""
    header: list[list[str]] = []
    for line in _HEADER_LINE.finditer(content):
        header.append(line[0].decode("latin-1").split())
        if line[0].startswith(last):
            return header, content[line.end() :]
        if len(header) > _LONGEST_HEADER:
            break
    raise ValueError(f"its header has no line {last.decode()}; it is truncated, or another kind of file")


def read_feather(content: bytes) -> Columns:
    """Return the columns of numbers of a Feather file (Arrow), as Argoverse 2 has its sweeps; raises ValueError."""
    import pyarrow as pa
    from pyarrow import feather

    try:
        table = feather.read_table(pa.BufferReader(content))
        columns = {name: table[name].to_numpy() for name in table.column_names}
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"this is no whole .feather file ({error})") from None
    return checked_numbers(columns)


READERS: Mapping[str, Callable[[bytes], Columns | npt.NDArray[Any]]] = {
    ".npy": read_npy,
    ".npz": read_npz,
    ".pcd": read_pcd,
    ".ply": read_ply,
    ".feather": read_feather,
}
"""By the ending of a file's name."""


def read_point_labels(path: Path, content: bytes) -> npt.NDArray[np.uint16]:
    """Return a label per point, (n,): .npy of whole numbers, .bin of bytes, .label of uint32 whose upper half is an
    instance, as in SemanticKITTI. Raises ValueError saying what is wrong.
    """
    if path.suffix == ".npy":
        labels = load_npy(content)
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(f"an array (n,) of whole numbers was expected; it is {labels.shape} of {labels.dtype}")
        if labels.size and not 0 <= labels.min() <= labels.max() <= 0xFFFF:
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}; expected 0..65535")
        return labels.astype(np.uint16)
    if path.suffix == ".bin":
        return np.frombuffer(content, np.uint8).astype(np.uint16)
    if path.suffix == ".label":
        if len(content) % 4:
            raise ValueError(f"{len(content)} bytes is not a multiple of 4, the uint32 of a label; it is truncated")
        return (np.frombuffer(content, "<u4") & 0xFFFF).astype(np.uint16)
    raise ValueError("labels are read from files that end in .npy, .bin or .label; convert it to one of them")
