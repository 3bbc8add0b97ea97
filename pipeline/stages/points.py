"""Stage `points`: the sweeps as the trainer reads them."""

from __future__ import annotations

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.sensors import Points
from pipeline.datasets.registry import DATASETS, open_dataset
from pipeline.stages.base import FrameFunction, FrameInput, Stage


def prepare(recipe: Recipe) -> FrameFunction[Points]:
    """Return the function that reads the sweep of a frame: coordinates and intensity, order of the file."""
    dataset = open_dataset(recipe.data)

    def read(inputs: FrameInput) -> Points:
        frame = inputs.frame
        cloud = inputs.sweeps.take(frame) or dataset.read_cloud(frame)
        n_points = len(cloud.xyz_m)
        return Points(frame_id=frame.frame_id, n_points=n_points, xyz_m=cloud.xyz_m, intensity=cloud.intensity)

    return read


POSES_OF_POINTS = {"lidar": (), "ego": ("ego_from_lidar",), "world": ("world_from_lidar",)}
"""The poses that points go through, by the frame that their files have them in."""

OF_SEVERAL = {False: (), True: ("sweep_path", "sweep_sha256", "lidar_from_sweep")}
"""What tells of the others, where several LiDARs are joined."""

MOTION = {False: (), True: ("timestamp_us", "lidar_motion")}
"""What brings points to the time of their sweep, where they have times of their own."""

STAGE = Stage(
    table=SPECS["points"],
    prepare=prepare,
    index_columns=("lidar_token", "lidar_path", "lidar_sha256", "n_points"),
    more_index_columns=lambda recipe: (
        POSES_OF_POINTS[recipe.data.points_in]
        + OF_SEVERAL[len(recipe.data.lidar) > 1]
        + MOTION[bool(recipe.data.time_column)]
    ),
    kilobytes_per_frame=lambda recipe: 0.012 * DATASETS[recipe.data.dataset].points_per_frame,
)
