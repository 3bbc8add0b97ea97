"""What a run tells while it goes: the log that it keeps, and a bar for who watches."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


def progress_bar(console: Console, wanted: bool) -> Progress:
    """Return a bar with the time left, or one that shows nothing where nobody watches."""
    return Progress(
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
    """The log of a run: one JSON object a line in `log.jsonl`, and the same numbers for TensorBoard."""

    def __init__(self, folder: Path | None, step: int) -> None:
        """`step` is the number of steps done; what TensorBoard holds beyond it was lost. Without a folder, nothing is
        written."""
        self._folder, self._step = folder, step

    def __enter__(self) -> Log:
        if self._folder is None:
            return self
        # takes two seconds to import
        from torch.utils.tensorboard import SummaryWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "log.jsonl"
        cut_off = path.is_file() and path.read_bytes()[-1:] not in (b"", b"\n")
        self._file = path.open("a", encoding="utf-8")
        if cut_off:  # by a kill in the middle of a line, which must not swallow the next one
            self._file.write("\n")
        self._board = SummaryWriter(str(self._folder / "tensorboard"), purge_step=self._step + 1)
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._board.close()
            self._file.close()

    def event(self, kind: str, **values: Any) -> None:
        """Add a line with the time of day."""
        if self._folder is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._file.write(json.dumps({"event": kind, "time": now, **values}, allow_nan=False) + "\n")
        self._file.flush()

    def scalars(self, kind: str, step: int, epoch: int, values: Mapping[str, float]) -> None:
        """Add a line of numbers, and a point to a curve of each."""
        if self._folder is None:
            return
        self.event(kind, epoch=epoch, step=step, **values)
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)
