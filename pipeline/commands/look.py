"""Commands that show people what is in the tables."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from manifests.query import HEADINGS
from manifests.recipe import load_recipe
from manifests.tables.document import document
from pipeline.commands.console import (
    FramesOption,
    RecipeArgument,
    RecipesArgument,
    SetOption,
    console,
    sentences,
    shown,
)


def query(
    recipe: RecipeArgument,
    phrase: Annotated[str, typer.Argument(metavar="WORDS", help='What to look for, for example "fire hydrant".')],
    set_: SetOption = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to keep of the ranking.")] = 10,
) -> None:
    """Ask the map: rank frames by how like a phrase the masks of their points are; `report` and `view` show it."""
    from pipeline.look.query import ask

    with sentences():
        asked, ranking = ask(load_recipe(recipe, set_ or ()), phrase, frames, shown)
        table = Table(*HEADINGS, title=f"“{asked.phrase}”, by mask vectors")
        for cells in ranking.cells():
            table.add_row(*cells)
        console.print(table)
        console.print(ranking.about(), soft_wrap=True)


def report(
    recipes: RecipesArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page; default: reports/RECIPE, reports/A+B.")] = None,
    frames: FramesOption = 4,
    single_file: Annotated[bool, typer.Option("--single-file", help="Put all pictures into the page itself.")] = False,
) -> None:
    """Write one offline page: frames, scores, label coverage, curves, identities; of several recipes, side by side."""
    from pipeline.look.comparison import write_comparison
    from pipeline.look.report import write_report

    with sentences():
        loaded = [load_recipe(recipe, set_ or ()) for recipe in recipes]
        folder = out or Path("reports") / "+".join(one.run_name for one in loaded)
        if len(loaded) > 1:
            page = write_comparison(loaded, folder)  # one file as it is
        else:
            page = write_report(loaded[0], folder, frames, shown, single_file=single_file)
        console.print(f"wrote {page}", soft_wrap=True)


def view(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Write this .rrd file instead of opening the viewer.")] = None,
    frames: FramesOption = 4,
) -> None:
    """Open frames in Rerun, which is an extra, or write them as a recording for it."""
    from pipeline.look.viewer import view_frames, write_recording

    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        not_shown = view_frames(loaded, frames, shown) if out is None else write_recording(loaded, out, frames, shown)
        for line in not_shown:
            console.print(line, soft_wrap=True)
        if out is not None:
            console.print(f"wrote {out}; look at it with: rerun {out}", soft_wrap=True)


def pictures(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures; default: pictures/RECIPE.")] = None,
    frames: FramesOption = 4,
    depth: Annotated[bool, typer.Option("--depth", help="Colour points by depth, to judge calibration.")] = False,
) -> None:
    """Draw frames, a picture each: images with segments and points, and all labels there are from above.

    After `project` alone points are coloured by depth.
    """
    from pipeline.look.frames import draw_frames

    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        folder, tell = out or Path("pictures") / loaded.run_name, partial(console.print, soft_wrap=True)
        for path in draw_frames(loaded, folder, frames, depth, tell):
            console.print(f"wrote {path}", soft_wrap=True)


def docs(
    path: Annotated[Path, typer.Argument(help="Where to write.")] = Path("docs/data.md"),
) -> None:
    """Write the description of all tables, generated from their schemas."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(), encoding="utf-8")
    console.print(f"wrote {path}")
