"""Names within a store: shards, tables, refs; none of them leaves its folder."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

from manifests.storage.errors import StoreError

REFS = "refs"
SEEN = "seen"
RUNS = "runs"
MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
_MADE_BY = {"similarity": "query"}
_WORD = re.compile(r"[A-Za-z0-9_%][A-Za-z0-9_.+%=-]*")
_GENERATION = re.compile(r"(.+)\.(\d{8})\.json")
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


def ref_name(recipe: str, key: str) -> str:
    """Return the name of a recipe's ref: the recipe's own name, and the digest of what it asks for."""
    if recipe == RUNS:
        raise StoreError(f"a recipe cannot be named {RUNS!r}, where a store keeps the pins of training runs; rename it")
    return f"{checked(recipe)}/{checked_hex(key)}"


def ref_path(name: str, generation: int) -> str:
    """Return the path of a ref as it was written for the n-th time, relative to the store.

    Names are `<recipe>/<key>`, `runs/<word>` for the pin of a training run, or a word. The 0th is that of stores from
    before refs had generations.
    """
    parts = name.split("/")
    of_run = parts[0] == RUNS
    if len(parts) > 2 or (of_run and len(parts) < 2) or _GENERATION.fullmatch(f"{name}.json"):
        raise StoreError(f"{name!r} is not the name of a ref; use a word, a recipe with a key, or {RUNS}/<word>")
    path = "/".join([REFS, *(checked(part) for part in parts)])
    if len(parts) == 2 and not of_run:
        checked_hex(parts[1])
    return f"{path}.{generation:08d}.json" if generation else f"{path}.json"


def ref_of(path: str) -> tuple[str, int] | None:
    """Return name and generation of a ref by its path in the folder of refs; None for any other file."""
    found = _GENERATION.fullmatch(path)
    name, number = (found[1], int(found[2])) if found else (path.removesuffix(".json"), 0)
    try:
        return (name, number) if path.endswith(".json") and ref_path(name, number) == f"{REFS}/{path}" else None
    except StoreError:
        return None


def make_target(stage: str) -> str:
    """Return the make target that makes a table: of its own name but for one of the trainer's."""
    return _MADE_BY.get(stage, stage)


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
