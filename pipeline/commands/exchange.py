"""Commands that hand tables on, as one file or in the layout of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from manifests.asked import tables_of
from manifests.config import ConfigError
from manifests.console import AloneOption, LicenceOption
from manifests.recipe import load_recipe
from manifests.sections.data import RunConfig
from manifests.storage.archive import pack, unpack
from manifests.storage.marker import mark
from manifests.storage.names import ref_name
from manifests.storage.store import Store
from pipeline.commands.console import RecipeArgument, SetOption, console, expand, sentences, shown
from pipeline.exchange.export import LAYOUTS, export

MAPPED = ("mcap", "rosbag2")
KINDS = ("argoverse2", "kitti-raw", "kitti360", "waymo", *MAPPED)
MOST_TOLD = 10  # frames without labels

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


def import_log(
    kind: Annotated[str, typer.Argument(help=f"What it is: {' or '.join(KINDS)}.")],
    source: Annotated[
        Path,
        typer.Argument(
            help="A drive ..._sync, a log of Argoverse 2, a segment lidar/*.parquet of Waymo, an .mcap, or a bag."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Root of data set `folder`; the log becomes a scene in it.")],
    mapping: Annotated[Path | None, typer.Option(help="TOML that says which topic plays which part.")] = None,
) -> None:
    """Write a log of another program as a scene of data set `folder`: docs/bag-to-labels.md."""
    from pipeline.exchange.imports.argoverse import import_argoverse2
    from pipeline.exchange.imports.kitti360 import import_kitti360
    from pipeline.exchange.imports.kitti_raw import import_kitti_raw
    from pipeline.exchange.imports.ros_mapped import import_ros
    from pipeline.exchange.imports.waymo import import_waymo

    with sentences():
        if kind not in KINDS:
            raise ConfigError(f"there is no import of {kind!r}; there are {', '.join(KINDS)}")
        if (kind in MAPPED) != (mapping is not None):
            needs = "needs" if mapping is None else "takes no"
            raise ConfigError(
                f"import {kind} {needs} --mapping, a TOML that says which topic plays which part; docs/bag-to-labels.md"
            )
        if mapping is not None:
            scene = import_ros(source, out, mapping)
        else:
            of_data_set = {
                "argoverse2": import_argoverse2,
                "kitti-raw": import_kitti_raw,
                "kitti360": import_kitti360,
                "waymo": import_waymo,
            }
            scene = of_data_set[kind](source.resolve(), out)
        console.print(f"{out / scene} is written; look at it with the doctor before a run", soft_wrap=True)


def labels_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default: labels/RECIPE.")] = None,
    of: Annotated[str, typer.Option(help="In place of labels.of: refine, predict, target, correct, vote, group.")] = "",
    as_: Annotated[
        str,
        typer.Option("--as", help="In place of labels.formats: npy, kitti, lidarseg, pcd, ply, parquet; or several."),
    ] = "",
) -> None:
    """Write labels as files, for any data set, with or without truth; the folder appears whole."""
    from pipeline.exchange.labels import write_labels

    with sentences():
        asked = [f"labels.of={of}"] if of else []
        if as_:
            asked.append(f"labels.formats={json.dumps([name.strip() for name in as_.split(',')])}")
        loaded = load_recipe(recipe, [*(set_ or ()), *asked])
        done = write_labels(loaded, out or Path("labels") / loaded.run_name, shown)
        counts = done.record.counts
        if done.note:
            console.print(done.note, soft_wrap=True)
        if done.aside:
            console.print(f"labels: other ones were in {done.folder}; they are in {done.aside} now", soft_wrap=True)
        console.print(
            f"labels: {counts.frames} frames of table {done.record.of} in {done.folder} "
            f"({', '.join(done.record.layouts)}), {counts.labelled_percent:.1f} % of the points labelled"
            + ("; all was there already" if done.kept else ""),
            soft_wrap=True,
        )
        if done.changed:
            console.print(
                f"labels: {len(done.changed)} files there are not as they were written, such as {done.changed[0]}: "
                "corrected since, or damaged. They stay as they are; to have all written again, remove the folder, or "
                "name another one: OUT=... (--out)",
                soft_wrap=True,
            )
        for name, reason in list(done.record.without_labels.items())[:MOST_TOLD]:
            console.print(f"labels: frame {name} has none: {reason}", soft_wrap=True)
        if len(done.record.without_labels) > MOST_TOLD:
            console.print(f"labels: and {len(done.record.without_labels) - MOST_TOLD} more, in labels.json")


def review_command(
    recipe: RecipeArgument,
    set_: SetOption = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the rounds; default: review/RECIPE.")] = None,
    frames: Annotated[int, typer.Option(min=1, help="How many frames at most.")] = 20,
) -> None:
    """Write the frames most worth a person's time in KITTI's layout; `data.corrections` takes corrected ones back."""
    from pipeline.exchange.review import review

    with sentences():
        loaded = load_recipe(recipe, set_ or ())
        folder = out or Path("review") / loaded.run_name
        done, chosen = review(loaded, folder, frames, shown)
        for one in chosen[:MOST_TOLD]:
            console.print(
                f"review: {one.frame_id}: {100 * one.doubt:.0f} % doubt, {100 * one.disputed:.0f} % of its points "
                "disputed",
                soft_wrap=True,
            )
        console.print(
            f"review: {len(chosen)} frames in {done.folder}: correct the .label files there (labels.xml names the "
            f'classes), set [data] corrections = "{folder}", and run: {loaded.make("pack")}',
            soft_wrap=True,
        )


def export_tables(
    recipe: RecipeArgument,
    stages: Annotated[list[str], typer.Argument(metavar="TABLE...", help="Tables, or pack for all of training.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.tar", help="The file to write.")],
    set_: SetOption = None,
    licence: LicenceOption = None,
    alone: AloneOption = False,
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
