"""Point cloud files by their ending: .npy, .bin, .pcd.bin, .pcd and .ply.

All are decoded here and not by Open3D, because damage must be seen: from a .ply that was cut off Open3D 0.20 returns as
many points as the header promises, the last ones made up, and a .pcd without the line WIDTH ends the process.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Cloud = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""xyz_m float32 (n, 3) and intensity float32 (n,), in the order of the file; intensity is 0 where there is none."""

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
_MOST = 10**12  # points, or values of one: more than any file holds
_LONGEST_HEADER = 100  # lines; point clouds have a dozen


@dataclass(frozen=True)
class Column:
    """A column of a point cloud: its name, its type as NumPy has it but for the byte order, and values per point."""

    name: str
    type: str
    count: int = 1


def read_cloud(path: Path, content: bytes) -> Cloud:
    """Return the points in a file, whose content has been read already; raises ValueError saying what is wrong."""
    for ending, read in READERS.items():
        if path.name.endswith(ending):
            xyz, intensity = read(content)
            if not len(xyz):
                raise ValueError("there is no point in it")
            with np.errstate(over="ignore"):  # what is too large becomes infinite, which `index` reports by its point
                return np.ascontiguousarray(xyz, np.float32), np.ascontiguousarray(intensity, np.float32)
    raise ValueError(f"points are read from files that end in {', '.join(READERS)}; convert it to one of them")


def read_npy(content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the points of an array (n, 3 or more): x, y, z, intensity, or of a structured one by these names."""
    array = load_npy(content)
    if array.dtype.names:
        missing = [name for name in "xyz" if name not in array.dtype.names]
        if missing or array.ndim != 1:
            raise ValueError(f"a structured array (n,) with fields x, y, z was expected; it has {array.dtype.names}")
        columns = [
            array[name] for name in ("x", "y", "z", *(["intensity"] if "intensity" in array.dtype.names else []))
        ]
        if any(column.dtype.kind not in "fiu" for column in columns):
            raise ValueError("fields x, y, z and intensity must be numbers")
        array = np.stack(columns, axis=1)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"an array (n, 3 or more) of numbers was expected; it is {array.shape} of {array.dtype}")
    return array[:, :3], array[:, 3] if array.shape[1] > 3 else np.zeros(len(array), np.float32)


def load_npy(content: bytes) -> npt.NDArray[Any]:
    """Return the array in a .npy file; raises ValueError unless it is one of numbers, whole."""
    try:
        if not content.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("it does not start as one")
        loaded: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # the header is parsed as Python, and fails in as many ways
        raise ValueError(f"this is no whole .npy file of numbers ({error})") from None
    return loaded


def read_flat(content: bytes, n_columns: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return bare float32: x, y, z, intensity and perhaps more for every point; raises ValueError if it is cut off."""
    if not content or len(content) % (4 * n_columns):
        raise ValueError(
            f"{len(content)} bytes is not a positive multiple of {4 * n_columns}, the {n_columns} float32 of a point"
        )
    values = np.frombuffer(content, "<f4").reshape(-1, n_columns).astype(np.float32, copy=False)
    return np.ascontiguousarray(values[:, :3]), np.ascontiguousarray(values[:, 3])


def read_pcd(content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the points of a .pcd file: text, binary or compressed. Source: the format's page at pointclouds.org."""
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
        return chosen(text_columns(columns, n_points, body))
    if kind == "binary":
        return chosen(binary_columns(columns, n_points, body, "<"))
    if kind == "binary_compressed":
        return chosen(unpacked_columns(columns, n_points, body))
    raise ValueError(f"its DATA is {kind!r}; expected ascii, binary or binary_compressed")


def unpacked_columns(columns: Sequence[Column], n_points: int, body: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a compressed body: its two sizes, then all of one column after all of the other, as LZF."""
    packed, unpacked = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
    sizes = [n_points * np.dtype(one.type).itemsize * one.count for one in columns]
    check_whole(n_points, len(body) - 8 >= packed and unpacked == sum(sizes))
    values = unpack_lzf(body[8 : 8 + packed], unpacked)
    starts = np.cumsum([0, *sizes]).tolist()
    return {
        one.name: np.frombuffer(values, f"<{one.type}", n_points * one.count, starts[i]).reshape(n_points, -1)[:, 0]
        for i, one in reversed([*enumerate(columns)])
        if one.count and n_points
    }


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


def read_ply(content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the vertices of a .ply file, text or binary, which must be its first element."""
    header, body = header_and_body(content, b"end_header")
    elements = [words for words in header if words[:1] == ["element"]]
    kind = next((words[1] for words in header if words[:1] == ["format"] and len(words) > 1), "")
    if not content.startswith(b"ply") or not elements or elements[0][1:2] != ["vertex"]:
        raise ValueError("its first element is not `vertex`; this is no .ply file of points")
    start = header.index(elements[0])
    stop = header.index(elements[1]) if len(elements) > 1 else len(header)
    try:
        n_points = min(int(elements[0][2]), _MOST)
        columns = [Column(words[2], _PLY_TYPES[words[1]]) for words in header[start:stop] if words[:1] == ["property"]]
    except (KeyError, IndexError, ValueError):
        raise ValueError("its points have a property that is no number of a known type") from None
    if kind == "ascii":
        return chosen(text_columns(columns, n_points, body))
    if kind in _PLY_ORDERS:
        return chosen(binary_columns(columns, n_points, body, _PLY_ORDERS[kind]))
    raise ValueError(f"its format is {kind!r}; expected ascii, {' or '.join(_PLY_ORDERS)}")


def binary_columns(columns: Sequence[Column], n_points: int, body: bytes, order: str) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of records one after the other; of columns of one name, the first."""
    record = np.dtype([(f"{i}", f"{order}{one.type}", (one.count,)) for i, one in enumerate(columns)])
    check_whole(n_points, len(body) >= n_points * record.itemsize)
    records = np.frombuffer(body, record, n_points) if record.itemsize else np.empty(n_points, record)
    return {one.name: records[f"{i}"][:, 0] for i, one in reversed([*enumerate(columns)]) if one.count}


def text_columns(columns: Sequence[Column], n_points: int, body: bytes) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of numbers written as text, as float64; of columns of one name, the first."""
    starts = np.cumsum([0, *(one.count for one in columns)])
    n_words = n_points * sum(one.count for one in columns)
    check_whole(n_points, n_words <= len(body))
    words = body.split(maxsplit=n_words)[:n_words]
    check_whole(n_points, len(words) == n_words)
    try:
        numbers = np.fromiter(map(float, words), np.float64, n_words).reshape(n_points, -1)
    except ValueError as error:
        raise ValueError(f"it holds a word that is no number ({error})") from None
    return {one.name: numbers[:, starts[i]] for i, one in reversed([*enumerate(columns)]) if one.count}


def chosen(columns: Mapping[str, npt.NDArray[Any]]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return x, y, z (n, 3) and intensity (n,) out of columns by name."""
    if not columns.keys() >= {"x", "y", "z"}:
        raise ValueError(f"it has no x, y and z, only {', '.join(columns) or 'nothing'}")
    names = {name.lower().removeprefix("scalar_"): name for name in columns}
    xyz = np.stack([columns[name] for name in "xyz"], axis=1)
    return xyz, columns[names["intensity"]].reshape(-1) if "intensity" in names else np.zeros(len(xyz))


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


READERS: Mapping[str, Callable[[bytes], tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {
    ".npy": read_npy,
    ".pcd.bin": partial(read_flat, n_columns=5),  # as nuScenes has it: x, y, z, intensity, ring
    ".bin": partial(read_flat, n_columns=4),  # as KITTI has it
    ".pcd": read_pcd,
    ".ply": read_ply,
}
"""By the ending of a file's name; the first that fits."""


def read_point_labels(path: Path, content: bytes) -> npt.NDArray[np.uint16]:
    """Return a label per point, (n,): .npy of whole numbers, .bin of bytes, .label of uint32 whose upper half is an
    instance, as in SemanticKITTI. Raises ValueError saying what is wrong."""
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
