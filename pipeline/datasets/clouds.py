"""Point cloud files by their ending: .npy, .bin, .pcd.bin, .pcd and .ply. The door to Open3D, which decodes the last
two, within `pipeline.datasets`.

What Open3D would pass over in silence is checked before: from a .ply that was cut off it returns as many points as the
header promises, the last ones made up, and from a .pcd none at all.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Cloud = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
"""xyz_m float32 (n, 3) and intensity float32 (n,), in the order of the file; intensity is 0 where there is none."""

_PLY_BYTES = {
    **dict.fromkeys(("char", "uchar", "int8", "uint8"), 1),
    **dict.fromkeys(("short", "ushort", "int16", "uint16"), 2),
    **dict.fromkeys(("int", "uint", "float", "int32", "uint32", "float32"), 4),
    **dict.fromkeys(("double", "float64", "int64", "uint64"), 8),
}
_HEADER_LINE = re.compile(rb"[^\n]*\n")
_LONGEST_HEADER = 100  # lines; point clouds have a dozen


def read_cloud(path: Path, content: bytes) -> Cloud:
    """Return the points in a file, whose content has been read already; raises ValueError saying what is wrong."""
    for ending, read in READERS.items():
        if path.name.endswith(ending):
            xyz, intensity = read(path, content)
            if not len(xyz):
                raise ValueError("there is no point in it")
            return np.ascontiguousarray(xyz, np.float32), np.ascontiguousarray(intensity, np.float32)
    raise ValueError(f"points are read from files that end in {', '.join(READERS)}; convert it to one of them")


def read_npy(path: Path, content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
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
        array = np.stack([column.astype(np.float32) for column in columns], axis=1)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise ValueError(f"an array (n, 3 or more) of numbers was expected; it is {array.shape} of {array.dtype}")
    return array[:, :3], array[:, 3] if array.shape[1] > 3 else np.zeros(len(array), np.float32)


def load_npy(content: bytes) -> npt.NDArray[Any]:
    """Return the array in a .npy file; raises ValueError unless it is one of numbers, whole."""
    try:
        if not content.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError("it does not start as one")
        loaded: npt.NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, TypeError) as error:
        raise ValueError(f"this is no whole .npy file of numbers ({error})") from None
    return loaded


def flat_reader(n_columns: int) -> Callable[[Path, bytes], tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
    """Return a reader of bare float32: x, y, z, intensity and perhaps more for every point."""

    def read(path: Path, content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        if len(content) % (4 * n_columns):
            raise ValueError(
                f"{len(content)} bytes is not a multiple of {4 * n_columns}, the {n_columns} float32 of a point; it is "
                "truncated, or of another layout"
            )
        values = np.frombuffer(content, "<f4").reshape(-1, n_columns)
        return values[:, :3], values[:, 3]

    return read


def read_with_open3d(path: Path, content: bytes) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the points of a .pcd or .ply file, of any flavour: text, binary, compressed."""
    n_points = whole_pcd(content) if path.suffix == ".pcd" else whole_ply(content)
    if not n_points:
        return np.empty((0, 3)), np.empty(0)

    import open3d as o3d

    try:
        with o3d.utility.VerbosityContextManager(o3d.utility.VerbosityLevel.Error):
            cloud = o3d.t.io.read_point_cloud(path, remove_nan_points=False, remove_infinite_points=False)
        columns = {name: cloud.point[name].numpy() for name in cloud.point}
    except RuntimeError as error:
        raise ValueError(f"Open3D cannot read it ({error})") from None
    if len(columns.get("positions", ())) != n_points:
        raise ValueError(f"Open3D reads {len(columns.get('positions', ()))} of {n_points} points; write the file anew")
    names = {name.lower().removeprefix("scalar_"): name for name in columns}
    intensity = columns[names["intensity"]].reshape(-1) if "intensity" in names else np.zeros(n_points)
    return columns["positions"], intensity


def whole_pcd(content: bytes) -> int:
    """Return how many points a .pcd file holds; raises ValueError unless all of them are there."""
    header, body = header_and_body(content, b"DATA")
    entries = {words[0]: words[1:] for words in header if words}
    try:
        n_points = int(entries["POINTS"][0])
        sizes = [int(size) for size in entries["SIZE"]]
        counts = [int(count) for count in entries.get("COUNT", ["1"] * len(sizes))]
        stride = sum(size * count for size, count in zip(sizes, counts, strict=True))
        kind = entries["DATA"][0]
    except (KeyError, IndexError, ValueError):
        raise ValueError(
            "its header lacks POINTS, SIZE or DATA, or they are no numbers; this is no .pcd file"
        ) from None
    if kind == "binary_compressed":
        packed, unpacked = (int.from_bytes(body[i : i + 4], "little") for i in (0, 4))
        check_whole(n_points, len(body) - 8 >= packed and unpacked == n_points * stride)
    elif kind == "binary":
        check_whole(n_points, len(body) >= n_points * stride)
    else:
        check_whole(n_points, text_lines(body) >= n_points)
    return n_points


def whole_ply(content: bytes) -> int:
    """Return how many points a .ply file holds; raises ValueError unless all of them are there."""
    header, body = header_and_body(content, b"end_header")
    elements = [words for words in header if words[:1] == ["element"]]
    kind = next((words[1] for words in header if words[:1] == ["format"] and len(words) > 1), "")
    if not content.startswith(b"ply") or not kind or not elements or elements[0][1:2] != ["vertex"]:
        raise ValueError("its header has no format, or no element `vertex` first; this is no .ply file of points")
    start = header.index(elements[0])
    stop = header.index(elements[1]) if len(elements) > 1 else len(header)
    properties = [words for words in header[start:stop] if words[:1] == ["property"]]
    try:
        n_points = int(elements[0][2])
        stride = sum(_PLY_BYTES[words[1]] for words in properties)
    except (KeyError, IndexError, ValueError):
        raise ValueError("its points have a property that is no number of a known type") from None
    needed = n_points * stride if kind.startswith("binary") else n_points
    check_whole(n_points, (len(body) if kind.startswith("binary") else text_lines(body)) >= needed)
    return n_points


def check_whole(n_points: int, whole: bool) -> None:
    """Raise ValueError unless the file is whole."""
    if n_points < 0 or not whole:
        raise ValueError(f"it is truncated: its header promises {n_points} points, and the rest holds fewer")


def text_lines(body: bytes) -> int:
    """Return the number of lines that hold something."""
    return sum(1 for line in body.splitlines() if line.strip())


def header_and_body(content: bytes, last: bytes) -> tuple[list[list[str]], bytes]:
    """Return the words of every line up to the one that starts with `last`, and what follows; raises ValueError."""
    header, position = [], 0
    for line in _HEADER_LINE.finditer(content):
        header.append(line[0].decode("latin-1").split())
        position = line.end()
        if line[0].startswith(last):
            return header, content[position:]
        if len(header) > _LONGEST_HEADER:
            break
    raise ValueError(f"its header has no line {last.decode()}; it is truncated, or another kind of file")


READERS: Mapping[str, Callable[[Path, bytes], tuple[npt.NDArray[Any], npt.NDArray[Any]]]] = {
    ".npy": read_npy,
    ".pcd.bin": flat_reader(5),  # as nuScenes has it: x, y, z, intensity, ring
    ".bin": flat_reader(4),  # as KITTI has it
    ".pcd": read_with_open3d,
    ".ply": read_with_open3d,
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
