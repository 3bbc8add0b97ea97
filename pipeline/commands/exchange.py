"""Commands that hand tables on, as one file or in the layout of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from manifests.asked import tables_of
from manifests.config import ConfigError
from manifests.recipe import load_recipe
from manifests.sections.data import RunConfig
from manifests.storage.archive import pack, unpack
from manifests.storage.marker import mark
from manifests.storage.names import ref_name
from manifests.storage.store import Store
from pipeline.commands.console import RecipeArgument, SetOption, console, expand, sentences, shown
from pipeline.exchange.export import LAYOUTS, export

LICENCES = {
    "nuscenes": "Made from nuScenes, or from logs in its layout. nuScenes is for non-commercial use (CC BY-NC-SA 4.0 "
    "and its terms of use), and so are these tables; other logs have terms of their own.\n",
    "semantic_kitti": "Made from SemanticKITTI and the KITTI odometry benchmark, which are for non-commercial use (CC "
    "BY-NC-SA), and so are these tables.\n",
}
"""The note that goes with tables of a data set where none is given."""


def export_command(
    recipe: RecipeArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write; an earlier export of the same tables is gone on with.")],
    set_: SetOption = None,
    layout: Annotated[str, typer.Option(help=f"Whose files they look like: {' or '.join(LAYOUTS)}.")] = "san",
    sixteen_bit: Annotated[
        bool, typer.Option("--sixteen-bit", help="Write images of more than 255 segments too; the reference cannot.")
    ] = False,
) -> None:
    """Write segments and point labels as the official scripts do, for their trainer. Kill it and start it again."""
    with sentences():
        done = export(load_recipe(recipe, set_ or ()), out, layout, sixteen_bit, shown)
        console.print(f"{out}: {done.written} frames written, {done.kept} there before", soft_wrap=True)
        for note in done.notes():
            console.print(f"note: {note}", soft_wrap=True)


def export_tables(
    recipe: RecipeArgument,
    stages: Annotated[list[str], typer.Argument(metavar="TABLE...", help="Tables, or pack for all of training.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.tar", help="The file to write.")],
    set_: SetOption = None,
    licence: Annotated[
        Path | None, typer.Option(help="A text on whose data this is and who may use it; needed for your own logs.")
    ] = None,
    alone: Annotated[
        bool, typer.Option("--alone", help="Leave out what the tables were made from; others build that anew.")
    ] = False,
) -> None:
    """Write tables with all that they were made from and a licence note as one archive, for `store import`.

    Whoever takes it in, and has the recipe and the data, builds nothing of it again.
    """
    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        note = licence.read_text(encoding="utf-8", errors="replace") if licence else LICENCES.get(loaded.data.dataset)
        if note is None:
            raise ConfigError(f"say who may use tables of data set {loaded.data.dataset}: --licence FILE with a text")
        store = Store.open(loaded.run.store)
        found = tables_of(store, loaded, expand(stages))
        done = pack(store, ref_name(found.recipe, found.key), expand(stages), note, out, alone)
        for table in done:
            console.print(f"{table.stage}/{table.fingerprint}: {len(table.shards)} shards, {table.rows} frames")
        console.print(f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB", soft_wrap=True)


def mark_store(recipe: RecipeArgument, set_: SetOption = None) -> None:
    """Mark the store of a recipe, which an earlier version wrote, as ours, if nothing else lies in it."""
    with sentences():
        store = Store.open(load_recipe(recipe, set_ or ()).run.store)
        console.print(f"{store.place} is marked as a store; it has {mark(store.files)} files", soft_wrap=True)


def import_tables(
    archive: Annotated[Path, typer.Argument(metavar="OUT.tar", help="An archive that `store export` wrote.")],
    into: Annotated[str, typer.Option(help="The store to put them into.")] = RunConfig().store,
) -> None:
    """Check an archive to its last byte and put its tables into a store; a recipe that needs them finds them there."""
    with sentences():
        done = unpack(archive, Store.open(into))
        for table in done.tables:
            console.print(f"{table.stage}/{table.fingerprint}: {len(table.shards)} shards, {table.rows} frames")
        console.print(f"{done.n_new} shards were new; ref {done.ref} keeps them from collection")
        console.print(done.licence.strip(), soft_wrap=True)
