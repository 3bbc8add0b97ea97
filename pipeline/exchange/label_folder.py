"""Folders of label files: whole or not at all, one writer at a time, and with a digest of every file.

`files.sha256` is what `sha256sum -c files.sha256` reads, within the folder.
"""

from __future__ import annotations

import csv
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from manifests.config import ConfigError
from manifests.fingerprint import sha256_file
from manifests.records.codec import as_record
from manifests.records.labels import LabelsRecord

RECORD, FRAMES, SUMS = "labels.json", "frames.csv", "files.sha256"


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Keep other writers of the same folder out, and remove what a killed one left behind."""
    lock = out.with_name(f".{out.name}.lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{out} is being written by another run; wait for it, or name another folder") from None
        for left in out.parent.glob(f".{out.name}.????????????"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def earlier(out: Path) -> LabelsRecord | None:
    """Return the record of a folder of labels; None if there is no folder, or an empty one.

    Raises ConfigError for a folder that is not ours.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        return as_record(LabelsRecord, json.loads((out / RECORD).read_bytes()))
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"{out} is there and holds no {RECORD} of labels; name another folder for them: OUT=... (--out)"
        ) from None


def whole(out: Path, record: LabelsRecord) -> bool:
    """Return whether all files are there that a folder of labels lists, frame by frame and with their digests."""
    layouts = list(record.layouts)
    try:
        with (out / FRAMES).open(newline="", encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        names = [*(row[layout] for row in rows for layout in layouts), *sums(out)]
    except (OSError, KeyError, ValueError, csv.Error):
        return False
    return len(rows) == record.counts.frames and all((out / name).is_file() for name in dict.fromkeys(names))


def moved_aside(out: Path) -> Path:
    """Give a folder of labels another name, and return it: somebody may have worked on what is in it."""
    names = (out.with_name(f"{out.name}-before-{number}") for number in count(1))
    aside = next(name for name in names if not name.exists())
    out.rename(aside)
    return aside


def write_sums(folder: Path) -> None:
    """Write down the digests of all files of a folder; raises OSError."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    (folder / SUMS).write_text("".join(f"{sha256_file(folder / name)}  {name}\n" for name in names), encoding="utf-8")


def changed_files(folder: Path) -> list[str]:
    """Return which files of a folder are not as they were written; raises OSError for one that cannot be read."""
    return [name for name, digest in sums(folder).items() if sha256_file(folder / name) != digest]


def sums(folder: Path) -> dict[str, str]:
    """Return the digest of every file of a folder, by name, as it was written; raises OSError and ValueError."""
    lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
