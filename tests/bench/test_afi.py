from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.afi import dense, equal_share, street
from bench.checks import DifferentResults


@pytest.mark.parametrize("name", ["afi_0", "afi_n1000"])
def test_the_dense_way_gives_the_labels_of_the_reference(shared: Path, name: str) -> None:
    frame = np.load(shared / "golden" / f"{name}.npz")
    assert (dense(frame["xyz"], frame["labels_in"]) == frame["labels_out"]).mean() >= 0.9998


def test_a_street_has_every_kind_of_surface_and_is_the_same_each_time() -> None:
    xyz_m, label = street(0)
    assert 30_000 < len(label) < 35_000 and set(np.unique(label)) == {4, 7, 11, 13, 14, 15, 16}
    assert np.abs(xyz_m[label == 11, 2] + 1.84).max() < 0.15
    again, _ = street(0)
    np.testing.assert_array_equal(xyz_m, again)


def test_ways_that_disagree_are_refused() -> None:
    labels = np.arange(10_000)
    assert equal_share("a and b", labels, np.where(labels < 2, -1, labels)) == pytest.approx(0.9998)
    with pytest.raises(DifferentResults, match=r"a and b agree on 99.97% of the points; 99.98% needed"):
        equal_share("a and b", labels, np.where(labels < 3, -1, labels))
