"""What the pipeline's commands share: the console, the options of a recipe, names of stages, and a bar to look at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import typer

from manifests.config import ConfigError
from manifests.console import RecipeArgument, SetOption, matching_recipes, plain_console, sentences
from manifests.endings import Ending
from manifests.pulse import Bar
from pipeline.stages.registry import PACKED, STAGES

__all__ = ["Ending", "RecipeArgument", "SetOption", "console", "sentences"]

console = plain_console()

RecipesArgument = Annotated[
    list[str],
    typer.Argument(metavar="RECIPE...", help="A recipe, or several.", autocompletion=matching_recipes),
]
FramesOption = Annotated[int, typer.Option(min=1, help="How many frames at most, evenly chosen.")]
Targets = Annotated[list[str] | None, typer.Argument(help="Stages; default: all that the trainer reads (pack).")]


def expand(targets: list[str], also: Sequence[str] = ()) -> list[str]:
    """Return stage names, `pack` taken apart into what training reads and `also`; raises ConfigError for unknown ones.

    `also` is `run.pack_also` of the recipe at hand.
    """
    names: list[str] = []
    for target in also:
        if target not in STAGES:
            raise ConfigError(
                f'run.pack_also has "{target}", and there is no such stage; there are {", ".join(STAGES)}'
            )
    for target in targets:
        if target != "pack" and target not in STAGES:
            raise ConfigError(f"there is no stage `{target}`; there are pack, {', '.join(STAGES)}")
        names += [*PACKED, *also] if target == "pack" else [target]
    return names


def shown(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Yield the items, and show how far it got where somebody watches."""
    with Bar(console=console, disable=not console.is_terminal, transient=True) as progress:
        yield from progress.track(items, description=what)
