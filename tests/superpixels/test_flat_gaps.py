"""How far flat interaction fills gaps: no farther than evidence reaches, whatever the rig."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from bench.afi import street
from superpixels.flat_config import FlatInteractionConfig
from superpixels.flat_gate import borne_out
from superpixels.flat_interaction import refine
from tests.superpixels.test_flat_interaction import ANYWHERE, DEFAULT, NUSCENES


def test_what_a_camera_to_the_front_never_saw_stays_without_a_label_but_at_its_rim() -> None:
    xyz_m, truth = street(0)
    seen = np.abs(np.arctan2(xyz_m[:, 1], xyz_m[:, 0])) < 0.7
    labels = np.where(seen, truth, 0)
    found, everywhere = (refine(xyz_m, labels, config, **NUSCENES) for config in (DEFAULT, ANYWHERE))
    away_m = cKDTree(xyz_m[seen]).query(xyz_m[~seen])[0]
    filled = found.labels[~seen] > 0
    assert 0 < filled.mean() < 0.2 and away_m[filled].max() <= 1.5 and (everywhere.labels[~seen] > 0).mean() > 0.8
    assert not found.score[~seen][~filled].any() and not found.changed[~seen][~filled].any()
    right = found.labels[~seen] == truth[~seen]
    assert right[filled].mean() > 0.9 > (everywhere.labels == truth)[~seen].mean()
    np.testing.assert_array_equal(found.labels[seen], everywhere.labels[seen])


@pytest.mark.parametrize(
    ("settings", "filled"),
    [
        ({}, [1, 2]),
        ({"fill_reach_m": 0.9}, [1]),
        ({"fill_certainty": 0.0}, [1, 2, 3]),
        ({"fill_agreement": 0.0, "fill_neighbours": 1}, [1, 2, 4]),
        ({"fill_reach_m": 0.0, "fill_agreement": 0.0}, [1, 2, 4, 5]),
    ],
)
def test_a_gap_is_filled_where_a_label_is_near_evidence_is_clear_and_neighbours_bear_it(
    settings: dict[str, float], filled: list[int]
) -> None:
    """Point 0 has a label; 1 and 2 are 0.5 and 1 m off, and each of the others lacks one thing."""
    x = np.array([0.0, 0.5, 1.0, -0.5, 40.0, 80.0])
    known = np.concatenate([np.zeros(20), np.full(20, 40.5)])  # twenty of class 1 about 0, twenty of class 2 by point 4
    xyz_m = np.zeros((46, 3), np.float32)
    xyz_m[:6, 0], xyz_m[6:, 0], xyz_m[6:, 1] = x, known, np.tile(np.linspace(-0.1, 0.1, 20), 2)
    label = np.concatenate([[1, 0, 0, 0, 0, 0], np.repeat([1, 2], 20)]).astype(np.uint8)
    score = np.zeros((46, 3), np.float32)
    score[:, 1] = [1, 0.9, 0.8, 0.4, 0.9, 0.9, *np.ones(40)]
    gap = np.arange(1, 6)
    config = FlatInteractionConfig(**settings)  # type: ignore[arg-type]
    kept = borne_out(xyz_m, label, np.ones(46, np.int64), score, gap, config)
    assert gap[kept].tolist() == filled
