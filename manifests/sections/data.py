"""Sections `[data]` and `[run]`: which logs, and where and with what things are computed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

INTENSITY = ("intensity", "i", "intensities", "reflectivity", "reflectance", "remission", "signal")
"""Names of the strength of a return, as vendors write them; the first that a file has is taken."""

NO_CAMERAS = ("none",)
"""What `data.cameras` says where no image is looked at: for points, predictions and labels alone."""


@dataclass(frozen=True)
class DataConfig:
    """Section `[data]`: which logs, read how, and which of their frames take part.

    `dataset` is who reads the logs: "nuscenes", "semantic_kitti" or "folder". `root` is the folder that holds them, and
    `version` which version of them (nuScenes: the folder of tables below `root`). `sweeps` says which of nuScenes'
    sweeps are frames: key frames alone, all, or beside key frames every so-many-th of those after one, each with the
    image of every camera that is nearest in time; true labels are those of key frames, so these alone are scored.
    `ontology` is the class dictionary: a built-in one, or the path of a .toml file. `split` names the scenes that are
    packed: a split of the data set, "all", or a .txt file with the name of a scene on each line. `exclude` leaves
    frames out by their ids.
    `cameras` names the cameras to look through, by the data set's own names; without any, its usual ones; "none" alone:
    none. `lidar` names the LiDARs in the same way, which matters where there are several: they are joined to one sweep.
    `columns` names the columns of a sweep's file in order, or chooses among those that it names: x, y, z, one of
    `INTENSITY`, ring (checked), and any other names. `points_in` says in which frame its points are. Points nearer than
    `min_range_m` or farther than `max_range_m` (0: no limit) count as pulses that came back from nothing. `time_unit`
    is that of the data set's timestamps, where it does not say so itself; "" goes by their magnitude. `incomplete`
    says what to do with scenes of which files are not on disk, as after a partial download. `corrections` is a folder
    of label files that people corrected, as `make review` wrote them, or one that holds several such folders: table
    `target` prefers these labels. `masks` names a folder in the root with a PNG for each camera that sees the vehicle
    itself, called after the camera and bright where it does. `cache` is a folder of this machine in which the files of
    a `root` behind a network are kept, by what is in them and never part of an identity, and `cache_gb` how much of it
    at most; 0 keeps none. `time_column` names the column of a sweep's file that says when each point was taken, from
    the sweep's time on or by its clock, in `time_column_unit`: points are then brought to where the LiDAR was at the
    sweep's time, by the motion of the vehicle (`folder`). `rectify` shows the teacher's network the images of raw
    cameras as a pinhole would have taken them, and brings what it finds back into the raw images, where points land.
    """

    dataset: str = "nuscenes"
    root: str = ""
    version: str = "v1.0-trainval"
    sweeps: int | Literal["keyframes", "all"] = "keyframes"
    ontology: str = "nuscenes"
    split: str = "all"
    exclude: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    lidar: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    points_in: Literal["lidar", "ego", "world"] = "lidar"
    min_range_m: float = 0.0
    max_range_m: float = 0.0
    time_unit: Literal["", "s", "ms", "us", "ns"] = ""
    time_column: str = ""
    time_column_unit: Literal["s", "ms", "us", "ns"] = "s"
    incomplete: Literal["refuse", "leave out"] = "refuse"
    corrections: str = ""
    masks: str = ""
    cache: str = "cache"
    cache_gb: float = 20.0
    rectify: bool = False

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("data.root is empty; give the folder that holds the data set")
        if self.sweeps != "keyframes" and self.dataset != "nuscenes":
            raise ValueError(
                f'data.sweeps is {self.sweeps!r} and data.dataset "{self.dataset}", all of whose sweeps are frames '
                "anyway; leave it out"
            )
        if isinstance(self.sweeps, int) and self.sweeps < 1:
            raise ValueError(f"data.sweeps is {self.sweeps}; expected 1 (every sweep) or more")
        if len(set(self.exclude)) != len(self.exclude):
            raise ValueError("data.exclude names a frame twice; name each frame once")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError("data.cameras names a camera twice; name each camera once")
        if len(set(self.lidar)) != len(self.lidar):
            raise ValueError("data.lidar names a LiDAR twice; name each LiDAR once")
        self._check_columns()
        if not 0 <= self.cache_gb < float("inf"):
            raise ValueError(f"data.cache_gb is {self.cache_gb}; expected 0 or more")
        if self.min_range_m < 0 or self.max_range_m < 0 or 0 < self.max_range_m <= self.min_range_m:
            raise ValueError(
                f"data.min_range_m is {self.min_range_m} and data.max_range_m {self.max_range_m}; expected 0 or more, "
                "and the first below the second (0: no limit)"
            )

    def _check_columns(self) -> None:
        for name in ("x", "y", "z"):
            if self.columns and self.columns.count(name) != 1:
                raise ValueError(f"data.columns has {self.columns.count(name)} columns {name}; expected one of x, y, z")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError("data.columns names a column twice; give those that do not matter names of their own")
        if sum(name in INTENSITY for name in self.columns) > 1:
            raise ValueError(
                f"data.columns names more than one of {', '.join(INTENSITY)}; give those that are not to be the "
                "intensity names of their own"
            )
        if self.time_column in ("x", "y", "z", "ring", *INTENSITY):
            raise ValueError(f'data.time_column is "{self.time_column}"; expected a column of times')


Tracker = Literal["", "mlflow", "wandb"]


@dataclass(frozen=True)
class RunConfig:
    """Section `[run]`: where things are kept and with what they are computed. Never part of an identity.

    `name` is what runs, scores, report and labels are kept under, in place of the recipe's name: two trainings of a
    recipe then stand side by side. `store` is where tables lie, a folder or the URI of a bucket, and `runs` the folder
    of checkpoints, logs and scores. `pool` is who builds tables, and refines labels: "inline", this process, or "ray";
    `workers` is how many of Ray's do at once, at `ray_address`: "local", a cluster of this run's own, or the address of
    one.
    `gpus_per_worker` is the share of a GPU that Ray gives each of them for the teacher's network; "auto" is a whole one
    where the cluster has any, and none elsewhere. `device` is what networks run on: "auto" (a GPU if there is one),
    "cpu", "cuda" or "cuda:NUMBER". `batch_size` is how many frames a network of the trainer predicts at once, and
    `loader_workers` how many processes load frames for training and prediction, or refine shards where `pool` is
    "inline"; 0 does it in the main process. `deterministic` asks for the same bits in every run, at the cost of some
    speed on a GPU. `progress` shows bars on a terminal. `track` tells "mlflow" or "wandb" the curves of training too.
    `batch` is how many images a teacher's network takes at once (the teacher's own choice where it is left out), and
    `decode_threads` how many threads read images for it. `keep_encode` false writes no table `encode`: stage `segment`
    then runs the network on its way, again for every new class dictionary. `segment_gpus` is the share of a GPU that a
    worker of stage `segment` takes; above 0, teachers that can compute that half on it do.
    `checkpoint_minutes` and `checkpoint_steps` say how often training saves in the middle of an epoch; 0 is never.
    `pack_also` are tables that `pack` builds beside those that training reads, such as "label" for `evaluate`.
    """

    name: str = ""
    store: str = "store"
    runs: str = "runs"
    pool: str = "inline"
    workers: int = 1
    ray_address: str = "local"
    gpus_per_worker: float | Literal["auto"] = "auto"
    device: str = "auto"
    batch: int | None = None
    decode_threads: int = 4
    keep_encode: bool = True
    pack_also: tuple[str, ...] = ()
    segment_gpus: float = 0.0
    batch_size: int = 8
    loader_workers: int = 1
    checkpoint_minutes: float = 15.0
    checkpoint_steps: int = 0
    deterministic: bool = True
    progress: bool = True
    track: Tracker = ""

    @property
    def gpu_share(self) -> float:
        """The share of a GPU that is asked for; 0 as long as nobody knows what "auto" means on the cluster at hand."""
        return 0.0 if self.gpus_per_worker == "auto" else self.gpus_per_worker

    @property
    def asks_for_gpus(self) -> bool:
        """Whether workers get GPUs where there are any."""
        return self.gpus_per_worker == "auto" or self.gpus_per_worker > 0

    def __post_init__(self) -> None:
        if self.name and not re.fullmatch(r"\w[\w.+-]*", self.name, re.ASCII):
            raise ValueError(f'run.name is "{self.name}"; letters, digits and _ . + - make a name')
        if self.pool not in ("inline", "ray"):
            raise ValueError(f'run.pool is "{self.pool}"; choose "inline" (this process) or "ray"')
        if self.workers < 1:
            raise ValueError(f"run.workers is {self.workers}; at least one worker is needed")
        if self.batch_size < 1:
            raise ValueError(f"run.batch_size is {self.batch_size}; it must be at least 1")
        if self.loader_workers < 0:
            raise ValueError(f"run.loader_workers is {self.loader_workers}; use 0 to load in the main process")
        if self.gpu_share < 0 or self.segment_gpus < 0:
            raise ValueError("run.gpus_per_worker and run.segment_gpus cannot be negative")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"run.batch is {self.batch}; it must be at least 1")
        if self.decode_threads < 1:
            raise ValueError(f"run.decode_threads is {self.decode_threads}; it must be at least 1")
        if self.checkpoint_minutes < 0 or self.checkpoint_steps < 0:
            raise ValueError(
                f"run.checkpoint_minutes is {self.checkpoint_minutes} and run.checkpoint_steps "
                f"{self.checkpoint_steps}; both must be 0 (never) or more"
            )
