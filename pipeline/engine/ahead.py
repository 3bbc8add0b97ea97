"""Items made ahead by a thread of their own, so that making them does not wait for who takes them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class End:
    """There are no more items, or making the next one raised this."""

    error: BaseException | None = None


def ahead(items: Generator[T, None, None], most: int) -> Iterator[T]:
    """Yield the items that a generator makes in a thread, at most so many ahead; raises whatever it raises.

    When the caller stops early, the generator is closed, in its thread, after the item that it is at.
    """
    made: queue.Queue[T | End] = queue.Queue(most)
    stopped = threading.Event()

    def make() -> None:
        end = End()
        try:
            with closing(items):
                for item in items:
                    made.put(item)
                    if stopped.is_set():
                        break
        except BaseException as error:  # whoever takes the items is to meet it
            end = End(error)
        made.put(end)

    maker = threading.Thread(target=make, name="ahead", daemon=True)
    maker.start()
    try:
        while not isinstance(one := made.get(), End):
            yield one
        if one.error is not None:
            raise one.error
    finally:
        stopped.set()
        while maker.is_alive():
            try:
                made.get(timeout=0.05)  # room for what it is about to put
            except queue.Empty:
                continue
        maker.join()
