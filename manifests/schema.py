"""The Arrow schemas of the tables, by name, for what reads rows as dictionaries still; see manifests.tables."""

from __future__ import annotations

import pyarrow as pa

from manifests.tables.arrow import metadata, signature
from manifests.tables.columns import TENSORS
from manifests.tables.registry import TABLES as KINDS

__all__ = ["LABEL", "PREDICT", "REFINE", "SIMILARITY", "TABLES", "TARGET", "TENSORS", "TEXT", "metadata", "signature"]

TABLES: dict[str, pa.Schema] = {name: kind.schema for name, kind in KINDS.items()}
LABEL, PREDICT, REFINE, SIMILARITY, TARGET, TEXT = (
    TABLES[name] for name in ("label", "predict", "refine", "similarity", "target", "text")
)
