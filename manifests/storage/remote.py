"""File systems behind a network: what fails for a moment is tried again, and a read is whole or an error.

Object stores answer 503 when they are asked too much, and connections break. Both pass. What does not pass, a missing
bucket or credentials that have expired, is raised at once. The file systems of Arrow tell one from the other only by
the text of their errors, so that is what is looked at here, and nowhere else.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pyarrow as pa

T = TypeVar("T")

WAITS_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""How long to wait before each further try; every wait is drawn between half of it and one and a half times it, so that
many workers do not all come back at once. Arrow's S3 client tries for some seconds of its own before an error arrives
here, so that a store may be away for most of a minute."""

_PASSES = re.compile(
    r"NETWORK_CONNECTION|SLOW_?DOWN|SERVICE_UNAVAILABLE|INTERNAL_(FAILURE|ERROR)|THROTTL|REQUEST_TIMEOUT|"
    r"HTTP status (429|5\d\d)|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|curlCode|timed? ?out|"
    r"connection (reset|refused|closed|aborted)",
    re.IGNORECASE,
)
# S3 refuses a signature that is a quarter of an hour off; its client corrects that by the date of the answer, if it can
_SKEWED = re.compile(r"REQUEST_?TIME_?TOO_?SKEWED", re.IGNORECASE)
# 400: a HEAD request with a token that has expired, whose answer has no text
_REFUSES = re.compile(
    r"EXPIRED_?TOKEN|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|"
    r"ACCESS_DENIED|ExpiredToken|InvalidToken|TokenRefreshRequired|HTTP status 40[013]",
    re.IGNORECASE,
)


class Unreachable(OSError):
    """A file system that cannot be reached now, or takes our credentials no more; what it holds may be in order."""


def patiently(action: Callable[[], T]) -> T:
    """Return what `action` returns, trying again after errors that pass; it must be safe to start it anew.

    Raises Unreachable when that did not help or credentials were refused, and every other error as it is.
    """
    for wait_s in (*WAITS_S, None):
        try:
            return action()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            told = " ".join(str(error).split())
            if _SKEWED.search(told):
                raise Unreachable(
                    f"the clock of this machine and that of the store differ too much; set the wrong one right and run "
                    f"again, finished shards are safe ({told})"
                ) from None
            if _REFUSES.search(told):
                raise Unreachable(
                    f"the credentials are refused or have expired; renew them and run again, finished shards are safe "
                    f"({told})"
                ) from None
            if not isinstance(error, ConnectionError | TimeoutError) and not _PASSES.search(told):
                raise
            if wait_s is None:
                raise Unreachable(
                    f"it was tried {len(WAITS_S) + 1} times; see that it is up and can be reached, then run again, "
                    f"finished shards are safe ({told})"
                ) from None
            time.sleep(wait_s * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


class RangeFile:
    """A file of a file system behind a network, read by ranges; what Arrow asks of a Python file to read from.

    Every range comes whole: one that ends early counts as a lost connection and is read again. Raises FileNotFoundError
    when it is opened, Unreachable whenever it is read.
    """

    def __init__(self, files: Any, path: str) -> None:
        self._files, self._path = files, path
        self._source: Any = None
        self._position = 0
        self.closed = False
        self._size = patiently(lambda: int(self._opened().size()))

    def _opened(self) -> Any:
        if self._source is None:
            self._source = self._files.open_input_file(self._path)
        return self._source

    def size(self) -> int:
        """Return the length in bytes."""
        return self._size

    def read(self, length: int = -1) -> bytes:
        """Return the next bytes, as many as were asked for or as there are."""
        start = self._position
        stop = self._size if length < 0 else min(start + length, self._size)

        def once() -> bytes:
            try:
                content = bytes(self._opened().read_at(stop - start, start))
            except (OSError, pa.ArrowException):
                self._source = None
                raise
            return whole(content, stop - start)

        content = patiently(once) if stop > start else b""
        self._position = start + len(content)
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to a position from the start (0), from here (1) or from the end (2), and return it."""
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position

    def readable(self) -> bool:
        """Return that it can be read."""
        return True

    def seekable(self) -> bool:
        """Return that it has positions."""
        return True

    def writable(self) -> bool:
        """Return that it cannot be written."""
        return False

    def close(self) -> None:
        """Let go of the connection."""
        self.closed, self._source = True, None


def whole(content: bytes, size: int) -> bytes:
    """Return bytes that are as many as were promised; raises ConnectionError, which passes, for fewer."""
    if len(content) != size:
        raise ConnectionError(f"{len(content)} of {size} bytes came before the connection was lost")
    return content
