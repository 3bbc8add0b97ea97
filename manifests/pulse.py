"""Where nobody watches a terminal, a command that has said nothing for a while says that it lives, and how far it is.

A thread writes a line to stderr after every `QUIET_S` seconds of silence: what the newest bar that is under way shows
(bars show nothing there), or the name of the command alone. Whatever the command prints itself starts the time anew.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from rich.progress import Progress

QUIET_S = 15.0

_bars: list[Bar] = []
_left_to_others: list[None] = []


class Bar(Progress):
    """A progress bar that a pulse can tell of, whether it is shown or not."""

    def __enter__(self) -> Bar:
        """Show it, and let it be told of."""
        _bars.append(self)
        super().__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        """Stop both."""
        _bars.remove(self)
        super().__exit__(*reason)

    def where(self) -> str:
        """Return how far the last task that is not done has come: `predict: 3 of 40`."""
        for task in reversed(self.tasks):
            if not task.finished and task.total:
                share = f"{task.completed:g} of {task.total:g}" if task.total < 1e6 else f"{task.percentage:.0f} %"
                return f"{task.description}: {share}"
        return ""


@contextmanager
def left_to_another() -> Iterator[None]:
    """Keep the pulse silent while another process, which has its own, prints where this one does."""
    _left_to_others.append(None)
    try:
        yield
    finally:
        _left_to_others.pop()


class Heard:
    """A stream that notes when it was last written to; everything else is that of the stream itself."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.last_s = time.monotonic()

    def write(self, text: str) -> int:
        """Write a text."""
        self.last_s = time.monotonic()
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def pulse(what: str, quiet_s: float = QUIET_S) -> Iterator[None]:
    """Say on stderr what a command is at whenever it has said nothing for `quiet_s` seconds; not on a terminal."""
    before = sys.stdout, sys.stderr
    if before[1] is None or isinstance(before[1], Heard):
        yield
        return
    try:
        number = None if before[1].isatty() else before[1].fileno()
    except (OSError, ValueError, AttributeError):  # a stand-in for a stream
        number = None
    if number is None:
        yield
        return
    streams = Heard(before[0]), Heard(before[1])
    ended, begun = threading.Event(), time.monotonic()

    def beat() -> None:
        told_s = begun
        while not ended.wait(min(1.0, quiet_s / 4)):
            now = time.monotonic()
            if _left_to_others:
                told_s = now
            elif now - max(told_s, *(one.last_s for one in streams)) >= quiet_s:
                told_s = now
                where = next((text for bar in reversed(_bars) if (text := bar.where())), "under way")
                line = f"{what}: {where}, {now - begun:.0f} s so far\n"
                with suppress(OSError):  # written at once, by no lock that a process forked meanwhile would wait for
                    os.write(number, line.encode(errors="backslashreplace"))

    sys.stdout, sys.stderr = streams
    thread = threading.Thread(target=beat, name="pulse", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        sys.stdout, sys.stderr = before
