"""What a run tells while it goes: the log that it keeps, and a bar for who watches."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from manifests.fingerprint import Settings
from manifests.pulse import Bar
from manifests.records.codec import as_document
from manifests.records.run import NumbersLine, StartLine
from manifests.sections.data import Tracker as TrackerName
from manifests.storage import sealed
from trainer.errors import TrainerError
from trainer.loop.tracking import Tracking


def progress_bar(console: Console, wanted: bool) -> Bar:
    """Return a bar with the time left, or one that shows nothing where nobody watches."""
    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not (wanted and console.is_terminal),
        transient=True,
    )


class Log:
    """The log of a run: one JSON object a line in `log.jsonl`, sealed, and the same numbers for TensorBoard."""

    def __init__(
        self,
        folder: Path | None,
        step: int,
        epoch: int = 0,
        tell: Callable[[str], None] = lambda sentence: None,
        track: TrackerName = "",
    ) -> None:
        """`step` and `epoch` are what has been done: what an earlier run logged beyond it was lost, and is done again.

        Without a folder, nothing is written. `track` names a tracker to tell too. `tell` is told what was wrong with
        the log that is there.
        """
        self._folder, self._step, self._epoch, self._tell = folder, step, epoch, tell
        self._tracking = None if folder is None else Tracking(track, folder, tell)

    def __enter__(self) -> Log:
        if self._folder is None:
            return self
        # takes two seconds to import
        from torch.utils.tensorboard import SummaryWriter

        path = self._folder / "log.jsonl"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._chain = go_on(path, self._step, self._epoch, self._tell)
            self._file = path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._step + 1)
        except OSError as error:
            raise unwritable(path, error) from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            if self._tracking is not None:
                self._tracking.end()
            self._board.close()
            self._file.close()

    def write(self, line: StartLine | NumbersLine) -> None:
        """Add a line; raises TrainerError where it cannot be written."""
        if self._folder is None:
            return
        text, self._chain = sealed.chained(as_document(line), self._chain)
        try:
            self._file.write(text + "\n")
            self._file.flush()
        except OSError as error:
            raise unwritable(self._folder / "log.jsonl", error) from None
        if self._tracking is not None and isinstance(line, StartLine):
            self._tracking.start(line)
        elif self._tracking is not None and isinstance(line, NumbersLine):
            self._tracking.numbers(line)

    def numbers(self, line: NumbersLine) -> None:
        """Add a line of numbers, and a point to a curve of each; raises like `write`."""
        if self._folder is None:
            return
        self.write(line)
        try:
            for name, value in line.curves().items():
                self._board.add_scalar(f"{line.event}/{name}", value, line.step)
        except OSError as error:
            raise unwritable(self._folder / "tensorboard", error) from None


def now() -> str:
    """Return the time of day as logs have it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def go_on(path: Path, step: int, epoch: int, tell: Callable[[str], None]) -> str:
    """Cut a log down to what the state to go on from has seen, and return the chain after its last line.

    Starts stay: each of them happened. A log with lines that are not what was written is kept beside, as
    `log.jsonl.damaged`, and those that are go on.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return sealed.NO_CHAIN
    found = sealed.read_lines(data)
    if found.half:
        tell(f"{path}: {found.damage}; that line is left out")
    elif found.damage:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        tell(f"{path} was damaged ({found.damage}); it is kept as {aside.name}, and what can be read of it goes on")
    kept = [line for line in found.documents if is_done(line, step, epoch)]
    if not found.damage and len(kept) == len(found.documents):
        return found.chain
    chain, lines = sealed.NO_CHAIN, []
    for line in kept:
        text, chain = sealed.chained(line, chain)
        lines.append(f"{text}\n")
    sealed.write_whole(path, "".join(lines).encode())
    return chain


def is_done(line: Settings, step: int, epoch: int) -> bool:
    """Return whether a line is a start, or of what had been done after this step and this epoch."""
    if line.get("event") not in ("step", "epoch"):
        return True
    of_step, of_epoch = line.get("step"), line.get("epoch")
    if not isinstance(of_step, int) or not isinstance(of_epoch, int):
        return False
    return of_step <= step and (line["event"] == "step" or of_epoch <= epoch)


def unwritable(path: Path, error: OSError) -> TrainerError:
    """Return the error for a log that cannot be written."""
    return TrainerError(
        f"{path} cannot be written: {error.strerror or error}. What is saved is kept; free space or mend the folder, "
        f"and run the same command again"
    )
