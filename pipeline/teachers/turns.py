"""Who goes first, of those who do the same thing at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Turn:
    """One's place behind those who began before, as far as they are not past the point in question."""

    def __init__(self, ahead: Turn | None) -> None:
        self._ahead = ahead
        self._past = threading.Event()

    def wait(self) -> None:
        """Wait until all who have begun before are past the point; at once from then on."""
        while self._ahead:
            self._ahead._past.wait()
            self._ahead = self._ahead._ahead

    def done(self) -> None:
        """Be past the point oneself; those behind still wait for whoever is ahead."""
        while self._ahead and self._ahead._past.is_set():
            self._ahead = self._ahead._ahead
        self._past.set()


class Turns:
    """Lets those who do the same thing at once, in threads, come to a point of it in the order in which they began."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Turn | None = None

    @contextmanager
    def taken(self) -> Iterator[Turn]:
        """Begin behind all who have begun; leaving the block, however, is being past the point."""
        with self._lock:
            turn = self._last = Turn(self._last)
        try:
            yield turn
        finally:
            turn.done()
