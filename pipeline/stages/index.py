"""Stage `index`: opens every file of every key frame, so that a bad one is known before anything is computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.storage.places import Root, root_of, size_of
from manifests.tables.sensors import Index
from pipeline.datasets.base import Dataset
from pipeline.datasets.registry import open_dataset
from pipeline.datasets.sweeps import KeptSweeps
from pipeline.frame import Camera, Frame, FrameError, inside, look_at_image, read_file, read_mask
from pipeline.geometry import Float64, check_intrinsics
from pipeline.sources import FrameFiles, sha256_of
from pipeline.stages.base import FrameFunction, FrameInput, Stage

ABSENT = "absent"  # in the place of a digest
RIGID_TOLERANCE = 1e-3  # tables round quaternions; anything above is a typing error or a scaled matrix


def prepare(recipe: Recipe) -> FrameFunction[Index]:
    """Return the function that checks a listed frame and fills in what only its files tell: sizes and point count."""
    dataset = open_dataset(recipe.data)
    root = root_of(recipe.data)

    def check(inputs: FrameInput) -> Index:
        return check_frame(dataset, root, inputs.frame, inputs.sweeps).index()

    return check


def files_of(frame: Frame) -> tuple[str, ...]:
    """Return the files of a frame in the data root: sweeps and images, and masks and labels where it has some."""
    labels = () if frame.label_path is None else (frame.label_path,)
    masks = {camera.mask_path for camera in frame.cameras if camera.mask_path}
    images = (camera.image_path for camera in frame.cameras)
    return (frame.lidar_path, *images, *labels, *sorted(masks), *(one.path for one in frame.sweeps[1:]))


def digested(root: Root, frame: Frame) -> Frame:
    """Return the frame with the digests of its files, so that whoever reads one gets the bytes that were digested.

    They are those that came with the frame, if it has some. That of a file that is not there fits no file, should one
    appear meanwhile.
    """
    known = frame.files or {name: sha256_of(root, name) for name in files_of(frame)}
    return replace(
        frame,
        lidar_sha256=known[frame.lidar_path] or ABSENT,
        label_sha256=None if frame.label_path is None else known[frame.label_path],
        cameras=tuple(
            replace(
                one,
                image_sha256=known[one.image_path] or ABSENT,
                mask_sha256=(known[one.mask_path] or ABSENT) if one.mask_path else "",
            )
            for one in frame.cameras
        ),
        sweeps=tuple(replace(one, sha256=known[one.path] or ABSENT) for one in frame.sweeps),
    )


def check_frame(dataset: Dataset, root: Root, frame: Frame, sweeps: KeptSweeps | None = None) -> Frame:
    """Return the frame with sizes and point count, every file of it read and decoded; a frame without cameras is fine.

    Raises FrameError that lists everything wrong with the frame: sweep (missing, truncated, values that are not
    finite), images (missing, empty, truncated, no image), poses and camera matrices, and labels that do not fit the
    sweep. A label file that is not on disk is not an error: nothing but stage `label` needs it.
    """
    frame = digested(root, frame)
    problems = list(frame.problems)
    for name, pose in (("ego_from_lidar", frame.ego_from_lidar), ("world_from_lidar", frame.world_from_lidar)):
        # NaN because of a fault that is listed already, or because nothing is known
        if not ((frame.problems or not frame.posed) and np.isnan(pose).any()):
            problems += [f"{name}: {problem}" for problem in pose_problems(pose)]
    problems += [f"{one.name}: {problem}" for one in frame.sweeps for problem in pose_problems(one.lidar_from_sweep)]
    try:
        if frame.lidar_path or not frame.problems:  # else it is said why there is none
            frame = checked_sweep(dataset, root, frame, sweeps or KeptSweeps())
    except FrameError as error:
        problems.append(str(error))
    cameras = []
    for camera in frame.cameras:
        if not (frame.problems and np.isnan(camera.cam_from_lidar).any()):
            problems += camera_problems(camera)
        try:
            cameras.append(checked_image(root, camera))
        except FrameError as error:
            problems.append(str(error))
    try:
        frame = checked_labels(dataset, root, frame)
    except FrameError as error:
        problems.append(str(error))
    if problems:
        raise FrameError("; ".join(problems))
    return replace(frame, cameras=tuple(cameras))


def checked_sweep(dataset: Dataset, root: Root, frame: Frame, sweeps: KeptSweeps) -> Frame:
    """Return the frame with what its sweep tells; raises FrameError if it is unreadable or a value is not finite."""
    cloud = dataset.read_cloud(frame)
    xyz_m, intensity = cloud.xyz_m, cloud.intensity
    bad = ~(np.isfinite(xyz_m).all(axis=1) & np.isfinite(intensity))
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        values = [*xyz_m[first].tolist(), float(intensity[first])]
        raise FrameError(
            f"{frame.lidar_path}: {bad.sum()} of {len(bad)} points have a value that is not finite, the first is "
            f"point {first} (x, y, z, intensity = {values}); mend the file or exclude the frame"
        )
    sweeps.keep(frame, cloud)
    parts = tuple(replace(one, n_points=n) for one, n in zip(frame.sweeps, cloud.n_points, strict=True))
    size = size_of(inside(root, frame.lidar_path), frame.lidar_sha256)
    return replace(frame, n_points=len(xyz_m), lidar_bytes=size, sweeps=parts)


def checked_image(root: Root, camera: Camera) -> Camera:
    """Return the camera with what its image tells; raises FrameError if that cannot be read to its last pixel."""
    height_px, width_px = look_at_image(root, camera)
    size = size_of(inside(root, camera.image_path), camera.image_sha256)
    checked = replace(camera, width_px=width_px, height_px=height_px, image_bytes=size)
    read_mask(root, checked)
    return checked


def checked_labels(dataset: Dataset, root: Root, frame: Frame) -> Frame:
    """Return the frame if its labels are not on disk, or fit its sweep; raises FrameError if they do not fit."""
    if frame.label_path is None or not frame.n_points or not inside(root, frame.label_path).exists():
        return frame
    if frame.label_sha256 is None:
        read_file(root, frame.label_path, None)  # says why it could not be digested
    n_labels = len(dataset.read_labels(frame))
    if n_labels != frame.n_points:
        raise FrameError(f"{frame.label_path}: {n_labels} labels for the {frame.n_points} points of {frame.lidar_path}")
    return frame


def camera_problems(camera: Camera) -> list[str]:
    """Return what is wrong with the calibration of a camera, nothing if it can be used."""
    problems = pose_problems(camera.cam_from_lidar)
    try:
        matrix = check_intrinsics(camera.intrinsics)
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            problems.append(f"focal lengths are {matrix[0, 0]} and {matrix[1, 1]} px; expected more than 0")
    except ValueError as error:
        problems.append(str(error))
    return [f"{camera.name}: {problem}" for problem in problems]


def pose_problems(pose: Float64) -> list[str]:
    """Return what keeps a matrix (4, 4) from being a rotation and a translation, nothing if it is."""
    if not np.isfinite(pose).all():
        return ["the pose is not finite; a rotation in the tables is not 4 numbers, or 0, or a translation not 3"]
    rotation = pose[:3, :3]
    skewed = np.abs(rotation @ rotation.T - np.eye(3)).max() > RIGID_TOLERANCE or np.linalg.det(rotation) < 0
    if skewed or pose[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        return [f"the pose {pose.tolist()} is not a rotation and a translation"]
    return []


STAGE = Stage(
    table=SPECS["index"],
    prepare=prepare,
    apart=tuple(Index.schema.names),
    files=lambda recipe: FrameFiles(root_of(recipe.data), files_of),
    count=lambda row: {"points": row.n_points, "images": len(row.camera)},
    kilobytes_per_frame=lambda recipe: 10.0,
)
