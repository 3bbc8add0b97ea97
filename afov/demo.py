"""The main job, end to end, on a synthetic city: what `afov demo` and `make demo` run."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from afov.programs import call, start
from manifests.endings import RunError

LOG = Path("runs/city_scratch.log")
CITY = Path("data/city")

Tell = Callable[[str], None]


def demo(size: str, sets: Sequence[str], tell: Tell) -> None:
    """Write a city of a size, build its tables, train two students, score them, and write the report.

    `sets` are overrides for every step. All of it lies in the working folder. Raises RunError where a step fails.
    """
    begun = time.monotonic()
    if find_spec("MinkowskiEngine") is None:
        tell("MinkowskiEngine is not installed: the students compute with PyTorch alone")
        sets = ("network.engine=torch", *sets)
    options = [word for one in sets for word in ("--set", one)]

    def step(number: int, what: str) -> None:
        tell(f"\n[{number}/9] {what}")

    def run(module: str, *words: str) -> None:
        code = call(module, *words)
        if code:
            raise RunError(f"the demo stops here: `python -m {' '.join((module, *words))}` ended with exit code {code}")

    step(1, "A synthetic city: streets and traffic, as six cameras and a LiDAR see them")
    run("bench.city", str(CITY), "--size", size)
    step(2, "Tables: simulated masks, projections, superpoints, pseudo-labels")
    run("pipeline", "run", "pack,correct,label", "city", *options)
    run("pipeline", "run", "pack,label", "city_scratch", "--set", "run.pool=inline", *options)
    step(3, f"Student 1: distillation from random weights, beside the next steps; its progress: {LOG}")
    student = start("trainer", "distill", "city_scratch", *options, log=LOG)
    try:
        step(4, "Tri-modal contrastive pre-training (TMP)")
        run("trainer", "pretrain", "city", *options)
        step(5, "Student 2: distillation after TMP")
        run("trainer", "distill", "city", *options)
        tell("waiting for student 1")
        if student.wait():
            tell(LOG.read_text(errors="replace"))
            raise RunError(f"student 1 ended with exit code {student.returncode}; what it said is above and in {LOG}")
    finally:
        stop(student)
    step(6, "Predictions for drives that no student saw")
    run("trainer", "predict", "city", *options)
    run("trainer", "predict", "city_scratch", *options)
    step(7, "Scores against the truth, before and after flat interaction (AFI), and of yardsticks")
    run("trainer", "evaluate", "city", "--of", "pseudo", "--of", "prediction", "--refine", "afi", *options)
    run("trainer", "evaluate", "city", "--of", "majority", "--of", "tree", *options)
    run("trainer", "evaluate", "city_scratch", *options)
    step(8, "The report")
    run("pipeline", "report", "city", *options)
    run("pipeline", "report", "city", "city_scratch", *options)  # TMP against scratch, side by side
    step(9, "All scores, on drives that no student saw")
    run("trainer", "scores", "city", "city_scratch", *options)
    minutes, seconds = divmod(round(time.monotonic() - begun), 60)
    tell(
        "\nThe teacher was simulated: these numbers show the method at work, not what label-free learning reaches.\n"
        f"Done in {minutes} min {seconds} s. Look at it: {Path('reports/city/index.html').absolute()}\n"
        f"With TMP and from scratch, side by side: {Path('reports/city+city_scratch/index.html').absolute()}"
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that may still run: asked first, and killed where it does not listen."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
