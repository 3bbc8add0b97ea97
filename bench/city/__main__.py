"""`python -m bench.city OUT`: write the synthetic city."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from bench.city.config import SIZES, city_config
from bench.city.generate import write_city
from pipeline.commands.console import console, sentences


def city(
    out: Annotated[Path, typer.Argument(help="Folder to write, a data root for recipes.")] = Path("data/city"),
    size: Annotated[str, typer.Option(help=f"One of: {', '.join(SIZES)}.")] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives another city.")] = 0,
    image_size: Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Size of all images.")] = None,
    fisheye: Annotated[bool, typer.Option("--fisheye", help="All cameras have a fisheye lens.")] = False,
    sweeps_between: Annotated[
        int, typer.Option(min=0, max=9, help="Sweeps between key frames; 9: 20 Hz, with images at 12 Hz.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; their number changes no byte.")] = 2,
) -> None:
    """Write a synthetic city in nuScenes format, with true labels and class maps; needs no licence and no download."""
    with sentences():
        config = city_config(size, seed, image_size, fisheye, sweeps_between)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            bar = progress.add_task("city", total=len(config.scenes))
            write_city(out, config, workers, lambda scene: progress.advance(bar))
        console.print(
            f"{len(config.scenes)} scenes of {config.keyframes} key frames in {out}, version {config.version}"
        )


if __name__ == "__main__":
    typer.run(city)
