"""Verbs of `afov` itself: those that need both programs, or name the recipe first where a program does not."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from rich.table import Table

from afov import demo as demonstration
from afov.programs import call
from manifests.config import RECIPES, ConfigError, read_recipe
from manifests.console import (
    AloneOption,
    LicenceOption,
    RecipeArgument,
    SetOption,
    debuggable,
    plain_console,
    sentences,
)
from manifests.effective import DEFAULT, as_toml, effective
from manifests.recipe import load_recipe
from manifests.stages import SPECS

FOR_TRAINING = ["pack", "text"]
"""The tables that training reads: those that are packed, and the prompts' vectors, which pre-training compares with."""

RepositoryArgument = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A dataset repository of the hub.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = plain_console()


@app.command()
@debuggable
def run(
    recipe: RecipeArgument,
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]...", help="Default: pack, all that training reads.")
    ] = None,
    set_: SetOption = None,
    again: Annotated[bool, typer.Option("--again", help="Build these tables' shards even if they exist.")] = False,
) -> None:
    """Build what is missing of tables and of all that they need. Kill it at any time and start it again."""
    from pipeline.commands.build import run as build

    if recipe in (*SPECS, "pack"):
        with sentences():
            raise ConfigError(f"the recipe comes first: afov run RECIPE {recipe}")
    build(",".join(tables or ["pack"]), recipe, set_, again)


@app.command("debug-frame")
@debuggable
def debug_frame(
    recipe: RecipeArgument,
    stage: Annotated[str, typer.Argument(metavar="STAGE", help="The stage whose row to make.")],
    frame: Annotated[str, typer.Argument(metavar="FRAME", help="A frame id, as the list of failures has it.")],
    set_: SetOption = None,
    pdb: Annotated[bool, typer.Option("--pdb", help="Stop in the debugger where it fails.")] = False,
) -> None:
    """Make one frame's row of one stage in this process, from the tables that are there; print it, commit nothing."""
    from pipeline.commands.debug import debug_frame as look

    look(stage, recipe, frame, set_, pdb)


@app.command()
@debuggable
def query(
    recipe: RecipeArgument,
    phrase: Annotated[str, typer.Argument(metavar="WORDS", help='What to look for, for example "fire hydrant".')],
    set_: SetOption = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames to keep of the rankings.")] = 10,
) -> None:
    """Ask the map for a phrase: frames and points that are like it, by masks and, once pre-trained, by features."""
    options = [*(word for one in set_ or () for word in ("--set", one)), "--frames", str(frames)]
    with sentences():
        for program, more in (("pipeline", []), ("trainer", ["--if-trained"])):
            code = call(program, "query", *more, *options, "--", recipe, phrase)
            if code:
                raise typer.Exit(code)


@app.command()
@debuggable
def share(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(metavar="OUT.tar", help="The file to write.")],
    tables: Annotated[
        list[str] | None, typer.Argument(metavar="[TABLE]...", help="Default: pack and text, all that training reads.")
    ] = None,
    set_: SetOption = None,
    licence: LicenceOption = None,
    alone: AloneOption = False,
) -> None:
    """Write tables with all that they were made from and a licence note as one archive, for `afov receive`."""
    from pipeline.commands.exchange import export_tables

    export_tables(recipe, tables or FOR_TRAINING, out, set_, licence, alone)


@app.command()
@debuggable
def publish(
    recipe: RecipeArgument,
    repository: RepositoryArgument,
    set_: SetOption = None,
    licence: LicenceOption = None,
    revision: Annotated[str, typer.Option(help="A branch; default: the main one.")] = "",
    public: Annotated[
        bool, typer.Option("--public", help="Make a new repository one that all may read: does the licence allow it?")
    ] = False,
) -> None:
    """Put all that training reads onto the Hugging Face hub, a dataset repository of your own, for `afov fetch`."""
    from pipeline.commands.exchange import export_tables
    from pipeline.exchange import hub

    with sentences(), TemporaryDirectory() as folder:
        place, name = hub.Place(repository, revision), load_recipe(recipe, set_ or ()).name
        archive = Path(folder) / hub.file_of(name)
        export_tables(recipe, FOR_TRAINING, archive, set_, licence, False)
        commit = hub.publish(archive, name, place, public)
        console.print(f"{repository}: {hub.file_of(name)} is there, commit {commit}", soft_wrap=True)


@app.command()
@debuggable
def fetch(
    recipe: RecipeArgument,
    repository: RepositoryArgument,
    set_: SetOption = None,
    revision: Annotated[str, typer.Option(help="A commit, tag or branch; default: the newest of the main one.")] = "",
) -> None:
    """Get a recipe's tables from the Hugging Face hub into its store, checked to the last byte, to train on."""
    from pipeline.commands.exchange import import_tables
    from pipeline.exchange import hub

    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        archive = hub.fetch(loaded.name, hub.Place(repository, revision))
        import_tables(archive, loaded.run.store)


@app.command()
@debuggable
def receive(
    archive: Annotated[Path, typer.Argument(metavar="OUT.tar", help="An archive that `afov share` wrote.")],
    into: Annotated[str, typer.Option(help="The store to put them into.")] = "store",
) -> None:
    """Check an archive to its last byte and put its tables into a store; a recipe that needs them finds them there."""
    from pipeline.commands.exchange import import_tables

    import_tables(archive, into)


@app.command()
@debuggable
def demo(
    set_: SetOption = None,
    size: Annotated[str, typer.Option(help="Of the city: demo, or tiny for a quick one.")] = "demo",
) -> None:
    """Run the main job, end to end, on a synthetic city, in the working folder; needs no data set and no weights."""
    with sentences():
        demonstration.demo(size, set_ or (), lambda text: console.print(text, soft_wrap=True))


@app.command()
@debuggable
def show(
    recipe: RecipeArgument,
    set_: SetOption = None,
    changed: Annotated[bool, typer.Option("--changed", help="Leave out what has its default.")] = False,
) -> None:
    """Print the recipe as it takes effect, as TOML, and where each value comes from; docs/settings.md explains them."""
    with sentences():
        found = [one for one in effective(recipe, set_ or ()) if not (changed and one.origin == DEFAULT)]
        console.print(as_toml(found), soft_wrap=True)


@app.command()
@debuggable
def docs(folder: Annotated[Path, typer.Argument(help="Where to write.")] = Path("docs")) -> None:
    """Write the pages that are made from the code: data.md, of all tables, settings.md, of all settings, files.md."""
    from afov.files import files_document
    from afov.settings import settings_document
    from pipeline.commands.look import docs as tables

    tables(folder / "data.md")
    (folder / "settings.md").write_text(settings_document(), encoding="utf-8")
    (folder / "files.md").write_text(files_document(Path(__file__).parent.parent), encoding="utf-8")
    console.print(f"wrote {folder / 'settings.md'} and {folder / 'files.md'}")


@app.command()
@debuggable
def autolabel(
    recipe: RecipeArgument,
    set_: SetOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Move earlier trainings aside and start them over.")] = False,
) -> None:
    """From drives to label files in one command: tables, training, predictions, refinement, labels, report.

    What is done is left alone, so it may be stopped at any time. A recipe with [refine] of = "pseudo", or [labels] of a
    table of pseudo-labels, is labelled without any training.
    """
    from afov.autolabel import autolabel as run

    with sentences("autolabel", "what is finished is kept, and the same command goes on from there"):
        code = run(load_recipe(recipe, set_ or ()), set_ or (), fresh, console)
        if code:
            raise typer.Exit(code)


@app.command()
@debuggable
def recipes() -> None:
    """List the built-in recipes: data set, teacher, and what each is for."""
    with sentences():
        table = Table("recipe", "data", "teacher", "for", box=None)
        for path in sorted(RECIPES.glob("*.toml")):
            sections = read_recipe(path.stem).sections
            table.add_row(
                path.stem,
                str(sections.get("data", {}).get("dataset", "nuscenes")),
                str(sections.get("teacher", {}).get("name", "clip_dense")),
                purpose(path),
            )
        console.print(table)
        console.print('A recipe of your own is a .toml file; one that begins with base = "NAME" says where it differs.')


def purpose(path: Path) -> str:
    """Return what a recipe is for: the first sentence of the comment on top of its file."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines).partition(". ")[0].rstrip(".:")
