"""Sections `[data]` and `[run]`: which logs, and where and with what things are computed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataConfig:
    """Section `[data]`: which logs, read how, and which of their frames take part.

    `cameras` names the cameras to look through, by the data set's own names; without any, its usual ones.
    """

    dataset: str = "nuscenes"
    root: str = ""
    version: str = "v1.0-trainval"
    ontology: str = "nuscenes"
    split: str = "all"
    exclude: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.root:
            raise ValueError("data.root is empty; give the folder that holds the data set")
        if len(set(self.exclude)) != len(self.exclude):
            raise ValueError("data.exclude names a frame twice; name each frame once")
        if len(set(self.cameras)) != len(self.cameras):
            raise ValueError("data.cameras names a camera twice; name each camera once")


@dataclass(frozen=True)
class RunConfig:
    """Section `[run]`: where things are kept and with what they are computed. Never part of an identity.

    `batch` is how many images a teacher's network takes at once (the teacher's own choice where it is left out), and
    `decode_threads` how many threads read images for it. `keep_encode` false writes no table `encode`: stage `segment`
    then runs the network on its way, again for every new class dictionary. `segment_gpus` is the share of a GPU that a
    worker of stage `segment` takes; above 0, teachers that can compute that half on it do.
    `checkpoint_minutes` and `checkpoint_steps` say how often training saves in the middle of an epoch; 0 is never.
    """

    store: str = "store"
    runs: str = "runs"
    pool: str = "inline"
    workers: int = 1
    ray_address: str = "local"
    gpus_per_worker: float = 0.0
    device: str = "auto"
    batch: int | None = None
    decode_threads: int = 4
    keep_encode: bool = True
    segment_gpus: float = 0.0
    batch_size: int = 8
    loader_workers: int = 1
    checkpoint_minutes: float = 15.0
    checkpoint_steps: int = 0
    deterministic: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        if self.pool not in ("inline", "ray"):
            raise ValueError(f'run.pool is "{self.pool}"; choose "inline" (this process) or "ray"')
        if self.workers < 1:
            raise ValueError(f"run.workers is {self.workers}; at least one worker is needed")
        if self.batch_size < 1:
            raise ValueError(f"run.batch_size is {self.batch_size}; it must be at least 1")
        if self.loader_workers < 0:
            raise ValueError(f"run.loader_workers is {self.loader_workers}; use 0 to load in the main process")
        if self.gpus_per_worker < 0 or self.segment_gpus < 0:
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
