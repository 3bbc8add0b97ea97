"""JSON documents of a store: sidecars, manifests, refs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from manifests.storage.errors import StoreError
from manifests.storage.files import Files
from manifests.storage.remote import whole

MOST_JSON_BYTES = 32 << 20  # of a sidecar, manifest or ref; a shard takes about 400, so 80 000 of them


def read_json(files: Files, path: str, missing_ok: bool = False) -> dict[str, Any] | None:
    """Return a JSON document; a half-written one counts as missing, since its writer never finished."""

    def read() -> bytes:
        with files.system.open_input_file(path) as source:
            size = int(source.size())
            if size > MOST_JSON_BYTES:
                raise StoreError(f"{files.show(path)} is {size} bytes long: no document of a store; delete it")
            return whole(bytes(source.read(size)), size)

    try:
        content = files.patiently(read)
    except FileNotFoundError:
        if missing_ok:
            return None
        raise StoreError(f"{files.show(path)} is missing") from None
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{files.show(path)} cannot be read: {error}") from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        raise StoreError(f"{files.show(path)} is not a document of this store; delete it and run again")
    return document


def put_json(files: Files, path: str, document: Mapping[str, Any]) -> None:
    """Write a JSON document, which appears whole or not at all."""
    content = json.dumps(document, indent=1, sort_keys=True, allow_nan=False).encode()
    with files.scratch(path) as (stream, publish):
        stream.write(content)
        publish()


def expect_list(value: Any, where: str) -> list[Any]:
    """Return a JSON list; raises StoreError for anything else."""
    if not isinstance(value, list):
        raise StoreError(f"{where} does not list shards; delete it and run again")
    return value
