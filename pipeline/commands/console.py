"""What all commands share: the console, the options of a recipe, and errors as one sentence with an exit status."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from manifests.config import ConfigError
from pipeline.stages import PACKED, STAGES

console = Console(stderr=False, highlight=False)

RecipeArgument = Annotated[str, typer.Argument(help="A recipe: a .toml file, or the name of a built-in one.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override a value; may be repeated.")
]
FramesOption = Annotated[int, typer.Option(min=1, help="How many frames at most, evenly chosen.")]
Targets = Annotated[list[str] | None, typer.Argument(help="Stages; default: all that the trainer reads (pack).")]


@contextmanager
def sentences() -> Iterator[None]:
    """Print expected errors as one sentence: exit 2 for a wrong recipe, exit 1 for a table or a machine at fault."""
    try:
        yield
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except RuntimeError as error:  # StoreError, FrameError, Ray that cannot be reached
        if isinstance(error, typer.Exit):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped; finished shards are kept, the next run goes on from them", file=sys.stderr)
        raise typer.Exit(130) from None


def expand(targets: list[str]) -> list[str]:
    """Return stage names, `pack` taken apart; raises ConfigError for an unknown one."""
    names = []
    for target in targets:
        if target != "pack" and target not in STAGES:
            raise ConfigError(f"there is no stage `{target}`; there are pack, {', '.join(STAGES)}")
        names += list(PACKED) if target == "pack" else [target]
    return names


def shown(items: Sequence[Any], what: str) -> Iterable[Any]:
    """Yield the items, and show how far it got where somebody watches."""
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        yield from progress.track(items, description=what)
