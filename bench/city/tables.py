"""The tables of a nuScenes version: constant ones, the rows of one drive, and how they are put on disk together."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from bench.city.config import FISHEYE, CityConfig
from bench.city.sensors import RIG
from bench.city.shapes import Array
from manifests.ontology import load_ontology

Row = dict[str, Any]
Rows = dict[str, list[Row]]

TABLES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
    "lidarseg",
)
"""The thirteen tables of nuScenes, and the one of its point labels."""

ATTRIBUTES = (
    "vehicle.moving",
    "vehicle.stopped",
    "vehicle.parked",
    "cycle.with_rider",
    "cycle.without_rider",
    "pedestrian.sitting_lying_down",
    "pedestrian.standing",
    "pedestrian.moving",
)
VISIBILITY = {"1": (0, 40), "2": (40, 60), "3": (60, 80), "4": (80, 100)}
"""Levels of visibility by token: from and to how many percent of a thing's pixels are seen."""


def token(*names: object) -> str:
    """Return a token of 32 hex digits that belongs to names: the same names, the same token."""
    return hashlib.sha256("/".join(str(name) for name in names).encode()).hexdigest()[:32]


def category_token(name: str) -> str:
    """Return the token of a category, the same in every city."""
    return token("category", name)


def attribute_token(name: str) -> str:
    """Return the token of an attribute, the same in every city."""
    return token("attribute", name)


def visibility_token(share: float) -> str:
    """Return the level of visibility of a thing of which a share of 0..1 is seen."""
    return next((level for level, (_, high) in VISIBILITY.items() if 100 * share <= high), "4")


def constant_rows() -> Rows:
    """Return the tables that are the same in every city: categories (the fine classes), attributes, levels, sensors."""
    fine = load_ontology("nuscenes").fine
    return {
        "category": [
            {"token": category_token(kind.name), "name": kind.name, "description": "", "index": index}
            for index, kind in enumerate(fine)
        ],
        "attribute": [{"token": attribute_token(name), "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [
            {"token": level, "level": f"v{low}-{high}", "description": f"{low} to {high} % of the pixels are seen"}
            for level, (low, high) in VISIBILITY.items()
        ],
        "sensor": [
            {
                "token": token("sensor", sensor.channel),
                "channel": sensor.channel,
                "modality": "camera" if sensor.is_camera else "lidar",
            }
            for sensor in RIG
        ],
    }


def calibration_rows(config: CityConfig, scene: str) -> list[Row]:
    """Return the rows of `calibrated_sensor` of one drive, in the order of the rig."""
    rows = []
    for sensor in RIG:
        matrix = sensor.intrinsics(config.image_width_px, config.image_height_px) if sensor.is_camera else np.zeros(0)
        rows.append(
            {
                "token": token(config.seed, scene, "calibration", sensor.channel),
                "sensor_token": token("sensor", sensor.channel),
                **pose_columns(sensor.ego_from_sensor),
                "camera_intrinsic": matrix.tolist(),
            }
        )
        if config.fisheye and sensor.is_camera:
            rows[-1] |= {"camera_distortion": list(FISHEYE), "camera_distortion_model": "fisheye"}
    return rows


def pose_columns(b_from_a: Array) -> Row:
    """Return the columns `translation` and `rotation` (w, x, y, z) of a pose (4, 4)."""
    quaternion = Rotation.from_matrix(b_from_a[:3, :3]).as_quat(canonical=True, scalar_first=True)
    return {"translation": b_from_a[:3, 3].tolist(), "rotation": quaternion.tolist()}


def chain(rows: Iterable[Row]) -> None:
    """Fill in the columns `prev` and `next` of rows that follow each other."""
    before: Row | None = None
    for row in rows:
        row["prev"], row["next"] = "", ""
        if before is not None:
            before["next"], row["prev"] = row["token"], before["token"]
        before = row


def write_tables(folder: Path, version: str, scenes: Iterable[Mapping[str, list[Row]]]) -> None:
    """Write all tables of a version from the rows of its drives; the folder of tables appears when all are written."""
    rows: Rows = {name: [] for name in TABLES} | constant_rows()
    for scene in scenes:
        for name, found in scene.items():
            rows[name] += found
    part = folder / f"{version}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in TABLES:
        (part / f"{name}.json").write_text(json.dumps(rows[name], indent=0), encoding="utf-8")
    shutil.rmtree(folder / version, ignore_errors=True)
    os.replace(part, folder / version)
