"""What a file of weights is instead, by its first and last bytes: so that whoever refuses one gives the true reason.

Downloads go wrong in few ways: a page about the file, a pointer to it, a part of it, a packed folder around it. Nothing
here unpickles anything.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import zipfile
from typing import BinaryIO

OLDER_TORCH = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""How files of torch.save begin that are no zip archive, the only kind before torch 1.6 (torch/serialization.py)."""

_HEAD = 512
_POINTER = b"version https://git-lfs.github.com/spec/"
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"7z\xbc\xaf'\x1c": "7-Zip", b"Rar!": "RAR"}


def instead_of_weights(file: BinaryIO) -> str | None:
    """Return what a file is that holds no weights, with the remedy, as a sentence goes on; None where nothing tells.

    "w.pth" + " is empty: …". The file is read from any place and left at its start.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_HEAD)
    found = _by_head(head, size)
    if found is None and head.startswith(b"PK\x03\x04"):
        found = _of_zip(file, size)
    elif found is None and is_safetensors(head):
        found = _of_safetensors(file, size)
    file.seek(0)
    return found


def is_safetensors(head: bytes) -> bool:
    """Return whether a file that begins so is of safetensors: the length of a JSON object, and then that."""
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _by_head(head: bytes, size: int) -> str | None:
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:200].lower()
    if not size:
        return "is empty: nothing of it was fetched, or the disk was full; fetch it again"
    if start.startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            "is a web page: what was fetched is a page about the file, or one that asks to log in; fetch the file "
            "itself, which a browser shows as the link of its download button"
        )
    if start.startswith(b"<?xml") or start.startswith(b"<error"):
        return "is a server's answer in XML, such as a refusal; fetch the file again, logged in where that is asked for"
    if head.startswith(_POINTER):
        told = re.search(rb"\nsize (\d+)", head)
        whole = f"the {int(told[1]):,} bytes" if told else "the file"
        return f"is a pointer of Git LFS, and not {whole} it stands for; run `git lfs pull` in the clone it is from"
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            return f"is packed ({name}); unpack it and give the file inside"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it and give the file inside"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05" and not head.startswith(OLDER_TORCH):
        return (
            "is a plain pickle, and not of torch.save: opening it runs whatever its maker put in, so it is not opened; "
            "where you trust it, open it elsewhere and save its tensors by name with torch.save, or as .safetensors"
        )
    if not is_safetensors(head) and all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in head):
        return "is a text, such as a server's message in place of the file; fetch it again"
    return None


def _of_zip(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with a file that begins as a zip archive, None if it is one of torch."""
    if not zipfile.is_zipfile(file):
        return (
            f"is cut off after {size:,} bytes: it begins as an archive of torch.save, whose directory stands at the "
            "end and is missing; fetch it again"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return "is a zip archive whose directory is damaged; fetch it again"
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return None
    some = ", ".join(name if name.isprintable() else ascii(name)[1:-1] for name in names[:3]) or "nothing"
    return f"is a zip archive of other things ({some}); if the weights are among them, unpack it and give their file"


def _of_safetensors(file: BinaryIO, size: int) -> str | None:
    """Return what is wrong with a file that begins as one of safetensors, None if all its bytes are there."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if 8 + length > size:
        return f"is cut off after {size:,} bytes, within its header of {length:,}; fetch it again"
    try:
        described = json.loads(file.read(length))
        ends = [one["data_offsets"][1] for name, one in described.items() if name != "__metadata__"]
        whole = 8 + length + max(ends, default=0)
    except (ValueError, RecursionError, TypeError, KeyError, IndexError, AttributeError):
        return None  # its own reader says what is wrong
    return f"is cut off after {size:,} of {whole:,} bytes; fetch it again" if size < whole else None
