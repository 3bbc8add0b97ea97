"""Frames that are worth a person's time, as label files to look at and to correct: the riskiest, not one like another.

A round is a folder of its own, `<out>/1`, `<out>/2`, ...; `[data] corrections = "<out>"` takes back what was corrected
in any of them. Frames of earlier rounds are not chosen again.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.sections.labels import LabelFormat
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from manifests.storage.store import Store
from manifests.tables.answers import Refine
from manifests.tables.base import Rows
from pipeline.exchange.label_folder import FRAMES, RECORD
from pipeline.exchange.labels import Source, Written, labels_in, why_not, write_labels
from pipeline.look.browse import Track

APART = 5  # frames of a scene of which only one is chosen: neighbours look alike
LAYOUT: LabelFormat = "kitti"


@dataclass(frozen=True)
class Risk:
    """How likely a frame's labels are wrong, by what they say of themselves.

    `doubt` is the mean of 1 - confidence, 1 for a point without a label; `disputed` the share of points whose name was
    changed by others. `place` counts frames within their scene.
    """

    frame_id: str
    scene: str
    place: int
    doubt: float
    disputed: float

    @property
    def total(self) -> float:
        """Their mean: both lie in 0..1."""
        return (self.doubt + self.disputed) / 2


def review(
    recipe: Recipe, out: Path, n_frames: int, track: Track = lambda items, what: items
) -> tuple[Written, list[Risk]]:
    """Write a further round of at most so many frames below `out`, and return it with what was chosen, riskiest first.

    Raises StoreError and ConfigError like `write_labels`, and ConfigError where no frame is left.
    """
    store = Store.open(recipe.run.store)
    source = Source.of_recipe(store, recipe)
    rounds = earlier_rounds(out)
    known = {frame for folder in rounds for frame in frames_in(folder)}
    risks = [one for one in risks_of(source, track) if one.frame_id not in known]
    chosen = riskiest(risks, n_frames)
    if not chosen:
        raise ConfigError(
            f"no frame of recipe {recipe.name} is left to review: the {len(known)} that have labels are in {out}"
        )
    number = 1 + max((int(folder.name) for folder in rounds), default=0)
    as_kitti = replace(recipe, labels=replace(recipe.labels, formats=(LAYOUT,)))
    only = frozenset(one.frame_id for one in chosen)
    return write_labels(as_kitti, out / str(number), track, only), chosen


def earlier_rounds(out: Path) -> list[Path]:
    """Return the folders of earlier rounds."""
    return [path.parent for path in out.glob(f"*/{RECORD}") if path.parent.name.isdigit()]


def frames_in(folder: Path) -> list[str]:
    """Return the frames of a round; raises ConfigError where its list cannot be read."""
    try:
        with (folder / FRAMES).open(newline="", encoding="utf-8") as table:
            return [row["frame_id"] for row in csv.DictReader(table)]
    except (OSError, KeyError, ValueError, csv.Error) as error:
        raise ConfigError(f"{folder / FRAMES} cannot be read: {error}; remove the folder, or mend the file") from None


def risks_of(source: Source, track: Track) -> list[Risk]:
    """Return the risk of every frame that has labels; raises StoreError for tables that are damaged or out of step."""
    found: list[Risk] = []
    places: dict[str, int] = {}
    for shard in track(source.shards, "review"):
        scene = scene_of(shard)
        for rows in source.rows(shard):
            place = places[scene] = places.get(scene, -1) + 1
            frame = next(iter(rows.values())).frame_id
            if why_not(rows, source.excluded) is None:
                found.append(risk_of(source, Rows(*rows.values()), frame, scene, place))  # type: ignore[arg-type]
    if not found:
        raise StoreError(f"no frame has labels in table `{source.of}`")
    return found


def risk_of(source: Source, rows: Rows, frame: str, scene: str, place: int) -> Risk:
    """Return the risk of a frame."""
    _, confidence, _ = labels_in(rows, source.calibration)
    doubt = 1.0 - float(confidence.mean()) / 255 if len(confidence) else 0.0
    disputed = 0.0
    if (row := rows.get(Refine)) and len(row.origin):
        disputed = float(np.isin(row.origin, (2, 3)).mean())
    return Risk(frame, scene, place, doubt, disputed)


def riskiest(risks: Sequence[Risk], n_frames: int) -> list[Risk]:
    """Return at most so many frames, the riskiest first; none is near another of its scene while others are left."""
    ordered = sorted(risks, key=lambda one: (-one.total, one.frame_id))
    chosen: list[Risk] = []
    for one in ordered:
        near = any(other.scene == one.scene and abs(other.place - one.place) < APART for other in chosen)
        if not near and len(chosen) < n_frames:
            chosen.append(one)
    rest = [one for one in ordered if one not in chosen]
    return [*chosen, *rest[: n_frames - len(chosen)]]
