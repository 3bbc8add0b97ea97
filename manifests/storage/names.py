"""Names within a store: shards, tables, refs; none of them leaves its folder. And how a place is shown to people."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote, urlsplit

from manifests.storage.errors import StoreError

REFS = "refs"
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
_WORD = re.compile(r"[A-Za-z0-9_%][A-Za-z0-9_.+%=-]*")
HEX = re.compile(r"[0-9a-f]+")


def shard_name(scene: str, start: int | None = None) -> str:
    """Return the name of a scene's shard, or of its part from frame `start` on; any scene name can be told from it."""
    name = quote(scene, safe="-_").replace(".", "%2E").replace("~", "%7E")
    return name if start is None else f"{name}+{start:04d}"


def scene_of(shard: str) -> str:
    """Return the scene that a shard is (a part of)."""
    return unquote(shard.partition("+")[0])


def table_folder(stage: str, fingerprint: str) -> str:
    """Return the folder of a table, relative to the store."""
    return f"{checked(stage)}/{checked_hex(fingerprint)}"


def sidecar_name(shard: str, key: str) -> str:
    """Return the name of a shard's sidecar."""
    return f"{checked(shard)}.{checked_hex(key)}.json"


def ref_path(name: str) -> str:
    """Return the path of a ref, relative to the store."""
    parts = name.split("/")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "runs"):
        raise StoreError(f"{name!r} is not the name of a ref; use a word, or runs/<word>")
    return "/".join([REFS, *(checked(part) for part in parts)]) + ".json"


def is_word(name: str) -> bool:
    """Return whether a name can be a file name that stays in its folder."""
    return _WORD.fullmatch(name) is not None and ".." not in name


def checked(name: str) -> str:
    """Return a name that stays in its folder; raises StoreError for any other."""
    if not is_word(name):
        raise StoreError(f"{name!r} is not a name within the store: letters, digits and _ . + % = - only")
    return name


def checked_hex(text: str) -> str:
    """Return a hexadecimal digest; raises StoreError for anything else."""
    if not HEX.fullmatch(text):
        raise StoreError(f"{text!r} is not a digest")
    return text


def shown_uri(uri: str) -> str:
    """Return a path or URI as it may be shown: without user, password and whatever follows the path."""
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
