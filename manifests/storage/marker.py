"""The mark by which a store knows that it is ours: without it nothing is ever deleted.

It is written with the first file of a store, where nothing else lies. Into a folder that holds other things a store may
be written too, but it gets no mark: what is deleted there is left to people.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs as pafs

from manifests.advice import HEAL, MARK
from manifests.storage.documents import put_json, read_json
from manifests.storage.errors import StoreError
from manifests.storage.files import Files
from manifests.storage.grammar import MARKER, kind_of

FORMAT = 2  # 1 had no mark, no digests in documents, and one file a ref


def claim(files: Files) -> None:
    """Mark a store that is about to be written, if its folder is empty but for hidden files."""
    try:
        if files.patiently(lambda: files.system.get_file_info(MARKER).type) == pafs.FileType.File:
            return
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"store {files.place} cannot be read: {error}") from None
    if all(entry.base_name.startswith(".") for entry in files.entries("")):
        write(files)


def write(files: Files) -> None:
    """Write the mark."""
    put_json(files, MARKER, {"kind": "a store of AFOV's tables", "format": FORMAT})


def expect(files: Files) -> None:
    """Raise StoreError unless the store bears its mark, undamaged, of a version that is known here."""
    document = read_json(files, MARKER)
    if document is None:
        raise StoreError(
            f"store {files.place} has no {MARKER}, by which a store knows that it is ours, so nothing is deleted in "
            f"it; if it is one, of an earlier version, run: {MARK}"
        )
    if document.get("format") != FORMAT:
        raise StoreError(
            f"{files.show(MARKER)} is of format {document.get('format')!r}, and this version knows {FORMAT}; delete "
            "nothing with another version than wrote it"
        )


def is_whole(files: Files) -> str | None:
    """Return what is wrong with the mark of a store, or None; a store without one is in order."""
    try:
        if read_json(files, MARKER) is not None:
            expect(files)
    except StoreError as error:
        return str(error).removesuffix(f"; {HEAL}")
    return None


def mark(files: Files) -> int:
    """Mark a store of an earlier version, and return how many files it has.

    Raises StoreError, which names some of them, if there are files in it that no store has: they would lie among what
    is collected.
    """
    paths = [entry.path.lstrip("/") for entry in files.entries("", True) if entry.type == pafs.FileType.File]
    foreign = [path for path in paths if kind_of(path) is None and not path.rsplit("/", 1)[-1].startswith(".")]
    if foreign:
        shown = ", ".join(foreign[:3])
        raise StoreError(
            f"{len(foreign)} files in {files.place} are not those of a store ({shown}); move them away, or the store, "
            "then mark it again"
        )
    write(files)
    return len(paths)
