"""Counting how much is named and how far cameras agree: on a handful of points."""

from __future__ import annotations

import numpy as np
import pytest

from manifests.ontology import Ontology, load_ontology
from manifests.rows import Row
from pipeline.browse import FrameRows
from pipeline.quality import agreement, measure


@pytest.fixture
def ontology() -> Ontology:
    return load_ontology("nuscenes")


def prompt(ontology: Ontology, name: str, which: int = 0) -> int:
    """A prompt of a class; `which` counts through them."""
    return int(np.flatnonzero(ontology.class_of_prompt == ontology.class_names.index(name))[which])


def rows_of(ontology: Ontology) -> dict[str, Row]:
    """Five points: 0 car twice by two prompts, 1 car and truck, 2 car once, 3 car twice and truck, 4 not seen."""
    car, coach, truck = prompt(ontology, "car"), prompt(ontology, "car", 1), prompt(ontology, "truck")
    number = ontology.class_names.index
    return {
        "project": {"point": np.array([0, 1, 2, 3, 0, 1, 3, 3], np.int32)},
        "group": {
            "superpoint_prompt": np.array([car, coach, truck], np.int32),
            "pair": np.arange(8, dtype=np.int32),
            "pair_superpoint": np.array([0, 0, 0, 0, 1, 2, 1, 2], np.int32),
            "label": np.zeros(5, np.uint8),
        },
        "target": {
            "label": np.array([number("car"), number("truck"), number("car"), number("car"), 0], np.uint8),
            "seen": np.array([True, True, True, True, False]),
        },
    }


def test_two_prompts_of_one_class_agree_and_two_classes_do_not(ontology: Ontology) -> None:
    rows = rows_of(ontology)
    shared, agreed = agreement(rows["project"], rows["group"], ontology)
    assert shared.tolist() == [True, True, False, True, False]
    assert agreed.tolist() == [True, False, False, False, False]


def test_pairs_that_grouping_left_out_do_not_count(ontology: Ontology) -> None:
    rows = rows_of(ontology)
    group = rows["group"] | {"pair": np.array([0, 1, 2, 3]), "pair_superpoint": np.zeros(4, np.int64)}
    shared, agreed = agreement(rows["project"], group, ontology)
    assert not shared.any() and not agreed.any()


def test_counts_add_up_over_frames(ontology: Ontology) -> None:
    frame = FrameRows(None, rows_of(ontology))  # type: ignore[arg-type]
    quality = measure([frame, frame], ontology)
    car, truck = ontology.class_names.index("car"), ontology.class_names.index("truck")
    assert (quality.n_frames, quality.n_points, quality.n_seen, quality.n_labelled) == (2, 10, 8, 8)
    assert (quality.n_shared, quality.n_agreed) == (6, 2)
    assert quality.shared_of_class[[car, truck]].tolist() == [4, 2]
    assert quality.agreed_of_class[[car, truck]].tolist() == [2, 0]
    assert quality.points_of_class["target"][[0, car, truck]].tolist() == [2, 6, 2]
    assert list(quality.points_of_class) == ["target"]  # neither truth nor predictions


def test_no_frames_count_nothing(ontology: Ontology) -> None:
    assert measure([], ontology).n_points == 0
