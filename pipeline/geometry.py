"""Poses and projection: where lidar points land in images.

Frames: x_cam points right, y_cam down, z_cam along the optical axis; depth is z_cam. A pixel (row, col) has its
centre at (v_px, u_px) = (row, col), so the image covers -0.5..width-0.5. Matrices are 4 x 4 float64 and read right to
left: ``cam_from_lidar @ x_lidar``.

Poses are part of the keys of shards, so every processor must come to the same bits. BLAS and LAPACK do not: which of
their kernels runs, and whether it fuses a product and a sum, depends on the processor. Here all products are therefore
written out as single steps, each of which IEEE 754 defines to the last bit, in an order that stands in the code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.lenses import GLOBAL, PINHOLE, Lens, Shutter, bend, bend_wide
from superpixels.returns import is_return

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Projection:
    """The points of a sweep that one camera sees, in point order; all arrays are aligned, (p,).

    ``point`` indexes the sweep (int32); ``u_px`` to the right and ``v_px`` down are where it lands (float64),
    ``row_px`` and ``col_px`` the pixel it lands in (int32, inside the image), ``depth_m`` its distance along the
    optical axis (float64).
    """

    point: npt.NDArray[np.int32]
    u_px: Float64
    v_px: Float64
    depth_m: Float64
    row_px: npt.NDArray[np.int32]
    col_px: npt.NDArray[np.int32]


def pose_matrix(rotation_wxyz: npt.ArrayLike, translation_m: npt.ArrayLike) -> Float64:
    """Return the 4 x 4 matrix that rotates by a quaternion (w, x, y, z), of any length but 0, and then translates.

    Raises ValueError if a value is not finite, a shape is wrong, or the quaternion is 0.
    """
    rotation = np.asarray(rotation_wxyz, dtype=np.float64)
    translation = np.asarray(translation_m, dtype=np.float64)
    if rotation.shape != (4,) or not np.isfinite(rotation).all() or not rotation.any():
        raise ValueError(
            f"rotation is {rotation.tolist()}; expected a quaternion of 4 finite numbers (w, x, y, z), not 0"
        )
    if translation.shape != (3,) or not np.isfinite(translation).all():
        raise ValueError(f"translation is {translation.tolist()}; expected 3 finite numbers in metres")
    matrix = np.eye(4)
    matrix[:3, :3] = rotation_of(*rotation.tolist())
    matrix[:3, 3] = translation
    return matrix


def rotation_of(w: float, x: float, y: float, z: float) -> list[list[float]]:
    """Return the rotation matrix (3, 3) of a quaternion of any length but 0, bit for bit as SciPy has it."""
    largest = max(abs(x), abs(y), abs(z), abs(w))
    if not 1e-150 < largest < 1e150:  # or its square is 0 or infinite
        w, x, y, z = w / largest, x / largest, y / largest, z / largest
    length = math.sqrt(x * x + y * y + z * z + w * w)
    w, x, y, z = w / length, x / length, y / length, z / length
    return [
        [x * x - y * y - z * z + w * w, 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), -(x * x) + y * y - z * z + w * w, 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), -(x * x) - y * y + z * z + w * w],
    ]


def chained(*matrices: Float64) -> Float64:
    """Return the product of matrices, from left to right, the same bits on every processor (``@`` calls BLAS)."""
    product, *others = matrices
    for matrix in others:
        total = product[:, :1] * matrix[:1]
        for step in range(1, len(matrix)):
            total = total + product[:, step : step + 1] * matrix[step : step + 1]
        product = total
    return product


def inverse_pose(b_from_a: Float64) -> Float64:
    """``a_from_b`` for a rigid ``b_from_a`` (4, 4): the rotation is transposed, so no precision is lost."""
    a_from_b = np.eye(4)
    a_from_b[:3, :3] = b_from_a[:3, :3].T
    a_from_b[:3, 3:] = chained(-b_from_a[:3, :3].T, b_from_a[:3, 3:])
    return a_from_b


def compose_cam_from_lidar(
    *,
    ego_from_cam: Float64,
    world_from_ego_at_image: Float64,
    world_from_ego_at_sweep: Float64,
    ego_from_lidar: Float64,
) -> Float64:
    """``cam_from_lidar`` (4, 4), compensated for the motion of the vehicle between sweep and image.

    The two ego poses are those at the time stamps of the two sensors. Source: the projection chain of the nuScenes
    devkit.
    """
    cam_from_ego = inverse_pose(ego_from_cam)
    ego_at_image_from_ego_at_sweep = chained(inverse_pose(world_from_ego_at_image), world_from_ego_at_sweep)
    return chained(cam_from_ego, ego_at_image_from_ego_at_sweep, ego_from_lidar)


def check_intrinsics(intrinsics: npt.ArrayLike) -> Float64:
    """Return the camera matrix, float64 (3, 3); raises ValueError if singular, not finite, or no camera matrix."""
    matrix = np.asarray(intrinsics, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
        raise ValueError(f"intrinsics are {matrix.tolist()}; expected 3 x 3 finite numbers")
    if matrix[2].tolist() != [0.0, 0.0, 1.0]:
        raise ValueError(f"the last row of the intrinsics is {matrix[2].tolist()}; expected [0, 0, 1]")
    (fx, skew), (shear, fy) = matrix[:2, :2].tolist()  # with that last row, they alone decide
    if abs(fx * fy - skew * shear) <= np.finfo(np.float64).eps * (abs(fx * fy) + abs(skew * shear)):
        raise ValueError(f"intrinsics {matrix.tolist()} are singular; check the calibration of this camera")
    return matrix


def project(
    xyz_m: npt.NDArray[np.floating[Any]],
    cam_from_lidar: Float64,
    intrinsics: npt.ArrayLike,
    width_px: int,
    height_px: int,
    min_depth_m: float = 1.0,
    lens: Lens = PINHOLE,
    shutter: Shutter = GLOBAL,
) -> Projection:
    """Return the points that land inside an image, with pixel and depth.

    ``xyz_m`` (n, 3) are points in the lidar frame; those with a value that is not finite, and pulses that came back
    from nothing (0, 0, 0), are not seen. A point is kept iff depth > ``min_depth_m``, 0 < u < width - 1 and 0 < v <
    height - 1; its pixel is (v, u) rounded half to even. With a ``lens``, (u, v) is in its raw image, and what the lens
    is not valid for is not seen; of a fisheye whose angle of view is stated, depth is the distance from the camera,
    which is more than 0 behind its plane too. With a ``shutter`` that rolls, a point is where the camera was when the
    row was read out in which the point lands. This is the rule of the AFOV reference implementation; the
    nuScenes devkit asks for u > 1 and v > 1, and is otherwise the same. Everything is computed in float64. Raises
    ValueError for unusable intrinsics, shapes or a negative ``min_depth_m``.
    """
    sweep = columns_of(xyz_m)
    return project_columns(sweep, cam_from_lidar, intrinsics, width_px, height_px, min_depth_m, lens, shutter)


def columns_of(xyz_m: npt.NDArray[np.floating[Any]]) -> Float64:
    """Return the points (n, 3) of a sweep as :func:`project_columns` takes them: (3, n), those that are none as NaN.

    Raises ValueError for another shape.
    """
    if xyz_m.ndim != 2 or xyz_m.shape[1] != 3:
        raise ValueError(f"points have shape {xyz_m.shape}; expected (n, 3)")
    columns = xyz_m.T.astype(np.float64, order="C")
    columns[:, ~is_return(xyz_m)] = np.nan
    return columns


def project_columns(
    xyz: Float64,
    cam_from_lidar: Float64,
    intrinsics: npt.ArrayLike,
    width_px: int,
    height_px: int,
    min_depth_m: float = 1.0,
    lens: Lens = PINHOLE,
    shutter: Shutter = GLOBAL,
) -> Projection:
    """Return what :func:`project` does, of :func:`columns_of` a sweep: what all its cameras share is done once."""
    if cam_from_lidar.shape != (4, 4) or not np.isfinite(cam_from_lidar).all():
        raise ValueError(f"cam_from_lidar is {cam_from_lidar.tolist()}; expected 4 x 4 finite numbers")
    if not min_depth_m >= 0:
        raise ValueError(
            f"min_depth_m is {min_depth_m}; points behind the camera have no pixel, so it must be 0 or more"
        )
    if lens.field_rad or shutter.rolls:
        return project_ways(xyz, cam_from_lidar, intrinsics, (width_px, height_px), min_depth_m, lens, shutter)
    across, down, along = chained(check_intrinsics(intrinsics), cam_from_lidar[:3]).tolist()
    with np.errstate(invalid="ignore", over="ignore"):  # infinities become nan, and compare as not seen
        depth = affine(along, xyz)
        ahead = np.flatnonzero((depth > min_depth_m) & (depth < np.inf))  # first: nothing is / 0
        depth, xyz = depth[ahead], np.take(xyz, ahead, axis=1)  # a quarter of the time of xyz[:, ahead]
        if lens.straight:
            u, v = affine(across, xyz) / depth, affine(down, xyz) / depth
            seen: npt.NDArray[np.bool_] | bool = True
        else:
            u, v, seen = through(lens, check_intrinsics(intrinsics), cam_from_lidar, xyz)
        inside = np.flatnonzero(seen & (u > 0) & (u < width_px - 1) & (v > 0) & (v < height_px - 1))
    return pixels_of(ahead[inside], u[inside], v[inside], depth[inside])


def pixels_of(point: npt.NDArray[np.intp], u: Float64, v: Float64, depth: Float64) -> Projection:
    """Return points that land inside an image, with the pixels that they land in."""
    return Projection(
        point=point.astype(np.int32),
        u_px=u,
        v_px=v,
        depth_m=depth,
        row_px=np.rint(v).astype(np.int32),
        col_px=np.rint(u).astype(np.int32),
    )


def through(
    lens: Lens, intrinsics: Float64, cam_from_lidar: Float64, xyz: Float64
) -> tuple[Float64, Float64, npt.NDArray[np.bool_]]:
    """Where points (3, n) ahead of a camera land through its lens, u and v in pixels, and for which it is valid."""
    right, down, depth = (affine(row, xyz) for row in cam_from_lidar[:3].tolist())
    x, y, valid = bend(lens, right / depth, down / depth)
    (fx, skew, cx), (shear, fy, cy), _ = intrinsics.tolist()
    return fx * x + skew * y + cx, shear * x + fy * y + cy, valid


STEPS = 6  # each takes the error of a pixel's row to a tenth or less, of what is not within arm's length


def project_ways(
    xyz: Float64,
    cam_from_lidar: Float64,
    intrinsics: npt.ArrayLike,
    size_px: tuple[int, int],
    min_depth_m: float,
    lens: Lens,
    shutter: Shutter,
) -> Projection:
    """Return what :func:`project_columns` does, where rays go by their angle or rows by their time.

    In which row a point lands depends on where the camera was when that row was read out: it is found step by step,
    from where the camera was at the middle of the image.
    """
    matrix, (width_px, height_px) = check_intrinsics(intrinsics), size_px
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        middle = np.stack([affine(row, xyz) for row in cam_from_lidar[:3].tolist()])
        # in range even where the camera was at another time
        some = np.flatnonzero(np.isfinite(middle).all(axis=0))
        middle = here = np.take(middle, some, axis=1)
        u, v, depth, seen = landed(lens, matrix, here)
        for _ in range(STEPS if shutter.rolls else 0):
            after_s = shutter.seconds(u, v, width_px, height_px)
            here = moved_along(np.array(shutter.motion), -after_s, middle)
            u, v, depth, seen = landed(lens, matrix, here)
        seen &= depth > min_depth_m
        inside = np.flatnonzero(seen & (u > 0) & (u < width_px - 1) & (v > 0) & (v < height_px - 1))
    return pixels_of(some[inside], u[inside], v[inside], depth[inside])


def landed(
    lens: Lens, intrinsics: Float64, xyz_cam: Float64
) -> tuple[Float64, Float64, Float64, npt.NDArray[np.bool_]]:
    """Where points (3, n) of a camera land, u and v in pixels, their depth, and which of them the camera can see."""
    right, down, depth = xyz_cam
    if lens.field_rad:
        x, y, seen = bend_wide(lens, right, down, depth)
        depth = np.sqrt(right * right + down * down + depth * depth)
    else:
        x, y, seen = bend(lens, right / depth, down / depth)
        seen = seen & (depth > 0)
    (fx, skew, cx), (shear, fy, cy), _ = intrinsics.tolist()
    return fx * x + skew * y + cx, shear * x + fy * y + cy, depth, seen


def moved_along(motion: Float64, seconds: Float64, xyz: Float64) -> Float64:
    """Return points (3, n) that were seen from a frame that moves, so many seconds (n,) from now, from where it is now.

    ``motion`` (6,) is a rotation vector in rad/s and a velocity in m/s, in the frame itself. Sines and cosines are
    their series up to the eighth power, exact to float64 for what turns by less than a twentieth of a radian meanwhile,
    and to 1e-7 up to a whole one.
    """
    wx, wy, wz, vx, vy, vz = motion.tolist()
    angle = (wx * wx + wy * wy + wz * wz) * (seconds * seconds)  # squared
    first = seconds * (1 - angle / 6 * (1 - angle / 20 * (1 - angle / 42 * (1 - angle / 72))))
    second = seconds * seconds / 2 * (1 - angle / 12 * (1 - angle / 30 * (1 - angle / 56 * (1 - angle / 90))))
    third = seconds * seconds * seconds / 6 * (1 - angle / 20 * (1 - angle / 42 * (1 - angle / 72)))

    def turned(x: Any, y: Any, z: Any) -> tuple[Any, Any, Any]:
        return wy * z - wz * y, wz * x - wx * z, wx * y - wy * x

    x, y, z = xyz
    once = turned(x, y, z)
    twice = turned(*once)
    shift = (vx, vy, vz)
    shift_once = turned(vx, vy, vz)
    shift_twice = turned(*shift_once)
    return np.stack(
        [
            xyz[i]
            + first * once[i]
            + second * twice[i]
            + (seconds * shift[i] + second * shift_once[i])
            + third * shift_twice[i]
            for i in range(3)
        ]
    )


def affine(row: list[float], xyz: Float64) -> Float64:
    """One row of a 3 x 4 matrix times points (3, n), (n,); see the top of the file."""
    total: Float64 = row[0] * xyz[0]
    part = row[1] * xyz[1]
    total += part
    total += np.multiply(row[2], xyz[2], out=part)
    total += row[3]
    return total


def axis_distance(u_px: Float64, v_px: Float64, intrinsics: npt.ArrayLike) -> Float64:
    """Tangent of the angle between each pixel's ray and the optical axis: 0 at the principal point, no unit.

    Unlike a distance in pixels it can be compared between cameras of different focal lengths.
    """
    matrix = check_intrinsics(intrinsics)
    right, down = unprojected(matrix, u_px - matrix[0, 2], v_px - matrix[1, 2])
    return np.asarray(np.sqrt(right * right + down * down))


def unprojected(intrinsics: Float64, right_px: Any, down_px: Any) -> tuple[Any, Any]:
    """Where rays through pixels, given from the principal point on, are at depth 1: right and down of the axis."""
    (fx, skew), (shear, fy) = intrinsics[:2, :2].tolist()
    determinant = fx * fy - skew * shear
    return (fy * right_px - skew * down_px) / determinant, (fx * down_px - shear * right_px) / determinant
