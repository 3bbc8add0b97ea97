"""Commands about teachers themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from manifests.recipe import load_recipe
from pipeline.commands.console import Ending, RecipeArgument, SetOption, console, sentences


def check_teacher(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write all of it as JSON too.")] = None,
) -> None:
    """Send a drawn picture through a teacher's weights: numbers to compare with others'; exit 1 if untrained."""
    from pipeline.checks.teacher import look

    with sentences():
        found = look(load_recipe(recipe, set_ or ()))
        console.print(f"teacher {found.teacher}, picture {found.picture_sha256[:12]}, version {found.version}")
        for source, digest in found.weights.items():
            console.print(f"weights {source}: {digest}", markup=False, soft_wrap=True)
        numbers = Table("number", "value")
        for name, value in found.numbers.items():
            numbers.add_row(name, f"{value:.4f}")
        named = Table("in the picture", "most of it is named")
        for part, name in found.named.items():
            named.add_row(part, name)
        console.print(numbers)
        console.print(named)
        for name, digest in found.digests.items():
            console.print(f"sha256 of {name}: {digest}", markup=False, soft_wrap=True)
        if out is not None:
            out.write_text(json.dumps(found.document, indent=2, sort_keys=True) + "\n")
            console.print(f"written to {out}")
        for warning in found.warnings:
            console.print(f"looks untrained: {warning}", markup=False, soft_wrap=True)
        if found.warnings:
            raise typer.Exit(Ending.FAILED)
        console.print("nothing looks untrained; compare the numbers with those of others (docs/teachers.md)")
