"""Writes a city: drive by drive the files of its frames, and at the end the tables that make it a nuScenes root."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.city import things
from bench.city.canvas import KEYFRAME_S
from bench.city.config import FISHEYE, CityConfig
from bench.city.layout import LEAD_S, lay_out
from bench.city.materials import surface
from bench.city.photos import jpeg, photograph, png
from bench.city.render import Hits, Moment, Stage
from bench.city.scene import Actor, Scene, generator
from bench.city.sensors import RIG, Sensor, camera_rays, echoes, lidar_rays
from bench.city.shapes import Array
from bench.city.tables import (
    Row,
    Rows,
    attribute_token,
    calibration_rows,
    category_token,
    chain,
    pose_columns,
    token,
    visibility_token,
    write_tables,
)
from manifests.config import ConfigError

EPOCH_US = 1_600_000_000_000_000  # the city's clock starts on 13 September 2020; drives are 100 s apart
MAP_PX_PER_M = 10  # as the official maps have it

IMAGES_A_KEYFRAME = 6  # 12 Hz

PLACE_M = 5.0  # side of the squares of ground whose walls, road and trees count as one place
FIRST_PLACE, PLACES_ALONG = 1000, 250  # 16 bits hold 999 things and 250 x 250 squares, more than a drive sees


def write_city(
    folder: Path, config: CityConfig, workers: int = 1, finished: Callable[[str], None] | None = None
) -> None:
    """Write a city into a folder: a nuScenes root with `train.txt` and `val.txt`, lists of its drives.

    Drives that are complete already, from the same settings, are kept, so a run that was stopped goes on where it was.
    `workers` processes write drives side by side; their number changes no byte. `finished` is told the name of each
    drive as it is done. Raises ConfigError if the folder holds tables of that version that are not a city's.
    """
    discard_other_scenes(folder, config)
    missing = []
    for scene in config.scenes:
        if read_rows(folder, config, scene) is None:
            missing.append(scene)
        elif finished:
            finished(scene)
    if workers == 1 or len(missing) < 2:
        for scene in missing:
            write_scene(folder, config, scene)
            if finished:
                finished(scene)
    else:
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(missing)), mp_context=spawn) as pool:
            futures = {pool.submit(write_scene, folder, config, scene): scene for scene in missing}
            for future in as_completed(futures):
                future.result()
                if finished:
                    finished(futures[future])
    finish_city(folder, config)


def finish_city(folder: Path, config: CityConfig) -> None:
    """Write the tables and the lists of drives, once all drives are there; raises ValueError if one is missing."""
    rows = {scene: read_rows(folder, config, scene) for scene in config.scenes}
    absent = [scene for scene, found in rows.items() if found is None]
    if absent:
        raise ValueError(f"{folder}: drives {absent} are not complete; write them with write_scene first")
    write_tables(folder, config.version, [found for found in rows.values() if found is not None])
    (folder / "train.txt").write_text("".join(f"{scene}\n" for scene in config.train), encoding="utf-8")
    (folder / "val.txt").write_text("".join(f"{scene}\n" for scene in config.val), encoding="utf-8")


def write_scene(folder: Path, config: CityConfig, scene: str) -> Rows:
    """Write all files of one drive and return its rows by table; a drive that is complete already is not touched.

    May run in any process and in any order. What marks a drive as complete is written last.
    """
    rows = read_rows(folder, config, scene)
    if rows is None:
        rows = _SceneWriter(folder, config, lay_out(config, scene)).write()
        marker = marker_path(folder, config, scene)
        content = {"digest": config.scene_digest(), "rows": rows}
        write_file(marker, json.dumps(content).encode())
    return rows


def marker_path(folder: Path, config: CityConfig, scene: str) -> Path:
    """Return the file that says that a drive is complete, and holds its rows."""
    return folder / "scenes" / config.version / f"{scene}.json"


def read_rows(folder: Path, config: CityConfig, scene: str) -> Rows | None:
    """Return the rows of a drive that was written from these settings; None if it is not complete."""
    try:
        marker: dict[str, Any] = json.loads(marker_path(folder, config, scene).read_bytes())
    except FileNotFoundError:
        return None
    return dict(marker["rows"]) if marker["digest"] == config.scene_digest() else None


def discard_other_scenes(folder: Path, config: CityConfig) -> None:
    """Remove the drives of other settings, or of a larger city; the development kit allows no files without rows."""
    markers = sorted((folder / "scenes" / config.version).glob("*.json"))
    if not markers and (folder / config.version).exists():
        raise ConfigError(
            f"{folder / config.version} holds tables that no city was written with; choose another folder or version"
        )
    for marker in markers:
        if marker.stem in config.scenes and read_rows(folder, config, marker.stem) is not None:
            continue
        shutil.rmtree(folder / config.version, ignore_errors=True)
        rows = json.loads(marker.read_bytes())["rows"]
        marker.unlink()
        for row in (*rows["sample_data"], *rows["lidarseg"], *rows["map"]):
            (folder / row["filename"]).unlink(missing_ok=True)
        for row in rows["sample_data"]:
            for path in (class_map_path(config, row["token"]), place_map_path(config, row["token"])):
                (folder / path).unlink(missing_ok=True)


def class_map_path(config: CityConfig, image_token: str) -> Path:
    """Return where the true classes of an image's pixels are: a grey PNG of fine classes, relative to the root."""
    return Path("classmaps", config.version, f"{image_token}.png")


def place_map_path(config: CityConfig, image_token: str) -> Path:
    """Return where it is written which place each pixel of an image shows: a grey PNG of 16 bits, see `places`."""
    return Path("placemaps", config.version, f"{image_token}.png")


def places(hits: Hits) -> npt.NDArray[np.uint16]:
    """Return for each hit (n,) a number that is the same in all images of a drive: of the thing, or of the place.

    Things that have a box are counted from 1; all else goes by squares of 5 m in the scene's frame, from 1000. The sky
    is 0.
    """
    column, row = np.floor(hits.position_m[:, :2] / PLACE_M).astype(np.int64).T % PLACES_ALONG
    place = np.where(hits.actor >= 0, 1 + hits.actor, FIRST_PLACE + row * PLACES_ALONG + column)
    return np.where(np.isfinite(hits.distance), place, 0).astype(np.uint16)


def write_file(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(content)
    os.replace(part, path)


@dataclass(frozen=True, eq=False)
class Capture:
    """One sensor's view at its own time, in the scene's frame: its rays and what they met, aligned.

    `footprints_m` (actors, 4, 2) are the corners of the actors' boxes on the ground.
    """

    scene_from_sensor: Array
    rays: Any
    hits: Hits
    moment: Moment
    footprints_m: Array


def capture(stage: Stage, scene: Scene, sensor: Sensor, rays: Any, time_s: float) -> Capture:
    """Return what the rays (n, 3) of a sensor meet at a time; the LiDAR sees its own car, cameras do not."""
    scene_from_ego = scene.ego_pose(time_s)
    scene_from_sensor = scene_from_ego @ sensor.ego_from_sensor
    poses = scene.actor_poses(time_s)
    placed = list(zip(scene.actors, poses, strict=True))
    actors = [actor.mesh.moved(pose) for actor, pose in placed]
    footprints = [actor.footprint() @ pose[:2, :2].T + pose[:2, 3] for actor, pose in placed]
    if not sensor.is_camera:
        actors.append(things.ego().moved(scene_from_ego))
    moment = stage.at(actors)
    turned = (rays @ scene_from_sensor[:3, :3].T).astype(np.float32)
    hits = moment.cast(scene_from_sensor[:3, 3], turned)
    return Capture(scene_from_sensor, turned, hits, moment, np.array(footprints))


class _SceneWriter:
    """Writes one drive, frame by frame, and gathers its rows."""

    def __init__(self, folder: Path, config: CityConfig, scene: Scene) -> None:
        self.folder, self.config, self.scene = folder, config, scene
        self.stage = Stage(scene.static)
        self.start_us = EPOCH_US + int(scene.name[-4:]) * 100_000_000
        self.rows: Rows = {name: [] for name in ("ego_pose", "sample", "sample_data", "sample_annotation", "lidarseg")}
        self.lidar_rays = lidar_rays(config.azimuths)
        size = (config.image_width_px, config.image_height_px)
        self.camera_rays = {
            sensor.channel: camera_rays(sensor.intrinsics(*size), *size, FISHEYE if config.fisheye else None)
            for sensor in RIG
            if sensor.is_camera
        }

        self.late_s = {
            sensor.channel: config.clock_error_s
            * generator(config.seed, scene.name, sensor.channel, "clock").standard_normal()
            for sensor in RIG
            if sensor.is_camera
        }

    def token(self, *names: object) -> str:
        return token(self.config.seed, self.scene.name, *names)

    def write(self) -> Rows:
        name, rows = self.scene.name, self.rows
        for frame in range(self.config.keyframes):
            self.write_frame(frame)
            if self.config.sweeps_between and frame + 1 < self.config.keyframes:
                self.write_between(frame)
        rows["log"] = [
            {
                "token": self.token("log"),
                "logfile": name,
                "vehicle": "city",
                "date_captured": "2020-09-13",
                "location": name,
            }
        ]
        samples = rows["sample"]
        rows["scene"] = [
            {
                "token": self.token("scene"),
                "log_token": self.token("log"),
                "nbr_samples": len(samples),
                "first_sample_token": samples[0]["token"],
                "last_sample_token": samples[-1]["token"],
                "name": name,
                "description": self.scene.description,
            }
        ]
        rows["calibrated_sensor"] = calibration_rows(self.config, name)
        chain(samples)
        for calibration in rows["calibrated_sensor"]:
            chain([row for row in rows["sample_data"] if row["calibrated_sensor_token"] == calibration["token"]])
        rows["instance"] = self.instance_rows()
        rows["map"] = [self.write_map()]
        return rows

    def write_frame(self, frame: int) -> None:
        time_s = LEAD_S + frame * KEYFRAME_S
        sample = {
            "token": self.token(frame, "sample"),
            "timestamp": self.start_us + round(time_s * 1e6),
            "prev": "",
            "next": "",
            "scene_token": self.token("scene"),
        }
        self.rows["sample"].append(sample)
        seen = np.zeros((2, len(self.scene.actors) + 1), np.int64)  # pixels of each actor: seen, and seen or covered
        lidar, *cameras = RIG
        points_of = self.write_sweep(frame, lidar, time_s)
        for sensor in cameras:
            hits = self.write_image(frame, sensor, time_s + sensor.delay_s)
            for row, actors in zip(seen, (hits.actor, hits.actor_alone), strict=True):
                row += np.bincount(actors[actors >= 0], minlength=len(row))
        for index, (actor, pose) in enumerate(zip(self.scene.actors, self.scene.actor_poses(time_s), strict=True)):
            if points_of[index]:
                share = float(seen[0, index] / max(seen[1, index], 1))
                self.annotate(frame, actor, pose, int(points_of[index]), share)

    def write_between(self, frame: int) -> None:
        """Write the sweeps between a key frame and the next one, and the images that cameras take meanwhile."""
        lidar, *cameras = RIG
        begun_s, parts = LEAD_S + frame * KEYFRAME_S, self.config.sweeps_between + 1
        for number in range(1, parts):
            self.write_sweep(frame, lidar, begun_s + KEYFRAME_S * number / parts, number)
        for number in range(1, IMAGES_A_KEYFRAME):
            for sensor in cameras:
                self.write_image(
                    frame, sensor, begun_s + sensor.delay_s + KEYFRAME_S * number / IMAGES_A_KEYFRAME, number
                )

    def write_sweep(self, frame: int, sensor: Sensor, time_s: float, number: int = 0) -> Any:
        """Write a sweep and, of a key frame, its labels; returns the number of points on each actor.

        `number` counts those after a key frame.
        """
        config, (rays, ring) = self.config, self.lidar_rays
        taken = capture(self.stage, self.scene, sensor, rays, time_s)
        hit = np.flatnonzero(np.isfinite(taken.hits.distance))
        distance, normal = taken.hits.distance[hit], taken.hits.normal[hit]
        facing = np.abs(np.einsum("ij,ij->i", normal, taken.rays[hit]))
        material = taken.hits.material[hit]
        look = surface(material, taken.hits.tint[hit], taken.hits.position_m[hit], normal, distance)
        rng = generator(config.seed, self.scene.name, frame, "lidar", *([number] if number else []))
        echo = echoes(config, rng, distance, facing, look, material)
        kept = echo.detected
        xyz_m = rays[hit] * echo.range_m[:, None]
        points = np.concatenate([xyz_m, echo.intensity[:, None], ring[hit, None]], axis=1)[kept].astype("<f4")
        labels = np.where(echo.stray, things.FINE["noise"], taken.hits.fine[hit])[kept].astype(np.uint8)
        row = self.add_sensor_data(frame, sensor, time_s, "pcd", (0, 0), number)
        write_file(self.folder / row["filename"], points.tobytes())
        if not number:
            path = f"lidarseg/{config.version}/{row['token']}_lidarseg.bin"
            self.rows["lidarseg"].append({"token": row["token"], "sample_data_token": row["token"], "filename": path})
            write_file(self.folder / path, labels.tobytes())
        actors = taken.hits.actor[hit][kept & ~echo.stray]
        return np.bincount(actors[actors >= 0], minlength=len(self.scene.actors) + 1)

    def write_image(self, frame: int, sensor: Sensor, time_s: float, number: int = 0) -> Hits:
        """Write an image, the classes of its pixels and their places; returns what its rays met.

        It is taken when the camera's clock shows `time_s`; `number` counts those after a key frame's.
        """
        config = self.config
        size = (config.image_width_px, config.image_height_px)
        late_s = self.late_s[sensor.channel]
        taken = capture(self.stage, self.scene, sensor, self.camera_rays[sensor.channel], time_s + late_s)
        rng = generator(config.seed, self.scene.name, frame, sensor.channel, *([number] if number else []))
        grain = rng.standard_normal(len(taken.rays), np.float32)
        image = photograph(
            taken.moment, taken.hits, taken.rays, self.scene.light, taken.footprints_m, size, config.shadows, grain
        )
        row = self.add_sensor_data(frame, sensor, time_s, "jpg", size, number)
        write_file(self.folder / row["filename"], jpeg(image, config.jpeg_quality))
        sky = ~np.isfinite(taken.hits.distance)
        classes = np.where(sky, things.FINE["static.other"], taken.hits.fine).astype(np.uint8)
        write_file(self.folder / class_map_path(config, row["token"]), png(classes.reshape(size[::-1])))
        place = places(taken.hits).reshape(size[::-1])
        write_file(self.folder / place_map_path(config, row["token"]), png(place))
        return taken.hits

    def add_sensor_data(
        self, frame: int, sensor: Sensor, time_s: float, kind: str, size_px: tuple[int, int], number: int = 0
    ) -> Row:
        """Add the rows of one capture and of the car's pose at its (claimed) time; returns the first."""
        timestamp = self.start_us + round(time_s * 1e6)
        pose = self.scene.world_from_scene @ self.scene.ego_pose(time_s)
        own = self.token(frame, sensor.channel, *([number] if number else []))
        folder = "sweeps" if number else "samples"
        ending = "jpg" if sensor.is_camera else "pcd.bin"
        row = {
            "token": own,
            "sample_token": self.token(frame, "sample"),
            "ego_pose_token": own,
            "calibrated_sensor_token": self.token("calibration", sensor.channel),
            "timestamp": timestamp,
            "fileformat": kind,
            "is_key_frame": not number,
            "height": size_px[1],
            "width": size_px[0],
            "filename": f"{folder}/{sensor.channel}/{self.scene.name}__{sensor.channel}__{timestamp}.{ending}",
            "prev": "",
            "next": "",
        }
        self.rows["sample_data"].append(row)
        self.rows["ego_pose"].append({"token": own, "timestamp": timestamp, **pose_columns(pose)})
        return row

    def annotate(self, frame: int, actor: Actor, pose: Array, n_points: int, seen: float) -> None:
        """Add the box of an actor, whose pose is that at the time of the sweep."""
        low, high = actor.bounds_m
        length, width, height = (high - low).tolist()
        middle = np.eye(4)
        middle[:3, 3] = (low + high) / 2
        self.rows["sample_annotation"].append(
            {
                "token": self.token(frame, actor.name),
                "sample_token": self.token(frame, "sample"),
                "instance_token": self.token(actor.name),
                "visibility_token": visibility_token(seen),
                "attribute_tokens": [attribute_token(actor.attribute)] if actor.attribute else [],
                **pose_columns(self.scene.world_from_scene @ pose @ middle),
                "size": [width, length, height],
                "prev": "",
                "next": "",
                "num_lidar_pts": n_points,
                "num_radar_pts": 0,
            }
        )

    def instance_rows(self) -> list[Row]:
        """Return the rows of `instance` of all actors that have boxes, and chain their boxes."""
        boxes: dict[str, list[Row]] = {}
        for row in self.rows["sample_annotation"]:
            boxes.setdefault(row["instance_token"], []).append(row)
        rows = []
        for actor in self.scene.actors:
            own = boxes.get(self.token(actor.name), [])
            if own:
                chain(own)
                rows.append(
                    {
                        "token": self.token(actor.name),
                        "category_token": category_token(actor.category),
                        "nbr_annotations": len(own),
                        "first_annotation_token": own[0]["token"],
                        "last_annotation_token": own[-1]["token"],
                    }
                )
        return rows

    def write_map(self) -> Row:
        """Write the map of the drive, white where one may drive, as the official maps are; returns its row."""
        from PIL import Image, ImageDraw

        scene = self.scene
        corners = scene.ground.driveable(scene.street) @ scene.world_from_scene[:3, :3].T
        corners = (corners + scene.world_from_scene[:3, 3])[:, :, :2] * MAP_PX_PER_M
        side = int(2 * scene.world_from_scene[0, 3] * MAP_PX_PER_M)
        picture = Image.new("L", (side, side), 0)
        draw = ImageDraw.Draw(picture)
        for quad in corners:  # rows count from the top, y from the bottom
            draw.polygon([(x, side - y) for x, y in quad.tolist()], fill=255, outline=255)
        path = f"maps/{self.token('map')}.png"
        write_file(self.folder / path, png(np.asarray(picture)))
        return {
            "category": "semantic_prior",
            "token": self.token("map"),
            "filename": path,
            "log_tokens": [self.token("log")],
        }
