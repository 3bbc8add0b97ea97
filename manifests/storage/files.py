"""The files of a store, on this machine or on any pyarrow file system: they appear whole or not at all."""

from __future__ import annotations

import io
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.shown import shown_uri
from manifests.storage.conditional import Bucket, link
from manifests.storage.errors import StoreError, is_full, unwritable
from manifests.storage.names import TEMPORARY
from manifests.storage.remote import patiently

S = TypeVar("S")
T = TypeVar("T")
REQUESTS_AT_ONCE = 64  # to a store behind a network, where each waits for tens of milliseconds
FURTHER_LISTINGS = 3
ONE_WRITER = "one_writer=true"


class Files:
    """A folder on some file system. Picklable; opens its file system anew in every process.

    `place` names it for people: the URI without what may follow its path or hold a password. `system` has its paths
    from the folder on; `local` is the folder where it lies on this machine.
    """

    def __init__(self, uri: str, files: pafs.FileSystem | None = None) -> None:
        self.uri = uri
        self._given = files
        self._folders: set[str] = set()  # those made already
        self._connect()

    def _connect(self) -> None:
        uri, self._one_writer = without_promise(self.uri)
        self.place = shown_uri(uri)
        self._bucket: Bucket | None = None
        try:
            if self._given is not None:
                base, path = self._given, uri
                self.local = None
            elif "://" in self.uri:
                base, path = patiently(lambda: pafs.FileSystem.from_uri(uri))
                self.local = Path(path) if isinstance(base, pafs.LocalFileSystem) else None
            else:
                base, path = pafs.LocalFileSystem(), uri
                self.local = Path(path)
        except (pa.ArrowException, OSError, ValueError) as error:
            told = str(error).replace(self.uri, self.place).replace(uri, self.place)
            raise StoreError(f"store {self.place} cannot be opened: {told}") from None
        self._base, self._root = base, path
        self.system = pafs.SubTreeFileSystem(path, base)

    def __reduce__(self) -> tuple[Any, ...]:
        return Files, (self.uri, self._given)

    def free_bytes(self) -> int | None:
        """Return the free space of a local store, or None where it cannot be told."""
        if self.local is None:
            return None
        folder = self.local
        while not folder.exists():
            folder = folder.parent
        state = os.statvfs(folder)
        return state.f_bavail * state.f_frsize

    def entries(self, folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
        """Return what lies in a folder; raises StoreError where that cannot be told."""
        selector = pafs.FileSelector(folder, allow_not_found=True, recursive=recursive)
        try:
            for _ in range(FURTHER_LISTINGS):
                # Arrow takes a folder that another run makes at this moment for an error: it does not find it, asks
                # whether it may be missing, and sees it there.
                with suppress(FileNotFoundError):
                    return list(self.patiently(lambda: self.system.get_file_info(selector)))
            return list(self.patiently(lambda: self.system.get_file_info(selector)))
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"store {self.place}: {folder or 'its folder'} cannot be listed: {error}") from None

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the files of a folder by name, with their lengths."""
        entries = self.entries(folder)
        return {entry.base_name: int(entry.size or 0) for entry in entries if entry.type == pafs.FileType.File}

    def show(self, *parts: str) -> str:
        """Return the name of a file for people."""
        return "/".join([self.place.rstrip("/"), *parts])

    def patiently(self, action: Callable[[], T]) -> T:
        """Return what `action` returns; on a file system behind a network it is tried again after errors that pass."""
        return action() if self.local is not None else patiently(action)

    def side_by_side(self, action: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
        """Yield what `action` returns for every item, in order; behind a network, many requests are under way at once.

        Raises what it raises, of the first item for which it does.
        """
        if self.local is not None:
            yield from map(action, items)
            return
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="store") as threads:
            yield from threads.map(action, items)

    def scratch(self, path: str) -> Scratch:
        """Return a file to write that becomes `path` when it is published."""
        return Scratch(self, path)

    def create(self, path: str, content: bytes) -> bool:
        """Make a small file that must not exist yet; return False, and change nothing, where it does.

        Raises StoreError where it cannot be written, or where the file system cannot keep two writers apart.
        """
        if self.local is not None:
            folder = (self.local / path).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
                scratch = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
                try:
                    with scratch.open("xb") as stream:
                        stream.write(content)
                        stream.flush()
                        os.fsync(stream.fileno())
                    return link(scratch, self.local / path)
                finally:
                    scratch.unlink(missing_ok=True)
            except OSError as error:
                raise unwritable(self.place, error) from None
        try:
            return patiently(lambda: self._create(path, content))
        except NotImplementedError as error:
            raise StoreError(
                f"store {self.place} cannot keep apart two runs that write at once: {error}. Take a local folder or "
                f"S3, or promise by ?{ONE_WRITER} at the end of its URI that one run at a time writes"
            ) from None
        except (OSError, pa.ArrowException) as error:
            raise unwritable(self.place, error) from None

    def _create(self, path: str, content: bytes) -> bool:
        if self._one_writer:
            if self.system.get_file_info(path).type != pafs.FileType.NotFound:
                return False
            self.upload(io.BytesIO(content), path)
            return True
        if not isinstance(self._base, pafs.S3FileSystem) or self._given is not None:
            raise NotImplementedError("its kind of file system has no conditional write")
        if self._bucket is None:
            self._bucket = Bucket(without_promise(self.uri)[0], str(self._base.region))
        return self._bucket.create(path, content)

    def delete(self, path: str) -> None:
        """Delete a file, if it is there."""
        try:
            self.patiently(lambda: self.system.delete_file(path))
        except FileNotFoundError:
            return
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{self.show(path)} cannot be deleted: {error}") from None

    def upload(self, source: BinaryIO, path: str) -> None:
        """Copy a finished local file to a remote file system, where an object appears when its stream is closed.

        One that broke off may have left its beginning there; it does not count, and the next try writes over it.
        """
        folder = path.rpartition("/")[0]
        size = source.seek(0, os.SEEK_END)

        def copy() -> None:
            if folder not in self._folders:
                if folder:
                    self.system.create_dir(folder, recursive=True)
                else:
                    self._base.create_dir(self._root, recursive=True)
                self._folders.add(folder)
            source.seek(0)
            with self.system.open_output_stream(path) as target:
                while block := source.read(1 << 22):
                    target.write(block)
            arrived = self.system.get_file_info(path).size
            if arrived != size:
                raise ConnectionError(f"{arrived} of {size} bytes arrived")

        patiently(copy)


class Scratch:
    """A file that becomes visible under its final name by `publish`, and leaves nothing behind without it."""

    def __init__(self, files: Files, path: str) -> None:
        self._files, self._path = files, path
        self._scratch: Path | None = None

    def __enter__(self) -> tuple[BinaryIO, Any]:
        try:
            if self._files.local is None:
                self._stream: BinaryIO = tempfile.TemporaryFile()
            else:
                folder = (self._files.local / self._path).parent
                folder.mkdir(parents=True, exist_ok=True)
                self._scratch = folder / f"{TEMPORARY}{secrets.token_hex(8)}"
                self._stream = self._scratch.open("xb+")
        except OSError as error:
            raise self.refused(error) from None
        return self._stream, self.publish

    def publish(self, path: str | None = None) -> None:
        """Make the content visible as `path` (default: the one given at the start)."""
        path = path or self._path
        self._stream.flush()
        if self._files.local is None:
            self._files.upload(self._stream, path)
            return
        os.fsync(self._stream.fileno())
        assert self._scratch is not None
        os.replace(self._scratch, self._files.local / path)
        self._scratch = None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        with suppress(OSError):  # a full disk shows once more here; the first error is the one to tell
            self._stream.close()
        if self._scratch is not None:
            self._scratch.unlink(missing_ok=True)
        if isinstance(error, OSError | pa.ArrowException) and not isinstance(error, StoreError):
            raise self.refused(error) from None

    def refused(self, error: BaseException) -> StoreError:
        """Return the error for a write that failed, here or on the way to where the store lies."""
        place = self._files.place
        if self._files.local is None and is_full(error):
            place += f", whose shards wait for their upload in {tempfile.gettempdir()}"
        return unwritable(place, error)


def without_promise(uri: str) -> tuple[str, bool]:
    """Return a URI as its file system takes it, and whether it promises that one run at a time writes."""
    place, mark, query = uri.partition("?")
    words = query.split("&")
    kept = [word for word in words if word != ONE_WRITER]
    return (place + mark + "&".join(kept)).removesuffix("?") if mark else uri, len(kept) < len(words)
