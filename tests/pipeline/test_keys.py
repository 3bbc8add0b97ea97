import hashlib
import json
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bench.planning import Listed
from manifests.fingerprint import DIGITS, canonical, plain
from manifests.tables.sensors import Index
from pipeline.engine.keys import digest_listing

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda some: st.lists(some) | st.tuples(some, some) | st.dictionaries(st.text(), some),
    max_leaves=8,
)


@given(VALUES)
def test_canonical_json_is_what_the_standard_library_writes(value: Any) -> None:
    expected = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    assert canonical(value) == expected


def test_the_digest_of_a_listing_is_that_of_every_value_in_turn() -> None:
    frames = list(Listed(1, 3).frames())
    total = hashlib.sha256()
    for frame in frames:
        said = {**vars(frame.index()), "status": "ok", "reason": None, "problems": frame.problems}
        for name in (*Index.schema.names, "problems"):
            value = said[name]
            if isinstance(value, np.ndarray):
                total.update(f"{name}:{value.dtype.str}{value.shape}".encode())
                total.update(np.ascontiguousarray(value).tobytes())
            else:
                total.update(f"{name}:{json.dumps(value, separators=(',', ':'), ensure_ascii=False)}".encode())
    assert digest_listing(frames) == total.hexdigest()[:DIGITS]
