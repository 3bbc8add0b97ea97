"""What a run would cost: hours of one worker and GB, as earlier runs in the store took, else as once measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from manifests import rates
from manifests.labels import refine_split
from manifests.records.table import Built, Work
from manifests.storage.manifest import Manifest
from manifests.storage.names import scene_of
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import StagePlan

MEASURED_S = {
    "index": 0.045,
    "points": 0.0081,
    "project": 0.0104,
    "segment": 0.0626,
    "group": 0.0130,
    "motion": 0.17,
    "belief": 0.22,
    "vote": 0.22,
    "correct": 0.361,
    "pairs": 0.0106,
    "target": 0.0078,
    "label": 0.0054,
}
"""CPU seconds a frame of six 1600 x 900 images and 34,700 points: from files to committed shards, without start-up.

Measured on 2026-11-25 on one core of an AMD EPYC (Zen 4) that was busy beside it: the golden frames, least of 4 turns.
`segment` is that of teacher `artifacts`, which reads finished masks; networks are in no line.
`vote` was measured on 2026-11-26 with all 17 sweeps of its window, which golden frames do not have: the arithmetic; so
was `motion`, on 2026-12-01.
"""
MEASURED_BY = "docs/cluster.md: one core, files in memory"


@dataclass(frozen=True)
class Cost:
    """What is missing of one stage: `hours` of one worker (None where nothing like it was measured) and GB.

    `source` says where the hours come from.
    """

    stage: str
    n_frames: int
    hours: float | None
    gigabytes: float
    source: str


def costs(runner: Runner, plans: Sequence[StagePlan]) -> Iterator[Cost]:
    """Yield the cost of every stage of a plan for all its frames that are not built.

    A run in this store counts before the measurement: with the same settings if there is one, else the newest that
    ran the stage. Its time is what the workers spent on shards, loading of networks included.
    """
    for plan in plans:
        n_frames = sum(shard.n_frames for shard in plan.shards if not shard.done)
        found = sorted(
            runner.store.manifests(plan.stage.name), key=lambda manifest: manifest.fingerprint == plan.fingerprint
        )
        seconds, source = None, "not measured: run some scenes first (data.split), or see docs/teachers.md"
        if plan.stage.name in MEASURED_S and not (plan.stage.name == "segment" and uses_network(runner)):
            seconds, source = MEASURED_S[plan.stage.name], MEASURED_BY
        if plan.stage.name == "encode" and (per_s := rates.encoded_per_s(runner.recipe)):
            seconds, source = images_per_frame(runner) / per_s, f"{rates.TOLD_BY}: on one H100, 14 threads decoding"
        if plan.stage.build:
            seconds, source = 0.0, "once for all frames"
        for manifest in reversed(found):
            how = manifest.how(Built)
            if how.work and (measured := how.work.seconds_per_frame) is not None:
                seconds, source = measured, told(how.work, how, manifest.fingerprint == plan.fingerprint)
                break
        hours = None if seconds is None else n_frames * seconds / 3600
        yield Cost(plan.stage.name, n_frames, hours, n_frames * kilobytes(plan, found) / 1e6, source)


def images_per_frame(runner: Runner) -> float:
    """Return how many images a frame has: the mean of the first frames of all shards."""
    counts = [len(frames[0].cameras) for frames in runner.listing().values() if len(frames)]
    return sum(counts) / max(len(counts), 1)


def learning_costs(runner: Runner) -> Iterator[Cost]:
    """Yield what comes after the tables as far as the recipe needs it, from the start: trainings, labels, refinement.

    Hours are those of the one machine of a table of the documentation, which `source` names.
    """
    recipe = runner.recipe
    counts: Counter[str] = Counter()
    for shard, frames in runner.listing().items():
        counts[scene_of(shard)] += len(frames)
    amount = rates.Amount.in_scenes(recipe, counts)
    machine = {"gpu": "on one H100", "cpu": "on one core"}[rates.device_of(recipe)]
    by_network = f"{rates.TOLD_BY}: {machine}"
    for task in rates.students(recipe):
        settings = recipe.settings(task)
        hours = rates.training_seconds(recipe, task, amount) / 3600
        yield Cost(task, amount.of(settings.split), hours, 0.0, f"{by_network}, {settings.epochs} epochs")
    if recipe.predict.checkpoint or recipe.predict.of == "distill":
        n_frames, hours = amount.of(recipe.predict.split), rates.predicting_seconds(recipe, amount) / 3600
        yield Cost("predict", n_frames, hours, 0.0, f"{by_network}, a third of what learning takes")
    n_frames = amount.of(refine_split(recipe))
    hours = rates.refining_seconds(recipe, n_frames) / 3600
    yield Cost("refine", n_frames, hours, 0.0, f"{rates.TOLD_BY}: a core for each process that [run] asks for")


def uses_network(runner: Runner) -> bool:
    """Whether the recipe's teacher computes segments, instead of reading them."""
    return not runner.recipe.teacher.ready_made


def told(work: Work, how: Built, same: bool) -> str:
    """Return in words where a measured rate comes from."""
    devices, day = ", ".join(how.devices) or "cpu", (how.finished or "?")[:10]
    return f"{work.frames} frames of this store on {devices}, {day}{'' if same else ', other settings'}"


def kilobytes(plan: StagePlan, found: Sequence[Manifest]) -> float:
    """Return the size of a row: as it came out with the same settings, else the stage's estimate."""
    for manifest in found:
        rows = sum(shard.rows for shard in manifest.shards)
        if manifest.fingerprint == plan.fingerprint and rows:
            return sum(shard.bytes for shard in manifest.shards) / rows / 1e3
    return plan.kilobytes_per_frame
