"""The ground right around a vehicle: the ring that no camera sees and whose height the calibration tells."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy

Floats = npt.NDArray[np.floating[Any]]


def height_of_sensor_m(ego_from_lidar: npt.NDArray[np.float64]) -> float | None:
    """Return how high the LiDAR is above the ground; None where the vehicle's frame does not lie on the ground.

    Vehicle frames in the manner of nuScenes have their origin on the ground. One that coincides with the LiDAR's, as in
    data sets that know no vehicle frame, tells nothing.
    """
    height_m = float(ego_from_lidar[2, 3])
    return height_m if height_m > 0 else None


def ring_candidates(
    xyz_m: Floats, sensor_height_m: float, inner_m: float, outer_m: float, clearance_m: float
) -> npt.NDArray[np.int64]:
    """Return the indices of the points between two horizontal distances that lie near the expected ground, ascending.

    A point counts if it lies less than `clearance_m` above the plane `z = -sensor_height_m` (LiDAR frame, z up,
    metres); there is no lower bound, so a ring on falling ground is found as well. Equation: reference implementation
    of the paper (arXiv 2405.15286), where the limit is the constant z < -1.4.
    """
    distance_m = np.sqrt(xyz_m[:, 0] ** 2 + xyz_m[:, 1] ** 2)
    limit = np.asarray(clearance_m - sensor_height_m, xyz_m.dtype)
    return np.flatnonzero((distance_m > inner_m) & (distance_m < outer_m) & (xyz_m[:, 2] < limit))


def plane_inliers(
    xyz_m: Floats, min_samples: int, residual_m: float, trials: int, seed: int
) -> npt.NDArray[np.bool_] | None:
    """Return which points lie on the plane z = ax + by + c found by RANSAC, (n,); None where there is no such plane.

    `residual_m` is a vertical distance. Scikit-learn's sampling is part of the result: the reference implementation
    uses it, and the draws depend on the seed alone, so equal points in equal order give equal bits.
    """
    import sklearn
    from sklearn.linear_model import RANSACRegressor

    if len(xyz_m) < min_samples:
        return None
    model = RANSACRegressor(
        min_samples=min_samples, residual_threshold=residual_m, max_trials=trials, random_state=seed
    )
    try:
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True):
            model.fit(xyz_m[:, :2], xyz_m[:, 2])
    except ValueError:  # scikit-learn's word for "no consensus": every trial left no inlier
        return None
    inlier: npt.NDArray[np.bool_] = model.inlier_mask_
    return inlier


def stood_on(ground_m: Floats, xyz_m: Floats, radius_m: float, low_m: float, high_m: float) -> npt.NDArray[np.bool_]:
    """Return which points of a plane have another point above them, (g,): `low_m` to `high_m` above the plane and
    within `radius_m` of the plumb line.

    The plane is the one that fits `ground_m` (g, 3) best. Foot and shadowed side of a car, a wall or a fence are such
    points, bare ground is not.
    """
    if not len(ground_m):
        return np.zeros(0, np.bool_)
    middle = ground_m.mean(axis=0, dtype=np.float64)
    away = ground_m - middle
    (a, b), *_ = np.linalg.lstsq(away[:, :2], away[:, 2], rcond=None)
    height_m = xyz_m[:, 2] - middle[2] - a * (xyz_m[:, 0] - middle[0]) - b * (xyz_m[:, 1] - middle[1])
    above = xyz_m[(height_m > low_m) & (height_m < high_m), :2]
    if not len(above):
        return np.zeros(len(ground_m), np.bool_)
    away_m, _ = scipy.spatial.cKDTree(above).query(ground_m[:, :2], distance_upper_bound=radius_m)
    found: npt.NDArray[np.bool_] = np.isfinite(away_m)
    return found
