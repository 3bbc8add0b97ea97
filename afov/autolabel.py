"""The whole job, from drives to label files: every step as a process of its own, what is done already left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from afov import watching
from afov.programs import ENVIRONMENT, words_for
from afov.watching import Fraction, clock, remaining, told
from manifests import rates
from manifests.config import ConfigError
from manifests.labels import followed, refine_split
from manifests.rates import Amount
from manifests.recipe import Recipe
from manifests.records.codec import as_record
from manifests.records.labels import LabelsRecord
from manifests.sections.training import Task
from manifests.splits import check_named
from manifests.stages import corrected_table
from manifests.storage.names import scene_of

LOOK_S = 5.0  # between two looks at how far a step has come, where somebody watches
LINE_S = 60.0  # between two lines, where nobody does
PATIENCE_S = 120.0  # how long a step may take to save what it has after it was asked to end

FILE = "autolabel.json"


@dataclass(frozen=True)
class Step:
    """A step: its name, the program's words, and what it prints (a part of a line) where there was nothing to do.

    `seconds` is how long it is expected to take, None where nobody has measured; `fraction` tells how far it has come.
    """

    name: str
    words: tuple[str, ...]
    nothing: str
    seconds: float | None
    fraction: Fraction = field(default=watching.unknown)


@dataclass(frozen=True)
class Ended:
    """How a step ended: its exit code, how long it took, and whether there was nothing to do."""

    name: str
    code: int
    seconds: float
    skipped: bool


def autolabel(recipe: Recipe, sets: Sequence[str], fresh: bool, console: Console) -> int:
    """Run all steps of a recipe, and return the exit code of the one that failed, or 0.

    Raises ConfigError for a recipe whose labels need a student that learns from true ones.
    """
    begun = time.monotonic()
    check_splits(recipe)
    steps = steps_of(recipe, sets, fresh)
    say(console, f"autolabel: {', '.join(step.name for step in steps)}; stop it at any time, and start it again")
    done: list[Ended] = []
    with shown(console) as progress:
        for number, step in enumerate(steps):
            done.append(run_step(step, number, steps, progress, begun))
            if done[-1].code:
                break
    write_times(recipe, done)
    last = done[-1]
    if last.code:
        say(
            console,
            f"autolabel: stopped at step {len(done)} of {len(steps)}, {last.name}, which ended with exit code "
            f"{last.code}; what is finished is kept, and the same command goes on from there",
        )
        return last.code
    for line in summary(recipe, done, time.monotonic() - begun):
        say(console, line)
    return 0


# -- what is to be done ------------------------------------------------------------------------------------------------


def trains(recipe: Recipe) -> bool:
    """Return whether the labels that a recipe asks for are a student's."""
    return recipe.labels.of == "predict" or (recipe.labels.of == "refine" and recipe.refine.of == "prediction")


def tables_for(recipe: Recipe) -> tuple[str, ...]:
    """Return the tables that the pipeline has to build: what training and the report read, and the labels asked for."""
    more = {"vote": ("vote",), "correct": (corrected_table(recipe).table, "correct")}.get(recipe.labels.of, ())
    if recipe.labels.of == "refine":
        more = (*more, *followed(recipe, recipe.refine.of, recipe.refine.by))
    if recipe.calibrate.by == "truth":
        more = (*more, "label")
    return tuple(dict.fromkeys(("points", "pairs", "target", *more)))


def steps_of(recipe: Recipe, sets: Sequence[str], fresh: bool) -> list[Step]:
    """Return the steps in their order, those left out that the recipe has no need of; raises ConfigError."""
    options = [word for one in sets for word in ("--set", one)]
    name = recipe.typed or recipe.name

    def step(title: str, program: str, words: Sequence[str], nothing: str, *rest: Any) -> Step:
        return Step(title, tuple(words_for(program, [*words, *options])), nothing, *rest)

    amount, pack_seconds, pack_fraction = look_at_tables(recipe)
    targets = ",".join(tables_for(recipe))
    steps = [
        step("pack", "pipeline", ["run", targets, name], "everything is built already", pack_seconds, pack_fraction)
    ]
    if trains(recipe):
        again = ["--fresh"] if fresh else []
        for task in students(recipe):
            seconds = rates.training_seconds(recipe, task, amount)
            fraction = watching.training_fraction(recipe, task, amount)
            steps.append(step(task, "trainer", [task, name, *again], "is finished (", seconds, fraction))
        fraction = watching.pinned_fraction(recipe, "predict", amount.of(recipe.predict.split))
        seconds = rates.predicting_seconds(recipe, amount)
        steps.append(step("predict", "trainer", ["predict", name], "predict: 0 shards computed", seconds, fraction))
    if recipe.labels.of == "refine":
        frames = amount.of(refine_split(recipe))
        fraction = watching.pinned_fraction(recipe, "refine", frames)
        seconds = rates.refining_seconds(recipe, frames)
        steps.append(step("refine", "trainer", ["refine", name], ": 0 shards computed", seconds, fraction))
    if recipe.calibrate.by:
        seconds = rates.calibrating_seconds(recipe, amount.frames)
        steps.append(step("calibrate", "trainer", ["calibrate", name], "it was there already", seconds))
    layouts = len(recipe.labels.formats)
    written_s = rates.STARTS_S + amount.frames * layouts * watching.WRITTEN_S
    steps.append(step("labels", "pipeline", ["labels", name], "all was there already", written_s))
    steps.append(step("report", "pipeline", ["report", name], "\n", watching.REPORT_S))
    return steps


def check_splits(recipe: Recipe) -> None:
    """Raise ConfigError for a split of a step that the data set has not: hours before the step would meet it."""
    splits = {task: getattr(recipe, task).split for task in (*students(recipe), "predict")} if trains(recipe) else {}
    if recipe.labels.of == "refine":
        splits["refine"] = refine_split(recipe)
    for section, split in splits.items():
        check_named(f"{section}.split", split, recipe.data.dataset)


def students(recipe: Recipe) -> list[Task]:
    """Return the trainings that predictions need; raises ConfigError for one that learns from true labels."""
    if not recipe.predict.checkpoint and recipe.predict.of != "distill":
        raise ConfigError(
            f'predict.of is "{recipe.predict.of}", a student of true labels, which autolabel does without; set '
            'predict.of = "distill", or name its file: predict.checkpoint'
        )
    return rates.students(recipe)


def look_at_tables(recipe: Recipe) -> tuple[Amount, float | None, Fraction]:
    """Return how many frames there are, how long the missing tables take (None: not measured), and their progress.

    Raises ConfigError for a data set that cannot be listed.
    """
    from pipeline.engine.cost import costs
    from pipeline.engine.runner import Runner

    runner = Runner(recipe)
    plans = runner.plan(tables_for(recipe))
    hours = {cost.stage: cost.hours for cost in costs(runner, plans) if cost.n_frames}
    missing = {}
    for plan in plans:
        frames = sum(shard.n_frames for shard in plan.shards if not shard.done)
        if frames:
            seconds = (hours.get(plan.stage.name) or 0.0) * 3600 / frames
            missing[plan.stage.name, plan.fingerprint] = frames, seconds or 0.05
    workers = recipe.run.workers if recipe.run.pool == "ray" else 1
    known = [value for value in hours.values() if value is not None]
    seconds_all = None if len(known) < len(hours) else rates.STARTS_S + sum(known) * 3600 / workers
    counts: dict[str, int] = {}
    for shard, frames_of_shard in runner.listing().items():
        counts[scene_of(shard)] = counts.get(scene_of(shard), 0) + len(frames_of_shard)
    return Amount.in_scenes(recipe, counts), seconds_all, watching.table_fraction(recipe, missing)


# -- running it --------------------------------------------------------------------------------------------------------


def run_step(step: Step, number: int, steps: Sequence[Step], progress: Progress, begun: float) -> Ended:
    """Run a step to its end, showing what it prints and how far the whole job is; Ctrl-C ends the step first."""
    started = time.monotonic()
    heard: list[str] = []
    process = subprocess.Popen(
        step.words,
        env={**os.environ, **ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        start_new_session=True,  # Ctrl-C comes to us alone, and we ask it to end, once
    )
    assert process.stdout and process.stderr
    readers = [
        threading.Thread(target=pass_on, args=(process.stdout, progress, heard), daemon=True),
        threading.Thread(target=pass_on, args=(process.stderr, progress, None), daemon=True),
    ]
    for reader in readers:
        reader.start()
    watched = progress.console.is_terminal
    bar = progress.add_task(f"{number + 1}/{len(steps)} {step.name}", total=1.0, left="")
    try:
        while True:
            try:
                code = process.wait(LOOK_S if watched else LINE_S)
                break
            except subprocess.TimeoutExpired:
                tell_progress(step, number, steps, progress, bar, started, begun)
    except BaseException:
        end(process)
        raise
    finally:
        for reader, stream in zip(readers, (process.stdout, process.stderr), strict=True):
            reader.join(10)
            if not reader.is_alive():  # else a process that the step left behind holds its end
                stream.close()
        progress.update(bar, completed=1.0, visible=False)
    skipped = not code and any(step.nothing in line for line in heard)
    return Ended(step.name, code, time.monotonic() - started, skipped)


def tell_progress(
    step: Step, number: int, steps: Sequence[Step], progress: Progress, bar: Any, started: float, begun: float
) -> None:
    """Move the bar, or print a line where nobody watches."""
    now, done = time.monotonic(), told(step.fraction)
    left = remaining((now - started, done, step.seconds), [one.seconds for one in steps[number + 1 :]])
    words = "time left not known yet" if left is None else f"about {clock(left)} left of all"
    if progress.console.is_terminal:
        progress.update(bar, completed=done or 0.0, left=words)
        return
    share = "" if done is None else f" {100 * done:.0f} %"
    line = f"autolabel: step {number + 1} of {len(steps)}, {step.name}{share}, {clock(now - begun)} so far, {words}"
    print(line, flush=True)


def pass_on(stream: IO[str], progress: Progress, heard: list[str] | None) -> None:
    """Print what a step prints: its output where ours goes, above the bar, and its errors where errors go."""
    for line in stream:
        text = line.rstrip("\n")
        if heard is not None:
            heard.append(text)
        if progress.console.is_terminal:
            progress.console.print(text, soft_wrap=True)
        else:
            print(text, file=sys.stderr if heard is None else sys.stdout, flush=True)


def end(process: subprocess.Popen[str]) -> None:
    """Ask a step to end, and wait until it has saved what it has; a second Ctrl-C, or much time, kills it."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(PATIENCE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


@contextmanager
def shown(console: Console) -> Any:
    """Yield a bar for the step at hand, which shows nothing where nobody watches."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}")
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield progress


def say(console: Console, text: str) -> None:
    """Print a line."""
    console.print(text, soft_wrap=True)


# -- what came of it ---------------------------------------------------------------------------------------------------


def write_times(recipe: Recipe, done: Sequence[Ended]) -> None:
    """Keep how long the steps took, beside the runs of the recipe."""
    folder = recipe.folder()
    folder.mkdir(parents=True, exist_ok=True)
    steps = {one.name: {"seconds": round(one.seconds, 1), "skipped": one.skipped, "code": one.code} for one in done}
    (folder / FILE).write_text(json.dumps({"steps": steps}, indent=1), encoding="utf-8")


def summary(recipe: Recipe, done: Sequence[Ended], seconds: float) -> list[str]:
    """Return what there is to say at the end: where everything lies, times, coverage, agreement, what to look at."""
    times = ", ".join(f"{one.name} {'was there' if one.skipped else clock(one.seconds)}" for one in done)
    labels = Path("labels") / recipe.run_name
    lines = ["", f"autolabel: done in {clock(seconds)}: {times}"]
    lines += [
        f"labels: {labels.absolute()}",
        f"report: {(Path('reports') / recipe.run_name / 'index.html').absolute()}",
    ]
    lines.append(f"tables: {recipe.run.store}; runs: {recipe.folder()}")
    record = as_record(LabelsRecord, json.loads((labels / "labels.json").read_bytes()))
    counts = record.counts
    lines.append(
        f"coverage: {counts.labelled_percent:.1f} % of {counts.points:,} points in {counts.frames} frames have a "
        f"label; {len(record.without_labels)} frames have none"
    )
    lines += agreement(counts.by_origin)
    doubtful = ", ".join(f"{one.frame_id} ({one.mean_confidence:.2f})" for one in record.look_first[:3])
    lines.append(f"look first at the frames whose labels are least sure: {doubtful}")
    return lines


def agreement(by_origin: Mapping[str, int]) -> list[str]:
    """Return what the origins of refined labels say of how far sources agree; nothing of other labels."""
    named = sum(count for name, count in by_origin.items() if name != "none")
    if not named:
        return []
    share = {name: 100 * count / named for name, count in by_origin.items()}
    own = "the student" if by_origin.get("student") else "cameras"
    kept = share.get("student", 0) + share.get("camera", 0)
    return [
        f"agreement: {kept:.1f} % of the labels are as {own} gave them; sweeps before and after named "
        f"{share.get('neighbour', 0):.1f} %, flat interaction {share.get('flat interaction', 0):.1f} %"
    ]
