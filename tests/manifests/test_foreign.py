"""What a file is that is no file of weights: the true reason, whatever its name says, and nothing is opened."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from manifests.foreign import OLDER_TORCH, instead_of_weights, is_safetensors


def told(content: bytes) -> str | None:
    file = io.BytesIO(content)
    file.seek(len(content) // 2)
    found = instead_of_weights(file)
    assert file.tell() == 0
    return found


def saved(thing: object, zipped: bool = True) -> bytes:
    torch.save(thing, file := io.BytesIO(), _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def packed_with(names: list[str]) -> bytes:
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return file.getvalue()


def tar_of(name: str) -> bytes:
    with tarfile.open(fileobj=(file := io.BytesIO()), mode="w") as archive:
        archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


STATE = {"a": torch.arange(99.0), "b": torch.ones(2, 2)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1411111222\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><head>", "is a web page"),
        (b"\xef\xbb\xbf\n  <HTML lang=de>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code>', "is a server's answer in XML"),
        (POINTER, "is a pointer of Git LFS, and not the 1,411,111,222 bytes it stands for; run `git lfs pull`"),
        (b"Entry not found", "is a text"),
        (json.dumps({"error": "log in"}).encode(), "is a text"),
        (saved(STATE)[:-30], "is cut off after"),
        (saved(STATE)[:700], "is cut off after 700 bytes"),
        (save(STATE)[:-5], r"is cut off after"),
        (save(STATE)[:60], "is cut off after 60 bytes, within its header"),
        (pickle.dumps(STATE), "is a plain pickle"),
        (pickle.dumps({"w": np.ones(3)}, protocol=2), "is a plain pickle"),
        (gzip.compress(saved(STATE)), "is packed (gzip)"),
        (tar_of("w.pth"), "is a tar archive"),
        (packed_with(["inside/w.pth", "\033[2Jx"]), "is a zip archive of other things (inside/w.pth, \\x1b[2Jx)"),
        (packed_with([]), None),
        (saved(STATE), None),
        (saved(STATE, zipped=False), None),
        (save(STATE), None),
        (save({}), None),
    ],
)
def test_the_reason_is_the_true_one(content: bytes, reason: str | None) -> None:
    found = told(content)
    assert (found or "").startswith(reason or "") and (found is None) == (reason is None), found


def test_torch_s_older_format_is_known_by_its_first_bytes() -> None:
    assert saved(STATE, zipped=False).startswith(OLDER_TORCH)
    assert is_safetensors(save(STATE)) and not is_safetensors(saved(STATE)) and not is_safetensors(b"")


@given(st.binary(max_size=600), st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", save(STATE)[:40], POINTER[:60]]))
def test_no_bytes_are_too_odd(content: bytes, start: bytes) -> None:
    found = told(start + content)
    assert found is None or (found.isprintable() and len(found) < 400)
