"""Stage `mend`: labels that people corrected, as `make review` wrote them and they came back.

A file counts once it differs from what was written: nobody is taken to agree with what nobody touched. Of a corrected
frame all points count, also those without a class. A folder may hold several reviews, of which later ones (by name)
come before earlier ones.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from manifests.config import ConfigError
from manifests.fingerprint import sha256_file
from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.labels import Mend
from pipeline.frame import Frame, FrameError, read_file
from pipeline.sources import FrameFiles
from pipeline.stages.base import FrameFunction, FrameInput, Stage

RECORD, FRAMES = "labels.json", "frames.csv"
UNSURE = "unsure"


@dataclass(frozen=True, eq=False)
class Review:
    """A folder of label files: its name below the folder of corrections, the label files of its frames with the digests
    of what was written, and the class that stands for each number in them; both documents' digests.
    """

    name: str
    files: Mapping[str, tuple[str, str]]
    class_of: Mapping[int, int]
    digests: Mapping[str, str]


def reviews_in(recipe: Recipe) -> list[Review]:
    """Return the reviews below `data.corrections`, the latest first; raises ConfigError where there is none to read."""
    root = Path(recipe.data.corrections).expanduser()
    try:
        found = (
            [root]
            if (root / RECORD).is_file()
            else sorted((path.parent for path in root.glob(f"*/{RECORD}")), key=in_turn)
        )
    except OSError as error:
        raise ConfigError(f"data.corrections {root} cannot be read: {error.strerror or error}") from None
    if not found:
        raise ConfigError(
            f"data.corrections {root} holds no {RECORD}, nor has a folder below it one; expected label files that were "
            f"corrected, as they are written by: {recipe.make('review')}"
        )
    return [review_in(root, folder, recipe) for folder in reversed(found)]


def in_turn(folder: Path) -> tuple[int, str]:
    """Return what sorts the folders of rounds, which are numbers, as they came: 10 after 9."""
    return int(folder.name) if folder.name.isdecimal() else -1, folder.name


def review_in(root: Path, folder: Path, recipe: Recipe) -> Review:
    """Return what a folder of label files says of itself; raises ConfigError for one that cannot be read."""
    place = "" if folder == root else f"{folder.name}/"
    try:
        record = json.loads((folder / RECORD).read_bytes())
        values = {str(name): int(value) for name, value in record["layouts"]["kitti"]["values"].items()}
        rows = list(csv.DictReader(io.StringIO((folder / FRAMES).read_text(encoding="utf-8"))))
        files = {row["frame_id"]: (place + row["kitti"], row["kitti_sha256"]) for row in rows}
        digests = {name: sha256_file(folder / name) for name in (RECORD, FRAMES)}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(
            f"data.corrections: {folder} is no folder of label files in KITTI's layout ({error}); expected one "
            f"written by: {recipe.make('review')}"
        ) from None
    names = recipe.ontology.class_names
    unknown = sorted(name for name in values if name not in names and name != UNSURE)
    if unknown:
        raise ConfigError(
            f"data.corrections: {folder} has a class {unknown[0]!r}, which dictionary {recipe.ontology.name} does not"
        )
    class_of = {value: 0 if name == UNSURE else names.index(name) for name, value in values.items()}
    return Review(place, files, class_of, {f"{place}{name}": sha256 for name, sha256 in digests.items()})


def corrections_of(recipe: Recipe) -> FrameFiles | None:
    """Return the files that a frame's corrected labels are read from: those of all reviews that have it."""
    if not recipe.data.corrections:
        return None
    reviews = reviews_in(recipe)

    def names(frame: Frame) -> tuple[str, ...]:
        of_frame = [review for review in reviews if frame.frame_id in review.files]
        return tuple(name for one in of_frame for name in (*one.digests, one.files[frame.frame_id][0]))

    return FrameFiles(Path(recipe.data.corrections).expanduser(), names)


def prepare(recipe: Recipe) -> FrameFunction[Mend]:
    """Return the function that reads what people made of a frame; it raises FrameError for a file that does not fit."""
    reviews, root = reviews_in(recipe), Path(recipe.data.corrections).expanduser()

    def read(inputs: FrameInput) -> Mend:
        frame = inputs.frame
        for review in reviews:
            path, written = review.files.get(frame.frame_id, ("", ""))
            sha256 = frame.files.get(path)
            if path and sha256 is not None and sha256 != written:
                for name, known in review.digests.items():
                    if frame.files[name] != known:
                        raise FrameError(f"{name} has changed since this run began; run again")
                label = classes_in(read_file(root, path, sha256), path, review.class_of, frame.n_points)
                return Mend(frame_id=frame.frame_id, label=label, given=np.ones(frame.n_points, np.bool_))
        nothing = np.zeros(frame.n_points, np.uint8)
        return Mend(frame_id=frame.frame_id, label=nothing, given=nothing.astype(np.bool_))

    return read


def classes_in(content: bytes, path: str, class_of: Mapping[int, int], n_points: int) -> NDArray[np.uint8]:
    """Return the class of every point in a .label file, whose upper half is an instance; raises FrameError."""
    if len(content) != 4 * n_points:
        raise FrameError(f"{path}: {len(content)} bytes; expected 4 for each of the {n_points} points of the sweep")
    raw = np.frombuffer(content, "<u4") & 0xFFFF
    unknown = [int(one) for one in np.unique(raw) if int(one) not in class_of]
    if unknown:
        raise FrameError(f"{path}: label {unknown[0]} is no class of {RECORD} beside it; choose one of labels.xml")
    table: NDArray[np.uint8] = np.zeros(1 << 16, np.uint8)
    table[list(class_of)] = list(class_of.values())
    return np.asarray(table[raw])


STAGE = Stage(
    table=SPECS["mend"],
    prepare=prepare,
    index_columns=("n_points",),
    files=corrections_of,
    count=lambda row: {"corrected_frames": int(row.given.any()), "corrected_points": int(row.given.sum())},
    kilobytes_per_frame=lambda recipe: 1.0,
)
