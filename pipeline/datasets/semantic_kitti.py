"""SemanticKITTI: the sequences of the KITTI odometry benchmark, with point labels for 00-10.

    <root>/sequences/<name>/velodyne/000000.bin          float32 x, y, z, remission of every point
                                  image_2/000000.png     rectified colour images, left; image_3: right; or .jpg
                                  labels/000000.label    uint32 of every point: class below, instance above 16 bits
                                  calib.txt  poses.txt  times.txt

A scan and its images bear the same number and the same time: the cameras are triggered by the scanner, and KITTI has
taken the vehicle's motion out of the scans. Formats: the development kit of the KITTI odometry benchmark and Behley et
al., SemanticKITTI (ICCV 2019).
"""

from __future__ import annotations

import codecs
import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.sections.data import NO_CAMERAS, DataConfig
from manifests.storage.places import Root, root_of
from pipeline.datasets.clouds import WITHOUT_RING, Cloud
from pipeline.datasets.sweeps import masks_of, read_sweep, tell_unswept
from pipeline.frame import UNKNOWN_POSE, Camera, Frame, FrameError, read_file, seen_by
from pipeline.geometry import Float64, chained, check_intrinsics, inverse_pose, unprojected

USUAL_CAMERAS = ("image_2",)
"""The views where `data.cameras` names none: the left colour camera, as the AFOV reference implementation has it."""

MATRIX_OF_CAMERA = {"image_0": "P0", "image_1": "P1", "image_2": "P2", "image_3": "P3"}

LIDAR_HEIGHT_M = 1.73  # above the road: the sensor setup of Geiger et al., Vision meets robotics (IJRR 2013)
SCAN_PERIOD_US = 100_000  # the scanner turns ten times a second

CAM0_FROM_LIDAR_OF_DAY = {
    718.856: "4.276802385584e-04 -9.999672484946e-01 -8.084491683471e-03 -1.198459927713e-02 -7.210626507497e-03 "
    "8.081198471645e-03 -9.999413164504e-01 -5.403984729748e-02 9.999738645903e-01 4.859485810390e-04 "
    "-7.206933692422e-03 -2.921968648686e-01",
    721.5377: "2.347736981471e-04 -9.999441545438e-01 -1.056347781105e-02 -2.796816941295e-03 1.044940741659e-02 "
    "1.056535364138e-02 -9.998895741176e-01 -7.510879138296e-02 9.999453885620e-01 1.243653783865e-04 "
    "1.045130299567e-02 -2.721327964059e-01",
    707.0912: "-1.857739385241e-03 -9.999659513510e-01 -8.039975204516e-03 -4.784029760483e-03 -6.481465826011e-03 "
    "8.051860151134e-03 -9.999466081774e-01 -7.337429464231e-02 9.999773098287e-01 -1.805528627661e-03 "
    "-6.496203536139e-03 -3.339968064433e-01",
}
"""`Tr` of the official calib.txt files by the focal length in P0, which tells the day of recording (03.10., 26.09. and
30.09.2011): KITTI calibrated once a day. The calib.txt that comes with the images lacks the line."""

ENDINGS = (".png", ".jpg", ".jpeg")  # of images

_NUMBER = re.compile(r"\d{6}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sequence:
    """What the text files of a sequence say; what they do not is NaN or absent, and `problems` says why.

    `intrinsics` (3, 3) px and `cam_from_lidar` (4, 4) by camera; `cam0_from_lidar` (4, 4); `poses` (4, 4), left grey
    camera at each scan to that camera at the first; `times_us`. The last two have an entry per scan number, or fewer.
    `posed` says whether there are poses at all, `labelled` whether there are labels, `endings` how images are named.
    """

    intrinsics: Mapping[str, Float64]
    cam_from_lidar: Mapping[str, Float64]
    cam0_from_lidar: Float64
    poses: tuple[Float64, ...]
    times_us: tuple[int, ...] | None
    problems: tuple[str, ...]
    posed: bool
    labelled: bool
    endings: Mapping[str, str]


class SemanticKittiDataset:
    """The scans of a folder in SemanticKITTI layout, every scan a frame, every sequence a scene.

    Sequences may be left out and have any names, `sequences` itself may be the root, and `labels` may be missing (11-21
    have none), as may poses: those of all scans are unknown then, and stage `vote` refuses them. The world is the LiDAR
    frame of the first scan of a sequence, x forward and z up. There is no vehicle frame in KITTI; ours lies on the road
    below the LiDAR. `data.version` is a name without meaning here.
    """

    points_per_frame: ClassVar[int] = 121_000

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.root = root_of(config)
        self.named = config.cameras or USUAL_CAMERAS
        self.cameras = tuple(camera for camera in MATRIX_OF_CAMERA if camera in self.named)

    def frames(self) -> Iterator[Frame]:
        """Yield the scans sequence by sequence, by number; see Dataset.frames."""
        unknown = sorted(set(self.named) - MATRIX_OF_CAMERA.keys() - set(NO_CAMERAS))
        if unknown:
            raise ConfigError(f"data.cameras names {unknown[0]}; SemanticKITTI has {', '.join(MATRIX_OF_CAMERA)}")
        masks = masks_of(self.config, self.cameras)
        for name in self.sequences():
            numbers = self.scan_numbers(name)
            sequence = self.read_sequence(name)
            if not sequence.posed:
                _log.warning(
                    "%s has no poses.txt: where the vehicle was is unknown, and stage `vote` cannot run",
                    self.folder(name),
                )
            for camera, ending in sequence.endings.items():
                folder = f"{self.folder(name)}/{camera}"
                images = {path.stem for path in (self.root / folder).glob(f"[0-9]*{ending}")}
                tell_unswept(folder, images, numbers)
            for number in numbers:
                yield seen_by(self.frame(name, number, sequence), self.cameras, masks)

    @cached_property
    def above(self) -> str:
        """The folder of the sequences, relative to the root, with a slash behind it; nothing where it is the root."""
        return "sequences/" if (self.root / "sequences").is_dir() else ""

    def folder(self, name: str) -> str:
        """Return the folder of a sequence, relative to the root."""
        return f"{self.above}{name}"

    def sequences(self) -> list[str]:
        """Return the sequences that have scans, by name; raises ConfigError if there is none."""
        folder = self.root / self.above
        try:
            found = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
            found = sorted(name for name in found if next((folder / name).glob("velodyne/*.bin"), None))
        except OSError as error:
            raise ConfigError(
                f"data.root: {folder}: {error.strerror or error}; give the folder that holds sequences/"
            ) from None
        if not found:
            raise ConfigError(
                f"{folder} has no scans; expected files like sequences/00/velodyne/000000.bin: unpack "
                "data_odometry_velodyne.zip"
            )
        return found

    def scan_numbers(self, name: str) -> list[str]:
        """Return the numbers of a sequence's scans, six digits each, ascending; raises ConfigError for other files."""
        numbers = sorted(path.stem for path in (self.root / self.folder(name) / "velodyne").glob("*.bin"))
        odd = [number for number in numbers if not _NUMBER.fullmatch(number)]
        if odd:
            raise ConfigError(
                f"{self.folder(name)}/velodyne/{odd[0]}.bin is no scan of SemanticKITTI; their names are six digits"
            )
        return numbers

    def frame(self, name: str, number: str, sequence: Sequence) -> Frame:
        """Return the frame of a scan; see Dataset.frames for how gaps are shown."""
        folder, position = self.folder(name), int(number)
        problems = list(sequence.problems)
        world_from_lidar = UNKNOWN_POSE
        if position < len(sequence.poses):
            lidar_from_cam0 = inverse_pose(sequence.cam0_from_lidar)
            world_from_lidar = chained(lidar_from_cam0, sequence.poses[position], sequence.cam0_from_lidar)
        elif sequence.poses:
            problems.append(
                f"{folder}/poses.txt: {len(sequence.poses)} poses; scan {number} needs line {position + 1}: fetch the "
                "poses of the whole sequence"
            )
        timestamp_us = position * SCAN_PERIOD_US
        if sequence.times_us is not None:
            if position < len(sequence.times_us):
                timestamp_us = sequence.times_us[position]
            else:
                problems.append(f"{folder}/times.txt: {len(sequence.times_us)} times; scan {number} has none")
        ego_from_lidar = np.eye(4)
        ego_from_lidar[2, 3] = LIDAR_HEIGHT_M
        return Frame(
            frame_id=f"{name}_{number}",
            scene=name,
            timestamp_us=timestamp_us,
            lidar_token=f"{name}_{number}",
            lidar_path=f"{folder}/velodyne/{number}.bin",
            label_path=f"{folder}/labels/{number}.label" if sequence.labelled else None,
            ego_from_lidar=ego_from_lidar,
            world_from_lidar=world_from_lidar,
            cameras=tuple(
                Camera(
                    name=camera,
                    token=f"{name}_{number}_{camera}",
                    image_path=f"{folder}/{camera}/{number}{sequence.endings[camera]}",
                    timestamp_us=timestamp_us,
                    intrinsics=sequence.intrinsics[camera],
                    cam_from_lidar=sequence.cam_from_lidar[camera],
                )
                for camera in self.cameras
            ),
            problems=tuple(problems),
            posed=sequence.posed,
        )

    def read_sequence(self, name: str) -> Sequence:  # long: one file of the sequence after another
        """Return what calib.txt, poses.txt and times.txt of a sequence say; raises nothing."""
        folder = self.folder(name)
        problems: list[str] = []
        matrices: dict[str, Float64] = {}
        poses: tuple[Float64, ...] = ()
        times_us: tuple[int, ...] | None = None
        try:
            matrices = calibration(read_text(self.root, f"{folder}/calib.txt"), f"{folder}/calib.txt")
        except FrameError as error:
            problems.append(str(error))
        # the odometry benchmark keeps its own poses in another place; both are those of the left grey camera
        path = f"poses/{name}.txt" if (self.root / "poses" / f"{name}.txt").is_file() else f"{folder}/poses.txt"
        path = f"{folder}/poses.txt" if (self.root / folder / "poses.txt").is_file() else path
        posed = (self.root / path).exists()
        try:
            lines = numbers_of(read_text(self.root, path), path, 12, "a pose, 3 x 4 numbers") if posed else []
            poses = tuple(square(values) for values in lines)
        except FrameError as error:
            problems.append(str(error))
        if (self.root / folder / "times.txt").is_file():
            path = f"{folder}/times.txt"
            try:
                rows = numbers_of(read_text(self.root, path), path, columns=1, what="a time in seconds")
                times_us = tuple(round(seconds * 1e6) for (seconds,) in rows)
                if list(times_us) != sorted(times_us):
                    raise FrameError(f"{path}: the times do not ascend; fetch the file again")
            except FrameError as error:
                problems.append(str(error))
                times_us = None

        cam0_from_lidar = np.full((4, 4), np.nan)
        intrinsics, cam_from_lidar = {}, {}
        if "Tr" in matrices:
            cam0_from_lidar = matrices["Tr"]
        elif matrices:
            problems.append(
                f"{folder}/calib.txt: there is no line Tr (LiDAR to camera), and P0 is of no day for which it is "
                "known; take calib.txt from data_odometry_calib.zip"
            )
        for camera in self.cameras:
            matrix = MATRIX_OF_CAMERA[camera]
            intrinsics[camera], cam_from_lidar[camera] = np.full((3, 3), np.nan), np.full((4, 4), np.nan)
            if matrix in matrices:
                try:
                    intrinsics[camera], cam_from_cam0 = split_projection(matrices[matrix])
                    cam_from_lidar[camera] = chained(cam_from_cam0, cam0_from_lidar)
                except ValueError as error:
                    problems.append(f"{folder}/calib.txt: {matrix} {error}")
            elif matrices:
                problems.append(f"{folder}/calib.txt: there is no line {matrix}, the projection of {camera}")
        return Sequence(
            intrinsics,
            cam_from_lidar,
            cam0_from_lidar,
            poses,
            times_us,
            tuple(problems),
            posed,
            labelled=(self.root / folder / "labels").is_dir(),
            endings={camera: self.ending(folder, camera) for camera in self.cameras},
        )

    def ending(self, folder: str, camera: str) -> str:
        """Return how the names of a camera's images end: as SemanticKITTI has them, where there are any such."""
        there = {path.suffix for path in (self.root / folder / camera).glob("[0-9]*")}
        return next((one for one in ENDINGS if one in there), ENDINGS[0])

    def read_cloud(self, frame: Frame) -> Cloud:
        """Return the scan, its remission 0..1; see Dataset.read_cloud."""
        return read_sweep(frame, self.config, WITHOUT_RING)

    def label_names(self) -> None:
        """Return None: labels are the numbers of the class dictionary; see Dataset.label_names."""

    def read_labels(self, frame: Frame) -> npt.NDArray[np.uint16]:
        """Return the class of each point as stored, without its instance, uint16 (n,); see Dataset.read_labels."""
        if frame.label_path is None:
            raise FrameError(f"sequence {frame.scene} has no folder `labels`")
        content = read_file(self.root, frame.label_path, frame.label_sha256 or "")
        if len(content) % 4:
            raise FrameError(
                f"{frame.label_path}: {len(content)} bytes is not a multiple of 4, the uint32 of a label; fetch the "
                "file again"
            )
        return (np.frombuffer(content, "<u4") & 0xFFFF).astype(np.uint16)


def read_text(root: Root, relative: str) -> str:
    """Return a text file; raises FrameError if it is missing or holds bytes that are no text."""
    try:
        return read_file(root, relative).removeprefix(codecs.BOM_UTF8).decode("ascii")
    except UnicodeDecodeError:
        raise FrameError(f"{relative}: this is no text; fetch the file again") from None


def numbers_of(text: str, path: str, columns: int, what: str) -> list[list[float]]:
    """Return the numbers of every line that is not empty; raises FrameError naming the line that is wrong."""
    rows = []
    for position, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                values = [float(word) for word in line.split()]
            except ValueError:
                values = []
            if len(values) != columns or not all(map(math.isfinite, values)):
                raise FrameError(f"{path}: line {position} is {line[:60]!r}; expected {what}")
            rows.append(values)
    return rows


def calibration(text: str, path: str) -> dict[str, Float64]:
    """Return the matrices of a calib.txt by name: P0..P3 (3, 4) px, and Tr (4, 4), camera 0 from LiDAR.

    A missing Tr is filled in from what is known of the day of recording, where P0 tells it. Raises FrameError for a
    line that is not a name and 12 numbers.
    """
    matrices: dict[str, Float64] = {}
    for line in text.splitlines():
        name, colon, values = line.partition(":")
        if not line.strip():
            continue
        rows = numbers_of(values, path, columns=12, what=f"12 numbers behind {name.strip()[:20]!r}")
        if not colon or len(rows) != 1:
            raise FrameError(f"{path}: {line[:60]!r} is no line of a calibration; expected a name, a colon, 12 numbers")
        matrices[name.strip()] = np.array(rows[0]).reshape(3, 4)
    if "Tr" in matrices:
        matrices["Tr"] = square(matrices["Tr"].ravel().tolist())
    elif "P0" in matrices and float(matrices["P0"][0, 0]) in CAM0_FROM_LIDAR_OF_DAY:
        known = CAM0_FROM_LIDAR_OF_DAY[float(matrices["P0"][0, 0])]
        matrices["Tr"] = square([float(word) for word in known.split()])
    return matrices


def square(values: list[float] | Float64) -> Float64:
    """Return the 4 x 4 matrix whose upper three rows are the 12 values."""
    return np.vstack([np.asarray(values).reshape(3, 4), [0.0, 0.0, 0.0, 1.0]])


def split_projection(matrix: Float64) -> tuple[Float64, Float64]:
    """Return intrinsics K (3, 3) and `cam_from_cam0` (4, 4) of a projection P (3, 4) = K [I | t].

    The fourth column of P is the camera's place beside camera 0, in pixels; t = K^-1 P[:, 3] has it in metres. Raises
    ValueError where K cannot be inverted.
    """
    intrinsics, cam_from_cam0 = matrix[:, :3].copy(), np.eye(4)
    try:
        check_intrinsics(intrinsics)
    except ValueError:
        raise ValueError(
            f"is {matrix.tolist()}, whose left 3 x 3 part is singular or no camera matrix (last row 0, 0, 1)"
        ) from None
    u, v, depth = matrix[:, 3].tolist()
    cx, cy = intrinsics[:2, 2].tolist()
    cam_from_cam0[:3, 3] = (*unprojected(intrinsics, u - cx * depth, v - cy * depth), depth)
    return intrinsics, cam_from_cam0
