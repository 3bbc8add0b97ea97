"""A look at everything a run depends on before it starts: seconds now instead of a night that ends in an error.

Nothing is built, written or downloaded. The trainer answers for itself in a process of its own, because the pipeline
never imports it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from manifests.config import TRAINER_TASKS, ConfigError, read_recipe
from manifests.recipe import Recipe
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.sections.teachers.weights import Weights
from manifests.splits import load_split
from manifests.storage.errors import StoreError
from manifests.storage.names import scene_of
from pipeline.checks.alignment import ELSEWHERE, Fit, correlate, find_edges, find_ends, judge
from pipeline.datasets import Dataset, open_dataset
from pipeline.engine.runner import Runner
from pipeline.frame import Camera, Frame, FrameError, read_image
from pipeline.geometry import project
from pipeline.stages import PACKED
from pipeline.stages.index import check_frame
from pipeline.teachers.artifacts import check_folder
from pipeline.teachers.loading.weights import at_hand, verified

FRAMES = 8  # frames that are opened; six cameras' worth takes about a second each on one core, with decoding
FEW_POINTS = 0.002  # a camera that sees less of a sweep looks elsewhere: the least of nuScenes sees 8 %
FAR_DEG = 1.0  # a best fit that is nearer than this may be motion, or the clock of a camera
WORKER_GB = 0.6  # a worker without a network peaks at 0.46 (docs/cluster.md)
NETWORK_GB = 3.0  # beside that, an estimate for a ViT-B/16 with a batch of images on the CPU
TRAINER_TIMEOUT_S = 120

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: fine, worth knowing, or to be mended before a run."""

    level: Level
    about: str
    text: str


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
        yield from check_files(recipe, evenly(frames, n_frames))
    yield from check_teacher(recipe, evenly(frames, n_frames))
    if frames:
        yield from check_disk(runner)
    yield from check_memory(recipe)
    if source:
        yield from check_trainer(recipe, overrides, source)


def evenly(frames: Sequence[Frame], n: int) -> list[Frame]:
    """Return at most `n` of the frames, spread over all of them."""
    places = np.linspace(0, len(frames) - 1, min(n, len(frames))).round().astype(int)
    return [frames[place] for place in places]


# -- files and calibration


def check_files(recipe: Recipe, frames: Sequence[Frame]) -> Iterator[Finding]:
    """Yield what is wrong with the files of some frames, and what their calibration makes of those that are right."""
    dataset, root = open_dataset(recipe.data), Path(recipe.data.root)
    good: list[Frame] = []
    excluded = set(recipe.data.exclude)
    for frame in frames:
        if frame.frame_id in excluded:
            continue
        try:
            good.append(check_frame(dataset, root, frame))
        except FrameError as error:
            yield Finding(
                "problem",
                "files",
                f"frame {frame.frame_id} of {frame.scene}: {error}. Mend it, or leave it out with data.exclude; "
                "`run index` lists every such frame",
            )
    if good:
        n_images = sum(len(frame.cameras) for frame in good)
        yield Finding("ok", "files", f"{len(good)} sweeps and {n_images} images, evenly chosen, were read to the end")
        yield from check_calibration(dataset, root, good)


def check_calibration(dataset: Dataset, root: Path, frames: Sequence[Frame]) -> Iterator[Finding]:
    """Yield whether points land in every camera, and whether they land where the image shows them.

    `frames` were checked by stage `index`, so that image sizes are known.
    """
    shares: dict[str, list[float]] = {}
    maps: dict[tuple[str, str], list[Any]] = {}  # by camera and by the camera whose pose stands in
    cameras: dict[str, tuple[Camera, int]] = {}
    seen_by_any: list[float] = []
    for frame in frames:
        xyz_m, _ = dataset.read_points(frame)
        ends = find_ends(xyz_m)
        seen = np.zeros(len(xyz_m), bool)
        for camera in frame.cameras:
            points = project(xyz_m, camera.cam_from_lidar, camera.intrinsics, camera.width_px, camera.height_px).point
            seen[points] = True
            shares.setdefault(camera.name, []).append(len(points) / len(xyz_m))
            edges = find_edges(read_image(root, camera))
            cameras[camera.name] = camera, edges.cell_px
            for other in frame.cameras:
                pose = maps.setdefault((camera.name, other.name), [])
                pose.append(correlate(edges, ends, camera, other.cam_from_lidar))
        seen_by_any.append(float(seen.mean()))
    if not cameras:
        yield Finding("note", "calibration", "there are no cameras: nothing can be named from images")
        return
    told = ", ".join(f"{name} {np.mean(share):.1%}" for name, share in shares.items())
    yield Finding("ok", "calibration", f"of a sweep's points {np.mean(seen_by_any):.0%} are seen by a camera: {told}")
    for name, share in shares.items():
        if np.mean(share) < FEW_POINTS:
            yield Finding(
                "problem",
                "calibration",
                f"{name} sees {np.mean(share):.2%} of a sweep's points; check that its pose is not inverted (is it "
                "ego_from_cam?), that x points right, y down and z forward, and that its intrinsics fit its image size",
            )
    fits = {pair: judge(found, cameras[pair[0]][1], cameras[pair[0]][0].intrinsics) for pair, found in maps.items()}
    yield from judge_cameras(fits, len(frames))


def judge_cameras(fits: Mapping[tuple[str, str], Fit], n_frames: int) -> Iterator[Finding]:
    """Yield what edges say of every camera, by its fit with its own pose and with those of the others.

    A camera whose edges fit nowhere is a fault only where those of most others fit, since at night none do, and in more
    than one frame.
    """
    own = {name: fit for (name, other), fit in fits.items() if name == other}
    aligned = [name for name, fit in own.items() if fit.aligned]
    told = ", ".join(f"{name} {fit.score:.1f}" for name, fit in own.items())
    yield Finding("ok", "calibration", f"edges of images and sweeps fit (4.5 and more is sure): {told}")
    for name, fit in own.items():
        if fit.aligned:
            continue
        right, down = fit.shift_deg
        away = f"{abs(right):.1f} degrees to the {'right' if right > 0 else 'left'}, {abs(down):.1f} "
        away += "down" if down > 0 else "up"
        others = [
            other
            for other, theirs in own.items()
            if other != name and not theirs.aligned and (fits[name, other].aligned or fits[other, name].aligned)
        ]
        trusted = n_frames > 1 and 2 * len(aligned) > len(own) - 1 and len(own) > 1
        if others:
            text = (
                f"{name}: images fit where it has the pose of {others[0]}, or {others[0]} its; they seem to be swapped"
            )
        elif fit.best >= ELSEWHERE and max(abs(right), abs(down)) >= FAR_DEG:
            text = f"{name}: its edges fit {away} of where the calibration puts them; its pose seems to be turned"
        elif trusted:
            text = f"{name}: its edges fit nowhere near, while those of {len(aligned)} other cameras fit; its pose or "
            text += "intrinsics seem to be wrong, or its images belong to other frames"
        else:
            text = f"{name}: edges are too faint, or too distorted, to judge its calibration; look at `make pictures`"
            yield Finding("note", "calibration", text)
            continue
        yield Finding("problem", "calibration", f"{text}. Look at `make pictures`, where points lie on the images")


# -- teacher, disk, memory


def check_teacher(recipe: Recipe, frames: Sequence[Frame]) -> Iterator[Finding]:
    """Yield whether the teacher's files are there and the right ones; never fetches any."""
    config = recipe.teacher
    if isinstance(config, ArtifactsConfig):
        tokens = [camera.token for frame in frames for camera in frame.cameras]
        problems = check_folder(config, tokens, recipe.ontology)
        for problem in problems[:10]:
            yield Finding("problem", "teacher", problem)
        if len(problems) > 10:
            yield Finding("problem", "teacher", f"and {len(problems) - 10} more of {len(tokens)} images looked at")
        if not problems:
            yield Finding("ok", "teacher", f"masks, names and vectors of {len(tokens)} images in {config.folder} fit")
        return
    for weights in weights_of(config):
        yield check_weights(weights)
    if config.simulated:
        yield Finding("note", "teacher", f"{config.name} is simulated: it knows the truth, and results mean nothing")


def weights_of(config: Any) -> list[Weights]:
    """Return the weights of all networks that a teacher's section names."""
    parts = [config, *(getattr(config, name) for name in ("mask_config", "feature_config") if hasattr(config, name))]
    found = [getattr(part, name, None) for part in parts for name in ("pinned", "pinned_clip", "pinned_dino")]
    return [weights for weights in found if weights is not None and weights.source]


def check_weights(weights: Weights) -> Finding:
    """Return whether a network's file is here, pinned, and the pinned one."""
    key, what = f"teacher.{weights.key}", weights.source
    if weights.seed is not None:
        return Finding("note", "weights", f'{key} is "{what}": random weights, whose results mean nothing')
    path = at_hand(weights)
    if weights.is_tag and path is None:
        pinned = (
            f"pinned by its published sha256, and fetched from {weights.link}"
            if weights.link
            else f"pinned by {key}_sha256"
            if weights.sha256
            else "not pinned: the first run says the line to add"
        )
        return Finding(
            "ok" if weights.sha256 else "note",
            "weights",
            f'{key} is "{what}", which open_clip fetches when a run first needs it; {pinned}',
        )
    if path is None and weights.is_hub:
        return Finding(
            "note",
            "weights",
            f"{key}: {what} is not in the cache; a run fetches it, which needs the network on every machine that "
            "encodes. Fetch it once, or give a path",
        )
    try:
        verified(weights, path or Path(what))
    except ConfigError as error:
        return Finding("problem", "weights", str(error))
    return Finding("ok", "weights", f"{key}: {what} is here and has the pinned sha256")


def check_disk(runner: Runner) -> Iterator[Finding]:
    """Yield whether what a run of `pack` would write fits into the store."""
    try:
        plans = runner.plan(PACKED)
        free = runner.store.free_bytes()
    except (ConfigError, StoreError, OSError) as error:
        yield Finding("problem", "store", f"no run can be planned: {error}")
        return
    need_gb = sum(plan.gigabytes_to_write for plan in plans)
    where = runner.store.place
    if free is None:
        yield Finding(
            "note", "store", f"{need_gb:.1f} GB to write; how much is free in {where} cannot be told from here"
        )
    elif need_gb * 1e9 > free:
        most = max(plans, key=lambda plan: plan.gigabytes_to_write)
        yield Finding(
            "problem",
            "store",
            f"{need_gb:.1f} GB to write, {free / 1e9:.1f} GB free in {where}; {most.stage.name} takes "
            f"{most.gigabytes_to_write:.1f} GB (run.keep_encode = false keeps no encodings). Point run.store elsewhere",
        )
    else:
        yield Finding("ok", "store", f"{need_gb:.1f} GB to write, {free / 1e9:.1f} GB free in {where}")


def check_memory(recipe: Recipe) -> Iterator[Finding]:
    """Yield whether the workers that run here have memory."""
    run = recipe.run
    if run.pool == "ray" and run.ray_address != "local":
        yield Finding(
            "note", "memory", f"workers run at {run.ray_address}: their memory and GPUs are not looked at here"
        )
        return
    workers = run.workers if run.pool == "ray" else 1
    each_gb = WORKER_GB + (NETWORK_GB if recipe.teacher.has_encode and not run.gpus_per_worker else 0)
    need_gb, free_gb = workers * each_gb, psutil.virtual_memory().available / 1e9
    text = f"{workers} workers take about {need_gb:.1f} GB, {free_gb:.1f} GB are free"
    if need_gb > free_gb:
        yield Finding("problem", "memory", f"{text}; lower run.workers to {max(1, int(free_gb // each_gb))}")
    else:
        yield Finding("ok", "memory", text)


# -- what the trainer says


def check_trainer(
    recipe: Recipe,
    overrides: Sequence[str],
    source: str | Path,
    ask: Callable[[Sequence[str]], tuple[str, str]] | None = None,
) -> Iterator[Finding]:
    """Yield GPUs, the engine's self-check and the sizes of the trainer's splits, as `python -m trainer check` tells."""
    words = [sys.executable, "-m", "trainer", "check", str(source), "--json"]
    for override in overrides:
        words += ["--set", override]
    output, errors = (ask or ask_program)(words)
    try:
        machine = json.loads(output.strip().rpartition("\n")[2])
        gpus, problem, splits = machine["gpus"], machine["problem"], machine["splits"]
        engine, device, error = machine["engine"], machine["device"], machine["error"]
    except (ValueError, KeyError, TypeError):
        said = (errors.strip() or output.strip() or "nothing").rpartition("\n")[2]
        yield Finding("problem", "trainer", f"`python -m trainer check` did not answer; it said: {said}")
        return
    yield from check_gpus(recipe, [(str(name), float(memory_gb)) for name, memory_gb in gpus])
    if problem:
        yield Finding("problem", "engine", str(problem))
    else:
        yield Finding("ok", "engine", f"{engine} on {device} is within {error:.1e} of dense convolutions")
    yield from check_splits(recipe, splits, source, overrides)


def ask_program(words: Sequence[str]) -> tuple[str, str]:
    """Return what a program prints, output and errors; it runs in the checkout."""
    try:
        done = subprocess.run(
            words,
            capture_output=True,
            text=True,
            timeout=TRAINER_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"nothing within {TRAINER_TIMEOUT_S} seconds"
    return done.stdout, done.stderr


def check_gpus(recipe: Recipe, gpus: Sequence[tuple[str, float]]) -> Iterator[Finding]:
    """Yield whether there are as many GPUs as the run asks for."""
    run = recipe.run
    told = ", ".join(f"{name} ({memory_gb:.0f} GB)" for name, memory_gb in gpus) or "none"
    asked = max(run.gpus_per_worker, run.segment_gpus)
    if run.pool == "ray" and run.ray_address == "local" and asked > len(gpus):
        yield Finding(
            "problem",
            "gpu",
            f"workers ask for {asked:g} GPUs each, torch sees {told}; set run.gpus_per_worker and run.segment_gpus to "
            "0 for the CPU, or mend the driver",
        )
    elif recipe.teacher.has_encode and not gpus:
        yield Finding("note", "gpu", "torch sees none: encoding runs on the CPU; `plan --cost` tells how long")
    elif gpus and run.pool == "ray" and recipe.teacher.has_encode and not run.gpus_per_worker:
        yield Finding(
            "note", "gpu", f"there are {told}, but run.gpus_per_worker is 0: Ray gives workers none; set it to 1"
        )
    else:
        yield Finding("ok", "gpu", told)


def check_splits(
    recipe: Recipe, splits: Mapping[str, str], source: str | Path, overrides: Sequence[str]
) -> Iterator[Finding]:
    """Yield how many frames every part of the trainer would see of the frames that the recipe packs.

    An empty split is a fault where the recipe has the section, and otherwise one of a task that may never be asked for.
    """
    try:
        counts: Counter[str] = Counter()
        for shard, frames in Runner(recipe).listing().items():
            counts[scene_of(shard)] += len(frames)
    except ConfigError:
        return  # told before
    written = read_recipe(source, overrides).sections
    sizes: dict[str, int] = {}
    for task, split in splits.items():
        try:
            sizes[task] = sum(counts[scene] for scene in load_split(split, recipe.data.dataset, tuple(counts)))
        except (ValueError, OSError) as error:
            if task in written:
                yield Finding("problem", "split", f"{task}.split: {error}")
            else:
                sizes[task] = 0
    shown = [
        f"{task} {sizes[task]}" for task in splits if sizes.get(task) or task not in TRAINER_TASKS and task in sizes
    ]
    if shown:
        yield Finding("ok", "split", f"frames: {', '.join(shown)}")
    empty = [task for task, size in sizes.items() if not size]
    if empty:
        yield Finding("note", "split", f"no frames here for {', '.join(empty)}; name a split in a section of that name")
