"""How much the doctor finds, on a few of the faults that bench/doctor.py injects by the hundred."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.doctor import FAULTS, Bed, false_alarms, is_found, open_beds, write_between
from manifests.sections.data import DataConfig


@pytest.fixture(scope="module")
def bed(shared: Path) -> Bed:
    """The two real key frames of nuScenes: six cameras, and no speed is known."""
    [found] = open_beds(DataConfig(root=str(shared / "data" / "nuscenes-real"), version="v1.0-mini"), "nuScenes", 1)
    return found


@pytest.fixture(scope="module")
def drive(shared: Path) -> Bed:
    """Four real frames of SemanticKITTI, one camera, that follow each other at 6 to 12 m/s."""
    root = str(shared / "data" / "semantickitti-runs")
    return open_beds(DataConfig(dataset="semantic_kitti", root=root, ontology="semantic_kitti"), "KITTI", 1)[0]


def test_right_frames_raise_no_alarm_together_or_alone(bed: Bed, drive: Bed) -> None:
    assert false_alarms(bed) == [] and false_alarms(drive) == []


@pytest.mark.parametrize("kind", sorted(FAULTS))
def test_most_faults_of_every_kind_are_found(bed: Bed, drive: Bed, kind: str) -> None:
    rng = np.random.default_rng(0)
    made = [spoilt for one in (bed, drive) for _ in range(2) if (spoilt := FAULTS[kind](one, rng)) is not None]
    assert made and sum(is_found(spoilt) for spoilt in made) >= len(made) - 1


def test_what_is_not_changed_is_not_found(bed: Bed) -> None:
    assert not is_found(bed)


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- doctor: written by bench/doctor.py -->\nold\n<!-- end of doctor -->\nb\n")
    write_between(page, "new")
    assert page.read_text().splitlines()[2] == "new" and page.read_text().endswith("b\n")
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no place for the table"):
        write_between(page, "new")
