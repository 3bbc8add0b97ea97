"""Labels of sweeps in the layouts of other programs, a folder each; every writer takes one frame after the other.

    npy/<scene>/<frame>.npy, <frame>.confidence.npy      classes uint8 (n,), and how sure they are in 1/255
    kitti/sequences/<nn>/labels/<nnnnnn>.label           uint32: class in the lower half, instance in the upper one (0)
                         velodyne/, poses.txt, calib.txt so that point_labeler opens the folder; classes in labels.xml
          semantic-kitti.yaml                            classes and colours as semantic-kitti-api reads them
    lidarseg/lidarseg/<version>/<sweep>_lidarseg.bin     uint8, with <version>/lidarseg.json and category.json
    pcd/<scene>/<frame>.pcd, ply/<scene>/<frame>.ply     binary: x y z intensity label confidence
    parquet/<scene>.parquet                              a row a frame, plain lists

Sources of the layouts: README.md and labels.xml of jbehley/point_labeler; semantic-kitti.yaml and laserscan.py of
PRBonn/semantic-kitti-api; the lidarseg schema of nutonomy/nuscenes-devkit; the PCD format of the Point Cloud Library;
the PLY format of Turk.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.records.labels import Layout
from manifests.storage.names import shard_name

IDENTITY_POSE = "1 0 0 0 0 1 0 0 0 0 1 0"  # the rows of (3, 4)


@dataclass(frozen=True)
class LabelClass:
    """A class as files name it: its number in the dictionary (`unsure` follows), its name, and its colour, 0..255."""

    number: int
    name: str
    rgb: tuple[int, int, int]
    thing: bool = False


@dataclass(frozen=True, eq=False)
class LabelledSweep:
    """A sweep with a class for every point, in the order of its file.

    `name` is the frame's name without its scene; `number` and `scene_number` count frames in their scene, and scenes.
    `label` uint8 (n,), 0 none; `confidence` uint8 (n,), 1/255; `n_below` labels were not sure enough. `more` are
    further columns (n,) of the table by name, `instance` (n,) the objects that points belong to, 0 none, where they are
    asked for.
    """

    frame_id: str
    scene: str
    name: str
    number: int
    scene_number: int
    timestamp_us: int
    lidar_token: str
    lidar_path: str
    world_from_lidar: NDArray[np.float64]
    xyz_m: NDArray[np.float32]
    intensity: NDArray[np.float32]
    label: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    n_below: int = 0
    instance: NDArray[np.uint16] | None = None
    more: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """`<scene>/<frame>`, each as a file name that stays in its folder."""
        return f"{shard_name(self.scene)}/{shard_name(self.name)}"


class Writer(Protocol):
    """Writes one layout."""

    def put(self, sweep: LabelledSweep) -> str:
        """Write a frame, and return its file of labels, relative to the folder of the layout."""

    def finish(self) -> None:
        """Write what is about all frames."""

    def about(self) -> Layout:
        """Return what `labels.json` says of this layout."""


class PerFrame:
    """A layout of a file or two per frame, and nothing to do at the end."""

    def __init__(self, folder: Path, classes: Sequence[LabelClass]) -> None:
        self.folder, self.classes = folder, classes

    def finish(self) -> None:
        """Do nothing."""

    def about(self) -> Layout:
        """Return that values are the numbers of classes."""
        return Layout({one.name: one.number for one in self.classes})

    def path(self, name: str) -> Path:
        """Return the path of a file, whose folder is made."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class Npy(PerFrame):
    """Arrays of NumPy; our data set `folder` reads them as labels."""

    def put(self, sweep: LabelledSweep) -> str:
        """Write classes and confidences."""
        name = f"{sweep.place}.npy"
        np.save(self.path(name), sweep.label)
        np.save(self.folder / f"{sweep.place}.confidence.npy", sweep.confidence)
        return name


class Pcd(PerFrame):
    """Point clouds in the binary format of PCL."""

    def put(self, sweep: LabelledSweep) -> str:
        """Write points, classes and confidences, the latter as 0..1."""
        n, name = len(sweep.label), f"{sweep.place}.pcd"
        header = (
            "# .PCD v0.7 - Point Cloud Data file format\nVERSION 0.7\nFIELDS x y z intensity label confidence\n"
            "SIZE 4 4 4 4 4 4\nTYPE F F F F I F\nCOUNT 1 1 1 1 1 1\n"
            f"WIDTH {n}\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS {n}\nDATA binary\n"
        )
        self.path(name).write_bytes(header.encode() + cloud_of(sweep).tobytes())
        return name


class Ply(PerFrame):
    """Point clouds in the binary format of Stanford."""

    def put(self, sweep: LabelledSweep) -> str:
        """Write points, classes and confidences, the latter as 0..1."""
        name = f"{sweep.place}.ply"
        kinds = ("float x", "float y", "float z", "float intensity", "int label", "float confidence")
        properties = "".join(f"property {kind}\n" for kind in kinds)
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(sweep.label)}\n{properties}end_header\n"
        self.path(name).write_bytes(header.encode() + cloud_of(sweep).tobytes())
        return name


def cloud_of(sweep: LabelledSweep) -> NDArray[Any]:
    """Return a sweep as records of x, y, z, intensity, label and confidence, (n,)."""
    columns = {
        **{axis: (sweep.xyz_m[:, number], "<f4") for number, axis in enumerate("xyz")},
        "intensity": (sweep.intensity, "<f4"),
        "label": (sweep.label, "<i4"),
        "confidence": (sweep.confidence / 255, "<f4"),
    }
    cloud = np.empty(len(sweep.label), [(name, kind) for name, (_, kind) in columns.items()])
    for name, (values, _) in columns.items():
        cloud[name] = values
    return cloud


class Kitti(PerFrame):
    """SemanticKITTI's layout, which point_labeler, segments.ai and semantic-kitti-api open."""

    def __init__(
        self, folder: Path, classes: Sequence[LabelClass], raw_of_class: NDArray[np.uint32], objects: str = "none"
    ) -> None:
        """`raw_of_class` (classes,) is the number that stands for each class in files, of `unsure` too; `objects` says
        what is numbered in the upper half.
        """
        super().__init__(folder, classes)
        self._raw, self._objects = raw_of_class, objects
        self._first: dict[int, NDArray[np.float64]] = {}  # the pose of the first frame of a sequence

    def finish(self) -> None:
        """Write the classes, for either program."""
        self.path("semantic-kitti.yaml").write_text(self.yaml(), encoding="utf-8")
        self.path("labels.xml").write_text(self.xml(), encoding="utf-8")

    def about(self) -> Layout:
        """Return the numbers that stand for classes."""
        return Layout({one.name: int(self._raw[one.number]) for one in self.classes}, instances=self._objects)

    def put(self, sweep: LabelledSweep) -> str:
        """Write points, labels and the pose of a scan: the class in the lower half of a label, its object above."""
        folder = f"sequences/{sweep.scene_number:02d}"
        name = f"{folder}/labels/{sweep.number:06d}.label"
        value = self._raw[sweep.label].astype(np.uint32)
        if sweep.instance is not None:
            value |= sweep.instance.astype(np.uint32) << np.uint32(16)
        self.path(name).write_bytes(value.astype("<u4").tobytes())
        scan = np.column_stack([sweep.xyz_m, sweep.intensity]).astype("<f4")
        self.path(f"{folder}/velodyne/{sweep.number:06d}.bin").write_bytes(scan.tobytes())
        if sweep.scene_number not in self._first:
            # poses are of the LiDAR itself: so `Tr`, which leads from it to the camera, is nothing
            cameras = "".join(f"P{number}: {IDENTITY_POSE}\n" for number in range(4))
            self.path(f"{folder}/calib.txt").write_text(f"{cameras}Tr: {IDENTITY_POSE}\n", encoding="ascii")
            self._first[sweep.scene_number] = np.linalg.inv(sweep.world_from_lidar)
        pose = (self._first[sweep.scene_number] @ sweep.world_from_lidar)[:3]
        with self.path(f"{folder}/poses.txt").open("a", encoding="ascii") as file:
            file.write(" ".join(f"{value:.9g}" for value in pose.ravel()) + "\n")
        return name

    def yaml(self) -> str:
        """Return classes, colours (blue first) and the map from numbers in files to classes, as semantic-kitti-api."""
        raw = [(int(self._raw[one.number]), one) for one in self.classes]
        parts = {
            "labels": [f"{number}: {json.dumps(one.name)}" for number, one in raw],
            "color_map": [f"{number}: {list(reversed(one.rgb))}" for number, one in raw],
            "content": [f"{number}: 0.0" for number, _ in raw],
            "learning_map": [f"{number}: {one.number}" for number, one in raw],
            "learning_map_inv": [f"{one.number}: {number}" for number, one in raw],
            "learning_ignore": [f"{one.number}: {one.number == 0}" for _, one in raw],
        }
        text = "".join(f"{name}:\n" + "".join(f"  {line}\n" for line in lines) for name, lines in parts.items())
        return text + "split:\n  train: []\n  valid: []\n  test: []\n"

    def xml(self) -> str:
        """Return the classes as point_labeler reads them."""
        entries = "".join(
            f"  <label>\n    <id>{int(self._raw[one.number])}</id>\n    <name>{escape(one.name)}</name>\n"
            f"    <description></description>\n    <color>{' '.join(map(str, one.rgb))}</color>\n"
            f"    <root>{'object' if one.thing else 'void' if not one.number else 'structure'}</root>\n"
            f"    <macro></macro>\n    <category>{escape(one.name)}</category>\n  </label>\n"
            for one in self.classes
        )
        return f'<?xml version="1.0" encoding="UTF-8"?>\n<config>\n{entries}</config>\n'


class Lidarseg(PerFrame):
    """The layout of nuScenes lidarseg, which its development kit reads beside the other tables of that version."""

    def __init__(self, folder: Path, classes: Sequence[LabelClass], version: str) -> None:
        super().__init__(folder, classes)
        self._version = shard_name(version or "v1.0")
        self._records: list[dict[str, str]] = []

    def finish(self) -> None:
        """Write the tables of the development kit."""
        categories = [
            {"token": f"class-{one.number}", "name": one.name, "description": "", "index": one.number}
            for one in self.classes
        ]
        for name, document in (("lidarseg", self._records), ("category", categories)):
            text = json.dumps(document, indent=1)
            self.path(f"{self._version}/{name}.json").write_text(text, encoding="utf-8")

    def put(self, sweep: LabelledSweep) -> str:
        """Write a byte a point."""
        name = f"lidarseg/{self._version}/{shard_name(sweep.lidar_token)}_lidarseg.bin"
        self.path(name).write_bytes(sweep.label.tobytes())
        token = sweep.lidar_token
        self._records.append({"token": token, "sample_data_token": token, "filename": name})
        return name


class Parquet(PerFrame):
    """A file a scene, a row (and a row group) a frame, points as plain lists: no reader needs our code."""

    def __init__(self, folder: Path, classes: Sequence[LabelClass]) -> None:
        super().__init__(folder, classes)
        self._scene = ""
        self._writer: pq.ParquetWriter | None = None

    def finish(self) -> None:
        """Close the file of the last scene."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def put(self, sweep: LabelledSweep) -> str:
        """Add a row."""
        name = f"{shard_name(sweep.scene)}.parquet"
        columns: dict[str, NDArray[Any]] = {
            **{axis: sweep.xyz_m[:, number] for number, axis in enumerate("xyz")},
            "intensity": sweep.intensity,
            "label": sweep.label,
            "confidence": (sweep.confidence / 255).astype(np.float32),
            **sweep.more,
        }
        arrays = {
            "frame_id": pa.array([sweep.frame_id]),
            "timestamp_us": pa.array([sweep.timestamp_us], pa.int64()),
            **{name: one_list(values) for name, values in columns.items()},
        }
        classes = json.dumps({one.number: one.name for one in self.classes})
        table = pa.table(arrays).replace_schema_metadata({"classes": classes})
        if sweep.scene != self._scene or self._writer is None:
            self.finish()
            self._scene, self._writer = sweep.scene, pq.ParquetWriter(self.path(name), table.schema, compression="zstd")
        self._writer.write_table(table, row_group_size=1)
        return name


def one_list(values: NDArray[Any]) -> pa.Array:
    """Return values (n,) as a column of one row that lists them."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), pa.array(np.ascontiguousarray(values)))
