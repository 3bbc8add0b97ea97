"""CPU time of single jobs beside those of an older version of the code, in turns, in one run on one machine.

`python -m bench.beside` asks git for commit 9af4202 (version 0.1.0), runs each job with that code and with this one in
two processes that take turns, and prints medians; what both give must be the same bytes, where it is meant to be. Times
are of one thread. The jobs: JPEG files of 1600 x 900 pixels as dense CLIP takes them (800 x 448), the look that `index`
takes at one, the segments of an image of mask queries as SAN has them (100 masks, 175 prompts, half of 1600 x 900),
flat interaction of a sweep with 34,000 points and of one with 120,000, a vote of 17 sweeps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import scipy.ndimage

HERE = Path(__file__).resolve().parents[1]
COMMIT = "9af4202"
AFI = HERE.parent / "shared" / "golden" / "afi_0.npz"
GOALS_MS = {"decode": 6.0, "segment": 350.0, "flat": 300.0, "vote": 150.0}
SAME = {
    **{"decode": False, "decode_full": True, "look": True, "segment": True},
    **{"flat": True, "flat_kitti": True, "vote": True},
}
"""The jobs, and whether both versions must give the same bytes."""
TOLD = {
    "decode": "a JPEG at 800 x 448, by default",
    "decode_full": 'a JPEG at 800 x 448, decode = "full"',
    "look": "the look of index at a JPEG",
    "segment": "segments of 100 mask queries, 800 x 450",
    "flat": "flat interaction, 34k points",
    "flat_kitti": "flat interaction, 120k points",
    "vote": "vote of 17 sweeps",
}


def job_of(name: str, folder: Path) -> Callable[[], bytes]:
    """Return a job of whichever version of the code this process imports; it returns what it computed."""
    if name in ("decode", "decode_full"):
        return decode(folder, scaled=name == "decode")
    if name == "look":
        return look(folder)
    if name == "segment":
        return segment(folder / "masks.npz")
    if name.startswith("flat"):
        return flat(folder / f"{name}.npz")
    return vote(folder / "vote.npz")


def decode(folder: Path, scaled: bool) -> Callable[[], bytes]:
    """Return the decoding of an image for dense CLIP; the older version has one way only."""
    from pipeline import frame

    camera = frame.Camera("", "", "0.jpg", 0, np.eye(3), np.eye(4))
    if hasattr(frame, "read_resized"):
        return lambda: frame.read_resized(folder, camera, lambda height_px, width_px: (448, 800), scaled).tobytes()
    from PIL import Image

    def then() -> bytes:
        image = Image.fromarray(frame.read_image(folder, camera))
        return np.asarray(image.resize((800, 448), Image.Resampling.BICUBIC)).tobytes()

    return then


def look(folder: Path) -> Callable[[], bytes]:
    """Return the look at an image."""
    from pipeline import frame
    from pipeline.stages.index import checked_image

    camera = frame.Camera("", "", "0.jpg", 0, np.eye(3), np.eye(4))

    def job() -> bytes:
        if hasattr(frame, "look_at_image"):
            size: Any = frame.look_at_image(folder, camera)
        else:
            found = checked_image(folder, camera)  # and a digest, 3 % of it
            size = found.height_px, found.width_px
        return repr(tuple(size)).encode()

    return job


def segment(path: Path) -> Callable[[], bytes]:
    """Return what SAN does to an image after its network: the prompt of each pixel, segments, shares of queries."""
    module: Any = import_module("superpixels.mask_queries")
    compact: Any = import_module("superpixels.segments").compact
    with np.load(path) as file:
        logit, probability = file["logit"], file["probability"]
    grid = module.sampling(450, logit.shape[1]), module.sampling(800, logit.shape[2])
    older = not hasattr(module.MaskQueries, "prompt_argmax")

    def job() -> bytes:
        masks = module.MaskQueries(logit, *((None, len(logit)) if older else ()), *grid)
        prompts = module.prompt_argmax(masks, probability) if older else masks.prompt_argmax(probability)
        label_map, row = compact(prompts, split="prompt")
        return bytes(label_map.tobytes() + module.query_shares(masks, label_map, len(row)).tobytes())

    return job


def flat(path: Path) -> Callable[[], bytes]:
    """Return flat interaction with its defaults; what evidence does not reach is named, as in the older version."""
    module: Any = import_module("superpixels.flat_interaction")
    with np.load(path) as file:
        xyz_m, label = file["xyz_m"], file["label"]
    config: Any = module.FlatInteractionConfig()
    if hasattr(config, "fill_reach_m"):
        config = module.FlatInteractionConfig(fill_reach_m=0.0, fill_certainty=0.0, fill_agreement=0.0)
    place = {"n_classes": 16, "ground_classes": (11, 12, 13, 14), "sensor_height_m": 1.84}
    return lambda: bytes(module.refine(xyz_m, label, config, **place).labels.tobytes())


@dataclass(frozen=True)
class Taken:
    """When and where a sweep was taken."""

    timestamp_us: int
    world_from_lidar: npt.NDArray[np.float64]


def vote(path: Path) -> Callable[[], bytes]:
    """Return a vote on the middle one of 17 sweeps."""
    module: Any = import_module("superpixels.voting")
    with np.load(path) as file:
        arrays = dict(file)
    sweeps = []
    for number in range(17):
        pose = np.eye(4)
        pose[0, 3] = 5.0 * number
        taken = Taken(500_000 * number, pose)
        sweeps.append((*(arrays[f"{name}{number}"] for name in ("xyz_m", "label", "weight")), taken))
    here = sweeps.pop(8)
    config = module.VotingConfig(reach=8)

    def job() -> bytes:
        own, *others = (module.Ballot.cast(*one, here[3]) for one in (here, *sweeps))
        found: Any = module.vote(own, others, 16, config)
        return bytes(found.label.tobytes() + found.confidence.tobytes())

    return job


def serve(name: str, folder: Path) -> None:
    """Do the job once for each line that comes in; answer with CPU seconds and the digest of what it gave."""
    job = job_of(name, folder)
    for _ in sys.stdin:
        begun = time.process_time()
        found = job()
        print(json.dumps([time.process_time() - begun, hashlib.sha256(found).hexdigest()]), flush=True)


class Side:
    """A process that does a job with the code of some tree."""

    def __init__(self, tree: Path, name: str, folder: Path) -> None:
        command = [sys.executable, str(HERE / "bench" / "beside.py"), "--serve", name, "--folder", str(folder)]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=tree, env=environment, stdin=pipe, stdout=pipe, text=True)

    def turn(self) -> tuple[float, str]:
        """Return CPU seconds of one more time, and the digest of the result."""
        asked: IO[str] | None = self.process.stdin
        told: IO[str] | None = self.process.stdout
        assert asked and told
        asked.write("\n")
        asked.flush()
        cpu_s, digest = json.loads(told.readline())
        return cpu_s, digest

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


@dataclass(frozen=True)
class Pair:
    """A job in both versions: CPU ms, medians of the turns, and the median of the ratios, older over this."""

    name: str
    old_ms: float
    new_ms: float
    ratio: float
    same: bool


def compare(name: str, old: Path, folder: Path, turns: int) -> Pair:
    """Return what a job takes; raises DifferentResults where the bytes differ that are meant to be the same."""
    from bench.checks import DifferentResults

    sides = [Side(old, name, folder), Side(HERE, name, folder)]
    try:
        digests = [side.turn()[1] for side in sides]  # first touches of files and code do not count
        found = np.array([[side.turn()[0] for side in sides] for _ in range(turns)])
    finally:
        for side in sides:
            side.end()
    if SAME[name] and digests[0] != digests[1]:
        raise DifferentResults(f"{TOLD[name]}: the two versions give different bytes")
    old_ms, new_ms = 1000 * np.median(found, axis=0)
    return Pair(name, old_ms, new_ms, float(np.median(found[:, 0] / found[:, 1])), digests[0] == digests[1])


def write_inputs(folder: Path, golden: Path | None) -> None:
    """Write what the jobs work on: a picture, mask queries, two sweeps, 17 sweeps of a window."""
    from bench.afi import measured_sweep, street
    from bench.teacher_speed import write_frames

    write_frames(folder, 1, 1600, 900)
    xyz_m, label = measured_sweep(golden)
    np.savez(folder / "flat.npz", xyz_m=xyz_m, label=label)
    rng = np.random.default_rng(0)
    blobs = scipy.ndimage.gaussian_filter(rng.normal(size=(100, 40, 71)), (0, 3, 3))
    probability = rng.dirichlet(np.full(175, 0.05), 100).astype(np.float32)
    np.savez(folder / "masks.npz", logit=(60 * blobs - 4).astype(np.float16), probability=probability)
    dense = [street(seed) for seed in range(4)]  # four streets in one: as many points as a sweep of 64 beams
    many = np.concatenate([one for one, _ in dense])
    named = np.concatenate([one for _, one in dense]).astype(np.uint8)
    chosen = rng.permutation(len(many))[:124_668]
    wrong = rng.random(len(chosen)) < 0.1
    labels = np.where(wrong, rng.integers(1, 17, len(chosen)), named[chosen]).astype(np.uint8)
    np.savez(folder / "flat_kitti.npz", xyz_m=many[chosen].astype(np.float32), label=labels)
    window: dict[str, npt.NDArray[Any]] = {}
    for number in range(17):
        points, truth = street(number % 4)
        mistaken = rng.random(len(truth)) < 0.1
        heard = np.where(mistaken, rng.integers(1, 17, len(truth)), truth).astype(np.uint8)
        window |= {f"xyz_m{number}": points, f"label{number}": heard}
        window[f"weight{number}"] = rng.random(len(truth)).astype(np.float32)
    np.savez(folder / "vote.npz", **window)


def measure(turns: int, golden: Path | None, jobs: Sequence[str] = tuple(SAME), commit: str = COMMIT) -> Iterator[Pair]:
    """Yield all jobs side by side."""
    from bench.same_tables import tree_of

    with tempfile.TemporaryDirectory(prefix="afov-beside-") as name:
        folder = Path(name)
        write_inputs(folder, golden)
        old = tree_of(commit, folder / "tree")
        for job in jobs:
            yield compare(job, old, folder, turns)


def main(arguments: list[str] | None = None) -> None:
    """Print a line for each job."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--golden", type=Path, default=AFI, help="an AFI file of the golden files, for its sweep")
    parser.add_argument("--jobs", nargs="+", default=list(SAME), choices=list(SAME))
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve(options.serve, options.folder)
    from bench.same_tables import NoCommit

    print(f"beside commit {COMMIT}: CPU ms, medians of {options.turns} turns")
    try:
        for one in measure(options.turns, options.golden if options.golden.exists() else None, options.jobs):
            goal = f"; goal {GOALS_MS[one.name]:g} ms" if one.name in GOALS_MS else ""
            same = "same bytes" if one.same else "other bytes"
            told = f"{one.old_ms:7.1f} before, {one.new_ms:7.1f} now: {one.ratio:.2f} ({same}){goal}"
            print(f"  {TOLD[one.name]:<38} {told}", flush=True)
    except NoCommit as error:
        print(f"  left out: {error}")


if __name__ == "__main__":
    main()
