"""How a program ends: one table of exit codes, for pipeline and trainer alike, and what kind of fault an error is.

Errors of ours say in a full sentence what the user can mend. What the system says (a file, a disk, memory) is the
machine's fault. Everything else is a bug of ours, wherever it comes from, and is told as one.
"""

from __future__ import annotations

import sys
import traceback
from enum import IntEnum

from manifests.config import ConfigError
from manifests.shown import shown_text
from manifests.storage.errors import StoreError


class Ending(IntEnum):
    """Exit codes of `python -m pipeline` and `python -m trainer`; docs/debugging.md has them as a table."""

    DONE = 0
    FAILED = 1
    """Something did not work out: frames, files, a disk, a cluster, or a training that cannot go on."""
    RECIPE = 2
    """The recipe or the command line is not right; nothing was done."""
    STORE = 3
    """A table is missing or damaged, or the store cannot be used."""
    BUG = 70
    """A bug in AFOV (EX_SOFTWARE of sysexits.h)."""
    INTERRUPTED = 130
    """Ctrl-C or SIGTERM; what is finished is kept."""


class RunError(RuntimeError):
    """What keeps a run from going on and can be mended outside of the code; the message is a full sentence."""


class Bug(Exception):
    """A fault of our own code that a worker met: where it was, and the trace as the worker had it.

    It travels between processes as text: what it was raised from may not be picklable.
    """

    def __init__(self, what: str, trace: str) -> None:
        super().__init__(what, trace)
        self.what, self.trace = what, trace

    def __str__(self) -> str:
        return self.what

    @classmethod
    def of(cls, error: BaseException, where: str) -> Bug:
        """Return the bug that an error shows; one that is a bug already stays as it is."""
        return error if isinstance(error, Bug) else cls(f"{summary(error)} ({where})", trace_of(error))


def ending_of(error: BaseException) -> Ending:
    """Return the exit code that an error means."""
    if isinstance(error, KeyboardInterrupt):
        return Ending.INTERRUPTED
    if isinstance(error, ConfigError):
        return Ending.RECIPE
    if isinstance(error, StoreError):
        return Ending.STORE
    return Ending.BUG if is_bug(error) else Ending.FAILED


def is_bug(error: BaseException) -> bool:
    """Return whether an error can only come from our own code: it is none of ours, and none of the machine's."""
    return not isinstance(error, RunError | ConfigError | StoreError) and not of_the_machine(error)


def of_the_machine(error: BaseException) -> bool:
    """Return whether the system, memory or a GPU is at fault: OSError, MemoryError, and what torch raises for these."""
    of_torch = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError") or "can't allocate memory" in str(error)
    return isinstance(error, OSError | MemoryError) or of_torch or of_locale(error)


def of_locale(error: BaseException) -> bool:
    """Return whether a file name cannot be written, or was read wrongly, because the locale's encoding is not UTF-8."""
    return isinstance(error, UnicodeEncodeError) and sys.getfilesystemencoding().lower() not in ("utf-8", "utf8")


def one_line(text: str) -> str:
    """Return a text as one line: entries of an indented list are divided by ";", and such a list ends in "."."""
    lines = [line for line in text.splitlines() if line.strip()]
    joined = ""
    for before, line in zip(["", *lines], lines, strict=False):
        if before[:1].isspace() and before.rstrip()[-1] not in ".:;,!?":
            joined += ";" if line[:1].isspace() else "."
        joined += " " + line
    return " ".join(joined.split())


def summary(error: BaseException) -> str:
    """Return an error as one line that is never empty: sentences of ours as they are, anything else with its type."""
    text = shown_text(printable(one_line(str(error))))
    if of_locale(error):
        encoding = sys.getfilesystemencoding()
        text += f". Python takes file names to be {encoding} here; set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
    ours = isinstance(error, RunError | ConfigError | StoreError | Bug)
    return text if ours and text else f"{type(error).__name__}: {text}".removesuffix(": ")


def printable(text: str) -> str:
    """Return a text with control characters, which a terminal would obey, written as their numbers."""
    return text if text.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def trace_of(error: BaseException) -> str:
    """Return the whole trace of an error, also what `raise ... from None` leaves out of it."""
    if isinstance(error, Bug):
        return error.trace
    seen: BaseException | None = error
    while seen is not None:
        seen.__suppress_context__ = seen.__cause__ is not None
        seen = seen.__cause__ or seen.__context__
    return shown_text("".join(traceback.format_exception(error)))
