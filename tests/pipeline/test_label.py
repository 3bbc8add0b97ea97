from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from manifests.ontology import load_ontology
from pipeline.frame import FrameError
from pipeline.stages.label import STAGE


@pytest.fixture
def label(tiny: Any, recipe_over: Any, run_stage: Any) -> Any:
    """Runs `label` on the first frame of the simulated root; fields of the frame may be given by name."""

    def run(**fields: Any) -> Any:
        return run_stage(STAGE, recipe_over(tiny.path), replace(tiny.frames()[0], **{"n_points": 34688, **fields}))

    return run


def test_stored_labels_become_classes_and_are_kept_as_well(tiny: Any, label: Any) -> None:
    row = label()
    raw = np.fromfile(tiny.path / row_path(tiny), np.uint8)
    np.testing.assert_array_equal(row.raw, raw)
    ontology = load_ontology("nuscenes")
    for value in np.unique(raw):
        [expected] = {ontology.class_names.index(fine.coarse) for fine in ontology.fine if value in fine.raw}
        assert set(row.label[raw == value]) == {expected}
    assert len(np.unique(raw)) > 3


def row_path(tiny: Any) -> str:
    return str(tiny.frames()[0].label_path)


def test_a_label_that_the_dictionary_does_not_know_is_a_frame_error(tiny: Any, label: Any) -> None:
    raw = np.fromfile(tiny.path / row_path(tiny), np.uint8)
    raw[5] = 77
    tiny.write_file(row_path(tiny), raw.tobytes())
    with pytest.raises(FrameError, match=r"_lidarseg\.bin: raw labels \[77\] are not in ontology 'nuscenes'"):
        label()


def test_labels_of_another_sweep_are_a_frame_error(label: Any) -> None:
    with pytest.raises(FrameError, match="34688 labels for a sweep of 34720 points"):
        label(n_points=34720)


def test_a_frame_without_labels_among_others_that_have_some_is_a_frame_error(label: Any) -> None:
    with pytest.raises(FrameError, match="names no label file for sweep"):
        label(label_path=None)


def test_a_data_set_without_labels_is_refused_before_anything_is_built(shared: Path, recipe_over: Any) -> None:
    from pipeline.datasets.registry import open_dataset

    root = shared / "data" / "nuscenes-real"
    without, having = recipe_over(root, "v1.0-mini"), recipe_over(root, "v1.0-semireal")
    frames = list(open_dataset(without.data).frames())
    sentence = STAGE.refuse(without, frames)
    assert sentence and sentence.startswith(f"nuscenes v1.0-mini in {root} has no true point labels; only evaluation")
    assert STAGE.refuse(having, list(open_dataset(having.data).frames())) is None


def test_label_files_that_are_named_but_not_on_disk_are_refused_too(tiny: Any, recipe_over: Any) -> None:
    (tiny.path / "lidarseg").rename(tiny.path.parent / "elsewhere")
    sentence = STAGE.refuse(recipe_over(tiny.path), tiny.frames())
    assert sentence and "names 3 label files, but none is on disk" in sentence
