"""nuScenes, and any other logs in its layout: tables read by the official development kit, files by ourselves."""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.sections.data import NO_CAMERAS, DataConfig
from manifests.storage.places import RemotePath, Root, root_of
from pipeline.datasets.between import Between, SampleRow, SensorRow
from pipeline.datasets.clouds import WITH_RING, Cloud
from pipeline.datasets.sweeps import masks_of, read_sweep
from pipeline.datasets.times import in_microseconds, microseconds
from pipeline.frame import Camera, Frame, FrameError, Sweep, read_file, seen_by, slashed
from pipeline.geometry import Float64, chained, compose_cam_from_lidar, pose_matrix
from pipeline.lenses import PINHOLE, lens_of

LIDAR = "LIDAR_TOP"
"""The LiDAR of nuScenes; logs in its layout may have one of another name, or several."""

CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_RIGHT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_FRONT_LEFT")
"""The order of views in all tables; cameras of other names follow in alphabetical order."""

MOST_LABEL = 255  # a byte a point

TableRow = dict[str, Any]

_log = logging.getLogger(__name__)


class NuScenesDataset:
    """Key frames of a folder in nuScenes layout: any version folder, any cameras of any size, with or without lidarseg.

    Where label files are is what the table `lidarseg` says; neither that table nor the files have to exist. Maps and
    boxes are not read.
    """

    points_per_frame: ClassVar[int] = 35_000

    def __init__(self, config: DataConfig) -> None:
        self.config = config
        self.root = root_of(config)
        self.version = config.version
        self.cameras = config.cameras

    def frames(self) -> Iterator[Frame]:
        """Yield the key frames; see Dataset.frames.

        For the driver only: nuscenes-devkit keeps its tables in memory. It is given key frames alone, so the peak is
        about twice the size of `sample_data.json`, while it is parsed; by itself the kit takes 2.5 times as much
        (measured with 260k rows in each of the two big tables), and boxes on top.
        """
        folder = find_version(self.root, self.version)
        with broken_tables_explained(folder):
            tables = open_tables(self.root, folder, self.config.sweeps != "keyframes")
            lidars = lidars_of(tables, folder, self.config.lidar)
            unit_us = unit_of(tables, folder, self.config)
            label_paths = read_label_paths(folder)
            samples: dict[str, list[SampleRow]] = defaultdict(list)
            for sample in tables.sample:
                samples[tables.get("scene", sample["scene_token"])["token"]].append(sample)
            known = {row["channel"] for row in tables.sensor if row["modality"] == "camera"}
            missing = set(self.cameras) - known - set(NO_CAMERAS)
            repeated = [name for name, count in Counter(scene["name"] for scene in tables.scene).items() if count > 1]
        if repeated:
            raise ConfigError(f"{folder}: scene names {repeated} occur more than once; each scene needs its own name")
        if missing:
            raise ConfigError(f"data.cameras names {sorted(missing)[0]}, which is no camera in {folder}/sensor.json")
        masks = masks_of(self.config, known)
        between = Between(tables, lidars, unit_us, self.config.sweeps)
        for scene in tables.scene:
            with broken_tables_explained(folder):
                in_time_order = sorted(samples[scene["token"]], key=lambda row: (row["timestamp"], row["token"]))
                found = between.among(in_time_order)
            for name, time, records in found:
                with broken_tables_explained(folder):
                    frame = frame_of_records(tables, scene["name"], name, time, records, label_paths, lidars, unit_us)
                yield seen_by(frame, self.cameras, masks)

    def read_cloud(self, frame: Frame) -> Cloud:
        """Return the sweep, its intensity 0..255; see Dataset.read_cloud."""
        if not frame.lidar_path:
            raise FrameError("; ".join(frame.problems))
        return read_sweep(frame, self.config, WITH_RING)

    def label_names(self) -> tuple[str, Mapping[int, str]] | None:
        """Return what table `category` numbers, where it has a column `index`; see Dataset.label_names."""
        folder = self.root / self.version
        if not (folder / "category.json").exists():
            return None
        with broken_tables_explained(folder):
            names = {row["index"]: str(row["name"]) for row in read_table(folder, "category") if "index" in row}
        odd = [number for number in names if type(number) is not int or not 0 <= number <= MOST_LABEL]
        if odd:
            raise ConfigError(f"{folder}/category.json: an index is {odd[0]!r}; expected 0..{MOST_LABEL}")
        return (f"{self.version}/category.json", names) if names else None

    def read_labels(self, frame: Frame) -> npt.NDArray[np.uint16]:
        """Return the lidarseg index of each point, uint16 (n,); see Dataset.read_labels."""
        if frame.label_path is None:
            raise FrameError(f"no table `lidarseg` of {self.version} names a label file for sweep {frame.lidar_token}")
        return np.frombuffer(read_file(self.root, frame.label_path, frame.label_sha256 or ""), np.uint8).astype(
            np.uint16
        )


def find_version(root: Root, version: str) -> Root:
    """Return the folder of tables of a version; raises ConfigError naming the versions that are there."""
    try:
        if not root.is_dir():
            raise ConfigError(f"data.root {root} is not a folder; give the folder that holds samples/ and the tables")
        versions = sorted(path.parent.name for path in root.glob("*/sample.json"))
    except OSError as error:
        raise ConfigError(f"data.root {root} cannot be read: {error.strerror or error}") from None
    if version not in versions:
        found = ", ".join(versions) or "no version folders"
        raise ConfigError(f'data.version "{version}" is not in {root}; there are {found}')
    return root / version


def open_tables(root: Root, folder: Root, between: bool = False) -> Any:
    """Return a `nuscenes.NuScenes` over the key frames of the tables in `folder`; raises ConfigError if one is broken.

    With `between` it has what LiDARs and cameras took between key frames too, and needs ten times the memory.

    Left to itself the development kit reads every table and all rows between key frames, wants the map pictures on
    disk, and refuses a folder whose table `lidarseg` has not exactly as many rows as there are label files. Maps and
    labels are optional here, so it gets the six tables that lead to sensor files, and nothing of the others.
    """
    rows = {name: read_table(folder, name) for name in ("scene", "sample", "calibrated_sensor", "sensor")}
    used = sensors_between(folder, rows) if between else frozenset[str]()
    rows["sample_data"] = read_table(
        folder, "sample_data", lambda row: row["is_key_frame"] or row["calibrated_sensor_token"] in used
    )
    if not any(row["is_key_frame"] for row in rows["sample_data"]):
        rows["sample_data"] = nearest_rows(folder, rows)
    key_poses = {row["ego_pose_token"] for row in rows["sample_data"]}
    rows["ego_pose"] = read_table(folder, "ego_pose", lambda row: row["token"] in key_poses)
    # The kit insists on one map whose picture exists; this one stands for the root itself and is never drawn.
    rows["map"] = [{"token": "", "filename": "", "log_tokens": []}]

    with loaded_when_used("sklearn", "sklearn.metrics", "matplotlib.pyplot"):  # a second, for what the kit draws
        from nuscenes.nuscenes import NuScenes

    class KeyFrameTables(NuScenes):  # type: ignore[misc]
        @property
        def table_root(self) -> str:
            return somewhere  # where the kit looks for lidarseg.json, and finds none

        def __load_table__(self, table_name: str) -> list[TableRow]:
            return rows.get(table_name, [])

    # of a root behind a network it gets a folder that is there; it opens no file
    somewhere = tempfile.gettempdir() if isinstance(root, RemotePath) else str(root)
    return KeyFrameTables(version=folder.name, dataroot=somewhere, verbose=False)


class LaterModule(ModuleType):
    """Stands for a module that is loaded when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


@contextmanager
def loaded_when_used(*names: str) -> Iterator[None]:
    """Within the block, importing one of these modules, if nothing has loaded it yet, puts off loading it."""
    stand_ins = {name: LaterModule(name) for name in names if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


def read_table(folder: Root, name: str, keep: Callable[[TableRow], bool] = lambda row: True) -> list[TableRow]:
    """Return the rows of a table that `keep` accepts; the others are dropped one by one while the file is parsed.

    Raises ConfigError for a file that is missing, not JSON, or not a list of rows.
    """
    path = folder / f"{name}.json"
    try:
        with path.open(encoding="utf-8-sig") as file:  # a byte-order mark is no part of it
            rows = json.load(file, object_hook=lambda row: row if keep(row) else None)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a nuScenes version needs this table") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); unpack the tables again") from None
    if not isinstance(rows, list) or not all(row is None or isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path}: expected a list of rows; this is no nuScenes table")
    return [row for row in rows if row is not None]


def sensors_between(folder: Root, tables: Mapping[str, list[TableRow]]) -> frozenset[str]:
    """Return the tokens of the calibrations of LiDARs and cameras, as rows of `sample_data` name them."""
    with broken_tables_explained(folder):
        kinds = {row["token"]: row["modality"] for row in tables["sensor"]}
        return frozenset(
            row["token"] for row in tables["calibrated_sensor"] if kinds[row["sensor_token"]] in ("lidar", "camera")
        )


def nearest_rows(folder: Root, tables: Mapping[str, list[TableRow]]) -> list[TableRow]:
    """Return the rows of `sample_data` that are nearest in time to their samples, one a sensor, as key frames.

    For converters that mark no row as one. Raises ConfigError where there are no rows at all.
    """
    times = {row["token"]: row["timestamp"] for row in tables["sample"]}
    best: dict[tuple[str, str], TableRow] = {}
    with broken_tables_explained(folder):
        for row in read_table(folder, "sample_data"):
            place = row["sample_token"], row["calibrated_sensor_token"]
            apart = abs(row["timestamp"] - times[row["sample_token"]])
            if place not in best or apart < abs(best[place]["timestamp"] - times[row["sample_token"]]):
                best[place] = row | {"is_key_frame": True}
    if not best:
        raise ConfigError(f"{folder}/sample_data.json has no row, so there is no frame")
    _log.warning("%s/sample_data.json marks no row as key frame: of each sensor, the nearest in time is taken", folder)
    return list(best.values())


def read_label_paths(folder: Root) -> dict[str, str]:
    """Return the label file of each sweep by its token, relative to the root; empty without the table `lidarseg`."""
    if not (folder / "lidarseg.json").exists():
        return {}
    return {row["sample_data_token"]: slashed(row["filename"]) for row in read_table(folder, "lidarseg")}


@contextmanager
def broken_tables_explained(folder: Root) -> Iterator[None]:
    """Raise ConfigError where rows refer to rows that are not there, lack a column, or hold a value of another type."""
    try:
        yield
    except ConfigError:
        raise
    except KeyError as error:
        raise ConfigError(
            f"{folder}: the tables do not fit together: {error} is a column that a row lacks, or the token of a row "
            "that is not there; unpack all tables of this version again"
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{folder}: a table holds a value of the wrong type ({error}); unpack it again") from None


def lidars_of(tables: Any, folder: Root, named: Sequence[str]) -> tuple[str, ...]:
    """Return the channels of the LiDARs: those that are named, that of nuScenes, or the only one there is.

    Raises ConfigError where there is none, or several and none is named.
    """
    there = sorted({row["channel"] for row in tables.sensor if row["modality"] == "lidar"})
    unknown = [channel for channel in named if channel not in there]
    if unknown or not there:
        what = f"data.lidar names {unknown[0]}, which is no LiDAR there" if unknown else "there is no LiDAR"
        raise ConfigError(f"{folder}/sensor.json: {what}; LiDARs there are: {', '.join(there) or 'none'}")
    if named or LIDAR in there or len(there) == 1:
        return tuple(named) or ((LIDAR,) if LIDAR in there else (there[0],))
    raise ConfigError(
        f"{folder}/sensor.json has {len(there)} LiDARs and no {LIDAR}; say which to read, or which to join to one "
        f"sweep in the frame of the first, for example [data] lidar = {json.dumps(there)}"
    )


def unit_of(tables: Any, folder: Root, data: DataConfig) -> float:
    """Return how many microseconds the unit of the tables' timestamps is; raises ConfigError for other values."""
    samples: dict[str, list[int]] = defaultdict(list)
    for name in ("sample", "sample_data"):
        for row in getattr(tables, name):
            if type(row["timestamp"]) not in (int, float) or not math.isfinite(row["timestamp"]):
                raise ConfigError(f"{folder}/{name}.json: a timestamp is {row['timestamp']!r}; expected a number")
    for row in tables.sample:
        samples[row["scene_token"]].append(row["timestamp"])
    return microseconds(list(samples.values()), data.time_unit, f"timestamps of {folder}/sample_data.json")


def frame_of_records(  # long: one line a part of the frame
    tables: Any,
    scene: str,
    name: str,
    time: Any,
    records: Mapping[str, SensorRow],
    label_paths: Mapping[str, str],
    lidars: Sequence[str],
    unit_us: float,
) -> Frame:
    """Return the frame of rows of table `sample_data` by channel, and how it is called; `time` is that of the sample.

    See Dataset.frames for how gaps are shown. True labels are those of the only LiDAR; where several are joined there
    are none.
    """
    missing = [channel for channel in lidars if channel not in records]
    if missing:
        unknown, time_us = np.full((4, 4), np.nan), in_microseconds(time, unit_us)
        why = f"sample {name} has no {missing[0]} sweep in {tables.version}/sample_data.json"
        return Frame(name, scene, time_us, "", "", None, unknown, unknown, (), problems=(why,))
    sweep = records[lidars[0]]
    world_from_ego_at_sweep = pose(tables.get("ego_pose", sweep["ego_pose_token"]))
    ego_from_lidar = pose(tables.get("calibrated_sensor", sweep["calibrated_sensor_token"]))
    problems: list[str] = []
    cameras = tuple(
        camera_of(tables, channel, records[channel], unit_us, world_from_ego_at_sweep, ego_from_lidar, problems)
        for channel in view_order(records)
    )
    several = [
        Sweep(
            channel,
            slashed(records[channel]["filename"]),
            compose_cam_from_lidar(  # another LiDAR in the place of the camera
                ego_from_cam=ego_from_lidar,
                world_from_ego_at_image=world_from_ego_at_sweep,
                world_from_ego_at_sweep=pose(tables.get("ego_pose", records[channel]["ego_pose_token"])),
                ego_from_lidar=pose(tables.get("calibrated_sensor", records[channel]["calibrated_sensor_token"])),
            ),
        )
        for channel in (lidars if len(lidars) > 1 else ())
    ]
    return Frame(
        frame_id=name,
        scene=scene,
        timestamp_us=in_microseconds(sweep["timestamp"], unit_us),
        lidar_token=sweep["token"],
        lidar_path=slashed(sweep["filename"]),
        label_path=None if several else label_paths.get(sweep["token"]),
        ego_from_lidar=ego_from_lidar,
        world_from_lidar=chained(world_from_ego_at_sweep, ego_from_lidar),
        cameras=cameras,
        problems=tuple(problems),
        sweeps=tuple(several),
    )


def camera_of(
    tables: Any,
    channel: str,
    image: SensorRow,
    unit_us: float,
    world_from_ego_at_sweep: Float64,
    ego_from_lidar: Float64,
    problems: list[str],
) -> Camera:
    """Return the camera of a row of table `sample_data`; what is wrong with its lens joins the problems."""
    calibration = tables.get("calibrated_sensor", image["calibrated_sensor_token"])
    lens = PINHOLE
    try:
        lens = lens_of(calibration.get("camera_distortion") or (), calibration.get("camera_distortion_model") or "")
    except (ValueError, TypeError) as error:
        problems.append(f"{channel}: camera_distortion in {tables.version}/calibrated_sensor.json: {error}")
    return Camera(
        name=channel,
        token=image["token"],
        image_path=slashed(image["filename"]),
        timestamp_us=in_microseconds(image["timestamp"], unit_us),
        intrinsics=camera_matrix(calibration["camera_intrinsic"]),
        cam_from_lidar=compose_cam_from_lidar(
            ego_from_cam=pose(calibration),
            world_from_ego_at_image=pose(tables.get("ego_pose", image["ego_pose_token"])),
            world_from_ego_at_sweep=world_from_ego_at_sweep,
            ego_from_lidar=ego_from_lidar,
        ),
        lens=lens,
    )


def view_order(records: Mapping[str, SensorRow]) -> list[str]:
    """Return the channels that are cameras, in the order of views."""
    cameras = {channel for channel, record in records.items() if record["sensor_modality"] == "camera"}
    return [name for name in CAMERAS if name in cameras] + sorted(cameras - set(CAMERAS))


def pose(record: TableRow) -> Float64:
    """Return the pose in a row of `ego_pose` or `calibrated_sensor`, (4, 4); all NaN where it makes no sense."""
    try:
        return pose_matrix(record["rotation"], record["translation"])
    except (ValueError, TypeError):
        return np.full((4, 4), np.nan)


def camera_matrix(values: Any) -> Float64:
    """Return a camera matrix as stored, (3, 3); all NaN where it is not 3 x 3 numbers."""
    try:
        return np.array(values, np.float64).reshape(3, 3)
    except (ValueError, TypeError):
        return np.full((3, 3), np.nan)
