"""A look at everything a run depends on before it starts: seconds now instead of a night that ends in an error.

Nothing is built, written or downloaded. Each idea has a file beside this one: `sweeps`, `times`, `poses`, `mounting`,
`calibration` and `belonging` look at sensors, `weights`, `machine` and `trainer` at what computes, `prompts` at words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from manifests.config import ConfigError
from manifests.recipe import Recipe
from manifests.storage.names import scene_of
from manifests.storage.places import root_of
from pipeline.checks.belonging import Scenes, check_belonging
from pipeline.checks.calibration import check_calibration
from pipeline.checks.findings import FRAMES, Finding
from pipeline.checks.images import check_images
from pipeline.checks.looks import MOST_STEP_S, Look, look_at, motions
from pipeline.checks.machine import check_disk, check_memory
from pipeline.checks.poses import Step, check_poses
from pipeline.checks.prompts import check_prompts
from pipeline.checks.sweeps import check_sweeps
from pipeline.checks.times import check_times
from pipeline.checks.trainer import check_trainer
from pipeline.checks.weights import check_teacher
from pipeline.datasets.base import Dataset
from pipeline.datasets.registry import open_dataset
from pipeline.engine.runner import Runner
from pipeline.frame import Frame, FrameError
from pipeline.stages.index import check_frame

STEPS = 3  # pairs of frames that follow each other, whose sweeps are laid on each other


def examine(
    recipe: Recipe, overrides: Sequence[str] = (), source: str | Path = "", n_frames: int = FRAMES
) -> Iterator[Finding]:
    """Yield what is found, as it is found.

    `source` and `overrides` are how the recipe was named, for the trainer to read the same one; without `source` the
    trainer is not asked. `n_frames` frames, evenly chosen, have all their files read to the last byte.
    """
    runner = Runner(recipe)
    shards: Mapping[str, Sequence[Frame]] = {}
    try:
        shards = runner.listing()
    except ConfigError as error:
        yield Finding("problem", "data", str(error))
    frames = [frame for part in shards.values() for frame in part]
    if frames:
        n_scenes = len({scene_of(shard) for shard in shards})
        yield Finding("ok", "data", f'split "{recipe.data.split}" has {len(frames)} frames in {n_scenes} scenes')
        yield from check_times(frames)
        yield from check_files(recipe, frames, n_frames)
    yield from check_teacher(recipe, evenly(frames, n_frames))
    yield from check_prompts(recipe)
    if frames:
        yield from check_disk(runner)
    yield from check_memory(recipe)
    if source:
        yield from check_trainer(recipe, overrides, source)


def evenly(frames: Sequence[Frame], n: int) -> list[Frame]:
    """Return at most `n` of the frames, spread over all of them."""
    places = np.linspace(0, len(frames) - 1, min(n, len(frames))).round().astype(int)
    return [frames[place] for place in places]


def check_files(recipe: Recipe, frames: Sequence[Frame], n_frames: int) -> Iterator[Finding]:
    """Yield what is wrong with the files of some of all frames, and what the sensors in those that are right show."""
    dataset, root = open_dataset(recipe.data), root_of(recipe.data)
    excluded = set(recipe.data.exclude)
    kept = [frame for frame in frames if frame.frame_id not in excluded]
    moving = motions(kept)
    looks: list[Look] = []
    for frame in evenly(kept, n_frames) if kept else []:
        try:
            looks.append(look_at(dataset, root, check_frame(dataset, root, frame), moving.get(frame.frame_id)))
        except FrameError as error:
            yield Finding(
                "problem",
                "files",
                f"frame {frame.frame_id} of {frame.scene}: {error}. Mend it, or leave it out with data.exclude; "
                "`run index` lists every such frame",
            )
    if looks:
        n_images = sum(len(look.views) for look in looks)
        text = f"{len(looks)} sweeps and {n_images} images, evenly chosen, were read to the end; what follows is theirs"
        yield Finding("ok", "files", text)
        yield from check_sweeps(looks)
        yield from check_images(looks, root)
        yield from check_poses(list(steps(dataset, kept, looks)))
        yield from check_calibration(looks)
        yield from check_belonging(looks, Scenes(kept, root))


def steps(dataset: Dataset, frames: Sequence[Frame], looks: Sequence[Look]) -> Iterator[Step]:
    """Yield a few of the frames that were opened with the ones that follow them in their scenes."""
    place = {frame.frame_id: number for number, frame in enumerate(frames)}
    chosen = []
    for look in looks:
        after = place[look.frame.frame_id] + 1
        if after == len(frames) or frames[after].scene != look.frame.scene:
            continue
        apart_s = (frames[after].timestamp_us - look.frame.timestamp_us) / 1e6
        if 0 < apart_s <= MOST_STEP_S:
            chosen.append((look, frames[after]))
    for number in np.linspace(0, len(chosen) - 1, min(STEPS, len(chosen))).round().astype(int):
        look, frame = chosen[number]
        try:
            yield Step(look.frame, frame, look.xyz_m, dataset.read_cloud(frame).xyz_m)
        except FrameError:
            continue  # `index` tells of it
