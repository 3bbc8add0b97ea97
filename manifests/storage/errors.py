"""What goes wrong with a store: a table at fault, a place that cannot be written, a full disk."""

from __future__ import annotations

import errno

from manifests.shown import shown_text


class StoreError(RuntimeError):
    """A table that is missing, incomplete or damaged, or a store that cannot be written; it says what to do.

    What a file system says is told without the passwords in it.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(shown_text(text))


class Malformed(StoreError):
    """A document that is not what it should be; whoever reads it, from a store or an archive, adds what to do."""


class DiskFull(StoreError):
    """A disk of this machine that has no room for a shard; another machine may have some."""


def unwritable(place: str, error: BaseException) -> StoreError:
    """Return the error for a failed write; a full disk is named as such."""
    if is_full(error):
        return DiskFull(f"store {place}: the disk is full. Finished shards are safe; free space and run again")
    return StoreError(f"store {place} cannot be written: {error}")


def is_full(error: BaseException) -> bool:
    """Return whether it was for want of space, or of quota, on a disk."""
    full = isinstance(error, DiskFull) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error)
