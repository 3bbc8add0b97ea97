"""Stage `motion`: what moves in a sweep, by what those before and after it in the same scene see of its places."""

from __future__ import annotations

import numpy as np

from manifests.recipe import Recipe
from manifests.stages import SPECS
from manifests.tables.motion import Motion
from manifests.tables.sensors import Coordinates
from pipeline.frame import FrameError
from pipeline.stages.base import FrameFunction, FrameInput, Stage
from superpixels.motion import Sweep, moving_things, standing
from superpixels.reach import asked_among
from superpixels.returns import is_return


def prepare(recipe: Recipe) -> FrameFunction[Motion]:
    """Return the function that finds what moves in a frame; it raises FrameError for poses that are unfit."""

    def found(inputs: FrameInput) -> Motion:
        here = inputs.frame
        ago_s = [(here.timestamp_us - one.frame.timestamp_us) / 1e6 for one in inputs.around]
        others = [inputs.around[number] for number in asked_among(ago_s, recipe.motion)]
        if not all(np.isfinite(one.world_from_lidar).all() for one in (here, *(other.frame for other in others))):
            raise FrameError("the data set has no pose of the vehicle, so what moves is unknown; leave vote.follow off")
        here_from_world = np.linalg.inv(here.world_from_lidar)
        xyz_m = inputs.rows[Coordinates].xyz_m
        there = is_return(xyz_m)
        sweeps = [Sweep(returns(one), here_from_world @ one.frame.world_from_lidar) for one in others]
        stands, thing = np.full(len(xyz_m), 0.5), np.zeros(len(xyz_m), np.uint16)
        stands[there] = standing(xyz_m[there], sweeps, recipe.motion)
        thing[there] = moving_things(xyz_m[there], stands[there], recipe.motion)
        return Motion(frame_id=here.frame_id, standing=np.rint(stands * 255).astype(np.uint8), thing=thing)

    return found


def returns(one: FrameInput) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Return the points of a frame that are returns, (n, 3)."""
    xyz_m = one.rows[Coordinates].xyz_m
    return xyz_m[is_return(xyz_m)]


STAGE = Stage(
    table=SPECS["motion"],
    prepare=prepare,
    index_columns=("n_points", "timestamp_us", "world_from_lidar"),
    count=lambda row: {
        "points": len(row.thing),
        "moving_points": int(np.count_nonzero(row.thing)),
        "moving_things": int(row.thing.max(initial=0)),
    },
    kilobytes_per_frame=lambda recipe: 20.0,
)
