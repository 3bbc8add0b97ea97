"""How busy a device is kept that computes at a set rate: stage `encode` as it is, and as it was, in turns in one run.

`python -m bench.feed` prints a curve over rates. The device is SIMULATED: it holds every batch for a set time, one
after the other, as a GPU does that is handed work ahead. Everything else is real: JPEG files are read, digested,
decoded and resized, grids as large as those of CLIP B/16 are packed, compressed and committed. Both ways must write the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.checks import DifferentResults
from bench.teacher_speed import PICTURES, write_frames
from manifests.recipe import Recipe, load_recipe
from manifests.stages import fingerprint
from manifests.storage.store import Store
from pipeline.engine.inline_pool import InlinePool
from pipeline.engine.runner import Runner
from pipeline.engine.worker import AT_ONCE, Worker
from pipeline.frame import Camera, Frame, read_resized
from pipeline.stages.base import Stage
from pipeline.stages.encode import InBatches
from pipeline.teachers.batches import Batches, _Results
from pipeline.teachers.clip_dense import ClipDense

BATCH = 16
GRID = (28, 50, 512)  # CLIP B/16 of an image of 448 x 800 pixels, 1.4 MB as float16
SIZE_PX = (448, 800)
CAMERAS = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK", "BACK_LEFT", "BACK_RIGHT")
SHARES = (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.25)  # of the rate that the cores can feed
SCENE = """points = "{frame}.npy"
ego_from_lidar = { rotation = [1.0, 0.0, 0.0, 0.0], translation = [0.0, 0.0, 0.0] }
"""
CAMERA = """[[camera]]
name = "{name}"
images = "{name}/{{frame}}.jpg"
intrinsics = [[1280.0, 0.0, 800.0], [0.0, 1280.0, 450.0], [0.0, 0.0, 1.0]]
ego_from_cam = {{ rotation = [0.5, -0.5, 0.5, -0.5], translation = [0.0, 0.0, 0.0] }}
"""
FRAME = """[[frame]]
name = "{number}"
timestamp_us = {time_us}
world_from_ego = {{ rotation = [1.0, 0.0, 0.0, 0.0], translation = [0.0, 0.0, 0.0] }}
"""


class StandIn:
    """A SIMULATED network: decodes and packs as dense CLIP does; its grids are noise, `sum` tells images apart."""

    device = torch.device("cpu")
    batch = BATCH
    fixed_batch = False

    def __init__(self, root: Path) -> None:
        self.root = root
        noise = np.random.default_rng(0).normal(size=GRID).astype(np.float16)
        self.grid = torch.from_numpy(noise)

    def prepare(self, frame: Frame, camera: Camera) -> NDArray[np.uint8]:
        """Return a camera's image as dense CLIP takes it."""
        return read_resized(self.root, camera, lambda height_px, width_px: SIZE_PX, scaled=True)

    def forward(self, batch: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """Return the same grid for every image, and the sum of some pixels of each."""
        sums = batch[:, ::16, ::16].flatten(1).sum(dim=1)
        finite = torch.ones(len(batch), dtype=torch.bool)
        return {"grid": self.grid.expand(len(batch), *GRID), "sum": sums, "finite": finite}

    def pack(self, camera: Camera, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return grid and sum of an image."""
        return {"sum": np.array([outputs["sum"]]), **ClipDense.pack(self, camera, {  # type: ignore[arg-type]
            "grid": outputs["grid"], "finite": outputs["finite"],
        })}  # fmt: skip


class HeldDevice(Batches):
    """Batches for a device that takes `image_s` seconds an image, one batch after the other; launching takes none."""

    image_s = 0.0
    free_s = first_s = busy_s = 0.0

    def _forward(self, pixels: torch.Tensor) -> _Results:
        start = max(time.perf_counter(), self.free_s)
        self.first_s = self.first_s or start
        held_s = self.image_s * len(pixels)
        self.free_s, self.busy_s = start + held_s, self.busy_s + held_s
        end, outputs = self.free_s, self.teacher.forward(pixels)
        return _Results(outputs, lambda: time.sleep(max(0.0, end - time.perf_counter())))

    @property
    def busy(self) -> float:
        """Share of the time that the device computed, from its first batch to the end of its last."""
        return self.busy_s / (self.free_s - self.first_s)


class FeedWorker(Worker):
    """A worker whose network is the stand-in, on a device of its own or, as it was, launched by who writes rows."""

    def __init__(self, recipe: Recipe, rate: float, new: bool) -> None:
        super().__init__(recipe)
        self.new = new
        self.device = HeldDevice(StandIn(Path(recipe.data.root)), BATCH, recipe.run.decode_threads, apart=new)
        self.device.image_s = 1 / rate if rate else 0.0

    def at_once(self, stage: str) -> int:
        """Return as many as with a GPU, or one as it was."""
        return AT_ONCE if self.new and stage == "encode" else 1

    def _load(self, task: Any, stage: Stage[Any]) -> Any:
        return InBatches(self.device, lambda frame: frame) if stage.name == "encode" else super()._load(task, stage)


@dataclass(frozen=True)
class Fed:
    """What one run did: images a second that the device takes (0: any), the share of the time that it was busy."""

    way: str
    rate: float
    busy: float
    images_per_s: float
    cpu_ms_per_image: float
    shards: Mapping[str, str]


def write_logs(root: Path, scenes: int, frames: int, size_px: tuple[int, int] = (1600, 900)) -> None:
    """Write scenes of frames with six JPEG files each, links to a few pictures, in the layout of plain folders."""
    pictures = root / "pictures"
    pictures.mkdir()
    write_frames(pictures, PICTURES, *size_px)
    number = 0
    for scene in range(scenes):
        folder = root / "logs" / f"drive-{scene}"
        for camera in CAMERAS:
            (folder / camera).mkdir(parents=True)
        for frame in range(frames):
            np.save(folder / f"{frame}.npy", np.ones((8, 4), np.float32))
            for camera in CAMERAS:
                os.link(pictures / f"{number % PICTURES}.jpg", folder / camera / f"{frame}.jpg")
                number += 1
        words = [SCENE, *(CAMERA.format(name=name) for name in CAMERAS)]
        (folder / "scene.toml").write_text(
            "".join([*words, *(FRAME.format(number=one, time_us=1000 * (one + 1)) for one in range(frames))])
        )


def recipe_over(root: Path, store: Path, threads: int) -> Recipe:
    """Return a recipe over the logs; its teacher is named, and the stand-in computes in its place."""
    path = root / "feed.toml"
    path.write_text(
        f'[data]\ndataset = "folder"\nroot = "{root / "logs"}"\n[teacher]\nname = "clip_dense"\nmodel = "tiny"\n'
        f'weights = "random:0"\n[run]\nstore = "{store}"\ndecode_threads = {threads}\nprogress = false\n'
    )
    return load_recipe(path)


def feed(root: Path, indexed: Path, rate: float, new: bool, threads: int) -> Fed:
    """Build table `encode` into a copy of a store that has `index`, and return how busy the device was."""
    store = root / "turn"
    shutil.copytree(indexed, store)
    recipe = recipe_over(root, store, threads)
    pool = InlinePool(recipe)
    pool._worker = worker = FeedWorker(recipe, rate, new)
    cpu_s, clock = time.process_time(), time.perf_counter()
    failures = Runner(recipe).run(["encode"], pool)
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - clock
    if failures:
        raise RuntimeError(str(failures[0]))
    shards = Store.open(str(store)).shards("encode", fingerprint(recipe, "encode")).values()
    images = worker.device.clock.images
    found = {shard.shard: shard.sha256 for shard in shards}
    shutil.rmtree(store)
    way = "new" if new else "old"
    return Fed(way, rate, worker.device.busy if rate else 0.0, images / wall_s, 1000 * cpu_s / images, found)


def decode(root: Path, number: int) -> None:
    """Decode one of the pictures; for the comparison of threads and processes."""
    camera = Camera("", "", f"{number % PICTURES}.jpg", 0, np.eye(3), np.eye(4))
    read_resized(root, camera, lambda height_px, width_px: SIZE_PX, scaled=True)


def decoded_per_s(pool: Executor, root: Path, images: int) -> float:
    """Return how many images a second the two workers of a pool decode, after some that do not count."""
    list(pool.map(partial(decode, root), range(8)))
    start = time.perf_counter()
    list(pool.map(partial(decode, root), range(images), chunksize=4))
    return images / (time.perf_counter() - start)


def threads_or_processes(root: Path, images: int, turns: int) -> tuple[float, float]:
    """Return the medians of images a second that two threads and two processes decode, in turns.

    Nothing is handed back: what processes would take to hand over 1 MB an image comes on top.
    """
    spawn = get_context("spawn")
    rates: list[tuple[float, float]] = []
    with ThreadPoolExecutor(2) as threads, ProcessPoolExecutor(2, mp_context=spawn) as processes:
        for _ in range(turns):
            rates.append((decoded_per_s(threads, root, images), decoded_per_s(processes, root, images)))
    of_threads, of_processes = np.median(rates, axis=0)
    return float(of_threads), float(of_processes)


def measure(root: Path, scenes: int, frames: int, threads: int, turns: int, shares: Sequence[float]) -> list[Fed]:
    """Return both ways in turns: first a device that takes no time, then shares of the rate that it was fed at.

    Raises DifferentResults unless all wrote the same bytes.
    """
    write_logs(root, scenes, frames)
    indexed = root / "indexed"
    recipe = recipe_over(root, indexed, threads)
    assert Runner(recipe).run(["index"], InlinePool(recipe)) == []
    found: list[Fed] = []
    feed(root, indexed, 0, True, threads)  # first touches of memory and files
    for _ in range(turns):
        for new in (True, False):
            found.append(feed(root, indexed, 0, new, threads))
    can_feed = float(np.median([one.images_per_s for one in found if one.way == "new"]))
    for _ in range(turns):
        for share in shares:
            for new in (True, False):
                found.append(feed(root, indexed, share * can_feed, new, threads))
    if any(one.shards != found[0].shards for one in found):
        raise DifferentResults("the two ways of feeding a device wrote different bytes")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Print how busy the device was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scenes", type=int, default=5)
    parser.add_argument("--frames", type=int, default=10, help="frames of a scene, six images each")
    parser.add_argument("--threads", type=int, default=4, help="that decode")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the rate that the cores can feed")
    parser.add_argument("--pools", action="store_true", help="also compare threads with processes")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="afov-bench-") as folder:
        root = Path(folder)
        found = measure(root, options.scenes, options.frames, options.threads, options.turns, options.shares)
        pools = threads_or_processes(root / "pictures", 48, options.turns) if options.pools else None
    if options.json:
        print(json.dumps({"fed": [{**asdict(one), "shards": None} for one in found], "threads, processes": pools}))
        return
    print(f"feeding a SIMULATED device: medians of {options.turns} turns; both wrote the same bytes")
    rates = sorted({one.rate for one in found})
    for rate in rates:
        told = []
        for way in ("old", "new"):
            runs = [one for one in found if (one.way, one.rate) == (way, rate)]
            busy, speed, cpu = np.median([(one.busy, one.images_per_s, one.cpu_ms_per_image) for one in runs], axis=0)
            told.append(f"{way}: busy {busy:6.1%}, {speed:6.1f} images/s, {cpu:5.1f} CPU ms an image")
        print(f"  {f'{rate:6.1f} images/s' if rate else 'takes no time  '}  {'   '.join(told)}")
    if pools:
        print(f"  two threads decode {pools[0]:.1f} images/s, two processes {pools[1]:.1f}")


if __name__ == "__main__":
    main()
