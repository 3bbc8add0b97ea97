"""Predictions as the files that a benchmark's server takes: nuScenes lidarseg and SemanticKITTI."""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from manifests.asked import tables_of
from manifests.config import ConfigError
from manifests.labels import refined_of
from manifests.recipe import Recipe
from manifests.splits import load_split
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.refs import Ref
from manifests.storage.store import Store
from manifests.tables.answers import Predict, Refine
from manifests.tables.base import Failed
from manifests.tables.sensors import Index
from trainer.data.tables import FrameRow, Tables, scenes_of_split
from trainer.errors import TrainerError
from trainer.inference.sources import predictions
from trainer.loop.log import progress_bar

Sent = Literal["predict", "refine"]
"""The table that is sent."""


class Benchmark(Protocol):
    """The files of one benchmark, all of them relative to the folder that is handed in."""

    def expected(self) -> Mapping[str, int]:
        """Return how many frames a complete submission has, by scene; or of all scenes together, by ""."""

    def file(self, index: Index, label: NDArray[np.uint8]) -> tuple[str, bytes]:
        """Return name and content of a frame's file, from its row of table `index` and its predicted classes."""

    def further(self) -> Mapping[str, bytes]:
        """Return the other files, name and content."""


LIDARSEG_FRAMES = {"train": 28130, "val": 6019, "test": 6008, "mini_train": 323, "mini_val": 81}
"""Key frames in the splits of nuScenes that its server or its development kit evaluates."""

LIDARSEG_CLASSES = (
    *("barrier", "bicycle", "bus", "car", "construction_vehicle", "motorcycle", "pedestrian", "traffic_cone"),
    *("trailer", "truck", "driveable_surface", "other_flat", "sidewalk", "terrain", "manmade", "vegetation"),
)
"""Classes 1..16 of the lidarseg challenge, in its order."""

LIDARSEG_META = {
    "use_camera": False,
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": True,
}
"""What the network is given, as the challenge wants to know it: sweeps. Images it has met in training alone, through
teachers that learnt from other data (`use_external`)."""

_TOKEN = re.compile(r"[0-9A-Za-z_-]+")


@dataclass(frozen=True)
class Lidarseg:
    """nuScenes lidarseg: `lidarseg/<split>/<sweep token>_lidarseg.bin`, one uint8 a point, and
    `<split>/submission.json`. Source: README.md of the development kit's folder `eval/lidarseg`.
    """

    split: str
    use_camera: bool = False

    def __post_init__(self) -> None:
        if self.split not in LIDARSEG_FRAMES:
            raise ConfigError(
                f'predict.split is "{self.split}"; nuScenes takes the splits {", ".join(LIDARSEG_FRAMES)} only'
            )

    @classmethod
    def of(cls, recipe: Recipe, of: Sent) -> Lidarseg:
        """Return the benchmark for a recipe; raises ConfigError for classes that are not those of the challenge."""
        if recipe.ontology.class_names[1:] != LIDARSEG_CLASSES:
            raise ConfigError(
                f"dictionary {recipe.ontology.name} does not have the {len(LIDARSEG_CLASSES)} classes of the lidarseg "
                f"challenge in their order: {', '.join(LIDARSEG_CLASSES)}"
            )
        return cls(recipe.predict.split, of == "refine" and (recipe.refine.of == "pseudo" or recipe.refine.merge))

    def expected(self) -> Mapping[str, int]:
        """Return the number of key frames of the split."""
        return {"": LIDARSEG_FRAMES[self.split]}

    def file(self, index: Index, label: NDArray[np.uint8]) -> tuple[str, bytes]:
        """Return the file of a sweep."""
        token = index.lidar_token
        if not _TOKEN.fullmatch(token):
            raise StoreError(f"sweep token {token!r} is no file name; expected letters, digits, '-' and '_'")
        return f"lidarseg/{self.split}/{token}_lidarseg.bin", label.astype(np.uint8).tobytes()

    def further(self) -> Mapping[str, bytes]:
        """Return the file that says what the labels were told from."""
        meta = LIDARSEG_META | {"use_camera": self.use_camera}
        return {f"{self.split}/submission.json": json.dumps({"meta": meta}, indent=1).encode()}


KITTI_SCANS = dict(
    zip(
        (f"{number:02d}" for number in range(22)),
        (
            *(4541, 1101, 4661, 801, 271, 2761, 1101, 1101, 4071, 1591, 1201),
            *(921, 1061, 3281, 631, 1901, 1731, 491, 1801, 4981, 831, 2721),
        ),
        strict=True,
    )
)
"""Scans in each sequence of the KITTI odometry benchmark. (The reference implementation tests on 11-20 and so forgets
the last, without which a submission is refused.)"""

_SCAN = re.compile(r"sequences/(\d\d)/velodyne/(\d{6})\.bin")


@dataclass(frozen=True)
class SemanticKitti:
    """SemanticKITTI: `sequences/XX/predictions/NNNNNN.label`, one uint32 a point, the label as the label files store it
    (the lower 16 bits; the instance above them is 0). Source: README.md of semantic-kitti-api.
    """

    scans: Mapping[str, int]
    raw_of_class: NDArray[np.uint32]

    @classmethod
    def of(cls, recipe: Recipe, of: Sent) -> SemanticKitti:
        """Return the benchmark for a recipe; raises ConfigError where a class has no raw label or the split no scan."""
        try:
            wanted = load_split(recipe.predict.split, "semantic_kitti", tuple(KITTI_SCANS))
            return cls({name: KITTI_SCANS[name] for name in wanted}, recipe.ontology.raw_of_class())
        except (ValueError, OSError) as error:
            raise ConfigError(str(error)) from None

    def expected(self) -> Mapping[str, int]:
        """Return the number of scans of every sequence."""
        return self.scans

    def file(self, index: Index, label: NDArray[np.uint8]) -> tuple[str, bytes]:
        """Return the file of a scan."""
        scan = _SCAN.fullmatch(index.lidar_path)
        if not scan:
            raise StoreError(f"{index.lidar_path!r} is no scan of SemanticKITTI; index the data set anew")
        return f"sequences/{scan[1]}/predictions/{scan[2]}.label", self.raw_of_class[label].astype("<u4").tobytes()

    def further(self) -> Mapping[str, bytes]:
        """Return nothing: the server wants no other file."""
        return {}


BENCHMARKS: Mapping[str, Callable[[Recipe, Sent], Benchmark]] = {
    "nuscenes": Lidarseg.of,
    "semantic_kitti": SemanticKitti.of,
}


def submit(
    recipe: Recipe, console: Console, folder: Path | None = None, partial: bool = False, of: Sent = "predict"
) -> Path:
    """Write the predictions of `predict.split`, or refined labels, for the data set's benchmark; return the folder.

    The folder (`submission-<split>` beside the recipe's runs, unless another is named) appears when all is written,
    or not at all. Unless `partial`, every frame that the benchmark knows must have a prediction.

    Raises ConfigError for a data set without a benchmark, classes that it does not know, or a folder that is there
    already; StoreError for predictions that are missing, old or incomplete; TrainerError where nothing can be written.
    """
    if recipe.data.dataset not in BENCHMARKS:
        raise ConfigError(
            f"data set {recipe.data.dataset} has no benchmark to submit to; there are those of {', '.join(BENCHMARKS)}"
        )
    benchmark = BENCHMARKS[recipe.data.dataset](recipe, of)
    folder = folder or recipe.folder() / f"submission-{Path(recipe.predict.split).stem}"
    if folder.exists():
        raise ConfigError(f"{folder} is there already; remove it, or name another folder with --out")
    store = Store.open(recipe.run.store)
    tables = tables_to_send(store, recipe, of)
    scenes = scenes_of_split(tables, recipe.predict.split, recipe.data.dataset)
    shards = [shard for shard in tables.shards if scene_of(shard) in scenes]
    frames, failed = [], []
    for shard in shards:
        for row, (indexed, predicted) in enumerate(tables.states(shard)):
            if isinstance(bad := predicted, Failed) or isinstance(bad := indexed, Failed):
                failed.append(f"{bad.frame_id} ({bad.reason})")
            else:
                frames.append(FrameRow(shard, row, predicted.frame_id))
    absent = missing_frames(benchmark, Counter(frame.scene for frame in frames))
    if (absent or failed) and not partial:
        raise StoreError(
            f"the submission would not be complete: {'; '.join([*failed[:3], *absent[:5]])}. Servers refuse that: mend "
            "or add what is missing, or write what there is with --partial"
        )

    scratch = folder.with_name(f".{folder.name}.{secrets.token_hex(6)}")
    try:
        with progress_bar(console, recipe.run.progress) as bar:
            for frame in bar.track(frames, description="submit"):
                rows = tables.rows(frame)
                label = (rows.get(Predict) or rows[Refine]).label
                put(scratch, *benchmark.file(rows[Index], label))
        for name, content in benchmark.further().items():
            put(scratch, name, content)
        scratch.rename(folder)
    except OSError as error:
        raise TrainerError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    what = "predictions as the network gives them"
    if of == "refine":
        what = f"table refine, {recipe.refine.of} by {recipe.refine.by}"
        what += ": sweeps before and after had a say, so offline" if "vote" in recipe.refine.by else ""
    console.print(f"submit: {len(frames)} frames in {folder}{', NOT complete' if absent or failed else ''}; {what}")
    return folder


def tables_to_send(store: Store, recipe: Recipe, of: Sent) -> Tables:
    """Return `index` and `predict` or `refine` of the recipe, cut down to what was made; raises like `predictions`."""
    ref = tables_of(store, recipe, ["index", "points"])
    predicted = None
    if of == "predict" or recipe.refine.of == "prediction":
        predicted, _ = predictions(store, recipe, ref)
    if predicted is None or of == "refine":
        predicted, _ = refined_of(store, recipe, ref)
    names = {shard.shard for shard in predicted.shards}
    index = ref.table("index")
    index = replace(index, shards=tuple(shard for shard in index.shards if shard.shard in names))
    return Tables(store, Ref(recipe.name, {"index": index, of: predicted}, words=recipe.words), ["index", of])


def missing_frames(benchmark: Benchmark, found: Mapping[str, int]) -> list[str]:
    """Return what the benchmark knows and `found`, a number of frames by scene, lacks."""
    missing = []
    for scene, expected in benchmark.expected().items():
        n_found = found.get(scene, 0) if scene else sum(found.values())
        if n_found != expected:
            missing.append(f"{f'sequence {scene}' if scene else 'the split'} has {expected} frames, {n_found} are here")
    return missing


def put(folder: Path, name: str, content: bytes) -> None:
    """Write a file below a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
