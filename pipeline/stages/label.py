"""Stage `label`: true classes of points, where a data set has them, for evaluation; training never reads this table.

The one other reader is the simulated teacher, where it makes its segments from labelled points.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.data import DataConfig
from manifests.stages import SPECS
from manifests.storage.places import root_of
from manifests.tables.labels import Label
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame, FrameError, inside, read_file
from pipeline.sources import FrameFiles
from pipeline.stages.base import FrameFunction, FrameInput, Stage


def prepare(recipe: Recipe) -> FrameFunction[Label]:
    """Return the function that reads the labels of a frame and maps them to the classes of the dictionary.

    It raises FrameError for a frame without labels, a file that does not fit the sweep, and a label that the dictionary
    does not know.
    """
    dataset, root = open_dataset(recipe.data), root_of(recipe.data)
    numbered = renumbering(recipe)

    def read(inputs: FrameInput) -> Label:
        frame = inputs.frame
        if frame.label_path is None and between_key_frames(frame, recipe.data):
            nothing = np.zeros(frame.n_points, np.uint16)
            return Label(frame_id=frame.frame_id, label=nothing.astype(np.uint8), raw=nothing)
        if frame.label_path is None:
            raise FrameError(
                f"version {recipe.data.version} of the data set names no label file for sweep {frame.lidar_token}, "
                "though it does for other sweeps; exclude the frame or complete the labels"
            )
        if frame.lidar_sha256 and frame.label_sha256 is None:  # indexed, without labels; none may be read unchecked
            read_file(root, frame.label_path, None)
        raw = dataset.read_labels(frame)
        if numbered is not None:
            for name, sha256 in frame.files.items():
                read_file(root, name, sha256)  # what numbers the classes is what the key of the shard says
            raw = numbered[raw]
        if len(raw) != frame.n_points:
            raise FrameError(f"{frame.label_path}: {len(raw)} labels for a sweep of {frame.n_points} points")
        try:
            return Label(frame_id=frame.frame_id, label=recipe.ontology.class_of_raw_labels(raw), raw=raw)
        except ValueError as error:
            raise FrameError(f"{frame.label_path}: {error}") from None

    return read


def between_key_frames(frame: Frame, data: DataConfig) -> bool:
    """Return whether a frame is a sweep between key frames, of which nobody knows true labels: all are 0, ignored."""
    return data.sweeps != "keyframes" and frame.frame_id == frame.lidar_token


def renumbering(recipe: Recipe) -> npt.NDArray[np.uint16] | None:
    """Return the dictionary's label of each stored one, where the data set numbers its classes otherwise; else None.

    Raises ConfigError where it has classes that the dictionary does not know.
    """
    found = open_dataset(recipe.data).label_names()
    try:
        return None if found is None else recipe.ontology.renumbering(found[1])
    except ValueError as error:
        assert found is not None
        raise ConfigError(f"{recipe.data.root}/{found[0]}: {error}") from None


def numbered_by(recipe: Recipe) -> FrameFiles | None:
    """Return the file that numbers the classes of true labels, where that is not as the dictionary has it."""
    found = open_dataset(recipe.data).label_names()
    if found is None or renumbering(recipe) is None:
        return None
    return FrameFiles(root_of(recipe.data), lambda frame: (found[0],))


def refuse(recipe: Recipe, frames: Iterable[Frame]) -> str | None:
    """Return why the data set can have no true labels at all, or None if it has some."""
    named = [frame.label_path for frame in frames if frame.label_path is not None]
    what = f"{recipe.data.dataset} {recipe.data.version} in {recipe.data.root}"
    if not named:
        return f"{what} has no true point labels; only evaluation needs them, so leave `label` out or choose other data"
    root = root_of(recipe.data)
    if not any(inside(root, path).is_file() for path in named):
        return f"{what} names {len(named)} label files, but none is on disk (the first is {named[0]}); unpack them"
    return None


STAGE = Stage(
    table=SPECS["label"],
    prepare=prepare,
    index_columns=("lidar_token", "n_points", "label_path", "label_sha256"),
    refuse=refuse,
    files=numbered_by,
    count=lambda row: {"points": len(row.label), "labelled_points": int(np.count_nonzero(row.label))},
    kilobytes_per_frame=lambda recipe: 12.0,
)
