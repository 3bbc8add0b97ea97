"""Stage `project`: which points each camera sees, in which pixel, how far away, and whether behind something nearer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from manifests.recipe import Recipe
from manifests.sections.tables import ProjectConfig
from manifests.stages import SPECS
from manifests.storage.places import root_of
from manifests.tables.base import Bool, Float32
from manifests.tables.sensors import Coordinates, Project
from pipeline.frame import Frame, read_mask
from pipeline.geometry import Projection, columns_of, project_columns
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from superpixels.lifting import occluded


def prepare(recipe: Recipe) -> FrameFunction[Project]:
    """Return the function that projects the sweep of a frame into each of its images."""
    root = root_of(recipe.data)
    masks: dict[tuple[str, str], Bool | None] = {}  # a camera's mask is the same in most frames

    def project_sweep(inputs: FrameInput) -> Project:
        for camera in inputs.frame.cameras:
            place = camera.mask_path, camera.mask_sha256
            if place not in masks:
                masks[place] = read_mask(root, camera)
        found = [masks[camera.mask_path, camera.mask_sha256] for camera in inputs.frame.cameras]
        return visible_pairs(inputs.frame, inputs.rows[Coordinates].xyz_m, recipe.project, found)

    return project_sweep


def visible_pairs(
    frame: Frame, xyz_m: Float32, config: ProjectConfig, masks: Sequence[Bool | None] | None = None
) -> Project:
    """Return the row of table `project`: one pair per point and camera that sees it, by view and then by point.

    No point is seen where a mask (height, width) says that the camera sees the vehicle itself. Occlusion is judged
    among all other points of a view, in float64 depth.
    """
    sweep = columns_of(xyz_m)
    seen = [
        unmasked(
            project_columns(
                sweep,
                camera.cam_from_lidar,
                camera.intrinsics,
                camera.width_px,
                camera.height_px,
                min_depth_m=config.min_depth_m,
                lens=camera.lens,
                shutter=camera.shutter,
            ),
            mask,
        )
        for camera, mask in zip(frame.cameras, masks or [None] * len(frame.cameras), strict=True)
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


def unmasked(seen: Projection, mask: Bool | None) -> Projection:
    """Return the points of a view that do not land where the image shows the vehicle, (height, width)."""
    if mask is None:
        return seen
    kept = ~mask[seen.row_px, seen.col_px]
    return Projection(**{name: values[kept] for name, values in vars(seen).items()})


SHUTTERS = ("shutter", "readout_s", "cam_motion")
"""What tells of rolling shutters; data sets other than `folder` tell of none, and keep the keys that they had."""

STAGE = Stage(
    table=SPECS["project"],
    prepare=prepare,
    index_columns=("width_px", "height_px", "intrinsics", "cam_from_lidar", "lens", "distortion", "mask_sha256"),
    more_index_columns=lambda recipe: SHUTTERS if recipe.data.dataset == "folder" else (),
    count=lambda row: {"pairs": len(row.point), "occluded_pairs": int(row.occluded.sum())},
    kilobytes_per_frame=lambda recipe: 350.0,
)
