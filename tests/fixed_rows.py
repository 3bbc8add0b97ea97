"""Fixed inputs, settings that take every branch, and the rows that stages and teachers make of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests.fingerprint import canonical
from manifests.recipe import Recipe, load_recipe
from manifests.sections.teachers.registry import TEACHER_SECTIONS
from manifests.stages import SPECS, with_needs
from manifests.tables.arrow import from_arrow, to_arrow
from manifests.tables.base import Record
from manifests.tables.base import Rows as RowsOfFrame
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame
from pipeline.stages.base import FrameInput
from pipeline.stages.registry import STAGES

SCENE = "day"
ALL = ("label", "pairs", "target", "correct", "vote")

SECOND_CAMERA = """
[[camera]]
name = "left"
images = "front/{frame}.png"
intrinsics = [[20, 0, 16], [0, 20, 12], [0, 0, 1]]
cam_from_lidar = [[0.28, -0.96, 0, 0.1], [0, 0, -1, 0], [0.96, 0.28, 0, 0], [0, 0, 0, 1]]
"""
"""Turned by 16 degrees to the left, so that many points are seen twice and differently."""

MOUNTED = "ego_from_lidar = { rotation = [1, 0, 0, 0], translation = [0.5, 0, 1.8] }"
"""How high the LiDAR is, which stage `correct` needs for the ground around the vehicle."""

NOISE = (
    *("boundary_shift_px=2", "boundary_length_px=10", "jitter_px=1", "jitter_deg=2", "patch_px=8", "confusion=0.8"),
    *("synonyms=0.5", "drop=0.3", "merge=0.3", "vector_noise=0.5", "score_noise=0.5"),
)
RING = (
    *("correct.ring=all", "correct.ring_outer_m=20", "correct.ring_clearance_m=3", "correct.ring_residual_m=1"),
    *("correct.ring_min_samples=3", "correct.standing_radius_m=0"),
)
"""So that 40 points are ground enough."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "noisy": (*(f"teacher.{one}" for one in NOISE), "target.labels=vote"),
    "last camera": ("group.policy=last_camera", "group.occluded=true", "target.labels=correct", *RING),
    "nearest axis": (
        "group.policy=nearest_axis",
        "group.min_points=4",
        "segment.split=components",
        "project.cell_px=2",
        "group.scores=pixel",
    ),
    "corrected": ("data.corrections={place}/corrections", "group.min_points=3"),
    "all classes": (
        *("vote.belief=true", "vote.names=3", "vote.evidence=log", "group.scores=pixel", "vote.vehicle_m=1.0"),
        *("target.labels=vote+correct", "target.confidence=margin", "correct.evidence=divided", "vote.reach_s=9.0"),
    ),
    "what moves": ("vote.follow=true", "motion.fewest=1", "motion.share=0.0", "motion.ground_m=0.0"),
    "all in one": ("target.labels=vote+correct", "vote.disputed=0.0", "segment.min_area_px=9", "project.margin_m=0.0"),
}
"""Settings beside the defaults, so that every branch of a stage gives rows."""

# -- fixed inputs


def write_log(folder: Path) -> None:
    """Write the tiny data set of tests/pipeline/test_content.py, with a second camera that looks elsewhere."""
    from tests.pipeline.test_content import Log

    Log(folder).write()
    for path in folder.glob("*/scene.toml"):
        text = path.read_text().replace("[[frame]]", f"{SECOND_CAMERA}\n[[frame]]", 1)
        path.write_text(f"{MOUNTED}\n{text}")
    write_corrections(folder.parent / "corrections")


def write_corrections(folder: Path) -> None:
    """Write the folder of labels that a person corrected: of the first frame's 40 points, 13 are cars and 2 nothing."""
    label = folder / "kitti" / "sequences" / "00" / "labels" / "000000.label"
    label.parent.mkdir(parents=True)
    label.write_bytes(np.repeat(np.array([4, 0, 11], "<u4"), (13, 2, 25)).tobytes())
    values = {"ignore": 0, "car": 4, "driveable_surface": 11}
    (folder / "labels.json").write_text(json.dumps({"layouts": {"kitti": {"values": values}}}))
    lines = ["frame_id,kitti,kitti_sha256", f"{SCENE}/0,kitti/sequences/00/labels/000000.label,other"]
    (folder / "frames.csv").write_text("\n".join([*lines, ""]))


def recipe_over(folder: Path, *overrides: str) -> Recipe:
    """Return a recipe over the tiny data set, all defaults but those that 40 points a sweep are too few for."""
    path = folder.parent / "tiny.toml"
    path.write_text(
        f'[data]\ndataset = "folder"\nroot = "{folder}"\n[run]\nstore = "{folder.parent / "store"}"\ndevice = "cpu"\n'
        '[teacher]\nname = "oracle"\nsource = "points"\ndims = 8\nslic_px = 8.0\n'
        "[vote]\nreach = 1\nvoxel_m = 4.0\nvoxel_height_m = 4.0\nthrough_m = 50.0\n"
    )
    return load_recipe(path, [one.format(place=folder.parent) for one in overrides])


Rows = dict[str, list[Any]]
"""Records of every table by name."""


def listed(recipe: Recipe) -> list[Frame]:
    """Return the frames of the first scene, as `index` gets them."""
    return [frame for frame in open_dataset(recipe.data).frames() if frame.scene == SCENE]


def rows_of(
    recipe: Recipe, frames: Sequence[Frame] = (), watch: Callable[[str, Recipe], Recipe] = lambda name, recipe: recipe
) -> Rows:
    """Return the rows of all tables of a recipe: of its data set's first scene, or of the teacher on given frames.

    Rows go through Arrow, and a stage gets the columns that it named. `watch` may put another recipe in the place of
    the one that a stage gets.
    """
    rows: Rows = {}
    names: Sequence[str] = ("text", "encode", "segment") if recipe.teacher.has_encode else ("text", "segment")
    if not frames:
        names = with_needs(recipe, ALL)
        frames = listed(recipe)
    for name in names:
        rows[name] = rows_of_stage(recipe, name, frames, rows, watch(name, recipe))
        if name == "index":
            frames = [Frame.of(row) for row in rows["index"]]
    return rows


def rows_of_stage(recipe: Recipe, name: str, frames: Sequence[Frame], rows: Rows, given: Recipe) -> list[Any]:
    """Return the rows that a stage makes of a recipe, from the rows of others; raises what goes wrong with a frame."""
    stage = STAGES[name]
    files = stage.files(given)  # read settings too, and tell which files enter the keys of shards
    for frame in frames if files else ():
        assert files and (files.names(frame) or name == "mend")  # of frames that nobody reviewed there are none
    if stage.build:
        made: list[Record] = list(stage.build(given))
        assert canonical(dict(stage.content(given)))
    else:
        made = []
        for one in stage.open(given)(iter(inputs_of(recipe, name, frames, rows))):
            if isinstance(one, Exception):
                raise one
            made.append(one)
        assert [vars(row)["frame_id"] for row in made] == [frame.frame_id for frame in frames]
    return from_arrow(to_arrow(made, stage.table.kind), stage.table.kind)


def inputs_of(recipe: Recipe, name: str, frames: Sequence[Frame], rows: Rows) -> list[FrameInput]:
    """Return what a stage gets for each frame, as a worker gives it."""
    needs = SPECS[name].needs(recipe)
    alone = [
        FrameInput(
            frame,
            RowsOfFrame(*(part_of(need.kind, rows[need.table][at]) for need in needs if need.how in ("row", "window"))),
            [row for need in needs if need.how == "broadcast" for row in rows[need.table]],
        )
        for at, frame in enumerate(frames)
    ]
    reach = max((need.reach for need in needs if need.how == "window"), default=0)
    return [
        dataclasses.replace(one, around=(*alone[max(at - reach, 0) : at], *alone[at + 1 : at + 1 + reach]))
        for at, one in enumerate(alone)
    ]


def part_of(kind: type[Any], row: Any) -> Any:
    """Return the row as a stage gets it: only the columns that it named."""
    return RowsOfFrame(row)[kind]


CLIP = {"model": "tiny", "weights": "random:0", "short_side_px": 32}
FURTHER: dict[str, dict[str, Any]] = {
    "clip_dense: without outliers": {**CLIP, "calibrate_outliers": False},
    "clip_dense: windows": {**CLIP, "mode": "naclip", "window_px": 16, "stride_px": 8, "kept": "int8"},
    "fcclip: parity": {"model": "tiny-convnext", "weights": "random:0", "overlap": 0.0, "parity": True},
    "san: parity": {"model": "tiny", "weights": "random:0", "short_side_px": 64, "parity": True},
}
"""Sections of teachers that take other ways than the examples of tests/pipeline/test_teachers.py."""


def teacher_recipes(folder: Path) -> dict[str, Recipe]:
    """Return a recipe for every example of a teacher, with all that it reads below a folder."""
    from tests.pipeline.test_teachers import EXAMPLES, recipe_of

    recipes = {}
    for number, example in enumerate(sorted({**EXAMPLES, **FURTHER})):
        (place := folder / str(number)).mkdir(parents=True)
        name = example.partition(":")[0]
        recipe = recipe_of(example if example in EXAMPLES else name, place)
        if example in FURTHER:
            recipe = dataclasses.replace(recipe, teacher=TEACHER_SECTIONS[name](**FURTHER[example]))
        recipes[example] = recipe
    return recipes
