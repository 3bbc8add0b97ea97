"""Stage `project`: which points each camera sees, in which pixel, how far away, and whether behind something nearer."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.recipe import Recipe
from manifests.sections.tables import ProjectConfig
from manifests.stages import SPECS
from manifests.tables.base import Float32
from manifests.tables.sensors import Coordinates, Project
from pipeline.frame import Frame
from pipeline.geometry import project
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from superpixels.lifting import occluded


def prepare(recipe: Recipe) -> FrameFunction[Project]:
    """Return the function that projects the sweep of a frame into each of its images."""

    def project_sweep(inputs: FrameInput) -> Project:
        return visible_pairs(inputs.frame, inputs.rows[Coordinates].xyz_m, recipe.project)

    return project_sweep


def visible_pairs(frame: Frame, xyz_m: Float32, config: ProjectConfig) -> Project:
    """Return the row of table `project`: one pair per point and camera that sees it, by view and then by point.

    Occlusion is judged among all points of a view, in float64 depth.
    """
    seen = [
        project(
            xyz_m,
            camera.cam_from_lidar,
            camera.intrinsics,
            camera.width_px,
            camera.height_px,
            min_depth_m=config.min_depth_m,
        )
        for camera in frame.cameras
    ]

    def joined(name: str, dtype: str) -> npt.NDArray[Any]:
        return np.concatenate([np.empty(0, dtype), *(getattr(one, name) for one in seen)])

    view = np.repeat(np.arange(len(seen), dtype=np.uint8), [len(one.point) for one in seen])
    row_px, col_px, depth_m = joined("row_px", "<i4"), joined("col_px", "<i4"), joined("depth_m", "<f8")
    return Project(
        frame_id=frame.frame_id,
        point=joined("point", "<i4"),
        view=view,
        u_px=joined("u_px", "<f8").astype(np.float32),
        v_px=joined("v_px", "<f8").astype(np.float32),
        row_px=row_px.astype(np.uint16),
        col_px=col_px.astype(np.uint16),
        depth_m=depth_m.astype(np.float32),
        occluded=occluded(
            view,
            row_px,
            col_px,
            depth_m,
            cell_px=config.cell_px,
            ratio=config.depth_ratio,
            margin_m=config.margin_m,
        ),
    )


STAGE = Stage(
    table=SPECS["project"],
    prepare=prepare,
    index_columns=("width_px", "height_px", "intrinsics", "cam_from_lidar"),
    count=lambda row: {"pairs": len(row.point), "occluded_pairs": int(row.occluded.sum())},
    kilobytes_per_frame=lambda recipe: 350.0,
)
