"""A sweep out of a file: which of its columns are which, whether they can be, and metres in the LiDAR's own frame.

Files that name no columns (bare float32, and .npy of plain numbers) are read as `[data] columns` says, or as the data
set usually has them. What a column holds is checked: a ring index is a whole number and light is not negative, so a
file of another number of columns is an error and not another sweep.

A pulse that came back from nothing is a point at 0, 0, 0, as organised clouds keep them: it has a row, so that labels
stay aligned, and `superpixels.returns` leaves it out of everything else. NaN stands for the same in .pcd files; points
outside `[data] min_range_m` and `max_range_m` become such points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.sections.data import INTENSITY, DataConfig
from pipeline.datasets.formats import READERS, Columns, by_name
from pipeline.datasets.motion import at_one_time, seconds_from
from pipeline.datasets.times import IN_US
from pipeline.geometry import Float64, affine
from superpixels.returns import is_return

FLAT = (".bin",)  # float32 without a header; .pcd.bin too
XYZ = ("x", "y", "z")
WITH_RING = (*XYZ, "intensity", "ring")  # as nuScenes has it
WITHOUT_RING = (*XYZ, "intensity")  # as KITTI has it
NEGATIVE_SHARE = 0.002  # of intensities: rounding, in some converters; with wrong columns it is a half
MOST_RING = 4096
FAR_M = 5_000.0  # half of a sweep farther than this: a map's frame, or millimetres
_SEEN_EVERY = 16  # points whose range is looked at


@dataclass(frozen=True, eq=False)
class Cloud:
    """A sweep in the order of the file: xyz_m float32 (n, 3), LiDAR frame, and intensity float32 (n,).

    `notes` say what was taken for what, as sentences without an end; `n_points` how many points are of each LiDAR,
    where several are joined.
    """

    xyz_m: npt.NDArray[np.float32]
    intensity: npt.NDArray[np.float32]
    notes: tuple[str, ...] = ()
    n_points: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Moving:
    """How the LiDAR moves (6,) at the time of a sweep."""

    motion: Float64
    time_us: int


def joined(clouds: Sequence[Cloud], lidar_from_cloud: Sequence[Float64]) -> Cloud:
    """Return several sweeps as one in the frame of a LiDAR, one after the other, by their poses (4, 4) in it."""
    moved_m = [moved(cloud.xyz_m, pose) for cloud, pose in zip(clouds, lidar_from_cloud, strict=True)]
    return Cloud(
        np.concatenate(moved_m).astype(np.float32),
        np.concatenate([cloud.intensity for cloud in clouds]),
        tuple(dict.fromkeys(note for cloud in clouds for note in cloud.notes)),
        tuple(len(cloud.xyz_m) for cloud in clouds),
    )


def read_cloud(
    name: str,
    content: bytes,
    usual: Sequence[str] | None,
    data: DataConfig,
    lidar_from_points: Float64 | None = None,
    moving: Moving | None = None,
) -> Cloud:
    """Return the sweep in a file of this name, whose content has been read already.

    `usual` are the columns of bare float32, where the data set always has the same; `lidar_from_points` (4, 4) where
    the points are not in the LiDAR's frame; `moving` where they are to be brought to the time of the sweep. Raises
    ValueError saying what is wrong.
    """
    columns, declared = columns_of(name, content, usual, data.columns)
    found = by_name((one.lower().removeprefix("scalar_"), column) for one, column in columns.items())
    if not found.keys() >= set(XYZ):
        raise ValueError(f"it has no x, y and z, only {', '.join(columns) or 'nothing'}")
    light = next((one for one in (data.columns if declared else INTENSITY) if one in INTENSITY and one in found), None)
    xyz = np.stack([found[axis] for axis in XYZ], axis=1)
    if not len(xyz):
        raise ValueError("there is no point in it")
    check_values(found, light)
    notes = noted(name, light, found)
    intensity = np.zeros(len(xyz)) if light is None else found[light]
    if name.endswith(".pcd"):
        xyz, intensity, n_absent = without_nan(xyz, intensity)
        notes += (f"{n_absent} of its points are NaN: nothing came back there",) if n_absent else ()
    if lidar_from_points is not None:
        xyz = moved(xyz, lidar_from_points)
    check_range(xyz, data)
    if moving is not None:
        xyz = brought_to_one_time(xyz, found, data, moving)
    return in_range(xyz, intensity, data, notes)


def brought_to_one_time(xyz: npt.NDArray[Any], columns: Columns, data: DataConfig, moving: Moving) -> Float64:
    """Return points (n, 3) as if all were taken at the time of the sweep; raises ValueError where that is not known."""
    times = columns.get(data.time_column.lower())
    if times is None:
        raise ValueError(
            f"it has no column {data.time_column}, which data.time_column names; it has {', '.join(columns)}"
        )
    if not np.isfinite(moving.motion).all():
        raise ValueError(
            "data.time_column is set, but no poses around this sweep tell how the vehicle moved: give world_from_ego "
            "of the frames beside it, within 2 s, or leave the frame out"
        )
    apart_s, returned = np.zeros(len(xyz)), is_return(xyz)  # pulses that came back from nothing may have no time
    apart_s[returned] = seconds_from(times[returned], IN_US[data.time_column_unit], moving.time_us)
    return at_one_time(xyz, apart_s, moving.motion)


def columns_of(name: str, content: bytes, usual: Sequence[str] | None, declared: Sequence[str]) -> tuple[Columns, bool]:
    """Return the columns of a file by name, and whether their names are those that the recipe declares."""
    read = next((read for ending, read in READERS.items() if name.endswith(ending)), None)
    if read is not None:
        found = read(content)
        if isinstance(found, np.ndarray):
            n_columns = found.shape[1]
            names = declared or (*WITHOUT_RING, *map(str, range(4, n_columns)))[:n_columns]
            if len(names) != n_columns:
                raise ValueError(f"it has {n_columns} columns, but data.columns names {len(names)}")
            return {one: found[:, i] for i, one in enumerate(names)}, bool(declared)
        missing = [one for one in declared if one not in {key.lower().removeprefix("scalar_") for key in found}]
        if missing:
            raise ValueError(f"it has no column {missing[0]}, which data.columns names; it has {', '.join(found)}")
        return found, bool(declared)
    if name.endswith(FLAT):
        names = declared or usual or (WITH_RING if name.endswith(".pcd.bin") else WITHOUT_RING)
        return read_flat(content, names), bool(declared)
    raise ValueError(
        f"points are read from files that end in {', '.join((*READERS, *FLAT))}; convert it to one of them"
    )


def read_flat(content: bytes, names: Sequence[str]) -> Columns:
    """Return the columns of bare float32 by their names; raises ValueError if it is cut off."""
    n_columns = len(names)
    if not content or len(content) % (4 * n_columns):
        others = [n for n in (4, 5, 6, 3) if n != n_columns and content and not len(content) % (4 * n)]
        hint = f"; were it {' or '.join(map(str, others))}, [data] columns would name them" if others else ""
        raise ValueError(
            f"it is truncated, or has other columns: {len(content)} bytes is not a positive multiple of "
            f"{4 * n_columns}, the {n_columns} float32 of a point ({', '.join(names)}){hint}"
        )
    values = np.frombuffer(content, "<f4").reshape(-1, n_columns).astype(np.float32, copy=False)
    return {one: values[:, i] for i, one in enumerate(names)}


def check_values(columns: Columns, light: str | None) -> None:
    """Raise ValueError where a column cannot be what its name says: a ring index, or light."""
    remedy = (
        "the file seems to have another number of columns than it is read with, or another order; name them in order "
        'with [data] columns = ["x", "y", "z", "intensity", …]'
    )
    if "ring" in columns:
        ring = np.asarray(columns["ring"])
        with np.errstate(invalid="ignore"):
            wrong = np.flatnonzero(((ring != np.rint(ring)) | (ring < 0) | (ring >= MOST_RING)) & (ring == ring))
        if len(wrong):
            raise ValueError(
                f"its column `ring` is no ring index: point {wrong[0]} has {ring[wrong[0]]:.6g}, and {len(wrong)} of "
                f"{len(ring)} are no whole numbers from 0 to {MOST_RING - 1} (columns {', '.join(columns)}); {remedy}"
            )
    if light is not None and (negative := float((columns[light] < 0).mean())) > NEGATIVE_SHARE:
        raise ValueError(
            f"{negative:.0%} of its intensities (column `{light}`) are negative, down to "
            f"{float(np.nanmin(columns[light])):.4g}; light is not: {remedy}"
        )


def noted(name: str, light: str | None, columns: Columns) -> tuple[str, ...]:
    """Return what is worth knowing of where intensity comes from."""
    if light is None:
        return (f"it has no column of intensity (only {', '.join(columns)}), which is 0 for every point",)
    if light != "intensity":
        others = [one for one in INTENSITY if one in columns and one != light]
        beside = f"; it also has {', '.join(others)}, of which [data] columns would choose one" if others else ""
        return (f"intensity is its column `{light}`{beside}",)
    return ()


def without_nan(xyz: npt.NDArray[Any], intensity: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], int]:
    """Return points whose x, y and z are all NaN as points that came back from nothing, and how many there are."""
    absent = np.isnan(xyz).all(axis=1)
    if not absent.any():
        return xyz, intensity, 0
    return np.where(absent[:, None], 0, xyz), np.where(absent, 0, intensity), int(absent.sum())


def moved(xyz: npt.NDArray[Any], b_from_a: Float64) -> Float64:
    """Return points (n, 3) in frame b as float64, which those of maps need; those at 0, 0, 0 stay there."""
    columns = xyz.T.astype(np.float64, order="C")
    with np.errstate(invalid="ignore", over="ignore"):
        inside = np.stack([affine(row, columns) for row in b_from_a[:3].tolist()], axis=1)
    return np.where((xyz == 0).all(axis=1)[:, None], 0.0, inside)


def check_range(xyz: npt.NDArray[Any], data: DataConfig) -> None:
    """Raise ValueError for points that cannot be metres around a LiDAR, and whose float32 would be coarse."""
    some = xyz[::_SEEN_EVERY]
    far = np.abs(some[(some != 0).any(axis=1)]).max(axis=1, initial=0)
    with np.errstate(invalid="ignore"):
        middle = float(np.median(far)) if len(far) else 0.0
    if middle > FAR_M:
        raise ValueError(
            f"half of its points are more than {middle:.6g} m from the origin; LiDARs on vehicles reach 80 to 250 m. "
            'Are they in a map\'s frame, as UTM (then [data] points_in = "world", with poses in the same map), or in '
            f"millimetres? They are read as metres in the frame of the {data.points_in}"
        )


def in_range(xyz: npt.NDArray[Any], intensity: npt.NDArray[Any], data: DataConfig, notes: tuple[str, ...]) -> Cloud:
    """Return the points as float32, those that are too near or too far as points that came back from nothing."""
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which `index` reports by its point
        xyz_m = np.ascontiguousarray(xyz, np.float32)
        light = np.ascontiguousarray(intensity, np.float32)
        if data.min_range_m or data.max_range_m:
            range_m = np.sqrt((xyz_m.astype(np.float64) ** 2).sum(axis=1))
            out = (range_m < data.min_range_m) | ((range_m > data.max_range_m) if data.max_range_m else False)
            out &= np.isfinite(range_m)
            xyz_m, light = np.where(out[:, None], np.float32(0), xyz_m), np.where(out, np.float32(0), light)
    if not is_return(xyz_m).any():
        raise ValueError(f"none of its {len(xyz_m)} points came back from anything within range")
    return Cloud(xyz_m, light, notes)
