"""What a calibration says by itself: which way a camera stands, what its matrix fits, and what it ought to see."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.checks.findings import Finding
from pipeline.checks.looks import Look
from pipeline.checks.signals import Array, View
from pipeline.geometry import project

MOST_ROLL_DEG = 10.0  # right calibrations: at most 2.1 degrees in nuScenes, KITTI, TRI's car and the city
MOST_UP_DEG = 35.0  # how far a camera may look up
MOST_DOWN_DEG = 75.0  # and down, as those for parking do
MIDDLE = (0.75, 1.25)  # of the middle, where a principal point is; crops move it, along one side
FEW_SEEN = 0.02  # of the points that a camera would see if it looked level, in the best direction
LEAST_SEEN = 0.002  # of a sweep, where a camera can be said to see points
_DIRECTIONS = 36


def check_mounting(name: str, looks: Sequence[tuple[Look, View]], aligned: bool) -> Iterator[Finding]:
    """Yield what is wrong with how a camera stands, by its views in some frames; `aligned` is what its edges say, which
    overrule what is merely unusual.
    """
    yield from check_upright(name, looks, aligned)
    yield from check_middle(name, looks, aligned)
    yield from check_share(name, looks)


def check_upright(name: str, looks: Sequence[tuple[Look, View]], aligned: bool) -> Iterator[Finding]:
    """Yield whether the LiDAR's up is the image's up."""
    ups = np.mean([view.camera.cam_from_lidar[:3, :3] @ look.up for look, view in looks], axis=0)
    roll_deg = math.degrees(math.atan2(ups[0], -ups[1]))
    rise_deg = math.degrees(math.asin(max(-1.0, min(1.0, float(ups[2])))))  # of the optical axis above the horizon
    wrong = abs(roll_deg) > MOST_ROLL_DEG and abs(rise_deg) < 80
    if not wrong and -MOST_DOWN_DEG <= rise_deg <= MOST_UP_DEG:
        return
    away_deg = math.degrees(math.acos(max(-1.0, min(1.0, -float(ups[1])))))
    text = (
        f"{name}: the LiDAR's up lies {away_deg:.0f} degrees off the image's up (rolled {roll_deg:.0f}, looking "
        f"{abs(rise_deg):.0f} {'up' if rise_deg > 0 else 'down'}); right ones are within 3 but for cameras that look "
        "down. Is its pose inverted (ego_from_cam or cam_from_lidar), transposed, or a quaternion x, y, z, w where w, "
        "x, y, z is expected? A camera frame is x right, y down, z forward"
    )
    if aligned:
        yield Finding("note", "calibration", f"{text}. Its edges fit, so it may well be mounted like this")
    else:
        yield Finding("problem", "calibration", text)


def check_middle(name: str, looks: Sequence[tuple[Look, View]], aligned: bool) -> Iterator[Finding]:
    """Yield whether the camera matrix fits the size of the images."""
    _, view = looks[0]
    width_px, height_px, matrix = view.picture.width_px, view.picture.height_px, view.camera.intrinsics
    x_px, y_px = float(matrix[0, 2]), float(matrix[1, 2])
    across, down = 2 * (x_px + 0.5) / width_px, 2 * (y_px + 0.5) / height_px
    where = f"{name}: the principal point ({x_px:.0f}, {y_px:.0f})"
    of_size = f"the images of {width_px} x {height_px} pixels"
    size = f"{width_px * across:.0f} x {height_px * down:.0f}"
    remedy = f"the camera matrix is made for about {size}: scale its first two rows to the size of the images"
    if not (0 < across < 2 and 0 < down < 2):
        yield Finding(
            "problem", "calibration", f"{where} lies outside {of_size}; it is near the middle. Perhaps {remedy}"
        )
        return
    scaled = [one for one in (across, down) if not MIDDLE[0] <= one <= MIDDLE[1]]
    same_way = len(scaled) == 2 and (across > 1) == (down > 1) and abs(math.log(across / down)) < 0.15
    if same_way and not aligned:
        yield Finding(
            "problem", "calibration", f"{where} is far off the middle of {of_size}, both ways. Perhaps {remedy}"
        )
    elif scaled:
        yield Finding(
            "note", "calibration", f"{where} is far off the middle of {of_size}; that is right for a crop only"
        )
    sizes = {(view.picture.width_px, view.picture.height_px) for _, view in looks}
    matrices = {view.camera.intrinsics.tobytes() for _, view in looks}
    if len(sizes) > 1 and len(matrices) == 1:
        told = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        text = f"{name}: images are of several sizes ({told}) with one camera matrix; it can fit one of them only"
        yield Finding("problem", "calibration", text)


def check_share(name: str, looks: Sequence[tuple[Look, View]]) -> Iterator[Finding]:
    """Yield whether a camera sees about as many points as its field of view would have it."""
    shares, bests = [], []
    for look, view in looks:
        xyz_m = look.xyz_m[:: max(1, len(look.xyz_m) // 20_000)]
        shares.append(share_seen(xyz_m, view, view.camera.cam_from_lidar))
        bests.append(max(share_seen(xyz_m, view, pose) for pose in level_poses(view, look.up)))
    share, best = float(np.mean(shares)), float(np.mean(bests))
    if share >= max(FEW_SEEN * best, LEAST_SEEN):
        return
    yield Finding(
        "problem",
        "calibration",
        f"{name} sees {share:.2%} of a sweep's points; with its field of view it could see {best:.0%}. Check that its "
        "pose is not inverted (is it ego_from_cam?), that x points right, y down and z forward, and that its "
        "intrinsics fit its image size; if the LiDAR does not reach there, leave it out with data.cameras",
    )


def share_seen(xyz_m: Array, view: View, cam_from_lidar: Array) -> float:
    """Return the share of points (n, 3) that land in an image."""
    picture = view.picture
    seen = project(xyz_m, cam_from_lidar, view.camera.intrinsics, picture.width_px, picture.height_px).point
    return len(seen) / max(len(xyz_m), 1)


def level_poses(view: View, up: Array) -> list[Array]:
    """Return poses (4, 4) of a camera that stands where it stands but looks level, all the way round."""
    centre = -view.camera.cam_from_lidar[:3, :3].T @ view.camera.cam_from_lidar[:3, 3]
    up = up / np.linalg.norm(up)
    side = np.cross(up, np.eye(3)[np.abs(up).argmin()])
    side /= np.linalg.norm(side)
    poses = []
    for angle in np.arange(_DIRECTIONS) * (2 * math.pi / _DIRECTIONS):
        ahead = math.cos(angle) * side + math.sin(angle) * np.cross(up, side)
        pose = np.eye(4)
        pose[:3, :3] = [np.cross(ahead, up), -up, ahead]
        pose[:3, 3] = -pose[:3, :3] @ centre
        poses.append(pose)
    return poses
