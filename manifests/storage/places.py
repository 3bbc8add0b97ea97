"""Where a data set lies: a folder of this machine, or one on object storage, which is read the same way.

A root such as "s3://bucket/logs" is a `RemotePath`: of what `pathlib` offers it has what readers of data sets use, by
the names that it has there, over the file system that a store is read with: what fails for a moment is tried again, and
what does not come back ends the run (`DataUnreachable`) and is no fault of a frame. A file is fetched whole, by one
request, and kept on this machine by its digest (`manifests.storage.kept`).
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TextIO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.fingerprint import looks_of, sha256_file
from manifests.sections.data import DataConfig
from manifests.shown import shown_uri
from manifests.storage.errors import StoreError
from manifests.storage.files import Files
from manifests.storage.kept import KeptFiles
from manifests.storage.remote import Unreachable, patiently, whole

S = TypeVar("S")
T = TypeVar("T")
REQUESTS_AT_ONCE = 32  # of one process


class DataUnreachable(StoreError):
    """A data set on object storage that cannot be read now; its files may be in order."""


@dataclass(frozen=True)
class RemotePath:
    """A file or a folder behind a network: a root by its URI, and what lies below it by its name there.

    Picklable, and free to make. All that asks the store raises DataUnreachable where that gives no answer.
    """

    uri: str
    inner: PurePosixPath = PurePosixPath()
    kept: KeptFiles | None = None

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return replace(self, inner=self.inner / name)

    def __str__(self) -> str:
        place = shown_uri(self.uri).rstrip("/")
        return f"{place}/{self._name}" if self._name else place

    @property
    def _name(self) -> str:
        return "" if self.inner == PurePosixPath() else str(self.inner)

    @property
    def name(self) -> str:
        """The last part of its name."""
        return self.inner.name

    @property
    def stem(self) -> str:
        """The last part of its name, without what stands behind the last dot."""
        return self.inner.stem

    @property
    def suffix(self) -> str:
        """What stands behind the last dot of its name, with the dot."""
        return self.inner.suffix

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in; that of the root is the root."""
        return replace(self, inner=self.inner.parent)

    def is_dir(self) -> bool:
        """Return whether a folder is there: on object storage, whether any file lies below it."""
        return bool(self._info().type == pafs.FileType.Directory)

    def is_file(self) -> bool:
        """Return whether a file is there."""
        return bool(self._info().type == pafs.FileType.File)

    def exists(self) -> bool:
        """Return whether a file or folder is there."""
        return bool(self._info().type != pafs.FileType.NotFound)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what lies in a folder, by name; raises FileNotFoundError if there is none."""
        selector = pafs.FileSelector(self._name)
        for entry in sorted(self._ask(lambda files: files.system.get_file_info(selector)), key=lambda it: it.base_name):
            yield self / entry.base_name

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield what is there by a pattern in which * stands for any part of a name, by name.

        A pattern's last part without a sign in it is looked for in all folders at once. Raises OSError as `iterdir`
        does, for the folder itself.
        """
        first, _, others = pattern.partition("/")
        signs = not {"*", "?", "["}.isdisjoint(first)
        found = [one for one in self.iterdir() if fnmatch.fnmatchcase(one.name, first)] if signs else [self / first]
        if others:
            for some in side_by_side(lambda one: list(_below(one, others)), found):
                yield from some
        elif signs:
            yield from found
        else:
            yield from (one for one in found if one.exists())

    def read_bytes(self) -> bytes:
        """Return what is in the file, fetched anew; raises FileNotFoundError where there is none, and other OSErrors.

        One request fetches all of it, so that it is not half of one file and half of the one that replaced it.
        """

        def fetch(files: Files) -> bytes:
            with files.system.open_input_file(self._name) as file:
                size = file.size()
                return whole(bytes(file.read_at(size, 0)), size) if size else b""

        return self._ask(fetch)

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return what is in a text file; raises what `read_bytes` does, and UnicodeDecodeError."""
        return self.read_bytes().decode(encoding)

    def open(self, encoding: str = "utf-8") -> TextIO:
        """Return a text file to read from; raises what `read_bytes` does."""
        return io.TextIOWrapper(io.BytesIO(self.read_bytes()), encoding)

    def looks(self) -> str | None:
        """Return how the file looks from outside; None if it is not there.

        That is its size, the time of its last change, and what the store calls this version of it, where it says that:
        S3 tells times by whole seconds, and two versions of one second apart by the ETag.
        """

        def ask(files: Files) -> str:
            with files.system.open_input_file(self._name) as file:
                told = {str(key): str(value) for key, value in (_metadata(file) or {}).items()}
                size = file.size()
            changed = told.get("Last-Modified") or files.system.get_file_info(self._name).mtime_ns
            return f"[{size},{changed},{told.get('ETag', '')}]"

        try:
            return self._ask(ask)
        except OSError:
            return None

    def sha256(self) -> str:
        """Return the hex sha256 of what is in the file, which is kept here; raises what `read_bytes` does."""
        content = self.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if self.kept:
            self.kept.keep(digest, content)
        return digest

    def content(self, sha256: str = "") -> bytes:
        """Return what is in the file: of that digest, out of what is kept, or fetched anew, of whatever digest it is.

        Raises what `read_bytes` does.
        """
        if self.kept and sha256:
            found = self.kept.read(sha256)
            if found is not None:
                return found
        content = self.read_bytes()
        if self.kept:
            self.kept.keep(hashlib.sha256(content).hexdigest(), content)
        return content

    def _info(self) -> pafs.FileInfo:
        return self._ask(lambda files: files.system.get_file_info(self._name))

    def _ask(self, action: Callable[[Files], T]) -> T:
        """Return what `action` returns of the file system; raises OSError with an errno where a file is not there."""
        try:
            files = _files(self.uri, os.getpid())
            return patiently(lambda: action(files))
        except Unreachable as error:
            raise DataUnreachable(f"data.root: {self} cannot be read: {error}") from None
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)) from None
        except (NotADirectoryError, IsADirectoryError) as error:
            raise type(error)(error.errno, os.strerror(error.errno)) if error.errno else error from None
        except pa.ArrowException as error:
            raise OSError(str(error)) from None


Root = Path | RemotePath
"""A folder or a file of a data set, wherever it lies."""


def is_remote(root: str) -> bool:
    """Return whether a data root is one behind a network: a URI, but for file://."""
    return "://" in root and not root.startswith("file://")


def root_of(data: DataConfig) -> Root:
    """Return the folder that holds a data set; nothing is opened."""
    if not is_remote(data.root):
        return Path(data.root.removeprefix("file://"))
    kept = KeptFiles(Path(data.cache).expanduser(), round(data.cache_gb * 1e9)) if data.cache_gb else None
    return RemotePath(data.root, kept=kept)


def place_of_root(root: str) -> str:
    """Return a data root as one that means the same in every working folder, without passwords."""
    if is_remote(root):
        return shown_uri(root).rstrip("/")
    return str(Path(root.removeprefix("file://")).expanduser().absolute())


def looks_at(root: Root, name: str) -> str | None:
    """Return how a file below a folder looks from outside, None if it is not there."""
    return (root / name).looks() if isinstance(root, RemotePath) else looks_of(f"{root}/{name}")


def digest_of(path: Root) -> str:
    """Return the hex sha256 of a file; raises OSError where it cannot be read."""
    return path.sha256() if isinstance(path, RemotePath) else sha256_file(path)


def size_of(path: Root, sha256: str = "") -> int:
    """Return how many bytes a file has, which has that digest, if one is known; raises OSError if it is not there."""
    if not isinstance(path, RemotePath):
        return path.stat().st_size
    size = path.kept.size(sha256) if path.kept and sha256 else None
    return len(path.content(sha256)) if size is None else size


def side_by_side(action: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield what `action` returns for every item, in order; many requests are under way at once."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="data") as threads:
        yield from threads.map(action, items)


def each_of(root: Root, action: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Yield what `action` returns for every item, in order; side by side where the root lies behind a network."""
    return side_by_side(action, items) if isinstance(root, RemotePath) else map(action, items)


def _below(folder: RemotePath, pattern: str) -> Iterator[RemotePath]:
    """Yield what `glob` does; nothing for what is no folder."""
    try:
        yield from folder.glob(pattern)
    except (FileNotFoundError, NotADirectoryError):
        return


def _metadata(file: pa.NativeFile) -> dict[object, object] | None:
    """Return what a file system says of a file beside its size; None where it says nothing."""
    try:
        return file.metadata()  # type: ignore[no-any-return]
    except (pa.ArrowException, OSError, NotImplementedError):
        return None


@lru_cache(maxsize=8)
def _files(uri: str, process: int) -> Files:
    """Return the file system of a root, opened anew in every process; raises StoreError where that cannot be done."""
    return Files(uri)
