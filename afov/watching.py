"""How far a step has come, told from what it writes while another process runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from manifests.asked import pin
from manifests.labels import refine_pin
from manifests.rates import Amount
from manifests.recipe import Recipe
from manifests.records.codec import Unfit
from manifests.records.log import run_log
from manifests.sections.training import SgdConfig, Task
from manifests.storage import sealed
from manifests.storage.errors import StoreError
from manifests.storage.store import Store

WRITTEN_S = 0.02  # a frame and layout: files of a megabyte
REPORT_S = 30.0

Fraction = Callable[[], float | None]
"""Returns how much of a step is done, 0..1; None where that cannot be told."""


def unknown() -> float | None:
    """Return that nothing can be told."""
    return None


def table_fraction(recipe: Recipe, missing: Mapping[tuple[str, str], tuple[int, float]]) -> Fraction:
    """Return the progress of tables, of which so many frames are missing at so many seconds each, by their folder."""
    whole = sum(frames * seconds for frames, seconds in missing.values())
    store = Store.open(recipe.run.store)
    before = {place: committed_frames(store, *place) for place in missing}

    def fraction() -> float | None:
        done = 0.0
        for place, (frames, seconds) in missing.items():
            done += min(max(committed_frames(store, *place) - before[place], 0), frames) * seconds
        return done / whole if whole else None

    return fraction


def training_fraction(recipe: Recipe, task: Task, amount: Amount) -> Fraction:
    """Return the progress of a training, by the log that it keeps."""
    settings: SgdConfig = recipe.settings(task)
    frames = amount.of(settings.split)
    per_epoch = max((math.floor if settings.drop_last else math.ceil)(frames / settings.batch_size), 1)
    path = recipe.folder() / task / "log.jsonl"

    def fraction() -> float | None:
        try:
            log = run_log(sealed.read_lines(path.read_bytes()).documents)
        except (OSError, ValueError, Unfit):
            return None
        lines = (*log.steps, *log.epochs)
        return min(max(line.step for line in lines) / (per_epoch * settings.epochs), 1.0) if lines else None

    return fraction


def pinned_fraction(recipe: Recipe, stage: str, frames: int) -> Fraction:
    """Return the progress of a table of the trainer, `predict` or `refine`, of so many frames."""
    name = pin(recipe, stage) if stage == "predict" else refine_pin(recipe, recipe.refine.of, recipe.refine.by)
    store = Store.open(recipe.run.store)

    def fraction() -> float | None:
        ref = store.read_ref(name)
        building = [one for one in (ref.building if ref else ()) if one.stage == stage]
        if not building or not frames:
            return None
        return min(committed_frames(store, stage, building[-1].fingerprint) / frames, 1.0)

    return fraction


def committed_frames(store: Store, stage: str, fingerprint: str) -> int:
    """Return how many frames of a table are committed."""
    return sum(shard.rows for shard in store.shards(stage, fingerprint).values())


def told(fraction: Fraction) -> float | None:
    """Return how much is done; None too where the store is just being written, or cannot be reached."""
    try:
        return fraction()
    except (StoreError, OSError):
        return None


def clock(seconds: float) -> str:
    """Return a time for people: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def remaining(current: tuple[float, float | None, float | None], later: Sequence[float | None]) -> float | None:
    """Return how long a job still takes, in seconds; None where a part of it was never measured.

    `current` is the step at hand: seconds it has run, how much of it is done (None: unknown), how long it was expected
    to take. From 5 % on its own pace counts, and not what was expected.
    """
    elapsed, fraction, expected = current
    if fraction is not None and fraction >= 0.05:
        rest: float | None = elapsed * (1 - fraction) / fraction
    else:
        rest = None if expected is None else max(expected - elapsed, 0.0)
    parts = [rest, *later]
    return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)
