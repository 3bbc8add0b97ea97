"""What a data set must offer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from manifests.sections.data import DataConfig
from pipeline.datasets.clouds import Cloud
from pipeline.frame import Frame


class Dataset(Protocol):
    """A folder of logs. Making one is free: nothing is opened before a method is called, so workers make their own.

    `frames` may need the data set's development kit and much memory; it is for the driver only. The `read_` methods are
    for workers: they need nothing but the frame, and raise FrameError for a file that is missing, damaged or outside
    the root. `points_per_frame` is about how many points a sweep has, for estimates of what tables will take.
    """

    points_per_frame: ClassVar[int]

    def __init__(self, config: DataConfig) -> None: ...

    def frames(self) -> Iterator[Frame]:
        """Yield every key frame, scene after scene in the data set's order, by time within a scene; open no file.

        A frame without a sweep has an empty `lidar_path`, and is left out by who lists frames for a run. What the
        frame's own data lacks beside is left for stage `index` to report: a missing camera is left out, a pose or
        camera matrix that makes no sense is filled with NaN, and what can be said of the reason stands in `problems`.
        Raises ConfigError for what concerns the whole data set: a version that is not there, a table missing or broken,
        a name in `data.cameras` that no frame has.
        """
        ...

    def read_cloud(self, frame: Frame) -> Cloud:
        """Return xyz_m float32 (n, 3) in the LiDAR frame and intensity float32 (n,) as stored, order of the file.

        With them goes what was taken for what in the files, which `doctor` tells.
        """
        ...

    def label_names(self) -> tuple[str, Mapping[int, str]] | None:
        """Return the file that numbers the classes of true labels, relative to the root, and their names by number.

        None where the data set has none: the numbers are those of the class dictionary then.
        """
        ...

    def read_labels(self, frame: Frame) -> npt.NDArray[np.uint16]:
        """Return the true labels as stored, uint16, in the order of the points; the frame must have a `label_path`."""
        ...
