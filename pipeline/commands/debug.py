"""A command for whoever looks for a fault: one frame of one stage, in this process, with nothing in between."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import typer

from manifests.config import ConfigError
from manifests.recipe import load_recipe
from pipeline.commands.console import RecipeArgument, SetOption, console, expand, sentences
from pipeline.engine.runner import Runner
from pipeline.engine.tasks import StagePlan
from pipeline.engine.worker import Worker
from pipeline.stages.registry import STAGES


def debug_frame(
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage whose row to make.")],
    recipe: RecipeArgument,
    frame: Annotated[str, typer.Argument(metavar="FRAME", help="A frame id, as the list of failures has it.")],
    set_: SetOption = None,
    pdb: Annotated[bool, typer.Option("--pdb", help="Stop in the debugger where it fails.")] = False,
) -> None:
    """Make one frame's row of one stage in this process, from the tables that are there; print it, commit nothing."""
    with sentences():
        runner = Runner(load_recipe(recipe, set_ or ()))
        name = expand([stage])[-1]
        if STAGES[name].build:
            raise ConfigError(f"stage {name} makes one table for all frames, and has no row of a frame")
        shard, position = place_of(runner, frame)
        plans: dict[str, StagePlan] = {plan.stage.name: plan for plan in runner.plan([name])}
        task = runner.plan_shard(runner.look(STAGES[name], again=True), shard, plans).task
        if task is None:
            raise ConfigError(f"shard {shard} of what stage {name} needs is not built; run: make {name} RECIPE=...")
        try:
            row = Worker(runner.recipe).one_row(task, position)
        except Exception as error:
            if pdb:
                post_mortem(error)
            raise
        for column, value in vars(row).items():
            console.print(f"{column:>20}  {described(value)}", soft_wrap=True)


def place_of(runner: Runner, frame_id: str) -> tuple[str, int]:
    """Return the shard of a frame and its position there; raises ConfigError where the split has no such frame."""
    for shard, frames in runner.listing().items():
        for position, frame in enumerate(frames):
            if frame.frame_id == frame_id:
                return shard, position
    raise ConfigError(f"there is no frame {frame_id} in data.split = {runner.recipe.data.split!r}")


def described(value: Any) -> str:
    """Return a value in a line: of an array its type, shape and range."""
    if not isinstance(value, np.ndarray):
        return repr(value)[:200]
    ends = f", {value.min()} to {value.max()}" if value.size and value.dtype.kind in "biuf" else ""
    return f"{value.dtype} {value.shape}{ends}"


def post_mortem(error: Exception) -> None:
    """Open the debugger where an error arose."""
    import pdb

    pdb.post_mortem(error.__traceback__)
