"""What following moving things brings: how many are found, and what a vote makes of moving and of standing things.

    python -m bench.moving RECIPE [--set SECTION.KEY=VALUE]

finds what moves (stage `motion`) and holds stage `vote` without and with `vote.follow`, on pseudo-labels of a recipe
(tables index, points, project, group, label, and score where points have several names). Prints how many points of
things that truly move are found, and IoU by class over points in sight, of moving and of standing things apart. What
truly moves is told by SemanticKITTI's classes of moving things, or, in the manner of nuScenes, by boxes whose middle
changes from key frame to key frame. Nothing is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from scipy.spatial.transform import Rotation

from bench.real_labels import scores_of
from bench.soft_votes import around, scenes_of
from manifests.recipe import Recipe, load_recipe
from manifests.tables.labels import Label
from manifests.tables.sensors import Points, Project
from manifests.tables.superpoints import Group
from pipeline.stages import motion
from pipeline.stages.base import FrameInput
from pipeline.stages.vote import held
from superpixels.metrics import Confusion

Mask = npt.NDArray[np.bool_]

KITTI_MOVING = range(252, 260)
"""True classes of things that move, as SemanticKITTI stores them."""
MOVED_M = 0.2
"""A box whose middle goes so far from one key frame to the next moves."""


class Truth:
    """Which points are of things that move."""

    def __init__(self, recipe: Recipe) -> None:
        """Read the boxes of a data set in the manner of nuScenes; of SemanticKITTI labels are enough."""
        in_boxes = recipe.data.dataset == "nuscenes"
        self.boxes = boxes_of(Path(recipe.data.root) / recipe.data.version) if in_boxes else None

    def moving(self, one: FrameInput) -> Mask:
        """Return which points of a frame are of a thing that moves, (n,)."""
        if self.boxes is None:
            return np.isin(one.rows[Label].raw, KITTI_MOVING)
        pose = one.frame.world_from_lidar
        xyz_m = one.rows[Points].xyz_m @ pose[:3, :3].T + pose[:3, 3]
        found = np.zeros(len(xyz_m), np.bool_)
        for middle_m, half_m, axes in self.boxes.get(one.frame.frame_id, ()):
            found |= (np.abs((xyz_m - middle_m) @ axes) <= half_m + 0.05).all(axis=1)
        return found


Box = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]


def boxes_of(folder: Path) -> Mapping[str, list[Box]]:
    """Return the boxes of moving things by sample: middle in the world, half their edges, and their axes (3, 3)."""
    every = {one["token"]: one for one in json.loads((folder / "sample_annotation.json").read_text())}
    moves = set()
    for one in every.values():
        if one["next"]:
            away = np.subtract(one["translation"], every[one["next"]]["translation"])
            if np.linalg.norm(away[:2]) > MOVED_M:
                moves |= {one["token"], one["next"]}
    found: dict[str, list[Box]] = {}
    for token in moves:
        one = every[token]
        width, length, height = one["size"]
        axes = Rotation.from_quat(np.roll(one["rotation"], -1)).as_matrix()
        box = np.asarray(one["translation"]), np.asarray([length, width, height]) / 2, axes
        found.setdefault(one["sample_token"], []).append(box)
    return found


@dataclass
class Found:
    """Points of moving things: truly so and found, found but not so, and so but not found; things; frames."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    things: int = 0
    frames: int = 0
    cpu_s: float = 0.0


def with_motion(frames: Sequence[FrameInput], recipe: Recipe, found: Found, truth: Truth) -> Iterator[FrameInput]:
    """Yield frames of a drive with what moves in them, and count how much of it is so."""
    function = motion.prepare(recipe)
    for position, one in enumerate(frames):
        begun = time.process_time()
        row = function(replace(one, around=around(frames, position, recipe.motion.window)))
        found.cpu_s += time.process_time() - begun
        true, here = truth.moving(one), row.thing > 0
        known = one.rows[Label].label > 0
        found.right += int((here & true).sum())
        found.wrong += int((here & ~true & known).sum())
        found.missed += int((~here & true).sum())
        found.things += int(row.thing.max(initial=0))
        found.frames += 1
        yield replace(one, rows=one.rows.also(row))


@dataclass
class Way:
    """What a vote of one kind says of points in sight, by part, and what it took."""

    parts: Mapping[str, Confusion]
    cpu_s: float = 0.0


def measured(recipe: Recipe, drives: int) -> tuple[Found, Mapping[str, Way]]:
    """Return how much of what moves is found in the first drives, and counts of points in sight by way and part."""
    n_classes = len(recipe.ontology.classes) - 1
    ways = {"group": None, "vote": replace(recipe.vote, follow=False), "follow": replace(recipe.vote, follow=True)}
    counts = {name: Way({part: Confusion(n_classes) for part in ("moving", "standing", "all")}) for name in ways}
    found, truth = Found(), Truth(recipe)
    for _, drive in islice(scenes_of(recipe), drives or None):
        frames = list(with_motion(drive, recipe, found, truth))
        for position, one in enumerate(frames):
            moving, label = truth.moving(one), one.rows[Label].label
            seen = np.zeros(len(label), np.bool_)
            seen[one.rows[Project].point] = True
            for name, config in ways.items():
                said = one.rows[Group].label
                if config is not None:
                    window = replace(one, around=around(frames, position, config.window))
                    begun = time.process_time()
                    said = held(window, replace(recipe, vote=config)).label
                    counts[name].cpu_s += time.process_time() - begun
                for part, chosen in (("moving", moving), ("standing", ~moving), ("all", np.ones_like(moving))):
                    some = chosen & seen & (label > 0)
                    counts[name].parts[part].add(label[some], said[some])
    return found, counts


def main(
    recipe: Annotated[str, typer.Argument(help="A recipe whose tables are built, true labels among them.")],
    drives: Annotated[int, typer.Option(min=0, help="So many drives alone, the first ones; 0: all.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE")] = None,
) -> None:
    """Print what following moving things brings."""
    asked = load_recipe(recipe, set_ or [])
    found, counts = measured(asked, drives)
    print(
        f"{found.things / max(found.frames, 1):.1f} things a sweep, {found.cpu_s / max(found.frames, 1):.3f} CPU s; of "
        f"{found.right + found.missed:,} points that move {percent(found.right, found.missed)} are found, "
        f"{percent(found.right, found.wrong)} of those found move"
    )
    each = ", ".join(f"{name} {way.cpu_s / max(found.frames, 1):.3f}" for name, way in counts.items() if way.cpu_s)
    print(f"CPU s of a sweep: {each}")
    names = asked.ontology.class_names
    for part in ("moving", "standing", "all"):
        for name, some in counts.items():
            line = scores_of(some.parts[part], names, np.ones(len(names), np.bool_))
            told = " ".join(f"{kind} {100 * iou:.1f}" for kind, iou in line["iou"].items())
            right, mean = (100 * (line[key] or 0.0) for key in ("right", "mean_iou"))
            print(f"{part}: {name}: right {right:.2f} % mIoU {mean:.2f}; {told}", flush=True)


def percent(part: int, rest: int) -> str:
    """Return a part of all in percent."""
    return f"{100 * part / max(part + rest, 1):.1f} %"


if __name__ == "__main__":
    typer.run(main)
