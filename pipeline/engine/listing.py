"""The list of frames of a large data set, kept on disk: what is in memory does not grow with the number of frames."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO, overload

from manifests.endings import RunError
from pipeline.frame import Frame


class ListedFrames(Sequence[Frame]):
    """The frames of one shard. Each look reads them anew; a copy that travels to a worker is a plain tuple."""

    def __init__(self, spool: Spool, start: int, n_frames: int) -> None:
        self._spool, self._start, self._n_frames = spool, start, n_frames

    def __len__(self) -> int:
        return self._n_frames

    @overload
    def __getitem__(self, place: int) -> Frame: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[Frame, ...]: ...

    def __getitem__(self, place: int | slice) -> Frame | tuple[Frame, ...]:
        return self._read()[place]

    def __iter__(self) -> Iterator[Frame]:
        return iter(self._read())

    def __reduce__(self) -> tuple[type, tuple[tuple[Frame, ...]]]:
        return tuple, (self._read(),)

    def _read(self) -> tuple[Frame, ...]:
        return self._spool.read(self._start)


class Spool:
    """A file without a name that holds frames, and goes with the last of them; for one thread."""

    def __init__(self) -> None:
        try:
            self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115
        except OSError as error:
            raise no_room(error) from error
        weakref.finalize(self, close, self._file)

    def add(self, frames: Iterable[Frame]) -> ListedFrames:
        """Write some frames and return them as they may be kept; raises RunError where there is no room for them."""
        kept = tuple(frames)
        try:
            start = self._file.seek(0, 2)
            pickle.dump(kept, self._file, pickle.HIGHEST_PROTOCOL)
            self._file.flush()  # a full disk shows here, and not when the next frame is read
        except OSError as error:
            raise no_room(error) from error
        return ListedFrames(self, start, len(kept))

    def read(self, start: int) -> tuple[Frame, ...]:
        """Return the frames that were written at `start`."""
        self._file.seek(start)
        frames: tuple[Frame, ...] = pickle.load(self._file)  # this process wrote them, and nobody else could
        return frames


def close(file: BinaryIO) -> None:
    """Close a file that nobody reads any more; what could not be written of it is told already."""
    with suppress(OSError):
        file.close()


def no_room(error: OSError) -> RunError:
    """Return the error for a temporary folder that cannot hold the list of frames."""
    return RunError(
        f"the list of frames, 3 kB each, is kept in the temporary folder meanwhile, which cannot be written: {error}. "
        "Free space there, or name another folder: TMPDIR=/a/folder"
    )
