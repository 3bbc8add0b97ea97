"""What a run would cost: hours of one worker and GB, as earlier runs in the store took, else as once measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from manifests.records.table import Built, Work
from manifests.storage.manifest import Manifest
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import StagePlan

MEASURED_S = {
    "index": 0.045,
    "points": 0.0081,
    "project": 0.0104,
    "segment": 0.0626,
    "group": 0.0130,
    "vote": 0.22,
    "correct": 0.361,
    "pairs": 0.0106,
    "target": 0.0078,
    "label": 0.0054,
}
"""CPU seconds a frame of six 1600 x 900 images and 34,700 points: from files to committed shards, without start-up.

Measured on 2026-11-25 on one core of an AMD EPYC (Zen 4) that was busy beside it: the golden frames, least of 4 turns.
`segment` is that of teacher `artifacts`, which reads finished masks; networks are in no line.
`vote` was measured on 2026-11-26 with all 17 sweeps of its window, which golden frames do not have: the arithmetic.
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
        if plan.stage.build:
            seconds, source = 0.0, "once for all frames"
        for manifest in reversed(found):
            how = manifest.how(Built)
            if how.work and (measured := how.work.seconds_per_frame) is not None:
                seconds, source = measured, told(how.work, how, manifest.fingerprint == plan.fingerprint)
                break
        hours = None if seconds is None else n_frames * seconds / 3600
        yield Cost(plan.stage.name, n_frames, hours, n_frames * kilobytes(plan, found) / 1e6, source)


def uses_network(runner: Runner) -> bool:
    """Whether the recipe's teacher computes segments, instead of reading them."""
    return not runner.recipe.teacher.ready_made


def told(work: Work, how: Built, same: bool) -> str:
    """Return in words where a measured rate comes from."""
    devices = ", ".join(how.devices) or "cpu"
    return f"{work.frames} frames of this store on {devices}, {how.finished[:10]}{'' if same else ', other settings'}"


def kilobytes(plan: StagePlan, found: Sequence[Manifest]) -> float:
    """Return the size of a row: as it came out with the same settings, else the stage's estimate."""
    for manifest in found:
        rows = sum(shard.rows for shard in manifest.shards)
        if manifest.fingerprint == plan.fingerprint and rows:
            return sum(shard.bytes for shard in manifest.shards) / rows / 1e3
    return plan.kilobytes_per_frame
