"""Whether poses of the vehicle are right: by them, sweeps that follow each other must lie on each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from pipeline.checks.findings import Finding
from pipeline.checks.signals import Array
from pipeline.frame import Frame
from pipeline.geometry import inverse_pose

OFF_M = 0.25  # how far a motion may be off that of the sweeps: clocks, hills and things that move included
OFF_SHARE = 0.1  # and this much of it beside
WORSE = 1.3  # by how much sweeps must lie better on each other by their own motion to be believed
_NEAR_M, _FAR_M, _VOXEL_M = 3.0, 40.0, 0.4
_MOST_POINTS, _ROUNDS, _TRIMMED = 4_000, 25, 0.7


@dataclass(frozen=True, eq=False)
class Step:
    """Two sweeps that follow each other, (n, 3) and (m, 3), and the frames they belong to."""

    before: Frame
    after: Frame
    xyz_before_m: Array
    xyz_after_m: Array


def check_poses(steps: Sequence[Step]) -> Iterator[Finding]:
    """Yield whether sweeps that follow each other meet by the poses of their frames."""
    wrong: list[str] = []
    ways_m: list[float] = []
    for step in steps:
        told = inverse_pose(step.before.world_from_lidar) @ step.after.world_from_lidar
        text, way_m = judge_step(told, step)
        ways_m.append(way_m)
        if text:
            wrong.append(f"{step.before.frame_id} and {step.after.frame_id}: {text}")
    if wrong and 2 * len(wrong) >= len(steps):
        yield Finding(
            "problem",
            "poses",
            f"sweeps do not meet by the poses of the vehicle, in {len(wrong)} of {len(steps)} steps. {wrong[0]}. Is "
            "world_from_ego inverted, or its quaternion x, y, z, w? Stage `vote` needs right ones",
        )
    elif steps:
        text = (
            f"{len(steps) - len(wrong)} of {len(steps)} steps between sweeps, of up to {max(ways_m):.1f} m, are as the "
        )
        yield Finding("ok" if not wrong else "note", "poses", f"{text}poses say")


def judge_step(before_from_after: Array, step: Step) -> tuple[str, float]:
    """Return what is wrong with the pose between two sweeps, nothing if they meet, and how far it goes in metres."""
    before, after = thinned(step.xyz_before_m), thinned(step.xyz_after_m)
    way_m = float(np.linalg.norm(before_from_after[:3, 3]))
    if min(len(before), len(after)) < 200:
        return "", way_m
    tree = scipy.spatial.cKDTree(before)
    starts = (before_from_after, np.eye(4), inverse_pose(before_from_after))
    found = [align(tree, before, after, start) for start in starts]
    own_m = residual(tree, after, before_from_after)
    best, best_m = min(found, key=lambda one: one[1])
    apart_m = float(np.linalg.norm(best[:3, 3] - before_from_after[:3, 3]))
    turned = float(
        np.linalg.norm(
            scipy.spatial.transform.Rotation.from_matrix(best[:3, :3].T @ before_from_after[:3, :3]).as_rotvec()
        )
    )
    apart_m = max(apart_m, turned * 10)  # what a turn moves ten metres away
    moved_m = float(np.linalg.norm(best[:3, 3]))
    if apart_m <= OFF_M + OFF_SHARE * max(way_m, moved_m) or own_m <= WORSE * best_m:
        return "", way_m
    text = f"they lie {own_m:.2f} m apart by the poses, which move {way_m:.2f} m, and {best_m:.2f} m if moved by "
    return f"{text}{moved_m:.2f} m instead", way_m


def thinned(xyz_m: Array) -> Array:
    """Return one point of every small cube, far enough to be no part of the vehicle, near enough to be dense."""
    range_m = np.linalg.norm(xyz_m, axis=1)
    near = xyz_m[(range_m > _NEAR_M) & (range_m < _FAR_M)].astype(np.float64)
    _, first = np.unique(np.floor(near / _VOXEL_M).astype(np.int64), axis=0, return_index=True)
    chosen = near[np.sort(first)]
    return np.asarray(chosen[:: max(1, len(chosen) // _MOST_POINTS)])


def residual(tree: scipy.spatial.cKDTree, after_m: Array, before_from_after: Array) -> float:
    """Return how far points of a sweep lie from those of the one before, in metres: the mean of the nearer ones."""
    moved = after_m @ before_from_after[:3, :3].T + before_from_after[:3, 3]
    away, _ = tree.query(moved)
    return float(np.sort(away)[: int(len(away) * _TRIMMED)].mean())


def align(tree: scipy.spatial.cKDTree, before_m: Array, after_m: Array, start: Array) -> tuple[Array, float]:
    """Return the pose (4, 4) that lays one sweep on the one before, from a first guess, and what stays between them.

    Points are laid on the nearest ones, the farthest left out, until nothing moves (Besl and McKay 1992; trimmed:
    Chetverikov and others 2002).
    """
    pose = start.copy()
    for _ in range(_ROUNDS):
        moved = after_m @ pose[:3, :3].T + pose[:3, 3]
        away, nearest = tree.query(moved)
        kept = np.argsort(away)[: int(len(away) * _TRIMMED)]
        source, target = moved[kept], before_m[nearest[kept]]
        rotation, _ = scipy.spatial.transform.Rotation.align_vectors(
            target - target.mean(axis=0), source - source.mean(axis=0)
        )
        step = np.eye(4)
        step[:3, :3] = rotation.as_matrix()
        step[:3, 3] = target.mean(axis=0) - step[:3, :3] @ source.mean(axis=0)
        pose = step @ pose
        if np.abs(step - np.eye(4)).max() < 1e-4:
            break
    return pose, residual(tree, after_m, pose)
