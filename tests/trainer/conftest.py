"""A small fleet: synthetic sweeps of three scenes, packed into a store as the pipeline would."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from rich.console import Console

from manifests.recipe import Recipe, load_recipe
from manifests.stages import fingerprint
from manifests.storage.refs import Ref, TableRef
from manifests.storage.store import Store
from manifests.tables.arrow import to_arrow
from manifests.tables.base import Failed, FrameRecord
from manifests.tables.labels import Label, Target
from manifests.tables.registry import TABLES
from manifests.tables.sensors import Points
from manifests.tables.superpoints import Pairs
from manifests.tables.teacher import Text
from tests.refs import put_ref

ONTOLOGY = """
name = "street"
version = 3
class = [
    { name = "ignore", colour = "#000000" },
    { name = "car", colour = "#ff0000" },
    { name = "road", colour = "#888888", ground = true },
    { name = "wall", colour = "#0000ff" },
]
group = [
    { name = "cars", fine = "car", thing = true, prompts = ["car", "van"] },
    { name = "roads", fine = "road", thing = false, prompts = ["road"] },
    { name = "walls", fine = "wall", thing = false, prompts = ["wall", "house"] },
    { name = "sky", fine = "ignore", thing = false, prompts = ["sky"] },
]
"""
CAR, ROAD, WALL = 1, 2, 3
PROMPT_OF_CLASS = {CAR: 0, ROAD: 2, WALL: 3}
PROMPTS = ("car", "van", "road", "wall", "house", "sky")

FRAMES = {
    "scene-0061": ("a0", "a1", "a2"),  # official train split
    "scene-0655": ("b0", "b1"),  # official train split
    "scene-0103": ("v0", "v1"),  # official val split
}

RowOf = Callable[[str], FrameRecord | Failed]


@dataclass(frozen=True)
class Sweep:
    """Points of a street, and the class of each; the cameras look ahead: points behind the sensor are unseen."""

    xyz_m: npt.NDArray[Any]
    intensity: npt.NDArray[Any]
    label: npt.NDArray[Any]

    @property
    def seen(self) -> npt.NDArray[Any]:
        """Which points some camera sees."""
        return self.xyz_m[:, 0] > -2


def sweep(name: str) -> Sweep:
    """Return the sweep of a frame: a road, a wall beside it and two cars on it."""
    rng = np.random.default_rng(list(name.encode()))
    road = np.stack([rng.uniform(-12, 12, 500), rng.uniform(-4, 4, 500), np.full(500, -1.8)], axis=1)
    wall = np.stack([rng.uniform(-12, 12, 300), np.full(300, 6.0), rng.uniform(-1.8, 3, 300)], axis=1)
    cars = [rng.uniform((x, y, -1.7), (x + 4, y + 1.8, -0.2), (100, 3)) for x, y in ((3.0, -3.0), (-9.0, 1.0))]
    xyz_m = np.concatenate([road, wall, *cars]) + rng.normal(0, 0.02, (1000, 3))
    label = np.repeat(np.array([ROAD, WALL, CAR], np.uint8), (500, 300, 200))
    order = rng.permutation(len(xyz_m))
    intensity = rng.uniform(0, 60, len(xyz_m)).astype(np.float32)
    return Sweep(xyz_m[order].astype(np.float32), intensity, label[order])


def points_row(name: str) -> Points:
    """Return the row of table `points`."""
    scan = sweep(name)
    return Points(frame_id=name, n_points=len(scan.xyz_m), xyz_m=scan.xyz_m, intensity=scan.intensity)


def target_row(name: str) -> Target:
    """Return the row of table `target`: what is seen has its true class, 80, 160 or 240 of 255 sure by class."""
    scan = sweep(name)
    label = np.where(scan.seen, scan.label, 0).astype(np.uint8)
    return Target(frame_id=name, label=label, confidence=np.uint8(80) * label, seen=scan.seen)


def label_row(name: str) -> Label:
    """Return the row of table `label`."""
    label = sweep(name).label
    return Label(frame_id=name, label=label, raw=label.astype(np.uint16))


def text_vectors() -> npt.NDArray[Any]:
    """Return unit vectors of eight numbers, close to each other within a group."""
    rng = np.random.default_rng(5)
    vectors = np.eye(8)[[0, 0, 1, 2, 2, 3]] + rng.normal(0, 0.1, (6, 8))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def pairs_row(name: str) -> Pairs:
    """Return the row of table `pairs`: two views of 90 x 160 pixels, and a superpoint per view and class."""
    scan = sweep(name)
    view = (scan.xyz_m[:, 1] > 0).astype(np.uint8)
    point = np.flatnonzero(scan.seen).astype(np.int32)
    segment = view[point].astype(np.int32) * 4 + scan.label[point]
    kinds, superpoint = np.unique(segment, return_inverse=True)
    prompt = np.array([PROMPT_OF_CLASS[kind % 4] for kind in kinds], np.int32)
    rng = np.random.default_rng(list(name.encode()))
    return Pairs(
        frame_id=name,
        point=point,
        superpoint=superpoint.astype(np.int32),
        row_px=rng.integers(0, 90, len(point)).astype(np.uint16),
        col_px=rng.integers(0, 160, len(point)).astype(np.uint16),
        superpoint_view=(kinds // 4).astype(np.uint8),
        superpoint_prompt=prompt,
        vector=text_vectors()[prompt].astype(np.float16),
        height_px=np.full(2, 90, np.int32),
        width_px=np.full(2, 160, np.int32),
    )


def failing(row_of: RowOf, names: Sequence[str]) -> RowOf:
    """Return `row_of` with failed rows for some frames."""
    return lambda name: Failed(name, "the sweep is truncated") if name in names else row_of(name)


def bytes_of(table: pa.Table) -> bytes:
    """Return a table as bytes, the same ones for the same rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


@dataclass
class Fleet:
    """A store, the recipe that reads it, and what is in it: `sweep` of a frame, and its row in every table."""

    folder: Path
    store: Store
    recipe_path: Path
    frames: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(FRAMES))
    current: Ref | None = None  # what was put into the store last

    sweep = staticmethod(sweep)
    points_row = staticmethod(points_row)
    target_row = staticmethod(target_row)
    pairs_row = staticmethod(pairs_row)
    label_row = staticmethod(label_row)
    failing = staticmethod(failing)
    text = property(lambda self: text_vectors())

    def recipe(self, *overrides: str) -> Recipe:
        """Return the recipe with overrides."""
        return load_recipe(self.recipe_path, overrides)

    def ref(self) -> Ref:
        """Return the tables of the recipe."""
        assert self.current is not None
        return self.current

    def put(self, stage: str, row_of: RowOf) -> None:
        """Write a table, one row per frame, and put it into the ref: the recipe's identity, keys of its rows.."""
        kind, made = TABLES[stage], fingerprint(self.recipe(), stage)
        rows = {scene: to_arrow([row_of(name) for name in names], kind) for scene, names in self.frames.items()}
        key = hashlib.sha256(b"".join(map(bytes_of, rows.values()))).hexdigest()[:12]
        shards = [self.store.write(stage, made, scene, key, table) for scene, table in rows.items()]
        self.set_table(TableRef(stage, made, tuple(shards)))

    def set_table(self, table: TableRef) -> None:
        """Put a table into the ref in place of another of its stage."""
        tables = dict(self.current.tables) if self.current else {}
        self.current = put_ref(self.store, self.recipe(), tables | {table.stage: table})

    def packed(self, *overrides: str) -> Recipe:
        """Return the recipe with overrides that tables depend on, as if they had been made anew for it."""
        recipe = self.recipe(*overrides)
        self.current = put_ref(self.store, recipe, self.ref().tables, recipe.data.exclude)
        return recipe

    def drop_table(self, stage: str) -> None:
        """Take a table out of the ref."""
        tables = {name: table for name, table in self.ref().tables.items() if name != stage}
        self.current = put_ref(self.store, self.recipe(), tables)


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Console:
    """A console without colours or wrapping, captured with the test's output."""
    return Console(width=200, soft_wrap=True, highlight=False, markup=False)


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    """Five training and two validation frames, packed, and a recipe with the small network and no workers."""
    (tmp_path / "street_classes.toml").write_text(ONTOLOGY)
    recipe_path = tmp_path / "street.toml"
    recipe_path.write_text(
        f"""
        [data]
        root = "{tmp_path}/nowhere"
        ontology = "{tmp_path}/street_classes.toml"
        [run]
        store = "{tmp_path}/store"
        runs = "{tmp_path}/runs"
        device = "cpu"
        loader_workers = 0
        batch_size = 2
        [voxels]
        size_m = 0.4
        angle_deg = 4
        [network]
        name = "minkunet_small"
        [augment]
        crop_min_pairs = 50
        cuboid_min_pairs = 50
        [pretrain]
        epochs = 2
        batch_size = 2
        lr = 0.05
        [distill]
        epochs = 2
        batch_size = 3
        init = ""
        lr_head = 0.2
        lr_trunk = 0.02
        """
    )
    fleet = Fleet(tmp_path, Store.open(tmp_path / "store"), recipe_path)
    fleet.put("points", points_row)
    fleet.put("target", target_row)
    fleet.put("pairs", pairs_row)
    fleet.put("label", label_row)
    text = [
        Text(prompt_id=i, prompt=prompt, vector=vector)
        for i, (prompt, vector) in enumerate(zip(PROMPTS, text_vectors(), strict=True))
    ]
    made = fingerprint(fleet.recipe(), "text")
    shard = fleet.store.write("text", made, "all", "abc123", to_arrow(text, Text))
    fleet.set_table(TableRef("text", made, (shard,)))
    return fleet
