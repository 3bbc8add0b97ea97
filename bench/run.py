"""`make bench`: CPU time and bytes of our way and the usual way side by side, on the same frames, in one process.

First the two must give the same results; otherwise nothing is timed. The ways then take turns, and of every way the
least and the median of the repeats are shown. One thread: numbers are per core.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bench import afi, encode
from bench.checks import DifferentResults, check_labels, check_pairs, check_targets
from bench.packed import OurWay, Source, recipe_for
from bench.usual import UsualWay
from manifests.config import ConfigError
from manifests.provenance import git_commit
from manifests.sections.network import AugmentConfig, VoxelConfig
from manifests.storage.errors import StoreError
from pipeline.datasets.nuscenes import find_version, open_tables

GOLDEN = Path(__file__).resolve().parent.parent.parent / "shared" / "golden"
SOURCES = (
    Source("simulated frames", GOLDEN / "nuscenes_tiny", GOLDEN / "superpixels_tiny"),
    Source("real frames", GOLDEN / "real_nuscenes" / "root", GOLDEN / "real_nuscenes" / "superpixels"),
)
AFI_SWEEP = GOLDEN / "afi_0.npz"
AFI_REPEATS = 5  # at most: the dense way takes seconds
PARITY_VOXELS = VoxelConfig(label="first")

LABELS = "project + group, from files"
SWEEPS = "points + project, from files"
ARITHMETIC = "project + group, in memory"
SAMPLE = "one sample for pre-training"
TARGET = "one sample for distillation"
USUAL, USUAL_LEAN = "usual", "usual, no JPEG"
OURS, OURS_RANDOM = "ours", "ours, random views"
DIGESTS = "of it: digests of sweeps"
OURS_WRITTEN, OURS_DEFAULT = "ours, tables written", "ours, default settings"
IN_STORE = ("points", "pairs", "target", "project", "group", "segment", "index")
PACKAGES = ("numpy", "pyarrow", "pillow", "torch", "MinkowskiEngine", "nuscenes-devkit")

WIDTH = 140  # characters of the table where no terminal sets them

TIMES_FASTER = 10.0
SAMPLES_PER_SECOND = 100.0
SHARE_OF_BYTES = 0.55
SHARE_OF_DIGESTS = 0.03
AFI_TIMES_FASTER = 20.0
AFI_PEAK_MB = 300.0
ENCODE_TIMES = 1.1
ENCODE_REPEATS = 2


@dataclass(frozen=True)
class Way:
    """One way to do a job; `one_pass` does it for some frames, and returns for how many."""

    name: str
    one_pass: Callable[[], int]


@dataclass(frozen=True)
class Job:
    """Ways to the same result."""

    name: str
    ways: tuple[Way, ...]


@dataclass(frozen=True)
class Measured:
    """Milliseconds a frame, least and median over the repeats, and kilobytes read for a frame."""

    job: str
    way: str
    cpu_min_ms: float
    cpu_median_ms: float
    wall_min_ms: float
    wall_median_ms: float
    kilobytes: float


@dataclass(frozen=True)
class Goal:
    """What was to be reached and what was: `text` says both."""

    text: str
    met: bool


@dataclass(frozen=True)
class Report:
    """What was measured on the frames of one source, and the size of its tables, in kilobytes a frame."""

    source: str
    n_frames: int
    measured: tuple[Measured, ...]
    kilobytes_in_store: Mapping[str, float]
    goals: tuple[Goal, ...]


def main(
    root: Annotated[Path | None, typer.Option(help="A folder in nuScenes layout to measure on.")] = None,
    masks: Annotated[Path | None, typer.Option(help="Its official mask files: png, json, pt per image.")] = None,
    version: Annotated[str, typer.Option(help="The version folder of --root.")] = "v1.0-trainval",
    scenes: Annotated[int, typer.Option(min=1, help="How many scenes to pack; the first ones are taken.")] = 2,
    frames: Annotated[int, typer.Option(min=1, help="How many of their frames to measure.")] = 3,
    repeats: Annotated[int, typer.Option(min=1, help="How often every way is timed.")] = 15,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write all numbers here.")] = None,
) -> None:
    """Measure CPU time and bytes of our way against the usual way."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    try:
        check_environment()
        sources = chosen_sources(root, masks, version)
        facts = machine_facts()
        console.print(", ".join(f"{name} {value}" for name, value in facts.items()), soft_wrap=True)
        reports = []
        for source in sources:
            with tempfile.TemporaryDirectory(prefix="afov-bench-") as folder:
                reports.append(bench_source(source, Path(folder), scenes, frames, repeats))
            print_report(console, reports[-1], repeats)
        flat = afi.measure(min(repeats, AFI_REPEATS), AFI_SWEEP if AFI_SWEEP.is_file() else None)
        print_afi(console, flat)
        network = encode.measure(min(repeats, ENCODE_REPEATS))
        print_encode(console, network)
    except ConfigError as error:
        fail(str(error), 2)
    except (DifferentResults, StoreError, RuntimeError, OSError) as error:
        fail(str(error), 1)
    if json_path:
        document = {
            "machine": facts,
            "repeats": repeats,
            "reports": [asdict(report) for report in reports],
            "flat interaction": asdict(flat) | {"goals": [asdict(goal) for goal in reached_by_afi(flat)]},
            "encode": asdict(network) | {"goals": [asdict(goal_of_encode(network))]},
        }
        json_path.write_text(json.dumps(document, indent=1) + "\n")


def bench_source(source: Source, folder: Path, n_scenes: int, n_frames: int, repeats: int) -> Report:
    """Return what both ways cost on some frames of a source; raises DifferentResults if they do not agree on them."""
    usual, ours = both_ways(source, folder, n_scenes)
    numbers = spread(len(ours.frame_ids), n_frames)
    check_equal(usual, ours, numbers)
    measured = tuple(measure(jobs(usual, ours, numbers), repeats))
    in_store = {name: round(ours.bytes_per_frame(name) / 1000, 1) for name in IN_STORE}
    return Report(source.name, len(numbers), measured, in_store, tuple(reached(measured)))


def fail(sentence: str, status: int) -> None:
    """Print a sentence on standard error and end the program."""
    print(f"bench: {sentence}", file=sys.stderr)
    raise typer.Exit(status) from None


def check_environment() -> None:
    """Raise ConfigError unless numerical libraries were loaded with one thread."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise ConfigError("OMP_NUM_THREADS is not 1, so times would not be those of one core; run: make bench")


def chosen_sources(root: Path | None, masks: Path | None, version: str) -> list[Source]:
    """Return the sources asked for, else the golden ones that are there; raises ConfigError if there are none."""
    if (root is None) != (masks is None):
        raise ConfigError("--root and --masks belong together: sweeps and images, and the mask files made from them")
    if root is not None and masks is not None:
        if not masks.is_dir():
            raise ConfigError(f"--masks: there is no folder {masks}")
        return [Source(root.name, root, masks, version)]
    found = [source for source in SOURCES if source.root.is_dir() and source.masks.is_dir()]
    if not found:
        raise ConfigError(
            f"there is no data to measure on: {GOLDEN} is absent. Name your own nuScenes folder and official mask "
            'files: make bench ARGS="--root data/nuscenes --masks data/SAN/superpixels"'
        )
    return found


def both_ways(source: Source, folder: Path, n_scenes: int) -> tuple[UsualWay, OurWay]:
    """Return both ways over the first scenes of a source, ours with its tables built below `folder`."""
    tables = open_tables(source.root, find_version(source.root, source.version))
    names = [scene["name"] for scene in tables.scene][:n_scenes]
    recipe = recipe_for(source, folder, names)
    ours = OurWay.build(recipe, folder)
    return UsualWay(tables, source.root, source.masks, folder, recipe.ontology), ours


def spread(n_frames: int, wanted: int) -> list[int]:
    """Return evenly spread frame numbers, at most `wanted`."""
    return sorted(set(np.linspace(0, n_frames - 1, min(wanted, n_frames)).round().astype(int).tolist()))


def check_equal(usual: UsualWay, ours: OurWay, numbers: Sequence[int]) -> None:
    """Raise DifferentResults unless every way gives what the others give, on every frame that is measured."""
    ours.run_stages()
    for number in numbers:
        frame_id = ours.frame_ids[number]
        check_labels(usual, frame_id, ours.group_row(number))
        check_labels(usual, frame_id, ours.stored_group_row(number))
        check_pairs(usual, frame_id, ours.pair_batch(number, PARITY_VOXELS, None))
        np.save(usual.label_file(frame_id), usual.point_labels(frame_id))
        check_targets(usual, frame_id, ours.target_batch(number, PARITY_VOXELS, None))


def jobs(usual: UsualWay, ours: OurWay, numbers: Sequence[int]) -> list[Job]:
    """Return what is measured."""
    frame_ids = [ours.frame_ids[number] for number in numbers]
    loaded = [ours.load(number) for number in numbers]
    usually_loaded = [(one, usual.cloud(one), usual.views(one, images=False)) for one in frame_ids]

    def way(name: str, function: Callable[[Any], object], items: Sequence[Any]) -> Way:
        def one_pass() -> int:
            for item in items:
                function(item)
            return len(items)

        return Way(name, one_pass)

    sweeps = [ours.sweep_file(number) for number in numbers]
    return [
        Job(
            SWEEPS,
            (
                way(DIGESTS, lambda content: hashlib.sha256(content).hexdigest(), sweeps),
                Way(OURS, lambda: ours.run_stages(("points", "project"))),
            ),
        ),
        Job(
            LABELS,
            (
                way(USUAL, usual.point_labels, frame_ids),
                way(USUAL_LEAN, lambda one: usual.point_labels(one, images=False), frame_ids),
                Way(OURS_WRITTEN, ours.run_stages),
                way(OURS_DEFAULT, lambda number: ours.group_row(number, parity=False), numbers),
                way(OURS, ours.group_row, numbers),
            ),
        ),
        Job(
            ARITHMETIC,
            (
                way(USUAL, lambda item: usual.label_points(*item), usually_loaded),
                way(OURS, ours.group_loaded, loaded),
            ),
        ),
        Job(
            SAMPLE,
            (
                way(USUAL, usual.sample, frame_ids),
                way(USUAL_LEAN, lambda one: usual.sample(one, images=False), frame_ids),
                way(OURS_RANDOM, lambda number: ours.pair_batch(number, VoxelConfig(), AugmentConfig()), numbers),
                way(OURS, lambda number: ours.pair_batch(number, PARITY_VOXELS, None), numbers),
            ),
        ),
        Job(
            TARGET,
            (
                way(USUAL, usual.target, frame_ids),
                way(OURS_RANDOM, lambda number: ours.target_batch(number, VoxelConfig(), AugmentConfig()), numbers),
                way(OURS, lambda number: ours.target_batch(number, PARITY_VOXELS, None), numbers),
            ),
        ),
    ]


def measure(todo: Sequence[Job], repeats: int) -> list[Measured]:
    """Return what every way of every job costs; the ways of a job take turns, after one pass that does not count."""
    found = []
    for job in todo:
        costs: dict[str, list[tuple[float, float, float]]] = {way.name: [] for way in job.ways}
        for repeat in range(repeats + 1):
            for way in job.ways:
                before = spent()
                n_frames = way.one_pass()
                after = spent()
                if repeat:
                    cpu, wall, kilobytes = (1e-3 * (b - a) / n_frames for a, b in zip(before, after, strict=True))
                    costs[way.name].append((cpu, wall, kilobytes))
        for name, passes in costs.items():
            least, median = np.min(passes, axis=0), np.median(passes, axis=0)
            times = (least[0], median[0], least[1], median[1], least[2])
            found.append(Measured(job.name, name, *(round(float(value), 3) for value in times)))
    return found


def spent() -> tuple[float, float, float]:
    """Return microseconds of CPU time and of wall time, and bytes read, by this process so far."""
    read = next(line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar:"))
    return time.process_time() * 1e6, time.perf_counter() * 1e6, float(read.partition(":")[2])


def of_job(found: Sequence[Measured], job: str, way: str) -> Measured:
    """Return what was measured of one way to do a job."""
    return next(one for one in found if one.job == job and one.way == way)


def reached(found: Sequence[Measured]) -> Iterator[Goal]:
    """Yield the goals and whether they are met, by the least times."""
    for job in (LABELS, SAMPLE):
        usual, ours = of_job(found, job, USUAL), of_job(found, job, OURS)
        factor = usual.cpu_min_ms / ours.cpu_min_ms
        yield Goal(f"{job}: {factor:.1f} times less CPU time (goal {TIMES_FASTER:g})", factor >= TIMES_FASTER)
        share = ours.kilobytes / usual.kilobytes
        yield Goal(f"{job}: {share:.2f} of the bytes (goal {SHARE_OF_BYTES:g})", share <= SHARE_OF_BYTES)
    share = of_job(found, SWEEPS, DIGESTS).cpu_min_ms / of_job(found, SWEEPS, OURS).cpu_min_ms
    text = f"{SWEEPS}: {share:.1%} of the CPU time for digests of sweeps (goal {SHARE_OF_DIGESTS:.0%})"
    yield Goal(text, share <= SHARE_OF_DIGESTS)
    for job in (SAMPLE, TARGET):
        rate = 1000 / of_job(found, job, OURS_RANDOM).cpu_min_ms
        text = f"{job}, {OURS_RANDOM}: {rate:.0f} a second on one core (goal {SAMPLES_PER_SECOND:g})"
        yield Goal(text, rate >= SAMPLES_PER_SECOND)


def print_report(console: Console, report: Report, repeats: int) -> None:
    """Print a line per way, how much more CPU time the usual way takes and which share of its bytes ours; the goals."""
    table = Table(title=f"{report.source}: {report.n_frames} frames, {repeats} repeats; least / median, per frame")
    for heading in ("job", "way"):
        table.add_column(heading)
    for heading in ("CPU ms", "wall ms", "kB read", "CPU: this / ours", "kB: ours / this"):
        table.add_column(heading, justify="right")
    before = ""
    for one in report.measured:
        ours = of_job(report.measured, one.job, OURS)
        if before and one.job != before:
            table.add_section()
        table.add_row(
            one.job if one.job != before else "",
            one.way,
            f"{one.cpu_min_ms:.1f} / {one.cpu_median_ms:.1f}",
            f"{one.wall_min_ms:.1f} / {one.wall_median_ms:.1f}",
            f"{one.kilobytes:.0f}" if one.kilobytes > 1 else "-",
            "" if one is ours else f"{one.cpu_min_ms / ours.cpu_min_ms:.1f}",
            "" if one is ours or one.kilobytes < 1 else f"{ours.kilobytes / one.kilobytes:.2f}",
        )
        before = one.job
    console.print(table)
    sizes = ", ".join(f"{name} {size:.0f}" for name, size in report.kilobytes_in_store.items())
    console.print(f"kB a frame in the store: {sizes}", soft_wrap=True)
    print_goals(console, report.goals)


def print_goals(console: Console, goals: Iterable[Goal]) -> None:
    """Print which goals are met."""
    for goal in goals:
        console.print(f"{'[green]met   [/]' if goal.met else '[red]missed[/]'} {goal.text}", soft_wrap=True)


def reached_by_afi(report: afi.AfiReport) -> Iterator[Goal]:
    """Yield the goals of flat interaction and whether they are met; those on time are for the same formulas."""
    factor = report.times_faster("parity")
    text = f"flat interaction: {factor:.1f} times less CPU time for the same labels (goal {AFI_TIMES_FASTER:g})"
    yield Goal(text, factor >= AFI_TIMES_FASTER)
    factor = report.times_faster("default", afi.DENSE_TWICE)
    text = f"flat interaction, default: {factor:.1f} times less CPU time than dense at as many samples"
    text += f" (goal {AFI_TIMES_FASTER:g})"
    yield Goal(text, factor >= AFI_TIMES_FASTER)
    for way in ("parity", "default"):
        peak_mb = report.cost(way).peak_mb
        text = f"flat interaction, {way}: peak of {peak_mb:.0f} MB above imports (goal {AFI_PEAK_MB:g})"
        yield Goal(text, peak_mb < AFI_PEAK_MB)


def print_afi(console: Console, report: afi.AfiReport) -> None:
    """Print what flat interaction costs, a line per way, how far the ways agree, and the goals."""
    table = Table(title=f"flat interaction, {report.source}: {report.n_points:,} points; CPU time least / median")
    table.add_column("way")
    for heading in ("CPU ms", "CPU: dense / this", "peak MB above imports"):
        table.add_column(heading, justify="right")
    for cost in report.costs:
        times = f"{1000 * cost.cpu_min_s:.0f} / {1000 * cost.cpu_median_s:.0f}"
        table.add_row(cost.way, times, f"{report.times_faster(cost.way):.1f}", f"{cost.peak_mb:.0f}")
    console.print(table)
    golden = f", dense and the reference on {report.golden:.3%}" if report.golden is not None else ""
    console.print(f"dense and parity agree on {report.agreement:.3%} of the points{golden}", soft_wrap=True)
    print_goals(console, reached_by_afi(report))


def goal_of_encode(found: encode.Overhead) -> Goal:
    """Return the goal of stage encode and whether it is met; by CPU time, which other programs disturb least."""
    text = f"stage encode: {found.cpu:.3f} times the CPU time of its bare network (goal {ENCODE_TIMES:g})"
    return Goal(text, found.cpu <= ENCODE_TIMES)


def print_encode(console: Console, found: encode.Overhead) -> None:
    """Print what stage encode costs beside the network alone, and its goal."""
    console.print(
        f"stage encode, {encode.IMAGES} images of 1600 x 900 in batches of {encode.BATCH}, {encode.TOWER['model']} at "
        f"{encode.TOWER['short_side_px']} px: {found.stage_cpu_s:.1f} CPU s ({found.stage_wall_s:.1f} s); its network "
        f"alone, over tensors in memory: {found.bare_cpu_s:.1f} CPU s ({found.bare_wall_s:.1f} s; the stage "
        f"{found.wall:.2f} times)",
        soft_wrap=True,
    )
    print_goals(console, [goal_of_encode(found)])


def short_commit() -> str:
    """Return the first digits of the commit, with its mark where files were changed since."""
    commit = git_commit() or "unknown"
    return commit[:12] + "+" * commit.endswith("+")


def machine_facts() -> dict[str, str]:
    """Return what the numbers depend on; no names of hosts or people."""
    facts = {
        "CPU": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.1f}",
        "date": datetime.now(UTC).date().isoformat(),
        "commit": short_commit(),
        "Python": platform.python_version(),
    }
    return facts | {name: metadata.version(name) for name in PACKAGES}


def cpu_model() -> str:
    """Return the processor's own name for itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


if __name__ == "__main__":
    typer.run(main)
