"""What is ours in a store, told by its path alone: everything else is somebody else's and never touched.

afov-store.json                                     the mark of a store
refs/<name>[.<generation>].json                     a ref
<stage>/<fingerprint>/manifest.json                 a manifest, of a stage that there is
<stage>/<fingerprint>/<shard>.<key>.json            a sidecar
<stage>/<fingerprint>/<shard>.<key>.<content>.parquet
seen/<shard>.<digest>.json                          notes on files outside the store
refs/[<recipe>/].tmp-<random>, seen/.tmp-<random>, <stage>/<fingerprint>/.tmp-<random>   what a killed writer leaves
"""

from __future__ import annotations

import re
from typing import Literal

from manifests.fingerprint import DIGITS
from manifests.storage.names import MANIFEST, REFS, SEEN, TEMPORARY, is_word, ref_of
from manifests.tables.registry import TABLES

MARKER = "afov-store.json"
Kind = Literal["marker", "ref", "manifest", "sidecar", "shard", "note", "temporary"]

_DIGEST = f"[0-9a-f]{{{DIGITS}}}"
_FINGERPRINT = re.compile(_DIGEST)
_TEMPORARY = re.compile(re.escape(TEMPORARY) + "[0-9a-f]{16}")
_SIDECAR = re.compile(rf"(.+)\.{_DIGEST}\.json")
_SHARD = re.compile(rf"(.+)\.{_DIGEST}\.{_DIGEST}\.parquet")


def kind_of(path: str) -> Kind | None:
    """Return what a file is by its path relative to the store, or None for one that is not ours."""
    *folders, name = path.split("/")
    if not folders:
        return "marker" if name == MARKER else "temporary" if _TEMPORARY.fullmatch(name) else None
    if folders[0] == REFS:
        if _TEMPORARY.fullmatch(name):
            return "temporary" if len(folders) <= 2 else None
        return "ref" if ref_of("/".join([*folders[1:], name])) else None
    if folders == [SEEN]:
        return "temporary" if _TEMPORARY.fullmatch(name) else "note" if _SIDECAR.fullmatch(name) else None
    if len(folders) != 2 or folders[0] not in TABLES or not _FINGERPRINT.fullmatch(folders[1]):
        return None
    if name == MANIFEST:
        return "manifest"
    if _TEMPORARY.fullmatch(name):
        return "temporary"
    for pattern, kind in ((_SHARD, "shard"), (_SIDECAR, "sidecar")):
        found = pattern.fullmatch(name)
        if found and is_word(found[1]):
            return "shard" if kind == "shard" else "sidecar"
    return None
