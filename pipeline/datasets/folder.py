"""Your own logs as plain files: a folder per scene, with one TOML of cameras and poses. Described in docs/own-data.md.

<root>/<scene>/scene.toml   what is where, when, and how the sensors stand to each other
               points/      .npy, .bin, .pcd.bin, .pcd or .ply; any folder and names that scene.toml gives
               images/      anything that Pillow reads, rectified
               labels/      .npy, .bin or .label; need not be there
"""

from __future__ import annotations

import logging
import math
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError, nearest
from manifests.fingerprint import Json, Settings
from manifests.sections.data import NO_CAMERAS, DataConfig
from manifests.storage.places import Root, each_of, root_of
from pipeline.datasets.clouds import Cloud
from pipeline.datasets.formats import read_point_labels
from pipeline.datasets.motion import Track
from pipeline.datasets.sweeps import masks_of, read_sweep
from pipeline.datasets.times import IN_US, in_microseconds
from pipeline.frame import UNKNOWN_MOTION, UNKNOWN_POSE, Camera, Frame, FrameError, read_file, seen_by, slashed
from pipeline.geometry import Float64, chained, compose_cam_from_lidar, inverse_pose, pose_matrix
from pipeline.lenses import DIRECTIONS, GLOBAL, Lens, Shutter, lens_of

FILE = "scene.toml"

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_FRAME = "{frame}"
_log = logging.getLogger(__name__)
MOST_READOUT_S = 0.2

TIMES = {
    "timestamp_us": "microseconds, a whole number",
    "timestamp_ns": "nanoseconds, a whole number",
    "timestamp_ms": "milliseconds, a whole number",
    "timestamp_s": "seconds, a number",
}
"""Keys of a time, and what each is; one of them is given."""

Table = Settings


@dataclass(frozen=True)
class Rig:
    """What is the same for all frames of a scene; calibrations that make no sense are NaN, and `problems` says why.

    `points`, `labels` and `images` are file names in the scene's folder, with {frame} in the place of the frame's name.
    """

    points: str
    labels: str | None
    ego_from_lidar: Float64
    images: Mapping[str, str]
    intrinsics: Mapping[str, Float64]
    lenses: Mapping[str, Lens]
    shutters: Mapping[str, Shutter]
    ego_from_cam: Mapping[str, Float64]
    problems: tuple[str, ...]


class FolderDataset:
    """Logs in a plain layout: scenes by name, frames by time. `data.version` is a name without meaning here."""

    points_per_frame: ClassVar[int] = 100_000

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.root = root_of(config)
        self.cameras = config.cameras

    def frames(self) -> Iterator[Frame]:
        """Yield the frames scene by scene; see Dataset.frames."""
        scenes = self.scenes()
        files = [self.root / scene / FILE for scene in scenes]
        documents = dict(zip(scenes, each_of(self.root, read_toml, files), strict=True))
        rigs = {scene: rig_of(documents[scene], f"{scene}/{FILE}") for scene in scenes}
        known = {camera for rig in rigs.values() for camera in rig.images}
        missing = sorted(set(self.cameras) - known - set(NO_CAMERAS))
        if missing:
            raise ConfigError(
                f"data.cameras names {missing[0]}; the scenes of {self.root} have {', '.join(sorted(known))}"
            )
        masks = masks_of(self.config, known)
        owner: dict[tuple[str, str], str] = {}
        for scene in scenes:
            where = f"{scene}/{FILE}"
            frames = [frame_of_table(table, scene, rigs[scene], where) for table in tables(documents[scene], "frame")]
            if self.config.time_column or any(one.direction for one in rigs[scene].shutters.values()):
                frames = with_motion(frames, rigs[scene], track_of(documents[scene], where), where)
            names = [frame.frame_id for frame in frames]
            if len(set(names)) < len(names):
                repeated = next(name for name in names if names.count(name) > 1)
                raise ConfigError(f"{where}: two frames are named {repeated.partition('/')[2]}; names must differ")
            for frame in frames:
                tokens = [("sweep", frame.lidar_token), *(("image", camera.token) for camera in frame.cameras)]
                for what, token in tokens:
                    other = owner.setdefault((what, token), frame.frame_id)
                    if other != frame.frame_id:
                        raise ConfigError(
                            f"{where}: frames {other} and {frame.frame_id} both have a {what} called {token}, the "
                            "names of scene, frame and camera joined by '_', by which masks are found; rename one"
                        )
            for frame in sorted(frames, key=lambda one: (one.timestamp_us, one.frame_id)):
                yield seen_by(frame, self.cameras, masks)

    def scenes(self) -> list[str]:
        """Return the names of the scenes, ascending; raises ConfigError if there is none."""
        try:
            found = sorted(path.parent.name for path in self.root.glob(f"*/{FILE}"))
            if not found:
                raise ConfigError(
                    f"data.root {self.root} holds no scene; expected a folder for each, with a file {FILE} in it "
                    "(docs/own-data.md)"
                )
        except OSError as error:
            raise ConfigError(f"data.root {self.root} cannot be read: {error.strerror or error}") from None
        return found

    def read_cloud(self, frame: Frame) -> Cloud:
        """Return the sweep, its intensity as stored; see Dataset.read_cloud."""
        return read_sweep(frame, self.config)

    def label_names(self) -> None:
        """Return None: labels are the numbers of the class dictionary; see Dataset.label_names."""

    def read_labels(self, frame: Frame) -> npt.NDArray[np.uint16]:
        """Return the label of each point, uint16 (n,); see Dataset.read_labels."""
        if frame.label_path is None:
            raise FrameError(f"{frame.scene}/{FILE} names no `labels`")
        try:
            return read_point_labels(
                Path(frame.label_path), read_file(self.root, frame.label_path, frame.label_sha256 or "")
            )
        except ValueError as error:
            raise FrameError(f"{frame.label_path}: {error}") from None


def read_toml(path: Root) -> Table:
    """Return the description of a scene; raises ConfigError for a file that cannot be read."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # a byte-order mark is no part of it
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


def rig_of(document: Table, where: str) -> Rig:
    """Return what holds for the whole scene; raises ConfigError for keys and values that are not as described."""
    checked_table(document, {"points"}, {"labels", "ego_from_lidar", "camera", "frame"}, where)
    problems: list[str] = []
    ego_from_lidar = checked_pose(document.get("ego_from_lidar"), f"{where}: ego_from_lidar", problems)
    images: dict[str, str] = {}
    intrinsics: dict[str, Float64] = {}
    lenses: dict[str, Lens] = {}
    shutters: dict[str, Shutter] = {}
    ego_from_cam: dict[str, Float64] = {}
    for camera in tables(document, "camera", where):
        may_have = {"ego_from_cam", "cam_from_lidar", "lens", "distortion", "field_deg", "readout", "readout_s"}
        checked_table(camera, {"name", "images", "intrinsics"}, may_have, f"{where}: [[camera]]")
        name = word(camera["name"], f"{where}: the name of a camera")
        here = f"{where}: camera {name}"
        if name in images:
            raise ConfigError(f"{here} is there twice; names must differ")
        if ("ego_from_cam" in camera) == ("cam_from_lidar" in camera):
            raise ConfigError(f"{here}: give either ego_from_cam or cam_from_lidar")
        images[name] = template(camera["images"], f"{here}: images")
        intrinsics[name] = checked_matrix(camera["intrinsics"], f"{here}: intrinsics", problems)
        lenses[name] = checked_lens(camera, here)
        shutters[name] = checked_shutter(camera, here)
        if "ego_from_cam" in camera:
            ego_from_cam[name] = checked_pose(camera["ego_from_cam"], f"{here}: ego_from_cam", problems)
        else:
            cam_from_lidar = checked_pose(camera["cam_from_lidar"], f"{here}: cam_from_lidar", problems)
            ego_from_cam[name] = chained(ego_from_lidar, inverse_pose(cam_from_lidar))
    return Rig(
        points=template(document["points"], f"{where}: points"),
        labels=template(document["labels"], f"{where}: labels") if "labels" in document else None,
        ego_from_lidar=ego_from_lidar,
        images=images,
        intrinsics=intrinsics,
        lenses=lenses,
        shutters=shutters,
        ego_from_cam=ego_from_cam,
        problems=tuple(problems),
    )


def frame_of_table(table: Table, scene: str, rig: Rig, where: str) -> Frame:  # long: one key of the table after another
    """Return the frame that a [[frame]] describes; see Dataset.frames for how gaps are shown."""
    checked_table(table, {"name"}, {"world_from_ego", "without", "image", "sweep", *TIMES}, f"{where}: [[frame]]")
    name = word(table["name"], f"{where}: the name of a frame")
    here = f"{where}: frame {name}"
    timestamp_us = time_of(table, here)
    if timestamp_us is None:
        raise ConfigError(f"{where}: [[frame]] lacks `timestamp_us`")
    swept = table.get("sweep", True)
    if type(swept) is not bool:
        raise ConfigError(f"{here}: sweep is {swept!r}; expected false where there is none, or nothing")
    problems = [*([] if swept else [f"{here} has no sweep"]), *rig.problems]
    posed = "world_from_ego" in table
    world_from_ego = checked_pose(table.get("world_from_ego"), f"{here}: world_from_ego", problems)
    images, without = table.get("image", {}), table.get("without", [])
    if not isinstance(images, Mapping) or not isinstance(without, list):
        raise ConfigError(f"{here}: image is a table by camera, and without a list of cameras")
    for camera in (*images, *without):
        if camera not in rig.images:
            raise ConfigError(f"{here}: there is no camera {camera!r}{nearest(str(camera), tuple(rig.images))}")
    cameras = []
    for camera in rig.images:
        if camera in without:
            continue
        own = checked_table(
            images.get(camera, {}), set(), {"file", "world_from_ego", *TIMES}, f"{here}: image.{camera}"
        )
        taken_us = time_of(own, f"{here}: image.{camera}")
        path = own.get("file", rig.images[camera].replace(_FRAME, name))
        world_from_ego_at_image = world_from_ego
        if "world_from_ego" in own:
            if not posed:
                raise ConfigError(f"{here}: image.{camera} has a world_from_ego, but the frame has none; give both")
            world_from_ego_at_image = checked_pose(own["world_from_ego"], f"{here}: image.{camera}", problems)
        cameras.append(
            Camera(
                name=camera,
                token=f"{scene}_{name}_{camera}",
                image_path=f"{scene}/{relative(path, f'{here}: image.{camera}.file')}",
                timestamp_us=timestamp_us if taken_us is None else taken_us,
                intrinsics=rig.intrinsics[camera],
                lens=rig.lenses[camera],
                cam_from_lidar=compose_cam_from_lidar(
                    ego_from_cam=rig.ego_from_cam[camera],
                    world_from_ego_at_image=world_from_ego_at_image,
                    world_from_ego_at_sweep=world_from_ego,
                    ego_from_lidar=rig.ego_from_lidar,
                )
                if "world_from_ego" in own
                else chained(inverse_pose(rig.ego_from_cam[camera]), rig.ego_from_lidar),
            )
        )
    return Frame(
        frame_id=f"{scene}/{name}",
        scene=scene,
        timestamp_us=timestamp_us,
        lidar_token=f"{scene}_{name}",
        lidar_path=f"{scene}/{rig.points.replace(_FRAME, name)}" if swept else "",
        label_path=f"{scene}/{rig.labels.replace(_FRAME, name)}" if rig.labels and swept else None,
        ego_from_lidar=rig.ego_from_lidar,
        world_from_lidar=chained(world_from_ego, rig.ego_from_lidar) if posed else UNKNOWN_POSE,
        cameras=tuple(cameras),
        problems=tuple(problems),
        posed=posed,
    )


def checked_pose(value: Any, where: str, problems: list[str]) -> Float64:
    """Return a pose (4, 4); the identity where none is given, NaN where it makes no sense, which joins the problems.

    It is written as `{ rotation = [w, x, y, z], translation = [x, y, z] }` or as the rows of a 4 x 4 matrix.
    """
    try:
        if value is None:
            return np.eye(4)
        if isinstance(value, Mapping):
            if value.keys() != {"rotation", "translation"}:
                raise ValueError(f"it has {', '.join(value) or 'nothing'}; expected rotation and translation")
            return pose_matrix(value["rotation"], value["translation"])
        matrix = np.array(value, np.float64)
        if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
            raise ValueError(f"it is {value!r}"[:80] + "; expected rotation and translation, or 4 x 4 numbers")
        return matrix
    except (ValueError, TypeError) as error:
        problems.append(f"{where}: {error}")
        return np.full((4, 4), np.nan)


def checked_matrix(value: Any, where: str, problems: list[str]) -> Float64:
    """Return a camera matrix (3, 3); NaN where it is none, which joins the problems."""
    try:
        return np.array(value, np.float64).reshape(3, 3)
    except (ValueError, TypeError):
        problems.append(f"{where}: it is {value!r}"[:120] + "; expected 3 x 3 numbers")
        return np.full((3, 3), np.nan)


def checked_lens(camera: Table, where: str) -> Lens:
    """Return the lens of a camera, a pinhole where none is given; raises ConfigError for one that is none.

    A wrong matrix is a fault of frames, since it may be measured anew; a lens of another name is a slip of the pen.
    """
    try:
        coefficients = camera.get("distortion", [])
        if not isinstance(coefficients, list) or not all(type(one) in (int, float) for one in coefficients):
            raise ValueError(f"distortion is {coefficients!r}; expected a list of numbers")
        name = camera.get("lens", "")
        if not isinstance(name, str):
            raise ValueError(f"lens is {name!r}; expected the name of a lens")
        degrees = number_in(camera, "field_deg", 0.0, where)
        lens = lens_of(coefficients, name)
        return replace(lens, field_rad=math.radians(degrees)) if "field_deg" in camera else lens
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None


def checked_shutter(camera: Table, where: str) -> Shutter:
    """Return how a camera's images are read out, all at once where nothing is said; raises ConfigError.

    How the camera moves meanwhile is not known yet.
    """
    if "readout_s" not in camera:
        if "readout" in camera:
            raise ConfigError(f"{where} has readout, but no readout_s, the time from the first row to the last")
        return GLOBAL
    readout_s, direction = number_in(camera, "readout_s", 0.0, where), camera.get("readout", DIRECTIONS[0])
    if direction not in DIRECTIONS:
        raise ConfigError(f"{where}: readout is {direction!r}; expected one of {', '.join(DIRECTIONS)}")
    if not 0 <= readout_s <= MOST_READOUT_S:
        raise ConfigError(
            f"{where}: readout_s is {readout_s:g}; expected seconds from first row to last, 0 to {MOST_READOUT_S}"
        )
    return Shutter(direction, readout_s) if readout_s else GLOBAL


def number_in(table: Table, key: str, usual: float, where: str) -> float:
    """Return a number of a table, the usual one where it is not there; raises ConfigError for anything else."""
    value = table.get(key, usual)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ConfigError(f"{where}: {key} is {value!r}; expected a number")
    return float(value)


def with_motion(frames: Sequence[Frame], rig: Rig, track: Track, where: str) -> list[Frame]:
    """Return frames with the motion of their LiDAR and of the cameras whose shutters roll, by the poses around them.

    Where no poses tell how a camera moved, its images are taken as read out at once, and that is said.
    """
    lidar_from_ego = inverse_pose(rig.ego_from_lidar)
    n_unknown, found = 0, []
    for frame in frames:
        cameras = []
        for camera in frame.cameras:
            shutter = rig.shutters[camera.name]
            if shutter.direction:
                motion = track.motion(camera.timestamp_us, inverse_pose(rig.ego_from_cam[camera.name]))
                n_unknown += motion is None
                shutter = replace(shutter, motion=tuple(motion.tolist())) if motion is not None else shutter
            cameras.append(replace(camera, shutter=shutter))
        motion = track.motion(frame.timestamp_us, lidar_from_ego)
        lidar_motion = UNKNOWN_MOTION if motion is None else motion
        found.append(replace(frame, cameras=tuple(cameras), lidar_motion=lidar_motion))
    if n_unknown:
        _log.warning(
            "%s: no poses within 2 s tell how the vehicle moved at %d images of rolling shutters: their rows count as "
            "read out at once",
            where,
            n_unknown,
        )
    return found


def track_of(document: Table, where: str) -> Track:
    """Return where the vehicle was by all poses of a scene, those of its images too; what is wrong with one is told
    with its frame.
    """
    poses: list[tuple[int, Float64]] = []
    for table in tables(document, "frame"):
        images = table.get("image", {})
        for one in (table, *(images.values() if isinstance(images, Mapping) else ())):
            if isinstance(one, Mapping) and "world_from_ego" in one and (time_us := time_of(one, where)) is not None:
                poses.append((time_us, checked_pose(one["world_from_ego"], where, [])))
    return Track(poses)


def checked_table(table: Json, required: Collection[str], optional: Collection[str], where: str) -> Table:
    """Return a table; raises ConfigError unless it has all keys that it must have, and none but those it may have."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {table!r}; expected a table")
    for key in table:
        if key not in required and key not in optional:
            known = sorted({*required, *optional})
            raise ConfigError(
                f"{where} has an unknown key `{key}`{nearest(key, known)}; it may have {', '.join(known)}"
            )
    missing = sorted(set(required) - table.keys())
    if missing:
        raise ConfigError(f"{where} lacks `{missing[0]}`")
    return table


def tables(document: Table, key: str, where: str = "") -> list[Table]:
    """Return an array of tables, [[key]]; empty where there is none."""
    found = document.get(key, [])
    if not isinstance(found, list) or not all(isinstance(one, Mapping) for one in found):
        raise ConfigError(f"{where}: {key} is not an array of tables; write [[{key}]] above each")
    return found


def template(value: Any, where: str) -> str:
    """Return a file name with {frame} in it; raises ConfigError for anything else."""
    if not isinstance(value, str) or _FRAME not in value:
        raise ConfigError(f"{where} is {value!r}; expected a file name with {_FRAME} in it, like points/{_FRAME}.npy")
    return relative(value, where)


def relative(value: Any, where: str) -> str:
    """Return a file name that stays in the scene's folder; raises ConfigError for any other."""
    path = PurePosixPath(slashed(value)) if isinstance(value, str) else None
    if path is None or not path.parts or path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"{where} is {value!r}; expected a file name within the folder of the scene")
    return str(path)


def word(value: Any, where: str) -> str:
    """Return a name of letters, digits and _ . + -; raises ConfigError for any other."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ConfigError(f"{where} is {value!r}; expected a string of letters, digits, '_', '.', '+' and '-'")
    return value


def time_of(table: Table, where: str) -> int | None:
    """Return the time in a table, in microseconds, by the one of `TIMES` that it has; None if it has none."""
    given = [key for key in TIMES if key in table]
    if len(given) > 1:
        raise ConfigError(f"{where} has {given[0]} and {given[1]}; give one of them")
    if not given:
        return None
    [key], value = given, table[given[0]]
    if type(value) is not int and not (key == "timestamp_s" and type(value) is float and math.isfinite(value)):
        raise ConfigError(f"{where}: {key} is {value!r}; expected {TIMES[key]}")
    time_us = in_microseconds(value, IN_US[key.removeprefix("timestamp_")])
    if not -(2**63) <= time_us < 2**63:
        raise ConfigError(f"{where}: {key} is {value!r}; expected {TIMES[key]} that fit into 64 bits in microseconds")
    return time_us
