"""The runs in a folder, a line each: what each was asked, how far it is, what it came to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from manifests.config import listing, nearest
from manifests.records.log import RunLog, run_log
from manifests.records.run import RunRecord
from manifests.storage import sealed
from trainer.errors import TrainerError
from trainer.records.record import FILE, read_record


@dataclass(frozen=True)
class RunLine:
    """One run; what is not known is empty."""

    run: str
    recipe: str = ""
    state: str = ""
    epochs: str = ""
    loss: str = ""
    miou: str = ""
    begun: str = ""
    commit: str = ""


def runs_in(folder: Path) -> list[RunLine]:
    """Return the runs below a folder of runs, by name and task; raises TrainerError where there is no such folder."""
    if not folder.is_dir():
        raise TrainerError(f"{folder} is no folder of runs; name one with --runs, as run.runs of the recipe does")
    return [line_of(path) for path in folders_in(folder)]


def folders_in(folder: Path) -> list[Path]:
    """Return the folders of runs below a folder of runs, in order."""
    return [path.parent for path in sorted(folder.glob("*/*/log.jsonl"))]


def name_of(folder: Path) -> str:
    """Return what a run is called, NAME/TASK."""
    return f"{folder.parent.name}/{folder.name}"


def line_of(folder: Path) -> RunLine:
    """Return the line of the run in a folder: from its log, and from its record where it has come to one."""
    name = name_of(folder)
    try:
        log = run_log(sealed.read_lines((folder / "log.jsonl").read_bytes()).documents)
        record = read_record(folder) if (folder / FILE).is_file() else None
    except (OSError, TrainerError) as error:
        return RunLine(name, state=f"cannot be read: {error}")
    if not log.starts:
        return RunLine(name, state="its log holds no start")
    start, done = log.starts[-1], len(log.epochs)
    return RunLine(
        run=name,
        recipe=start.recipe,
        state=record.state if record else "not finished",
        epochs=f"{done} of {start.epochs}",
        loss=loss_of(log),
        miou=", ".join(scores_of(record)) if record else "",
        begun=log.starts[0].time[:16].replace("T", " "),
        commit=(start.commit or "")[:8],
    )


def loss_of(log: RunLog) -> str:
    """Return the loss of the last epoch, or of the last step before there is one."""
    for lines in (log.epochs, log.steps):
        if lines and "total" in lines[-1].values:
            return f"{lines[-1].values['total']:.4f}"
    return ""


def scores_of(record: RunRecord) -> Iterator[str]:
    """Yield mIoU in % of all points, for every way in which the run's predictions were scored."""
    for one in record.evaluations.values():
        mean = one.scores["all"].mean_iou if "all" in one.scores else None
        if mean is not None and one.of == "prediction":
            yield f"{100 * mean:.2f}" + (f" ({one.refinement})" if one.refine else "")


def folder_of(named: Path, runs: Path) -> Path:
    """Return the folder or record of a run that is named by its path, or as NAME/TASK below the folder of runs.

    A name alone is enough where it has one run. Raises TrainerError where it has several, or none.
    """
    found = named if named.exists() or not (runs / named).exists() else runs / named
    inside = [] if (found / FILE).is_file() else sorted(path.parent for path in found.glob("*/log.jsonl"))
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise TrainerError(f"{named} has {len(inside)} runs; name one of them: {listing([*map(name_of, inside)])}")
    if not found.exists():
        close = nearest(str(named), [name_of(path) for path in folders_in(runs)])
        raise TrainerError(f"there is no run {named}{close}; `runs` lists those in {runs}")
    return found
