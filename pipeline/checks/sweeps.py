"""What sweeps look like: units, axes, columns, returns from nothing, intensity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.checks.findings import Finding
from pipeline.checks.looks import Look
from pipeline.checks.signals import Array

FAR_M = 400.0  # farther than what LiDARs on vehicles reach: KITTI ends at 81 m, nuScenes at 105, TRI's car at 231
FAR_SHARE = 0.01
WORLD_M = 5_000.0  # coordinates this large are those of a map
SMALL_M = 3.0  # a sweep that ends nearer is in other units
NEGATIVE_SHARE = 0.002  # of intensities
WHOLE_SHARE = 0.2  # of coordinates that are whole numbers; of KITTI's millimetres 0.1 %, of TRI's centimetres 1 %
ZERO_SHARE = 0.01  # of points that lie exactly at the sensor
TWICE_SHARE = 0.05  # of points that are another point again
FEW_POINTS = 1_000
LEVEL_DEG = 15.0  # the ground is this level, hills and the tilt of a LiDAR included
MANY = 3.0  # how many times more points another plane must have than level ground
_NEAR_M, _FLAT_M = 20.0, 0.15  # where ground is looked for, and how flat it is
_COMMON = 4
_OWN_M = 2.0  # nearer than this is the vehicle, or nothing
_TRIES, _POINTS = 400, 3_000


@dataclass(frozen=True)
class _Fault:
    """One thing that is wrong with a sweep, with the value; faults of one `kind` are told once for all sweeps."""

    kind: str
    level: str
    text: str


def check_sweeps(looks: Sequence[Look]) -> Iterator[Finding]:
    """Yield what is wrong, or unusual, with the points of some frames."""
    told: dict[str, list[tuple[Look, _Fault]]] = {}
    for look in looks:
        for fault in faults_of(look.xyz_m, look.intensity, look.up):
            told.setdefault(fault.kind, []).append((look, fault))
    for found in told.values():
        look, fault = found[0]
        others = f", and {len(found) - 1} more of {len(looks)} sweeps" if len(found) > 1 else ""
        level = "problem" if fault.level == "problem" else "note"
        yield Finding(
            "problem" if level == "problem" else "note", "sweeps", f"{look.frame.lidar_path}{others}: {fault.text}"
        )
    for note in dict.fromkeys(note for look in looks for note in look.notes):
        n = sum(note in look.notes for look in looks)
        yield Finding("note", "sweeps", f"in {n} of {len(looks)} sweeps: {note}")
    if not told and looks:
        counts = [len(look.xyz_m) for look in looks]
        reach_m = max(float(np.percentile(np.linalg.norm(look.xyz_m, axis=1), 99)) for look in looks)
        most = max(float(look.intensity.max(initial=0)) for look in looks)
        text = (
            f"{len(looks)} sweeps have {min(counts)} to {max(counts)} points, 99 % within {reach_m:.0f} m, the ground "
        )
        yield Finding("ok", "sweeps", f"{text}is level, and intensity goes up to {most:g}")


def faults_of(xyz_m: Array, intensity: Array, up: Array) -> Iterator[_Fault]:
    """Yield what is wrong with points (n, 3), their intensity (n,), and the direction (3,) that is said to be up."""
    finite = np.isfinite(xyz_m).all(axis=1)
    some = xyz_m[finite]
    if len(some) < FEW_POINTS:
        text = f"there are {len(some)} points in it; a sweep has tens of thousands. Is it one packet of a turn?"
        yield _Fault("few", "problem", text)
        return
    zero = (some == 0).all(axis=1)
    if zero.mean() > ZERO_SHARE:
        text = f"{zero.mean():.0%} of its points lie exactly at the sensor (0, 0, 0): pulses that came back from "
        yield _Fault("zero", "note", f"{text}nothing, as organised clouds keep them; they are no points")
    some = some[~zero]
    away = some[np.abs(some).max(axis=1) > _OWN_M]
    columns = [*column_faults(some, intensity)]
    yield from columns
    units = [*unit_faults(some)]
    yield from units
    yield from intensity_faults(intensity)
    if not columns and not units and len(some) >= FEW_POINTS:
        step = max(1, len(away) // 20_000)
        twice = 1 - len(np.unique(away[::step], axis=0)) / max(len(away[::step]), 1)
        if twice > TWICE_SHARE:
            text = f"{twice:.0%} of its points are another point again; clouds were joined or padded"
            yield _Fault("twice", "note", text)
        yield from ground_faults(some, up)


def column_faults(xyz_m: Array, intensity: Array) -> Iterator[_Fault]:
    """Yield signs of columns that are taken for others, as where 4 float32 a point are read as 5."""
    negative = float((intensity < 0).mean())
    remedy = "the file seems to have another number of columns than it is read with, or another order: x, y, z, "
    remedy += "intensity (and ring, in nuScenes layout) is expected"
    if negative > NEGATIVE_SHARE:
        yield _Fault(
            "columns",
            "problem",
            f"{negative:.0%} of its intensities are negative, down to "
            f"{float(intensity.min()):.4g}; light is not: {remedy}",
        )
        return
    whole = np.array([whole_share(axis) for axis in xyz_m.T])
    if whole.max() > WHOLE_SHARE:
        text = f"{whole.max():.0%} of its {'xyz'[int(whole.argmax())]} are whole numbers, as ring indices and "
        yield _Fault("columns", "problem", f"{text}intensities are and coordinates are not: {remedy}")


def whole_share(values: Array) -> float:
    """Return the share of values that are whole numbers, but for the commonest ones: a wall may stand at 12.0 m."""
    _, counts = np.unique(values[values == np.rint(values)], return_counts=True)
    return float(np.sort(counts)[:-_COMMON].sum()) / len(values)


def unit_faults(xyz_m: Array) -> Iterator[_Fault]:
    """Yield coordinates that cannot be metres from the sensor."""
    range_m = np.linalg.norm(xyz_m.astype(np.float64), axis=1)
    middle, far = np.percentile(range_m, [50, 99])
    if middle > WORLD_M:
        text = (
            f"half of its points are farther than {middle:.0f} m from the origin; are they in a map's frame (UTM), or "
        )
        text += "in millimetres? Metres in the LiDAR's own frame are expected"
    elif (range_m > FAR_M).mean() > FAR_SHARE:
        text = f"{(range_m > FAR_M).mean():.0%} of its points are farther than {FAR_M:.0f} m, the farthest "
        text += (
            f"{range_m.max():.4g} m; LiDARs on vehicles reach 80 to 250 m. Is it in metres, and are the columns right?"
        )
    elif far < SMALL_M:
        text = f"99 % of its points are within {far:.2g} m; LiDARs on vehicles reach 80 to 250 m. Is it in metres?"
    else:
        return
    yield _Fault("units", "problem", text)


def intensity_faults(intensity: Array) -> Iterator[_Fault]:
    """Yield intensity that says nothing, or is on another scale than those of known data sets."""
    low, high = float(intensity.min()), float(intensity.max())
    if low == high:
        text = (
            f"its intensity is {low:g} for every point: there is none, or a field of another name was meant. A network "
        )
        yield _Fault("intensity", "note", f"{text}learns nothing from it, and edges alone judge the calibration")
    elif high > 255:
        text = (
            f"its intensity goes up to {high:g}, in nuScenes to 255 and in KITTI to 1; bring it to what a network is "
        )
        yield _Fault("intensity", "note", f"{text}used to with [voxels] intensity_scale")


def ground_faults(xyz_m: Array, up: Array) -> Iterator[_Fault]:
    """Yield whether the largest plane around the sensor is another than level ground."""
    near = xyz_m[np.linalg.norm(xyz_m, axis=1) < _NEAR_M]
    if len(near) < FEW_POINTS:
        return
    normal, share, level = largest_plane(near.astype(np.float64), up / np.linalg.norm(up))
    away = float(np.degrees(np.arccos(min(1.0, abs(float(normal @ up)) / float(np.linalg.norm(up))))))
    if away > LEVEL_DEG and share > MANY * level:
        text = (
            f"its largest plane has {share:.0%} of the near points and lies {away:.0f} degrees off level, level ground "
        )
        text += f"has {level:.0%}; is ego_from_lidar right (z up), and are the axes of the points (x, y, z)?"
        yield _Fault("ground", "problem", text)


def largest_plane(xyz_m: Array, up: Array) -> tuple[Array, float, float]:
    """Return the normal (3,) of the plane that most points lie on, their share, and the share on the best plane that is
    level by `up`: out of planes through three points that chance picks, always the same.
    """
    rng = np.random.default_rng(0)
    some = xyz_m[rng.integers(len(xyz_m), size=_POINTS)]
    corner = some[rng.integers(_POINTS, size=(_TRIES, 3))]
    normal = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    length = np.linalg.norm(normal, axis=1)
    normal, corner = normal[length > 1e-6] / length[length > 1e-6, None], corner[length > 1e-6]
    if not len(normal):
        return up, 0.0, 0.0
    off_m = some @ normal.T - (corner[:, 0] * normal).sum(axis=1)
    share = (np.abs(off_m) < _FLAT_M).mean(axis=0)
    level = np.abs(normal @ up) > np.cos(np.radians(LEVEL_DEG))
    best = int(share.argmax())
    return normal[best], float(share[best]), float(share[level].max(initial=0))
