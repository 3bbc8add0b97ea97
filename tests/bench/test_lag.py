"""Points told apart by what two kinds of labels call them."""

from __future__ import annotations

import numpy as np

from bench.lag import KINDS, kinds_of


def test_every_kind_by_hand() -> None:
    truth = np.array([1, 1, 1, 1, 1, 0, 1, 1], np.uint8)
    plain = np.array([1, 2, 1, 2, 2, 1, 0, 1], np.uint8)
    voted = np.array([1, 1, 2, 2, 3, 1, 1, 0], np.uint8)
    found = [KINDS[kind] if kind >= 0 else "" for kind in kinds_of(truth, plain, voted)]
    assert found == [*KINDS, "", "", ""], "the last three lack the truth or a label"
