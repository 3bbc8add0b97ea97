"""Stage `pairs`: what contrastive pre-training reads: points, the superpoints they belong to, and their vectors."""

from __future__ import annotations

import numpy as np

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.sensors import Project
from manifests.tables.superpoints import Pairs, Superpoints
from manifests.tables.teacher import Segment
from pipeline.stages.base import FrameFunction, FrameInput, Stage


def prepare(recipe: Recipe) -> FrameFunction[Pairs]:
    """Return the function that gathers the pairs of a frame and the vectors of the segments behind its superpoints."""
    return gather


def gather(inputs: FrameInput) -> Pairs:
    """Return the row of table `pairs`; pixels are those of the full image, vectors those of superpoints alone."""
    project, group, segment = inputs.rows[Project], inputs.rows[Superpoints], inputs.rows[Segment]
    pair, view = group.pair, group.superpoint_view
    first = np.cumsum(segment.segments_in_view) - segment.segments_in_view
    cameras = inputs.frame.cameras
    return Pairs(
        frame_id=inputs.frame.frame_id,
        point=project.point[pair],
        superpoint=group.pair_superpoint,
        row_px=project.row_px[pair],
        col_px=project.col_px[pair],
        superpoint_view=view,
        superpoint_prompt=group.superpoint_prompt,
        vector=segment.vector[first[view] + group.superpoint_segment - 1],
        height_px=np.array([camera.height_px for camera in cameras], np.int32),
        width_px=np.array([camera.width_px for camera in cameras], np.int32),
    )


STAGE = Stage(
    table=SPECS["pairs"],
    prepare=prepare,
    index_columns=("width_px", "height_px"),
    kilobytes_per_frame=lambda recipe: 260.0,
)
