"""The simulated teacher where images have no maps: labelled points grown to superpixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.sections.tables import SegmentConfig
from manifests.tables.base import Rows
from manifests.tables.labels import Label
from manifests.tables.sensors import Project
from pipeline.frame import Frame, FrameError
from pipeline.stages import segment, text
from pipeline.stages.base import FrameInput
from pipeline.stages.segment import views_of
from superpixels.segments import Segments
from tests.filled import record
from tests.pipeline.test_oracle import CAR, NOISE, ROAD, camera, fine_map, frame_of, recipe_at


def points_frame(tmp_path: Path) -> tuple[Frame, Rows]:
    """Two views of 120 x 80 pixels, left half black and right half white; labelled points in each half of the first."""
    image = np.zeros((80, 120, 3), np.uint8)
    image[:, 60:] = 230
    for token in "ab":
        Image.fromarray(image).save(tmp_path / f"{token}.png")
    row, col = (axis.ravel() for axis in np.meshgrid(np.arange(5, 80, 10), np.arange(5, 120, 10), indexing="ij"))
    n = len(row)
    raw = np.where(col < 60, ROAD, CAR).astype(np.uint16)
    point, row_px, col_px = np.arange(n, dtype=np.int32), row.astype(np.uint16), col.astype(np.uint16)
    rows = Rows(record(Label, raw=raw), record(Project, point=point, row_px=row_px, col_px=col_px))
    return frame_of(camera("a", 120, 80), camera("b", 120, 80)), rows


def see_points(tmp_path: Path, rows: Rows, frame: Frame, **values: Any) -> list[Segments]:
    recipe = recipe_at(tmp_path, source="points", **{"slic_px": 10.0, **values})
    inputs = FrameInput(frame, rows, text.build(recipe))
    assert segment.STAGE.prepare is not None
    return views_of(segment.STAGE.prepare(recipe)(inputs))


def test_points_grow_to_superpixels_and_stop_at_edges(tmp_path: Path) -> None:
    frame, rows = points_frame(tmp_path)
    for scale in (1.0, 0.5):
        seen, unseen = see_points(tmp_path, rows, frame, segmentation=SegmentConfig(scale=scale))
        half = round(60 * scale)
        assert set(np.unique(fine_map(seen)[:, :half])) == {ROAD}
        assert set(np.unique(fine_map(seen)[:, half:])) == {CAR}
        assert len(unseen) == 0 and not unseen.label_map().any()


def test_hidden_and_nameless_points_do_not_count(tmp_path: Path) -> None:
    frame, rows = points_frame(tmp_path)
    raw, project = rows[Label].raw, rows[Project]
    project.occluded[:] = project.col_px >= 60
    raw[(project.col_px < 60) & (project.row_px < 40)] = NOISE
    [seen, _] = see_points(tmp_path, rows, frame, grow_px=0.0)
    named = fine_map(seen)
    assert (named[:, 60:] == -1).all()
    assert (named[:30, :60] == -1).all()
    assert (named[50:, :60] == ROAD).all()


def test_a_label_is_passed_on_no_farther_than_asked(tmp_path: Path) -> None:
    frame, rows = points_frame(tmp_path)
    project = rows[Project]
    project.occluded[:] = (project.row_px > 10) | (project.col_px > 60)
    reached = []
    for grow_px in (0.0, 25.0, 60.0, 500.0):
        [seen, _] = see_points(tmp_path, rows, frame, grow_px=grow_px)
        reached.append(int((fine_map(seen) == ROAD).sum()))
    assert reached == sorted(reached) and len(set(reached)) == 4
    assert reached[-1] == 80 * 120


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    frame, rows = points_frame(tmp_path)
    (tmp_path / "b.png").unlink()
    with pytest.raises(FrameError, match=r"b\.png: No such file"):
        see_points(tmp_path, rows, frame)
