"""From files to packed rows in parity mode, stage by stage: what comes out equals the reference implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from manifests.sections.tables import GroupConfig
from manifests.sections.teachers.artifacts import ArtifactsConfig
from manifests.tables.arrow import from_arrow, to_arrow
from manifests.tables.base import Rows
from manifests.tables.labels import Target
from manifests.tables.sensors import Index, Points, Project
from manifests.tables.superpoints import Group, Pairs
from manifests.tables.teacher import Segment
from pipeline.datasets.registry import open_dataset
from pipeline.frame import Frame
from pipeline.stages import segment as segment_stage
from pipeline.stages.group import segment_at
from pipeline.stages.registry import STAGES
from pipeline.teachers.artifacts import Artifacts, read_text
from superpixels.lifting import official_point_labels

PARITY = GroupConfig(policy="last_camera", occluded=True, min_points=1)
SIMULATED = ("nuscenes_tiny", "superpixels_tiny", ".")
REAL = ("real_nuscenes/root", "real_nuscenes/superpixels", "real_nuscenes")


@pytest.fixture(params=[SIMULATED, REAL], ids=["simulated", "real"])
def built(
    request: pytest.FixtureRequest, shared: Path, recipe_over: Any, run_stage: Any
) -> tuple[Path, dict[str, Rows]]:
    """The folder of expected arrays, and by sweep token the rows of every stage in parity mode."""
    root, masks, expected = (shared / "golden" / folder for folder in request.param)
    teacher = ArtifactsConfig(folder=str(masks), void=True)
    recipe = recipe_over(root, teacher=teacher, group=PARITY)
    text = read_text(teacher, len(recipe.ontology.prompts))
    found: dict[str, Rows] = {}
    for listed in open_dataset(recipe.data).frames():
        rows = Rows(run_stage(STAGES["index"], recipe, listed))
        frame = Frame.of(rows[Index])
        rows = rows.also(segment_row(Artifacts(teacher), frame, text))
        for name in ("points", "project", "group", "pairs", "target"):
            rows = rows.also(run_stage(STAGES[name], recipe, frame, *rows))
        found[frame.lidar_token] = rows
    return expected, found


def segment_row(teacher: Artifacts, frame: Frame, text: npt.NDArray[Any]) -> Segment:
    made = segment_stage.segment_row(frame.frame_id, teacher.segment(frame, {}, text))
    [stored] = from_arrow(to_arrow([made], Segment), Segment)
    assert isinstance(stored, Segment)
    return stored


def expected_arrays(folder: Path, pattern: str) -> list[dict[str, npt.NDArray[Any]]]:
    files = sorted(folder.glob(pattern))
    assert files
    return [dict(np.load(file)) for file in files]


def test_rows_equal_the_reference_in_labels_pairs_pixels_vectors_and_masks(built: tuple[Path, dict[str, Rows]]) -> None:
    folder, found = built
    check_point_labels(folder, found)
    visible = check_pairs(folder, found)
    check_resized_masks(folder, visible)


def check_point_labels(folder: Path, found: dict[str, Rows]) -> None:
    expected = expected_arrays(folder, "superpoints_*.npz")
    assert {str(arrays["lidar_token"]) for arrays in expected} == found.keys()
    for arrays in expected:
        group = found[str(arrays["lidar_token"])][Group]
        labels = official_point_labels(group.point_superpoint, group.superpoint_fine)
        np.testing.assert_array_equal(labels, arrays["label_set_float64"])
        assert (labels != arrays["label_set"]).sum() <= 5  # that array was made with float32 projection


def check_pairs(folder: Path, found: dict[str, Rows]) -> list[tuple[Rows, dict[str, npt.NDArray[Any]]]]:
    """Returns the rows of each frame that pre-training was recorded for, with what was recorded."""
    recorded = []
    for arrays in expected_arrays(folder, "pretrain_none_*.npz"):
        rows = found[str(arrays["lidar_token"])]
        project, pairs, segment = rows[Project], rows[Pairs], rows[Segment]
        # The recorded pairs name the voxel of each point, and keep points that hit no segment.
        np.testing.assert_array_equal(arrays["inverse_indexes"][project.point], arrays["pairing_points"])
        pixel = np.column_stack([project.view, project.row_px, project.col_px]).astype(int)
        moved = (pixel != arrays["pairing_images"]).any(axis=1)
        # The reference projects in float32, which turns up to 0.03 px into another pixel, in under 1 % of the pairs.
        assert moved.mean() < 0.01 and np.abs(pixel - arrays["pairing_images"]).max() == 1
        fraction = np.column_stack([project.v_px, project.u_px])[moved] % 1
        assert np.abs(fraction - 0.5).min(axis=1).max() < 0.03
        hit = (
            segment_at(project.view, project.row_px, project.col_px, cameras(rows), segment_stage.views_of(segment)) > 0
        )
        np.testing.assert_array_equal(pairs.point, project.point[hit])
        np.testing.assert_array_equal(pairs.row_px, project.row_px[hit])

        # Recorded: view, segment counted from 0, prompt; of every segment, hit by a point or not.
        names = arrays["features_image_id_seg_word"]
        group = rows[Group]
        position = {(view, number + 1): i for i, (view, number, _) in enumerate(names.tolist())}
        keys = zip(group.superpoint_view.tolist(), group.superpoint_segment.tolist(), strict=True)
        place = [position[key] for key in keys]
        np.testing.assert_array_equal(pairs.superpoint_prompt, names[place, 2])
        assert len(names) == segment.segments_in_view.sum()
        if len(arrays["features_vec"]) == len(names):  # some records keep the first vector only
            np.testing.assert_allclose(pairs.vector, arrays["features_vec"][place], atol=3e-4)  # half a float16 step
        else:
            np.testing.assert_allclose(segment.vector[0], arrays["features_vec"][0], atol=3e-4)
        recorded.append((rows, arrays))
    return recorded


def check_resized_masks(folder: Path, visible: list[tuple[Rows, dict[str, npt.NDArray[Any]]]]) -> None:
    """The reference looks masks up after shrinking them to 224 x 416; we do at full resolution."""
    for resized in expected_arrays(folder, "pretrain_val_*.npz"):
        [(rows, arrays)] = [
            pair for pair in visible if np.array_equal(pair[1]["pairing_points"], resized["pairing_points"])
        ]
        project = rows[Project]
        pixel = np.column_stack([project.view, project.row_px, project.col_px]).astype(int)
        same = (pixel == arrays["pairing_images"]).all(axis=1)
        row = np.minimum(np.rint(project.row_px * (224 / 900)), 223)
        col = np.minimum(np.rint(project.col_px * (416 / 1600)), 415)
        shrunk = np.column_stack([project.view, row, col])
        np.testing.assert_array_equal(shrunk[same], resized["pairing_images"][same])
        ours = segment_at(
            project.view, project.row_px, project.col_px, cameras(rows), segment_stage.views_of(rows[Segment])
        )
        theirs = resized["superpixels"][tuple(resized["pairing_images"].T)]
        assert (ours == theirs).mean() >= 0.94


def cameras(rows: Rows) -> tuple[Any, ...]:
    return Frame.of(rows[Index]).cameras


def test_packing_needs_no_lidarseg_table_or_folder(tiny: Any, shared: Path, recipe_over: Any, run_stage: Any) -> None:
    (tiny.path / tiny.version / "lidarseg.json").unlink()
    (tiny.path / "lidarseg").rename(tiny.path.parent / "elsewhere")
    teacher = ArtifactsConfig(folder=str(shared / "golden" / "superpixels_tiny"), void=True)
    recipe = recipe_over(tiny.path, teacher=teacher)
    text = read_text(teacher, len(recipe.ontology.prompts))
    for listed in tiny.frames():
        frame = Frame.of(run_stage(STAGES["index"], recipe, listed))
        assert frame.label_path is None
        rows = Rows(segment_row(Artifacts(teacher), frame, text))
        for name in ("points", "project", "group", "pairs", "target"):
            rows = rows.also(run_stage(STAGES[name], recipe, frame, *rows))
        assert rows[Points].n_points == len(rows[Target].label) > 34000
        assert np.count_nonzero(rows[Target].label) > 10000


def test_an_occluded_point_loses_the_label_of_the_foreground_and_nothing_else_changes(
    shared: Path, recipe_over: Any, run_stage: Any
) -> None:
    root, masks = shared / "golden" / "real_nuscenes" / "root", shared / "golden" / "real_nuscenes" / "superpixels"
    teacher = ArtifactsConfig(folder=str(masks), void=True)
    keeping = recipe_over(root, teacher=teacher, group=PARITY)
    leaving = recipe_over(root, teacher=teacher, group=GroupConfig(policy="last_camera", occluded=False))
    text = read_text(teacher, len(keeping.ontology.prompts))
    for listed in open_dataset(keeping.data).frames():
        frame = Frame.of(run_stage(STAGES["index"], keeping, listed))
        points = run_stage(STAGES["points"], keeping, frame)
        project = run_stage(STAGES["project"], keeping, frame, points)
        rows = project, segment_row(Artifacts(teacher), frame, text)
        all_pairs = run_stage(STAGES["group"], keeping, frame, *rows)
        visible_pairs = run_stage(STAGES["group"], leaving, frame, *rows)
        hidden = project.occluded
        np.testing.assert_array_equal(visible_pairs.pair, all_pairs.pair[~hidden[all_pairs.pair]])
        changed = all_pairs.label != visible_pairs.label
        assert 0 < changed.sum() < 0.1 * len(changed)
        assert set(np.flatnonzero(changed)) <= set(project.point[hidden])
