"""`make ladder`: what every part of the method adds, measured on the synthetic city with a simulated teacher.

`--bed kitti-real` measures it on real frames with a real teacher (bench/ladder_real.toml, docs/ladder_real.json).
bench/ladder.toml holds the rungs; a preset (a recipe) is the city, the teacher and the network they all share. Every
rung is trained with every seed, by commands of pipeline and trainer in processes of their own, one thread each. Kill it
at any time and start it again: what is finished is kept, and a rung whose recipe, tables and start are as they were is
not run again. docs/ladder.json gets every number, docs/ladder.png and docs/results.md show them.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.ladder_plan import BEDS, PLAIN, TABLES, Plan, Step, chosen, read_rungs, steps_of, write_text
from bench.ladder_results import TRUST, write_documents
from bench.real_results import write_real_documents
from manifests.asked import tables_of
from manifests.config import ConfigError, listing, parse_section
from manifests.fingerprint import digest
from manifests.recipe import load_recipe
from manifests.sections.data import RunConfig
from manifests.storage.errors import StoreError
from manifests.storage.store import Store

ROOT = Path(__file__).resolve().parent.parent
Launch = Callable[[Sequence[str], Path], tuple[int, float]]
"""Runs `python -m` with arguments, adds what it prints to a log, and returns exit status and CPU seconds."""


class StepFailed(RuntimeError):
    """A step that ended with an error; the sentence says where its log is."""


def main(
    bed: Annotated[str, typer.Option(help="What it is measured on: city, or kitti-real (53 real frames).")] = "city",
    preset: Annotated[
        str, typer.Option(help="The recipe that all rungs build on; of the city san_like, of real frames kitti_real.")
    ] = "",
    only: Annotated[str, typer.Option(metavar="RUNG,...", help="Some rungs, and what they need.")] = "",
    seeds: Annotated[str, typer.Option(metavar="SEED,...", help="Every training is done with each of them.")] = "0,1,2",
    jobs: Annotated[int, typer.Option(min=1, help="Trainings at once, each on one thread.")] = 2,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="A setting of all rungs: a bigger network, run.device."
        ),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Show the rungs and how far they are; run nothing.")] = False,
    write: Annotated[bool, typer.Option("--write", help="Only write the documents from what is done.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Go through rungs that are done, too.")] = False,
    runs: Annotated[Path, typer.Option(help="Folder of runs, logs and recipes; each preset has its own in it.")] = Path(
        "runs/ladder"
    ),
    docs: Annotated[Path, typer.Option(help="Folder of ladder.json, ladder.png and results.md.")] = ROOT / "docs",
) -> None:
    """Measure the ladder of quality. Exit status: 0 all done, 1 a rung failed, 2 something asked for is not right."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        if bed not in BEDS:
            raise ConfigError(f"--bed {bed}: there are {listing(tuple(BEDS))}")
        path, usual = BEDS[bed]
        preset, rungs = preset or usual, read_rungs(path)
        wanted, asked = chosen(rungs, filter(None, only.split(","))), read_seeds(seeds)
        plan = Plan(preset, runs / Path(preset).stem, rungs, tuple(set_ or ()), bed)
        ladder = Ladder.prepare(plan, asked, console)
        todo = [name for name, step in ladder.steps.items() if step.rung.name in wanted and step.seed in {None, *asked}]
        if list_:
            for step in map(ladder.steps.__getitem__, todo):
                console.print(f"{ladder.state(step):<12} {step.name:<26} {step.rung.title}")
            return
        failed = {}
        if not write:
            with locked(plan.folder):
                failed = ladder.climb(todo, jobs, again)
        written = write_documents if bed == "city" else write_real_documents
        for path in written(docs, Path(preset).stem, plan.overrides, rungs, ladder.done_records()):
            console.print(f"written: {path}")
    except (ConfigError, StoreError) as error:
        stop(error, 2)
    except OSError as error:
        stop(error, 1)
    except KeyboardInterrupt:
        stop("interrupted; what is finished is kept, and the same command goes on from there", 130)
    for sentence in failed.values():
        console.print(f"not done: {sentence}")
    if failed:
        raise typer.Exit(1)


def stop(reason: object, status: int) -> None:
    """Print why the program ends, and end it."""
    print(f"ladder: {reason}", file=sys.stderr)
    raise typer.Exit(status) from None


def interrupt(*_: object) -> None:
    """Treat SIGTERM as Ctrl-C."""
    raise KeyboardInterrupt


def read_seeds(text: str) -> list[int]:
    """Return the numbers in `0,1,2`; raises ConfigError for anything else."""
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds {text}: expected different numbers, 0 or more, such as 0,1,2")
    return seeds


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a ladder's folder; raises ConfigError if another ladder, or a process it left, holds it.

    Processes started here inherit it, so that a ladder started after a kill -9 does not meet them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another ladder works in {folder}; wait for it, stop it, or give another folder: --runs"
            ) from None
        os.set_inheritable(lock.fileno(), True)
        yield


@dataclass
class Processes:
    """Starts `python -m ...` with one thread, and stops what is running when the ladder is stopped."""

    running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False

    def __call__(self, arguments: Sequence[str], log: Path) -> tuple[int, float]:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with log.open("ab") as output:
            output.write(f"\n$ python -m {' '.join(arguments)}\n".encode())
            output.flush()
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                close_fds=False,
                start_new_session=True,  # Ctrl-C reaches the ladder alone, which passes it on once
            )
        self.running.add(process)
        if self.stopped:
            process.terminate()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.running.discard(process)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def stop(self) -> None:
        self.stopped = True
        for process in list(self.running):
            process.terminate()


@dataclass
class Ladder:
    """The steps of a plan, their recipes, and what is known to be done."""

    plan: Plan
    steps: Mapping[str, Step]
    sections: Mapping[str, Mapping[str, Mapping[str, Any]]]
    store: Store
    console: Console
    launch: Launch = field(default_factory=Processes)

    @classmethod
    def prepare(cls, plan: Plan, seeds: Sequence[int], console: Console) -> Ladder:
        """Return the ladder of these seeds and of those that have been run before.

        Raises ConfigError where preset or overrides are not right.
        """
        before = (path.stem.rpartition("_s")[2] for path in (plan.folder / "records").glob("*_s*.json"))
        steps = steps_of(
            plan.rungs, list(dict.fromkeys([*seeds, *sorted(int(seed) for seed in before if seed.isdigit())]))
        )
        sections = {name: plan.sections(step) for name, step in steps.items()}
        run = parse_section("run", next(iter(sections.values())).get("run", {}), RunConfig)
        return cls(plan, steps, sections, Store.open(run.store), console)

    # -- what is done --------------------------------------------------------------------------------------------------

    def record_path(self, step: Step) -> Path:
        return self.plan.folder / "records" / f"{step.name}.json"

    def record(self, step: Step) -> dict[str, Any]:
        """Return what an earlier run of a step left; empty if there was none."""
        try:
            found = json.loads(self.record_path(step).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def inputs(self, step: Step) -> dict[str, Any]:
        """Return what a step is made from besides its settings: fingerprints of tables, and digests of weights."""
        found: dict[str, Any] = {"tables": {}, "weights": {}}
        try:
            wanted = load_recipe(self.plan.recipe_path(self.plan.labels(step)))
            tables = tables_of(self.store, wanted, TABLES[step.rung.task]).tables
        except (ConfigError, StoreError):
            tables = {}
        found["tables"] = {
            stage: f"{tables[stage].fingerprint}:{digest([shard.key for shard in tables[stage].shards])}"
            for stage in TABLES[step.rung.task]
            if stage in tables
        }
        for rung in filter(None, [step.rung.after if step.rung.seeded else ""]):
            needed = self.plan.needed(step, rung)
            found["weights"][rung] = weights_of(self.plan.run_folder(needed) / needed.rung.task)
        return found

    def is_done(self, step: Step) -> bool:
        """Return whether a step's scores are those of its recipe, its tables and its start as they are now."""
        record = self.record(step)
        return (
            record.get("done") is True
            and record["whole"] == self.plan.whole(step, self.sections[step.name])
            and record["inputs"] == self.inputs(step)
        )

    def state(self, step: Step) -> str:
        """Return in words how far a step is."""
        if self.is_done(step):
            return "done"
        record = self.record(step)
        return "to do" if not record else "out of date" if record.get("done") else "begun"

    def done_records(self) -> dict[str, dict[str, Any]]:
        """Return the records of the steps that are done, by name."""
        return {name: self.record(step) for name, step in self.steps.items() if self.is_done(step)}

    # -- doing it ------------------------------------------------------------------------------------------------------

    def climb(self, names: Sequence[str], jobs: int, again: bool = False) -> dict[str, str]:
        """Run what is not done of some steps, `jobs` at once, in their order as far as what they need allows.

        Returns a sentence for each step that is not done at the end. Raises KeyboardInterrupt after the processes have
        been told to stop and have ended.
        """
        steps = [self.steps[name] for name in names]
        needs = {step.name: {self.plan.needed(step, need).name for need in step.rung.needs} for step in steps}
        sorter = TopologicalSorter(needs)
        sorter.prepare()
        ready: list[int] = []
        failed: dict[str, str] = {}
        running: dict[Future[str], str] = {}
        done: set[str] = set()
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while sorter.is_active():
                    for name in sorter.get_ready():
                        heapq.heappush(ready, names.index(name))
                    if ready and len(running) < jobs:
                        name = names[heapq.heappop(ready)]
                        missing = sorted(needs[name] & failed.keys())
                        if missing:
                            failed[name] = f"{name}: needs {', '.join(missing)}"
                            sorter.done(name)
                        elif self.is_done(self.steps[name]) and not again:
                            done.add(name)
                            sorter.done(name)
                        else:
                            self.console.print(f"{now()} {name}: started ({len(done)} of {len(names)} done)")
                            running[pool.submit(self.do, self.steps[name])] = name
                        continue  # what needs a step that is done may start beside one that runs
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        name = running.pop(future)
                        sorter.done(name)
                        error = future.exception()
                        if error is None:
                            done.add(name)
                            left = self.time_left(done, set(names) - done - failed.keys(), jobs)
                            self.console.print(f"{now()} {name}: {future.result()}; {left}")
                        elif isinstance(error, StepFailed | OSError | StoreError):
                            failed[name] = f"{name}: {error}"
                            self.console.print(f"{now()} {failed[name]}")
                        else:
                            raise error
            except BaseException:
                if isinstance(self.launch, Processes):
                    self.launch.stop()
                raise
        return failed

    def do(self, step: Step) -> str:
        """Make a step and score it; return its scores in words. Raises StepFailed where a command fails."""
        plan, sections, path = self.plan, self.sections[step.name], self.record_path(step)
        plan.write_recipe(step)
        log = plan.folder / "logs" / f"{step.name}.log"
        for folder in (path.parent, log.parent):
            folder.mkdir(parents=True, exist_ok=True)
        before, learnt = self.record(step), plan.learnt(step, sections)
        inputs = self.inputs(step) if step.rung.seeded else None
        same = before.get("learnt") == learnt and before.get("inputs") == inputs
        record: dict[str, Any] = {
            "rung": step.rung.name,
            "seed": step.seed,
            "done": False,
            "learnt": learnt,
            "whole": plan.whole(step, sections),
            "inputs": inputs,
            "wall_s": before.get("wall_s", 0.0) if same else 0.0,
            "cpu_s": before.get("cpu_s", 0.0) if same else 0.0,
        }
        for arguments in plan.commands(step, fresh=bool(before) and not same):
            write_text(path, json.dumps(record, indent=1) + "\n")
            started = time.monotonic()
            status, cpu_s = self.launch(arguments, log)
            record["wall_s"] += round(time.monotonic() - started, 1)
            record["cpu_s"] = round(record["cpu_s"] + cpu_s, 1)
            if status:
                write_text(path, json.dumps(record, indent=1) + "\n")
                raise StepFailed(f"`python -m {' '.join(arguments)}` ended with {status}: {last_line(log)}; log: {log}")
        record |= {"done": True, "inputs": self.inputs(step), "scores": self.scores(step), **facts()}
        record |= {"recipe": plan.recipe_path(step).read_text(encoding="utf-8"), "training": training(plan, step)}
        if plan.bed == "kitti-real" and not step.rung.seeded:
            record["labels"] = json.loads(plan.labels_file(step).read_text(encoding="utf-8"))
        write_text(path, json.dumps(record, indent=1) + "\n")
        scores = [f"{100 * score['all']['mean_iou']:.2f} ({refine})" for refine, score in record["scores"].items()]
        return f"{', '.join(scores) or 'done'} in {record['wall_s']:.0f} s, {record['cpu_s']:.0f} CPU s"

    def scores(self, step: Step) -> dict[str, Any]:
        """Return the scores of each line of a step, by how it was refined: mIoU, IoU by class, worth of confidence."""
        found = {}
        for refine, path in self.plan.score_files(step).items():
            document = json.loads(path.read_text(encoding="utf-8"))
            scores = document["scores_before" if refine == PLAIN and "scores_before" in document else "scores"]
            found[refine] = {
                part: {
                    "mean_iou": score["mean_iou"],
                    "iou": dict(zip(document["classes"], score["iou"], strict=True)),
                    **{name: score[name] for name in TRUST if score.get(name) is not None},
                }
                for part, score in scores.items()
            }
        return found

    def time_left(self, done: set[str], waiting: set[str], jobs: int) -> str:
        """Return in words how long the rest takes, if it takes as long as what is done of the same task did."""
        walls: dict[str, list[float]] = {}
        for name in done:
            walls.setdefault(self.steps[name].rung.task, []).append(self.record(self.steps[name])["wall_s"])
        usual = [value for some in walls.values() for value in some]
        seconds = sum(mean(walls.get(self.steps[name].rung.task, usual)) for name in waiting) / jobs
        return f"about {seconds / 60:.0f} min left" if waiting else "nothing left"


def weights_of(folder: Path) -> str | None:
    """Return the digest of the weights of a finished run, as its report gives it."""
    try:
        result = json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]
        return str(result["weights"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def training(plan: Plan, step: Step) -> dict[str, Any] | None:
    """Return seconds and frames of a step's training, by its own log, interruptions left out; None without one."""
    path = plan.run_folder(step) / step.rung.task / "run.json"
    if not path.is_file():
        return None
    document = json.loads(path.read_text(encoding="utf-8"))
    seconds = sum(epoch["seconds"] for epoch in document["curves"])
    return {
        "seconds": round(seconds, 1),
        "epochs": document["epochs"],
        "frames": document["frames"]["number"],
        "weights": document["result"]["weights"],
        "commit": document["commit"],
        "device": document["device"],
        "processor": document["hardware"]["processor"],
        "threads": document["hardware"]["threads"],
    }


def facts() -> dict[str, str]:
    """Return commit and date of a score."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    commit = (found.stdout.strip() or "unknown")[:12] + (" with changes" if changed.stdout.strip() else "")
    return {"commit": commit, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it printed nothing")


def now() -> str:
    return datetime.now().strftime("%H:%M:%S")


if __name__ == "__main__":
    typer.run(main)
